//! How many events a second in batches of 100, while a burst of rows is committed.

use std::time::{Duration, Instant};

use crate::burst::write;
use crate::processor::ProcessorTime;
use crate::{IN_FLIGHT, decoding, wrk};

/// Events of a request.
const BATCH: u64 = 100;

pub(crate) fn run(rows: u64) {
    let (cluster, receiver) =
        crate::stage_with(0, &format!("max_in_flight => {IN_FLIGHT}, batch_size => {BATCH}"));
    // Warm: connections, threads, caches.
    cluster.sql("INSERT INTO orders SELECT -n, 'open', 42.10 FROM generate_series(1, 20000) n");
    crate::wait_delivered(&cluster, Duration::from_secs(120));
    receiver.clear();

    let mut client = cluster.connect();
    let processor_time = ProcessorTime::start(&cluster);
    let begin = Instant::now();
    write(&mut client, 0, rows);
    let written = begin.elapsed();
    crate::wait_delivered(&cluster, Duration::from_secs(600));
    let stats = receiver.stats();
    let (Some(first), Some(last)) = (stats.first, stats.last) else { return };
    let rate = rows as f64 / (last - first).as_secs_f64();
    println!(
        "batches: {rows} rows committed in {:.1} s, received in {:.1} s by {} requests: {rate:.0} events/s",
        written.as_secs_f64(),
        (last - begin).as_secs_f64(),
        stats.requests,
    );
    println!("    {}", processor_time.per_event(rows));
    drop((cluster, receiver));
    let decoded = decoding::rate(rows);
    println!(
        "    {} of the bare decode rate (pgoutput through SQL: {decoded:.0} changes/s)",
        crate::ratio(rate, decoded)
    );
    if let Some(posts) = wrk::rate(IN_FLIGHT) {
        println!("    {} events for each POST that wrk makes ({posts:.0}/s)", crate::ratio(rate, posts));
    }
}
