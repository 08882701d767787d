//! What is read: which tables and rows, in which form, and what is refused.

use harness::{Cluster, Receiver, distinct, events_of};
use serde_json::{Value, json};

use crate::{backfill, done, ended, stage};

/// Backfills and returns the keys that came, in order of arrival, with one connection.
fn keys(cluster: &Cluster, receiver: &Receiver, name: &str, arguments: &str) -> Vec<Value> {
    let id = backfill(cluster, &format!("'{name}'{arguments}"));
    done(cluster, &id);
    cluster.delivered(receiver, name);
    let keys = distinct(events_of(receiver, name)).iter().map(|event| event["key"].clone()).collect();
    receiver.clear();
    keys
}

fn ids(keys: &[Value]) -> Vec<i64> {
    keys.iter().map(|key| key["id"].as_i64().unwrap()).collect()
}

#[test]
fn filters_of_backfill_and_subscription_both_hold() {
    let (cluster, receiver) = stage();
    cluster.sql("ALTER TABLE t REPLICA IDENTITY FULL; INSERT INTO t SELECT n, CASE WHEN n % 2 = 0 THEN 'even' ELSE 'odd' END FROM generate_series(1, 1000) n");
    cluster.subscribe(
        &receiver,
        "s",
        "tables => '{public.t}', ordering => 'strict', filter => 'v = ''even'''",
    );
    assert_eq!(ids(&keys(&cluster, &receiver, "s", "")), (1..=500).map(|n| 2 * n).collect::<Vec<_>>());
    let some = keys(&cluster, &receiver, "s", ", filter => 'id > 990 AND v IS NOT NULL'");
    assert_eq!(ids(&some), [992, 994, 996, 998, 1000]);
    let refusal = cluster.refused("SELECT pgwh.backfill('s', filter => 'no_such_column = 1')");
    assert!(!refusal.hint.is_empty() && refusal.detail.contains("no_such_column"), "{refusal:?}");
    // What a user wrote may not run in a worker.
    cluster.sql("CREATE FUNCTION mine(int) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT true'");
    cluster.refused("SELECT pgwh.backfill('s', filter => 'mine(id)')");
}

#[test]
fn rows_come_from_a_start_in_the_order_of_a_column() {
    let (cluster, receiver) = stage();
    cluster.sql(
        "ALTER TABLE t ADD COLUMN at timestamptz; CREATE INDEX ON t (at);
         INSERT INTO t SELECT n, 'v', '2026-01-01 00:00+00'::timestamptz + (1000 - n / 10) * interval '1 min'
         FROM generate_series(1, 1000) n; INSERT INTO t VALUES (5000, 'never')",
    );
    cluster.subscribe(&receiver, "s", "tables => '{public.t}', ordering => 'strict'");
    let arguments = ", order_by => 'at', start => '2026-01-01 16:00+00', chunk_size => 7";
    let found = ids(&keys(&cluster, &receiver, "s", arguments));
    let expected = cluster.column("SELECT id FROM t WHERE at >= '2026-01-01 16:00+00' ORDER BY at, id");
    assert_eq!(found, expected.iter().map(|id| id.parse().unwrap()).collect::<Vec<i64>>());
    let refusal = cluster.refused("SELECT pgwh.backfill('s', order_by => 'at')");
    assert!(refusal.detail.contains("null"), "{refusal:?}");
    assert_eq!(cluster.refused("SELECT pgwh.backfill('s', order_by => 'at', start => 'soon')").code, "22007");
    assert!(!cluster.refused("SELECT pgwh.backfill('s', start => '1')").hint.is_empty());
}

