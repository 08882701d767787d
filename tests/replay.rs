//! Again: replay, redeliver, skip, forget, and asking why.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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
fn a_range_of_the_log_comes_again() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "");
    insert(&cluster, "t", 1, 10);
    let since = lsn(&cluster);
    insert(&cluster, "t", 11, 20);
    let until = lsn(&cluster);
    insert(&cluster, "t", 21, 30);
    let range = format!("since => '{since}'::pg_lsn, until => '{until}'::pg_lsn");
    let (_, again) = replay(&cluster, &receiver, &range, 10);
    assert_eq!(keys(&again), (11..=20).collect::<Vec<_>>());
    let (_, again) = replay(&cluster, &receiver, &format!("since => '{since}'::pg_lsn"), 20);
    assert_eq!(keys(&again), (11..=30).collect::<Vec<_>>());
}

#[test]
fn a_replay_keeps_the_order_of_each_row() {
    let (cluster, receiver) = stage();
    cluster.subscribe(
        &receiver,
        "s",
        "batch_size => 5, retry_schedule => '{50ms,50ms,50ms,50ms,50ms,50ms,50ms,50ms}'",
    );
    let since = now(&cluster);
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 30) n");
    for _ in 1..=10 {
        cluster.sql("UPDATE t SET n = n + 1");
    }
    cluster.delivered(&receiver, "s");
    receiver.clear();
    receiver.behave(Script::new(harness::Which::Percent { percent: 10.0, seed: 2 }, Reply::status(500)));
    let id = cluster.value(&format!("SELECT pgwh.replay('s', since => '{since}'::timestamptz)"));
    finished(&cluster, &id);
    let came = eventually("all came again", || {
        let came = harness::distinct(events_of(&receiver, "s"));
        (came.len() >= 330).then_some(came)
    });
    assert_eq!(came.len(), 330);
    in_key_order(&came);
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

/// Opens once, and lets all that waited go on at their next attempt.
#[derive(Clone, Default)]
struct Gate(Arc<AtomicBool>);

