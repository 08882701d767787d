//! What a user sees: status, health, waiting, the processes; and that a webhook never runs ahead of its row.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use harness::{
    Answer, Cluster, DECODER, DISPATCHER, LAUNCHER, PATIENCE, Receiver, Reply, Request, Script, Setup, Stop,
    eventually,
};

fn stage() -> (Cluster, Receiver) {
    stage_with(Setup::new())
}

fn stage_with(setup: Setup) -> (Cluster, Receiver) {
    let cluster = setup.start();
    cluster.sql("CREATE EXTENSION pgstream_hooks");
    cluster.wait_true("SELECT ok FROM pgwh.health() WHERE check_name = 'slot present and valid'");
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY)");
    (cluster, Receiver::start().unwrap())
}

#[test]
fn status_has_its_columns_as_function_and_as_view() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "");
    let promised = "subscription_id, name, url, state, mode, reason, next_step, pending, retrying, delivered, dead, \
                    blocked_keys, bottleneck, gap, oldest_pending, lag_bytes, lag_seconds, last_success_at, \
                    last_failure_at, last_status, last_error, next_attempt_at, p50_ms, p99_ms";
    for source in ["pgwh.status()", "pgwh.status"] {
        assert_eq!(cluster.rows(&format!("SELECT {promised} FROM {source}")).len(), 1, "{source}");
    }
    assert_eq!(cluster.rows("TABLE pgwh.status").len(), 1);
    let uncommented = cluster.column(
        "SELECT c.relname || '.' || a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
         WHERE c.relnamespace IN ('pgwh'::regnamespace, 'pgwh_internal'::regnamespace) AND c.relkind IN ('r', 'v') AND a.attnum > 0
           AND NOT a.attisdropped AND col_description(c.oid, a.attnum) IS NULL
         UNION ALL SELECT p.proname FROM pg_proc p
         WHERE p.pronamespace IN ('pgwh'::regnamespace, 'pgwh_internal'::regnamespace) AND obj_description(p.oid, 'pg_proc') IS NULL",
    );
    assert_eq!(uncommented, [] as [&str; 0], "everything has a comment");
}

#[test]
fn the_schema_for_people_fits_on_two_screens() {
    let cluster = Cluster::with_extension();
    let functions =
        cluster.column("SELECT oid::regprocedure FROM pg_proc WHERE pronamespace = 'pgwh'::regnamespace");
    assert!(functions.len() <= 45, "\\df pgwh.*: {functions:?}");
    let relations = cluster.column(
        "SELECT oid::regclass FROM pg_class WHERE relnamespace = 'pgwh'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'f')",
    );
    assert!(relations.len() <= 20, "\\dt and \\dv pgwh.*: {relations:?}");
    // Whatever is made later is one of the two, too.
    let elsewhere = cluster.column(
        "SELECT pg_describe_object(d.classid, d.objid, 0) FROM pg_depend d, pg_extension e, pg_identify_object(d.classid, d.objid, 0) o
         WHERE e.extname = 'pgstream_hooks' AND d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
           AND d.deptype = 'e' AND o.schema NOT IN ('pgwh', 'pgwh_internal')",
    );
    assert_eq!(elsewhere, [] as [&str; 0]);
    cluster.sql("DROP EXTENSION pgstream_hooks");
    assert_eq!(cluster.value("SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'pgwh%'"), "0");
}

