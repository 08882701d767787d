//! What the event triggers that note changes of the schema can't find out by SQL.

use pgrx::prelude::*;

use crate::worker::{dropped, statement};

/// The text of the command that runs, in the encoding of the database.
#[pg_extern(sql = false)]
fn running_command() -> Option<Vec<u8>> {
    statement::running()
}

/// The table of an index that the present transaction has dropped.
#[pg_extern(sql = false)]
fn table_of_dropped_index(index: pg_sys::Oid) -> Option<pg_sys::Oid> {
    dropped::table_of_index(index)
}
