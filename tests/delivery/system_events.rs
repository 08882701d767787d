//! System events: what becomes of subscriptions, as webhooks to those who ask for it.

use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};

use harness::{Cluster, Event, Receiver, Reply, Request, Script, Setup, Stage, events_of, eventually};
use serde_json::{Value, json};

/// A cluster with a table `t`, and a subscription `watch` to system events.
fn stage() -> Stage {
    let cluster = Cluster::with_extension();
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let receiver = Receiver::start().unwrap();
    cluster.subscribe(&receiver, "watch", "event_types => '{system}'");
    Stage { cluster, receiver }
}

/// Waits for a system event of that type about that subscription.
#[track_caller]
fn told(stage: &Stage, subscription: &str, kind: &str) -> Event {
    told_to(stage, "watch", subscription, kind)
}

#[track_caller]
fn told_to(stage: &Stage, reader: &str, subscription: &str, kind: &str) -> Event {
    let fits = |event: &Event| event.whole["type"] == kind && event["key"] == subscription;
    eventually(&format!("{kind} of {subscription}"), || {
        events_of(&stage.receiver, reader).into_iter().find(fits)
    })
}

#[test]
fn a_dead_letter_is_told_with_its_delivery() {
    let stage = stage();
    stage.subscribe(&stage.receiver, "orders", "tables => '{public.t}', retry_schedule => '{}'");
    stage.receiver.behave_at("/orders", Script::always(Reply::status(422)));
    stage.sql("INSERT INTO t VALUES (1)");
    let event = told(&stage, "orders", "pgwh.dead_letter");
    let letter = "SELECT id, subscription_id FROM pgwh.dead_letters";
    stage.wait_true("SELECT count(*) = 1 FROM pgwh.dead_letters");
    let row: Vec<i64> = stage.rows(letter)[0].iter().flatten().map(|id| id.parse().unwrap()).collect();
    assert_eq!(
        event["payload"],
        json!({"subscription": "orders", "subscription_id": row[1], "delivery_id": row[0], "error_class": "http_4xx"})
    );
    assert_eq!((&event["action"], &event["prefix"]), (&json!("message"), &json!("pgwh.system")));
}

#[test]
fn a_disable_and_its_gap_are_sent_with_the_reason() {
    let stage = stage();
    stage.subscribe(&stage.receiver, "orders", "tables => '{public.t}'");
    stage.receiver.behave_at("/orders", Script::always(Reply::status(410)));
    stage.sql("INSERT INTO t VALUES (1)");
    let reason = json!("the endpoint answered 410 Gone");
    assert_eq!(told(&stage, "orders", "pgwh.subscription.disabled")["payload"]["reason"], reason);
    let gap = told(&stage, "orders", "pgwh.gap");
    assert_eq!((&gap["payload"]["reason"], &gap["payload"]["to_lsn"]), (&reason, &Value::Null));
    assert_eq!(gap["payload"]["from_lsn"], stage.value("SELECT from_lsn FROM pgwh.gaps"));
}

#[test]
fn a_failing_endpoint_and_its_recovery_are_sent() {
    let stage = stage();
    stage.subscribe(
        &stage.receiver,
        "orders",
        "tables => '{public.t}', retry_schedule => array_fill(interval '100 ms', '{100}')",
    );
    stage.receiver.behave_at("/orders", Script::always(Reply::status(503)));
    stage.sql("INSERT INTO t SELECT generate_series(1, 50)");
    told(&stage, "orders", "pgwh.failing");
    stage.receiver.behave_at("/orders", |_: &Request| Reply::status(200));
    let recovered = told(&stage, "orders", "pgwh.recovered");
    assert_eq!(recovered["payload"]["subscription"], "orders");
}

/// Makes every NOTIFY fail when its transaction commits, as long as the session lives. Where the queue can be made small, it
/// is full; otherwise its files cannot be written.
fn break_notify(stage: &Stage) -> harness::Client {
    let mut listener = stage.connect();
    listener.batch_execute("LISTEN other").unwrap();
    listener.batch_execute("BEGIN; SELECT 1").unwrap();
    if harness::Server::get().major() < 17 {
        let folder = stage.cluster.data().join("pg_notify");
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o000)).unwrap();
    }
    // Each takes most of a page, and then the rest of the last one.
    for length in [7999, 40] {
        let fill = format!("SELECT pg_notify('other', rpad(clock_timestamp()::text, {length}, 'x'))");
        eventually("the queue is full", || stage.try_sql(&fill).err());
    }
    listener
}

