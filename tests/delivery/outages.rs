//! From live to backlog and back: outages, breakers, holds, pauses, and what ends a subscription.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use harness::{
    Answer, Cluster, DISPATCHER, Event, PATIENCE, Receiver, Reply, Request, Script, Setup, Stop, events_of,
    eventually, in_key_order, succeeded_in_key_order, within,
};

fn stage() -> (Cluster, Receiver) {
    stage_with(Setup::new())
}

fn stage_with(setup: Setup) -> (Cluster, Receiver) {
    let cluster = setup.start();
    cluster.each(&[
        "CREATE EXTENSION pgstream_hooks",
        "CREATE TABLE t (id int PRIMARY KEY, n int NOT NULL DEFAULT 0)",
    ]);
    (cluster, Receiver::start().unwrap())
}

/// Comes back where it was.
fn reopen(address: SocketAddr) -> Receiver {
    eventually("the same address", || Receiver::at(address).ok())
}

/// Panics unless `keys` rows came with the versions 0 to `last`, in order.
#[track_caller]
fn complete(came: &[Event], keys: u64, last: u64) {
    in_key_order(came);
    let mut versions: HashMap<u64, Vec<u64>> = HashMap::new();
    for event in came {
        let number = |field: &str| event["record"][field].as_u64().unwrap();
        versions.entry(number("id")).or_default().push(number("n"));
    }
    assert_eq!(versions.len() as u64, keys);
    for (key, versions) in versions {
        assert_eq!(versions, (0..=last).collect::<Vec<_>>(), "of key {key}");
    }
}

fn comes_back_in_order(disturb: impl Fn(&Cluster)) {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "retry_schedule => '{100ms,100ms,100ms}'");
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 500) n");
    cluster.delivered(&receiver, "s");
    let mut came = events_of(&receiver, "s");
    let address = receiver.address();
    drop(receiver);
    for _ in 1..=5 {
        cluster.sql("UPDATE t SET n = n + 1");
    }
    cluster.wait_status("s", "mode = 'suspended' AND pending = 2500 AND dead = 0");
    disturb(&cluster);
    for _ in 6..=10 {
        cluster.sql("UPDATE t SET n = n + 1");
    }
    cluster.wait_status("s", "mode = 'suspended' AND pending = 5000 AND dead = 0");
    let receiver = reopen(address);
    // Some while it drains.
    for _ in 11..=15 {
        cluster.sql("UPDATE t SET n = n + 1");
    }
    came.extend(cluster.delivered(&receiver, "s"));
    complete(&came, 500, 15);
    cluster.wait_status("s", "mode = 'live' AND state = 'active' AND pending = 0 AND dead = 0");
    cluster.sql("UPDATE t SET n = n + 1");
    cluster.delivered(&receiver, "s");
    in_key_order(&events_of(&receiver, "s"));
}

#[test]
fn a_backlog_comes_in_order_when_the_endpoint_is_back() {
    comes_back_in_order(|_| {});
}

#[test]
fn a_backlog_comes_in_order_after_a_kill_of_the_dispatcher() {
    comes_back_in_order(|cluster| cluster.kill9(DISPATCHER));
}

#[test]
fn a_backlog_comes_in_order_after_a_restart_of_the_server() {
    comes_back_in_order(|cluster| cluster.restart(Stop::Fast));
}

#[test]
fn a_backlog_larger_than_memory_drains_in_order() {
    let (cluster, receiver) = stage_with(Setup::new().set("pgwh.max_memory = '8MB'"));
    cluster.sql("ALTER TABLE t ADD filling text NOT NULL DEFAULT repeat('x', 500)");
    let steady = Receiver::start().unwrap();
    cluster.subscribe(&receiver, "s", "batch_size => 10");
    cluster.subscribe(&steady, "steady", "batch_size => 10");
    // Slow enough to fall behind, and alive enough that no breaker opens.
    receiver.behave(|_: &Request| Reply::default().after(Duration::from_millis(20)));
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 2000) n");
    for _ in 1..=15 {
        cluster.sql("UPDATE t SET n = n + 1");
    }
    cluster.delivered(&steady, "steady");
    cluster.wait_confirmed();
    receiver.behave(Script::default());
    complete(&cluster.delivered(&receiver, "s"), 2000, 15);
    cluster.wait_status("s", "mode = 'live' AND pending = 0");
}

