//! What the processes know of each other: one fixed table in shared memory, an entry a database.
//!
//! Everything a commit looks at is an atomic, so that a commit takes no lock. The lock of the table is for those who
//! claim or free an entry, and for the text of a problem.

use std::ffi::CStr;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgLogLevel, PgSqlErrorCode, pg_sys};

use super::worker_counters::{Decoded, Dispatched};
use crate::pg::compat;
use crate::pg::process::bgworker;
use crate::pg::process::clock::monotonic;

/// How many databases of a cluster can have the extension at work at once. Each takes two worker processes, so
/// `max_worker_processes` is what limits in practice.
pub const MAX_DATABASES: usize = 1024;

/// How many sessions of a database can wait for a test at once.
const MOST_TESTS: usize = 8;

const NAME: &CStr = c"pgstream_hooks";
const NOTE_BYTES: usize = 512;

/// How long a session that has asked for capture needs it at least.
const ASKED_FOR: Duration = Duration::from_secs(5);

/// How long a pair is at work before its last failure is over.
const STEADY_AFTER: Duration = Duration::from_secs(10);

/// A text in shared memory.
#[repr(C)]
pub struct Note {
    length: AtomicU32,
    bytes: [u8; NOTE_BYTES],
}

impl Note {
    /// The text; empty when there is none.
    pub fn get(&self) -> String {
        with_lock(|| {
            let length = self.length.load(Ordering::Relaxed) as usize;
            String::from_utf8_lossy(&self.bytes[..length.min(NOTE_BYTES)]).into_owned()
        })
    }

    /// Whether there is a text.
    pub fn is_set(&self) -> bool {
        self.length.load(Ordering::Relaxed) != 0
    }

    /// Replaces the text by as much of this one as there is room for.
    pub fn set(&self, text: &str) {
        let bytes = &text.as_bytes()[..text.floor_char_boundary(NOTE_BYTES)];
        with_lock(|| {
            // SAFETY: the lock keeps every other reader and writer of the text away; the bytes fit.
            unsafe {
                let target = (&raw const self.bytes).cast::<u8>().cast_mut();
                ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len());
            }
            self.length.store(bytes.len() as u32, Ordering::Relaxed);
        });
    }
}

/// What a database's workers are doing, or what they wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Phase {
    /// No worker has been asked for, or it is not yet known whether the extension is here.
    Unknown = 0,
    /// The dispatcher is being started.
    Starting = 1,
    /// All worker processes of the cluster are taken.
    NoFreeWorker = 2,
    /// `wal_level` is below `logical`.
    WalLevelTooLow = 3,
    /// All replication slots of the cluster are taken.
    NoFreeSlot = 4,
    /// The slot is being created, which waits for the transactions that run.
    CreatingSlot = 5,
    /// Changes are captured.
    Ready = 6,
    /// The last try failed; another follows.
    Failed = 7,
    /// `pgwh.enabled` is off.
    SwitchedOff = 8,
    /// The database is being dropped, renamed, moved or copied: its workers stand back.
    Quiesced = 9,
    /// Library and SQL don't fit together.
    VersionsDiffer = 10,
    /// Another program made a slot of our name.
    SlotTaken = 11,
    /// Nothing here is to be sent, and other databases needed the processes or the slot.
    GaveWay = 12,
}

/// Whether this database may have something to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Demand {
    /// No dispatcher has looked yet.
    Unknown = 0,
    /// All subscriptions are of a database of which this one is a copy.
    Nothing = 1,
    /// There are others, or none yet.
    Something = 2,
}

impl Phase {
    /// All of them, in the order of their codes.
    pub const ALL: [Phase; 13] = [
        Phase::Unknown,
        Phase::Starting,
        Phase::NoFreeWorker,
        Phase::WalLevelTooLow,
        Phase::NoFreeSlot,
        Phase::CreatingSlot,
        Phase::Ready,
        Phase::Failed,
        Phase::SwitchedOff,
        Phase::Quiesced,
        Phase::VersionsDiffer,
        Phase::SlotTaken,
        Phase::GaveWay,
    ];

    fn from_code(code: u32) -> Phase {
        Phase::ALL.get(code as usize).copied().unwrap_or(Phase::Unknown)
    }
}

impl Demand {
    /// Of a copy that has nothing of its own, or of another database.
    pub fn of(is_copy: bool) -> Demand {
        if is_copy { Demand::Nothing } else { Demand::Something }
    }
}

