//! Pauses, ends, failures: a backfill goes on where it was.

use std::time::Duration;

use harness::{
    Cluster, DECODER, DISPATCHER, PATIENCE, Receiver, Reply, Request, Script, Stop, distinct, events,
    eventually,
};

use crate::replica::Replica;
use crate::{BACKFILLER, backfill, done, ended, stage};

fn rows(cluster: &Cluster, count: u32) {
    cluster.sql(&format!("INSERT INTO t SELECT n, repeat('v', 200) FROM generate_series(1, {count}) n"));
}

/// The keys of the rows that came as reads, each event once, in order.
fn keys(receiver: &Receiver) -> Vec<i64> {
    let reads = distinct(events(receiver)).into_iter().filter(|event| event.text("action") == "read");
    let mut keys: Vec<i64> = reads.map(|event| event["key"]["id"].as_i64().unwrap()).collect();
    keys.sort_unstable();
    keys
}

fn state(cluster: &Cluster, id: &str) -> String {
    cluster.value(&format!("SELECT state FROM pgwh.backfills WHERE id = {id}"))
}

/// Slow enough that something can happen meanwhile.
fn slow(receiver: &Receiver) {
    receiver.behave(|_: &Request| Reply::status(200).after(Duration::from_millis(5)));
}

/// Slow enough that 20,000 rows, twenty at a time by four requests, take longer than anybody is held up.
fn very_slow(receiver: &Receiver) {
    receiver.behave(|_: &Request| Reply::status(200).after(Duration::from_millis(100)));
}

/// Kills while rows are read, again and again; all rows come, and none under two ids.
fn survives(kill: impl Fn(&Cluster)) {
    let (cluster, receiver) = stage();
    rows(&cluster, 20_000);
    cluster.subscribe(&receiver, "s", "tables => '{public.t}', batch_size => 20, max_in_flight => 4");
    slow(&receiver);
    let id = backfill(&cluster, "'s', chunk_size => 200");
    for n in 1..6 {
        receiver.wait_for(n * 100, PATIENCE).unwrap();
        kill(&cluster);
    }
    done(&cluster, &id);
    cluster.delivered(&receiver, "s");
    assert_eq!(keys(&receiver), (1..=20_000).collect::<Vec<_>>());
}

#[test]
fn a_killed_backfiller_loses_and_repeats_nothing() {
    survives(|cluster| cluster.kill9(BACKFILLER));
}

#[test]
fn a_killed_dispatcher_loses_and_repeats_no_read_row() {
    survives(|cluster| cluster.kill9(DISPATCHER));
}

#[test]
fn a_server_that_crashes_again_and_again_goes_on_where_it_was() {
    survives(|cluster| cluster.restart(Stop::Immediate));
}

#[test]
fn a_paused_backfill_reads_nothing_until_it_is_resumed() {
    let (cluster, receiver) = stage();
    rows(&cluster, 20_000);
    cluster.subscribe(&receiver, "s", "tables => '{public.t}', batch_size => 20, max_in_flight => 4");
    very_slow(&receiver);
    let id = backfill(&cluster, "'s', chunk_size => 100");
    receiver.wait_for(50, PATIENCE).unwrap();
    cluster.sql(&format!("SELECT pgwh.pause_backfill({id})"));
    eventually("it is paused", || (state(&cluster, &id) == "paused").then_some(()));
    receiver.behave(Script::default());
    cluster.delivered(&receiver, "s");
    let came = keys(&receiver).len();
    assert!(came < 20_000);
    cluster.restart(Stop::Fast);
    cluster.sql("INSERT INTO t VALUES (0, 'live')");
    cluster.delivered(&receiver, "s");
    assert_eq!((keys(&receiver).len(), state(&cluster, &id)), (came, "paused".to_owned()));
    cluster.sql(&format!("SELECT pgwh.resume_backfill({id})"));
    done(&cluster, &id);
    cluster.delivered(&receiver, "s");
    assert_eq!(keys(&receiver), (1..=20_000).collect::<Vec<_>>());
}

