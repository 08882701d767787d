//! What `pgwh.status` and `pgwh.health` say when something is not well, and that they do not make up figures.

use harness::{Cluster, Receiver, Reply, Script};

fn stage() -> (Cluster, Receiver) {
    let cluster = Cluster::with_extension();
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY)");
    (cluster, Receiver::start().unwrap())
}

fn health(cluster: &Cluster, check: &str) -> Vec<String> {
    let row =
        cluster.rows(&format!("SELECT ok, detail, hint FROM pgwh.health() WHERE check_name = '{check}'"));
    row.into_iter().flatten().map(Option::unwrap_or_default).collect()
}

#[test]
fn dead_letters_are_named_until_they_are_redelivered() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "tables => '{public.t}', retry_schedule => '{}'");
    receiver.behave(Script::always(Reply::status(422)));
    cluster.sql("INSERT INTO t VALUES (1), (2)");
    cluster.wait_status("s", "dead = 2");
    receiver.behave(Script::default());
    // A later success does not make them good.
    cluster.sql("INSERT INTO t VALUES (3)");
    assert_eq!(cluster.value("SELECT pgwh.wait('s', '60 s')"), "t");
    cluster.wait_status("s", "state = 'active' AND reason = '2 events were given up (dead letters)'");
    let step = cluster.status("s", "next_step");
    assert_eq!(
        step,
        "SELECT id, event_id, attempts, reason FROM pgwh.dead_letters WHERE subscription = 's';"
    );
    assert_eq!(cluster.rows(&step).len(), 2);
    let check = health(&cluster, "dead letters");
    assert_eq!(check[..2], ["f", "s: 2 events were given up"]);
    // They outlive the server's memory.
    cluster.restart(harness::Stop::Fast);
    cluster.wait_status("s", "reason = '2 events were given up (dead letters)'");
    let again = check[2].rsplit_once("again: ").unwrap().1;
    cluster.sql(again);
    cluster.wait_status("s", "reason IS NULL AND next_step IS NULL");
    assert_eq!(health(&cluster, "dead letters")[..2], ["t", "no event was given up"]);
}

#[test]
fn a_skipped_event_is_named_and_no_failing_check() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "tables => '{public.t}', retry_schedule => '{1h}'");
    receiver.behave(Script::always(Reply::status(500)));
    cluster.sql("INSERT INTO t VALUES (1)");
    cluster.wait_status("s", "retrying = 1");
    cluster.wait_true("SELECT count(*) = 1 FROM pgwh.deliveries WHERE state = 'retrying'");
    cluster.sql("SELECT pgwh.skip(id) FROM pgwh.deliveries");
    cluster
        .wait_status("s", "reason LIKE '%1 events were given up%' OR next_step LIKE '%pgwh.dead_letters%'");
    assert_eq!(health(&cluster, "dead letters")[0], "t");
}

#[test]
fn figures_that_are_not_known_are_null() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "tables => '{public.t}'");
    cluster.wait_status("s", "pending = 0 AND delivered = 0 AND dead = 0 AND mode = 'live'");
    // Without workers nobody counts.
    cluster.sql("ALTER SYSTEM SET pgwh.enabled = off");
    cluster.sql("SELECT pg_reload_conf()");
    cluster.wait_status(
        "s",
        "pending IS NULL AND retrying IS NULL AND in_flight IS NULL AND delivered IS NULL AND dropped IS NULL
         AND dead IS NULL AND blocked_keys IS NULL AND mode IS NULL AND lag_bytes IS NULL AND lag_seconds IS NULL",
    );
    // What is in the journal is known.
    assert_eq!(cluster.value("SELECT pgwh.unsubscribe('s')"), "0");
}

#[test]
fn a_subscription_without_any_of_its_tables_is_in_error() {
    let (cluster, receiver) = stage();
    cluster.sql(
        "CREATE TABLE u (id int PRIMARY KEY); CREATE SCHEMA app; CREATE TABLE app.v (id int PRIMARY KEY)",
    );
    for (name, tables) in [("one", "{public.t}"), ("both", "{public.t, public.u}"), ("wild", "{app.*}")] {
        cluster.subscribe(&receiver, name, &format!("tables => '{tables}'"));
    }
    cluster.subscribe(&receiver, "messages", "tables => '{public.t}', event_types => '{insert, message}'");
    cluster.sql("DROP TABLE t; DROP SCHEMA app CASCADE");
    for name in ["one", "wild"] {
        cluster.wait_status(name, "state = 'error'");
        let step = cluster.status(name, "next_step");
        assert_eq!(step, format!("UPDATE pgwh.subscriptions SET tables = '{{...}}' WHERE name = '{name}';"));
    }
    assert!(cluster.status("one", "reason").contains("public.t"));
    assert!(cluster.status("wild", "reason").contains("app.*"));
    assert_eq!(cluster.status("both", "state"), "active");
    assert!(cluster.status("both", "reason").contains("public.t"));
    assert_eq!(cluster.status("messages", "state"), "active");
    cluster.sql("DROP TABLE u");
    cluster.wait_status("both", "state = 'error'");
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY)");
    cluster.wait_status("both", "state = 'active'");
    cluster.wait_status("one", "state = 'active' AND reason IS NULL");
}

#[test]
fn an_unlogged_table_is_to_be_set_logged() {
    let (cluster, receiver) = stage();
    cluster.sql("CREATE TABLE u (id int PRIMARY KEY)");
    cluster.subscribe(&receiver, "one", "tables => '{public.t}'");
    cluster.subscribe(&receiver, "both", "tables => '{public.t, public.u}'");
    cluster.sql("ALTER TABLE t SET UNLOGGED");
    cluster.wait_status("one", "state = 'error'");
    cluster.wait_status("both", "state = 'active'");
    for name in ["one", "both"] {
        assert_eq!(cluster.status(name, "next_step"), "ALTER TABLE public.t SET LOGGED;");
    }
    cluster.sql(&cluster.status("one", "next_step"));
    cluster
        .wait_status("one", "state = 'active' AND (next_step IS NULL OR next_step LIKE '%pgwh.backfill(%')");
}

#[test]
fn resume_is_true_when_it_tries_something_again() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "tables => '{public.t}', retry_schedule => '{1h,1h}'");
    cluster.wait_status("s", "pending = 0");
    assert_eq!(cluster.value("SELECT pgwh.resume('s')"), "f", "nothing waits");
    receiver.behave(Script::always(Reply::status(500)));
    cluster.sql("INSERT INTO t VALUES (1)");
    cluster.wait_status("s", "retrying = 1 AND in_flight = 0");
    receiver.behave(Script::default());
    assert_eq!(cluster.value("SELECT pgwh.resume('s')"), "t");
    assert_eq!(cluster.value("SELECT pgwh.wait('s', '60 s')"), "t");
}
