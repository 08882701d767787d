//! Which table an index was of: when an event trigger hears that it was dropped, the catalogs don't know any more.

use std::cell::RefCell;

use pgrx::{pg_guard, pg_sys};

thread_local! {
    /// Indexes that the present transaction has dropped, each with its table.
    static INDEXES: RefCell<Vec<(pg_sys::Oid, pg_sys::Oid)>> = const { RefCell::new(Vec::new()) };
}

/// Takes note of a relation that is about to be dropped, if it is an index.
///
/// # Safety
/// Called from the hook of object access; an ERROR passes through as such.
#[pg_guard]
pub unsafe extern "C-unwind" fn relation(oid: pg_sys::Oid) {
    // SAFETY: syscache look-ups in a transaction.
    let table = unsafe {
        let kind = pg_sys::get_rel_relkind(oid) as u8;
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

/// The transaction has ended.
pub fn forget() {
    INDEXES.with_borrow_mut(|indexes| {
        if !indexes.is_empty() {
            *indexes = Vec::new();
        }
    });
}
