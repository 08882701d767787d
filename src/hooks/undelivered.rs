//! DROP EXTENSION drops undelivered events, too: whoever does it, by whatever command, hears of their number.

use std::cell::Cell;
use std::ffi::CStr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgLogLevel, PgSqlErrorCode, pg_guard, pg_sys};

use super::table_guard::as_superuser;
use crate::journal;
use crate::pg::compat;
use crate::pg::memory_context::Memory;
use crate::pg::process::bgworker;
use crate::pg::subtransaction::in_subtransaction;
use crate::shmem::registry::{Database, Phase};
use crate::shmem::{registry, subscription_stats};

/// How long the command waits for the workers to take what was committed before it.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(2);

const EXTENSION: &CStr = c"pgstream_hooks";

thread_local! {
    /// What the command that runs now would drop.
    static UNDELIVERED: Cell<Undelivered> = const { Cell::new(Undelivered { events: 0, subscriptions: 0 }) };
}

/// Undelivered events, and how many subscriptions have any.
#[derive(Clone, Copy, Default)]
struct Undelivered {
    events: u64,
    subscriptions: u64,
}

impl Undelivered {
    fn add(&mut self, pending: u64) {
        self.events += pending;
        self.subscriptions += u64::from(pending > 0);
    }
}

/// Counts before a command that may drop the extension: once that has its locks, the workers and the tables are out of
/// reach.
///
/// # Safety
/// `node` is the parse tree of a utility statement, and a transaction is in progress.
#[pg_guard]
pub unsafe extern "C-unwind" fn before_drop(node: *mut pg_sys::Node) {
    // SAFETY: as the caller promises.
    if unsafe {
        may_drop_extension(node) && pg_sys::get_extension_oid(EXTENSION.as_ptr(), true) != pg_sys::InvalidOid
    } {
        UNDELIVERED.set(count());
    }
}

/// An extension is about to be dropped, which is still in the catalog.
///
/// # Safety
/// Called from the hook of object access; an ERROR passes through as such.
#[pg_guard]
pub unsafe extern "C-unwind" fn extension_goes(extension: pg_sys::Oid) {
    // SAFETY: a catalog look-up in a transaction.
    if unsafe { pg_sys::get_extension_oid(EXTENSION.as_ptr(), true) } != extension {
        return;
    }
    let Undelivered { events, subscriptions } = UNDELIVERED.take();
    if events == 0 {
        return;
    }
    // `pg_restore` asks for no notices; a warning is in the log of the server, too.
    // SAFETY: reads a setting of this process.
    let level = if unsafe { pg_sys::client_min_messages } > pg_sys::NOTICE as i32 {
        PgLogLevel::WARNING
    } else {
        PgLogLevel::NOTICE
    };
    let of = if subscriptions == 1 {
        "1 subscription".to_owned()
    } else {
        format!("{subscriptions} subscriptions")
    };
    let message = format!("{events} undelivered events of {of} are dropped with extension pgstream_hooks");
    ErrorReport::new(PgSqlErrorCode::ERRCODE_WARNING, message, "pgstream_hooks").report(level);
}

/// Whether the command may drop the extension: by its name, or since a role owns it. Of its schema it is no part.
///
/// # Safety
/// `node` is the parse tree of a utility statement.
unsafe fn may_drop_extension(node: *mut pg_sys::Node) -> bool {
    // SAFETY: as the caller promises; each cast follows the node's tag. Names of extensions are strings.
    unsafe {
        match (*node).type_ {
            pg_sys::NodeTag::T_DropOwnedStmt => true,
            pg_sys::NodeTag::T_DropStmt => {
                let drop = &*node.cast::<pg_sys::DropStmt>();
                let is_of_extensions = drop.removeType == pg_sys::ObjectType::OBJECT_EXTENSION;
                let count = if drop.objects.is_null() { 0 } else { (*drop.objects).length as usize };
                is_of_extensions
                    && (0..count).any(|n| {
                        let name = (*(*drop.objects).elements.add(n)).ptr_value.cast::<pg_sys::String>();
                        CStr::from_ptr((*name).sval) == EXTENSION
                    })
            }
            _ => false,
        }
    }
}

/// By what the dispatcher shows, when it has taken all that was committed; without one, by the journal.
fn count() -> Undelivered {
    let mut undelivered = Undelivered::default();
    match registry::my_database().filter(|database| database.dispatcher.is_set()) {
        Some(database) => {
            settle(database);
            subscription_stats::each(database, |figures| undelivered.add(figures.pending));
        }
        None => {
            let memory = Memory::new(c"pgwh drop");
            let loaded = in_subtransaction(memory.context(), || as_superuser(journal::load));
            if let Ok(Ok(loaded)) = loaded {
                loaded.positions.values().for_each(|position| undelivered.add(position.counts.pending));
            }
        }
    }
    undelivered
}

/// Waits until the dispatcher has taken all that was committed, for a while.
fn settle(database: &Database) {
    if database.phase() != Phase::Ready {
        return;
    }
    let end = compat::wal_insert_end();
    // SAFETY: the position is one that has been inserted.
    unsafe { pg_sys::XLogFlush(end) };
    let deadline = Instant::now() + SETTLE_TIMEOUT;
    while database.frontier.load(Ordering::Acquire) < end && Instant::now() < deadline {
        database.ask_for_progress();
        bgworker::pause(Duration::from_millis(2));
    }
}
