//! One item of the lanes, and its name there.

use crate::delivery::ordering::{Keyed, Keys};

/// Names an item while it is in the lanes.
pub type Slot = u32;

pub const NOBODY: Slot = Slot::MAX;

pub struct Item<T> {
    pub value: T,
    pub seq: u64,
    pub keys: Keys,
    pub table: u32,
    /// Another table that it is a barrier of; 0: none.
    pub table_before: u32,
    pub keyed: Keyed,
    /// The next item in the lane of each key.
    pub behind: [Slot; 2],
    /// The neighbours in order of number.
    pub older: Slot,
    pub newer: Slot,
    /// How many older items must be done first: one for each lane it isn't first of, one for a barrier of each table.
    pub waits_for: u8,
    pub barrier: bool,
    pub held: bool,
}

impl<T> Item<T> {
    /// The tables whose barriers concern it.
    pub fn tables(&self) -> impl Iterator<Item = u32> + use<T> {
        std::iter::once(self.table).chain((self.table_before != 0).then_some(self.table_before))
    }
}
