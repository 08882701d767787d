//! How far a backfill is: figures where they are known or can be estimated, null otherwise.

use harness::{Cluster, Receiver, Reply, Request};

use crate::stage;
use crate::steps::{backfill, done};

/// A backfill of 20,000 rows that stops after the first pages, for an endpoint that does not answer.
fn held_up(cluster: &Cluster, receiver: &Receiver, prepare: &str, rest: &str) -> String {
    cluster.sql(&format!("INSERT INTO t SELECT n, 'v' || n FROM generate_series(1, 20000) n; {prepare}"));
    cluster.subscribe(receiver, "s", "tables => '{public.t}', batch_size => 10");
    receiver.behave(|_: &Request| Reply::status(200).after(std::time::Duration::from_secs(600)));
    let id = backfill(cluster, &format!("'s', 'public.t'{rest}"));
    cluster.wait_true(&format!("SELECT rows_done > 0 FROM pgwh.backfills WHERE id = {id}"));
    id
}

fn figures(cluster: &Cluster) -> Vec<Option<String>> {
    cluster.rows("SELECT rows_total::text, percent::text, eta::text FROM pgwh.backfills").remove(0)
}

#[test]
fn the_total_of_a_table_never_analyzed_is_estimated() {
    let (cluster, receiver) = stage();
    cluster.sql("ALTER TABLE t SET (autovacuum_enabled = off)");
    held_up(&cluster, &receiver, "", "");
    assert_eq!(cluster.value("SELECT reltuples FROM pg_class WHERE relname = 't'"), "-1");
    let row = figures(&cluster);
    let total: f64 = row[0].as_deref().unwrap().parse().unwrap();
    assert!((10_000.0..40_000.0).contains(&total), "{row:?}");
    let percent: f64 = row[1].as_deref().unwrap().parse().unwrap();
    assert!(percent > 0.0 && percent < 90.0, "{row:?}");
}

#[test]
fn a_table_analyzed_while_empty_has_no_stale_total() {
    let (cluster, receiver) = stage();
    cluster.sql("ALTER TABLE t SET (autovacuum_enabled = off)");
    cluster.sql("INSERT INTO t SELECT -n FROM generate_series(1, 100) n; ANALYZE t");
    held_up(&cluster, &receiver, "", "");
    let total: f64 = figures(&cluster)[0].as_deref().unwrap().parse().unwrap();
    assert!((5_000.0..80_000.0).contains(&total), "{total}");
}

#[test]
fn before_a_backfill_begins_its_total_is_not_known() {
    let (cluster, receiver) = stage();
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 100) n");
    cluster.subscribe(&receiver, "s", "tables => '{public.t}'");
    cluster.sql("SELECT pgwh.pause('s')");
    cluster.wait_status("s", "mode IS NOT NULL AND state = 'paused'");
    let id = backfill(&cluster, "'s', 'public.t'");
    cluster.sql(&format!("SELECT pgwh.pause_backfill({id})"));
    assert_eq!(
        cluster.rows("SELECT rows_total::text, percent::text, eta::text, tables_total::text, rows_per_second::text FROM pgwh.backfills"),
        [[None, None, None, None, None]]
    );
}

#[test]
fn a_backfill_that_starts_somewhere_has_no_known_total() {
    let (cluster, receiver) = stage();
    held_up(&cluster, &receiver, "ANALYZE t", ", order_by => 'id', start => '15000'");
    assert_eq!(figures(&cluster), [None, None, None]);
}

#[test]
fn more_rows_than_estimated_are_no_hundred_percent() {
    let (cluster, receiver) = stage();
    let id = held_up(&cluster, &receiver, "ANALYZE t", "");
    cluster.sql(&format!("UPDATE pgwh_internal.backfill_tables SET estimate = 1 WHERE backfill_id = {id}"));
    assert_eq!(figures(&cluster), [None, None, None]);
    receiver.behave(|_: &Request| Reply::status(200));
    cluster.sql("SELECT pgwh.cancel_backfill(1)");
}

#[test]
fn a_backfill_of_no_rows_is_done() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "tables => '{public.t}'");
    let id = backfill(&cluster, "'s', 'public.t'");
    done(&cluster, &id);
    let row = cluster.rows("SELECT percent::text, rows_total::text, tables_total::text FROM pgwh.backfills");
    assert_eq!(row, [["100", "0", "1"].map(|text| Some(text.to_owned()))]);
}
