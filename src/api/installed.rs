//! What CREATE EXTENSION says of the server it finds.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::gate;
use crate::decode::raw;
use crate::error::Error;
use crate::journal;
use crate::settings;
use crate::version;
use crate::worker::wake;

/// Refuses a server that has not preloaded the library; warns of what the workers will wait for.
#[pg_extern(sql = false)]
fn extension_created() -> Result<(), ErrorReport> {
    if !settings::preloaded() {
        return Err(Error::NotPreloaded.into());
    }
    gate::fitting()?;
    if !raw::wal_level_suffices() {
        let required = raw::REQUIRED_WAL_LEVEL;
        warn(
            "wal_level is too low to capture changes",
            &format!("wal_level must be {required} or higher; the workers wait until it is."),
            &format!("Run ALTER SYSTEM SET wal_level = {required}; and restart the server."),
        );
    }
    let (free_slots, free_workers) = free().map_err(Error::from)?;
    if free_slots < 1 {
        warn(
            "there is no free replication slot",
            "All max_replication_slots are in use; the workers wait for a free one.",
            "Raise max_replication_slots and restart the server, or drop a slot that is not needed.",
        );
    }
    if free_workers < 2 {
        warn(
            "there are too few free worker processes",
            "Each database with pgstream_hooks takes two of max_worker_processes; the workers wait for them.",
            "Raise max_worker_processes and restart the server.",
        );
    }
    wake::ring_at_commit();
    Ok(())
}

/// Called by each script that updates the extension: refuses a library that is older than what the script makes, and has the
/// workers begin anew when the update commits.
#[pg_extern(sql = false)]
fn extension_updated() -> Result<(), ErrorReport> {
    let sql = journal::extension_version().unwrap_or_default();
    if version::is_older_than(&sql) {
        return Err(Error::Versions(sql).into());
    }
    Spi::run("UPDATE pgwh.installation SET schema_version = (SELECT extversion FROM pg_catalog.pg_extension WHERE extname = 'pgstream_hooks')")
        .map_err(Error::from)?;
    wake::recheck_at_commit();
    Ok(())
}

/// How many replication slots and background workers are free. Workers that are registered but not connected to shared
/// memory can't be seen.
fn free() -> Result<(i64, i64), pgrx::spi::Error> {
    Spi::connect(|client| {
        let rows = client.select(
            "SELECT pg_catalog.current_setting('max_replication_slots')::bigint
                      OPERATOR(pg_catalog.-) (SELECT pg_catalog.count(*) FROM pg_catalog.pg_replication_slots),
                    pg_catalog.current_setting('max_worker_processes')::bigint
                      OPERATOR(pg_catalog.-) (SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_activity
                        WHERE backend_type OPERATOR(pg_catalog.<>) ALL ('{client backend,walsender,autovacuum worker,autovacuum launcher,background writer,checkpointer,walwriter,archiver,startup,walreceiver,logger,standalone backend,slotsync worker,walsummarizer,io worker}'))",
            Some(1),
            &[],
        )?;
        let (slots, workers) = rows.first().get_two::<i64, i64>()?;
        Ok((slots.unwrap_or_default(), workers.unwrap_or_default()))
    })
}

fn warn(message: &'static str, detail: &str, hint: &str) {
    ErrorReport::new(PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED, message, "pgstream_hooks")
        .set_detail(detail)
        .set_hint(hint)
        .report(PgLogLevel::WARNING);
}
