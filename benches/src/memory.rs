//! The memory of each process while one large transaction passes.

use std::time::{Duration, Instant};

use harness::{DECODER, DISPATCHER, LAUNCHER};

/// How often memory is looked at.
const EVERY: Duration = Duration::from_millis(100);

pub(crate) fn run(rows: u64) {
    let (cluster, receiver) = crate::stage(0);
    let processes = [LAUNCHER, DISPATCHER, DECODER].map(|kind| (kind, cluster.process(kind)));
    let mut most = processes.map(|_| 0);
    cluster.sql(&format!("INSERT INTO orders SELECT n, 'open', 42.10 FROM generate_series(1, {rows}) n"));
    let begin = Instant::now();
    loop {
        let arrived = receiver.wait_for(rows, EVERY).is_ok();
        for ((_, process), most) in processes.iter().zip(&mut most) {
            *most = process.memory().max(*most);
        }
        if arrived {
            break;
        }
        assert!(begin.elapsed() < Duration::from_secs(1800), "only {} arrived", receiver.count());
    }
    let seconds = begin.elapsed().as_secs_f64();
    println!(
        "memory: one transaction of {rows} rows, received in {seconds:.0} s ({:.0}/s); most RssAnon:",
        rows as f64 / seconds
    );
    for ((kind, _), most) in processes.iter().zip(most) {
        println!("    {kind}: {:.1} MB", most as f64 / 1e6);
    }
}
