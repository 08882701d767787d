//! A slot that is gone, or that the server has given up: a new one takes its place, what is missing is on record, and health
//! says so. Nothing fails in a loop.

use harness::{Cluster, DECODER, DISPATCHER, Event, Receiver, Setup, Stop, eventually};

const SLOT: &str = "SELECT ok FROM pgwh.health() WHERE check_name = 'slot present and valid'";

fn stage(setup: Setup) -> (Cluster, Receiver) {
    let cluster = setup.start();
    cluster.sql("CREATE EXTENSION pgstream_hooks; CREATE TABLE t (id int PRIMARY KEY)");
    let receiver = Receiver::start().unwrap();
    cluster.subscribe(&receiver, "s", "tables => '{t}'");
    cluster.sql("INSERT INTO t VALUES (1)");
    assert_eq!(ids(&cluster.delivered(&receiver, "s")), [1]);
    cluster.wait_confirmed();
    (cluster, receiver)
}

fn ids(events: &[Event]) -> Vec<i64> {
    let mut ids: Vec<i64> = events.iter().filter_map(|event| event["key"]["id"].as_i64()).collect();
    ids.sort_unstable();
    ids
}

fn switch(cluster: &Cluster, enabled: &str) {
    cluster.each(&[&format!("ALTER SYSTEM SET pgwh.enabled = {enabled}"), "SELECT pg_reload_conf()"]);
}

/// Has workers rest.
fn rest(cluster: &Cluster) {
    switch(cluster, "off");
    eventually("at rest", || {
        (cluster.processes(DISPATCHER).is_empty() && cluster.processes(DECODER).is_empty()).then_some(())
    });
}

/// The gap is shown with its reason and with what closes it, which does; what is committed from then on arrives.
#[track_caller]
fn assert_gap_and_cure(cluster: &Cluster, receiver: &Receiver, missed: i64, reason: &str) {
    cluster.wait_true(SLOT);
    cluster.wait_status("s", "state = 'active' AND gap IS NOT NULL");
    assert!(cluster.status("s", "gap").ends_with(reason), "{}", cluster.status("s", "gap"));
    let row = cluster.rows("SELECT ok, detail, hint FROM pgwh.health() WHERE check_name = 'gaps'").remove(0);
    assert_eq!(row[0].as_deref(), Some("f"));
    assert!(row[1].as_deref().unwrap().ends_with(reason), "{row:?}");
    assert_eq!(row[2].as_deref(), Some("SELECT pgwh.backfill('s');"));
    assert_eq!(cluster.value("SELECT count(*) FROM pgwh.gaps WHERE lost"), "1");
    receiver.clear();
    cluster.sql(row[2].as_deref().unwrap());
    cluster.wait_true("SELECT bool_and(state = 'done') FROM pgwh.backfills");
    cluster.sql("INSERT INTO t VALUES (1000)");
    let ids = ids(&cluster.delivered(receiver, "s"));
    assert!(ids.contains(&missed) && ids.ends_with(&[1000]), "{ids:?}");
    cluster.wait_true("SELECT ok FROM pgwh.health() WHERE check_name = 'gaps'");
    assert_eq!(cluster.status("s", "next_step"), "");
    // It has come to rest: the same processes, after a second's work.
    let process = cluster.process(DECODER);
    cluster.sql("INSERT INTO t VALUES (1001)");
    cluster.delivered(receiver, "s");
    assert_eq!(cluster.process(DECODER), process);
}

#[test]
fn a_slot_that_was_dropped_is_made_anew() {
    let (cluster, receiver) = stage(Setup::new());
    rest(&cluster);
    cluster.sql("SELECT pg_drop_replication_slot(pgwh.slot_name()); INSERT INTO t VALUES (2)");
    cluster.wait_true(&format!("SELECT NOT ok FROM ({SLOT}) h"));
    switch(&cluster, "on");
    assert_gap_and_cure(&cluster, &receiver, 2, "the replication slot was dropped");
}

