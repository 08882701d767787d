//! How a position in write-ahead log is read and written as text.

use std::fmt;
use std::str::FromStr;

use super::Lsn;

impl Lsn {
    /// Appends the text, as [`Display`](fmt::Display) gives it.
    pub fn write_to(self, out: &mut Vec<u8>) {
        hexadecimal(out, (self.0 >> 32) as u32);
        out.push(b'/');
        hexadecimal(out, self.0 as u32);
    }
}

fn hexadecimal(out: &mut Vec<u8>, number: u32) {
    let digits = (u32::BITS - number.leading_zeros()).div_ceil(4).max(1);
    out.extend((0..digits).rev().map(|place| b"0123456789ABCDEF"[(number >> (4 * place) & 0xF) as usize]));
}

/// As `pg_lsn` prints it: the two halves in upper-case hexadecimal (`pg_lsn_out` in pg_lsn.c).
impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = Vec::with_capacity(17);
        self.write_to(&mut text);
        f.pad(&String::from_utf8_lossy(&text))
    }
}

/// A text that is no position in write-ahead log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidLsn;

impl fmt::Display for InvalidLsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a position in write-ahead log: expected two hexadecimal numbers like 0/15A8F50")
    }
}

impl std::error::Error for InvalidLsn {}

/// Accepts what `pg_lsn_in` accepts: one to eight hexadecimal digits on each side of the slash.
impl FromStr for Lsn {
    type Err = InvalidLsn;

    fn from_str(text: &str) -> Result<Self, InvalidLsn> {
        let (high, low) = text.split_once('/').ok_or(InvalidLsn)?;
        Ok(Lsn(half(high)? << 32 | half(low)?))
    }
}

fn half(digits: &str) -> Result<u64, InvalidLsn> {
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(InvalidLsn);
    }
    u64::from_str_radix(digits, 16).map_err(|_| InvalidLsn)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_as_postgres_does() {
        assert_eq!(Lsn(0).to_string(), "0/0");
        assert_eq!(Lsn(0x15A_8F50).to_string(), "0/15A8F50");
        assert_eq!(Lsn(0x16_B374_D848).to_string(), "16/B374D848");
        assert_eq!(Lsn(u64::MAX).to_string(), "FFFFFFFF/FFFFFFFF");
    }

    #[test]
    fn reads_what_it_prints() {
        for lsn in [Lsn(0), Lsn(1), Lsn(0x15A_8F50), Lsn(0x16_B374_D848), Lsn(u64::MAX)] {
            assert_eq!(lsn.to_string().parse(), Ok(lsn));
        }
        assert_eq!("0/15a8f50".parse(), Ok(Lsn(0x15A_8F50)));
    }

    #[test]
    fn refuses_what_is_no_position() {
        for text in ["", "/", "0", "0/", "/0", "0/123456789", "+1/2", "0/-1", "0/1 ", "0/1/2", "0/é"] {
            assert_eq!(text.parse::<Lsn>(), Err(InvalidLsn), "{text:?}");
        }
    }
}
