//! Gaps: what a subscription will never get, because it was disabled, a table was not captured for it, or write-ahead log was
//! lost.

use std::collections::{HashMap, HashSet};

use pgrx::Spi;
use pgrx::spi::Result;

use super::routing_versions::Version;
use super::transaction::check;
use crate::decode::capture::KnownGaps;
use crate::decode::routing::router::Spec;
use crate::event::{Lsn, TableName};
use crate::ipc::frame::{TableGap, TableGapEnd};
use crate::pg::values::encoding::{Text, Texts};

/// Notes the gaps that these versions begin and end; the versions themselves are stored already. Decoding again tells
/// the same versions again, so that what lies in a gap begins none. Whether any may have begun.
pub(super) fn note(versions: &[Version]) -> Result<bool> {
    let ids: Vec<i64> = versions.iter().map(|version| version.id).collect();
    // Of ten thousand that are subscribed at once none has been disabled before.
    let mut open = these(
        "SELECT subscription_id FROM pgwh.gaps WHERE to_lsn IS NULL AND relation IS NULL AND subscription_id = ANY ($1)",
        &ids,
    )?;
    let known = these(
        "SELECT subscription_id FROM pgwh_internal.routing_image WHERE subscription_id = ANY ($1)
         GROUP BY subscription_id HAVING count(*) > 1",
        &ids,
    )?;
    let (mut may_begin, mut closed) = (false, Vec::new());
    // Of what one commit does to a subscription only the last counts.
    let last: HashMap<(i64, Lsn), usize> =
        versions.iter().enumerate().map(|(place, version)| ((version.id, version.lsn), place)).collect();
    let counts = |(place, version): &(usize, &Version)| last.get(&(version.id, version.lsn)) == Some(place);
    for (_, Version { id, lsn, spec }) in versions.iter().enumerate().filter(counts) {
        let enabled =
            spec.as_ref().and_then(|spec| serde_json::from_str(spec).ok()).map(|spec: Spec| spec.enabled);
        match enabled {
            Some(false) if known.contains(id) => {
                open_if_it_was_enabled(*id, *lsn)?;
                open.insert(*id);
                may_begin = true;
            }
            Some(true) if open.contains(id) => {
                close(*id, *lsn)?;
                closed.push((*id, None));
            }
            _ => {}
        }
    }
    read_again(closed)?;
    Ok(may_begin)
}

/// Those of the subscriptions of which another session has locked a row that storing their versions may change: an open gap, or
/// what is to be discarded. The others' are locked now.
pub(super) fn locked(ids: &[i64]) -> Result<HashSet<i64>> {
    these(
        "SELECT subscription_id FROM (
             SELECT subscription_id FROM pgwh.gaps WHERE to_lsn IS NULL AND subscription_id = ANY ($1)
             UNION ALL
             SELECT subscription_id FROM pgwh_internal.commands WHERE command = 'discard' AND subscription_id = ANY ($1)) a
         EXCEPT ALL
         SELECT subscription_id FROM (SELECT subscription_id FROM pgwh.gaps
             WHERE to_lsn IS NULL AND subscription_id = ANY ($1) FOR NO KEY UPDATE SKIP LOCKED) g
         EXCEPT ALL
         SELECT subscription_id FROM (SELECT subscription_id FROM pgwh_internal.commands
             WHERE command = 'discard' AND subscription_id = ANY ($1) FOR NO KEY UPDATE SKIP LOCKED) c",
        ids,
    )
}

/// Those of the subscriptions that a query tells.
fn these(query: &str, ids: &[i64]) -> Result<HashSet<i64>> {
    Spi::connect_mut(|client| {
        let mut found = HashSet::new();
        for row in client.update(query, None, &[ids.to_vec().into()])? {
            found.extend(row.get::<i64>(1)?);
        }
        Ok(found)
    })
}

