//! Ids in the spelling of other systems, derived from what stays the same: the installation's id, oids, and the numbers
//! of columns and subscriptions. They may not change with a release, since receivers keep them.

use xxhash_rust::xxh3::xxh3_128;

/// An id as pgstream has them (<https://github.com/rs/xid>): 12 bytes in base32 of lower case, 20 characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Xid([u8; 20]);

impl Xid {
    /// Of the table with that oid; its names don't matter.
    pub fn of_table(installation: u128, oid: u32) -> Xid {
        Xid::of(digest(installation, b't', oid.into()))
    }

    /// Of a version of a schema.
    pub fn of_version(installation: u128, version: u64) -> Xid {
        Xid::of(digest(installation, b's', version))
    }

    fn of(digest: u128) -> Xid {
        const DIGITS: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";
        // 96 bits are 19 digits and one bit, behind which there are zeros. Halves of 50 bits are ten digits each.
        let bits = (digest >> 32) << 4;
        let halves = [(bits >> 50) as u64, bits as u64];
        Xid(std::array::from_fn(|place| {
            DIGITS[(halves[place / 10] >> (45 - 5 * (place % 10))) as usize & 31]
        }))
    }

    /// The characters.
    pub fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }
}

/// The UUID of a subscription.
pub fn uuid_of_subscription(installation: u128, id: i64) -> [u8; 16] {
    let digest = digest(installation, b'c', id as u64);
    // RFC 9562, section 5.8: all bits but version and variant are one's own.
    let version = digest & !(0xF << 76) | 0x8 << 76;
    (version & !(0b11 << 62) | 0b10 << 62).to_be_bytes()
}

fn digest(installation: u128, what: u8, number: u64) -> u128 {
    let mut bytes = [what; 25];
    bytes[..16].copy_from_slice(&installation.to_be_bytes());
    bytes[17..].copy_from_slice(&number.to_be_bytes());
    xxh3_128(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSTALLATION: u128 = 0xa0ee_bc99_9c0b_4ef8_bb6d_6bb9_bd38_0a11;

    fn text(xid: Xid) -> String {
        String::from_utf8(xid.as_bytes().to_vec()).unwrap()
    }

    #[test]
    fn ids_are_the_same_in_every_release() {
        assert_eq!(text(Xid::of_table(INSTALLATION, 16_385)), "kk396vo9nnp1fhh06ovg");
        assert_eq!(
            u128::from_be_bytes(uuid_of_subscription(INSTALLATION, 1)),
            0x8e10_4350_84c5_8b57_be21_15fd_8afe_761f
        );
    }

    #[test]
    fn ids_tell_installations_tables_and_versions_apart() {
        let table = Xid::of_table(INSTALLATION, 16_385);
        assert_ne!(table, Xid::of_table(INSTALLATION, 16_386));
        assert_ne!(table, Xid::of_table(INSTALLATION + 1, 16_385));
        assert_ne!(table, Xid::of_version(INSTALLATION, 16_385));
    }

    /// The library that receivers read them with refuses others (`decode` in xid's id.go).
    #[test]
    fn an_xid_is_twenty_digits_the_last_of_which_has_one_bit() {
        assert_eq!(text(Xid::of(u128::MAX)), "vvvvvvvvvvvvvvvvvvvg");
        assert_eq!(text(Xid::of(0)), "00000000000000000000");
        // From pgstream's tutorial.
        let id = "cv9al8qhi0j00i9chq8g";
        let bits = id.chars().fold(0, |bits, digit| bits << 5 | u128::from(digit.to_digit(32).unwrap()));
        assert_eq!(text(Xid::of(bits >> 4 << 32)), id);
    }
}
