//! From commit to receipt: on an idle system, and at a steady rate.

use std::time::{Duration, Instant};

use harness::{Client, Cluster};

/// Time between two commits, in which everything goes to sleep.
const PAUSE: Duration = Duration::from_millis(5);
/// Commits a second of the busy system.
const RATE: u32 = 5_000;
/// Who makes them.
const SESSIONS: u32 = 8;

pub(crate) fn run(commits: u64) {
    for waits in ["on", "off"] {
        idle(commits, waits);
        busy(commits * 10, waits);
    }
}

/// A session that waits for the disk, or does not.
fn connect(cluster: &Cluster, waits: &str) -> Client {
    let mut client = cluster.connect();
    client.batch_execute(&format!("SET synchronous_commit = {waits}")).expect("a setting");
    client
}

fn idle(commits: u64, waits: &str) {
    let (cluster, receiver) = crate::stage(usize::MAX);
    let mut client = connect(&cluster, waits);
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
    let requests = receiver.requests();
    let waited =
        requests.iter().zip(&returned).map(|(request, returned)| since(request.arrived(), *returned));
    tell(&format!("{commits} commits, one each {PAUSE:?}, synchronous_commit = {waits}"), waited.collect());
}

/// Commits at a steady rate by several sessions, each row a transaction of its own.
fn busy(commits: u64, waits: &str) {
    let (cluster, receiver) = crate::stage(usize::MAX);
    let each = commits / u64::from(SESSIONS);
    let mut returned: Vec<Option<Instant>> = Vec::new();
    for warm in [true, false] {
        crate::wait_delivered(&cluster, Duration::from_secs(60));
        receiver.clear();
        let begin = Instant::now() + Duration::from_millis(50);
        let sessions: Vec<_> = (0..SESSIONS)
            .map(|session| {
                let client = connect(&cluster, waits);
                let first = i64::from(session) * each as i64 + if warm { -1_000_000_000 } else { 0 };
                let begin = begin + Duration::from_secs(1) * session / RATE;
                std::thread::spawn(move || commit_steadily(client, first, each, begin))
            })
            .collect();
        returned = sessions.into_iter().flat_map(|session| session.join().expect("it ends")).collect();
        receiver.wait_for(each * u64::from(SESSIONS), Duration::from_secs(120)).expect("all arrive");
    }
    let requests = receiver.requests();
    let waited: Vec<_> = requests
        .iter()
        .filter_map(|request| {
            let id = request.events().first()?["data"]["key"]["id"].as_u64()?;
            Some(since(request.arrived(), (*returned.get(id as usize)?)?))
        })
        .collect();
    let took = returned
        .iter()
        .flatten()
        .max()
        .zip(returned.iter().flatten().min())
        .map(|(last, first)| *last - *first);
    let rate = waited.len() as f64 / took.unwrap_or_default().as_secs_f64();
    let what =
        format!("{} commits, {rate:.0} of {RATE} each second, synchronous_commit = {waits}", waited.len());
    tell(&what, waited);
}

/// Inserts rows from `first` on, one each `SESSIONS / RATE` seconds; when each commit returned.
fn commit_steadily(mut client: Client, first: i64, count: u64, begin: Instant) -> Vec<Option<Instant>> {
    let insert = client.prepare("INSERT INTO orders VALUES ($1, 'open', 42.10)").expect("a statement");
    (0..count)
        .map(|n| {
            let due = begin + Duration::from_secs_f64(n as f64 * f64::from(SESSIONS) / f64::from(RATE));
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            client.execute(&insert, &[&(first + n as i64)]).expect("a row goes in");
            Some(Instant::now())
        })
        .collect()
}

/// A request may come before the client hears of its commit.
fn since(arrived: Instant, returned: Instant) -> Duration {
    arrived.saturating_duration_since(returned)
}

/// Prints the percentiles; returns the last, p99, in milliseconds.
pub(crate) fn tell(what: &str, mut waited: Vec<Duration>) -> f64 {
    waited.sort_unstable();
    let percentile = |p: usize| waited[(waited.len() * p / 100).min(waited.len() - 1)].as_secs_f64() * 1000.0;
    println!(
        "latency: {what}; commit returned to request received: p50 {:.3} ms, p95 {:.3} ms, p99 {:.3} ms",
        percentile(50),
        percentile(95),
        percentile(99),
    );
    percentile(99)
}
