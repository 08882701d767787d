//! What a dispatcher needs before it can begin: the versions, the installation, `wal_level`, a decoder. And whether it has to
//! end.

use std::sync::atomic::Ordering;
use std::time::Duration;

use pgrx::PgLogLevel;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;

use super::decoder::Installation;
use super::process::{self, WorkerHandle};
use super::shmem::{Database, Phase};
use crate::decode::{raw, slot};
use crate::error::Error;
use crate::journal;
use crate::settings;
use crate::version;

/// How long until a decoder is tried again for which there was no free worker process.
const NO_WORKER_PAUSE: Duration = Duration::from_secs(2);
/// How often is looked whether what was missing is here, should nobody have told.
pub const RECHECK_EVERY: Duration = Duration::from_secs(30);

/// The version of the extension's SQL, as soon as it is one that the library works with; none when asked to stop, or when
/// there is no extension.
pub fn wait_for_version(database: &Database) -> Option<String> {
    loop {
        let Some(sql) = process::in_transaction(journal::extension_version) else {
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
        process::report_idle(c"waiting for ALTER EXTENSION pgstream_hooks UPDATE, or a restart with the library of the extension's version");
        process::sleep(Some(RECHECK_EVERY));
        if must_end(database) {
            return None;
        }
    }
}

/// The installation of the extension in this database. Without one there is nothing to do, and no slot is left behind.
pub fn find_installation(database: &Database) -> Option<Installation> {
    let installation = journal::with_tables(Installation::read);
    if installation.is_none() {
        retire(database);
    }
    installation
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

/// Where `wal_level` is too low nothing can be captured before the server is restarted. False when asked to stop.
pub fn wait_for_wal_level(database: &Database) -> bool {
    while !raw::wal_level_suffices() {
        database.set_phase(Phase::WalLevelTooLow);
        process::report_idle(c"waiting for a restart with a higher wal_level");
        process::sleep(Some(RECHECK_EVERY));
        if must_end(database) {
            return false;
        }
    }
    true
}

/// Starts the decoder, as soon as there is a worker process for it; none when asked to stop meanwhile.
pub fn start_decoder(database: &Database) -> Option<WorkerHandle> {
    loop {
        // Before it starts: from then on the decoder says how far it is.
        database.set_phase(Phase::Starting);
        if let Some(decoder) = process::start_worker("decoder", "pgwh_decoder_main", database.oid()) {
            return Some(decoder);
        }
        database.set_phase(Phase::NoFreeWorker);
        process::report_idle(c"waiting for a free worker process");
        process::sleep(Some(NO_WORKER_PAUSE));
        if must_end(database) {
            return None;
        }
    }
}

/// Whether this dispatcher has to go, and if so with which words to the launcher.
pub fn must_end(database: &Database) -> bool {
    // Who quiesces may have asked between the launcher's look and our start.
    if database.stop.load(Ordering::SeqCst) || database.quiesced.load(Ordering::SeqCst) > 0 {
        database.set_phase(Phase::Quiesced);
        return true;
    }
    if !settings::enabled() {
        database.set_phase(Phase::SwitchedOff);
        return true;
    }
    false
}
