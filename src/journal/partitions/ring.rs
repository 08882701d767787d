//! The ring of slices: which one is written, when it is time for the next, and when the oldest may be cleared.

use std::collections::HashMap;
use std::time::Duration;

use crate::delivery::DeliveryId;
use crate::journal::packed::event_chunk::Place;

/// The slices of the ring.
const SLICES: i16 = 8;
/// A slice is used for this part of the retention, so that what is kept is not much more than what must be.
const SHARE: u32 = 6;
/// No slice is used for less, unless it is large: going on to the next writes the positions of all subscriptions.
const SHORTEST: Duration = Duration::from_secs(1);
/// The bytes that make a slice large, if no limit of the journal says less.
const LARGE: u64 = 4 << 30;

/// How long what is done stays.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// The longest that any subscription asks for.
    pub longest: Duration,
    /// The bytes past which what is done goes earlier.
    pub max_bytes: Option<u64>,
}

/// How long subscriptions ask their events to stay, if not as long as the setting says.
#[derive(Debug, Default)]
pub struct Retentions(HashMap<i64, Duration>);

impl Retentions {
    /// Takes note of what a subscription asks for; none: what the setting says.
    pub fn set(&mut self, subscription: i64, retention: Option<Duration>) {
        match retention {
            Some(retention) => self.0.insert(subscription, retention),
            None => self.0.remove(&subscription),
        };
    }

    /// The longest that any subscription asks for, or the setting.
    pub fn longest(&self, setting: Duration) -> Duration {
        self.0.values().copied().fold(setting, Duration::max)
    }
}

/// What each slice holds, the oldest first; the last is the one that is written.
#[derive(Debug, Default)]
pub struct Slices {
    /// Those in use.
    pub used: Vec<Slice>,
    /// Rises from slice to slice.
    pub generation: i64,
    /// All positions are in the slice that is written, so that those in older ones are not needed.
    pub checkpointed: bool,
}

/// A slice in use.
#[derive(Clone, Debug)]
pub struct Slice {
    /// Its place in the ring.
    pub number: i16,
    /// The number of the first delivery that it may hold.
    pub first: DeliveryId,
    /// Where the last event before it stands.
    pub before: Option<Place>,
    /// Since when it was written, in microseconds of the wall clock.
    pub opened_at: i64,
    /// Since when all its deliveries are done.
    pub done_at: Option<i64>,
    /// About what it takes on disk.
    pub bytes: u64,
    /// Whether there is more in it than positions, which alone are no reason to go on to the next.
    pub used: bool,
}

impl Slices {
    /// Where numbers and events go on when the journal has no events.
    pub fn begin(&self) -> (DeliveryId, Option<Place>) {
        let current = self.used.last();
        (
            DeliveryId(current.map_or(0, |slice| slice.first.0.saturating_sub(1))),
            current.and_then(|slice| slice.before),
        )
    }

    /// The slice that is written.
    pub fn current(&self) -> i16 {
        self.used.last().map_or(0, |slice| slice.number)
    }

    /// The slices that may hold deliveries from that one on, the oldest first.
    pub fn from(&self, id: DeliveryId) -> impl Iterator<Item = i16> + use<> {
        let begin = self.used.partition_point(|slice| slice.first <= id).saturating_sub(1);
        let numbers: Vec<i16> = self.used[begin..].iter().map(|slice| slice.number).collect();
        numbers.into_iter()
    }

    /// So many bytes were written; `used` if they were more than positions.
    pub fn grown(&mut self, bytes: u64, used: bool) {
        if let Some(current) = self.used.last_mut() {
            current.bytes += bytes;
            current.used |= used;
        }
    }

    /// All positions have been given to the slice that is written.
    pub fn checkpointed(&mut self) {
        self.checkpointed = true;
    }

    fn bytes(&self) -> u64 {
        self.used.iter().map(|slice| slice.bytes).sum()
    }

    /// The slice behind the current one, if it is free and the current one old or large enough.
    pub fn next(&self, retention: Retention, now: i64) -> Option<i16> {
        let current = self.used.last()?;
        let next = (current.number + 1).rem_euclid(SLICES);
        let free = self.used.iter().all(|slice| slice.number != next);
        // A clock that was put back would stop the ring until it has caught up.
        let age = Duration::from_micros(now.abs_diff(current.opened_at));
        let large = retention.max_bytes.map_or(LARGE, |most| (most / u64::from(SHARE)).clamp(1 << 20, LARGE));
        let full = current.bytes > large;
        let old = current.used && age >= (retention.longest / SHARE).max(SHORTEST);
        (free && (full || old)).then_some(next)
    }

    /// Notes which slices are done from now on; returns those.
    pub fn note_done(&mut self, oldest_pending: Option<DeliveryId>, now: i64) -> Vec<i16> {
        let mut news = Vec::new();
        for place in 1..self.used.len() {
            let end = self.used[place].first;
            let slice = &mut self.used[place - 1];
            if oldest_pending.is_some_and(|pending| pending < end) {
                break;
            }
            if slice.done_at.is_none() {
                slice.done_at = Some(now);
                news.push(slice.number);
            }
        }
        news
    }

    /// The oldest slice, if it may be cleared.
    pub fn expired(&self, retention: Retention, oldest_pending: Option<DeliveryId>, now: i64) -> Option<i16> {
        let [oldest, next, ..] = self.used.as_slice() else { return None };
        let done_at = oldest.done_at?;
        // A replay may have made something pending again.
        if !self.checkpointed || oldest_pending.is_some_and(|pending| pending < next.first) {
            return None;
        }
        // A clock that was put back would make it wait twice.
        let kept = Duration::from_micros(now.abs_diff(done_at));
        let too_much = retention.max_bytes.is_some_and(|most| self.bytes() > most);
        (kept >= retention.longest || too_much).then_some(oldest.number)
    }
}

#[cfg(test)]
mod tests;
