//! Forgetting a person: not the events alone, but every text that can quote them, and every place that keeps one.

use std::path::Path;

use super::*;

/// What is to be forgotten; an address that no other text has.
const JANE: &str = "jane.q.public@example.net";

/// Waits until nobody is shown it any more.
#[track_caller]
fn gone_from_every_view(cluster: &Cluster) {
    let views = [
        "pgwh.status",
        "pgwh.health()",
        "pgwh.events",
        "pgwh.deliveries",
        "pgwh.attempts",
        "pgwh.dead_letters",
        "pgwh.replays",
        "pgwh.backfills",
        "pgwh.gaps",
        "pgwh_internal.commands",
    ];
    for view in views {
        cluster
            .wait_true(&format!("SELECT count(*) = 0 FROM {view} v WHERE to_jsonb(v)::text LIKE '%jane.q%'"));
    }
}

#[test]
fn an_error_that_quotes_a_forgotten_row_is_forgotten_too() {
    let (cluster, receiver) = stage();
    cluster.sql(
        "CREATE TABLE people (id int PRIMARY KEY, mail text);
         CREATE FUNCTION number(event jsonb) RETURNS jsonb LANGUAGE sql AS
             $$SELECT to_jsonb((event #>> '{data,record,mail}')::int)$$",
    );
    let dying = "tables => '{people}', retry_schedule => '{100ms}'";
    cluster.subscribe(&receiver, "transform", &format!("{dying}, transform => 'number(jsonb)'"));
    cluster.subscribe(&receiver, "route", &format!("{dying}, route => 'number(jsonb)'"));
    cluster.subscribe(
        &receiver,
        "filter",
        &format!("{dying}, event_types => '{{insert}}', filter => 'mail::int > 0'"),
    );
    cluster.subscribe(&receiver, "answer", dying);
    cluster.subscribe(&receiver, "batch", &format!("{dying}, batch_size => 10, batch_wait => '100 ms'"));
    cluster.subscribe(&receiver, "once", "tables => '{people}', retry_schedule => '{100ms,1h}'");
    let echo = |request: &Request| {
        let body = String::from_utf8_lossy(request.body()).into_owned();
        Reply::status(422).body(body)
    };
    receiver.behave_at("/answer", echo);
    receiver.behave_at("/batch", echo);
    let failures = Script::fail_first_of_each(1, 500);
    receiver.behave_at("/once", failures);
    // In the batch she is not the first, and others have her in their answer.
    cluster.sql(&format!("INSERT INTO people VALUES (1, '7'), (2, '{JANE}'), (3, '9')"));
    for name in ["transform", "route", "filter", "answer"] {
        cluster.wait_status(name, "pending = 0 AND dead >= 1");
    }
    cluster.wait_status("batch", "pending = 0 AND dead = 3");
    cluster.wait_status("once", "delivered = 3");
    // It was there to be found.
    for (view, least) in
        [("pgwh.dead_letters", 3), ("pgwh.deliveries", 3), ("pgwh.attempts", 5), ("pgwh.status", 1)]
    {
        cluster.wait_true(&format!(
            "SELECT count(*) >= {least} FROM {view} v WHERE to_jsonb(v)::text LIKE '%jane.q%'"
        ));
    }
    // Also what a replay of it came to.
    let replay = cluster
        .value("SELECT pgwh.replay('transform', since => now() - interval '1 hour', \"only\" => 'dead')");
    cluster.wait_true(&format!("SELECT finished_at IS NOT NULL FROM pgwh.replays WHERE id = {replay}"));
    cluster.wait_true("SELECT count(*) >= 2 FROM pgwh.deliveries WHERE subscription = 'transform' AND error LIKE '%jane.q%'");

    assert_eq!(cluster.value("SELECT deliveries_pending FROM pgwh.forget('people', '{\"id\": 2}')"), "0");
    gone_from_every_view(&cluster);
    assert_eq!(cluster.status("transform", "last_error"), "forgotten");
    let kept = "SELECT count(*) FROM pgwh.dead_letters WHERE subscription = 'answer' AND reason LIKE '%422%'";
    assert_eq!(cluster.value(kept), "2", "what happened to others is still there");
    cluster.wait_true("SELECT count(*) >= 3 FROM pgwh.dead_letters WHERE reason = 'forgotten'");
    // Nor does a restart bring it back.
    cluster.restart(Stop::Fast);
    gone_from_every_view(&cluster);
    assert!(!cluster.log().contains("jane.q"), "the log quotes no row");

    cluster.sql("DELETE FROM people");
    cluster.wait_status("once", "pending = 0");
    cluster.sql("SELECT pgwh.forget('people', '{\"id\": 2}')");
    // As the manual has it.
    cluster.sql("VACUUM FULL people");
    cluster.sql("VACUUM FULL pgwh_internal.event_chunks, pgwh_internal.outcome_chunks, pgwh_internal.attempt_rows, pgwh_internal.backfill_requests, pgwh_internal.backfill_tables");
    cluster.sql("CHECKPOINT");
    assert_eq!(files_with(&cluster.data().join("base"), JANE.as_bytes()), Vec::<String>::new());
    cluster.sql("INSERT INTO people VALUES (5, '5')");
    cluster.wait_status("transform", "pending = 0");
}

/// The files below a directory that hold these bytes.
fn files_with(directory: &Path, bytes: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files_with(&path, bytes));
        } else if std::fs::read(&path).unwrap_or_default().windows(bytes.len()).any(|window| window == bytes)
        {
            found.push(path.display().to_string());
        }
    }
    found
}

