//! Again: replay, redeliver, skip, forget, and asking why.

mod erasure;
mod redelivery;
mod row_order;

use std::time::{Duration, Instant};

use harness::{
    Answer, Cluster, DISPATCHER, Event, PATIENCE, Receiver, Reply, Request, Script, Setup, Stop, events_of,
    eventually, in_key_order,
};
use serde_json::json;

fn stage() -> (Cluster, Receiver) {
    let cluster = Cluster::with_extension();
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY, n int NOT NULL DEFAULT 0)");
    cluster.sql("CREATE TABLE other (id int PRIMARY KEY, n int NOT NULL DEFAULT 0)");
    (cluster, Receiver::start().unwrap())
}

/// Now, as text that is exact and means the same everywhere.
fn now(cluster: &Cluster) -> String {
    cluster.value("SELECT clock_timestamp()")
}

fn lsn(cluster: &Cluster) -> String {
    cluster.value("SELECT pg_current_wal_insert_lsn()")
}

/// Inserts rows and waits until they have arrived and their outcomes are written down.
fn insert(cluster: &Cluster, table: &str, first: u64, last: u64) {
    cluster.sql(&format!("INSERT INTO {table} SELECT n FROM generate_series({first}, {last}) n"));
    assert_eq!(cluster.value("SELECT pgwh.wait('s', '60 s')"), "t");
}

/// Replays, waits until so many events came again, and returns them and the replay's id.
#[track_caller]
fn replay(cluster: &Cluster, receiver: &Receiver, rest: &str, count: usize) -> (String, Vec<Event>) {
    let before = receiver.count();
    let id = cluster.value(&format!("SELECT pgwh.replay('s', {rest})"));
    assert!(!id.is_empty());
    let again = || -> Vec<Event> {
        events_of(receiver, "s")
            .into_iter()
            .filter(|event| event.request.header("webhook-replay") == Some(id.as_str()))
            .collect()
    };
    finished(cluster, &id);
    eventually("all came again", || (again().len() >= count).then_some(()));
    let again = again();
    assert_eq!(again.len(), count, "of {rest}");
    assert_eq!(receiver.count() - before, count as u64, "nothing else came");
    (id, again)
}

/// Waits until a replay has ended.
#[track_caller]
fn finished(cluster: &Cluster, id: &str) {
    cluster.wait_true(&format!("SELECT finished_at IS NOT NULL FROM pgwh.replays WHERE id = {id}"));
    let state = cluster.value(&format!("SELECT state FROM pgwh.replays WHERE id = {id}"));
    assert!(!["failed", "cancelled"].contains(&state.as_str()), "{state}");
    cluster.wait_true(&format!("SELECT total = done FROM pgwh.replays WHERE id = {id}"));
}

fn keys(events: &[Event]) -> Vec<u64> {
    let mut keys: Vec<_> = events.iter().map(|event| event["key"]["id"].as_u64().unwrap()).collect();
    keys.sort_unstable();
    keys
}

#[test]
fn a_range_of_time_comes_again_under_the_same_ids() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "");
    insert(&cluster, "t", 1, 100);
    let since = now(&cluster);
    insert(&cluster, "t", 101, 150);
    let until = now(&cluster);
    insert(&cluster, "t", 151, 200);
    let first = events_of(&receiver, "s");
    let (_, again) = replay(&cluster, &receiver, &format!("since => '{since}'::timestamptz"), 100);
    assert_eq!(keys(&again), (101..=200).collect::<Vec<_>>());
    for event in &again {
        let before = first.iter().find(|before| before.id() == event.id()).expect("the same id");
        assert_eq!(before.whole, event.whole);
        assert_eq!(before.request.webhook_id(), event.request.webhook_id());
    }
    assert!(first.iter().all(|event| event.request.header("webhook-replay").is_none()));
    let (_, again) = replay(
        &cluster,
        &receiver,
        &format!("since => '{since}'::timestamptz, until => '{until}'::timestamptz"),
        50,
    );
    assert_eq!(keys(&again), (101..=150).collect::<Vec<_>>());
    // And what comes afterwards is no replay.
    insert(&cluster, "t", 201, 201);
    assert!(events_of(&receiver, "s").last().unwrap().request.header("webhook-replay").is_none());
}

