//! Every way to commit counts: in two phases, from another session, after a restart, and without waiting for the disk.

use std::time::{Duration, Instant};

use harness::{
    Cluster, DECODER, DISPATCHER, LAUNCHER, Process, Receiver, Setup, Stop, distinct, events_of, eventually,
    within,
};

/// A dispatcher looks after half a minute for what nobody told it of: what takes less was told.
const TOLD: Duration = Duration::from_secs(20);

/// What is in a prepared transaction is committed later, by whoever it is.
fn two_phases() -> Setup {
    Setup::new().set("max_prepared_transactions = 10")
}

fn stage() -> (Cluster, Receiver) {
    let cluster = two_phases().start();
    cluster.each(&["CREATE EXTENSION pgstream_hooks", "CREATE TABLE t (id int PRIMARY KEY)"]);
    let receiver = Receiver::start().unwrap();
    cluster.subscribe(&receiver, "s", "");
    (cluster, receiver)
}

#[track_caller]
fn prepare(cluster: &Cluster, sql: &str) {
    cluster.sql(&format!("BEGIN; {sql}; PREPARE TRANSACTION 'xa'"));
}

/// Ends the dispatcher; the next one has just looked when this returns.
#[track_caller]
fn begin_half_a_minute(cluster: &Cluster) {
    let before = cluster.process(DISPATCHER);
    cluster.sql(&format!("SELECT pg_terminate_backend({})", before.0));
    eventually("another dispatcher", || (!before.is_alive()).then_some(()));
    cluster.wait_true(
        "SELECT bool_and(ok) FROM pgwh.health() WHERE check_name IN ('worker running', 'slot present and valid')",
    );
}

#[track_caller]
fn has_got(receiver: &Receiver, name: &str, count: usize) {
    eventually(&format!("{count} events for {name}"), || {
        (distinct(events_of(receiver, name)).len() == count).then_some(())
    });
}

#[test]
fn an_extension_created_in_two_phases_starts_its_workers() {
    for restarts in [false, true] {
        let cluster = two_phases().start();
        prepare(&cluster, "CREATE EXTENSION pgstream_hooks");
        assert!(cluster.processes(DISPATCHER).is_empty());
        if restarts {
            cluster.restart(Stop::Fast);
        }
        cluster.sql("COMMIT PREPARED 'xa'");
        cluster.process(DISPATCHER);
        cluster.process(DECODER);
        cluster.wait_true("SELECT ok FROM pgwh.health() WHERE check_name = 'slot present and valid'");
    }
}

/// A dispatcher that finds no extension is there for some milliseconds, and not always seen.
const AWAIT_LOOKER: &str = "DO $$
    DECLARE
      looker int;
      until timestamptz := clock_timestamp() + '1.5 s';
    BEGIN
      WHILE looker IS NULL AND clock_timestamp() < until LOOP
        PERFORM pg_stat_clear_snapshot();
        SELECT pid INTO looker FROM pg_stat_activity
         WHERE backend_type = 'pgstream_hooks dispatcher' AND datname = current_database();
      END LOOP;
      PERFORM set_config('test.looker', coalesce(looker::text, ''), false);
    END $$";

#[test]
fn a_dispatcher_about_to_end_does_not_miss_the_extension() {
    let cluster = two_phases().start();
    let mut session = cluster.connect();
    prepare(&cluster, "CREATE EXTENSION pgstream_hooks");
    let mut met = 0;
    within(Duration::from_secs(60), "dispatchers stopped before their end", || {
        // A new launcher has a dispatcher look, which is stopped anywhere between its begin and its end.
        cluster.process(LAUNCHER).terminate();
        session.batch_execute(AWAIT_LOOKER).unwrap();
        let looker: Option<i32> =
            session.query_one("SELECT nullif(current_setting('test.looker'), '')::int", &[]).unwrap().get(0);
        let looker = Process(looker?);
        looker.pause();
        // It may have stopped while it held an LWLock that the commit needs: such a stop does not count.
        let is_met = std::thread::scope(|scope| {
            let commit = scope.spawn(|| session.batch_execute("COMMIT PREPARED 'xa'").unwrap());
            let begin = Instant::now();
            while !commit.is_finished() && begin.elapsed() < Duration::from_secs(5) {
                std::thread::sleep(Duration::from_millis(2));
            }
            let is_met = commit.is_finished();
            looker.resume();
            commit.join().unwrap();
            is_met
        });
        cluster.process(DECODER);
        cluster.sql("DROP EXTENSION pgstream_hooks");
        eventually("no dispatcher", || cluster.processes(DISPATCHER).is_empty().then_some(()));
        prepare(&cluster, "CREATE EXTENSION pgstream_hooks");
        met += u32::from(is_met);
        (met == 3).then_some(())
    });
}