#[test]
fn keys_of_all_kinds_are_read_to_their_end() {
    let (cluster, receiver) = stage();
    // A server may be built without ICU, and then it has no such collations.
    let of_icu =
        "CREATE COLLATION any_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false)";
    if cluster.try_sql(of_icu).is_err() {
        cluster.sql("CREATE COLLATION any_case FROM \"C\"");
    }
    cluster.sql(
        r#"CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
        CREATE TABLE pairs (b text COLLATE "C", a int, "odd ""name" int, PRIMARY KEY (a, b));
        INSERT INTO pairs SELECT chr(97 + n % 26) || n, n / 10, n FROM generate_series(0, 999) n;
        ALTER TABLE pairs DROP COLUMN "odd ""name"; ALTER TABLE pairs ADD COLUMN later int DEFAULT 7;
        CREATE TABLE words (w text PRIMARY KEY);
        INSERT INTO words SELECT (ARRAY['a', 'B', 'ä', 'Z', '_', ' ', 'é'])[1 + n % 7] || n FROM generate_series(0, 999) n;
        CREATE TABLE folded (w text COLLATE any_case PRIMARY KEY);
        INSERT INTO folded SELECT CASE WHEN n % 2 = 0 THEN 'W' ELSE 'w' END || n FROM generate_series(0, 999) n;
        CREATE TABLE moods (m mood, u uuid, PRIMARY KEY (m, u));
        INSERT INTO moods SELECT (enum_range(NULL::mood))[1 + n % 3], gen_random_uuid() FROM generate_series(0, 999) n;
        CREATE TABLE decimals (n numeric, f float8, PRIMARY KEY (f, n));
        INSERT INTO decimals SELECT n / 3.0, n / 7.0::float8 FROM generate_series(0, 999) n;
        CREATE TABLE indexed (id int NOT NULL, name text NOT NULL); CREATE UNIQUE INDEX by_name ON indexed (name);
        ALTER TABLE indexed REPLICA IDENTITY USING INDEX by_name;
        INSERT INTO indexed SELECT n, 'n' || n FROM generate_series(0, 999) n"#,
    );
    for table in ["pairs", "words", "folded", "moods", "decimals", "indexed"] {
        cluster.subscribe(&receiver, table, &format!("tables => '{{public.{table}}}', batch_size => 50"));
        let id = backfill(&cluster, &format!("'{table}', chunk_size => 9"));
        done(&cluster, &id);
        let events = cluster.delivered(&receiver, table);
        let mut keys: Vec<String> = events.iter().map(|event| event["key"].to_string()).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!((events.len(), keys.len()), (1000, 1000), "{table}");
    }
    assert_eq!(events_of(&receiver, "pairs")[0]["record"], json!({"b": "a0", "a": 0, "later": 7}));
}

#[test]
fn large_values_are_whole() {
    let (cluster, receiver) = stage();
    cluster.sql("ALTER TABLE t ALTER v SET STORAGE EXTERNAL; INSERT INTO t SELECT n, repeat(n::text, 100000) FROM generate_series(1, 30) n");
    cluster.subscribe(&receiver, "s", "tables => '{public.t}'");
    let id = backfill(&cluster, "'s'");
    done(&cluster, &id);
    let events = cluster.delivered(&receiver, "s");
    assert_eq!(events.len(), 30);
    for event in events {
        assert_eq!(event["record"]["v"], event["key"]["id"].to_string().repeat(100_000));
    }
}

#[test]
fn a_pattern_reads_partitions_created_meanwhile_too() {
    let (cluster, receiver) = stage();
    cluster.sql(
        "CREATE SCHEMA sales; CREATE TABLE sales.a (id int PRIMARY KEY); CREATE TABLE sales.b (id int PRIMARY KEY);
         CREATE TABLE sales.p (id int PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE TABLE sales.p1 PARTITION OF sales.p FOR VALUES FROM (0) TO (1000);
         CREATE TABLE sales.p2 PARTITION OF sales.p FOR VALUES FROM (1000) TO (2000);
         CREATE TABLE elsewhere (id int PRIMARY KEY); INSERT INTO elsewhere SELECT generate_series(2000, 2999);
         INSERT INTO sales.a SELECT generate_series(1, 500); INSERT INTO sales.b SELECT generate_series(1, 500);
         INSERT INTO sales.p SELECT generate_series(0, 1999); INSERT INTO t VALUES (1, 'other')",
    );
    cluster.subscribe(&receiver, "s", "tables => '{*.*}', batch_size => 100");
    // Whose table is locked is not over before it is paused; and nothing is read before the table is.
    cluster.sql("SELECT pgwh.pause('s')");
    let id = backfill(&cluster, "'s', 'sales.*', chunk_size => 100");
    let mut holder = cluster.connect();
    holder.batch_execute("BEGIN; LOCK TABLE sales.p2").unwrap();
    cluster.sql("SELECT pgwh.resume('s')");
    receiver.wait_for(1, harness::PATIENCE).unwrap();
    cluster.sql("SELECT pgwh.pause_backfill(1)");
    cluster.wait_true("SELECT state = 'paused' FROM pgwh.backfills");
    holder.batch_execute("ROLLBACK").unwrap();
    cluster.each(&[
        "ALTER TABLE sales.p ATTACH PARTITION elsewhere FOR VALUES FROM (2000) TO (3000)",
        "ALTER TABLE sales.a ADD COLUMN more int DEFAULT 5",
        "SELECT pgwh.resume_backfill(1)",
    ]);
    done(&cluster, &id);
    let events = cluster.delivered(&receiver, "s");
    let of = |table: &str| events.iter().filter(|event| event.text("table") == table).count();
    assert_eq!((of("a"), of("b"), of("p"), of("t")), (500, 500, 3000, 0));
    assert_eq!(
        cluster.value("SELECT (tables_done, tables_total, rows_done) FROM pgwh.backfills"),
        "(5,5,4000)"
    );
}

#[test]
fn a_table_that_is_dropped_meanwhile_is_read_to_its_end() {
    let (cluster, receiver) = stage();
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 10000) n");
    cluster.subscribe(&receiver, "s", "tables => '{public.t}', batch_size => 20, max_in_flight => 4");
    receiver.behave(|_: &harness::Request| {
        harness::Reply::status(200).after(std::time::Duration::from_millis(20))
    });
    let id = backfill(&cluster, "'s', chunk_size => 100");
    receiver.wait_for(10, harness::PATIENCE).unwrap();
    cluster.sql("DROP TABLE t");
    done(&cluster, &id);
}

