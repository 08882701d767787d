//! Partitions are shown as the tables that their subscriptions name.

use harness::{Event, Reply, Script, Server, Stage, Which, distinct, events, what};
use serde_json::json;

#[test]
fn a_partitioned_table_stands_for_its_partitions() {
    let stage = Stage::set();
    stage.sql(
        "CREATE TABLE sales (id int, day date, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
         CREATE TABLE sales_2026 PARTITION OF sales FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')
           PARTITION BY LIST (id);
         CREATE TABLE sales_2026_rest PARTITION OF sales_2026 DEFAULT;
         CREATE TABLE sales_2027 PARTITION OF sales FOR VALUES FROM ('2027-01-01') TO ('2028-01-01')",
    );
    let pure = |name: &str, tables: &str| {
        stage.subscribe(&stage.receiver, name, &format!("tables => '{{{tables}}}'"))
    };
    pure("by_root", "public.sales");
    pure("by_leaf", "public.sales_2027");
    pure("by_middle", "public.sales_2026");
    stage.each(&[
        "INSERT INTO sales VALUES (1, '2026-05-05'), (2, '2027-05-05')",
        "UPDATE sales SET day = '2027-06-06' WHERE id = 1",
        "INSERT INTO sales_2027 VALUES (3, '2027-07-07')",
        "TRUNCATE sales_2027",
        "TRUNCATE sales",
    ]);
    let told = |name: &str| {
        let mut events = stage.delivered(&stage.receiver, name);
        events.sort_by_key(Event::place);
        what(&events)
    };
    let root = told("by_root");
    assert_eq!(
        root,
        [
            "public.sales insert",
            "public.sales insert",
            // A row that moves is deleted here and inserted there.
            "public.sales delete",
            "public.sales insert",
            "public.sales insert",
            "public.sales_2027 truncate",
            "public.sales truncate",
        ]
    );
    let leaf = told("by_leaf");
    assert_eq!(
        leaf[..4],
        [
            "public.sales_2027 insert",
            "public.sales_2027 insert",
            "public.sales_2027 insert",
            "public.sales_2027 truncate"
        ]
    );
    let middle = told("by_middle");
    assert_eq!(middle[..2], ["public.sales_2026 insert", "public.sales_2026 delete"]);
    // `*.*` matches them all: the topmost names the event.
    assert_eq!(told("all")[0], "public.sales insert");
}

#[test]
fn a_partition_goes_by_the_name_that_the_table_above_has_now() {
    let stage = Stage::set();
    stage.each(&[
        "CREATE TABLE sales (id int, part int) PARTITION BY LIST (part)",
        "CREATE TABLE sales_1 PARTITION OF sales FOR VALUES IN (1)",
    ]);
    stage.subscribe(&stage.receiver, "trade", "tables => '{public.sales, shop.*}'");
    let events = stage.events_of(&[
        "INSERT INTO sales VALUES (1, 1)",
        "ALTER TABLE sales RENAME TO trade",
        "INSERT INTO trade VALUES (2, 1)",
        "CREATE SCHEMA shop; ALTER TABLE trade SET SCHEMA shop",
        "INSERT INTO shop.trade VALUES (3, 1)",
    ]);
    assert_eq!(what(&events), ["public.sales insert", "public.trade insert", "shop.trade insert"]);
    assert_eq!(what(&stage.got("trade")), ["public.sales insert", "shop.trade insert"]);
}

#[test]
fn partitions_with_another_column_order_send_the_same_rows() {
    let stage = Stage::set();
    stage.each(&[
        "CREATE TABLE t (a int, b text, part int, note text, PRIMARY KEY (a, b, part)) PARTITION BY LIST (part)",
        "CREATE TABLE t1 PARTITION OF t FOR VALUES IN (1)",
        "CREATE TABLE t2 (note text, gone int, b text NOT NULL, part int NOT NULL, a int NOT NULL)",
        "ALTER TABLE t2 DROP COLUMN gone",
        "ALTER TABLE t ATTACH PARTITION t2 FOR VALUES IN (2)",
    ]);
    stage.subscribe(&stage.receiver, "root", "tables => '{public.t}'");
    let events = stage.events_of(&[
        "INSERT INTO t VALUES (1, 'x', 1, 'n'), (1, 'y', 2, 'n')",
        "UPDATE t SET note = 'm'",
        "UPDATE t SET b = 'z' WHERE part = 2",
        "UPDATE t SET part = 2 WHERE part = 1",
        "DELETE FROM t WHERE b = 'x'",
    ]);
    let told: Vec<_> =
        events.iter().map(|event| json!([event["action"], event["key"], event["record"]])).collect();
    let key = |b: &str, part: i32| json!({"a": 1, "b": b, "part": part});
    let row = |b: &str, part: i32, note: &str| json!({"a": 1, "b": b, "part": part, "note": note});
    assert_eq!(
        told,
        [
            json!(["insert", key("x", 1), row("x", 1, "n")]),
            json!(["insert", key("y", 2), row("y", 2, "n")]),
            json!(["update", key("x", 1), row("x", 1, "m")]),
            json!(["update", key("y", 2), row("y", 2, "m")]),
            json!(["update", key("z", 2), row("z", 2, "m")]),
            json!(["delete", key("x", 1), key("x", 1)]),
            json!(["insert", key("x", 2), row("x", 2, "m")]),
            json!(["delete", key("x", 2), key("x", 2)]),
        ]
    );
}

