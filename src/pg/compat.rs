//! Postgres as C knows it: symbols that pgrx doesn't bind, and every difference between the major versions.
//!
//! No other file names a version.

use std::ffi::{CStr, c_char, c_int, c_void};

use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;

/// What can raise or block must be called through [`pg_guard_ffi_boundary`]; the safe-looking names below do so.
mod c {
    use super::*;
    unsafe extern "C-unwind" {
        pub fn LogicalDecodingProcessRecord(
            ctx: *mut pg_sys::LogicalDecodingContext,
            record: *mut pg_sys::XLogReaderState,
        );
        pub fn read_local_xlog_page(
            state: *mut pg_sys::XLogReaderState,
            page: pg_sys::XLogRecPtr,
            length: c_int,
            target: pg_sys::XLogRecPtr,
            buffer: *mut c_char,
        ) -> c_int;
        pub fn wal_segment_open(
            state: *mut pg_sys::XLogReaderState,
            segment: pg_sys::XLogSegNo,
            timeline: *mut pg_sys::TimeLineID,
        );
        pub fn wal_segment_close(state: *mut pg_sys::XLogReaderState);
        pub fn SnapBuildInitialSnapshot(builder: *mut pg_sys::SnapBuild) -> pg_sys::Snapshot;
        pub fn get_partition_ancestors(relation: pg_sys::Oid) -> *mut pg_sys::List;
        pub fn find_all_inheritors(
            parent: pg_sys::Oid,
            lock: pg_sys::LOCKMODE,
            parents: *mut *mut pg_sys::List,
        ) -> *mut pg_sys::List;
        pub fn datum_image_eq(a: pg_sys::Datum, b: pg_sys::Datum, by_value: bool, length: c_int) -> bool;
        pub fn datumGetSize(value: pg_sys::Datum, by_value: bool, length: c_int) -> pg_sys::Size;
        #[cfg(any(feature = "pg15", feature = "pg16"))]
        pub fn LogLogicalMessage(
            prefix: *const c_char,
            message: *const c_char,
            size: usize,
            transactional: bool,
        ) -> pg_sys::XLogRecPtr;
        #[cfg(not(any(feature = "pg15", feature = "pg16")))]
        pub fn LogLogicalMessage(
            prefix: *const c_char,
            message: *const c_char,
            size: usize,
            transactional: bool,
            flush: bool,
        ) -> pg_sys::XLogRecPtr;
        pub fn die(signal: c_int, #[cfg(feature = "pg19")] sender: *const pg_sys::pg_signal_info);
        pub fn RegisterTimeout(id: c_int, handler: unsafe extern "C-unwind" fn()) -> c_int;
        pub fn enable_timeout_after(id: c_int, milliseconds: c_int);
        pub fn disable_timeout(id: c_int, keep_indicator: bool);
        pub fn SignalHandlerForConfigReload(
            signal: c_int,
            #[cfg(feature = "pg19")] sender: *const pg_sys::pg_signal_info,
        );
        #[cfg(any(feature = "pg15", feature = "pg16", feature = "pg17"))]
        pub fn pqsignal(signal: c_int, handler: Option<SignalHandler>) -> *mut c_void;
        #[cfg(not(any(feature = "pg15", feature = "pg16", feature = "pg17")))]
        #[link_name = "pqsignal_be"]
        pub fn pqsignal(signal: c_int, handler: Option<SignalHandler>);
    }
}

/// What is called without pgrx's guard, from frames that own nothing that would have to be dropped.
pub mod unguarded {
    use super::*;
    unsafe extern "C-unwind" {
        /// Runs a utility command (`tcop/utility.c`). The guard would rebuild each ERROR of each command of the
        /// cluster, and lose its position and context.
        #[allow(clippy::too_many_arguments)]
        pub fn standard_ProcessUtility(
            statement: *mut pg_sys::PlannedStmt,
            query: *const c_char,
            read_only_tree: bool,
            context: pg_sys::ProcessUtilityContext::Type,
            params: pg_sys::ParamListInfo,
            environment: *mut pg_sys::QueryEnvironment,
            receiver: *mut pg_sys::DestReceiver,
            completion: *mut pg_sys::QueryCompletion,
        );
        /// The character that the error being reported is about (`utils/error/elog.c`).
        pub fn geterrposition() -> c_int;
        /// Sets a latch and wakes who waits on it (`storage/ipc/latch.c`).
        pub fn SetLatch(latch: *mut pg_sys::Latch);
    }
}

/// The role that made the cluster (`BOOTSTRAP_SUPERUSERID`, pg_authid.dat).
pub const BOOTSTRAP_SUPERUSER: pg_sys::Oid = pg_sys::Oid::from_u32(10);

/// What the meaning of a filter's text depends on, and how workers have it, which pin these.
pub const SETTINGS_OF_FILTERS: [(&CStr, &CStr); 10] = [
    (c"search_path", c"pg_catalog"),
    (c"TimeZone", c"UTC"),
    (c"DateStyle", c"ISO, YMD"),
    (c"IntervalStyle", c"postgres"),
    (c"bytea_output", c"hex"),
    (c"extra_float_digits", c"1"),
    (c"xmlbinary", c"base64"),
    (c"transform_null_equals", c"off"),
    (c"array_nulls", c"on"),
    (c"standard_conforming_strings", c"on"),
];

/// Runs the action with the settings by which workers read filters. When it raises, the abort of the transaction, or of the
/// subtransaction around it, takes them back.
pub fn with_settings_of_filters<T>(action: impl FnOnce() -> T) -> T {
    // SAFETY: in a transaction; settings go back to what they were.
    unsafe {
        let level = pg_sys::NewGUCNestLevel();
        for (setting, value) in SETTINGS_OF_FILTERS {
            pg_sys::set_config_option(
                setting.as_ptr(),
                value.as_ptr(),
                pg_sys::GucContext::PGC_USERSET,
                pg_sys::GucSource::PGC_S_SESSION,
                pg_sys::GucAction::GUC_ACTION_SAVE,
                true,
                0,
                false,
            );
        }
        let done = action();
        pg_sys::AtEOXact_GUC(true, level);
        done
    }
}

/// Installs the handlers of an ordinary backend: SIGTERM ends the process also out of a blocking wait in C, SIGHUP
/// reloads the configuration.
pub fn install_signal_handlers() {
    // SAFETY: both handlers are the server's own and the process is a background worker that has not yet unblocked
    // its signals.
    unsafe {
        c::pqsignal(libc::SIGTERM, Some(c::die));
        c::pqsignal(libc::SIGHUP, Some(c::SignalHandlerForConfigReload));
        pg_sys::BackgroundWorkerUnblockSignals();
    }
}

/// What the server calls when a signal comes; since 19 it says who sent it.
#[cfg(not(feature = "pg19"))]
type SignalHandler = unsafe extern "C-unwind" fn(c_int);
/// As above.
#[cfg(feature = "pg19")]
type SignalHandler = unsafe extern "C-unwind" fn(c_int, *const pg_sys::pg_signal_info);

/// What a handler is told of the signal.
#[derive(Clone, Copy)]
pub struct Signal {
    number: c_int,
    #[cfg(feature = "pg19")]
    sender: *const pg_sys::pg_signal_info,
}

/// What to do when a signal comes.
pub trait OnSignal {
    /// # Safety
    /// Called as a signal handler: does only what one may do.
    unsafe fn handle(signal: Signal);
}

unsafe extern "C-unwind" fn on_signal<H: OnSignal>(
    number: c_int,
    #[cfg(feature = "pg19")] sender: *const pg_sys::pg_signal_info,
) {
    // SAFETY: called as a signal handler.
    unsafe {
        H::handle(Signal {
            number,
            #[cfg(feature = "pg19")]
            sender,
        })
    }
}

/// Has SIGTERM handled by `H`.
pub fn handle_sigterm<H: OnSignal>() {
    // SAFETY: the process is a background worker with the ordinary handlers.
    unsafe { c::pqsignal(libc::SIGTERM, Some(on_signal::<H>)) };
}

/// What SIGTERM does to an ordinary backend: the process ends at the next occasion.
///
/// # Safety
/// Called from a signal handler.
pub unsafe fn die(signal: Signal) {
    // SAFETY: as the caller promises; the handler raises nothing by itself.
    unsafe {
        c::die(
            signal.number,
            #[cfg(feature = "pg19")]
            signal.sender,
        )
    }
}

/// What a walk through a tree of nodes calls for each of them; true ends it.
type Walker = unsafe extern "C-unwind" fn(*mut pg_sys::Node, *mut c_void) -> bool;

/// Begins a walk with this node. A callback is guarded for being called from C: were it called as it is, what it raises
/// would pass by everything up to the last call of Rust from C.
///
/// # Safety
/// The walker takes the node and the context.
pub unsafe fn walk(node: *mut pg_sys::Node, walker: Walker, context: *mut c_void) -> bool {
    // SAFETY: as the caller promises.
    unsafe { pg_guard_ffi_boundary(|| walker(node, context)) }
}

/// The first number of a timeout that is not the server's own, or one beyond (`utils/timeout.h`: 12 before 17).
const USER_TIMEOUT: c_int = 13;

/// Makes a timeout; its number.
///
/// # Safety
/// The handler does only what a signal handler may do.
pub unsafe fn register_timeout(handler: unsafe extern "C-unwind" fn()) -> c_int {
    // SAFETY: as the caller promises; beyond the server's own, the next free number is taken.
    unsafe { pg_guard_ffi_boundary(|| c::RegisterTimeout(USER_TIMEOUT, handler)) }
}

/// Has the handler called when so many milliseconds have passed.
pub fn enable_timeout(id: c_int, milliseconds: c_int) {
    // SAFETY: the number is one of `register_timeout`.
    unsafe { pg_guard_ffi_boundary(|| c::enable_timeout_after(id, milliseconds)) }
}

/// Has the handler not called any more.
pub fn disable_timeout(id: c_int) {
    // SAFETY: the number is one of `register_timeout`.
    unsafe { pg_guard_ffi_boundary(|| c::disable_timeout(id, false)) }
}

/// How write-ahead log is read on this machine, page by page (`xlogutils.c`).
pub fn wal_reader_routine() -> pg_sys::XLogReaderRoutine {
    pg_sys::XLogReaderRoutine {
        page_read: Some(c::read_local_xlog_page),
        segment_open: Some(c::wal_segment_open),
        segment_close: Some(c::wal_segment_close),
    }
}

/// Reads a page of the log that is on disk.
///
/// # Safety
/// The arguments are what a reader passed to its callback.
pub unsafe fn read_local_page(
    state: *mut pg_sys::XLogReaderState,
    page: pg_sys::XLogRecPtr,
    length: c_int,
    target: pg_sys::XLogRecPtr,
    buffer: *mut c_char,
) -> c_int {
    // SAFETY: as the caller promises.
    unsafe { pg_guard_ffi_boundary(|| c::read_local_xlog_page(state, page, length, target, buffer)) }
}

/// Decodes the record that the context's reader holds; the plugin's callbacks run in here.
///
/// # Safety
/// `ctx` is a live decoding context whose reader has just returned a record.
pub unsafe fn process_record(ctx: *mut pg_sys::LogicalDecodingContext) {
    // SAFETY: as the caller promises; an ERROR becomes a panic at this boundary.
    unsafe { pg_guard_ffi_boundary(|| c::LogicalDecodingProcessRecord(ctx, (*ctx).reader)) }
}

/// Runs the action in a transaction that sees catalogs as of what has been decoded, as the callbacks of the plugin do
/// (`ReorderBufferProcessTXN`); none before decoding has found a consistent point.
///
/// # Safety
/// `ctx` is a live decoding context, and no transaction is in progress. The action raises nothing.
pub unsafe fn with_decoded_catalogs<T>(
    ctx: *mut pg_sys::LogicalDecodingContext,
    action: impl FnOnce() -> T,
) -> Option<T> {
    // SAFETY: as the caller promises; the snapshot is the builder's own, which does not go on meanwhile.
    unsafe {
        let builder = (*ctx).snapshot_builder;
        if pg_sys::SnapBuildCurrentState(builder) != pg_sys::SnapBuildState::SNAPBUILD_CONSISTENT {
            return None;
        }
        pg_sys::StartTransactionCommand();
        #[cfg(feature = "pg15")]
        let snapshot = pg_sys::SnapBuildGetOrBuildSnapshot(builder, pg_sys::InvalidTransactionId);
        #[cfg(not(feature = "pg15"))]
        let snapshot = pg_sys::SnapBuildGetOrBuildSnapshot(builder);
        pg_sys::SetupHistoricSnapshot(snapshot, std::ptr::null_mut());
        let result = action();
        pg_sys::TeardownHistoricSnapshot(false);
        pg_sys::AbortCurrentTransaction();
        Some(result)
    }
}

/// Makes the present transaction see the database as of the slot's consistent point (as tablesync does).
///
/// # Safety
/// `ctx` has found its start point with a full snapshot, and the present transaction is REPEATABLE READ and has not
/// taken a snapshot.
pub unsafe fn adopt_initial_snapshot(ctx: *mut pg_sys::LogicalDecodingContext) {
    // SAFETY: as the caller promises.
    unsafe {
        let snapshot = pg_guard_ffi_boundary(|| c::SnapBuildInitialSnapshot((*ctx).snapshot_builder));
        pg_sys::RestoreTransactionSnapshot(snapshot, pg_sys::MyProc.cast());
    }
}

/// The partitioned tables above a partition, nearest first (`catalog/partition.c`).
///
/// # Safety
/// A transaction is in progress and `relation` is a partition.
pub unsafe fn partition_ancestors(relation: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    // SAFETY: as the caller promises; the list holds oids and lives in the current memory context.
    unsafe { oids(pg_guard_ffi_boundary(|| c::get_partition_ancestors(relation))) }
}

/// The parents of a table by INHERITS, the first one first (`catalog/pg_inherits.h`).
///
/// # Safety
/// A transaction is in progress.
pub unsafe fn parents(table: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    // SAFETY: as the caller promises; rows of the catalog are read while the scan stands on them, and what is opened is
    // closed, or by the end of the transaction when something raises.
    unsafe {
        let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
        let catalog = pg_sys::table_open(pg_sys::InheritsRelationId, lock);
        let mut key = pg_sys::ScanKeyData::default();
        let (column, equal) = (pg_sys::Anum_pg_inherits_inhrelid, pg_sys::BTEqualStrategyNumber);
        pg_sys::ScanKeyInit(
            &mut key,
            column as _,
            equal as _,
            pg_sys::F_OIDEQ.into(),
            pg_sys::Datum::from(table),
        );
        let index = pg_sys::InheritsRelidSeqnoIndexId.into();
        let scan = pg_sys::systable_beginscan(catalog, index, true, std::ptr::null_mut(), 1, &mut key);
        let mut parents = Vec::new();
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            parents.push((*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_inherits>()).inhparent);
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(catalog, lock);
        parents
    }
}

/// A partitioned table or parent by INHERITS, and all that is below it (`catalog/pg_inherits.c`), without waiting for who has locked some of it.
///
/// # Safety
/// A transaction is in progress.
pub unsafe fn partition_tree(table: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    // SAFETY: as the caller promises; the list holds oids and lives in the current memory context.
    unsafe {
        let (lock, parents) = (pg_sys::NoLock as pg_sys::LOCKMODE, std::ptr::null_mut());
        oids(pg_guard_ffi_boundary(|| c::find_all_inheritors(table, lock, parents)))
    }
}

/// The indexes of a table (`utils/cache/relcache.c`).
///
/// # Safety
/// A transaction is in progress and `relation` is open.
pub unsafe fn index_list(relation: pg_sys::Relation) -> Vec<pg_sys::Oid> {
    // SAFETY: as the caller promises; the list holds oids and lives in the current memory context.
    unsafe { oids(pg_sys::RelationGetIndexList(relation)) }
}

/// # Safety
/// The list is null or holds oids.
unsafe fn oids(list: *mut pg_sys::List) -> Vec<pg_sys::Oid> {
    if list.is_null() {
        return Vec::new();
    }
    // SAFETY: as the caller promises.
    unsafe { (0..(*list).length as usize).map(|n| (*(*list).elements.add(n)).oid_value).collect() }
}

/// Whether two values are the same byte by byte, however they are stored (`utils/adt/datum.c`). `length`: the type's.
///
/// # Safety
/// Both are values of a type of that length. A transaction is in progress.
pub unsafe fn datum_image_eq(a: pg_sys::Datum, b: pg_sys::Datum, by_value: bool, length: i16) -> bool {
    // SAFETY: as the caller promises.
    unsafe { pg_guard_ffi_boundary(|| c::datum_image_eq(a, b, by_value, length.into())) }
}

/// The bytes that a value takes (`utils/adt/datum.c`). `length`: the type's.
///
/// # Safety
/// It is a value of a type of that length.
pub unsafe fn datum_size(value: pg_sys::Datum, by_value: bool, length: i16) -> usize {
    // SAFETY: as the caller promises.
    unsafe { pg_guard_ffi_boundary(|| c::datumGetSize(value, by_value, length.into())) }
}

/// Evaluates an expression.
///
/// # Safety
/// `state` is ready and `context` has what it looks at.
pub unsafe fn evaluate(
    state: *mut pg_sys::ExprState,
    context: *mut pg_sys::ExprContext,
    is_null: &mut bool,
) -> pg_sys::Datum {
    // SAFETY: a state that is ready has a function (`executor.h`, ExecEvalExpr).
    unsafe {
        let Some(function) = (*state).evalfunc else { return pg_sys::Datum::null() };
        pg_guard_ffi_boundary(|| function(state, context, is_null))
    }
}

/// Writes a message into write-ahead log that counts when the present transaction commits (`replication/message.c`).
/// Must run in a transaction; what is behind a NUL in the prefix is cut off.
pub fn log_message(prefix: &str, message: &[u8]) {
    let prefix: Vec<u8> = prefix.bytes().take_while(|byte| *byte != 0).chain([0]).collect();
    let (prefix, text, size) = (prefix.as_ptr().cast(), message.as_ptr().cast(), message.len());
    // SAFETY: the prefix ends in NUL, the message is as long as is said; both are copied.
    unsafe {
        #[cfg(any(feature = "pg15", feature = "pg16"))]
        pg_guard_ffi_boundary(|| c::LogLogicalMessage(prefix, text, size, true));
        #[cfg(not(any(feature = "pg15", feature = "pg16")))]
        pg_guard_ffi_boundary(|| c::LogLogicalMessage(prefix, text, size, true, false));
    }
}

/// Creates the slot, ephemeral: it goes with the process until it is persisted. Since 17 standbys that synchronize slots
/// get it, too.
///
/// # Safety
/// The process holds no slot.
pub unsafe fn create_slot(name: &CStr) {
    // SAFETY: as the caller promises.
    unsafe {
        #[cfg(any(feature = "pg15", feature = "pg16"))]
        pg_sys::ReplicationSlotCreate(
            name.as_ptr(),
            true,
            pg_sys::ReplicationSlotPersistency::RS_EPHEMERAL,
            false,
        );
        #[cfg(any(feature = "pg17", feature = "pg18"))]
        pg_sys::ReplicationSlotCreate(
            name.as_ptr(),
            true,
            pg_sys::ReplicationSlotPersistency::RS_EPHEMERAL,
            false,
            true,
            false,
        );
        #[cfg(feature = "pg19")]
        pg_sys::ReplicationSlotCreate(
            name.as_ptr(),
            true,
            pg_sys::ReplicationSlotPersistency::RS_EPHEMERAL,
            false,
            false,
            true,
            false,
        );
    }
}

/// The lowest `wal_level` under which changes can be captured. Since 19 a logical slot switches logical decoding on by itself
/// where the level is `replica` (`replication/logical/logicalctl.c`).
pub const REQUIRED_WAL_LEVEL: &str = {
    #[cfg(not(feature = "pg19"))]
    let level = "logical";
    #[cfg(feature = "pg19")]
    let level = "replica";
    level
};

/// Whether `wal_level` is at least [`REQUIRED_WAL_LEVEL`].
pub fn wal_level_suffices() -> bool {
    #[cfg(not(feature = "pg19"))]
    let required = pg_sys::WalLevel::WAL_LEVEL_LOGICAL;
    #[cfg(feature = "pg19")]
    let required = pg_sys::WalLevel::WAL_LEVEL_REPLICA;
    // SAFETY: reads a setting that only a restart changes.
    unsafe { pg_sys::wal_level >= required as c_int }
}

/// Switches logical decoding on for the slot that was just created, where `wal_level` does not; dropping the last logical slot
/// switches it off (`replication/logical/logicalctl.c`).
///
/// # Safety
/// The process holds a slot.
pub unsafe fn ensure_logical_decoding() {
    // SAFETY: as the caller promises.
    #[cfg(feature = "pg19")]
    unsafe {
        pg_sys::EnsureLogicalDecodingEnabled();
    }
}

/// Begins the decoding of a slot that was just created, with a snapshot of all of the database.
///
/// # Safety
/// The process holds the slot and is in a transaction. `routine` and the plugin's name live as long as the context.
pub unsafe fn create_initial_context(
    plugin: &'static CStr,
    routine: &mut pg_sys::XLogReaderRoutine,
) -> *mut pg_sys::LogicalDecodingContext {
    let options = std::ptr::null_mut();
    // SAFETY: as the caller promises.
    unsafe {
        #[cfg(not(feature = "pg19"))]
        return pg_sys::CreateInitDecodingContext(
            plugin.as_ptr(),
            options,
            true,
            0,
            routine,
            None,
            None,
            None,
        );
        #[cfg(feature = "pg19")]
        return pg_sys::CreateInitDecodingContext(
            plugin.as_ptr(),
            options,
            true,
            false,
            0,
            routine,
            None,
            None,
            None,
        );
    }
}

/// Whether a process holds the slot.
pub fn slot_is_active(slot: &pg_sys::ReplicationSlot) -> bool {
    #[cfg(not(feature = "pg19"))]
    return slot.active_pid != 0;
    #[cfg(feature = "pg19")]
    return slot.active_proc != pg_sys::INVALID_PROC_NUMBER;
}

/// Whether all that has to be on standbys first is there up to `lsn`: since 17, on those that `synchronized_standby_slots`
/// names. The process holds the slot.
pub fn standbys_have(lsn: u64) -> bool {
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    {
        let _ = lsn;
        true
    }
    // What keeps them is in `pgwh.health()`; each look would log it again.
    // SAFETY: looks through shared memory under its lock (`slot.c`), and logs at this level.
    #[cfg(not(any(feature = "pg15", feature = "pg16")))]
    unsafe {
        pg_sys::StandbySlotsHaveCaughtup(lsn, pg_sys::DEBUG1 as c_int)
    }
}

/// Takes the slot for this process; raises when another process holds it.
///
/// # Safety
/// The process holds no slot.
pub unsafe fn acquire_slot(name: &CStr) {
    // SAFETY: as the caller promises.
    unsafe {
        #[cfg(any(feature = "pg15", feature = "pg16", feature = "pg17"))]
        pg_sys::ReplicationSlotAcquire(name.as_ptr(), true);
        #[cfg(not(any(feature = "pg15", feature = "pg16", feature = "pg17")))]
        pg_sys::ReplicationSlotAcquire(name.as_ptr(), true, false);
    }
}

/// Whether the server has invalidated the slot, so that what it kept of WAL may be gone.
pub fn slot_is_invalid(slot: &pg_sys::ReplicationSlotPersistentData) -> bool {
    #[cfg(feature = "pg15")]
    return slot.invalidated_at != 0;
    #[cfg(not(feature = "pg15"))]
    return slot.invalidated != pg_sys::ReplicationSlotInvalidationCause::RS_INVAL_NONE;
}

/// The old and the new tuple of a change, null where WAL has none.
///
/// # Safety
/// `change` is an insert, update or delete that the reorder buffer handed to a change callback.
pub unsafe fn tuples_of(change: *mut pg_sys::ReorderBufferChange) -> (pg_sys::HeapTuple, pg_sys::HeapTuple) {
    // SAFETY: as the caller promises, so the `tp` member of the union is the one in use.
    unsafe {
        let tp = &(*change).data.tp;
        #[cfg(any(feature = "pg15", feature = "pg16"))]
        {
            let tuple = |buffer: *mut pg_sys::ReorderBufferTupleBuf| {
                if buffer.is_null() { std::ptr::null_mut() } else { &raw mut (*buffer).tuple }
            };
            (tuple(tp.oldtuple), tuple(tp.newtuple))
        }
        #[cfg(not(any(feature = "pg15", feature = "pg16")))]
        (tp.oldtuple, tp.newtuple)
    }
}

/// When a transaction that is being decoded was committed.
///
/// # Safety
/// The server passed it to a callback.
pub unsafe fn commit_time(txn: *mut pg_sys::ReorderBufferTXN) -> pg_sys::TimestampTz {
    // SAFETY: as the caller promises.
    unsafe {
        #[cfg(not(feature = "pg19"))]
        return (*txn).xact_time.commit_time;
        #[cfg(feature = "pg19")]
        return (*txn).__bindgen_anon_1.commit_time;
    }
}

/// What tells where a change comes from (`RepOriginId`, since 19 `ReplOriginId`).
pub type Origin = u16;

/// Where the changes of this process come from.
pub fn session_origin() -> Origin {
    // SAFETY: reads a global of this process.
    unsafe {
        #[cfg(not(feature = "pg19"))]
        return pg_sys::replorigin_session_origin;
        #[cfg(feature = "pg19")]
        return pg_sys::replorigin_xact_state.origin;
    }
}

/// Says where the changes of this process come from; 0 is nowhere.
pub fn set_session_origin(origin: Origin) {
    // SAFETY: a global of this process.
    unsafe {
        #[cfg(not(feature = "pg19"))]
        let session = &raw mut pg_sys::replorigin_session_origin;
        #[cfg(feature = "pg19")]
        let session = &raw mut pg_sys::replorigin_xact_state.origin;
        *session = origin;
    }
}

/// The nth attribute of a tuple descriptor, counted from 0.
///
/// # Safety
/// `desc` is a live descriptor with more than `n` attributes.
pub unsafe fn attribute<'a>(desc: pg_sys::TupleDesc, n: usize) -> &'a pg_sys::FormData_pg_attribute {
    // SAFETY: as the caller promises. Since 18 the full attributes stand behind the compact ones
    // (`access/tupdesc.h`, TupleDescAttrAddress).
    unsafe {
        #[cfg(any(feature = "pg15", feature = "pg16", feature = "pg17"))]
        return &*(*desc).attrs.as_ptr().add(n);
        #[cfg(not(any(feature = "pg15", feature = "pg16", feature = "pg17")))]
        {
            let compact = (*desc).compact_attrs.as_ptr();
            let full = compact.add((*desc).natts as usize).cast::<pg_sys::FormData_pg_attribute>();
            &*full.add(n)
        }
    }
}

/// The primary key's index of a relation, or the invalid oid.
///
/// # Safety
/// `relation` is open.
pub unsafe fn primary_key_index(relation: pg_sys::Relation) -> pg_sys::Oid {
    // SAFETY: as the caller promises.
    unsafe {
        #[cfg(any(feature = "pg15", feature = "pg16", feature = "pg17"))]
        return pg_sys::RelationGetPrimaryKeyIndex(relation);
        #[cfg(not(any(feature = "pg15", feature = "pg16", feature = "pg17")))]
        return pg_sys::RelationGetPrimaryKeyIndex(relation, false);
    }
}

/// Whether the role owns the database.
pub fn owns_database(database: pg_sys::Oid, role: pg_sys::Oid) -> bool {
    // SAFETY: looks up the catalog by value; a transaction is in progress whenever a command runs.
    unsafe {
        #[cfg(feature = "pg15")]
        return pg_sys::pg_database_ownercheck(database, role);
        #[cfg(not(feature = "pg15"))]
        return pg_sys::object_ownercheck(pg_sys::DatabaseRelationId, database, role);
    }
}

/// Whether the table is the role's own. Inside a transaction.
pub fn owns_table(table: pg_sys::Oid, role: pg_sys::Oid) -> bool {
    // SAFETY: look-ups in the system cache; a table that is not there is nobody's.
    unsafe {
        if role == pg_sys::InvalidOid || pg_sys::get_rel_relkind(table) == 0 {
            return false;
        }
        #[cfg(feature = "pg15")]
        return pg_sys::pg_class_ownercheck(table, role);
        #[cfg(not(feature = "pg15"))]
        return pg_sys::object_ownercheck(pg_sys::RelationRelationId, table, role);
    }
}

/// Whether the role has USAGE of the schema, which must be there.
pub fn may_use_schema(schema: pg_sys::Oid, role: pg_sys::Oid) -> bool {
    let usage = pg_sys::ACL_USAGE as pg_sys::AclMode;
    // SAFETY: looks up the catalog by value, in a transaction.
    unsafe {
        #[cfg(feature = "pg15")]
        let result = pg_sys::pg_namespace_aclcheck(schema, role, usage);
        #[cfg(not(feature = "pg15"))]
        let result = pg_sys::object_aclcheck(pg_sys::NamespaceRelationId, schema, role, usage);
        result == pg_sys::AclResult::ACLCHECK_OK
    }
}

/// A wait set that lives as long as the process.
pub fn create_wait_set(events: c_int) -> *mut pg_sys::WaitEventSet {
    // SAFETY: the set is owned by the top memory context, or since 17 by no resource owner, which is as long.
    unsafe {
        #[cfg(any(feature = "pg15", feature = "pg16"))]
        return pg_sys::CreateWaitEventSet(pg_sys::TopMemoryContext, events);
        #[cfg(not(any(feature = "pg15", feature = "pg16")))]
        return pg_sys::CreateWaitEventSet(std::ptr::null_mut(), events);
    }
}

/// The end of write-ahead log as inserted so far.
///
/// On a page boundary the server answers with the position behind the next page's header, where a reader does not
/// yet stand: the boundary itself is what a reader reaches (`xlog.c`, XLogBytePosToRecPtr).
pub fn wal_insert_end() -> u64 {
    // SAFETY: reads shared memory.
    let end = unsafe { pg_sys::GetXLogInsertRecPtr() };
    // SAFETY: a setting that is fixed when the cluster is made.
    let segment = unsafe { pg_sys::wal_segment_size } as u64;
    let header = if end % segment < u64::from(pg_sys::XLOG_BLCKSZ) {
        size_of::<pg_sys::XLogLongPageHeaderData>() as u64
    } else {
        size_of::<pg_sys::XLogPageHeaderData>() as u64
    };
    if end % u64::from(pg_sys::XLOG_BLCKSZ) == header { end - header } else { end }
}

/// The process number of a backend's slot in shared memory.
pub fn my_process_number() -> i32 {
    // SAFETY: MyProc points into the array that ProcGlobal names once the process is initialised.
    unsafe { pg_sys::MyProc.offset_from((*pg_sys::ProcGlobal).allProcs) as i32 }
}

/// The oldest xid that is running, prepared transactions included; the next one to be given when there is none. On no standby.
pub fn oldest_running_xid() -> pg_sys::TransactionId {
    // SAFETY: reads shared memory under its lock.
    #[cfg(not(feature = "pg19"))]
    unsafe {
        pg_sys::GetOldestActiveTransactionId()
    }
    // SAFETY: as above.
    #[cfg(feature = "pg19")]
    unsafe {
        pg_sys::GetOldestActiveTransactionId(false, true)
    }
}

/// The latch of the process with that number, null when out of range.
///
/// # Safety
/// Shared memory is attached.
pub unsafe fn latch_of(number: i32) -> *mut pg_sys::Latch {
    // SAFETY: as the caller promises; the number is checked against the array's length.
    unsafe {
        let global = pg_sys::ProcGlobal;
        if number < 0 || number as u32 >= (*global).allProcCount {
            return std::ptr::null_mut();
        }
        &raw mut (*(*global).allProcs.add(number as usize)).procLatch
    }
}

/// Whether no process has that number.
///
/// # Safety
/// Shared memory is attached.
pub unsafe fn is_free(number: i32) -> bool {
    // SAFETY: as the caller promises; a process owns its latch from its start to its end.
    unsafe {
        let latch = latch_of(number);
        !latch.is_null() && (*latch).owner_pid == 0
    }
}

/// Adds the index entries of a row that was just inserted (`executor/execIndexing.c`).
///
/// # Safety
/// The indexes of `result` are open, `slot` has the row with its place, and `estate` is an executor's state.
pub unsafe fn insert_index_entries(
    result: *mut pg_sys::ResultRelInfo,
    slot: *mut pg_sys::TupleTableSlot,
    estate: *mut pg_sys::EState,
) {
    let (conflict, arbiters) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: as the caller promises.
    unsafe {
        #[cfg(feature = "pg15")]
        pg_sys::ExecInsertIndexTuples(result, slot, estate, false, false, conflict, arbiters);
        #[cfg(any(feature = "pg16", feature = "pg17", feature = "pg18"))]
        pg_sys::ExecInsertIndexTuples(result, slot, estate, false, false, conflict, arbiters, false);
        #[cfg(feature = "pg19")]
        pg_sys::ExecInsertIndexTuples(result, estate, 0, slot, arbiters, conflict);
    }
}

/// Gives a relation an empty file, which takes the place of the present one at commit (`utils/cache/relcache.c`).
///
/// # Safety
/// The relation is open and locked against everybody else.
pub unsafe fn set_new_file(relation: pg_sys::Relation) {
    // SAFETY: as the caller promises.
    unsafe {
        let persistence = (*(*relation).rd_rel).relpersistence;
        #[cfg(feature = "pg15")]
        pg_sys::RelationSetNewRelfilenode(relation, persistence);
        #[cfg(not(feature = "pg15"))]
        pg_sys::RelationSetNewRelfilenumber(relation, persistence);
    }
}

/// Rebuilds the indexes of a table and of its TOAST table (`catalog/index.c`).
///
/// # Safety
/// The table is locked against everybody else.
pub unsafe fn rebuild_indexes(table: pg_sys::Oid) {
    let (flags, mut options) = (pg_sys::REINDEX_REL_PROCESS_TOAST as c_int, pg_sys::ReindexParams::default());
    // SAFETY: as the caller promises.
    unsafe {
        #[cfg(any(feature = "pg15", feature = "pg16"))]
        pg_sys::reindex_relation(table, flags, &mut options);
        #[cfg(not(any(feature = "pg15", feature = "pg16")))]
        pg_sys::reindex_relation(std::ptr::null(), table, flags, &mut options);
    }
}

/// Memory that the server frees with the value of a setting; null when there is none.
///
/// # Safety
///
/// In the thread that runs Postgres.
pub unsafe fn allocate_for_guc(size: usize) -> *mut c_void {
    // SAFETY: allocates; the caller is in that thread.
    unsafe {
        #[cfg(feature = "pg15")]
        return libc::malloc(size);
        #[cfg(not(feature = "pg15"))]
        return pg_sys::guc_malloc(pg_sys::LOG as c_int, size);
    }
}

/// `DoNotReplicateId` (`replication/origin.h`): the origin of what must not be sent on.
pub const DO_NOT_REPLICATE: Origin = u16::MAX;