#[test]
fn status_follows_a_subscription_through_its_days() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "tables => '{public.t}'");
    assert_eq!(cluster.value("SELECT state || ' ' || mode FROM pgwh.status"), "active live");
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 10) n");
    cluster.delivered(&receiver, "s");
    cluster.wait_true(
        "SELECT (delivered, pending, retrying, dead) = (10, 0, 0, 0) AND last_status = 200 AND last_success_at IS NOT NULL
           AND last_failure_at IS NULL AND reason IS NULL AND p50_ms BETWEEN 0 AND 1000 AND p99_ms >= p50_ms
         FROM pgwh.status",
    );

    receiver.behave(Script::always(Reply::status(503)));
    cluster.sql("INSERT INTO t VALUES (11)");
    cluster.wait_true(
        "SELECT state = 'retrying' AND (pending, retrying) = (1, 1) AND last_status = 503 AND reason IS NOT NULL
           AND next_attempt_at > now() AND last_failure_at IS NOT NULL AND oldest_pending IS NOT NULL
           AND lag_bytes > 0 AND lag_seconds >= 0
         FROM pgwh.status",
    );

    receiver.behave(Script::default());
    cluster.delivered(&receiver, "s");
    cluster.wait_true("SELECT state = 'active' AND (delivered, pending) = (11, 0) FROM pgwh.status");

    cluster.sql("UPDATE pgwh.subscriptions SET enabled = false");
    cluster.wait_true("SELECT state = 'disabled' AND next_step LIKE 'UPDATE%' FROM pgwh.status");
    let next_step = cluster.value("SELECT next_step FROM pgwh.status");
    cluster.sql(&next_step);
    cluster.wait_true("SELECT state = 'active' FROM pgwh.status");
}

#[test]
fn status_computes_costly_columns_for_selected_rows_only() {
    // What autovacuum finds out about tables would make other plans.
    let (cluster, receiver) = stage_with(Setup::new().set("autovacuum = off"));
    cluster.sql(&format!(
        "SELECT pgwh.subscribe('{}', name => 's' || n, tables => '{{t}}', filter => 'id = ' || n) FROM generate_series(1, 120) n",
        receiver.url("/")
    ));
    let calls = |query: &str| {
        let mut session = cluster.connect();
        session.batch_execute(&format!("SET track_functions = 'all'; BEGIN; {query}")).unwrap();
        let rows = session
            .query(
                "SELECT funcname, calls FROM pg_stat_xact_user_functions WHERE schemaname IN ('pgwh', 'pgwh_internal')
                 AND funcname IN ('delivery_stats', 'permission_problem', 'url_problem', 'tables_problem', 'condition_problem', 'secret_problem')",
                &[],
            )
            .unwrap();
        rows.iter().map(|row| row.get::<_, i64>(1)).max().unwrap_or(0)
    };
    for one in [
        "name = 's7'",
        "name LIKE 's7_x' OR name = 's77'",
        "url LIKE '%s7' OR name = 's7'",
        "subscription_id = 7",
    ] {
        assert_eq!(calls(&format!("SELECT * FROM pgwh.status() WHERE {one}")), 1, "{one}");
    }
    assert_eq!(calls("SELECT * FROM pgwh.status()"), 120);
    assert_eq!(calls("SELECT count(*) FROM pgwh.status"), 0);
    assert_eq!(calls("SELECT name FROM pgwh.status WHERE pending > 0"), 120);
    assert_eq!(calls("SELECT name, reason, next_step FROM pgwh.status WHERE state = 'error'"), 120);
}

#[test]
fn a_healthy_database_says_so_in_every_check() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "");
    cluster.sql("INSERT INTO t VALUES (1)");
    cluster.delivered(&receiver, "s");
    let unwell =
        || cluster.rows("SELECT check_name, detail, hint FROM pgwh.health() WHERE NOT ok OR ok IS NULL");
    eventually("all well", || unwell().is_empty().then_some(()));
    let checks = cluster.column("SELECT check_name FROM pgwh.health()");
    for check in [
        "preloaded",
        "wal_level",
        "worker running",
        "slot present and valid",
        "slot plugin",
        "retained WAL",
        "schema version",
        "standbys",
        "gaps",
        "publications",
        "settings valid",
        "subscriptions valid",
        "endpoints reachable lately",
        "clock",
    ] {
        assert!(checks.iter().any(|its| its == check), "{check} of {checks:?}");
    }
    assert_eq!(cluster.rows("SELECT FROM pgwh.health() WHERE detail IS NULL OR detail = ''").len(), 0);
}

