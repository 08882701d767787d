//! A row is shown as its table was defined when it changed.

use harness::Stage;
use serde_json::json;

#[test]
fn columns_are_as_they_were_when_the_row_changed() {
    let stage = Stage::set();
    let events = stage.events_of(&[
        "CREATE TABLE t (gone int, id int PRIMARY KEY, a text)",
        "INSERT INTO t VALUES (0, 1, 'one')",
        "ALTER TABLE t DROP COLUMN gone",
        "INSERT INTO t VALUES (2, 'two')",
        "ALTER TABLE t ADD COLUMN b int DEFAULT 7",
        "UPDATE t SET a = 'uno' WHERE id = 1",
        "ALTER TABLE t RENAME COLUMN a TO c",
        "INSERT INTO t VALUES (3, 'three', 8)",
        "BEGIN; INSERT INTO t VALUES (4, 'four', 9); ALTER TABLE t RENAME TO u; INSERT INTO u VALUES (5, 'five', 9); COMMIT",
    ]);
    let records: Vec<_> = events
        .iter()
        .filter(|event| event["table"] == "t" || event["table"] == "u")
        .map(|e| &e["record"])
        .collect();
    assert_eq!(
        records,
        [
            &json!({"gone": 0, "id": 1, "a": "one"}),
            &json!({"id": 2, "a": "two"}),
            &json!({"id": 1, "a": "uno", "b": 7}),
            &json!({"id": 3, "c": "three", "b": 8}),
            &json!({"id": 4, "c": "four", "b": 9}),
            &json!({"id": 5, "c": "five", "b": 9}),
        ]
    );
    assert_eq!(events.last().unwrap()["table"], "u");
}

#[test]
fn a_rewritten_table_sends_its_rows_no_second_time() {
    let stage = Stage::set();
    let events = stage.events_of(&[
        "CREATE TABLE t (id int PRIMARY KEY, n int)",
        "INSERT INTO t VALUES (1, 1)",
        "ALTER TABLE t ALTER COLUMN n TYPE text",
        "VACUUM FULL t",
        "CREATE MATERIALIZED VIEW v AS SELECT * FROM t",
        "REFRESH MATERIALIZED VIEW v",
        "INSERT INTO t VALUES (2, 'two')",
    ]);
    let records: Vec<_> = events.iter().map(|event| &event["record"]).collect();
    assert_eq!(records, [&json!({"id": 1, "n": 1}), &json!({"id": 2, "n": "two"})]);
}

#[test]
fn generated_columns_are_sent_as_far_as_wal_has_them() {
    let stage = Stage::set();
    stage.sql("CREATE TABLE t (id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) STORED)");
    let event = stage.event_of("INSERT INTO t (id, n) VALUES (1, 21)");
    assert_eq!(event["record"], json!({"id": 1, "n": 21, "twice": 42}));
    if harness::Server::get().major() >= 18 {
        stage
            .sql("CREATE TABLE v (id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) VIRTUAL)");
        let event = stage.event_of("INSERT INTO v (id, n) VALUES (1, 21)");
        assert_eq!(event["record"], json!({"id": 1, "n": 21}), "never computed, never wrong");
    }
}
