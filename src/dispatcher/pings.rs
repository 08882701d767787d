//! Pings that sessions ask for and wait for: a session makes a small segment of shared memory, the dispatcher sends by
//! the subscription's settings as it sends everything, and writes the outcome there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use pgrx::pg_sys;
use slab::Slab;

use super::endpoint_config;
use super::endpoint_config::Surroundings;
use crate::event::format::{Source, render_ping};
use crate::http::{Job, Outcome, Prepared};
use crate::journal;
use crate::journal::{Locked, SESSION_TABLES, SubscriptionRow};
use crate::pg::process::{bgworker, clock};
use crate::shmem::registry;
use crate::shmem::registry::{Database, ProcessRef};

/// Marks the sender's number of a request as one of ours.
const MARK: u64 = 1 << 63;
/// How long beyond its subscription's timeout a ping is waited for.
const GRACE: Duration = Duration::from_secs(5);

/// What is kept of an error's text.
const ERROR_BYTES: usize = 1024;
/// The longest word for a kind of error.
const CLASS_BYTES: usize = 24;

/// Where a ping stands.
mod state {
    pub const ASKED: u32 = 0;
    pub const ANSWERED: u32 = 1;
    pub const REFUSED: u32 = 2;
}

/// What stands in the segment. Whoever has written it says so by the state.
#[repr(C)]
struct Sheet {
    subscription: i64,
    caller: ProcessRef,
    state: AtomicU32,
    told: Told,
}

/// What came of a ping.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Told {
    /// The response's status, 0 for none.
    pub status: u32,
    /// How long it took, in microseconds.
    pub duration_us: u64,
    class_bytes: u32,
    class: [u8; CLASS_BYTES],
    error_bytes: u32,
    error: [u8; ERROR_BYTES],
}

impl Told {
    fn new(status: Option<u16>, duration: Duration, class: &str, error: &str) -> Told {
        let mut told = Told {
            status: status.map_or(0, u32::from),
            duration_us: duration.as_micros() as u64,
            class_bytes: 0,
            class: [0; CLASS_BYTES],
            error_bytes: 0,
            error: [0; ERROR_BYTES],
        };
        told.class_bytes = put(&mut told.class, class);
        told.error_bytes = put(&mut told.error, error);
        told
    }

    /// The word for the kind of error; none when it got through.
    pub fn class(&self) -> Option<String> {
        get(&self.class, self.class_bytes)
    }

    /// The error; none when it got through.
    pub fn error(&self) -> Option<String> {
        get(&self.error, self.error_bytes)
    }
}

fn put(to: &mut [u8], text: &str) -> u32 {
    let length = text.floor_char_boundary(to.len());
    to[..length].copy_from_slice(&text.as_bytes()[..length]);
    length as u32
}

fn get(from: &[u8], length: u32) -> Option<String> {
    let text = from.get(..length as usize).filter(|text| !text.is_empty())?;
    Some(String::from_utf8_lossy(text).into_owned())
}

/// Has a ping sent to a subscription, and waits for what comes of it. Inside a transaction.
///
/// # Errors
///
/// Why nothing could be sent, or nothing was heard of it.
pub fn ping(subscription: i64, timeout: Duration) -> Result<Told, String> {
    let nobody = || "The process that sends is not running in this database".to_owned();
    let database = registry::my_database().filter(|it| it.dispatcher.is_set()).ok_or_else(nobody)?;
    let asked = Asked::new(database, subscription)
        .ok_or_else(|| "Other sessions wait for as many tests as can be under way".to_owned())?;
    let deadline = Instant::now() + timeout + GRACE;
    loop {
        match asked.sheet().state.load(Ordering::Acquire) {
            state::ASKED if !database.dispatcher.is_set() => return Err(nobody()),
            state::ASKED if Instant::now() > deadline => {
                let seconds = (timeout + GRACE).as_secs();
                return Err(format!("The process that sends has not answered for {seconds} s"));
            }
            state::ASKED => bgworker::pause(Duration::from_millis(50)),
            state::ANSWERED => return Ok(asked.sheet().told),
            _ => return Err(asked.sheet().told.error().unwrap_or_default()),
        }
    }
}

/// A ping that this session waits for.
struct Asked {
    database: &'static Database,
    segment: *mut pg_sys::dsm_segment,
    handle: u32,
}

impl Asked {
    /// None if there is no place for another.
    fn new(database: &'static Database, subscription: i64) -> Option<Asked> {
        // SAFETY: the segment is large enough, and nobody else knows of it yet.
        let (segment, handle) = unsafe {
            let segment = pg_sys::dsm_create(size_of::<Sheet>(), 0);
            let sheet = pg_sys::dsm_segment_address(segment).cast::<Sheet>();
            sheet.write(Sheet {
                subscription,
                caller: ProcessRef::me(),
                state: AtomicU32::new(state::ASKED),
                told: Told::new(None, Duration::ZERO, "", ""),
            });
            (segment, pg_sys::dsm_segment_handle(segment))
        };
        let free = |place: &&AtomicU32| {
            place.compare_exchange(0, handle, Ordering::SeqCst, Ordering::SeqCst).is_ok()
        };
        let asked = Asked { database, segment, handle };
        database.tests.iter().find(free)?;
        database.tests_asked.store(true, Ordering::SeqCst);
        database.dispatcher.wake();
        Some(asked)
    }