#[test]
fn health_says_what_is_wrong_and_what_to_do() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "");
    receiver.behave(Script::always(Reply::status(500)));
    cluster.sql("INSERT INTO t VALUES (1)");
    cluster.wait_true(
        "SELECT NOT ok AND detail LIKE '%s:%' AND hint IS NOT NULL FROM pgwh.health()
         WHERE check_name = 'endpoints reachable lately'",
    );
    cluster.sql("CREATE TABLE gone (id int)");
    cluster.subscribe(&receiver, "orphan", "tables => '{public.gone}'");
    cluster.sql("DROP TABLE gone");
    cluster.wait_true(
        "SELECT NOT ok AND detail LIKE '%orphan%' AND hint IS NOT NULL FROM pgwh.health()
         WHERE check_name = 'subscriptions valid'",
    );
}

#[test]
fn wait_is_true_once_all_is_received_and_false_when_time_is_up() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "");
    assert_eq!(cluster.value("SELECT pgwh.wait('s', '10 s')"), "t", "nothing to wait for");
    receiver.behave(|_: &Request| Reply::default().after(Duration::from_millis(300)));
    let begin = Instant::now();
    cluster.sql("INSERT INTO t VALUES (1)");
    assert_eq!(cluster.value("SELECT pgwh.wait('s', '30 s')"), "t");
    assert!(begin.elapsed() >= Duration::from_millis(250), "received means answered");
    assert_eq!(receiver.count(), 1);

    receiver.behave(Script::always(Answer::Hang));
    cluster.sql("INSERT INTO t VALUES (2)");
    let begin = Instant::now();
    assert_eq!(cluster.value("SELECT pgwh.wait('s', '300 ms')"), "f");
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(300) && took < Duration::from_secs(20), "{took:?}");

    let refusal = cluster.refused("SELECT pgwh.wait('nobody', '1 s')");
    assert_eq!(refusal.code, "42704");
    assert!(!refusal.detail.is_empty() && !refusal.hint.is_empty());
}

#[test]
fn a_restart_does_not_count_pending_events_as_reached() {
    let (cluster, receiver) = stage();
    // However long the restarts take, no attempt falls due but the one that is asked for.
    cluster.subscribe(&receiver, "s", "retry_schedule => '{1h,1h,1h,1h}'");
    receiver.behave(Script::always(Reply::status(503)));
    cluster.sql("INSERT INTO t VALUES (1)");
    cluster.wait_status("s", "retrying = 1");
    for _ in 0..3 {
        cluster.restart(Stop::Fast);
        assert_eq!(cluster.value("SELECT pgwh.wait('s', '1 s')"), "f");
    }
    receiver.behave(Script::default());
    cluster.wait_status("s", "retrying = 1");
    cluster.sql("SELECT pgwh.resume('s')");
    assert_eq!(cluster.value("SELECT pgwh.wait('s', '30 s')"), "t");
}

