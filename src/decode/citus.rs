//! Tables of Citus: their rows are on other nodes, and the log of this one has none of their changes.

use std::ffi::CStr;

use pgrx::pg_sys::{self, Oid};
use pgrx::spi::{self, Spi};

/// The catalog in which Citus keeps which tables are its own.
const CATALOG: &CStr = c"pg_dist_partition";

/// Why such a table cannot be read from here.
pub const ELSEWHERE: &str =
    "the table is in the catalogs of Citus (pg_dist_partition), so its rows are on other nodes";

/// Whether Citus has the table in its catalogs. Inside a transaction.
///
/// # Errors
///
/// When the catalog cannot be read.
pub fn has(table: Oid) -> spi::Result<bool> {
    if !is_here() {
        return Ok(false);
    }
    const QUERY: &str = "SELECT EXISTS (SELECT FROM pg_catalog.pg_dist_partition d
        WHERE d.logicalrelid OPERATOR(pg_catalog.=) $1)";
    let found =
        Spi::connect(|client| client.select(QUERY, Some(1), &[table.into()])?.first().get_one::<bool>());
    Ok(found?.unwrap_or_default())
}

/// All tables that Citus has in its catalogs. Inside a transaction.
///
/// # Errors
///
/// When the catalog cannot be read.
pub fn tables() -> spi::Result<Vec<Oid>> {
    if !is_here() {
        return Ok(Vec::new());
    }
    const QUERY: &str =
        "SELECT pg_catalog.array_agg(d.logicalrelid::pg_catalog.oid) FROM pg_catalog.pg_dist_partition d";
    let found = Spi::connect(|client| client.select(QUERY, Some(1), &[])?.first().get_one::<Vec<Oid>>());
    Ok(found?.unwrap_or_default())
}

fn is_here() -> bool {
    let schema = Oid::from(pg_sys::PG_CATALOG_NAMESPACE);
    // SAFETY: a syscache look-up of a terminated name, inside a transaction.
    unsafe { pg_sys::get_relname_relid(CATALOG.as_ptr(), schema) != Oid::INVALID }
}
