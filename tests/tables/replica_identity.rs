//! What is known of the row before a change, and which key tells it, is what the table's replica identity says.

use std::collections::HashMap;

use harness::{Event, Receiver, Reply, Script, Stage, Which, distinct, events, what};
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

#[test]
fn an_old_key_is_whole_also_when_only_a_part_of_it_changed() {
    let stage = Stage::set();
    stage.sql(
        "CREATE TABLE t (note text, b numeric, a text, PRIMARY KEY (a, b));
         CREATE TABLE i (a int NOT NULL, note text, b int NOT NULL, c int);
         CREATE UNIQUE INDEX i_key ON i (b, a) INCLUDE (c);
         ALTER TABLE i REPLICA IDENTITY USING INDEX i_key;
         INSERT INTO t VALUES ('n', 1.0, 'x'); INSERT INTO i VALUES (1, 'n', 2, 3)",
    );
    let event = stage.event_of("UPDATE t SET a = 'y', note = 'm'");
    assert_eq!(event["key"], json!({"a": "y", "b": serde_json::from_str::<Value>("1.0").unwrap()}));
    assert_eq!(event["old_key"], json!({"a": "x", "b": serde_json::from_str::<Value>("1.0").unwrap()}));
    assert_eq!(event["changes"], json!({"a": "x"}), "of the others nothing is known");
    let event = stage.event_of("UPDATE i SET b = 7, c = 8");
    assert_eq!((&event["key"], &event["old_key"]), (&json!({"a": 1, "b": 7}), &json!({"a": 1, "b": 2})));
    assert_eq!(event["changes"], json!({"b": 2}));
    let event = stage.event_of("UPDATE i SET c = 9");
    assert_eq!(
        (&event["old_key"], &event["changes"]),
        (&Value::Null, &Value::Null),
        "an included column is no key"
    );
    assert_eq!(stage.event_of("DELETE FROM i")["record"], json!({"a": 1, "b": 7}));
}

#[test]
fn a_large_key_is_known_also_when_it_did_not_change() {
    let stage = Stage::set();
    stage.sql(
        "CREATE TABLE t (id text PRIMARY KEY, n int, doc text);
         ALTER TABLE t ALTER id SET STORAGE EXTERNAL, ALTER doc SET STORAGE EXTERNAL",
    );
    stage.event_of("INSERT INTO t VALUES (repeat('k', 2500), 1, repeat('d', 20000))");
    let key = json!({"id": "k".repeat(2500)});
    let event = stage.event_of("UPDATE t SET n = 2");
    assert_eq!((&event["key"], &event["old_key"]), (&key, &Value::Null));
    assert_eq!((&event["record"]["id"], &event["unchanged"]), (&key["id"], &json!(["doc"])));
    assert_eq!(event["changes"], Value::Null, "nothing but the key is known");
    let event = stage.event_of("UPDATE t SET id = repeat('x', 2500)");
    assert_eq!((&event["key"]["id"], &event["old_key"]), (&json!("x".repeat(2500)), &key));
    assert_eq!(stage.event_of("DELETE FROM t")["key"], json!({"id": "x".repeat(2500)}));
}

