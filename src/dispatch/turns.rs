//! Whose turn it is: round robin among hosts, and among the subscriptions of a host, that have something to send.

use std::collections::VecDeque;
use std::time::Instant;

use rustc_hash::{FxHashMap, FxHashSet};

use super::hosts::{HostLimits, Hosts};

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

/// The rings of those that may send, and how many requests there is room for. The slow have a ring of their own,
/// which gets half of the room at most; with the new ones they get three quarters, so that there is always room for
/// those that don't keep it. Idle subscriptions cost nothing but their seat.
pub(super) struct Turns {
    rings: [Ring; 3],
    hosts: Hosts,
    seats: Vec<Seat>,
    in_flight: usize,
    /// How many have something to send, and may.
    offered: usize,
    /// Requests under way by pace.
    by_pace: [usize; 3],
    limit: usize,
    /// The ring that comes next.
    next: usize,
}

#[derive(Default)]
struct Ring {
    hosts: VecDeque<u64>,
    /// Those that are sent as much as they may be already.
    waiting: FxHashSet<u64>,
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
    /// For `limit` requests at once.
    pub fn new(limit: usize) -> Turns {
        Turns {
            rings: Default::default(),
            hosts: Hosts::default(),
            seats: Vec::new(),
            in_flight: 0,
            offered: 0,
            by_pace: [0; 3],
            limit,
            next: 0,
        }
    }

    /// How many requests may be under way at once. When it shrinks, those under way stay.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// What each host may be sent.
    pub fn set_host_limits(&mut self, limits: HostLimits) {
        self.hosts.set_limits(limits);
        for ring in &mut self.rings {
            ring.hosts.extend(ring.waiting.drain());
        }
    }

    /// Lets hosts have their turns again whose time has come.
    pub fn wake(&mut self, now: Instant) {
        while let Some(host) = self.hosts.due(now) {
            self.admit(host);
        }
    }

    /// When to call [`Turns::wake`].
    pub fn next_wakeup(&self) -> Option<Instant> {
        self.hosts.next_due()
    }

    fn admit(&mut self, host: u64) {
        for ring in &mut self.rings {
            if ring.waiting.remove(&host) {
                ring.hosts.push_back(host);
            }
        }
    }

    /// This one has something to send to this host and may; it waits its turn behind the others.
    pub fn offer(&mut self, who: u32, host: u64, pace: Pace) {
        let seat = self.seat(who);
        let is_new = !std::mem::replace(&mut seat.offered, true);
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
        self.offered += usize::from(is_new);
    }

    /// This one has nothing to send, or may not.
    pub fn withdraw(&mut self, who: u32) {
        let was_offered = std::mem::take(&mut self.seat(who).offered);
        self.offered -= usize::from(was_offered);
    }

    /// How many have something to send and wait for their turn.
    pub fn waiting(&self) -> usize {
        self.offered
    }

    /// Whose turn it is, if there is room. It has to be offered again for another turn.
    pub fn next(&mut self) -> Option<u32> {
        if self.in_flight >= self.limit {
            return None;
        }
        for ring in 0..3 {
            let ring = (self.next + ring) % 3;
            if !self.has_room(ring) {
                continue;
            }
            while let Some((who, number)) = self.rings[ring].pop(&self.hosts) {
                let seat = self.seat(who);
                if seat.number == number {
                    seat.place = None;
                    if std::mem::take(&mut seat.offered) {
                        self.next = (ring + 1) % 3;
                        self.offered -= 1;
                        return Some(who);
                    }
                }
            }
        }
        None
    }

    /// Whether there is room for a request at this pace.
    pub fn has_room_for(&self, pace: Pace) -> bool {
        self.in_flight < self.limit && self.has_room(pace as usize)
    }

    /// Whether requests may be handed over ahead without taking the room of others: there are no limits for hosts, and few
    /// requests under way.
    pub fn has_room_to_spare(&self) -> bool {
        4 * self.in_flight < self.limit && !self.hosts.has_limits()
    }

    /// Whether this host is sent less than it may be.
    pub fn may_send_to(&self, host: u64) -> bool {
        self.hosts.may_send(host)
    }

    fn has_room(&self, ring: usize) -> bool {
        let [_, new, slow] = self.by_pace;
        match ring {
            0 => true,
            1 => new + slow < (self.limit - self.limit / 4).max(1),
            _ => slow < (self.limit / 2).max(1),
        }
    }

    /// A request to this host has started.
    pub fn started(&mut self, pace: Pace, host: u64, now: Instant) {
        self.hosts.started(host, now);
        self.in_flight += 1;
        self.by_pace[pace as usize] += 1;
    }

