//! What a dispatcher needs before it can begin: the versions, the installation, `wal_level`, a decoder. And whether it has to
//! end.

use std::ffi::CString;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgLogLevel, PgSqlErrorCode};

use crate::decode::installation::Installation;
use crate::decode::wal::slot;
use crate::error::Error;
use crate::pg::compat;
use crate::pg::process::bgworker;
use crate::pg::process::bgworker::WorkerHandle;
use crate::shmem::registry::{Database, Phase};
use crate::{gucs, journal, version};

/// How often is looked whether what was missing is here, should nobody have told.
pub const RECHECK_EVERY: Duration = Duration::from_secs(30);
/// How long a start waits for a lock until the log says whose it is.
const LOCK_WARNING_DELAY: Duration = Duration::from_secs(1);

/// The version of the extension's SQL, as soon as it is one that the library works with; none when asked to stop, or when
/// there is no extension.
pub fn wait_for_version(database: &Database) -> Option<String> {
    loop {
        let Some(sql) = bgworker::in_transaction(journal::extension_version) else {
            retire(database);
            return None;
        };
        if version::fits(&sql) {
            return Some(sql);
        }
        if database.phase() != Phase::VersionsDiffer {
            let error = Error::Versions(sql);
            database.problem.set(&error.in_one_line());
            ErrorReport::from(error).report(PgLogLevel::WARNING);
            database.set_phase(Phase::VersionsDiffer);
        }
        bgworker::report_idle(c"waiting for ALTER EXTENSION pgstream_hooks UPDATE, or a restart with the library of the extension's version");
        bgworker::sleep(Some(RECHECK_EVERY));
        if must_end(database) {
            return None;
        }
    }
}

/// Waits until no session's lock stands in the way of reading our tables. When that takes long, the log says whose it is:
/// `pgwh.status` and `pgwh.health()` wait for it, too. What is committed meanwhile is kept by the slot.
pub fn wait_for_tables() {
    let wait = || journal::with_tables(|_| journal::lock_session_tables());
    match bgworker::attempt(LOCK_WARNING_DELAY, wait) {
        Ok(_) => return,
        Err(raised) if raised.code == PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE => {}
        Err(raised) => pgrx::error!("pgstream_hooks: tables of pgwh cannot be locked: {}", raised.message),
    }
    if let Some((table, holder, cure)) = bgworker::in_transaction(journal::holder_of_session_tables) {
        ErrorReport::new(
            PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE,
            format!("pgstream_hooks: nothing is sent from this database before a lock on {table} ends"),
            "pgstream_hooks",
        )
        .set_detail(format!("{holder} holds it. What is committed meanwhile is kept, and sent afterwards."))
        .set_hint(cure)
        .report(PgLogLevel::WARNING);
    }
    bgworker::report_idle(c"waiting for a lock on a table of pgwh that another session holds");
    wait();
}

/// The installation of the extension in this database. Without one there is nothing to do, and no slot is left behind.
pub fn find_installation(database: &Database) -> Option<Installation> {
    let installation = journal::with_tables(Installation::read);
    if installation.is_none() {
        retire(database);
    }
    installation
}

/// The name of the slot. One that keeps what is committed keeps its name, too; else it is that of `pgwh.slot_name`.
pub fn settle_slot_name(oid: pg_sys::Oid, installation: &Installation) -> CString {
    let noted = installation.slot_name(oid);
    let wanted = gucs::slot_name().unwrap_or_else(|| bgworker::default_slot_name(oid, &installation.id));
    if noted == wanted {
        return wanted;
    }
    if slot::keeps(&noted) && !slot::is_foreign(&noted) {
        ErrorReport::new(
            PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION,
            format!("pgstream_hooks: replication slot {} keeps its name", noted.to_string_lossy()),
            "pgstream_hooks",
        )
        .set_detail(format!(
            "pgwh.slot_name is {}, which holds for a slot that is made.",
            wanted.to_string_lossy()
        ))
        .report(PgLogLevel::LOG);
        return noted;
    }
    journal::with_tables(|_| journal::note_slot_name(&wanted.to_string_lossy()));
    wanted
}

/// The extension isn't here (any more): nothing of it stays.
pub fn retire(database: &Database) {
    drop_stale_slots(database.oid(), c"");
    database.set_phase(Phase::Unknown);
}

/// Drops slots of an installation that is gone; a slot somebody has got hold of is left for the next time.
pub fn drop_stale_slots(oid: pg_sys::Oid, keep: &std::ffi::CStr) {
    for name in slot::of_database(oid).iter().filter(|name| name.as_c_str() != keep) {
        slot::drop(name);
    }
}

/// Whether `wal_level` is high enough. Where it is not nothing can be captured before the server is restarted.
pub fn has_wal_level(database: &Database) -> bool {
    let has = compat::wal_level_suffices();
    if !has {
        database.set_phase(Phase::WalLevelTooLow);
    }
    has
}

/// Starts the decoder; none when there is no worker process for it, and then the dispatcher gives back its own.
pub fn start_decoder(database: &Database) -> Option<WorkerHandle> {
    // Before it starts: from then on the decoder says how far it is.
    database.set_phase(Phase::Starting);
    let decoder = bgworker::start_worker("decoder", "pgwh_decoder_main", database.oid());
    if decoder.is_none() {
        database.set_phase(Phase::NoFreeWorker);
    }
    decoder
}

/// Whether this dispatcher has to go, and if so with which words to the launcher.
pub fn must_end(database: &Database) -> bool {
    // Who quiesces may have asked between the launcher's look and our start.
    if database.stop.load(Ordering::SeqCst) || database.quiesced.load(Ordering::SeqCst) > 0 {
        database.set_phase(Phase::Quiesced);
        return true;
    }
    if !gucs::enabled() {
        database.set_phase(Phase::SwitchedOff);
        return true;
    }
    false
}
