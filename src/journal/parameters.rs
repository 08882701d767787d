//! Parameters of statements that write to the journal.

use pgrx::datum::DatumWithOid;
use pgrx::pg_sys;

use crate::event::{Lsn, Timestamp};
use crate::pg::values::encoding::encoded;

/// A text that came from outside, as a value of type `text`.
pub(crate) fn text<'a>(text: Option<&str>) -> DatumWithOid<'a> {
    match text {
        // SAFETY: a text is laid out as a bytea is, and holds what the database's encoding has.
        Some(text) => unsafe { DatumWithOid::new(encoded(text), pg_sys::TEXTOID) },
        None => DatumWithOid::null_oid(pg_sys::TEXTOID),
    }
}

/// SQL counts on the other side of 0 what is beyond 2^63, which nothing reaches.
pub(crate) fn number<'a>(number: u64) -> DatumWithOid<'a> {
    (number as i64).into()
}

pub(crate) fn lsn<'a>(lsn: Lsn) -> DatumWithOid<'a> {
    // SAFETY: a pg_lsn is a 64 bit number, passed by value as a bigint is.
    unsafe { DatumWithOid::new(lsn.0 as i64, pg_sys::PG_LSNOID) }
}

pub(crate) fn time<'a>(time: Timestamp) -> DatumWithOid<'a> {
    // SAFETY: a timestamptz is a 64 bit number, passed by value as a bigint is.
    unsafe { DatumWithOid::new(time.0, pg_sys::TIMESTAMPTZOID) }
}
