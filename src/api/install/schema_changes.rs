//! What the event triggers that note changes of the schema cannot find out by SQL.

use pgrx::prelude::*;

use crate::pg::command::{current_statement, dropped_index, former_names};
use crate::pg::compat;
use crate::pg::lineage;
use crate::pg::values::encoding::Text;

/// The text of the command that runs, in the encoding of the database.
#[pg_extern(sql = false)]
fn running_command() -> Option<Vec<u8>> {
    current_statement::running()
}

/// The table of an index that the present transaction has dropped.
#[pg_extern(sql = false)]
fn table_of_dropped_index(index: pg_sys::Oid) -> Option<pg_sys::Oid> {
    dropped_index::table_of_index(index)
}

/// The tables that a table was a part of that the present transaction has dropped.
#[pg_extern(sql = false)]
fn tables_above_dropped(table: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    dropped_index::tables_above(table)
}

/// The name that something had before the running command.
#[pg_extern(sql = false)]
fn former_name() -> TableIterator<'static, (name!(schema, Text), name!(relation, Option<Text>))> {
    let rows = former_names::name().map(|name| (Text::from(name.schema), name.relation.map(Text::from)));
    TableIterator::new(rows)
}

/// The tables that the running command parts from its own.
#[pg_extern(sql = false)]
fn parted_tables() -> Vec<pg_sys::Oid> {
    former_names::tables()
}

/// The tables above a table, the topmost last.
#[pg_extern(sql = false)]
fn tables_above(table: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    lineage::ancestors(table)
}

/// The partitions of a table, and its children by INHERITS, at all levels.
#[pg_extern(sql = false)]
fn tables_below(table: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    // SAFETY: a query runs, so a transaction is in progress; a relation that is not there has no kind.
    let mut tree = unsafe {
        if pg_sys::get_rel_relkind(table) == 0 {
            return Vec::new();
        }
        compat::partition_tree(table)
    };
    tree.retain(|other| *other != table);
    tree
}
