//! Replays: ranges of the journal that are sent again.

use std::time::Instant;

use super::Engine;
use crate::delivery::outcome::SubscriptionId;
use crate::delivery::position::DeliveryId;
use crate::delivery::replay::{KeyFilter, Replay, ReplayProgress};

impl<P: Clone> Engine<P> {
    /// A replay that was under way before a restart goes on behind `after`, once its keys are told by
    /// [`Engine::replay_begin`]. Until then everything of the subscription waits, since it might be newer than what is still
    /// to be sent again. False when there is no such subscription, or it has a replay already.
    pub fn replay_resume(
        &mut self,
        id: SubscriptionId,
        replay: i64,
        after: DeliveryId,
        now: Instant,
    ) -> bool {
        let resumed = self.with(id, |subscription, shared| {
            if subscription.replay.is_some() {
                return false;
            }
            let replay = Replay::new(replay, after.0);
            shared.memory_used += replay.filter_memory;
            subscription.stand_still(shared, Some(now), subscription.mode);
            subscription.replay = Some(Box::new(replay));
            true
        });
        resumed.unwrap_or(false)
    }

    /// Sends a range of the journal again, before all of its keys that has not been sent: reading goes on behind
    /// `after`. `keys` has the keys of the whole range. False when there is no such subscription, or it has another
    /// replay already.
    pub fn replay_begin(
        &mut self,
        id: SubscriptionId,
        replay: i64,
        after: DeliveryId,
        keys: KeyFilter,
        now: Instant,
    ) -> bool {
        self.replay_resume(id, replay, after, now);
        let begun = self.with(id, |subscription, shared| {
            let begins = subscription.replay.as_ref().is_some_and(|it| it.id == replay && !it.is_known);
            if begins {
                subscription.stand_still(shared, Some(now), subscription.mode);
                subscription.know_keys(shared, keys);
            }
            begins
        });
        begun.unwrap_or(false)
    }

    /// Ends a replay before its end; what is under way of it still gets through or not. False when there is none.
    pub fn replay_cancel(&mut self, id: SubscriptionId, now: Instant) -> bool {
        let ended = self.with(id, |subscription, shared| {
            let Some(replay) = &mut subscription.replay else { return false };
            replay.read = false;
            subscription.stand_still(shared, Some(now), subscription.mode);
            if let Some(replay) = &mut subscription.replay {
                replay.read = false;
            }
            subscription.end_replay(shared);
            true
        });
        ended.unwrap_or(false)
    }

    /// How far a subscription's replay is.
    pub fn replay(&self, id: SubscriptionId) -> Option<ReplayProgress> {
        Some(self.subscription(id)?.replay.as_ref()?.progress)
    }
}
