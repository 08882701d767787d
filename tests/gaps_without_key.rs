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
        "CREATE ROLE app LOGIN; GRANT USAGE ON SCHEMA pgwh TO app; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgwh TO app;
         GRANT SELECT ON ALL TABLES IN SCHEMA pgwh TO app",
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
