//! What healthy endpoints lose when others hang and refuse: 1,000 subscriptions to as many hosts.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use harness::{Answer, Cluster, Receiver, Request, Script, within};

const HEALTHY: u32 = 850;
const HANGING: u32 = 100;
const REFUSING: u32 = 50;
/// Between two commits, each of which goes to everybody.
const PAUSE: Duration = Duration::from_millis(200);
/// The bad ones are tried until then.
const TIMEOUT: &str = "timeout => '10 s'";

/// When which row came, from any of the healthy.
type Arrivals = Arc<Mutex<Vec<(u64, Instant)>>>;

pub(crate) fn run(commits: u64) {
    let cluster = crate::setup().start();
    cluster.each(&["CREATE EXTENSION pgstream_hooks", crate::ORDERS]);
    let listen = ([0, 0, 0, 0], 0).into();
    let receiver = Receiver::with(receiver::Options { listen, keep: 0, control: false }).expect("a receiver");
    let arrivals = Arrivals::default();
    let kept = Arc::clone(&arrivals);
    receiver.observe(move |request: &Request, _: &_| {
        if let Some(row) = row_of(request).filter(|_| request.path().starts_with("/healthy")) {
            kept.lock().expect("nobody panics").push((row, request.arrived()));
        }
    });
    receiver.behave_at("/hanging", Script::always(Answer::Hang));
    let port = receiver.address().port();

    subscribe(&cluster, 0..HEALTHY, port, "healthy");
    let first = measure(&cluster, &arrivals, commits, 0, "850 healthy endpoints alone");
    subscribe(&cluster, HEALTHY..HEALTHY + HANGING, port, "hanging");
    // Nobody listens there.
    subscribe(&cluster, HEALTHY + HANGING..HEALTHY + HANGING + REFUSING, 1, "refusing");
    let second = measure(&cluster, &arrivals, commits, commits, "beside 100 that hang and 50 that refuse");
    println!("    p99 is {} of what it is without them", crate::ratio(second, first));
    let memory = cluster.process(harness::DISPATCHER).memory() as f64 / 1e6;
    println!("    dispatcher {memory:.0} MB; slot {} bytes behind", cluster.value(
        "SELECT max(pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)) FROM pg_replication_slots",
    ));
}

fn subscribe(cluster: &Cluster, numbers: std::ops::Range<u32>, port: u16, kind: &str) {
    let mut client = cluster.connect();
    for n in numbers {
        let host = format!("127.1.{}.{}", n / 250, n % 250 + 1);
        let sql =
            format!("SELECT pgwh.subscribe('http://{host}:{port}/{kind}', name => '{kind}-{n}', {TIMEOUT})");
        client.batch_execute(&sql).expect("a subscription");
    }
}

fn row_of(request: &Request) -> Option<u64> {
    let text = std::str::from_utf8(request.body()).ok()?;
    let digits = text.split_once(r#""key":{"id":"#)?.1;
    digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Commits rows one by one and tells how long they took to all the healthy; returns p99 in milliseconds.
fn measure(cluster: &Cluster, arrivals: &Arrivals, commits: u64, from: u64, what: &str) -> f64 {
    let mut client = cluster.connect();
    let insert = client.prepare("INSERT INTO orders VALUES ($1, 'open', 42.10)").expect("a statement");
    arrivals.lock().expect("nobody panics").clear();
    let mut returned = Vec::new();
    for n in 0..commits {
        client.execute(&insert, &[&((from + n) as i64)]).expect("a row goes in");
        returned.push(Instant::now());
        std::thread::sleep(PAUSE);
    }
    let expected = (commits * u64::from(HEALTHY)) as usize;
    within(Duration::from_secs(120), "all the healthy got all", || {
        (arrivals.lock().expect("nobody panics").len() >= expected).then_some(())
    });
    let arrived = arrivals.lock().expect("nobody panics");
    let waited =
        arrived.iter().map(|(row, at)| at.saturating_duration_since(returned[(row - from) as usize]));
    crate::latency::tell(&format!("{what}, {commits} commits to each"), waited.collect())
}
