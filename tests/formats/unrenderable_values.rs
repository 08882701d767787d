//! A value that cannot be rendered is a dead letter with its reason, and stops nothing.

use harness::{Stage, what};
use serde_json::json;

/// A type whose values can be written and never read: its output function raises.
const BROKEN: &str = "
    CREATE TYPE broken;
    CREATE FUNCTION broken_in(cstring) RETURNS broken LANGUAGE internal IMMUTABLE STRICT AS 'namein';
    CREATE FUNCTION broken_out(broken) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'int4in';
    CREATE TYPE broken (INPUT = broken_in, OUTPUT = broken_out, LIKE = name)";

#[test]
fn an_unrenderable_value_is_a_dead_letter_and_stops_nothing() {
    let stage = Stage::set();
    stage.each(&[
        BROKEN,
        "CREATE TYPE holder AS (a int, b broken)",
        "CREATE TABLE t (id int PRIMARY KEY, note text, value broken, held holder, list broken[])",
    ]);
    let mut expected = Vec::new();
    for (id, column, value) in
        [(1, "value", "'nö'"), (2, "held", "(1, 'nö')"), (3, "list", "ARRAY['nö']::broken[]")]
    {
        let events = stage.events_of(&[
            &format!("INSERT INTO t VALUES ({id}, 'before')"),
            &format!("UPDATE t SET {column} = {value} WHERE id = {id}"),
            // One transaction: what stands before and behind it arrives.
            &format!(
                "BEGIN; INSERT INTO t VALUES ({id}0, 'good'); INSERT INTO t (id, {column}) VALUES ({id}1, {value});
                 UPDATE t SET note = 'good' WHERE id = {id}0; COMMIT"
            ),
            &format!("UPDATE t SET note = 'mended', {column} = NULL WHERE id = {id}"),
        ]);
        let records: Vec<_> = events
            .iter()
            .map(|event| (event["record"]["id"].clone(), event["record"]["note"].clone()))
            .collect();
        assert_eq!(
            records,
            [
                (json!(id), json!("before")),
                (json!(id * 10), json!("good")),
                (json!(id * 10), json!("good")),
                (json!(id), json!("mended"))
            ]
        );
        expected.extend(["update", "insert"].map(|action| (format!("public.t {action}"), column)));
    }
    // WAL has no more of a deleted row than its key, which can be rendered.
    stage.sql("ALTER TABLE t REPLICA IDENTITY FULL");
    assert_eq!(stage.events_of(&["DELETE FROM t WHERE id = 11"]).len(), 0);
    stage.sql("ALTER TABLE t REPLICA IDENTITY DEFAULT");
    assert_eq!(what(&stage.events_of(&["DELETE FROM t WHERE id = 21"])), ["public.t delete"]);
    expected.push(("public.t delete".into(), "value"));

    let dead = stage.rows(
        "SELECT format('%s.%s %s', schema_name, table_name, action), error_class, reason, attempts, status_code
         FROM pgwh.dead_letters WHERE subscription = 'all' ORDER BY event_id",
    );
    let row = |(what, column): &(String, &str)| {
        let reason = format!("column \"{column}\": invalid input syntax for type integer: \"nö\"");
        vec![Some(what.clone()), Some("encode".into()), Some(reason), Some("0".into()), None]
    };
    assert_eq!(dead, expected.iter().map(row).collect::<Vec<_>>());
    let shown = "SELECT count(*) FROM pgwh.deliveries WHERE state = 'dead' AND error_class = 'encode' AND error LIKE '%\"nö\"'";
    assert_eq!(stage.value(shown), "7");
    assert_eq!(
        stage.value("SELECT count(*) FROM pgwh.events WHERE error LIKE '%\"nö\" (SQLSTATE 22P02)'"),
        "7"
    );
    assert_eq!(stage.status("all", "dead"), "7");
    assert_eq!(stage.status("all", "state"), "active");
    assert_eq!(stage.status("all", "pending"), "0");

    // The reason outlives a restart.
    stage.cluster.restart(harness::Stop::Immediate);
    assert_eq!(stage.value("SELECT count(*) FROM pgwh.dead_letters WHERE error_class = 'encode'"), "7");
    assert_eq!(stage.event_of("INSERT INTO t VALUES (100, 'after')")["record"]["note"], "after");
    let log = stage.cluster.log();
    assert_eq!(log.matches("WARNING:  pgstream_hooks: event evt_").count(), 7, "the log names each event");
    assert!(!log.contains("nö"), "and has no values of rows");
}

#[test]
fn an_unrenderable_key_holds_back_its_table_only() {
    let stage = Stage::set();
    stage.each(&[
        BROKEN,
        "CREATE DOMAIN odd AS broken",
        "CREATE TABLE t (a odd, b text)",
        "ALTER TABLE t REPLICA IDENTITY FULL",
        "CREATE TABLE other (id int PRIMARY KEY)",
    ]);
    let events = stage.events_of(&[
        "INSERT INTO t VALUES (NULL, 'before')",
        "INSERT INTO t VALUES ('bad', 'bad')",
        "INSERT INTO other VALUES (1)",
        "UPDATE t SET b = 'worse' WHERE b = 'bad'",
        "DELETE FROM t WHERE b = 'worse'",
        "TRUNCATE t",
        "INSERT INTO t VALUES (NULL, 'after')",
    ]);
    assert_eq!(
        what(&events),
        ["public.t insert", "public.other insert", "public.t truncate", "public.t insert"]
    );
    assert_eq!(stage.value("SELECT count(*) FROM pgwh.dead_letters WHERE error_class = 'encode'"), "3");
}

#[test]
fn a_table_whose_types_cannot_be_looked_up_stops_nothing() {
    let stage = Stage::set();
    stage.each(&[
        BROKEN,
        "CREATE TABLE t (id int PRIMARY KEY, value broken)",
        "CREATE TABLE other (id int PRIMARY KEY)",
        // As after a library was removed: the function is not found by whoever looks it up next.
        "UPDATE pg_proc SET prosrc = 'no such function' WHERE proname = 'broken_out'",
    ]);
    let events = stage.events_of(&[
        "INSERT INTO t VALUES (1, 'x')",
        "INSERT INTO t VALUES (2, NULL)",
        "INSERT INTO other VALUES (1)",
    ]);
    assert_eq!(what(&events), ["public.t insert", "public.other insert"]);
    assert_eq!(events[0]["record"], json!({"id": 2, "value": null}));
    assert_eq!(
        stage.value("SELECT reason FROM pgwh.dead_letters"),
        "column \"value\": internal function \"no such function\" is not in internal lookup table"
    );
    assert_eq!(stage.value("SELECT ok FROM pgwh.health() WHERE check_name = 'worker running'"), "t");
}