#[test]
fn a_range_of_time_may_be_without_beginning_and_end() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "");
    insert(&cluster, "t", 1, 5);
    replay(&cluster, &receiver, "since => '-infinity'::timestamptz, until => 'infinity'", 5);
}

#[test]
fn a_range_of_the_log_comes_again() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "");
    insert(&cluster, "t", 1, 10);
    let since = lsn(&cluster);
    insert(&cluster, "t", 11, 20);
    let until = lsn(&cluster);
    insert(&cluster, "t", 21, 30);
    let range = format!("since_lsn => '{since}', until_lsn => '{until}'");
    let (_, again) = replay(&cluster, &receiver, &range, 10);
    assert_eq!(keys(&again), (11..=20).collect::<Vec<_>>());
    let (_, again) = replay(&cluster, &receiver, &format!("since_lsn => '{since}'"), 20);
    assert_eq!(keys(&again), (11..=30).collect::<Vec<_>>());
    // A literal says by itself which it is.
    for range in [
        format!("'{since}'::pg_lsn, '{until}'"),
        format!("'{since}', '{until}'"),
        format!("since => '{since}', until => '{until}', \"only\" => 'all'"),
    ] {
        let (_, again) = replay(&cluster, &receiver, &range, 10);
        assert_eq!(keys(&again), (11..=20).collect::<Vec<_>>(), "{range}");
    }
    for range in
        ["'yesterday'", "since => 'yesterday', until => 'tomorrow'", "since => now() - interval '1 day'"]
    {
        replay(&cluster, &receiver, range, 30);
    }
    let refusal = cluster.refused("SELECT pgwh.replay('s', 'last week')");
    assert_eq!(refusal.code, "22007", "{refusal:?}");
}

#[test]
fn only_the_dead_or_the_undelivered_can_come_again() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "retry_schedule => '{50ms}'");
    let since = now(&cluster);
    receiver.behave(|request: &Request| {
        let id = request.events()[0]["data"]["key"]["id"].as_u64().unwrap();
        Reply::status(if id.is_multiple_of(10) { 500 } else { 200 })
    });
    insert(&cluster, "t", 1, 50);
    cluster.wait_status("s", "(delivered, dead) = (45, 5)");
    receiver.behave(Script::default());
    let since = format!("since => '{since}'::timestamptz");
    let (_, again) = replay(&cluster, &receiver, &format!("{since}, \"only\" => 'dead'"), 5);
    assert_eq!(keys(&again), [10, 20, 30, 40, 50]);
    // They are delivered now.
    replay(&cluster, &receiver, &format!("{since}, \"only\" => 'undelivered'"), 0);
    let refusal = cluster.refused(&format!("SELECT pgwh.replay('s', {since}, \"only\" => 'some')"));
    assert!(refusal.detail.contains("some") && !refusal.hint.is_empty(), "{refusal:?}");
}

#[test]
fn the_undelivered_are_those_that_nobody_took() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "retry_schedule => '{50ms}'");
    let since = now(&cluster);
    receiver.behave(Script::fail_key(json!({"id": 2}), 400));
    insert(&cluster, "t", 1, 3);
    cluster.wait_status("s", "(delivered, dead) = (2, 1)");
    receiver.behave(Script::default());
    let (_, again) = replay(
        &cluster,
        &receiver,
        &format!("since => '{since}'::timestamptz, \"only\" => 'undelivered'"),
        1,
    );
    assert_eq!(keys(&again), [2]);
}

#[test]
fn some_tables_can_come_again_and_others_not() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "");
    let since = now(&cluster);
    insert(&cluster, "t", 1, 10);
    insert(&cluster, "other", 1, 7);
    let (_, again) = replay(
        &cluster,
        &receiver,
        &format!("since => '{since}'::timestamptz, tables => '{{public.other}}'"),
        7,
    );
    assert!(again.iter().all(|event| event["table"] == "other"));
}

