//! The figures of `benches/README.md`: `make bench`, or `make bench BENCH='burst 500000'` for one of them.

mod backfill;
mod batches;
mod burst;
mod decoding;
mod drain;
mod encode;
mod formats;
mod https;
mod in_flight;
mod isolation;
mod latency;
mod memory;
mod overhead;
mod processor;
mod routing;
mod soak;
mod wrk;

use std::process::ExitCode;
use std::time::Duration;

use harness::{Cluster, Receiver, Server, Setup, within};

const USAGE: &str = "\
    burst [rows]            requests a second, one event each, while a burst of rows is committed    (500000)
    batches [rows]          events a second in batches of 100, while a burst of rows is committed    (2000000)
    backfill [rows]         existing rows a second in batches of 100; live events and pgbench meanwhile      (1000000)
    drain [rows]            a backlog against the same rows sent live                                (1000000)
    encode [rows]           decoding a row of 12 columns and writing it as JSON, against wal2json       (500000)
    formats [rows]          decoding the same rows, and the body of one in each format               (200000)
    https [rows]            requests a second by https and http, and new TLS connections           (100000)
    in_flight [rows]        requests a second by max_in_flight, against wrk with as many connections  (200000)
    latency [commits]       from commit to receipt on an idle system, and at 5,000 events a second   (2000)
    memory [rows]           of each process while one transaction of so many rows passes             (5000000)
    overhead [seconds]      pgbench on tables nobody subscribes to, with and without                 (30)
    isolation [commits]     healthy endpoints alone, and beside 150 of 1,000 that hang or refuse     (300)
    routing [number]        many subscriptions: with a filter each, on many tables, disabled         (100000)
    soak [seconds]          whether anything grows at a steady load with everything in use           (120)
    all                     all of them; the default
";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let which = arguments.next().unwrap_or_else(|| "all".into());
    let size = match arguments.next().map(|text| text.parse()) {
        None => None,
        Some(Ok(size)) => Some(size),
        Some(Err(_)) => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    println!(
        "{}, {} cores",
        Server::get().version(),
        std::thread::available_parallelism().map_or(1, usize::from)
    );
    match which.as_str() {
        "backfill" => backfill::run(size.unwrap_or(1_000_000)),
        "burst" => burst::run(size.unwrap_or(500_000)),
        "batches" => batches::run(size.unwrap_or(2_000_000)),
        "drain" => drain::run(size.unwrap_or(1_000_000)),
        "routing" => routing::run(size.unwrap_or(100_000)),
        "encode" => encode::run(size.unwrap_or(500_000)),
        "formats" => formats::run(size.unwrap_or(200_000)),
        "soak" => soak::run(size.unwrap_or(120)),
        "latency" => latency::run(size.unwrap_or(2_000)),
        "https" => https::run(size.unwrap_or(100_000)),
        "in_flight" => in_flight::run(size.unwrap_or(200_000)),
        "isolation" => isolation::run(size.unwrap_or(300)),
        "memory" => memory::run(size.unwrap_or(5_000_000)),
        "overhead" => overhead::run(size.unwrap_or(30)),
        "all" => {
            burst::run(500_000);
            batches::run(2_000_000);
            drain::run(1_000_000);
            in_flight::run(200_000);
            https::run(100_000);
            backfill::run(1_000_000);
            encode::run(500_000);
            formats::run(200_000);
            latency::run(2_000);
            memory::run(5_000_000);
            overhead::run(30);
            isolation::run(300);
            routing::run(100_000);
            soak::run(120);
        }
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

/// What a server has that is meant to be fast: memory, room for WAL, and the disk as it is.
fn setup() -> Setup {
    Setup::new()
        .set("shared_buffers = 256MB")
        .set("max_wal_size = 8GB")
        .set("checkpoint_timeout = 30min")
        .set("fsync = on")
}

/// As many requests at once, where a benchmark does not say otherwise.
const IN_FLIGHT: u32 = 64;

const ORDERS: &str = "CREATE TABLE orders (id bigint PRIMARY KEY, status text, total numeric, placed timestamptz DEFAULT now())";

/// A cluster with a table, and a receiver subscribed to it that keeps so many requests.
fn stage(keep: usize) -> (Cluster, Receiver) {
    stage_with(keep, &format!("max_in_flight => {IN_FLIGHT}"))
}

/// The same, subscribed as it pleases.
fn stage_with(keep: usize, rest: &str) -> (Cluster, Receiver) {
    let cluster = setup().start();
    cluster.each(&["CREATE EXTENSION pgstream_hooks", ORDERS]);
    let receiver = receiver(keep);
    cluster.subscribe(&receiver, "bench", &format!("tables => '{{public.orders}}', {rest}"));
    (cluster, receiver)
}

/// A receiver that keeps so many requests.
fn receiver(keep: usize) -> Receiver {
    Receiver::with(receiver::Options { keep, ..Default::default() }).expect("a receiver")
}

/// Waits until all that was committed has been delivered.
fn wait_delivered(cluster: &Cluster, patience: Duration) {
    within(patience, "all is delivered", || {
        (cluster.value("SELECT pgwh.wait('bench', '10 s')") == "t").then_some(())
    });
}

/// Events a second, from the first request to the last.
fn rate(events: u64, receiver: &Receiver) -> f64 {
    let stats = receiver.stats();
    match (stats.first, stats.last) {
        (Some(first), Some(last)) => events as f64 / (last - first).as_secs_f64(),
        _ => f64::NAN,
    }
}

/// A figure as a share of another.
fn ratio(mine: f64, theirs: f64) -> String {
    format!("{:.2}", mine / theirs)
}

/// What the journal takes for so many events.
fn journal_size(cluster: &Cluster, events: u64) -> String {
    let bytes = cluster.value(
        "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relnamespace IN ('pgwh'::regnamespace, 'pgwh_internal'::regnamespace) AND relkind = 'r'",
    );
    let bytes: f64 = bytes.parse().unwrap_or(f64::NAN);
    format!("journal: {:.1} MB, {:.0} bytes an event", bytes / 1e6, bytes / events as f64)
}
