//! Kill any process at any time: nothing is lost, and what is repeated is repeated under the same id and in order.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use harness::{
    Cluster, DECODER, DISPATCHER, LAUNCHER, PATIENCE, Receiver, Setup, Stop, events, eventually,
    in_key_order, within,
};

const KEYS: u64 = 500;
const ROUNDS: u64 = 100;

/// Counts up each key of `t` by one, in `ROUNDS` transactions, whatever happens to the server meanwhile.
fn write(cluster: &Cluster, done: &AtomicBool) {
    let mut round = 0;
    while round < ROUNDS {
        let mut client = cluster.connect();
        // A commit whose answer was lost may have happened: the table tells.
        let Ok(row) = client.query_one("SELECT count(*) FROM rounds", &[]) else { continue };
        round = row.get::<_, i64>(0) as u64;
        while round < ROUNDS {
            let sql = format!(
                "BEGIN; INSERT INTO rounds VALUES ({round});
                 INSERT INTO t SELECT n, 1 FROM generate_series(1, {KEYS}) n
                   ON CONFLICT (id) DO UPDATE SET version = t.version + 1; COMMIT"
            );
            if client.batch_execute(&sql).is_err() {
                break;
            }
            round += 1;
        }
    }
    done.store(true, Ordering::Relaxed);
}

/// A burst of 50,000 rows while `kill` is called ten times, each time when some more has arrived; then the reckoning.
fn survives(kill: impl Fn(&Cluster, u64)) {
    let cluster = Cluster::with_extension();
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY, version int); CREATE TABLE rounds (n int PRIMARY KEY)");
    let receiver = Receiver::start().unwrap();
    cluster.subscribe(&receiver, "s", "tables => '{public.t}'");
    let total = KEYS * ROUNDS;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| write(&cluster, &done));
        for n in 0..10 {
            // Never the same place: thresholds that are no multiple of anything.
            let more = total / 14 + n * 37;
            let seen = receiver.count();
            let _ = receiver.wait_for((seen + more).min(total), PATIENCE);
            kill(&cluster, n);
        }
        within(5 * PATIENCE, "all was written", || done.load(Ordering::Relaxed).then_some(()));
    });
    within(5 * PATIENCE, "all came", || {
        cluster.try_rows("SELECT FROM (SELECT pgwh.wait('s', '10 s') AS came) w WHERE came").ok()?.pop()
    });
    let distinct = cluster.delivered(&receiver, "s");
    let repeated = receiver.count() - distinct.len() as u64;
    let mut versions: HashMap<u64, Vec<u64>> = HashMap::new();
    for event in &distinct {
        let number = |field: &str| event["record"][field].as_u64().unwrap();
        versions.entry(number("id")).or_default().push(number("version"));
    }
    assert_eq!(versions.len() as u64, KEYS);
    for (key, versions) in versions {
        assert_eq!(versions, (1..=ROUNDS).collect::<Vec<_>>(), "of key {key}");
    }
    in_key_order(&distinct);
    // The same change has the same id whenever it is sent.
    let mut ids: HashMap<String, (u64, u64)> = HashMap::new();
    for event in events(&receiver) {
        let place = *ids.entry(event.id()).or_insert(event.place());
        assert_eq!(place, event.place(), "{}", event.whole);
    }
    println!("{repeated} of {} requests were repetitions", receiver.count());
}

/// Waits until the workers have failed so often since the log was this long; how long that took from the first.
#[track_caller]
fn time_of_failures(cluster: &Cluster, process: &str, times: usize) -> Duration {
    let pattern = format!("{process} : ERROR:");
    let before = cluster.log().matches(&pattern).count();
    let failed = || cluster.log().matches(&pattern).count() - before;
    within(2 * PATIENCE, "it fails", || (failed() > 0).then_some(()));
    let first = Instant::now();
    within(2 * PATIENCE, "it fails again and again", || (failed() >= times).then_some(()));
    first.elapsed()
}

