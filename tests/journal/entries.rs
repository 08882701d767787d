//! What is journaled is true, is there after a crash, and goes when its time is over.

use std::time::{Duration, Instant};

use harness::{
    Answer, Cluster, DISPATCHER, PATIENCE, Receiver, Reply, Request, Script, Setup, Stop, eventually,
};
use serde_json::json;

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

/// Waits until so many deliveries have ended well, and the journal says so.
fn wait_journaled(cluster: &Cluster, count: u64) {
    cluster.wait_true(&format!("SELECT count(*) = {count} FROM pgwh.deliveries WHERE state = 'delivered'"));
}

fn nothing_is_sent_again_after(kill: impl Fn(&Cluster)) {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "tables => '{public.t}'");
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 2000) n");
    cluster.delivered(&receiver, "s");
    wait_journaled(&cluster, 2000);
    for round in 1..=3 {
        kill(&cluster);
        cluster.sql(&format!("INSERT INTO t VALUES ({round} + 2000)"));
        cluster.delivered(&receiver, "s");
        wait_journaled(&cluster, 2000 + round);
        assert_eq!(receiver.count(), 2000 + round, "in round {round}");
    }
    cluster.wait_status("s", "(delivered, pending, dead) = (2003, 0, 0)");
}

#[test]
fn a_kill_of_the_dispatcher_repeats_no_delivered_event() {
    nothing_is_sent_again_after(|cluster| cluster.kill9(DISPATCHER));
}

#[test]
fn an_immediate_stop_repeats_no_delivered_event() {
    nothing_is_sent_again_after(|cluster| cluster.restart(Stop::Immediate));
}

#[test]
fn only_what_was_in_flight_is_sent_again_after_a_kill() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "max_in_flight => 16");
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 100) n");
    cluster.delivered(&receiver, "s");
    wait_journaled(&cluster, 100);
    for (round, stop) in [None, Some(Stop::Immediate), Some(Stop::Kill)].into_iter().enumerate() {
        receiver.clear();
        receiver.behave(Script::always(Answer::Hang));
        let first = 101 + 50 * round;
        cluster.sql(&format!("INSERT INTO t SELECT n FROM generate_series({first}, {}) n", first + 49));
        receiver.wait_for(16, PATIENCE).unwrap();
        // All that came is journaled: nobody needs to decode it again.
        cluster.wait_confirmed();
        if let Some(stop) = stop {
            cluster.stop(stop);
            receiver.behave(Script::default());
            cluster.begin();
        } else {
            receiver.behave(Script::default());
            cluster.kill9(DISPATCHER);
        }
        assert_eq!(cluster.delivered(&receiver, "s").len(), 50, "in round {round}");
        assert_eq!(receiver.count(), 16 + 50, "in round {round}");
    }
}

#[test]
fn a_kill_in_a_burst_repeats_unwritten_outcomes_only() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "max_in_flight => 16");
    let (rows, kills) = (20_000, 3);
    for n in 0..20 {
        cluster.sql(&format!("INSERT INTO t SELECT {n} * 1000 + n FROM generate_series(1, 1000) n"));
    }
    for _ in 0..kills {
        let seen = receiver.count();
        // By now it may have more than are left.
        let _ = receiver.wait_for((seen + rows / 10).min(rows), PATIENCE);
        cluster.kill9(DISPATCHER);
    }
    assert_eq!(cluster.delivered(&receiver, "s").len() as u64, rows);
    let repeated = receiver.count() - rows;
    assert!(repeated <= kills * 2_000, "{repeated} repetitions by {kills} kills");
}