#[test]
fn without_an_identity_what_is_known_is_sent() {
    let stage = Stage::set();
    stage.sql(
        "CREATE TABLE loose (a int, b text);
         CREATE TABLE nothing (id int PRIMARY KEY, b text); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
         CREATE TABLE lost (id int PRIMARY KEY, code int NOT NULL, b text); CREATE UNIQUE INDEX gone ON lost (code);
         ALTER TABLE lost REPLICA IDENTITY USING INDEX gone; DROP INDEX gone",
    );
    let none = (&Value::Null, &Value::Null, &Value::Null);
    let told = |event: &Event| (event["key"].clone(), event["changes"].clone(), event["old_key"].clone());
    let same = |event: &Event| told(event) == (none.0.clone(), none.1.clone(), none.2.clone());
    for (table, row, key) in [
        ("loose", json!({"a": 1, "b": "x"}), Value::Null),
        ("nothing", json!({"id": 1, "b": "x"}), json!({"id": 1})),
        ("lost", json!({"id": 1, "code": 1, "b": "x"}), Value::Null),
    ] {
        let columns = if table == "lost" { "1, 1, 'x'" } else { "1, 'x'" };
        let event = stage.event_of(&format!("INSERT INTO {table} VALUES ({columns})"));
        assert_eq!((&event["record"], &event["key"]), (&row, &key), "{table}");
        let event = stage.event_of(&format!("UPDATE {table} SET b = 'y'"));
        let mut updated = row.clone();
        updated["b"] = json!("y");
        assert_eq!((&event["record"], &event["key"]), (&updated, &key), "{table}");
        assert_eq!((&event["changes"], &event["old_key"]), (&Value::Null, &Value::Null), "{table}");
        let event = stage.event_of(&format!("DELETE FROM {table}"));
        assert!(same(&event), "{}", event.whole);
        assert_eq!(event["record"], json!({}), "{table}");
    }
    // Several rows in one statement are several events.
    stage.sql("INSERT INTO loose SELECT n, 'z' FROM generate_series(1, 5) n");
    assert_eq!(stage.events_of(&["UPDATE loose SET b = 'w'"]).len(), 5);
    assert_eq!(stage.events_of(&["DELETE FROM loose"]).len(), 5);
}

#[test]
fn an_identity_holds_from_where_it_was_changed_on() {
    let stage = Stage::set();
    stage.sql(
        "CREATE TABLE t (id int PRIMARY KEY, code int NOT NULL, note text); CREATE UNIQUE INDEX by_code ON t (code);
         INSERT INTO t SELECT n, n * 10, 'a' FROM generate_series(1, 9) n",
    );
    let events = stage.events_of(&[
        "UPDATE t SET note = 'b' WHERE id = 1",
        "BEGIN; UPDATE t SET note = 'c' WHERE id = 1; ALTER TABLE t REPLICA IDENTITY FULL;
           UPDATE t SET note = 'd' WHERE id = 1; ALTER TABLE t REPLICA IDENTITY USING INDEX by_code;
           UPDATE t SET id = 101 WHERE id = 1; DELETE FROM t WHERE id = 101; COMMIT",
        "ALTER TABLE t REPLICA IDENTITY NOTHING",
        "DELETE FROM t WHERE id = 2",
        "ALTER TABLE t REPLICA IDENTITY DEFAULT",
        "DELETE FROM t WHERE id = 3",
        "BEGIN; SAVEPOINT s; ALTER TABLE t REPLICA IDENTITY FULL; ROLLBACK TO s; DELETE FROM t WHERE id = 4; COMMIT",
        "ALTER TABLE t DROP CONSTRAINT t_pkey",
        "DELETE FROM t WHERE id = 5",
        "ALTER TABLE t REPLICA IDENTITY FULL",
        "UPDATE t SET note = 'z' WHERE id = 6",
    ]);
    let told: Vec<_> =
        events.iter().map(|event| json!([event["key"], event["record"], event["changes"]])).collect();
    assert_eq!(
        told,
        [
            json!([{"id": 1}, {"id": 1, "code": 10, "note": "b"}, null]),
            json!([{"id": 1}, {"id": 1, "code": 10, "note": "c"}, null]),
            json!([{"id": 1}, {"id": 1, "code": 10, "note": "d"}, {"note": "c"}]),
            json!([{"code": 10}, {"id": 101, "code": 10, "note": "d"}, null]),
            json!([{"code": 10}, {"code": 10}, null]),
            json!([null, {}, null]),
            json!([{"id": 3}, {"id": 3}, null]),
            json!([{"id": 4}, {"id": 4}, null]),
            json!([null, {}, null]),
            json!([{"id": 6, "code": 60, "note": "z"}, {"id": 6, "code": 60, "note": "z"}, {"note": "a"}]),
        ]
    );
}

