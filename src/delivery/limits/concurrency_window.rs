//! How many requests an endpoint stands at once.

use std::time::{Duration, Instant};

/// The longest that an endpoint is left alone which says 429 without `Retry-After`, over and over.
const LONGEST_HOLD: Duration = Duration::from_secs(60);

/// Requests at once: from 1 on, doubled by each clean round, halved by a time-out or when the endpoint is busy.
pub(crate) struct Window {
    size: u32,
    /// Successes since the size last changed.
    clean: u32,
    /// Failures of requests from before this are an echo of the one that halved it.
    halved_at: Option<Instant>,
    /// Answers in a row that asked to be left alone.
    busy: u32,
}

impl Default for Window {
    fn default() -> Self {
        Window { size: 1, clean: 0, halved_at: None, busy: 0 }
    }
}

impl Window {
    /// How many requests may be under way, at most `max`.
    pub fn size(&self, max: u32) -> usize {
        self.size.min(max.max(1)) as usize
    }

    /// A request got through.
    pub fn succeeded(&mut self, max: u32) {
        self.busy = 0;
        self.clean += 1;
        if self.clean >= self.size {
            self.clean = 0;
            self.size = self.size.saturating_mul(2).min(max.max(1));
        }
    }

    /// A request that was sent then timed out, or met a busy endpoint.
    pub fn halve(&mut self, sent_at: Instant, now: Instant) {
        self.clean = 0;
        if self.halved_at.is_none_or(|halved_at| sent_at >= halved_at) {
            self.size = (self.size / 2).max(1);
            self.halved_at = Some(now);
        }
    }

    /// From the start again.
    pub fn reset(&mut self) {
        (self.size, self.clean) = (1, 0);
    }

    /// For how long to leave an endpoint alone that is busy: as long as it says, or 1 s, 2 s, 4 s, … up to a minute,
    /// plus up to a quarter so that not all come back at once.
    pub fn hold(&mut self, retry_after: Option<Duration>, jitter: u32) -> Duration {
        let own = Duration::from_secs(1 << self.busy.min(6)).min(LONGEST_HOLD);
        self.busy = self.busy.saturating_add(1);
        let delay = retry_after.unwrap_or(own).min(super::retry_schedule::LONGEST_RETRY_AFTER);
        delay + own.mul_f64(0.25 * f64::from(jitter) / f64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_by_a_clean_round_and_halves_once_for_one_trouble() {
        let (start, mut window) = (Instant::now(), Window::default());
        let at = |seconds| start + Duration::from_secs(seconds);
        let sizes: Vec<usize> = (0..32).map(|_| (window.size(16), window.succeeded(16)).0).collect();
        assert_eq!((sizes[0], sizes[1], sizes[3], sizes[7], sizes[15]), (1, 2, 4, 8, 16));
        window.halve(at(1), at(5));
        window.halve(at(2), at(5));
        window.halve(at(3), at(6));
        assert_eq!(window.size(16), 8);
        window.halve(at(6), at(7));
        assert_eq!((window.size(16), window.size(3)), (4, 3));
    }

    #[test]
    fn a_busy_endpoint_is_left_alone_longer_and_longer_or_as_long_as_it_says() {
        let mut window = Window::default();
        let holds: Vec<u64> = (0..9).map(|_| window.hold(None, 0).as_secs()).collect();
        assert_eq!(holds, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(window.hold(Some(Duration::from_secs(120)), 0).as_secs(), 120);
        window.succeeded(4);
        assert_eq!(window.hold(None, u32::MAX).as_millis(), 1250);
    }
}
