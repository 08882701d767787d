//! Which deliveries are being sent right now, from the dispatcher to whoever asks: a fixed array in dynamic shared
//! memory.
//!
//! The dispatcher alone writes, a word when a request begins and when it ends. A reader may come in between and gets
//! what was true a moment ago.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

use pgrx::pg_sys;

use super::registry::Database;
use crate::delivery::DeliveryId;

/// Stands where no request is.
const NOTHING: u64 = 0;

/// The dispatcher's end.
pub struct UnderWay {
    /// By the number that the sender knows a request by, its first delivery.
    requests: &'static [AtomicU64],
}

impl UnderWay {
    /// Makes an array for so many requests and says where it is. Requests beyond it are not shown.
    pub fn new(database: &Database, max_requests: usize) -> UnderWay {
        let size = size_of::<u64>() * (1 + max_requests);
        // SAFETY: the segment is large enough, and zeroed but for the length in front; the mapping lives as long as the
        // process.
        unsafe {
            let segment = pg_sys::dsm_create(size, 0);
            pg_sys::dsm_pin_mapping(segment);
            let address = pg_sys::dsm_segment_address(segment);
            address.cast::<u8>().write_bytes(0, size);
            address.cast::<AtomicU64>().write(AtomicU64::new(max_requests as u64));
            database.under_way.store(pg_sys::dsm_segment_handle(segment), Ordering::SeqCst);
            UnderWay { requests: requests(segment) }
        }
    }

    /// A request begins with this delivery.
    pub fn begin(&self, request: usize, first: DeliveryId) {
        self.set(request, first.0);
    }

    /// A request has ended.
    pub fn end(&self, request: usize) {
        self.set(request, NOTHING);
    }

    fn set(&self, request: usize, word: u64) {
        if let Some(place) = self.requests.get(request) {
            place.store(word, Ordering::Relaxed);
        }
    }
}

/// The first deliveries of the requests under way, each once.
pub fn read(database: &Database) -> BTreeSet<DeliveryId> {
    let handle = database.under_way.load(Ordering::SeqCst);
    if handle == 0 {
        return BTreeSet::new();
    }
    // SAFETY: a segment that can be attached holds an array, and stays until detached; this process has not attached it
    // already, since only the dispatcher keeps it.
    unsafe {
        let segment = pg_sys::dsm_attach(handle);
        // The dispatcher has just ended, and all its requests with it.
        if segment.is_null() {
            return BTreeSet::new();
        }
        let words = requests(segment).iter().map(|place| place.load(Ordering::Relaxed));
        let found = words.filter(|word| *word != NOTHING).map(DeliveryId).collect();
        pg_sys::dsm_detach(segment);
        found
    }
}

/// # Safety
/// The segment is attached, was made by [`UnderWay::new`], and stays attached while the array is in use.
unsafe fn requests<'a>(segment: *mut pg_sys::dsm_segment) -> &'a [AtomicU64] {
    // SAFETY: as the caller promises; the length stands in front.
    unsafe {
        let length = pg_sys::dsm_segment_address(segment).cast::<AtomicU64>();
        std::slice::from_raw_parts(length.add(1), (*length).load(Ordering::Relaxed) as usize)
    }
}
