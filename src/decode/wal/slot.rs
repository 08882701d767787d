//! The database's replication slot: made once, with the image of subscriptions at its consistent point, then held.

use std::ffi::CStr;

use pgrx::{PgSqlErrorCode, pg_sys, spi};

use super::{commit_records, plugin, wal_reader};
use crate::decode::routing::router::Spec;
use crate::event::Lsn;
use crate::pg::compat;
use crate::pg::values::encoding::Texts;

/// Name of the library, as slots know their plugin.
pub const PLUGIN: &CStr = c"pgstream_hooks";

/// Why the slot cannot be used.
pub enum Unusable {
    /// The server has given it up, so that what it kept of WAL may be gone.
    Invalid,
}

/// Whether a slot of that name exists.
pub fn exists(name: &CStr) -> bool {
    // SAFETY: looks through shared memory under its lock.
    unsafe { !pg_sys::SearchNamedReplicationSlot(name.as_ptr(), true).is_null() }
}

/// Whether a slot of that name is of another output plugin or of another database than this process is connected to, and so
/// not ours.
pub fn is_foreign(name: &CStr) -> bool {
    // SAFETY: looks through shared memory under its lock; a slot is never unmapped.
    unsafe {
        let slot = pg_sys::SearchNamedReplicationSlot(name.as_ptr(), true);
        !slot.is_null()
            && ((*slot).data.database != pg_sys::MyDatabaseId
                || CStr::from_ptr((*slot).data.plugin.data.as_ptr()) != PLUGIN)
    }
}

/// Whether a slot of that name keeps all that is committed, until its decoder comes back if it is gone.
pub fn keeps(name: &CStr) -> bool {
    // SAFETY: looks through shared memory under its lock; a slot is never unmapped, and an answer that is outdated the
    // next moment is as good as one of the moment before.
    unsafe {
        let slot = pg_sys::SearchNamedReplicationSlot(name.as_ptr(), true);
        !slot.is_null()
            && (*slot).data.persistency == pg_sys::ReplicationSlotPersistency::RS_PERSISTENT
            && CStr::from_ptr((*slot).data.plugin.data.as_ptr()) == PLUGIN
            && !compat::slot_is_invalid(&(*slot).data)
    }
}

/// Whether a slot of that name is being made, and goes if that is given up.
pub fn is_ephemeral(name: &CStr) -> bool {
    // SAFETY: looks through shared memory under its lock; a slot is never unmapped.
    unsafe {
        let slot = pg_sys::SearchNamedReplicationSlot(name.as_ptr(), true);
        !slot.is_null() && (*slot).data.persistency == pg_sys::ReplicationSlotPersistency::RS_EPHEMERAL
    }
}

/// Slots of our plugin in a database, by name.
pub fn of_database(database: pg_sys::Oid) -> Vec<std::ffi::CString> {
    let mut names = Vec::new();
    each_in_use(|slot| {
        // SAFETY: the server keeps names in fields of fixed length that end in NUL.
        let text = |name: &pg_sys::NameData| unsafe { CStr::from_ptr(name.data.as_ptr()) }.to_owned();
        if slot.data.database == database && text(&slot.data.plugin).as_c_str() == PLUGIN {
            names.push(text(&slot.data.name));
        }
    });
    names
}

/// `ReplicationSlotControlLock` in the array of individual locks (`storage/lwlocknames.txt`), the same in all majors.
const REPLICATION_SLOT_CONTROL_LOCK: usize = 37;

/// How far all standbys have the log that are connected by a slot of their own, on disk; none where there is none.
pub fn reach_of_standbys() -> Option<u64> {
    let mut reach: Option<u64> = None;
    each_in_use(|slot| {
        let standby = slot.data.database == pg_sys::InvalidOid
            && slot.data.persistency == pg_sys::ReplicationSlotPersistency::RS_PERSISTENT
            && compat::slot_is_active(slot)
            && slot.data.restart_lsn != 0;
        if standby {
            reach = Some(reach.map_or(slot.data.restart_lsn, |reach| reach.min(slot.data.restart_lsn)));
        }
    });
    reach
}

