//! The tables by whose names the rows of a relation may be sent: as the catalogs have them now or, within decoding, as of
//! the change.

use pgrx::pg_sys::Oid;

use super::router::Level;
use crate::pg::lineage::{ancestors, is_user_table, name_of};

/// The table itself, and then those above it, the topmost last. Inside a transaction; of a table that is not there, names
/// are empty.
///
/// Of several parents by INHERITS the first one's line comes last: the topmost of all is reached by first parents only.
pub fn of(table: Oid) -> Vec<Level> {
    std::iter::once(table).chain(ancestors(table)).map(level).collect()
}

/// The table as one by whose name rows may be sent. Inside a transaction.
pub fn level(table: Oid) -> Level {
    Level { oid: table.to_u32(), name: name_of(table), is_user_table: is_user_table(table) }
}
