//! Going down with the server: what was committed is journaled first, and the slot confirmed behind it.
//!
//! So nothing is captured again afterwards, and `pg_upgrade`, which carries over a slot only if nothing is left to be
//! decoded (`pg_upgrade/check.c`, check_old_cluster_for_valid_slots), finds it so. Whoever else ends a worker ends it at
//! once.

use std::sync::atomic::{AtomicI64, AtomicPtr, Ordering};
use std::time::{Duration, Instant};

use pgrx::pg_sys;

use super::clock::monotonic;
use crate::pg::compat;

/// How long a server that goes down may have to wait for us.
const PATIENCE: Duration = Duration::from_secs(5);
/// See [`others_may_commit`].
const SESSIONS_END_WITHIN: Duration = Duration::from_millis(500);

/// Where the postmaster writes what it is doing, by line (`utils/pidfile.h`, LOCK_FILE_LINE_PM_STATUS and PM_STATUS_STOPPING).
/// It writes so before it signals anybody.
const LOCK_FILE: &std::ffi::CStr = c"postmaster.pid";
const STATUS_LINE: usize = 8;
const STOPPING: &[u8] = b"stopping";

/// When the time is up, in nanoseconds of the monotonic clock; 0 while nobody has asked.
static UNTIL: AtomicI64 = AtomicI64::new(0);
static TIMER: AtomicPtr<libc::c_void> = AtomicPtr::new(std::ptr::null_mut());

/// Lets this worker finish when the server is shut down. Once, after the ordinary handlers are installed.
pub fn prepare() {
    // SAFETY: the event is complete. When the time is up, the process gets the signal again and ends at once.
    unsafe {
        let mut event: libc::sigevent = std::mem::zeroed();
        event.sigev_notify = libc::SIGEV_SIGNAL;
        event.sigev_signo = libc::SIGTERM;
        let mut timer = std::ptr::null_mut();
        if libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer) == 0 {
            TIMER.store(timer, Ordering::Relaxed);
            compat::handle_sigterm::<OnSigterm>();
        }
    }
}

/// Whether the server is going down and this worker has to finish.
pub fn is_asked() -> bool {
    UNTIL.load(Ordering::Relaxed) != 0
}

/// Whether sessions of the database may still commit, `since` the server began to go down. They are ended as we are; those
/// that are there for longer are walsenders, which go last.
pub fn others_may_commit(database: pg_sys::Oid, since: Instant) -> bool {
    // SAFETY: looks through shared memory under its lock; background workers are not counted.
    since.elapsed() < SESSIONS_END_WITHIN && unsafe { pg_sys::CountDBConnections(database) } > 0
}

/// Calls only what a signal handler may call (signal-safety(7)), and what Postgres' own call.
///
/// The postmaster signals each process and its group (`postmaster/postmaster.c`, signal_child), which is twice to one that
/// runs; so only the signal that comes when the time is up ends what has begun.
struct OnSigterm;

impl compat::OnSignal for OnSigterm {
    unsafe fn handle(signal: compat::Signal) {
        // SAFETY: `die` is the server's own handler; the timer was made before the handler was installed.
        unsafe {
            let errno = *libc::__errno_location();
            let until = UNTIL.load(Ordering::Relaxed);
            if until == 0 && server_goes_down() {
                UNTIL.store(monotonic() + PATIENCE.as_nanos() as i64, Ordering::Relaxed);
                let mut time: libc::itimerspec = std::mem::zeroed();
                time.it_value.tv_sec = PATIENCE.as_secs() as _;
                libc::timer_settime(TIMER.load(Ordering::Relaxed), 0, &time, std::ptr::null_mut());
                compat::unguarded::SetLatch(pg_sys::MyLatch);
            } else if monotonic() >= until {
                compat::die(signal);
            }
            *libc::__errno_location() = errno;
        }
    }
}

/// Whether the postmaster says that it stops.
fn server_goes_down() -> bool {
    let mut text = [0u8; 1024];
    // SAFETY: the working directory is the data directory, and the buffer is as long as is said.
    let length = unsafe {
        let file = libc::open(LOCK_FILE.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        if file < 0 {
            return false;
        }
        let length = libc::read(file, text.as_mut_ptr().cast(), text.len());
        libc::close(file);
        length
    };
    let text = &text[..usize::try_from(length).unwrap_or(0)];
    text.split(|byte| *byte == b'\n').nth(STATUS_LINE - 1).is_some_and(|line| line.starts_with(STOPPING))
}
