//! Erasing: what the journal quotes of a row is taken out of the rows that hold it.
//!
//! Everything runs in a transaction of the caller's, who has set the search path.

use std::collections::BTreeSet;

use pgrx::spi::Result;
use pgrx::{Spi, pg_sys};

use super::chunk::{self, Entry};
use super::load::{id, intact, parameter, unpack_members};
use super::outcome::{self, End};
use crate::decode::text;
use crate::dispatch::DeliveryId;

/// What stands in place of a text or a change that is erased.
pub const FORGOTTEN: &str = "forgotten";

/// The rows that are read at once.
const ROWS: i64 = 64;

/// Rewrites the chunk that holds a delivery: each of its events goes through `change`, which says whether it did change
/// something. Returns how many were changed.
///
/// The row is locked, so that of two sessions that rewrite it the second sees what the first did.
pub fn rewrite(holding: DeliveryId, mut change: impl FnMut(&mut Entry) -> bool) -> Result<u64> {
    Spi::connect_mut(|client| {
        let rows = client.update(
            "SELECT slice, first_id, last_id, body FROM pgwh.event_chunks
             WHERE last_id >= $1 ORDER BY last_id LIMIT 1 FOR UPDATE",
            None,
            &[parameter(holding)],
        )?;
        let mut row = None;
        for found in rows {
            let numbers = (found.get::<i16>(1)?, found.get::<i64>(2)?, found.get::<i64>(3)?);
            row = Some((numbers, found.get::<Vec<u8>>(4)?.unwrap_or_default()));
        }
        let Some(((Some(slice), Some(first), Some(last)), body)) = row else { return Ok(0) };
        let mut entries = intact(chunk::unpack(id(Some(first)), &body));
        let changed = entries.iter_mut().map(|entry| u64::from(change(entry))).sum();
        if changed > 0 {
            let body = match chunk::pack(&entries) {
                Ok(body) => body,
                Err(error) => {
                    pgrx::error!("pgstream_hooks: a chunk of events can't be packed again: {error}")
                }
            };
            client.update(
                "UPDATE pgwh.event_chunks SET body = $3 WHERE slice = $1 AND last_id = $2",
                None,
                &[slice.into(), last.into(), body.into()],
            )?;
        }
        Ok(changed)
    })
}

/// Erases the reasons of these deliveries that were given up, also of batches and replays that have them as members.
/// Returns whose they were.
pub fn erase_reasons(deliveries: &BTreeSet<DeliveryId>) -> Result<BTreeSet<i64>> {
    let (Some(lowest), Some(highest)) = (deliveries.first(), deliveries.last()) else {
        return Ok(BTreeSet::new());
    };
    let (mut owners, mut since) = (BTreeSet::new(), 0);
    loop {
        let rows = Spi::connect_mut(|client| {
            let mut chunks = Vec::new();
            for row in client.update(
                "SELECT slice, seq, body FROM pgwh.outcome_chunks
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
                let mut outcomes = intact(outcome::unpack(body));
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
                    client.update(
                        "UPDATE pgwh.outcome_chunks SET body = $3 WHERE slice = $1 AND seq = $2",
                        None,
                        &[(*slice).into(), (*seq).into(), outcome::pack(&outcomes).into()],
                    )?;
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
    Spi::connect_mut(|client| {
        let rows = client.update(
            "UPDATE pgwh.attempt_rows SET response = NULL, error = $2
             WHERE delivery_id = ANY ($1) AND (response IS NOT NULL OR error IS DISTINCT FROM $2)
             RETURNING subscription_id",
            None,
            &[ids.into(), FORGOTTEN.into()],
        )?;
        let (mut attempts, mut owners) = (0, BTreeSet::new());
        for row in rows {
            attempts += 1;
            owners.extend(row.get::<i64>(1)?);
        }
        Ok((attempts, owners))
    })
}

/// The first members of attempted batches that had one of these deliveries behind it. A batch that failed is sent in
/// parts from then on, so its outcomes do not have all that it was.
fn batches_with(deliveries: &BTreeSet<DeliveryId>) -> Result<BTreeSet<i64>> {
    let (mut batches, mut since) = (BTreeSet::new(), 0);
    loop {
        let rows = Spi::connect(|client| {
            let mut count = 0;
            for row in client.select(
                "SELECT seq, delivery_id, members FROM pgwh.attempt_rows
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

/// Erases of backfills that have read a table or a partition of it why they failed, and the key of the last row that they
/// read: of those that are over, and where it is the row with these values in its key. Such a one begins again.
pub fn erase_backfills(table: pg_sys::Oid, key: &[String]) -> Result<()> {
    const OF_TABLE: &str = "t.relation = $1 OR t.relation IN (SELECT relid FROM pg_partition_tree($1))";
    let reasons = format!(
        "UPDATE pgwh.backfill_requests r SET reason = $2 WHERE r.state = 'failed' AND r.reason IS DISTINCT FROM $2
             AND EXISTS (SELECT FROM pgwh.backfill_tables t WHERE t.backfill_id = r.id AND ({OF_TABLE}))"
    );
    let positions = format!(
        "UPDATE pgwh.backfill_tables t SET position = NULL
         WHERE t.position IS NOT NULL AND ({OF_TABLE}) AND EXISTS (
             SELECT FROM pgwh.backfill_requests r WHERE r.id = t.backfill_id AND (r.state IN ('done', 'cancelled')
                 OR r.state IN ('failed', 'paused') AND convert_from(t.position, 'UTF8')::jsonb ?& $2))"
    );
    Spi::run_with_args(&reasons, &[table.into(), FORGOTTEN.into()])?;
    Spi::run_with_args(&positions, &[table.into(), text::array(key)])
}
