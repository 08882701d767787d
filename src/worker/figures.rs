//! The figures of all subscriptions, from the dispatcher to whoever asks: an array in dynamic shared memory.
//!
//! The dispatcher alone writes. A reader copies an entry and looks whether it was written meanwhile; when the array is
//! full a larger one takes its place.

use std::cell::UnsafeCell;
use std::collections::HashMap;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use pgrx::pg_sys;

use super::shmem::Database;

/// What is kept of the text of an error.
pub const ERROR_BYTES: usize = 240;

/// How one subscription fares. Times are microseconds since 2000 (`TimestampTz`), 0 for never.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Figures {
    /// `pgwh.subscriptions.id`; 0 for an unused entry.
    pub subscription_id: i64,
    /// Events not delivered yet.
    pub pending: u64,
    /// Size of these, in bytes.
    pub pending_bytes: u64,
    /// Of these, events that failed and wait for their next attempt.
    pub retrying: u64,
    /// Requests under way.
    pub in_flight: u64,
    /// Events delivered so far.
    pub delivered: u64,
    /// Events of which there was nothing to send.
    pub dropped: u64,
    /// Events given up.
    pub dead: u64,
    /// Keys held back by an event that failed.
    pub blocked_keys: u64,
    /// When the oldest pending event was committed.
    pub oldest_pending: i64,
    /// When a request last succeeded.
    pub last_success_at: i64,
    /// When a request last failed.
    pub last_failure_at: i64,
    /// When the next retry is due.
    pub next_attempt_at: i64,
    /// HTTP status of the last response, 0 for none.
    pub last_status: u32,
    /// Median and 99th percentile of the duration of recent requests, in microseconds; 0 for none.
    pub p50_us: u32,
    /// See `p50_us`.
    pub p99_us: u32,
    /// 1 while a probe of an endpoint that fails as a whole is due or under way.
    pub probing: u32,
    /// How much of `error` is in use.
    pub error_bytes: u32,
    /// What the last failure was.
    pub error: [u8; ERROR_BYTES],
    /// Where the oldest pending event's transaction committed; 0 when nothing is pending.
    pub oldest_lsn: u64,
    /// See [`Figures::set_words`].
    pub mode: Text,
    /// See [`Figures::set_words`].
    pub bottleneck: Text,
}

/// A word in shared memory.
pub type Text = [u8; WORD_BYTES];

/// The longest word.
const WORD_BYTES: usize = 24;

impl Default for Figures {
    fn default() -> Figures {
        // SAFETY: numbers and bytes, for which zero is a value.
        unsafe { std::mem::zeroed() }
    }
}

impl Figures {
    /// Keeps as much of the text as there is room for.
    pub fn set_error(&mut self, text: &str) {
        let length = text.floor_char_boundary(ERROR_BYTES);
        self.error[..length].copy_from_slice(&text.as_bytes()[..length]);
        self.error_bytes = length as u32;
    }

    /// Says what it does with its deliveries, and what limits its speed.
    pub fn set_words(&mut self, mode: &str, bottleneck: &str) {
        for (text, word) in [(&mut self.mode, mode), (&mut self.bottleneck, bottleneck)] {
            let length = word.floor_char_boundary(WORD_BYTES);
            text[..length].copy_from_slice(&word.as_bytes()[..length]);
        }
    }

    /// What it does with its deliveries.
    pub fn mode(&self) -> String {
        word(&self.mode)
    }

    /// What limits its speed; none if nothing does.
    pub fn bottleneck(&self) -> Option<String> {
        Some(word(&self.bottleneck)).filter(|word| !word.is_empty())
    }

    /// What the last failure was; none if there was none.
    pub fn error(&self) -> Option<String> {
        let text = &self.error[..(self.error_bytes as usize).min(ERROR_BYTES)];
        (!text.is_empty()).then(|| String::from_utf8_lossy(text).into_owned())
    }
}

fn word(text: &Text) -> String {
    String::from_utf8_lossy(text).trim_end_matches('\0').to_owned()
}

#[repr(C)]
struct Header {
    count: AtomicU32,
    capacity: u32,
}

#[repr(C)]
struct Entry {
    /// Odd while the entry is being written.
    version: AtomicU32,
    figures: UnsafeCell<Figures>,
}

const FIRST_CAPACITY: u32 = 64;

/// The dispatcher's end.
pub struct Publisher {
    database: &'static Database,
    segment: *mut pg_sys::dsm_segment,
    places: HashMap<i64, u32>,
    free: Vec<u32>,
}

impl Publisher {
    /// Makes an empty array and says where it is.
    pub fn new(database: &'static Database) -> Publisher {
        let segment = create(FIRST_CAPACITY);
        let publisher = Publisher { database, segment, places: HashMap::new(), free: Vec::new() };
        publisher.announce();
        publisher
    }

    fn announce(&self) {
        // SAFETY: the segment is attached.
        let handle = unsafe { pg_sys::dsm_segment_handle(self.segment) };
        self.database.figures.store(handle, Ordering::SeqCst);
    }

