//! Two-phase commit: what a transaction asks to happen when it commits happens at its COMMIT PREPARED, in whichever session and after
//! however many restarts that is.
//!
//! Nothing of ours is kept with a prepared transaction. Shared memory has a bound instead: each transaction that was prepared after
//! asking for something began before that xid. A COMMIT PREPARED has the workers look, as long as there is a bound; it is lifted
//! when no transaction of before is left. So those who commit many transactions in two phases don't wake the workers for each.

use std::sync::atomic::{AtomicU64, Ordering};

use pgrx::pg_sys;

use crate::journal;
use crate::pg::compat;
use crate::shmem::registry;

/// The bound while it is not known what was prepared before the server was started.
const UNKNOWN: u64 = 0;
/// The bound when nothing was asked for; no transaction has so small an xid.
const NONE: u64 = 1;

/// The present transaction, which has asked for something, is being prepared. Raises nothing.
pub fn note() {
    if let Some(shared) = registry::shared() {
        shared.prepared_before.fetch_max(next_xid(), Ordering::SeqCst);
    }
}

/// Whether a transaction that is about to be committed may have asked for something.
pub fn may_have_asked() -> bool {
    let Some(shared) = registry::shared() else { return false };
    let bound = &shared.prepared_before;
    // What was prepared before the server was started has begun before now.
    let _ = bound.compare_exchange(UNKNOWN, next_xid(), Ordering::SeqCst, Ordering::SeqCst);
    bound.load(Ordering::SeqCst) != NONE
}

/// A transaction of which [`may_have_asked`] was true has been committed: its rows can be seen. Has the workers of this database look
/// for all that it may have asked for. Inside a transaction.
pub fn committed() {
    let Some(shared) = registry::shared() else { return };
    // SAFETY: reads a global of this process.
    let oid = unsafe { pg_sys::MyDatabaseId };
    let known = shared.find(oid);
    if let Some(database) = known {
        database.recheck.store(true, Ordering::SeqCst);
        database.commands.store(true, Ordering::SeqCst);
        database.dispatcher.wake();
    }
    // Also where a dispatcher is: one that has found no extension and is about to end looks at nothing any more.
    if known.is_some() || journal::extension().is_some() {
        shared.ring(oid);
    }
    lift(&shared.prepared_before);
}

/// Lifts the bound when no transaction from before is left. Whoever commits one has looked at the bound before.
fn lift(bound: &AtomicU64) {
    let before = bound.load(Ordering::SeqCst);
    let next = next_xid();
    // The oldest is no more than 2^31 older.
    let age = (next as u32).wrapping_sub(compat::oldest_running_xid().into());
    if next - u64::from(age) >= before {
        let _ = bound.compare_exchange(before, NONE, Ordering::SeqCst, Ordering::SeqCst);
    }
}

fn next_xid() -> u64 {
    // SAFETY: reads shared memory under its lock.
    unsafe { pg_sys::ReadNextFullTransactionId().value }
}