fn open_if_it_was_enabled(subscription: i64, from: Lsn) -> Result<()> {
    Spi::run_with_args(
        "INSERT INTO pgwh.gaps (subscription_id, from_lsn, reason)
         SELECT $1, $2::pg_lsn,
             coalesce((SELECT s.disabled_reason FROM pgwh.subscriptions s WHERE s.id = $1), 'it was disabled')
         WHERE (SELECT v.spec::jsonb ->> 'enabled' FROM pgwh_internal.routing_image v
                WHERE v.subscription_id = $1 AND v.lsn < $2::pg_lsn AND v.spec <> '' ORDER BY v.lsn DESC LIMIT 1) = 'true'
           AND NOT EXISTS (SELECT FROM pgwh.gaps g WHERE g.subscription_id = $1 AND g.relation IS NULL
                AND g.from_lsn <= $2::pg_lsn AND (g.to_lsn IS NULL OR g.to_lsn > $2::pg_lsn))",
        &[subscription.into(), from.to_string().into()],
    )
}

fn close(subscription: i64, to: Lsn) -> Result<()> {
    Spi::run_with_args(
        "UPDATE pgwh.gaps SET to_lsn = $2::pg_lsn, until = clock_timestamp()
         WHERE subscription_id = $1 AND relation IS NULL AND to_lsn IS NULL AND from_lsn < $2::pg_lsn",
        &[subscription.into(), to.to_string().into()],
    )
}

/// Has open backfills of these subscriptions read again what they have read: the whole, or a table and those below it. A row
/// that changed in a gap may have moved to where the backfill had been.
fn read_again(ended: Vec<(i64, Option<u32>)>) -> Result<()> {
    if ended.is_empty() {
        return Ok(());
    }
    let (ids, tables): (Vec<i64>, Vec<Option<i64>>) =
        ended.into_iter().map(|(id, table)| (id, table.map(i64::from))).unzip();
    Spi::run_with_args(
        "UPDATE pgwh_internal.backfill_tables t SET again = NOT t.done, done = false
         FROM pgwh_internal.backfill_requests r, unnest($1, $2) e (subscription_id, relation)
         WHERE r.id = t.backfill_id AND r.state NOT IN ('done', 'cancelled') AND r.subscription_id = e.subscription_id
             AND (t.done OR t.position IS NOT NULL)
             AND (e.relation IS NULL OR t.relation = e.relation::oid
                 OR t.relation = ANY (pgwh_internal.tables_below(e.relation::oid)))",
        &[ids.into(), tables.into()],
    )
}

/// Something about a gap of one table.
pub enum TableGapChange {
    /// It begins.
    Begin(Box<TableGap>),
    /// It ends.
    End(TableGapEnd),
}

/// So many chunks of the journal, from the newest back, are read for what was captured before log was lost.
const MAX_CHUNKS_READ: u32 = 10_000;

/// What a decoder that begins at `start` has to know of gaps. Inside a transaction.
pub fn known_gaps(start: Lsn) -> KnownGaps {
    let known = Spi::connect(|client| {
        let mut known = KnownGaps::default();
        let open = "SELECT subscription_id, relation::bigint, table_name, reason FROM pgwh.gaps
                    WHERE to_lsn IS NULL AND relation IS NOT NULL";
        for row in client.select(open, None, &[])? {
            let (id, table) = (row.get::<i64>(1)?, row.get::<i64>(2)?.and_then(oid));
            let words = row.text(3)?.zip(row.text(4)?);
            known.open.extend(
                id.zip(table).zip(words).map(|((id, table), (name, reason))| (id, table, name, reason)),
            );
        }
        // The journal is read only where log was lost, and a table may have left the log in it.
        let logged = "SELECT DISTINCT e.relation::bigint FROM pgwh_internal.event_chunks c, LATERAL pgwh_internal.unpack_events(c.first_id, c.body) e
                      WHERE EXISTS (SELECT FROM pgwh.gaps g WHERE g.lost AND g.to_lsn >= $1::pg_lsn)
                          AND EXISTS (SELECT FROM pg_class r WHERE r.relpersistence = 'u' AND r.relkind = 'r')
                          AND e.relation IN (SELECT r.oid FROM pg_class r WHERE r.relpersistence = 'u')";
        for row in client.select(logged, None, &[start.to_string().into()])? {
            known.logged_before.extend(row.get::<i64>(1)?.and_then(oid));
        }
        let captured = format!(
            "SELECT DISTINCT u.subscription_id, e.relation::bigint, e.schema_name, e.table_name
             FROM (SELECT first_id, body FROM pgwh_internal.event_chunks
                   WHERE EXISTS (SELECT FROM pgwh.gaps g WHERE g.lost AND g.to_lsn >= $1::pg_lsn)
                   ORDER BY last_id DESC LIMIT {MAX_CHUNKS_READ}) c,
                 LATERAL pgwh_internal.unpack_events(c.first_id, c.body) e, unnest(e.subscription_ids) u (subscription_id)
             WHERE e.relation IN (SELECT r.oid FROM pg_class r WHERE r.relkind = 'r')
                 AND e.action IN ('insert', 'update', 'delete', 'truncate')"
        );
        for row in client.select(captured.as_str(), None, &[start.to_string().into()])? {
            let (id, table) = (row.get::<i64>(1)?, row.get::<i64>(2)?.and_then(oid));
            let text =
                |bytes: Option<Vec<u8>>| String::from_utf8(bytes.unwrap_or_default()).unwrap_or_default();
            let name = TableName { schema: text(row.get(3)?), table: text(row.get(4)?) };
            known.captured_before.extend(id.zip(table).map(|(id, table)| (id, table, name)));
        }
        Ok(known)
    });
    check("gaps cannot be read", known)
}