    /// Shows new figures of a subscription.
    pub fn publish(&mut self, figures: &Figures) {
        let place = self.place_of(figures.subscription_id);
        self.write(place, figures);
    }

    /// Takes a subscription's figures away.
    pub fn withdraw(&mut self, subscription_id: i64) {
        if let Some(place) = self.places.remove(&subscription_id) {
            self.write(place, &Figures::default());
            self.free.push(place);
        }
    }

    fn write(&self, place: u32, figures: &Figures) {
        // SAFETY: the place is within the segment, and only this process writes to it.
        unsafe {
            let entry = &*entries(self.segment).add(place as usize);
            entry.version.fetch_add(1, Ordering::AcqRel);
            fence(Ordering::SeqCst);
            ptr::write_volatile(entry.figures.get(), *figures);
            entry.version.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn place_of(&mut self, subscription_id: i64) -> u32 {
        if let Some(place) = self.places.get(&subscription_id) {
            return *place;
        }
        let place = self.free.pop().unwrap_or_else(|| self.append());
        self.places.insert(subscription_id, place);
        place
    }

    fn append(&mut self) -> u32 {
        // SAFETY: both segments are attached and hold what their headers say; entries are plain memory, which only
        // this process writes.
        unsafe {
            let (count, capacity) = {
                let header = &*header(self.segment);
                (header.count.load(Ordering::Relaxed), header.capacity)
            };
            if count == capacity {
                let larger = create(capacity * 2);
                ptr::copy_nonoverlapping(entries(self.segment), entries(larger), capacity as usize);
                (*header(larger)).count.store(count, Ordering::Release);
                let smaller = std::mem::replace(&mut self.segment, larger);
                self.announce();
                pg_sys::dsm_detach(smaller);
            }
            (*header(self.segment)).count.store(count + 1, Ordering::Release);
            count
        }
    }
}

/// Copies the figures of all subscriptions of a database.
pub fn read(database: &Database) -> Vec<Figures> {
    let mut found = Vec::new();
    each(database, |figures| found.push(*figures));
    found
}

/// Copies the figures of one subscription.
pub fn read_one(database: &Database, subscription_id: i64) -> Option<Figures> {
    let mut found = None;
    each(database, |figures| {
        if figures.subscription_id == subscription_id {
            found = Some(*figures);
        }
    });
    found
}

/// Shows a copy of the figures of each subscription of a database, which must raise nothing.
pub fn each(database: &Database, mut show: impl FnMut(&Figures)) {
    // The dispatcher may replace the array between our two looks; the next look finds the new one.
    for _ in 0..100 {
        let handle = database.figures.load(Ordering::SeqCst);
        if handle == 0 {
            break;
        }
        // SAFETY: a segment that can be attached holds an array, and stays until detached; this process has not
        // attached it already, since only the dispatcher keeps it.
        unsafe {
            let segment = pg_sys::dsm_attach(handle);
            if segment.is_null() {
                continue;
            }
            let count = (*header(segment)).count.load(Ordering::Acquire);
            (0..count as usize)
                .map(|place| copy(&*entries(segment).add(place)))
                .filter(|figures| figures.subscription_id != 0)
                .for_each(|figures| show(&figures));
            pg_sys::dsm_detach(segment);
            return;
        }
    }
}

fn copy(entry: &Entry) -> Figures {
    loop {
        let before = entry.version.load(Ordering::Acquire);
        // SAFETY: the memory is attached; a torn copy is thrown away.
        let figures = unsafe { ptr::read_volatile(entry.figures.get()) };
        fence(Ordering::SeqCst);
        if before.is_multiple_of(2) && entry.version.load(Ordering::Acquire) == before {
            return figures;
        }
        std::hint::spin_loop();
    }
}

fn create(capacity: u32) -> *mut pg_sys::dsm_segment {
    let size = size_of::<Header>() + size_of::<Entry>() * capacity as usize;
    // SAFETY: the segment is large enough for a header and its entries, and is zeroed, which is an empty array; the
    // mapping lives as long as the process.
    unsafe {
        let segment = pg_sys::dsm_create(size, 0);
        pg_sys::dsm_pin_mapping(segment);
        let address = pg_sys::dsm_segment_address(segment);
        ptr::write_bytes(address.cast::<u8>(), 0, size);
        address.cast::<Header>().write(Header { count: AtomicU32::new(0), capacity });
        segment
    }
}

/// # Safety
/// The segment is attached and was made by `create`.
unsafe fn header(segment: *mut pg_sys::dsm_segment) -> *mut Header {
    // SAFETY: as the caller promises.
    unsafe { pg_sys::dsm_segment_address(segment).cast() }
}

/// # Safety
/// The segment is attached and was made by `create`.
unsafe fn entries(segment: *mut pg_sys::dsm_segment) -> *mut Entry {
    // SAFETY: as the caller promises; the header's size is a multiple of an entry's alignment.
    unsafe { header(segment).add(1).cast() }
}
