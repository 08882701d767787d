//! Batches: which items may share a request, each after all that it waits for.

use std::cmp::Reverse;

use super::Lanes;
use super::batch::{Members, Selection};
use super::item::Slot;

impl<T> Lanes<T> {
    /// Adds the oldest items that need to wait for nothing but the members before them, while `accept` agrees and
    /// there are less than `limit` of them.
    pub fn take_more(&mut self, members: &mut Members, limit: usize, mut accept: impl FnMut(&T) -> bool) {
        let mut selection = std::mem::take(&mut self.selection);
        members.iter().for_each(|&slot| self.choose(&mut selection, slot));
        while members.len() < limit {
            let released = selection.released.peek().map(|&Reverse(released)| released);
            let (slot, is_released) = match (self.peek(), released) {
                (Some(ready), Some(released)) if released < ready => (released.1, true),
                (Some(ready), _) => (ready.1, false),
                (None, Some(released)) => (released.1, true),
                (None, None) => break,
            };
            if !accept(&self.items[slot as usize].value) {
                break;
            }
            if is_released {
                selection.released.pop();
                self.hold(slot);
            } else {
                self.take_ready(slot);
            }
            members.push(slot);
            self.choose(&mut selection, slot);
        }
        selection.clear();
        self.selection = selection;
    }

    /// Parts held items into those that `accept` agrees with, by their numbers, and that wait for nothing but each
    /// other, and the others, each in their order.
    pub fn part(&mut self, members: &[Slot], accept: impl Fn(u64) -> bool) -> (Members, Members) {
        let mut selection = std::mem::take(&mut self.selection);
        let mut parts = (Members::new(), Members::new());
        for &slot in members {
            if selection.frees(&self.items, slot) && accept(self.seq(slot)) {
                parts.0.push(slot);
                self.choose(&mut selection, slot);
            } else {
                parts.1.push(slot);
            }
        }
        selection.clear();
        self.selection = selection;
        parts
    }

    fn choose(&self, selection: &mut Selection, slot: Slot) {
        let item = &self.items[slot as usize];
        for (_, &next) in item.keys.as_slice().iter().zip(&item.behind) {
            if next != super::NOBODY {
                selection.satisfy(&self.items, next);
            }
        }
        if self.barriers > 0 {
            item.tables().for_each(|table| self.pass_barriers(selection, table, item.barrier));
        }
    }

    /// A barrier is free when all between it and the barrier before is chosen; it frees what it holds.
    fn pass_barriers(&self, selection: &mut Selection, number: u32, barrier: bool) {
        let Some(table) = self.tables.get(number) else { return };
        if table.barriers.is_empty() {
            return;
        }
        let (mut barriers, mut since) = selection.passed.get(&number).copied().unwrap_or_default();
        if barrier {
            (barriers, since) = (barriers + 1, 0);
            for &held in &table.barriers[barriers - 1].held {
                selection.satisfy(&self.items, held);
            }
        } else {
            since += 1;
        }
        let all = if barriers == 0 { table.open } else { table.barriers[barriers - 1].held.len() };
        if since == all
            && let Some(next) = table.barriers.get(barriers)
        {
            selection.satisfy(&self.items, next.slot);
        }
        selection.passed.insert(number, (barriers, since));
    }
}
