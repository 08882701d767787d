//! Gaps: what a subscription will never get, because it was disabled or write-ahead log was lost.

use std::collections::HashSet;

use pgrx::Spi;
use pgrx::spi::Result;

use super::image::Version;
use crate::decode::route::Spec;
use crate::event::Lsn;

/// Notes the gaps that these versions begin and end; the versions themselves are stored already. Decoding again tells
/// the same versions again, so that what lies in a gap begins none. Whether any may have begun.
pub(super) fn note(versions: &[Version]) -> Result<bool> {
    let ids: Vec<i64> = versions.iter().map(|version| version.id).collect();
    // Of ten thousand that are subscribed at once none has been disabled before.
    let mut open = these(
        "SELECT subscription_id FROM pgwh.gaps WHERE to_lsn IS NULL AND subscription_id = ANY ($1)",
        &ids,
    )?;
    let known = these(
        "SELECT subscription_id FROM pgwh.routing_image WHERE subscription_id = ANY ($1)
         GROUP BY subscription_id HAVING count(*) > 1",
        &ids,
    )?;
    let mut may_begin = false;
    for Version { id, lsn, spec } in versions {
        let enabled =
            spec.as_ref().and_then(|spec| serde_json::from_str(spec).ok()).map(|spec: Spec| spec.enabled);
        match enabled {
            Some(false) if known.contains(id) => {
                open_if_it_was_enabled(*id, *lsn)?;
                open.insert(*id);
                may_begin = true;
            }
            Some(true) if open.contains(id) => close(*id, *lsn)?,
            _ => {}
        }
    }
    Ok(may_begin)
}

/// Those of the subscriptions that a query tells.
fn these(query: &str, ids: &[i64]) -> Result<HashSet<i64>> {
    Spi::connect(|client| {
        let mut found = HashSet::new();
        for row in client.select(query, None, &[ids.to_vec().into()])? {
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
         WHERE (SELECT v.spec::jsonb ->> 'enabled' FROM pgwh.routing_image v
                WHERE v.subscription_id = $1 AND v.lsn < $2::pg_lsn AND v.spec <> '' ORDER BY v.lsn DESC LIMIT 1) = 'true'
           AND NOT EXISTS (SELECT FROM pgwh.gaps g WHERE g.subscription_id = $1 AND g.from_lsn <= $2::pg_lsn
                AND (g.to_lsn IS NULL OR g.to_lsn > $2::pg_lsn))",
        &[subscription.into(), from.to_string().into()],
    )
}

fn close(subscription: i64, to: Lsn) -> Result<()> {
    Spi::run_with_args(
        "UPDATE pgwh.gaps SET to_lsn = $2::pg_lsn, until = clock_timestamp()
         WHERE subscription_id = $1 AND to_lsn IS NULL AND from_lsn < $2::pg_lsn",
        &[subscription.into(), to.to_string().into()],
    )
}

/// A gap that was noted because write-ahead log was lost.
pub struct Gap {
    /// Who misses something.
    pub subscription: i64,
    /// How it came about.
    pub reason: String,
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
                 WHEN split_part(i.home, '/', 3) <> split_part(pgwh.home(), '/', 3)
                     THEN 'pg_upgrade did not bring the replication slot along'
                 WHEN i.home <> pgwh.home() THEN 'this server was promoted, restored or copied without the replication slot'
                 ELSE 'the replication slot was dropped' END
             FROM pgwh.subscriptions s, pgwh.installation i,
                 (SELECT greatest(max(v.lsn), $1::pg_lsn) AS lsn FROM pgwh.routing_image v HAVING count(*) > 0) known
             WHERE s.enabled AND starts_with(s.home, pgwh.installed() || '/') AND known.lsn < $2::pg_lsn
             ON CONFLICT DO NOTHING RETURNING subscription_id, reason",
            None,
            &[high.to_string().into(), to.to_string().into(), given_up.into()],
        )?;
        let gap = |row: pgrx::spi::SpiHeapTupleData<'_>| {
            Ok(Gap { subscription: row.get(1)?.unwrap_or_default(), reason: row.get(2)?.unwrap_or_default() })
        };
        rows.map(gap).collect()
    })
}