/// A process by its number in shared memory plus one; 0 stands for none.
#[repr(transparent)]
pub struct ProcessRef(AtomicI32);

impl ProcessRef {
    /// The present process.
    pub fn me() -> ProcessRef {
        ProcessRef(AtomicI32::new(compat::my_process_number() + 1))
    }

    /// Says that the present process is the one.
    pub fn set_me(&self) {
        self.0.store(compat::my_process_number() + 1, Ordering::SeqCst);
    }

    /// Says that there is none.
    pub fn clear(&self) {
        self.0.store(0, Ordering::SeqCst);
    }

    /// Whether there is one.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst) != 0
    }

    /// Wakes the process. Raises nothing, allocates nothing: safe where a commit has just happened.
    #[inline]
    pub fn wake(&self) {
        let number = self.0.load(Ordering::Relaxed) - 1;
        // SAFETY: shared memory is attached in every process that has a reference to this entry; `latch_of` checks
        // the number, and setting the latch of a process that is gone is harmless.
        unsafe {
            let latch = compat::latch_of(number);
            if !latch.is_null() {
                compat::unguarded::SetLatch(latch);
            }
        }
    }
}

/// One database that has, or may have, the extension.
#[repr(C)]
pub struct Database {
    oid: AtomicU32,
    /// Ends in the decoder's latch being set at the next commit: the decoder sleeps.
    pub decoder_sleeps: AtomicBool,
    /// A session has committed without waiting for the disk: the decoder should write that there.
    pub unflushed: AtomicBool,
    /// Somebody waits for the frontier to move: the decoder should tell how far it is, at once.
    pub progress_wanted: AtomicBool,
    /// Somebody wants the launcher to look whether workers are needed here.
    pub wanted: AtomicBool,
    /// Somebody committed a DROP EXTENSION here: look whether it is still installed.
    pub recheck: AtomicBool,
    /// Somebody waits for a test: look at `tests`.
    pub tests_asked: AtomicBool,
    /// The segments of those who wait for a test, 0 where there is none.
    pub tests: [AtomicU32; MOST_TESTS],
    /// Somebody committed commands for the dispatcher: read `pgwh_internal.commands`.
    pub commands: AtomicBool,
    /// The pair is to end: set by who quiesces and by a dispatcher that leaves.
    pub stop: AtomicBool,
    /// The dispatcher writes nothing any more but what the decoder tells it: the server goes down.
    pub rests: AtomicBool,
    /// The workers are to end and drop their slot, if nothing is to be sent: set by the launcher for other databases.
    pub give_way: AtomicBool,
    /// No worker process was free for a renderer.
    pub lacks_renderer: AtomicBool,
    /// No worker process was free for the backfiller.
    pub lacks_backfiller: AtomicBool,
    demand: AtomicU32,
    /// Until when a session waits for capture, in nanoseconds of the monotonic clock.
    asked_until: AtomicI64,
    /// How often there was no free worker process or slot.
    pub refusals: AtomicU32,
    /// How many backends are about to drop, rename, move or copy the database.
    pub quiesced: AtomicI32,
    phase: AtomicU32,
    /// The dispatcher.
    pub dispatcher: ProcessRef,
    /// The decoder.
    pub decoder: ProcessRef,
    /// The backfiller.
    pub backfiller: ProcessRef,
    /// The backfiller's process id, 0 for none.
    pub backfiller_pid: AtomicI32,
    /// The backfill of which the backfiller is to read the next chunk; 0 for none, -1 when it is to end.
    pub backfill_order: AtomicI64,
    /// How many bytes of rows it should read.
    pub backfill_bytes: AtomicU32,
    /// The segment of the queue from the backfiller.
    pub backfill_queue: AtomicU32,
    /// The dispatcher's process id, 0 for none.
    pub dispatcher_pid: AtomicI32,
    /// The decoder's process id, 0 for none.
    pub decoder_pid: AtomicI32,
    /// The oid of the extension that the decoder captures for: of an installation, which DROP and CREATE replace.
    pub extension: AtomicU32,
    /// The queue's segment, for the decoder to attach.
    pub queue: AtomicU32,
    /// The segment with the subscriptions' figures, 0 for none.
    pub figures: AtomicU32,
    /// The segment with the deliveries that are being sent, 0 for none.
    pub under_way: AtomicU32,
    /// The segment with what is counted of each subscription, 0 for none.
    pub tallies: AtomicU32,
    /// Up to here nothing is outstanding: what the slot may be confirmed to.
    pub confirmable: AtomicU64,
    /// Up to here the slot is confirmed.
    pub confirmed: AtomicU64,
    /// Up to here the slot's confirmed position is on disk: what a restart begins from is not before.
    pub saved: AtomicU64,
    /// Up to here everything that ended has been handed to the dispatcher.
    pub frontier: AtomicU64,
    /// The server has given up the slot that the new one is to replace.
    pub slot_given_up: AtomicBool,
    /// The first routing image is in its table: the slot may be made permanent.
    pub image_saved: AtomicBool,
    /// An error has ended a process of the pair.
    pub failed: AtomicBool,
    /// How often the pair has failed since it last made progress; paces the restarts.
    pub failures: AtomicU32,
    /// Since when the pair is ready, in nanoseconds of the monotonic clock; 0 while it is not.
    ready_since: AtomicI64,
    /// What was in the log by then.
    ready_at: AtomicU64,
    /// Why the last try failed; empty when it did not.
    pub problem: Note,
    /// Why notifications or system events could not be sent; empty when they could.
    pub notice_problem: Note,
    /// What waits for dynamic shared memory, and why there is none; empty when nothing does.
    pub memory_problem: Note,
    /// What the decoder counts.
    pub decoded: Decoded,
    /// What the dispatcher counts.
    pub dispatched: Dispatched,
}

