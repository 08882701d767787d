//! Several events in one request: formed by themselves, in order, and halved when the endpoint refuses one of them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use harness::{
    Cluster, DISPATCHER, PATIENCE, Receiver, Reply, Request, Script, Which, eventually, in_key_order,
};
use serde_json::Value;

fn stage() -> (Cluster, Receiver) {
    let cluster = Cluster::with_extension();
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY, n int NOT NULL DEFAULT 0)");
    (cluster, Receiver::start().unwrap())
}

fn sizes(requests: &[Arc<Request>]) -> Vec<usize> {
    requests.iter().map(|request| request.events().len()).collect()
}

fn ids(request: &Request) -> Vec<String> {
    request.events().iter().map(|event| event["data"]["id"].to_string()).collect()
}

fn holds(request: &Request, id: i64) -> bool {
    request.events().iter().any(|event| event["data"]["key"]["id"] == id)
}

#[test]
fn a_batch_is_an_array_of_at_most_batch_size_in_commit_order() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "batch_size => 10, max_in_flight => 1");
    // The first answer takes longer than decoding what comes behind it.
    let mut wait = Duration::from_secs(2);
    receiver.behave(move |_: &Request| {
        Reply::default().after(std::mem::replace(&mut wait, Duration::from_millis(10)))
    });
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 500) n");
    let came = cluster.delivered(&receiver, "s");
    let order: Vec<_> = came.iter().map(|event| event["key"]["id"].as_u64().unwrap()).collect();
    assert_eq!(order, (1..=500).collect::<Vec<_>>());
    let requests = receiver.requests();
    assert!(requests.iter().all(|request| matches!(request.json(), Value::Array(_))), "an array each");
    let sizes = sizes(&requests);
    assert!(sizes.iter().all(|size| (1..=10).contains(size)), "{sizes:?}");
    // While one is under way the queue fills up.
    assert!(sizes.iter().filter(|size| **size == 10).count() >= 40, "{sizes:?}");
    let distinct: HashSet<_> = requests.iter().map(|request| request.webhook_id().to_owned()).collect();
    assert_eq!(distinct.len(), requests.len(), "an id of its own for each");
    let secret = receiver::Secret::parse(&cluster.value("SELECT pgwh.secret('s')")).unwrap();
    assert!(requests.iter().all(|request| secret.verify(request) == receiver::Verdict::Valid));
}

#[test]
fn a_batch_of_one_is_an_array_and_waits_for_no_other() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "batch_size => 100");
    cluster.sql("INSERT INTO t VALUES (1)");
    cluster.delivered(&receiver, "s");
    assert_eq!(sizes(&receiver.requests()), [1]);
    assert!(matches!(receiver.requests()[0].json(), Value::Array(_)));
}

#[test]
fn batch_wait_lingers_for_more_but_not_when_it_is_full() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "batch_size => 5, batch_wait => '3 s'");
    let mut client = cluster.connect();
    let begin = Instant::now();
    for n in 1..=3 {
        client.batch_execute(&format!("INSERT INTO t VALUES ({n})")).unwrap();
    }
    let requests = receiver.wait_for(1, PATIENCE).unwrap();
    let waited = requests[0].arrived() - begin;
    assert_eq!(sizes(&requests), [3]);
    assert!(waited >= Duration::from_millis(2500), "{waited:?}");
    cluster.sql("UPDATE pgwh.subscriptions SET batch_wait = '30 s'");
    cluster.delivered(&receiver, "s");
    let begin = Instant::now();
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(11, 15) n");
    let requests = receiver.wait_for(2, PATIENCE).unwrap();
    assert_eq!(sizes(&requests), [3, 5]);
    assert!(requests[1].arrived() - begin < Duration::from_secs(15), "a full batch does not linger");
}

#[test]
fn a_retried_batch_has_the_same_members_and_the_same_id() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "batch_size => 20, max_in_flight => 1, retry_schedule => '{1s,1s,1s}'");
    receiver.behave(Script::new(Which::First(1), Reply::status(500)));
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 20) n");
    let first = receiver.wait_for(1, PATIENCE).unwrap().remove(0);
    // What comes meanwhile joins others.
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(21, 40) n");
    cluster.delivered(&receiver, "s");
    let again: Vec<_> = receiver.requests().into_iter().skip(1).collect();
    let same = again.iter().filter(|request| request.webhook_id() == first.webhook_id()).collect::<Vec<_>>();
    assert_eq!(same.len(), 1);
    assert_eq!(same[0].body(), first.body());
    assert_eq!(same[0].attempt(), 2);
}

