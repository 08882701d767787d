//! What decides in which order events are sent.

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

    /// Their hashes: none, one or two.
    pub fn as_slice(&self) -> &[u64] {
        &self.hashes[..usize::from(self.count)]
    }

    pub(super) fn index_of(&self, key: u64) -> usize {
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
    /// The table that holds its row, and how keys are made of rows there.
    pub keyed: Keyed,
}

/// How the keys of a table's rows are made. Keys that were made in different ways cannot be compared, so the first event that is
/// keyed in another way than what is outstanding of its table is a barrier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keyed {
    /// The oid of the table that holds the rows, which may be a partition; 0: it does not matter.
    pub relation: u32,
    /// Tells the ways apart.
    pub way: u32,
}

impl Order {
    /// Waits for nothing, and nothing waits for it.
    const NONE: Order =
        Order { keys: Keys::NONE, table: 0, barrier: false, keyed: Keyed { relation: 0, way: 0 } };
}

/// Which events of a subscription have to wait for each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Ordering {
    /// Those that share a key or meet a barrier.
    #[default]
    Key,
    /// All: one request at a time, in order of commit.
    Strict,
    /// None.
    None,
}

impl Ordering {
    /// How the lanes see an event: strict order is a single lane, no order is a lane for each event.
    pub(super) fn apply(self, order: Order) -> Order {
        match self {
            Ordering::Key => order,
            Ordering::Strict => Order { keys: Keys::one(0), ..Order::NONE },
            Ordering::None => Order::NONE,
        }
    }
}
