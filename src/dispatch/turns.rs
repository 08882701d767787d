//! Whose turn it is: round robin among hosts, and among the subscriptions of a host, that have something to send.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

/// How long the requests of a subscription take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Pace {
    /// No more than a second.
    Swift,
    /// Nobody knows yet.
    #[default]
    New,
    /// Longer.
    Slow,
}

/// The rings of those that may send, and how many requests the pool has room for. The slow have a ring of their own,
/// which gets half of the pool at most; with the new ones they get three quarters, so that there is always room for
/// those that don't keep it. Idle subscriptions cost nothing but their seat.
pub(super) struct Turns {
    rings: [Ring; 3],
    seats: Vec<Seat>,
    in_flight: usize,
    /// Requests under way by pace.
    by_pace: [usize; 3],
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
    place: Option<(Pace, u64)>,
    number: u32,
}

impl Turns {
    /// For a pool of `limit` requests at once.
    pub fn new(limit: usize) -> Turns {
        Turns { rings: Default::default(), seats: Vec::new(), in_flight: 0, by_pace: [0; 3], limit, next: 0 }
    }

    /// How many requests may be under way at once. When it shrinks, those under way stay.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// This one has something to send to this host and may; it waits its turn behind the others.
    pub fn offer(&mut self, who: u32, host: u64, pace: Pace) {
        let seat = self.seat(who);
        seat.offered = true;
        if seat.place != Some((pace, host)) {
            seat.place = Some((pace, host));
            seat.number = seat.number.wrapping_add(1);
            let entry = (who, seat.number);
            let ring = &mut self.rings[pace as usize];
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
        for ring in 0..3 {
            let ring = (self.next + ring) % 3;
            if !self.has_room(ring) {
                continue;
            }
            while let Some((who, number)) = self.rings[ring].pop() {
                let seat = self.seat(who);
                if seat.number == number {
                    seat.place = None;
                    if std::mem::take(&mut seat.offered) {
                        self.next = (ring + 1) % 3;
                        return Some(who);
                    }
                }
            }
        }
        None
    }

    /// Whether the pool has room for a request at this pace.
    pub fn has_room_for(&self, pace: Pace) -> bool {
        self.in_flight < self.limit && self.has_room(pace as usize)
    }

    fn has_room(&self, ring: usize) -> bool {
        let [_, new, slow] = self.by_pace;
        match ring {
            0 => true,
            1 => new + slow < (self.limit - self.limit / 4).max(1),
            _ => slow < (self.limit / 2).max(1),
        }
    }

    /// A request has started.
    pub fn started(&mut self, pace: Pace) {
        self.in_flight += 1;
        self.by_pace[pace as usize] += 1;
    }

    /// A request has ended, however it did; None if its subscription has gone before it.
    pub fn ended(&mut self, pace: Option<Pace>) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if let Some(pace) = pace {
            self.forget(pace, 1);
        }
    }

    /// This many requests under way go at another pace.
    pub fn changed(&mut self, from: Pace, to: Pace, requests: usize) {
        self.forget(from, requests);
        self.by_pace[to as usize] += requests;
    }

    /// This many requests under way are nobody's any more.
    pub fn forget(&mut self, pace: Pace, requests: usize) {
        let by_pace = &mut self.by_pace[pace as usize];
        *by_pace = by_pace.saturating_sub(requests);
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
        turns.offer(who, host, Pace::Swift);
        Some(who)
    }

    #[test]
    fn each_gets_its_turn_however_much_the_others_have() {
        let mut turns = Turns::new(100);
        (0..3).for_each(|who| turns.offer(who, 1, Pace::Swift));
        let order: Vec<_> = (0..7).filter_map(|_| turn(&mut turns, 1)).collect();
        assert_eq!(order, [0, 1, 2, 0, 1, 2, 0]);
    }

    #[test]
    fn hosts_take_turns_however_many_subscriptions_they_have() {
        let mut turns = Turns::new(100);
        (0..3).for_each(|who| turns.offer(who, 1, Pace::Swift));
        turns.offer(3, 2, Pace::Swift);
        let order: Vec<_> = (0..6)
            .filter_map(|_| {
                let who = turns.next()?;
                turns.offer(who, if who == 3 { 2 } else { 1 }, Pace::Swift);
                Some(who)
            })
            .collect();
        assert_eq!(order, [0, 3, 1, 3, 2, 3]);
    }

    #[test]
    fn the_slow_get_half_of_the_pool_and_three_quarters_with_the_new() {
        let mut turns = Turns::new(8);
        (0..9).for_each(|who| turns.offer(who, who.into(), Pace::Slow));
        let sent = |turns: &mut Turns, pace| {
            let count = std::iter::from_fn(|| turns.next().map(|_| turns.started(pace))).count();
            assert!(turns.in_flight() <= 8);
            count
        };
        assert_eq!(sent(&mut turns, Pace::Slow), 4);
        (10..19).for_each(|who| turns.offer(who, who.into(), Pace::New));
        assert_eq!(sent(&mut turns, Pace::New), 2);
        (20..29).for_each(|who| turns.offer(who, who.into(), Pace::Swift));
        assert_eq!(sent(&mut turns, Pace::Swift), 2);
        turns.ended(Some(Pace::Slow));
        assert!(turns.next().is_some());
    }

    #[test]
    fn offering_twice_gives_one_turn() {
        let mut turns = Turns::new(100);
        [7, 7, 2].into_iter().for_each(|who| turns.offer(who, 1, Pace::Swift));
        assert_eq!([turns.next(), turns.next(), turns.next()], [Some(7), Some(2), None]);
    }

    #[test]
    fn one_that_withdrew_or_moved_is_passed_over_and_keeps_a_single_place() {
        let mut turns = Turns::new(100);
        turns.offer(1, 1, Pace::Swift);
        turns.withdraw(1);
        assert_eq!(turns.next(), None);
        turns.offer(1, 1, Pace::Swift);
        turns.withdraw(1);
        turns.offer(1, 1, Pace::Slow);
        turns.offer(1, 1, Pace::Swift);
        assert_eq!([turns.next(), turns.next()], [Some(1), None]);
    }

    #[test]
    fn a_full_pool_gives_no_turn_until_a_request_ends() {
        let mut turns = Turns::new(1);
        turns.offer(1, 1, Pace::Swift);
        turns.started(Pace::Swift);
        assert_eq!(turns.next(), None);
        turns.ended(Some(Pace::Swift));
        assert_eq!(turns.next(), Some(1));
    }
}
