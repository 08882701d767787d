//! What our background workers have in common: how they start, wait, take settings and run a transaction.

use std::ffi::{CStr, CString};
use std::panic::{AssertUnwindSafe, RefUnwindSafe};
use std::time::Duration;

use pgrx::pg_sys::panic::CaughtError;
use pgrx::{PgTryBuilder, pg_sys};

use crate::delivery::ProcessorTime;
use crate::gucs;
use crate::pg::compat;
use crate::pg::subtransaction::{Raised, raised};
use crate::pg::values::encoding;

/// Settings every worker pins for itself, since it would inherit `ALTER DATABASE … SET` and `ALTER ROLE … SET`.
/// No time limit may end a worker that waits. Values and filters must mean the same everywhere, which
/// [`compat::SETTINGS_OF_FILTERS`] sees to.
const PINNED: &[(&CStr, &CStr)] = &[
    (c"statement_timeout", c"0"),
    (c"lock_timeout", c"0"),
    (c"idle_in_transaction_session_timeout", c"0"),
    (c"idle_session_timeout", c"0"),
    (c"transaction_timeout", c"0"),
    (c"default_transaction_read_only", c"off"),
    (c"default_transaction_isolation", c"read committed"),
    (c"default_transaction_deferrable", c"off"),
    (c"row_security", c"off"),
    (c"jit", c"off"),
    (c"max_parallel_workers_per_gather", c"0"),
    (c"session_replication_role", c"origin"),
    // What workers note is no statement of a user's, and has rows as parameters.
    (c"pgaudit.log", c"none"),
    (c"pgaudit.role", c""),
    (c"auto_explain.log_min_duration", c"-1"),
    (c"debug_print_parse", c"off"),
    (c"debug_print_rewritten", c"off"),
    (c"debug_print_plan", c"off"),
    (c"exit_on_error", c"off"),
    (c"restrict_nonsystem_relation_kind", c""),
    // After `session_authorization`, which see `pin_identity`.
    (c"role", c"none"),
];

/// Where the server looks for libraries.
const LIBRARY_PATH: &CStr = c"dynamic_library_path";

/// Connects the worker to its database, also to one that refuses connections, and pins its settings.
pub fn connect(database: pg_sys::Oid) {
    let library_path = own_library_path();
    // SAFETY: called once, first thing in a background worker's main function.
    unsafe {
        pg_sys::BackgroundWorkerInitializeConnectionByOid(
            database,
            pg_sys::InvalidOid,
            pg_sys::BGWORKER_BYPASS_ALLOWCONN,
        );
    }
    pin_identity();
    pin(&compat::SETTINGS_OF_FILTERS);
    pin(PINNED);
    pin(&[(LIBRARY_PATH, &library_path)]);
    set_log_level();
}

/// The path on which the server found this library, where decoding looks for it as for any output plugin. Before the worker
/// has a database, and with it a path of that one's.
fn own_library_path() -> CString {
    // SAFETY: the setting is a string of this process, which is copied.
    unsafe {
        let path = pg_sys::GetConfigOption(LIBRARY_PATH.as_ptr(), true, false);
        if path.is_null() { CString::default() } else { CStr::from_ptr(path).to_owned() }
    }
}

/// Makes the session user the role that the worker was started as, whatever `session_authorization` is set for the
/// database. Outside of any transaction.
fn pin_identity() {
    in_bare_transaction(|| {
        // SAFETY: reads globals of this process and the system cache; the name lives as long as the transaction, and the
        // setting, which cannot be checked outside of one, keeps a copy of its own.
        unsafe {
            let role = pg_sys::GetAuthenticatedUserId();
            if pg_sys::GetSessionUserId() != role {
                let name = pg_sys::GetUserNameFromId(role, false);
                pg_sys::SetConfigOption(
                    c"session_authorization".as_ptr(),
                    name,
                    pg_sys::GucContext::PGC_SUSET,
                    pg_sys::GucSource::PGC_S_OVERRIDE,
                );
            }
        }
    });
}

/// Has this process log what `pgwh.log_level` says. Outside of any transaction.
pub fn set_log_level() {
    pin(&[(c"log_min_messages", gucs::log_level())]);
}

