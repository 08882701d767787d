//! Children by INHERITS are shown as the tables that their subscriptions name, as partitions are.

use harness::{Event, Stage, what};
use serde_json::json;

/// A parent, a child and a child of that.
fn stage() -> Stage {
    let stage = Stage::set();
    stage.each(&[
        "CREATE TABLE log (id int PRIMARY KEY, note text)",
        "CREATE TABLE log_a (PRIMARY KEY (id)) INHERITS (log)",
        "CREATE TABLE log_a_1 (extra int, PRIMARY KEY (id)) INHERITS (log_a)",
    ]);
    stage
}

fn subscribe(stage: &Stage, name: &str, tables: &str) {
    stage.subscribe(&stage.receiver, name, &format!("tables => '{{{tables}}}'"));
}

#[test]
fn a_parent_stands_for_its_children_at_all_levels() {
    let stage = stage();
    for (name, tables) in [("top", "public.log"), ("middle", "public.log_a"), ("leaf", "public.log_a_1")] {
        subscribe(&stage, name, tables);
    }
    let events = stage.events_of(&[
        "INSERT INTO log VALUES (1, 'log')",
        "INSERT INTO log_a VALUES (2, 'a')",
        "INSERT INTO log_a_1 VALUES (3, 'a_1', 9)",
        "UPDATE log SET note = 'b' WHERE id = 3",
        "DELETE FROM log WHERE id = 2",
    ]);
    let top = ["insert", "insert", "insert", "update", "delete"].map(|action| format!("public.log {action}"));
    assert_eq!(what(&events), top, "each change once, under the topmost name");
    assert_eq!(events[2]["record"], json!({"id": 3, "note": "a_1", "extra": 9}));
    assert_eq!(what(&stage.got("top")), top);
    let middle = ["insert", "insert", "update", "delete"].map(|action| format!("public.log_a {action}"));
    assert_eq!(what(&stage.got("middle")), middle);
    assert_eq!(what(&stage.got("leaf")), ["public.log_a_1 insert", "public.log_a_1 update"]);
}

#[test]
fn inherit_and_no_inherit_take_effect_at_their_place() {
    let stage = stage();
    stage.sql("CREATE TABLE top (id int)");
    subscribe(&stage, "top", "public.top, public.log");
    stage.each(&[
        "INSERT INTO log_a_1 VALUES (1)",
        "ALTER TABLE log_a NO INHERIT log",
        "INSERT INTO log_a_1 VALUES (2)",
        "BEGIN; ALTER TABLE log_a INHERIT log; INSERT INTO log_a_1 VALUES (3); COMMIT",
        "ALTER TABLE log INHERIT top",
        "INSERT INTO log_a_1 VALUES (4)",
        "DROP TABLE log_a_1",
        "INSERT INTO log_a VALUES (5)",
    ]);
    let expected = ["public.log insert", "public.log insert", "public.top insert", "public.top insert"];
    assert_eq!(what(&stage.got("top")), expected);
}

#[test]
fn of_several_parents_the_first_ones_line_names_the_change() {
    let stage = Stage::set();
    stage.sql(
        "CREATE TABLE root (id int); CREATE TABLE first () INHERITS (root); CREATE TABLE second (id int);
         CREATE TABLE child () INHERITS (first, second)",
    );
    for name in ["root", "first", "second"] {
        subscribe(&stage, name, &format!("public.{name}"));
    }
    let events = stage.events_of(&["INSERT INTO child VALUES (1)"]);
    assert_eq!(what(&events), ["public.root insert"]);
    for name in ["root", "first", "second"] {
        assert_eq!(what(&stage.got(name)), [format!("public.{name} insert")]);
    }
}

#[test]
fn a_truncate_of_a_parent_is_one_event() {
    let stage = stage();
    for (name, tables) in [("top", "public.log"), ("middle", "public.log_a")] {
        subscribe(&stage, name, tables);
    }
    stage.each(&["TRUNCATE log", "TRUNCATE log_a", "TRUNCATE ONLY log_a"]);
    // As a partition's, the truncate of a child bears its own name.
    let children = ["public.log_a truncate", "public.log_a_1 truncate", "public.log_a truncate"];
    let top: Vec<&str> = ["public.log truncate"].into_iter().chain(children).collect();
    assert_eq!(what(&stage.got("top")), top);
    assert_eq!(what(&stage.got("middle")), ["public.log_a truncate"; 3]);
}

