//! What packed columns are made of: numbers in as few bytes as they need, and compression around the whole.
//!
//! The first byte of a column names its format, so that a later release reads what an earlier one wrote. What a
//! table holds may have been damaged: nothing is trusted, and no claim asks for more memory than a multiple of what
//! is there.

use std::borrow::Cow;
use std::fmt;

use integer_encoding::{VarInt, VarIntReader};
use lz4_flex::block;

use crate::ipc::frame::FrameError;

const PLAIN: u8 = 1;
const LZ4: u8 = 2;

/// Compression by LZ4 cannot make more than so many bytes out of one.
const LZ4_LIMIT: u64 = 255;

/// Why bytes are no packed column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackError {
    /// The first byte names no format that this release knows.
    Format(u8),
    /// The bytes end within something.
    Truncated,
    /// They go on behind the end.
    Trailing(usize),
    /// Something has a value that it cannot have; what.
    Invalid(&'static str),
    /// They cannot be decompressed.
    Compression,
    /// A text is not UTF-8.
    NotUtf8,
    /// A frame of a chunk is none.
    Frame(FrameError),
}

impl fmt::Display for PackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PackError::Format(format) => write!(f, "no packed column has the format {format}"),
            PackError::Truncated => f.write_str("a packed column is cut off"),
            PackError::Trailing(bytes) => write!(f, "a packed column has {bytes} bytes too many"),
            PackError::Invalid(what) => write!(f, "a packed column's {what} has no such value"),
            PackError::Compression => f.write_str("a packed column cannot be decompressed"),
            PackError::NotUtf8 => f.write_str("a text in a packed column is not UTF-8"),
            PackError::Frame(_) => f.write_str("a chunk of events holds a frame that is none"),
        }
    }
}

impl std::error::Error for PackError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            PackError::Frame(error) => Some(error),
            _ => None,
        }
    }
}

impl From<FrameError> for PackError {
    fn from(error: FrameError) -> Self {
        PackError::Frame(error)
    }
}

/// A whole column, compressed where that makes it shorter.
pub fn seal(raw: &[u8]) -> Vec<u8> {
    const HEAD: usize = 1 + 10;
    let mut out = vec![0; HEAD + block::get_maximum_output_size(raw.len())];
    out[0] = LZ4;
    let head = 1 + (raw.len() as u64).encode_var(&mut out[1..]);
    match block::compress_into(raw, &mut out[head..]) {
        Ok(length) if length < raw.len() => out.truncate(head + length),
        _ => {
            out.clear();
            out.push(PLAIN);
            out.extend_from_slice(raw);
        }
    }
    // What is kept until the next flush should not hold the worst case's memory.
    out.shrink_to_fit();
    out
}

/// What [`seal`] was given.
///
/// # Errors
///
/// When the bytes are none of its.
pub fn unseal(column: &[u8]) -> Result<Cow<'_, [u8]>, PackError> {
    let (format, mut rest) = column.split_first().ok_or(PackError::Truncated)?;
    match *format {
        PLAIN => Ok(Cow::Borrowed(rest)),
        LZ4 => {
            let length: u64 = rest.read_varint().map_err(|_| PackError::Truncated)?;
            if length > rest.len() as u64 * LZ4_LIMIT {
                return Err(PackError::Compression);
            }
            let mut raw = vec![0; length as usize];
            match block::decompress_into(rest, &mut raw) {
                Ok(found) if found == raw.len() => Ok(Cow::Owned(raw)),
                _ => Err(PackError::Compression),
            }
        }
        other => Err(PackError::Format(other)),
    }
}

/// Appends numbers and texts.
#[derive(Debug, Default)]
pub struct Packer(Vec<u8>);

impl Packer {
    /// The bytes so far.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is nothing yet.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A byte.
    pub fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }

    /// A number that is mostly small.
    pub fn number(&mut self, number: u64) {
        let mut bytes = [0; 10];
        let length = number.encode_var(&mut bytes);
        self.0.extend_from_slice(&bytes[..length]);
    }

    /// A number that is mostly close to 0, on either side.
    pub fn signed(&mut self, number: i64) {
        let mut bytes = [0; 10];
        let length = number.encode_var(&mut bytes);
        self.0.extend_from_slice(&bytes[..length]);
    }

    /// How far a number is from the one before.
    pub fn step(&mut self, from: u64, to: u64) {
        self.signed(to.wrapping_sub(from) as i64);
    }

    /// A text with its length.
    pub fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.extend_from_slice(text.as_bytes());
    }

    /// Takes out all there is, sealed.
    pub fn seal(&mut self) -> Vec<u8> {
        let column = seal(&self.0);
        self.0.clear();
        column
    }
}

