//! What becomes of a request that has ended, and of deliveries that are given up.

use std::time::{Duration, Instant};

use super::{Delivery, Fate, Mode, QUICK, Shared, Subscription};
use crate::delivery::lanes::{Members, Slot};
use crate::delivery::outcome::{
    Disabled, Effect, End, Failure, FailureClass, Members as Recorded, Record, Skipped, Success,
};
use crate::delivery::position::DeliveryId;

/// How what was skipped has ended.
pub(super) fn skipped() -> End {
    End::Dead { status: None, kind: "", reason: "skipped".to_owned() }
}

/// Failures with the same members after which a batch is halved.
const FAILURES_TO_HALVE: u32 = 2;

impl<P: Clone> Subscription<P> {
    /// A request got through.
    pub fn succeeded(&mut self, shared: &mut Shared<P>, index: u32, success: Success, now: Instant) {
        let Some(work) = &mut self.work else { return };
        let request = work.requests.remove(index);
        let attempts = match request.members.as_slice() {
            [slot] => work.lanes.get(*slot).failures + 1,
            _ => request.failures + 1,
        };
        let members = self.finish(shared, &request.members);
        let delivered = members.len() as u64;
        if let Some(id) = request.replay {
            if let Some(replay) = self.replay.as_mut().filter(|replay| replay.id == id) {
                replay.progress.delivered += delivered;
            }
        } else {
            self.counts.delivered += delivered;
        }
        if !members.is_empty() {
            shared.records.push(Record::Finished {
                subscription: self.id,
                members,
                end: End::Delivered { status: success.status, flaw: success.flaw },
                attempts,
                duration: success.duration,
                replay: request.replay,
            });
        }
        self.quick = if success.duration <= QUICK { self.quick.saturating_add(1) } else { 0 };
        self.last_success_at = Some(now);
        self.last_status = Some(success.status);
        self.latency.record(success.duration);
        self.window.succeeded(self.settings.max_in_flight);
        if self.mode == Mode::Open {
            self.close(shared, now);
        } else {
            self.breaker.reset();
        }
        self.ended(shared);
    }

    /// A request failed. `jitter` is a random number.
    pub fn failed(
        &mut self,
        shared: &mut Shared<P>,
        index: u32,
        sent_at: Instant,
        ended: (Failure, Duration),
        now: Instant,
        jitter: u32,
    ) {
        let (failure, duration) = ended;
        self.quick = 0;
        self.last_failure_at = Some(now);
        self.last_status = failure.status;
        self.last_error = Some(failure.error.clone());
        if self.give_up_skipped(shared, index, 1) {
            return self.ended(shared);
        }
        let (meets_replay, is_too_large) = (self.meets_replay(index), self.is_too_large(index));
        let Some(work) = &mut self.work else { return };
        let request = work.requests.get(index);
        let first = request.members[0];
        let delivery = work.lanes.seq(first);
        let attempt = request.failures.max(work.lanes.get(first).failures) + 1;
        let failed = Failed { index, attempt, failure, duration, now, jitter };
        if matches!(failed.failure.class, FailureClass::Connection | FailureClass::Busy) {
            self.window.halve(sent_at, now);
        }
        match failed.failure.class {
            FailureClass::Gone => {
                self.attempted(shared, &failed, None);
                self.again(index);
                self.stop(shared, Some(now));
                shared.effects.push(Effect::Disable(self.id, Disabled::Gone));
            }
            FailureClass::Busy => {
                let hold = self.window.hold(failed.failure.retry_after, jitter);
                self.attempted(shared, &failed, Some(hold));
                self.hold_until = self.hold_until.max(Some(now + hold));
                if self.mode == Mode::Open {
                    self.probe_failed(&failed);
                } else {
                    self.again(index);
                }
            }
            _ if self.mode == Mode::Open => {
                self.attempted(shared, &failed, None);
                self.probe_failed(&failed);
            }
            class if self.breaker.failed(delivery, class) && self.sends() => {
                self.attempted(shared, &failed, None);
                self.again(index);
                self.open(shared, now, jitter);
            }
            _ => self.count(shared, failed),
        }
        // What stands still has nothing in the lanes, nor has what must let a replay pass or be split up.
        if self.stands_still() || is_too_large || meets_replay && self.sends() {
            self.stand_still(shared, Some(now), self.mode);
        }
        self.ended(shared);
    }