#[test]
fn wait_can_be_cancelled() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "");
    receiver.behave(Script::always(Answer::Hang));
    cluster.sql("INSERT INTO t VALUES (1)");
    let begin = Instant::now();
    let refusal = cluster.refused("SET statement_timeout = '200 ms'; SELECT pgwh.wait('s', '60 s')");
    assert_eq!(refusal.code, "57014");
    assert!(begin.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_webhook_never_arrives_before_its_row_can_be_read() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "tables => '{public.t}'");
    let mut reader = cluster.connect();
    let (read, missing) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
    let (count, unseen) = (Arc::clone(&read), Arc::clone(&missing));
    let statement = reader.prepare("SELECT 1 FROM t WHERE id = $1").unwrap();
    receiver.behave(move |request: &Request| {
        let id = request.events()[0]["data"]["key"]["id"].as_i64().unwrap() as i32;
        if reader.query_opt(&statement, &[&id]).unwrap().is_none() {
            unseen.lock().unwrap().push(id);
        }
        count.fetch_add(1, Ordering::Relaxed);
        Reply::default()
    });
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let cluster = &cluster;
            scope.spawn(move || {
                let mut client = cluster.connect();
                // Many of them, and of several kinds: without waiting for the disk, and with subtransactions.
                for n in 0..500 {
                    let id = thread * 1000 + n;
                    let sql = match n % 3 {
                        0 => format!("INSERT INTO t VALUES ({id})"),
                        1 => format!("SET synchronous_commit = off; INSERT INTO t VALUES ({id}); RESET synchronous_commit"),
                        _ => format!("BEGIN; SAVEPOINT a; INSERT INTO t VALUES ({id}); RELEASE a; COMMIT"),
                    };
                    client.batch_execute(&sql).unwrap();
                }
            });
        }
    });
    cluster.delivered(&receiver, "s");
    assert_eq!(*missing.lock().unwrap(), [] as [i32; 0], "arrived before they could be read");
    assert_eq!(read.load(Ordering::Relaxed), 2000);
}

/// The flush precedes visibility by as long as the standby is missing.
#[test]
fn a_webhook_waits_for_the_synchronous_standby() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "tables => '{public.t}'");
    cluster.sql("INSERT INTO t VALUES (1)");
    cluster.delivered(&receiver, "s");
    cluster.set("synchronous_standby_names = 'nobody'");
    cluster.reload();
    cluster.wait_true("SELECT current_setting('synchronous_standby_names') = 'nobody'");
    // Which commits wait is up to the checkpointer, who reads the settings before it writes one.
    cluster.sql("CHECKPOINT");
    std::thread::scope(|scope| {
        scope.spawn(|| cluster.sql("INSERT INTO t VALUES (2)"));
        cluster.wait_true("SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'");
        assert!(receiver.wait_for(2, Duration::from_millis(500)).is_err(), "nobody can see that row yet");
        cluster.set("synchronous_standby_names = ''");
        cluster.reload();
    });
    receiver.wait_for(2, PATIENCE).unwrap();
}

#[test]
fn the_three_processes_are_named_and_say_what_they_wait_for() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "");
    for kind in [LAUNCHER, DISPATCHER, DECODER] {
        cluster.process(kind);
        cluster.wait_true(&format!(
            "SELECT bool_and(wait_event_type IS NOT NULL AND wait_event IS NOT NULL) FROM pg_stat_activity \
             WHERE backend_type = '{kind}'"
        ));
    }
    cluster.wait_true(
        "SELECT bool_and(datname = 'postgres') FROM pg_stat_activity \
         WHERE backend_type IN ('pgstream_hooks dispatcher', 'pgstream_hooks decoder')",
    );
    assert_eq!(
        cluster.value("SELECT count(*) FROM pg_replication_slots WHERE slot_name = pgwh.slot_name()"),
        "1"
    );
}

#[test]
fn the_servers_statistics_of_our_tables_are_current() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "");
    cluster.sql("INSERT INTO t SELECT generate_series(1, 100)");
    cluster.delivered(&receiver, "s");
    for table in ["event_chunks", "outcome_chunks"] {
        cluster.wait_true(&format!(
            "SELECT sum(n_tup_ins) = (SELECT count(*) FROM pgwh_internal.{table}) FROM pg_stat_user_tables
             WHERE schemaname IN ('pgwh', 'pgwh_internal') AND relname LIKE '{table}_%'"
        ));
    }
}

/// An idle decoder must not hold back vacuum.
#[test]
fn idle_processes_hold_no_snapshot_and_no_transaction() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "");
    cluster.sql("INSERT INTO t VALUES (1)");
    cluster.delivered(&receiver, "s");
    cluster.wait_true(
        "SELECT bool_and(backend_xmin IS NULL AND backend_xid IS NULL AND xact_start IS NULL) FROM pg_stat_activity \
         WHERE backend_type LIKE 'pgstream_hooks%'",
    );
}