/// Shows each slot in use, while the lock keeps them from being dropped.
fn each_in_use(mut show: impl FnMut(&pg_sys::ReplicationSlot)) {
    // SAFETY: the array is as long as the setting says. What is read may be outdated the next moment, which does no harm.
    unsafe {
        let lock = &raw mut (*pg_sys::MainLWLockArray.add(REPLICATION_SLOT_CONTROL_LOCK)).lock;
        pg_sys::LWLockAcquire(lock, pg_sys::LWLockMode::LW_SHARED);
        for n in 0..pg_sys::max_replication_slots as usize {
            let slot = &*(*pg_sys::ReplicationSlotCtl).replication_slots.as_ptr().add(n);
            if slot.in_use {
                show(slot);
            }
        }
        pg_sys::LWLockRelease(lock);
    }
}

/// What to type when all slots are in use.
pub fn hint_for_more() -> String {
    // SAFETY: reads a setting that only a restart changes.
    let most = unsafe { pg_sys::max_replication_slots };
    format!(
        "ALTER SYSTEM SET max_replication_slots = {}; and restart the server. Or drop a slot that is not needed: SELECT slot_name, active FROM pg_replication_slots;",
        most + 8
    )
}

/// Drops a slot that nobody holds.
pub fn drop(name: &CStr) {
    // SAFETY: the process holds no slot; raises when another process holds this one.
    unsafe { pg_sys::ReplicationSlotDrop(name.as_ptr(), true) };
}

/// Lets go of whatever slot the process holds; an ephemeral one goes with that.
pub fn release() {
    // SAFETY: a global of this process.
    unsafe {
        if !pg_sys::MyReplicationSlot.is_null() {
            pg_sys::ReplicationSlotRelease();
        }
    }
}

/// Whether there is room for another slot.
pub fn there_is_room() -> bool {
    // SAFETY: reads flags of shared memory; an answer that is outdated the next moment does no harm.
    unsafe {
        (0..pg_sys::max_replication_slots as usize)
            .any(|n| !(*(*pg_sys::ReplicationSlotCtl).replication_slots.as_ptr().add(n)).in_use)
    }
}

/// Takes hold of the slot and returns up to where it is confirmed, on disk too.
pub fn acquire(name: &CStr) -> Result<Lsn, Unusable> {
    // SAFETY: the process holds no slot; afterwards it is the only one that changes this one.
    unsafe {
        compat::acquire_slot(name);
        let data = &(*pg_sys::MyReplicationSlot).data;
        if compat::slot_is_invalid(data) || data.restart_lsn == 0 {
            return Err(Unusable::Invalid);
        }
        save();
        Ok(Lsn(data.confirmed_flush))
    }
}

/// Writes the slot to disk.
pub fn save() {
    // SAFETY: the process holds the slot.
    unsafe {
        pg_sys::ReplicationSlotMarkDirty();
        pg_sys::ReplicationSlotSave();
    }
}

/// Moves the slot's confirmed position forward. It is written to disk with the next checkpoint.
pub fn confirm(lsn: Lsn) {
    // SAFETY: the process holds the slot. Before 17 the position alone does not mark it as changed.
    unsafe {
        pg_sys::LogicalConfirmReceivedLocation(lsn.0);
        pg_sys::ReplicationSlotMarkDirty();
    }
}

/// How often a slot is made anew beside whose making catalogs were changed.
const TRIES: u32 = 10;

