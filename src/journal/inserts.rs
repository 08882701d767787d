//! The rows of the journal as they are inserted: prepared statements for the slice that is written.

use pgrx::PgOid;
use pgrx::datum::DatumWithOid;
use pgrx::pg_sys;
use pgrx::spi::{OwnedPreparedStatement, Result, SpiClient};

use super::chunk::Chunk;
use super::load;
use super::outcome::OutcomeChunk;
use super::pack::Packer;
use super::writer::{Attempt, PositionRow, lsn, number, text, time};
use crate::dispatch::DeliveryId;
use crate::event::Timestamp;

/// Prepared inserts into the partitions of a slice.
pub(super) struct Plans {
    pub(super) slice: i16,
    events: OwnedPreparedStatement,
    outcomes: OwnedPreparedStatement,
    attempts: OwnedPreparedStatement,
    positions: OwnedPreparedStatement,
}

impl Plans {
    pub(super) fn prepare(client: &SpiClient<'_>, slice: i16) -> Result<Plans> {
        use pg_sys::{
            BYTEAOID, FLOAT8OID, INT4OID, INT8ARRAYOID, INT8OID, PG_LSNOID, TEXTOID, TIMESTAMPTZOID,
        };
        let insert = |table: &str, columns: &[(&str, pg_sys::Oid)]| {
            let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
            let values: Vec<String> = (1..=columns.len()).map(|number| format!("${number}")).collect();
            let types: Vec<PgOid> = columns.iter().map(|(_, kind)| PgOid::from(*kind)).collect();
            let statement = format!(
                "INSERT INTO pgwh.{table}_{slice} (slice, {}) VALUES ({slice}, {})",
                names.join(", "),
                values.join(", ")
            );
            client.prepare_mut(statement.as_str(), &types).map(|plan| plan.keep())
        };
        Ok(Plans {
            slice,
            events: insert(
                "event_chunks",
                &[
                    ("first_id", INT8OID),
                    ("last_id", INT8OID),
                    ("first_lsn", PG_LSNOID),
                    ("first_ordinal", INT8OID),
                    ("last_lsn", PG_LSNOID),
                    ("last_ordinal", INT8OID),
                    ("first_at", TIMESTAMPTZOID),
                    ("last_at", TIMESTAMPTZOID),
                    ("events", INT4OID),
                    ("subscriptions", INT8ARRAYOID),
                    ("body", BYTEAOID),
                ],
            )?,
            outcomes: insert(
                "outcome_chunks",
                &[
                    ("seq", INT8OID),
                    ("lowest_id", INT8OID),
                    ("highest_id", INT8OID),
                    ("first_at", TIMESTAMPTZOID),
                    ("last_at", TIMESTAMPTZOID),
                    ("outcomes", INT4OID),
                    ("dead", INT4OID),
                    ("replayed", INT4OID),
                    ("subscriptions", INT8ARRAYOID),
                    ("body", BYTEAOID),
                ],
            )?,
            attempts: insert(
                "attempt_rows",
                &[
                    ("seq", INT8OID),
                    ("delivery_id", INT8OID),
                    ("subscription_id", INT8OID),
                    ("attempt", INT4OID),
                    ("started_at", TIMESTAMPTZOID),
                    ("duration_ms", FLOAT8OID),
                    ("status_code", INT4OID),
                    ("error_class", TEXTOID),
                    ("error", TEXTOID),
                    ("response", TEXTOID),
                    ("next_attempt_at", TIMESTAMPTZOID),
                    ("replay", INT8OID),
                    ("members", BYTEAOID),
                ],
            )?,
            positions: insert(
                "positions",
                &[
                    ("seq", INT8OID),
                    ("written_at", TIMESTAMPTZOID),
                    ("last_id", INT8OID),
                    ("all_from", INT8OID),
                    ("positions", INT4OID),
                    ("body", BYTEAOID),
                ],
            )?,
        })
    }

    pub(super) fn event_chunk(&self, client: &mut SpiClient<'_>, chunk: &Chunk) -> Result<()> {
        let row = [
            number(chunk.first.0),
            number(chunk.last.0),
            lsn(chunk.first_place.0),
            number(chunk.first_place.1),
            lsn(chunk.last_place.0),
            number(chunk.last_place.1),
            time(chunk.first_at),
            time(chunk.last_at),
            (chunk.events as i32).into(),
            chunk.subscriptions.clone().into(),
            chunk.body.as_slice().into(),
        ];
        client.update(&self.events, None, &row).map(drop)
    }

    pub(super) fn outcome_chunk(
        &self,
        client: &mut SpiClient<'_>,
        sequence: i64,
        chunk: &OutcomeChunk,
    ) -> Result<()> {
        let row = [
            sequence.into(),
            number(chunk.lowest.0),
            number(chunk.highest.0),
            time(chunk.first_at),
            time(chunk.last_at),
            (chunk.outcomes as i32).into(),
            (chunk.dead as i32).into(),
            (chunk.replayed as i32).into(),
            chunk.subscriptions.clone().into(),
            chunk.body.as_slice().into(),
        ];
        client.update(&self.outcomes, None, &row).map(drop)
    }

    pub(super) fn attempt(&self, client: &mut SpiClient<'_>, sequence: i64, attempt: &Attempt) -> Result<()> {
        let [first, others @ ..] = attempt.members.as_slice() else { return Ok(()) };
        let others = (!others.is_empty()).then(|| pack_members(*first, others));
        let ended = micros(attempt.started_at.0, attempt.duration);
        let next = attempt.next_in.map(|delay| Timestamp(micros(ended, delay)));
        let row = [
            sequence.into(),
            number(first.0),
            attempt.subscription.into(),
            (attempt.attempt as i32).into(),
            time(attempt.started_at),
            (attempt.duration.as_micros() as f64 / 1000.0).into(),
            attempt.status.map(i32::from).into(),
            attempt.class.as_str().into(),
            text(Some(&attempt.error)),
            text(attempt.response.as_deref()),
            next.map_or_else(no_time, time),
            attempt.replay.into(),
            others.into(),
        ];
        client.update(&self.attempts, None, &row).map(drop)
    }

    pub(super) fn position(&self, client: &mut SpiClient<'_>, row: &PositionRow) -> Result<()> {
        let row = [
            row.sequence.into(),
            time(load::now()),
            number(row.last.0),
            row.all_from.into(),
            (row.chunk.positions as i32).into(),
            row.chunk.body.as_slice().into(),
        ];
        client.update(&self.positions, None, &row).map(drop)
    }
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

fn no_time<'a>() -> DatumWithOid<'a> {
    DatumWithOid::null_oid(pg_sys::TIMESTAMPTZOID)
}
