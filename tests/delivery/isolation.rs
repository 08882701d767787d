//! One endpoint's trouble is no other's, and not the server's, however many they are.

use std::time::{Duration, Instant};

use harness::{Answer, Cluster, DISPATCHER, Receiver, Script, Setup, Tally, eventually, within};

/// How long many subscriptions may take on a busy machine.
const LONG: Duration = Duration::from_secs(180);

fn many() -> u32 {
    std::env::var("PGWH_SUBSCRIPTIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(200)
}

/// A receiver of many addresses, each of them another host.
fn everywhere() -> Receiver {
    let listen = ([0, 0, 0, 0], 0).into();
    Receiver::with(receiver::Options { listen, keep: 0, control: false }).unwrap()
}

/// The host of a subscription.
fn host(number: u32) -> String {
    format!("127.1.{}.{}", number / 250, number % 250 + 1)
}

fn subscribe(cluster: &Cluster, numbers: &[u32], port: u16, rest: &str) {
    let mut client = cluster.connect();
    for number in numbers {
        let sql = format!(
            "SELECT pgwh.subscribe('http://{}:{port}/{number}', name => 's{number}', tables => '{{public.t}}', {rest})",
            host(*number)
        );
        client.batch_execute(&sql).unwrap();
    }
}

#[test]
fn healthy_endpoints_get_everything_beside_failing_ones() {
    let limit = 128 << 20;
    let cluster = Setup::new().start();
    cluster.sql("CREATE EXTENSION pgstream_hooks; CREATE TABLE t (id int PRIMARY KEY, filling text)");
    let receiver = everywhere();
    let tally = Tally::of(&receiver);
    let port = receiver.address().port();
    let numbers: Vec<u32> = (0..many()).collect();
    let hangs = |number: &u32| number.is_multiple_of(10);
    let refuses = |number: &u32| number % 20 == 5;
    let of = |which: &dyn Fn(&u32) -> bool| numbers.iter().copied().filter(|n| which(n)).collect::<Vec<_>>();
    let (hanging, refusing) = (of(&hangs), of(&refuses));
    let healthy = of(&|number| !hangs(number) && !refuses(number));
    for number in &hanging {
        receiver.behave_at(&format!("/{number}"), Script::always(Answer::Hang));
    }
    subscribe(&cluster, &hanging, port, "timeout => '60 s'");
    // Port 1 of loopback: nobody is there.
    subscribe(&cluster, &refusing, 1, "timeout => '60 s'");
    subscribe(&cluster, &healthy, port, "timeout => '60 s'");

    let (rounds, rows) = (20, 10);
    let mut most = 0;
    let mut slowest = Duration::ZERO;
    for round in 1..=rounds {
        let begin = Instant::now();
        cluster.sql(&format!(
            "INSERT INTO t SELECT {round} * 1000 + n, repeat('x', 200) FROM generate_series(1, {rows}) n"
        ));
        within(LONG, "all healthy endpoints were reached", || {
            most = cluster.process(DISPATCHER).memory().max(most);
            healthy
                .iter()
                .all(|number| tally.at(&format!("/{number}")).requests >= round * rows)
                .then_some(())
        });
        slowest = slowest.max(begin.elapsed());
    }
    cluster.wait_confirmed();
    for number in &healthy {
        assert_eq!(tally.at(&format!("/{number}")).requests, rounds * rows, "of {number}: each once");
    }
    println!(
        "{} healthy endpoints beside {} that hang and {} that refuse: the slowest round of {rows} events took {slowest:?}; \
         {:.1} MB",
        healthy.len(),
        hanging.len(),
        refusing.len(),
        most as f64 / 1e6
    );
    // No healthy one waits for the timeout of another.
    assert!(slowest < Duration::from_secs(55), "{slowest:?}");
    assert!(most < limit, "{most} bytes");
    cluster.wait_true(&format!(
        "SELECT count(*) = {} FROM pgwh.status WHERE pending = {} AND dead = 0",
        hanging.len() + refusing.len(),
        rounds * rows
    ));
}

/// So many endpoints hang that they want all connections several times over; one is well.
fn hanging_beside_a_healthy_one(count: u32, host: impl Fn(u32) -> String) {
    let cluster = Setup::new().set("pgwh.max_connections = 64").start();
    cluster.sql("CREATE EXTENSION pgstream_hooks; CREATE TABLE t (id int PRIMARY KEY)");
    let receiver = everywhere();
    let tally = Tally::of(&receiver);
    receiver.behave(Script::always(Answer::Hang));
    receiver.behave_at("/1000", Script::default());
    let port = receiver.address().port();
    // It is known to be swift by the time the others come.
    subscribe(&cluster, &[1000], port, "timeout => '60 s'");
    cluster.sql("INSERT INTO t SELECT -n FROM generate_series(1, 50) n");
    assert_eq!(cluster.value("SELECT pgwh.wait('s1000', '60 s')"), "t");
    let mut client = cluster.connect();
    for number in 0..count {
        let url = format!("http://{}:{port}/{number}", host(number));
        let sql = format!(
            "SELECT pgwh.subscribe('{url}', name => 'h{number}', tables => '{{public.t}}', timeout => '60 s')"
        );
        client.batch_execute(&sql).unwrap();
    }
    for n in 1..=10 {
        let begin = Instant::now();
        cluster.sql(&format!("INSERT INTO t SELECT {n} * 1000 + n FROM generate_series(1, 100) n"));
        within(LONG, "the healthy one was reached", || {
            (tally.at("/1000").requests >= 50 + n * 100).then_some(())
        });
        assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
    }
    cluster.wait_confirmed();
}

#[test]
fn hanging_endpoints_on_one_host_delay_no_others() {
    hanging_beside_a_healthy_one(40, |_| "127.0.0.2".to_owned());
}

#[test]
fn hanging_hosts_beyond_the_connection_limit_delay_no_others() {
    hanging_beside_a_healthy_one(200, host);
}

/// Subscribes so many to a receiver of many addresses, and has each of them answer for long enough that it is sent
/// sixteen requests at once.
fn subscribe_and_warm_up(cluster: &Cluster, receiver: &Receiver, count: u32) {
    subscribe(cluster, &(0..count).collect::<Vec<_>>(), receiver.address().port(), "timeout => '10 min'");
    cluster.sql("INSERT INTO t SELECT -n FROM generate_series(1, 100) n");
    cluster.wait_true(&format!("SELECT sum(delivered) = 100 * {count} FROM pgwh.status"));
}

#[test]
fn endpoints_that_begin_to_hang_leave_connections_to_new_ones() {
    let cluster = Setup::new().set("pgwh.max_connections = 64").start();
    cluster.each(&[
        "CREATE EXTENSION pgstream_hooks",
        "CREATE TABLE t (id int PRIMARY KEY)",
        "CREATE TABLE u (id int PRIMARY KEY)",
    ]);
    let receiver = everywhere();
    subscribe_and_warm_up(&cluster, &receiver, 20);
    receiver.behave(Script::always(Answer::Hang));
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 100) n");
    cluster.wait_true("SELECT sum(in_flight) >= 48 FROM pgwh.status");
    // Neither one that has never been sent to nor one after it waits for a request that hangs.
    let healthy = [Receiver::start().unwrap(), Receiver::start().unwrap()];
    for (receiver, name) in healthy.iter().zip(["first", "second"]) {
        cluster.subscribe(receiver, name, "tables => '{public.u}'");
        cluster.sql("DELETE FROM u; INSERT INTO u SELECT n FROM generate_series(1, 200) n");
        cluster.delivered(receiver, name);
    }
    cluster.wait_true("SELECT sum(in_flight) BETWEEN 48 AND 64 FROM pgwh.status");
    assert_eq!(cluster.value("SELECT count(*) FROM pgwh.attempts"), "0", "none has been given up");
}