#[test]
fn each_delivery_is_shown_with_its_event_and_its_attempts() {
    let (cluster, receiver) = stage();
    receiver.behave(|request: &Request| match request.attempt() {
        1 => Reply::status(500).body("no, thanks"),
        2 => Reply::from(Answer::Reset),
        3 => Reply::status(302).header("location", "/elsewhere"),
        _ => Reply::status(202),
    });
    cluster.subscribe(&receiver, "s", "retry_schedule => '{100ms,100ms,100ms,100ms}'");
    cluster.sql("INSERT INTO t VALUES (7, 1)");
    let came = cluster.delivered(&receiver, "s");
    wait_journaled(&cluster, 1);
    assert_eq!(
        cluster.rows(
            "SELECT subscription, state, event_count, attempts, status_code,
                    duration_ms >= 0, created_at <= delivered_at, next_attempt_at IS NULL
             FROM pgwh.deliveries"
        ),
        [["s", "delivered", "1", "4", "202", "t", "t", "t"].map(|text| Some(text.to_owned()))]
    );
    assert_eq!(cluster.value("SELECT event_id FROM pgwh.deliveries"), came[0].id());
    cluster.wait_true("SELECT d.subscription_id = s.id FROM pgwh.deliveries d, pgwh.subscriptions s");
    cluster.wait_true("SELECT count(*) >= 3 FROM pgwh.attempts JOIN pgwh.deliveries d ON d.id = delivery_id");
    assert_eq!(
        cluster.rows(
            "SELECT attempt, status_code, error_class, error IS NOT NULL, duration_ms >= 0,
                    started_at BETWEEN now() - interval '1 minute' AND now()
             FROM pgwh.attempts WHERE attempt <= 3 ORDER BY attempt"
        ),
        [
            [Some("1"), Some("500"), Some("http_5xx"), Some("t"), Some("t"), Some("t")],
            [Some("2"), None, Some("reset"), Some("t"), Some("t"), Some("t")],
            [Some("3"), Some("302"), Some("http_3xx"), Some("t"), Some("t"), Some("t")],
        ]
        .map(|row| row.map(|text| text.map(str::to_owned)))
    );
    assert_eq!(cluster.value("SELECT response FROM pgwh.attempts WHERE attempt = 1"), "no, thanks");
    assert_eq!(
        cluster.rows("SELECT id, schema_name, table_name, action, key FROM pgwh.events"),
        [[came[0].id().as_str(), "public", "t", "insert", r#"{"id": 7}"#].map(|text| Some(text.to_owned()))]
    );
    assert_eq!(
        cluster.value("SELECT commit_lsn::text || ' ' || ordinal || ' ' || xid FROM pgwh.events"),
        format!(
            "{} {} {}",
            // Since 19 the server writes positions with all their zeros.
            cluster.value(&format!("SELECT '{}'::pg_lsn", came[0]["commit"]["lsn"].as_str().unwrap())),
            came[0]["commit"]["index"],
            came[0]["commit"]["xid"]
        )
    );
    cluster.wait_true("SELECT committed_at <= now() AND data::text LIKE '%7%' FROM pgwh.events");
    let shown =
        |condition: &str| cluster.value(&format!("SELECT count(*) FROM pgwh.events WHERE {condition}"));
    assert_eq!(shown(&format!("id = '{}'", came[0].id())), "1", "found by its id");
}

#[test]
fn a_delivery_goes_from_pending_to_delivered() {
    let (cluster, receiver) = stage();
    receiver.behave(Script::always(Answer::Hang));
    cluster.subscribe(&receiver, "s", "timeout => '5 s', retry_schedule => '{1h}'");
    cluster.each(&["INSERT INTO t VALUES (1)", "UPDATE t SET n = 1"]);
    let states = |expected: &str| {
        cluster.wait_true(&format!(
            "SELECT string_agg(state, ' ' ORDER BY id) = '{expected}' FROM pgwh.deliveries"
        ));
    };
    states("sending pending");
    states("retrying pending");
    cluster.wait_true(
        "SELECT attempts = 1 AND error_class = 'timeout' AND next_attempt_at > now() FROM pgwh.deliveries WHERE state = 'retrying'",
    );
    receiver.behave(Script::default());
    cluster.sql("SELECT pgwh.resume('s')");
    states("delivered delivered");
    assert_eq!(
        cluster.value("SELECT string_agg(attempts::text, ' ' ORDER BY id) FROM pgwh.deliveries"),
        "2 1"
    );
}

#[test]
fn after_its_last_attempt_an_event_is_a_dead_letter() {
    let (cluster, receiver) = stage();
    receiver.behave(|request: &Request| {
        Reply::status(if request.events()[0]["data"]["action"] == "insert" { 500 } else { 200 })
    });
    let mut listener = cluster.listen("pgwh");
    cluster.subscribe(&receiver, "s", "retry_schedule => '{50ms,50ms}'");
    cluster.each(&["INSERT INTO t VALUES (1)", "UPDATE t SET n = 1", "DELETE FROM t"]);
    cluster.delivered(&receiver, "s");
    let told: Vec<_> = harness::events(&receiver)
        .iter()
        .map(|event| (event.text("action"), event.request.attempt()))
        .collect();
    let told: Vec<_> = told.iter().map(|(action, attempt)| (action.as_str(), *attempt)).collect();
    assert_eq!(told, [("insert", 1), ("insert", 2), ("insert", 3), ("update", 1), ("delete", 1)]);
    cluster.wait_status("s", "(delivered, dead, pending) = (2, 1, 0)");
    assert_eq!(cluster.value("SELECT count(*) FROM pgwh.dead_letters"), "1");
    cluster.wait_true(
        "SELECT count(*) = 1 FROM pgwh.dead_letters l WHERE to_jsonb(l)::text LIKE '%' || (SELECT id FROM pgwh.events WHERE action = 'insert') || '%'",
    );
    assert_eq!(
        cluster.rows(
            "SELECT state, attempts, status_code, error_class FROM pgwh.deliveries ORDER BY id LIMIT 1"
        ),
        [["dead", "3", "500", "http_5xx"].map(|text| Some(text.to_owned()))]
    );
    listener.wait_for(&["dead", "s"]);
    // It is told once, and still known after a crash.
    cluster.restart(Stop::Immediate);
    cluster.wait_status("s", "(delivered, dead, pending) = (2, 1, 0)");
    assert_eq!(cluster.value("SELECT count(*) FROM pgwh.dead_letters"), "1");
    assert_eq!(receiver.count(), 5);
}

#[test]
fn notify_reports_disabled_and_recovered_subscriptions() {
    let (cluster, receiver) = stage();
    let mut listener = cluster.listen("pgwh");
    receiver.behave_at("/gone", Script::always(Reply::status(410)));
    cluster.subscribe(&receiver, "gone", "");
    cluster.sql("INSERT INTO t VALUES (1)");
    listener.wait_for(&["disabled", "gone"]);
    cluster.sql("SELECT pgwh.unsubscribe('gone')");

    let back = Receiver::start().unwrap();
    cluster.subscribe(&back, "back", "retry_schedule => '{100ms,100ms,100ms}'");
    let address = back.address();
    drop(back);
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(2, 50) n");
    cluster.wait_status("back", "mode = 'suspended'");
    let back = eventually("the same address", || Receiver::at(address).ok());
    listener.wait_for(&["recovered", "back"]);
    assert_eq!(cluster.delivered(&back, "back").len(), 49);
}

/// Bytes of all tables in the extension's schema, with indexes and TOAST; and their dead rows.
fn journal_size(cluster: &Cluster) -> (u64, u64) {
    let sum = |sql: &str| cluster.value(sql).parse::<f64>().unwrap_or(0.0) as u64;
    (
        sum(
            "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relnamespace IN ('pgwh'::regnamespace, 'pgwh_internal'::regnamespace) AND relkind = 'r'",
        ),
        sum("SELECT sum(n_dead_tup) FROM pg_stat_all_tables WHERE schemaname IN ('pgwh', 'pgwh_internal')"),
    )
}

#[test]
fn the_journal_stays_as_large_as_its_retention_wants() {
    // Autovacuum has no part in it.
    let (cluster, receiver) = stage_with(Setup::new().set("pgwh.retention = '2s'").set("autovacuum = off"));
    receiver.behave(Script::new(harness::Which::Percent { percent: 1.0, seed: 1 }, Reply::status(500)));
    cluster.subscribe(
        &receiver,
        "s",
        "batch_size => 10, retry_schedule => '{100ms,100ms,100ms,100ms,100ms}'",
    );
    const PACE: Duration = Duration::from_millis(150);
    let seconds = std::env::var("PGWH_SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(16);
    let (begin, mut n, mut sizes, mut oldest) = (Instant::now(), 0, Vec::new(), 0f64);
    while begin.elapsed() < Duration::from_secs(seconds) {
        n += 1;
        let round = Instant::now();
        cluster
            .sql(&format!("INSERT INTO t SELECT {n} * 1000 + n FROM generate_series(1, 500) n; TRUNCATE t"));
        // At a steady rate that is delivered: what is pending is kept, however much it is.
        assert_eq!(cluster.value("SELECT pgwh.wait('s', '60 s')"), "t");
        // Whoever was held up catches up with nothing.
        std::thread::sleep(PACE.saturating_sub(round.elapsed()));
        sizes.push((begin.elapsed(), journal_size(&cluster)));
        let age = cluster
            .value("SELECT extract(epoch FROM clock_timestamp() - min(opened_at)) FROM pgwh_internal.slices");
        oldest = oldest.max(age.parse().unwrap());
    }
    // The retention, what the slice took to fill, and what passed until it was looked for.
    assert!(oldest < 12.0, "a slice was kept for {oldest} s");
    cluster.delivered(&receiver, "s");
    // It grows while the ring of slices is filled for the first time, and never again.
    let (filling, later): (Vec<_>, Vec<_>) =
        sizes.iter().partition(|(when, _)| *when < Duration::from_secs(seconds / 2));
    let most =
        |sizes: &[&(Duration, (u64, u64))]| sizes.iter().map(|(_, (bytes, _))| *bytes).max().unwrap_or(0);
    let (filling, later_most) = (most(&filling), most(&later));
    println!(
        "{n} transactions of 500 rows; a slice was kept for {oldest:.1} s; at most {filling} bytes, later {later_most}"
    );
    assert!(later_most <= filling + filling / 2 + (1 << 20), "it grew from {filling} to {later_most} bytes");
    let dead = later.iter().map(|(_, (_, dead))| *dead).max().unwrap_or(0);
    assert!(dead < 1000, "{dead} dead rows");
    // And what is past is gone: not even the shortest retention keeps nothing, so some of the last may be there.
    eventually("what is past retention is forgotten", || {
        cluster.sql("INSERT INTO t VALUES (1); DELETE FROM t");
        let count: u64 = cluster.value("SELECT count(*) FROM pgwh.events").parse().unwrap();
        (count < n * 500 / 2).then_some(())
    });
}

#[test]
fn an_idle_subscription_keeps_its_position_over_rotations() {
    let (cluster, receiver) = stage_with(Setup::new().set("pgwh.retention = '1s'"));
    cluster.sql("CREATE TABLE other (id int PRIMARY KEY)");
    cluster.subscribe(&receiver, "idle", "tables => '{public.t}'");
    cluster.subscribe(&receiver, "busy", "tables => '{public.other}'");
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 5) n");
    cluster.wait_status("idle", "(delivered, dead, pending) = (5, 0, 0)");
    let generation =
        || cluster.value("SELECT max(generation) FROM pgwh_internal.slices").parse::<u64>().unwrap();
    // More than a whole round of eight; some of the slices are left at one moment of what is done with them, some at
    // another.
    let (mut n, mut before) = (0, generation());
    let end = before + 10;
    while before < end {
        before = eventually("the next slice", || {
            n += 1;
            cluster.sql(&format!("INSERT INTO other SELECT {n} * 100 + n FROM generate_series(1, 10) n"));
            Some(generation()).filter(|now| *now > before)
        });
        if before % 3 == 0 {
            std::thread::sleep(Duration::from_millis(before % 4 * 40));
            cluster.kill9(DISPATCHER);
            cluster.wait_status("idle", "(delivered, dead, pending) = (5, 0, 0)");
        }
    }
    // Nor is anything numbered anew that has been there.
    cluster.sql("INSERT INTO t VALUES (6)");
    cluster.wait_status("idle", "(delivered, dead, pending) = (6, 0, 0)");
    let count: u64 =
        cluster.value("SELECT count(*) FROM pgwh.events WHERE table_name = 't'").parse().unwrap();
    assert_eq!(count, 1, "what the others had is forgotten");
    cluster.delivered(&receiver, "busy");
}

#[test]
fn pending_events_outlive_their_retention() {
    let (cluster, receiver) = stage_with(Setup::new().set("pgwh.retention = '1s'"));
    cluster.sql("CREATE TABLE other (id int PRIMARY KEY)");
    receiver.behave_at("/failing", Script::fail_key(json!({"id": 1}), 500));
    cluster.subscribe(&receiver, "failing", "tables => '{public.t}', retry_schedule => '{1h,1h}'");
    cluster.subscribe(&receiver, "well", "tables => '{public.other}'");
    cluster.each(&["INSERT INTO t VALUES (1)", "UPDATE t SET n = n + 1", "UPDATE t SET n = n + 1"]);
    cluster.wait_status("failing", "retrying = 1 AND pending = 3");
    let begin = Instant::now();
    let mut n = 0;
    while begin.elapsed() < Duration::from_secs(6) {
        n += 1;
        cluster.sql(&format!("INSERT INTO other SELECT {n} * 1000 + n FROM generate_series(1, 500) n"));
    }
    // From the journal, since the memory of what was pending went with the process.
    cluster.restart(Stop::Immediate);
    cluster.wait_status("failing", "pending = 3");
    receiver.behave_at("/failing", Script::default());
    cluster.sql("SELECT pgwh.resume('failing')");
    let came = cluster.delivered(&receiver, "failing");
    let seen: Vec<_> = came.iter().map(|event| event["record"]["n"].as_u64().unwrap()).collect();
    assert_eq!(seen, [0, 1, 2]);
    cluster.delivered(&receiver, "well");
}

#[test]
fn a_very_slow_endpoint_delays_neither_slot_nor_neighbours() {
    let (cluster, receiver) = stage();
    receiver.behave_at("/slow", Script::always(Answer::Hang));
    cluster.subscribe(&receiver, "slow", "timeout => '1 hour'");
    cluster.subscribe(&receiver, "well", "");
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 1000) n");
    assert_eq!(cluster.delivered(&receiver, "well").len(), 1000);
    cluster.wait_status("slow", "pending = 1000");
    cluster.wait_confirmed();
    // Nor does it when there are more than memory holds.
    cluster.sql("UPDATE t SET n = n + 1; UPDATE t SET n = n + 1");
    assert_eq!(cluster.delivered(&receiver, "well").len(), 3000);
    cluster.wait_confirmed();
}

#[test]
fn a_dead_endpoint_holds_neither_the_slot_nor_its_neighbours() {
    let (cluster, receiver) = stage();
    cluster.sql("SELECT pgwh.subscribe('http://127.0.0.1:1/', name => 'dead')");
    cluster.subscribe(&receiver, "well", "");
    for n in 0..10 {
        cluster.sql(&format!("INSERT INTO t SELECT {n} * 1000 + n FROM generate_series(1, 500) n"));
        assert_eq!(cluster.delivered(&receiver, "well").len(), 500 * (n + 1));
        cluster.wait_confirmed();
    }
    cluster.wait_status("dead", "pending = 5000 AND dead = 0 AND mode = 'suspended'");
}

#[test]
fn readers_of_the_journal_never_stop_what_is_delivered() {
    let (cluster, receiver) = stage_with(Setup::new().set("pgwh.retention = '2s'"));
    cluster.subscribe(&receiver, "s", "");
    let mut dump = cluster.connect();
    // As pg_dump does: a lock on each table, for as long as it takes.
    dump.batch_execute(
        "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pgwh.events;
         DO $$ DECLARE r regclass; BEGIN
           FOR r IN SELECT oid::regclass FROM pg_class WHERE relnamespace IN ('pgwh'::regnamespace, 'pgwh_internal'::regnamespace) AND relkind IN ('r', 'p')
           LOOP EXECUTE format('LOCK TABLE %s IN ACCESS SHARE MODE', r); END LOOP; END $$",
    )
    .unwrap();
    let begin = Instant::now();
    let mut n = 0;
    while begin.elapsed() < Duration::from_secs(5) {
        n += 1;
        cluster.sql(&format!("INSERT INTO t SELECT {n} * 1000 + n FROM generate_series(1, 100) n"));
        assert_eq!(cluster.delivered(&receiver, "s").len(), 100 * n);
    }
    dump.batch_execute("COMMIT").unwrap();
}
