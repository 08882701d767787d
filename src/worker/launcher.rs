//! The launcher: one a cluster. It keeps a dispatcher alive in each database that has the extension.
//!
//! It can't see a database's extensions from outside, so a dispatcher that finds none ends at once and is not started
//! again. Each database is looked at once a server start, and whenever somebody rings.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pgrx::{pg_guard, pg_sys};

use super::process::{self, WorkerHandle};
use super::shmem::{self, Database, Phase, Shared};
use crate::decode::raw;
use crate::settings;

/// How long until a dispatcher is tried again for which there was no free worker process.
const NO_WORKER_PAUSE: Duration = Duration::from_secs(2);
/// How long until a pair that failed is tried again, doubling from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LAST_PAUSE: Duration = Duration::from_secs(30);

/// Registers the launcher, once, while the server preloads.
pub fn register() {
    let mut worker = process::describe("launcher", "pgwh_launcher_main", 1);
    worker.bgw_flags |= pg_sys::BGWORKER_BACKEND_DATABASE_CONNECTION as i32;
    // SAFETY: the description is complete.
    unsafe { pg_sys::RegisterBackgroundWorker(&mut worker) };
}

/// The launcher's main function.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pgwh_launcher_main(_argument: pg_sys::Datum) {
    let Some(shared) = shmem::shared() else { return };
    raw::install_signal_handlers();
    // SAFETY: called once, first thing in a background worker; without a database only shared catalogs are open to it,
    // and no database is held by it.
    unsafe { pg_sys::BackgroundWorkerInitializeConnection(std::ptr::null(), std::ptr::null(), 0) };
    process::set_log_level();
    shared.launcher.set_me();
    shared.launcher_pid.store(std::process::id() as i32, Ordering::SeqCst);

    // A launcher that comes back after an ERROR finds workers that its predecessor started.
    let mut launcher = Launcher { shared, children: HashMap::new(), not_before: HashMap::new() };
    for oid in databases() {
        shared.ring(oid);
    }
    loop {
        let next = launcher.round(Instant::now());
        process::report_idle(c"waiting for databases that need workers");
        process::sleep(next.map(|due| due.saturating_duration_since(Instant::now())));
    }
}

struct Launcher {
    shared: &'static Shared,
    children: HashMap<pg_sys::Oid, WorkerHandle>,
    not_before: HashMap<pg_sys::Oid, Instant>,
}

impl Launcher {
    /// Sees to every database; says when to come again if nobody rings.
    fn round(&mut self, now: Instant) -> Option<Instant> {
        let shared = self.shared;
        for database in shared.databases() {
            self.bury(database, now);
            self.start(database, now);
        }
        self.not_before.retain(|oid, _| shared.find(*oid).is_some());
        self.not_before.values().copied().filter(|due| *due > now).min()
    }

    /// Notices a dispatcher that has ended, and decides what its end means.
    fn bury(&mut self, database: &Database, now: Instant) {
        let oid = database.oid();
        if !self.children.get(&oid).is_some_and(WorkerHandle::has_ended) {
            return;
        }
        self.children.remove(&oid);
        match database.phase() {
            // It looked, and there is no extension.
            Phase::Unknown => self.shared.free(database),
            Phase::Quiesced | Phase::SwitchedOff => database.wanted.store(true, Ordering::SeqCst),
            // It failed, or somebody ended it, or its server is going down.
            _ => {
                let has_failed = database.failed.load(Ordering::SeqCst) || !database.was_ready();
                let failures =
                    if has_failed { database.failures.fetch_add(1, Ordering::SeqCst).min(16) } else { 0 };
                let pause = (FIRST_PAUSE * 2u32.pow(failures)).min(LAST_PAUSE);
                database.set_phase(Phase::Failed);
                database.wanted.store(true, Ordering::SeqCst);
                self.not_before.insert(oid, now + pause);
            }
        }
    }

    /// Starts a dispatcher where one is wanted and may run.
    fn start(&mut self, database: &Database, now: Instant) {
        let oid = database.oid();
        // A decoder outlives its dispatcher by a moment, and a launcher that comes back finds both at work.
        let busy = self.children.contains_key(&oid)
            || database.dispatcher_pid.load(Ordering::SeqCst) != 0
            || database.decoder_pid.load(Ordering::SeqCst) != 0
            || database.backfiller_pid.load(Ordering::SeqCst) != 0;
        if busy
            || oid == pg_sys::InvalidOid
            || !database.wanted.load(Ordering::SeqCst)
            || database.quiesced.load(Ordering::SeqCst) > 0
            || self.not_before.get(&oid).is_some_and(|due| *due > now)
        {
            return;
        }
        if !settings::enabled() {
            database.set_phase(Phase::SwitchedOff);
            return;
        }
        database.wanted.store(false, Ordering::SeqCst);
        database.stop.store(false, Ordering::SeqCst);
        if !exists(oid) {
            self.shared.free(database);
            return;
        }
        database.set_starting();
        match process::start_worker("dispatcher", "pgwh_dispatcher_main", oid) {
            Some(handle) => {
                self.children.insert(oid, handle);
                self.not_before.remove(&oid);
            }
            None => {
                database.set_phase(Phase::NoFreeWorker);
                database.wanted.store(true, Ordering::SeqCst);
                self.not_before.insert(oid, now + NO_WORKER_PAUSE);
            }
        }
    }
}

/// Whether there is a database of that oid.
fn exists(oid: pg_sys::Oid) -> bool {
    process::in_bare_transaction(|| {
        // SAFETY: a syscache look-up in a shared catalog, inside a transaction.
        unsafe {
            let cache = pg_sys::SysCacheIdentifier::DATABASEOID as _;
            pg_sys::SearchSysCacheExists(
                cache,
                pg_sys::Datum::from(oid),
                pg_sys::Datum::null(),
                pg_sys::Datum::null(),
                pg_sys::Datum::null(),
            )
        }
    })
}

/// Every database that may have the extension. A template that refuses connections has nothing but what initdb gave it.
fn databases() -> Vec<pg_sys::Oid> {
    process::in_bare_transaction(|| {
        let mut found = Vec::new();
        // SAFETY: scans a shared catalog inside a transaction, under a lock that the close releases with it.
        unsafe {
            let relation = pg_sys::table_open(pg_sys::DatabaseRelationId, pg_sys::AccessShareLock as _);
            let scan = pg_sys::systable_beginscan(
                relation,
                pg_sys::InvalidOid,
                false,
                std::ptr::null_mut(),
                0,
                std::ptr::null_mut(),
            );
            loop {
                let tuple = pg_sys::systable_getnext(scan);
                if tuple.is_null() {
                    break;
                }
                let row = &*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_database>();
                if row.datallowconn || !row.datistemplate {
                    found.push(row.oid);
                }
            }
            pg_sys::systable_endscan(scan);
            pg_sys::table_close(relation, pg_sys::AccessShareLock as _);
        }
        found
    })
}
