//! What the dispatcher tells its journal: buffered, then written in one transaction.

use std::ffi::CStr;
use std::time::Instant;

use pgrx::Spi;
use pgrx::pg_sys;

use super::rows::{Attempt, BackfillStep, Checkpoints, PositionRow, StepKind};
use super::statements::SliceTables;
use crate::delivery::key_columns::OwnKeys;
use crate::delivery::{DeliveryId, Position};
use crate::event::Lsn;
use crate::ipc::frame::{ChunkEnd, Item};
use crate::journal::backfills;
use crate::journal::packed::event_chunk::{Chunk, ChunkPacker, Place};
use crate::journal::packed::outcome_chunk::{Outcome, OutcomeChunk, OutcomePacker};
use crate::journal::packed::position_chunk::{PositionChunk, PositionPacker};
use crate::journal::partitions::ring::Slices;
use crate::journal::read::reader::{Cache, Reads};
use crate::journal::recovery::load;
use crate::journal::recovery::load::Loaded;
use crate::journal::transaction::{check, with_tables};
use crate::pg::process::bgworker;

/// Plans are kept for life, also those made while a table was empty and reading all of it would have been cheapest.
pub const BY_INDEX: &[(&CStr, &CStr)] = &[
    (c"enable_seqscan", c"off"),
    (c"enable_bitmapscan", c"off"),
    (c"plan_cache_mode", c"force_generic_plan"),
];

/// The journal of this database. The dispatcher owns it, and nobody else writes.
///
/// Rows of outcomes, attempts and positions have one rising sequence, so that what came after a checkpoint is known
/// by its number.
pub struct Journal {
    pub(crate) extension: pg_sys::Oid,
    /// The last number given.
    pub(crate) last: DeliveryId,
    /// The last number written.
    pub(crate) written: DeliveryId,
    /// Where the last event stands; none before the first.
    pub(crate) high: Option<Place>,
    /// The last number of the sequence.
    sequence: i64,
    checkpoints: Checkpoints,
    buffer: Buffer,
    pub(crate) slices: Slices,
    pub(crate) cache: Cache,
    pub(crate) reads: Reads,
    /// The keys by which deliveries are told that are read.
    pub own_keys: OwnKeys,
}

#[derive(Default)]
struct Buffer {
    events: ChunkPacker,
    chunks: Vec<Chunk>,
    outcomes: OutcomePacker,
    outcome_rows: Vec<(i64, OutcomeChunk)>,
    attempts: Vec<(i64, Attempt)>,
    positions: Vec<PositionRow>,
    steps: Vec<BackfillStep>,
    /// The bytes of rows that are complete.
    bytes: usize,
    since: Option<Instant>,
}

impl Journal {
    /// Opens the journal of the extension in this database and loads where everything stands; none when the extension
    /// isn't here. What was journaled and not decided yet is pending.
    pub fn open() -> Option<(Journal, Loaded)> {
        bgworker::pin(BY_INDEX);
        let (extension, mut loaded) =
            with_tables(|extension| (extension, check("the journal cannot be read", load::load())))?;
        // SAFETY: reads shared memory.
        let flushed = Lsn(unsafe { pg_sys::GetFlushRecPtr(std::ptr::null_mut()) });
        if let Some((lsn, _)) = loaded.high.filter(|(lsn, _)| *lsn > flushed) {
            pgrx::warning!(
                "pgstream_hooks: the journal's last event is of {lsn}, but write-ahead log ends at {flushed}; \
                 the journal comes from another history, and what follows is not compared with it"
            );
            loaded.high = None;
        }
        let journal = Journal {
            extension,
            last: loaded.last,
            written: loaded.last,
            high: loaded.high,
            sequence: loaded.sequence,
            checkpoints: std::mem::take(&mut loaded.checkpoints),
            buffer: Buffer::default(),
            slices: std::mem::take(&mut loaded.slices),
            cache: Cache::default(),
            reads: Reads::default(),
            own_keys: OwnKeys::default(),
        };
        Some((journal, loaded))
    }

