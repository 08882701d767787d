//! How fast a backfill goes beside what else the machine does: it takes what nobody else wants, and a little.
//!
//! A process that could run and had to wait for a processor tells that there are not enough for all, whoever takes them.

use std::time::{Duration, Instant};

/// Processors are scarce when it waits for one longer than this each time.
const SCARCE: Duration = Duration::from_micros(500);
/// While there are live events, which are sent by processes that wait as long, they are scarce sooner.
const SCARCE_FOR_LIVE: Duration = Duration::from_micros(80);
/// After how much of the time that it ran this is judged.
const JUDGED_AFTER: Duration = Duration::from_millis(10);
/// The shares of the time that reading takes at least and at most.
const SHARES: (f64, f64) = (0.1, 1.0);
/// The share that it takes at most while there are live events: what they wait for a chunk then is
/// seen in their 99th percentile and not in their median.
const MOST_BESIDE_LIVE: f64 = 0.3;
/// How its share shrinks while processors are scarce, and grows while they are not.
const LESS: f64 = 0.5;
const MORE: f64 = 0.05;

/// How long a rest is at most, whatever reading takes.
const LONGEST_REST: Duration = Duration::from_secs(1);

/// So long after a live event it is on its way and needs the processors: nothing of a chunk is done then,
const QUIET: Duration = Duration::from_millis(1);
/// unless that has been put off for so long.
const PATIENCE: Duration = Duration::from_millis(2);

/// When to do what could be done since then, so that the last live event passes.
pub fn behind(live_at: Instant, since: Instant) -> Instant {
    since.max(live_at + QUIET).min(since + PATIENCE)
}

/// What the kernel has counted for a process since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessorTime {
    /// How long it ran.
    pub ran: Duration,
    /// How long it could have run and waited for a processor.
    pub waited: Duration,
    /// How often it was given one.
    pub times: u32,
}

/// Rests between chunks.
pub struct Pacing {
    /// The share of the time that reading takes.
    share: f64,
    /// What was counted when it was last judged.
    counted: Option<ProcessorTime>,
}

impl Default for Pacing {
    /// As if nobody else wanted anything.
    fn default() -> Pacing {
        Pacing { share: SHARES.1, counted: None }
    }
}

impl Pacing {
    /// How long to rest after a chunk that took so long. `is_live`: there are live events. `counted`: for the process that
    /// reads; where that is not known, nothing is held back.
    pub fn rest(&mut self, took: Duration, is_live: bool, counted: Option<ProcessorTime>) -> Duration {
        match (self.counted, counted) {
            (Some(before), Some(now)) if now.ran >= before.ran => {
                let ran = now.ran - before.ran;
                if ran >= JUDGED_AFTER {
                    let waited = now.waited.saturating_sub(before.waited);
                    let scarce = if is_live { SCARCE_FOR_LIVE } else { SCARCE };
                    let is_scarce = waited > scarce * now.times.wrapping_sub(before.times);
                    let share = if is_scarce { self.share * LESS } else { self.share + MORE };
                    self.share = share.clamp(SHARES.0, SHARES.1);
                    self.counted = counted;
                }
            }
            // It is another process.
            _ => self.counted = counted,
        }
        let share = if is_live { self.share.min(MOST_BESIDE_LIVE) } else { self.share };
        took.min(LONGEST_REST).mul_f64(1.0 / share - 1.0).min(LONGEST_REST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// The last rest after so many chunks of 10 ms, with ten waits of this length in each.
    fn rest_after(pacing: &mut Pacing, chunks: u32, is_live: bool, wait: Duration) -> Duration {
        let mut counted = pacing.counted.unwrap_or_default();
        let rests = (0..chunks).map(|_| {
            counted.ran += 10 * MS;
            counted.waited += 10 * wait;
            counted.times += 10;
            pacing.rest(10 * MS, is_live, Some(counted))
        });
        rests.last().unwrap_or_default()
    }

    #[test]
    fn a_backfill_that_waits_for_processors_rests_and_one_that_does_not_goes_on_at_once() {
        let mut pacing = Pacing::default();
        assert_eq!(rest_after(&mut pacing, 5, false, MS / 5), Duration::ZERO);
        assert_eq!(rest_after(&mut pacing, 1, false, MS), 10 * MS);
        assert_eq!(rest_after(&mut pacing, 20, false, MS), 90 * MS);
        assert_eq!(rest_after(&mut pacing, 20, false, MS / 5), Duration::ZERO);
    }

    #[test]
    fn beside_live_events_it_rests_sooner() {
        let mut pacing = Pacing::default();
        assert!(rest_after(&mut pacing, 5, true, MS / 20) > 20 * MS);
        assert_eq!(rest_after(&mut pacing, 1, false, MS / 20), Duration::ZERO);
        assert_eq!(rest_after(&mut pacing, 20, true, MS / 5), 90 * MS);
        assert_eq!(rest_after(&mut pacing, 20, false, MS / 5), Duration::ZERO);
    }

    #[test]
    fn a_live_event_passes_and_a_stream_of_them_does_not_hold_a_chunk_back_for_ever() {
        let (then, step) = (Instant::now(), MS / 10);
        assert_eq!(behind(then, then + 3 * MS), then + 3 * MS);
        assert_eq!(behind(then, then + step), then + QUIET);
        assert_eq!(behind(then + step, then), then + step + QUIET);
        assert_eq!(behind(then + 100 * step, then), then + PATIENCE);
    }

    #[test]
    fn no_rest_is_long_however_long_reading_took() {
        let mut pacing = Pacing::default();
        assert_eq!(pacing.rest(Duration::MAX, true, None), Duration::from_secs(1));
    }

    #[test]
    fn where_nothing_is_counted_nothing_is_held_back() {
        assert_eq!(Pacing::default().rest(10 * MS, false, None), Duration::ZERO);
    }
}