#[test]
fn a_table_that_is_dropped_before_it_is_read_is_named() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "tables => '{public.t}'");
    cluster.sql("BEGIN; LOCK TABLE t; SELECT pgwh.backfill('s'); DROP TABLE t; COMMIT");
    ended(&cluster, "1");
    assert_eq!(cluster.value("SELECT state FROM pgwh.backfills"), "failed");
    let reason = cluster.value("SELECT reason FROM pgwh.backfills");
    assert!(reason.starts_with("there was no table to read that matches public.t;"), "{reason}");
    // What it says to type when there is one again.
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1)");
    cluster.sql(reason.split_once(": ").unwrap().1);
    cluster.wait_true("SELECT state <> 'failed' FROM pgwh.backfills");
    done(&cluster, "1");
}

#[test]
fn what_can_not_be_read_row_by_row_is_refused_with_a_way_out() {
    let (cluster, receiver) = stage();
    cluster.sql(
        "CREATE TABLE heap (id int); CREATE TABLE silent (id int PRIMARY KEY);
         ALTER TABLE silent REPLICA IDENTITY NOTHING",
    );
    cluster.subscribe(&receiver, "s", "tables => '{public.t, public.heap, public.silent}'");
    for table in ["heap", "silent"] {
        let refusal = cluster.refused(&format!("SELECT pgwh.backfill('s', 'public.{table}')"));
        assert!(refusal.message.contains(table) && !refusal.hint.is_empty(), "{refusal:?}");
    }
    let refusal = cluster.refused("SELECT pgwh.backfill('s', 'pg_catalog.pg_class')");
    assert!(!refusal.hint.is_empty(), "{refusal:?}");
    cluster.sql("CREATE TABLE stranger (id int PRIMARY KEY)");
    let refusal = cluster.refused("SELECT pgwh.backfill('s', 'public.stranger')");
    assert!(refusal.message.contains("not about"), "{refusal:?}");
    assert_eq!(cluster.refused("SELECT pgwh.backfill('s', 'public.t', chunk_size => 0)").code, "22023");
}

