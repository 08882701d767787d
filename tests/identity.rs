//! What is known of the row before a change, and which key tells it, is what the table's replica identity says.

use harness::Stage;
use serde_json::{Value, json};

#[test]
fn replica_identity_decides_what_is_known_of_the_old_row() {
    let stage = Stage::set();
    stage.sql(
        "CREATE TABLE by_key (id int PRIMARY KEY, code int NOT NULL UNIQUE, note text);
         CREATE TABLE by_index (LIKE by_key INCLUDING ALL);
         ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_code_key;
         CREATE TABLE by_all (LIKE by_key INCLUDING ALL);
         ALTER TABLE by_all REPLICA IDENTITY FULL;
         CREATE TABLE by_nothing (LIKE by_key INCLUDING ALL);
         ALTER TABLE by_nothing REPLICA IDENTITY NOTHING",
    );
    for table in ["by_key", "by_index", "by_all", "by_nothing"] {
        stage.sql(&format!("INSERT INTO {table} VALUES (1, 10, 'a')"));
    }
    let changed = |table: &str, set: &str| stage.event_of(&format!("UPDATE {table} SET {set}"));

    let event = changed("by_key", "note = 'b'");
    assert_eq!((&event["key"], &event["old_key"]), (&json!({"id": 1}), &Value::Null));
    let event = changed("by_key", "id = 2");
    assert_eq!((&event["key"], &event["old_key"]), (&json!({"id": 2}), &json!({"id": 1})));
    assert_eq!(event["changes"], json!({"id": 1}));
    assert_eq!(stage.event_of("DELETE FROM by_key")["record"], json!({"id": 2}));

    let event = changed("by_index", "code = 20");
    assert_eq!((&event["key"], &event["old_key"]), (&json!({"code": 20}), &json!({"code": 10})));
    assert_eq!(stage.event_of("DELETE FROM by_index")["record"], json!({"code": 20}));

    let event = changed("by_all", "note = NULL");
    assert_eq!(event["changes"], json!({"note": "a"}));
    let event = changed("by_all", "note = note");
    assert_eq!(event["changes"], json!({}), "known, and nothing changed");
    let event = changed("by_all", "id = 2, code = 20");
    assert_eq!(event["changes"], json!({"id": 1, "code": 10}));
    let event = stage.event_of("DELETE FROM by_all");
    assert_eq!(event["record"], json!({"id": 2, "code": 20, "note": null}));

    let event = changed("by_nothing", "note = 'b'");
    assert_eq!(event["record"], json!({"id": 1, "code": 10, "note": "b"}));
    assert_eq!(event["changes"], Value::Null);
}

#[test]
fn a_table_without_a_key_is_sent_all_the_same() {
    let stage = Stage::set();
    stage.sql("CREATE TABLE loose (a int, b text)");
    let event = stage.event_of("INSERT INTO loose VALUES (1, 'x')");
    assert_eq!((&event["key"], &event["record"]), (&Value::Null, &json!({"a": 1, "b": "x"})));
    let event = stage.event_of("UPDATE loose SET b = 'y'");
    assert_eq!(event["record"], json!({"a": 1, "b": "y"}));
    assert_eq!(stage.event_of("DELETE FROM loose")["action"], "delete");
    stage.sql("ALTER TABLE loose REPLICA IDENTITY FULL; INSERT INTO loose VALUES (2, 'z')");
    assert_eq!(stage.event_of("DELETE FROM loose")["record"], json!({"a": 2, "b": "z"}));
}