#[test]
fn a_row_that_is_moved_to_a_child_stays_in_order() {
    let stage = stage();
    stage.sql("UPDATE pgwh.subscriptions SET ordering = 'key', max_in_flight = 8");
    let mut statements = vec!["INSERT INTO log VALUES (1)".to_owned()];
    for n in 0..10 {
        let (from, to) = if n % 2 == 0 { ("log", "log_a") } else { ("log_a", "log") };
        statements.push(format!("DELETE FROM ONLY {from}; INSERT INTO {to} VALUES (1, '{n}')"));
    }
    stage.psql(&statements.join(";"));
    let came = stage.delivered(&stage.receiver, "all");
    let places: Vec<_> = came.iter().map(Event::place).collect();
    assert_eq!(came.len(), 21);
    assert!(places.is_sorted(), "{:?}", what(&came));
}

#[test]
fn who_may_read_the_parent_gets_of_children_what_it_shows() {
    let stage = stage();
    stage.sql("CREATE ROLE app LOGIN; GRANT USAGE ON SCHEMA pgwh TO app; GRANT SELECT ON log TO app");
    stage.subscribe(
        &stage.receiver,
        "some",
        "tables => '{public.log}', columns => '{note}', event_types => '{I}'",
    );
    stage.sql("UPDATE pgwh.subscriptions SET owner = 'app' WHERE name = 'some'");
    stage.each(&["INSERT INTO log_a VALUES (1, 'a')", "INSERT INTO log_a_1 VALUES (2, 'b', 9)"]);
    let records: Vec<_> = stage.got("some").iter().map(|event| event["record"].clone()).collect();
    assert_eq!(records, [json!({"id": 1, "note": "a"}), json!({"id": 2, "note": "b"})]);
    // What the parent does not show is not shown through it.
    let refusal = stage.refused("UPDATE pgwh.subscriptions SET columns = NULL WHERE name = 'some'");
    assert_eq!(refusal.code, "42501");
    assert!(refusal.detail.contains("extra") && refusal.detail.contains("log_a_1"), "{refusal:?}");
    stage.each(&["REVOKE SELECT ON log FROM app", "INSERT INTO log_a VALUES (3, 'c')"]);
    assert_eq!(stage.got("some").len(), 2);
}

#[test]
fn a_backfill_of_a_parent_reads_each_row_of_its_children_once() {
    let stage = stage();
    // Rows of the same key that are not the same row.
    stage.sql(
        "INSERT INTO log SELECT n, 'log' FROM generate_series(1, 300) n;
         INSERT INTO log_a SELECT n, 'a' FROM generate_series(1, 300) n;
         INSERT INTO log_a_1 SELECT n, 'a_1', n FROM generate_series(1, 300) n",
    );
    subscribe(&stage, "top", "public.log");
    stage.sql("SELECT pgwh.backfill('top', chunk_size => 50)");
    // A live change of one is none of another with the same key.
    stage.each(&["UPDATE ONLY log_a SET note = 'changed' WHERE id > 100"]);
    stage.wait_true("SELECT state = 'done' AND tables_total = 3 FROM pgwh.backfills");
    let (mut rows, mut read) = (std::collections::BTreeMap::new(), std::collections::BTreeSet::new());
    for event in stage.got("top") {
        assert_eq!(event["table"], "log");
        let note = event["record"]["note"].as_str().unwrap().to_owned();
        let id = event["record"]["id"].as_i64().unwrap();
        let table = if note == "changed" { "a".to_owned() } else { note.clone() };
        let extra = event["record"].get("extra").is_some();
        assert_eq!(extra, table == "a_1");
        if event["action"] == "read" {
            assert!(read.insert((table.clone(), id)), "read twice: {}", event.whole);
        }
        rows.insert((table, id), note);
    }
    assert_eq!(rows.len(), 900);
    let changed = rows.values().filter(|note| *note == "changed").count();
    assert_eq!(changed, 200);
}
