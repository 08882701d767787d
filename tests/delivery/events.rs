//! What an event says is what was committed: each kind of change, each way to write a row.

use std::collections::{HashMap, HashSet};

use harness::{Event, Setup, Stage, Stop, events_of, eventually, what};
use serde_json::{Value, json};

#[test]
fn insert_update_delete_and_truncate_look_as_the_format_says() {
    let stage = Stage::set();
    stage.sql("CREATE TABLE orders (id int PRIMARY KEY, status text, notes text)");
    let insert = stage.event_of("INSERT INTO orders VALUES (1, 'open', NULL)");
    assert_eq!(insert.whole["type"], "public.orders.insert");
    assert_eq!(insert.whole["timestamp"], insert["commit"]["timestamp"]);
    assert_eq!(insert["action"], "insert");
    assert_eq!((&insert["schema"], &insert["table"]), (&json!("public"), &json!("orders")));
    assert_eq!(insert["key"], json!({"id": 1}));
    assert_eq!(insert["record"], json!({"id": 1, "status": "open", "notes": null}));
    assert_eq!((&insert["changes"], &insert["old_key"]), (&Value::Null, &Value::Null));
    assert_eq!(insert["unchanged"], json!([]));
    assert_eq!((&insert["database"], &insert["subscription"]), (&json!("postgres"), &json!("all")));
    assert_eq!(insert["annotations"], Value::Null);

    let update = stage.event_of("UPDATE orders SET status = 'paid'");
    assert_eq!(update.whole["type"], "public.orders.update");
    assert_eq!(update["key"], json!({"id": 1}));
    assert_eq!(update["record"], json!({"id": 1, "status": "paid", "notes": null}));
    assert_eq!(update["changes"], Value::Null, "the old row is not known");

    let delete = stage.event_of("DELETE FROM orders");
    assert_eq!(delete["action"], "delete");
    assert_eq!(delete["key"], json!({"id": 1}));
    assert_eq!(delete["record"], json!({"id": 1}), "WAL has the key only");

    let truncate = stage.event_of("TRUNCATE orders");
    assert_eq!(truncate["action"], "truncate");
    assert_eq!((&truncate["key"], &truncate["record"]), (&Value::Null, &Value::Null));
}

#[test]
fn the_commit_is_described_as_the_server_knows_it() {
    let stage = Stage::on(Setup::new().set("track_commit_timestamp = on"));
    stage.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let before = stage.value("SELECT pg_current_wal_lsn()");
    let events = stage.events_of(&["INSERT INTO t VALUES (1), (2), (3)"]);
    let (xid, committed) = {
        let sql = "SELECT xmin, to_char(pg_xact_commit_timestamp(xmin) AT TIME ZONE 'UTC', \
                   'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') FROM t LIMIT 1";
        let row = stage.rows(sql).remove(0);
        (row[0].clone().unwrap(), row[1].clone().unwrap())
    };
    for event in &events {
        assert_eq!(event["commit"]["xid"].to_string(), xid);
        assert_eq!(event["commit"]["timestamp"], committed);
        let lsn = event["commit"]["lsn"].as_str().unwrap();
        stage.wait_true(&format!("SELECT '{lsn}'::pg_lsn BETWEEN '{before}' AND pg_current_wal_lsn()"));
    }
    let places: HashSet<_> = events.iter().map(|event| event["commit"]["index"].to_string()).collect();
    assert_eq!(places.len(), 3, "each change of a transaction has its index");
}

/// One in ten fractions of a second ends in a zero.
#[test]
fn timestamps_sort_as_text_in_commit_order() {
    let stage = Stage::set();
    stage.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let inserts: Vec<_> = (0..60).map(|id| format!("INSERT INTO t VALUES ({id})")).collect();
    let events = stage.events_of(&inserts.iter().map(String::as_str).collect::<Vec<_>>());
    let times: Vec<_> = events.iter().map(|event| event.whole["timestamp"].as_str().unwrap()).collect();
    assert_eq!(times.len(), 60);
    assert!(times.is_sorted(), "{times:?}");
    assert!(times.iter().all(|time| time.len() == "2026-11-20T10:00:47.406957Z".len()), "{times:?}");
}

#[test]
fn copied_rows_have_ids_that_decoding_again_repeats() {
    let stage = Stage::set();
    stage.sql("CREATE TABLE t (id int PRIMARY KEY, note text)");
    let mut ids: HashMap<String, String> = HashMap::new();
    // What was sent and had no time to be journaled when the server is killed is decoded twice, and comes twice.
    let came_twice = (0..10).any(|round| {
        let rows: String = (0..10_000).map(|n| format!("{}\tnote {n}\n", round * 10_000 + n)).collect();
        stage.psql(&format!("COPY t FROM STDIN;\n{rows}\\.\n"));
        eventually("some have come", || (stage.receiver.count() > 1000).then_some(()));
        stage.cluster.stop(Stop::Kill);
        stage.cluster.begin();
        stage.delivered(&stage.receiver, "all");
        let events = events_of(&stage.receiver, "all");
        for event in &events {
            let id = ids.entry(event.row()).or_insert_with(|| event.id());
            assert_eq!(*id, event.id(), "{}", event.whole);
        }
        assert_eq!(ids.len(), (round + 1) * 10_000);
        stage.receiver.clear();
        events.len() > 10_000
    });
    assert!(came_twice, "nothing was decoded again");
    assert_eq!(ids.values().collect::<HashSet<_>>().len(), ids.len());
}

