//! The queue of one subscription: order by key, and a failure that holds back its own key only.
//!
//! A key's items form a lane, a chain through the items themselves; only a lane's last item is looked up by
//! key. Every item counts what it still waits for: to become first in each of its lanes, and for a barrier of
//! its table to fall. When that count is zero, it may be sent. All waiting is for older items, so there is no
//! circle in it.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Instant;

use rustc_hash::FxHashMap;
use slab::Slab;

/// The keys that order an event among others, as 64-bit hashes: none (an insert into a table without a key is
/// a key of its own), one, or two when a change moved the row from one key to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keys {
    hashes: [u64; 2],
    count: u8,
}

impl Keys {
    /// Ordered with nothing but barriers.
    pub const NONE: Keys = Keys { hashes: [0; 2], count: 0 };

    /// Ordered with what has the same key.
    pub fn one(key: u64) -> Keys {
        Keys { hashes: [key, 0], count: 1 }
    }

    /// Ordered with what has either key: a change of key.
    pub fn two(old: u64, new: u64) -> Keys {
        if old == new { Keys::one(old) } else { Keys { hashes: [old, new], count: 2 } }
    }

    /// The row's key, and the one it had before if that was another.
    pub fn of(key: Option<u64>, old: Option<u64>) -> Keys {
        match (old, key) {
            (Some(old), Some(new)) => Keys::two(old, new),
            (Some(key), None) | (None, Some(key)) => Keys::one(key),
            (None, None) => Keys::NONE,
        }
    }

    pub(super) fn as_slice(&self) -> &[u64] {
        &self.hashes[..usize::from(self.count)]
    }

    fn index_of(&self, key: u64) -> usize {
        usize::from(self.count == 2 && self.hashes[1] == key)
    }
}

/// What decides when an event may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// Its keys.
    pub keys: Keys,
    /// The oid of its root table: what barriers are about.
    pub table: u32,
    /// Waits for everything older of its table, and everything newer of its table waits for it: TRUNCATE, or
    /// an update or delete of a row whose identity is not known.
    pub barrier: bool,
}

/// Names one item while it is in the lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ItemId {
    seq: u64,
    slot: u32,
}

const NOBODY: u32 = u32::MAX;

struct Item<T> {
    value: T,
    seq: u64,
    keys: Keys,
    table: u32,
    /// The next item in the lane of each key.
    behind: [u32; 2],
    /// The neighbours in order of arrival.
    older: u32,
    newer: u32,
    /// How many older items must be done first: one for each lane it isn't first of, one for a barrier.
    waits_for: u8,
    barrier: bool,
    in_flight: bool,
    /// Has failed at least once.
    retrying: bool,
}

/// What barriers need to know of a table, while something of it is outstanding.
#[derive(Default)]
struct Table {
    /// Outstanding items that are older than the first barrier.
    open: usize,
    barriers: VecDeque<Barrier>,
}

/// A barrier that is not done yet.
struct Barrier {
    slot: u32,
    /// What arrived behind it and before the next.
    held: Vec<u32>,
}

/// The items of one subscription, from arrival to success.
pub(super) struct Lanes<T> {
    items: Slab<Item<T>>,
    /// The last item of each key's lane.
    last: FxHashMap<u64, u32>,
    tables: FxHashMap<u32, Table>,
    /// What could be sent when it arrived, in order of arrival.
    fresh: VecDeque<u32>,
    /// What could be sent only later, the oldest first.
    woken: BinaryHeap<Reverse<(u64, u32)>>,
    /// What has failed, by the time of its next attempt.
    blocked: BinaryHeap<Reverse<(Instant, u32)>>,
    oldest: u32,
    newest: u32,
    in_flight: usize,
    retrying: usize,
    blocked_keys: usize,
    /// The most items there were since memory was last given back.
    peak: usize,
}

impl<T> Default for Lanes<T> {
    fn default() -> Self {
        Lanes {
            items: Slab::new(),
            last: FxHashMap::default(),
            tables: FxHashMap::default(),
            fresh: VecDeque::new(),
            woken: BinaryHeap::new(),
            blocked: BinaryHeap::new(),
            oldest: NOBODY,
            newest: NOBODY,
            in_flight: 0,
            retrying: 0,
            blocked_keys: 0,
            peak: 0,
        }
    }
}