impl Database {
    /// The database's oid; the invalid one when the entry is free.
    pub fn oid(&self) -> pg_sys::Oid {
        pg_sys::Oid::from(self.oid.load(Ordering::Acquire))
    }

    /// What its workers are doing.
    pub fn phase(&self) -> Phase {
        Phase::from_code(self.phase.load(Ordering::Acquire))
    }

    /// Says what the workers are doing.
    pub fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u32, Ordering::Release);
    }

    /// Whether there is anything to capture changes for.
    pub fn demand(&self) -> Demand {
        match self.demand.load(Ordering::SeqCst) {
            1 => Demand::Nothing,
            2 => Demand::Something,
            _ => Demand::Unknown,
        }
    }

    /// Says whether there is anything to capture changes for.
    pub fn set_demand(&self, demand: Demand) {
        self.demand.store(demand as u32, Ordering::SeqCst);
    }

    /// Says that a session waits for capture, and will need it for some time.
    pub fn ask(&self) {
        self.asked_until.store(monotonic() + ASKED_FOR.as_nanos() as i64, Ordering::SeqCst);
    }

    /// Whether a session waits for capture.
    pub fn is_asked(&self) -> bool {
        self.asked_until.load(Ordering::SeqCst) > monotonic()
    }

    /// Whether any of its processes runs.
    pub fn has_processes(&self) -> bool {
        [&self.dispatcher_pid, &self.decoder_pid, &self.backfiller_pid]
            .iter()
            .any(|pid| pid.load(Ordering::SeqCst) != 0)
    }

    /// Whether its workers run and may be asked to give way to those of other databases.
    pub fn may_give_way(&self) -> bool {
        self.demand() == Demand::Nothing && !self.is_asked() && self.dispatcher.is_set()
    }

    /// Whether its workers give way to those of other databases, or may be asked to: what they have comes free.
    pub fn makes_room(&self) -> bool {
        let goes = || self.give_way.load(Ordering::SeqCst) || self.phase() == Phase::GaveWay;
        self.may_give_way() || self.has_processes() && goes()
    }

    /// Whether its pair runs and lacks a slot, or a process besides the pair.
    pub fn is_short(&self) -> bool {
        let lacks = [&self.lacks_renderer, &self.lacks_backfiller];
        self.phase() == Phase::NoFreeSlot || lacks.iter().any(|lacks| lacks.load(Ordering::SeqCst))
    }

    /// Says that there was no free worker process or slot.
    pub fn refuse(&self, phase: Phase) {
        self.set_phase(phase);
        self.refusals.fetch_add(1, Ordering::SeqCst);
    }

    /// Has the decoder look at the log and tell how far it is.
    pub fn ask_for_progress(&self) {
        self.progress_wanted.store(true, Ordering::SeqCst);
        self.decoder.wake();
    }

    /// Says that changes are captured, from a log that ends there by now.
    pub fn set_ready(&self, end: u64) {
        self.ready_at.store(end, Ordering::SeqCst);
        self.ready_since.store(monotonic(), Ordering::SeqCst);
        self.set_phase(Phase::Ready);
    }

    /// Says that the pair is started again.
    pub fn set_starting(&self) {
        self.ready_since.store(0, Ordering::SeqCst);
        self.failed.store(false, Ordering::SeqCst);
        self.set_phase(Phase::Starting);
    }

    /// Records that an error ends a process of the pair.
    pub fn note_failure(&self, message: &str) {
        self.problem.set(message);
        self.failed.store(true, Ordering::SeqCst);
    }

    /// Whether the pair has been ready since it was started.
    pub fn was_ready(&self) -> bool {
        self.ready_since.load(Ordering::SeqCst) != 0
    }

    /// Whether the pair has made progress since it was started: it has got past all that was in the log, and an error that
    /// comes back after a start has had the time to.
    pub fn is_steady(&self) -> bool {
        let since = self.ready_since.load(Ordering::SeqCst);
        since != 0
            && monotonic() - since >= STEADY_AFTER.as_nanos() as i64
            && self.frontier.load(Ordering::SeqCst) >= self.ready_at.load(Ordering::SeqCst)
    }

    fn reset(&self, oid: pg_sys::Oid) {
        for flag in [
            &self.decoder_sleeps,
            &self.unflushed,
            &self.progress_wanted,
            &self.wanted,
            &self.recheck,
            &self.commands,
            &self.tests_asked,
            &self.stop,
            &self.rests,
            &self.slot_given_up,
            &self.image_saved,
            &self.failed,
            &self.give_way,
            &self.lacks_renderer,
            &self.lacks_backfiller,
        ] {
            flag.store(false, Ordering::SeqCst);
        }
        self.quiesced.store(0, Ordering::SeqCst);
        self.dispatcher.clear();
        self.decoder.clear();
        self.backfiller.clear();
        for number in [&self.backfill_order, &self.ready_since, &self.asked_until] {
            number.store(0, Ordering::SeqCst);
        }
        for number in [&self.dispatcher_pid, &self.decoder_pid, &self.backfiller_pid] {
            number.store(0, Ordering::SeqCst);
        }
        for number in [
            &self.phase,
            &self.extension,
            &self.queue,
            &self.backfill_queue,
            &self.figures,
            &self.under_way,
            &self.tallies,
            &self.failures,
            &self.demand,
            &self.refusals,
            &self.problem.length,
            &self.notice_problem.length,
            &self.memory_problem.length,
        ] {
            number.store(0, Ordering::SeqCst);
        }
        self.tests.iter().for_each(|place| place.store(0, Ordering::SeqCst));
        for lsn in [&self.confirmable, &self.confirmed, &self.saved, &self.frontier, &self.ready_at] {
            lsn.store(0, Ordering::SeqCst);
        }
        self.decoded.reset();
        self.dispatched.reset();
        self.oid.store(oid.to_u32(), Ordering::SeqCst);
    }
}

