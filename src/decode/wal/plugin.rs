//! Our own output plugin: the callbacks in which the reorder buffer hands over each committed transaction.

use std::sync::atomic::{AtomicBool, Ordering};

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgLogLevel, PgSqlErrorCode, pg_guard, pg_sys};

use super::commit_records;
use crate::decode::capture::{Capture, Replicated};
use crate::decode::definitions::Invalidated;
use crate::event::{Lsn, Timestamp};
use crate::pg::compat;

/// The entry point that the server looks for in an output plugin.
///
/// # Safety
/// Called by the server with a table to fill in.
#[unsafe(no_mangle)]
#[pg_guard]
pub unsafe extern "C-unwind" fn _PG_output_plugin_init(callbacks: *mut pg_sys::OutputPluginCallbacks) {
    // SAFETY: as the server promises.
    let callbacks = unsafe { &mut *callbacks };
    callbacks.startup_cb = Some(startup);
    callbacks.begin_cb = Some(begin);
    callbacks.change_cb = Some(change);
    callbacks.truncate_cb = Some(truncate);
    callbacks.message_cb = Some(message);
    callbacks.commit_cb = Some(commit);
    callbacks.filter_by_origin_cb = Some(filter_by_origin);
}

#[pg_guard]
unsafe extern "C-unwind" fn startup(
    ctx: *mut pg_sys::LogicalDecodingContext,
    options: *mut pg_sys::OutputPluginOptions,
    is_init: bool,
) {
    if is_init && !may_be_created() {
        // What was committed before would be missing, on no record.
        ErrorReport::new(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "replication slots of pgstream_hooks are created by its decoder only",
            "pgstream_hooks",
        )
        .set_detail("A slot that another program creates does not have the changes committed before it.")
        .set_hint("CREATE EXTENSION pgstream_hooks creates the slot of a database; SELECT pgwh.slot_name() names it.")
        .report(PgLogLevel::ERROR);
    }
    // SAFETY: the server passes live pointers.
    unsafe {
        (*options).output_type = pg_sys::OutputPluginOutputType::OUTPUT_PLUGIN_BINARY_OUTPUT;
        (*options).receive_rewrites = false;
        (*ctx).output_plugin_private = std::ptr::null_mut();
    }
}

/// The capture that the decoder put behind the context.
///
/// # Safety
/// `ctx` is live, and no other reference to the capture is.
unsafe fn capture<'a>(ctx: *mut pg_sys::LogicalDecodingContext) -> &'a mut Capture {
    // SAFETY: only the decoder sets the pointer, to a capture that outlives the context.
    if let Some(capture) = unsafe { (*ctx).output_writer_private.cast::<Capture>().as_mut() } {
        return capture;
    }
    pgrx::error!("this replication slot belongs to pgstream_hooks, which alone can read from it")
}

/// Puts on the queue what is gathered so far, before a wait. While a slot is being created there is nothing to send.
///
/// # Safety
/// `ctx` is live.
pub unsafe fn flush(ctx: *mut pg_sys::LogicalDecodingContext) {
    // SAFETY: as `capture`.
    if let Some(capture) = unsafe { (*ctx).output_writer_private.cast::<Capture>().as_mut() } {
        capture.flush();
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn begin(
    ctx: *mut pg_sys::LogicalDecodingContext,
    txn: *mut pg_sys::ReorderBufferTXN,
) {
    // SAFETY: the server passes live pointers.
    unsafe {
        // Its commit record was read last. When it was replicated, the transaction has the origin's time.
        let time = Timestamp(compat::commit_time(txn));
        let committed_at = commit_records::commit_time_at((*ctx).reader).unwrap_or(time);
        let lsn = Some(Lsn((*txn).origin_lsn)).filter(|lsn| lsn.0 != 0);
        // Whoever says when also says where. Without, the server takes the time of an earlier commit of that session.
        let origin = Replicated { origin: (*txn).origin_id, lsn, committed_at: lsn.map(|_| time) };
        let origin =
            Some(origin).filter(|it| it.origin != NO_ORIGIN && it.origin != compat::DO_NOT_REPLICATE);
        capture(ctx).begin((*txn).xid.into_inner(), Lsn((*txn).final_lsn), committed_at, origin);
        capture(ctx).begin_catalog_changes(&Invalidated::by(txn));
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn change(
    ctx: *mut pg_sys::LogicalDecodingContext,
    _txn: *mut pg_sys::ReorderBufferTXN,
    relation: pg_sys::Relation,
    change: *mut pg_sys::ReorderBufferChange,
) {
    // SAFETY: the server passes live pointers.
    unsafe { capture(ctx).change(relation, change) }
}

#[pg_guard]
unsafe extern "C-unwind" fn truncate(
    ctx: *mut pg_sys::LogicalDecodingContext,
    _txn: *mut pg_sys::ReorderBufferTXN,
    count: std::ffi::c_int,
    relations: *mut pg_sys::Relation,
    change: *mut pg_sys::ReorderBufferChange,
) {
    // SAFETY: the server passes live pointers and their number.
    unsafe {
        let relations = std::slice::from_raw_parts(relations, count as usize);
        capture(ctx).truncate(relations, Lsn((*change).lsn));
    }
}

/// What no transaction commits has no place among commits, and so no id: only transactional messages are told.
#[pg_guard]
unsafe extern "C-unwind" fn message(
    ctx: *mut pg_sys::LogicalDecodingContext,
    _txn: *mut pg_sys::ReorderBufferTXN,
    lsn: pg_sys::XLogRecPtr,
    transactional: bool,
    prefix: *const std::ffi::c_char,
    size: pg_sys::Size,
    content: *const std::ffi::c_char,
) {
    if transactional {
        // SAFETY: the server passes live pointers, a prefix that ends in NUL and the content's size.
        unsafe {
            let content = std::slice::from_raw_parts(content.cast(), size);
            capture(ctx).message(std::ffi::CStr::from_ptr(prefix).to_bytes(), content, Lsn(lsn));
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn commit(
    ctx: *mut pg_sys::LogicalDecodingContext,
    txn: *mut pg_sys::ReorderBufferTXN,
    _commit_lsn: pg_sys::XLogRecPtr,
) {
    // SAFETY: the server passes live pointers.
    unsafe { capture(ctx).commit(Lsn((*txn).end_lsn)) }
}

/// What our own workers note is no news: it is dropped before it is queued.
unsafe extern "C-unwind" fn filter_by_origin(
    _ctx: *mut pg_sys::LogicalDecodingContext,
    origin: compat::Origin,
) -> bool {
    origin == compat::DO_NOT_REPLICATE
}

/// `InvalidRepOriginId` (`replication/origin.h`): of what was committed here first.
const NO_ORIGIN: compat::Origin = 0;

/// Whether this process makes a slot by `slot::create`; an ERROR in there ends it.
static IS_CREATING: AtomicBool = AtomicBool::new(false);

/// Whether a slot of our plugin may be made now: by its decoder, which notes what a new slot misses, and by pg_upgrade.
fn may_be_created() -> bool {
    // SAFETY: a flag of this process.
    IS_CREATING.load(Ordering::Relaxed) || unsafe { pg_sys::IsBinaryUpgrade }
}

/// Whether slots of our plugin may be made by this process from now on.
pub fn allow_creation(is_allowed: bool) {
    IS_CREATING.store(is_allowed, Ordering::Relaxed);
}