fn oid(number: i64) -> Option<u32> {
    u32::try_from(number).ok()
}

/// Stores what begins and what ends, in order. What is decoded again lies in a gap that is there. Returns what has begun for
/// subscriptions that are enabled.
pub(super) fn store_table_gaps(changes: &[TableGapChange]) -> Result<Vec<Gap>> {
    let mut begun = Vec::new();
    let is_begin = |change: &TableGapChange| matches!(change, TableGapChange::Begin(_));
    for run in changes.chunk_by(|one, next| is_begin(one) == is_begin(next)) {
        let begins = run.iter().filter_map(|change| match change {
            TableGapChange::Begin(gap) => Some(&**gap),
            TableGapChange::End(_) => None,
        });
        let ends = run.iter().filter_map(|change| match change {
            TableGapChange::End(end) => Some(end),
            TableGapChange::Begin(_) => None,
        });
        begun.extend(begin_table_gaps(&begins.collect::<Vec<_>>())?);
        end_table_gaps(&ends.collect::<Vec<_>>())?;
    }
    Ok(begun)
}

fn begin_table_gaps(gaps: &[&TableGap]) -> Result<Vec<Gap>> {
    if gaps.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<i64> = gaps.iter().map(|gap| gap.subscription).collect();
    let tables: Vec<i64> = gaps.iter().map(|gap| gap.table.into()).collect();
    let names: Vec<Text> = gaps.iter().map(|gap| gap.name.clone().into()).collect();
    let from: Vec<String> = gaps.iter().map(|gap| gap.from.to_string()).collect();
    let enabled: Vec<bool> = gaps.iter().map(|gap| gap.is_enabled).collect();
    let reasons: Vec<Text> = gaps.iter().map(|gap| gap.reason.clone().into()).collect();
    Spi::connect_mut(|client| {
        let rows = client.update(
            "INSERT INTO pgwh.gaps (subscription_id, relation, table_name, from_lsn, reason, told)
             SELECT b.subscription_id, b.relation::oid, b.table_name, b.from_lsn::pg_lsn, b.reason, NOT b.is_enabled
             FROM unnest($1, $2, $3, $4, $5, $6) b (subscription_id, relation, table_name, from_lsn, reason, is_enabled)
             WHERE NOT EXISTS (SELECT FROM pgwh.gaps g
                 WHERE g.subscription_id = b.subscription_id AND g.relation = b.relation::oid
                     AND g.from_lsn <= b.from_lsn::pg_lsn AND (g.to_lsn IS NULL OR g.to_lsn > b.from_lsn::pg_lsn))
             ON CONFLICT DO NOTHING RETURNING subscription_id, reason, table_name, told",
            None,
            &[ids.into(), tables.into(), names.into(), from.into(), reasons.into(), enabled.into()],
        )?;
        let mut begun = Vec::new();
        for row in rows {
            // A disabled subscription misses nothing yet.
            if row.get(4)? == Some(true) {
                continue;
            }
            begun.push(Gap {
                subscription: row.get(1)?.unwrap_or_default(),
                reason: row.text(2)?.unwrap_or_default(),
                table: row.text(3)?,
            });
        }
        Ok(begun)
    })
}