fn mend_notify(stage: &Stage, listener: harness::Client) {
    drop(listener);
    let folder = stage.cluster.data().join("pg_notify");
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn a_notify_that_fails_stops_nothing_and_is_sent_later() {
    let small = if harness::Server::get().major() >= 17 { "max_notify_queue_pages = 64" } else { "" };
    let cluster = Setup::new().set(small).start();
    cluster.sql("CREATE EXTENSION pgstream_hooks");
    cluster.wait_true("SELECT ok FROM pgwh.health() WHERE check_name = 'slot present and valid'");
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let receiver = Receiver::start().unwrap();
    let stage = Stage { cluster, receiver };
    stage.subscribe(&stage.receiver, "watch", "event_types => '{system}'");
    stage.subscribe(&stage.receiver, "healthy", "tables => '{public.t}'");
    stage.subscribe(&stage.receiver, "bad", "tables => '{public.t}', retry_schedule => '{100ms}'");
    stage.subscribe(&stage.receiver, "gone", "tables => '{public.t}'");
    stage.receiver.behave_at("/bad", Script::always(Reply::status(500)));
    stage.receiver.behave_at("/gone", Script::always(Reply::status(410)));
    let dispatcher = stage.cluster.process(harness::DISPATCHER);
    let queue = break_notify(&stage);
    for id in 1..=5 {
        stage.sql(&format!("INSERT INTO t VALUES ({id})"));
        assert_eq!(stage.delivered(&stage.receiver, "healthy").len(), id);
        stage.wait_true(&format!("SELECT count(*) = {id} FROM pgwh.dead_letters WHERE subscription = 'bad'"));
    }
    told(&stage, "bad", "pgwh.dead_letter");
    told(&stage, "gone", "pgwh.subscription.disabled");
    let health = "SELECT NOT ok AND detail LIKE '%NOTIFY%' AND hint IS NOT NULL FROM pgwh.health()
                  WHERE check_name = 'notices'";
    stage.wait_true(health);
    assert_eq!(stage.cluster.process(harness::DISPATCHER), dispatcher, "no process has ended");
    // As often as the schedule allows, and each of the others once.
    let count = |path: &str| stage.receiver.requests().iter().filter(|it| it.path() == path).count();
    assert_eq!((count("/bad"), count("/healthy"), count("/gone")), (10, 5, 1));
    let warnings = stage.cluster.log().matches("WARNING:  pgstream_hooks: notifications").count();
    assert_eq!(warnings, 1, "it is said once");
    let mut listener = stage.listen("pgwh");
    mend_notify(&stage, queue);
    listener.wait_for(&["dead_letter", "bad"]);
    listener.wait_for(&["disabled", "gone"]);
    stage.wait_true("SELECT ok FROM pgwh.health() WHERE check_name = 'notices'");
}

#[test]
fn a_system_event_that_cannot_be_written_stops_nothing() {
    let stage = stage();
    stage.subscribe(&stage.receiver, "healthy", "tables => '{public.t}'");
    stage.subscribe(&stage.receiver, "bad", "tables => '{public.t}', retry_schedule => '{}'");
    stage.receiver.behave_at("/bad", Script::always(Reply::status(500)));
    let dispatcher = stage.cluster.process(harness::DISPATCHER);
    stage.sql("ALTER FUNCTION pgwh_internal.system_event(text, bigint, jsonb) RENAME TO away");
    for id in 1..=5 {
        stage.sql(&format!("INSERT INTO t VALUES ({id})"));
        assert_eq!(stage.delivered(&stage.receiver, "healthy").len(), id);
    }
    stage.wait_true("SELECT count(*) = 5 FROM pgwh.dead_letters");
    stage.wait_true(
        "SELECT NOT ok AND detail LIKE '%system events%' FROM pgwh.health() WHERE check_name = 'notices'",
    );
    assert_eq!(stage.cluster.process(harness::DISPATCHER), dispatcher, "no process has ended");
    stage.sql("ALTER FUNCTION pgwh_internal.away(text, bigint, jsonb) RENAME TO system_event");
    told(&stage, "bad", "pgwh.dead_letter");
}

/// A standby that commits wait for, until this is dropped.
struct Missing<'a> {
    cluster: &'a Cluster,
    is_over: &'a AtomicBool,
}

impl Drop for Missing<'_> {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let _ = self.cluster.try_sql("ALTER SYSTEM RESET synchronous_standby_names");
        let _ = self.cluster.try_sql("SELECT pg_reload_conf()");
    }
}

#[test]
fn a_notify_that_waits_for_another_commit_delays_nothing() {
    let stage = stage();
    // It holds the lock that every commit with a NOTIFY takes, since no standby answers.
    stage.sql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
    stage.cluster.reload();
    stage.wait_true("SELECT current_setting('synchronous_standby_names') = 'nobody'");
    let local = stage.with_options("-c synchronous_commit=local");
    local.subscribe(&stage.receiver, "healthy", "tables => '{public.t}'");
    local.subscribe(&stage.receiver, "bad", "tables => '{public.t}', retry_schedule => '{}'");
    stage.receiver.behave_at("/bad", Script::always(Reply::status(500)));
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _standby = Missing { cluster: &stage.cluster, is_over: &is_over };
        // It has written something, or it would not wait; and some commit before the setting is in effect.
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let _ =
                    stage.try_sql("SELECT pg_notify('other', 'x'), pg_logical_emit_message(true, 'x', 'x')");
            }
        });
        local.wait_true("SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'SyncRep'");
        for id in 1..=5 {
            local.sql(&format!("INSERT INTO t VALUES ({id})"));
            assert_eq!(stage.delivered(&stage.receiver, "healthy").len(), id);
        }
        local.wait_true("SELECT NOT ok FROM pgwh.health() WHERE check_name = 'notices'");
    });
    stage.wait_true("SELECT ok FROM pgwh.health() WHERE check_name = 'notices'");
}