impl<T> Lanes<T> {
    /// Bytes that an item takes here at most, besides what it points to; tables have room for growth.
    pub const ITEM_BYTES: usize = 2 * size_of::<Item<T>>();

    /// Bytes that lanes take which hold a single item.
    pub const BYTES: usize = size_of::<Self>() + 4 * size_of::<Item<T>>() + 512;

    /// Queues an item behind everything it must not overtake. `seq` rises with every arrival.
    pub fn arrive(&mut self, seq: u64, order: Order, value: T) {
        let Order { keys, table, barrier } = order;
        let slot = self.items.insert(Item {
            value,
            seq,
            keys,
            table,
            behind: [NOBODY; 2],
            older: self.newest,
            newer: NOBODY,
            waits_for: 0,
            barrier,
            in_flight: false,
            retrying: false,
        }) as u32;
        match self.newest {
            NOBODY => self.oldest = slot,
            newest => self.item(newest).newer = slot,
        }
        self.newest = slot;
        self.peak = self.peak.max(self.items.len());

        let waits_for = self.queue_behind_keys(slot, keys) + self.queue_behind_barrier(slot, table, barrier);
        if waits_for == 0 {
            self.fresh.push_back(slot);
        } else {
            self.item(slot).waits_for = waits_for;
        }
    }

    /// Takes the oldest item that may be sent now; its keys are busy until its outcome is told.
    pub fn next(&mut self) -> Option<(ItemId, &mut T)> {
        let slot = match (self.fresh.front(), self.woken.peek()) {
            (None, None) => None,
            (Some(&fresh), Some(&Reverse((seq, _)))) if self.items[fresh as usize].seq < seq => {
                self.fresh.pop_front()
            }
            (_, Some(_)) => self.woken.pop().map(|Reverse((_, slot))| slot),
            (Some(_), None) => self.fresh.pop_front(),
        }?;
        self.in_flight += 1;
        let item = self.item(slot);
        item.in_flight = true;
        Some((ItemId { seq: item.seq, slot }, &mut item.value))
    }

    /// Lets go of an item in flight that has succeeded. None when it is no longer known.
    pub fn succeeded(&mut self, id: ItemId) -> Option<T> {
        self.in_flight_mut(id)?;
        let item = self.items.remove(id.slot as usize);
        self.in_flight -= 1;
        if item.retrying {
            self.retrying -= 1;
            self.blocked_keys -= item.held_keys();
        }
        match item.older {
            NOBODY => self.oldest = item.newer,
            older => self.item(older).newer = item.newer,
        }
        match item.newer {
            NOBODY => self.newest = item.older,
            newer => self.item(newer).older = item.older,
        }
        for (&key, &behind) in item.keys.as_slice().iter().zip(&item.behind) {
            match behind {
                NOBODY => _ = self.last.remove(&key),
                next => self.waits_less(next),
            }
        }
        self.leave_table(&item);
        self.give_memory_back();
        Some(item.value)
    }

    /// Blocks the keys of an item in flight that has failed, until `due`. False when it is no longer known.
    pub fn failed(&mut self, id: ItemId, due: Instant) -> bool {
        if self.in_flight_mut(id).is_none() {
            return false;
        }
        self.in_flight -= 1;
        let item = self.item(id.slot);
        item.in_flight = false;
        if !item.retrying {
            item.retrying = true;
            let keys = item.held_keys();
            self.retrying += 1;
            self.blocked_keys += keys;
        }
        self.blocked.push(Reverse((due, id.slot)));
        true
    }

    /// What an item in flight carries. None when it is no longer known.
    pub fn in_flight_mut(&mut self, id: ItemId) -> Option<&mut T> {
        let item = self.items.get_mut(id.slot as usize)?;
        (item.seq == id.seq && item.in_flight).then_some(&mut item.value)
    }

    /// Makes sendable again what has failed and is due.
    pub fn ready_again(&mut self, now: Instant) {
        while let Some(&Reverse((due, slot))) = self.blocked.peek()
            && due <= now
        {
            self.blocked.pop();
            let seq = self.item(slot).seq;
            self.woken.push(Reverse((seq, slot)));
        }
    }

    /// When the first failed item is to be tried again.
    pub fn next_due(&self) -> Option<Instant> {
        self.blocked.peek().map(|Reverse((due, _))| *due)
    }

    /// Whether [`Lanes::next`] has something to give.
    pub fn is_ready(&self) -> bool {
        !self.fresh.is_empty() || !self.woken.is_empty()
    }

