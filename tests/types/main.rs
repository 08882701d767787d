//! Values of every type arrive as `to_json` writes them.

mod kind;
mod random;
mod values;

use harness::{Stage, compare_records};

/// What `tests/types.sql` makes, but for what it alters when rows are in: events have what there was at their time, the
/// table has not.
fn everything() -> String {
    let types = include_str!("../types.sql");
    let (before, altered) = types.split_once("ALTER TYPE altered").expect("types that are altered");
    let (_, after) = altered.split_once("CREATE EXTENSION").expect("extensions");
    format!("{before} CREATE EXTENSION {after}")
}

#[test]
fn records_are_what_to_json_makes_of_the_row() {
    let stage = Stage::set();
    stage.psql(&(everything() + include_str!("../types_utf8.sql")));
    let compared = compare_records(&stage, &stage.delivered(&stage.receiver, "all"));
    assert!(compared > 600, "{compared} values compared");
}
