//! The queue of one subscription: order by key.
//!
//! A key's items form a lane, a chain through the items themselves; only a lane's last item is looked up by
//! key. Every item counts what it still waits for: to become first in each of its lanes, and for a barrier of
//! its table to fall. When that count is zero, it may be taken. All waiting is for older items, so there is no
//! circle in it. What has been taken is held, by a request, until it is done or released; all that a held item
//! waits for is held by the same request.

mod batch;
mod choice;
mod evict;
mod item;
mod key_definition;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use rustc_hash::FxHashMap;
use slab::Slab;
use smallvec::SmallVec;

pub(super) use self::batch::Members;
use self::batch::Selection;
pub(super) use self::item::Slot;
use self::item::{Item, NOBODY};
use self::key_definition::Keying;
use super::ordering::{Keys, Order};

/// What barriers need to know of a table, while something of it is outstanding.
#[derive(Default)]
struct Table {
    /// Outstanding items that are older than the first barrier.
    open: usize,
    barriers: VecDeque<Barrier>,
}

/// Those of which something is outstanding, by oid: mostly one.
#[derive(Default)]
struct Tables(SmallVec<[(u32, Table); 1]>);

impl Tables {
    fn place(&self, oid: u32) -> Result<usize, usize> {
        self.0.binary_search_by_key(&oid, |(oid, _)| *oid)
    }

    /// A table, which is there from now on.
    fn of(&mut self, oid: u32) -> &mut Table {
        let place = self.place(oid).unwrap_or_else(|place| {
            self.0.insert(place, (oid, Table::default()));
            place
        });
        &mut self.0[place].1
    }

    fn get_mut(&mut self, oid: u32) -> Option<&mut Table> {
        let place = self.place(oid).ok()?;
        Some(&mut self.0[place].1)
    }

    fn get(&self, oid: u32) -> Option<&Table> {
        Some(&self.0[self.place(oid).ok()?].1)
    }

    fn remove(&mut self, oid: u32) {
        if let Ok(place) = self.place(oid) {
            self.0.remove(place);
        }
    }
}

/// A barrier that is not done yet.
struct Barrier {
    slot: Slot,
    /// What arrived behind it and before the next.
    held: Vec<Slot>,
}

/// The items of one subscription, from arrival to success.
pub(super) struct Lanes<T> {
    items: Slab<Item<T>>,
    /// The last item of each key's lane; an only item is found without.
    last: FxHashMap<u64, Slot>,
    tables: Tables,
    /// Barriers over all tables: mostly none.
    barriers: usize,
    keying: Keying,
    /// What could be taken when it arrived, in order of arrival.
    fresh: VecDeque<Slot>,
    /// What could be taken only later, the oldest first.
    woken: BinaryHeap<Reverse<(u64, Slot)>>,
    oldest: Slot,
    newest: Slot,
    /// Where the last item went in: the next one belongs close to it.
    hint: Slot,
    held: usize,
    selection: Selection,
    /// The most items there were since memory was last given back.
    peak: usize,
}

impl<T> Default for Lanes<T> {
    fn default() -> Self {
        Lanes {
            items: Slab::new(),
            last: FxHashMap::default(),
            tables: Tables::default(),
            barriers: 0,
            keying: Keying::default(),
            fresh: VecDeque::new(),
            woken: BinaryHeap::new(),
            oldest: NOBODY,
            newest: NOBODY,
            hint: NOBODY,
            held: 0,
            selection: Selection::default(),
            peak: 0,
        }
    }
}

impl<T> Lanes<T> {
    /// Bytes that an item takes here at most, besides what it points to; tables have room for growth.
    pub const ITEM_BYTES: usize = 2 * size_of::<Item<T>>();

    /// Bytes that lanes take which hold a single item, besides it.
    pub const BYTES: usize = size_of::<Self>() + 32;

