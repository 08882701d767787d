//! How long requests take: a histogram of fixed size that forgets.

use std::time::Duration;

/// The smallest time told apart from zero: 2⁴ µs.
const FIRST_OCTAVE: u32 = 4;
/// Up to 2²⁸ µs, about four and a half minutes; what is longer counts as that.
const OCTAVES: u32 = 24;
/// Each octave is cut into four, so a quantile is at most an eighth off.
const STEPS: u32 = 4;
/// All counts are halved when there are this many, so that recent requests weigh more.
const MEMORY: u32 = 10_000;

/// Counts of durations in buckets of a quarter octave. Takes memory from the first one on.
#[derive(Default)]
pub(crate) struct Latency {
    counts: Option<Box<[u16; (OCTAVES * STEPS) as usize]>>,
    total: u32,
}

impl Latency {
    /// Counts a request.
    pub fn record(&mut self, took: Duration) {
        let counts = self.counts.get_or_insert_with(|| Box::new([0; _]));
        if self.total >= MEMORY {
            counts.iter_mut().for_each(|count| *count /= 2);
            self.total = counts.iter().map(|&count| u32::from(count)).sum();
        }
        counts[bucket(took)] += 1;
        self.total += 1;
    }

    /// The time that this share (0 to 1) of recent requests stayed below; None without requests.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let counts = self.counts.as_ref()?;
        let rank = (f64::from(self.total) * share).ceil().max(1.0) as u32;
        let mut seen = 0;
        let index = counts.iter().position(|&count| {
            seen += u32::from(count);
            seen >= rank
        })?;
        Some(middle(index as u32))
    }
}

fn bucket(took: Duration) -> usize {
    let micros = took.as_micros().clamp(1 << FIRST_OCTAVE, (1 << (FIRST_OCTAVE + OCTAVES)) - 1) as u64;
    let octave = micros.ilog2();
    let step = (micros >> (octave - STEPS.ilog2())) as u32 % STEPS;
    ((octave - FIRST_OCTAVE) * STEPS + step) as usize
}

fn middle(bucket: u32) -> Duration {
    let quarter = (1 << (bucket / STEPS + FIRST_OCTAVE)) / u64::from(STEPS);
    Duration::from_micros(quarter * u64::from(STEPS + bucket % STEPS) + quarter / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_at_most_an_eighth_off() {
        let mut latency = Latency::default();
        assert_eq!(latency.quantile(0.5), None);
        (1..=1000).for_each(|n| latency.record(Duration::from_micros(n * 100)));
        for (share, expected) in [(0.5, 50_000.0), (0.99, 99_000.0), (1.0, 100_000.0)] {
            let found = latency.quantile(share).unwrap_or_default().as_secs_f64() * 1e6;
            assert!((found / expected - 1.0).abs() < 0.125, "{share}: {found}");
        }
    }

    #[test]
    fn what_was_long_ago_is_forgotten() {
        let mut latency = Latency::default();
        (0..20_000).for_each(|_| latency.record(Duration::from_secs(1)));
        (0..60_000).for_each(|_| latency.record(Duration::from_millis(1)));
        assert!(latency.quantile(0.95) < Some(Duration::from_millis(2)));
    }

    #[test]
    fn the_shortest_and_the_longest_have_a_bucket() {
        let mut latency = Latency::default();
        [Duration::ZERO, Duration::MAX].into_iter().for_each(|took| latency.record(took));
        assert!(latency.quantile(0.1) < Some(Duration::from_micros(20)));
        assert!(latency.quantile(1.0) > Some(Duration::from_secs(200)));
    }
}