    fn sheet(&self) -> &Sheet {
        // SAFETY: attached, and made by `new`; what is not atomic is read only when the state says that it is written.
        unsafe { &*pg_sys::dsm_segment_address(self.segment).cast::<Sheet>() }
    }
}

impl Drop for Asked {
    /// Nobody needs to look at it any more.
    fn drop(&mut self) {
        for place in &self.database.tests {
            let _ = place.compare_exchange(self.handle, 0, Ordering::SeqCst, Ordering::SeqCst);
        }
        // SAFETY: made by `new`, attached since, and used no more.
        unsafe { pg_sys::dsm_detach(self.segment) };
    }
}

/// Pings that the dispatcher is at.
#[derive(Default)]
pub struct Testing(Slab<Sheets>);

/// A segment that some session waits at.
struct Sheets(*mut pg_sys::dsm_segment);

impl Testing {
    /// The requests to make for what sessions have asked since the last call.
    pub fn asked(&mut self, database: &Database, source: &Arc<Source>) -> Vec<Job> {
        if !database.tests_asked.swap(false, Ordering::SeqCst) {
            return Vec::new();
        }
        let handles = database.tests.iter().map(|place| place.swap(0, Ordering::SeqCst));
        let sheets: Vec<Sheets> = handles.filter(|handle| *handle != 0).filter_map(Sheets::attach).collect();
        sheets.into_iter().filter_map(|sheet| self.begin(sheet, source)).collect()
    }

    fn begin(&mut self, sheet: Sheets, source: &Arc<Source>) -> Option<Job> {
        let id = sheet.subscription();
        // As it is now, whatever the log has told so far.
        let read = journal::unless_locked(pg_sys::AccessShareLock, &SESSION_TABLES, |_| {
            journal::subscriptions(&[id])
        });
        if let Locked::Yes = read {
            sheet.refuse("Another session holds a lock on a table of pgwh");
            return None;
        }
        let rows = if let Locked::Done(rows) = read { rows } else { Vec::new() };
        let Some(row) = rows.into_iter().find(|row| !row.held) else {
            sheet.refuse("The subscription is not committed yet, or it was made in another database");
            return None;
        };
        match job(source, &row) {
            Ok(job) => Some(Job { ticket: MARK | self.0.insert(sheet) as u64, ..job }),
            Err(problem) => {
                sheet.refuse(&problem);
                None
            }
        }
    }

    /// Takes an outcome, if it is one of ours.
    pub fn answered(&mut self, outcome: &Outcome) -> bool {
        if outcome.ticket & MARK == 0 {
            return false;
        }
        if let Some(sheet) = self.0.try_remove((outcome.ticket & !MARK) as usize) {
            let told = match &outcome.result {
                Ok(success) => Told::new(Some(success.status), outcome.duration, "", ""),
                Err(failure) => {
                    let class = failure.class.as_str();
                    Told::new(failure.status, outcome.duration, class, &failure.message)
                }
            };
            sheet.answer(state::ANSWERED, told);
        }
        true
    }
}

impl Sheets {
    /// None if nobody waits at it any more.
    fn attach(handle: u32) -> Option<Sheets> {
        // SAFETY: a segment that can be attached holds a sheet, and stays until detached.
        let segment = unsafe { pg_sys::dsm_attach(handle) };
        (!segment.is_null()).then_some(Sheets(segment))
    }

    fn sheet(&self) -> *mut Sheet {
        // SAFETY: the segment is attached.
        unsafe { pg_sys::dsm_segment_address(self.0).cast() }
    }

    fn subscription(&self) -> i64 {
        // SAFETY: written before anybody heard of the segment.
        unsafe { (*self.sheet()).subscription }
    }

    fn refuse(self, why: &str) {
        self.answer(state::REFUSED, Told::new(None, Duration::ZERO, "", why));
    }

    fn answer(self, state: u32, told: Told) {
        // SAFETY: the session reads the outcome only behind the state, which is stored last.
        unsafe {
            let sheet = self.sheet();
            (&raw mut (*sheet).told).write(told);
            (*sheet).state.store(state, Ordering::Release);
            (*sheet).caller.wake();
        }
    }
}

impl Drop for Sheets {
    fn drop(&mut self) {
        // SAFETY: attached by `attach`, and used no more.
        unsafe { pg_sys::dsm_detach(self.0) };
    }
}

/// A ping by a subscription's settings: to its own URL, without its transform and route.
fn job(source: &Arc<Source>, row: &SubscriptionRow) -> Result<Job, String> {
    let endpoint = endpoint_config::endpoint_of(source, row, &Surroundings::now())?;
    let at = clock::now();
    let id = format!("ping_{:016x}", at.0);
    let mut body = Vec::new();
    render_ping(&mut body, &id, at, &endpoint.context());
    let id = Some(format!("{id}_{}", row.id));
    // What is asked is how things are now, not how they were when a connection was made.
    let prepared = Prepared { id, bodies: Some(vec![body]), route: None, is_fresh: true };
    Ok(Job {
        ticket: 0,
        endpoint: Arc::new(endpoint),
        events: Vec::new(),
        attempt: 1,
        replay: None,
        prepared: Some(Box::new(prepared)),
    })
}
