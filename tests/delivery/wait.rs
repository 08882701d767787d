//! `pgwh.wait` is true when everything has been received, backfills and replays included, and says why when it waits in vain.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use harness::{Cluster, Database, Receiver, Reply, Request, events_of};
use postgres::SimpleQueryMessage;

fn stage(rows: i64) -> (Cluster, Receiver) {
    let cluster = Cluster::with_extension();
    cluster.sql(&format!(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT n, 'v' || n FROM generate_series(1, {rows}) n"
    ));
    (cluster, Receiver::start().unwrap())
}

/// The value of a query in a session, and the notices that came with it: message, detail and hint.
fn with_notices(database: &Database, sql: &str) -> (String, Vec<[String; 3]>) {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let notices = Arc::clone(&heard);
    let mut client = database.connect_noticing(move |notice| {
        let text = |part: Option<&str>| part.unwrap_or_default().to_owned();
        notices.lock().unwrap().push([
            notice.message().to_owned(),
            text(notice.detail()),
            text(notice.hint()),
        ]);
    });
    let rows = client.simple_query(sql).unwrap_or_else(|error| panic!("{error:?}\nin: {sql}"));
    let value = rows.iter().rev().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
        _ => None,
    });
    drop(client);
    let heard = heard.lock().unwrap().clone();
    (value.unwrap_or_default(), heard)
}

/// An endpoint that takes its time, so that what is sent has not been received at once.
fn slow(receiver: &Receiver) {
    receiver.behave(|_: &Request| Reply::status(200).after(Duration::from_millis(20)));
}

#[test]
fn wait_waits_for_a_backfill() {
    let (cluster, receiver) = stage(10_000);
    cluster.subscribe(&receiver, "s", "tables => '{public.t}', batch_size => 100");
    slow(&receiver);
    cluster.sql("SELECT pgwh.backfill('s')");
    assert_eq!(cluster.value("SELECT pgwh.wait('s', '60 s')"), "t");
    let received: usize = receiver.requests().iter().map(|request| request.events().len()).sum();
    assert_eq!(received, 10_000);
    assert_eq!(cluster.value("SELECT state FROM pgwh.backfills"), "done");
}

#[test]
fn wait_for_one_backfill_waits_for_no_other() {
    let (cluster, receiver) = stage(1_000);
    cluster.sql("CREATE TABLE u (id int PRIMARY KEY); INSERT INTO u SELECT generate_series(1, 10)");
    cluster.subscribe(&receiver, "s", "tables => '{public.t, public.u}', batch_size => 100");
    let first = cluster.value("SELECT pgwh.backfill('s', 'public.t')");
    cluster.sql(&format!("SELECT pgwh.pause_backfill({first})"));
    cluster.wait_true(&format!("SELECT state IN ('paused', 'done') FROM pgwh.backfills WHERE id = {first}"));
    let paused = cluster.value(&format!("SELECT state FROM pgwh.backfills WHERE id = {first}")) == "paused";
    let second = cluster.value("SELECT pgwh.backfill('s', 'public.u')");
    assert_eq!(cluster.value(&format!("SELECT pgwh.wait('s', '60 s', backfill => {second})")), "t");
    let of_u = events_of(&receiver, "s").into_iter().filter(|event| event.text("table") == "u");
    assert_eq!(of_u.count(), 10);
    if paused {
        let (waited, notices) =
            with_notices(&cluster, &format!("SELECT pgwh.wait('s', '600 s', backfill => {first})"));
        assert_eq!(waited, "f");
        assert_eq!(notices[0][0], format!("backfill {first} is paused"));
        assert_eq!(
            cluster.value("SELECT pgwh.wait('s', '60 s')"),
            "t",
            "a paused one is waited for only by its id"
        );
        assert!(notices[0][2].contains(&format!("SELECT pgwh.resume_backfill({first});")), "{notices:?}");
    }
    cluster.sql(&format!("SELECT pgwh.resume_backfill({first})"));
    cluster.wait_true(&format!("SELECT state <> 'paused' FROM pgwh.backfills WHERE id = {first}"));
    assert_eq!(cluster.value(&format!("SELECT pgwh.wait('s', '60 s', backfill => {first})")), "t");
    let refusal = cluster.refused("SELECT pgwh.wait('s', '600 s', backfill => 77)");
    assert_eq!((refusal.code.as_str(), refusal.message.as_str()), ("22023", "there is no such backfill"));
    let refusal = cluster.refused("SELECT pgwh.wait('s', '600 s', replay => 77)");
    assert_eq!((refusal.code.as_str(), refusal.message.as_str()), ("22023", "there is no such replay"));
}

