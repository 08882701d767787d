//! The dispatcher's end: from pieces of the stream to whole frames, and from a frame to its members.

use super::{FrameError, LaneKeys, MAX_LENGTH, Target, flag, kind_tag};
use crate::event::Kind;

/// What the buffer keeps when a large frame is through, in bytes.
const KEEP: usize = 256 * 1024;

/// Puts frames together from the pieces that the queue delivers.
#[derive(Debug, Default)]
pub struct FrameReader {
    buffer: Vec<u8>,
    /// How much of the buffer has been read.
    read: usize,
}

impl FrameReader {
    /// Appends the next piece of the stream.
    pub fn push(&mut self, piece: &[u8]) {
        self.buffer.drain(..self.read);
        self.read = 0;
        if self.buffer.len() + piece.len() <= KEEP {
            self.buffer.shrink_to(KEEP);
        }
        self.buffer.extend_from_slice(piece);
    }

    /// The body of the next frame, none until more is pushed.
    ///
    /// # Errors
    ///
    /// When the frame claims to be longer than any is. There is no way on from there.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, FrameError> {
        let Some((length, rest)) = self.buffer[self.read..].split_first_chunk() else {
            self.release();
            return Ok(None);
        };
        let length = u32::from_le_bytes(*length) as usize;
        if length > MAX_LENGTH {
            return Err(FrameError::TooLong(length));
        }
        if rest.len() < length {
            return Ok(None);
        }
        let start = self.buffer.len() - rest.len();
        self.read = start + length;
        Ok(Some(&self.buffer[start..self.read]))
    }

    /// Gives a large frame's memory back as soon as all is read.
    fn release(&mut self) {
        if self.read == self.buffer.len() {
            self.buffer.clear();
            self.buffer.shrink_to(KEEP);
            self.read = 0;
        }
    }

    /// Whether all that was pushed has been read.
    pub fn is_empty(&self) -> bool {
        self.read == self.buffer.len()
    }

    /// The bytes of memory held.
    pub fn memory(&self) -> usize {
        self.buffer.capacity()
    }
}

/// Takes a frame's members one after the other.
pub(in crate::ipc) struct Members<'a> {
    rest: &'a [u8],
}

impl<'a> Members<'a> {
    pub(in crate::ipc) fn of(body: &'a [u8]) -> Self {
        Members { rest: body }
    }

    /// Nothing may be left.
    pub(in crate::ipc) fn end(self) -> Result<(), FrameError> {
        if self.rest.is_empty() { Ok(()) } else { Err(FrameError::Trailing(self.rest.len())) }
    }

    pub(in crate::ipc) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let (array, rest) = self.rest.split_first_chunk().ok_or(FrameError::Truncated)?;
        self.rest = rest;
        Ok(*array)
    }

    pub(in crate::ipc) fn u8(&mut self) -> Result<u8, FrameError> {
        self.array().map(u8::from_le_bytes)
    }

    pub(super) fn bool(&mut self) -> Result<bool, FrameError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(FrameError::Invalid("truth value")),
        }
    }

    pub(super) fn i16(&mut self) -> Result<i16, FrameError> {
        self.array().map(i16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, FrameError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(in crate::ipc) fn u64(&mut self) -> Result<u64, FrameError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn i64(&mut self) -> Result<i64, FrameError> {
        self.array().map(i64::from_le_bytes)
    }

    /// Bytes with their length before them.
    pub(in crate::ipc) fn bytes(&mut self) -> Result<&'a [u8], FrameError> {
        let length = self.u32()? as usize;
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or(FrameError::Truncated)?;
        self.rest = rest;
        Ok(bytes)
    }

    pub(in crate::ipc) fn text(&mut self) -> Result<String, FrameError> {
        let text = std::str::from_utf8(self.bytes()?).map_err(|_| FrameError::NotUtf8)?;
        Ok(text.to_owned())
    }

    pub(in crate::ipc) fn option<T>(
        &mut self,
        member: impl FnOnce(&mut Self) -> Result<T, FrameError>,
    ) -> Result<Option<T>, FrameError> {
        if self.bool()? { member(self).map(Some) } else { Ok(None) }
    }

    /// A list whose members take at least `least` bytes each, so that no claim can ask for more memory than a
    /// multiple of what is there.
    pub(in crate::ipc) fn list<T>(
        &mut self,
        least: usize,
        mut member: impl FnMut(&mut Self) -> Result<T, FrameError>,
    ) -> Result<Vec<T>, FrameError> {
        let length = self.u32()? as usize;
        if length > self.rest.len() / least {
            return Err(FrameError::Truncated);
        }
        let mut list = Vec::with_capacity(length);
        for _ in 0..length {
            list.push(member(self)?);
        }
        Ok(list)
    }

    /// What a type is beneath, nested no deeper than `depth`.
    pub(super) fn kind(&mut self, depth: usize) -> Result<Kind, FrameError> {
        let inner = depth.checked_sub(1).ok_or(FrameError::Invalid("kind"))?;
        Ok(match self.u8()? {
            kind_tag::TEXT => Kind::Text,
            kind_tag::BOOLEAN => Kind::Boolean,
            kind_tag::NUMBER => Kind::Number,
            kind_tag::NUMERIC => Kind::Numeric,
            kind_tag::OID => Kind::Oid,
            kind_tag::BYTEA => Kind::Bytea,
            kind_tag::TIMESTAMP => Kind::Timestamp,
            kind_tag::TIMESTAMPTZ => Kind::Timestamptz,
            kind_tag::JSON => Kind::Json,
            kind_tag::HSTORE => Kind::Hstore,
            kind_tag::ARRAY => {
                let delimiter = self.u8()?;
                Kind::Array { delimiter, element: Box::new(self.kind(inner)?) }
            }
            kind_tag::COMPOSITE => {
                Kind::Composite(self.list(5, |members| Ok((members.text()?, members.kind(inner)?)))?)
            }
            _ => return Err(FrameError::Invalid("kind")),
        })
    }

    pub(super) fn targets(&mut self) -> Result<Vec<Target>, FrameError> {
        self.list(9, |members| Ok(Target { subscription: members.i64()?, level: members.u8()? }))
    }

    /// The keys, and whether the change is a barrier.
    pub(super) fn lanes(&mut self) -> Result<(LaneKeys, bool), FrameError> {
        let flags = self.u8()?;
        if flags & !flag::ALL != 0 {
            return Err(FrameError::Invalid("flags"));
        }
        let (key, old) = (self.u64()?, self.u64()?);
        let keys = LaneKeys {
            key: (flags & flag::KEY != 0).then_some(key),
            old: (flags & flag::OLD_KEY != 0).then_some(old),
        };
        Ok((keys, flags & flag::BARRIER != 0))
    }
}
