//! Whose turn it is: round robin among hosts, and among the subscriptions of a host, that have something to send.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

/// The rings of those that may send, and how many requests the pool has room for. Who is suspected of being slow has
/// a ring of its own, which gets half of the pool at most. Idle subscriptions cost nothing but their seat.
pub(super) struct Turns {
    rings: [Ring; 2],
    seats: Vec<Seat>,
    in_flight: usize,
    suspected: usize,
    limit: usize,
    /// The ring that comes next.
    next: usize,
}

#[derive(Default)]
struct Ring {
    hosts: VecDeque<u64>,
    queues: FxHashMap<u64, VecDeque<(u32, u32)>>,
}

/// A subscription's place. One that withdraws keeps it until its turn comes by.
#[derive(Clone, Copy, Default)]
struct Seat {
    offered: bool,
    /// The ring and host where it stands, and which of its entries there counts.
    place: Option<(bool, u64)>,
    number: u32,
}

impl Turns {
    /// For a pool of `limit` requests at once.
    pub fn new(limit: usize) -> Turns {
        Turns { rings: Default::default(), seats: Vec::new(), in_flight: 0, suspected: 0, limit, next: 0 }
    }

    /// How many requests may be under way at once. When it shrinks, those under way stay.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// This one has something to send to this host and may; it waits its turn behind the others.
    pub fn offer(&mut self, who: u32, host: u64, suspect: bool) {
        let seat = self.seat(who);
        seat.offered = true;
        if seat.place != Some((suspect, host)) {
            seat.place = Some((suspect, host));
            seat.number = seat.number.wrapping_add(1);
            let entry = (who, seat.number);
            let ring = &mut self.rings[usize::from(suspect)];
            let queue = ring.queues.entry(host).or_default();
            if queue.is_empty() {
                ring.hosts.push_back(host);
            }
            queue.push_back(entry);
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
        for ring in [self.next, 1 - self.next] {
            let is_full = ring == 1 && self.suspected >= (self.limit / 2).max(1);
            if is_full {
                continue;
            }
            while let Some((who, number)) = self.rings[ring].pop() {
                let seat = self.seat(who);
                if seat.number == number {
                    seat.place = None;
                    if std::mem::take(&mut seat.offered) {
                        self.next = 1 - ring;
                        return Some(who);
                    }
                }
            }
        }
        None
    }

    /// Whether somebody waits for room in the pool.
    pub fn is_full(&self) -> bool {
        self.in_flight >= self.limit
    }

    /// A request has started.
    pub fn started(&mut self) {
        self.in_flight += 1;
    }

    /// A request has ended, however it did.
    pub fn ended(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// This many requests more are to those suspected of being slow.
    pub fn suspect(&mut self, requests: usize) {
        self.suspected += requests;
    }

    /// This many less are.
    pub fn trust(&mut self, requests: usize) {
        self.suspected = self.suspected.saturating_sub(requests);
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

impl Ring {
    fn pop(&mut self) -> Option<(u32, u32)> {
        loop {
            let host = self.hosts.pop_front()?;
            let Some(queue) = self.queues.get_mut(&host) else { continue };
            let entry = queue.pop_front();
            if queue.is_empty() {
                // A host that is sent to one request at a time is back at once.
                if self.queues.len() > 64 {
                    self.queues.remove(&host);
                }
            } else {
                self.hosts.push_back(host);
            }
            if entry.is_some() {
                return entry;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(turns: &mut Turns, host: u64) -> Option<u32> {
        let who = turns.next()?;
        turns.offer(who, host, false);
        Some(who)
    }

    #[test]
    fn each_gets_its_turn_however_much_the_others_have() {
        let mut turns = Turns::new(100);
        (0..3).for_each(|who| turns.offer(who, 1, false));
        let order: Vec<_> = (0..7).filter_map(|_| turn(&mut turns, 1)).collect();
        assert_eq!(order, [0, 1, 2, 0, 1, 2, 0]);
    }

    #[test]
    fn hosts_take_turns_however_many_subscriptions_they_have() {
        let mut turns = Turns::new(100);
        (0..3).for_each(|who| turns.offer(who, 1, false));
        turns.offer(3, 2, false);
        let order: Vec<_> = (0..6)
            .filter_map(|_| {
                let who = turns.next()?;
                turns.offer(who, if who == 3 { 2 } else { 1 }, false);
                Some(who)
            })
            .collect();
        assert_eq!(order, [0, 3, 1, 3, 2, 3]);
    }

    #[test]
    fn who_is_suspected_of_being_slow_gets_half_of_the_pool() {
        let mut turns = Turns::new(4);
        (0..9).for_each(|who| turns.offer(who, who.into(), true));
        turns.offer(9, 9, false);
        for _ in 0..2 {
            let who = turns.next();
            assert!(who.is_some());
            turns.started();
            if who != Some(9) {
                turns.suspect(1);
            }
        }
        turns.next().map(|_| turns.suspect(1));
        assert_eq!(turns.next(), None);
        turns.trust(1);
        assert!(turns.next().is_some());
    }

    #[test]
    fn offering_twice_gives_one_turn() {
        let mut turns = Turns::new(100);
        [7, 7, 2].into_iter().for_each(|who| turns.offer(who, 1, false));
        assert_eq!([turns.next(), turns.next(), turns.next()], [Some(7), Some(2), None]);
    }

    #[test]
    fn one_that_withdrew_or_moved_is_passed_over_and_keeps_a_single_place() {
        let mut turns = Turns::new(100);
        turns.offer(1, 1, false);
        turns.withdraw(1);
        assert_eq!(turns.next(), None);
        turns.offer(1, 1, false);
        turns.withdraw(1);
        turns.offer(1, 1, true);
        turns.offer(1, 1, false);
        assert_eq!([turns.next(), turns.next()], [Some(1), None]);
    }

    #[test]
    fn a_full_pool_gives_no_turn_until_a_request_ends() {
        let mut turns = Turns::new(1);
        turns.offer(1, 1, false);
        turns.started();
        assert_eq!(turns.next(), None);
        turns.ended();
        assert_eq!(turns.next(), Some(1));
    }
}
