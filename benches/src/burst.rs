//! How many requests a second, one event each, while a burst of rows is committed.

use std::time::{Duration, Instant};

use harness::Client;

use crate::processor::ProcessorTime;
use crate::{decoding, wrk};

/// Requests under way at once, as a subscription has it that does not say; `wrk` gets as many connections.
const DEFAULT_IN_FLIGHT: u32 = 16;
/// Rows of one transaction.
const TRANSACTION: u64 = 10_000;

pub(crate) fn run(rows: u64) {
    // Warm: connections, threads, caches.
    let (cluster, receiver) = crate::stage_with(0, &format!("max_in_flight => {DEFAULT_IN_FLIGHT}"));
    cluster.sql("INSERT INTO orders SELECT -n, 'open', 42.10 FROM generate_series(1, 20000) n");
    receiver.wait_for(20_000, Duration::from_secs(120)).expect("the warm-up arrives");
    receiver.clear();

    let mut client = cluster.connect();
    let processor_time = ProcessorTime::start(&cluster);
    let begin = Instant::now();
    write(&mut client, 0, rows);
    let written = begin.elapsed();
    receiver.wait_for(rows, Duration::from_secs(600)).expect("all arrive");
    let stats = receiver.stats();
    let (Some(first), Some(last)) = (stats.first, stats.last) else { return };
    let rate = rows as f64 / (last - first).as_secs_f64();
    println!(
        "burst: {rows} rows committed in {:.1} s, received in {:.1} s: {rate:.0} requests/s",
        written.as_secs_f64(),
        (last - begin).as_secs_f64(),
    );
    crate::wait_delivered(&cluster, Duration::from_secs(60));
    println!("    {}", processor_time.per_event(rows));
    println!("    {}", crate::journal_size(&cluster, rows));
    drop((cluster, receiver));
    if let Some(posts) = wrk::rate(DEFAULT_IN_FLIGHT) {
        println!("    {} of wrk -t1 -c{DEFAULT_IN_FLIGHT} ({posts:.0} POSTs/s)", crate::ratio(rate, posts));
    }
    let decoded = decoding::rate(rows);
    println!(
        "    {} of the bare decode rate (pgoutput through SQL: {decoded:.0} changes/s)",
        crate::ratio(rate, decoded)
    );
}

/// Inserts rows numbered from `first` on, in transactions of [`TRANSACTION`].
pub(crate) fn write(client: &mut Client, first: u64, rows: u64) {
    let end = first + rows;
    for from in (first..end).step_by(TRANSACTION as usize) {
        let to = (from + TRANSACTION).min(end) - 1;
        let sql = format!("INSERT INTO orders SELECT n, 'open', 42.10 FROM generate_series({from}, {to}) n");
        client.batch_execute(&sql).expect("rows go in");
    }
}
