//! When to wake up next, over all subscriptions.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

use rustc_hash::FxHashMap;

/// One time for each subscription that has one. An entry of the heap counts only while it agrees with the
/// map, so a time is changed without looking for the old one.
#[derive(Default)]
pub(super) struct Timers {
    heap: BinaryHeap<Reverse<(Instant, u32)>>,
    set: FxHashMap<u32, Instant>,
}

impl Timers {
    /// Wakes `who` at this time and at no other; never when None.
    pub fn set(&mut self, who: u32, at: Option<Instant>) {
        let Some(at) = at else {
            self.set.remove(&who);
            return;
        };
        if self.set.insert(who, at) != Some(at) {
            self.heap.push(Reverse((at, who)));
            if self.heap.len() > 2 * self.set.len() + 64 {
                self.heap = self.set.iter().map(|(&who, &at)| Reverse((at, who))).collect();
            }
        }
    }

    /// The earliest time set.
    pub fn next(&mut self) -> Option<Instant> {
        loop {
            let &Reverse((at, who)) = self.heap.peek()?;
            if self.set.get(&who) == Some(&at) {
                return Some(at);
            }
            self.heap.pop();
        }
    }

    /// Takes one whose time has come.
    pub fn due(&mut self, now: Instant) -> Option<u32> {
        if self.next()? > now {
            return None;
        }
        let Reverse((_, who)) = self.heap.pop()?;
        self.set.remove(&who);
        Some(who)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_earliest_comes_first_and_each_once() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut timers = Timers::default();
        timers.set(1, Some(at(30)));
        timers.set(2, Some(at(20)));
        timers.set(3, Some(at(10)));
        timers.set(1, Some(at(5)));
        timers.set(3, None);
        assert_eq!(timers.next(), Some(at(5)));
        assert_eq!(timers.due(at(4)), None);
        assert_eq!(timers.due(at(60)), Some(1));
        assert_eq!(timers.due(at(60)), Some(2));
        assert_eq!((timers.due(at(60)), timers.next()), (None, None));
    }

    #[test]
    fn times_that_were_changed_leave_no_growing_trail() {
        let start = Instant::now();
        let mut timers = Timers::default();
        for n in 0..10_000 {
            timers.set(1, Some(start + Duration::from_secs(n)));
        }
        assert!(timers.heap.len() < 100);
        assert_eq!(timers.next(), Some(start + Duration::from_secs(9_999)));
    }
}
