//! How long things take: counts in buckets that stay the same, so that they can be added up over time and space.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Durations counted in buckets, one writer and any readers. All zero is empty.
#[repr(C)]
pub struct Histogram<const N: usize> {
    counts: [AtomicU64; N],
    beyond: AtomicU64,
    micros: AtomicU64,
}

/// What a [`Histogram`] held when it was read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Buckets<const N: usize> {
    counts: [u64; N],
    beyond: u64,
    micros: u64,
}

impl<const N: usize> Default for Histogram<N> {
    fn default() -> Self {
        let zero = || AtomicU64::new(0);
        Histogram { counts: std::array::from_fn(|_| zero()), beyond: zero(), micros: zero() }
    }
}

impl<const N: usize> Histogram<N> {
    /// Counts a duration `times` times; `bounds` are the upper bounds of the buckets in seconds, rising.
    pub fn record(&self, bounds: &[f64; N], took: Duration, times: u64) {
        let seconds = took.as_secs_f64();
        let bucket = bounds.iter().position(|&bound| seconds <= bound);
        add(bucket.map_or(&self.beyond, |bucket| &self.counts[bucket]), times);
        add(&self.micros, (took.as_micros() as u64).saturating_mul(times));
    }

    /// What it holds.
    pub fn read(&self) -> Buckets<N> {
        Buckets {
            counts: std::array::from_fn(|bucket| self.counts[bucket].load(Relaxed)),
            beyond: self.beyond.load(Relaxed),
            micros: self.micros.load(Relaxed),
        }
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.counts.iter().chain([&self.beyond, &self.micros]).for_each(|count| count.store(0, Relaxed));
    }
}

impl<const N: usize> Default for Buckets<N> {
    fn default() -> Self {
        Buckets { counts: [0; N], beyond: 0, micros: 0 }
    }
}

impl<const N: usize> Buckets<N> {
    /// How many durations are at most each bound.
    pub fn cumulative(&self) -> [u64; N] {
        let mut so_far = 0;
        self.counts.map(|count| {
            so_far += count;
            so_far
        })
    }

    /// How many durations there are.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum::<u64>() + self.beyond
    }

    /// All durations together, in seconds.
    pub fn sum(&self) -> f64 {
        self.micros as f64 / 1e6
    }
}

/// Adds to a counter that nobody else writes.
pub(super) fn add(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(more), Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_counts_in_every_bucket_from_its_own_up() {
        let histogram = Histogram::<3>::default();
        let bounds = [0.001, 0.01, 0.1];
        for (micros, times) in [(1000, 1), (1001, 2), (100_000, 1), (100_001, 3)] {
            histogram.record(&bounds, Duration::from_micros(micros), times);
        }
        let read = histogram.read();
        assert_eq!((read.cumulative(), read.count()), ([1, 3, 4], 7));
        assert!((read.sum() - 0.403005).abs() < 1e-9);
        histogram.clear();
        assert_eq!(histogram.read(), Buckets::default());
    }
}
