//! Shared memory that is full: what needs more of it waits and says why, and all else goes on.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use harness::{Cluster, DISPATCHER, Machine, Receiver, Setup, eventually};

/// The directory of the server's shared memory, on the machine that it runs on.
fn memory(cluster: &Cluster) -> PathBuf {
    let pid = fs::read_to_string(cluster.data().join("postmaster.pid")).unwrap();
    PathBuf::from(format!("/proc/{}/root/dev/shm", pid.lines().next().unwrap()))
}

/// Fills it; the file that does.
fn fill(cluster: &Cluster) -> PathBuf {
    let path = memory(cluster).join("full");
    let mut file = fs::File::create(&path).unwrap();
    for size in [65_536, 4_096] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
    path
}

#[test]
fn a_full_shared_memory_stops_nothing_but_what_needs_more() {
    let cluster = Setup::new().prepare();
    cluster.begin_on(&Machine::default().with_shared_memory(16), &[]);
    cluster.each(&[
        "CREATE EXTENSION pgstream_hooks",
        "CREATE TABLE t (id int PRIMARY KEY)",
        "CREATE TABLE old (id int PRIMARY KEY)",
        "INSERT INTO old SELECT generate_series(1, 10)",
        "CREATE FUNCTION shape(event jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT event $$",
    ]);
    let receiver = Receiver::start().unwrap();
    cluster.subscribe(&receiver, "plain", "tables => '{t, old}'");
    cluster.subscribe(&receiver, "shaped", "tables => '{t}', transform => 'public.shape(jsonb)'");
    let dispatcher = cluster.process(DISPATCHER);
    let full = fill(&cluster);

    cluster.sql("INSERT INTO t SELECT generate_series(1, 10)");
    assert_eq!(cluster.delivered(&receiver, "plain").len(), 10);
    let health = |column: &str| {
        cluster
            .value(&format!("SELECT {column} FROM pgwh.health() WHERE check_name = 'free worker processes'"))
    };
    cluster.wait_status(
        "shaped",
        "state = 'error' AND reason LIKE 'shared memory is full: %No space left on device%'",
    );
    assert_eq!(cluster.status("shaped", "next_step"), health("hint"));
    cluster.sql("SELECT pgwh.backfill('plain', 'public.old')");
    cluster.wait_true(
        "SELECT NOT ok AND detail LIKE '%to run transforms and routes%' AND detail LIKE '%to read backfills%'
         FROM pgwh.health() WHERE check_name = 'free worker processes'",
    );
    // More than there is room to show.
    let url = receiver.url("/many");
    cluster.sql(&format!(
        "SELECT pgwh.subscribe('{url}', name => 'many' || n, tables => '{{t}}') FROM generate_series(1, 100) n"
    ));
    cluster.sql("INSERT INTO t VALUES (11)");
    eventually("all that need no more", || {
        let many = receiver.requests().iter().filter(|request| request.path() == "/many").count();
        (many == 100).then_some(())
    });
    assert_eq!(cluster.process(DISPATCHER), dispatcher, "it goes on");
    assert_eq!(cluster.log().matches("there is no shared memory to run transforms and routes").count(), 1);

    fs::remove_file(full).unwrap();
    assert_eq!(cluster.delivered(&receiver, "shaped").len(), 11);
    cluster.wait_true("SELECT bool_and(state = 'done') FROM pgwh.backfills");
    cluster.wait_status("many100", "delivered = 1");
    cluster.wait_true("SELECT ok FROM pgwh.health() WHERE check_name = 'free worker processes'");
    cluster.wait_status("shaped", "state = 'active'");
    assert_eq!(cluster.process(DISPATCHER), dispatcher, "the same one");
}
