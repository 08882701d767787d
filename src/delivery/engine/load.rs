//! What the engine wants to know of the journal.

use super::Engine;
use crate::delivery::ordering::Order;
use crate::delivery::outcome::SubscriptionId;
use crate::delivery::position::DeliveryId;
use crate::delivery::subscription::{At, Held, Reading};

/// A wish to read the journal. It is answered by [`Engine::page`], at any time; another one of the same subscription comes
/// only then, or when it has changed its mind, and stands instead of this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// Whose deliveries.
    pub subscription: SubscriptionId,
    /// Which.
    pub what: ReadWhat,
    /// How many bytes of it: what items are charged, each with [`Engine::DELIVERY_BYTES`] on top. One item may
    /// always be read, whatever its size.
    pub max_bytes: usize,
}

/// What to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadWhat {
    /// These, in order.
    Listed(Vec<DeliveryId>),
    /// What follows this.
    Log {
        /// The last one that is known.
        after: DeliveryId,
    },
    /// More of a replay.
    Replay {
        /// Which.
        replay: i64,
        /// The last place in the journal that has been read.
        after: DeliveryId,
    },
}

/// A delivery that the journal holds.
#[derive(Clone, Debug)]
pub struct Item<P> {
    /// Its number: of a replay, a new one, higher than all given so far.
    pub id: DeliveryId,
    /// How it is ordered.
    pub order: Order,
    /// Where it was committed.
    pub at: At,
    /// What it carries.
    pub payload: P,
    /// The bytes it is charged, as when it arrived.
    pub charge: usize,
}

/// What was read.
#[derive(Clone, Debug)]
pub struct Page<P> {
    /// The subscription's deliveries, in order: of the list, what was found of it; else all there are behind `after`
    /// and up to `upto`.
    pub items: Vec<Item<P>>,
    /// How far was read: what is listed up to here and was not found is gone from the journal. Of a replay, a place
    /// in the range.
    pub upto: DeliveryId,
    /// Of the log: nothing is unread, nor unwritten; all that has arrived is in it. Of a replay: its range is read.
    pub at_tail: bool,
}

impl<P: Clone> Engine<P> {
    /// What to read next; None when nothing is wanted now. To be asked after [`Engine::next_to_send`] has said None, and
    /// before going to sleep, since what is sent makes room.
    pub fn next_read(&mut self) -> Option<Read> {
        while let Some(slot) = self.readers.pop_front() {
            let Some(subscription) = self.subscriptions.get_mut(slot as usize) else { continue };
            subscription.queued_to_read = false;
            let (id, reach) = (subscription.id, DeliveryId(subscription.reach));
            let Some((reading, max_bytes)) = subscription.read(&self.shared) else { continue };
            let what = match reading {
                Reading::Skip(id) => ReadWhat::Listed(vec![DeliveryId(*id)]),
                Reading::Listed(ids) => ReadWhat::Listed(ids.iter().copied().map(DeliveryId).collect()),
                Reading::Log => ReadWhat::Log { after: reach },
                Reading::Replay(replay, after) => {
                    ReadWhat::Replay { replay: *replay, after: DeliveryId(*after) }
                }
            };
            return Some(Read { subscription: id, what, max_bytes });
        }
        None
    }

    /// How many bytes may be read before memory is as full as reading makes it.
    pub fn room_to_read(&self) -> usize {
        self.shared.room_to_read()
    }

    /// What [`Engine::next_read`] asked for. Ignored when the subscription has changed its mind.
    pub fn page(&mut self, id: SubscriptionId, page: Page<P>) {
        if let Some(newest) = page.items.last() {
            self.shared.last_id = self.shared.last_id.max(newest.id.0);
        }
        let items = page.items.into_iter().map(|Item { id, order, at, payload, charge }| Held {
            id: id.0,
            order,
            at,
            payload,
            charge,
        });
        let items = items.collect();
        self.with(id, |subscription, shared| subscription.page(shared, items, page.upto.0, page.at_tail));
    }
}
