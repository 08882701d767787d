//! The launcher: one a cluster. It keeps a dispatcher alive in each database that has the extension.
//!
//! It cannot see a database's extensions from outside, so a dispatcher that finds none ends at once and is not started
//! again. Each database is looked at once a server start, and whenever somebody rings.
//!
//! Where there are too few worker processes for all, a database has both processes of the pair or none, those that have
//! captured changes before keep theirs, and those that have nothing to send give way.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgLogLevel, PgSqlErrorCode, pg_guard, pg_sys};

use crate::decode::wal::slot;
use crate::gucs;
use crate::pg::compat;
use crate::pg::process::bgworker;
use crate::pg::process::bgworker::WorkerHandle;
use crate::shmem::registry;
use crate::shmem::registry::{Database, Demand, Phase, Shared};

/// How many processes dispatcher and decoder are.
const PAIR: usize = 2;
/// How often is looked whether there are free worker processes by now.
const NO_WORKER_PAUSE: Duration = Duration::from_secs(2);
/// How long until a pair that failed is tried again, doubling from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LAST_PAUSE: Duration = Duration::from_secs(30);

/// Registers the launcher, once, while the server preloads.
pub fn register() {
    let mut worker = bgworker::describe("launcher", "pgwh_launcher_main", 1);
    worker.bgw_flags |= pg_sys::BGWORKER_BACKEND_DATABASE_CONNECTION as i32;
    // SAFETY: the description is complete.
    unsafe { pg_sys::RegisterBackgroundWorker(&mut worker) };
}

/// The launcher's main function.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pgwh_launcher_main(_argument: pg_sys::Datum) {
    let Some(shared) = registry::shared() else { return };
    compat::install_signal_handlers();
    // SAFETY: called once, first thing in a background worker; without a database only shared catalogs are open to it,
    // and no database is held by it.
    unsafe { pg_sys::BackgroundWorkerInitializeConnection(std::ptr::null(), std::ptr::null(), 0) };
    bgworker::set_log_level();
    shared.launcher.set_me();
    shared.launcher_pid.store(std::process::id() as i32, Ordering::SeqCst);

    // A launcher that comes back after an ERROR finds workers that its predecessor started.
    let mut launcher = Launcher {
        shared,
        children: HashMap::new(),
        not_before: HashMap::new(),
        refused: HashSet::new(),
        not_looked_at: HashSet::new(),
        some_wait: false,
    };
    for oid in databases() {
        shared.ring(oid);
    }
    loop {
        let next = launcher.round(Instant::now());
        bgworker::report_idle(c"waiting for databases that need workers");
        bgworker::sleep(next.map(|due| due.saturating_duration_since(Instant::now())));
    }
}

struct Launcher {
    shared: &'static Shared,
    children: HashMap<pg_sys::Oid, WorkerHandle>,
    not_before: HashMap<pg_sys::Oid, Instant>,
    /// Databases of which was said that there are too few worker processes, until they capture changes.
    refused: HashSet<pg_sys::Oid>,
    /// Databases of which was said that nobody could look whether they have the extension.
    not_looked_at: HashSet<pg_sys::Oid>,
    /// Some wait for others to be started.
    some_wait: bool,
}