/// Panics if an event was sent before an earlier one of a key of its own, the old one too, had been answered 2xx.
fn in_order_of_both_keys(receiver: &Receiver, succeeded: &HashMap<String, std::time::Instant>) {
    let mut last: HashMap<String, Event> = HashMap::new();
    let mut all = distinct(events(receiver));
    all.sort_by_key(Event::place);
    for event in all {
        let keys = [&event["key"], &event["old_key"]];
        for key in keys.into_iter().filter(|key| !key.is_null()) {
            if let Some(before) = last.insert(format!("{} {key}", event.text("table")), event.clone()) {
                assert!(
                    succeeded[&before.id()] <= event.arrived(),
                    "{} had not succeeded when {} came",
                    before.whole,
                    event.whole
                );
            }
        }
    }
}

#[test]
fn an_update_that_changes_the_key_is_in_order_under_both() {
    let stage = Stage::set();
    stage.each(&[
        "UPDATE pgwh.subscriptions SET retry_schedule = array_fill('10 ms'::interval, '{20}')",
        "CREATE TABLE by_key (id int PRIMARY KEY, n int)",
        "CREATE TABLE by_index (note text, id int NOT NULL UNIQUE, n int)",
        "ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_id_key",
        "CREATE TABLE by_all (id numeric PRIMARY KEY, n int)",
        "ALTER TABLE by_all REPLICA IDENTITY FULL",
    ]);
    let failing = Which::Percent { percent: 40.0, seed: 7 };
    stage.receiver.behave(Script::new(failing, Reply::status(500)));
    let mut script = String::new();
    for table in ["by_key", "by_index", "by_all"] {
        script += &format!("INSERT INTO {table} (id, n) SELECT n, 0 FROM generate_series(1, 6) n;");
        // Rows chase each other over the same keys.
        for round in 0..8 {
            for id in 1..=6 {
                script += &format!(
                    "UPDATE {table} SET id = 100 WHERE id = {id}; UPDATE {table} SET n = {round} WHERE id = 100;
                     INSERT INTO {table} (id, n) VALUES ({id}, -1); DELETE FROM {table} WHERE id = {id};
                     UPDATE {table} SET id = {id} WHERE id = 100;"
                );
            }
        }
    }
    stage.psql(&script);
    stage.delivered(&stage.receiver, "all");
    // Each came last when it succeeded: nothing is sent again after that.
    let succeeded = events(&stage.receiver).into_iter().map(|event| (event.id(), event.arrived())).collect();
    in_order_of_both_keys(&stage.receiver, &succeeded);
    assert_eq!(stage.status("all", "dead"), "0");
    assert_eq!(distinct(events(&stage.receiver)).len(), 3 * (6 + 8 * 6 * 5));
}

#[test]
fn rows_without_a_key_are_in_order_where_they_differ() {
    let stage = Stage::set();
    stage.each(&[
        "UPDATE pgwh.subscriptions SET retry_schedule = array_fill('10 ms'::interval, '{20}')",
        "CREATE TABLE loose (a int, b int)",
        "ALTER TABLE loose REPLICA IDENTITY FULL",
        "CREATE TABLE blind (a int, b int)",
    ]);
    stage.receiver.behave(Script::new(Which::Percent { percent: 30.0, seed: 3 }, Reply::status(500)));
    let mut script = String::from(
        "INSERT INTO loose SELECT n, 0 FROM generate_series(1, 5) n; INSERT INTO blind SELECT n, 0 FROM generate_series(1, 5) n;",
    );
    for round in 1..10 {
        script += &format!(
            "UPDATE loose SET b = {round}; UPDATE blind SET b = {round} WHERE a = {};",
            round % 5 + 1
        );
    }
    stage.psql(&script);
    let mut loose: HashMap<String, i64> = HashMap::new();
    let mut blind = None;
    stage.delivered(&stage.receiver, "all");
    for event in distinct(events(&stage.receiver)) {
        let (a, b) = (event["record"]["a"].to_string(), event["record"]["b"].as_i64().unwrap());
        if event.text("table") == "loose" {
            // Each row's old values are its key from before.
            assert_eq!(loose.insert(a, b).map_or(0, |before| before + 1), b, "{}", event.whole);
        } else if event.text("action") == "update" {
            // Nothing tells which row it was, so each waits for the whole table.
            assert!(blind < Some(event.place()), "{}", event.whole);
            blind = Some(event.place());
        }
    }
    assert_eq!(loose.values().copied().collect::<Vec<_>>(), [9; 5]);
    assert_eq!(what(&distinct(events(&stage.receiver))).len(), 10 + 5 * 9 + 9);
}

