//! The backfiller: one a database, only while a backfill is open. It reads a chunk of a table whenever the dispatcher says
//! so, in a transaction of some milliseconds, and sends it to the dispatcher. All it knows is in tables, so it may be
//! killed at any time.

use std::sync::atomic::Ordering;
use std::time::Duration;

use pgrx::{pg_guard, pg_sys};

use crate::decode::installation::Installation;
use crate::decode::routing::router::{Router, Spec};
use crate::decode::schema_versions::SchemaVersions;
use crate::decode::table_scan;
use crate::decode::table_scan::{NotRead, Reading};
use crate::event::Lsn;
use crate::ipc::frame::{NoChunk, write_no_chunk};
use crate::journal;
use crate::journal::BackfillTask;
use crate::pg::compat;
use crate::pg::process::bgworker;
use crate::pg::shm_mq::Sender;
use crate::shmem::registry;
use crate::shmem::registry::Database;

/// [`Database::backfill_order`]: there is nothing to do for now.
pub const NOTHING: i64 = 0;
/// [`Database::backfill_order`]: there will be nothing to do.
pub const END: i64 = -1;

/// The most rows of a chunk, when nothing else ends it before.
const MOST_ROWS: i64 = 20_000;
/// Stands for the backfill's own filter among subscriptions, whose ids are positive.
const THE_BACKFILL: i64 = -1;
/// What the kernel is told of it: 0 is what all others have, 19 the least.
const NICENESS: i32 = 10;
/// How long it sleeps at most.
const LONGEST_SLEEP: Duration = Duration::from_secs(10);
/// How much room the buffer keeps after a large chunk.
const KEPT_BYTES: usize = 2 << 20;

/// The backfiller's main function; the argument is the database's oid.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pgwh_backfiller_main(argument: pg_sys::Datum) {
    compat::install_signal_handlers();
    let oid = pg_sys::Oid::from(argument.value() as u32);
    let Some(database) = registry::shared().and_then(|shared| shared.find(oid)) else { return };
    bgworker::connect(oid);
    bgworker::pin(journal::BY_INDEX);
    journal::write_as_our_own();
    database.backfiller.set_me();
    database.backfiller_pid.store(std::process::id() as i32, Ordering::SeqCst);
    bgworker::at_exit(leave);
    yield_to_others();

    bgworker::on_failure(|message| database.problem.set(message), || serve(database));
}

fn serve(database: &'static Database) {
    let Ok(mut queue) = Sender::attach(database.backfill_queue.load(Ordering::SeqCst)) else { return };
    let Some(installation) = journal::with_tables(Installation::read) else { return };
    let mut schemas = Schemas::default();
    let mut out = Vec::new();
    while !database.stop.load(Ordering::SeqCst) {
        match database.backfill_order.swap(NOTHING, Ordering::SeqCst) {
            END => break,
            NOTHING => {
                bgworker::report_idle(c"waiting until more rows may be read");
                bgworker::sleep(Some(LONGEST_SLEEP));
                continue;
            }
            backfill => {
                bgworker::report_busy(c"reading rows");
                let bytes = database.backfill_bytes.load(Ordering::SeqCst) as usize;
                read_chunk(&installation, &mut schemas, (backfill, bytes), &mut out);
            }
        }
        if queue.send(&out).is_err() {
            break;
        }
        out.clear();
        out.shrink_to(KEPT_BYTES);
        bgworker::see_to_interrupts();
    }
}

/// What changes of schemas are noted.
#[derive(Default)]
struct Schemas {
    /// The newest change of any.
    newest: Option<String>,
    versions: SchemaVersions,
}

impl Schemas {
    /// Looks whether there is a newer change; inside a transaction that may use our tables.
    fn refresh(&mut self) {
        let newest = journal::newest_schema_change();
        if newest != self.newest {
            self.versions = journal::schema_versions(Lsn(u64::MAX));
            self.newest = newest;
        }
    }
}

/// Takes a processor only where nobody else wants it: nobody waits for what has been there all the time.
fn yield_to_others() {
    // SAFETY: concerns this process alone; where it is refused, nothing has changed.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) };
}

