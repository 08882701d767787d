//! Existing rows to a subscription, in order with what happens meanwhile.

mod consistency;
mod key_changes;
mod lifecycle;
mod parity;
mod progress;
mod replica;
mod scope;
mod steps;

use harness::{Cluster, Receiver};
use steps::{BACKFILLER, backfill, done, ended};

fn stage() -> (Cluster, Receiver) {
    let cluster = Cluster::with_extension();
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY, v text)");
    (cluster, Receiver::start().unwrap())
}

#[test]
fn all_rows_that_there_are_come_as_reads_and_nothing_twice() {
    let (cluster, receiver) = stage();
    cluster.sql("INSERT INTO t SELECT n, 'v' || n FROM generate_series(1, 5000) n; ANALYZE t");
    cluster.subscribe(&receiver, "s", "tables => '{public.t}', batch_size => 100");
    let id = backfill(&cluster, "'s', 'public.t'");
    done(&cluster, &id);
    let events = cluster.delivered(&receiver, "s");
    assert_eq!(events.len(), 5000);
    let mut keys: Vec<i64> = events.iter().map(|event| event["key"]["id"].as_i64().unwrap()).collect();
    keys.sort_unstable();
    assert_eq!(keys, (1..=5000).collect::<Vec<_>>());
    assert!(events.iter().all(|event| event.text("action") == "read"));
    assert_eq!(events[0]["record"]["v"], format!("v{}", events[0]["key"]["id"]));
    let row = cluster
        .rows("SELECT state, rows_done, rows_sent, rows_total, percent, tables_done FROM pgwh.backfills");
    let row: Vec<&str> = row[0].iter().map(|value| value.as_deref().unwrap_or_default()).collect();
    assert_eq!(row, ["done", "5000", "5000", "5000", "100", "1"]);
}
