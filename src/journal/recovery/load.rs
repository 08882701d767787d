//! Where everything stands, as the journal has it. The dispatcher begins from it; a backend shows it.

use std::collections::HashMap;
use std::time::Duration;

use pgrx::Spi;
use pgrx::spi::{Result, SpiHeapTupleData};

use super::positions::{Restart, remaining};
use crate::delivery::{DeliveryId, Pending, Position};
use crate::event::Timestamp;
use crate::journal::columns::{charge, id, intact, lsn, now, unpack_members};
use crate::journal::packed::event_chunk::Place;
use crate::journal::packed::{event_chunk, outcome_chunk, position_chunk};
use crate::journal::partitions::ring::Slices;
use crate::journal::partitions::stored;
use crate::journal::write::rows::Checkpoints;

/// Rows that are read at once: packed, they fit into half a megabyte.
const ROWS: i64 = 64;

/// Where everything stands.
pub struct Loaded {
    /// The last number given.
    pub last: DeliveryId,
    /// Where the last event stands: whatever is decoded up to there is in the journal already.
    pub high: Option<Place>,
    /// Of every subscription in `pgwh.subscriptions`.
    pub positions: HashMap<i64, Position>,
    /// The last number of the sequence of rows.
    pub(crate) sequence: i64,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) slices: Slices,
}

/// What a checkpoint says of itself.
struct Checkpoint {
    sequence: i64,
    /// The last number given before it.
    last: DeliveryId,
    /// Where the rows begin that have the positions of all.
    all_from: i64,
}

/// Reads where everything stands. Inside a transaction.
///
/// # Errors
///
/// When the tables cannot be read. What they hold is checked: a row that is damaged ends in an ERROR, since with it
/// the state of deliveries would be lost.
pub fn load() -> Result<Loaded> {
    let slices = stored::read()?;
    let (last, high) = last_event()?.unwrap_or_else(|| slices.begin());
    let checkpoint = last_checkpoint()?;
    let now = now();
    let last = last.max(checkpoint.last);
    let (positions, rows) = positions(checkpoint.all_from, now)?;
    let checkpoints = Checkpoints { all_from: checkpoint.all_from, all: positions.len(), since: rows };
    let mut restart = Restart::new(checkpoint.last, positions);
    apply_arrivals(&mut restart, checkpoint.last)?;
    apply_attempts(&mut restart, checkpoint.sequence, now)?;
    apply_outcomes(&mut restart, checkpoint.sequence)?;
    let sequence = last_in_sequence()?;
    Ok(Loaded { last, high, positions: restart.positions(last), sequence, checkpoints, slices })
}

/// The last number given, and where the last event stands.
fn last_event() -> Result<Option<(DeliveryId, Option<Place>)>> {
    Spi::connect(|client| {
        let rows = client.select(
            "SELECT last_id, last_lsn::text, last_ordinal FROM pgwh_internal.event_chunks ORDER BY last_id DESC LIMIT 1",
            Some(1),
            &[],
        )?;
        let mut last = None;
        for row in rows {
            let place = (lsn(row.get(2)?), id(row.get(3)?).0);
            last = Some((id(row.get(1)?), Some(place)));
        }
        Ok(last)
    })
}

fn last_checkpoint() -> Result<Checkpoint> {
    Spi::connect(|client| {
        let mut checkpoint = Checkpoint { sequence: 0, last: DeliveryId(0), all_from: 0 };
        let last = "SELECT seq, last_id, all_from FROM pgwh_internal.positions ORDER BY seq DESC LIMIT 1";
        for row in client.select(last, Some(1), &[])? {
            checkpoint = Checkpoint {
                sequence: row.get(1)?.unwrap_or_default(),
                last: id(row.get(2)?),
                all_from: row.get(3)?.unwrap_or_default(),
            };
        }
        Ok(checkpoint)
    })
}

fn last_in_sequence() -> Result<i64> {
    Spi::connect(|client| {
        let rows = client.select(
            "SELECT greatest(0, (SELECT max(seq) FROM pgwh_internal.outcome_chunks),
                 (SELECT max(seq) FROM pgwh_internal.attempt_rows), (SELECT max(seq) FROM pgwh_internal.positions))",
            Some(1),
            &[],
        )?;
        Ok(rows.first().get_one()?.unwrap_or_default())
    })
}

/// A subscription, and where it stood at the last checkpoint that it has a position in.
type Stood = (i64, Option<Position>);

