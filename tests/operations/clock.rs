//! A clock that is set, forward or back, neither stalls delivery nor sets off a storm.

use std::time::{Duration, Instant};

use harness::{Answer, Cluster, Receiver, Reply, Request, Script, Setup, Stop, eventually, in_key_order};

/// The server's day, counted from the true one.
fn wait_for_day(cluster: &Cluster, day: i64) {
    let today = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs_f64();
    cluster.wait_true(&format!(
        "SELECT abs(extract(epoch FROM clock_timestamp()) - {today} - {day} * 86400) < 3600"
    ));
}

fn shift(cluster: &Cluster, by: &str, day: i64) {
    cluster.shift_clock(by);
    wait_for_day(cluster, day);
}

#[test]
fn a_clock_that_jumps_by_a_day_neither_stalls_nor_storms() {
    let cluster = Setup::new().own_clock().set("pgwh.retention = '10 min'").start();
    cluster.sql(
        "CREATE EXTENSION pgstream_hooks; CREATE TABLE t (id int PRIMARY KEY, n int NOT NULL DEFAULT 0)",
    );
    let [healthy, failing, later] = [(); 3].map(|()| Receiver::start().unwrap());
    // One that takes all, one that fails and is tried again soon, one whose next attempt is far away.
    cluster.subscribe(&healthy, "healthy", "");
    cluster.subscribe(&failing, "failing", "retry_schedule => array_fill('500 ms'::interval, '{100}')");
    cluster.subscribe(&later, "later", "retry_schedule => '{20 days,20 days}'");
    let refuse_updates = |request: &Request| {
        Reply::status(if request.events()[0]["data"]["action"] == "update" { 500 } else { 200 })
    };
    failing.behave(refuse_updates);
    later.behave(refuse_updates);
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 10) n");
    for receiver in [&healthy, &failing, &later] {
        receiver.wait_for(10, harness::PATIENCE).unwrap();
    }
    cluster.sql("UPDATE t SET n = 1 WHERE id <= 5");
    cluster.wait_status("failing", "retrying > 0");
    cluster.wait_status("later", "retrying = 5 AND in_flight = 0");
    let waiting = later.count();

    let (mut row, mut updates) = (100_u64, 1);
    for (by, day, restart) in
        [("+1d", 1, None), ("-1d", -1, None), ("+2d", 2, Some(Stop::Immediate)), ("+0", 0, Some(Stop::Fast))]
    {
        let (begin, before) = (Instant::now(), failing.count());
        shift(&cluster, by, day);
        if let Some(stop) = restart {
            cluster.restart(stop);
            wait_for_day(&cluster, day);
        }
        // What is new arrives, to all three.
        row += 1;
        cluster.sql(&format!("INSERT INTO t VALUES ({row})"));
        for receiver in [&healthy, &failing, &later] {
            eventually(&format!("row {row} by day {day}"), || {
                receiver
                    .requests()
                    .iter()
                    .any(|request| request.events()[0]["data"]["key"]["id"] == row)
                    .then_some(())
            });
        }
        updates += 1;
        cluster.sql(&format!("UPDATE t SET n = {updates} WHERE id <= 5"));
        // Retries go on at their own pace: five rows, twice a second, and a fifth sooner at most.
        eventually("some retries", || (failing.count() > before + 5).then_some(()));
        let rounds = (begin.elapsed().as_secs_f64() / 0.4).ceil() as u64 + 2;
        assert!(
            failing.count() - before <= rounds * 5 + 1,
            "{} requests in {:?}",
            failing.count() - before,
            begin.elapsed()
        );
        let tried = later.count() - waiting;
        assert_eq!(tried, row - 100, "of those that wait for weeks none was tried");
    }
    failing.behave(Script::default());
    let came = harness::distinct(cluster.delivered(&failing, "failing"));
    in_key_order(&came);
    assert_eq!(came.len(), 10 + 4 + 5 * updates);
    // A crash repeats what was in flight.
    let came = harness::distinct(cluster.delivered(&healthy, "healthy"));
    assert_eq!(came.len() as u64, 10 + 4 + 5 * updates as u64);
    // Nothing that is pending was given up or forgotten.
    cluster.wait_status("later", &format!("(pending, dead) = ({}, 0)", 5 * updates));
    later.behave(Script::default());
    cluster.sql("SELECT pgwh.resume('later')");
    let came = harness::distinct(cluster.delivered(&later, "later"));
    in_key_order(&came);
    assert_eq!(came.len(), 10 + 4 + 5 * updates);
}

#[test]
fn a_timeout_holds_while_the_clock_is_set() {
    let cluster = Setup::new().own_clock().start();
    cluster.sql("CREATE EXTENSION pgstream_hooks; CREATE TABLE t (id int PRIMARY KEY)");
    let receiver = Receiver::start().unwrap();
    cluster.subscribe(&receiver, "s", "timeout => '3 s', retry_schedule => '{100ms,100ms}'");
    receiver.behave(Script::new(harness::Which::First(1), Reply::from(Answer::Hang)));
    cluster.sql("INSERT INTO t VALUES (1)");
    receiver.wait_for(1, harness::PATIENCE).unwrap();
    let begin = Instant::now();
    shift(&cluster, "-1d", -1);
    assert_eq!(cluster.delivered(&receiver, "s").len(), 1);
    let took = begin.elapsed();
    assert!(took > Duration::from_secs(1) && took < Duration::from_secs(20), "{took:?}");
}