#[test]
fn a_row_that_moves_between_partitions_stays_in_order() {
    let stage = Stage::set();
    // Partitions by what is no key, so that a row keeps its key when it moves.
    stage.each(&[
        "UPDATE pgwh.subscriptions SET retry_schedule = array_fill('10 ms'::interval, '{20}')",
        "CREATE TABLE t (a int NOT NULL, b text NOT NULL, part int, n int) PARTITION BY LIST (part)",
        "CREATE TABLE t1 PARTITION OF t FOR VALUES IN (1)",
        "CREATE TABLE t2 (n int, part int, b text NOT NULL, a int NOT NULL)",
        "ALTER TABLE t ATTACH PARTITION t2 FOR VALUES IN (2)",
        "CREATE UNIQUE INDEX k1 ON t1 (a, b); ALTER TABLE t1 REPLICA IDENTITY USING INDEX k1",
        "CREATE UNIQUE INDEX k2 ON t2 (b, a); ALTER TABLE t2 REPLICA IDENTITY USING INDEX k2",
    ]);
    stage.receiver.behave(Script::new(Which::Percent { percent: 40.0, seed: 11 }, Reply::status(500)));
    let mut script = String::from("INSERT INTO t SELECT n, 'r', 1, 0 FROM generate_series(1, 8) n;");
    for round in 1..12 {
        script += &format!("UPDATE t SET part = {}, n = {round};", round % 2 + 1);
    }
    stage.psql(&script);
    stage.delivered(&stage.receiver, "all");
    let all = distinct(events(&stage.receiver));
    assert_eq!(all.len(), 8 + 8 * 2 * 11);
    let mut last = std::collections::HashMap::new();
    for event in &all {
        let before = last.insert(event["key"]["a"].to_string(), event.place());
        assert!(before < Some(event.place()), "{}", event.whole);
    }
    assert_eq!(last.len(), 8);
}

#[test]
fn partitions_that_pg_partman_makes_and_detaches_are_followed() {
    // Debian has it for its own PostgreSQL alone.
    if Server::get().major() != 15 {
        return;
    }
    let stage = Stage::set();
    stage.each(&[
        "CREATE SCHEMA partman",
        "CREATE EXTENSION pg_partman SCHEMA partman",
        "CREATE TABLE sales (id bigint, note text, PRIMARY KEY (id)) PARTITION BY RANGE (id)",
        "SELECT partman.create_parent('public.sales', 'id', 'native', '10', p_premake => 2)",
    ]);
    stage.subscribe(&stage.receiver, "sales", "tables => '{public.sales}'");
    // Into the default partition, from where maintenance moves them into partitions that it makes.
    stage.each(&[
        "INSERT INTO sales SELECT id FROM generate_series(1, 5) id",
        "INSERT INTO sales SELECT id FROM generate_series(1001, 1005) id",
        "CALL partman.partition_data_proc('public.sales')",
        "UPDATE sales SET note = 'moved' WHERE id > 1000",
    ]);
    let of = |action: &str| {
        let events = stage.delivered(&stage.receiver, "sales");
        let events =
            events.iter().filter(|event| event["action"] == action && event["key"]["id"].is_number());
        let mut rows: Vec<_> =
            events.map(|event| (event["table"].clone(), event["key"]["id"].as_u64().unwrap())).collect();
        rows.sort_by_key(|row| row.1);
        rows
    };
    let rows = |ids: &[u64]| -> Vec<_> { ids.iter().map(|id| (json!("sales"), *id)).collect() };
    assert_eq!(of("update"), rows(&[1001, 1002, 1003, 1004, 1005]), "as the partitioned table's");
    stage.receiver.clear();
    // A partition that its retention detaches, and keeps, is another table from then on.
    stage.each(&[
        "UPDATE partman.part_config SET retention = '100', retention_keep_table = true, infinite_time_partitions = true",
        "SELECT partman.run_maintenance('public.sales')",
    ]);
    let detached =
        stage.value("SELECT count(*) FROM pg_class WHERE relname ~ '^sales_p' AND NOT relispartition");
    assert_ne!(detached, "0");
    stage.each(&["UPDATE sales_p0 SET note = 'old'", "UPDATE sales SET note = 'new' WHERE id = 1001"]);
    assert_eq!(of("update"), rows(&[1001]));
    assert_eq!(what(&stage.got("all")).iter().filter(|what| what.contains("sales_p0 update")).count(), 5);
    // Its template is a table of the user's, without a key and without rows: nothing is left out.
    let backfill = stage.value("SELECT pgwh.backfill('all')");
    stage.wait_true(&format!("SELECT state = 'done' FROM pgwh.backfills WHERE id = {backfill}"));
    let reason = stage.value(&format!("SELECT reason FROM pgwh.backfills WHERE id = {backfill}"));
    assert_eq!(reason, "");
    assert_ne!(stage.value("SELECT count(*) FROM pg_class WHERE relname ~ '^template_public_sales'"), "0");
}