impl Gate {
    fn open(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_open(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

#[test]
fn a_live_event_of_a_row_under_replay_waits_and_others_do_not() {
    let (cluster, receiver) = stage();
    cluster.subscribe(
        &receiver,
        "s",
        "retry_schedule => '{100ms,100ms,100ms,100ms,100ms,100ms,100ms,100ms,100ms,100ms,1h}'",
    );
    let since = now(&cluster);
    insert(&cluster, "t", 1, 1);
    cluster.sql("UPDATE t SET n = 1");
    insert(&cluster, "t", 2, 2);
    let gate = Gate::default();
    let door = gate.clone();
    receiver.clear();
    receiver.behave(move |request: &Request| {
        let replayed = request.header("webhook-replay").is_some();
        let first = request.events()[0]["data"]["key"]["id"] == 1;
        match replayed && first && !door.is_open() {
            true => Reply::status(503).header("x-why", "closed").after(Duration::from_millis(200)),
            false => Reply::default(),
        }
    });
    let id = cluster.value(&format!("SELECT pgwh.replay('s', since => '{since}'::timestamptz)"));
    receiver.wait_for(1, PATIENCE).unwrap();
    cluster.each(&["UPDATE t SET n = 2 WHERE id = 1", "INSERT INTO t VALUES (99)"]);
    let came = |receiver: &Receiver, key: u64, n: u64| {
        events_of(receiver, "s").iter().any(|event| event["key"]["id"] == key && event["record"]["n"] == n)
    };
    eventually("the row that is not replayed", || came(&receiver, 99, 0).then_some(()));
    assert!(!came(&receiver, 1, 2), "it waits behind the replay of its row");
    gate.open();
    finished(&cluster, &id);
    cluster.delivered(&receiver, "s");
    let of_first: Vec<_> = harness::distinct(events_of(&receiver, "s"))
        .iter()
        .filter(|event| event["key"]["id"] == 1)
        .map(|event| event["record"]["n"].as_u64().unwrap())
        .collect();
    assert_eq!(of_first, [0, 1, 2]);
    assert!(events_of(&receiver, "s").last().unwrap().request.header("webhook-replay").is_none());
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
fn a_replay_beyond_retention_is_refused_and_says_from_when_it_could_be() {
    let cluster = Setup::new().set("pgwh.retention = '1s'").start();
    cluster.sql("CREATE EXTENSION pgstream_hooks; CREATE TABLE t (id int PRIMARY KEY)");
    let receiver = Receiver::start().unwrap();
    cluster.subscribe(&receiver, "s", "");
    let since = now(&cluster);
    cluster.sql("INSERT INTO t VALUES (0)");
    cluster.delivered(&receiver, "s");
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
fn a_delivery_can_be_made_again_with_what_followed_it() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "");
    cluster.each(&["INSERT INTO t VALUES (1), (2)", "UPDATE t SET n = 1", "UPDATE t SET n = 2 WHERE id = 1"]);
    let first = cluster.delivered(&receiver, "s");
    assert_eq!(first.len(), 5);
    let event = first.iter().find(|event| event["key"]["id"] == 1 && event["record"]["n"] == 1).unwrap();
    cluster.wait_true("SELECT count(*) = 5 FROM pgwh.deliveries WHERE state = 'delivered'");
    let delivery =
        cluster.value(&format!("SELECT id FROM pgwh.deliveries WHERE event_id = '{}'", event.id()));
    receiver.clear();
    cluster.sql(&format!("SELECT pgwh.redeliver({delivery})"));
    receiver.wait_for(2, PATIENCE).unwrap();
    cluster.delivered(&receiver, "s");
    let again = events_of(&receiver, "s");
    let versions: Vec<_> = again.iter().map(|e| (e["key"]["id"].clone(), e["record"]["n"].clone())).collect();
    assert_eq!(versions, [(json!(1), json!(1)), (json!(1), json!(2))], "the receiver does not end stale");
    assert_eq!(again[0].id(), event.id());
    let refusal = cluster.refused("SELECT pgwh.redeliver(999999999)");
    assert!(refusal.detail.contains("999999999") && !refusal.hint.is_empty(), "{refusal:?}");
}

#[test]
fn a_dead_letter_can_be_delivered_after_all() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "retry_schedule => '{50ms}'");
    receiver.behave(Script::always(Reply::status(400)));
    cluster.sql("INSERT INTO t VALUES (1)");
    cluster.wait_true("SELECT count(*) = 1 FROM pgwh.dead_letters");
    receiver.behave(Script::default());
    receiver.clear();
    cluster.sql("SELECT pgwh.redeliver(id) FROM pgwh.deliveries WHERE state = 'dead'");
    receiver.wait_for(1, PATIENCE).unwrap();
    cluster.wait_true("SELECT count(*) = 0 FROM pgwh.dead_letters");
    cluster.wait_true("SELECT bool_or(state = 'delivered') FROM pgwh.deliveries");
}

#[test]
fn dead_letters_are_none_any_more_once_a_batch_has_brought_them() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "batch_size => 10, max_in_flight => 1, retry_schedule => '{50ms}'");
    let since = now(&cluster);
    receiver.behave(|request: &Request| {
        let fails = request.events().iter().any(|event| event["data"]["key"]["id"] != 99);
        Reply::status(if fails { 400 } else { 200 })
    });
    insert(&cluster, "t", 1, 4);
    // The endpoint is not failing as a whole.
    insert(&cluster, "t", 99, 99);
    let letters = |count: u32| {
        cluster.wait_true(&format!(
            "SELECT count(DISTINCT event_id) = {count} AND count(*) = {count} FROM pgwh.dead_letters"
        ));
    };
    letters(4);
    let again = || {
        receiver.clear();
        let replay = format!("SELECT pgwh.replay('s', since => '{since}'::timestamptz, \"only\" => 'dead')");
        finished(&cluster, &cluster.value(&replay));
        receiver.requests().iter().map(|request| request.events().len()).max()
    };
    // Who dies again is one dead letter, not two.
    again();
    cluster.wait_true("SELECT count(*) = 8 FROM pgwh.deliveries WHERE state = 'dead'");
    letters(4);
    receiver.behave(Script::default());
    assert!(again() > Some(1));
    letters(0);
    assert_eq!(again(), None);
}

