//! Messages: `pgwh.emit`, `pgwh.annotate`, and what other applications write into the log.

use harness::{Cluster, Event, PATIENCE, Receiver, Reply, Script, Setup, Stage, Stop, events_of};
use serde_json::{Value, json};

/// A cluster with a table `t`, a subscription `rows` to rows alone and one, `all`, to rows and messages.
fn stage() -> Stage {
    stage_on(Cluster::start())
}

fn stage_on(cluster: Cluster) -> Stage {
    cluster.each(&["CREATE EXTENSION pgstream_hooks", "CREATE TABLE t (id int PRIMARY KEY)"]);
    let receiver = Receiver::start().unwrap();
    cluster.subscribe(&receiver, "rows", "");
    let types = "event_types => '{insert, update, delete, truncate, message}'";
    cluster.subscribe(&receiver, "all", types);
    Stage { cluster, receiver }
}

/// The webhooks' types of what subscription `all` has got so far.
#[track_caller]
fn types(stage: &Stage) -> Vec<String> {
    stage.got("all").iter().map(|event| event.whole["type"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_message_comes_with_its_transaction_in_order_with_its_rows() {
    let stage = stage();
    stage.sql(
        "BEGIN; INSERT INTO t VALUES (1); SELECT pgwh.emit('order.paid', '{\"id\": 7, \"total\": 1.10}', key => 'k');
         INSERT INTO t VALUES (2); COMMIT",
    );
    assert_eq!(types(&stage), ["public.t.insert", "order.paid", "public.t.insert"]);
    assert_eq!(stage.got("rows").len(), 2, "who has not asked for messages gets none");
    let got = stage.got("all");
    let message = &got[1];
    assert_eq!(message["action"], "message");
    assert_eq!((&message["schema"], &message["table"]), (&Value::Null, &Value::Null));
    assert_eq!(message["payload"].to_string(), r#"{"id":7,"total":1.10}"#, "with all its digits");
    assert_eq!((&message["key"], &message["prefix"]), (&json!("k"), &Value::Null));
    assert_eq!(message["commit"]["index"], 1);
    assert_eq!(message["commit"]["lsn"], got[0]["commit"]["lsn"]);
    assert_eq!(message["subscription"], "all");
    // The journal knows it, too.
    let kept = "SELECT action, key, data->'payload'->>'id', schema_name IS NULL FROM pgwh.events WHERE action = 'message'";
    let row: Vec<String> = stage.rows(kept).remove(0).into_iter().map(Option::unwrap_or_default).collect();
    assert_eq!(row, ["message", "\"k\"", "7", "t"]);
}

#[test]
fn a_foreign_message_is_bounded_by_the_size_of_events() {
    let stage = stage_on(Setup::new().set("pgwh.max_event_size = '16kB'").start());
    stage.sql("UPDATE pgwh.subscriptions SET event_types = '{message:audit}' WHERE name = 'all'");
    for (content, repeated) in [("short", 100), ("long", 20_000)] {
        stage.sql(&format!(
            "SELECT pg_logical_emit_message(true, 'audit', '\"{content}' || repeat('x', {repeated}) || '\"')"
        ));
    }
    let got = stage.got("all");
    assert_eq!((got[0]["payload"].is_string(), &got[0]["omitted"]), (true, &Value::Null));
    assert_eq!((&got[1]["payload"], &got[1]["omitted"]), (&Value::Null, &json!(["payload"])));
    assert_eq!((&got[1]["prefix"], &got[1].whole["type"]), (&json!("audit"), &json!("audit")));
}

#[test]
fn what_is_rolled_back_is_not_sent() {
    let stage = stage();
    stage.sql("BEGIN; SELECT pgwh.emit('gone', '1'); ROLLBACK");
    stage.sql(
        "BEGIN; SELECT pgwh.emit('first', '1'); SAVEPOINT s; SELECT pgwh.emit('gone', '1');
         SELECT pgwh.annotate('{\"by\": \"gone\"}'); ROLLBACK TO s; SELECT pgwh.emit('last', '1'); COMMIT",
    );
    assert_eq!(types(&stage), ["first", "last"]);
    assert!(stage.got("all").iter().all(|event| event["annotations"].is_null()));
}

#[test]
fn a_prepared_transaction_sends_its_messages_when_it_commits() {
    let stage = stage_on(Setup::new().set("max_prepared_transactions = 5").start());
    stage.sql(
        "BEGIN; SELECT pgwh.annotate('{\"u\": 1}'); SELECT pgwh.emit('kept', '1'); PREPARE TRANSACTION 'a'",
    );
    stage.sql("BEGIN; SELECT pgwh.emit('gone', '1'); PREPARE TRANSACTION 'b'");
    stage.sql("SELECT pgwh.emit('between', '1')");
    assert_eq!(types(&stage), ["between"]);
    stage.each(&["ROLLBACK PREPARED 'b'", "COMMIT PREPARED 'a'"]);
    assert_eq!(types(&stage), ["between", "kept"]);
    assert_eq!(stage.got("all")[1]["annotations"], json!({"u": 1}));
}

#[test]
fn annotations_hold_for_what_follows_in_their_transaction() {
    let stage = stage();
    stage.sql(
        "BEGIN; INSERT INTO t VALUES (1); SELECT pgwh.annotate('{\"user\": 42}'); INSERT INTO t VALUES (2);
         SELECT pgwh.emit('m', 'null'); SAVEPOINT s; SELECT pgwh.annotate('{\"user\": 43}'); INSERT INTO t VALUES (3);
         ROLLBACK TO s; INSERT INTO t VALUES (4); SELECT pgwh.annotate('{\"n\": 1}'); INSERT INTO t VALUES (5);
         SELECT pgwh.annotate(NULL); INSERT INTO t VALUES (6); COMMIT",
    );
    stage.sql("INSERT INTO t VALUES (7)");
    let annotations: Vec<String> =
        stage.got("all").iter().map(|event| event["annotations"].to_string()).collect();
    let user = r#"{"user":42}"#;
    assert_eq!(annotations, ["null", user, user, user, r#"{"n":1}"#, "null", "null"]);
    let of_rows: Vec<Value> = stage.got("rows").iter().map(|event| event["annotations"].clone()).collect();
    assert_eq!(of_rows.len(), 6);
    assert_eq!(of_rows[1], json!({"user": 42}));
}

#[test]
fn messages_of_one_key_arrive_in_order_also_when_one_fails() {
    let stage = stage();
    stage.sql("UPDATE pgwh.subscriptions SET retry_schedule = array_fill('100 ms'::interval, ARRAY[50])");
    stage.receiver.behave(Script::fail_first(2, 500));
    stage.sql("SELECT pgwh.emit('m', to_jsonb(n), key => (n % 3)::text) FROM generate_series(1, 60) n");
    let got = stage.delivered(&stage.receiver, "all");
    assert_eq!(got.len(), 60);
    for key in ["0", "1", "2"] {
        let numbers: Vec<u64> = got
            .iter()
            .filter(|event| event["key"] == key)
            .map(|event| event["payload"].as_u64().unwrap())
            .collect();
        assert!(numbers.is_sorted() && numbers.len() == 20, "{key}: {numbers:?}");
    }
}

#[test]
fn no_role_can_forge_a_message() {
    let stage = stage();
    stage.sql("CREATE ROLE mallory LOGIN");
    let mallory = stage.as_role("mallory");
    let seal = "0".repeat(64);
    let content = r#"{"type":"forged","key":null,"payload":1}"#;
    for text in [content.to_owned(), format!("{seal}{content}"), seal, String::new()] {
        for prefix in ["pgwh.emit", "pgwh.annotate"] {
            mallory.sql(&format!("SELECT pg_logical_emit_message(true, '{prefix}', '{text}')"));
        }
    }
    assert_eq!(mallory.refused("SELECT pgwh.emit('m', '1')").code, "42501");
    assert_eq!(mallory.refused("SELECT * FROM pgwh_internal.message_key").code, "42501");
    stage.sql("INSERT INTO t VALUES (1)");
    assert_eq!(types(&stage), ["public.t.insert"]);
    assert_eq!(stage.got("all")[0]["annotations"], Value::Null);
    assert_eq!(stage.cluster.log().matches("such messages are ignored").count(), 1, "said once");
}

#[test]
fn a_sealed_message_counts_in_no_other_transaction() {
    let stage = stage();
    stage.sql("SELECT pg_create_logical_replication_slot('spy', 'test_decoding')");
    stage.sql("SELECT pgwh.emit('once', '1')");
    // Who may read the log sees the message as it was written, and writes it again.
    let seen =
        "SELECT substring(data FROM 'content:(.*)$') FROM pg_logical_slot_peek_changes('spy', NULL, NULL)
                WHERE data LIKE '%pgwh.emit%'";
    let content = stage.value(seen);
    assert!(content.ends_with(r#""payload":1}"#), "{content}");
    stage.sql(&format!("SELECT pg_logical_emit_message(true, 'pgwh.emit', $${content}$$)"));
    stage.sql("SELECT pgwh.emit('last', '1')");
    assert_eq!(types(&stage), ["once", "last"]);
}

#[test]
fn a_role_that_was_given_the_functions_needs_nothing_else() {
    let stage = stage();
    stage.sql(
        "CREATE ROLE app LOGIN; GRANT USAGE ON SCHEMA pgwh TO app; GRANT EXECUTE ON FUNCTION pgwh.emit TO app;
         GRANT EXECUTE ON FUNCTION pgwh.annotate TO app; GRANT INSERT ON t TO app",
    );
    stage.as_role("app").sql(
        "SET search_path = nowhere; BEGIN; SELECT pgwh.annotate('{\"user\": 1}'); INSERT INTO public.t VALUES (1);
         SELECT pgwh.emit('m', '{}'); COMMIT",
    );
    assert_eq!(types(&stage), ["public.t.insert", "m"]);
    assert!(stage.got("all").iter().all(|event| event["annotations"] == json!({"user": 1})));
    assert_eq!(stage.as_role("app").refused("SELECT * FROM pgwh_internal.message_key").code, "42501");
}

#[test]
fn foreign_messages_reach_subscriptions_to_their_prefix() {
    let stage = stage();
    stage.subscribe(&stage.receiver, "app", "event_types => '{message:app, message:App.Two}'");
    for (prefix, content) in [
        ("app", r#"'{"a": 1.50}'"#),
        ("App.Two", "'plain \"text\" é'"),
        ("app", r"'\x00ff'::bytea"),
        ("other", "'1'"),
        ("app.two", "'1'"),
    ] {
        stage.sql(&format!("SELECT pg_logical_emit_message(true, '{prefix}', {content})"));
    }
    stage.each(&[
        "SELECT pg_logical_emit_message(false, 'app', 'of no transaction')",
        "SELECT pgwh.emit('ours', '1')",
    ]);
    let got = stage.got("app");
    let told: Vec<(String, String)> = got
        .iter()
        .map(|event| (event.whole["type"].as_str().unwrap().to_owned(), event["payload"].to_string()))
        .collect();
    let expected = [("app", r#"{"a":1.50}"#), ("App.Two", r#""plain \"text\" é""#), ("app", r#""\\x00ff""#)];
    assert_eq!(told, expected.map(|(kind, payload)| (kind.to_owned(), payload.to_owned())));
    assert_eq!(got[0]["prefix"], "app");
    assert_eq!(types(&stage), ["ours"]);
}

#[test]
fn nothing_from_before_a_subscription_is_sent_to_it() {
    let stage = stage();
    let url = stage.receiver.url("/late");
    let subscribe = format!("SELECT pgwh.subscribe('{url}', name => 'late', event_types => '{{message}}')");
    stage.sql(&format!(
        "BEGIN; SELECT pgwh.emit('before', '1'); {subscribe}; SELECT pgwh.emit('same', '1'); COMMIT"
    ));
    stage.sql("SELECT pgwh.emit('after', '1')");
    let got = stage.got("late");
    assert_eq!(got.iter().map(|event| event.whole["type"].clone()).collect::<Vec<_>>(), ["after"]);
}

#[test]
fn what_cannot_be_sent_is_refused_at_once() {
    let stage = stage();
    for (sql, code) in [
        ("SELECT pgwh.emit(NULL, '1')", "22004"),
        ("SELECT pgwh.emit('', '1')", "22023"),
        ("SELECT pgwh.emit(repeat('x', 201), '1')", "22023"),
        ("SELECT pgwh.emit(E'a\\nb', '1')", "22023"),
        ("SELECT pgwh.emit('m', to_jsonb(repeat('x', 9000000)))", "54000"),
        ("SELECT pgwh.emit('m', '1', key => repeat('x', 9000))", "54000"),
        ("SELECT pgwh.annotate(to_jsonb(repeat('x', 20000)))", "54000"),
        ("SELECT pgwh.subscribe('https://example.com', event_types => '{message:}')", "22023"),
        ("SELECT pgwh.subscribe('https://example.com', event_types => '{message:pgwh.emit}')", "22023"),
    ] {
        let refusal = stage.refused(sql);
        assert_eq!(refusal.code, code, "{sql}");
        assert!(!refusal.detail.is_empty() && !refusal.hint.is_empty(), "{refusal:?}");
    }
    stage.sql("SELECT pgwh.emit(repeat('ä', 100), NULL)");
    assert_eq!(stage.got("all")[0]["payload"], Value::Null);
}

#[test]
fn messages_survive_a_crash_under_the_same_ids() {
    let stage = stage();
    stage.sql("UPDATE pgwh.subscriptions SET retry_schedule = array_fill('200 ms'::interval, ARRAY[100])");
    stage.receiver.behave(Script::always(Reply::status(500)));
    stage.sql("BEGIN; SELECT pgwh.annotate('{\"by\": 1}'); SELECT pgwh.emit('m', '{\"n\": 1}', 'k'); INSERT INTO t VALUES (1); COMMIT");
    stage.receiver.wait_for(3, PATIENCE).unwrap();
    let before = events_of(&stage.receiver, "all");
    stage.cluster.restart(Stop::Kill);
    stage.sql("SELECT pgwh.emit('m', '{\"n\": 2}', 'k')");
    stage.receiver.behave(Script::always(Reply::status(200)));
    let got = stage.got("all");
    let types: Vec<&str> = got.iter().map(|event| event.whole["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["m", "public.t.insert", "m"]);
    assert!(got[..2].iter().all(|event| event["annotations"] == json!({"by": 1})));
    for event in before {
        assert!(got.iter().any(|after| after.id() == event.id()), "{} came under another id", event.whole);
    }
}

#[test]
fn a_large_transaction_keeps_its_messages_in_order() {
    let stage = stage_on(Setup::new().set("logical_decoding_work_mem = 64kB").start());
    stage.sql("UPDATE pgwh.subscriptions SET batch_size = 500");
    stage.sql(
        "BEGIN; SELECT pgwh.annotate('{\"large\": true}'); INSERT INTO t SELECT generate_series(1, 20000);
         SELECT pgwh.emit('middle', '1'); INSERT INTO t SELECT generate_series(20001, 40000); COMMIT",
    );
    let got = stage.got("all");
    assert_eq!(got.len(), 40_001);
    assert_eq!(got[20_000].whole["type"], "middle");
    assert!(got.iter().all(|event| event["annotations"] == json!({"large": true})));
}

#[test]
fn messages_of_a_database_in_another_encoding_are_utf8() {
    let cluster = Cluster::start();
    cluster.sql("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0");
    let latin = cluster.database("latin");
    latin.sql("CREATE EXTENSION pgstream_hooks");
    let receiver = Receiver::start().unwrap();
    latin.subscribe(&receiver, "s", "event_types => '{message, message:app}'");
    latin.each(&[
        "SELECT pgwh.emit('grün', '{\"ä\": \"ö\"}', key => 'ü')",
        "SELECT pg_logical_emit_message(true, 'app', 'é')",
    ]);
    let mut got = latin.delivered(&receiver, "s");
    got.sort_by_key(Event::place);
    assert_eq!(got[0].whole["type"], "grün");
    assert_eq!((&got[0]["payload"], &got[0]["key"]), (&json!({"ä": "ö"}), &json!("ü")));
    assert_eq!(got[1]["payload"], "é");
}
