//! What `pgwh.health` asks.

use pgrx::prelude::*;

use crate::api::session;
use crate::decode::wal::slot;
use crate::gucs;
use crate::pg::process::bgworker;
use crate::pg::values::encoding::Text;

/// Version of this library.
#[pg_extern(sql = false)]
fn version() -> &'static str {
    crate::version::LIBRARY
}

/// Whether the library was loaded at server start.
#[pg_extern(sql = false)]
fn preloaded() -> bool {
    gucs::preloaded()
}

/// Whether a replication slot is being made.
#[pg_extern(sql = false)]
fn slot_is_ephemeral(slot: &std::ffi::CStr) -> bool {
    slot::is_ephemeral(slot)
}

/// Why this database's workers failed when they last tried.
#[pg_extern(sql = false)]
fn capture_problem() -> Option<Text> {
    session::problem().map(Text::from)
}

/// The processes that capture needs, with the process ids of those that run.
#[pg_extern(sql = false)]
fn worker_processes() -> TableIterator<'static, (name!(kind, String), name!(pid, Option<i32>))> {
    let rows = session::processes().map(|(kind, pid)| (format!("pgstream_hooks {kind}"), pid));
    TableIterator::new(rows)
}

/// How many worker processes are in use.
#[pg_extern(sql = false)]
fn workers_in_use() -> i32 {
    bgworker::max_workers() - bgworker::free_workers() as i32
}

/// Whether there is no worker process to run transforms and routes.
#[pg_extern(sql = false)]
fn lacks_renderer() -> bool {
    session::lacks_workers().0
}

/// Whether there is no worker process to read backfills.
#[pg_extern(sql = false)]
fn lacks_backfiller() -> bool {
    session::lacks_workers().1
}

/// Why notifications or system events of this database could not be sent.
#[pg_extern(sql = false)]
fn notice_problem() -> Option<Text> {
    session::notice_problem().map(Text::from)
}

/// What of this database waits for dynamic shared memory, and why there is none.
#[pg_extern(sql = false)]
fn memory_problem() -> Option<Text> {
    session::memory_problem().map(Text::from)
}

/// The xid of the transaction for which the slot keeps write-ahead log from that position on, in bytes; null when it is kept for another
/// reason.
#[pg_extern(sql = false)]
fn transaction_keeping_wal(kept_from: Option<i64>) -> Option<i64> {
    let xid = session::holder_of_log(u64::try_from(kept_from?).ok()?)?;
    i64::try_from(xid).ok()
}
