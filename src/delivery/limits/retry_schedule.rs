//! When a delivery that failed is tried again.

use std::sync::Arc;
use std::time::Duration;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;

const DEFAULT: [Duration; 9] = [
    Duration::from_secs(5),
    Duration::from_secs(5 * MINUTE),
    Duration::from_secs(30 * MINUTE),
    Duration::from_secs(2 * HOUR),
    Duration::from_secs(5 * HOUR),
    Duration::from_secs(10 * HOUR),
    Duration::from_secs(14 * HOUR),
    Duration::from_secs(20 * HOUR),
    LONGEST_RETRY_AFTER,
];

/// The longest time that an endpoint can ask for with `Retry-After`.
pub(super) const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(24 * HOUR);

/// The delays between the attempts of a delivery, which are one more than delays; then it is given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule(Arc<[Duration]>);

impl Default for Schedule {
    /// 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 14 h, 20 h, 24 h.
    fn default() -> Self {
        Schedule(Arc::new(DEFAULT))
    }
}

impl Schedule {
    /// These delays; none at all means a single attempt.
    pub fn new(delays: &[Duration]) -> Schedule {
        Schedule(delays.into())
    }

    /// How long to wait after the `failures`th failure in a row, counted from 1: the schedule's delay, up to
    /// 20 % shorter (`jitter` 0) or longer (`u32::MAX`), but no less than the endpoint asked for. None when that
    /// was the last attempt.
    pub(crate) fn delay(
        &self,
        failures: u32,
        retry_after: Option<Duration>,
        jitter: u32,
    ) -> Option<Duration> {
        let delay = *self.0.get(failures.max(1) as usize - 1)?;
        let factor = 0.8 + 0.4 * f64::from(jitter) / f64::from(u32::MAX);
        let jittered = Duration::try_from_secs_f64(delay.as_secs_f64() * factor).unwrap_or(delay);
        Some(jittered.max(retry_after.unwrap_or_default().min(LONGEST_RETRY_AFTER)))
    }

    /// The longest of the delays: what a time from the journal is cut to, whatever a clock made of it.
    pub(crate) fn longest(&self) -> Duration {
        self.0.iter().copied().max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIDDLE: u32 = u32::MAX / 2;

    fn seconds(failures: u32, retry_after: Option<u64>, jitter: u32) -> u64 {
        Schedule::default()
            .delay(failures, retry_after.map(Duration::from_secs), jitter)
            .map_or(0, |delay| delay.as_secs_f64().round() as u64)
    }

    #[test]
    fn delays_follow_the_schedule_and_then_end() {
        let delays: Vec<u64> = (1..=9).map(|failures| seconds(failures, None, MIDDLE)).collect();
        assert_eq!(delays, [5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400]);
        assert_eq!(Schedule::default().delay(10, Some(Duration::from_secs(5)), MIDDLE), None);
        assert_eq!(Schedule::default().longest(), Duration::from_secs(86400));
    }

    #[test]
    fn jitter_spreads_a_delay_by_a_fifth_both_ways() {
        assert_eq!((seconds(2, None, 0), seconds(2, None, u32::MAX)), (240, 360));
    }

    #[test]
    fn retry_after_is_a_floor_capped_at_a_day() {
        assert_eq!(seconds(1, Some(60), MIDDLE), 60);
        assert_eq!(seconds(3, Some(60), MIDDLE), 1800);
        assert_eq!(seconds(1, Some(1_000_000), MIDDLE), 86400);
    }

    #[test]
    fn an_empty_schedule_means_a_single_attempt() {
        assert_eq!(Schedule::new(&[]).delay(1, None, MIDDLE), None);
        assert_eq!(Schedule::new(&[]).longest(), Duration::ZERO);
    }
}
