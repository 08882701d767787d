//! A limit to the time that something of a user's may take, such as a filter or a function: its query is cancelled then.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pgrx::pg_sys;

use super::compat;

static TIME_IS_UP: AtomicBool = AtomicBool::new(false);

/// Cancels what this process runs when the time is up. One at a time.
pub struct TimeLimit(i32);

impl TimeLimit {
    /// Begins.
    pub fn start(limit: Duration) -> TimeLimit {
        static ID: OnceLock<i32> = OnceLock::new();
        // SAFETY: the handler does what one may do in a signal handler.
        let timeout = *ID.get_or_init(|| unsafe { compat::register_timeout(cancel) });
        TIME_IS_UP.store(false, Ordering::SeqCst);
        compat::enable_timeout(timeout, limit.as_millis().clamp(1, i32::MAX as u128) as i32);
        TimeLimit(timeout)
    }

    /// Ends; whether the time was up. A cancellation that came too late is forgotten.
    pub fn stop(self) -> bool {
        compat::disable_timeout(self.0);
        let was_up = TIME_IS_UP.swap(false, Ordering::SeqCst);
        if was_up {
            // SAFETY: a flag of this process that nobody else sets any more.
            unsafe { pg_sys::QueryCancelPending = 0 };
        }
        was_up
    }
}

/// Whether what is being cancelled has had its time.
pub fn is_up() -> bool {
    TIME_IS_UP.load(Ordering::SeqCst)
}

/// As a query that its user cancels (`StatementCancelHandler`, postgres.c).
unsafe extern "C-unwind" fn cancel() {
    TIME_IS_UP.store(true, Ordering::SeqCst);
    // SAFETY: flags that signal handlers set.
    unsafe {
        pg_sys::QueryCancelPending = 1;
        pg_sys::InterruptPending = 1;
    }
}

/// How long processors have been at work for this thread so far. Takes a call of the kernel.
pub fn processor_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: fills in what it is given; where it cannot, it is nothing.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