#[test]
fn a_deferrable_primary_key_is_the_key_of_its_events() {
    let stage = Stage::set();
    for (table, options) in [("late", "DEFERRABLE"), ("later", "DEFERRABLE INITIALLY DEFERRED")] {
        stage.sql(&format!("CREATE TABLE {table} (a int, b text, note text, PRIMARY KEY (a, b) {options})"));
        let key = json!({"a": 1, "b": "x"});
        let event = stage.event_of(&format!("INSERT INTO {table} VALUES (1, 'x', 'n')"));
        assert_eq!((&event["key"], &event["old_key"]), (&key, &Value::Null));
        let event = stage.event_of(&format!("UPDATE {table} SET note = 'm'"));
        assert_eq!((&event["key"], &event["changes"], &event["old_key"]), (&key, &Value::Null, &Value::Null));
        // The log has nothing of an old row by default.
        let event = stage.event_of(&format!("UPDATE {table} SET a = 2"));
        assert_eq!((&event["key"], &event["old_key"]), (&json!({"a": 2, "b": "x"}), &Value::Null));
        let event = stage.event_of(&format!("DELETE FROM {table}"));
        assert_eq!((&event["key"], &event["record"]), (&Value::Null, &json!({})));

        stage.sql(&format!("ALTER TABLE {table} REPLICA IDENTITY FULL"));
        stage.event_of(&format!("INSERT INTO {table} VALUES (1, 'x', 'n')"));
        let event = stage.event_of(&format!("UPDATE {table} SET note = 'm'"));
        assert_eq!((&event["key"], &event["changes"]), (&key, &json!({"note": "n"})));
        let event = stage.event_of(&format!("UPDATE {table} SET a = 3"));
        assert_eq!((&event["key"], &event["old_key"]), (&json!({"a": 3, "b": "x"}), &key));
        assert_eq!(event["changes"], json!({"a": 1}));
        let event = stage.event_of(&format!("DELETE FROM {table}"));
        let row = json!({"a": 3, "b": "x", "note": "m"});
        assert_eq!((&event["key"], &event["record"]), (&json!({"a": 3, "b": "x"}), &row));
    }
    // An index that is named as the identity is the key, whatever the primary key is.
    stage.sql(
        "CREATE TABLE named (id int PRIMARY KEY DEFERRABLE, code int NOT NULL); CREATE UNIQUE INDEX by_code ON named (code);
         ALTER TABLE named REPLICA IDENTITY USING INDEX by_code; INSERT INTO named VALUES (1, 10)",
    );
    assert_eq!(stage.event_of("DELETE FROM named")["key"], json!({"code": 10}));
}

#[test]
fn a_deferrable_key_that_moves_from_row_to_row_keeps_the_order() {
    let stage = Stage::set();
    stage.sql(
        "CREATE TABLE list (place int PRIMARY KEY DEFERRABLE, item text);
         CREATE TABLE full_list (place int PRIMARY KEY DEFERRABLE, item text);
         ALTER TABLE full_list REPLICA IDENTITY FULL;
         INSERT INTO list SELECT n, 'item ' || n FROM generate_series(1, 20) n;
         INSERT INTO full_list TABLE list",
    );
    stage.delivered(&stage.receiver, "all");
    stage.receiver.clear();
    // The first request fails: nothing that may be about the same row may pass it.
    stage.receiver.behave(Script::fail_first(1, 503));
    for _ in 0..5 {
        stage.each(&["UPDATE list SET place = place + 1", "UPDATE full_list SET place = place + 1"]);
    }
    let events = stage.delivered(&stage.receiver, "all");
    let of = |table: &str| -> Vec<(u64, u64)> {
        let of_table = events.iter().filter(|event| event.text("table") == table);
        of_table.map(Event::place).collect()
    };
    let places = of("list");
    assert_eq!(places.len(), 100);
    // Nobody knows which row it was, so they come one after the other.
    assert!(places.is_sorted(), "{places:?}");
    let full: Vec<_> = events.iter().filter(|event| event.text("table") == "full_list").collect();
    assert_eq!(full.len(), 100);
    for event in &full {
        let (new, old) =
            (event["key"]["place"].as_i64().unwrap(), event["old_key"]["place"].as_i64().unwrap());
        assert_eq!(new, old + 1);
    }
    for place in 1..=25 {
        let about = full.iter().filter(|event| {
            [&event["key"], &event["old_key"]].iter().any(|key| key["place"].as_i64() == Some(place))
        });
        let order: Vec<_> = about.map(|event| event.place()).collect();
        assert!(order.is_sorted(), "events about place {place}: {order:?}");
    }
}

