//! The decoder: one a database, started by the dispatcher and ended with it. It holds the slot and never writes a table.

use std::ffi::CString;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgLogLevel, PgSqlErrorCode, pg_guard, pg_sys};

use crate::decode::capture::Capture;
use crate::decode::installation::Installation;
use crate::decode::routing::router::{Router, Spec};
use crate::decode::wal::decoding_loop::Session;
use crate::decode::wal::{decoding_loop, slot};
use crate::event::Lsn;
use crate::ipc::frame::{write_image_begin, write_image_end, write_subscription};
use crate::journal;
use crate::pg::compat;
use crate::pg::process::bgworker;
use crate::pg::shm_mq::Sender;
use crate::shmem::registry::{Database, Phase};
use crate::shmem::{registry, worker_counters};

/// How often is looked whether a slot has become free.
const NO_SLOT_PAUSE: Duration = Duration::from_secs(2);

/// The decoder's main function; the argument is the database's oid.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pgwh_decoder_main(argument: pg_sys::Datum) {
    compat::install_signal_handlers();
    let oid = pg_sys::Oid::from(argument.value() as u32);
    let Some(database) = registry::shared().and_then(|shared| shared.find(oid)) else { return };
    bgworker::connect(oid);
    database.decoder.set_me();
    database.decoder_pid.store(std::process::id() as i32, Ordering::SeqCst);
    bgworker::at_exit(leave);
    // Others may be waiting until this pair has its processes.
    if let Some(shared) = registry::shared() {
        shared.launcher.wake();
    }

    bgworker::on_failure(|message| database.note_failure(message), || capture(database));
}

fn capture(database: &'static Database) {
    let oid = database.oid();
    let Ok(mut queue) = Sender::attach(database.queue.load(Ordering::SeqCst)) else {
        return;
    };
    decoding_loop::allow_own_plugin();
    // Without an installation the dispatcher ends, and we with it.
    let Some(installation) = journal::with_tables(Installation::read) else { return };
    let name = installation.slot_name(oid);
    if !wait_until_ours(database, &name) {
        return;
    }
    if !slot::exists(&name) && !create_slot(database, &name, &mut queue) {
        return;
    }
    let Some(start) = acquire_slot(database, &name, &mut queue) else { return };
    database.confirmed.store(start.0, Ordering::SeqCst);
    database.saved.store(start.0, Ordering::SeqCst);

    let mut router = Router::new(installation.installed.clone());
    let read = || (slot::read_image(start), journal::schema_versions(start), journal::known_gaps(start));
    let (image, versions, gaps) = journal::with_tables(|_| read()).unwrap_or_default();
    for (id, spec) in image {
        router.apply(id, Some(&spec));
    }
    let capture = Capture::new(database, queue, router, versions, gaps, &installation);
    let mut session = Session::begin(database, capture, start);
    database.extension.store(installation.extension.to_u32(), Ordering::SeqCst);
    // SAFETY: reads shared memory.
    database.set_ready(unsafe { pg_sys::GetFlushRecPtr(std::ptr::null_mut()) });
    if let Some(shared) = registry::shared() {
        shared.launcher.wake();
    }
    session.run();
}

/// Lets go of the slot before anybody is told that the process is gone.
fn leave() {
    slot::release();
    if let (Some(shared), Some(database)) = (registry::shared(), registry::my_database()) {
        database.decoder.clear();
        database.decoder_pid.store(0, Ordering::SeqCst);
        database.decoder_sleeps.store(false, Ordering::SeqCst);
        database.decoded.show_oldest(0, 0);
        database.dispatcher.wake();
        shared.launcher.wake();
    }
}

/// Waits while another program has a slot of our name; false when asked to stop meanwhile.
fn wait_until_ours(database: &Database, name: &CString) -> bool {
    while slot::is_foreign(name) {
        database.set_phase(Phase::SlotTaken);
        bgworker::report_idle(
            c"waiting for a replication slot of our name, which another program made, to be dropped",
        );
        bgworker::sleep(Some(NO_SLOT_PAUSE));
        if database.stop.load(Ordering::SeqCst) {
            return false;
        }
    }
    true
}

/// Makes the slot, as soon as there is room for it; false when asked to stop meanwhile.
fn create_slot(database: &Database, name: &CString, queue: &mut Sender) -> bool {
    let mut warned = false;
    while !slot::there_is_room() {
        if let Some(shared) = registry::shared() {
            // Another database may leave its slot to this one.
            let mut others = shared.databases().filter(|other| other.oid() != database.oid());
            if !warned && !others.any(Database::makes_room) {
                warned = true;
                warn_of_no_slot(database);
            }
            database.refuse(Phase::NoFreeSlot);
            shared.launcher.wake();
        }
        bgworker::report_idle(c"waiting for a free replication slot");
        bgworker::sleep(Some(NO_SLOT_PAUSE));
        if database.stop.load(Ordering::SeqCst) {
            return false;
        }
    }
    database.set_phase(Phase::CreatingSlot);
    database.image_saved.store(false, Ordering::SeqCst);
    bgworker::report_busy(c"creating the replication slot, which waits for running transactions");
    slot::create(name, |consistent, image| hand_over_image(database, queue, consistent, &image));
    true
}

fn warn_of_no_slot(database: &Database) {
    let name = bgworker::database_name(database.oid());
    ErrorReport::new(
        PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
        format!("pgstream_hooks: there is no free replication slot for database {name}"),
        "pgstream_hooks",
    )
    .set_detail("Nothing of this database is captured before there is a slot for it.")
    .set_hint(slot::hint_for_more())
    .report(PgLogLevel::WARNING);
}

/// Has the dispatcher store the first image, and waits until it has.
fn hand_over_image(database: &Database, queue: &mut Sender, consistent: Lsn, image: &[(i64, Spec)]) {
    let mut frames = Vec::new();
    write_image_begin(&mut frames, consistent);
    for (id, spec) in image {
        let text = serde_json::to_string(spec).unwrap_or_default();
        if let Err(too_long) = write_subscription(&mut frames, *id, consistent, Some(&text)) {
            pgrx::error!("pgstream_hooks: subscription {id} is too long: {too_long}");
        }
    }
    write_image_end(&mut frames, consistent);
    worker_counters::add(&database.decoded.queued, frames.len() as u64);
    if queue.send(&frames).is_err() {
        pgrx::error!("the dispatcher has gone away");
    }
    bgworker::report_idle(c"waiting for the subscriptions' image to be stored");
    while !database.image_saved.load(Ordering::SeqCst) {
        bgworker::sleep(Some(Duration::from_millis(100)));
        if database.stop.load(Ordering::SeqCst) {
            pgrx::error!("asked to stop before the replication slot was complete");
        }
    }
}

/// Takes hold of the slot. One that the server has given up is made anew: what happened meanwhile is a gap.
fn acquire_slot(database: &Database, name: &CString, queue: &mut Sender) -> Option<Lsn> {
    if let Ok(start) = slot::acquire(name) {
        return Some(start);
    }
    slot::release();
    slot::drop(name);
    database.slot_given_up.store(true, Ordering::SeqCst);
    create_slot(database, name, queue).then(|| slot::acquire(name).ok()).flatten()
}
