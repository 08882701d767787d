//! What a dispatcher does when it finds itself in a copy: subscriptions stay held until somebody adopts them, and the
//! log says so. A standby that was promoted is no copy, if it has the slot and so misses nothing: it goes on.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgLogLevel, PgSqlErrorCode, Spi};

use super::place;
use crate::api::triggers::unchecked;
use crate::decode::slot;
use crate::journal;

/// Sees to it, before anything is read of subscriptions. Outside of any transaction.
pub fn see_to(slot: &std::ffi::CStr) {
    if place::came_up_as_standby() && slot::keeps(slot) {
        // What was checked when it was stored goes on as it is.
        unchecked(|| journal::with_tables(|_| check(go_on())));
    }
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
}

/// Arms here what was armed in the cluster that this one replicated.
fn go_on() -> pgrx::spi::Result<()> {
    Spi::connect_mut(|client| {
        let moved = client.update(
            "WITH here AS (
                 UPDATE pgwh.installation i SET home = pgwh.home() FROM pgwh.installation before
                 WHERE before.id = i.id AND i.home <> pgwh.home() AND starts_with(i.home, pgwh.installed() || '/')
                 RETURNING before.home AS primary_home, i.home)
             UPDATE pgwh.subscriptions s SET home = here.home FROM here WHERE s.home = here.primary_home RETURNING 1",
            None,
            &[],
        )?;
        if !moved.is_empty() {
            pgrx::log!(
                "pgstream_hooks: this server was promoted and has the replication slot; sending goes on from here"
            );
        }
        Ok(())
    })
}

fn held() -> pgrx::spi::Result<i64> {
    Ok(Spi::get_one::<i64>("SELECT count(*) FROM pgwh.subscriptions WHERE home <> pgwh.home()")?
        .unwrap_or_default())
}

fn check<T>(result: pgrx::spi::Result<T>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => pgrx::error!("pgstream_hooks: subscriptions can't be looked through: {error}"),
    }
}
