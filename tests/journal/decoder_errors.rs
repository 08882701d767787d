//! An ERROR inside a filter or the encoding of a value that is not the row's fault (cancel, shutdown, out of memory) ends the
//! decoder under its own name, and costs no event.

use harness::{Client, Cluster, DECODER, Receiver, Setup, eventually};

/// The decoder reads the enum's catalog: to compare the added label for the filter of the one subscription, to write it for the
/// payload of the other.
const IN_FILTER: &str =
    "tables => '{t}', columns => '{id}', filter => 'mood >= ''happy''', event_types => '{insert}'";
const IN_ENCODING: &str = "tables => '{t}'";

/// A subscription to a table with an enum column, and a session that has the enum's labels in its cache.
fn stage(options: &str) -> (Cluster, Receiver, Client) {
    let cluster = Cluster::with_extension();
    cluster.each(&[
        "CREATE TYPE mood AS ENUM ('happy', 'sad')",
        "ALTER TYPE mood ADD VALUE 'glad' BEFORE 'sad'",
        "CREATE TABLE t (id int PRIMARY KEY, mood mood)",
    ]);
    let receiver = Receiver::start().unwrap();
    cluster.subscribe(&receiver, "s", options);
    let mut writer = cluster.connect();
    // What does not need the added label is compiled and looked up by now.
    writer.batch_execute("SELECT 'glad'::mood; INSERT INTO t VALUES (0, 'happy')").unwrap();
    assert_eq!(cluster.delivered(&receiver, "s").len(), 1);
    receiver.clear();
    (cluster, receiver, writer)
}

/// Ends the decoder by `how`, a function of its process id, while it waits for a lock of the enum's catalog; the log must have
/// `message`.
#[track_caller]
fn interrupted(options: &str, how: &str, message: &str) {
    let (cluster, receiver, mut writer) = stage(options);
    let mut locker = cluster.connect();
    locker.batch_execute("BEGIN; LOCK TABLE pg_catalog.pg_enum IN ACCESS EXCLUSIVE MODE").unwrap();
    writer.batch_execute("INSERT INTO t VALUES (1, 'glad')").unwrap();
    let decoder = cluster.process(DECODER);
    cluster.wait_true(&format!(
        "SELECT count(*) > 0 FROM pg_locks WHERE pid = {} AND NOT granted AND relation = 'pg_enum'::regclass",
        decoder.0
    ));
    cluster.sql(&format!("SELECT {how}({})", decoder.0));
    eventually("the decoder ended", || (!decoder.is_alive()).then_some(()));
    locker.batch_execute("ROLLBACK").unwrap();
    assert_nothing_lost(&cluster, &receiver, message);
}

/// The one row was delivered, and the decoder ended with this message.
#[track_caller]
fn assert_nothing_lost(cluster: &Cluster, receiver: &Receiver, message: &str) {
    let events = cluster.delivered(receiver, "s");
    assert_eq!(events.iter().map(|event| event.row()).collect::<Vec<_>>(), [r#"public.t {"id":1}"#]);
    assert_eq!(cluster.status("s", "dead"), "0");
    let log = cluster.log();
    assert!(log.contains(message), "{message}");
    assert!(!log.contains("errstart was not called"), "an error was lost");
}

#[test]
fn a_cancel_inside_a_filter_keeps_its_name() {
    interrupted(IN_FILTER, "pg_cancel_backend", "canceling statement due to user request");
}

#[test]
fn a_cancel_inside_encoding_keeps_its_name() {
    interrupted(IN_ENCODING, "pg_cancel_backend", "canceling statement due to user request");
}

#[test]
fn a_shutdown_inside_a_filter_keeps_its_name() {
    interrupted(IN_FILTER, "pg_terminate_backend", "due to administrator command");
}

#[test]
fn a_shutdown_inside_encoding_keeps_its_name() {
    interrupted(IN_ENCODING, "pg_terminate_backend", "due to administrator command");
}

/// The decoder may take 24 MB more than it has when it comes to a value that takes 16 MB in WAL and again where it is written.
#[track_caller]
fn out_of_memory(options: &str, value: &str) {
    let cluster = Setup::new().set("pgwh.max_event_size = '200MB'").start();
    cluster.sql("CREATE EXTENSION pgstream_hooks; CREATE TABLE t (id int PRIMARY KEY, note text)");
    let receiver = Receiver::start().unwrap();
    cluster.subscribe(&receiver, "s", options);
    let decoder = cluster.process(DECODER);
    decoder.limit_memory(24 << 20);
    cluster.sql(&format!("INSERT INTO t VALUES (1, {value})"));
    eventually("the decoder ended", || (!decoder.is_alive()).then_some(()));
    assert_nothing_lost(&cluster, &receiver, "out of memory");
}

#[test]
fn a_lack_of_memory_inside_a_filter_keeps_its_name() {
    out_of_memory(
        "tables => '{t}', columns => '{id}', event_types => '{insert}', filter => 'length(repeat(note, 40000)) > 0'",
        "repeat('x', 1000)",
    );
}

#[test]
fn a_lack_of_memory_inside_encoding_keeps_its_name() {
    out_of_memory("tables => '{t}'", "repeat('x', 16000000)");
}
