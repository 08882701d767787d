//! Commands that rewrite a table, or its indexes, are no changes of its rows.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use harness::{Cluster, Database, Receiver, Server, in_key_order};

const KEYS: u64 = 200;
const WRITERS: u64 = 2;

/// What rewrites the table `t` on this major version.
fn rewrites() -> Vec<&'static str> {
    let mut commands = vec!["VACUUM FULL t", "CLUSTER t USING t_pkey", "REINDEX TABLE CONCURRENTLY t"];
    if Server::get().major() >= 19 {
        commands.extend([
            "REPACK t",
            "REPACK (CONCURRENTLY) t",
            "REPACK (CONCURRENTLY) t USING INDEX t_pkey",
        ]);
    }
    commands
}

/// Counts up one row of `t` after the other, each in a transaction of its own; how many.
fn update(database: &Database, writer: u64, stop: &AtomicBool) -> u64 {
    let mut client = database.connect();
    let mut updates = 0;
    while !stop.load(Ordering::Relaxed) {
        let id = writer + WRITERS * (updates % (KEYS / WRITERS));
        client.batch_execute(&format!("UPDATE t SET version = version + 1 WHERE id = {id}")).unwrap();
        updates += 1;
    }
    updates
}

#[test]
fn rewrites_under_load_lose_double_and_reorder_nothing() {
    let cluster = Cluster::with_extension();
    changes_nothing_under_load(&cluster, &rewrites(), |command| cluster.sql(command));
}

#[test]
fn pg_repack_under_load_loses_doubles_and_reorders_nothing() {
    // Debian has it for its own PostgreSQL alone.
    if Server::get().major() != 15 {
        return;
    }
    let cluster = Cluster::with_extension();
    cluster.sql("CREATE EXTENSION pg_repack");
    let options =
        ["--table=t", "--table=t --no-order", "--table=t --order-by=version", "--table=t --only-indexes"];
    changes_nothing_under_load(&cluster, &options, |options| {
        let mut command = Server::get().command("pg_repack");
        command.args(["--username=postgres", "--dbname=postgres", "--host"]).arg(cluster.host());
        let output = command.args(options.split(' ')).output().unwrap();
        assert!(output.status.success(), "{options}: {}", String::from_utf8_lossy(&output.stderr));
    });
}

/// Updates rows of `t` while each command runs: all updates and nothing else come, those of each row in order.
fn changes_nothing_under_load(cluster: &Database, commands: &[&str], run: impl Fn(&str)) {
    cluster.each(&[
        "CREATE TABLE t (id bigint PRIMARY KEY, version bigint NOT NULL DEFAULT 0, note text DEFAULT repeat('n', 200))",
        &format!("INSERT INTO t SELECT n FROM generate_series(0, {}) n", KEYS - 1),
    ]);
    let receiver = Receiver::start().unwrap();
    cluster.subscribe(&receiver, "s", "tables => '{*.*}'");
    let (stop, updates) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (stop, updates) = (&stop, &updates);
            scope.spawn(move || updates.fetch_add(update(cluster, writer, stop), Ordering::Relaxed));
        }
        for command in commands {
            let seen = receiver.count();
            run(command);
            receiver.wait_for(seen + 100, harness::PATIENCE).expect("updates go on");
        }
        stop.store(true, Ordering::Relaxed);
    });
    let events = cluster.delivered(&receiver, "s");
    assert_eq!(events.len() as u64, updates.load(Ordering::Relaxed), "one event an update");
    assert!(events.iter().all(|event| event["action"] == "update"));
    in_key_order(&events);
    let last: BTreeMap<u64, u64> = events
        .iter()
        .map(|event| ["id", "version"].map(|field| event["record"][field].as_u64().unwrap()))
        .map(|[id, version]| (id, version))
        .collect();
    let rows = cluster.rows("SELECT id, version FROM t WHERE version > 0 ORDER BY id");
    let table = rows.iter().map(|row| {
        let number = |at: usize| row[at].as_deref().unwrap().parse::<u64>().unwrap();
        (number(0), number(1))
    });
    assert_eq!(last, table.collect(), "the last event of each row is its state");
}
