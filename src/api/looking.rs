//! `pgwh.wait` and what `pgwh.health` asks.

use std::time::{Duration, Instant};

use pgrx::datum::Interval;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::gate;
use super::subscribe::id_of;
use crate::decode::slot;
use crate::decode::text::Text;
use crate::error::Error;
use crate::settings;
use crate::worker::{ask, process};

/// The first and the longest pause between two looks at what the dispatcher says.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LAST_PAUSE: Duration = Duration::from_millis(20);

/// Version of this library.
#[pg_extern(sql = false)]
fn version() -> &'static str {
    crate::version::LIBRARY
}

/// Whether the library was loaded at server start.
#[pg_extern(sql = false)]
fn preloaded() -> bool {
    settings::preloaded()
}

/// Whether a replication slot is being made.
#[pg_extern(sql = false)]
fn slot_is_ephemeral(slot: &std::ffi::CStr) -> bool {
    slot::is_ephemeral(slot)
}

/// Why this database's workers failed when they last tried.
#[pg_extern(sql = false)]
fn capture_problem() -> Option<Text> {
    ask::problem().map(Text::from)
}

/// The processes that capture needs, with the process ids of those that run.
#[pg_extern(sql = false)]
fn worker_processes() -> TableIterator<'static, (name!(kind, String), name!(pid, Option<i32>))> {
    let rows = ask::processes().map(|(kind, pid)| (format!("pgstream_hooks {kind}"), pid));
    TableIterator::new(rows)
}

/// How many worker processes are in use.
#[pg_extern(sql = false)]
fn workers_in_use() -> i32 {
    process::max_workers() - process::free_workers() as i32
}

/// Whether there is no worker process to run transforms and routes.
#[pg_extern(sql = false)]
fn lacks_renderer() -> bool {
    ask::lacks_workers().0
}

/// Whether there is no worker process to read backfills.
#[pg_extern(sql = false)]
fn lacks_backfiller() -> bool {
    ask::lacks_workers().1
}

/// Why notifications or system events of this database could not be sent.
#[pg_extern(sql = false)]
fn notice_problem() -> Option<Text> {
    ask::notice_problem().map(Text::from)
}

/// The xid of the transaction for which the slot keeps write-ahead log from that position on, in bytes; null when it is kept for another
/// reason.
#[pg_extern(sql = false)]
fn transaction_keeping_wal(kept_from: Option<i64>) -> Option<i64> {
    let xid = ask::holder_of_log(u64::try_from(kept_from?).ok()?)?;
    i64::try_from(xid).ok()
}

/// Waits until everything committed before the call has reached the subscription.
#[pg_extern(sql = false)]
fn wait(name: Option<Text>, timeout: Option<Interval>) -> Result<bool, ErrorReport> {
    gate::changes()?;
    let timeout = timeout.ok_or(Error::Missing("timeout"))?;
    let patience = Duration::from_micros(u64::try_from(timeout.as_micros()).unwrap_or_default());
    let id = id_of(name)?;
    if !is_live(id).map_err(Error::from)? {
        notice!("the subscription is disabled, paused or held, so nothing is sent to it");
        return Ok(false);
    }
    let end = ask::wal_insert_end();
    // What a commit left in memory (synchronous_commit = off) would be decoded only after the next flush.
    // SAFETY: the position is one that has been inserted.
    unsafe { pg_sys::XLogFlush(end) };
    let deadline = Instant::now().checked_add(patience);
    let mut pause = FIRST_PAUSE;
    while ask::standing(id, |_, reached| reached).is_none_or(|reached| reached < end) {
        let left = deadline.map_or(LAST_PAUSE, |deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            return Ok(false);
        }
        ask::wake_decoder();
        process::pause(pause.min(left));
        pause = (pause * 2).min(LAST_PAUSE);
    }
    Ok(true)
}

/// Whether anything is sent to the subscription at all.
fn is_live(id: i64) -> Result<bool, pgrx::spi::Error> {
    Spi::connect(|client| {
        let live = client.select(
            "SELECT enabled AND NOT paused AND home OPERATOR(pg_catalog.=) pgwh.home() FROM pgwh.subscriptions
             WHERE id OPERATOR(pg_catalog.=) $1",
            Some(1),
            &[id.into()],
        )?;
        Ok(live.first().get_one::<bool>()?.unwrap_or_default())
    })
}