#[test]
fn a_skipped_delivery_is_given_up_now_and_its_row_goes_on() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "retry_schedule => '{1h,1h}'");
    receiver.behave(|request: &Request| {
        Reply::status(if request.events()[0]["data"]["action"] == "insert" { 500 } else { 200 })
    });
    cluster.each(&["INSERT INTO t VALUES (1)", "UPDATE t SET n = 1"]);
    cluster.wait_status("s", "(pending, retrying) = (2, 1)");
    let delivery = eventually("a retrying delivery", || {
        Some(cluster.value("SELECT id FROM pgwh.deliveries WHERE state = 'retrying'"))
            .filter(|id| !id.is_empty())
    });
    cluster.sql(&format!("SELECT pgwh.skip({delivery})"));
    cluster.wait_status("s", "(delivered, dead, pending) = (1, 1, 0)");
    let last = events_of(&receiver, "s").last().unwrap().text("action");
    assert_eq!(last, "update");
    cluster.wait_true(&format!("SELECT state = 'dead' FROM pgwh.deliveries WHERE id = {delivery}"));
    cluster.wait_true("SELECT to_jsonb(l)::text LIKE '%skip%' FROM pgwh.dead_letters l");
    let refusal = cluster.refused("SELECT pgwh.skip(999999999)");
    assert!(!refusal.hint.is_empty(), "{refusal:?}");
}

#[test]
fn why_tells_what_became_of_a_rows_changes() {
    let (cluster, receiver) = stage();
    receiver.behave(Script::fail_key(json!({"id": 2}), 500));
    cluster.subscribe(
        &receiver,
        "s",
        "tables => '{public.t}', event_types => '{insert,update}', retry_schedule => '{1h}'",
    );
    cluster.each(&["INSERT INTO t VALUES (1), (2)", "UPDATE t SET n = 1"]);
    cluster.wait_status("s", "(delivered, pending) = (2, 2)");
    let why = |table: &str, id: u32| {
        let rows =
            cluster.rows(&format!("SELECT to_jsonb(w) FROM pgwh.why('{table}', '{{\"id\": {id}}}') w"));
        rows.into_iter().flatten().flatten().collect::<Vec<_>>().join("\n")
    };
    eventually("delivered", || why("public.t", 1).contains("delivered").then_some(()));
    eventually("blocked by a failure", || {
        let told = why("public.t", 2);
        (told.contains("retrying") || told.contains("blocked") || told.contains("behind")).then_some(())
    });
}