/// The whole table.
#[repr(C)]
pub struct Shared {
    /// The launcher.
    pub launcher: ProcessRef,
    /// The launcher's process id, 0 for none.
    pub launcher_pid: AtomicI32,
    /// Changes whenever an entry is claimed or freed: what commits compare their memory of the table with.
    pub generation: AtomicU32,
    /// Transactions that were prepared after asking for something at their commit have begun before this xid, see `prepared.rs`.
    pub prepared_before: AtomicU64,
    databases: [Database; MAX_DATABASES],
}

static SHARED: AtomicPtr<Shared> = AtomicPtr::new(ptr::null_mut());

/// Asks for the memory and the lock; called while the server loads its preloaded libraries.
pub fn request() {
    // SAFETY: called from shmem_request_hook, where both may be asked for.
    unsafe {
        pg_sys::RequestAddinShmemSpace(size_of::<Shared>());
        pg_sys::RequestNamedLWLockTranche(NAME.as_ptr(), 1);
    }
}

/// Finds or makes the table; called when the server's shared memory is set up.
pub fn attach() {
    // SAFETY: called from shmem_startup_hook. Zeroed memory is a valid, empty table: every field is an atomic or bytes.
    unsafe {
        let mut found = false;
        let lock = &raw mut (*pg_sys::MainLWLockArray.add(ADDIN_SHMEM_INIT_LOCK)).lock;
        pg_sys::LWLockAcquire(lock, pg_sys::LWLockMode::LW_EXCLUSIVE);
        let shared = pg_sys::ShmemInitStruct(NAME.as_ptr(), size_of::<Shared>(), &mut found).cast::<Shared>();
        if !found {
            ptr::write_bytes(shared, 0, 1);
        }
        pg_sys::LWLockRelease(lock);
        SHARED.store(shared, Ordering::Release);
    }
}