/// Pins settings for the life of the process; those that this server doesn't have are passed over.
pub fn pin(settings: &[(&CStr, &CStr)]) {
    for (name, value) in settings {
        // SAFETY: outside any transaction, so that the values outlive each; the server copies them.
        unsafe {
            if !pg_sys::GetConfigOption(name.as_ptr(), true, false).is_null() {
                pg_sys::SetConfigOption(
                    name.as_ptr(),
                    value.as_ptr(),
                    pg_sys::GucContext::PGC_SUSET,
                    pg_sys::GucSource::PGC_S_OVERRIDE,
                );
            }
        }
    }
}

/// Runs the action in a transaction of its own, with a snapshot. An ERROR inside ends the process.
pub fn in_transaction<T>(action: impl FnOnce() -> T) -> T {
    // SAFETY: workers run no transaction around this one; the calls pair up.
    unsafe {
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        let result = action();
        pg_sys::PopActiveSnapshot();
        pg_sys::CommitTransactionCommand();
        result
    }
}

/// Runs the action, whose transactions commit without waiting for the disk: they are there when a later one is that waits,
/// or after [`flush_commits`]. An ERROR inside ends the process.
pub fn without_waiting_for_disk<T>(action: impl FnOnce() -> T) -> T {
    // SAFETY: globals of this process.
    let before = unsafe { pg_sys::synchronous_commit };
    // SAFETY: as above; a setting pinned by SetConfigOption is changed for good, also by SET LOCAL.
    unsafe { pg_sys::synchronous_commit = pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_OFF as _ };
    let done = action();
    // SAFETY: as above.
    unsafe { pg_sys::synchronous_commit = before };
    done
}

/// Waits until what this process committed last is on disk.
pub fn flush_commits() {
    // SAFETY: the end of this process' last commit record, which is in write-ahead log.
    unsafe { pg_sys::XLogFlush(pg_sys::XactLastCommitEnd) };
}

/// Tells the server's statistics what this process did to tables, at most once a second; in how long to come again, if it
/// was too early. Outside of any transaction.
pub fn report_statistics() -> Option<Duration> {
    // SAFETY: workers call this between transactions.
    let wait = unsafe { pg_sys::pgstat_report_stat(false) };
    u64::try_from(wait).ok().filter(|wait| *wait > 0).map(Duration::from_millis)
}

/// Tells `pg_stat_activity` what the process does.
pub fn report_busy(what: &CStr) {
    report(pg_sys::BackendState::STATE_RUNNING, what);
}

/// Tells `pg_stat_activity` what the process waits for.
pub fn report_idle(what: &CStr) {
    report(pg_sys::BackendState::STATE_IDLE, what);
}

fn report(state: pg_sys::BackendState::Type, what: &CStr) {
    // SAFETY: copies the string into the process' own entry.
    unsafe { pg_sys::pgstat_report_activity(state, what.as_ptr()) };
}

