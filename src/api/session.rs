//! What a session may ask of the workers of its database.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use pgrx::pg_sys;

use crate::decode::wal::slot;
use crate::delivery::DeliveryId;
use crate::journal;
use crate::metrics::Totals;
use crate::pg::process::bgworker;
use crate::shmem::registry::{Database, Shared};
use crate::shmem::{delivery_counters, in_flight, registry, subscription_stats};

pub use crate::pg::compat::wal_insert_end;
pub use crate::shmem::registry::Phase;
pub use crate::shmem::subscription_stats::Figures;

/// Why changes of this database are not captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotReady(Phase);

/// What the server has too few of.
pub enum Lack {
    /// Worker processes.
    Workers,
    /// Replication slots.
    Slots,
}

impl NotReady {
    /// What the server has too few of, if that is the reason.
    pub fn lack(self) -> Option<Lack> {
        match self.0 {
            Phase::NoFreeWorker => Some(Lack::Workers),
            Phase::NoFreeSlot => Some(Lack::Slots),
            _ => None,
        }
    }

    /// Whether transactions that run elsewhere are the reason.
    pub fn is_of_transactions(self) -> bool {
        self.0 == Phase::CreatingSlot
    }
}

/// After how long a session is told what it waits for.
const NOTICE_AFTER: Duration = Duration::from_secs(2);
/// How long a server that accepts connections takes at most to start the launcher.
const LAUNCHER_START_TIMEOUT: Duration = Duration::from_secs(2);
/// How long it takes at most until somebody has looked whether there is a free worker process or slot.
const LOOKED_WITHIN: Duration = Duration::from_secs(5);

impl std::fmt::Display for NotReady {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.0 {
            Phase::Unknown | Phase::Starting => "The workers of this database are starting",
            Phase::NoFreeWorker => "There are too few free worker processes (max_worker_processes)",
            Phase::GaveWay => {
                "The workers of this database gave way to those of others and are starting again"
            }
            Phase::WalLevelTooLow => "wal_level is too low",
            Phase::NoFreeSlot => "There is no free replication slot (max_replication_slots)",
            Phase::CreatingSlot => {
                "The replication slot is being created, which waits for running transactions"
            }
            Phase::Ready => "Capture has just begun",
            Phase::Failed => {
                "The workers of this database failed and are tried again; the server's log says why"
            }
            Phase::SwitchedOff => "The setting pgwh.enabled is off",
            Phase::Quiesced => "The database is being altered or copied",
            Phase::SlotTaken => {
                "Another program made a replication slot of the name that the extension's has"
            }
            Phase::VersionsDiffer => "The library and the extension's SQL are of different versions",
        })
    }
}

/// Waits until changes of this database are captured. Has the launcher look, should it not know of us. `notice` is called once when
/// that takes long.
pub fn await_capture(patience: Duration, notice: impl FnOnce(NotReady)) -> Result<(), NotReady> {
    // SAFETY: reads a global of this process.
    let oid = unsafe { pg_sys::MyDatabaseId };
    let Some(shared) = registry::shared() else { return Err(NotReady(Phase::Unknown)) };
    let count = || shared.find(oid).map_or(0, |database| database.refusals.load(Ordering::SeqCst));
    let mut refusals = count();
    ask_for_capture(shared, oid);
    let begin = Instant::now();
    let mut looking_since = begin;
    let mut notice = Some(notice);
    loop {
        let phase = shared.find(oid).map_or(Phase::Unknown, phase_of_installation);
        match phase {
            Phase::Ready => return Ok(()),
            // Nothing but a restart or a change of settings helps.
            Phase::WalLevelTooLow | Phase::SwitchedOff | Phase::VersionsDiffer | Phase::SlotTaken => {
                return Err(NotReady(phase));
            }
            // Where no process was left for it at the start of the server, it never comes.
            Phase::Unknown if begin.elapsed() >= LAUNCHER_START_TIMEOUT && !launcher_runs(shared) => {
                return Err(NotReady(Phase::NoFreeWorker));
            }
            Phase::NoFreeWorker | Phase::NoFreeSlot => {
                if shared.databases().any(|other| other.oid() != oid && other.makes_room()) {
                    // What is found after these have gone is what counts.
                    (refusals, looking_since) = (count(), Instant::now());
                } else if count() != refusals || looking_since.elapsed() >= LOOKED_WITHIN {
                    return Err(NotReady(phase));
                }
            }
            // The slot is still there, or is again, but not for what is committed by now.
            Phase::GaveWay => {}
            // The workers are on their way, and what is committed meanwhile waits for them.
            _ if slot_keeps_all() => return Ok(()),
            _ => {}
        }
        if begin.elapsed() >= patience {
            return Err(NotReady(phase));
        }
        if begin.elapsed() >= NOTICE_AFTER
            && let Some(notice) = notice.take()
        {
            notice(NotReady(phase));
        }
        bgworker::pause(Duration::from_millis(5));
        if let Some(database) = shared.find(oid) {
            database.ask();
        }
    }
}

/// Has whoever is in charge look whether changes of this database can be captured.
fn ask_for_capture(shared: &Shared, oid: pg_sys::Oid) {
    match shared.find(oid).filter(|database| database.dispatcher.is_set()) {
        Some(database) => {
            database.ask();
            if database.phase() == Phase::NoFreeSlot {
                database.decoder.wake();
            }
        }
        None => {
            if let Some(database) = shared.claim(oid) {
                database.ask();
            }
            shared.launcher.wake();
        }
    }
}

