//! Erasing: what the journal quotes of a row is taken out of the rows that hold it.
//!
//! Everything runs in a transaction of the caller's, who has set the search path.

use std::collections::BTreeSet;

use pgrx::spi::Result;
use pgrx::{Spi, pg_sys};

use super::columns::{id, intact, parameter, unpack_members};
use super::packed::event_chunk::Entry;
use super::packed::outcome_chunk::End;
use super::packed::{event_chunk, outcome_chunk};
use super::write::heap;
use super::write::heap::{StoredRow, Table};
use crate::delivery::DeliveryId;
use crate::pg::values::encoding;

/// What stands in place of a text or a change that is erased.
pub const FORGOTTEN: &str = "forgotten";

/// The rows that are read at once.
const ROWS: i64 = 64;

/// Columns of `pgwh_internal.event_chunks`.
mod event_columns {
    pub const FIRST_ID: i16 = 2;
    pub const LAST_ID: i16 = 3;
    pub const BODY: i16 = 12;
}

/// Columns of `pgwh_internal.outcome_chunks`.
mod outcome_columns {
    pub const SEQ: i16 = 2;
    pub const BODY: i16 = 11;
}

/// Columns of `pgwh_internal.attempt_rows`.
mod attempt_columns {
    pub const SEQ: i16 = 2;
    pub const ERROR: i16 = 10;
    pub const RESPONSE: i16 = 11;
}

/// Rewrites the row of a slice that has this value in its primary key's first column, without a statement that would have
/// its values as parameters: `change` says whether it did change something.
fn rewrite_row(
    table: &str,
    slice: i16,
    (column, key): (i16, i64),
    change: impl FnOnce(&mut StoredRow) -> bool,
) {
    let mut table = Table::open(&format!("{table}_{slice}"));
    if let Some(mut row) = table.find(column, key)
        && change(&mut row)
    {
        table.replace(row);
    }
    table.close();
}

/// Rewrites the chunk that holds a delivery: each of its events goes through `change`, which says whether it did change
/// something. Returns how many were changed.
///
/// Of two sessions that rewrite it the second waits, and sees what the first did.
pub fn rewrite(holding: DeliveryId, mut change: impl FnMut(&mut Entry) -> bool) -> Result<u64> {
    heap::lock_out_others("event_chunks");
    // The lock of the row is for the caller's rights: who may not update must not get further.
    let found = Spi::connect_mut(|client| {
        let rows = client.update(
            "SELECT slice, last_id FROM pgwh_internal.event_chunks WHERE last_id >= $1 ORDER BY last_id LIMIT 1 FOR UPDATE",
            None,
            &[parameter(holding)],
        )?;
        if rows.is_empty() { Ok((None, None)) } else { rows.first().get_two::<i16, i64>() }
    })?;
    let (Some(slice), Some(last)) = found else { return Ok(0) };
    let mut changed = 0;
    rewrite_row("event_chunks", slice, (event_columns::LAST_ID, last), |row| {
        let first = id(row.get::<i64>(event_columns::FIRST_ID));
        let body = row.get::<Vec<u8>>(event_columns::BODY).unwrap_or_default();
        let mut entries = intact(event_chunk::unpack(first, &body));
        changed = entries.iter_mut().map(|entry| u64::from(change(entry))).sum();
        if changed > 0 {
            let body = event_chunk::pack(&entries).unwrap_or_else(|error| {
                pgrx::error!("pgstream_hooks: a chunk of events cannot be packed again: {error}")
            });
            row.set(event_columns::BODY, body);
        }
        changed > 0
    });
    Ok(changed)
}

/// Erases the reasons of these deliveries that were given up, also of batches and replays that have them as members.
/// Returns whose they were.
pub fn erase_reasons(deliveries: &BTreeSet<DeliveryId>) -> Result<BTreeSet<i64>> {
    let (Some(lowest), Some(highest)) = (deliveries.first(), deliveries.last()) else {
        return Ok(BTreeSet::new());
    };
    heap::lock_out_others("outcome_chunks");
    let (mut owners, mut since) = (BTreeSet::new(), 0);
    loop {
        let rows = Spi::connect_mut(|client| {
            let mut chunks = Vec::new();
            for row in client.update(
                "SELECT slice, seq, body FROM pgwh_internal.outcome_chunks
                 WHERE seq > $1 AND dead > 0 AND lowest_id <= $3 AND highest_id >= $2
                 ORDER BY seq LIMIT $4 FOR UPDATE",
                None,
                &[since.into(), parameter(*lowest), parameter(*highest), ROWS.into()],
            )? {
                let (slice, seq) =
                    (row.get::<i16>(1)?.unwrap_or_default(), row.get::<i64>(2)?.unwrap_or_default());
                chunks.push((slice, seq, row.get::<Vec<u8>>(3)?.unwrap_or_default()));
            }
            for (slice, seq, body) in &chunks {
                since = *seq;
                let mut outcomes = intact(outcome_chunk::unpack(body));
                let mut changed = false;
                for outcome in &mut outcomes {
                    let is_one = outcome.members().any(|id| deliveries.contains(&id));
                    if let (End::Dead { reason, .. }, true) = (&mut outcome.end, is_one)
                        && reason != FORGOTTEN
                    {
                        FORGOTTEN.clone_into(reason);
                        owners.insert(outcome.subscription);
                        changed = true;
                    }
                }
                if changed {
                    rewrite_row("outcome_chunks", *slice, (outcome_columns::SEQ, *seq), |row| {
                        row.set(outcome_columns::BODY, outcome_chunk::pack(&outcomes));
                        true
                    });
                }
            }
            Ok::<_, pgrx::spi::Error>(chunks.len() as i64)
        })?;
        if rows < ROWS {
            return Ok(owners);
        }
        pgrx::check_for_interrupts!();
    }
}