/// How many files this process may open.
fn file_limit() -> u32 {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    line.split_whitespace().nth(3).unwrap().parse().unwrap_or(u32::MAX)
}

#[test]
fn a_healthy_endpoint_is_served_beside_8000_requests_that_hang() {
    // 500 endpoints, where the receiver and the dispatcher may each open 20,000 files.
    let count = (file_limit().saturating_sub(2000) / 36).min(500);
    let cluster = Setup::new().set(&format!("pgwh.max_connections = {}", 24 * count.max(1))).start();
    cluster.each(&[
        "CREATE EXTENSION pgstream_hooks",
        "CREATE TABLE t (id int PRIMARY KEY)",
        "CREATE TABLE u (id int PRIMARY KEY)",
    ]);
    let (receiver, healthy) = (everywhere(), Receiver::start().unwrap());
    subscribe_and_warm_up(&cluster, &receiver, count);
    let mut sent = 0;
    let mut latency = |cluster: &Cluster| {
        let mut times: Vec<Duration> = (0..100)
            .map(|_| {
                sent += 1;
                cluster.sql(&format!("INSERT INTO u VALUES ({sent})"));
                let committed = Instant::now();
                healthy.wait_for(sent, LONG).unwrap();
                committed.elapsed()
            })
            .collect();
        times.sort();
        (times[50], times[98])
    };
    cluster.subscribe(&healthy, "well", "tables => '{public.u}'");
    latency(&cluster);
    let alone = latency(&cluster);
    receiver.behave(Script::always(Answer::Hang));
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 20) n");
    within(LONG, "all hang", || {
        let hanging = "SELECT sum(in_flight) FROM pgwh.status";
        (cluster.value(hanging) == (16 * count).to_string()).then_some(())
    });
    let beside = latency(&cluster);
    let memory = cluster.process(DISPATCHER).memory();
    println!("{} hang: p50 and p99 {beside:?}, {alone:?} alone; {memory} bytes", 16 * count);
    assert!(memory < 128 << 20, "{memory} bytes");
    for trouble in ["PANIC", "Too many open files", "out of file descriptors", "limit on open files"] {
        assert!(!cluster.log().contains(trouble), "{trouble} in the log");
    }
}