#[test]
fn a_table_that_was_made_while_the_slot_was_is_decoded() {
    let (cluster, receiver) = stage(Setup::new());
    rest(&cluster);
    cluster.each(&["CREATE TABLE aside (id int)", "SELECT pg_drop_replication_slot(pgwh.slot_name())"]);
    let (mut older, mut maker) = (cluster.connect(), cluster.connect());
    older.batch_execute("BEGIN; INSERT INTO aside VALUES (1)").unwrap();
    // The first slot may have had to wait as well, and have said the same.
    let before = cluster.log().len();
    switch(&cluster, "on");
    let says = |what: &str| eventually(what, || cluster.log()[before..].contains(what).then_some(()));
    // Whoever decodes from the slot's beginning sees nothing of what is done between these two points.
    says("found initial starting point");
    maker.batch_execute("BEGIN; CREATE TABLE made (id int PRIMARY KEY)").unwrap();
    older.batch_execute("COMMIT").unwrap();
    says("found initial consistent point");
    cluster.sql("INSERT INTO aside VALUES (2)");
    maker.batch_execute("COMMIT").unwrap();
    cluster.wait_true(SLOT);
    receiver.clear();
    cluster.sql("INSERT INTO made VALUES (1); INSERT INTO t VALUES (2)");
    assert_eq!(ids(&cluster.delivered(&receiver, "s")), [2]);
}

#[test]
fn a_slot_that_needs_too_much_log_is_made_anew() {
    let settings = ["max_slot_wal_keep_size = '1MB'", "min_wal_size = '32MB'", "max_wal_size = '32MB'"];
    let (cluster, receiver) = stage(settings.into_iter().fold(Setup::new(), Setup::set));
    rest(&cluster);
    cluster.sql("INSERT INTO t VALUES (2)");
    write_until_lost(&cluster);
    let row = cluster
        .rows("SELECT ok, detail, hint FROM pgwh.health() WHERE check_name = 'slot present and valid'")
        .remove(0);
    assert_eq!(row[0].as_deref(), Some("f"));
    assert!(row[1].as_deref().unwrap().contains("is invalid"), "{row:?}");
    assert!(row[2].as_deref().unwrap().contains("gave the slot up"), "{row:?}");
    switch(&cluster, "on");
    assert_gap_and_cure(&cluster, &receiver, 2, "the server gave the replication slot up");
}

/// Writes log and removes what is old, until the server has given the slot up.
fn write_until_lost(cluster: &Cluster) {
    eventually("given up", || {
        cluster.each(&[
            "SELECT pg_logical_emit_message(false, 'filler', repeat('x', 1000000)) FROM generate_series(1, 20)",
            "SELECT pg_switch_wal()",
            "CHECKPOINT",
        ]);
        let lost = "SELECT wal_status = 'lost' FROM pg_replication_slots WHERE slot_name = pgwh.slot_name()";
        (cluster.value(lost) == "t").then_some(())
    });
}

#[test]
fn a_slot_that_is_given_up_while_it_is_read_is_made_anew() {
    let settings = ["max_slot_wal_keep_size = '1MB'", "min_wal_size = '32MB'", "max_wal_size = '32MB'"];
    let (cluster, receiver) = stage(settings.into_iter().fold(Setup::new(), Setup::set));
    // Nothing can be journaled, so nothing is confirmed.
    let mut lock = cluster.connect();
    lock.batch_execute("BEGIN; LOCK TABLE pgwh_internal.event_chunks IN EXCLUSIVE MODE").unwrap();
    cluster.sql("INSERT INTO t VALUES (2)");
    eventually("given up", || {
        cluster.each(&[
            "SELECT pg_logical_emit_message(false, 'filler', repeat('x', 1000000)) FROM generate_series(1, 20)",
            "SELECT pg_switch_wal()",
            "CHECKPOINT",
        ]);
        // Its state might be seen by nobody: it is made anew. And its position may move by itself before.
        cluster.log().contains("invalidating").then_some(())
    });
    lock.batch_execute("ROLLBACK").unwrap();
    assert_gap_and_cure(&cluster, &receiver, 2, "the server gave the replication slot up");
}

