//! The name of an event: the same for each decoding of the same write-ahead log, different for all else.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use super::{Event, Lsn, Timestamp};

/// Tells a transaction from another that took the same place in write-ahead log on a diverged timeline.
///
/// 48 bits of a hash over what the commit record itself holds. The timeline's number is no part of it, since
/// that changes for old WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(u64);

impl Fingerprint {
    const BITS: u32 = 48;

    /// Of no transaction yet.
    pub const NONE: Fingerprint = Fingerprint(0);

    /// Of the transaction `xid` that was committed at that time by the cluster with that system identifier.
    pub fn of(system_identifier: u64, xid: u32, committed_at: Timestamp) -> Self {
        let digest = Sha256::new()
            .chain_update(system_identifier.to_be_bytes())
            .chain_update(xid.to_be_bytes())
            .chain_update(committed_at.0.to_be_bytes())
            .finalize();
        Fingerprint(digest.iter().take(6).fold(0, |bits, byte| bits << 8 | u64::from(*byte)))
    }

    /// From the bits of another; none if there are more than 48.
    pub fn from_bits(bits: u64) -> Option<Self> {
        (bits >> Self::BITS == 0).then_some(Fingerprint(bits))
    }

    /// The 48 bits.
    pub fn bits(self) -> u64 {
        self.0
    }
}

/// The id of an event. Ids sort, as values and as text, in commit order.
///
/// As text: `evt_`, then in lower-case hexadecimal 16 digits of the commit's LSN, 10 of the ordinal, 12 of the
/// fingerprint. Ten digits number the changes of more than 50 TB of WAL in one transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId {
    /// Where the commit record begins.
    pub commit_lsn: Lsn,
    /// The event's place in its transaction, below 2^40.
    pub ordinal: u64,
    /// The transaction's.
    pub fingerprint: Fingerprint,
}

const PREFIX: &[u8] = b"evt_";
const LSN_DIGITS: usize = 16;
const ORDINAL_DIGITS: usize = 10;
const FINGERPRINT_DIGITS: usize = 12;

impl EventId {
    /// The length of every id's text, in bytes.
    pub const LENGTH: usize = PREFIX.len() + LSN_DIGITS + ORDINAL_DIGITS + FINGERPRINT_DIGITS;

    /// Appends the text.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.text());
    }

    /// Appends the text.
    pub fn push_to(&self, out: &mut String) {
        out.push_str(&String::from_utf8_lossy(&self.text()));
    }

    fn text(&self) -> [u8; Self::LENGTH] {
        let mut text = [0; Self::LENGTH];
        let (prefix, rest) = text.split_at_mut(PREFIX.len());
        let (lsn, rest) = rest.split_at_mut(LSN_DIGITS);
        let (ordinal, fingerprint) = rest.split_at_mut(ORDINAL_DIGITS);
        prefix.copy_from_slice(PREFIX);
        write_hex(lsn, self.commit_lsn.0);
        write_hex(ordinal, self.ordinal);
        write_hex(fingerprint, self.fingerprint.0);
        text
    }
}

/// Fills the places with the lowest digits of a number.
fn write_hex(places: &mut [u8], number: u64) {
    let mut rest = number;
    for place in places.iter_mut().rev() {
        *place = b"0123456789abcdef"[(rest & 0xF) as usize];
        rest >>= 4;
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&String::from_utf8_lossy(&self.text()))
    }
}

/// A text that is no event's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidEventId;

impl fmt::Display for InvalidEventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an event's id: expected evt_ and 38 lower-case hexadecimal digits")
    }
}

impl std::error::Error for InvalidEventId {}

impl FromStr for EventId {
    type Err = InvalidEventId;

