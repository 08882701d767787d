//! How many requests a second, one event each, while a burst of rows is committed.

use std::time::{Duration, Instant};

/// Rows of one transaction.
const TRANSACTION: u64 = 10_000;

pub(crate) fn run(rows: u64) {
    // Warm: connections, threads, caches.
    let (cluster, receiver) = crate::stage(0);
    cluster.sql("INSERT INTO orders SELECT -n, 'open', 42.10 FROM generate_series(1, 20000) n");
    receiver.wait_for(20_000, Duration::from_secs(120)).expect("the warm-up arrives");
    receiver.clear();

    let mut client = cluster.connect();
    let begin = Instant::now();
    for first in (0..rows).step_by(TRANSACTION as usize) {
        let last = (first + TRANSACTION).min(rows) - 1;
        let sql =
            format!("INSERT INTO orders SELECT n, 'open', 42.10 FROM generate_series({first}, {last}) n");
        client.batch_execute(&sql).expect("rows go in");
    }
    let written = begin.elapsed();
    receiver.wait_for(rows, Duration::from_secs(600)).expect("all arrive");
    let stats = receiver.stats();
    let (Some(first), Some(last)) = (stats.first, stats.last) else { return };
    let sending = last - first;
    println!(
        "burst: {rows} rows committed in {:.1} s, received in {:.1} s: {:.0} requests/s",
        written.as_secs_f64(),
        (last - begin).as_secs_f64(),
        rows as f64 / sending.as_secs_f64(),
    );
}