impl Launcher {
    /// Sees to every database; says when to come again if nobody rings.
    fn round(&mut self, now: Instant) -> Option<Instant> {
        let shared = self.shared;
        for database in shared.databases() {
            self.bury(database, now);
        }
        self.start_pairs(now);
        self.make_room();
        // An extension that is being created is not seen by whoever looks, so its database is forgotten for a moment.
        self.refused.retain(|oid| shared.find(*oid).is_some() || exists(*oid));
        self.not_looked_at.retain(|oid| shared.find(*oid).is_some());
        self.not_before.retain(|oid, _| shared.find(*oid).is_some());
        let again = std::mem::take(&mut self.some_wait).then(|| now + NO_WORKER_PAUSE);
        self.not_before.values().copied().filter(|due| *due > now).chain(again).min()
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
            // It is started again when somebody asks for it, after a restart of the server if need be.
            Phase::GaveWay | Phase::WalLevelTooLow => {}
            Phase::NoFreeWorker => self.refuse(database, now),
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

    /// Starts pairs where they are wanted and may run: both processes or none. Those that have captured changes before come
    /// first, and what they need is not given to others while they pause after a failure.
    fn start_pairs(&mut self, now: Instant) {
        let shared = self.shared;
        let mut wanted: Vec<(Rank, &Database)> = shared
            .databases()
            .filter(|database| self.wants(database))
            .map(|database| (Rank::of(database), database))
            .collect();
        if wanted.is_empty() {
            return;
        }
        wanted.sort_by_key(|(rank, database)| (*rank, database.oid().to_u32()));
        let free = bgworker::free_workers();
        let mut taken: usize = shared.databases().map(|database| self.missing(database)).sum();
        // A dispatcher that has found no extension leaves its process in a moment.
        let starts = |database: &Database| {
            matches!(database.phase(), Phase::Starting | Phase::Unknown)
                && self.children.contains_key(&database.oid())
        };
        let mut someone_starts = shared.databases().any(starts);
        let someone_is_short = shared.databases().any(Database::is_short);
        for (rank, database) in wanted {
            // Nobody knows of the extension there: one process looks.
            taken += if rank == Rank::Unknown { 1 } else { PAIR };
            let pauses = self.not_before.get(&database.oid()).is_some_and(|due| *due > now);
            if !gucs::enabled() {
                database.set_phase(Phase::SwitchedOff);
            } else if !exists(database.oid()) {
                database.wanted.store(false, Ordering::SeqCst);
                shared.free(database);
            } else if rank == Rank::Idle && someone_is_short {
                self.some_wait = true;
            } else if free >= taken {
                if !pauses || database.phase() == Phase::NoFreeWorker {
                    self.start(database, now);
                    someone_starts |= self.children.contains_key(&database.oid());
                }
            } else if someone_starts {
                self.some_wait = true;
            } else if !pauses || database.is_asked() {
                self.refuse(database, now);
            }
        }
    }

    /// Whether a pair is to be started there.
    fn wants(&self, database: &Database) -> bool {
        // A decoder outlives its dispatcher by a moment, and a launcher that comes back finds both at work.
        database.wanted.load(Ordering::SeqCst)
            && database.quiesced.load(Ordering::SeqCst) == 0
            && !self.children.contains_key(&database.oid())
            && !database.has_processes()
    }

    /// How many processes a pair does not have, since it is being started, comes back or stands back for a command.
    fn missing(&self, database: &Database) -> usize {
        let leaves = matches!(
            database.phase(),
            Phase::Unknown | Phase::NoFreeWorker | Phase::WalLevelTooLow | Phase::GaveWay
        );
        let stands_back =
            || database.quiesced.load(Ordering::SeqCst) > 0 && Rank::of(database) == Rank::Captures;
        if leaves || !(self.children.contains_key(&database.oid()) || stands_back()) {
            return 0;
        }
        let pids = [&database.dispatcher_pid, &database.decoder_pid];
        pids.iter().filter(|pid| pid.load(Ordering::SeqCst) == 0).count()
    }

    fn start(&mut self, database: &Database, now: Instant) {
        let oid = database.oid();
        database.wanted.store(false, Ordering::SeqCst);
        database.stop.store(false, Ordering::SeqCst);
        database.give_way.store(false, Ordering::SeqCst);
        database.set_starting();
        match bgworker::start_worker("dispatcher", "pgwh_dispatcher_main", oid) {
            Some(handle) => {
                self.children.insert(oid, handle);
                self.not_before.remove(&oid);
            }
            None => self.refuse(database, now),
        }
    }

    /// There is no worker process for the database. It is tried again now and then, since others' ends are not heard of.
    fn refuse(&mut self, database: &Database, now: Instant) {
        let oid = database.oid();
        database.wanted.store(true, Ordering::SeqCst);
        self.not_before.insert(oid, now + NO_WORKER_PAUSE);
        // Another database's workers may leave theirs: then it is not refused yet.
        if self.ask_to_give_way(database) {
            return;
        }
        database.refuse(Phase::NoFreeWorker);
        if Rank::of(database) == Rank::Unknown {
            if self.not_looked_at.insert(oid) {
                log_not_looked_at(oid);
            }
        } else if self.refused.insert(oid) {
            warn_of_no_worker(oid);
        }
    }

    /// Has databases that have nothing to send give way to those that lack a slot, or a process besides the pair.
    fn make_room(&mut self) {
        let shared = self.shared;
        for database in shared.databases() {
            if database.phase() == Phase::Ready && self.refused.remove(&database.oid()) {
                pgrx::log!(
                    "pgstream_hooks: there are worker processes for database {} again",
                    bgworker::database_name(database.oid())
                );
            }
            self.some_wait |= database.is_short() && self.ask_to_give_way(database);
        }
    }

    /// Asks the workers of a database that has nothing to send to end, for the sake of one that has; whether there are such.
    /// One after the other does so: the next is asked when this one has ended.
    fn ask_to_give_way(&self, to: &Database) -> bool {
        if !matches!(Rank::of(to), Rank::Captures | Rank::Asked) {
            return false;
        }
        let shared = self.shared;
        if shared.databases().any(|other| other.give_way.load(Ordering::SeqCst) && other.may_give_way()) {
            return true;
        }
        // The youngest is a copy of the others, not the other way round.
        let idle = shared.databases().filter(|other| other.oid() != to.oid() && other.may_give_way());
        let Some(idle) = idle.max_by_key(|other| other.oid().to_u32()) else { return false };
        idle.give_way.store(true, Ordering::SeqCst);
        idle.dispatcher.wake();
        true
    }
}

/// Who comes first when there are not enough worker processes for all.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// It has captured changes.
    Captures,
    /// It is to capture changes from now on.
    Asked,
    /// Nobody has looked whether it has the extension.
    Unknown,
    /// It is a copy that has nothing to send.
    Idle,
}

impl Rank {
    fn of(database: &Database) -> Rank {
        let demand = database.demand();
        if demand != Demand::Nothing && !slot::of_database(database.oid()).is_empty() {
            return Rank::Captures;
        }
        match demand {
            Demand::Something => Rank::Asked,
            _ if database.is_asked() => Rank::Asked,
            Demand::Unknown => Rank::Unknown,
            Demand::Nothing => Rank::Idle,
        }
    }
}

fn warn_of_no_worker(database: pg_sys::Oid) {
    let most = bgworker::max_workers();
    ErrorReport::new(
        PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
        format!("pgstream_hooks: there are too few free worker processes for database {}", bgworker::database_name(database)),
        "pgstream_hooks",
    )
    .set_detail(format!(
        "Each database with the extension takes two of max_worker_processes, which is {most}. Those that capture changes already keep theirs."
    ))
    .set_hint(bgworker::hint_for_more_workers())
    .report(PgLogLevel::WARNING);
}

/// Most databases do not have the extension, so that no process for a look is nothing to warn of.
fn log_not_looked_at(database: pg_sys::Oid) {
    pgrx::log!(
        "pgstream_hooks: no worker process is free to look whether database {} has the extension; it is looked at as soon as there is one",
        bgworker::database_name(database)
    );
}

/// Whether there is a database of that oid.
fn exists(oid: pg_sys::Oid) -> bool {
    bgworker::in_bare_transaction(|| {
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
    bgworker::in_bare_transaction(|| {
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