/// What `break_it` makes fail right after each start is tried again less and less often, and goes on once mended.
#[track_caller]
fn backs_off(process: &str, break_it: impl FnOnce(&Cluster), mend: impl FnOnce(&Cluster)) {
    let cluster = Setup::new().set("logical_decoding_work_mem = '64kB'").start();
    cluster.sql("CREATE EXTENSION pgstream_hooks");
    cluster.wait_true("SELECT ok FROM pgwh.health() WHERE check_name = 'slot present and valid'");
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY, text text)");
    let receiver = Receiver::start().unwrap();
    cluster.subscribe(&receiver, "s", "tables => '{public.t}'");
    cluster.sql("INSERT INTO t VALUES (1)");
    assert_eq!(cluster.delivered(&receiver, "s").len(), 1);
    break_it(&cluster);
    // The pauses before the second to the seventh start: 0.2, 0.4, 0.8, 1.6, 3.2 and 6.4 s.
    let took = time_of_failures(&cluster, process, 7);
    assert!(took > Duration::from_secs(12), "{took:?}");
    cluster.wait_true(
        "SELECT NOT ok AND detail LIKE '%in a row, lastly: %' AND hint IS NOT NULL FROM pgwh.health()
         WHERE check_name = 'worker running'",
    );
    mend(&cluster);
    cluster.sql("INSERT INTO t VALUES (-1)");
    within(2 * PATIENCE, "it goes on", || {
        events(&receiver).iter().any(|event| event["key"]["id"] == -1).then_some(())
    });
    // What has made progress has not failed any more.
    cluster.wait_true("SELECT ok FROM pgwh.health() WHERE check_name = 'worker running'");
    assert_eq!(cluster.value("SELECT pgwh_internal.capture_problem()"), "");
}

#[test]
fn a_dispatcher_that_fails_after_each_start_backs_off() {
    backs_off(
        DISPATCHER,
        |cluster| {
            cluster
                .sql("ALTER TABLE pgwh_internal.routing_image ADD CONSTRAINT broken CHECK (false) NOT VALID");
            cluster.sql("UPDATE pgwh.subscriptions SET batch_size = 2");
        },
        |cluster| cluster.sql("ALTER TABLE pgwh_internal.routing_image DROP CONSTRAINT broken"),
    );
}

#[test]
fn a_decoder_that_fails_after_each_start_backs_off() {
    // A large transaction is written to files beside the slot, where nothing may be written.
    let let_write = |cluster: &Cluster, mode: u32| {
        let slot = cluster.value("SELECT pgwh.slot_name()");
        let folder = cluster.data().join("pg_replslot").join(slot);
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    backs_off(
        DECODER,
        |cluster| {
            let_write(cluster, 0o500);
            cluster.sql("INSERT INTO t SELECT n, repeat('x', 1000) FROM generate_series(2, 2000) n");
        },
        |cluster| let_write(cluster, 0o700),
    );
}

#[test]
fn the_decoder_killed_ten_times_in_a_burst_loses_nothing() {
    survives(|cluster, _| cluster.kill9(DECODER));
}

#[test]
fn the_dispatcher_killed_ten_times_in_a_burst_loses_nothing() {
    survives(|cluster, _| cluster.kill9(DISPATCHER));
}

#[test]
fn the_launcher_killed_ten_times_in_a_burst_loses_nothing() {
    survives(|cluster, _| cluster.kill9(LAUNCHER));
}

#[test]
fn the_whole_server_killed_ten_times_in_a_burst_loses_nothing() {
    survives(|cluster, _| cluster.restart(Stop::Kill));
}

#[test]
fn processes_terminated_in_a_burst_lose_nothing() {
    let kinds = [DECODER, DISPATCHER, LAUNCHER];
    survives(|cluster, n| {
        let kind = kinds[n as usize % kinds.len()];
        let process = cluster.process(kind);
        cluster.sql(&format!("SELECT pg_terminate_backend({})", process.0));
        eventually(&format!("another {kind}"), || (cluster.process(kind) != process).then_some(()));
    });
}