#[test]
fn an_outage_costs_no_attempts() {
    let (cluster, receiver) = stage();
    cluster.subscribe(
        &receiver,
        "s",
        "retry_schedule => '{300ms,300ms,300ms,300ms,300ms,300ms}', timeout => '500 ms'",
    );
    // What goes well widens the window: many fail at once, long before the first has used up its schedule.
    cluster.sql("INSERT INTO t SELECT g FROM generate_series(1, 40) g");
    cluster.delivered(&receiver, "s");
    // Neither when nobody is there, nor when who is there fails at everything.
    for fault in [Reply::status(500), Reply::from(Answer::Reset), Reply::status(503)] {
        receiver.behave(Script::always(fault));
        cluster.sql("INSERT INTO t SELECT (SELECT count(*) FROM t) + g FROM generate_series(1, 40) g");
        cluster.wait_status("s", "mode = 'suspended'");
        // Long after the schedule's end.
        std::thread::sleep(Duration::from_secs(3));
        cluster.wait_status("s", "mode = 'suspended' AND dead = 0");
        let open = receiver.count();
        std::thread::sleep(Duration::from_secs(1));
        let probes = receiver.count() - open;
        assert!(probes <= 20, "{probes} requests in a second to an endpoint that is known to fail");
        receiver.behave(Script::default());
        cluster.delivered(&receiver, "s");
        cluster.wait_status("s", "mode = 'live' AND state = 'active' AND dead = 0 AND pending = 0");
    }
    assert_eq!(harness::distinct(events_of(&receiver, "s")).len(), 160);
    succeeded_in_key_order(&receiver, |_| true);
}

#[test]
fn after_an_outage_an_endpoint_is_not_trampled() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "max_in_flight => 64");
    let address = receiver.address();
    drop(receiver);
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 2000) n");
    cluster.wait_status("s", "mode = 'suspended' AND pending = 2000");
    let receiver = reopen(address);
    let round = Duration::from_millis(50);
    receiver.behave(move |_: &Request| Reply::default().after(round));
    assert_eq!(cluster.delivered(&receiver, "s").len(), 2000);
    let arrived: Vec<_> = receiver.requests().iter().map(|request| request.arrived()).collect();
    let within = |time: Duration| arrived.iter().filter(|when| **when - arrived[0] < time).count();
    // One request, and twice as many with each round that went well.
    let rounds = [round, round * 2, round * 3].map(|time| within(time - Duration::from_millis(2)));
    assert!(
        rounds[0] <= 2 && rounds[1] <= 6 && rounds[2] <= 14,
        "so many requests by each round: {rounds:?}"
    );
}

/// Holds a subscription by one answer with `retry-after`; returns how long nothing came.
fn held(status: u16, retry_after: &str) -> Duration {
    let (cluster, receiver) = stage();
    // One at a time, so that nothing is under way when the answer comes.
    cluster.subscribe(&receiver, "s", "max_in_flight => 1, retry_schedule => '{100ms}'");
    let reply = Reply::status(status).header("retry-after", retry_after);
    receiver.behave(Script::new(harness::Which::First(1), reply));
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 20) n");
    assert_eq!(cluster.delivered(&receiver, "s").len(), 20);
    let requests = receiver.requests();
    assert_eq!(requests.len(), 21);
    cluster.wait_status("s", "dead = 0");
    requests[1].arrived() - requests[0].arrived()
}

#[test]
fn retry_after_holds_the_whole_subscription() {
    for status in [429, 503] {
        let waited = held(status, "2");
        assert!(waited >= Duration::from_secs(2), "{status}: {waited:?}");
        assert!(waited < Duration::from_secs(8), "{status}: {waited:?}");
    }
}