#[test]
fn a_drop_in_two_phases_leaves_neither_slot_nor_process() {
    for restarts in [false, true] {
        let cluster = two_phases().start();
        cluster.sql("CREATE EXTENSION pgstream_hooks");
        cluster.wait_true("SELECT ok FROM pgwh.health() WHERE check_name = 'slot present and valid'");
        begin_half_a_minute(&cluster);
        prepare(&cluster, "DROP EXTENSION pgstream_hooks");
        if restarts {
            cluster.restart(Stop::Immediate);
        }
        cluster.sql("COMMIT PREPARED 'xa'");
        within(TOLD, "neither slot nor process", || {
            let is_left = cluster.value("SELECT count(*) FROM pg_replication_slots") != "0"
                || !cluster.processes(DISPATCHER).is_empty()
                || !cluster.processes(DECODER).is_empty();
            (!is_left).then_some(())
        });
    }
}

#[test]
fn what_is_asked_for_in_two_phases_is_done_when_that_commits() {
    for restarts in [false, true] {
        let (cluster, receiver) = stage();
        cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 10) n");
        assert_eq!(cluster.delivered(&receiver, "s").len(), 10);
        receiver.clear();
        let url = receiver.url("/late");
        prepare(
            &cluster,
            &format!(
                "SELECT pgwh.replay('s', '-infinity'::timestamptz);
                 SELECT pgwh.backfill('s', 'public.t');
                 SELECT pgwh.subscribe('{url}', name => 'late', event_types => '{{insert,message}}');
                 SELECT pgwh.emit('paid', '{{}}')"
            ),
        );
        if restarts {
            cluster.restart(Stop::Fast);
        }
        cluster.sql("INSERT INTO t VALUES (11)");
        cluster.delivered(&receiver, "s");
        begin_half_a_minute(&cluster);
        cluster.sql("COMMIT PREPARED 'xa'");
        within(TOLD, "replayed and backfilled", || {
            let is_done = cluster.value(
                "SELECT count(*) = 2 AND bool_and(state = 'done')
                 FROM (SELECT state FROM pgwh.replays UNION ALL SELECT state FROM pgwh.backfills) a",
            );
            (is_done == "t").then_some(())
        });
        cluster.sql("INSERT INTO t VALUES (12)");
        has_got(&receiver, "late", 1);
        assert_eq!(cluster.delivered(&receiver, "late")[0]["key"]["id"], 12);
    }
}

#[test]
fn a_redelivery_asked_for_in_two_phases_is_made() {
    let (cluster, receiver) = stage();
    cluster.sql("INSERT INTO t VALUES (1)");
    cluster.delivered(&receiver, "s");
    let id = cluster.value("SELECT id FROM pgwh.deliveries");
    prepare(&cluster, &format!("SELECT pgwh.redeliver({id})"));
    // Others that are committed in two phases meanwhile change nothing.
    for n in 2..=5 {
        cluster.sql(&format!("BEGIN; INSERT INTO t VALUES ({n}); PREPARE TRANSACTION 'other'"));
        cluster.sql("COMMIT PREPARED 'other'");
    }
    assert_eq!(cluster.delivered(&receiver, "s").len(), 5);
    assert_eq!(events_of(&receiver, "s").len(), 5);
    begin_half_a_minute(&cluster);
    cluster.sql("COMMIT PREPARED 'xa'");
    within(TOLD, "it comes again", || (events_of(&receiver, "s").len() == 6).then_some(()));
}