#[test]
fn the_hint_of_a_refused_backfill_makes_it_possible() {
    let (cluster, receiver) = stage();
    cluster.sql(
        "CREATE TABLE late (id int PRIMARY KEY DEFERRABLE, v text);
         CREATE TABLE silent (id int PRIMARY KEY, v text); ALTER TABLE silent REPLICA IDENTITY NOTHING;
         CREATE TABLE quiet (id int PRIMARY KEY DEFERRABLE, v text); ALTER TABLE quiet REPLICA IDENTITY NOTHING;
         CREATE TABLE lost (id int PRIMARY KEY, code int NOT NULL, v text); CREATE UNIQUE INDEX gone ON lost (code);
         ALTER TABLE lost REPLICA IDENTITY USING INDEX gone; DROP INDEX gone;
         CREATE TABLE \"Indexed\" (v text, id int NOT NULL); CREATE UNIQUE INDEX \"By id\" ON \"Indexed\" (id);
         CREATE TABLE whole (v text, id int NOT NULL UNIQUE); ALTER TABLE whole REPLICA IDENTITY FULL;
         CREATE TABLE later (v text, id int NOT NULL UNIQUE DEFERRABLE)",
    );
    let receives = |name: &str, table: &str| {
        cluster.sql(&format!("INSERT INTO {table} (id, v) SELECT n, 'v' || n FROM generate_series(1, 20) n"));
        if table == "lost" {
            cluster.sql("UPDATE lost SET code = -id");
        }
        cluster.subscribe(&receiver, name, &format!("tables => ARRAY['public.{table}']"));
        let refusal = cluster.refused(&format!("SELECT pgwh.backfill('{name}')"));
        assert_eq!(refusal.code, "22023", "{refusal:?}");
        let (typed, _) = refusal.hint.split_once("; or ").unwrap_or_else(|| panic!("{refusal:?}"));
        cluster.sql(typed);
        let id = backfill(&cluster, &format!("'{name}', chunk_size => 3"));
        done(&cluster, &id);
        let events = cluster.delivered(&receiver, name);
        let mut keys: Vec<i64> = events
            .iter()
            .filter(|event| event.text("action") == "read")
            .map(|event| event["key"]["id"].as_i64().unwrap())
            .collect();
        keys.sort_unstable();
        assert_eq!(keys, (1..=20).collect::<Vec<_>>(), "{typed}");
    };
    cluster.sql("ALTER TABLE lost ALTER code SET DEFAULT 0");
    for table in ["late", "silent", "quiet", "lost", "whole", "later"] {
        receives(table, table);
    }
    receives("indexed", "\"Indexed\"");
}

#[test]
fn rows_of_a_deferrable_key_are_in_order_with_changes() {
    let (cluster, receiver) = stage();
    cluster.sql(
        "CREATE TABLE list (id int PRIMARY KEY DEFERRABLE, v text); ALTER TABLE list ALTER v SET STORAGE EXTERNAL;
         ALTER TABLE list REPLICA IDENTITY FULL;
         INSERT INTO list SELECT n, n || repeat('v', 3000) FROM generate_series(1, 3000) n",
    );
    cluster.subscribe(&receiver, "s", "tables => '{public.list}', batch_size => 20, max_in_flight => 4");
    receiver.behave(|_: &harness::Request| {
        harness::Reply::status(200).after(std::time::Duration::from_millis(5))
    });
    let id = backfill(&cluster, "'s', chunk_size => 50");
    for n in 0..20 {
        receiver.wait_for(1 + n, harness::PATIENCE).unwrap();
        // Each row gets the key that another one had.
        cluster.sql("UPDATE list SET id = 3001 - id WHERE id BETWEEN 1400 AND 1601");
        cluster.sql(&format!("UPDATE list SET id = -id WHERE id IN (2000 + {n}, -2000 - {n})"));
    }
    done(&cluster, &id);
    let events = cluster.delivered(&receiver, "s");
    // Both rows of a swap are told whole, so the last event of a key is its row.
    let mut last = std::collections::BTreeMap::new();
    for event in &events {
        if let Some(old) = event["old_key"]["id"].as_i64() {
            last.entry(old).and_modify(|row| *row = Value::Null);
        }
        last.insert(event["key"]["id"].as_i64().unwrap(), event["record"]["v"].clone());
    }
    last.retain(|_, row| !row.is_null());
    let truth = cluster.rows("SELECT id, v FROM list ORDER BY id");
    let mut missing = Vec::new();
    for row in &truth {
        let id: i64 = row[0].as_deref().unwrap().parse().unwrap();
        if !last.contains_key(&id) {
            missing.push(id);
        }
    }
    assert!(missing.is_empty(), "{} of {} rows are missing: {missing:?}", missing.len(), truth.len());
}

