//! Whether anything grows under a steady load with everything in use: memory and descriptors of each process, the journal,
//! catalogs, what the slot holds back.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use harness::{Cluster, DECODER, DISPATCHER, LAUNCHER, Process, RENDERER, Receiver, Reply, Script, Which};
use postgres::Client;

/// How often is looked.
const ROUNDS: u64 = 12;
/// How many steps of load there are in a second.
const STEPS: u32 = 10;

const TABLES: &[&str] = &[
    crate::ORDERS,
    "ALTER TABLE orders REPLICA IDENTITY FULL",
    "CREATE TABLE users (id bigint PRIMARY KEY, name text, tags text[], profile jsonb, big text)",
    "ALTER TABLE users ALTER big SET STORAGE EXTERNAL",
    "ALTER TABLE users REPLICA IDENTITY FULL",
    "CREATE TABLE parts (id bigint, region int, v int, PRIMARY KEY (id, region)) PARTITION BY LIST (region)",
    "CREATE TABLE parts_0 PARTITION OF parts FOR VALUES IN (0)",
    "CREATE TABLE parts_1 PARTITION OF parts FOR VALUES IN (1)",
    "INSERT INTO users SELECT n, 'name', '{a,b}', '{\"a\": 1}', repeat('x', 10000) FROM generate_series(1, 1000) n",
    "CREATE FUNCTION shorter(event jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT event->'data'->'record' $$",
    "CREATE FUNCTION by_table(event jsonb) RETURNS jsonb LANGUAGE sql AS
       $$ SELECT jsonb_build_object('headers', jsonb_build_object('x-table', event->'data'->>'table')) $$",
];

/// Subscriptions, each with other features.
const SUBSCRIPTIONS: &[(&str, &str)] = &[
    ("plain", "tables => '{public.orders}', max_in_flight => 64, batch_size => 10"),
    ("strict", "tables => '{public.orders}', ordering => 'strict', batch_size => 100, compress => 'gzip'"),
    (
        "filtered",
        "tables => '{public.orders}', filter => 'status = ''paid'' AND total > 10', signature => 'v1a', format => 'sequin'",
    ),
    (
        "keyed",
        "tables => '{public.orders}', key_columns => '{total}', columns => '{id, total}', max_in_flight => 64, format => 'supabase'",
    ),
    (
        "users",
        "tables => '{public.users}', changed => '{name, tags}', exclude_columns => '{big}', format => 'cloudevents'",
    ),
    ("parts", "tables => '{public.parts}', ordering => 'none', format => 'pgstream'"),
    ("functions", "tables => '{public.users}', transform => 'shorter(jsonb)', route => 'by_table(jsonb)'"),
    ("failing", "tables => '{public.orders}', retry_schedule => '{1s,1s,1s}', batch_size => 20"),
    ("said", "event_types => '{ddl, message, message:audit, system}'"),
];

pub(crate) fn run(seconds: u64) {
    let cluster = crate::setup()
        .set("pgwh.retention = '10s'")
        .set("max_wal_size = 512MB")
        .set("checkpoint_timeout = 1min")
        .set("autovacuum_naptime = 5s")
        .start();
    cluster.sql("CREATE EXTENSION pgstream_hooks");
    cluster.each(TABLES);
    let receiver = crate::receiver(0);
    receiver.behave_at("/failing", Script::new(Which::Percent { percent: 2.0, seed: 1 }, Reply::status(500)));
    for (name, rest) in SUBSCRIPTIONS {
        cluster.subscribe(&receiver, name, rest);
    }
    println!("soak: {seconds} s with everything in use, retention 10 s");
    let (mut client, begin) = (cluster.connect(), Instant::now());
    let (mut told, mut first) = (0, None);
    for step in 0u64.. {
        load(&mut client, step);
        if step % u64::from(STEPS) == 0 {
            disturb(&mut client, &receiver, step / u64::from(STEPS));
        }
        let due = begin + Duration::from_secs(1) / STEPS * step as u32;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let elapsed = begin.elapsed().as_secs();
        if elapsed >= seconds {
            break;
        }
        let round = elapsed * ROUNDS / seconds.max(1);
        if round > told {
            told = round;
            let figures = look(&cluster);
            println!("    {elapsed:5} s: {}", shown(&figures));
            // What is made once, caches and pools among it, has been made by then.
            if round == 2 {
                first = Some(figures);
            }
        }
    }
    let last = look(&cluster);
    println!("    at the end: {}", shown(&last));
    for row in cluster.column("SELECT format('%s %s: %s delivered, %s dead, %s pending', name, state, delivered, dead, pending) FROM pgwh.status ORDER BY name") {
        println!("    {row}");
    }
    for (name, then) in first.iter().flatten() {
        let now = last.get(name).copied().unwrap_or_default();
        println!("    {name}: {} of what it was after a sixth of the time", crate::ratio(now, *then));
    }
}