#[test]
fn wait_is_false_at_once_after_a_backfill_has_failed() {
    let (cluster, receiver) = stage(10);
    cluster.subscribe(&receiver, "s", "tables => '{public.t}'");
    cluster.sql("CREATE FUNCTION f(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1'");
    cluster.sql("BEGIN; SELECT pgwh.backfill('s'); ALTER TABLE t DROP CONSTRAINT t_pkey; COMMIT");
    cluster.wait_true("SELECT state = 'failed' FROM pgwh.backfills");
    let begin = Instant::now();
    for call in ["SELECT pgwh.wait('s', '600 s')", "SELECT pgwh.wait('s', '600 s', backfill => 1)"] {
        let (waited, notices) = with_notices(&cluster, call);
        assert_eq!(waited, "f", "{call}");
        assert_eq!(notices[0][0], "backfill 1 has failed", "{call}");
        assert!(
            !notices[0][1].is_empty() && notices[0][2].contains("pgwh.cancel_backfill(1)"),
            "{notices:?}"
        );
    }
    assert!(begin.elapsed() < Duration::from_secs(60));
    cluster.sql("SELECT pgwh.cancel_backfill(1)");
    cluster.wait_true("SELECT state = 'cancelled' FROM pgwh.backfills");
    assert_eq!(cluster.value("SELECT pgwh.wait('s', '60 s')"), "t");
    let (waited, notices) = with_notices(&cluster, "SELECT pgwh.wait('s', '600 s', backfill => 1)");
    assert_eq!((waited.as_str(), notices[0][0].as_str()), ("f", "backfill 1 was cancelled"));
}

#[test]
fn wait_waits_for_a_replay() {
    let (cluster, receiver) = stage(0);
    cluster.subscribe(&receiver, "s", "tables => '{public.t}', batch_size => 10");
    cluster.sql("INSERT INTO t SELECT generate_series(1, 1000)");
    assert_eq!(cluster.value("SELECT pgwh.wait('s', '60 s')"), "t");
    receiver.clear();
    slow(&receiver);
    let replay = cluster.value("SELECT pgwh.replay('s', since => '2020-01-01')");
    assert_eq!(cluster.value("SELECT pgwh.wait('s', '60 s')"), "t");
    let received = || receiver.requests().iter().map(|request| request.events().len()).sum::<usize>();
    assert_eq!(received(), 1000);
    let again = cluster.value("SELECT pgwh.replay('s', '2020-01-01')");
    assert_eq!(cluster.value(&format!("SELECT pgwh.wait('s', '60 s', replay => {again})")), "t");
    assert_eq!(received(), 2000);
    assert_ne!(replay, again);
}

#[test]
fn wait_in_a_transaction_that_has_written_says_commit_first() {
    let (cluster, receiver) = stage(0);
    cluster.subscribe(&receiver, "s", "tables => '{public.t}'");
    let begin = Instant::now();
    for statements in [
        "BEGIN; INSERT INTO t VALUES (1); SELECT pgwh.wait('s', '600 s'); ROLLBACK",
        "BEGIN; SELECT pgwh.backfill('s'); SELECT pgwh.wait('s', '600 s'); ROLLBACK",
    ] {
        let (waited, notices) = with_notices(&cluster, statements);
        assert_eq!(waited, "f");
        assert!(
            notices
                .iter()
                .any(|[message, _, hint]| message.contains("commits") && hint.contains("COMMIT first")),
            "{notices:?}"
        );
    }
    assert!(begin.elapsed() < Duration::from_secs(60));
    // A transaction that has only read waits.
    assert_eq!(with_notices(&cluster, "BEGIN; SELECT count(*) FROM t; SELECT pgwh.wait('s', '60 s')").0, "t");
    let isolated =
        "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM t; SELECT pgwh.wait('s', '60 s')";
    assert_eq!(with_notices(&cluster, isolated).0, "t");
}

#[test]
fn unsubscribe_says_that_history_is_no_longer_shown() {
    let (cluster, receiver) = stage(0);
    cluster.sql(
        "CREATE ROLE app LOGIN; GRANT SELECT, INSERT ON t TO app; GRANT USAGE ON SCHEMA pgwh, pgwh_internal TO app;
         GRANT SELECT, INSERT, UPDATE, DELETE ON pgwh.subscriptions TO app;
         GRANT SELECT ON ALL TABLES IN SCHEMA pgwh, pgwh_internal TO app; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgwh, pgwh_internal TO app",
    );
    let app = cluster.as_role("app");
    app.subscribe(&receiver, "s", "tables => '{public.t}'");
    app.sql("INSERT INTO t VALUES (1)");
    assert_eq!(app.value("SELECT pgwh.wait('s', '60 s')"), "t");
    app.wait_true("SELECT count(*) = 1 FROM pgwh.deliveries");
    let (dropped, notices) = with_notices(&app, "SELECT pgwh.unsubscribe('s')");
    assert_eq!(dropped, "0");
    assert_eq!(notices.len(), 1, "{notices:?}");
    assert!(notices[0][0].contains("no longer shown to role \"app\""), "{notices:?}");
    assert!(notices[0][2].contains("SET enabled = false"), "{notices:?}");
    assert_eq!(app.value("SELECT count(*) FROM pgwh.deliveries"), "0");
    // A superuser still sees them, and is not told otherwise.
    assert_eq!(cluster.value("SELECT count(*) FROM pgwh.deliveries"), "1");
    cluster.subscribe(&receiver, "mine", "tables => '{public.t}'");
    assert_eq!(with_notices(&cluster, "SELECT pgwh.unsubscribe('mine')").1, Vec::<[String; 3]>::new());
}
