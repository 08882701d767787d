//! How fast a backlog drains, against how fast the same rows are sent live.

use std::time::{Duration, Instant};

use harness::within;

use crate::IN_FLIGHT;
use crate::burst::write;
use crate::processor::ProcessorTime;

/// Far more than a million events take.
const LONG: Duration = Duration::from_secs(1800);

pub(crate) fn run(rows: u64) {
    for (how, rest) in [("one event a request", "batch_size => 1"), ("batches of 100", "batch_size => 100")] {
        let (cluster, receiver) = crate::stage_with(0, &format!("max_in_flight => {IN_FLIGHT}, {rest}"));
        cluster.sql("INSERT INTO orders SELECT -n, 'open', 42.10 FROM generate_series(1, 20000) n");
        crate::wait_delivered(&cluster, LONG);

        receiver.clear();
        write(&mut cluster.connect(), 0, rows);
        crate::wait_delivered(&cluster, LONG);
        let live = crate::rate(rows, &receiver);

        cluster.sql("SELECT pgwh.pause('bench')");
        cluster.wait_true("SELECT state = 'paused' FROM pgwh.status");
        write(&mut cluster.connect(), rows, rows);
        within(LONG, "all is pending", || {
            (cluster.value("SELECT pending FROM pgwh.status") == rows.to_string()).then_some(())
        });
        receiver.clear();
        let processor_time = ProcessorTime::start(&cluster);
        let begin = Instant::now();
        cluster.sql("SELECT pgwh.resume('bench')");
        crate::wait_delivered(&cluster, LONG);
        let drained = crate::rate(rows, &receiver);
        println!(
            "drain, {how}: {rows} pending events in {:.1} s: {drained:.0} events/s, {} of the live rate ({live:.0} events/s)",
            begin.elapsed().as_secs_f64(),
            crate::ratio(drained, live),
        );
        println!("    {}", processor_time.per_event(rows));
    }
}
