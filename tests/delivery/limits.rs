//! What drives past a limit is bounded by it, and nothing is lost in silence.

use std::time::{Duration, Instant};

use harness::{Cluster, DECODER, DISPATCHER, Event, PATIENCE, Receiver, Reply, Request, Setup, within};
use serde_json::json;

fn stage(setup: Setup) -> (Cluster, Receiver) {
    let cluster = setup.start();
    cluster.each(&[
        "CREATE EXTENSION pgstream_hooks",
        "CREATE TABLE t (id int PRIMARY KEY, title text, content text)",
        "ALTER TABLE t ALTER content SET STORAGE EXTERNAL",
    ]);
    (cluster, Receiver::start().unwrap())
}

#[test]
fn rate_limits_of_subscription_and_host_both_hold() {
    let cluster = Cluster::with_extension();
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let receiver = Receiver::start().unwrap();
    // How long the requests of some rows take, from before the first may leave until the last is there: when the first
    // came says little, since it may have been late.
    let spread = |begin: Instant, rows: u64| {
        let requests = receiver.wait_for(rows, PATIENCE).unwrap();
        requests.last().unwrap().arrived() - begin
    };
    cluster.subscribe(&receiver, "slow", "rate_limit => 20");
    let begin = Instant::now();
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 41) n");
    let slow = spread(begin, 41);
    assert!(slow >= Duration::from_millis(1950), "40 intervals at 20 a second took {slow:?}");
    cluster.each(&[
        "UPDATE pgwh.subscriptions SET rate_limit = NULL",
        "ALTER SYSTEM SET pgwh.host_rate_limit = 20",
    ]);
    cluster.reload();
    cluster.subscribe(&receiver, "other", "");
    cluster.sql("SELECT pgwh.wait('slow', '30 s')");
    receiver.clear();
    let begin = Instant::now();
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(101, 120) n");
    let both = spread(begin, 40);
    assert!(both >= Duration::from_millis(1900), "39 intervals at 20 a second took {both:?}");
    cluster
        .each(&["ALTER SYSTEM RESET pgwh.host_rate_limit", "ALTER SYSTEM SET pgwh.host_max_in_flight = 2"]);
    cluster.reload();
    cluster.sql("SELECT pgwh.wait('slow', '30 s')");
    receiver.clear();
    receiver.behave(|_: &Request| Reply::default().after(Duration::from_millis(50)));
    let begin = Instant::now();
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(201, 210) n");
    let both = spread(begin, 20);
    assert!(both >= Duration::from_millis(440), "20 requests of 50 ms, two at once, took {both:?}");
    let refusal = cluster.refused("SELECT pgwh.subscribe('http://127.0.0.1:1/', rate_limit => 0)");
    assert_eq!(refusal.code, "22023");
    assert!(refusal.hint.contains("rate_limit => 100"), "{refusal:?}");
}

#[test]
fn an_event_too_large_omits_its_largest_columns() {
    let (cluster, receiver) = stage(Setup::new().set("pgwh.max_event_size = '64kB'"));
    cluster.subscribe(&receiver, "s", "");
    cluster.each(&[
        "INSERT INTO t VALUES (1, 'small', 'fits')",
        "INSERT INTO t VALUES (2, 'large', repeat('x', 1000000))",
        "UPDATE t SET content = repeat('y', 1000000) WHERE id = 1",
        "INSERT INTO t VALUES (3, 'small', 'fits')",
    ]);
    let mut came = cluster.delivered(&receiver, "s");
    // Rows of other keys may overtake each other.
    came.sort_by_key(Event::place);
    let shown: Vec<_> = came.iter().map(|event| (&event["record"], &event["omitted"])).collect();
    assert_eq!(
        shown,
        [
            (&json!({"id": 1, "title": "small", "content": "fits"}), &json!(null)),
            (&json!({"id": 2, "title": "large"}), &json!(["content"])),
            (&json!({"id": 1, "title": "small"}), &json!(["content"])),
            (&json!({"id": 3, "title": "small", "content": "fits"}), &json!(null)),
        ]
    );
    assert!(receiver.requests().iter().all(|request| request.body().len() < 64 * 1024));
}