#[test]
fn what_is_forgotten_is_nowhere_in_the_journal() {
    let (cluster, receiver) = stage();
    cluster.sql("CREATE TABLE people (id int PRIMARY KEY, name text)");
    cluster.subscribe(&receiver, "s", "");
    cluster.sql("INSERT INTO people VALUES (1, 'Ada Lovelace'), (2, 'Grace Hopper')");
    cluster.delivered(&receiver, "s");
    cluster.wait_status("s", "delivered = 2");
    cluster.wait_true("SELECT count(*) = 2 FROM pgwh.deliveries WHERE state = 'delivered'");
    cluster.sql("SELECT pgwh.forget('public.people', '{\"id\": 1}')");
    cluster.wait_true(
        "SELECT count(*) = 0 FROM pgwh.events WHERE data::text LIKE '%Ada%' OR key = '{\"id\": 1}'",
    );
    cluster.wait_true("SELECT count(*) = 1 FROM pgwh.events WHERE data::text LIKE '%Grace%'");
    // A replay does not bring it back.
    receiver.clear();
    let id = cluster.value("SELECT pgwh.replay('s', since => now() - interval '1 minute')");
    finished(&cluster, &id);
    assert!(events_of(&receiver, "s").iter().all(|event| event["key"]["id"] != 1));
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

#[test]
fn a_replay_of_what_is_still_pending_overtakes_nothing_that_waits_before_it() {
    for only in ["all", "undelivered"] {
        let (cluster, receiver) = stage();
        cluster.subscribe(&receiver, "s", "");
        cluster.sql("SELECT pgwh.pause('s')");
        cluster.wait_status("s", "state = 'paused'");
        cluster.sql("INSERT INTO t VALUES (1)");
        cluster.wait_status("s", "pending = 1");
        let since = now(&cluster);
        cluster.sql("UPDATE t SET n = 1");
        cluster.wait_status("s", "pending = 2");
        // The insert is not in its range, and has not been sent yet.
        let id = cluster.value(&format!(
            "SELECT pgwh.replay('s', since => '{since}'::timestamptz, \"only\" => '{only}')"
        ));
        cluster.sql("UPDATE t SET n = 2");
        cluster.sql("SELECT pgwh.resume('s')");
        finished(&cluster, &id);
        cluster.delivered(&receiver, "s");
        let came = harness::distinct(events_of(&receiver, "s"));
        let versions: Vec<_> = came.iter().map(|event| event["record"]["n"].as_u64().unwrap()).collect();
        assert_eq!(versions, [0, 1, 2], "{only}");
    }
}

/// Changes rows while a replay of them is under way at an endpoint that goes away, or is slow, or fails now and then; and
/// while somebody disturbs. What is new comes in order.
fn stays_in_order(trouble: &str, disturb: impl Fn(&Cluster)) {
    let (cluster, receiver) = stage();
    cluster.subscribe(
        &receiver,
        "s",
        "max_in_flight => 8, timeout => '500 ms', retry_schedule => array_fill('100 ms'::interval, '{40}')",
    );
    let since = now(&cluster);
    insert(&cluster, "t", 1, 50);
    let address = receiver.address();
    let mut before = events_of(&receiver, "s");
    let mut receiver = Some(receiver);
    let behaved = receiver.as_ref().unwrap();
    match trouble {
        "gone" => drop(receiver.take()),
        "slow" => behaved.behave(|_: &Request| Reply::default().after(Duration::from_millis(30))),
        "hangs" => behaved.behave(Script::always(Answer::Hang)),
        _ => behaved
            .behave(Script::new(harness::Which::Percent { percent: 20.0, seed: 4 }, Reply::status(500))),
    }
    for round in 0..8 {
        if round % 3 == 0 {
            cluster.value(&format!("SELECT pgwh.replay('s', since => '{since}'::timestamptz)"));
        }
        cluster.sql("UPDATE t SET n = n + 1");
        if round % 2 == 1 {
            std::thread::sleep(Duration::from_millis(200));
            disturb(&cluster);
        }
    }
    let receiver =
        receiver.take().unwrap_or_else(|| eventually("the same address", || Receiver::at(address).ok()));
    receiver.behave(Script::default());
    cluster.delivered(&receiver, "s");
    before.extend(events_of(&receiver, "s"));
    let came = harness::distinct(before);
    assert_eq!(came.len(), 50 * 9, "{trouble}");
    in_key_order(&came);
}

#[test]
fn what_changes_under_replay_comes_in_order_whatever_the_endpoint_does() {
    for trouble in ["gone", "slow", "hangs", "moody"] {
        stays_in_order(trouble, |_| {});
    }
}

#[test]
fn what_changes_under_replay_comes_in_order_whoever_is_killed() {
    for trouble in ["gone", "slow", "hangs", "moody"] {
        stays_in_order(trouble, |cluster| cluster.kill9(DISPATCHER));
    }
}

#[test]
fn what_changes_under_replay_comes_in_order_after_a_pause_or_an_edit() {
    for trouble in ["gone", "slow", "hangs", "moody"] {
        stays_in_order(trouble, |cluster| {
            cluster.each(&[
                "SELECT pgwh.pause('s')",
                "UPDATE pgwh.subscriptions SET batch_size = batch_size % 3 + 1",
                "SELECT pgwh.resume('s')",
            ]);
        });
    }
}