    /// A request to this host has ended, however it did; no pace if its subscription has gone before it.
    pub fn ended(&mut self, pace: Option<Pace>, host: u64) {
        self.hosts.ended(host);
        self.admit(host);
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
    fn pop(&mut self, hosts: &Hosts) -> Option<(u32, u32)> {
        loop {
            let host = self.hosts.pop_front()?;
            if !hosts.may_send(host) {
                self.waiting.insert(host);
                continue;
            }
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
    fn the_slow_get_half_of_the_room_and_three_quarters_with_the_new() {
        let mut turns = Turns::new(8);
        (0..9).for_each(|who| turns.offer(who, who.into(), Pace::Slow));
        let sent = |turns: &mut Turns, pace| {
            let count = std::iter::from_fn(|| {
                turns.next().map(|who| turns.started(pace, who.into(), Instant::now()))
            })
            .count();
            assert!(turns.in_flight() <= 8);
            count
        };
        assert_eq!(sent(&mut turns, Pace::Slow), 4);
        (10..19).for_each(|who| turns.offer(who, who.into(), Pace::New));
        assert_eq!(sent(&mut turns, Pace::New), 2);
        (20..29).for_each(|who| turns.offer(who, who.into(), Pace::Swift));
        assert_eq!(sent(&mut turns, Pace::Swift), 2);
        turns.ended(Some(Pace::Slow), 0);
        assert!(turns.next().is_some());
    }

    #[test]
    fn offering_twice_gives_one_turn() {
        let mut turns = Turns::new(100);
        [7, 7, 2].into_iter().for_each(|who| turns.offer(who, 1, Pace::Swift));
        assert_eq!(turns.waiting(), 2);
        assert_eq!([turns.next(), turns.next(), turns.next()], [Some(7), Some(2), None]);
        assert_eq!(turns.waiting(), 0);
    }

    #[test]
    fn one_that_withdrew_or_moved_is_passed_over_and_keeps_a_single_place() {
        let mut turns = Turns::new(100);
        turns.offer(1, 1, Pace::Swift);
        turns.withdraw(1);
        turns.withdraw(1);
        assert_eq!((turns.waiting(), turns.next()), (0, None));
        turns.offer(1, 1, Pace::Swift);
        turns.withdraw(1);
        turns.offer(1, 1, Pace::Slow);
        turns.offer(1, 1, Pace::Swift);
        assert_eq!(turns.waiting(), 1);
        assert_eq!([turns.next(), turns.next()], [Some(1), None]);
    }

    #[test]
    fn a_full_pool_gives_no_turn_until_a_request_ends() {
        let mut turns = Turns::new(1);
        turns.offer(1, 1, Pace::Swift);
        turns.started(Pace::Swift, 1, Instant::now());
        assert_eq!(turns.next(), None);
        turns.ended(Some(Pace::Swift), 1);
        assert_eq!(turns.next(), Some(1));
    }

    #[test]
    fn a_host_that_is_sent_enough_waits_and_others_do_not() {
        let (mut turns, now) = (Turns::new(100), Instant::now());
        turns.set_host_limits(HostLimits { max_in_flight: Some(2), rate_limit: None });
        let start = |turns: &mut Turns| {
            let who = turns.next()?;
            turns.started(Pace::Swift, u64::from(who) / 10, now);
            Some(who)
        };
        [10, 11, 12, 13, 20].into_iter().for_each(|who| turns.offer(who, u64::from(who) / 10, Pace::Swift));
        let order: Vec<_> = std::iter::from_fn(|| start(&mut turns)).collect();
        assert_eq!(order, [10, 20, 11]);
        turns.ended(Some(Pace::Swift), 1);
        assert_eq!([start(&mut turns), start(&mut turns)], [Some(12), None]);
        turns.set_host_limits(HostLimits::default());
        assert_eq!(start(&mut turns), Some(13));
    }

    #[test]
    fn a_host_is_sent_no_more_a_second_than_it_may_be() {
        let (mut turns, start) = (Turns::new(100), Instant::now());
        turns.set_host_limits(HostLimits { max_in_flight: None, rate_limit: std::num::NonZeroU32::new(10) });
        let (mut now, mut count) = (start, 0);
        while now < start + std::time::Duration::from_secs(3) {
            (1..=5).for_each(|who| turns.offer(who, 7, Pace::Swift));
            turns.wake(now);
            while turns.next().is_some() {
                count += 1;
                turns.started(Pace::Swift, 7, now);
                turns.ended(Some(Pace::Swift), 7);
            }
            now = turns.next_wakeup().unwrap();
        }
        assert_eq!(count, 31);
    }
}
