//! The commit records in a stretch of write-ahead log.

use pgrx::pg_sys;

use super::{raw, reader};
use crate::event::Lsn;

/// Whether a transaction that committed in this stretch of the log changed catalogs. `from` is where a record begins,
/// `upto` where one ended.
pub fn change_catalogs(from: Lsn, upto: Lsn) -> bool {
    let mut routine = raw::wal_reader_routine();
    // SAFETY: the stretch is on disk, and a slot keeps it. What a record holds stays until the next one is read.
    unsafe {
        let (segment, no_data) = (pg_sys::wal_segment_size, std::ptr::null_mut());
        let state = pg_sys::XLogReaderAllocate(segment, std::ptr::null(), &mut routine, no_data);
        if state.is_null() {
            pgrx::error!("there is no memory to read write-ahead log with");
        }
        pg_sys::XLogBeginRead(state, from.0);
        let mut found = false;
        while !found && (*state).EndRecPtr < upto.0 && reader::read_record(state) {
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

/// Whether a record of a transaction's end (`xact.h`, xl_xact_commit) says what others must forget of catalogs.
fn commits_catalog_changes(info: u8, data: &[u8]) -> bool {
    let info = u32::from(info);
    let is_commit = [pg_sys::XLOG_XACT_COMMIT, pg_sys::XLOG_XACT_COMMIT_PREPARED]
        .contains(&(info & pg_sys::XLOG_XACT_OPMASK));
    let flags = data.get(size_of::<pg_sys::TimestampTz>()..).and_then(<[u8]>::first_chunk);
    is_commit
        && info & pg_sys::XLOG_XACT_HAS_INFO != 0
        && flags.is_some_and(|flags| u32::from_ne_bytes(*flags) & pg_sys::XACT_XINFO_HAS_INVALS != 0)
}