    /// Queues an item behind everything it must not overtake, all of which has arrived before it.
    pub fn arrive(&mut self, seq: u64, order: Order, value: T) {
        let Order { keys, table, keyed, .. } = order;
        let rekeyed_from = self.keying.arrive(keyed, table);
        let barrier = order.barrier || rekeyed_from.is_some();
        let table_before = rekeyed_from.filter(|before| *before != table).unwrap_or_default();
        if self.items.capacity() == 0 {
            // Of a hundred thousand subscriptions most have one at a time; a slab makes room for four.
            self.items.reserve_exact(1);
        }
        let slot = self.items.insert(Item {
            value,
            seq,
            keys,
            table,
            table_before,
            keyed,
            behind: [NOBODY; 2],
            older: NOBODY,
            newer: NOBODY,
            waits_for: 0,
            barrier,
            held: false,
        }) as Slot;
        self.link(slot, seq);
        self.peak = self.peak.max(self.items.len());

        let mut waits_for =
            self.queue_behind_keys(slot, keys) + self.queue_behind_barrier(slot, table, barrier);
        if table_before != 0 {
            waits_for += self.queue_behind_barrier(slot, table_before, barrier);
        }
        if waits_for == 0 {
            self.fresh.push_back(slot);
        } else {
            self.item(slot).waits_for = waits_for;
        }
    }

    /// Takes the oldest item that need not wait; who takes it holds it.
    pub fn take(&mut self) -> Option<Slot> {
        let (_, slot) = self.peek()?;
        self.take_ready(slot);
        Some(slot)
    }

    /// What [`Lanes::take`] would take, with its number.
    fn peek(&self) -> Option<(u64, Slot)> {
        let fresh = self.fresh.front().map(|&slot| (self.items[slot as usize].seq, slot));
        let woken = self.woken.peek().map(|&Reverse(woken)| woken);
        match (fresh, woken) {
            (Some(fresh), Some(woken)) => Some(fresh.min(woken)),
            (fresh, woken) => fresh.or(woken),
        }
    }

    fn take_ready(&mut self, slot: Slot) {
        if self.fresh.front() == Some(&slot) {
            self.fresh.pop_front();
        } else {
            self.woken.pop();
        }
        self.hold(slot);
    }

    fn hold(&mut self, slot: Slot) {
        self.held += 1;
        self.item(slot).held = true;
    }

    /// Gives a held item back: it may be taken again as soon as it need not wait.
    pub fn release(&mut self, slot: Slot) {
        self.held -= 1;
        let item = self.item(slot);
        item.held = false;
        if item.waits_for == 0 {
            let seq = item.seq;
            self.woken.push(Reverse((seq, slot)));
        }
    }

    /// Lets go of a held item that is done. Those of a request are done in its order.
    pub fn finish(&mut self, slot: Slot) -> T {
        let item = self.items.remove(slot as usize);
        self.held -= 1;
        self.unlink(slot, &item);
        for (&key, &behind) in item.keys.as_slice().iter().zip(&item.behind) {
            match behind {
                NOBODY => _ = self.last.remove(&key),
                next => self.waits_less(next),
            }
        }
        item.tables().for_each(|table| self.leave_table(table, item.barrier));
        self.keying.leave(item.keyed);
        self.give_memory_back();
        item.value
    }

    /// An item's number.
    pub fn seq(&self, slot: Slot) -> u64 {
        self.items[slot as usize].seq
    }

    /// What an item carries.
    pub fn get(&self, slot: Slot) -> &T {
        &self.items[slot as usize].value
    }

    /// What an item carries.
    pub fn get_mut(&mut self, slot: Slot) -> &mut T {
        &mut self.item(slot).value
    }

    /// How many keys an item keeps busy; one without a key counts as one.
    pub fn keys_of(&self, slot: Slot) -> usize {
        self.items[slot as usize].keys.as_slice().len().max(1)
    }

    /// Whether an item waits for none.
    pub fn is_first(&self, slot: Slot) -> bool {
        self.items[slot as usize].waits_for == 0
    }