#[test]
fn who_is_asked_to_wait_says_so_and_until_when() {
    let cluster = Cluster::with_extension();
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let receiver = Receiver::start().unwrap();
    receiver.behave(|_: &Request| Reply::status(503).header("retry-after", "3600"));
    cluster.subscribe(&receiver, "s", "");
    cluster.sql("INSERT INTO t VALUES (1)");
    cluster.wait_status(
        "s",
        "state = 'active' AND reason LIKE 'the endpoint asked to wait: %503%'
         AND next_attempt_at BETWEEN now() + interval '55 min' AND now() + interval '61 min'",
    );
}

#[test]
fn retry_after_may_be_a_date() {
    let (cluster, receiver) = stage();
    let at = SystemTime::now() + Duration::from_secs(4);
    let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let date = cluster.value(&format!(
        "SELECT to_char(to_timestamp({seconds}) AT TIME ZONE 'UTC', 'Dy, DD Mon YYYY HH24:MI:SS \"GMT\"')"
    ));
    receiver.behave(Script::new(harness::Which::First(1), Reply::status(429).header("retry-after", date)));
    cluster.subscribe(&receiver, "s", "max_in_flight => 1, retry_schedule => '{100ms}'");
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 3) n");
    let requests = receiver.wait_for(2, PATIENCE).unwrap();
    assert!(requests.len() >= 2);
    let now = SystemTime::now();
    assert!(now >= at - Duration::from_secs(1), "{:?} before its time", at.duration_since(now));
    assert_eq!(cluster.delivered(&receiver, "s").len(), 3);
}

#[test]
fn a_retry_after_that_makes_no_sense_is_ignored() {
    for nonsense in ["soon", "-1", "Thu, 99 Foo 2020 00:00:00 GMT", "1e9"] {
        let (cluster, receiver) = stage();
        cluster.subscribe(&receiver, "s", "retry_schedule => '{100ms,100ms,100ms}'");
        let reply = Reply::status(500).header("retry-after", nonsense);
        receiver.behave(Script::new(harness::Which::First(1), reply));
        cluster.sql("INSERT INTO t VALUES (1)");
        let begin = Instant::now();
        cluster.delivered(&receiver, "s");
        assert!(begin.elapsed() < Duration::from_secs(10), "{nonsense}: {:?}", begin.elapsed());
    }
}

#[test]
fn who_is_told_to_slow_down_again_and_again_gives_nothing_up() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "retry_schedule => '{50ms}'");
    let reply = Reply::status(429).header("retry-after", 1);
    receiver.behave(Script::new(harness::Which::First(5), reply));
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 5) n");
    assert_eq!(cluster.delivered(&receiver, "s").len(), 5);
    cluster.wait_status("s", "(delivered, dead) = (5, 0)");
}

#[test]
fn gone_disables_with_its_reason_and_the_next_step_goes_on() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "max_in_flight => 1");
    let other = Receiver::start().unwrap();
    cluster.subscribe(&other, "other", "");
    receiver.behave(Script::always(Reply::status(410)));
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 3) n");
    cluster.wait_status("s", "state = 'disabled' AND reason LIKE '%410%' AND next_step IS NOT NULL");
    assert_eq!(receiver.count(), 1, "who is gone is left alone");
    assert_eq!(cluster.delivered(&other, "other").len(), 3);
    cluster.restart(Stop::Immediate);
    cluster.wait_status("s", "state = 'disabled' AND reason LIKE '%410%'");
    receiver.behave(Script::default());
    cluster.sql(&cluster.status("s", "next_step"));
    cluster.wait_status("s", "state IN ('active', 'retrying')");
    cluster.sql("INSERT INTO t VALUES (4)");
    let came = cluster.delivered(&receiver, "s");
    assert!(came.iter().any(|event| event["key"]["id"] == 4), "{came:?}");
}