    /// A request that was handed over ahead comes back, not sent.
    pub fn handed_back(&mut self, shared: &mut Shared<P>, index: u32, now: Instant) {
        self.quick = 0;
        if self.give_up_skipped(shared, index, 0) {
            return self.ended(shared);
        }
        let (meets_replay, is_too_large) = (self.meets_replay(index), self.is_too_large(index));
        match &mut self.work {
            Some(work) if self.mode == Mode::Open => work.requests.probed(index),
            _ => self.again(index),
        }
        if self.stands_still() || is_too_large || meets_replay && self.sends() {
            self.stand_still(shared, Some(now), self.mode);
        }
        self.ended(shared);
    }

    /// Whether a live request holds keys that a replay wants.
    fn meets_replay(&self, index: u32) -> bool {
        let Some(work) = &self.work else { return false };
        self.are_in_replays_way(&work.requests.get(index).members)
    }

    /// Whether a live one of these holds keys that a replay wants.
    pub(super) fn are_in_replays_way(&self, slots: &[Slot]) -> bool {
        let (Some(replay), Some(work)) = (&self.replay, &self.work) else { return false };
        slots.iter().any(|&slot| {
            work.lanes.get(slot).replay.is_none()
                && replay.holds(&work.lanes.order(slot), self.settings.ordering)
        })
    }

    /// Whether a request holds more than its subscription takes by now.
    fn is_too_large(&self, index: u32) -> bool {
        let batch_size = self.settings.batch_size as usize;
        self.work.as_ref().is_some_and(|work| work.requests.get(index).members.len() > batch_size)
    }

    /// Whether what has ended leaves memory.
    pub(super) fn stands_still(&self) -> bool {
        self.settling || matches!(self.mode, Mode::Paused | Mode::Stopped)
    }

    pub(super) fn sends(&self) -> bool {
        matches!(self.mode, Mode::Live | Mode::Draining)
    }

    pub(super) fn probe_failed(&mut self, failed: &Failed) {
        // Until the probe goes out, what fails was under way when the breaker opened and says nothing new.
        if self.breaker.probe_at().is_none() {
            self.breaker.wait(failed.now, failed.jitter);
            self.probe_now = false;
        }
        if let Some(work) = &mut self.work {
            work.requests.probed(failed.index);
        }
    }

    /// Tries a request again that has not been counted.
    fn again(&mut self, index: u32) {
        let Some(work) = &mut self.work else { return };
        let request = work.requests.get(index);
        let slot = request.members[0];
        if request.members.len() == 1 && work.lanes.get(slot).failures == 0 {
            work.requests.remove(index);
            work.lanes.release(slot);
        } else {
            work.requests.again(index, work.lanes.seq(slot));
        }
    }

    /// Counts an attempt: against the delivery if it was alone, else against the batch.
    pub(super) fn count(&mut self, shared: &mut Shared<P>, failed: Failed) {
        let Some(work) = &mut self.work else { return };
        let request = work.requests.get_mut(failed.index);
        let keys = request.members.iter().map(|&slot| work.lanes.keys_of(slot)).sum();
        let schedule = &self.settings.schedule;
        let retry_after = failed.failure.retry_after;
        if let [slot] = *request.members.as_slice() {
            let delivery = work.lanes.get_mut(slot);
            delivery.failures = delivery.failures.saturating_add(1);
            match schedule.delay(delivery.failures, retry_after, failed.jitter) {
                Some(delay) => {
                    work.requests.wait(failed.index, failed.now + delay);
                    work.requests.block(failed.index, keys);
                    self.attempted(shared, &failed, Some(delay));
                }
                None => {
                    self.attempted(shared, &failed, None);
                    self.die(shared, failed);
                }
            }
            return;
        }
        request.failures += 1;
        let refused = failed.failure.class == FailureClass::Content;
        if refused || request.part || request.failures >= FAILURES_TO_HALVE {
            self.attempted(shared, &failed, Some(Duration::ZERO));
            self.halve(shared, failed.index);
        } else {
            let delay = schedule.delay(1, retry_after, failed.jitter).unwrap_or_default();
            work.requests.wait(failed.index, failed.now + delay);
            work.requests.block(failed.index, keys);
            self.attempted(shared, &failed, Some(delay));
        }
    }

