//! Every event is delivered, in order by key, whatever the endpoint does; and one endpoint's trouble is no other's.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use harness::{
    Answer, Cluster, Event, PATIENCE, Process, Receiver, Reply, Request, Script, Setup, Stop, distinct,
    events, events_of, eventually, in_key_order, within,
};
use serde_json::json;

/// The first retry comes after 5 s, give or take a fifth.
const FIRST_RETRY: Duration = Duration::from_secs(5);

/// Comes back where it was.
fn reopen(address: SocketAddr) -> Receiver {
    eventually("the same address", || Receiver::at(address).ok())
}

fn stage() -> (Cluster, Receiver) {
    let cluster = Cluster::with_extension();
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY, n int NOT NULL DEFAULT 0)");
    (cluster, Receiver::start().unwrap())
}

#[test]
fn one_post_an_event_with_the_headers_of_standard_webhooks() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "secret => 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw'");
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 20) n");
    let came = cluster.delivered(&receiver, "s");
    assert_eq!(came.len(), 20);
    assert_eq!(receiver.count(), 20, "one request an event");
    let secret = receiver::Secret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
    for event in &came {
        let request = &event.request;
        assert_eq!((request.method(), request.path(), request.attempt()), ("POST", "/s", 1));
        assert_eq!(secret.verify(request), receiver::Verdict::Valid);
        assert!(request.webhook_id().contains(&event.id()) || event.id().contains(request.webhook_id()));
        for name in ["host", "content-length", "content-type", "user-agent", "webhook-timestamp"] {
            assert_eq!(
                request.headers().filter(|(its, _)| its.eq_ignore_ascii_case(name)).count(),
                1,
                "{name}"
            );
        }
    }
    assert_eq!(came.iter().map(|event| event.request.webhook_id()).collect::<HashSet<_>>().len(), 20);
}

#[test]
fn two_subscriptions_to_one_url_have_webhook_ids_of_their_own() {
    let (cluster, receiver) = stage();
    let url = receiver.url("/same");
    for name in ["a", "b"] {
        cluster.sql(&format!("SELECT pgwh.subscribe('{url}', name => '{name}')"));
    }
    cluster.sql("INSERT INTO t VALUES (1)");
    let requests = receiver.wait_for(2, PATIENCE).unwrap();
    assert_ne!(requests[0].webhook_id(), requests[1].webhook_id());
    assert_eq!(
        requests[0].events()[0]["data"]["id"],
        requests[1].events()[0]["data"]["id"],
        "one event, one id"
    );
}

#[test]
fn connections_are_kept_alive() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "max_in_flight => 4");
    for n in 0..200 {
        cluster.sql(&format!("INSERT INTO t VALUES ({n})"));
    }
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1000, 1999) n");
    assert_eq!(cluster.delivered(&receiver, "s").len(), 1200);
    let connections = receiver.stats().connections;
    assert!(connections <= 4, "{connections} connections for 1200 requests");
}

#[test]
fn an_endpoint_that_closes_idle_connections_loses_nothing() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "");
    let address = receiver.address();
    cluster.sql("INSERT INTO t VALUES (1)");
    cluster.delivered(&receiver, "s");
    drop(receiver);
    let receiver = reopen(address);
    let begin = Instant::now();
    cluster.sql("INSERT INTO t VALUES (2)");
    assert_eq!(cluster.delivered(&receiver, "s").len(), 1);
    assert!(
        begin.elapsed() < FIRST_RETRY.mul_f64(0.8),
        "a connection that died while idle is no failed attempt"
    );
}