#[test]
fn an_unrelated_two_phase_commit_wakes_no_dispatcher() {
    let (cluster, _) = stage();
    cluster.sql("CREATE TABLE other (id int); SELECT pgwh.unsubscribe('s')");
    let mut client = cluster.connect();
    let mut two_phases = |n: i32| {
        let prepare = format!("BEGIN; INSERT INTO other VALUES ({n}); PREPARE TRANSACTION 'other'");
        client.batch_execute(&prepare).unwrap();
        client.batch_execute("COMMIT PREPARED 'other'").unwrap();
    };
    // What there was before the first is not known.
    two_phases(0);
    cluster.wait_confirmed();
    let dispatcher = cluster.process(DISPATCHER);
    let before = dispatcher.sleeps();
    (1..=1000).for_each(&mut two_phases);
    let woken = dispatcher.sleeps() - before;
    // Each half a second it hears how far the decoder is.
    assert!(woken < 500, "{woken} times for 1000 commits");
}

/// A server whose WAL writer stands still: what nobody waits for gets to the disk when somebody writes it there.
struct Unflushed {
    cluster: Cluster,
    receiver: Receiver,
    writer: Process,
}

impl Unflushed {
    fn set(setting: &str) -> Self {
        let cluster = Setup::new().set(setting).set("autovacuum = off").start();
        cluster.each(&[
            "CREATE EXTENSION pgstream_hooks",
            "CREATE TABLE t (id int PRIMARY KEY)",
            "CREATE TABLE u (id int PRIMARY KEY)",
        ]);
        let receiver = Receiver::start().unwrap();
        cluster.subscribe(&receiver, "s", "tables => '{public.t}'");
        let writer = cluster.process("walwriter");
        writer.pause();
        eventually("it stands still", || writer.stands_still().then_some(()));
        Self { cluster, receiver, writer }
    }
}

impl Drop for Unflushed {
    fn drop(&mut self) {
        self.writer.resume();
    }
}

#[test]
fn an_asynchronous_commit_is_sent_at_once() {
    let stage = Unflushed::set("synchronous_commit = off");
    for n in 1..=50 {
        stage.cluster.sql(&format!("INSERT INTO t VALUES ({n})"));
        has_got(&stage.receiver, "s", n);
    }
}

#[test]
fn a_session_that_does_not_wait_for_the_disk_is_heard_at_once() {
    let stage = Unflushed::set("synchronous_commit = on");
    let mut client = stage.cluster.connect();
    for n in 1..=20 {
        client.batch_execute(&format!("SET synchronous_commit = off; INSERT INTO t VALUES ({n})")).unwrap();
        has_got(&stage.receiver, "s", n);
    }
}

#[test]
fn an_asynchronous_commit_among_unrelated_ones_is_sent() {
    let stage = Unflushed::set("synchronous_commit = off");
    let mut client = stage.cluster.connect();
    for n in 1..=300 {
        client.batch_execute(&format!("INSERT INTO u VALUES ({n})")).unwrap();
    }
    client.batch_execute("INSERT INTO t VALUES (1)").unwrap();
    has_got(&stage.receiver, "s", 1);
}

#[test]
fn what_is_not_committed_is_not_written_to_the_disk_for_us() {
    let stage = Unflushed::set("synchronous_commit = on");
    stage.cluster.sql("INSERT INTO t VALUES (1)");
    has_got(&stage.receiver, "s", 1);
    stage.cluster.wait_confirmed();
    let mut open = stage.cluster.connect();
    open.batch_execute("BEGIN; INSERT INTO t VALUES (2)").unwrap();
    let decoder = stage.cluster.process(DECODER);
    // Others write to the disk, too: the dispatcher what became of a request, the server its running transactions. A decoder that does
    // would do so each time.
    eventually("looks of the decoder at what is not on the disk that leave it there", || {
        open.batch_execute("INSERT INTO u SELECT coalesce(max(id), 0) + 1 FROM u").unwrap();
        let flushed = stage.cluster.value("SELECT pg_current_wal_flush_lsn()");
        let before = decoder.sleeps();
        eventually("the decoder has looked again and again", || {
            (decoder.sleeps() > before + 5).then_some(())
        });
        let still = "SELECT pg_current_wal_flush_lsn() = '{}' AND pg_current_wal_insert_lsn() > '{}'";
        (stage.cluster.value(&still.replace("{}", &flushed)) == "t").then_some(())
    });
    open.batch_execute("COMMIT").unwrap();
    has_got(&stage.receiver, "s", 2);
}