    /// The item that arrived first of those that are not done.
    pub fn oldest(&self) -> Option<&T> {
        self.items.get(self.oldest as usize).map(|item| &item.value)
    }

    /// Items that are not done.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether all is done.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// How many items the memory held on to would have room for.
    pub fn capacity(&self) -> usize {
        self.items.capacity().max(self.last.capacity()).max(self.tables.capacity())
    }

    /// Items sent whose outcome is not known yet.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Items that have failed at least once.
    pub fn retrying(&self) -> usize {
        self.retrying
    }

    /// Keys held back by an item that has failed; an item without a key counts as one.
    pub fn blocked_keys(&self) -> usize {
        self.blocked_keys
    }

    /// Gives everything up.
    pub fn into_items(self) -> impl Iterator<Item = T> {
        self.items.into_iter().map(|(_, item)| item.value)
    }

    fn item(&mut self, slot: u32) -> &mut Item<T> {
        &mut self.items[slot as usize]
    }

    /// Puts an item at the end of its keys' lanes; how many of them it is not the first of.
    fn queue_behind_keys(&mut self, slot: u32, keys: Keys) -> u8 {
        let mut waits_for = 0;
        for &key in keys.as_slice() {
            if let Some(ahead) = self.last.insert(key, slot) {
                let ahead = self.item(ahead);
                ahead.behind[ahead.keys.index_of(key)] = slot;
                waits_for += 1;
            }
        }
        waits_for
    }

    /// Counts an item to its table; 1 if a barrier holds it, or it is one and not alone.
    fn queue_behind_barrier(&mut self, slot: u32, table: u32, barrier: bool) -> u8 {
        let table = self.tables.entry(table).or_default();
        if barrier {
            let must_wait = table.open > 0 || !table.barriers.is_empty();
            table.barriers.push_back(Barrier { slot, held: Vec::new() });
            u8::from(must_wait)
        } else if let Some(last) = table.barriers.back_mut() {
            last.held.push(slot);
            1
        } else {
            table.open += 1;
            0
        }
    }

    /// Takes a done item off its table's count, and lets go what this was the last to hold back.
    fn leave_table(&mut self, item: &Item<T>) {
        let Some(table) = self.tables.get_mut(&item.table) else { return };
        let mut released = Vec::new();
        if !item.barrier {
            table.open -= 1;
        } else if let Some(fallen) = table.barriers.pop_front() {
            table.open = fallen.held.len();
            released = fallen.held;
        }
        if table.open == 0 {
            match table.barriers.front() {
                Some(next) => released.push(next.slot),
                None => _ = self.tables.remove(&item.table),
            }
        }
        for slot in released {
            self.waits_less(slot);
        }
    }

    /// Tried whenever half of a burst is done, so an item's share in it is small. Items are not moved: theirs
    /// goes back when the last of the burst are done, which hold the end of the slab.
    fn give_memory_back(&mut self) {
        if self.items.capacity() > 1024 && self.items.len() <= self.peak / 2 {
            let room = self.peak;
            self.peak = self.items.len();
            self.items.shrink_to_fit();
            self.last.shrink_to(room);
            self.tables.shrink_to(room);
            self.fresh.shrink_to(room);
            self.woken.shrink_to(room);
            self.blocked.shrink_to(room);
        }
    }

    fn waits_less(&mut self, slot: u32) {
        let item = self.item(slot);
        item.waits_for -= 1;
        if item.waits_for == 0 {
            let seq = item.seq;
            self.woken.push(Reverse((seq, slot)));
        }
    }
}

impl<T> Item<T> {
    fn held_keys(&self) -> usize {
        self.keys.as_slice().len().max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_a_burst_is_given_back_though_one_item_stays_behind() {
        let mut lanes = Lanes::default();
        for seq in 0..100_000 {
            lanes.arrive(seq, Order { keys: Keys::one(seq), table: 1, barrier: false }, ());
        }
        let sent: Vec<_> = std::iter::from_fn(|| lanes.next().map(|(id, _)| id)).collect();
        assert!(lanes.failed(sent[100], Instant::now()));
        for (index, &id) in sent.iter().enumerate() {
            assert_eq!(lanes.succeeded(id).is_some(), index != 100);
        }
        assert_eq!(lanes.len(), 1);
        assert!(lanes.capacity() < 2_000, "{}", lanes.capacity());
    }
}