#[test]
fn whatever_goes_wrong_is_tried_again_later() {
    let (cluster, receiver) = stage();
    let bad = |answer: Answer| Reply::from(answer);
    let troubles: Vec<(&str, Reply)> = vec![
        ("s500", Reply::status(500)),
        ("s503", Reply::status(503)),
        ("s404", Reply::status(404)),
        ("s400", Reply::status(400)),
        ("s408", Reply::status(408)),
        ("redirect", Reply::status(302).header("location", "/elsewhere")),
        ("permanently", Reply::status(308).header("location", "/elsewhere")),
        ("reset", bad(Answer::Reset)),
        ("close", bad(Answer::Close)),
        ("cut", bad(Answer::Cut)),
        ("garbage", bad(Answer::Garbage)),
        ("hang", bad(Answer::Hang)),
        ("trickle", bad(Answer::Trickle { status: 200, every: Duration::from_millis(100) })),
    ];
    let names: Vec<_> = troubles.iter().map(|(name, _)| *name).collect();
    let replies: HashMap<String, Reply> =
        troubles.iter().map(|(name, reply)| (format!("/{name}"), reply.clone())).collect();
    receiver.behave(move |request: &Request| match replies.get(request.path()) {
        Some(reply) if request.attempt() == 1 => reply.clone(),
        Some(_) => Reply::status(204),
        None => Reply::status(500),
    });
    for name in &names {
        // Who answers at once has time for it, and where the second attempt fails nevertheless the next comes soon.
        let timeout = if ["hang", "trickle"].contains(name) { 1 } else { 10 };
        let how = format!("timeout => '{timeout} s', retry_schedule => '{{5 s, 1 s, 1 s, 1 s}}'");
        cluster.subscribe(&receiver, name, &how);
    }
    cluster.sql("INSERT INTO t VALUES (1)");
    for name in &names {
        cluster.delivered(&receiver, name);
        let mut attempts = events_of(&receiver, name);
        // A connection that was kept alive and ends without an answer may have ended before the request came: it is
        // sent once more on a new one, which is no new attempt.
        attempts.dedup_by_key(|event| event.request.attempt());
        attempts.truncate(2);
        assert_eq!(
            attempts.iter().map(|event| event.request.attempt()).collect::<Vec<_>>(),
            [1, 2],
            "{name}"
        );
        assert_eq!(attempts[0].request.webhook_id(), attempts[1].request.webhook_id(), "{name}");
        assert_eq!(attempts[0].whole, attempts[1].whole, "{name}");
        // How much later depends on how busy the machine is.
        let waited = attempts[1].arrived() - attempts[0].arrived();
        assert!(waited >= FIRST_RETRY.mul_f64(0.78), "{name}: tried again after {waited:?}");
    }
    assert!(
        events(&receiver).iter().all(|event| event.request.path() != "/elsewhere"),
        "redirects are not followed"
    );
}

#[test]
fn a_success_with_half_a_body_is_a_success_and_noted() {
    let (cluster, receiver) = stage();
    receiver.behave(Script::always(Answer::CutBody));
    cluster.subscribe(&receiver, "s", "");
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 3) n");
    assert_eq!(cluster.delivered(&receiver, "s").len(), 3);
    cluster.wait_true(
        "SELECT count(*) = 3 AND min(attempt) = 1 AND max(attempt) = 1 AND min(status_code) = 200 \
             AND max(error_class) IS NULL AND min(error) LIKE '%before the answer was complete' \
         FROM pgwh.attempts",
    );
    cluster.wait_status("s", "pending = 0 AND delivered = 3 AND dead = 0 AND retrying = 0");
    assert_eq!(receiver.count(), 3, "each was sent once");
    // A success that follows a failure is told once, too.
    cluster.subscribe(&receiver, "again", "retry_schedule => '{100 ms}'");
    receiver.behave(|request: &Request| match request.attempt() {
        1 => Reply::status(500),
        _ => Answer::CutBody.into(),
    });
    cluster.sql("INSERT INTO t VALUES (4)");
    cluster.delivered(&receiver, "again");
    cluster.wait_true(
        "SELECT array_agg(attempt ORDER BY attempt) = '{1,2}' AND max(error) FILTER (WHERE attempt = 2) LIKE '%complete' \
         FROM pgwh.attempts a JOIN pgwh.subscriptions s ON s.id = a.subscription_id WHERE s.name = 'again'",
    );
}

#[test]
fn the_timeout_is_a_deadline_for_the_whole_request() {
    let (cluster, receiver) = stage();
    // Each byte comes in time; all of them together do not.
    receiver.behave(Script::always(Answer::Trickle { status: 200, every: Duration::from_millis(200) }));
    cluster.subscribe(&receiver, "s", "timeout => '700 ms'");
    let begin = Instant::now();
    cluster.sql("INSERT INTO t VALUES (1)");
    cluster.wait_true("SELECT last_error IS NOT NULL AND state = 'retrying' FROM pgwh.status");
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(700) && took < Duration::from_secs(8), "{took:?}");
    let error = cluster.value("SELECT last_error FROM pgwh.status");
    assert!(error.to_lowercase().contains("time"), "{error}");
}