#[test]
fn unsubscribing_frees_the_connections_of_requests_that_hang() {
    let cluster = Setup::new().set("pgwh.max_connections = 8").start();
    cluster.each(&["CREATE EXTENSION pgstream_hooks", "CREATE TABLE t (id int PRIMARY KEY)"]);
    let receiver = everywhere();
    subscribe_and_warm_up(&cluster, &receiver, 8);
    receiver.behave(Script::always(Answer::Hang));
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 100) n");
    cluster.wait_true("SELECT sum(in_flight) >= 6 FROM pgwh.status");
    let open = || {
        cluster.value("SELECT value FROM pgwh.metric_samples('pgwh_database_in_flight') WHERE metric = 'pgwh_database_in_flight'")
    };
    assert_ne!(open(), "0");
    cluster.sql("SELECT pgwh.unsubscribe(name) FROM pgwh.subscriptions");
    eventually("no request is under way", || (open() == "0").then_some(()));
    receiver.behave(Script::default());
    let healthy = Receiver::start().unwrap();
    cluster.subscribe(&healthy, "well", "");
    cluster.sql("INSERT INTO t SELECT 1000 + n FROM generate_series(1, 50) n");
    assert_eq!(cluster.delivered(&healthy, "well").len(), 50);
    assert_eq!(cluster.value("SELECT count(*) FROM pgwh.attempts"), "0");
}

#[test]
fn a_low_file_limit_leaves_the_server_its_files() {
    let cluster = Setup::new().set("max_files_per_process = 64").limit_files(300).start();
    cluster.sql("CREATE EXTENSION pgstream_hooks; CREATE TABLE t (id int PRIMARY KEY)");
    let receiver = everywhere();
    receiver.behave(Script::always(Answer::Hang));
    let port = receiver.address().port();
    let numbers: Vec<u32> = (0..300).collect();
    let healthy = Receiver::start().unwrap();
    cluster.subscribe(&healthy, "well", "");
    cluster.sql("INSERT INTO t SELECT -n FROM generate_series(1, 50) n");
    cluster.delivered(&healthy, "well");
    subscribe(&cluster, &numbers, port, "timeout => '60 s'");
    for n in 1..=10u64 {
        cluster.sql(&format!("INSERT INTO t SELECT {n} * 1000 + n FROM generate_series(1, 200) n"));
        // The dispatcher writes its journal, and new WAL, however many sockets it wants.
        cluster.sql("SELECT pg_switch_wal(); CHECKPOINT");
        assert_eq!(cluster.delivered(&healthy, "well").len() as u64, 50 + n * 200);
        cluster.wait_confirmed();
    }
    let log = cluster.log();
    for trouble in ["PANIC", "Too many open files", "out of file descriptors"] {
        assert!(!log.contains(trouble), "{trouble} in the log");
    }
}

#[test]
fn commits_are_journaled_while_hundreds_await_a_connection() {
    let cluster = Setup::new().set("pgwh.max_connections = 16").start();
    cluster.each(&[
        "CREATE EXTENSION pgstream_hooks",
        "CREATE TABLE t (id int PRIMARY KEY)",
        "CREATE TABLE u (id int PRIMARY KEY)",
    ]);
    let receiver = everywhere();
    receiver.behave(Script::always(Answer::Hang));
    let port = receiver.address().port();
    subscribe(&cluster, &(0..400).collect::<Vec<_>>(), port, "timeout => '5 min'");
    cluster.subscribe(&Receiver::start().unwrap(), "later", "tables => '{public.u}'");
    cluster.sql("SELECT pgwh.pause('later')");
    cluster.sql("INSERT INTO t VALUES (1)");
    cluster.wait_true(
        "SELECT sum(in_flight) > 0 AND count(*) FILTER (WHERE pending = 1) = 400 FROM pgwh.status",
    );
    cluster.sql("INSERT INTO u SELECT n FROM generate_series(1, 20000) n");
    cluster.wait_confirmed();
    // It shows a moment later.
    cluster.wait_status("later", "pending = 20000");
    cluster.wait_true("SELECT sum(pending) = 400 FROM pgwh.status WHERE name <> 'later'");
}