    /// Two requests of one that failed. What depends on the first half cannot be in the second and waits by itself.
    fn halve(&mut self, shared: &mut Shared<P>, index: u32) {
        let Some(work) = &mut self.work else { return };
        let request = work.requests.remove(index);
        let (first, second) = request.members.split_at(request.members.len().div_ceil(2));
        let (second, dependent) = work.lanes.part(second, |_| true);
        dependent.into_iter().for_each(|slot| work.lanes.release(slot));
        for half in [Members::from_slice(first), second] {
            let (Some(&oldest), Some(work)) = (half.first(), &mut self.work) else { continue };
            let seq = work.lanes.seq(oldest);
            let keys = half.iter().map(|&slot| work.lanes.keys_of(slot)).sum();
            let half = work.requests.add_ready(half, request.replay, true, seq);
            work.requests.block(half, keys);
            self.forget_if_done(shared, half);
        }
    }

    fn die(&mut self, shared: &mut Shared<P>, failed: Failed) {
        let Some(work) = &mut self.work else { return };
        let request = work.requests.remove(failed.index);
        let members = self.finish(shared, &request.members);
        let Failure { status, kind, error, .. } = failed.failure;
        let end = End::Dead { status, kind, reason: error };
        self.record_dead(shared, members, end, failed.attempt, failed.duration, request.replay);
    }

    fn record_dead(
        &mut self,
        shared: &mut Shared<P>,
        members: Recorded<P>,
        end: End,
        attempts: u32,
        duration: Duration,
        replay: Option<i64>,
    ) {
        let kind = if let End::Dead { kind, .. } = end { kind } else { "" };
        let dead = members.len() as u64;
        if dead == 0 {
            return;
        }
        match replay {
            None => self.counts.dead += dead,
            Some(id) => {
                if let Some(replay) = self.replay.as_mut().filter(|replay| replay.id == id) {
                    replay.progress.dead += dead;
                }
            }
        }
        for (id, _) in &members {
            shared.effects.push(Effect::DeadLetter(self.id, *id, kind));
        }
        let subscription = self.id;
        shared.records.push(Record::Finished { subscription, members, end, attempts, duration, replay });
        self.touch(shared);
    }

    /// Takes the members of a request out of the lanes, done; those that were not done before.
    fn finish(&mut self, shared: &mut Shared<P>, members: &[Slot]) -> Recorded<P> {
        self.touch(shared);
        let mut recorded = Recorded::with_capacity(members.len());
        for &slot in members {
            let Some(work) = &mut self.work else { break };
            let id = work.lanes.seq(slot);
            let delivery = work.lanes.finish(slot);
            self.discharge(shared, &delivery);
            self.left_replay(&delivery);
            if delivery.fate != Fate::Done {
                self.no_longer_pending(&delivery);
                recorded.push((DeliveryId(id), delivery.payload));
            }
        }
        recorded
    }

    pub(super) fn no_longer_pending(&mut self, delivery: &Delivery<P>) {
        if delivery.replay.is_none() {
            self.counts.pending = self.counts.pending.saturating_sub(1);
            self.counts.pending_bytes = self.counts.pending_bytes.saturating_sub(delivery.charge as u64);
        }
    }

    pub(super) fn left_replay(&mut self, delivery: &Delivery<P>) {
        if let (Some(replay), Some((id, page))) = (&mut self.replay, delivery.replay)
            && replay.id == id
        {
            replay.done(page);
        }
    }

    /// A failure is an end for what somebody wanted skipped meanwhile, after so many attempts `more`. Whether nothing is left of
    /// the request.
    pub(super) fn give_up_skipped(&mut self, shared: &mut Shared<P>, index: u32, more: u32) -> bool {
        let Some(work) = &self.work else { return true };
        let members = work.requests.get(index).members.iter();
        let skipped = |slot: &&Slot| work.lanes.get(**slot).fate == Fate::SkippedIfItFails;
        let skipped: Vec<Slot> = members.filter(skipped).copied().collect();
        skipped.iter().for_each(|&slot| self.give_up(shared, slot, more));
        !skipped.is_empty() && self.forget_if_done(shared, index)
    }

    /// Puts one on record as skipped; it keeps its place until its turn.
    fn give_up(&mut self, shared: &mut Shared<P>, slot: Slot, more: u32) {
        let Some((members, failures, replay)) = self.settle_early(slot) else { return };
        self.record_dead(shared, members, skipped(), failures + more, Duration::ZERO, replay);
    }

