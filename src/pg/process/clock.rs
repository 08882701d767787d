//! The time of day for what is shown and kept; what waits, waits by instants.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::event::Timestamp;

/// Now.
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix_micros(since.as_micros() as i64)
}

/// Nanoseconds of a clock that all processes of the machine share and that nobody sets. A signal handler may ask.
pub fn monotonic() -> i64 {
    // SAFETY: the time is written before it is read.
    unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time);
        time.tv_sec * 1_000_000_000 + time.tv_nsec
    }
}

/// So long ago.
pub fn before_now(time: Duration) -> Timestamp {
    Timestamp(now().0.saturating_sub(time.as_micros() as i64))
}

/// How long it is from one time to another; nothing if that is before.
pub fn between(from: Timestamp, to: Timestamp) -> Duration {
    Duration::from_micros(u64::try_from(to.0.saturating_sub(from.0)).unwrap_or_default())
}

/// The time of day at instants, as of one look at both clocks.
pub struct Clock {
    instant: Instant,
    time: Timestamp,
}

impl Clock {
    /// Looks at the clocks.
    pub fn now() -> Clock {
        Clock { instant: Instant::now(), time: now() }
    }

    /// The time of day at an instant.
    pub fn at(&self, instant: Instant) -> Timestamp {
        let ahead = instant.saturating_duration_since(self.instant).as_micros() as i64;
        let behind = self.instant.saturating_duration_since(instant).as_micros() as i64;
        Timestamp(self.time.0 + ahead - behind)
    }
}
