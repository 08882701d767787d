//! A replay: a range of the journal that is sent again, before what is newer of the same keys.

use std::collections::{BTreeSet, VecDeque};

use super::ordering::{Order, Ordering};
use super::position::DeliveryId;
use rustc_hash::FxHashSet;

/// Bits of the filter for each key that is expected: one key in a hundred waits for nothing.
const BITS_A_KEY: usize = 10;
const HASHES: u64 = 5;

/// The keys of a replay, and the tables whose barriers are in its way. May take a key for one of them that is not:
/// then it waits for nothing, and comes to no other harm.
#[derive(Clone, Debug)]
pub struct KeyFilter {
    bits: Vec<u64>,
    tables: FxHashSet<u32>,
    barriers: FxHashSet<u32>,
}

impl KeyFilter {
    /// For about so many events.
    pub fn with_capacity(events: usize) -> KeyFilter {
        let words = (events.saturating_mul(BITS_A_KEY) / 64 + 1).next_power_of_two();
        KeyFilter { bits: vec![0; words], tables: FxHashSet::default(), barriers: FxHashSet::default() }
    }

    /// Adds an event that newer ones have to wait for.
    pub fn add(&mut self, order: &Order) {
        for &key in order.keys.as_slice() {
            for bit in self.places(key) {
                self.bits[bit / 64] |= 1 << (bit % 64);
            }
        }
        self.tables.insert(order.table);
        if order.barrier {
            self.barriers.insert(order.table);
        }
    }

    /// Whether an event may have to wait for one that was added.
    pub fn holds(&self, order: &Order) -> bool {
        self.barriers.contains(&order.table)
            || order.barrier && self.tables.contains(&order.table)
            || order
                .keys
                .as_slice()
                .iter()
                .any(|&key| self.places(key).all(|bit| self.bits[bit / 64] & (1 << (bit % 64)) != 0))
    }

    /// Bytes it takes, about.
    pub fn memory(&self) -> usize {
        self.bits.len() * 8 + (self.tables.len() + self.barriers.len()) * 8
    }

    fn places(&self, key: u64) -> impl Iterator<Item = usize> + use<> {
        let mask = self.bits.len() as u64 * 64 - 1;
        let step = key.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(31) | 1;
        (0..HASHES).map(move |n| (key.wrapping_add(step.wrapping_mul(n + 1)) >> 7 & mask) as usize)
    }
}

/// How far a replay is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplayProgress {
    /// Which.
    pub replay: i64,
    /// All of the range up to here is done: where a restart goes on.
    pub done: DeliveryId,
    /// Delivered since it began, or since the restart.
    pub delivered: u64,
    /// Given up since.
    pub dead: u64,
}

/// A replay that is under way.
pub(super) struct Replay {
    pub id: i64,
    pub filter: KeyFilter,
    /// Whether the filter has the keys: before, everything waits, and nothing is read.
    pub is_known: bool,
    /// Where reading goes on.
    pub cursor: u64,
    /// The range has been read to its end.
    pub read: bool,
    pub progress: ReplayProgress,
    /// Live deliveries that wait for it.
    pub deferred: BTreeSet<u64>,
    /// What is in the lanes of each page that was read: its number, its end, how many.
    pages: VecDeque<(u32, u64, usize)>,
    next_page: u32,
    outstanding: usize,
    /// Bytes that its deliveries take in the lanes.
    pub charged: usize,
    /// Bytes that the filter was charged when it began.
    pub filter_memory: usize,
}

impl Replay {
    /// Bytes that a delivery takes that waits.
    pub const DEFERRED_BYTES: usize = 2 * size_of::<u64>();

    /// One whose keys are to be told.
    pub fn new(id: i64, after: u64) -> Replay {
        let filter = KeyFilter::with_capacity(0);
        Replay {
            id,
            filter_memory: filter.memory(),
            filter,
            is_known: false,
            cursor: after,
            read: false,
            progress: ReplayProgress { replay: id, done: DeliveryId(after), ..ReplayProgress::default() },
            deferred: BTreeSet::new(),
            pages: VecDeque::new(),
            next_page: 0,
            outstanding: 0,
            charged: 0,
        }
    }

    /// Whether a live event has to wait until it is done.
    pub fn holds(&self, order: &Order, ordering: Ordering) -> bool {
        match ordering {
            Ordering::Key => !self.is_known || self.filter.holds(order),
            Ordering::Strict => true,
            Ordering::None => false,
        }
    }

    /// A page of so many was read; its number.
    pub fn page(&mut self, upto: u64, items: usize) -> u32 {
        self.next_page += 1;
        self.cursor = self.cursor.max(upto);
        self.pages.push_back((self.next_page, self.cursor, items));
        self.outstanding += items;
        self.advance();
        self.next_page
    }

    /// One of a page is done.
    pub fn done(&mut self, page: u32) {
        self.outstanding = self.outstanding.saturating_sub(1);
        if let Some((.., items)) = self.pages.iter_mut().find(|(number, ..)| *number == page) {
            *items -= 1;
            self.advance();
        }
    }

    /// One has left the lanes and must be read again, and all that may stand behind it.
    pub fn lost(&mut self) {
        self.outstanding = self.outstanding.saturating_sub(1);
        self.pages.clear();
        self.cursor = self.progress.done.0;
        self.read = false;
    }

    /// Whether nothing of it is left.
    pub fn is_over(&self) -> bool {
        self.read && self.outstanding == 0
    }

    fn advance(&mut self) {
        while let Some(&(_, upto, 0)) = self.pages.front() {
            self.progress.done = DeliveryId(upto);
            self.pages.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::{Keyed, Keys};

    fn order(key: u64, table: u32, barrier: bool) -> Order {
        Order { keys: Keys::one(key), table, barrier, keyed: Keyed::default() }
    }

    #[test]
    fn a_filter_knows_all_its_keys_and_few_others() {
        let mut filter = KeyFilter::with_capacity(10_000);
        let hash = |n: u64| n.wrapping_mul(0xD6E8_FEB8_6659_FD93);
        (0..10_000).for_each(|n| filter.add(&order(hash(n), 1, false)));
        assert!((0..10_000).all(|n| filter.holds(&order(hash(n), 1, false))));
        let wrong = (10_000..110_000).filter(|&n| filter.holds(&order(hash(n), 1, false))).count();
        assert!(wrong < 2_000, "{wrong} of 100,000");
    }

    #[test]
    fn barriers_wait_for_their_table_and_hold_it() {
        let mut filter = KeyFilter::with_capacity(10);
        filter.add(&order(1, 1, false));
        filter.add(&order(2, 2, true));
        assert!(filter.holds(&order(3, 1, true)) && filter.holds(&order(3, 2, false)));
        assert!(!filter.holds(&order(3, 1, false)) && !filter.holds(&order(3, 3, true)));
    }
}