#[test]
fn forget_removes_encoding_errors_of_the_tables_rows() {
    let (cluster, receiver) = stage();
    cluster.each(&[
        "CREATE TYPE broken",
        "CREATE FUNCTION broken_in(cstring) RETURNS broken LANGUAGE internal IMMUTABLE STRICT AS 'namein'",
        "CREATE FUNCTION broken_out(broken) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'int4in'",
        "CREATE TYPE broken (INPUT = broken_in, OUTPUT = broken_out, LIKE = name)",
        "CREATE TABLE people (id int PRIMARY KEY, mail broken)",
        "CREATE TABLE others (id int PRIMARY KEY, mail broken)",
    ]);
    cluster.subscribe(&receiver, "s", "tables => '{people,others}'");
    cluster.sql(&format!("INSERT INTO people VALUES (1, '{JANE}'); INSERT INTO others VALUES (1, 'other')"));
    cluster.wait_status("s", "dead = 2");
    cluster.wait_true("SELECT count(*) = 1 FROM pgwh.dead_letters WHERE reason LIKE '%jane.q%'");
    cluster.sql("SELECT pgwh.forget('people', '{\"id\": 1}')");
    gone_from_every_view(&cluster);
    assert_eq!(cluster.value("SELECT count(*) FROM pgwh.dead_letters WHERE reason LIKE '%\"other\"%'"), "1");
    assert_eq!(cluster.value("SELECT count(*) FROM pgwh.events WHERE error LIKE 'forgotten%'"), "1");
}

#[test]
fn a_backfill_keeps_nothing_of_a_forgotten_row() {
    let (cluster, receiver) = stage();
    cluster.sql(&format!(
        "CREATE TABLE people (mail text PRIMARY KEY, age text);
         INSERT INTO people VALUES ('{JANE}', '5'), ('john@example.net', 'brother of jane.q')"
    ));
    cluster.subscribe(&receiver, "s", "tables => '{people}'");
    let of_her = cluster.value(&format!("SELECT pgwh.backfill('s', filter => 'mail = ''{JANE}''')"));
    cluster.wait_true(&format!("SELECT state = 'done' FROM pgwh.backfills WHERE id = {of_her}"));
    // Both read her row, and fail at the next.
    let backfills = [(); 2].map(|()| {
        let id = cluster.value("SELECT pgwh.backfill('s', filter => 'age::int >= 5', chunk_size => 1)");
        cluster.wait_true(&format!("SELECT state = 'failed' FROM pgwh.backfills WHERE id = {id}"));
        id
    });
    let quoting = "SELECT count(*) FROM pgwh.backfills WHERE reason LIKE '%jane.q%'";
    let standing = "SELECT count(*) FROM pgwh_internal.backfill_tables WHERE convert_from(position, 'UTF8') LIKE '%jane.q%'";
    assert_eq!([quoting, standing].map(|query| cluster.value(query)), ["2", "2"]);
    cluster.sql(&format!("SELECT pgwh.cancel_backfill({})", backfills[0]));
    cluster.wait_true(&format!("SELECT state = 'cancelled' FROM pgwh.backfills WHERE id = {}", backfills[0]));
    cluster.wait_status("s", "pending = 0");
    cluster.sql(&format!("SELECT pgwh.forget('people', '{{\"mail\": \"{JANE}\"}}')"));
    gone_from_every_view(&cluster);
    let filter = cluster.value(&format!("SELECT filter FROM pgwh.backfills WHERE id = {of_her}"));
    assert_eq!(filter, "forgotten");
    assert_eq!([quoting, standing].map(|query| cluster.value(query)), ["0", "0"]);
    // What can go on does so, and sends every row there is.
    receiver.clear();
    cluster.sql(&format!("DELETE FROM people WHERE mail = '{JANE}'; UPDATE people SET age = '7'"));
    cluster.sql(&format!("SELECT pgwh.resume_backfill({})", backfills[1]));
    cluster.wait_true(&format!("SELECT state = 'done' FROM pgwh.backfills WHERE id = {}", backfills[1]));
    let read = || events_of(&receiver, "s").iter().filter(|event| event.text("action") == "read").count();
    eventually("the row is read", || (read() == 1).then_some(()));
}