#[test]
fn ids_are_plain_characters_and_sort_in_commit_order() {
    let stage = Stage::set();
    stage.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let statements: Vec<String> =
        (0..50).map(|n| format!("INSERT INTO t VALUES ({n}), ({})", n + 100)).collect();
    let events = stage.events_of(&statements.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(events.len(), 100);
    for pair in events.windows(2) {
        assert!(pair[0].id() < pair[1].id(), "{} {}", pair[0].whole, pair[1].whole);
    }
    for event in events {
        assert!(event.id().starts_with("evt_"));
        let id = event.request.webhook_id();
        assert!(id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte)), "{id}");
        assert_eq!(event.request.header("idempotency-key"), Some(id));
    }
}

#[test]
fn every_way_to_write_rows_is_seen() {
    let stage = Stage::set();
    stage.sql("CREATE TABLE t (id int PRIMARY KEY, n int)");
    let told = |sql: &str| what(&stage.events_of(&[sql]));
    assert_eq!(told("INSERT INTO t SELECT n, n FROM generate_series(1, 3) n"), ["public.t insert"; 3]);
    assert_eq!(told("UPDATE t SET n = n + 1"), ["public.t update"; 3]);
    assert_eq!(
        told("INSERT INTO t VALUES (3, 0), (4, 0) ON CONFLICT (id) DO UPDATE SET n = EXCLUDED.n"),
        ["public.t update", "public.t insert"]
    );
    assert_eq!(told("INSERT INTO t VALUES (4, 0) ON CONFLICT DO NOTHING"), [] as [&str; 0]);
    assert_eq!(
        told(
            "MERGE INTO t USING (VALUES (4), (5)) s (id) ON t.id = s.id
             WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN INSERT VALUES (s.id, 1)"
        ),
        ["public.t delete", "public.t insert"]
    );
    assert_eq!(
        told("WITH gone AS (DELETE FROM t WHERE id = 5 RETURNING *) SELECT count(*) FROM gone"),
        ["public.t delete"]
    );
    assert_eq!(told("SELECT * FROM t FOR UPDATE"), [] as [&str; 0]);
}

#[test]
fn only_what_is_committed_is_sent() {
    let stage = Stage::set();
    stage.sql("CREATE TABLE t (id int PRIMARY KEY, note text)");
    let events = stage.events_of(&[
        "BEGIN; INSERT INTO t VALUES (1, 'rolled back'); ROLLBACK",
        "BEGIN; INSERT INTO t VALUES (2, 'kept');
           SAVEPOINT a; INSERT INTO t VALUES (3, 'undone'); ROLLBACK TO a;
           SAVEPOINT b; INSERT INTO t VALUES (4, 'kept'); RELEASE b;
           SAVEPOINT c; SAVEPOINT d; INSERT INTO t VALUES (5, 'undone'); RELEASE d; ROLLBACK TO c; COMMIT",
        "DO $$ BEGIN
           INSERT INTO t VALUES (6, 'kept');
           BEGIN INSERT INTO t VALUES (7, 'undone'); RAISE division_by_zero; EXCEPTION WHEN division_by_zero THEN END;
         END $$",
        "BEGIN; UPDATE t SET note = 'changed twice' WHERE id = 2; UPDATE t SET note = 'kept' WHERE id = 2; COMMIT",
    ]);
    let ids: Vec<_> = events.iter().map(|event| event["key"]["id"].as_i64().unwrap()).collect();
    assert_eq!(ids, [2, 4, 6, 2, 2]);
}

#[test]
fn a_prepared_transaction_is_sent_when_it_is_committed() {
    let stage = Stage::on(Setup::new().set("max_prepared_transactions = 5"));
    stage.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let prepare = [
        "BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'one'",
        "BEGIN; INSERT INTO t VALUES (2); PREPARE TRANSACTION 'two'",
    ];
    assert_eq!(stage.events_of(&prepare).len(), 0);
    stage.cluster.restart(Stop::Fast);
    let events = stage.events_of(&["ROLLBACK PREPARED 'one'", "COMMIT PREPARED 'two'"]);
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["record"], json!({"id": 2}));
}

#[test]
fn truncate_gives_one_event_for_each_table() {
    let stage = Stage::set();
    stage.sql(
        "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a);
         CREATE SCHEMA s; CREATE TABLE s.c (id int)",
    );
    let mut told = what(&stage.events_of(&["TRUNCATE a, b, s.c"]));
    told.sort();
    assert_eq!(told, ["public.a truncate", "public.b truncate", "s.c truncate"]);
    let mut told = what(&stage.events_of(&["TRUNCATE a CASCADE"]));
    told.sort();
    assert_eq!(told, ["public.a truncate", "public.b truncate"]);
    let events = stage.events_of(&["TRUNCATE s.c", "BEGIN; TRUNCATE s.c; ROLLBACK"]);
    assert_eq!(events.iter().map(Event::id).collect::<HashSet<_>>().len(), 1);
}

#[test]
fn temporary_unlogged_and_our_own_tables_send_nothing() {
    let stage = Stage::set();
    let events = stage.events_of(&[
        "CREATE UNLOGGED TABLE u (id int); INSERT INTO u VALUES (1)",
        "CREATE TEMP TABLE m (id int); INSERT INTO m VALUES (1)",
        "UPDATE pgwh.subscriptions SET timeout = '5 s'",
        "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)",
    ]);
    assert_eq!(what(&events), ["public.t insert"]);
}
