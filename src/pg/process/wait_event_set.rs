//! How the dispatcher sleeps: on its latch and on the senders' bell together, in a set made once.

use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use pgrx::pg_sys;

use crate::pg::compat;

/// What the dispatcher waits on.
pub struct WaitSet(*mut pg_sys::WaitEventSet);

impl WaitSet {
    /// Waits on the latch, the postmaster's death and `bell`, which must stay open.
    pub fn new(bell: RawFd) -> WaitSet {
        let set = compat::create_wait_set(3);
        // SAFETY: the set is new and has room for three.
        unsafe {
            let add = |events: u32, fd: RawFd, latch| {
                pg_sys::AddWaitEventToSet(set, events, fd, latch, std::ptr::null_mut())
            };
            add(pg_sys::WL_LATCH_SET, pg_sys::PGINVALID_SOCKET, pg_sys::MyLatch);
            add(pg_sys::WL_EXIT_ON_PM_DEATH, pg_sys::PGINVALID_SOCKET, std::ptr::null_mut());
            add(pg_sys::WL_SOCKET_READABLE, bell, std::ptr::null_mut());
        }
        WaitSet(set)
    }

    /// Sleeps until something happens or `until` has come, and at most for `longest`.
    pub fn wait(&mut self, until: Option<Instant>, longest: Duration) {
        let left =
            until.map_or(longest, |until| until.saturating_duration_since(Instant::now()).min(longest));
        // Up to the next millisecond, so as not to wake before the time.
        let milliseconds = left.as_micros().div_ceil(1000);
        // SAFETY: there is room for one event, and the set is live.
        unsafe {
            let mut event = pg_sys::WaitEvent::default();
            pg_sys::WaitEventSetWait(self.0, milliseconds as _, &mut event, 1, pg_sys::PG_WAIT_EXTENSION);
            pg_sys::ResetLatch(pg_sys::MyLatch);
        }
    }
}