/// Takes out what a [`Packer`] appended.
#[derive(Debug)]
pub struct Unpacker<'a>(&'a [u8]);

impl<'a> Unpacker<'a> {
    /// Of unsealed bytes.
    pub fn of(raw: &'a [u8]) -> Self {
        Unpacker(raw)
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Nothing may be left.
    pub fn end(self) -> Result<(), PackError> {
        if self.0.is_empty() { Ok(()) } else { Err(PackError::Trailing(self.0.len())) }
    }

    /// A byte.
    pub fn byte(&mut self) -> Result<u8, PackError> {
        let (byte, rest) = self.0.split_first().ok_or(PackError::Truncated)?;
        self.0 = rest;
        Ok(*byte)
    }

    /// A number.
    pub fn number(&mut self) -> Result<u64, PackError> {
        self.variable()
    }

    /// A number of no more than the type's bits; `what` it is.
    pub fn small<T: TryFrom<u64>>(&mut self, what: &'static str) -> Result<T, PackError> {
        T::try_from(self.number()?).map_err(|_| PackError::Invalid(what))
    }

    /// A number on either side of 0.
    pub fn signed(&mut self) -> Result<i64, PackError> {
        self.variable()
    }

    /// The number that [`Packer::step`] stepped to.
    pub fn step(&mut self, from: u64) -> Result<u64, PackError> {
        Ok(from.wrapping_add(self.signed()? as u64))
    }

    /// How many follow that take at least a byte each.
    pub fn count(&mut self) -> Result<usize, PackError> {
        let count = self.number()?;
        if count > self.0.len() as u64 { Err(PackError::Truncated) } else { Ok(count as usize) }
    }

    /// A text.
    pub fn text(&mut self) -> Result<String, PackError> {
        let length = self.count()?;
        let (text, rest) = self.0.split_at(length);
        self.0 = rest;
        std::str::from_utf8(text).map(str::to_owned).map_err(|_| PackError::NotUtf8)
    }

    fn variable<T: VarInt>(&mut self) -> Result<T, PackError> {
        let (number, length) = T::decode_var(self.0).ok_or(PackError::Truncated)?;
        self.0 = &self.0[length..];
        Ok(number)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(crate::proptest_config::config(256))]

        #[test]
        fn a_column_is_unsealed_as_it_was(raw in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..300),
            prop::collection::vec(0u8..3, 0..3000),
            Just(vec![0; 100_000]),
        ]) {
            prop_assert_eq!(unseal(&seal(&raw)).unwrap().into_owned(), raw);
        }

        #[test]
        fn any_column_is_unsealed_or_refused(format in 0u8..4, rest in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut column = vec![format];
            column.extend_from_slice(&rest);
            let _ = unseal(&column);
        }

        #[test]
        fn numbers_and_texts_come_back(numbers: Vec<(u64, i64)>, text in ".{0,20}", from: u64, to: u64) {
            let mut packer = Packer::default();
            for (number, signed) in &numbers {
                packer.number(*number);
                packer.signed(*signed);
            }
            packer.text(&text);
            packer.step(from, to);
            let column = packer.seal();
            let raw = unseal(&column).unwrap();
            let mut unpacker = Unpacker::of(&raw);
            for (number, signed) in &numbers {
                prop_assert_eq!(unpacker.number().unwrap(), *number);
                prop_assert_eq!(unpacker.signed().unwrap(), *signed);
            }
            prop_assert_eq!(unpacker.text().unwrap(), text);
            prop_assert_eq!(unpacker.step(from).unwrap(), to);
            prop_assert_eq!(unpacker.end(), Ok(()));
        }
    }

    #[test]
    fn a_claim_of_many_bytes_takes_no_memory() {
        let mut column = vec![LZ4];
        column.extend(u64::MAX.encode_var_vec());
        column.extend([0; 20]);
        assert_eq!(unseal(&column), Err(PackError::Compression));
        assert_eq!(unseal(&[]), Err(PackError::Truncated));
        assert_eq!(unseal(&[7]), Err(PackError::Format(7)));
    }
}
