//! A gap always has a next step that is accepted: tables that cannot be read are left out of a backfill, named, and acknowledged.

use harness::{Cluster, DECODER, DISPATCHER, Receiver, Stop, events_of, eventually};

/// A subscription to all of `app.*` that has lost the slot: `app.t` has a key, `app.k` has none.
fn stage(tables: &str) -> (Cluster, Receiver) {
    let cluster = Cluster::with_extension();
    cluster.sql(
        "CREATE SCHEMA app; CREATE TABLE app.t (id int PRIMARY KEY); CREATE TABLE app.k (id int);
         INSERT INTO app.t VALUES (1); INSERT INTO app.k VALUES (1)",
    );
    let receiver = Receiver::start().unwrap();
    cluster.subscribe(&receiver, "s", &format!("tables => '{tables}'"));
    assert_eq!(cluster.value("SELECT pgwh.wait('s', '60 s')"), "t");
    lose_the_slot(&cluster);
    (cluster, receiver)
}

fn lose_the_slot(cluster: &Cluster) {
    cluster.wait_confirmed();
    let switch = |enabled: &str| {
        cluster.each(&[&format!("ALTER SYSTEM SET pgwh.enabled = {enabled}"), "SELECT pg_reload_conf()"]);
    };
    switch("off");
    eventually("at rest", || {
        (cluster.processes(DISPATCHER).is_empty() && cluster.processes(DECODER).is_empty()).then_some(())
    });
    cluster.sql("SELECT pg_drop_replication_slot(pgwh.slot_name()); INSERT INTO app.k VALUES (2)");
    switch("on");
    cluster.wait_true("SELECT count(*) = 1 FROM pgwh.gaps WHERE lost AND to_lsn IS NOT NULL");
    cluster.wait_status("s", "state = 'active' AND next_step IS NOT NULL");
}

fn check(cluster: &Cluster) -> Vec<String> {
    let row = cluster.rows("SELECT ok, detail, hint FROM pgwh.health() WHERE check_name = 'gaps'");
    row.into_iter().flatten().map(Option::unwrap_or_default).collect()
}

#[test]
fn a_backfill_of_all_tables_leaves_out_those_without_key() {
    let (cluster, receiver) = stage("{app.*}");
    let step = cluster.status("s", "next_step");
    assert_eq!(step, "SELECT pgwh.backfill('s');");
    cluster.sql(&step);
    cluster.wait_true("SELECT state = 'done' FROM pgwh.backfills");
    assert_eq!(cluster.value("SELECT tables_done || ' of ' || tables_total FROM pgwh.backfills"), "1 of 1");
    assert!(cluster.value("SELECT reason FROM pgwh.backfills").contains("app.k"));
    eventually("the row of the other table", || {
        events_of(&receiver, "s").iter().any(|event| event.text("table") == "t").then_some(())
    });
    // The gap of the table without a key is left, and is acknowledged.
    cluster.wait_true("SELECT table_name = 'app.k' FROM pgwh.open_gaps");
    assert!(check(&cluster)[1].contains("s misses changes of app.k"), "{:?}", check(&cluster));
    assert!(cluster.status("s", "reason").contains("it misses changes of app.k"));
    let step = cluster.status("s", "next_step");
    assert_eq!(step, format!("SELECT pgwh.acknowledge_gap({});", cluster.value("SELECT id FROM pgwh.gaps")));
    assert_eq!(check(&cluster)[2], step);
    cluster.sql(&step);
    assert_eq!(check(&cluster)[0], "t");
    assert_eq!((cluster.status("s", "next_step"), cluster.status("s", "reason")), Default::default());
    assert_eq!(
        cluster.value("SELECT acknowledged_at <= now() AND acknowledged_by = 'postgres' FROM pgwh.gaps"),
        "t",
        "on record"
    );
    cluster.restart(Stop::Fast);
    assert_eq!(check(&cluster)[0], "t");
}

#[test]
fn a_gap_of_nothing_but_tables_without_key_is_acknowledged() {
    let (cluster, _receiver) = stage("{app.k}");
    let step = cluster.status("s", "next_step");
    assert!(step.starts_with("SELECT pgwh.acknowledge_gap("), "{step}");
    let refusal = cluster.refused("SELECT pgwh.backfill('s')");
    assert!(refusal.message.contains("app.k"), "{refusal:?}");
    cluster.sql(&step);
    assert_eq!(check(&cluster)[0], "t");
}

#[test]
fn a_table_that_gets_a_key_later_closes_its_gap_by_a_backfill() {
    let (cluster, receiver) = stage("{app.t, app.k}");
    cluster.sql("SELECT pgwh.backfill('s')");
    cluster.wait_true("SELECT table_name = 'app.k' FROM pgwh.open_gaps");
    cluster.sql("ALTER TABLE app.k ADD PRIMARY KEY (id)");
    cluster.sql("SELECT pgwh.backfill('s', 'app.k')");
    assert_eq!(cluster.value("SELECT pgwh.wait('s', '60 s')"), "t");
    assert_eq!(
        events_of(&receiver, "s")
            .iter()
            .filter(|event| event.text("table") == "k" && event.text("action") == "read")
            .count(),
        2
    );
    assert_eq!(check(&cluster)[0], "t");
}

#[test]
fn a_backfill_that_names_a_table_without_key_is_refused() {
    let (cluster, _receiver) = stage("{app.*}");
    let refusal = cluster.refused("SELECT pgwh.backfill('s', 'app.k')");
    assert_eq!(refusal.message, "table app.k cannot be read row by row");
    // Left out of a pattern, and what is left is read.
    cluster.sql("SELECT pgwh.backfill('s', 'app.*')");
    cluster.wait_true("SELECT state = 'done' AND rows_done = 1 FROM pgwh.backfills");
}

