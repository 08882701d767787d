//! Rows that are read fare as changes do: transforms, batches, replays, looking, encodings.

use harness::{Reply, distinct};
use harness::{Script, events_of};
use serde_json::json;

use crate::{backfill, done, stage};

#[test]
fn a_transform_makes_and_drops_the_bodies_of_read_rows() {
    let (cluster, receiver) = stage();
    cluster.sql(
        "CREATE FUNCTION shorter(event jsonb) RETURNS jsonb LANGUAGE sql AS
           $$ SELECT CASE WHEN (event->'data'->'record'->>'id')::int % 2 = 0
              THEN jsonb_build_object('id', event->'data'->'record'->'id', 'action', event->'data'->'action') END $$;
         INSERT INTO t SELECT n FROM generate_series(1, 100) n",
    );
    cluster.subscribe(
        &receiver,
        "s",
        "tables => '{public.t}', ordering => 'strict', transform => 'shorter(jsonb)'",
    );
    let id = backfill(&cluster, "'s'");
    done(&cluster, &id);
    cluster.value("SELECT pgwh.wait('s', '60 s')");
    let bodies: Vec<_> = receiver.requests().iter().map(|request| request.json()).collect();
    let expected: Vec<_> = (1..=50).map(|n| json!({"id": 2 * n, "action": "read"})).collect();
    assert_eq!(bodies, expected);
}

#[test]
fn a_partition_detached_meanwhile_is_read_to_its_end() {
    let (cluster, receiver) = stage();
    cluster.sql(
        "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (1000);
         CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (1000) TO (2000);
         CREATE TABLE p3 PARTITION OF p FOR VALUES FROM (2000) TO (3000);
         INSERT INTO p SELECT generate_series(0, 2999)",
    );
    cluster.subscribe(&receiver, "s", "tables => '{public.p}', batch_size => 10");
    // Whose table is locked is not over before it is paused; and nothing is read before the table is.
    cluster.sql("SELECT pgwh.pause('s')");
    let id = backfill(&cluster, "'s', 'public.p', chunk_size => 10");
    let mut holder = cluster.connect();
    holder.batch_execute("BEGIN; LOCK TABLE p3").unwrap();
    cluster.sql("SELECT pgwh.resume('s')");
    receiver.wait_for(1, harness::PATIENCE).unwrap();
    cluster.sql(&format!("SELECT pgwh.pause_backfill({id})"));
    cluster.wait_true("SELECT state = 'paused' FROM pgwh.backfills");
    holder.batch_execute("ROLLBACK").unwrap();
    cluster
        .each(&["ALTER TABLE p DETACH PARTITION p2", "INSERT INTO p2 VALUES (1999) ON CONFLICT DO NOTHING"]);
    cluster.sql(&format!("SELECT pgwh.resume_backfill({id})"));
    done(&cluster, &id);
    let events = cluster.delivered(&receiver, "s");
    let keys = |from: i64| {
        let ids = events.iter().map(|event| event["key"]["id"].as_i64().unwrap());
        ids.filter(|id| (from..from + 1000).contains(id)).count()
    };
    assert_eq!((keys(0), keys(2000)), (1000, 1000), "of what is still of the table");
}

#[test]
fn rows_of_a_database_in_another_encoding_are_read_as_utf8() {
    let (cluster, receiver) = stage();
    cluster.sql("CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
    let latin = cluster.database("latin");
    latin.sql("CREATE EXTENSION pgstream_hooks; CREATE TABLE t (id text PRIMARY KEY, v text)");
    latin.sql("INSERT INTO t SELECT 'clé ' || n, 'naïve' FROM generate_series(1, 100) n");
    latin.subscribe(&receiver, "s", "tables => '{public.t}'");
    let id = backfill(&latin, "'s', 'public.t', chunk_size => 7");
    done(&latin, &id);
    let events = latin.delivered(&receiver, "s");
    assert_eq!(events.len(), 100);
    assert!(events.iter().all(|event| event["record"]["v"] == "naïve" && event.text("action") == "read"));
    assert!(events.iter().any(|event| event["key"] == json!({"id": "clé 100"})));
}

#[test]
fn a_read_row_is_explained_resent_and_forgotten_like_a_change() {
    let (cluster, receiver) = stage();
    cluster.sql("INSERT INTO t SELECT n, 'secret' FROM generate_series(1, 3) n");
    cluster.subscribe(&receiver, "s", "tables => '{public.t}', retry_schedule => '{}'");
    receiver.behave(Script::fail_key(json!({"id": 2}), 422));
    let id = backfill(&cluster, "'s'");
    done(&cluster, &id);
    cluster.wait_status("s", "dead = 1 AND pending = 0");
    let why = cluster.column("SELECT action || ' ' || fate FROM pgwh.why('public.t', '{\"id\": 2}')");
    assert_eq!(why, ["read dead"]);
    receiver.behave(|_: &harness::Request| Reply::status(200));
    receiver.clear();
    cluster.sql("SELECT pgwh.redeliver((SELECT id FROM pgwh.dead_letters))");
    receiver.wait_for(1, harness::PATIENCE).unwrap();
    assert_eq!(distinct(events_of(&receiver, "s"))[0]["key"], json!({"id": 2}));
    cluster.wait_true("SELECT count(*) = 0 FROM pgwh.dead_letters");
    cluster.sql("SELECT * FROM pgwh.forget('public.t', '{\"id\": 1}')");
    let kept =
        cluster.column("SELECT key->>'id' FROM pgwh.events WHERE data->'record'->>'v' = 'secret' ORDER BY 1");
    assert_eq!(kept, ["2", "3"]);
}
