//! What a commit pays: a look at shared memory and, if the decoder sleeps, a latch set.
//!
//! The callback is inherited by every backend through preloading. It runs after the commit, where an ERROR would be a
//! PANIC: plain loads, no allocation, no pgrx guard.

use std::cell::Cell;
use std::ffi::c_void;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{Ordering, fence};

use pgrx::pg_sys;

use super::registry::Database;
use super::{registry, subscription_stats};
use crate::pg::command::{current_statement, dropped_index, former_names};
use crate::pg::compat;
use crate::pg::compat::DO_NOT_REPLICATE;

thread_local! {
    // A backend has one thread, so these are its globals, without `static mut`.
    static LAST_COMMIT: Cell<u64> = const { Cell::new(0) };
    static GENERATION: Cell<u32> = const { Cell::new(u32::MAX) };
    static MINE: Cell<*const Database> = const { Cell::new(ptr::null()) };
    static AT_COMMIT: Cell<AtCommit> = const { Cell::new(AtCommit::NOTHING) };
}

/// What a transaction asked to happen when it commits.
#[derive(Clone, Copy)]
struct AtCommit {
    /// The extension was created here: the launcher should look.
    ring: bool,
    /// The extension was dropped here: the dispatcher should look.
    recheck: bool,
    /// The dispatcher has been given something to do: it should read its commands.
    commands: bool,
}

impl AtCommit {
    const NOTHING: AtCommit = AtCommit { ring: false, recheck: false, commands: false };

    fn is_any(self) -> bool {
        self.ring || self.recheck || self.commands
    }
}

/// Has the launcher look at this database when the present transaction commits.
pub fn ring_at_commit() {
    AT_COMMIT.set(AtCommit { ring: true, ..AT_COMMIT.get() });
}

/// Has the dispatcher look whether the extension is still there when the present transaction commits.
pub fn recheck_at_commit() {
    AT_COMMIT.set(AtCommit { recheck: true, ..AT_COMMIT.get() });
}

/// Has the dispatcher read `pgwh_internal.commands` when the present transaction commits.
pub fn tell_dispatcher_at_commit() {
    AT_COMMIT.set(AtCommit { commands: true, ..AT_COMMIT.get() });
}

/// What is done at PREPARE, and at the end of each transaction.
type AtEnd = (fn(), fn());

/// What hooks do when a transaction that asked for something is prepared, and when one has ended either way. Both raise nothing.
static HOOKS: OnceLock<AtEnd> = OnceLock::new();

/// Registers the callbacks, once, while the server preloads.
pub fn init(on_prepare: fn(), on_end: fn()) {
    let _ = HOOKS.set((on_prepare, on_end));
    // SAFETY: the functions live as long as the library, which is never unloaded.
    unsafe {
        pg_sys::RegisterXactCallback(Some(after_commit), ptr::null_mut());
        pg_sys::RegisterResourceReleaseCallback(Some(after_release), ptr::null_mut());
    }
}

unsafe extern "C-unwind" fn after_commit(event: pg_sys::XactEvent::Type, _: *mut c_void) {
    // What the dispatcher itself writes is no news to the decoder.
    let is_news = compat::session_origin() != DO_NOT_REPLICATE;
    match event {
        pg_sys::XactEvent::XACT_EVENT_COMMIT if is_news => wake_decoder(),
        // Nobody can see yet what was asked for.
        pg_sys::XactEvent::XACT_EVENT_PREPARE if AT_COMMIT.replace(AtCommit::NOTHING).is_any() => {
            if let Some((on_prepare, _)) = HOOKS.get() {
                on_prepare();
            }
        }
        _ => {}
    }
}

/// Whoever is rung about a change of catalogs must see it: that is so when the invalidations are out and the locks are
/// released, both of which come after the commit's own callbacks (`xact.c`, CommitTransaction). Of a transaction that is
/// prepared nothing is left by now, see [`prepared`].
unsafe extern "C-unwind" fn after_release(
    phase: pg_sys::ResourceReleasePhase::Type,
    is_commit: bool,
    is_top_level: bool,
    _: *mut c_void,
) {
    if !is_commit {
        current_statement::forget();
    }
    if !is_top_level || phase != pg_sys::ResourceReleasePhase::RESOURCE_RELEASE_AFTER_LOCKS {
        return;
    }
    if let Some((_, on_end)) = HOOKS.get() {
        on_end();
    }
    dropped_index::forget();
    former_names::transaction_ended();
    subscription_stats::let_go();
    let wishes = AT_COMMIT.replace(AtCommit::NOTHING);
    if is_commit {
        act_on(wishes);
    }
}

#[inline]
fn wake_decoder() {
    // SAFETY: reads a global of this process.
    let end = unsafe { pg_sys::XactLastCommitEnd };
    if LAST_COMMIT.replace(end) == end {
        return;
    }
    if let Some(database) = mine() {
        // SAFETY: reads a global of this process.
        let waits =
            unsafe { pg_sys::synchronous_commit } != pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_OFF as i32;
        if !waits && !database.unflushed.load(Ordering::Relaxed) {
            database.unflushed.store(true, Ordering::Relaxed);
        }
        // The decoder says that it sleeps and then looks at the log; we have written the log and now look whether it
        // sleeps. With a full barrier on both sides one of the two sees the other.
        fence(Ordering::SeqCst);
        if database.decoder_sleeps.load(Ordering::Relaxed) {
            database.decoder_sleeps.store(false, Ordering::Relaxed);
            database.decoder.wake();
        }
    }
}

fn mine() -> Option<&'static Database> {
    let shared = registry::shared()?;
    let generation = shared.generation.load(Ordering::Acquire);
    if GENERATION.replace(generation) != generation {
        MINE.set(registry::my_database().map_or(ptr::null(), ptr::from_ref));
    }
    // SAFETY: null or an entry of the table, which lives as long as the process.
    unsafe { MINE.get().as_ref() }
}

fn act_on(wishes: AtCommit) {
    if !wishes.is_any() {
        return;
    }
    let Some(shared) = registry::shared() else { return };
    if wishes.ring {
        // SAFETY: reads a global of this process.
        shared.ring(unsafe { pg_sys::MyDatabaseId });
    }
    let Some(database) = registry::my_database().filter(|_| wishes.recheck || wishes.commands) else {
        return;
    };
    for (wish, flag) in [(wishes.recheck, &database.recheck), (wishes.commands, &database.commands)] {
        if wish {
            flag.store(true, Ordering::SeqCst);
        }
    }
    database.dispatcher.wake();
}
