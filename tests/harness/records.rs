//! Events held against the rows that they tell of.

use std::collections::HashMap;

use serde_json::{Map, Value};

use crate::{Database, Event, json};

/// Holds the record of each insert, into tables that have a column `id`, against what `to_json` makes of the row under UTC,
/// numbers by their digits. Returns how many values that were.
#[track_caller]
pub fn compare_records(database: &Database, events: &[Event]) -> usize {
    let mut tables: HashMap<String, HashMap<String, Map<String, Value>>> = HashMap::new();
    let mut compared = 0;
    for event in events.iter().filter(|event| event["action"] == "insert") {
        let (table, id) = (event.text("table"), event["record"]["id"].to_string());
        let rows =
            tables.entry(table.clone()).or_insert_with(|| rows(database, &event.text("schema"), &table));
        let row = rows.get(&id).unwrap_or_else(|| panic!("{table} has no row {id}"));
        for (column, value) in row {
            assert_eq!(&event["record"][column], value, "{table}.{column} of id {id}");
        }
        assert_eq!(event["record"].as_object().map(Map::len), Some(row.len()), "{}", event.whole);
        compared += row.values().filter(|value| !value.is_null()).count();
    }
    compared
}

/// The script that makes tables of all types, with rows in them (`tests/types.sql`), but for what it alters when rows are in:
/// events have what there was at their time, the table has not.
pub fn types() -> String {
    let types = include_str!("../types.sql");
    let (before, altered) = types.split_once("ALTER TYPE altered").expect("types that are altered");
    let (_, after) = altered.split_once("CREATE EXTENSION").expect("extensions");
    let since_19 = if crate::Server::get().major() >= 19 {
        "CREATE TABLE since_19 (id int PRIMARY KEY, c_oid8 oid8, c_regdatabase regdatabase);
         INSERT INTO since_19 VALUES (1, '0', 'postgres'), (2, '18446744073709551615', '4294967295');"
    } else {
        ""
    };
    format!("{before} CREATE EXTENSION {after}; {since_19}")
}

/// A table's rows by their id.
#[track_caller]
fn rows(database: &Database, schema: &str, table: &str) -> HashMap<String, Map<String, Value>> {
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let sql = format!(
        "SET TimeZone = 'UTC'; SELECT to_json(whole_row) FROM {}.{} whole_row",
        quoted(schema),
        quoted(table)
    );
    let rows = database.column(&sql).into_iter().map(|text| match json(&text) {
        Ok(Value::Object(row)) => (row["id"].to_string(), row),
        other => panic!("{other:?} in {text}"),
    });
    rows.collect()
}
