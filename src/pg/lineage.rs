//! Partitions and children by INHERITS: the tables above a table, and their names.

use std::ffi::CStr;

use pgrx::pg_sys::{self, Oid};

use crate::event::TableName;
use crate::pg::compat;
use crate::pg::values::encoding;

/// The tables above a table, partitioned ones or parents by INHERITS, each behind all that are below it. Inside a
/// transaction.
pub fn ancestors(table: Oid) -> Vec<Oid> {
    if is_partition(table) {
        // SAFETY: a catalog look-up, of a partition.
        return unsafe { compat::partition_ancestors(table) };
    }
    let mut known = Vec::new();
    add_ancestors(table, &mut known);
    // The table is known last.
    known.pop();
    known.reverse();
    known
}

/// Whether it is a partition, so that rows may move from it to others. Inside a transaction.
pub fn is_partition(table: Oid) -> bool {
    // SAFETY: a syscache look-up.
    unsafe { pg_sys::get_rel_relispartition(table) }
}

/// Adds a table behind all that are above it.
fn add_ancestors(table: Oid, known: &mut Vec<Oid>) {
    // SAFETY: catalog look-ups.
    let parents = unsafe { compat::parents(table) };
    for parent in parents {
        if !known.contains(&parent) {
            add_ancestors(parent, known);
        }
    }
    known.push(table);
}

/// The name of a table; empty when it is not there. Inside a transaction.
pub fn name_of(table: Oid) -> TableName {
    // SAFETY: syscache look-ups, whose results are copies or null.
    unsafe {
        let schema = pg_sys::get_namespace_name(pg_sys::get_rel_namespace(table));
        TableName { schema: utf8(schema), table: utf8(pg_sys::get_rel_name(table)) }
    }
}

/// Whether it is a table of a user's: neither a member of an extension nor in the schema of one, nor in a schema of the
/// system's. Inside a transaction.
pub fn is_user_table(table: Oid) -> bool {
    // SAFETY: catalog look-ups, which take what is missing for no member.
    unsafe {
        let schema = pg_sys::get_rel_namespace(table);
        let is_member = |class, object| pg_sys::getExtensionOfObject(class, object) != Oid::INVALID;
        !is_system_schema(schema)
            && !is_member(pg_sys::RelationRelationId, table)
            && !is_member(pg_sys::NamespaceRelationId, schema)
    }
}

/// # Safety
/// A transaction is in progress.
unsafe fn is_system_schema(schema: Oid) -> bool {
    let is_of_bootstrap =
        [pg_sys::PG_CATALOG_NAMESPACE, pg_sys::PG_TOAST_NAMESPACE].contains(&schema.to_u32());
    // SAFETY: as the caller promises.
    is_of_bootstrap || unsafe { utf8(pg_sys::get_namespace_name(schema)) == "information_schema" }
}

/// # Safety
/// `name` is null or a C string in the encoding of the database.
unsafe fn utf8(name: *const std::ffi::c_char) -> String {
    if name.is_null() {
        return String::new();
    }
    // SAFETY: as the caller promises.
    unsafe { encoding::utf8(CStr::from_ptr(name).to_bytes()).into_owned() }
}
