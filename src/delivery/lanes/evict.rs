//! Making room: what nobody holds leaves the lanes.

use rustc_hash::FxHashMap;

use super::{Lanes, NOBODY, Slot};

impl<T> Lanes<T> {
    /// Takes everything that nobody holds out of the lanes, in order of number. What is held has nothing unheld
    /// before it, so the lanes just end earlier.
    pub fn drain_unsent(&mut self) -> Vec<(u64, T)> {
        let unsent: Vec<Slot> =
            self.iter().map(|(slot, ..)| slot).filter(|&slot| !self.items[slot as usize].held).collect();
        if unsent.is_empty() {
            return Vec::new();
        }
        self.fresh.clear();
        self.woken.clear();
        self.shorten_tables();
        let drained = unsent
            .into_iter()
            .map(|slot| {
                let item = self.items.remove(slot as usize);
                self.unlink(slot, &item);
                (item.seq, item.value)
            })
            .collect();
        self.shorten_keys();
        let mut keying = std::mem::take(&mut self.keying);
        keying.begin_with(self.iter().map(|(slot, ..)| {
            let item = &self.items[slot as usize];
            (item.keyed, item.table)
        }));
        self.keying = keying;
        self.peak = self.peak.max(self.items.len());
        self.give_memory_back();
        drained
    }

    fn shorten_keys(&mut self) {
        self.last.clear();
        let slots: Vec<Slot> = self.items.iter().map(|(slot, _)| slot as Slot).collect();
        for slot in slots {
            let keys = self.item(slot).keys;
            for (index, &key) in keys.as_slice().iter().enumerate() {
                let behind = self.item(slot).behind[index];
                if behind == NOBODY || !self.items.contains(behind as usize) {
                    self.item(slot).behind[index] = NOBODY;
                    self.last.insert(key, slot);
                }
            }
        }
    }

    /// While the unheld are still here.
    fn shorten_tables(&mut self) {
        let mut open: FxHashMap<u32, usize> = FxHashMap::default();
        for (_, item) in self.items.iter().filter(|(_, item)| item.held && !item.barrier) {
            *open.entry(item.table).or_default() += 1;
        }
        let items = &self.items;
        let held = |slot: Slot| items[slot as usize].held;
        self.tables.0.retain(|(number, table)| {
            table.barriers.retain(|barrier| held(barrier.slot));
            let mut open = open.get(number).copied().unwrap_or_default();
            for barrier in &mut table.barriers {
                barrier.held.retain(|&slot| held(slot));
                open -= barrier.held.len();
            }
            table.open = open;
            open > 0 || !table.barriers.is_empty()
        });
        self.barriers = self.tables.0.iter().map(|(_, table)| table.barriers.len()).sum();
    }
}
