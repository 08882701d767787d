//! What CREATE EXTENSION says of the server it finds.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::api::preconditions;
use crate::decode::wal::slot;
use crate::error::Error;
use crate::pg::compat;
use crate::pg::process::bgworker;
use crate::shmem::commit_signal;
use crate::{gucs, journal, version};

/// Refuses a server that has not preloaded the library; warns of what the workers will wait for.
#[pg_extern(sql = false)]
fn extension_created() -> Result<(), ErrorReport> {
    if !gucs::preloaded() {
        return Err(Error::NotPreloaded.into());
    }
    preconditions::fitting()?;
    if !compat::wal_level_suffices() {
        let required = compat::REQUIRED_WAL_LEVEL;
        warn(
            "wal_level is too low to capture changes",
            &format!("wal_level must be {required} or higher; the workers wait until it is."),
            &format!("Run ALTER SYSTEM SET wal_level = {required}; and restart the server."),
        );
    }
    if !slot::there_is_room() {
        warn(
            "there is no free replication slot",
            "All max_replication_slots are in use; the workers wait for a free one.",
            &slot::hint_for_more(),
        );
    }
    if bgworker::free_workers() < 2 {
        warn(
            "there are too few free worker processes",
            "Each database with pgstream_hooks takes two of max_worker_processes; the workers wait for them.",
            &bgworker::hint_for_more_workers(),
        );
    }
    commit_signal::ring_at_commit();
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
    Spi::run("UPDATE pgwh_internal.installation SET schema_version = (SELECT extversion FROM pg_catalog.pg_extension WHERE extname = 'pgstream_hooks')")
        .map_err(Error::from)?;
    commit_signal::recheck_at_commit();
    Ok(())
}

fn warn(message: &'static str, detail: &str, hint: &str) {
    ErrorReport::new(PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED, message, "pgstream_hooks")
        .set_detail(detail)
        .set_hint(hint)
        .report(PgLogLevel::WARNING);
}