#[test]
fn subscribe_from_the_beginning_sends_rows_then_changes() {
    let (cluster, receiver) = stage();
    cluster.sql("INSERT INTO t SELECT n, 'before' FROM generate_series(1, 300) n");
    cluster.subscribe(&receiver, "s", "tables => '{public.t}', backfill => true");
    cluster.sql("UPDATE t SET v = 'after' WHERE id = 7");
    done(&cluster, "1");
    let events = cluster.delivered(&receiver, "s");
    let seven: Vec<_> = events.iter().filter(|event| event["key"]["id"] == 7).collect();
    assert_eq!(seven.last().unwrap()["record"]["v"], "after");
    let keys: std::collections::BTreeSet<i64> =
        events.iter().map(|event| event["key"]["id"].as_i64().unwrap()).collect();
    assert_eq!(keys, (1..=300).collect());
}

#[test]
fn reads_look_as_each_format_has_them() {
    let (cluster, receiver) = stage();
    cluster.sql("INSERT INTO t VALUES (1, 'one')");
    for format in ["pgwh", "pgstream", "sequin", "supabase", "cloudevents"] {
        cluster.subscribe(&receiver, format, &format!("tables => '{{public.t}}', format => '{format}'"));
        let id = backfill(&cluster, &format!("'{format}'"));
        done(&cluster, &id);
        assert_eq!(cluster.value(&format!("SELECT pgwh.wait('{format}', '60 s')")), "t");
    }
    let body = |format: &str| {
        let requests = receiver.requests();
        let request = requests.iter().find(|request| request.path() == format!("/{format}")).unwrap();
        harness::json(std::str::from_utf8(request.body()).unwrap()).unwrap()
    };
    assert_eq!(body("pgwh")["type"], "public.t.read");
    assert_eq!(body("pgwh")["data"]["record"], json!({"id": 1, "v": "one"}));
    let data = &body("pgstream")["Data"];
    assert_eq!((&data["action"], &data["identity"]), (&json!("I"), &Value::Null));
    assert_eq!(data["columns"][1]["value"], "one");
    let message = &body("sequin")["data"][0];
    assert_eq!((&message["action"], &message["changes"]), (&json!("read"), &Value::Null));
    assert_eq!(message["record"]["v"], "one");
    assert_eq!(
        body("supabase"),
        json!({"type": "INSERT", "schema": "public", "table": "t",
        "record": {"id": 1, "v": "one"}, "old_record": null})
    );
    assert_eq!(body("cloudevents")["type"], "pgwh.read");
}

#[test]
fn the_owner_of_a_subscription_must_be_allowed_to_read() {
    let (cluster, receiver) = stage();
    cluster.sql(
        "INSERT INTO t SELECT n FROM generate_series(1, 10) n; CREATE ROLE reader LOGIN;
         CREATE TABLE parted (id int PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE TABLE part PARTITION OF parted FOR VALUES FROM (0) TO (100); INSERT INTO parted VALUES (1), (2);
         GRANT SELECT ON parted TO reader",
    );
    cluster.subscribe(&receiver, "s", "tables => '{public.t, public.parted}'");
    cluster.sql("GRANT SELECT ON t TO reader");
    cluster.sql("UPDATE pgwh.subscriptions SET owner = 'reader'");
    cluster.sql("REVOKE SELECT ON t FROM reader");
    let refusal = cluster.refused("SELECT pgwh.backfill('s', 'public.t')");
    assert_eq!(refusal.code, "42501");
    // Who may read the whole may read its parts.
    let id = backfill(&cluster, "'s', 'public.parted'");
    done(&cluster, &id);
    cluster.sql("GRANT SELECT ON t TO reader; ALTER TABLE t ENABLE ROW LEVEL SECURITY");
    assert_eq!(cluster.refused("SELECT pgwh.backfill('s', 'public.t')").code, "42501");
    cluster.sql("ALTER TABLE t DISABLE ROW LEVEL SECURITY");
    let id = backfill(&cluster, "'s', 'public.t'");
    done(&cluster, &id);
    // A right that is taken away ends it, with the reason; given back, it goes on.
    cluster.sql("BEGIN; SELECT pgwh.backfill('s', 'public.t'); REVOKE SELECT ON t FROM reader; COMMIT");
    ended(&cluster, "3");
    let row = cluster.rows("SELECT state, reason FROM pgwh.backfills WHERE id = 3");
    assert_eq!(row[0][0].as_deref(), Some("failed"));
    assert!(row[0][1].as_deref().unwrap().contains("may not read"), "{row:?}");
    cluster.each(&["GRANT SELECT ON t TO reader", "SELECT pgwh.resume_backfill(3)"]);
    cluster.wait_true("SELECT state = 'done' FROM pgwh.backfills WHERE id = 3");
}
