//! The order within a row holds between what comes again and what is new.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use harness::{
    Answer, Cluster, DISPATCHER, PATIENCE, Receiver, Reply, Request, Script, events_of, eventually,
    in_key_order,
};

use crate::{finished, insert, now, stage};

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
    cluster.subscribe(&receiver, "s", "retry_schedule => array_fill(interval '100 ms', '{100}')");
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
fn a_replay_of_pending_events_overtakes_nothing() {
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
fn changes_during_a_replay_stay_in_order_through_failures() {
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
fn changes_during_a_replay_stay_in_order_after_an_edit() {
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