    /// How the item is ordered.
    pub fn order(&self, slot: Slot) -> Order {
        let item = &self.items[slot as usize];
        Order { keys: item.keys, table: item.table, barrier: item.barrier, keyed: item.keyed }
    }

    /// Whether [`Lanes::take`] has something to give.
    pub fn is_ready(&self) -> bool {
        !self.fresh.is_empty() || !self.woken.is_empty()
    }

    /// All items in order of number.
    pub fn iter(&self) -> impl Iterator<Item = (Slot, u64, &T)> {
        let mut at = self.oldest;
        std::iter::from_fn(move || {
            let slot = at;
            let item = self.items.get(slot as usize)?;
            at = item.newer;
            Some((slot, item.seq, &item.value))
        })
    }

    /// What nobody holds, in order of number.
    pub fn unheld(&self) -> impl Iterator<Item = (u64, &T)> {
        self.iter().filter(|&(slot, ..)| !self.items[slot as usize].held).map(|(_, seq, value)| (seq, value))
    }

    /// Items that nobody holds.
    pub fn unsent(&self) -> usize {
        self.items.len() - self.held
    }

    /// Whether all is done.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// How many items the memory held on to would have room for.
    pub fn capacity(&self) -> usize {
        self.items.capacity().max(self.last.capacity()).max(self.tables.0.capacity())
    }

    fn item(&mut self, slot: Slot) -> &mut Item<T> {
        &mut self.items[slot as usize]
    }

    /// Puts an item into the list by number. What comes back from the journal is older than some that stayed,
    /// but comes in order, so its place is close to that of the one before.
    fn link(&mut self, slot: Slot, seq: u64) {
        let mut older = self.hint;
        while older != NOBODY && self.items[older as usize].seq > seq {
            older = self.items[older as usize].older;
        }
        loop {
            let newer = if older == NOBODY { self.oldest } else { self.items[older as usize].newer };
            if newer == NOBODY || self.items[newer as usize].seq > seq {
                break;
            }
            older = newer;
        }
        let newer = match older {
            NOBODY => std::mem::replace(&mut self.oldest, slot),
            older => std::mem::replace(&mut self.item(older).newer, slot),
        };
        match newer {
            NOBODY => self.newest = slot,
            newer => self.item(newer).older = slot,
        }
        let item = self.item(slot);
        (item.older, item.newer) = (older, newer);
        self.hint = slot;
    }

    fn unlink(&mut self, slot: Slot, item: &Item<T>) {
        match item.older {
            NOBODY => self.oldest = item.newer,
            older => self.item(older).newer = item.newer,
        }
        match item.newer {
            NOBODY => self.newest = item.older,
            newer => self.item(newer).older = item.older,
        }
        if self.hint == slot {
            self.hint = if item.older == NOBODY { item.newer } else { item.older };
        }
    }

