//! From commit to receipt on an idle system.

use std::time::{Duration, Instant};

/// Time between two commits, in which everything goes to sleep.
const PAUSE: Duration = Duration::from_millis(5);

pub(crate) fn run(commits: u64) {
    let (cluster, receiver) = crate::stage(usize::MAX);
    let mut client = cluster.connect();
    let insert = client.prepare("INSERT INTO orders VALUES ($1, 'open', 42.10)").expect("a statement");
    let mut returned = Vec::new();
    for warm in [true, false] {
        let count = if warm { 200 } else { commits };
        receiver.clear();
        returned.clear();
        for n in 0..count {
            let id = if warm { -1 - n as i64 } else { n as i64 };
            client.execute(&insert, &[&id]).expect("a row goes in");
            returned.push(Instant::now());
            std::thread::sleep(PAUSE);
        }
        receiver.wait_for(count, Duration::from_secs(60)).expect("all arrive");
    }
    // Each row is a key of its own and the system is idle, so they arrive in the order of commits.
    let mut waited: Vec<Duration> = receiver
        .requests()
        .iter()
        .zip(&returned)
        .map(|(request, returned)| request.arrived().saturating_duration_since(*returned))
        .collect();
    waited.sort_unstable();
    let percentile = |p: usize| waited[(waited.len() * p / 100).min(waited.len() - 1)].as_secs_f64() * 1000.0;
    println!(
        "latency: {commits} commits; commit returned to request received: p50 {:.3} ms, p95 {:.3} ms, p99 {:.3} ms",
        percentile(50),
        percentile(95),
        percentile(99),
    );
}
