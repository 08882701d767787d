//! Commit records, and where replicated transactions come from.

use std::ffi::CStr;

use pgrx::pg_sys;

use super::wal_reader;
use crate::decode::definitions::Invalidated;
use crate::event::{Lsn, Timestamp};
use crate::pg::compat;
use crate::pg::values::encoding::utf8;

/// Whether a transaction that committed in this stretch of the log changed catalogs. `from` is where a record begins,
/// `upto` where one ended.
pub fn change_catalogs(from: Lsn, upto: Lsn) -> bool {
    let mut routine = compat::wal_reader_routine();
    // SAFETY: the stretch is on disk, and a slot keeps it. What a record holds stays until the next one is read.
    unsafe {
        let (segment, no_data) = (pg_sys::wal_segment_size, std::ptr::null_mut());
        let state = pg_sys::XLogReaderAllocate(segment, std::ptr::null(), &mut routine, no_data);
        if state.is_null() {
            pgrx::error!("there is no memory to read write-ahead log with");
        }
        pg_sys::XLogBeginRead(state, from.0);
        let mut found = false;
        while !found && (*state).EndRecPtr < upto.0 && wal_reader::read_record(state) {
            let record = &*(*state).record;
            let resource = pg_sys::RmgrIds::Type::from(record.header.xl_rmid);
            if resource == pg_sys::RmgrIds::RM_XACT_ID && !record.main_data.is_null() {
                let length = record.main_data_len as usize;
                let data = std::slice::from_raw_parts(record.main_data.cast::<u8>(), length);
                found = commits_catalog_changes(record.header.xl_info, data);
            }
            pgrx::check_for_interrupts!();
        }
        pg_sys::XLogReaderFree(state);
        found
    }
}

/// The time in the commit record that a reader has read last: of the commit here. What the reorder buffer has as the time of a
/// replicated transaction is what the origin says of its own. None when the record is no commit's.
///
/// # Safety
/// The reader is live.
pub unsafe fn commit_time_at(reader: *const pg_sys::XLogReaderState) -> Option<Timestamp> {
    // SAFETY: as the caller promises; what a record holds stays until the next one is read.
    let (info, data) = unsafe {
        let record = (*reader).record.as_ref()?;
        let resource = pg_sys::RmgrIds::Type::from(record.header.xl_rmid);
        if resource != pg_sys::RmgrIds::RM_XACT_ID || record.main_data.is_null() {
            return None;
        }
        let length = record.main_data_len as usize;
        (record.header.xl_info, std::slice::from_raw_parts(record.main_data.cast::<u8>(), length))
    };
    // `xact.h`, xl_xact_commit: the time comes first.
    let time = data.first_chunk().filter(|_| is_commit(info))?;
    Some(Timestamp(pg_sys::TimestampTz::from_ne_bytes(*time)))
}

/// What the commit record that a reader has read last says of catalogs that all databases share, when it is of a transaction of
/// another one: nothing of it is handed over.
///
/// # Safety
/// The reader is live.
pub unsafe fn shared_changes_at(reader: *const pg_sys::XLogReaderState) -> Option<Invalidated> {
    // SAFETY: as the caller promises; what a record holds stays until the next one is read.
    unsafe {
        let record = (*reader).record.as_ref()?;
        let resource = pg_sys::RmgrIds::Type::from(record.header.xl_rmid);
        if resource != pg_sys::RmgrIds::RM_XACT_ID || record.main_data.is_null() {
            return None;
        }
        let (info, data) = (record.header.xl_info, record.main_data);
        let length = record.main_data_len as usize;
        if !commits_catalog_changes(info, std::slice::from_raw_parts(data.cast(), length)) {
            return None;
        }
        let mut parsed = pg_sys::xl_xact_parsed_commit::default();
        pg_sys::ParseCommitRecord(info, data.cast(), &raw mut parsed);
        if parsed.dbId == pg_sys::MyDatabaseId || parsed.msgs.is_null() {
            return None;
        }
        let messages = std::slice::from_raw_parts(parsed.msgs, parsed.nmsgs as usize);
        Some(Invalidated::elsewhere(messages)).filter(|changed| !changed.is_empty())
    }
}

/// The name of a replication origin as of the transaction that is decoded; none when it is gone.
pub fn origin_name(origin: compat::Origin) -> Option<String> {
    let mut name = std::ptr::null_mut();
    // SAFETY: called in a callback, whose transaction sees catalogs as of the change; the name is a copy in the current
    // memory context.
    unsafe {
        let found = pg_sys::replorigin_by_oid(origin, true, &raw mut name);
        (found && !name.is_null()).then(|| utf8(CStr::from_ptr(name).to_bytes()).into_owned())
    }
}

/// Whether a record of a transaction's end is of one that committed, then or by COMMIT PREPARED.
fn is_commit(info: u8) -> bool {
    [pg_sys::XLOG_XACT_COMMIT, pg_sys::XLOG_XACT_COMMIT_PREPARED]
        .contains(&(u32::from(info) & pg_sys::XLOG_XACT_OPMASK))
}

/// Whether a record of a transaction's end (`xact.h`, xl_xact_commit) says what others must forget of catalogs.
fn commits_catalog_changes(info: u8, data: &[u8]) -> bool {
    let flags = data.get(size_of::<pg_sys::TimestampTz>()..).and_then(<[u8]>::first_chunk);
    is_commit(info)
        && u32::from(info) & pg_sys::XLOG_XACT_HAS_INFO != 0
        && flags.is_some_and(|flags| u32::from_ne_bytes(*flags) & pg_sys::XACT_XINFO_HAS_INVALS != 0)
}