    fn from_str(text: &str) -> Result<Self, InvalidEventId> {
        let digits = text.as_bytes().strip_prefix(PREFIX).ok_or(InvalidEventId)?;
        if text.len() != Self::LENGTH {
            return Err(InvalidEventId);
        }
        let (lsn, rest) = digits.split_at(LSN_DIGITS);
        let (ordinal, fingerprint) = rest.split_at(ORDINAL_DIGITS);
        Ok(EventId {
            commit_lsn: Lsn(read_hex(lsn)?),
            ordinal: read_hex(ordinal)?,
            fingerprint: Fingerprint(read_hex(fingerprint)?),
        })
    }
}

fn read_hex(digits: &[u8]) -> Result<u64, InvalidEventId> {
    digits.iter().try_fold(0, |number, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return Err(InvalidEventId),
        };
        Ok(number << 4 | u64::from(value))
    })
}

impl Event {
    /// The event's name, the same whenever this WAL is decoded.
    pub fn id(&self) -> EventId {
        EventId {
            commit_lsn: self.transaction.commit_lsn,
            ordinal: self.ordinal,
            fingerprint: self.transaction.fingerprint,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(lsn: u64, ordinal: u64, fingerprint: u64) -> EventId {
        EventId { commit_lsn: Lsn(lsn), ordinal, fingerprint: Fingerprint(fingerprint) }
    }

    #[test]
    fn text_has_a_fixed_form() {
        assert_eq!(
            id(0x15A_8F50, 3, 0x0123_4567_89AB).to_string(),
            "evt_00000000015a8f5000000000030123456789ab"
        );
        assert_eq!(EventId::LENGTH, 42);
    }

    #[test]
    fn writing_appends_the_same_text() {
        let id = id(0x16_B374_D848, 9_999, 1);
        let mut out = b"id: ".to_vec();
        id.write_to(&mut out);
        assert_eq!(out, format!("id: {id}").into_bytes());
    }

    /// Ids are kept by receivers: what made them may never change.
    #[test]
    fn fingerprint_is_the_same_in_every_release() {
        let fingerprint = Fingerprint::of(7_312_345_678_901_234_567, 745, Timestamp(848_484_047_406_957));
        assert_eq!(format!("{:012x}", fingerprint.bits()), "25d6f8c3d98c");
    }

    #[test]
    fn fingerprint_tells_clusters_transactions_and_times_apart() {
        let fingerprint = Fingerprint::of(1, 745, Timestamp(5));
        assert_ne!(fingerprint, Fingerprint::of(2, 745, Timestamp(5)));
        assert_ne!(fingerprint, Fingerprint::of(1, 746, Timestamp(5)));
        assert_ne!(fingerprint, Fingerprint::of(1, 745, Timestamp(6)));
        assert_eq!(Fingerprint::from_bits(fingerprint.bits()), Some(fingerprint));
        assert_eq!(Fingerprint::from_bits(1 << 48), None);
    }

    #[test]
    fn refuses_what_is_no_id() {
        let good = id(1, 2, 3).to_string();
        let upper = good.replace("evt_", "EVT_");
        for text in ["", "evt_", &upper, &good[..41], &format!("{good}0"), &good.replace("00", "0A")] {
            assert_eq!(text.parse::<EventId>(), Err(InvalidEventId), "{text:?}");
        }
        assert_eq!(good.replace("000", "é+").parse::<EventId>(), Err(InvalidEventId));
    }

    fn any_id() -> impl Strategy<Value = EventId> {
        (any::<u64>(), 0..1u64 << 40, 0..1u64 << 48)
            .prop_map(|(lsn, ordinal, fingerprint)| id(lsn, ordinal, fingerprint))
    }

    proptest! {
        #![proptest_config(crate::proptest_config::config(256))]

        #[test]
        fn text_reads_back(id in any_id()) {
            prop_assert_eq!(id.to_string().parse(), Ok(id));
        }

        #[test]
        fn text_sorts_in_commit_order(one in any_id(), other in any_id()) {
            prop_assert_eq!(one.cmp(&other), one.to_string().cmp(&other.to_string()));
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".*") {
            let _ = text.parse::<EventId>();
        }
    }
}