/// Makes the slot, and reads every subscription exactly as of the point where its stream begins. `keep` is to store
/// that image; only when it has done so the slot becomes permanent, so that neither is ever without the other.
///
/// Waits for every transaction that runs. When one of those has changed catalogs, the slot is made anew: only who makes a
/// slot tracks all transactions (`snapbuild.c`, SnapBuildCommitTxn). Who decodes that stretch again, as each decoder does
/// that begins with this slot, may miss what that one changed, and then finds no table for what it wrote.
pub fn create(name: &CStr, keep: impl FnOnce(Lsn, Vec<(i64, Spec)>)) {
    // SAFETY: outside any transaction and without a slot. The transaction sees the database as of the slot's
    // consistent point (as `tablesync.c` does), writes nothing, and ends before the slot is let go.
    unsafe {
        plugin::allow_creation(true);
        for tries in 1.. {
            pg_sys::StartTransactionCommand();
            pg_sys::XactIsoLevel = pg_sys::XACT_REPEATABLE_READ as _;
            pg_sys::XactReadOnly = true;
            compat::create_slot(name);
            compat::ensure_logical_decoding();
            let mut routine = wal_reader::routine();
            let ctx = compat::create_initial_context(PLUGIN, &mut routine);
            pg_sys::DecodingContextFindStartpoint(ctx);
            let slot = &(*pg_sys::MyReplicationSlot).data;
            let (begin, consistent) = (Lsn(slot.restart_lsn), Lsn(slot.confirmed_flush));
            if tries < TRIES && commit_records::change_catalogs(begin, consistent) {
                pg_sys::FreeDecodingContext(ctx);
                pg_sys::CommitTransactionCommand();
                // It is ephemeral as yet, and goes.
                release();
                continue;
            }
            compat::adopt_initial_snapshot(ctx);
            pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
            let image = read_subscriptions();
            pg_sys::PopActiveSnapshot();
            pg_sys::FreeDecodingContext(ctx);
            pg_sys::CommitTransactionCommand();
            keep(consistent, image);
            pg_sys::ReplicationSlotPersist();
            break;
        }
        plugin::allow_creation(false);
    }
    // Until it is let go, the slot holds back vacuum in every table, for a snapshot that has served its purpose.
    release();
}

/// Every subscription, as the present snapshot sees it.
fn read_subscriptions() -> Vec<(i64, Spec)> {
    read_specs(
        "SELECT id, json_build_object('tables', tables, 'event_types', event_types, 'filter', filter,
                    'changed', changed, 'enabled', enabled, 'home', home, 'owner', owner, 'columns', columns,
                    'exclude_columns', exclude_columns, 'key_columns', key_columns, 'origin', origin)::text
         FROM pgwh.subscriptions",
    )
}

/// Every subscription as of a position of the log: the image that a restarted decoder begins from.
pub fn read_image(at: Lsn) -> Vec<(i64, Spec)> {
    read_specs(&format!(
        "SELECT subscription_id, spec FROM (
             SELECT DISTINCT ON (subscription_id) subscription_id, spec FROM pgwh_internal.routing_image
             WHERE lsn <= '{at}' ORDER BY subscription_id, lsn DESC) image
         WHERE spec <> ''"
    ))
}

fn read_specs(query: &str) -> Vec<(i64, Spec)> {
    let read = || -> spi::Result<Vec<(i64, Spec)>> {
        pgrx::Spi::connect(|client| {
            let mut found = Vec::new();
            for row in client.select(query, None, &[])? {
                let (Some(id), Some(text)) = (row.get::<i64>(1)?, row.text(2)?) else { continue };
                match serde_json::from_str(&text) {
                    Ok(spec) => found.push((id, spec)),
                    Err(error) => pgrx::ereport!(
                        WARNING,
                        PgSqlErrorCode::ERRCODE_DATA_CORRUPTED,
                        format!("pgstream_hooks: subscription {id} cannot be read and gets nothing: {error}")
                    ),
                }
            }
            Ok(found)
        })
    };
    match read() {
        Ok(found) => found,
        Err(error) => pgrx::error!("pgstream_hooks: the subscriptions cannot be read: {error}"),
    }
}
