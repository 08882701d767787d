//! How many requests a second by how many may be in flight, against `wrk` with as many connections to the same kind of receiver.

use std::time::Duration;

use crate::burst::write;
use crate::processor::ProcessorTime;
use crate::wrk;

/// As many requests at once.
const LIMITS: [u32; 4] = [1, 4, 16, 64];

pub(crate) fn run(rows: u64) {
    for limit in LIMITS {
        let (cluster, receiver) = crate::stage_with(0, &format!("max_in_flight => {limit}"));
        // Warm: connections and caches.
        cluster.sql("INSERT INTO orders SELECT -n, 'open', 42.10 FROM generate_series(1, 20000) n");
        crate::wait_delivered(&cluster, Duration::from_secs(120));
        receiver.clear();

        let processor_time = ProcessorTime::start(&cluster);
        write(&mut cluster.connect(), 0, rows);
        crate::wait_delivered(&cluster, Duration::from_secs(600));
        let processor_time = processor_time.per_event(rows);
        let rate = crate::rate(rows, &receiver);
        drop((cluster, receiver));
        println!("in_flight: max_in_flight {limit}: {rate:.0} requests/s; {processor_time}");
        if let Some(posts) = wrk::rate(limit) {
            println!("    {} of wrk -t1 -c{limit} ({posts:.0} POSTs/s)", crate::ratio(rate, posts));
        }
    }
}
