//! The extension's tables and indexes by name.

use std::ffi::CStr;

use pgrx::pg_sys;

/// The schema that people use.
const PUBLIC_SCHEMA: &CStr = c"pgwh";
/// The schema of what only the extension uses.
const INTERNAL_SCHEMA: &CStr = c"pgwh_internal";

/// The oid of one of the extension's tables or indexes, in whichever of its schemas it is; the invalid oid when there is none. Inside a
/// transaction.
pub fn oid_of(table: &CStr) -> pg_sys::Oid {
    let oid_in = |schema: &CStr| {
        // SAFETY: syscache look-ups inside a transaction; in a schema that does not exist there is no table.
        unsafe { pg_sys::get_relname_relid(table.as_ptr(), pg_sys::get_namespace_oid(schema.as_ptr(), true)) }
    };
    match oid_in(INTERNAL_SCHEMA) {
        pg_sys::InvalidOid => oid_in(PUBLIC_SCHEMA),
        oid => oid,
    }
}
