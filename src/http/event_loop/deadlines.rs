//! When what is under way must have got on.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

/// The next deadline of each of some numbered things.
///
/// A deadline that moves later costs nothing: the earlier one is found to be none when it comes. So a connection that
/// serves thousands of requests, each with a deadline of its own, has one entry.
#[derive(Default)]
pub(super) struct Deadlines {
    heap: BinaryHeap<Reverse<(Instant, usize)>>,
    /// By number, the earliest entry that counts.
    earliest: Vec<Option<Instant>>,
}

impl Deadlines {
    /// Has `number` come up no later than `at`.
    pub fn set(&mut self, number: usize, at: Instant) {
        if self.earliest.len() <= number {
            self.earliest.resize(number + 1, None);
        }
        let earliest = &mut self.earliest[number];
        if earliest.is_none_or(|before| at < before) {
            *earliest = Some(at);
            self.heap.push(Reverse((at, number)));
        }
    }

    /// The next number whose time has come. It may come up early: its own deadline has to be looked at, and set again.
    pub fn pop(&mut self, now: Instant) -> Option<usize> {
        while let Some(&Reverse((at, number))) = self.heap.peek() {
            if at > now {
                return None;
            }
            self.heap.pop();
            let earliest = &mut self.earliest[number];
            if *earliest == Some(at) {
                *earliest = None;
                return Some(number);
            }
        }
        None
    }

    /// When the next number comes up.
    pub fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|&Reverse((at, _))| at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_number_comes_up_at_its_earliest_deadline() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut deadlines = Deadlines::default();
        deadlines.set(7, after(5));
        deadlines.set(7, after(9));
        deadlines.set(3, after(4));
        deadlines.set(7, after(2));
        assert_eq!(deadlines.next(), Some(after(2)));
        assert_eq!(deadlines.pop(after(1)), None);
        assert_eq!(deadlines.pop(after(2)), Some(7));
        assert_eq!(deadlines.pop(after(3)), None);
        deadlines.set(7, after(9));
        let due: Vec<_> = std::iter::from_fn(|| deadlines.pop(after(9))).collect();
        assert_eq!(due, [3, 7]);
        assert_eq!(deadlines.next(), None);
    }

    #[test]
    fn later_deadlines_of_one_number_take_no_room() {
        let start = Instant::now();
        let mut deadlines = Deadlines::default();
        for seconds in 0..1000 {
            deadlines.set(0, start + Duration::from_secs(seconds));
        }
        assert_eq!(deadlines.heap.len(), 1);
    }
}
