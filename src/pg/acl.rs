//! What of a table a role may read: as the catalogs have it now or, within decoding, as of the change.

use std::collections::BTreeSet;
use std::ffi::CStr;

use pgrx::pg_sys::{self, Oid};

use super::compat;
use super::values::encoding;
use crate::pg::lineage;

/// What a role may read of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// All of it.
    All,
    /// These columns, by number, of every row.
    Columns(BTreeSet<i16>),
    /// Nothing, or not every row.
    Nothing(Lack),
}

/// What a role lacks to read a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// There is no such role.
    Role,
    /// USAGE of its schema.
    Schema,
    /// SELECT on it.
    Select,
    /// Row-level security shows it some rows only.
    RowSecurity,
}

/// The role of that name, or the invalid oid. Inside a transaction.
pub fn role_of(name: &str) -> Oid {
    let name = encoding::in_server_encoding(name);
    // SAFETY: a syscache look-up by a C string.
    unsafe { pg_sys::get_role_oid(name.as_ptr(), true) }
}

/// Whether the role may do everything; one that is not there may not. Inside a transaction.
pub fn is_superuser(role: Oid) -> bool {
    // SAFETY: a syscache look-up.
    role != pg_sys::InvalidOid && unsafe { pg_sys::superuser_arg(role) }
}

/// Whether there is a table of that oid. Inside a transaction.
pub fn exists(table: Oid) -> bool {
    // SAFETY: a syscache look-up.
    unsafe { pg_sys::get_rel_relkind(table) != 0 }
}

/// What the role may read of the table. Who may read a partitioned table, or a parent by INHERITS, may read what is below
/// through it. Inside a transaction; of a table that is not there, nothing.
pub fn of(table: Oid, role: Oid) -> Access {
    if role == Oid::INVALID {
        return Access::Nothing(Lack::Role);
    }
    // SAFETY: syscache look-ups; a table that is not there has no ancestors.
    unsafe {
        if pg_sys::superuser_arg(role) && exists(table) {
            return Access::All;
        }
        let mut best = itself(table, role);
        if best == Access::All {
            return best;
        }
        let has_same_columns = lineage::is_partition(table);
        for ancestor in lineage::ancestors(table) {
            let above = match itself(ancestor, role) {
                // Through a parent by INHERITS its own columns are read only.
                Access::All if !has_same_columns => Access::Columns(numbers_of(ancestor).collect()),
                above => above,
            };
            best = best.or_through(table, ancestor, above);
        }
        best
    }
}

/// The names of columns of a table, by their numbers. Inside a transaction.
pub fn names_of(table: Oid, numbers: impl IntoIterator<Item = i16>) -> Vec<String> {
    let name = |number| {
        // SAFETY: a syscache look-up, whose result is a copy or null.
        unsafe {
            let name = pg_sys::get_attname(table, number, true);
            (!name.is_null()).then(|| encoding::utf8(CStr::from_ptr(name).to_bytes()).into_owned())
        }
    };
    numbers.into_iter().filter_map(name).collect()
}

/// Whether the role may read what other applications write into the log: that is for those who may read the log. Inside a
/// transaction.
pub fn may_read_log(role: Oid) -> bool {
    // SAFETY: syscache look-ups.
    role != Oid::INVALID && unsafe { pg_sys::superuser_arg(role) || pg_sys::has_rolreplication(role) }
}

impl Access {
    /// Whether it takes in these columns.
    pub fn covers(&self, columns: impl IntoIterator<Item = i16>) -> bool {
        match self {
            Access::All => true,
            Access::Columns(allowed) => columns.into_iter().all(|column| allowed.contains(&column)),
            Access::Nothing(_) => false,
        }
    }

    /// What is allowed of a partition by this or by what is allowed of a table above it, whose columns may have other
    /// numbers.
    unsafe fn or_through(self, table: Oid, ancestor: Oid, above: Access) -> Access {
        match (self, above) {
            (_, Access::All) => Access::All,
            (before, Access::Columns(above)) => {
                // SAFETY: syscache look-ups in a transaction; the name is a copy, or null.
                let here = above.into_iter().filter_map(|number| unsafe {
                    let name = pg_sys::get_attname(ancestor, number, true);
                    (!name.is_null()).then(|| pg_sys::get_attnum(table, name))
                });
                let mut columns: BTreeSet<i16> = here.filter(|number| *number > 0).collect();
                if let Access::Columns(before) = before {
                    columns.extend(before);
                }
                Access::Columns(columns)
            }
            (before, Access::Nothing(_)) => before,
        }
    }
}

/// The numbers that columns of the table have or had. Inside a transaction.
fn numbers_of(table: Oid) -> impl Iterator<Item = i16> {
    // SAFETY: a syscache look-up, whose result is a copy or null.
    (1..).take_while(move |number| unsafe { !pg_sys::get_attname(table, *number, true).is_null() })
}

/// What the role may read of the table by its own privileges, as SELECT would (`ExecCheckRTEPerms`, execMain.c).
unsafe fn itself(table: Oid, role: Oid) -> Access {
    // SAFETY: syscache look-ups in a transaction, that take what is missing for not allowed.
    unsafe {
        let schema = pg_sys::get_rel_namespace(table);
        if schema == Oid::INVALID {
            return Access::Nothing(Lack::Select);
        }
        if !compat::may_use_schema(schema, role) {
            return Access::Nothing(Lack::Schema);
        }
        let restricted = pg_sys::CheckEnableRlsResult::RLS_ENABLED as i32;
        if pg_sys::check_enable_rls(table, role, true) == restricted {
            return Access::Nothing(Lack::RowSecurity);
        }
        let select = pg_sys::ACL_SELECT as pg_sys::AclMode;
        let is_ok = |result| result == pg_sys::AclResult::ACLCHECK_OK;
        let mut missing = false;
        if is_ok(pg_sys::pg_class_aclcheck_ext(table, role, select, &mut missing)) {
            return Access::All;
        }
        let columns: BTreeSet<i16> = numbers_of(table)
            .filter(|&number| {
                let mut missing = false;
                is_ok(pg_sys::pg_attribute_aclcheck_ext(table, number, role, select, &mut missing))
                    && !missing
            })
            .collect();
        if columns.is_empty() { Access::Nothing(Lack::Select) } else { Access::Columns(columns) }
    }
}
