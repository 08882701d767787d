//! Whether anything grows: the journal's size, dead rows, and memory, at a steady load with a short retention.

use std::time::{Duration, Instant};

use harness::{DECODER, DISPATCHER};

/// How often is looked.
const ROUNDS: u64 = 12;
/// All tables of the extension, with their indexes and TOAST.
const SIZE: &str = "SELECT pg_size_pretty(sum(pg_total_relation_size(oid))) FROM pg_class
    WHERE relnamespace = 'pgwh'::regnamespace AND relkind = 'r'";
/// The same by table, slices of one table together, without what is small.
const SIZES: &str = "SELECT string_agg(name || ' ' || pg_size_pretty(bytes), ', ' ORDER BY bytes DESC) FROM (
    SELECT regexp_replace(relname, '_\\d$', '') AS name, sum(pg_total_relation_size(oid)) AS bytes FROM pg_class
    WHERE relnamespace = 'pgwh'::regnamespace AND relkind = 'r' GROUP BY 1) t WHERE bytes > 500000";

pub(crate) fn run(seconds: u64) {
    let cluster = crate::setup().set("pgwh.retention = '5s'").start();
    cluster.each(&["CREATE EXTENSION pgstream_hooks", crate::ORDERS]);
    let receiver = crate::receiver(0);
    receiver.behave(harness::Script::new(
        harness::Which::Percent { percent: 0.1, seed: 1 },
        harness::Reply::status(500),
    ));
    cluster.subscribe(
        &receiver,
        "bench",
        "tables => '{public.orders}', max_in_flight => 64, batch_size => 10, retry_schedule => '{1s,1s,1s}'",
    );
    println!("soak: {seconds} s at 10,000 events a second, retention 5 s");
    let (mut client, begin) = (cluster.connect(), Instant::now());
    let mut told = 0;
    let mut n = 0u64;
    while begin.elapsed() < Duration::from_secs(seconds) {
        let sql = format!(
            "INSERT INTO orders SELECT n, 'open', 42.10 FROM generate_series({}, {}) n",
            n * 1000,
            n * 1000 + 999
        );
        client.batch_execute(&sql).expect("rows go in");
        n += 1;
        std::thread::sleep(
            (begin + Duration::from_millis(100) * n as u32).saturating_duration_since(Instant::now()),
        );
        let round = begin.elapsed().as_secs() * ROUNDS / seconds.max(1);
        if round > told {
            told = round;
            let shown = |sql: &str| cluster.value(sql);
            let memory = |kind: &str| cluster.process(kind).memory() as f64 / 1e6;
            println!(
                "    {:4} s: journal {} ({}), {} dead rows, {} slices of {}, {} pending; dispatcher {:.1} MB, decoder {:.1} MB",
                begin.elapsed().as_secs(),
                shown(SIZE),
                shown(SIZES),
                shown("SELECT sum(n_dead_tup) FROM pg_stat_all_tables WHERE schemaname = 'pgwh'"),
                shown("SELECT count(*) FROM pgwh.slices WHERE generation IS NOT NULL"),
                shown("SELECT max(generation) FROM pgwh.slices"),
                shown("SELECT pending FROM pgwh.status"),
                memory(DISPATCHER),
                memory(DECODER),
            );
        }
    }
}
