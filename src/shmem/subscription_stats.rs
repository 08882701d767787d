//! The figures of all subscriptions, from the dispatcher to whoever asks: an array in dynamic shared memory.
//!
//! The dispatcher alone writes. A reader copies an entry and looks whether it was written meanwhile; when the array is
//! full a larger one takes its place. An index in front of it says where a subscription's entry is: a hash table of
//! places. What it says is held against the entry, so that one whose place is another's by now finds nothing. In both, a
//! subscription is where its id says, or in the next place that is free: ids follow one another, so who asks of all in
//! turn finds each beside the one before.

use std::cell::{Cell, UnsafeCell};
use std::collections::BTreeSet;
use std::mem::offset_of;
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

use pgrx::pg_sys;
use rustc_hash::FxHashMap;

use super::dynamic;
use super::registry::Database;

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
    /// Where the oldest pending event's transaction committed; 0 when nothing is pending.
    pub oldest_lsn: u64,
    /// See [`Figures::set_words`].
    pub mode: Text,
    /// See [`Figures::set_words`].
    pub bottleneck: Text,
    /// What the last failure was. Last, since it is half of all and mostly not there.
    pub error: [u8; ERROR_BYTES],
}

/// A word in shared memory.
pub type Text = [u8; WORD_BYTES];

/// The mode of a subscription whose endpoint fails as a whole.
pub const SUSPENDED: &str = "suspended";

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

    /// What it does with its deliveries; none: it just sends them.
    pub fn mode(&self) -> Option<String> {
        word(&self.mode)
    }

    /// Whether the endpoint fails as a whole.
    pub fn is_open(&self) -> bool {
        self.mode.starts_with(SUSPENDED.as_bytes())
    }

    /// What limits its speed; none if nothing does.
    pub fn bottleneck(&self) -> Option<String> {
        word(&self.bottleneck)
    }

    /// What the last failure was; none if there was none.
    pub fn error(&self) -> Option<String> {
        let text = &self.error[..(self.error_bytes as usize).min(ERROR_BYTES)];
        (!text.is_empty()).then(|| String::from_utf8_lossy(text).into_owned())
    }
}

fn word(text: &Text) -> Option<String> {
    let length = text.iter().position(|byte| *byte == 0).unwrap_or(WORD_BYTES);
    (length > 0).then(|| String::from_utf8_lossy(&text[..length]).into_owned())
}

#[repr(C)]
struct Header {
    /// How many entries there is room for; the index has twice as many slots.
    capacity: u64,
}

#[repr(C)]
struct Entry {
    /// Odd while the entry is being written.
    version: AtomicU32,
    figures: UnsafeCell<Figures>,
}

const FIRST_CAPACITY: u64 = 64;
/// How long until more memory is asked for, when there was none.
const NO_MEMORY_PAUSE: Duration = Duration::from_secs(1);
/// What it is for.
const TO_SHOW: &str = "to show more subscriptions in pgwh.status";

/// The dispatcher's end.
pub struct Publisher {
    database: &'static Database,
    segment: *mut pg_sys::dsm_segment,
    places: FxHashMap<i64, u32>,
    free: BTreeSet<u32>,
    /// Slots of the index in use, those of subscriptions that are gone included.
    indexed: u32,
    /// Until then there is no memory for more.
    not_before: Option<Instant>,
}

impl Publisher {
    /// Makes an empty array and says where it is.
    pub fn new(database: &'static Database) -> Publisher {
        let segment = create(FIRST_CAPACITY);
        let free = (0..FIRST_CAPACITY as u32).collect();
        let publisher =
            Publisher { database, segment, places: FxHashMap::default(), free, indexed: 0, not_before: None };
        publisher.announce();
        publisher
    }

    fn announce(&self) {
        // SAFETY: the segment is attached.
        let handle = unsafe { pg_sys::dsm_segment_handle(self.segment) };
        self.database.figures.store(handle, Ordering::SeqCst);
        OWN.set(self.segment);
    }

    /// Shows new figures of a subscription; false when there is no room for them now.
    pub fn publish(&mut self, figures: &Figures) -> bool {
        let id = figures.subscription_id;
        if let Some(place) = self.places.get(&id) {
            self.write(*place, figures);
            return true;
        }
        let Some(place) = self.make_room().then(|| self.place_for(id)).flatten() else { return false };
        self.free.remove(&place);
        self.places.insert(id, place);
        self.write(place, figures);
        self.index(id, place);
        true
    }