#[test]
fn a_slot_of_our_name_that_another_program_made_is_told_of() {
    let (cluster, _receiver) = stage(Setup::new());
    rest(&cluster);
    let name = cluster.value("SELECT pgwh.slot_name()");
    cluster.sql("SELECT pg_drop_replication_slot(pgwh.slot_name())");
    cluster.sql(&format!("SELECT pg_create_logical_replication_slot('{name}', 'test_decoding')"));
    switch(&cluster, "on");
    let health = "SELECT hint FROM pgwh.health() WHERE check_name = 'slot plugin' AND NOT ok";
    let hint = cluster.value(health);
    assert!(hint.contains("pg_drop_replication_slot"), "{hint}");
    cluster.wait_status("s", "state = 'error'");
    let decoder = cluster.process(DECODER);
    let waits =
        format!("SELECT query LIKE '%another program%' FROM pg_stat_activity WHERE pid = {}", decoder.0);
    cluster.wait_true(&waits);
    cluster.sql("INSERT INTO t VALUES (2)");
    assert_eq!(cluster.process(DECODER), decoder, "nothing fails again and again");
    cluster.sql(&format!("SELECT pg_drop_replication_slot('{name}')"));
    cluster.wait_true(SLOT);
    cluster.wait_status("s", "state = 'active'");
}

#[test]
fn a_slot_of_our_plugin_is_created_by_the_decoder_only() {
    let (cluster, receiver) = stage(Setup::new());
    // As servers without that setting have it: any library may be used.
    let setting =
        "SELECT name || ' = pgstream_hooks' FROM pg_settings WHERE name = 'output_plugin_libraries'";
    cluster.set(&cluster.value(setting));
    cluster.reload();
    rest(&cluster);
    let name = cluster.value("SELECT pgwh.slot_name()");
    let copied = cluster.refused(&format!("SELECT pg_copy_logical_replication_slot('{name}', 'other')"));
    // What a manager of clusters does about a slot that it misses.
    let create = format!("SELECT pg_create_logical_replication_slot('{name}', 'pgstream_hooks')");
    cluster.each(&[&format!("SELECT pg_drop_replication_slot('{name}')"), "INSERT INTO t VALUES (2)"]);
    let created = cluster.refused(&create);
    for refused in [copied, created] {
        assert_eq!(refused.code, "55000", "{refused:?}");
        assert_eq!(refused.message, "replication slots of pgstream_hooks are created by its decoder only");
        assert!(refused.hint.contains("CREATE EXTENSION pgstream_hooks"), "{refused:?}");
    }
    switch(&cluster, "on");
    assert_gap_and_cure(&cluster, &receiver, 2, "the replication slot was dropped");
    assert_eq!(cluster.refused(&create).code, "42710", "there is one");
}

/// Starts the workers of a database again.
fn restart_workers(cluster: &Cluster, database: &str) {
    let dispatcher = cluster.process_of(DISPATCHER, database);
    cluster.sql(&format!("SELECT pg_terminate_backend({})", dispatcher.0));
    eventually("another dispatcher", || {
        (cluster.process_of(DISPATCHER, database) != dispatcher).then_some(())
    });
}

#[test]
fn the_name_of_the_slot_can_be_chosen() {
    let cluster = Cluster::start();
    cluster.sql("ALTER DATABASE postgres SET pgwh.slot_name = 'shop_webhooks'");
    cluster.sql("CREATE EXTENSION pgstream_hooks; CREATE TABLE t (id int PRIMARY KEY)");
    let receiver = Receiver::start().unwrap();
    cluster.subscribe(&receiver, "s", "tables => '{t}'");
    let slots = "SELECT string_agg(slot_name, ',') FROM pg_replication_slots";
    assert_eq!(cluster.value(slots), "shop_webhooks");
    assert_eq!(cluster.value("SELECT pgwh.slot_name()"), "shop_webhooks");
    // A slot that exists keeps its name, and loses nothing.
    cluster.each(&["ALTER DATABASE postgres SET pgwh.slot_name = 'other'", "INSERT INTO t VALUES (1)"]);
    restart_workers(&cluster, "postgres");
    cluster.sql("INSERT INTO t VALUES (2)");
    assert_eq!(ids(&cluster.delivered(&receiver, "s")), [1, 2]);
    assert_eq!((cluster.value(slots), cluster.status("s", "gap")), ("shop_webhooks".into(), "".into()));
    cluster.restart(Stop::Fast);
    cluster.sql("INSERT INTO t VALUES (3)");
    assert_eq!(ids(&cluster.delivered(&receiver, "s")), [1, 2, 3]);
    // The next one has the new name.
    rest(&cluster);
    cluster.each(&["SELECT pg_drop_replication_slot('shop_webhooks')", "INSERT INTO t VALUES (4)"]);
    switch(&cluster, "on");
    assert_gap_and_cure(&cluster, &receiver, 4, "the replication slot was dropped");
    assert_eq!(
        (cluster.value(slots), cluster.value("SELECT pgwh.slot_name()")),
        ("other".into(), "other".into())
    );
    for name in ["Shop", "a-b", &"x".repeat(64), "a b"] {
        let refused = cluster.refused(&format!("ALTER DATABASE postgres SET pgwh.slot_name = '{name}'"));
        assert_eq!(refused.code, "22023", "{refused:?}");
        assert!(refused.detail.contains("up to 63 lower-case letters"), "{refused:?}");
    }
    cluster.sql("DROP EXTENSION pgstream_hooks");
    cluster.wait_true("SELECT count(*) = 0 FROM pg_replication_slots");
}

