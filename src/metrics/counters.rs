//! What becomes of deliveries, counted as it happens: one writer, any readers, no lock.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::histogram::{Buckets, Histogram, add};
use crate::event::Timestamp;

/// The values of `error_class`; what is none of them counts as the last.
pub const ERROR_CLASSES: [&str; 16] = [
    "dns",
    "connect",
    "tls",
    "timeout",
    "reset",
    "blocked",
    "http_3xx",
    "http_4xx",
    "http_5xx",
    "too_large",
    "filter",
    "transform",
    "route",
    "encode",
    "denied",
    "other",
];
/// Those of them by which no request was made.
const UNSENT: [&str; 5] = ["filter", "transform", "route", "encode", "denied"];
const CLASSES: usize = ERROR_CLASSES.len();

/// Upper bounds of the buckets of how long requests take, in seconds.
pub const REQUEST_BOUNDS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0];
/// Upper bounds of the buckets of how long it takes from commit to delivery, in seconds.
pub const DELIVERY_BOUNDS: [f64; 17] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0, 3600.0,
    86_400.0,
];

/// The time over which the rate is an average: what happened so long ago weighs 1/e.
const RATE_SECONDS: f64 = 10.0;
/// Within so many microseconds what has happened is not faded; at most 1 % off.
const RATE_STEP: i64 = 100_000;

/// Counters of one subscription, or of several together. All zero is empty.
#[derive(Default)]
#[repr(C)]
pub struct Tally {
    succeeded: AtomicU64,
    failed: [AtomicU64; CLASSES],
    retries: AtomicU64,
    delivered: AtomicU64,
    dead: [AtomicU64; CLASSES],
    skipped: AtomicU64,
    dropped: AtomicU64,
    replayed: AtomicU64,
    request_time: Histogram<{ REQUEST_BOUNDS.len() }>,
    delivery_time: Histogram<{ DELIVERY_BOUNDS.len() }>,
    /// Events a second, as the bits of a float, as of `rate_at`.
    rate: AtomicU64,
    rate_at: AtomicI64,
}

/// What a [`Tally`] held when it was read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Totals {
    /// Requests that the endpoint took.
    pub succeeded: u64,
    /// Requests that failed, by [`ERROR_CLASSES`].
    pub failed: [u64; CLASSES],
    /// Requests that were not the first ones of their deliveries.
    pub retries: u64,
    /// Events delivered, those of replays left out.
    pub delivered: u64,
    /// Events given up, by [`ERROR_CLASSES`], those of replays left out.
    pub dead: [u64; CLASSES],
    /// Events that somebody gave up.
    pub skipped: u64,
    /// Events that a transform made nothing of.
    pub dropped: u64,
    /// Events delivered again by replays.
    pub replayed: u64,
    /// How long requests took, failed ones included.
    pub request_time: Buckets<{ REQUEST_BOUNDS.len() }>,
    /// How long it took from an event's commit until the endpoint had taken it, without replays.
    pub delivery_time: Buckets<{ DELIVERY_BOUNDS.len() }>,
    /// Events delivered a second, lately.
    pub rate: f64,
}

impl Tally {
    /// A request ended, the `attempt`th of its deliveries; `class` says how it failed.
    pub fn attempt(&self, attempt: u32, class: Option<&str>, took: Duration) {
        add(class.map_or(&self.succeeded, |class| &self.failed[index_of(class)]), 1);
        add(&self.retries, u64::from(attempt > 1));
        if !class.is_some_and(|class| UNSENT.contains(&class)) {
            self.request_time.record(&REQUEST_BOUNDS, took, 1);
        }
    }

    /// An event was delivered, so long after its commit.
    pub fn delivered(&self, after: Duration) {
        add(&self.delivered, 1);
        self.delivery_time.record(&DELIVERY_BOUNDS, after, 1);
    }

    /// Events were delivered again by a replay.
    pub fn replayed(&self, events: u64) {
        add(&self.replayed, events);
    }

    /// Events were not sent, since a transform made nothing of them.
    pub fn dropped(&self, events: u64) {
        add(&self.dropped, events);
    }

    /// Events were given up, for an error of this class, or because somebody skipped them (no class).
    pub fn dead(&self, class: &str, events: u64) {
        add(if class.is_empty() { &self.skipped } else { &self.dead[index_of(class)] }, events);
    }

