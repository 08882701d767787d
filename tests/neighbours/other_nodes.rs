//! Rows that are on other nodes, or come from them: what cannot be followed from here is refused or named.

use harness::{Cluster, Database, Receiver};

/// The catalog that Citus keeps, as far as it matters here.
fn citus(database: &Database, tables: &[&str]) {
    database.each(&[
        "SET allow_system_table_mods = on;
         CREATE TABLE pg_catalog.pg_dist_partition (logicalrelid regclass PRIMARY KEY, partmethod \"char\" NOT NULL);
         REVOKE ALL ON pg_catalog.pg_dist_partition FROM PUBLIC",
    ]);
    for table in tables {
        distribute(database, table);
    }
}

fn distribute(database: &Database, table: &str) {
    database.sql(&format!("INSERT INTO pg_catalog.pg_dist_partition VALUES ('{table}', 'h')"));
}

fn stage() -> (Cluster, Receiver) {
    let cluster = Cluster::with_extension();
    cluster.sql(
        "CREATE TABLE orders (id int PRIMARY KEY); CREATE TABLE here (id int PRIMARY KEY);
         INSERT INTO orders SELECT generate_series(1, 100); INSERT INTO here VALUES (1)",
    );
    (cluster, Receiver::start().unwrap())
}

#[test]
fn a_table_of_citus_is_refused_when_subscribing() {
    let (cluster, receiver) = stage();
    citus(&cluster, &["orders"]);
    let url = receiver.url("/s");
    for tables in ["public.orders", "orders", "public.*", "*.*", "public.o*"] {
        let refusal = cluster
            .refused(&format!("SELECT pgwh.subscribe('{url}', name => 's', tables => '{{{tables}}}')"));
        assert_eq!(refusal.code, "0A000", "{tables}: {refusal:?}");
        assert!(refusal.detail.contains("Citus") && refusal.detail.contains("orders"), "{refusal:?}");
        assert!(!refusal.hint.is_empty(), "{refusal:?}");
        if tables == "public.*" {
            // The HINT is what to type.
            let (_, tables) = refusal.hint.split_once("tables => ").expect("tables");
            cluster.sql(&format!("SELECT pgwh.subscribe('{url}', name => 's', tables => {tables})"));
            cluster.sql("SELECT pgwh.unsubscribe('s')");
        }
    }
    let refusal = cluster.refused(&format!("SELECT pgwh.subscribe('{url}')"));
    assert_eq!(refusal.code, "0A000", "{refusal:?}");
    cluster.subscribe(&receiver, "s", "tables => '{public.here}'");
    let refusal =
        cluster.refused("UPDATE pgwh.subscriptions SET tables = '{public.orders}' WHERE name = 's'");
    assert_eq!(refusal.code, "0A000", "{refusal:?}");
    cluster.sql("INSERT INTO here VALUES (2)");
    assert_eq!(cluster.delivered(&receiver, "s").len(), 1);
    // Others than the extension's owner may not read that catalog, and are refused all the same.
    cluster.sql(
        "CREATE ROLE app LOGIN; GRANT SELECT ON orders, here TO app;
         GRANT USAGE ON SCHEMA pgwh, pgwh_internal TO app;
         GRANT SELECT, INSERT, UPDATE, DELETE ON pgwh.subscriptions TO app;
         GRANT SELECT ON pgwh_internal.installation, pgwh.status TO app;
         GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgwh, pgwh_internal TO app",
    );
    let app = cluster.as_role("app");
    let refusal =
        app.refused(&format!("SELECT pgwh.subscribe('{url}', name => 'app', tables => '{{public.orders}}')"));
    assert_eq!(refusal.code, "0A000", "{refusal:?}");
    app.sql(&format!("SELECT pgwh.subscribe('{url}', name => 'app', tables => '{{public.here}}')"));
}

#[test]
fn a_table_that_is_distributed_later_is_named() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "named", "tables => '{public.orders}'");
    cluster.subscribe(&receiver, "wild", "tables => '{public.*}'");
    cluster.subscribe(&receiver, "other", "tables => '{public.here}'");
    cluster.wait_true("SELECT bool_and(ok) FROM pgwh.health()");
    citus(&cluster, &["orders"]);
    for name in ["named", "wild"] {
        assert!(cluster.status(name, "reason").contains("orders"), "{}", cluster.status(name, "reason"));
        // Nothing of it is sent: neither its own rows nor those of other nodes.
        let refusal = cluster.refused(&format!("SELECT pgwh.backfill('{name}', 'public.orders')"));
        assert!(refusal.detail.contains("Citus") && !refusal.hint.is_empty(), "{refusal:?}");
    }
    assert_eq!(cluster.status("other", "reason"), "");
    let check = cluster.rows("SELECT ok, detail FROM pgwh.health() WHERE check_name = 'subscriptions valid'");
    assert_eq!(check[0][0].as_deref(), Some("f"));
    let detail = check[0][1].as_deref().unwrap();
    assert!(detail.contains("named:") && detail.contains("wild:") && !detail.contains("other:"), "{detail}");
    assert!(cluster.delivered(&receiver, "wild").is_empty());
}