#[test]
fn databases_that_want_a_slot_of_one_name_are_told_apart() {
    let cluster = Setup::new().set("pgwh.slot_name = 'webhooks'").start();
    cluster.sql("CREATE EXTENSION pgstream_hooks");
    cluster.wait_true(SLOT);
    let shop = cluster.create_database("shop");
    shop.sql("CREATE EXTENSION pgstream_hooks; CREATE TABLE t (id int PRIMARY KEY)");
    let health = "SELECT ok, detail, hint FROM pgwh.health() WHERE check_name = 'slot plugin'";
    let row = shop.rows(health).remove(0);
    assert_eq!(row[0].as_deref(), Some("f"));
    assert_eq!(row[1].as_deref(), Some("plugin is pgstream_hooks, database is postgres"));
    let hint = row[2].as_deref().unwrap();
    assert!(hint.ends_with("ALTER DATABASE shop SET pgwh.slot_name = 'another_name';"), "{hint}");
    shop.sql("ALTER DATABASE shop SET pgwh.slot_name = 'shop_webhooks'");
    restart_workers(&cluster, "shop");
    shop.wait_true(SLOT);
    let receiver = Receiver::start().unwrap();
    shop.subscribe(&receiver, "s", "tables => '{t}'");
    shop.sql("INSERT INTO t VALUES (1)");
    assert_eq!(ids(&shop.delivered(&receiver, "s")), [1]);
    cluster.wait_true(SLOT);
    // A copy does not take its original's for its own.
    cluster.sql("CREATE DATABASE copy TEMPLATE shop");
    let copy = cluster.database("copy");
    assert_eq!(copy.value("SELECT pgwh.slot_name()"), "webhooks");
    cluster.sql("ALTER DATABASE copy SET pgwh.slot_name = 'copied'");
    restart_workers(&cluster, "copy");
    copy.wait_true(SLOT);
    let slots =
        "SELECT string_agg(slot_name || ' ' || database, ', ' ORDER BY slot_name) FROM pg_replication_slots";
    assert_eq!(cluster.value(slots), "copied copy, shop_webhooks shop, webhooks postgres");
}