    /// Takes one off the books that keeps its place until its turn; for the record what it carries, its failed attempts
    /// and the replay it belongs to. None if that was done before.
    pub(super) fn settle_early(&mut self, slot: Slot) -> Option<(Recorded<P>, u32, Option<i64>)> {
        let work = self.work.as_mut()?;
        let id = work.lanes.seq(slot);
        let delivery = work.lanes.get_mut(slot);
        if std::mem::replace(&mut delivery.fate, Fate::Done) == Fate::Done {
            return None;
        }
        let (failures, bytes) = (delivery.failures, delivery.charge as u64);
        let (payload, replay) = (delivery.payload.clone(), delivery.replay.map(|(id, _)| id));
        if replay.is_none() {
            self.in_lanes -= 1;
            self.counts.pending = self.counts.pending.saturating_sub(1);
            self.counts.pending_bytes = self.counts.pending_bytes.saturating_sub(bytes);
        }
        Some((Recorded::from_iter([(DeliveryId(id), payload)]), failures, replay))
    }

    /// Gives a delivery up, wherever it is.
    pub fn skip(&mut self, shared: &mut Shared<P>, id: u64) -> Skipped {
        let found = self.work.as_ref().and_then(|work| work.lanes.iter().find(|(_, seq, _)| *seq == id));
        if let Some((slot, ..)) = found {
            return self.skip_in_lanes(shared, slot);
        }
        let is_deferred = self.replay.as_ref().is_some_and(|replay| replay.deferred.contains(&id));
        let is_logged = self.mode != Mode::Live && id > self.reach;
        if !(is_deferred || self.listed.contains(id) || is_logged && !self.done_ahead.contains(&id)) {
            return Skipped::NotPending;
        }
        if !self.skips.contains(&id) {
            self.skips.push(id);
        }
        Skipped::Soon
    }

    fn skip_in_lanes(&mut self, shared: &mut Shared<P>, slot: Slot) -> Skipped {
        let Some(work) = &mut self.work else { return Skipped::NotPending };
        if work.lanes.get(slot).fate == Fate::Done {
            return Skipped::NotPending;
        }
        let request = work.requests.iter().find(|(_, request)| request.members.contains(&slot));
        let request = request.map(|(index, request)| (index, request.is_under_way()));
        match request {
            Some((_, true)) => {
                work.lanes.get_mut(slot).fate = Fate::SkippedIfItFails;
                return Skipped::UnlessItSucceeds;
            }
            Some((index, false)) => {
                self.give_up(shared, slot, 0);
                self.forget_if_done(shared, index);
            }
            None => self.give_up(shared, slot, 0),
        }
        self.ended(shared);
        Skipped::Now
    }

    /// A request goes whose members have all been given up.
    pub(super) fn forget_if_done(&mut self, shared: &mut Shared<P>, index: u32) -> bool {
        let Some(work) = &mut self.work else { return true };
        let members = &work.requests.get(index).members;
        let over = members.iter().all(|&slot| work.lanes.get(slot).fate == Fate::Done);
        if over {
            let request = work.requests.remove(index);
            self.finish(shared, &request.members);
        }
        over
    }

    /// Something may be over with the request that has ended.
    pub(super) fn ended(&mut self, shared: &mut Shared<P>) {
        self.touch(shared);
        if self.settling && self.under_way() == 0 {
            self.settling = false;
        }
        self.end_replay_when_over(shared);
        self.tidy(shared);
    }

    pub(super) fn attempted(
        &mut self,
        shared: &mut Shared<P>,
        failed: &Failed,
        next_attempt_in: Option<Duration>,
    ) {
        let Some(work) = &self.work else { return };
        let request = work.requests.get(failed.index);
        let lanes = &work.lanes;
        let wanted = request.members.iter().filter(|&&slot| lanes.get(slot).fate != Fate::Done);
        let members: Recorded<P> =
            wanted.map(|&slot| (DeliveryId(lanes.seq(slot)), lanes.get(slot).payload.clone())).collect();
        if members.is_empty() {
            return;
        }
        shared.records.push(Record::Attempt {
            subscription: self.id,
            members,
            attempt: failed.attempt,
            failure: failed.failure.clone(),
            duration: failed.duration,
            next_attempt_in,
            failures: lanes.get(request.members[0]).failures,
            replay: request.replay,
        });
        self.touch(shared);
    }
}

/// An attempt that has failed.
pub(super) struct Failed {
    pub index: u32,
    pub attempt: u32,
    pub failure: Failure,
    pub duration: Duration,
    pub now: Instant,
    pub jitter: u32,
}
