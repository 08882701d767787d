//! A limit of requests a second.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

/// Requests a second at most.
pub type PerSecond = NonZeroU32;

/// How long after a pause requests may come all at once, as if there had been none. Clocks and wake-ups are not exact, and a
/// thousand a second could not be kept otherwise.
const TOLERANCE: Duration = Duration::from_millis(20);

/// Spreads requests evenly over time: the generic cell rate algorithm (ITU-T I.371) by its virtual schedule.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rate {
    /// When the next request is due, if all came at the rate. None before the first.
    due: Option<Instant>,
}

impl Rate {
    /// Whether what was sent limits nothing any more.
    pub fn is_idle(&self, now: Instant) -> bool {
        self.due.is_none_or(|due| due <= now)
    }

    /// A request is sent now. Returns when the next may be, unless that is now, too.
    pub fn sent(&mut self, now: Instant, limit: PerSecond) -> Option<Instant> {
        let due = self.due.map_or(now, |due| due.max(now)) + Duration::from_secs(1) / limit.get();
        self.due = Some(due);
        due.checked_sub(TOLERANCE).filter(|next| *next > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many requests are sent in two seconds by somebody who has always some, after a pause of one.
    fn sent_in_two_seconds(limit: u32) -> u32 {
        let limit = PerSecond::new(limit).unwrap();
        let (mut rate, start) = (Rate::default(), Instant::now());
        rate.sent(start, limit);
        let (mut now, mut count) = (start + Duration::from_secs(1), 0);
        while now < start + Duration::from_secs(3) {
            now = rate.sent(now, limit).unwrap_or(now);
            count += 1;
        }
        count
    }

    #[test]
    fn as_many_are_sent_as_the_limit_says_and_no_pause_is_made_up_for() {
        for limit in [1, 10, 1_000, 100_000] {
            let most = 2 * limit + limit / 50 + 1;
            let count = sent_in_two_seconds(limit);
            assert!((2 * limit..=most).contains(&count), "{count} at {limit} a second");
        }
    }

    #[test]
    fn the_first_goes_at_once_and_the_next_in_its_time() {
        let (mut rate, now) = (Rate::default(), Instant::now());
        let next = rate.sent(now, PerSecond::new(2).unwrap()).unwrap();
        assert_eq!(next - now, Duration::from_millis(480));
        assert_eq!(rate.sent(next, PerSecond::new(2).unwrap()).unwrap() - now, Duration::from_millis(980));
    }
}