#[test]
fn a_rewound_primary_rests_as_standby_and_takes_over_again() {
    let (cluster, receiver) =
        stage(Setup::new().set("wal_log_hints = on").set("wal_keep_size = '256MB'").set("hot_standby = on"));
    let standby = cluster.standby();
    standby.begin();
    let end = cluster.value("SELECT pg_current_wal_lsn()");
    standby.wait_true(&format!("SELECT pg_last_wal_replay_lsn() >= '{end}'"));
    standby.sql("SELECT pg_promote()");
    standby.sql("CHECKPOINT");
    // Both go on, each by itself.
    cluster.sql("INSERT INTO t VALUES (2)");
    cluster.delivered(&receiver, "s");
    standby.sql("INSERT INTO t VALUES (3)");
    standby.wait_true(SLOT);
    standby.sql("SELECT pgwh.adopt()");
    cluster.stop(Stop::Fast);
    let source = format!("host={} user=postgres dbname=postgres", standby.host().display());
    let (data, configuration) = (cluster.data(), cluster.data().join("postgresql.conf"));
    let settings = std::fs::read_to_string(&configuration).unwrap();
    cluster
        .run("pg_rewind", &["-D", data.to_str().unwrap(), "--source-server", &source, "--no-sync"])
        .unwrap_or_else(|error| panic!("{error}"));
    std::fs::write(&configuration, settings).unwrap();
    cluster.set(&format!("primary_conninfo = '{source}'"));
    cluster.signal("standby.signal");
    cluster.begin();
    cluster.wait_true("SELECT pg_is_in_recovery() AND count(*) = 2 FROM t");
    assert_eq!(cluster.status("s", "state"), "held");
    assert!(cluster.status("s", "reason").contains("standby"), "{}", cluster.status("s", "reason"));
    assert!(cluster.processes(DISPATCHER).is_empty());
    // And back again.
    let end = standby.value("SELECT pg_current_wal_lsn()");
    cluster.wait_true(&format!("SELECT pg_last_wal_replay_lsn() >= '{end}'"));
    standby.stop(Stop::Fast);
    cluster.sql("SELECT pg_promote()");
    cluster.wait_true(SLOT);
    cluster.sql("INSERT INTO t VALUES (4)");
    cluster.sql("SELECT pgwh.adopt()");
    cluster.wait_status("s", "state = 'active'");
    let health = cluster.rows("SELECT check_name, detail FROM pgwh.health() WHERE NOT ok");
    assert!(health.iter().all(|row| row[0].as_deref() == Some("gaps")), "{health:?}");
    receiver.clear();
    cluster.sql("SELECT pgwh.backfill('s')");
    cluster.wait_true("SELECT bool_and(state = 'done') FROM pgwh.backfills");
    let ids = ids(&cluster.delivered(&receiver, "s"));
    assert!(ids.contains(&3) && ids.contains(&4) && !ids.contains(&2), "{ids:?}");
}

#[test]
fn a_transaction_that_retains_wal_is_named_with_the_fix() {
    let (cluster, _) = stage(Setup::new().set("max_wal_size = 32MB").set("max_prepared_transactions = 2"));
    let check = |column: &str| {
        cluster.value(&format!("SELECT {column} FROM pgwh.health() WHERE check_name = 'retained WAL'"))
    };
    let write = || {
        for _ in 0..5 {
            cluster.sql(
                "SELECT pg_logical_emit_message(true, 'none', repeat('x', 1000000)); SELECT pg_switch_wal()",
            );
        }
        cluster.wait_true(
            "SELECT wal_status = 'extended' FROM pg_replication_slots WHERE slot_name = pgwh.slot_name()",
        );
    };
    // In another database, of which this one decodes nothing.
    let other = cluster.create_database("other");
    other.sql("CREATE TABLE t (id int)");
    let mut open = other.connect();
    open.batch_execute("BEGIN; INSERT INTO t VALUES (1)").unwrap();
    let holder: i32 = open.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
    cluster.wait_confirmed();
    write();
    cluster.wait_true(&format!(
        "SELECT NOT ok AND detail LIKE '%process {holder} (postgres, idle in transaction)%' AND hint LIKE '%pg_terminate_backend({holder});' \
         FROM pgwh.health() WHERE check_name = 'retained WAL'"
    ));
    cluster.sql(check("hint").split_once(": ").unwrap().1);
    cluster.wait_true(&format!(
        "SELECT detail NOT LIKE '%{holder}%' FROM pgwh.health() WHERE check_name = 'retained WAL'"
    ));

    cluster.sql("BEGIN; INSERT INTO t VALUES (7); PREPARE TRANSACTION 'xa-7'");
    // Where it begins is where the one before has ended, once that is confirmed.
    cluster.sql("CHECKPOINT");
    cluster.wait_confirmed();
    write();
    cluster.wait_true(
        "SELECT NOT ok AND detail LIKE '%prepared transaction ''xa-7''%COMMIT PREPARED%' AND hint LIKE '%ROLLBACK PREPARED ''xa-7''%' \
         FROM pgwh.health() WHERE check_name = 'retained WAL'",
    );
    cluster.sql(check("hint").split_once(": ").unwrap().1);
    cluster.wait_true("SELECT detail NOT LIKE '%xa-7%' FROM pgwh.health() WHERE check_name = 'retained WAL'");
}
