//! Whose turn it is: round robin among the subscriptions that have something to send and may send it.

use std::collections::VecDeque;

/// The ring of those that may send, and how many requests the pool has room for. Idle subscriptions cost
/// nothing but their two flags.
pub(super) struct Turns {
    ring: VecDeque<u32>,
    seats: Vec<Seat>,
    in_flight: usize,
    limit: usize,
}

/// A subscription's place in the ring. One that withdraws keeps it until its turn comes by.
#[derive(Clone, Copy, Default)]
struct Seat {
    taken: bool,
    offered: bool,
}

impl Turns {
    /// For a pool of `limit` requests at once.
    pub fn new(limit: usize) -> Turns {
        Turns { ring: VecDeque::new(), seats: Vec::new(), in_flight: 0, limit }
    }

    /// How many requests may be under way at once. When it shrinks, those under way stay.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// This one has something to send and may; it waits its turn behind the others.
    pub fn offer(&mut self, who: u32) {
        let seat = self.seat(who);
        seat.offered = true;
        if !std::mem::replace(&mut seat.taken, true) {
            self.ring.push_back(who);
        }
    }

    /// This one has nothing to send, or may not.
    pub fn withdraw(&mut self, who: u32) {
        self.seat(who).offered = false;
    }

    /// Whose turn it is, if the pool has room. It has to be offered again for another turn.
    pub fn next(&mut self) -> Option<u32> {
        if self.in_flight >= self.limit {
            return None;
        }
        while let Some(who) = self.ring.pop_front() {
            if std::mem::take(self.seat(who)).offered {
                return Some(who);
            }
        }
        None
    }

    /// A request has started.
    pub fn started(&mut self) {
        self.in_flight += 1;
    }

    /// A request has ended, however it did.
    pub fn ended(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// How many requests are under way.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn seat(&mut self, who: u32) -> &mut Seat {
        let who = who as usize;
        if who >= self.seats.len() {
            self.seats.resize(who + 1, Seat::default());
        }
        &mut self.seats[who]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_gets_its_turn_however_much_the_others_have() {
        let mut turns = Turns::new(100);
        (0..3).for_each(|who| turns.offer(who));
        let order: Vec<_> = (0..7)
            .filter_map(|_| {
                let who = turns.next()?;
                turns.offer(who);
                Some(who)
            })
            .collect();
        assert_eq!(order, [0, 1, 2, 0, 1, 2, 0]);
    }

    #[test]
    fn offering_twice_gives_one_turn() {
        let mut turns = Turns::new(100);
        [7, 7, 2].into_iter().for_each(|who| turns.offer(who));
        assert_eq!([turns.next(), turns.next(), turns.next()], [Some(7), Some(2), None]);
    }

    #[test]
    fn one_that_withdrew_is_passed_over_and_keeps_a_single_place() {
        let mut turns = Turns::new(100);
        turns.offer(1);
        turns.withdraw(1);
        assert_eq!(turns.next(), None);
        turns.offer(1);
        turns.withdraw(1);
        turns.offer(1);
        assert_eq!([turns.next(), turns.next()], [Some(1), None]);
    }

    #[test]
    fn a_full_pool_gives_no_turn_until_a_request_ends() {
        let mut turns = Turns::new(1);
        turns.offer(1);
        turns.started();
        assert_eq!(turns.next(), None);
        turns.ended();
        assert_eq!(turns.next(), Some(1));
    }
}
