//! The members of a batch, and what would be free to go if they were done.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rustc_hash::FxHashMap;
use slab::Slab;
use smallvec::SmallVec;

use super::item::{Item, Slot};

/// Those of a request, in order.
pub(in crate::delivery) type Members = SmallVec<[Slot; 2]>;

/// What would be free to go if what has been chosen so far were done.
#[derive(Default)]
pub(super) struct Selection {
    /// How much of what an item waits for has been chosen.
    pub(super) satisfied: FxHashMap<Slot, u8>,
    /// Of tables with barriers: how many barriers have been chosen, and how many items since.
    pub(super) passed: FxHashMap<u32, (usize, usize)>,
    /// Whom nothing but what has been chosen holds back, the oldest first.
    pub(super) released: BinaryHeap<Reverse<(u64, Slot)>>,
}

impl Selection {
    pub(super) fn clear(&mut self) {
        self.satisfied.clear();
        self.passed.clear();
        self.released.clear();
    }

    pub(super) fn satisfy<T>(&mut self, items: &Slab<Item<T>>, slot: Slot) {
        let item = &items[slot as usize];
        let satisfied = self.satisfied.entry(slot).or_default();
        *satisfied += 1;
        if *satisfied == item.waits_for && !item.held {
            self.released.push(Reverse((item.seq, slot)));
        }
    }

    pub(super) fn frees<T>(&self, items: &Slab<Item<T>>, slot: Slot) -> bool {
        let waits_for = items[slot as usize].waits_for;
        waits_for == 0 || self.satisfied.get(&slot) == Some(&waits_for)
    }
}
