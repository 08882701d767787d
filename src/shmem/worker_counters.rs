//! What a database's workers count, beside what they count of each subscription: plain numbers in shared memory, each
//! with one writer. They outlive the workers.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

/// What the decoder counts, on cache lines of its own: commits look at what is beside it.
#[repr(C, align(64))]
pub struct Decoded {
    /// Transactions decoded.
    pub transactions: AtomicU64,
    /// Changes decoded.
    pub changes: AtomicU64,
    /// Of these, changes that some subscription wants.
    pub matched: AtomicU64,
    /// Bytes of write-ahead log read.
    pub bytes: AtomicU64,
    /// Up to where it is decoded; 0 for unknown.
    pub position: AtomicU64,
    /// Whether all that was flushed when last looked is decoded.
    pub all: AtomicBool,
    /// When that was last so, in microseconds since 2000.
    pub all_at: AtomicI64,
    /// When what the slot is confirmed for was decoded.
    pub confirmed_at: AtomicI64,
    /// Bytes put on the queue, or about to be.
    pub queued: AtomicU64,
    /// The oldest transaction whose changes are being collected, 0 for none: write-ahead log is kept from where it began.
    pub oldest_xid: AtomicU64,
    /// Where decoding would have to begin again for that.
    pub oldest_from: AtomicU64,
}

/// What the dispatcher counts.
#[repr(C, align(64))]
pub struct Dispatched {
    /// How often it has started.
    pub starts: AtomicU64,
    /// Bytes taken from the queue.
    pub unqueued: AtomicU64,
    /// Bytes that undelivered events take in memory.
    pub memory: AtomicU64,
    /// Requests under way.
    pub in_flight: AtomicU64,
}

impl Decoded {
    /// As of a database nobody has decoded in.
    pub fn reset(&self) {
        for number in
            [&self.transactions, &self.changes, &self.matched, &self.bytes, &self.position, &self.queued]
        {
            number.store(0, Ordering::Relaxed);
        }
        self.show_oldest(0, 0);
        self.all.store(false, Ordering::Relaxed);
        self.all_at.store(0, Ordering::Relaxed);
        self.confirmed_at.store(0, Ordering::Relaxed);
    }

    /// Shows the oldest transaction whose changes are being collected.
    pub fn show_oldest(&self, xid: u32, from: u64) {
        self.oldest_from.store(from, Ordering::Relaxed);
        self.oldest_xid.store(xid.into(), Ordering::Release);
    }
}

impl Dispatched {
    /// As of a database without a dispatcher.
    pub fn reset(&self) {
        for number in [&self.starts, &self.unqueued, &self.memory, &self.in_flight] {
            number.store(0, Ordering::Relaxed);
        }
    }
}

/// Adds to a number that nobody else writes.
pub fn add(number: &AtomicU64, more: u64) {
    number.store(number.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
}