#[test]
fn an_endpoint_that_is_not_there_is_tried_again() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "");
    let address = receiver.address();
    drop(receiver);
    cluster.sql("INSERT INTO t VALUES (1)");
    cluster.wait_true("SELECT state = 'retrying' FROM pgwh.status");
    let receiver = reopen(address);
    assert_eq!(cluster.delivered(&receiver, "s")[0].request.attempt(), 2);
}

#[test]
fn a_failing_event_holds_back_its_own_key_and_no_other() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "tables => '{public.t}', retry_schedule => '{15 s}'");
    let keys = 50;
    // The first event of each tenth key fails once.
    receiver.behave(|request: &Request| {
        let event = &request.events()[0]["data"];
        let fails = event["action"] == "insert" && event["key"]["id"].as_i64().is_some_and(|id| id % 10 == 0);
        Reply::status(if fails && request.attempt() == 1 { 500 } else { 200 })
    });
    cluster.sql(&format!("INSERT INTO t SELECT n FROM generate_series(1, {keys}) n"));
    for _ in 0..5 {
        cluster.sql("UPDATE t SET n = n + 1");
    }
    let healthy = (keys - keys / 10) * 6;
    eventually("the other keys' events came", || {
        (events(&receiver).iter().filter(|event| event["key"]["id"].as_i64().unwrap() % 10 != 0).count()
            >= healthy)
            .then_some(())
    });
    assert!(
        receiver.requests().iter().all(|request| request.attempt() == 1),
        "they waited for the failing keys"
    );
    cluster.wait_status("s", &format!("blocked_keys = {}", keys / 10));
    cluster.delivered(&receiver, "s");
    let successes: Vec<Event> = events(&receiver)
        .into_iter()
        .filter(|event| {
            let fails = event["action"] == "insert" && event["key"]["id"].as_i64().unwrap() % 10 == 0;
            !(fails && event.request.attempt() == 1)
        })
        .collect();
    assert_eq!(successes.len(), keys * 6, "each once");
    in_key_order(&successes);
    let failed_first: Vec<_> =
        events(&receiver).into_iter().filter(|e| e["key"]["id"] == json!(10)).collect();
    let told: Vec<_> = failed_first.iter().map(|e| (e.text("action"), e.request.attempt())).collect();
    assert_eq!(
        told[..2],
        [("insert".into(), 1), ("insert".into(), 2)],
        "nothing of the key overtook: {told:?}"
    );
}

#[test]
fn events_of_one_row_come_one_after_the_other() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "");
    receiver.behave(|request: &Request| {
        // Slow ones would be overtaken if anything could overtake.
        let n = request.events()[0]["data"]["record"]["n"].as_i64().unwrap_or(0);
        Reply::default().after(Duration::from_millis(if n % 2 == 0 { 20 } else { 0 }))
    });
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 20) n");
    for _ in 0..10 {
        cluster.sql("UPDATE t SET n = n + 1");
    }
    cluster.sql("UPDATE t SET id = id + 1000 WHERE id <= 10");
    cluster.sql("UPDATE t SET n = 100 WHERE id > 1000");
    cluster.sql("DELETE FROM t");
    cluster.delivered(&receiver, "s");
    let came = events(&receiver);
    assert_eq!(came.len(), 20 * 11 + 10 + 10 + 20);
    in_key_order(&came);
    // An event that changes the key stands between the events of both.
    for id in 1..=10 {
        let at = |test: &dyn Fn(&Event) -> bool| came.iter().position(test).unwrap();
        let moved = at(&|e| e["old_key"] == json!({"id": id}));
        let last_before = came.iter().rposition(|e| e["key"] == json!({"id": id})).unwrap();
        let first_after = at(&|e| e["record"]["n"] == json!(100) && e["key"] == json!({"id": id + 1000}));
        assert!(last_before < moved && moved < first_after, "{id}: {last_before} {moved} {first_after}");
    }
}

