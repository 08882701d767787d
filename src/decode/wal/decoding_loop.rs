//! The decoding loop: a walsender in all but name.
//!
//! The context is created outside any transaction, so that others know this process for a decoding one. From then on
//! it runs no ordinary transaction and never has an xid.

use std::ffi::{CStr, CString};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pgrx::{PgMemoryContexts, pg_sys};

use super::wal_reader::{Poll, readable};
use super::{commit_records, plugin, slot, wal_reader};
use crate::decode::capture::Capture;
use crate::decode::definitions::Invalidated;
use crate::event::Lsn;
use crate::pg::compat;
use crate::pg::process::{bgworker, shutdown};
use crate::shmem::registry::Database;
use crate::shmem::worker_counters;

/// After so much log that concerned nobody, the dispatcher is told how far we are all the same.
const SILENT_BYTES: u64 = 1024 * 1024;
/// How often the slot is confirmed while there is work.
const CONFIRM_EVERY: Duration = Duration::from_millis(100);
/// How often the dispatcher is told how far we are, when there was nothing for it and nobody waits to hear of it: each
/// time wakes it up, for a commit that concerns nobody.
const TELL_EVERY: Duration = Duration::from_millis(500);
/// After so many wake-ups in a row that found nothing for anybody the decoder naps instead of being woken by each commit.
const IDLE_WAKEUPS: u32 = 8;
/// How long a nap is, and so how late a change can be noticed that comes among many which concern nobody.
const NAP: Duration = Duration::from_millis(3);
/// How long the decoder sleeps while something is still to be told or confirmed.
const UNFINISHED_SLEEP: Duration = Duration::from_secs(1);
/// How long it sleeps at most. Commits of other databases ring nobody here, and what they write to the log is kept
/// until this slot has passed it.
const LONGEST_SLEEP: Duration = Duration::from_secs(10);

/// How long it sleeps while the server waits for it to end.
const CLOSING_SLEEP: Duration = Duration::from_millis(5);

/// A decoding session on the slot that the process holds.
pub struct Session {
    database: &'static Database,
    ctx: *mut pg_sys::LogicalDecodingContext,
    capture: Box<Capture>,
    owner: pg_sys::ResourceOwner,
    told: u64,
    last_told: Instant,
    confirmed: u64,
    last_confirm: Instant,
    waiting: Option<Waiting>,
    /// The position that was last shown.
    shown: u64,
    /// A position, and when it was decoded; the next one is taken when this one is confirmed.
    mark: (u64, i64),
    /// Wake-ups in a row that found log, and in it nothing for anybody.
    idle_wakeups: u32,
}

impl Session {
    /// Begins where the slot is confirmed.
    pub fn begin(database: &'static Database, capture: Capture, start: Lsn) -> Session {
        let mut capture = Box::new(capture);
        // SAFETY: the process holds the slot and runs no transaction. The capture lives in a box that the session owns
        // as long as the context is used.
        unsafe {
            allow_own_plugin();
            let owner = pg_sys::ResourceOwnerCreate(std::ptr::null_mut(), c"pgwh decoder".as_ptr());
            pg_sys::CurrentResourceOwner = owner;
            wal_reader::before_wait(plugin::flush);
            let mut routine = wal_reader::routine();
            let ctx = PgMemoryContexts::TopMemoryContext.switch_to(|_| {
                pg_sys::CreateDecodingContext(0, std::ptr::null_mut(), false, &mut routine, None, None, None)
            });
            (*ctx).output_writer_private = (&raw mut *capture).cast();
            wal_reader::heed_standbys(start);
            pg_sys::XLogBeginRead((*ctx).reader, (*pg_sys::MyReplicationSlot).data.restart_lsn);
            pg_sys::InvalidateSystemCaches();
            let confirmed = start.0;
            let shown = (*(*ctx).reader).EndRecPtr;
            Session {
                database,
                ctx,
                capture,
                owner,
                told: 0,
                last_told: Instant::now(),
                confirmed,
                last_confirm: Instant::now(),
                waiting: None,
                shown,
                mark: (confirmed, now()),
                idle_wakeups: 0,
            }
        }
    }