/// Tells that there is no backfiller.
fn leave() {
    if let (Some(shared), Some(database)) = (registry::shared(), registry::my_database()) {
        database.backfiller.clear();
        database.backfiller_pid.store(0, Ordering::SeqCst);
        database.dispatcher.wake();
        shared.launcher.wake();
    }
}

/// Reads the next chunk of a backfill, of about so many bytes, or finds out why there is none.
fn read_chunk(
    installation: &Installation,
    schemas: &mut Schemas,
    (backfill, bytes): (i64, usize),
    out: &mut Vec<u8>,
) {
    // Tables that were just added, or left out, change what is read next.
    while !try_read_chunk(installation, schemas, (backfill, bytes), out) {
        bgworker::see_to_interrupts();
    }
}

/// The same; false when it has to be looked again what is read next.
fn try_read_chunk(
    installation: &Installation,
    schemas: &mut Schemas,
    (backfill, bytes): (i64, usize),
    out: &mut Vec<u8>,
) -> bool {
    let read = journal::with_tables(|extension| {
        if extension != installation.extension {
            return Err(NoChunk::Later);
        }
        let Some(task) = journal::backfill_task(backfill) else { return Err(NoChunk::End) };
        if task.next.is_none() && journal::add_backfill_tables(backfill) {
            // What was just added is read when it is committed.
            return Ok(None);
        }
        schemas.refresh();
        Ok(Some(task))
    });
    let why = match read.unwrap_or(Err(NoChunk::Later)) {
        Ok(Some(task)) => match &task.next {
            Some((table, position)) => {
                let position = position.as_ref().map(|(text, order)| (text.as_str(), order.as_slice()));
                match read_table(installation, schemas, (backfill, bytes), &task, (*table, position), out) {
                    Ok(high) => {
                        flush(high);
                        return true;
                    }
                    Err(NotRead { unreadable: Some(reason), .. })
                        if leave_out(installation, backfill, *table, &reason) =>
                    {
                        return false;
                    }
                    Err(NotRead { why, .. }) => why,
                }
            }
            None => NoChunk::End,
        },
        Ok(None) => return false,
        Err(why) => why,
    };
    write_no_chunk(out, backfill, &why);
    true
}

/// Leaves a table out of a backfill of several; whether it could be left out.
fn leave_out(installation: &Installation, backfill: i64, table: pg_sys::Oid, reason: &str) -> bool {
    journal::with_tables(|extension| {
        extension == installation.extension && journal::leave_out_of_backfill(backfill, table, reason)
    })
    .unwrap_or_default()
}

fn read_table(
    installation: &Installation,
    schemas: &Schemas,
    (backfill, bytes): (i64, usize),
    task: &BackfillTask,
    (table, position): (pg_sys::Oid, Option<(&str, &[i64])>),
    out: &mut Vec<u8>,
) -> Result<Lsn, NotRead> {
    let mut router = Router::new(installation.installed.clone());
    let spec = |filter: &Option<String>| Spec {
        tables: task.tables.clone(),
        event_types: vec!["insert".to_owned()],
        filter: filter.clone(),
        changed: None,
        enabled: true,
        origin: None,
        home: task.home.clone(),
        grantee: task.grantee.clone(),
    };
    router.apply(task.subscription, Some(&spec(&task.condition)));
    if task.filter.is_some() {
        router.apply(THE_BACKFILL, Some(&spec(&task.filter)));
    }
    bgworker::in_bare_transaction(|| {
        let reading = Reading {
            backfill,
            table,
            position,
            order_by: task.order_by.as_deref(),
            start: task.start.as_deref(),
            rows: task.chunk_size.map_or(MOST_ROWS, i64::from),
            bytes,
            router: &router,
            versions: &schemas.versions,
            subscription: task.subscription,
        };
        table_scan::read(&reading, out)
    })
}

/// Has the log written up to there, so that the decoder comes to it without waiting for somebody else's commit.
fn flush(high: Lsn) {
    // SAFETY: the position is one that has been inserted.
    unsafe { pg_sys::XLogFlush(high.0) };
}
