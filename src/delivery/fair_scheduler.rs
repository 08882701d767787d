//! Whose turn it is: round robin among hosts, and among the subscriptions of a host, that have something to send.

use std::collections::VecDeque;
use std::time::Instant;

use rustc_hash::{FxHashMap, FxHashSet};

use super::limits::host_limits::{HostLimits, Hosts};

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

/// What decides whether a subscription may send one request more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub pace: Pace,
    /// Its requests under way.
    pub under_way: usize,
    pub last_success_at: Option<Instant>,
}

/// The rings of those that may send, and how many requests there is room for. Idle subscriptions cost nothing but their
/// seat.
///
/// Requests that hang never take all of the room. The slow have a ring of their own, which gets half of it at most. Any
/// endpoint may hang from now on, however quick it was, so the last quarter is for those that have answered since it was
/// reached. Each of the others gets a single request there, on trial, and few are on trial at once: the less room is
/// left, the fewer. The last sixteenth is for single requests to those that have answered.
pub(super) struct Turns {
    /// By pace, and then those that wait for a trial.
    rings: [Ring; 5],
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
    /// Since when three quarters of the room have been taken, until it is half.
    crowded_since: Option<Instant>,
    /// How many are on trial.
    trials: usize,
    /// Those that may send no second request before the first is answered, or there is more room.
    held: Vec<u32>,
}

/// The rings of those that wait for a trial stand behind the others.
const TRIAL: usize = 3;
/// The part of the free room that may be on trial at once.
const TRIAL_SHARE: usize = 16;

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
    place: Option<(usize, u64)>,
    number: u32,
    /// Its request under way has to show that it is answered.
    is_on_trial: bool,
    is_held: bool,
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
            crowded_since: None,
            trials: 0,
            held: Vec::new(),
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
            self.admit_host(host);
        }
    }

    /// When to call [`Turns::wake`].
    pub fn next_wakeup(&self) -> Option<Instant> {
        self.hosts.next_due()
    }

    fn admit_host(&mut self, host: u64) {
        for ring in &mut self.rings {
            if ring.waiting.remove(&host) {
                ring.hosts.push_back(host);
            }
        }
    }

    /// This one has something to send to this host and may; it waits its turn after the others.
    pub fn offer(&mut self, who: u32, host: u64, pace: Pace) {
        let trial = TRIAL + pace as usize;
        let waits_for_trial = self.seat(who).place == Some((trial, host));
        self.offer_at(who, host, if waits_for_trial { trial } else { pace as usize });
    }

    fn offer_at(&mut self, who: u32, host: u64, ring: usize) {
        let seat = self.seat(who);
        let is_new = !std::mem::replace(&mut seat.offered, true);
        if seat.place != Some((ring, host)) {
            seat.place = Some((ring, host));
            seat.number = seat.number.wrapping_add(1);
            let entry = (who, seat.number);
            let ring = &mut self.rings[ring];
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
        for ring in 0..self.rings.len() {
            let ring = (self.next + ring) % self.rings.len();
            if !self.has_room(ring) {
                continue;
            }
            while let Some((who, number)) = self.rings[ring].pop(&self.hosts) {
                let seat = self.seat(who);
                if seat.number == number {
                    seat.place = None;
                    if std::mem::take(&mut seat.offered) {
                        self.next = (ring + 1) % self.rings.len();
                        self.offered -= 1;
                        return Some(who);
                    }
                }
            }
        }
        None
    }

    /// Whether the one whose turn it is may send; else it waits for a trial, or to be taken by [`Turns::take_held`].
    pub fn admit(&mut self, who: u32, host: u64, candidate: Candidate) -> bool {
        if self.has_room_for(candidate) {
            return true;
        }
        if candidate.under_way == 0 {
            let is_slow = candidate.pace == Pace::Slow;
            self.offer_at(who, host, candidate.pace as usize + if is_slow { 0 } else { TRIAL });
        } else if !std::mem::replace(&mut self.seat(who).is_held, true) {
            self.held.push(who);
        }
        false
    }

    /// Takes one that [`Turns::admit`] held back, when there is room again.
    pub fn take_held(&mut self) -> Option<u32> {
        if !self.is_roomy() {
            return None;
        }
        let who = self.held.pop()?;
        self.seat(who).is_held = false;
        Some(who)
    }

    /// Whether there is room for a request of this one.
    pub fn has_room_for(&self, candidate: Candidate) -> bool {
        let has_room = self.in_flight < self.limit && self.has_room(candidate.pace as usize);
        has_room && (self.has_proven_room(candidate) || candidate.under_way == 0 && self.may_try())
    }

    /// Whether some wait until those on trial are answered, or known to be slow.
    pub fn awaits_trials(&self) -> bool {
        self.trials > 0 && self.rings[TRIAL..].iter().any(|ring| !ring.hosts.is_empty())
    }

    /// Whether more than a quarter of the room is left.
    fn is_roomy(&self) -> bool {
        self.in_flight < self.limit - self.limit / 4
    }

    /// Whether there is room without a trial.
    fn has_proven_room(&self, candidate: Candidate) -> bool {
        let is_proven = self.crowded_since.is_some_and(|since| candidate.last_success_at >= Some(since));
        self.is_roomy() || is_proven && (candidate.under_way == 0 || !self.is_last_room())
    }

    /// Whether one more may be on trial.
    fn may_try(&self) -> bool {
        let free = self.limit.saturating_sub(self.in_flight);
        !self.is_last_room() && self.trials < (free / TRIAL_SHARE).max(1)
    }

    /// Whether no more than a sixteenth of the room is left.
    fn is_last_room(&self) -> bool {
        self.limit.saturating_sub(self.in_flight) <= (self.limit / 16).max(1)
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
        let [.., slow] = self.by_pace;
        match ring {
            2 => self.is_roomy() && slow < (self.limit / 2).max(1),
            TRIAL.. => self.is_roomy() || self.may_try(),
            _ => true,
        }
    }

    /// A request of this one to this host has started.
    pub fn started(&mut self, who: u32, host: u64, candidate: Candidate, now: Instant) {
        if !self.has_proven_room(candidate) && !std::mem::replace(&mut self.seat(who).is_on_trial, true) {
            self.trials += 1;
        }
        self.hosts.started(host, now);
        self.in_flight += 1;
        self.by_pace[candidate.pace as usize] += 1;
        if !self.is_roomy() {
            self.crowded_since.get_or_insert(now);
        }
    }

    /// A request to this host has ended, however it did; of nobody if its subscription has gone before it.
    pub fn ended(&mut self, whose: Option<(u32, Pace)>, host: u64) {
        self.hosts.ended(host);
        self.admit_host(host);
        self.in_flight = self.in_flight.saturating_sub(1);
        if 2 * self.in_flight <= self.limit {
            self.crowded_since = None;
        }
        if let Some((who, pace)) = whose {
            self.forget(who, pace, 1);
        }
    }

    /// This many requests under way go at another pace.
    pub fn changed(&mut self, who: u32, from: Pace, to: Pace, requests: usize) {
        self.forget(who, from, requests);
        self.by_pace[to as usize] += requests;
    }

    /// This many requests under way are nobody's any more.
    pub fn forget(&mut self, who: u32, pace: Pace, requests: usize) {
        let by_pace = &mut self.by_pace[pace as usize];
        *by_pace = by_pace.saturating_sub(requests);
        self.trials -= usize::from(std::mem::take(&mut self.seat(who).is_on_trial));
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
mod tests;