#[test]
fn only_its_owner_acknowledges_a_gap_that_is_over() {
    let (cluster, _receiver) = stage("{app.*}");
    cluster.sql(
        "CREATE ROLE app LOGIN; GRANT USAGE ON SCHEMA pgwh, pgwh_internal TO app; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgwh, pgwh_internal TO app;
         GRANT SELECT ON ALL TABLES IN SCHEMA pgwh, pgwh_internal TO app",
    );
    let id = cluster.value("SELECT id FROM pgwh.gaps");
    let refusal = cluster.as_role("app").refused(&format!("SELECT pgwh.acknowledge_gap({id})"));
    assert_eq!(refusal.message, "there is no such gap");
    assert_eq!(cluster.refused("SELECT pgwh.acknowledge_gap(4711)").message, "there is no such gap");
    cluster.sql("UPDATE pgwh.subscriptions SET enabled = false");
    cluster.wait_true("SELECT count(*) = 1 FROM pgwh.gaps WHERE to_lsn IS NULL");
    let open = cluster.value("SELECT id FROM pgwh.gaps WHERE to_lsn IS NULL");
    assert_eq!(
        cluster.refused(&format!("SELECT pgwh.acknowledge_gap({open})")).message,
        "this gap is not over"
    );
}

/// A backfill of several tables goes on without those that come while it is read and that cannot be read.
#[test]
fn a_table_that_comes_during_a_backfill_is_left_out_and_named() {
    let cluster = Cluster::with_extension();
    cluster.each(&[
        "CREATE SCHEMA app",
        "CREATE TABLE app.t (id int PRIMARY KEY, placed date NOT NULL)",
        "INSERT INTO app.t SELECT n, '2026-01-01' FROM generate_series(1, 10) n",
        "CREATE ROLE ann LOGIN",
        "GRANT USAGE ON SCHEMA app TO ann",
        "GRANT SELECT ON app.t TO ann",
    ]);
    let receiver = Receiver::start().unwrap();
    cluster.subscribe(&receiver, "s", "tables => '{app.*}'");
    cluster.sql("UPDATE pgwh.subscriptions SET owner = 'ann'");
    // Nothing is read for a subscription that is paused.
    cluster.sql("SELECT pgwh.pause('s')");
    cluster.wait_status("s", "state = 'paused'");
    let all = cluster.value("SELECT pgwh.backfill('s', 'app.*', order_by => 'placed')");
    cluster.each(&[
        "CREATE TABLE app.keyless (id int, placed date NOT NULL)",
        "CREATE TABLE app.nulls (id int PRIMARY KEY, placed date)",
        "CREATE TABLE app.other (id int PRIMARY KEY, name text)",
        "CREATE TABLE app.secret (id int PRIMARY KEY, placed date NOT NULL)",
        "CREATE TABLE app.last (id int PRIMARY KEY, placed date NOT NULL)",
        "INSERT INTO app.keyless VALUES (1, '2026-01-01')",
        "INSERT INTO app.nulls VALUES (1, NULL)",
        "INSERT INTO app.other VALUES (1, 'a')",
        "INSERT INTO app.secret VALUES (1, '2026-01-01')",
        "INSERT INTO app.last VALUES (11, '2026-01-02')",
        "GRANT SELECT ON app.keyless, app.nulls, app.other, app.last TO ann",
    ]);
    cluster.sql("SELECT pgwh.resume('s')");
    cluster.wait_true(&format!("SELECT state = 'done' FROM pgwh.backfills WHERE id = {all}"));
    let row = cluster
        .rows("SELECT tables_done || ' of ' || tables_total, rows_done, percent, reason FROM pgwh.backfills");
    let cell = |n: usize| row[0][n].as_deref().unwrap();
    assert_eq!((cell(0), cell(1), cell(2)), ("2 of 2", "11", "100"), "{row:?}");
    for (table, reason) in [
        ("app.keyless", "has no primary key"),
        ("app.nulls", "rows whose placed is null have no place in its order"),
        ("app.other", "there is no column placed"),
        ("app.secret", "may not read table secret"),
    ] {
        assert!(cell(3).contains(table) && cell(3).contains(reason), "{table}: {}", cell(3));
    }
    assert_eq!(cluster.value("SELECT pgwh.wait('s', '60 s')"), "t");
    let read = events_of(&receiver, "s").iter().filter(|event| event.text("action") == "read").count();
    assert_eq!(read, 11);
}

/// Where nothing else is left to read, it fails, and goes on when the table can be read.
#[test]
fn a_backfill_of_nothing_but_a_table_without_key_fails() {
    let cluster = Cluster::with_extension();
    cluster.sql("CREATE SCHEMA late");
    let receiver = Receiver::start().unwrap();
    cluster.subscribe(&receiver, "s", "tables => '{late.*}'");
    cluster.sql("SELECT pgwh.pause('s')");
    cluster.wait_status("s", "state = 'paused'");
    let id = cluster.value("SELECT pgwh.backfill('s')");
    cluster.sql("CREATE TABLE late.k (id int); INSERT INTO late.k VALUES (1)");
    cluster.sql("SELECT pgwh.resume('s')");
    cluster.wait_true("SELECT state = 'failed' AND reason LIKE '%has no primary key%' FROM pgwh.backfills");
    cluster.sql("ALTER TABLE late.k ADD PRIMARY KEY (id)");
    cluster.sql(&format!("SELECT pgwh.resume_backfill({id})"));
    cluster.wait_true("SELECT state = 'done' AND rows_done = 1 FROM pgwh.backfills");
}