/// Whether this installation has its slot. Inside a transaction.
fn slot_keeps_all() -> bool {
    // Reading only: an xid of ours would keep the slot from being made.
    let keeps = pgrx::Spi::connect(|client| {
        let name =
            client.select("SELECT pgwh.slot_name()::text", Some(1), &[])?.first().get_one::<String>()?;
        Ok::<_, pgrx::spi::Error>(
            name.and_then(|name| CString::new(name).ok()).is_some_and(|name| slot::keeps(&name)),
        )
    });
    keeps.unwrap_or_default()
}

/// The phase of the workers. Those of an installation that has just been dropped may not have noticed yet, and what
/// they are ready for is not ours.
fn phase_of_installation(database: &Database) -> Phase {
    let phase = database.phase();
    let captured_for = pg_sys::Oid::from(database.extension.load(Ordering::SeqCst));
    if phase == Phase::Ready && journal::extension() != Some(captured_for) { Phase::Starting } else { phase }
}

/// Why the workers of this database last failed; none when they did not, or are at work again after one failure.
pub fn problem() -> Option<String> {
    let database = registry::my_database()?;
    match database.phase() {
        Phase::NoFreeWorker => return Some("there are too few free worker processes".to_owned()),
        Phase::GaveWay => {
            return Some(
                "they gave way to those of other databases, since nothing is to be sent from here".to_owned(),
            );
        }
        _ => {}
    }
    let failures = database.failures.load(Ordering::SeqCst);
    if failures < 2 && database.phase() == Phase::Ready {
        return None;
    }
    let problem = Some(database.problem.get()).filter(|problem| !problem.is_empty())?;
    Some(if failures < 2 {
        problem
    } else {
        format!("they failed {failures} times in a row, lastly: {problem}")
    })
}

fn launcher_runs(shared: &Shared) -> bool {
    runs(shared.launcher_pid.load(Ordering::Relaxed))
}

fn runs(pid: i32) -> bool {
    // SAFETY: kill(2) with signal 0 only asks whether the process is there.
    pid != 0 && unsafe { libc::kill(pid, 0) } == 0
}

/// Launcher, and dispatcher and decoder of this database: each with its process id, if it runs.
pub fn processes() -> [(&'static str, Option<i32>); 3] {
    let look = |pid: &AtomicI32| Some(pid.load(Ordering::Relaxed)).filter(|pid| runs(*pid));
    let (shared, database) = (registry::shared(), registry::my_database());
    [
        ("launcher", shared.and_then(|shared| look(&shared.launcher_pid))),
        ("dispatcher", database.and_then(|database| look(&database.dispatcher_pid))),
        ("decoder", database.and_then(|database| look(&database.decoder_pid))),
    ]
}

/// Whether the dispatcher of this database found no process to run functions, and none to read backfills.
pub fn lacks_workers() -> (bool, bool) {
    let lacks = |database: &Database| {
        [&database.lacks_renderer, &database.lacks_backfiller]
            .map(|lacks| lacks.load(Ordering::SeqCst))
            .into()
    };
    registry::my_database().map_or((false, false), lacks)
}

/// Why notifications or system events of this database could not be sent; none when they could.
pub fn notice_problem() -> Option<String> {
    registry::my_database()
        .map(|database| database.notice_problem.get())
        .filter(|problem| !problem.is_empty())
}

/// What of this database waits for dynamic shared memory, and why there is none; none when nothing does.
pub fn memory_problem() -> Option<String> {
    registry::my_database()
        .map(|database| database.memory_problem.get())
        .filter(|problem| !problem.is_empty())
}

/// The transaction for which the slot cannot let go of write-ahead log, when that is kept from there on; none when it is kept for another
/// reason.
pub fn holder_of_log(kept_from: u64) -> Option<u64> {
    let decoded = &registry::my_database()?.decoded;
    let xid = decoded.oldest_xid.load(Ordering::Acquire);
    (xid != 0 && decoded.oldest_from.load(Ordering::Relaxed) <= kept_from).then_some(xid)
}

/// Has the decoder of this database look at the log: commits in other databases don't ring it.
pub fn wake_decoder() {
    if let Some(database) = registry::my_database() {
        database.ask_for_progress();
    }
}

/// The first deliveries of the requests that are under way in this database.
pub fn under_way() -> BTreeSet<DeliveryId> {
    registry::my_database().map(in_flight::read).unwrap_or_default()
}

/// Shows how each subscription of this database fares, with what was counted for it if it has metrics of its own; returns
/// what was counted for the others together.
pub fn each_figures(mut show: impl FnMut(&Figures, Option<Totals>)) -> Totals {
    let Some(database) = registry::my_database() else { return Totals::default() };
    // A place that is given up and taken again must not show its predecessor's counts: look at counts first.
    let (mut own, others) = delivery_counters::read(database);
    subscription_stats::each(database, |figures| show(figures, own.remove(&figures.subscription_id)));
    others
}

/// What the workers of this database are doing, and what they counted.
pub fn about_workers() -> Option<(&'static Shared, &'static Database)> {
    Some((registry::shared()?, registry::my_database()?))
}

/// Looks at how a subscription fares, and up to where everything that ended has reached it; none while its dispatcher
/// doesn't know of it.
pub fn standing<T>(subscription_id: i64, look: impl FnOnce(&Figures, u64) -> T) -> Option<T> {
    let database = registry::my_database()?;
    // The dispatcher shows a subscription's figures before the frontier they belong to: look the other way round.
    let frontier = database.frontier.load(Ordering::Acquire);
    subscription_stats::read_one(database, subscription_id, |figures| {
        let reached = if figures.oldest_lsn == 0 { frontier } else { figures.oldest_lsn.min(frontier) };
        look(figures, reached)
    })
}
