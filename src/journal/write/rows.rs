//! Rows of the journal, before they are written.

use std::time::Duration;

use crate::delivery::DeliveryId;
use crate::event::Timestamp;
use crate::journal::packed::position_chunk::PositionChunk;

/// A request that was answered by no success, or by one that was not the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Whose.
    pub subscription: i64,
    /// The deliveries it brought, never none; it goes by the first.
    pub members: Vec<DeliveryId>,
    /// Which one, counted from 1.
    pub attempt: u32,
    /// When it was sent.
    pub started_at: Timestamp,
    /// How long it took.
    pub duration: Duration,
    /// The HTTP status of the response, if there was one.
    pub status: Option<u16>,
    /// The word for the kind of error; none if it succeeded all the same.
    pub class: Option<String>,
    /// What went wrong.
    pub error: String,
    /// The beginning of the response.
    pub response: Option<String>,
    /// How long after its end the next one is due; none if it was the last.
    pub next_in: Option<Duration>,
    /// The replay that it belongs to.
    pub replay: Option<i64>,
}

pub(super) struct PositionRow {
    pub sequence: i64,
    /// The last number given before it.
    pub last: DeliveryId,
    /// Where the rows begin that have the positions of all.
    pub all_from: i64,
    pub chunk: PositionChunk,
}

/// Which rows of positions a restart has to read.
#[derive(Debug, Default)]
pub(crate) struct Checkpoints {
    /// The first row of the last checkpoint that had all positions.
    pub all_from: i64,
    /// How many positions that had.
    pub all: usize,
    /// How many have been written since.
    pub since: usize,
}

impl Checkpoints {
    /// So many positions, few against what they replace, that a restart had better read them all from one place again.
    pub(crate) fn are_many(&self) -> bool {
        self.since > 4 * self.all + 10_000
    }
}

/// What is to be noted of a table, in the commit that journals the events it is about.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct BackfillStep {
    pub backfill: i64,
    pub table: u32,
    pub kind: StepKind,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum StepKind {
    /// So many rows have been read and sent, up to there in an order of that definition; none: to its end.
    Read { position: Option<String>, definition: Vec<i64>, read: u64, sent: u64, seconds: f64 },
    /// It is not, or no longer, one of the tables that are read.
    Absent,
    /// It has to be read again.
    Again,
}
