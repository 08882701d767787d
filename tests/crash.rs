//! Kill any process at any time: nothing is lost, and what is repeated is repeated under the same id and in order.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use harness::{
    Cluster, DECODER, DISPATCHER, LAUNCHER, PATIENCE, Receiver, Stop, events, eventually, in_key_order,
    within,
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
fn processes_ended_politely_in_a_burst_come_back_and_lose_nothing() {
    let kinds = [DECODER, DISPATCHER, LAUNCHER];
    survives(|cluster, n| {
        let kind = kinds[n as usize % kinds.len()];
        let process = cluster.process(kind);
        cluster.sql(&format!("SELECT pg_terminate_backend({})", process.0));
        eventually(&format!("another {kind}"), || (cluster.process(kind) != process).then_some(()));
    });
}
