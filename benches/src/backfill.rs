//! How many existing rows a second are read, journaled and sent in batches of 100; what live events and pgbench on the
//! same table pay meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use harness::{Cluster, Receiver, Server, within};

/// How long pgbench runs beside each, and how often in turn: what it makes drifts as the table is updated.
const SECONDS: &str = "6";
const TURNS: usize = 4;

pub(crate) fn run(rows: u64) {
    let cluster = crate::setup().start();
    cluster.each(&["CREATE EXTENSION pgstream_hooks", crate::ORDERS]);
    let receiver = crate::receiver(0);
    cluster.sql(&format!("INSERT INTO orders SELECT n, 'open', 42.10 FROM generate_series(1, {rows}) n"));
    cluster.each(&["VACUUM ANALYZE orders", "CHECKPOINT"]);
    cluster.subscribe(
        &receiver,
        "bench",
        "tables => '{public.orders}', batch_size => 100, max_in_flight => 16",
    );

    receiver.clear();
    let begin = Instant::now();
    backfill(&cluster);
    let read = begin.elapsed();
    crate::wait_delivered(&cluster, Duration::from_secs(600));
    let (took, stats) = (begin.elapsed(), receiver.stats());
    let rate = |took: Duration| rows as f64 / took.as_secs_f64();
    println!(
        "backfill: {rows} rows in {} requests; {:.0} rows/s read and journaled, {:.0} rows/s delivered",
        stats.requests,
        rate(read),
        rate(took)
    );
    println!("    {}", crate::journal_size(&cluster, rows));
    // Before the table is updated, which has it vacuumed meanwhile.
    live_meanwhile(&cluster, &receiver);
    beside_pgbench(&cluster, rows);
}

/// Runs one to its end.
fn backfill(cluster: &Cluster) {
    let id = cluster.value("SELECT pgwh.backfill('bench')");
    within(Duration::from_secs(3600), "the backfill is done", || {
        (cluster.value(&format!("SELECT state FROM pgwh.backfills WHERE id = {id}")) == "done").then_some(())
    });
}

/// What pgbench makes on the table beside nothing, a plain SELECT of it again and again, and backfills of it.
fn beside_pgbench(cluster: &Cluster, rows: u64) {
    let script = std::env::temp_dir().join(format!("pgwh-backfill-{}.sql", std::process::id()));
    let text = format!("\\set id random(1, {rows})\nUPDATE orders SET total = total + 1 WHERE id = :id;\n");
    std::fs::write(&script, text).expect("a script for pgbench");
    let alone = pgbench(cluster, &script);
    let over = AtomicBool::new(false);
    let beside = |work: &(dyn Fn() + Sync)| {
        over.store(false, Ordering::Relaxed);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    work();
                }
            });
            let rate = pgbench(cluster, &script);
            over.store(true, Ordering::Relaxed);
            rate
        })
    };
    let select =
        || beside(&|| cluster.sql("SET max_parallel_workers_per_gather = 0; COPY orders TO '/dev/null'"));
    let fill = || {
        beside(&|| {
            let id = cluster.value("SELECT pgwh.backfill('bench')");
            within(Duration::from_secs(3600), "the backfill ends", || {
                let is_over = over.load(Ordering::Relaxed)
                    || cluster.value(&format!("SELECT state FROM pgwh.backfills WHERE id = {id}")) == "done";
                is_over.then_some(())
            });
            if over.load(Ordering::Relaxed) {
                let _ = cluster.try_sql(&format!("SELECT pgwh.cancel_backfill({id})"));
            }
        })
    };
    let turns: Vec<(f64, f64)> = (0..TURNS).map(|_| (select(), fill())).collect();
    let mean = |rates: Vec<f64>| rates.iter().sum::<f64>() / TURNS as f64;
    let select = mean(turns.iter().map(|(select, _)| *select).collect());
    let fill = mean(turns.iter().map(|(_, fill)| *fill).collect());
    let _ = std::fs::remove_file(&script);
    println!(
        "    pgbench beside it: {alone:.0} transactions/s alone, {select:.0} beside a plain SELECT, {fill:.0} beside a \
         backfill: {} of the former",
        crate::ratio(fill, select)
    );
}

fn pgbench(cluster: &Cluster, script: &std::path::Path) -> f64 {
    let mut command = Server::get().command("pgbench");
    command.arg("-h").arg(cluster.host()).args(["-U", "postgres", "-n", "-c", "2", "-T", SECONDS, "-f"]);
    let output = command.arg(script).arg("postgres").output().expect("pgbench runs");
    assert!(output.status.success(), "pgbench: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix("tps = ")).unwrap_or_default();
    line.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(f64::NAN)
}

/// From commit to receipt of single rows, alone and while the table is read.
fn live_meanwhile(cluster: &Cluster, receiver: &Receiver) {
    crate::wait_delivered(cluster, Duration::from_secs(600));
    let other = crate::receiver(usize::MAX);
    cluster.sql("CREATE TABLE live (id bigint PRIMARY KEY)");
    cluster.subscribe(&other, "live", "tables => '{public.live}'");
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for turn in 0..TURNS as u64 {
        alone.extend(latencies(cluster, &other, 2_000 * turn));
        receiver.clear();
        let id = cluster.value("SELECT pgwh.backfill('bench')");
        within(Duration::from_secs(60), "rows come", || (receiver.count() > 0).then_some(()));
        beside.extend(latencies(cluster, &other, 2_000 * turn + 1_000));
        let _ = cluster.try_sql(&format!("SELECT pgwh.cancel_backfill({id})"));
        crate::wait_delivered(cluster, Duration::from_secs(600));
    }
    let (alone, beside) = (quantiles(alone), quantiles(beside));
    println!(
        "    live events of another subscription: p50 / p99 {:.2} / {:.2} ms alone, {:.2} / {:.2} ms meanwhile",
        alone.0, alone.1, beside.0, beside.1
    );
}

/// The median and the 99th percentile.
fn quantiles(mut times: Vec<f64>) -> (f64, f64) {
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

/// Of 400 commits, in milliseconds.
fn latencies(cluster: &Cluster, receiver: &Receiver, first: u64) -> Vec<f64> {
    let mut client = cluster.connect();
    receiver.clear();
    let mut committed = Vec::new();
    for n in 0..400 {
        client.batch_execute(&format!("INSERT INTO live VALUES ({})", first + n)).expect("a row goes in");
        committed.push(Instant::now());
        std::thread::sleep(Duration::from_millis(5));
    }
    let requests = receiver.wait_for(400, Duration::from_secs(60)).expect("all arrive");
    let times = requests.iter().zip(&committed);
    times
        .map(|(request, at)| request.arrived().saturating_duration_since(*at).as_secs_f64() * 1000.0)
        .collect()
}
