//! Messages of our own in write-ahead log. Any role may write one under any prefix, so ours carry a seal that only the
//! extension can make: an HMAC over what is said, its prefix and its transaction. Pure.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// The characters of a seal: an HMAC-SHA256 in hexadecimal digits, so that tools which print messages as text can.
pub const SEAL: usize = 64;

/// What a message of ours is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An event of the user's own.
    Emit,
    /// What the transaction says of itself from here on.
    Annotate,
    /// What our workers have to say of a subscription.
    System,
}

impl Kind {
    /// Its prefix in the log.
    pub fn prefix(self) -> &'static str {
        match self {
            Kind::Emit => "pgwh.emit",
            Kind::Annotate => "pgwh.annotate",
            Kind::System => "pgwh.system",
        }
    }

    /// The kind of message that has this prefix; none of another application's.
    pub fn of_prefix(prefix: &str) -> Option<Kind> {
        [Kind::Emit, Kind::Annotate, Kind::System].into_iter().find(|kind| kind.prefix() == prefix)
    }
}

/// Makes and checks seals.
#[derive(Clone)]
pub struct Sealer(Hmac<Sha256>);

impl Sealer {
    /// With the key of this installation.
    pub fn new(key: &[u8]) -> Sealer {
        // A key of HMAC may have any length.
        Sealer(Hmac::new_from_slice(key).unwrap_or_else(|_| Hmac::new(&Default::default())))
    }

    /// The message that says `content` in the transaction whose topmost xid is this one, and in no other.
    pub fn seal(&self, kind: Kind, xid: u32, content: &[u8]) -> Vec<u8> {
        let mut message = Vec::with_capacity(SEAL + content.len());
        for byte in self.mac(kind, xid, content).finalize().into_bytes() {
            for digit in [byte >> 4, byte & 15] {
                message.push(b"0123456789abcdef"[usize::from(digit)]);
            }
        }
        message.extend_from_slice(content);
        message
    }

    /// What a message says; none when it is forged.
    pub fn open<'a>(&self, kind: Kind, xid: u32, message: &'a [u8]) -> Option<&'a [u8]> {
        let (seal, content) = message.split_at_checked(SEAL)?;
        let mut claimed = [0; SEAL / 2];
        for (byte, digits) in claimed.iter_mut().zip(seal.chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        }
        self.mac(kind, xid, content).verify_slice(&claimed).ok().map(|()| content)
    }

    /// A digest of these texts, in this order. No message has its prefix.
    pub fn name_digest(&self, parts: &[&str]) -> [u8; 32] {
        let mut mac = self.0.clone();
        mac.update(b"name\0");
        for part in parts {
            mac.update(part.as_bytes());
            mac.update(&[0]);
        }
        mac.finalize().into_bytes().into()
    }

    fn mac(&self, kind: Kind, xid: u32, content: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        mac.update(kind.prefix().as_bytes());
        mac.update(&[0]);
        mac.update(&xid.to_le_bytes());
        mac.update(content);
        mac
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_message_counts_only_as_it_was_sealed() {
        let sealer = Sealer::new(b"key");
        let message = sealer.seal(Kind::Emit, 7, b"{}");
        assert_eq!(sealer.open(Kind::Emit, 7, &message), Some(b"{}".as_slice()));
        assert_eq!(sealer.open(Kind::Emit, 8, &message), None, "in another transaction");
        assert_eq!(sealer.open(Kind::Annotate, 7, &message), None, "for another purpose");
        assert_eq!(Sealer::new(b"yek").open(Kind::Emit, 7, &message), None, "with another key");
        for place in 0..message.len() {
            let mut changed = message.clone();
            changed[place] ^= 1;
            assert_eq!(sealer.open(Kind::Emit, 7, &changed), None, "byte {place} changed");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_pass_for_a_message_without_the_key(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(Sealer::new(b"key").open(Kind::Emit, 7, &bytes), None);
        }
    }
}