#[test]
fn system_events_go_to_the_owner_and_to_monitors() {
    let stage = stage();
    for role in ["ann", "ben", "eve"] {
        stage.sql(&format!(
            "CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA pgwh, pgwh_internal TO {role}; GRANT SELECT ON t, pgwh_internal.installation TO {role};
             GRANT SELECT, INSERT, UPDATE, DELETE ON pgwh.subscriptions TO {role};
             GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgwh, pgwh_internal TO {role}"
        ));
    }
    stage.sql("GRANT pg_monitor TO eve");
    for role in ["ann", "ben"] {
        let own = stage.as_role(role);
        own.subscribe(&stage.receiver, &format!("{role}s"), "tables => '{public.t}', retry_schedule => '{}'");
        stage.receiver.behave_at(&format!("/{role}s"), Script::always(Reply::status(422)));
    }
    for role in ["ann", "ben", "eve"] {
        stage.as_role(role).subscribe(&stage.receiver, role, "event_types => '{system}'");
    }
    stage.sql("INSERT INTO t VALUES (1)");
    for (reader, about) in [("ann", "anns"), ("ben", "bens"), ("eve", "anns"), ("eve", "bens")] {
        told_to(&stage, reader, about, "pgwh.dead_letter");
    }
    for reader in ["ann", "ben"] {
        let heard = stage.delivered(&stage.receiver, reader);
        assert!(heard.iter().all(|event| event["key"] == format!("{reader}s")), "{heard:?}");
    }
}

#[test]
fn dead_letters_of_system_events_make_no_more_system_events() {
    let stage = stage();
    stage.subscribe(&stage.receiver, "orders", "tables => '{public.t}', retry_schedule => '{}'");
    // Both tell of the other one.
    for watch in ["first", "second"] {
        stage.subscribe(&stage.receiver, watch, "event_types => '{system}', retry_schedule => '{}'");
        stage.receiver.behave_at(&format!("/{watch}"), Script::always(Reply::status(422)));
    }
    stage.receiver.behave_at("/orders", Script::always(Reply::status(422)));
    stage.sql("INSERT INTO t VALUES (1)");
    stage.wait_status("first", "dead = 1");
    stage.wait_status("second", "dead = 1");
    let heard = stage.delivered(&stage.receiver, "watch");
    let about: Vec<String> = heard.iter().map(|event| event.text("key")).collect();
    assert_eq!(about, ["orders"], "{heard:?}");
    assert_eq!(stage.delivered(&stage.receiver, "first").len(), 1);
}

#[test]
fn a_message_that_says_it_is_a_system_event_is_none() {
    let stage = stage();
    stage.sql(
        "SELECT pg_logical_emit_message(true, 'pgwh.system', '{\"readers\": [1], \"type\": \"pgwh.gap\", \"key\": null, \"payload\": 1}');
         SELECT pgwh.emit('pgwh.gap', '{}')",
    );
    assert_eq!(stage.delivered(&stage.receiver, "watch").len(), 0);
    let refused =
        stage.refused("SELECT pgwh.subscribe('http://127.0.0.1:9', event_types => '{message:pgwh.system}')");
    assert_eq!(refused.code, "22023");
}

#[test]
fn an_error_of_a_subscription_and_its_end_are_sent() {
    let stage = stage();
    stage.subscribe(&stage.receiver, "orders", "tables => '{public.t}'");
    let mut listener = stage.cluster.listen("pgwh");
    stage.sql("DROP TABLE t");
    stage.wait_status("orders", "state = 'error'");
    let event = told(&stage, "orders", "pgwh.error");
    assert_eq!(event["payload"]["reason"], json!(stage.status("orders", "reason")));
    let heard = listener.wait_for(&["\"error\"", "orders"]);
    assert!(heard.contains("public.t"), "{heard}");
    // It is told once, also after a restart.
    stage.cluster.restart(harness::Stop::Fast);
    let mut listener = stage.cluster.listen("pgwh");
    stage.sql("CREATE TABLE t (id int PRIMARY KEY)");
    told(&stage, "orders", "pgwh.error_over");
    listener.wait_for(&["\"error_over\"", "orders"]);
    let errors =
        events_of(&stage.receiver, "watch").into_iter().filter(|event| event.whole["type"] == "pgwh.error");
    let ids: std::collections::BTreeSet<String> = errors.map(|event| event.whole["id"].to_string()).collect();
    assert_eq!(ids.len(), 1);
}
