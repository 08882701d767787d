//! Values of every type arrive as `to_json` writes them.

use harness::Stage;

#[test]
fn records_are_what_to_json_makes_of_the_row() {
    let stage = Stage::set();
    let types = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/types.sql")).unwrap();
    // That script alters types when their rows are in; events have what there was at their time, the table has not.
    let (before, altered) = types.split_once("ALTER TYPE altered").unwrap();
    let (_, after) = altered.split_once("CREATE EXTENSION").unwrap();
    stage.psql(&format!("{before} CREATE EXTENSION {after}"));
    let events = stage.delivered(&stage.receiver, "all");
    let mut compared = 0;
    for event in events.iter().filter(|event| event["action"] == "insert" && !event["key"]["id"].is_null()) {
        let table = event.text("table");
        let row = stage.row(&format!("public.\"{table}\""), &format!("id::text = '{}'", event["key"]["id"]));
        for (column, value) in row.as_object().unwrap() {
            assert_eq!(&event["record"][column], value, "{table}.{column} of id {}", event["key"]["id"]);
            compared += 1;
        }
    }
    assert!(compared > 500, "{compared} values compared");
}