/// `AddinShmemInitLock` in the array of individual locks (`storage/lwlocknames.txt`), the same in all majors.
const ADDIN_SHMEM_INIT_LOCK: usize = 21;

/// The table; none when the library was not preloaded.
pub fn shared() -> Option<&'static Shared> {
    // SAFETY: once set, the pointer stays good for the life of the process, and all fields are shared safely.
    unsafe { SHARED.load(Ordering::Acquire).as_ref() }
}

fn with_lock<T>(action: impl FnOnce() -> T) -> T {
    // SAFETY: the tranche was asked for at preload; the lock is held for a few instructions that cannot raise.
    unsafe {
        let lock = &raw mut (*pg_sys::GetNamedLWLockTranche(NAME.as_ptr())).lock;
        pg_sys::LWLockAcquire(lock, pg_sys::LWLockMode::LW_EXCLUSIVE);
        let result = action();
        pg_sys::LWLockRelease(lock);
        result
    }
}

impl Shared {
    /// The entries in use.
    pub fn databases(&self) -> impl Iterator<Item = &Database> {
        self.databases.iter().filter(|database| database.oid() != pg_sys::InvalidOid)
    }

    /// The entry of a database, if it has one.
    pub fn find(&self, oid: pg_sys::Oid) -> Option<&Database> {
        self.databases().find(|database| database.oid() == oid)
    }

    /// The entry of a database, claimed if it has none; none when the table is full.
    /// The launcher is going to look at it, so that it isn't freed before.
    pub fn claim(&self, oid: pg_sys::Oid) -> Option<&Database> {
        with_lock(|| {
            let database = match self.find(oid) {
                Some(known) => known,
                None => {
                    let free = self.databases.iter().find(|database| database.oid() == pg_sys::InvalidOid)?;
                    free.reset(oid);
                    self.generation.fetch_add(1, Ordering::SeqCst);
                    free
                }
            };
            database.wanted.store(true, Ordering::SeqCst);
            Some(database)
        })
    }

    /// Frees the entry of a database that needs no workers, unless somebody has asked for them meanwhile.
    pub fn free(&self, database: &Database) {
        with_lock(|| {
            if !database.wanted.load(Ordering::SeqCst) && database.quiesced.load(Ordering::SeqCst) == 0 {
                database.reset(pg_sys::InvalidOid);
                self.generation.fetch_add(1, Ordering::SeqCst);
            }
        });
    }

    /// Asks the launcher to see to a database, and returns its entry; none when the table is full.
    pub fn ring(&self, oid: pg_sys::Oid) -> Option<&Database> {
        let database = self.claim(oid);
        self.launcher.wake();
        database
    }
}

/// The entry of the database this process is connected to, if it has one.
pub fn my_database() -> Option<&'static Database> {
    // SAFETY: reads a global of this process.
    let oid = unsafe { pg_sys::MyDatabaseId };
    shared()?.find(oid)
}

/// Asks the workers of a database to end.
pub fn ask_to_stop(database: &Database) {
    database.stop.store(true, Ordering::SeqCst);
    database.dispatcher.wake();
    database.decoder.wake();
    database.backfiller.wake();
}

/// Logs that there is none for something besides capture, and has the launcher look for one.
pub fn warn_of_no_worker(purpose: &str) {
    ErrorReport::new(
        PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
        format!("pgstream_hooks: there is no free worker process {purpose}"),
        "pgstream_hooks",
    )
    .set_detail(format!("All of max_worker_processes, which is {}, are in use.", bgworker::max_workers()))
    .set_hint(bgworker::hint_for_more_workers())
    .report(PgLogLevel::WARNING);
    if let Some(shared) = shared() {
        shared.launcher.wake();
    }
}
