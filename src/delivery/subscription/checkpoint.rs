//! Where a subscription stands: what of it is pending, and since when.

use std::time::Instant;

use rustc_hash::FxHashMap;

use super::{At, Shared, State, Subscription, Work};
use crate::delivery::lanes::Slot;
use crate::delivery::position::{DeliveryId, Mode, Pending, Position};
use crate::delivery::spilled::Failed;

impl<P: Clone> Subscription<P> {
    /// How many that are pending nobody has read yet.
    pub fn logged(&self) -> u64 {
        let deferred = self.replay.as_ref().map_or(0, |replay| replay.deferred.len());
        self.counts.pending.saturating_sub((self.listed.len() + deferred + self.in_lanes) as u64)
    }

    /// Where it stands at this time.
    pub fn position(&self, shared: &Shared<P>, now: Instant) -> Position {
        let reach = if self.mode == Mode::Live { self.reach.max(shared.last_id) } else { self.reach };
        let with = |id: u64, failed: Failed| Pending {
            id: DeliveryId(id),
            failures: failed.failures,
            due: failed.left,
        };
        let mut pending: Vec<Pending> = self
            .listed
            .ids()
            .chain(self.replay.iter().flat_map(|replay| replay.deferred.iter().copied()))
            .map(|id| with(id, self.listed.failed(id)))
            .chain(self.listed.failed_beyond(reach).map(|(id, failed)| with(id, failed)))
            .collect();
        if let Some(work) = &self.work {
            let dues = work.dues();
            for (slot, id, delivery) in work.lanes.iter() {
                if delivery.is_pending() {
                    let due = dues.get(&slot).map(|due| due.saturating_duration_since(now));
                    let left = if delivery.failures > 0 { due.or(delivery.left) } else { None };
                    pending.push(with(id, Failed { failures: delivery.failures, left }));
                }
            }
        }
        pending.sort_unstable_by_key(|pending| pending.id);
        let done_ahead = self.done_ahead.range(reach + 1..).map(|&id| DeliveryId(id)).collect();
        Position { mode: self.mode, reach: DeliveryId(reach), pending, done_ahead, counts: self.counts }
    }

    /// What is pending up to the reach and in no request, nor ever was, in order.
    pub fn never_sent(&self) -> Vec<DeliveryId> {
        let deferred = self.replay.iter().flat_map(|replay| replay.deferred.iter().copied());
        let waiting = self.listed.ids().chain(deferred).filter(|&id| self.listed.failed(id).failures == 0);
        let lanes = self.work.iter().flat_map(|work| work.lanes.unheld());
        let in_lanes = lanes.filter(|(_, delivery)| delivery.failures == 0 && delivery.replay.is_none());
        let mut ids: Vec<DeliveryId> = waiting.chain(in_lanes.map(|(id, _)| id)).map(DeliveryId).collect();
        ids.sort_unstable();
        ids
    }

    /// The oldest delivery that may be pending.
    pub fn oldest_pending(&self) -> Option<DeliveryId> {
        let mut lanes = self.work.iter().flat_map(|work| work.lanes.iter());
        let in_lanes = lanes.find(|(_, _, delivery)| delivery.is_pending()).map(|(_, id, _)| id);
        let deferred = self.replay.as_ref().and_then(|replay| replay.deferred.first().copied());
        let logged = (self.mode != Mode::Live && self.logged() > 0).then_some(self.reach + 1);
        [in_lanes, self.listed.oldest(), deferred, logged].into_iter().flatten().min().map(DeliveryId)
    }

    /// When the oldest that is not done was committed; while some wait in the journal, perhaps somewhat before.
    pub fn oldest_at(&self) -> Option<At> {
        let in_lanes = self.work.iter().flat_map(|work| work.lanes.iter()).next();
        in_lanes.map(|(.., delivery)| delivery.at).into_iter().chain(self.behind_at).min()
    }
}

impl<P> Work<P> {
    /// When those that wait are due.
    fn dues(&self) -> FxHashMap<Slot, Instant> {
        let waiting = self.requests.iter().filter_map(|(_, request)| match request.state {
            State::Waiting { due } => Some((due, request)),
            _ => None,
        });
        waiting.flat_map(|(due, request)| request.members.iter().map(move |&slot| (slot, due))).collect()
    }
}
