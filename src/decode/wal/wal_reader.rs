//! Reading write-ahead log page by page, as `read_local_xlog_page` (`xlogutils.c`) does, but asleep while a record is
//! only half on disk. That one looks each millisecond, for as long as a transaction that wrote it sits idle.

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int};
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use pgrx::{pg_guard, pg_sys};

use crate::event::Lsn;
use crate::pg::compat;
use crate::pg::process::bgworker;
use crate::shmem::registry;
use crate::shmem::registry::Database;

/// How often is looked for a flush that nobody tells of: from the first to the last pause.
const FIRST_POLL: Duration = Duration::from_millis(1);
const LAST_POLL: Duration = Duration::from_millis(250);

/// How a decoding context reads the log.
pub fn routine() -> pg_sys::XLogReaderRoutine {
    pg_sys::XLogReaderRoutine { page_read: Some(read_page), ..compat::wal_reader_routine() }
}

/// How far the log is safe on disk.
pub fn flushed() -> u64 {
    // SAFETY: reads shared memory.
    unsafe { pg_sys::GetFlushRecPtr(std::ptr::null_mut()) }
}

/// What is done with a decoding context before its reader waits for more of the log.
pub type BeforeWait = unsafe fn(*mut pg_sys::LogicalDecodingContext);

thread_local! {
    static BEFORE_WAIT: Cell<Option<BeforeWait>> = const { Cell::new(None) };
}

/// Has the readers of this process do that before they wait.
pub fn before_wait(action: BeforeWait) {
    BEFORE_WAIT.set(Some(action));
}

thread_local! {
    static READABLE: Cell<Readable> = const { Cell::new(Readable { heeds_standbys: false, end: 0, target: 0 }) };
}

/// How far the log may be read.
#[derive(Clone, Copy)]
struct Readable {
    heeds_standbys: bool,
    /// Up to here, where standbys are heeded.
    end: u64,
    /// The end of the log that standbys are being waited for to have.
    target: u64,
}

/// From now on what standbys must have first, and have not, is not read (`walsender.c`, WalSndWaitForWal): an event is
/// never sent of a change that a failover would undo. They have what is `confirmed`. The process holds the slot.
pub fn heed_standbys(confirmed: Lsn) {
    READABLE.set(Readable { heeds_standbys: true, end: confirmed.0, target: confirmed.0 });
}

/// How far the log may be read: it is safe on disk, here and wherever it has to be first.
pub fn readable() -> u64 {
    let flushed = flushed();
    let mut readable = READABLE.get();
    if !readable.heeds_standbys {
        return flushed;
    }
    // One end after the other: under load standbys are always a little behind the latest.
    if readable.end == readable.target {
        readable.target = flushed;
    }
    if readable.end < readable.target && compat::standbys_have(readable.target) {
        readable.end = readable.target;
    }
    READABLE.set(readable);
    readable.end
}

/// Whether there is log that standbys must have first.
pub fn waits_for_standbys() -> bool {
    let readable = READABLE.get();
    readable.end < readable.target
}

/// Pauses between looks that grow while nothing happens.
pub struct Poll(Duration);

impl Poll {
    /// Begins with the shortest.
    pub fn new() -> Poll {
        Poll(FIRST_POLL)
    }

    /// The next pause.
    pub fn next(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 2).min(LAST_POLL);
        pause
    }
}

/// Drops a snapshot that building relation cache entries has left, so that vacuum can go on while we sleep.
pub fn release_snapshot() {
    // SAFETY: nothing of this process reads by that snapshot between two records.
    unsafe { pg_sys::InvalidateCatalogSnapshot() };
}

/// Writes to disk what sessions have committed without waiting for that (`synchronous_commit = off`): before, it cannot be decoded, and
/// the WAL writer takes its time. Nothing is written for what is not committed: a commit that waits for the disk would wait for
/// that, too.
pub fn flush_commits(database: &Database) {
    if database.unflushed.load(Ordering::Relaxed) && database.unflushed.swap(false, Ordering::SeqCst) {
        // SAFETY: the position is one that has been inserted, and this server has left recovery.
        unsafe { pg_sys::XLogFlush(compat::wal_insert_end()) };
    }
}

/// Sleeps until a commit rings or the time has passed, unless the log can be read beyond `position`, or the
/// decoder is asked to stop.
pub fn sleep_at(database: &Database, position: u64, longest: Duration) {
    release_snapshot();
    database.decoder_sleeps.store(true, Ordering::SeqCst);
    // Whoever commits looks at the flag after writing the log, and we look at the log after setting the flag.
    fence(Ordering::SeqCst);
    flush_commits(database);
    if readable() <= position && !database.stop.load(Ordering::SeqCst) {
        bgworker::sleep(Some(longest));
    }
    database.decoder_sleeps.store(false, Ordering::SeqCst);
}

/// The reader's callback: -1 says that there is no such page, and none to wait for.
#[pg_guard]
unsafe extern "C-unwind" fn read_page(
    state: *mut pg_sys::XLogReaderState,
    page: pg_sys::XLogRecPtr,
    length: c_int,
    target: pg_sys::XLogRecPtr,
    buffer: *mut c_char,
) -> c_int {
    let end = page + length as u64;
    if readable() < end {
        if let Some(before_wait) = BEFORE_WAIT.get() {
            // SAFETY: a decoding context's reader has that context as its private data (`logical.c`).
            unsafe { before_wait((*state).private_data.cast()) };
        }
        if !wait_until_readable(end) {
            return -1;
        }
    }
    // SAFETY: what the reader passed, passed on.
    let read = unsafe { compat::read_local_page(state, page, length, target, buffer) };
    // What is there beyond must not be looked at yet.
    read.min(c_int::try_from(readable().saturating_sub(page)).unwrap_or(c_int::MAX))
}

/// False when the decoder is asked to stop meanwhile.
fn wait_until_readable(end: u64) -> bool {
    let Some(database) = registry::my_database() else { return true };
    let mut poll = Poll::new();
    bgworker::report_idle(c"waiting for commits");
    while readable() < end {
        if database.stop.load(Ordering::SeqCst) {
            return false;
        }
        sleep_at(database, end - 1, poll.next());
    }
    bgworker::report_busy(c"decoding write-ahead log");
    true
}

/// Reads the next record; false when there is none as yet.
///
/// # Safety
/// The reader is one that has begun to read.
pub unsafe fn read_record(reader: *mut pg_sys::XLogReaderState) -> bool {
    let mut problem = std::ptr::null_mut();
    // SAFETY: as the caller promises; a problem is a C string that the reader keeps.
    unsafe {
        let record = pg_sys::XLogReadRecord(reader, &mut problem);
        if !problem.is_null() {
            let problem = CStr::from_ptr(problem).to_string_lossy();
            pgrx::error!("could not read write-ahead log for decoding: {problem}");
        }
        !record.is_null()
    }
}
