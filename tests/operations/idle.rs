//! Who has nothing to do does nothing.

use std::time::Duration;

use harness::{Cluster, DECODER, DISPATCHER, LAUNCHER, PATIENCE, Receiver, Setup, within};

/// A cluster where nobody else has something to do either: what autovacuum writes, the decoder reads.
fn idle() -> Cluster {
    let cluster = Setup::new().set("autovacuum = off").start();
    cluster.sql("CREATE EXTENSION pgstream_hooks");
    cluster.wait_true("SELECT ok FROM pgwh.health() WHERE check_name = 'slot present and valid'");
    cluster
}

#[test]
fn idle_processes_use_no_measurable_cpu_and_do_not_poll() {
    let cluster = idle();
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let receiver = Receiver::start().unwrap();
    cluster.subscribe(&receiver, "s", "");
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 100) n");
    cluster.delivered(&receiver, "s");
    let processes = [LAUNCHER, DISPATCHER, DECODER].map(|kind| (kind, cluster.process(kind)));
    // What they still write down after the last delivery is no idleness yet.
    std::thread::sleep(Duration::from_secs(2));
    let before = processes.map(|(_, process)| (process.cpu(), process.sleeps()));
    let watched = Duration::from_secs(5);
    std::thread::sleep(watched);
    for ((kind, process), (cpu, sleeps)) in processes.into_iter().zip(before) {
        // One tick of the clock is what can be measured.
        assert!(process.cpu() - cpu <= Duration::from_millis(10), "{kind} used {:?}", process.cpu() - cpu);
        let woken = process.sleeps() - sleeps;
        assert!(woken <= 2 * watched.as_secs(), "{kind} woke up {woken} times in {watched:?}");
    }
}

#[test]
fn an_idle_slot_keeps_up_without_work_for_itself() {
    let cluster = idle();
    let receiver = Receiver::start().unwrap();
    cluster.subscribe(&receiver, "s", "");
    cluster.delivered(&receiver, "s");
    std::thread::sleep(Duration::from_secs(2));
    // Nothing that we write makes us write again: WAL stands still but for the server's own records.
    let before = cluster.value("SELECT pg_current_wal_insert_lsn()");
    std::thread::sleep(Duration::from_secs(5));
    cluster.wait_true(&format!("SELECT pg_current_wal_insert_lsn() - '{before}'::pg_lsn < 10000"));
}

#[test]
fn an_idle_transaction_with_half_a_record_wakes_no_process() {
    let cluster = idle();
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY, filling text)");
    let receiver = Receiver::start().unwrap();
    cluster.subscribe(&receiver, "s", "");
    let decoder = cluster.process(DECODER);
    let mut sitting = cluster.connect();
    sitting.batch_execute("BEGIN").unwrap();
    let half_a_record = || {
        cluster.value(
            "SELECT pg_current_wal_flush_lsn() < pg_current_wal_insert_lsn() \
             AND (pg_current_wal_flush_lsn() - '0/0'::pg_lsn) % 8192 = 0",
        ) == "t"
    };
    let mut rows = 0;
    within(5 * PATIENCE, "watched the decoder while half a record was on disk", || {
        // The last page that the WAL writer completes ends within one of these records, the rest of which stays in
        // memory, until somebody else, such as the background writer with its list of what runs, has all written.
        let more = format!(
            "INSERT INTO t SELECT {rows} + n, repeat(md5(n::text), 45) FROM generate_series(1, 500) n"
        );
        rows += sitting.execute(&more, &[]).unwrap();
        // Its pauses grow to their longest first, and the WAL writer gets its turn.
        std::thread::sleep(Duration::from_secs(2));
        if !half_a_record() {
            return None;
        }
        let before = decoder.sleeps();
        let watched = Duration::from_secs(3);
        std::thread::sleep(watched);
        let woken = decoder.sleeps() - before;
        half_a_record().then(|| {
            assert!(woken <= 8 * watched.as_secs(), "the decoder woke up {woken} times in {watched:?}")
        })
    });
    sitting.batch_execute("COMMIT").unwrap();
    assert_eq!(cluster.delivered(&receiver, "s").len() as u64, rows);
}