/// The last position of each subscription there is, and how many had to be read.
fn positions(all_from: i64, now: Timestamp) -> Result<(Vec<Stood>, usize)> {
    const QUERY: &str = "SELECT seq, body,
            (extract(epoch FROM written_at - '2000-01-01 00:00:00+00') * 1000000)::bigint
        FROM pgwh_internal.positions WHERE seq > $1 ORDER BY seq LIMIT $2";
    let (mut last, mut read) = (HashMap::new(), 0);
    paged(QUERY, all_from - 1, |row| {
        let body: Vec<u8> = row.get(2)?.unwrap_or_default();
        let written = row.get::<i64>(3)?.unwrap_or_default();
        for (subscription, mut position) in intact(position_chunk::unpack(&body)) {
            for Pending { due, .. } in &mut position.pending {
                *due = due.map(|due| remaining(due, written, now.0));
            }
            last.insert(subscription, position);
            read += 1;
        }
        Ok(())
    })?;
    let mut positions = Vec::new();
    Spi::connect(|client| -> Result<()> {
        for row in client.select("SELECT id FROM pgwh.subscriptions", None, &[])? {
            let subscription = row.get(1)?.unwrap_or_default();
            positions.push((subscription, last.remove(&subscription)));
        }
        Ok(())
    })?;
    Ok((positions, read))
}

fn apply_arrivals(restart: &mut Restart, since: DeliveryId) -> Result<()> {
    const QUERY: &str = "SELECT last_id, first_id, body FROM pgwh_internal.event_chunks
        WHERE last_id > $1 ORDER BY last_id LIMIT $2";
    paged(QUERY, since.0 as i64, |row| {
        let body: Vec<u8> = row.get(3)?.unwrap_or_default();
        for entry in intact(event_chunk::unpack(id(row.get(2)?), &body)) {
            restart.arrived(&entry, charge(&entry) as u64);
        }
        Ok(())
    })
}

fn apply_attempts(restart: &mut Restart, since: i64, now: Timestamp) -> Result<()> {
    const QUERY: &str = "SELECT seq, subscription_id, delivery_id, members, attempt,
        (extract(epoch FROM started_at - '2000-01-01 00:00:00+00') * 1000000 + duration_ms::numeric * 1000)::bigint,
        (extract(epoch FROM next_attempt_at - started_at) * 1000000 - duration_ms::numeric * 1000)::bigint
        FROM pgwh_internal.attempt_rows WHERE seq > $1 AND replay IS NULL AND next_attempt_at IS NOT NULL
        ORDER BY seq LIMIT $2";
    paged(QUERY, since, |row| {
        let first = id(row.get(3)?);
        let others = match row.get::<Vec<u8>>(4)? {
            Some(column) => intact(unpack_members(first, &column)),
            None => Vec::new(),
        };
        let (ended, delay): (i64, i64) = (row.get(6)?.unwrap_or_default(), row.get(7)?.unwrap_or_default());
        let delay = Duration::from_micros(u64::try_from(delay).unwrap_or_default());
        let due = Some(remaining(delay, ended, now.0)).filter(|due| !due.is_zero());
        let attempt = row.get::<i32>(5)?.and_then(|attempt| u32::try_from(attempt).ok()).unwrap_or_default();
        let members = std::iter::once(first).chain(others);
        restart.attempted(row.get(2)?.unwrap_or_default(), members, attempt, due);
        Ok(())
    })
}

fn apply_outcomes(restart: &mut Restart, since: i64) -> Result<()> {
    const QUERY: &str =
        "SELECT seq, body FROM pgwh_internal.outcome_chunks WHERE seq > $1 ORDER BY seq LIMIT $2";
    paged(QUERY, since, |row| {
        let body: Vec<u8> = row.get(2)?.unwrap_or_default();
        intact(outcome_chunk::unpack(&body)).iter().for_each(|outcome| restart.finished(outcome));
        Ok(())
    })
}

/// Reads rows in the order of their first column, from behind `since` on, so many at once that memory stays small.
fn paged(query: &str, since: i64, mut take: impl FnMut(&SpiHeapTupleData<'_>) -> Result<()>) -> Result<()> {
    let mut since = since;
    loop {
        let rows = Spi::connect(|client| -> Result<i64> {
            let mut count = 0;
            for row in client.select(query, None, &[since.into(), ROWS.into()])? {
                since = row.get(1)?.unwrap_or(i64::MAX);
                take(&row)?;
                count += 1;
            }
            Ok(count)
        })?;
        if rows < ROWS {
            return Ok(());
        }
    }
}