#[test]
fn a_paused_subscription_keeps_all_and_sends_nothing() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "");
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 100) n");
    cluster.delivered(&receiver, "s");
    let paused = || {
        cluster.sql("SELECT pgwh.pause('s')");
        cluster.wait_status("s", "state = 'paused'");
    };
    paused();
    let before = receiver.count();
    cluster.each(&["UPDATE t SET n = n + 1", "UPDATE t SET n = n + 1"]);
    cluster.wait_status("s", "pending = 200");
    cluster.wait_confirmed();
    cluster.restart(Stop::Immediate);
    cluster.sql("UPDATE t SET n = n + 1");
    cluster.wait_status("s", "state = 'paused' AND pending = 300");
    assert_eq!(receiver.count(), before);
    cluster.sql("SELECT pgwh.resume('s')");
    complete(&cluster.delivered(&receiver, "s"), 100, 3);
    cluster.wait_status("s", "state = 'active' AND mode = 'live' AND pending = 0");
    // In the midst of things, again and again.
    for round in 0..10 {
        cluster.sql("UPDATE t SET n = n + 1");
        if round % 2 == 0 {
            paused();
        } else {
            cluster.sql("SELECT pgwh.resume('s')");
        }
    }
    complete(&cluster.delivered(&receiver, "s"), 100, 13);
    assert_eq!(receiver.count(), 1400, "each once");
}

#[test]
fn resuming_tries_at_once_what_failed() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "retry_schedule => '{1h,1h}'");
    receiver.behave(Script::always(Reply::status(500)));
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 10) n");
    cluster.wait_status("s", "retrying > 0 AND in_flight = 0");
    receiver.behave(Script::default());
    assert_eq!(
        cluster.value("SELECT pgwh.resume('s')"),
        "t",
        "it was not paused, and has something to try again"
    );
    complete(&cluster.delivered(&receiver, "s"), 10, 0);
}

#[test]
fn an_edit_keeps_what_is_pending_and_its_order() {
    let (cluster, receiver) = stage();
    let moved = Receiver::start().unwrap();
    cluster.subscribe(&receiver, "s", "retry_schedule => '{1h,1h,1h,1h}'");
    receiver.behave(Script::always(Reply::status(500)));
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 10) n");
    cluster.each(&["UPDATE t SET n = n + 1", "UPDATE t SET n = n + 1"]);
    cluster.wait_status("s", "retrying > 0 AND pending = 30");
    cluster.sql(&format!(
        "UPDATE pgwh.subscriptions SET url = '{}', batch_size = 5, retry_schedule = '{{100ms,100ms}}'",
        moved.url("/s")
    ));
    cluster.sql("UPDATE t SET n = n + 1");
    complete(&cluster.delivered(&moved, "s"), 10, 3);
    let most = moved.requests().iter().map(|request| request.events().len()).max();
    assert!(most <= Some(5), "{most:?}");
}

#[test]
fn unsubscribe_drops_a_large_backlog_at_once_and_counts_it() {
    let (cluster, receiver) = stage();
    let rows: u64 = std::env::var("PGWH_BACKLOG").ok().and_then(|text| text.parse().ok()).unwrap_or(300_000);
    let names = ["s1", "s2", "s3"];
    for name in names {
        cluster.subscribe(&receiver, name, "");
        cluster.sql(&format!("SELECT pgwh.pause('{name}')"));
        cluster.wait_status(name, "state = 'paused'");
    }
    cluster.sql(&format!("INSERT INTO t SELECT n FROM generate_series(1, {rows}) n"));
    let pending = format!("SELECT bool_and(pending = {rows}) FROM pgwh.status");
    within(5 * PATIENCE, "all is pending", || (cluster.value(&pending) == "t").then_some(()));
    let took = names.map(|name| {
        let begin = Instant::now();
        assert_eq!(cluster.value(&format!("SELECT pgwh.unsubscribe('{name}')")), rows.to_string());
        begin.elapsed()
    });
    // What drops row by row would be slow each time; a machine that is busy for a moment is so once.
    assert!(took.iter().min() < Some(&Duration::from_secs(1)), "{took:?}");
    let next = Receiver::start().unwrap();
    cluster.subscribe(&next, "next", "");
    cluster.sql("INSERT INTO t VALUES (-1)");
    assert_eq!(cluster.delivered(&next, "next").len(), 1);
    assert_eq!(receiver.count(), 0);
}

