//! What the decoder tells the dispatcher: a stream of frames, one behind the other.
//!
//! A frame is the length of its body (four bytes), a tag byte and the body's members; numbers are little-endian,
//! texts and lists have their length before them. The queue cuts the stream where it likes: a frame may span
//! messages. Both ends are of the same build, so there are no versions; but as the bytes come through shared
//! memory, nothing in them is trusted.
//!
//! The order of the frames, for each session of the decoder:
//!
//! - first the image of routing ([`write_image_begin`], subscriptions, [`write_image_end`]) when there is a new slot;
//! - each transaction with something to send between [`write_begin`] and [`write_commit`]; within it, what it says of itself
//!   before the first change that this is about ([`write_annotations`]);
//! - each version of a relation once, before its first change; its reference number may be used again for a later
//!   version, which replaces it;
//! - before a change, which of its targets don't get it after all;
//! - a subscription's routing where its own transaction commits; progress whenever there is any;
//! - where a subscription begins to miss the changes of a table, and where that ends.
//!
//! A backfiller writes such a stream, too: the rows of a chunk as changes behind [`write_begin`], and then
//! [`write_chunk`]; or why there is no chunk.

pub(super) mod reader;
mod stream;
#[cfg(test)]
pub(crate) mod tests;
pub(super) mod writer;

use std::fmt;

pub use self::reader::FrameReader;
pub use self::stream::{ChunkEnd, Failure, Item, NoChunk, Stream, TableGap, TableGapEnd, Visible};
pub use self::writer::{
    ChangeFrame, ChangeHead, FailureHead, Image, begin_change, write_annotations, write_begin, write_chunk,
    write_commit, write_failed, write_image_begin, write_image_end, write_no_chunk, write_progress,
    write_refusal, write_relation, write_subscription, write_table_gap, write_table_gap_end,
};

use crate::event::{Action, RowError};

/// The longest body of a frame, in bytes: as much as Postgres allocates at once (`MaxAllocSize`).
pub const MAX_LENGTH: usize = 0x3FFF_FFFF;

/// A subscription that a change goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// The subscription's id.
    pub subscription: i64,
    /// Which of the relation's names it subscribed to: 0 the table itself, 1 the partitioned table above it, …
    pub level: u8,
}

/// The lanes a change travels in: hashes of the key of its row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LaneKeys {
    /// The row's key after the change; before it, if the row is gone.
    pub key: Option<u64>,
    /// The key before the change, if the change was one of the key.
    pub old: Option<u64>,
}

impl LaneKeys {
    /// The keys there are, one or two or none.
    pub fn iter(&self) -> impl Iterator<Item = u64> {
        self.key.into_iter().chain(self.old)
    }
}

/// Why bytes are no frame, or the frame has no place where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// The frame is longer than [`MAX_LENGTH`].
    TooLong(usize),
    /// The frame ends within one of its members.
    Truncated,
    /// The frame goes on behind its last member.
    Trailing(usize),
    /// The tag is none of ours.
    Tag(u8),
    /// A member has a value that it cannot have; which one.
    Invalid(&'static str),
    /// A text is not UTF-8.
    NotUtf8,
    /// A row is none.
    Row(RowError),
    /// No relation came under that reference.
    UnknownReference(u32),
    /// A change or a commit outside of a transaction.
    NoTransaction,
    /// A transaction begins within another.
    OpenTransaction,
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrameError::TooLong(length) => write!(f, "a frame of {length} bytes is too long"),
            FrameError::Truncated => f.write_str("a frame is cut off"),
            FrameError::Trailing(bytes) => write!(f, "a frame has {bytes} bytes too many"),
            FrameError::Tag(tag) => write!(f, "no frame has the tag {tag}"),
            FrameError::Invalid(member) => write!(f, "a frame's {member} has no such value"),
            FrameError::NotUtf8 => f.write_str("a text in a frame is not UTF-8"),
            FrameError::Row(_) => f.write_str("a frame holds a row that is none"),
            FrameError::UnknownReference(reference) => write!(f, "no relation came as number {reference}"),
            FrameError::NoTransaction => f.write_str("a change or a commit came outside of a transaction"),
            FrameError::OpenTransaction => f.write_str("a transaction began within another"),
        }
    }
}

impl std::error::Error for FrameError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            FrameError::Row(error) => Some(error),
            _ => None,
        }
    }
}

impl From<RowError> for FrameError {
    fn from(error: RowError) -> Self {
        FrameError::Row(error)
    }
}

/// A frame would be longer than [`MAX_LENGTH`]; nothing of it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong {
    /// The bytes it would have had.
    pub length: usize,
}

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes are more than the {MAX_LENGTH} that a change can have", self.length)
    }
}

impl std::error::Error for TooLong {}

/// The first byte of a frame's body.
mod tag {
    pub const RELATION: u8 = b'R';
    pub const BEGIN: u8 = b'B';
    pub const CHANGE: u8 = b'C';
    pub const FAILED: u8 = b'F';
    pub const COMMIT: u8 = b'E';
    pub const PROGRESS: u8 = b'P';
    pub const REFUSAL: u8 = b'X';
    pub const SUBSCRIPTION: u8 = b'S';
    pub const IMAGE_BEGIN: u8 = b'(';
    pub const IMAGE_END: u8 = b')';
    pub const ANNOTATIONS: u8 = b'A';
    pub const CHUNK: u8 = b'K';
    pub const NO_CHUNK: u8 = b'N';
    pub const TABLE_GAP: u8 = b'M';
    pub const TABLE_GAP_END: u8 = b'm';
    pub const NEW_ROW: u8 = b'n';
    pub const OLD_ROW: u8 = b'o';
}

/// The byte that stands for a kind of type.
mod kind_tag {
    pub const TEXT: u8 = b't';
    pub const BOOLEAN: u8 = b'b';
    pub const NUMBER: u8 = b'n';
    pub const NUMERIC: u8 = b'd';
    pub const OID: u8 = b'o';
    pub const BYTEA: u8 = b'x';
    pub const TIMESTAMP: u8 = b's';
    pub const TIMESTAMPTZ: u8 = b'z';
    pub const JSON: u8 = b'j';
    pub const HSTORE: u8 = b'h';
    pub const ARRAY: u8 = b'[';
    pub const COMPOSITE: u8 = b'(';
}

/// How deep types may be nested: more than anybody nests them, less than would exhaust a stack.
const MAX_KIND_DEPTH: usize = 100;

/// Bits that say which keys follow, and whether the change is a barrier.
mod flag {
    pub const KEY: u8 = 1;
    pub const OLD_KEY: u8 = 2;
    pub const BARRIER: u8 = 4;
    pub const ALL: u8 = KEY | OLD_KEY | BARRIER;
}

fn action_code(action: Action) -> u8 {
    match action {
        Action::Insert => b'I',
        Action::Update => b'U',
        Action::Delete => b'D',
        Action::Truncate => b'T',
        Action::Ddl => b'L',
        Action::Message => b'M',
        Action::Read => b'R',
    }
}

fn action_of(code: u8) -> Result<Action, FrameError> {
    match code {
        b'I' => Ok(Action::Insert),
        b'U' => Ok(Action::Update),
        b'D' => Ok(Action::Delete),
        b'T' => Ok(Action::Truncate),
        b'L' => Ok(Action::Ddl),
        b'M' => Ok(Action::Message),
        b'R' => Ok(Action::Read),
        _ => Err(FrameError::Invalid("action")),
    }
}