#[test]
fn without_a_key_the_whole_row_is_the_key_where_the_log_has_it() {
    let stage = Stage::set();
    stage.sql(
        "CREATE TABLE loose (a int, b text, twice int GENERATED ALWAYS AS (a * 2) STORED);
         ALTER TABLE loose REPLICA IDENTITY FULL",
    );
    let row = json!({"a": 1, "b": null, "twice": 2});
    let event = stage.event_of("INSERT INTO loose VALUES (1, NULL)");
    assert_eq!((&event["key"], &event["old_key"]), (&row, &Value::Null));
    let event = stage.event_of("UPDATE loose SET b = 'x'");
    assert_eq!((&event["key"], &event["old_key"]), (&json!({"a": 1, "b": "x", "twice": 2}), &row));
    assert_eq!(event["changes"], json!({"b": null}));
    let event = stage.event_of("UPDATE loose SET b = 'x'");
    assert_eq!((&event["changes"], &event["old_key"]), (&json!({}), &Value::Null));
    assert_eq!(stage.event_of("DELETE FROM loose")["key"], json!({"a": 1, "b": "x", "twice": 2}));
    assert_eq!(stage.event_of("TRUNCATE loose")["key"], Value::Null);
    // Of a row that is sent in part, its key has no more.
    stage.cluster.subscribe(&stage.receiver, "some", "tables => '{public.loose}', exclude_columns => '{b}'");
    stage.sql("INSERT INTO loose VALUES (7, 'secret')");
    let events = stage.got("some");
    assert_eq!(events[0]["key"], json!({"a": 7, "twice": 14}));
    assert!(!events[0].whole.to_string().contains("secret"), "{}", events[0].whole);
    // A value that is left alone is known from the old row.
    stage.sql(
        "CREATE TABLE large (a int, doc text); ALTER TABLE large ALTER doc SET STORAGE EXTERNAL, REPLICA IDENTITY FULL;
         INSERT INTO large VALUES (1, repeat('d', 20000))",
    );
    let event = stage.event_of("UPDATE large SET a = 2");
    assert_eq!(event["key"], json!({"a": 2, "doc": "d".repeat(20000)}));
}

#[test]
fn a_key_column_of_a_deferrable_key_must_be_readable() {
    let stage = Stage::set();
    stage.sql(
        "CREATE TABLE t (id int PRIMARY KEY DEFERRABLE, v text); CREATE ROLE reader LOGIN;
         GRANT USAGE ON SCHEMA pgwh, pgwh_internal TO reader;
         GRANT SELECT, INSERT, UPDATE, DELETE ON pgwh.subscriptions TO reader;
         GRANT SELECT ON pgwh_internal.installation, pgwh.status TO reader;
         GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgwh, pgwh_internal TO reader;
         GRANT SELECT (v) ON t TO reader",
    );
    let url = stage.receiver.url("/reader");
    let refusal = stage
        .cluster
        .as_role("reader")
        .refused(&format!("SELECT pgwh.subscribe('{url}', tables => '{{public.t}}', columns => '{{v}}')"));
    assert!(refusal.code == "42501" && refusal.hint.contains("(id)"), "{refusal:?}");
    stage.sql("GRANT SELECT (id) ON t TO reader");
    stage.cluster.as_role("reader").sql(&format!(
        "SELECT pgwh.subscribe('{url}', name => 'reader', tables => '{{public.t}}', columns => '{{v}}')"
    ));
    stage.sql("INSERT INTO t VALUES (1, 'x')");
    assert_eq!(stage.got("reader")[0]["key"], json!({"id": 1}));
}