#[test]
fn a_replay_goes_on_after_a_crash() {
    for stop in [None, Some(Stop::Immediate)] {
        let (cluster, receiver) = stage();
        cluster.subscribe(&receiver, "s", "max_in_flight => 2");
        let since = now(&cluster);
        insert(&cluster, "t", 1, 500);
        cluster.sql("UPDATE t SET n = 1");
        cluster.delivered(&receiver, "s");
        cluster.wait_status("s", "delivered = 1000");
        receiver.clear();
        receiver.behave(|_: &Request| Reply::default().after(Duration::from_millis(5)));
        let id = cluster.value(&format!("SELECT pgwh.replay('s', since => '{since}'::timestamptz)"));
        receiver.wait_for(200, PATIENCE).unwrap();
        match stop {
            Some(stop) => cluster.restart(stop),
            None => cluster.kill9(DISPATCHER),
        }
        cluster.sql("UPDATE t SET n = 2");
        receiver.behave(Script::default());
        finished(&cluster, &id);
        cluster.delivered(&receiver, "s");
        let came = eventually("all came again", || {
            let came = harness::distinct(events_of(&receiver, "s"));
            (came.len() >= 1500).then_some(came)
        });
        assert_eq!(came.len(), 1500, "{stop:?}");
        in_key_order(&came);
    }
}

#[test]
fn a_replay_cancelled_during_a_stop_holds_nothing_back() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "max_in_flight => 1");
    let since = now(&cluster);
    insert(&cluster, "t", 1, 200);
    receiver.clear();
    receiver.behave(|_: &Request| Reply::default().after(Duration::from_millis(50)));
    let id = cluster.value(&format!("SELECT pgwh.replay('s', since => '{since}'::timestamptz)"));
    receiver.wait_for(5, PATIENCE).unwrap();
    cluster.sql("ALTER SYSTEM SET pgwh.enabled = off");
    cluster.reload();
    eventually("no dispatcher", || cluster.processes(DISPATCHER).is_empty().then_some(()));
    cluster.sql(&format!("SELECT pgwh.cancel_replay({id})"));
    cluster.sql("UPDATE t SET n = 1 WHERE id = 200");
    receiver.behave(Script::default());
    cluster.sql("ALTER SYSTEM RESET pgwh.enabled");
    cluster.reload();
    assert_eq!(cluster.value("SELECT pgwh.wait('s', '60 s')"), "t");
    cluster.wait_true(&format!("SELECT state = 'cancelled' FROM pgwh.replays WHERE id = {id}"));
    assert_eq!(events_of(&receiver, "s").last().unwrap()["record"]["n"], 1);
}

#[test]
fn a_replay_beyond_retention_is_refused_with_the_earliest() {
    let cluster = Setup::new().set("pgwh.retention = '1s'").start();
    cluster.sql("CREATE EXTENSION pgstream_hooks; CREATE TABLE t (id int PRIMARY KEY)");
    let receiver = Receiver::start().unwrap();
    cluster.subscribe(&receiver, "s", "");
    let since = now(&cluster);
    cluster.sql("INSERT INTO t VALUES (0)");
    cluster.delivered(&receiver, "s");
    cluster.wait_true("SELECT count(*) = 1 FROM pgwh.deliveries");
    let first = cluster.value("SELECT id FROM pgwh.deliveries");
    let mut n = 0;
    eventually("the first event is forgotten", || {
        n += 1;
        cluster.sql(&format!("INSERT INTO t SELECT {n} * 1000 + n FROM generate_series(1, 200) n"));
        cluster.wait_true(&format!("SELECT pgwh.wait('s', '{} s')", PATIENCE.as_secs()));
        std::thread::sleep(Duration::from_millis(100));
        (cluster.value("SELECT count(*) FROM pgwh.events WHERE key::text LIKE '%: 0}'") == "0").then_some(())
    });
    let refusal = cluster.refused(&format!("SELECT pgwh.replay('s', since => '{since}'::timestamptz)"));
    assert!(!refusal.detail.is_empty() && !refusal.hint.is_empty(), "{refusal:?}");
    let year = cluster.value("SELECT extract(year FROM now())");
    assert!(refusal.detail.contains(&year) || refusal.hint.contains(&year), "names the oldest: {refusal:?}");
    let refusal = cluster.refused(&format!("SELECT pgwh.redeliver({first})"));
    assert_eq!(refusal.message, "this delivery is not in the journal any more", "{refusal:?}");
}

