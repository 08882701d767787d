//! The figures of `benches/README.md`: `make bench`, or `make bench BENCH='burst 500000'` for one of them.

mod burst;
mod latency;
mod memory;
mod overhead;

use std::process::ExitCode;

use harness::{Cluster, Receiver, Server, Setup};

const USAGE: &str = "\
    burst [rows]            requests a second, one event each, while a burst of rows is committed    (500000)
    latency [commits]       from commit to receipt on an idle system                                 (2000)
    memory [rows]           of each process while one transaction of so many rows passes             (5000000)
    overhead [seconds]      pgbench on tables nobody subscribes to, with and without                 (30)
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
        "burst" => burst::run(size.unwrap_or(500_000)),
        "latency" => latency::run(size.unwrap_or(2_000)),
        "memory" => memory::run(size.unwrap_or(5_000_000)),
        "overhead" => overhead::run(size.unwrap_or(30)),
        "all" => {
            burst::run(500_000);
            latency::run(2_000);
            memory::run(5_000_000);
            overhead::run(30);
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

/// A cluster with a table, and a receiver subscribed to it that keeps so many requests.
fn stage(keep: usize) -> (Cluster, Receiver) {
    let cluster = setup().start();
    cluster.each(&[
        "CREATE EXTENSION pgstream_hooks",
        "CREATE TABLE orders (id bigint PRIMARY KEY, status text, total numeric, placed timestamptz DEFAULT now())",
    ]);
    let receiver = Receiver::with(receiver::Options { keep, ..Default::default() }).expect("a receiver");
    cluster.subscribe(&receiver, "bench", "tables => '{public.orders}', max_in_flight => 64");
    (cluster, receiver)
}