    /// The free place that is next to where the id says.
    fn place_for(&self, id: i64) -> Option<u32> {
        // SAFETY: the segment is attached.
        let capacity = unsafe { (*header(self.segment)).capacity };
        let wanted = (id as u64 % capacity) as u32;
        self.free.range(wanted..).next().or_else(|| self.free.first()).copied()
    }

    /// Takes a subscription's figures away.
    pub fn withdraw(&mut self, subscription_id: i64) {
        if let Some(place) = self.places.remove(&subscription_id) {
            self.write(place, &Figures::default());
            self.free.insert(place);
        }
    }

    fn write(&self, place: u32, figures: &Figures) {
        // SAFETY: the place is within the segment, and only this process writes to it.
        unsafe {
            let entry = &*entries(self.segment).add(place as usize);
            // Nobody else writes versions, so none of this has to wait for memory that is far away.
            let version = entry.version.load(Ordering::Relaxed);
            entry.version.store(version.wrapping_add(1), Ordering::Relaxed);
            fence(Ordering::Release);
            let (from, to) = (ptr::from_ref(figures), entry.figures.get());
            let used = offset_of!(Figures, error) + figures.error_bytes as usize;
            ptr::copy_nonoverlapping(from.cast::<u8>(), to.cast::<u8>(), used);
            entry.version.store(version.wrapping_add(2), Ordering::Release);
        }
    }

    fn index(&mut self, id: i64, place: u32) {
        // SAFETY: the segment is attached, and its index is never full.
        let index = unsafe { index(self.segment) };
        let free = probe(id, index).find(|slot| slot.load(Ordering::Relaxed) == 0);
        if let Some(slot) = free {
            slot.store(Indexed { id: id as u32, place }.pack(), Ordering::Release);
            self.indexed += 1;
        }
    }

    /// Makes room for one more, in the array and in three quarters of its index: if need be in a new one. False when there is no
    /// memory for that.
    fn make_room(&mut self) -> bool {
        // SAFETY: both segments are attached and hold what their headers say; entries are plain memory, which only this
        // process writes.
        unsafe {
            let capacity = (*header(self.segment)).capacity;
            let is_full = self.free.is_empty();
            if !is_full && u64::from(self.indexed) < capacity / 2 * 3 {
                return true;
            }
            if self.not_before.is_some_and(|until| Instant::now() < until) {
                return false;
            }
            let wanted = if is_full { capacity * 2 } else { capacity };
            let Some(larger) = dynamic::make(self.database, TO_SHOW, || create(wanted)) else {
                self.not_before = Some(Instant::now() + NO_MEMORY_PAUSE);
                return false;
            };
            ptr::copy_nonoverlapping(entries(self.segment), entries(larger), capacity as usize);
            self.free.extend(capacity as u32..(*header(larger)).capacity as u32);
            let smaller = std::mem::replace(&mut self.segment, larger);
            self.indexed = 0;
            let places: Vec<(i64, u32)> = self.places.iter().map(|(id, place)| (*id, *place)).collect();
            places.into_iter().for_each(|(id, place)| self.index(id, place));
            self.announce();
            pg_sys::dsm_detach(smaller);
            true
        }
    }
}

/// Shows a copy of the figures of one subscription; none when there are none.
pub fn read_one<T>(database: &Database, subscription_id: i64, look: impl FnOnce(&Figures) -> T) -> Option<T> {
    // SAFETY: the segment is attached, and places in its index are within it.
    let find = |segment| unsafe {
        let slots = probe(subscription_id, index(segment))
            .map_while(|slot| Indexed::unpack(slot.load(Ordering::Acquire)));
        for indexed in slots.filter(|indexed| indexed.id == subscription_id as u32) {
            let figures = copy(&*entries(segment).add(indexed.place as usize));
            if figures.subscription_id == subscription_id {
                return Some(look(&figures));
            }
        }
        None
    };
    with_segment(database, find).flatten()
}

/// Shows a copy of the figures of each subscription of a database.
pub fn each(database: &Database, mut show: impl FnMut(&Figures)) {
    // SAFETY: the segment is attached, and holds as many entries as its header says.
    with_segment(database, |segment| unsafe {
        (0..(*header(segment)).capacity as usize)
            .map(|place| copy(&*entries(segment).add(place)))
            .filter(|figures| figures.subscription_id != 0)
            .for_each(|figures| show(&figures));
    });
}

thread_local! {
    /// The array that this process has attached: of many subscriptions each is looked up for itself.
    static ATTACHED: Cell<*mut pg_sys::dsm_segment> = const { Cell::new(ptr::null_mut()) };
    /// The array that this process has made, if it is the dispatcher: it cannot be attached a second time.
    static OWN: Cell<*mut pg_sys::dsm_segment> = const { Cell::new(ptr::null_mut()) };
}