/// Replays begin at `quiet`, not at `gone`, when what was committed in between has aged.
#[track_caller]
fn begins_after(cluster: &Cluster, receiver: &Receiver, gone: &str, quiet: &str, age: impl Fn()) {
    cluster.sql("INSERT INTO t VALUES (1)");
    cluster.delivered(receiver, "s");
    let oldest = cluster.value("SELECT committed_at FROM pgwh.events WHERE key::text LIKE '%: 1}'");
    receiver.clear();
    age();
    replay(cluster, receiver, &format!("since => '{quiet}'::timestamptz"), 1);
    age();
    let refusal = cluster.refused(&format!("SELECT pgwh.replay('s', since => '{gone}'::timestamptz)"));
    assert_eq!(refusal.code, "22023", "{refusal:?}");
    assert!(refusal.hint.contains(&oldest), "names {oldest}: {refusal:?}");
    receiver.clear();
    age();
    replay(cluster, receiver, &format!("since => '{oldest}'::timestamptz"), 1);
}

/// A cluster where one event was sent; a time before it, and one behind it.
fn stage_with_one_event(retention: &str) -> (Cluster, Receiver, String, String) {
    let cluster = Setup::new().set(&format!("pgwh.retention = '{retention}'")).start();
    cluster.sql("CREATE EXTENSION pgstream_hooks; CREATE TABLE t (id int PRIMARY KEY)");
    let receiver = Receiver::start().unwrap();
    cluster.subscribe(&receiver, "s", "");
    let before = now(&cluster);
    cluster.sql("INSERT INTO t VALUES (0)");
    cluster.delivered(&receiver, "s");
    let behind = now(&cluster);
    (cluster, receiver, before, behind)
}

#[test]
fn a_replay_may_begin_in_a_quiet_time_beyond_retention() {
    let (cluster, receiver, gone, quiet) = stage_with_one_event("1d");
    cluster.wait_true(&format!("SELECT clock_timestamp() > '{quiet}'::timestamptz + interval '5 s'"));
    // The retention ends within the quiet time, however long the test takes.
    let age = || {
        cluster.sql(&format!(
            "UPDATE pgwh.subscriptions SET retention = clock_timestamp() - '{quiet}'::timestamptz - interval '1 s'"
        ));
    };
    begins_after(&cluster, &receiver, &gone, &quiet, age);
}

#[test]
fn a_replay_may_begin_behind_what_was_recycled() {
    let (cluster, receiver, gone, quiet) = stage_with_one_event("1s");
    cluster.wait_true("SELECT count(*) = 0 FROM pgwh.events");
    cluster.set("pgwh.retention = '1h'");
    cluster.reload();
    begins_after(&cluster, &receiver, &gone, &quiet, || {});
}

#[test]
fn a_subscription_of_longer_retention_keeps_its_own() {
    let cluster = Setup::new().set("pgwh.retention = '1s'").start();
    cluster.sql("CREATE EXTENSION pgstream_hooks; CREATE TABLE t (id int PRIMARY KEY)");
    let receiver = Receiver::start().unwrap();
    cluster.subscribe(&receiver, "s", "retention => '1 hour'");
    let since = now(&cluster);
    let begin = Instant::now();
    let mut n = 0;
    while begin.elapsed() < Duration::from_secs(6) {
        n += 1;
        insert(&cluster, "t", n * 100, n * 100 + 9);
    }
    receiver.clear();
    replay(&cluster, &receiver, &format!("since => '{since}'::timestamptz"), 10 * n as usize);
}

#[test]
fn a_replay_of_a_paused_or_failing_subscription_waits_for_it() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "timeout => '1 s'");
    let since = now(&cluster);
    insert(&cluster, "t", 1, 20);
    receiver.clear();
    cluster.sql("SELECT pgwh.pause('s')");
    cluster.wait_status("s", "state = 'paused'");
    let id = cluster.value(&format!("SELECT pgwh.replay('s', since => '{since}'::timestamptz)"));
    cluster.sql("INSERT INTO other VALUES (1)");
    cluster.wait_status("s", "pending >= 1");
    assert_eq!(receiver.count(), 0);
    receiver.behave(Script::new(harness::Which::First(1), Reply::from(Answer::Reset)));
    cluster.sql("SELECT pgwh.resume('s')");
    finished(&cluster, &id);
    cluster.delivered(&receiver, "s");
    eventually("all came", || (harness::distinct(events_of(&receiver, "s")).len() == 21).then_some(()));
}