/// What applications do, ten times a second.
fn load(client: &mut Client, step: u64) {
    let from = step * 50;
    let sql = format!(
        "BEGIN; INSERT INTO orders VALUES (-1, 'never'); ROLLBACK;
         BEGIN; SELECT pgwh.annotate('{{\"step\": {step}}}');
         INSERT INTO orders SELECT n, CASE n % 3 WHEN 0 THEN 'paid' ELSE 'open' END, n % 100 FROM generate_series({from}, {}) n;
         UPDATE orders SET status = 'sent' WHERE id BETWEEN {} AND {from} AND id % 10 = 0;
         SELECT pgwh.emit('step.done', '{{\"step\": {step}}}', key => 'k{}'); COMMIT;
         UPDATE users SET name = 'name {step}', big = repeat(md5('{step}'), 300) WHERE id % 200 = {};
         UPDATE users SET profile = jsonb_set(profile, '{{b}}', '{step}') WHERE id % 200 = {};
         INSERT INTO parts VALUES ({step}, {}, 1); UPDATE parts SET region = 1 - region WHERE id = {step} - 5;
         SELECT pg_logical_emit_message(true, 'audit', 'step {step}')",
        from + 49,
        from.saturating_sub(50),
        step % 50,
        step % 200,
        (step + 7) % 200,
        step % 2,
    );
    client.batch_execute(&sql).expect("applications go on");
}

/// What administrators do, and what befalls endpoints, now and then.
fn disturb(client: &mut Client, receiver: &Receiver, second: u64) {
    let mut sql = String::new();
    match second % 60 {
        5 => receiver.behave_at("/plain", Script::always(Reply::status(503))),
        10 => receiver.behave_at("/plain", |_: &harness::Request| Reply::status(200)),
        15 => sql += "ALTER TABLE users ADD COLUMN more int DEFAULT 1",
        20 => sql += "ALTER TABLE users DROP COLUMN more; DELETE FROM orders; TRUNCATE parts",
        25 => sql += "SELECT pgwh.backfill('users', 'public.users')",
        35 => sql += "SELECT pgwh.replay('filtered', since => now() - interval '5 s')",
        40 => sql += "SELECT pgwh.rotate_secret('strict', overlap => '10 s')",
        45 => {
            sql += "SELECT pgwh.subscribe('http://127.0.0.1:9/gone', name => 'passing', tables => '{public.parts}')"
        }
        50 => sql += "SELECT pgwh.unsubscribe('passing')",
        55 => sql += "UPDATE pgwh.subscriptions SET enabled = NOT enabled WHERE name = 'parts'",
        _ => sql += "SELECT count(*) FROM pgwh.status; SELECT length(pgwh.metrics())",
    }
    client.batch_execute(&sql).expect("administrators go on");
}

/// All that must not grow, by name.
fn look(cluster: &Cluster) -> BTreeMap<String, f64> {
    let mut figures = BTreeMap::new();
    let kinds =
        [("launcher", LAUNCHER), ("dispatcher", DISPATCHER), ("decoder", DECODER), ("renderers", RENDERER)];
    for (name, kind) in kinds {
        let all = cluster.processes(kind);
        let sum = |figure: fn(Process) -> u64| all.iter().map(|process| figure(*process)).sum::<u64>() as f64;
        figures.insert(format!("{name} MB"), sum(Process::memory) / 1e6);
        figures.insert(format!("{name} files"), sum(Process::files));
    }
    let value = |sql: &str| cluster.value(sql).parse::<f64>().unwrap_or(f64::NAN);
    for (name, sql) in [
        (
            "journal MB",
            "SELECT sum(pg_total_relation_size(oid)) / 1e6 FROM pg_class WHERE relnamespace IN ('pgwh'::regnamespace, 'pgwh_internal'::regnamespace) AND relkind = 'r'",
        ),
        (
            "catalogs MB",
            "SELECT sum(pg_total_relation_size(oid)) / 1e6 FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind = 'r'",
        ),
        (
            "WAL held back MB",
            "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn) / 1e6 FROM pg_replication_slots",
        ),
        ("age of the slot's catalog_xmin", "SELECT age(catalog_xmin) FROM pg_replication_slots"),
        ("pending", "SELECT sum(pending) FROM pgwh.status"),
    ] {
        figures.insert(name.to_owned(), value(sql));
    }
    figures
}

fn shown(figures: &BTreeMap<String, f64>) -> String {
    figures.iter().map(|(name, value)| format!("{name} {value:.1}")).collect::<Vec<_>>().join(", ")
}