    /// Decodes until somebody asks the pair to stop, or the server goes down and all is confirmed.
    pub fn run(&mut self) {
        shutdown::prepare();
        let mut poll = Poll::new();
        let mut closing_since = None;
        while !self.database.stop.load(Ordering::SeqCst) {
            wal_reader::flush_commits(self.database);
            let any = self.decode_what_is_readable();
            if any {
                poll = Poll::new();
            }
            self.idle_wakeups =
                if any && !self.capture.told_something() { self.idle_wakeups.saturating_add(1) } else { 0 };
            if self.progress_is_due() {
                self.tell_progress();
            } else {
                self.capture.flush();
            }
            self.confirm();
            if shutdown::is_asked() {
                let since = *closing_since.get_or_insert_with(Instant::now);
                if self.is_done(since) {
                    return slot::save();
                }
                bgworker::sleep(Some(CLOSING_SLEEP));
            } else {
                self.sleep(&mut poll);
            }
            bgworker::see_to_interrupts();
        }
    }

    /// Whether everything that was committed is confirmed, and nothing more can be: the server goes down.
    fn is_done(&mut self, since: Instant) -> bool {
        if shutdown::others_may_commit(self.database.oid(), since)
            || !self.database.rests.load(Ordering::SeqCst)
        {
            return false;
        }
        // What a commit left in memory.
        // SAFETY: the position is one that has been inserted.
        unsafe { pg_sys::XLogFlush(compat::wal_insert_end()) };
        self.tell_progress();
        self.confirmed >= wal_reader::flushed()
    }

    /// Returns whether there was anything.
    fn decode_what_is_readable(&mut self) -> bool {
        let mut any = false;
        let mut end = readable();
        while self.position() < end && !self.database.stop.load(Ordering::Relaxed) {
            if !any {
                bgworker::report_busy(c"decoding write-ahead log");
                any = true;
            }
            self.decode_record();
            if self.position() - self.told > SILENT_BYTES {
                self.tell_progress();
            }
            if self.last_confirm.elapsed() > CONFIRM_EVERY {
                self.confirm();
            }
            pgrx::check_for_interrupts!();
            if self.position() >= end {
                self.database.decoded.all_at.store(now(), Ordering::Relaxed);
                end = readable();
            }
        }
        any
    }

    fn decode_record(&mut self) {
        // SAFETY: the context is live. A transaction in the reorder buffer leaves neither memory context nor resource
        // owner as they were.
        unsafe {
            pg_sys::MemoryContextSwitchTo((*self.ctx).context);
            pg_sys::CurrentResourceOwner = self.owner;
            if wal_reader::read_record((*self.ctx).reader) {
                match commit_records::shared_changes_at((*self.ctx).reader) {
                    Some(changed) => self.decode_shared_changes(&changed),
                    None => compat::process_record(self.ctx),
                }
            }
        }
    }

    /// Decodes the commit of a transaction of another database that changes what all share. No callback hears of it, so what
    /// subscriptions lose by it is looked for here.
    ///
    /// # Safety
    /// The reader has just returned that record.
    unsafe fn decode_shared_changes(&mut self, changed: &Invalidated) {
        // SAFETY: as the caller promises. No transaction is in progress outside of callbacks.
        unsafe {
            let from = Lsn((*(*self.ctx).reader).ReadRecPtr);
            let capture = &mut self.capture;
            let before = compat::with_decoded_catalogs(self.ctx, || capture.definitions(changed));
            pg_sys::CurrentResourceOwner = self.owner;
            compat::process_record(self.ctx);
            if let Some(before) = before {
                compat::with_decoded_catalogs(self.ctx, || capture.report_losses(before, from));
            }
        }
    }

    /// The end of what has been decoded.
    fn position(&self) -> u64 {
        // SAFETY: the reader lives with the context.
        unsafe { (*(*self.ctx).reader).EndRecPtr }
    }

    fn progress_is_due(&self) -> bool {
        self.database.progress_wanted.swap(false, Ordering::SeqCst) || self.last_told.elapsed() >= TELL_EVERY
    }

    /// Puts everything gathered on the queue, and how far we are.
    fn tell_progress(&mut self) {
        self.last_told = Instant::now();
        let position = self.position();
        if position != self.told {
            self.told = position;
            self.capture.progress(Lsn(position));
        }
        self.capture.flush();
    }

    fn confirm(&mut self) {
        self.last_confirm = Instant::now();
        let confirmable = self.database.confirmable.load(Ordering::Acquire);
        if self.waiting.is_none() && confirmable > self.confirmed {
            self.waiting = Some(Waiting { confirmable, journaled: wal_reader::flushed() });
        }
        if let Some(Waiting { confirmable, .. }) = self.waiting.take_if(|waiting| waiting.is_over()) {
            slot::confirm(Lsn(confirmable));
            self.confirmed = confirmable;
            self.database.confirmed.store(confirmable, Ordering::Release);
        }
        self.show();
    }

