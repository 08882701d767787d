//! For each key, what the receiver has at the end equals the table, whatever is written meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fastrand::Rng;
use harness::{Cluster, Receiver};

use crate::replica::Replica;
use crate::{backfill, done};

const KEYS: u64 = 3_000;
/// How long is written while rows are read.
const WRITING: Duration = Duration::from_secs(4);

/// A transaction that writes rows whose key is `class` modulo 4; versions rise from statement to statement.
fn transaction(rng: &mut Rng, class: u64) -> String {
    let mut sql = String::from("BEGIN;");
    for _ in 0..rng.u32(1..6) {
        let id = rng.u64(0..KEYS / 4) * 4 + class;
        let other = rng.u64(0..KEYS / 4) * 4 + class;
        let next = "nextval('versions')";
        sql += &match rng.u32(0..12) {
            0..3 => format!(
                "INSERT INTO t (id, version, big) VALUES ({id}, {next}, repeat('n', 3000))
                 ON CONFLICT (id) DO UPDATE SET version = {next};"
            ),
            // The large value stays, so write-ahead log doesn't have it.
            3..7 => format!("UPDATE t SET version = {next} WHERE id = {id};"),
            7 => format!(
                "UPDATE t SET version = {next}, big = repeat('{}', 3000) WHERE id = {id};",
                rng.u32(0..9)
            ),
            8 => format!(
                "DELETE FROM t WHERE id = {other} AND {other} <> {id};
                 UPDATE t SET id = {other}, version = {next} WHERE id = {id};"
            ),
            9 => format!("DELETE FROM t WHERE id = {id};"),
            10 => {
                format!("DELETE FROM t WHERE id = {id}; INSERT INTO t (id, version) VALUES ({id}, {next});")
            }
            _ => format!("SAVEPOINT s; UPDATE t SET version = {next} WHERE id = {id}; ROLLBACK TO s;"),
        };
    }
    sql + if rng.u32(0..10) == 0 { "ROLLBACK" } else { "COMMIT" }
}

fn write(cluster: &Cluster, class: u64, over: &AtomicBool) {
    let mut rng = Rng::with_seed(7 + class);
    let mut client = cluster.connect();
    while !over.load(Ordering::Relaxed) {
        // Who inserts what somebody else has just inserted is refused.
        if client.batch_execute(&transaction(&mut rng, class)).is_err() {
            client.batch_execute("ROLLBACK").unwrap();
        }
        std::thread::sleep(Duration::from_micros(rng.u64(5_000..40_000)));
    }
}

/// Puts back all rows that are missing.
fn fill() -> String {
    format!(
        "INSERT INTO t SELECT n, nextval('versions'), repeat('m', 3000) FROM generate_series(0, {KEYS} - 1) n
         ON CONFLICT DO NOTHING"
    )
}

/// Whatever concerns the whole table.
fn disturb(cluster: &Cluster, over: &AtomicBool) {
    let mut client = cluster.connect();
    for n in 0.. {
        std::thread::sleep(Duration::from_millis(150));
        if over.load(Ordering::Relaxed) {
            break;
        }
        let sql = match n % 6 {
            0 => format!("ALTER TABLE t ADD COLUMN c{n} int"),
            1 => "ALTER TABLE t ALTER COLUMN version TYPE bigint".to_owned(),
            2 => format!("ALTER TABLE t DROP COLUMN IF EXISTS c{}", n - 2),
            3 => "ALTER TABLE t ALTER COLUMN version TYPE numeric USING version::numeric".to_owned(),
            4 => "TRUNCATE t".to_owned(),
            _ => fill(),
        };
        // A deadlock with one of the others is no news.
        if let Err(error) = client.batch_execute(&sql) {
            assert_eq!(error.code().map(|code| code.code()), Some("40P01"), "{error}");
        }
    }
}

fn stage(table: &str) -> (Cluster, Receiver) {
    let cluster = Cluster::with_extension();
    cluster.sql(&format!(
        "CREATE SEQUENCE versions; {table}
         INSERT INTO t SELECT n, nextval('versions'), repeat('o', 3000) FROM generate_series(0, {KEYS} - 1) n;"
    ));
    (cluster, Receiver::start().unwrap())
}

/// Backfills while it is written, and compares.
fn agrees(table: &str, truncates: bool, chunk: u32) {
    let (cluster, receiver) = stage(table);
    cluster.subscribe(&receiver, "s", "tables => '{public.t}', batch_size => 50");
    let over = AtomicBool::new(false);
    let ids = std::thread::scope(|scope| {
        for class in 0..4 {
            let (cluster, over) = (&cluster, &over);
            scope.spawn(move || write(cluster, class, over));
        }
        if truncates {
            scope.spawn(|| disturb(&cluster, &over));
        }
        let ids: Vec<String> =
            (0..3).map(|_| backfill(&cluster, &format!("'s', 'public.t', chunk_size => {chunk}"))).collect();
        std::thread::sleep(WRITING);
        over.store(true, Ordering::Relaxed);
        ids
    });
    if truncates {
        // The last that was done may have been to empty it.
        cluster.sql(&fill());
    }
    ids.iter().for_each(|id| done(&cluster, id));
    let events = cluster.delivered(&receiver, "s");
    let replica = Replica::of(&events);
    println!(
        "{} events, {} reads, {} of them of rows told before",
        events.len(),
        replica.reads,
        replica.overtaken
    );
    let truth = cluster.rows("SELECT jsonb_build_object('id', id), to_jsonb(t) FROM t");
    assert!(!truth.is_empty());
    replica.must_equal(&truth);
}

const PLAIN: &str = "CREATE TABLE t (id int PRIMARY KEY, version numeric, big text);
    ALTER TABLE t ALTER COLUMN big SET STORAGE EXTERNAL;";

#[test]
fn the_receiver_ends_equal_to_a_table_written_meanwhile() {
    agrees(PLAIN, false, 40);
}

#[test]
fn the_receiver_ends_equal_to_a_truncated_and_altered_table() {
    agrees(PLAIN, true, 100);
}

#[test]
fn the_receiver_ends_equal_to_a_table_whose_rows_move() {
    let partitions: String = (0..4)
        .map(|n| {
            format!(
                "CREATE TABLE t_{n} PARTITION OF t FOR VALUES FROM ({}) TO ({});
                 ALTER TABLE t_{n} ALTER COLUMN big SET STORAGE EXTERNAL;",
                n * KEYS / 4,
                (n + 1) * KEYS / 4
            )
        })
        .collect();
    let table = "CREATE TABLE t (id int PRIMARY KEY, version numeric, big text) PARTITION BY RANGE (id);";
    agrees(&format!("{table}{partitions}"), false, 60);
}
