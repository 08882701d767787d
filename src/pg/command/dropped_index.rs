//! Which table an index was of, and which tables a partition or child was a part of: when an event trigger hears that it was
//! dropped, the catalogs don't know any more.

use std::cell::RefCell;

use pgrx::{pg_guard, pg_sys};

use crate::pg::lineage;

thread_local! {
    /// Indexes that the present transaction has dropped, each with its table.
    static INDEXES: RefCell<Vec<(pg_sys::Oid, pg_sys::Oid)>> = const { RefCell::new(Vec::new()) };
    /// Partitions and children that the present transaction has dropped, each with the tables above it.
    static PARTS: RefCell<Vec<(pg_sys::Oid, Vec<pg_sys::Oid>)>> = const { RefCell::new(Vec::new()) };
}

/// Takes note of a relation that is about to be dropped, if it is an index or a part of another table.
///
/// # Safety
/// Called from the hook of object access; an ERROR passes through as such.
#[pg_guard]
pub unsafe extern "C-unwind" fn relation(oid: pg_sys::Oid) {
    // SAFETY: syscache look-ups in a transaction.
    let table = unsafe {
        let kind = pg_sys::get_rel_relkind(oid) as u8;
        if matches!(
            kind,
            pg_sys::RELKIND_RELATION | pg_sys::RELKIND_PARTITIONED_TABLE | pg_sys::RELKIND_FOREIGN_TABLE
        ) {
            let above = lineage::ancestors(oid);
            if !above.is_empty() {
                PARTS.with_borrow_mut(|parts| parts.push((oid, above)));
            }
            return;
        }
        if kind != pg_sys::RELKIND_INDEX && kind != pg_sys::RELKIND_PARTITIONED_INDEX {
            return;
        }
        pg_sys::IndexGetRelation(oid, true)
    };
    if table != pg_sys::InvalidOid {
        INDEXES.with_borrow_mut(|indexes| indexes.push((oid, table)));
    }
}

/// The table that a dropped index was of.
pub fn table_of_index(index: pg_sys::Oid) -> Option<pg_sys::Oid> {
    INDEXES.with_borrow(|indexes| {
        indexes.iter().rev().find(|(dropped, _)| *dropped == index).map(|(_, table)| *table)
    })
}

/// The tables that a dropped table was a part of.
pub fn tables_above(part: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    PARTS.with_borrow(|parts| {
        let found = parts.iter().rev().find(|(dropped, _)| *dropped == part);
        found.map(|(_, above)| above.clone()).unwrap_or_default()
    })
}

/// The transaction has ended.
pub fn forget() {
    PARTS.with_borrow_mut(|parts| {
        if !parts.is_empty() {
            *parts = Vec::new();
        }
    });
    INDEXES.with_borrow_mut(|indexes| {
        if !indexes.is_empty() {
            *indexes = Vec::new();
        }
    });
}
