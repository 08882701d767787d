//! Our tables in this database: whether they are there, and how a worker may use them.

use std::ffi::CStr;
use std::time::Duration;

use pgrx::pg_sys;

use super::own_tables;
use crate::pg::compat;
use crate::pg::compat::DO_NOT_REPLICATE;
use crate::pg::process::bgworker;
use crate::pg::subtransaction::Raised;
use crate::pg::values::encoding::argument;

/// Marks everything that this process writes as no news.
pub fn write_as_our_own() {
    // This origin needs no catalog row.
    compat::set_session_origin(DO_NOT_REPLICATE);
}

/// Runs the action in a transaction of its own that is news to the decoder, without the mark that hides what the
/// dispatcher writes, unless it would have to wait for another session's lock on a table.
pub fn as_news<T>(action: impl FnOnce() -> T) -> Locked<T> {
    // It counts in the commit, too, so it is set again only behind that.
    compat::set_session_origin(0);
    let done = unless_locked(pg_sys::RowExclusiveLock, &SESSION_TABLES, |_| action());
    write_as_our_own();
    done
}

/// As [`as_news`], for what only informs: an ERROR ends nothing but its own transaction.
///
/// # Errors
///
/// What was raised.
pub fn attempt_as_news(lock_timeout: Duration, action: impl FnOnce()) -> Result<(), Raised> {
    compat::set_session_origin(0);
    let done = bgworker::attempt(lock_timeout, || with_tables(|_| action()));
    write_as_our_own();
    done.map(drop)
}

/// The oid of the extension in this database, if it is installed. Inside a transaction.
pub fn extension() -> Option<pg_sys::Oid> {
    // SAFETY: a catalog look-up.
    let oid = unsafe { pg_sys::get_extension_oid(c"pgstream_hooks".as_ptr(), true) };
    (oid != pg_sys::InvalidOid).then_some(oid)
}

/// The version of the extension's SQL in this database, if it is installed. Inside a transaction.
pub fn extension_version() -> Option<String> {
    let version = pgrx::Spi::connect(|client| {
        let query = "SELECT extversion FROM pg_catalog.pg_extension WHERE extname OPERATOR(pg_catalog.=) 'pgstream_hooks'";
        let rows = client.select(query, Some(1), &[])?;
        if rows.is_empty() { Ok(None) } else { rows.first().get_one::<String>() }
    });
    check("the extension's version cannot be read", version)
}

/// Runs the action in a transaction that may use our tables; none when the extension isn't here.
///
/// DROP EXTENSION locks the extension first and its tables then; who holds nothing while it waits for the extension
/// cannot deadlock with that.
pub fn with_tables<T>(action: impl FnOnce(pg_sys::Oid) -> T) -> Option<T> {
    bgworker::in_transaction(|| {
        let wanted = extension()?;
        // SAFETY: inside a transaction, whose end releases the lock.
        unsafe {
            pg_sys::LockDatabaseObject(pg_sys::ExtensionRelationId, wanted, 0, pg_sys::AccessShareLock as _);
        }
        // It may have been dropped, and created again, while we waited.
        (extension() == Some(wanted)).then(|| action(wanted))
    })
}

/// Notes the name of the slot that is to be made. Inside a transaction.
pub fn note_slot_name(name: &str) {
    let noted =
        pgrx::Spi::run_with_args("UPDATE pgwh_internal.installation SET slot_name = $1", &[argument(name)]);
    check("the name of the replication slot cannot be noted", noted);
}

/// Why a backfill or a replay is cancelled whose subscription was deleted.
pub const SUBSCRIPTION_GONE: &str = "the subscription is gone";

/// The tables of which roles may be given more than SELECT, and what sessions ask of the dispatcher by: any session that may
/// write there may also lock rows or the whole table, for as long as it likes.
pub const SESSION_TABLES: [&CStr; 6] =
    [c"subscriptions", c"secrets", c"commands", c"replays", c"backfill_requests", c"gaps"];

/// Waits for the locks that reading [`SESSION_TABLES`] takes. Inside a transaction.
pub fn lock_session_tables() {
    // SAFETY: catalog look-ups inside a transaction, whose end releases the locks.
    unsafe {
        let oids = SESSION_TABLES.iter().map(|table| own_tables::oid_of(table));
        let there = oids.filter(|oid| *oid != pg_sys::InvalidOid);
        there.for_each(|oid| pg_sys::LockRelationOid(oid, pg_sys::AccessShareLock as _));
    }
}

/// Which of [`SESSION_TABLES`] another session keeps from being read, who that is, and what to type. Inside a transaction.
pub fn holder_of_session_tables() -> Option<(String, String, String)> {
    let query = "SELECT l.relation::regclass::text,
                     CASE WHEN a.pid IS NULL THEN 'A prepared transaction' ELSE format('Process %s (%s, %s)', a.pid, a.usename, a.state) END,
                     CASE WHEN a.pid IS NULL THEN 'SELECT gid FROM pg_prepared_xacts; and ROLLBACK PREPARED or COMMIT PREPARED.'
                         ELSE format('SELECT pg_terminate_backend(%s);', a.pid) END
                 FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
                 WHERE l.granted AND l.locktype = 'relation' AND l.mode = 'AccessExclusiveLock' AND l.relation = ANY ($1)
                     AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = current_database())";
    let read = || {
        let oids: Vec<pg_sys::Oid> = SESSION_TABLES.iter().map(|table| own_tables::oid_of(table)).collect();
        pgrx::Spi::connect(|client| {
            let rows = client.select(query, Some(1), &[oids.into()])?;
            if rows.is_empty() { Ok((None, None, None)) } else { rows.first().get_three() }
        })
    };
    let (table, holder, cure) = check("locks cannot be read", read());
    Some((table?, holder?, cure?))
}

/// What became of work that never waits for a lock.
pub enum Locked<T> {
    /// It is done.
    Done(T),
    /// Another session holds a lock: nothing was done, and it is to be tried again.
    Yes,
    /// The extension isn't here any more.
    Gone,
}

/// Runs the action as [`with_tables`] does, with locks of that mode on some of our tables. Where another session's lock stands
/// in the way, nothing is done: who sends for all must not wait for one.
pub fn unless_locked<T>(mode: u32, tables: &[&CStr], action: impl FnOnce(pg_sys::Oid) -> T) -> Locked<T> {
    match with_tables(|extension| lock_now(mode, tables).then(|| action(extension))) {
        Some(Some(done)) => Locked::Done(done),
        Some(None) => Locked::Yes,
        None => Locked::Gone,
    }
}

/// Takes locks that the transaction's end releases, or finds out that it would have to wait for one. Inside a transaction.
fn lock_now(mode: u32, tables: &[&CStr]) -> bool {
    // SAFETY: catalog look-ups inside a transaction; a relation that is not there is not locked.
    unsafe {
        tables.iter().all(|table| {
            let oid = own_tables::oid_of(table);
            oid == pg_sys::InvalidOid || pg_sys::ConditionalLockRelationOid(oid, mode as _)
        })
    }
}

/// Ends the process on an error of its own tables: its restart begins from what was committed.
pub(super) fn check<T>(what: &str, result: pgrx::spi::Result<T>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => pgrx::error!("pgstream_hooks: {what}: {error}"),
    }
}