#[test]
fn no_event_arrives_before_its_row_can_be_read() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "");
    let reader = Mutex::new(cluster.connect());
    receiver.behave(move |request: &Request| {
        let id = request.events()[0]["data"]["key"]["id"].as_i64().unwrap();
        let there = format!("SELECT FROM t WHERE id = {id}");
        let rows = reader.lock().unwrap().query(&there, &[]).unwrap();
        Reply::status(if rows.len() == 1 { 200 } else { 410 })
    });
    for id in 1..=200 {
        cluster.sql(&format!("INSERT INTO t VALUES ({id})"));
    }
    cluster.delivered(&receiver, "s");
    // A commit that waits for a standby is in the log, and nobody sees its row yet.
    cluster.set("synchronous_standby_names = 'nobody'");
    cluster.reload();
    cluster.wait_true("SELECT current_setting('synchronous_standby_names') = 'nobody'");
    // Which commits wait is up to the checkpointer, who reads the settings before it writes one.
    cluster.sql("CHECKPOINT");
    std::thread::scope(|scope| {
        scope.spawn(|| cluster.sql("INSERT INTO t VALUES (1000)"));
        cluster.wait_true("SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'");
        // Time enough for an event that does not wait.
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(receiver.count(), 200);
        cluster.wait_true("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'");
    });
    receiver.wait_for(201, PATIENCE).unwrap();
    cluster.wait_true("SELECT delivered = 201 AND state = 'active' FROM pgwh.status");
}

#[test]
fn a_truncate_stays_between_what_came_before_and_after_it() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "");
    receiver.behave(|request: &Request| {
        let id = request.events()[0]["data"]["key"]["id"].as_i64().unwrap_or(0);
        Reply::default().after(Duration::from_millis(if id % 3 == 0 { 50 } else { 0 }))
    });
    cluster.each(&[
        "INSERT INTO t SELECT n FROM generate_series(1, 30) n",
        "TRUNCATE t",
        "INSERT INTO t SELECT n FROM generate_series(1, 30) n",
    ]);
    let came = cluster.delivered(&receiver, "s");
    assert_eq!(came.len(), 61);
    assert_eq!(came[30]["action"], "truncate", "a barrier");
}

#[test]
fn a_hanging_endpoint_delays_no_other_and_no_commit() {
    let (cluster, receiver) = stage();
    let hanging = Receiver::start().unwrap();
    hanging.behave(Script::always(Answer::Hang));
    cluster.subscribe(&hanging, "hangs", "");
    cluster.subscribe(&receiver, "well", "");
    let begin = Instant::now();
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 2000) n");
    assert_eq!(cluster.delivered(&receiver, "well").len(), 2000);
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    assert!(hanging.count() <= 16, "max_in_flight bounds what one endpoint occupies");
}

#[test]
fn max_in_flight_bounds_the_requests_at_once() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "max_in_flight => 3");
    receiver.behave(Script::always(Answer::Hang));
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 50) n");
    receiver.wait_for(3, PATIENCE).unwrap();
    assert!(receiver.wait_for(4, Duration::from_millis(500)).is_err());
}

/// The position that the slot would start from after a crash.
fn confirmed(cluster: &Cluster) -> String {
    cluster.value("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = pgwh.slot_name()")
}

#[test]
fn the_slot_passes_journaled_events_and_a_crash_keeps_them() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "tables => '{public.t}'");
    receiver.behave(Script::always(Reply::status(503)));
    cluster.sql("INSERT INTO t VALUES (1)");
    receiver.wait_for(1, PATIENCE).unwrap();
    cluster.wait_confirmed();
    cluster.sql("CHECKPOINT");
    cluster.restart(Stop::Kill);
    receiver.behave(Script::default());
    assert_eq!(cluster.delivered(&receiver, "s").len(), 1);
}

#[test]
fn a_stop_of_any_kind_before_delivery_loses_nothing() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "");
    let mut first = 1;
    for how in [Stop::Kill, Stop::Immediate, Stop::Fast] {
        receiver.clear();
        receiver.behave(Script::always(Answer::Hang));
        cluster.sql(&format!("INSERT INTO t SELECT n FROM generate_series({first}, {}) n", first + 99));
        receiver.wait_for(1, PATIENCE).unwrap();
        let begin = Instant::now();
        cluster.stop(how);
        assert!(begin.elapsed() < Duration::from_secs(10), "{how:?}: requests under way are not waited for");
        receiver.clear();
        receiver.behave(Script::default());
        cluster.begin();
        let came = cluster.delivered(&receiver, "s");
        let keys: HashSet<i64> = came.iter().map(|event| event["key"]["id"].as_i64().unwrap()).collect();
        assert!((first..first + 100).all(|id| keys.contains(&id)), "{how:?}: {} came", keys.len());
        first += 100;
    }
}