#[test]
fn a_cancelled_backfill_is_over_and_says_so() {
    let (cluster, receiver) = stage();
    rows(&cluster, 20_000);
    cluster.subscribe(&receiver, "s", "tables => '{public.t}', batch_size => 20, max_in_flight => 4");
    very_slow(&receiver);
    let mut listener = cluster.listen("pgwh");
    let id = backfill(&cluster, "'s', chunk_size => 100");
    receiver.wait_for(50, PATIENCE).unwrap();
    cluster.sql(&format!("SELECT pgwh.cancel_backfill({id})"));
    listener.wait_for(&["backfill_cancelled", "\"subscription\":\"s\""]);
    ended(&cluster, &id);
    assert_eq!(state(&cluster, &id), "cancelled");
    cluster.delivered(&receiver, "s");
    assert!(keys(&receiver).len() < 20_000);
    let refusal = cluster.refused(&format!("SELECT pgwh.pause_backfill({id})"));
    assert!(refusal.detail.contains("cancelled") && !refusal.hint.is_empty(), "{refusal:?}");
    assert!(!cluster.refused("SELECT pgwh.cancel_backfill(77)").hint.is_empty());
}

#[test]
fn a_dead_endpoint_stops_its_own_backfill_only() {
    let (cluster, receiver) = stage();
    rows(&cluster, 30_000);
    let dead = Receiver::start().unwrap();
    dead.behave(Script::always(Reply::status(500)));
    cluster.subscribe(&dead, "dead", "tables => '{public.t}', batch_size => 100");
    cluster.subscribe(&receiver, "s", "tables => '{public.t}', batch_size => 100");
    let mut listener = cluster.listen("pgwh");
    let stuck = backfill(&cluster, "'dead'");
    let id = backfill(&cluster, "'s'");
    done(&cluster, &id);
    listener.wait_for(&["backfill_done", "\"subscription\":\"s\"", "30000"]);
    cluster.delivered(&receiver, "s");
    assert_eq!(keys(&receiver).len(), 30_000);
    assert_eq!(state(&cluster, &stuck), "running");
    let read: u64 =
        cluster.value(&format!("SELECT rows_done FROM pgwh.backfills WHERE id = {stuck}")).parse().unwrap();
    assert!(read < 30_000, "{read} rows wait for an endpoint that is dead");
    // Neither the slot nor a snapshot waits for it.
    cluster.wait_confirmed();
    let snapshots = "SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type LIKE 'pgstream_hooks back%' AND backend_xmin IS NOT NULL";
    cluster.wait_true(snapshots);
    dead.behave(Script::default());
    cluster.sql("SELECT pgwh.resume('dead')");
    done(&cluster, &stuck);
    cluster.delivered(&dead, "dead");
    assert_eq!(keys(&dead).len(), 30_000);
}

#[test]
fn who_unsubscribes_is_not_read_for() {
    let (cluster, receiver) = stage();
    rows(&cluster, 20_000);
    cluster.subscribe(&receiver, "s", "tables => '{public.t}', batch_size => 20, max_in_flight => 4");
    very_slow(&receiver);
    let id = backfill(&cluster, "'s', chunk_size => 100");
    receiver.wait_for(20, PATIENCE).unwrap();
    cluster.sql("SELECT pgwh.unsubscribe('s')");
    ended(&cluster, &id);
    assert_eq!(
        cluster.value(&format!("SELECT reason FROM pgwh.backfills WHERE id = {id}")),
        "the subscription is gone"
    );
    // The worker goes when there is nothing to read.
    eventually("no backfiller", || cluster.processes(BACKFILLER).is_empty().then_some(()));
}

