//! What becomes of deliveries, counted for each subscription: an array in dynamic shared memory, of fixed size.
//!
//! The dispatcher alone writes, and a reader looks at any time. The first subscriptions have a place each. Those that come
//! when all are taken share the first place, so that many of them take neither memory nor room in a scrape, and what is
//! counted there only rises, whoever comes and goes.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicI64, Ordering};

use pgrx::pg_sys;
use rustc_hash::FxHashMap;

use super::registry::Database;
use crate::delivery::Payload;
use crate::delivery::{End, Record};
use crate::event::Timestamp;
use crate::metrics::{Tally, Totals};
use crate::pg::process::clock;

/// Stands where nobody is, and for those who share a place.
const NOBODY: i64 = 0;

#[repr(C)]
struct Place {
    subscription: AtomicI64,
    tally: Tally,
}

/// The dispatcher's end.
pub struct Tallies {
    places: &'static [Place],
    taken: FxHashMap<i64, usize>,
    free: BTreeSet<usize>,
}

impl Tallies {
    /// Makes an array with places of their own for so many subscriptions, and says where it is.
    pub fn new(database: &Database, own: usize) -> Tallies {
        let size = size_of::<u64>() + size_of::<Place>() * (1 + own);
        // SAFETY: the segment is large enough, and zeroed but for the length in front; the mapping lives as long as the
        // process.
        unsafe {
            let segment = pg_sys::dsm_create(size, 0);
            pg_sys::dsm_pin_mapping(segment);
            let address = pg_sys::dsm_segment_address(segment);
            address.cast::<u8>().write_bytes(0, size);
            address.cast::<u64>().write(1 + own as u64);
            database.tallies.store(pg_sys::dsm_segment_handle(segment), Ordering::SeqCst);
            Tallies { places: places(segment), taken: FxHashMap::default(), free: (1..=own).collect() }
        }
    }

    /// A subscription is there; it gets the first free place, if there is one.
    pub fn admit(&mut self, subscription: i64) {
        if !self.taken.contains_key(&subscription)
            && let Some(free) = self.free.pop_first()
        {
            self.taken.insert(subscription, free);
            self.places[free].subscription.store(subscription, Ordering::Release);
        }
    }

    /// A subscription is there no more.
    pub fn dismiss(&mut self, subscription: i64) {
        if let Some(place) = self.taken.remove(&subscription) {
            self.places[place].subscription.store(NOBODY, Ordering::SeqCst);
            self.places[place].tally.clear();
            self.free.insert(place);
        }
    }

    /// Counts what became of a request.
    pub fn count(&self, record: &Record<Payload>, now: Timestamp) {
        match record {
            Record::Finished { subscription, members, end, attempts, duration, replay } => {
                let tally = self.of(subscription.0);
                match (end, replay) {
                    (End::Delivered { .. }, None) => {
                        tally.attempt(*attempts, None, *duration);
                        for (_, (event, _)) in members {
                            tally.delivered(clock::between(event.transaction.committed_at, now));
                        }
                        tally.flowed(members.len() as u64, now);
                    }
                    (End::Delivered { .. }, Some(_)) => {
                        tally.attempt(*attempts, None, *duration);
                        tally.replayed(members.len() as u64);
                        tally.flowed(members.len() as u64, now);
                    }
                    (End::Dropped, None) => tally.dropped(members.len() as u64),
                    (End::Dead { kind, .. }, None) => tally.dead(kind, members.len() as u64),
                    (End::Dropped | End::Dead { .. }, Some(_)) => {}
                }
            }
            Record::Attempt { subscription, attempt, failure, duration, .. } => {
                self.of(subscription.0).attempt(*attempt, Some(failure.kind), *duration);
            }
        }
    }

    /// Counts an event that cannot be sent.
    pub fn count_dead(&self, subscription: i64, class: &str) {
        self.of(subscription).dead(class, 1);
    }

    fn of(&self, subscription: i64) -> &Tally {
        &self.places[self.taken.get(&subscription).copied().unwrap_or_default()].tally
    }
}

/// What was counted for those with a place of their own, and for the others together.
pub fn read(database: &Database) -> (HashMap<i64, Totals>, Totals) {
    let (mut own, mut others) = (HashMap::new(), Totals::default());
    let handle = database.tallies.load(Ordering::SeqCst);
    if handle == 0 {
        return (own, others);
    }
    let now = clock::now();
    // SAFETY: a segment that can be attached holds an array, and stays until detached; this process has not attached it
    // already, since only the dispatcher keeps it.
    unsafe {
        let segment = pg_sys::dsm_attach(handle);
        // The dispatcher has just ended.
        if segment.is_null() {
            return (own, others);
        }
        for (number, place) in places(segment).iter().enumerate() {
            let whose = place.subscription.load(Ordering::SeqCst);
            if number == 0 {
                others = place.tally.read(now);
            } else if whose != NOBODY {
                let totals = place.tally.read(now);
                // What was read while the place was given up is of nobody.
                if place.subscription.load(Ordering::SeqCst) == whose {
                    own.insert(whose, totals);
                }
            }
        }
        pg_sys::dsm_detach(segment);
    }
    (own, others)
}

/// # Safety
/// The segment is attached, was made by [`Tallies::new`], and stays attached while the array is in use.
unsafe fn places<'a>(segment: *mut pg_sys::dsm_segment) -> &'a [Place] {
    // SAFETY: as the caller promises; the length stands in front and is as aligned as a place.
    unsafe {
        let length = pg_sys::dsm_segment_address(segment).cast::<u64>();
        std::slice::from_raw_parts(length.add(1).cast::<Place>(), *length as usize)
    }
}