    /// So many events were delivered just now.
    pub fn flowed(&self, events: u64, now: Timestamp) {
        let at = self.rate_at.load(Relaxed);
        let mut rate = f64::from_bits(self.rate.load(Relaxed));
        if !(0..RATE_STEP).contains(&now.0.saturating_sub(at)) {
            rate = faded(rate, at, now);
            self.rate_at.store(now.0, Relaxed);
        }
        self.rate.store((rate + events as f64 / RATE_SECONDS).to_bits(), Relaxed);
    }

    /// What it holds at this time.
    pub fn read(&self, now: Timestamp) -> Totals {
        Totals {
            succeeded: self.succeeded.load(Relaxed),
            failed: std::array::from_fn(|class| self.failed[class].load(Relaxed)),
            retries: self.retries.load(Relaxed),
            delivered: self.delivered.load(Relaxed),
            dead: std::array::from_fn(|class| self.dead[class].load(Relaxed)),
            skipped: self.skipped.load(Relaxed),
            dropped: self.dropped.load(Relaxed),
            replayed: self.replayed.load(Relaxed),
            request_time: self.request_time.read(),
            delivery_time: self.delivery_time.read(),
            rate: faded(f64::from_bits(self.rate.load(Relaxed)), self.rate_at.load(Relaxed), now),
        }
    }

    /// Forgets everything.
    pub fn clear(&self) {
        let single = [
            &self.succeeded,
            &self.retries,
            &self.delivered,
            &self.skipped,
            &self.dropped,
            &self.replayed,
            &self.rate,
        ];
        let all = self.failed.iter().chain(&self.dead).chain(single);
        all.for_each(|count| count.store(0, Relaxed));
        self.rate_at.store(0, Relaxed);
        self.request_time.clear();
        self.delivery_time.clear();
    }
}

fn index_of(class: &str) -> usize {
    ERROR_CLASSES.iter().position(|known| *known == class).unwrap_or(CLASSES - 1)
}

/// A rate, when nothing has happened since. A clock that goes back fades nothing.
fn faded(rate: f64, at: i64, now: Timestamp) -> f64 {
    let seconds = now.0.saturating_sub(at).max(0) as f64 / 1e6;
    rate * (-seconds / RATE_SECONDS).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(800_000_000_000_000);

    fn seconds_later(seconds: f64) -> Timestamp {
        Timestamp(NOW.0 + (seconds * 1e6) as i64)
    }

    #[test]
    fn what_happened_is_counted_by_outcome_and_class() {
        let tally = Tally::default();
        tally.attempt(1, None, Duration::from_millis(1));
        tally.attempt(1, Some("http_5xx"), Duration::from_millis(2));
        tally.attempt(2, Some("http_5xx"), Duration::from_millis(3));
        tally.attempt(3, Some("of another planet"), Duration::from_millis(4));
        tally.delivered(Duration::from_secs(7));
        tally.dead("http_5xx", 2);
        tally.dead("", 1);
        tally.dropped(4);
        tally.attempt(1, Some("transform"), Duration::from_millis(5));
        tally.replayed(5);
        let totals = tally.read(NOW);
        let failed = |class: &str| totals.failed[index_of(class)];
        assert_eq!((totals.succeeded, failed("http_5xx"), failed("other"), failed("dns")), (1, 2, 1, 0));
        assert_eq!((totals.retries, totals.delivered, totals.skipped, totals.replayed), (2, 1, 1, 5));
        assert_eq!((totals.dropped, failed("transform")), (4, 1));
        assert_eq!((totals.dead[index_of("http_5xx")], totals.dead.iter().sum::<u64>()), (2, 2));
        assert_eq!((totals.request_time.count(), totals.delivery_time.count()), (4, 1));
        tally.clear();
        assert_eq!(tally.read(NOW), Totals::default());
    }

    #[test]
    fn the_rate_nears_what_flows_and_fades_when_nothing_does() {
        let tally = Tally::default();
        for tenth in 0..1000 {
            tally.flowed(50, seconds_later(f64::from(tenth) / 10.0));
        }
        let rate = |at| tally.read(seconds_later(at)).rate;
        assert!((450.0..550.0).contains(&rate(100.0)), "{}", rate(100.0));
        assert!((0.30..0.45).contains(&(rate(110.0) / rate(100.0))));
        assert!(rate(300.0) < 0.01);
    }

    #[test]
    fn the_rate_survives_a_clock_that_goes_back() {
        let tally = Tally::default();
        tally.flowed(100, NOW);
        tally.flowed(100, seconds_later(-3600.0));
        tally.flowed(100, seconds_later(-3599.9));
        assert!((25.0..35.0).contains(&tally.read(seconds_later(-3599.9)).rate));
    }
}
