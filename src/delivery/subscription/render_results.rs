//! What is found out about single members of a request before it is sent: some are not wanted after all, some cannot be
//! made.

use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use smallvec::smallvec;

use super::completion::Failed;
use super::{Fate, Mode, Shared, Subscription};
use crate::delivery::lanes::{Members, Slot};
use crate::delivery::outcome::{End, Record, Sifted};
use crate::delivery::position::DeliveryId;

impl<P: Clone> Subscription<P> {
    /// Takes members out of a request that is under way. One that is dropped is done. One that failed has had an attempt
    /// of its own; what must not overtake it waits again. What is left goes on being under way; nothing: it has ended.
    pub fn sift(
        &mut self,
        shared: &mut Shared<P>,
        (index, serial): (u32, u64),
        sifted: Vec<(DeliveryId, Sifted)>,
        duration: Duration,
        now: Instant,
        jitter: u32,
    ) -> Vec<DeliveryId> {
        let Some(work) = &mut self.work else { return Vec::new() };
        let mut sifted: FxHashMap<u64, Sifted> = sifted.into_iter().map(|(id, what)| (id.0, what)).collect();
        let request = work.requests.get(index);
        let (members, replay) = (request.members.clone(), request.replay);
        let fails = |id| matches!(sifted.get(&id), Some(Sifted::Failed(_)));
        let (kept, rest) = work.lanes.part(&members, |id| !fails(id));
        // One that waits for a member before it is judged anew when its turn comes.
        let (apart, waiting): (Members, Members) =
            rest.into_iter().partition(|&slot| fails(work.lanes.seq(slot)) && work.lanes.is_first(slot));
        waiting.iter().for_each(|&slot| work.lanes.release(slot));
        let keys = kept.iter().map(|&slot| work.lanes.keys_of(slot)).sum();
        work.requests.keep(index, kept.clone(), keys);
        for &slot in &kept {
            let id = self.number_of(slot);
            if id.is_some_and(|id| sifted.remove(&id).is_some()) {
                self.drop_one(shared, slot, duration);
            }
        }
        // A replay may have begun since they were sent.
        let meets_replay = self.are_in_replays_way(&waiting) || self.are_in_replays_way(&apart);
        let left = self.wanted(&kept);
        if left.is_empty() {
            self.end_sifted(shared, index, serial, kept.is_empty());
        }
        for slot in apart {
            let Some(Sifted::Failed(failure)) = self.number_of(slot).and_then(|id| sifted.remove(&id)) else {
                continue;
            };
            self.last_failure_at = Some(now);
            self.last_error = Some(failure.error.clone());
            let serial = shared.next_serial();
            let Some(work) = &mut self.work else { break };
            let attempt = work.lanes.get(slot).failures.saturating_add(1);
            let index = work.requests.start(smallvec![slot], replay, serial, now);
            work.requests.ended(index, serial);
            if self.give_up_skipped(shared, index, 1) {
                continue;
            }
            let failed = Failed { index, attempt, failure, duration, now, jitter };
            // It says nothing about the endpoint, so it is no matter of the breaker's; but nothing dies while that is open.
            if self.mode == Mode::Open {
                self.attempted(shared, &failed, None);
                self.probe_failed(&failed);
            } else {
                self.count(shared, failed);
            }
        }
        if left.is_empty() && self.mode == Mode::Open && self.breaker.probe_at().is_none() {
            self.probe_now = true;
        }
        if self.stands_still() || meets_replay && self.sends() {
            self.stand_still(shared, Some(now), self.mode);
        }
        self.ended(shared);
        left
    }

    fn number_of(&self, slot: Slot) -> Option<u64> {
        self.work.as_ref().map(|work| work.lanes.seq(slot))
    }

    fn wanted(&self, members: &[Slot]) -> Vec<DeliveryId> {
        let Some(work) = &self.work else { return Vec::new() };
        let wanted = members.iter().filter(|&&slot| work.lanes.get(slot).fate != Fate::Done);
        wanted.map(|&slot| DeliveryId(work.lanes.seq(slot))).collect()
    }

    fn drop_one(&mut self, shared: &mut Shared<P>, slot: Slot, duration: Duration) {
        let Some((members, failures, replay)) = self.settle_early(slot) else { return };
        match replay {
            None => self.counts.dropped += 1,
            Some(id) => {
                if let Some(replay) = self.replay.as_mut().filter(|replay| replay.id == id) {
                    replay.progress.delivered += 1;
                }
            }
        }
        let (subscription, end, attempts) = (self.id, End::Dropped, failures + 1);
        shared.records.push(Record::Finished { subscription, members, end, attempts, duration, replay });
    }

    fn end_sifted(&mut self, shared: &mut Shared<P>, index: u32, serial: u64, is_empty: bool) {
        let Some(work) = &mut self.work else { return };
        work.requests.ended(index, serial);
        if is_empty {
            work.requests.remove(index);
        } else {
            self.forget_if_done(shared, index);
        }
    }
}
