//! What is known to be pending and waits in the journal: eight bytes each.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// What one that has failed comes with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Failed {
    /// Its failed attempts.
    pub failures: u32,
    /// How long it had still to wait.
    pub left: Option<Duration>,
}

/// Numbers of deliveries, in order; with their failures, those that have some.
#[derive(Default)]
pub(super) struct Listed {
    ids: VecDeque<u64>,
    /// Of those in the list, and of some beyond the reach that a restart has found to have failed.
    failed: BTreeMap<u64, Failed>,
}

impl Listed {
    /// Bytes that one takes in the list.
    pub const BYTES: usize = size_of::<u64>();
    const FAILED_BYTES: usize = 2 * size_of::<(u64, Failed)>();

    /// Adds some that are in order and not in the list yet.
    pub fn add(&mut self, ids: Vec<u64>) {
        let (Some(&first), Some(&last)) = (ids.first(), ids.last()) else { return };
        if self.ids.back().is_none_or(|&newest| newest < first) {
            self.ids.extend(ids);
        } else if self.ids.front().is_some_and(|&oldest| last < oldest) {
            ids.into_iter().rev().for_each(|id| self.ids.push_front(id));
        } else {
            self.ids.extend(ids);
            self.ids.make_contiguous().sort_unstable();
        }
    }

    /// Notes that one has failed.
    pub fn add_failed(&mut self, id: u64, failed: Failed) {
        self.failed.insert(id, failed);
    }

    /// The oldest `count`.
    pub fn first(&self, count: usize) -> Vec<u64> {
        self.ids.iter().take(count).copied().collect()
    }

    /// The oldest one.
    pub fn oldest(&self) -> Option<u64> {
        self.ids.front().copied()
    }

    /// Takes the oldest one off the list if it is not beyond `upto`.
    pub fn pop(&mut self, upto: u64) -> Option<u64> {
        if self.ids.front().is_some_and(|&id| id <= upto) { self.ids.pop_front() } else { None }
    }

    /// Takes one off the list; whether it was there.
    pub fn remove(&mut self, id: u64) -> bool {
        self.ids.binary_search(&id).is_ok_and(|index| self.ids.remove(index).is_some())
    }

    /// Whether it is in the list.
    pub fn contains(&self, id: u64) -> bool {
        self.ids.binary_search(&id).is_ok()
    }

    /// The failures of one, that it takes along.
    pub fn take_failed(&mut self, id: u64) -> Failed {
        if self.failed.is_empty() { Failed::default() } else { self.failed.remove(&id).unwrap_or_default() }
    }

    /// None of those that have failed has to wait any more.
    pub fn wait_no_more(&mut self) {
        self.failed.values_mut().for_each(|failed| failed.left = None);
    }

    /// The failures of one.
    pub fn failed(&self, id: u64) -> Failed {
        self.failed.get(&id).copied().unwrap_or_default()
    }

    /// All numbers in the list.
    pub fn ids(&self) -> impl Iterator<Item = u64> {
        self.ids.iter().copied()
    }

    /// Those that have failed and are beyond the reach.
    pub fn failed_beyond(&self, reach: u64) -> impl Iterator<Item = (u64, Failed)> {
        self.failed.range(reach + 1..).map(|(&id, &failed)| (id, failed))
    }

    /// How many are in the list.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// How many have failed.
    pub fn retrying(&self) -> usize {
        self.failed.len()
    }

    /// Bytes they are charged.
    pub fn memory(&self) -> usize {
        self.ids.len() * Self::BYTES + self.failed.len() * Self::FAILED_BYTES
    }
}
