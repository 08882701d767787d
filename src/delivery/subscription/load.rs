//! Reading the journal: what to ask for next, and taking it in.

use super::{At, Delivery, Fate, Mode, Order, Shared, Subscription};
use crate::delivery::outcome::Record;
use crate::delivery::position::DeliveryId;
use crate::delivery::replay::Replay;

/// A page holds no more bytes than this, so that no read takes long.
const PAGE_BYTES: usize = 2 << 20;
/// Nor more numbers.
const PAGE_IDS: usize = 4096;
/// What may always be read by who has nothing in memory.
const LEAST_BYTES: usize = 16 << 10;

/// What has been asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::delivery) enum Reading {
    /// One that is to be given up.
    Skip(u64),
    /// The oldest of the list, this many.
    Listed(Vec<u64>),
    /// What follows the reach.
    Log,
    /// More of this replay, behind this place.
    Replay(i64, u64),
}

/// A delivery that the journal holds.
pub(in crate::delivery) struct Held<P> {
    pub id: u64,
    pub order: Order,
    pub at: At,
    pub payload: P,
    pub charge: usize,
}

impl<P: Clone> Subscription<P> {
    /// What it wants read now, and how many bytes of it.
    pub fn wants(&self, shared: &Shared<P>) -> Option<(Reading, usize)> {
        if self.reading.is_some() {
            return None;
        }
        if let Some(&id) = self.skips.last() {
            return Some((Reading::Skip(id), LEAST_BYTES));
        }
        let work = self.work.as_ref();
        let dry = work.is_none_or(|work| work.lanes.unsent() == 0 && !work.requests.has_ready());
        match self.mode {
            Mode::Paused | Mode::Stopped => return None,
            Mode::Open => {
                let heads_left = work.is_some_and(|work| work.lanes.is_ready());
                let may = self.charged < shared.share() && !heads_left;
                return if may { self.next_to_probe(shared).map(|what| (what, LEAST_BYTES)) } else { None };
            }
            _ if self.settling => return None,
            Mode::Live | Mode::Draining => {}
        }
        let share = shared.share();
        let room = share.saturating_sub(self.charged);
        if room < share / 4 && !(dry && room > 0) && !self.has_nothing() {
            return None;
        }
        let (what, room) = self.next_of_all(shared, share, room)?;
        let headroom = shared.room_to_read();
        if headroom < LEAST_BYTES.min(share / 4) && !dry {
            return None;
        }
        Some((what, room.min(headroom).clamp(LEAST_BYTES.min(share / 4).max(1), PAGE_BYTES)))
    }

    /// A replay goes before all else, which may wait for it.
    fn next_to_probe(&self, shared: &Shared<P>) -> Option<Reading> {
        match self.replay.as_ref().filter(|replay| replay.is_known && !replay.read) {
            Some(replay) => Some(Reading::Replay(replay.id, replay.cursor)),
            None if self.at_tail && self.listed.is_empty() => None,
            None => self.next_of_log(shared),
        }
    }

    fn has_nothing(&self) -> bool {
        self.work.is_none()
    }

    /// A replay and the rest take turns, and the replay takes half of the room.
    fn next_of_all(&self, shared: &Shared<P>, share: usize, room: usize) -> Option<(Reading, usize)> {
        let replay = self.replay.as_ref();
        let replay = replay.filter(|it| it.is_known && !it.read && it.charged <= share / 2);
        let replay = replay.map(|replay| (Reading::Replay(replay.id, replay.cursor), room.min(share / 2)));
        let log = if self.mode == Mode::Draining {
            self.next_of_log(shared).map(|what| (what, room))
        } else {
            None
        };
        if self.replay_read_last { log.or(replay) } else { replay.or(log) }
    }

    fn next_of_log(&self, shared: &Shared<P>) -> Option<Reading> {
        let deferred =
            self.replay.as_ref().map_or(0, |replay| replay.deferred.len() * Replay::DEFERRED_BYTES);
        if deferred > shared.share() {
            return None;
        }
        if self.listed.is_empty() {
            return Some(Reading::Log);
        }
        Some(Reading::Listed(Vec::new()))
    }

    /// Asks for it.
    pub fn read(&mut self, shared: &Shared<P>) -> Option<(&Reading, usize)> {
        let (what, bytes) = self.wants(shared)?;
        let what = match what {
            Reading::Listed(_) => {
                let average = self.counts.pending_bytes / self.counts.pending.max(1);
                let count = bytes / (average as usize + Self::DELIVERY_BYTES);
                Reading::Listed(self.listed.first(count.clamp(1, PAGE_IDS)))
            }
            what => what,
        };
        self.arrived_since = false;
        self.replay_read_last = matches!(what, Reading::Replay(..));
        Some((self.reading.insert(what), bytes))
    }

    /// Takes in what was asked for: all there is of it up to `upto`.
    pub fn page(&mut self, shared: &mut Shared<P>, items: Vec<Held<P>>, upto: u64, at_tail: bool) {
        let Some(reading) = self.reading.take() else { return };
        self.touch(shared);
        let newest = items.last().map(|item| item.at);
        match reading {
            Reading::Skip(id) => return self.page_to_skip(shared, id, items),
            Reading::Replay(id, _) => return self.page_of_replay(shared, id, items, upto, at_tail),
            Reading::Listed(ref ids) => {
                let last = ids.last().copied().unwrap_or_default();
                self.page_of_list(shared, items, upto.min(last));
            }
            Reading::Log => self.page_of_log(shared, items, upto),
        }
        if newest.is_some() {
            self.behind_at = newest;
        }
        self.at_tail = at_tail && reading == Reading::Log && !self.arrived_since;
        if self.at_tail && self.listed.is_empty() && self.mode == Mode::Draining && !self.settling {
            self.go_live(shared);
        }
    }