#[test]
fn a_backfill_of_a_table_that_is_distributed_meanwhile_fails() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "tables => '{public.orders}'");
    cluster.sql("SELECT pgwh.pause('s')");
    let id = cluster.value("SELECT pgwh.backfill('s')");
    citus(&cluster, &["orders"]);
    cluster.sql("SELECT pgwh.resume('s')");
    cluster.wait_true(&format!("SELECT state = 'failed' FROM pgwh.backfills WHERE id = {id}"));
    let reason = cluster.value(&format!("SELECT reason FROM pgwh.backfills WHERE id = {id}"));
    assert!(reason.contains("other nodes") && reason.contains(&format!("cancel_backfill({id})")), "{reason}");
    cluster.wait_status("s", "pending = 0");
    assert_eq!(receiver.count(), 0);
}

/// What `health()` says of logical subscriptions.
fn check(database: &Database) -> [String; 3] {
    let rows = database
        .rows("SELECT ok, detail, hint FROM pgwh.health() WHERE check_name = 'logical subscriptions'");
    let mut row = rows.into_iter().next().expect("a row").into_iter().map(Option::unwrap_or_default);
    std::array::from_fn(|_| row.next().expect("three columns"))
}

#[test]
fn a_logical_subscription_that_fails_is_named_by_health() {
    let cluster = Cluster::with_extension();
    cluster.sql("CREATE DATABASE source");
    let source = cluster.database("source");
    source.sql("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t");
    source.sql("SELECT pg_create_logical_replication_slot('hub', 'pgoutput')");
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY)");
    assert_eq!(check(&cluster)[0], "t");
    let host = cluster.host().display();
    cluster.sql(&format!(
        "CREATE SUBSCRIPTION hub CONNECTION 'host={host} dbname=source user=postgres' PUBLICATION p
         WITH (create_slot = false, slot_name = 'hub', copy_data = false)"
    ));
    source.sql("INSERT INTO t VALUES (1)");
    cluster.wait_true("SELECT count(*) = 1 FROM t");
    cluster.wait_true("SELECT ok FROM pgwh.health() WHERE check_name = 'logical subscriptions'");
    // A row is in the way of one that comes.
    cluster.sql("INSERT INTO t VALUES (2)");
    source.sql("INSERT INTO t VALUES (2)");
    cluster.wait_true("SELECT apply_error_count >= 1 FROM pg_stat_subscription_stats");
    let [ok, detail, hint] = check(&cluster);
    assert_eq!(ok, "f", "{detail}");
    assert!(detail.contains("hub"), "{detail}");
    // Also when its worker happens to be there.
    for _ in 0..3 {
        let errors = cluster.value("SELECT apply_error_count FROM pg_stat_subscription_stats");
        cluster.wait_true(&format!("SELECT apply_error_count > {errors} FROM pg_stat_subscription_stats"));
        assert_eq!(check(&cluster)[0], "f");
    }
    // The HINT ends it, and another database has nothing to do with it.
    let (_, command) = hint.split_once("until that is fixed: ").expect("a command");
    cluster.sql(command);
    assert_eq!(check(&cluster)[0], "t", "one that is disabled does not fail");
    source.sql("CREATE EXTENSION pgstream_hooks");
    assert_eq!(check(&source)[0], "t");
    // Fixed, it goes on.
    cluster.sql("DELETE FROM t WHERE id = 2; ALTER SUBSCRIPTION hub ENABLE");
    cluster.wait_true("SELECT count(*) = 2 FROM t");
    cluster.sql("ALTER SUBSCRIPTION hub SET (disable_on_error = true); INSERT INTO t VALUES (3)");
    source.sql("INSERT INTO t VALUES (3)");
    cluster.wait_true("SELECT NOT subenabled FROM pg_subscription");
    let [ok, detail, _] = check(&cluster);
    assert!(ok == "f" && detail.contains("disabled"), "{detail}");
    cluster.sql("ALTER SUBSCRIPTION hub DISABLE; ALTER SUBSCRIPTION hub SET (slot_name = NONE); DROP SUBSCRIPTION hub");
    assert_eq!(check(&cluster)[0], "t");
}
