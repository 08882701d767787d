//! What a dispatcher does when it finds itself in a copy: subscriptions stay held until somebody adopts them, and the
//! log says so. A standby that was promoted is no copy, if it has the slot and so misses nothing: it goes on.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgLogLevel, PgSqlErrorCode, Spi};

use crate::decode::wal::slot;
use crate::journal;
use crate::journal::unchecked;
use crate::pg::process::cluster_fingerprint;

/// Sees to it, before anything is read of subscriptions; whether some are left that [`arm`] can arm when no session holds a lock
/// on their rows. Outside of any transaction.
pub fn see_to(slot: &std::ffi::CStr) -> bool {
    let is_any_left = cluster_fingerprint::came_up_as_standby()
        && slot::keeps(slot)
        && journal::with_tables(|_| arm()).unwrap_or_default();
    journal::with_tables(|_| unchecked(|| check(note_evidence())));
    let held = journal::with_tables(|_| check(held())).unwrap_or_default();
    if held > 0 {
        ErrorReport::new(
            PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION,
            format!("pgstream_hooks: {held} subscriptions are held, and nothing is sent to them"),
            "pgstream_hooks",
        )
        .set_detail("They were made or armed elsewhere: this database is a copy, or its cluster was copied, moved or restored.")
        .set_hint("To send from here: SELECT pgwh.adopt();")
        .report(PgLogLevel::LOG);
    }
    is_any_left
}

/// Arms what was armed in the cluster that this one replicated, but for rows on which a session holds a lock: these are held, and
/// nobody else waits. Whether there are such. Inside a transaction.
pub fn arm() -> bool {
    // What was checked when it was stored goes on as it is.
    unchecked(|| check(go_on()))
}

/// Notes boot, device and machine. On another machine, or on another device of the same boot, it is a snapshot that was mounted, or
/// a volume that was moved, and what was armed here no more is.
fn note_evidence() -> pgrx::spi::Result<()> {
    Spi::run_with_args(
        "WITH noted AS (
             UPDATE pgwh_internal.installation i SET evidence = $1 FROM pgwh_internal.installation before
             WHERE before.id = i.id AND i.evidence IS DISTINCT FROM $1
             RETURNING string_to_array(before.evidence, ' ', '-') AS before, string_to_array($1, ' ', '-') AS now)
         UPDATE pgwh.subscriptions s SET home = s.home || '/moved' FROM noted
         WHERE $2 AND s.home = pgwh_internal.home() AND (before[3] <> now[3] OR before[1] = now[1] AND before[2] <> now[2])",
        &[cluster_fingerprint::evidence().into(), cluster_fingerprint::heeds_evidence().into()],
    )
}

/// Arms here what was armed in the cluster that this one replicated; whether rows are left that are locked.
fn go_on() -> pgrx::spi::Result<bool> {
    Spi::connect_mut(|client| {
        let homes = "SELECT i.home, pgwh_internal.home() FROM pgwh_internal.installation i
                     WHERE i.home <> pgwh_internal.home() AND starts_with(i.home, pgwh_internal.installed() || '/')";
        let rows = client.select(homes, Some(1), &[])?;
        if rows.is_empty() {
            return Ok(false);
        }
        let homes = rows.first().get_two::<String, String>()?;
        let (Some(before), Some(now)) = homes else { return Ok(false) };
        let moved = client.update(
            "UPDATE pgwh.subscriptions s SET home = $2 WHERE s.id IN (
                 SELECT l.id FROM pgwh.subscriptions l WHERE l.home = $1 FOR NO KEY UPDATE SKIP LOCKED)",
            None,
            &[before.clone().into(), now.clone().into()],
        )?;
        if !moved.is_empty() {
            pgrx::log!(
                "pgstream_hooks: this server was promoted and has the replication slot; sending goes on from here"
            );
        }
        let left = "SELECT FROM pgwh.subscriptions s WHERE s.home = $1 LIMIT 1";
        if !client.select(left, Some(1), &[before.into()])?.is_empty() {
            return Ok(true);
        }
        // Last, since what is left is found by it.
        client.update("UPDATE pgwh_internal.installation SET home = $1", None, &[now.into()])?;
        Ok(false)
    })
}

fn held() -> pgrx::spi::Result<i64> {
    let query = "SELECT count(*) FROM pgwh.subscriptions WHERE home <> pgwh_internal.home()";
    let count = Spi::connect(|client| client.select(query, Some(1), &[])?.first().get_one::<i64>());
    Ok(count?.unwrap_or_default())
}

fn check<T>(result: pgrx::spi::Result<T>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => pgrx::error!("pgstream_hooks: subscriptions cannot be looked through: {error}"),
    }
}