/// The backfiller sees that a subscription is gone at once, the dispatcher not before the commit has been decoded.
#[test]
fn a_backfill_is_not_done_because_its_subscription_is_gone() {
    let (cluster, receiver) = stage();
    rows(&cluster, 20_000);
    cluster.subscribe(&receiver, "s", "tables => '{public.t}', batch_size => 20, max_in_flight => 4");
    let id = backfill(&cluster, "'s', chunk_size => 100");
    receiver.wait_for(20, PATIENCE).unwrap();
    // Nothing is read for a subscription that is paused; what is asked for afterwards is not read either.
    cluster.sql("SELECT pgwh.pause('s')");
    cluster.wait_true("SELECT state = 'paused' FROM pgwh.status");
    let rests = format!(
        "SELECT wait_event_type = 'Extension' FROM pg_stat_activity WHERE backend_type = '{BACKFILLER}'"
    );
    cluster.wait_true(&rests);
    let (backfiller, decoder) = (cluster.process(BACKFILLER), cluster.process(DECODER));
    backfiller.pause();
    cluster.sql("SELECT pgwh.resume('s'); INSERT INTO t VALUES (0, 'later')");
    eventually("the later row", || {
        events(&receiver).iter().any(|event| event["key"]["id"] == 0).then_some(())
    });
    cluster.wait_true("SELECT pending = 0 FROM pgwh.status");
    decoder.pause();
    cluster.sql("SELECT pgwh.unsubscribe('s')");
    backfiller.resume();
    ended(&cluster, &id);
    let end = cluster.rows(&format!("SELECT state, reason FROM pgwh.backfills WHERE id = {id}"));
    decoder.resume();
    assert_eq!(end, [[Some("cancelled".to_owned()), Some("the subscription is gone".to_owned())]]);
}

#[test]
fn a_row_that_moves_to_where_was_read_comes_whole() {
    let (cluster, receiver) = stage();
    cluster.sql(
        "ALTER TABLE t ALTER v SET STORAGE EXTERNAL;
         INSERT INTO t SELECT n, repeat('l', 5000) FROM generate_series(20001, 20002) n",
    );
    rows(&cluster, 20_000);
    cluster.subscribe(&receiver, "s", "tables => '{public.t}', batch_size => 20, max_in_flight => 4");
    slow(&receiver);
    // Nothing is read for a subscription that is paused, but what happens arrives.
    cluster.sql("SELECT pgwh.pause('s')");
    let id = backfill(&cluster, "'s', chunk_size => 200");
    cluster.sql("UPDATE t SET id = 20003 WHERE id = 20002");
    cluster.wait_true("SELECT pending = 1 FROM pgwh.status");
    cluster.sql("SELECT pgwh.resume('s')");
    // What is pending bounds how far it has been read by then.
    receiver.wait_for(100, PATIENCE).unwrap();
    cluster.sql("SELECT pgwh.pause('s')");
    assert_eq!(state(&cluster, &id), "running");
    cluster.sql("UPDATE t SET id = 0 WHERE id = 20001; SELECT pgwh.resume('s')");
    done(&cluster, &id);
    let replica = Replica::of(&cluster.delivered(&receiver, "s"));
    replica.must_equal(&cluster.rows("SELECT jsonb_build_object('id', id), to_jsonb(t) FROM t"));
}

#[test]
fn a_gap_during_a_backfill_has_it_read_again_what_it_had_read() {
    for (away, back) in [
        ("UPDATE pgwh.subscriptions SET enabled = false", "UPDATE pgwh.subscriptions SET enabled = true"),
        ("ALTER TABLE t SET UNLOGGED", "ALTER TABLE t SET LOGGED"),
    ] {
        let (cluster, receiver) = stage();
        rows(&cluster, 10_000);
        cluster.subscribe(&receiver, "s", "tables => '{public.t}', batch_size => 20, max_in_flight => 4");
        very_slow(&receiver);
        let id = backfill(&cluster, "'s', chunk_size => 100");
        receiver.wait_for(50, PATIENCE).unwrap();
        // What has not been read moves to where the backfill has been.
        cluster.each(&[away, "UPDATE t SET id = -id", back]);
        receiver.behave(Script::default());
        done(&cluster, &id);
        cluster.delivered(&receiver, "s");
        let moved: Vec<i64> = keys(&receiver).into_iter().filter(|key| *key < 0).collect();
        assert_eq!(moved, (-10_000..=-1).collect::<Vec<_>>(), "{away}");
    }
}