#[test]
fn rows_keep_their_order_within_and_across_batches_that_fail() {
    let (cluster, receiver) = stage();
    cluster.subscribe(
        &receiver,
        "s",
        "batch_size => 7, retry_schedule => '{50ms,50ms,50ms,50ms,50ms,50ms,50ms,50ms,50ms,50ms}'",
    );
    receiver.behave(Script::new(Which::Percent { percent: 15.0, seed: 5 }, Reply::status(503)));
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 40) n");
    for _ in 1..=30 {
        cluster.sql("UPDATE t SET n = n + 1");
    }
    let came = cluster.delivered(&receiver, "s");
    assert_eq!(came.len(), 40 * 31);
    in_key_order(&came);
    let mut script = Script::new(Which::Percent { percent: 15.0, seed: 5 }, Reply::status(503));
    let refused: HashSet<_> = receiver
        .requests()
        .iter()
        .filter(|request| !receiver::Behaviour::reply(&mut script, request).is_success())
        .map(|request| request.arrived())
        .collect();
    assert!(!refused.is_empty());
    harness::succeeded_in_key_order(&receiver, |request| !refused.contains(&request.arrived()));
    cluster.wait_status("s", "dead = 0");
}

#[test]
fn one_row_changed_many_times_fits_into_one_batch_in_order() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "batch_size => 100");
    receiver.behave(|_: &Request| Reply::default().after(Duration::from_millis(300)));
    cluster.sql("INSERT INTO t VALUES (1)");
    receiver.wait_for(1, PATIENCE).unwrap();
    let mut client = cluster.connect();
    for _ in 1..=60 {
        client.batch_execute("UPDATE t SET n = n + 1").unwrap();
    }
    let came = cluster.delivered(&receiver, "s");
    let versions: Vec<_> = came.iter().map(|event| event["record"]["n"].as_u64().unwrap()).collect();
    assert_eq!(versions, (0..=60).collect::<Vec<_>>());
    let requests = receiver.count();
    assert!(requests <= 20, "{requests} requests for 61 changes of one row, each of which took 300 ms");
}

/// Refuses each request that holds the poison, with a status.
fn poisoned(receiver: &Receiver, status: u16) {
    receiver.behave(move |request: &Request| Reply::status(if holds(request, 37) { status } else { 200 }));
}

#[test]
fn a_batch_refused_for_its_content_is_halved_down_to_one() {
    let (cluster, receiver) = stage();
    poisoned(&receiver, 422);
    // The others cannot wait for the second attempt of anything.
    cluster.subscribe(&receiver, "s", "batch_size => 100, max_in_flight => 4, retry_schedule => '{1h}'");
    let begin = Instant::now();
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 100) n");
    cluster.wait_status("s", "(delivered, pending, retrying) = (99, 1, 1)");
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    let refused: Vec<_> = receiver.requests().into_iter().filter(|request| holds(request, 37)).collect();
    let sizes = sizes(&refused);
    // Halves of halves, and their members stay what they were.
    assert!(sizes.is_sorted_by(|a, b| a > b), "{sizes:?}");
    assert_eq!(sizes.last(), Some(&1));
    for pair in refused.windows(2) {
        let (larger, smaller) = (ids(&pair[0]), ids(&pair[1]));
        assert!(larger.windows(smaller.len()).any(|part| part == smaller), "{smaller:?} of {larger:?}");
        assert!(smaller.len() <= larger.len().div_ceil(2));
    }
    let mut counts: HashMap<String, u32> = HashMap::new();
    for request in receiver.requests().iter().filter(|request| !holds(request, 37)) {
        ids(request).into_iter().for_each(|id| *counts.entry(id).or_default() += 1);
    }
    assert!(counts.len() == 99 && counts.values().all(|count| *count == 1), "each good one succeeded once");
    // Its own key waits, and no other does.
    cluster.each(&["UPDATE t SET n = 1 WHERE id = 37", "UPDATE t SET n = 1 WHERE id = 38"]);
    cluster.wait_status("s", "(delivered, pending) = (100, 2)");
}

#[test]
fn a_batch_that_fails_twice_is_halved_and_one_event_dies() {
    let (cluster, receiver) = stage();
    poisoned(&receiver, 500);
    cluster.subscribe(
        &receiver,
        "s",
        "batch_size => 100, retry_schedule => '{100ms,100ms,100ms,100ms,100ms}'",
    );
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 100) n");
    cluster.delivered(&receiver, "s");
    cluster.wait_status("s", "(delivered, dead, pending) = (99, 1, 0)");
    let refused: Vec<_> = receiver.requests().into_iter().filter(|request| holds(request, 37)).collect();
    // Before its members are parted, a batch has its second chance.
    assert_eq!(refused[0].webhook_id(), refused[1].webhook_id());
    assert_eq!(refused[0].body(), refused[1].body());
    assert_eq!(refused.last().unwrap().events().len(), 1);
    cluster
        .wait_true("SELECT count(*) = 1 AND min(event_count) = 1 FROM pgwh.deliveries WHERE state = 'dead'");
}

#[test]
fn a_batch_is_one_delivery_of_many_events() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "batch_size => 50, batch_wait => '30 s'");
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 50) n");
    receiver.wait_for(1, PATIENCE).unwrap();
    eventually("one delivery of fifty", || {
        let rows = cluster.rows("SELECT state, event_count, attempts, status_code FROM pgwh.deliveries");
        (rows == [["delivered", "50", "1", "200"].map(|text| Some(text.to_owned()))]).then_some(())
    });
    cluster.wait_true("SELECT count(*) = 50 FROM pgwh.events");
    cluster.kill9(DISPATCHER);
    cluster.delivered(&receiver, "s");
    assert_eq!(receiver.count(), 1);
}