/// Erases errors of the attempts of these deliveries, and the endpoints' responses, also of batches that had them as
/// members. Returns how many attempts had some, and whose they were.
pub fn erase_attempts(deliveries: &BTreeSet<DeliveryId>) -> Result<(u64, BTreeSet<i64>)> {
    let mut ids: Vec<i64> = deliveries.iter().map(|id| id.0 as i64).collect();
    ids.extend(batches_with(deliveries)?);
    heap::lock_out_others("attempt_rows");
    let (mut found, mut owners) = (Vec::new(), BTreeSet::new());
    Spi::connect_mut(|client| {
        for row in client.update(
            "SELECT slice, seq, subscription_id FROM pgwh_internal.attempt_rows
             WHERE delivery_id = ANY ($1) AND (response IS NOT NULL OR error IS DISTINCT FROM $2) FOR UPDATE",
            None,
            &[ids.into(), FORGOTTEN.into()],
        )? {
            found.push((row.get::<i16>(1)?.unwrap_or_default(), row.get::<i64>(2)?.unwrap_or_default()));
            owners.extend(row.get::<i64>(3)?);
        }
        Ok::<_, pgrx::spi::Error>(())
    })?;
    for (slice, seq) in &found {
        rewrite_row("attempt_rows", *slice, (attempt_columns::SEQ, *seq), |row| {
            row.set(attempt_columns::ERROR, FORGOTTEN);
            row.set(attempt_columns::RESPONSE, None::<&str>);
            true
        });
    }
    Ok((found.len() as u64, owners))
}

/// The first members of attempted batches that had one of these deliveries behind it. A batch that failed is sent in
/// parts from then on, so its outcomes do not have all that it was.
fn batches_with(deliveries: &BTreeSet<DeliveryId>) -> Result<BTreeSet<i64>> {
    let (mut batches, mut since) = (BTreeSet::new(), 0);
    loop {
        let rows = Spi::connect(|client| {
            let mut count = 0;
            for row in client.select(
                "SELECT seq, delivery_id, members FROM pgwh_internal.attempt_rows
                 WHERE seq > $1 AND members IS NOT NULL ORDER BY seq LIMIT $2",
                None,
                &[since.into(), ROWS.into()],
            )? {
                count += 1;
                since = row.get::<i64>(1)?.unwrap_or(i64::MAX);
                let (first, members) = (row.get::<i64>(2)?, row.get::<Vec<u8>>(3)?.unwrap_or_default());
                if intact(unpack_members(id(first), &members)).iter().any(|id| deliveries.contains(id)) {
                    batches.extend(first);
                }
            }
            Ok::<_, pgrx::spi::Error>(count)
        })?;
        if rows < ROWS {
            return Ok(batches);
        }
        pgrx::check_for_interrupts!();
    }
}

/// Erases of backfills that have read a table or a partition of it why they failed, the conditions of those that are over, and
/// the key of the last row that they read: of those that are over, and where it is the row with these values in its key. Such a
/// one begins again.
pub fn erase_backfills(table: pg_sys::Oid, key: &[String]) -> Result<()> {
    const OF_TABLE: &str = "t.relation = $1 OR t.relation IN (SELECT relid FROM pg_partition_tree($1))";
    let reasons = format!(
        "UPDATE pgwh_internal.backfill_requests r SET reason = $2 WHERE r.state = 'failed' AND r.reason IS DISTINCT FROM $2
             AND EXISTS (SELECT FROM pgwh_internal.backfill_tables t WHERE t.backfill_id = r.id AND ({OF_TABLE}))"
    );
    let conditions = format!(
        "UPDATE pgwh_internal.backfill_requests r
         SET filter = CASE WHEN r.filter IS NOT NULL THEN $2 END, start = CASE WHEN r.start IS NOT NULL THEN $2 END
         WHERE r.state IN ('done', 'cancelled') AND (r.filter <> $2 OR r.start <> $2)
             AND EXISTS (SELECT FROM pgwh_internal.backfill_tables t WHERE t.backfill_id = r.id AND ({OF_TABLE}))"
    );
    let positions = format!(
        "UPDATE pgwh_internal.backfill_tables t SET position = NULL
         WHERE t.position IS NOT NULL AND ({OF_TABLE}) AND EXISTS (
             SELECT FROM pgwh_internal.backfill_requests r WHERE r.id = t.backfill_id AND (r.state IN ('done', 'cancelled')
                 OR r.state IN ('failed', 'paused') AND convert_from(t.position, 'UTF8')::jsonb ?& $2))"
    );
    Spi::run_with_args(&reasons, &[table.into(), FORGOTTEN.into()])?;
    Spi::run_with_args(&conditions, &[table.into(), FORGOTTEN.into()])?;
    Spi::run_with_args(&positions, &[table.into(), encoding::array(key)])
}
