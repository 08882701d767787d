//! Standing still and going on: pause, stop, an open breaker, and making room.

use std::collections::BTreeSet;
use std::time::Instant;

use super::{Fate, Linger, Mode, Shared, State, Subscription};
use crate::delivery::outcome::Effect;
use crate::delivery::replay::{KeyFilter, Replay};
use crate::delivery::spilled::Failed;

impl<P: Clone> Subscription<P> {
    /// What nobody has sent leaves memory; from here on it is read from the journal.
    pub fn flip(&mut self, shared: &mut Shared<P>) {
        self.leave_live(shared);
        self.list_unsent(shared);
    }

    /// Sends nothing until it is resumed.
    pub fn pause(&mut self, shared: &mut Shared<P>, now: Option<Instant>) {
        if self.mode != Mode::Stopped {
            self.stand_still(shared, now, Mode::Paused);
        }
    }

    /// Sends nothing, since it is disabled.
    pub fn stop(&mut self, shared: &mut Shared<P>, now: Option<Instant>) {
        self.stand_still(shared, now, Mode::Stopped);
    }

    /// Goes on after a pause or a stop, gently.
    pub fn resume(&mut self, shared: &mut Shared<P>) {
        if matches!(self.mode, Mode::Paused | Mode::Stopped) {
            self.touch(shared);
            self.mode = Mode::Draining;
            self.window.reset();
            self.breaker.reset();
        }
    }

    /// The endpoint may be well by now: what waits for it is tried at once.
    pub fn begin_anew(&mut self, shared: &mut Shared<P>, now: Instant) {
        let mode = if self.mode == Mode::Open { Mode::Draining } else { self.mode };
        self.stand_still(shared, Some(now), mode);
        self.listed.wait_no_more();
        self.hold_until = None;
        self.window.reset();
        self.breaker.reset();
    }

    /// The endpoint fails as a whole.
    pub fn open(&mut self, shared: &mut Shared<P>, now: Instant, jitter: u32) {
        self.stand_still(shared, Some(now), Mode::Open);
        self.breaker.reset();
        self.breaker.wait(now, jitter);
        self.probe_now = false;
        shared.effects.push(Effect::Opened(self.id));
    }

    /// A probe got through.
    pub fn close(&mut self, shared: &mut Shared<P>, now: Instant) {
        self.stand_still(shared, Some(now), Mode::Draining);
        self.breaker.reset();
        self.window.reset();
        shared.effects.push(Effect::Recovered(self.id));
    }

    /// What was sent by another rule has to end before anything goes by the new one.
    pub fn settle(&mut self, shared: &mut Shared<P>, now: Instant) {
        self.stand_still(shared, Some(now), self.mode);
        self.settling = self.under_way() > 0;
    }

    /// All that is not under way leaves memory, with its failures and the time it had still to wait.
    pub fn stand_still(&mut self, shared: &mut Shared<P>, now: Option<Instant>, mode: Mode) {
        self.leave_live(shared);
        self.mode = if mode == Mode::Live { Mode::Draining } else { mode };
        self.linger = Linger::Not;
        self.touch(shared);
        if let Some(work) = &mut self.work {
            for request in work.requests.dissolve() {
                let left = match (request.state, now) {
                    (State::Waiting { due }, Some(now)) => Some(due.saturating_duration_since(now)),
                    _ => None,
                };
                for &slot in &request.members {
                    let delivery = work.lanes.get_mut(slot);
                    delivery.left = left.or(delivery.left).filter(|_| delivery.failures > 0);
                    work.lanes.release(slot);
                }
            }
        }
        self.list_unsent(shared);
    }

    fn leave_live(&mut self, shared: &mut Shared<P>) {
        self.reading = None;
        if self.mode == Mode::Live {
            self.touch(shared);
            self.reach = self.reach.max(shared.last_id);
            self.mode = Mode::Draining;
        }
    }

    fn list_unsent(&mut self, shared: &mut Shared<P>) {
        let Some(work) = &mut self.work else { return };
        let unsent = work.lanes.drain_unsent();
        work.failed = 0;
        let before = self.listed.memory();
        let mut ids = Vec::with_capacity(unsent.len());
        for (id, delivery) in unsent {
            self.discharge(shared, &delivery);
            if let Some((replay_id, _)) = delivery.replay {
                if let Some(replay) = self.replay.as_mut().filter(|replay| replay.id == replay_id) {
                    replay.lost();
                }
            } else if delivery.fate != Fate::Done {
                let at = self.behind_at.get_or_insert(delivery.at);
                *at = (*at).min(delivery.at);
                if delivery.failures > 0 {
                    self.listed.add_failed(id, Failed { failures: delivery.failures, left: delivery.left });
                }
                ids.push(id);
            }
        }
        self.listed.add(ids);
        shared.memory_used += self.listed.memory() - before;
        self.tidy(shared);
    }

    /// Live deliveries that waited for a replay follow when it is over.
    pub fn end_replay_when_over(&mut self, shared: &mut Shared<P>) {
        if self.replay.as_ref().is_some_and(|replay| replay.is_over()) {
            self.end_replay(shared);
        }
    }

    /// Lets go what waited for the replay.
    pub fn end_replay(&mut self, shared: &mut Shared<P>) {
        let Some(replay) = self.replay.take() else { return };
        shared.memory_used -= replay.filter_memory;
        self.list_deferred(shared, replay.deferred);
        if replay.read {
            shared.effects.push(Effect::Replayed(self.id, replay.id));
        }
        self.touch(shared);
    }

    /// The keys of a replay are found: what has waited for it by now is read again, and goes on or waits by its keys.
    pub fn know_keys(&mut self, shared: &mut Shared<P>, keys: KeyFilter) {
        let Some(replay) = &mut self.replay else { return };
        shared.memory_used = shared.memory_used - replay.filter_memory + keys.memory();
        replay.filter_memory = keys.memory();
        replay.filter = keys;
        replay.is_known = true;
        let deferred = std::mem::take(&mut replay.deferred);
        self.list_deferred(shared, deferred);
    }

    fn list_deferred(&mut self, shared: &mut Shared<P>, deferred: BTreeSet<u64>) {
        if deferred.is_empty() {
            return;
        }
        self.leave_live(shared);
        shared.memory_used -= deferred.len() * Replay::DEFERRED_BYTES;
        let before = self.listed.memory();
        self.listed.add(deferred.into_iter().collect());
        shared.memory_used += self.listed.memory() - before;
    }
}
