//! Where a subscription stands among its deliveries: what the journal keeps of it and a new start begins from.

use std::time::Duration;

/// One delivery: an event on its way to one subscription. Greater than 0, and rising in order of arrival over all
/// subscriptions. An event with several targets takes as many consecutive numbers; a batch goes by its first
/// member's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeliveryId(pub u64);

/// What a subscription does with its deliveries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Sends what arrives; all that is pending is in memory.
    #[default]
    Live,
    /// Sends what the journal holds, read back in order; what arrives is only counted.
    Draining,
    /// The endpoint fails as a whole: probes it now and then, all else stands still.
    Open,
    /// The user paused it: sends nothing.
    Paused,
    /// Disabled, because the endpoint said 410 or too much was pending: sends nothing and keeps what is pending.
    Stopped,
}

/// A delivery that is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Which.
    pub id: DeliveryId,
    /// Its failed attempts.
    pub failures: u32,
    /// In how long the next attempt is due; None if it need not wait.
    pub due: Option<Duration>,
}

impl Pending {
    /// One that has not been tried.
    pub fn fresh(id: DeliveryId) -> Pending {
        Pending { id, failures: 0, due: None }
    }
}

/// How many deliveries of a subscription became of what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Not done.
    pub pending: u64,
    /// What the pending ones were charged when they arrived, in bytes.
    pub pending_bytes: u64,
    /// Taken by the endpoint.
    pub delivered: u64,
    /// Dropped, since there was nothing to send.
    pub dropped: u64,
    /// Given up: tried as often as the schedule allows, or skipped.
    pub dead: u64,
}

/// Every delivery of the subscription up to `reach` is done but those in `pending`; every one beyond `reach` is
/// pending but those in `done_ahead`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// What it was doing.
    pub mode: Mode,
    /// How far it has come.
    pub reach: DeliveryId,
    /// What is not done up to `reach`, in order of number.
    pub pending: Vec<Pending>,
    /// What is done beyond `reach`, in order.
    pub done_ahead: Vec<DeliveryId>,
    /// The counters.
    pub counts: Counts,
}

impl Position {
    /// Of a subscription that is new when `reach` is the last number given.
    pub fn new(reach: DeliveryId) -> Position {
        Position { reach, ..Position::default() }
    }

    /// Forgets what is pending up to `upto`; `last` is the last number given. Done again, it changes nothing.
    pub fn discard(&mut self, upto: DeliveryId, last: DeliveryId) {
        let listed = self.pending.len() as u64;
        self.pending.retain(|pending| pending.id > upto);
        let dropped = listed - self.pending.len() as u64;
        self.counts.pending = self.counts.pending.saturating_sub(dropped);
        if self.reach < upto {
            self.reach = upto;
            self.done_ahead.retain(|id| *id > upto);
            // How many of those beyond are its own is not known; more than there are does no harm.
            self.counts.pending = self.counts.pending.min(last.0.saturating_sub(upto.0));
        }
        if self.counts.pending == 0 {
            self.counts.pending_bytes = 0;
        }
    }

    /// The oldest delivery that may be pending: all before it are done.
    pub fn oldest_pending(&self) -> Option<DeliveryId> {
        let listed = self.pending.first().map(|pending| pending.id);
        let logged = self.counts.pending > self.pending.len() as u64;
        listed.or(logged.then_some(DeliveryId(self.reach.0 + 1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position() -> Position {
        Position {
            mode: Mode::Paused,
            reach: DeliveryId(10),
            pending: [3, 7].map(|id| Pending::fresh(DeliveryId(id))).into(),
            done_ahead: vec![DeliveryId(12), DeliveryId(22)],
            counts: Counts { pending: 9, pending_bytes: 900, delivered: 5, dropped: 2, dead: 1 },
        }
    }

    #[test]
    fn all_that_is_pending_is_forgotten_and_what_was_done_stays_counted() {
        let mut position = position();
        position.discard(DeliveryId(20), DeliveryId(20));
        assert_eq!((position.reach, position.pending.len()), (DeliveryId(20), 0));
        assert_eq!(
            position.counts,
            Counts { pending: 0, pending_bytes: 0, delivered: 5, dropped: 2, dead: 1 }
        );
        assert_eq!(position.oldest_pending(), None);
        assert_eq!(position.done_ahead, [DeliveryId(22)]);
    }

    #[test]
    fn what_came_later_is_kept_also_when_it_is_done_again() {
        let mut position = position();
        position.discard(DeliveryId(3), DeliveryId(25));
        assert_eq!(position.pending, [Pending::fresh(DeliveryId(7))]);
        assert_eq!((position.reach, position.counts.pending), (DeliveryId(10), 8));
        let once = position.clone();
        position.discard(DeliveryId(3), DeliveryId(25));
        assert_eq!(position, once);
    }
}