    /// Shows how far decoding is, and how long ago what is confirmed by now was decoded.
    fn show(&mut self) {
        let decoded = &self.database.decoded;
        let (position, now) = (self.position(), now());
        worker_counters::add(&decoded.bytes, position.saturating_sub(self.shown));
        self.shown = position;
        decoded.position.store(position, Ordering::Relaxed);
        // SAFETY: the buffer lives with the context, and the transaction is only looked at.
        let (oldest, from) = unsafe {
            let oldest = pg_sys::ReorderBufferGetOldestTXN((*self.ctx).reorder);
            oldest.as_ref().map_or((0, 0), |oldest| (u32::from(oldest.xid), oldest.restart_decoding_lsn))
        };
        decoded.show_oldest(oldest, from);
        let all = position >= readable();
        decoded.all.store(all, Ordering::Relaxed);
        if all {
            decoded.all_at.store(now, Ordering::Relaxed);
        }
        if self.confirmed >= self.mark.0 {
            decoded.confirmed_at.store(self.mark.1, Ordering::Relaxed);
            self.mark = (position, now);
        }
    }

    /// Sleeps until a commit rings, or shortly when the log has an end that is not flushed yet. Among many commits that
    /// concern nobody, each wake-up would take a processor from one of them: then nobody rings for a while.
    fn sleep(&mut self, poll: &mut Poll) {
        bgworker::report_idle(match wal_reader::waits_for_standbys() {
            true => c"waiting for standbys to have what is to be sent (synchronized_standby_slots)",
            false => c"waiting for commits",
        });
        if self.idle_wakeups >= IDLE_WAKEUPS {
            wal_reader::release_snapshot();
            bgworker::sleep(Some(NAP));
            return;
        }
        let longest = if compat::wal_insert_end() > self.position() {
            poll.next()
        } else if self.confirmed < self.told || self.told < self.position() {
            UNFINISHED_SLEEP
        } else {
            LONGEST_SLEEP
        };
        wal_reader::sleep_at(self.database, self.position(), longest);
    }
}

/// A position that waits to be confirmed. What the journal says of everything before it stands in the log before
/// `journaled`. A standby that gets the slot's position must have that, too, or what is pending is lost by a failover.
struct Waiting {
    confirmable: u64,
    journaled: u64,
}

impl Waiting {
    fn is_over(&self) -> bool {
        slot::reach_of_standbys().is_none_or(|reach| reach >= self.journaled)
            && compat::standbys_have(self.journaled)
    }
}

/// Microseconds since 2000.
fn now() -> i64 {
    // SAFETY: reads the clock.
    unsafe { pg_sys::GetCurrentTimestamp() }
}

/// The setting by which newer minor versions know which output plugins they may load.
const PLUGINS: &CStr = c"output_plugin_libraries";

/// Has `pg_upgrade` bring our slots along: it looks whether the new server may load their plugin, and makes them. While
/// that server preloads.
pub fn allow_plugin_in_upgrade() {
    // SAFETY: single-threaded start-up of the server; the value is copied.
    unsafe {
        let known = pg_sys::GetConfigOption(PLUGINS.as_ptr(), true, false);
        if known.is_null() {
            return;
        }
        let known = CStr::from_ptr(known).to_string_lossy();
        let own = slot::PLUGIN.to_string_lossy();
        let all: Vec<&str> =
            known.split(',').map(str::trim).filter(|one| !one.is_empty()).chain([&*own]).collect();
        if let Ok(all) = CString::new(all.join(", ")) {
            pg_sys::SetConfigOption(
                PLUGINS.as_ptr(),
                all.as_ptr(),
                pg_sys::GucContext::PGC_POSTMASTER,
                pg_sys::GucSource::PGC_S_OVERRIDE,
            );
        }
    }
}

/// Newer minor versions refuse an output plugin that a setting doesn't name; this process names its own.
pub fn allow_own_plugin() {
    let name = PLUGINS;
    // SAFETY: outside a transaction, so that it holds for the life of the process.
    unsafe {
        if !pg_sys::GetConfigOption(name.as_ptr(), true, false).is_null() {
            pg_sys::SetConfigOption(
                name.as_ptr(),
                slot::PLUGIN.as_ptr(),
                pg_sys::GucContext::PGC_SUSET,
                pg_sys::GucSource::PGC_S_SESSION,
            );
        }
    }
}