/// Sleeps until the latch is set or the time has passed; without a time, until the latch is set. Then sees to
/// interrupts and to a changed configuration; returns whether the configuration changed.
pub fn sleep(timeout: Option<Duration>) -> bool {
    let (flags, milliseconds) = match timeout {
        Some(time) => (pg_sys::WL_TIMEOUT, time.as_millis().clamp(1, 86_400_000) as _),
        None => (0, -1),
    };
    // SAFETY: the latch is the process' own.
    unsafe {
        pg_sys::WaitLatch(
            pg_sys::MyLatch,
            (pg_sys::WL_LATCH_SET | pg_sys::WL_EXIT_ON_PM_DEATH | flags) as _,
            milliseconds,
            pg_sys::PG_WAIT_EXTENSION,
        );
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
    see_to_interrupts()
}

/// Ends the process if it was told to, and rereads the configuration if it changed; returns whether it did.
pub fn see_to_interrupts() -> bool {
    pgrx::check_for_interrupts!();
    // SAFETY: a flag of this process that its SIGHUP handler sets.
    unsafe {
        if pg_sys::ConfigReloadPending == 0 {
            return false;
        }
        pg_sys::ConfigReloadPending = 0;
        pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
    }
    set_log_level();
    true
}

/// By how much HINTs raise `max_worker_processes`.
const MORE_WORKERS: i32 = 8;

/// How many worker processes are free. One that is just being started counts as free.
pub fn free_workers() -> usize {
    // SAFETY: reads settings that only a restart changes; shared memory is attached. Processes stand in the order of
    // `InitProcGlobal`: background workers before walsenders, which are the last.
    unsafe {
        let end = pg_sys::MaxBackends - pg_sys::max_wal_senders;
        (end - pg_sys::max_worker_processes..end).filter(|number| compat::is_free(*number)).count()
    }
}

/// How many worker processes there may be.
pub fn max_workers() -> i32 {
    // SAFETY: reads a setting that only a restart changes.
    unsafe { pg_sys::max_worker_processes }
}

/// The name of a database, in quotes. Outside of any transaction.
pub fn database_name(database: pg_sys::Oid) -> String {
    in_bare_transaction(|| {
        // SAFETY: a syscache look-up in a shared catalog, inside a transaction; the name is a copy, or null.
        unsafe {
            let name = pg_sys::get_database_name(database);
            let name = if name.is_null() { c"" } else { CStr::from_ptr(name) };
            format!("\"{}\"", encoding::in_error(name.to_string_lossy().into_owned()))
        }
    })
}

/// What to type when there are too few.
pub fn hint_for_more_workers() -> String {
    format!(
        "ALTER SYSTEM SET max_worker_processes = {}; and restart the server.",
        max_workers() + MORE_WORKERS
    )
}

/// Starts a dynamic background worker; none when all worker processes are taken.
///
/// The handle must be kept as long as the worker's fate is of interest.
pub fn start_worker(kind: &str, function: &str, database: pg_sys::Oid) -> Option<WorkerHandle> {
    start_worker_with(kind, function, database, 0)
}

/// As [`start_worker`]; the worker finds `extra` by [`extra`].
pub fn start_worker_with(
    kind: &str,
    function: &str,
    database: pg_sys::Oid,
    extra: u32,
) -> Option<WorkerHandle> {
    let mut worker = describe(kind, function, pg_sys::BGW_NEVER_RESTART);
    worker.bgw_flags |= pg_sys::BGWORKER_BACKEND_DATABASE_CONNECTION as i32;
    worker.bgw_main_arg = pg_sys::Datum::from(database.to_u32());
    for (to, from) in worker.bgw_extra.iter_mut().zip(extra.to_ne_bytes()) {
        *to = from as _;
    }
    // SAFETY: the description is complete; the notification goes to this process.
    unsafe {
        worker.bgw_notify_pid = pg_sys::MyProcPid;
        let previous = pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
        let mut handle = std::ptr::null_mut();
        let started = pg_sys::RegisterDynamicBackgroundWorker(&mut worker, &mut handle);
        pg_sys::MemoryContextSwitchTo(previous);
        // Not `then_some`: a handle that was never made must not be dropped.
        started.then(|| WorkerHandle(handle))
    }
}

/// What who started this worker gave it along.
pub fn extra() -> u32 {
    // SAFETY: a background worker has its entry, which nobody changes.
    let bytes = unsafe { (*pg_sys::MyBgworkerEntry).bgw_extra };
    u32::from_ne_bytes([0, 1, 2, 3].map(|n| bytes[n] as u8))
}

/// Describes a worker of this library.
pub fn describe(kind: &str, function: &str, restart_seconds: i32) -> pg_sys::BackgroundWorker {
    let mut worker = pg_sys::BackgroundWorker {
        bgw_flags: pg_sys::BGWORKER_SHMEM_ACCESS as i32,
        bgw_start_time: pg_sys::BgWorkerStartTime::BgWorkerStart_RecoveryFinished,
        bgw_restart_time: restart_seconds,
        ..Default::default()
    };
    let title = format!("pgstream_hooks {kind}");
    copy_name(&mut worker.bgw_name, &title);
    copy_name(&mut worker.bgw_type, &title);
    copy_name(&mut worker.bgw_library_name, "pgstream_hooks");
    copy_name(&mut worker.bgw_function_name, function);
    worker
}

fn copy_name(target: &mut [std::ffi::c_char], name: &str) {
    let name = CString::new(name).unwrap_or_default();
    for (to, from) in target.iter_mut().zip(name.as_bytes_with_nul()) {
        *to = *from as _;
    }
}

/// A background worker that this process started.
pub struct WorkerHandle(*mut pg_sys::BackgroundWorkerHandle);

impl WorkerHandle {
    /// Whether the worker has ended (or could never start).
    pub fn has_ended(&self) -> bool {
        let mut pid = 0;
        // SAFETY: the handle was made by RegisterDynamicBackgroundWorker and is freed only on drop.
        let status = unsafe { pg_sys::GetBackgroundWorkerPid(self.0, &mut pid) };
        !matches!(
            status,
            pg_sys::BgwHandleStatus::BGWH_STARTED | pg_sys::BgwHandleStatus::BGWH_NOT_YET_STARTED
        )
    }

    /// Sends the worker SIGTERM.
    pub fn terminate(&self) {
        // SAFETY: as above.
        unsafe { pg_sys::TerminateBackgroundWorker(self.0) };
    }
}

impl Drop for WorkerHandle {
    fn drop(&mut self) {
        // SAFETY: allocated by RegisterDynamicBackgroundWorker; nobody else has it.
        unsafe { pg_sys::pfree(self.0.cast()) };
    }
}

/// The name that the slot of this database gets when nobody has chosen one: its installation tells it from the slot of another
/// database that had the same oid.
pub fn default_slot_name(database: pg_sys::Oid, installation: &str) -> CString {
    let short: String = installation.chars().filter(char::is_ascii_hexdigit).take(8).collect();
    CString::new(format!("pgwh_{}_{short}", database.to_u32())).unwrap_or_default()
}

/// Waits a moment in a backend, without losing a wake-up meant for somebody else's wait on the same latch.
pub fn pause(time: Duration) {
    // SAFETY: the latch is the process' own.
    unsafe {
        let flags = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
        let events = pg_sys::WaitLatch(
            pg_sys::MyLatch,
            flags as _,
            time.as_millis().max(1) as _,
            pg_sys::PG_WAIT_EXTENSION,
        );
        if events & pg_sys::WL_LATCH_SET as i32 != 0 {
            pg_sys::ResetLatch(pg_sys::MyLatch);
        }
    }
    pgrx::check_for_interrupts!();
}

/// Runs the action in a transaction of its own that takes no snapshot but what catalog scans take.
pub fn in_bare_transaction<T>(action: impl FnOnce() -> T) -> T {
    // SAFETY: workers run no transaction around this one; the calls pair up.
    unsafe {
        pg_sys::StartTransactionCommand();
        let result = action();
        pg_sys::CommitTransactionCommand();
        result
    }
}

/// Runs the action; an ERROR that ends it is told before it is thrown on.
pub fn on_failure(tell: impl Fn(&str) + RefUnwindSafe, action: impl FnOnce()) {
    PgTryBuilder::new(AssertUnwindSafe(action))
        .catch_others(|error| {
            match &error {
                CaughtError::PostgresError(report)
                | CaughtError::ErrorReport(report)
                | CaughtError::RustPanic { ereport: report, .. } => tell(report.message()),
            }
            error.rethrow()
        })
        .execute();
}

/// Runs the action, which runs a transaction of its own and waits for locks at most so long: an ERROR in it, also one that
/// its commit raises, ends that transaction only.
pub fn attempt<T>(lock_timeout: Duration, action: impl FnOnce() -> T) -> Result<T, Raised> {
    // SAFETY: no transaction runs around this; a failed one is aborted, and the rest is as it was.
    unsafe {
        let context = pg_sys::CurrentMemoryContext;
        let before = pg_sys::LockTimeout;
        pg_sys::LockTimeout = lock_timeout.as_millis() as i32;
        let result = PgTryBuilder::new(AssertUnwindSafe(|| Ok(action())))
            .catch_others(|error| Err(Box::new(error)))
            .execute();
        pg_sys::LockTimeout = before;
        if result.is_err() {
            pg_sys::AbortCurrentTransaction();
            pg_sys::MemoryContextSwitchTo(context);
        }
        result.map_err(|error| raised(*error))
    }
}

/// The processor time of a process, as the kernel counts it (`Documentation/scheduler/sched-stats.rst`); none where it
/// doesn't.
pub fn processor_time(pid: i32) -> Option<ProcessorTime> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).ok()?;
    let mut numbers = text.split_whitespace().map_while(|number| number.parse::<u64>().ok());
    let (ran, waited, times) = (numbers.next()?, numbers.next()?, numbers.next()?);
    let (ran, waited) = (Duration::from_nanos(ran), Duration::from_nanos(waited));
    Some(ProcessorTime { ran, waited, times: times as u32 })
}

thread_local! {
    static ON_EXIT: std::cell::Cell<Option<fn()>> = const { std::cell::Cell::new(None) };
}

/// Has the action run when this process ends, however it ends, while shared memory is still attached.
pub fn at_exit(action: fn()) {
    ON_EXIT.set(Some(action));
    // SAFETY: the callback is a function of this library; it runs before the process leaves shared memory.
    unsafe { pg_sys::before_shmem_exit(Some(run_at_exit), pg_sys::Datum::null()) };
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn run_at_exit(_code: std::ffi::c_int, _argument: pg_sys::Datum) {
    if let Some(action) = ON_EXIT.take() {
        action();
    }
}