#[test]
fn a_row_of_hundreds_of_megabytes_neither_crashes_nor_loops() {
    let (cluster, receiver) = stage(Setup::new().set("max_wal_size = 4GB"));
    cluster.sql("CREATE TABLE huge (id int PRIMARY KEY, packed bytea, plain bytea)");
    cluster.sql("ALTER TABLE huge ALTER plain SET STORAGE EXTERNAL");
    cluster.subscribe(&receiver, "s", "");
    let workers = [DISPATCHER, DECODER].map(|kind| cluster.process(kind));
    cluster.each(&[
        "INSERT INTO huge SELECT 1, convert_to(repeat('x', 600000000), 'UTF8'), NULL",
        "INSERT INTO huge SELECT 2, NULL, convert_to(repeat('x', 600000000), 'UTF8')",
        "INSERT INTO huge VALUES (3, 'a', 'b')",
    ]);
    within(Duration::from_secs(180), "all came", || (receiver.count() >= 3).then_some(()));
    let mut came = cluster.delivered(&receiver, "s");
    // Rows of other keys may overtake each other.
    came.sort_by_key(|event| event["key"]["id"].as_u64());
    let omitted: Vec<_> = came.iter().map(|event| event["omitted"].clone()).collect();
    assert_eq!(omitted, [json!(["packed"]), json!(["plain"]), json!(null)]);
    assert_eq!([DISPATCHER, DECODER].map(|kind| cluster.process(kind)), workers, "nobody had to start again");
    cluster.wait_status("s", "(delivered, dead, pending) = (3, 0, 0)");
}

#[test]
fn of_a_response_no_more_is_kept_than_allowed() {
    let (cluster, receiver) = stage(Setup::new().set("pgwh.max_response_size = '2kB'"));
    receiver.behave(|request: &Request| match request.attempt() {
        1 => Reply::status(500).body(vec![b'x'; 10_000_000]),
        // Neither does a large answer that is no failure do any harm.
        _ => Reply::default().body(vec![b'x'; 10_000_000]),
    });
    cluster.subscribe(&receiver, "s", "retry_schedule => '{100ms}'");
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 3) n");
    assert_eq!(cluster.delivered(&receiver, "s").len(), 3);
    cluster.wait_true(
        "SELECT count(*) = 3 AND max(octet_length(response)) <= 2048 AND min(response) LIKE 'xxx%'
         FROM pgwh.attempts WHERE attempt = 1",
    );
    assert!(cluster.process(DISPATCHER).memory() < 128 << 20);
}

#[test]
fn requests_in_flight_are_bounded_by_connections() {
    let (cluster, receiver) = stage(Setup::new().set("pgwh.max_connections = 8"));
    let round = Duration::from_millis(50);
    receiver.behave(move |_: &Request| Reply::default().after(round));
    for n in 0..10 {
        cluster.subscribe(&receiver, &format!("s{n}"), "max_in_flight => 16");
    }
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 50) n");
    for n in 0..10 {
        assert_eq!(cluster.delivered(&receiver, &format!("s{n}")).len(), 50);
    }
    let arrived: Vec<Instant> = receiver.requests().iter().map(|request| request.arrived()).collect();
    // Nine in less than a round would be nine at once.
    for nine in arrived.windows(9) {
        assert!(nine[8] - nine[0] >= round - Duration::from_millis(5), "{:?}", nine[8] - nine[0]);
    }
}

#[test]
fn a_small_queue_holds_back_and_drops_nothing() {
    let (cluster, receiver) = stage(Setup::new().set("pgwh.queue_size = '64kB'"));
    cluster.subscribe(&receiver, "s", "batch_size => 100");
    cluster.sql("INSERT INTO t SELECT n, 'title', repeat('x', 500) FROM generate_series(1, 20000) n");
    assert_eq!(cluster.delivered(&receiver, "s").len(), 20_000);
}