/// Lets go of what was attached to be read; at the end of each transaction.
pub fn let_go() {
    let segment = ATTACHED.replace(ptr::null_mut());
    if !segment.is_null() {
        // SAFETY: it is attached, and nobody refers to it.
        unsafe { pg_sys::dsm_detach(segment) };
    }
}

/// Looks at the array; none when there is none.
fn with_segment<T>(database: &Database, look: impl FnOnce(*mut pg_sys::dsm_segment) -> T) -> Option<T> {
    let own = OWN.get();
    if !own.is_null() {
        return Some(look(own));
    }
    // The dispatcher may replace the array between our two looks; the next look finds the new one.
    for _ in 0..100 {
        let handle = database.figures.load(Ordering::SeqCst);
        if handle == 0 {
            break;
        }
        let attached = ATTACHED.get();
        // SAFETY: a segment that can be attached holds an array, and stays until detached; pinned, it belongs to no
        // resource owner. This process has made none.
        unsafe {
            if !attached.is_null() && pg_sys::dsm_segment_handle(attached) == handle {
                return Some(look(attached));
            }
            let_go();
            let segment = pg_sys::dsm_attach(handle);
            if segment.is_null() {
                continue;
            }
            pg_sys::dsm_pin_mapping(segment);
            ATTACHED.set(segment);
            return Some(look(segment));
        }
    }
    None
}

/// What a slot of the index says.
struct Indexed {
    /// The lower half of a subscription's id: all of it is in its entry.
    id: u32,
    place: u32,
}

impl Indexed {
    /// Never 0, which stands for a free slot.
    fn pack(&self) -> u64 {
        u64::from(self.id) << 32 | u64::from(self.place + 1)
    }

    fn unpack(slot: u64) -> Option<Indexed> {
        let place = (slot as u32).checked_sub(1)?;
        Some(Indexed { id: (slot >> 32) as u32, place })
    }
}

/// The slots of the index where a subscription's place may be, in turn; each once.
fn probe(id: i64, index: &[AtomicU64]) -> impl Iterator<Item = &AtomicU64> {
    let begin = id as usize % index.len();
    index[begin..].iter().chain(&index[..begin])
}

fn copy(entry: &Entry) -> Figures {
    loop {
        let before = entry.version.load(Ordering::Acquire);
        let mut figures = Figures::default();
        // SAFETY: the memory is attached; a torn copy is thrown away, and says of an error no more than there is room for.
        unsafe {
            let from = entry.figures.get().cast_const().cast::<u8>();
            ptr::copy_nonoverlapping(from, (&raw mut figures).cast::<u8>(), offset_of!(Figures, error));
            let error = (figures.error_bytes as usize).min(ERROR_BYTES);
            ptr::copy_nonoverlapping(from.add(offset_of!(Figures, error)), figures.error.as_mut_ptr(), error);
        }
        fence(Ordering::Acquire);
        if before.is_multiple_of(2) && entry.version.load(Ordering::Relaxed) == before {
            return figures;
        }
        std::hint::spin_loop();
    }
}

fn create(capacity: u64) -> *mut pg_sys::dsm_segment {
    let size = size_of::<Header>()
        + slots(capacity) * size_of::<AtomicU64>()
        + size_of::<Entry>() * capacity as usize;
    // SAFETY: the segment is large enough for a header and its entries, and is zeroed, which is an empty array; the
    // mapping lives as long as the process.
    unsafe {
        let segment = pg_sys::dsm_create(size, 0);
        pg_sys::dsm_pin_mapping(segment);
        let address = pg_sys::dsm_segment_address(segment);
        ptr::write_bytes(address.cast::<u8>(), 0, size);
        address.cast::<Header>().write(Header { capacity });
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
/// The segment is attached and was made by `create`, and stays so as long as the index is looked at.
unsafe fn index<'a>(segment: *mut pg_sys::dsm_segment) -> &'a [AtomicU64] {
    // SAFETY: as the caller promises.
    unsafe { std::slice::from_raw_parts(header(segment).add(1).cast(), slots((*header(segment)).capacity)) }
}

/// # Safety
/// The segment is attached and was made by `create`.
unsafe fn entries(segment: *mut pg_sys::dsm_segment) -> *mut Entry {
    // SAFETY: as the caller promises; sizes of header and index are multiples of an entry's alignment.
    unsafe {
        let index = header(segment).add(1).cast::<AtomicU64>();
        index.add(slots((*header(segment)).capacity)).cast()
    }
}

/// How many slots the index of so many entries has.
fn slots(capacity: u64) -> usize {
    2 * capacity as usize
}