    /// Takes a change that arrived; returns the number of the delivery to the first of its targets. None when it is in
    /// the journal already, or nobody gets it.
    pub fn append(&mut self, item: &Item) -> Option<DeliveryId> {
        let id = item.event_id()?;
        let place = (id.commit_lsn, id.ordinal);
        if item.targets().is_empty() || self.high.is_some_and(|high| place <= high) {
            return None;
        }
        let first = DeliveryId(self.last.0 + 1);
        let complete = self.buffer.chunks.len();
        // It came as a frame, so it fits into one.
        if let Err(error) = self.buffer.events.add(first, item, &mut self.buffer.chunks) {
            pgrx::error!("pgstream_hooks: event {id} cannot be journaled: {error}");
        }
        self.buffer.bytes +=
            self.buffer.chunks[complete..].iter().map(|chunk| chunk.body.len()).sum::<usize>();
        self.buffer.touch();
        self.high = Some(place);
        self.last = DeliveryId(self.last.0 + item.targets().len() as u64);
        Some(first)
    }

    /// Takes what became of a request.
    pub fn finished(&mut self, outcome: &Outcome) {
        if let Some(chunk) = self.buffer.outcomes.add(outcome) {
            self.complete_outcomes(chunk);
        }
        self.buffer.touch();
    }

    /// Takes how far a backfill is with what has been taken so far.
    pub(crate) fn take_step(&mut self, step: BackfillStep) {
        self.buffer.steps.push(step);
        self.buffer.touch();
    }

    /// Takes a request that failed, or one that succeeded after others had failed.
    pub fn attempt(&mut self, attempt: Attempt) {
        let sequence = self.next_in_sequence();
        self.buffer.bytes += attempt.error.len() + attempt.response.as_ref().map_or(0, String::len) + 200;
        self.buffer.attempts.push((sequence, attempt));
        self.buffer.touch();
    }

    /// Takes the positions of all subscriptions that anything happened to since the last checkpoint.
    pub fn checkpoint(&mut self, positions: &[(i64, Position)]) {
        // What is packed so far is behind it then, not ahead.
        if let Some(chunk) = self.buffer.outcomes.close() {
            self.complete_outcomes(chunk);
        }
        let mut packer = PositionPacker::default();
        for (subscription, position) in positions {
            if let Some(chunk) = packer.add(*subscription, position) {
                self.complete_positions(chunk);
            }
        }
        if let Some(chunk) = packer.close() {
            self.complete_positions(chunk);
        }
        self.checkpoints.since += positions.len();
    }

    /// Takes the positions of all subscriptions there are, as [`Journal::retain`] asks for.
    pub fn checkpoint_all(&mut self, positions: &[(i64, Position)]) {
        // What is packed so far gets its number before.
        if let Some(chunk) = self.buffer.outcomes.close() {
            self.complete_outcomes(chunk);
        }
        self.checkpoints = Checkpoints { all_from: self.sequence + 1, all: positions.len(), since: 0 };
        self.checkpoint(positions);
        self.checkpoints.since = 0;
        self.slices.checkpointed();
    }

    /// Whether the positions of all subscriptions are wanted, so that a restart is quick.
    pub(crate) fn wants_all_positions(&self) -> bool {
        !self.slices.checkpointed || self.checkpoints.are_many()
    }

    fn complete_positions(&mut self, chunk: PositionChunk) {
        let sequence = self.next_in_sequence();
        self.buffer.bytes += chunk.body.len();
        let all_from = self.checkpoints.all_from;
        self.buffer.positions.push(PositionRow { sequence, last: self.last, all_from, chunk });
        self.buffer.touch();
    }

    /// The last number given.
    pub fn last(&self) -> DeliveryId {
        self.last
    }

    /// What stands at a position that no commit has, behind all that came before it: the place of the first event that
    /// may be taken there. `end` is where something ended that has been taken.
    pub fn place_before(&self, end: Lsn) -> Place {
        let lsn = Lsn(end.0.saturating_sub(1));
        match self.high {
            Some((high, ordinal)) if high >= lsn => (high, ordinal + 1),
            _ => (lsn, 0),
        }
    }

    /// Gives a number to a delivery that is made again.
    pub fn number_again(&mut self) -> DeliveryId {
        self.last = DeliveryId(self.last.0 + 1);
        self.last
    }