    /// Puts an item at the end of its keys' lanes; how many of them it is not the first of.
    fn queue_behind_keys(&mut self, slot: Slot, keys: Keys) -> u8 {
        if self.items.len() == 1 {
            // Of a hundred thousand subscriptions most have one at a time.
            return 0;
        }
        if self.items.len() == 2 && self.last.is_empty() {
            let item = &self.items[slot as usize];
            let other = if item.older == NOBODY { item.newer } else { item.older };
            let keys = self.items[other as usize].keys;
            self.last.extend(keys.as_slice().iter().map(|&key| (key, other)));
        }
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
    fn queue_behind_barrier(&mut self, slot: Slot, table: u32, barrier: bool) -> u8 {
        let table = self.tables.of(table);
        if barrier {
            let must_wait = table.open > 0 || !table.barriers.is_empty();
            table.barriers.push_back(Barrier { slot, held: Vec::new() });
            self.barriers += 1;
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
    fn leave_table(&mut self, number: u32, barrier: bool) {
        let Some(table) = self.tables.get_mut(number) else { return };
        let mut released = Vec::new();
        if !barrier {
            table.open -= 1;
        } else if let Some(fallen) = table.barriers.pop_front() {
            self.barriers -= 1;
            table.open = fallen.held.len();
            released = fallen.held;
        }
        if table.open == 0 {
            match table.barriers.front() {
                Some(next) => released.push(next.slot),
                None => self.tables.remove(number),
            }
        }
        for slot in released {
            self.waits_less(slot);
        }
    }

    fn waits_less(&mut self, slot: Slot) {
        let item = self.item(slot);
        item.waits_for -= 1;
        if item.waits_for == 0 && !item.held {
            let seq = item.seq;
            self.woken.push(Reverse((seq, slot)));
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
            self.tables.0.shrink_to_fit();
            self.fresh.shrink_to(room);
            self.woken.shrink_to(room);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::Keyed;

    #[test]
    fn the_memory_of_a_burst_is_given_back_though_one_item_stays_behind() {
        let mut lanes = Lanes::default();
        for seq in 0..100_000 {
            lanes.arrive(
                seq,
                Order { keys: Keys::one(seq), table: 1, barrier: false, keyed: Keyed::default() },
                (),
            );
        }
        let sent: Vec<_> = std::iter::from_fn(|| lanes.take()).collect();
        for (index, &slot) in sent.iter().enumerate() {
            if index != 100 {
                lanes.finish(slot);
            }
        }
        assert_eq!(lanes.iter().count(), 1);
        assert!(lanes.capacity() < 2_000, "{}", lanes.capacity());
    }

    #[test]
    fn what_is_keyed_in_another_way_is_a_barrier_of_its_table_before_and_after() {
        let order = |key, table, way| Order {
            keys: Keys::one(key),
            table,
            barrier: false,
            keyed: Keyed { relation: 7, way },
        };
        let other = Order { keyed: Keyed { relation: 8, way: 1 }, ..order(5, 1, 0) };
        let mut lanes = Lanes::default();
        lanes.arrive(1, order(1, 1, 1), ());
        lanes.arrive(2, other, ());
        // The table became a root of its own.
        lanes.arrive(3, order(2, 7, 2), ());
        lanes.arrive(4, order(3, 7, 2), ());
        lanes.arrive(5, other, ());
        let take = |lanes: &mut Lanes<()>| -> Vec<(u64, Slot)> {
            std::iter::from_fn(|| lanes.take().map(|slot| (lanes.seq(slot), slot))).collect()
        };
        let numbers = |taken: &[(u64, Slot)]| taken.iter().map(|taken| taken.0).collect::<Vec<_>>();
        let first = take(&mut lanes);
        assert_eq!(numbers(&first), [1, 2]);
        // What nobody holds comes back, and waits as before.
        assert_eq!(lanes.drain_unsent().len(), 3);
        lanes.arrive(3, order(2, 7, 2), ());
        lanes.arrive(4, order(3, 7, 2), ());
        lanes.arrive(5, other, ());
        lanes.finish(first[0].1);
        assert_eq!(take(&mut lanes), []);
        lanes.finish(first[1].1);
        let second = take(&mut lanes);
        assert_eq!(numbers(&second), [3]);
        lanes.finish(second[0].1);
        let rest = take(&mut lanes);
        assert_eq!(numbers(&rest), [4, 5]);
        rest.iter().for_each(|&(_, slot)| lanes.finish(slot));
        assert!(lanes.is_empty() && lanes.barriers == 0 && lanes.tables.0.is_empty());
        assert!(lanes.keying.is_empty());
    }

    #[test]
    fn items_are_listed_by_number_however_they_come() {
        let mut lanes = Lanes::default();
        for seq in [50, 60, 70, 10, 20, 55, 65, 5, 80] {
            lanes.arrive(
                seq,
                Order { keys: Keys::NONE, table: 1, barrier: false, keyed: Keyed::default() },
                (),
            );
        }
        let numbers: Vec<u64> = lanes.iter().map(|(_, seq, _)| seq).collect();
        assert_eq!(numbers, [5, 10, 20, 50, 55, 60, 65, 70, 80]);
    }
}
