//! When an endpoint fails as a whole, and when to knock again.

use std::time::{Duration, Instant};

use crate::delivery::outcome::FailureClass;

/// Failures in a row without an answer that open it.
const CONNECTIONS: u32 = 5;
/// Failures since the last success that open it, whatever they were …
const FAILURES: u32 = 20;
/// … if they are of so many deliveries: one or a few that the endpoint refuses die by their schedule.
const DELIVERIES: usize = 5;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Counts failures while closed; while open it says when to probe.
#[derive(Default)]
pub(crate) struct Breaker {
    connections: u32,
    failures: u32,
    /// Deliveries that have failed since the last success, as many as it takes.
    deliveries: [u64; DELIVERIES],
    different: usize,
    pause: Duration,
    probe_at: Option<Instant>,
}

impl Breaker {
    /// An attempt failed, whose first delivery this is. Whether the endpoint fails as a whole.
    pub fn failed(&mut self, delivery: u64, class: FailureClass) -> bool {
        self.connections = if class == FailureClass::Connection { self.connections + 1 } else { 0 };
        self.failures = self.failures.saturating_add(1);
        if self.different < DELIVERIES && !self.deliveries[..self.different].contains(&delivery) {
            self.deliveries[self.different] = delivery;
            self.different += 1;
        }
        self.connections >= CONNECTIONS || self.failures >= FAILURES && self.different >= DELIVERIES
    }

    /// An attempt got through, or all begins anew.
    pub fn reset(&mut self) {
        *self = Breaker::default();
    }

    /// It has opened, or a probe has failed: the next one comes after a pause that grows.
    pub fn wait(&mut self, now: Instant, jitter: u32) {
        self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        let factor = 0.8 + 0.4 * f64::from(jitter) / f64::from(u32::MAX);
        self.probe_at = Some(now + self.pause.mul_f64(factor));
    }

    /// When to probe; None when that may be at once.
    pub fn probe_at(&self) -> Option<Instant> {
        self.probe_at
    }

    /// The pause is over.
    pub fn probe_now(&mut self) {
        self.probe_at = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_failures_to_connect_in_a_row_open_it() {
        let mut breaker = Breaker::default();
        let connection = |breaker: &mut Breaker| breaker.failed(1, FailureClass::Connection);
        assert!((0..4).all(|_| !connection(&mut breaker)));
        assert!(!breaker.failed(1, FailureClass::Other));
        assert!((0..4).all(|_| !connection(&mut breaker)));
        assert!(connection(&mut breaker));
    }

    #[test]
    fn twenty_failures_of_different_deliveries_open_it_and_any_number_of_one_does_not() {
        let mut breaker = Breaker::default();
        assert!((0..100).all(|_| !breaker.failed(7, FailureClass::Other)));
        breaker.reset();
        assert!((0..19).all(|delivery| !breaker.failed(delivery, FailureClass::Content)));
        assert!(breaker.failed(19, FailureClass::Other));
    }

    #[test]
    fn pauses_grow_up_to_a_minute() {
        let (now, mut breaker) = (Instant::now(), Breaker::default());
        let pauses: Vec<u64> = (0..8)
            .map(|_| {
                breaker.wait(now, u32::MAX / 2);
                (breaker.probe_at().unwrap_or(now) - now).as_secs_f64().round() as u64
            })
            .collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
    }
}