    /// Where the last event was committed.
    pub fn high(&self) -> Lsn {
        self.high.map_or(Lsn(0), |(lsn, _)| lsn)
    }

    /// The bytes taken since the last flush.
    pub fn buffered_bytes(&self) -> usize {
        self.buffer.bytes + self.buffer.events.buffered() + self.buffer.outcomes.buffered()
    }

    /// Since when something waits to be written.
    pub fn buffered_since(&self) -> Option<Instant> {
        self.buffer.since
    }

    /// Writes all that was taken, in one transaction that is on disk when this returns. None when our tables are not here
    /// any more; then nothing is written.
    pub fn flush(&mut self) -> Option<()> {
        if self.buffer.since.is_none() {
            // Numbers of what is made again stand for nothing to be written.
            self.written = self.last;
            return Some(());
        }
        self.buffer.chunks.extend(self.buffer.events.close());
        if let Some(chunk) = self.buffer.outcomes.close() {
            self.complete_outcomes(chunk);
        }
        let slice = self.slices.current();
        let written = with_tables(|extension| {
            (extension == self.extension)
                .then(|| check("the journal cannot be written", self.buffer.write(slice)))
        });
        let bytes = written.flatten()?;
        self.slices.grown(bytes, self.buffer.has_news());
        self.buffer.clear();
        self.written = self.last;
        Some(())
    }

    /// Runs the action in a transaction that may use our tables; none when they are not here any more.
    pub(crate) fn with_tables<T>(&self, action: impl FnOnce() -> T) -> Option<T> {
        with_tables(|extension| (extension == self.extension).then(action)).flatten()
    }

    fn complete_outcomes(&mut self, chunk: OutcomeChunk) {
        let sequence = self.next_in_sequence();
        self.buffer.bytes += chunk.body.len();
        self.buffer.outcome_rows.push((sequence, chunk));
    }

    fn next_in_sequence(&mut self) -> i64 {
        self.sequence += 1;
        self.sequence
    }
}

impl Buffer {
    fn touch(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    /// Whether there is more than positions.
    fn has_news(&self) -> bool {
        !(self.chunks.is_empty() && self.outcome_rows.is_empty() && self.attempts.is_empty())
    }

    fn clear(&mut self) {
        self.chunks.clear();
        self.outcome_rows.clear();
        self.attempts.clear();
        self.positions.clear();
        self.steps.clear();
        self.bytes = 0;
        self.since = None;
    }

    /// Inserts all rows; returns their bytes.
    fn write(&self, slice: i16) -> pgrx::spi::Result<u64> {
        let mut tables = SliceTables::of(slice);
        self.chunks.iter().for_each(|chunk| tables.event_chunk(chunk));
        self.outcome_rows.iter().for_each(|(sequence, chunk)| tables.outcome_chunk(*sequence, chunk));
        self.attempts.iter().for_each(|(sequence, attempt)| tables.attempt(*sequence, attempt));
        self.positions.iter().for_each(|row| tables.position(row));
        tables.close();
        if !self.steps.is_empty() {
            Spi::connect_mut(|client| {
                self.steps.iter().try_for_each(|step| backfills::write_step(client, step))
            })?;
        }
        let rows = self.chunks.len() + self.outcome_rows.len() + self.attempts.len() + self.positions.len();
        let bodies = self.bytes + self.chunks.last().map_or(0, |chunk| chunk.body.len());
        Ok((bodies + 100 * rows) as u64)
    }
}

impl Journal {
    /// Takes how far a table has been read, after the rows that have been taken of it: the chunk has where its next one
    /// begins. `sent`: how many rows became events. `seconds`: how long that took.
    pub fn backfilled(&mut self, chunk: ChunkEnd, sent: u64, seconds: f64) {
        let ChunkEnd { backfill, table, position, definition, read, is_absent, .. } = chunk;
        let kind = match is_absent {
            true => StepKind::Absent,
            false => StepKind::Read { position, definition, read, sent, seconds },
        };
        self.take_step(BackfillStep { backfill, table, kind });
    }

    /// Takes that a table has to be read again when it has been read to its end, or at once if that is so already.
    pub fn backfill_again(&mut self, backfill: i64, table: u32) {
        self.take_step(BackfillStep { backfill, table, kind: StepKind::Again });
    }
}