    /// All that is pending is in memory. What is counted is what is there, whatever has been erased from the journal.
    fn go_live(&mut self, shared: &mut Shared<P>) {
        self.mode = Mode::Live;
        self.reach = self.reach.max(shared.last_id);
        self.done_ahead.clear();
        if self.replay.as_ref().is_some_and(|replay| !replay.deferred.is_empty()) {
            return;
        }
        self.behind_at = None;
        let lanes = self.work.iter().flat_map(|work| work.lanes.iter());
        let charges =
            lanes.filter(|(.., delivery)| delivery.is_pending()).map(|(.., delivery)| delivery.charge);
        (self.counts.pending, self.counts.pending_bytes) =
            charges.fold((0, 0), |(count, bytes), charge| (count + 1, bytes + charge as u64));
    }

    fn page_of_list(&mut self, shared: &mut Shared<P>, items: Vec<Held<P>>, upto: u64) {
        let mut items = items.into_iter().peekable();
        while let Some(id) = self.listed.oldest().filter(|&id| id <= upto) {
            while items.next_if(|item| item.id < id).is_some() {}
            let before = self.listed.memory();
            self.listed.pop(upto);
            shared.memory_used -= before - self.listed.memory();
            match items.next_if(|item| item.id == id) {
                Some(item) => self.take_in(shared, item),
                // It has been erased.
                None => {
                    self.forget_failed(shared, id);
                    self.counts.pending = self.counts.pending.saturating_sub(1);
                }
            }
        }
    }

    fn page_of_log(&mut self, shared: &mut Shared<P>, items: Vec<Held<P>>, upto: u64) {
        for item in items {
            if item.id > self.reach && item.id <= upto && !self.done_ahead.remove(&item.id) {
                self.reach = item.id;
                self.take_in(shared, item);
            }
        }
        self.reach = self.reach.max(upto);
        self.done_ahead = self.done_ahead.split_off(&(self.reach + 1));
    }

    fn take_in(&mut self, shared: &mut Shared<P>, item: Held<P>) {
        if self.defer(shared, item.id, &item.order) {
            return;
        }
        let failed = self.forget_failed(shared, item.id);
        let mut delivery = Delivery::new(item.payload, item.charge, item.at);
        delivery.failures = failed.failures;
        delivery.left = failed.left;
        self.admit(shared, item.id, item.order, delivery);
    }

    fn forget_failed(&mut self, shared: &mut Shared<P>, id: u64) -> crate::delivery::spilled::Failed {
        let before = self.listed.memory();
        let failed = self.listed.take_failed(id);
        shared.memory_used -= before - self.listed.memory();
        failed
    }

    fn page_of_replay(
        &mut self,
        shared: &mut Shared<P>,
        id: i64,
        items: Vec<Held<P>>,
        upto: u64,
        at_end: bool,
    ) {
        let Some(replay) = self.replay.as_mut().filter(|replay| replay.id == id) else { return };
        items.iter().for_each(|item| replay.filter.add(&item.order));
        let page = replay.page(upto, items.len());
        replay.read = at_end;
        for item in items {
            let replay = Some((id, page));
            let delivery = Delivery { replay, ..Delivery::new(item.payload, item.charge, item.at) };
            self.admit(shared, item.id, item.order, delivery);
        }
        self.end_replay_when_over(shared);
    }

    fn page_to_skip(&mut self, shared: &mut Shared<P>, id: u64, items: Vec<Held<P>>) {
        self.skips.retain(|&skip| skip != id);
        let in_lanes = self.work.as_ref().is_some_and(|work| work.lanes.iter().any(|(_, seq, _)| seq == id));
        if in_lanes {
            self.skip(shared, id);
            return;
        }
        let Some(item) = items.into_iter().find(|item| item.id == id) else { return };
        let before = self.listed.memory();
        let was_listed = self.listed.remove(id);
        shared.memory_used -= before - self.listed.memory();
        let was_deferred = self.take_deferred(shared, id);
        let is_beyond = id > self.reach && self.mode != Mode::Live && self.done_ahead.insert(id);
        if was_listed || was_deferred || is_beyond {
            let failed = self.forget_failed(shared, id);
            let delivery = Delivery { fate: Fate::Done, ..Delivery::new(item.payload, item.charge, item.at) };
            self.no_longer_pending(&delivery);
            self.counts.dead += 1;
            shared.records.push(Record::Finished {
                subscription: self.id,
                members: [(DeliveryId(id), delivery.payload)].into_iter().collect(),
                end: super::completion::skipped(),
                attempts: failed.failures,
                duration: std::time::Duration::ZERO,
                replay: None,
            });
        }
    }

    fn take_deferred(&mut self, shared: &mut Shared<P>, id: u64) -> bool {
        let Some(replay) = &mut self.replay else { return false };
        let was_deferred = replay.deferred.remove(&id);
        shared.memory_used -= usize::from(was_deferred) * Replay::DEFERRED_BYTES;
        was_deferred
    }
}