#[test]
fn wal_is_released_when_nothing_that_is_subscribed_changes() {
    let (cluster, receiver) = stage();
    cluster.sql("CREATE TABLE busy (n int)");
    cluster.subscribe(&receiver, "s", "tables => '{public.t}'");
    let before = confirmed(&cluster);
    cluster.sql("INSERT INTO busy SELECT n FROM generate_series(1, 100000) n");
    let end = cluster.value("SELECT pg_current_wal_lsn()");
    cluster.wait_true(&format!(
        "SELECT confirmed_flush_lsn > '{before}' AND confirmed_flush_lsn >= '{end}' FROM pg_replication_slots \
         WHERE slot_name = pgwh.slot_name()"
    ));
    assert_eq!(receiver.count(), 0);
}

#[test]
fn an_event_larger_than_the_queue_arrives_whole() {
    let (cluster, receiver) = stage();
    cluster.sql("CREATE TABLE large (id int PRIMARY KEY, v text)");
    cluster.subscribe(&receiver, "s", "");
    cluster.sql("INSERT INTO large SELECT n, repeat(n::text, 3000000) FROM generate_series(1, 3) n");
    let came = cluster.delivered(&receiver, "s");
    for event in came {
        let n = event["key"]["id"].to_string();
        assert_eq!(event["record"]["v"].as_str().unwrap(), n.repeat(3_000_000));
    }
}

#[test]
fn a_transaction_larger_than_memory_passes_a_bounded_queue() {
    let (cluster, receiver) = stage();
    cluster.sql("ALTER SYSTEM SET logical_decoding_work_mem = '1MB'");
    cluster.reload();
    cluster.subscribe(&receiver, "s", "");
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 50000) n");
    within(5 * PATIENCE, "all came", || (receiver.count() >= 50_000).then_some(()));
    let came = cluster.delivered(&receiver, "s");
    assert_eq!(came.len(), 50_000);
    for kind in [harness::DISPATCHER, harness::DECODER] {
        let memory = cluster.process(kind).memory();
        assert!(memory < 128 << 20, "{kind}: {memory}");
    }
    assert_eq!(receiver.count(), 50_000, "each once");
}

#[test]
fn a_decoder_that_stands_still_stops_nobody_else() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "");
    let decoder: Process = cluster.process(harness::DECODER);
    decoder.pause();
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 100) n");
    assert_eq!(cluster.value("SELECT count(*) FROM t"), "100");
    assert_eq!(receiver.count(), 0);
    decoder.resume();
    assert_eq!(distinct(cluster.delivered(&receiver, "s")).len(), 100);
}

#[test]
fn unsubscribing_what_fills_the_memory_lets_the_others_go_on() {
    let cluster = Setup::new().set("pgwh.max_memory = '1MB'").start();
    cluster.sql("CREATE EXTENSION pgstream_hooks");
    cluster.sql("CREATE TABLE big (id int PRIMARY KEY, filling text); CREATE TABLE t (id int PRIMARY KEY)");
    let receiver = Receiver::start().unwrap();
    cluster.sql("SELECT pgwh.subscribe('http://127.0.0.1:1/', name => 'down', tables => '{big}')");
    cluster.subscribe(&receiver, "up", "tables => '{t}'");
    cluster.sql("INSERT INTO big SELECT n, repeat('x', 1000) FROM generate_series(1, 20000) n");
    cluster.sql("INSERT INTO t VALUES (1)");
    cluster.wait_true("SELECT pending > 100 FROM pgwh.status WHERE name = 'down'");
    cluster.sql("SELECT pgwh.unsubscribe('down')");
    assert_eq!(cluster.delivered(&receiver, "up").len(), 1);
}

#[test]
fn a_changed_signing_key_signs_what_is_sent_from_then_on() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "secret => 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw'");
    let new = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
    cluster.sql(&format!("UPDATE pgwh.secrets SET secret = '{new}'"));
    cluster.sql("INSERT INTO t VALUES (1)");
    let events = cluster.delivered(&receiver, "s");
    let new = receiver::Secret::parse(new).unwrap();
    assert_eq!(new.verify(&events[0].request), receiver::Verdict::Valid);
}
