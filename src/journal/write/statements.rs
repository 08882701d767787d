//! The rows of the journal as they are inserted into the slice that is written.

use pgrx::IntoDatum;
use pgrx::pg_sys::Datum;

use super::heap::{Table, Value};
use super::rows::{Attempt, PositionRow};
use crate::delivery::DeliveryId;
use crate::event::{Lsn, Timestamp};
use crate::journal::columns;
use crate::journal::packed::event_chunk::Chunk;
use crate::journal::packed::numbers::Packer;
use crate::journal::packed::outcome_chunk::OutcomeChunk;
use crate::journal::partitions::stored::TABLES;
use crate::pg::values::encoding::encoded;

/// The partitions of a slice, each opened for its first row.
pub(super) struct SliceTables {
    slice: i16,
    tables: [Option<Table>; TABLES.len()],
}

impl SliceTables {
    /// Those of this slice. Inside a transaction.
    pub(super) fn of(slice: i16) -> SliceTables {
        SliceTables { slice, tables: [const { None }; TABLES.len()] }
    }

    /// Closes what was opened.
    pub(super) fn close(self) {
        self.tables.into_iter().flatten().for_each(Table::close);
    }

    /// Inserts a row into one of the four tables, each column's value behind the slice's number in the order of the columns.
    fn insert<const N: usize>(&mut self, table: usize, row: impl FnOnce(Value) -> [Value; N]) {
        let slice = self.slice;
        let open = || Table::open(&format!("{}_{slice}", TABLES[table]));
        self.tables[table].get_or_insert_with(open).insert(|| row(slice.into_datum()));
    }

    pub(super) fn event_chunk(&mut self, chunk: &Chunk) {
        self.insert(0, |slice| {
            [
                slice,
                number(chunk.first.0),
                number(chunk.last.0),
                lsn(chunk.first_place.0),
                number(chunk.first_place.1),
                lsn(chunk.last_place.0),
                number(chunk.last_place.1),
                time(chunk.first_at),
                time(chunk.last_at),
                (chunk.events as i32).into_datum(),
                chunk.subscriptions.clone().into_datum(),
                chunk.body.as_slice().into_datum(),
            ]
        });
    }

    pub(super) fn outcome_chunk(&mut self, sequence: i64, chunk: &OutcomeChunk) {
        self.insert(1, |slice| {
            [
                slice,
                sequence.into_datum(),
                number(chunk.lowest.0),
                number(chunk.highest.0),
                time(chunk.first_at),
                time(chunk.last_at),
                (chunk.outcomes as i32).into_datum(),
                (chunk.dead as i32).into_datum(),
                (chunk.replayed as i32).into_datum(),
                chunk.subscriptions.clone().into_datum(),
                chunk.body.as_slice().into_datum(),
            ]
        });
    }

    pub(super) fn attempt(&mut self, sequence: i64, attempt: &Attempt) {
        let [first, others @ ..] = attempt.members.as_slice() else { return };
        let others = (!others.is_empty()).then(|| pack_members(*first, others));
        let ended = micros(attempt.started_at.0, attempt.duration);
        let next = attempt.next_in.map(|delay| Timestamp(micros(ended, delay)));
        self.insert(2, |slice| {
            [
                slice,
                sequence.into_datum(),
                number(first.0),
                attempt.subscription.into_datum(),
                (attempt.attempt as i32).into_datum(),
                time(attempt.started_at),
                (attempt.duration.as_micros() as f64 / 1000.0).into_datum(),
                attempt.status.map(i32::from).into_datum(),
                attempt.class.as_deref().into_datum(),
                text(Some(&attempt.error)),
                text(attempt.response.as_deref()),
                next.and_then(time),
                attempt.replay.into_datum(),
                others.into_datum(),
            ]
        });
    }

    pub(super) fn position(&mut self, row: &PositionRow) {
        self.insert(3, |slice| {
            [
                slice,
                row.sequence.into_datum(),
                time(columns::now()),
                number(row.last.0),
                row.all_from.into_datum(),
                (row.chunk.positions as i32).into_datum(),
                row.chunk.body.as_slice().into_datum(),
            ]
        });
    }
}

/// A text that came from outside. It is laid out as a bytea is, and holds what the database's encoding has.
fn text(text: Option<&str>) -> Value {
    text.and_then(|text| encoded(text).into_datum())
}

/// SQL counts on the other side of 0 what is beyond 2^63, which nothing reaches.
fn number(number: u64) -> Value {
    Some(Datum::from(number as i64))
}

fn lsn(lsn: Lsn) -> Value {
    Some(Datum::from(lsn.0 as i64))
}

fn time(time: Timestamp) -> Value {
    Some(Datum::from(time.0))
}

/// The members of a batch behind its first.
fn pack_members(first: DeliveryId, others: &[DeliveryId]) -> Vec<u8> {
    let mut out = Packer::default();
    let mut from = first;
    for id in others {
        out.step(from.0, id.0);
        from = *id;
    }
    out.seal()
}

fn micros(from: i64, time: std::time::Duration) -> i64 {
    from.saturating_add(i64::try_from(time.as_micros()).unwrap_or(i64::MAX))
}
