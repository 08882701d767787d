//! Deliveries as the engine takes them.

use std::time::{SystemTime, UNIX_EPOCH};

use smallvec::SmallVec;

use crate::delivery::{At, DeliveryId, Item, Keyed, Keys, Order, Payload};
use crate::event::Event;
use crate::ipc::frame::LaneKeys;
use crate::journal::{Found, What};

/// What a request brings.
pub type Members = SmallVec<[(DeliveryId, Payload); 1]>;

/// A delivery read back; none if it cannot be made, which is on record already.
pub fn item_of(found: Found) -> Option<Item<Payload>> {
    let What::Event { event, keys, barrier } = found.what else { return None };
    let order = order_of(keys, &event, barrier);
    Some(Item { id: found.id, order, at: at_of(&event), payload: (event, found.level), charge: found.charge })
}

/// How an event is ordered.
pub fn order_of(keys: LaneKeys, event: &Event, barrier: bool) -> Order {
    let relation = &event.relation;
    let keyed = Keyed { relation: relation.oid, way: relation.keying() };
    Order { keys: Keys::of(keys.key, keys.old), table: relation.root_oid, barrier, keyed }
}

pub fn at_of(event: &Event) -> At {
    At { commit_lsn: event.transaction.commit_lsn, committed_at: event.transaction.committed_at }
}

/// A number that differs from retry to retry.
pub fn jitter(ticket: u64) -> u32 {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().subsec_nanos();
    xxhash_rust::xxh3::xxh3_64(&(ticket ^ (u64::from(nanos) << 32)).to_le_bytes()) as u32
}