#[test]
fn status_takes_no_longer_when_much_is_pending() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "");
    cluster.sql("SELECT pgwh.pause('s')");
    cluster.wait_status("s", "state = 'paused'");
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 200000) n");
    within(5 * PATIENCE, "all is pending", || (cluster.status("s", "pending") == "200000").then_some(()));
    let mut session = cluster.connect();
    let took = [(); 20].map(|()| {
        let begin = Instant::now();
        session.batch_execute("SELECT count(*) FROM pgwh.status()").unwrap();
        begin.elapsed()
    });
    // Generous: what scanned the journal would take many times that, each time.
    assert!(took.iter().min() < Some(&Duration::from_millis(200)), "{took:?}");
}

#[test]
fn a_backlog_beyond_its_limit_disables_and_leaves_a_gap() {
    let (cluster, receiver) = stage_with(Setup::new().set("pgwh.max_pending_bytes = '1MB'"));
    cluster.sql("ALTER TABLE t ADD filling text NOT NULL DEFAULT repeat('x', 1000)");
    cluster.sql("SELECT pgwh.subscribe('http://127.0.0.1:1/', name => 'down')");
    cluster.subscribe(&receiver, "up", "");
    let mut listener = cluster.listen("pgwh");
    for n in 0..30 {
        cluster.sql(&format!("INSERT INTO t SELECT {n} * 1000 + n FROM generate_series(1, 100) n"));
        cluster.delivered(&receiver, "up");
    }
    cluster.wait_status("down", "state = 'disabled' AND reason IS NOT NULL AND next_step IS NOT NULL");
    listener.wait_for(&["disabled", "down"]);
    cluster.sql("INSERT INTO t VALUES (-1)");
    assert_eq!(cluster.delivered(&receiver, "up").len(), 3001);
    cluster.wait_status("down", "gap IS NOT NULL");
    cluster.restart(Stop::Immediate);
    cluster.wait_status("down", "state = 'disabled' AND gap IS NOT NULL");
}

#[test]
fn strict_order_is_the_order_of_commits_whatever_fails() {
    let (cluster, receiver) = stage();
    receiver.behave(Script::new(harness::Which::Percent { percent: 10.0, seed: 3 }, Reply::status(500)));
    cluster.subscribe(
        &receiver,
        "s",
        "ordering => 'strict', retry_schedule => '{50ms,50ms,50ms,50ms,50ms,50ms,50ms,50ms}'",
    );
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 50) n");
    for _ in 0..3 {
        cluster.sql("UPDATE t SET n = n + 1");
    }
    let came = cluster.delivered(&receiver, "s");
    assert_eq!(came.len(), 200);
    assert!(came.is_sorted_by_key(Event::place), "in the order of commits");
    cluster.wait_status("s", "dead = 0");
}

#[test]
fn without_order_nothing_waits_for_its_own_row() {
    let (cluster, receiver) = stage();
    receiver.behave(|request: &Request| {
        let first = request.events()[0]["data"]["action"] == "insert" && request.attempt() == 1;
        Reply::status(if first { 500 } else { 200 })
    });
    cluster.subscribe(&receiver, "s", "ordering => 'none', retry_schedule => '{5s}'");
    cluster.each(&["INSERT INTO t VALUES (1)", "UPDATE t SET n = 1", "UPDATE t SET n = 2"]);
    // The insert is the last to succeed.
    let requests = receiver.wait_for(4, PATIENCE).unwrap();
    let attempts: Vec<_> = requests.iter().map(|request| request.attempt()).collect();
    assert_eq!(attempts, [1, 1, 1, 2]);
    cluster.delivered(&receiver, "s");
}