fn end_table_gaps(ends: &[&TableGapEnd]) -> Result<()> {
    if ends.is_empty() {
        return Ok(());
    }
    let ids: Vec<i64> = ends.iter().map(|end| end.subscription).collect();
    let tables: Vec<i64> = ends.iter().map(|end| end.table.into()).collect();
    let to: Vec<String> = ends.iter().map(|end| end.to.to_string()).collect();
    let at: Vec<i64> = ends.iter().map(|end| end.at.0).collect();
    let empty: Vec<bool> = ends.iter().map(|end| end.is_empty).collect();
    Spi::run_with_args(
        "WITH ended AS (
             SELECT * FROM unnest($1, $2, $3, $4, $5) e (subscription_id, relation, to_lsn, at, is_empty)
         ), nothing AS (
             DELETE FROM pgwh.gaps g USING ended e WHERE e.is_empty AND g.subscription_id = e.subscription_id
                 AND g.relation = e.relation::oid AND g.to_lsn IS NULL AND g.from_lsn < e.to_lsn::pg_lsn
         )
         UPDATE pgwh.gaps g SET to_lsn = e.to_lsn::pg_lsn,
             until = timestamptz '2000-01-01 00:00:00+00' + e.at * interval '1 microsecond'
         FROM ended e WHERE NOT e.is_empty AND g.subscription_id = e.subscription_id
             AND g.relation = e.relation::oid AND g.to_lsn IS NULL AND g.from_lsn < e.to_lsn::pg_lsn",
        &[ids.into(), tables.into(), to.into(), at.into(), empty.into()],
    )?;
    read_again(
        ends.iter().filter(|end| !end.is_empty).map(|end| (end.subscription, Some(end.table))).collect(),
    )
}

/// A gap that was noted.
pub struct Gap {
    /// Who misses something.
    pub subscription: i64,
    /// How it came about.
    pub reason: String,
    /// The table that it is about; none: all of the subscription's.
    pub table: Option<String>,
}

/// All subscriptions miss what was committed up to `to` and is not in the journal, whose last event is at `high`. What
/// the image tells is known, too; without an image there was no slot before, and nothing is missed. `given_up`: the server
/// has invalidated the slot. Where it is gone, what differs from the place where it was made says why.
pub(super) fn lost(high: Lsn, to: Lsn, given_up: bool) -> Result<Vec<Gap>> {
    Spi::connect_mut(|client| {
        let rows = client.update(
            "INSERT INTO pgwh.gaps (subscription_id, from_lsn, to_lsn, until, lost, reason)
             SELECT s.id, known.lsn, $2::pg_lsn, clock_timestamp(), true, CASE
                 WHEN $3 THEN 'the server gave the replication slot up'
                 WHEN split_part(i.home, '/', 3) <> split_part(pgwh_internal.home(), '/', 3)
                     THEN 'pg_upgrade did not bring the replication slot along'
                 WHEN i.home <> pgwh_internal.home() THEN 'this server was promoted, restored or copied without the replication slot'
                 ELSE 'the replication slot was dropped' END
             FROM pgwh.subscriptions s, pgwh_internal.installation i,
                 (SELECT greatest(max(v.lsn), $1::pg_lsn + 1) AS lsn FROM pgwh_internal.routing_image v HAVING count(*) > 0) known
             WHERE s.enabled AND starts_with(s.home, pgwh_internal.installed() || '/') AND known.lsn < $2::pg_lsn
             ON CONFLICT DO NOTHING RETURNING subscription_id, reason",
            None,
            &[high.to_string().into(), to.to_string().into(), given_up.into()],
        )?;
        let gap = |row: pgrx::spi::SpiHeapTupleData<'_>| {
            let (subscription, reason) = (row.get(1)?.unwrap_or_default(), row.get(2)?.unwrap_or_default());
            Ok(Gap { subscription, reason, table: None })
        };
        rows.map(gap).collect()
    })
}
