//! Transforms and routes: what users' functions make of events, and what they cannot do to anybody else.

use std::sync::Arc;
use std::time::{Duration, Instant};

use harness::{Cluster, PATIENCE, RENDERER, Receiver, Request, eventually};
use receiver::{Secret, Verdict};
use serde_json::{Value, json};

/// A cluster with a table, and somebody who listens.
fn stage() -> (Cluster, Receiver) {
    let cluster = Cluster::with_extension();
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY, name text, total numeric)");
    (cluster, Receiver::start().unwrap())
}

/// A function over `event`.
fn function(cluster: &Cluster, name: &str, expression: &str) {
    cluster.sql(&format!(
        "CREATE OR REPLACE FUNCTION public.{name}(event jsonb) RETURNS jsonb LANGUAGE plpgsql
           AS $$ BEGIN RETURN {expression}; END $$"
    ));
}

/// Waits until all that was committed is done for a subscription; what came at its path.
#[track_caller]
fn arrived(cluster: &Cluster, receiver: &Receiver, name: &str) -> Vec<Arc<Request>> {
    let seconds = PATIENCE.as_secs();
    assert_eq!(cluster.value(&format!("SELECT pgwh.wait('{name}', '{seconds} s')")), "t");
    let path = format!("/{name}");
    receiver.requests().into_iter().filter(|request| request.path().starts_with(&path)).collect()
}

fn bodies(requests: &[Arc<Request>]) -> Vec<Value> {
    requests.iter().map(|request| request.json()).collect()
}

#[test]
fn the_body_is_what_the_transform_returns_with_every_digit() {
    let (cluster, receiver) = stage();
    function(
        &cluster,
        "shape",
        "jsonb_build_object('text', event->'data'->'record'->>'name' || '!', 'total', event#>'{data,record,total}',
           'what', event->'type')",
    );
    cluster.subscribe(&receiver, "s", "transform => 'shape(jsonb)'");
    cluster.sql("INSERT INTO t VALUES (1, 'é 🙂', 12345678901234567890.0123456789)");
    let requests = arrived(&cluster, &receiver, "s");
    let body = std::str::from_utf8(requests[0].body()).unwrap();
    assert!(body.contains("12345678901234567890.0123456789"), "{body}");
    assert_eq!(
        (&requests[0].json()["text"], &requests[0].json()["what"]),
        (&json!("é 🙂!"), &json!("public.t.insert"))
    );
    assert_eq!(requests[0].header("content-type"), Some("application/json"));
    let secret = Secret::parse(&cluster.value("SELECT pgwh.secret('s')")).unwrap();
    assert_eq!(secret.verify(&requests[0]), Verdict::Valid);
    assert_eq!(cluster.value("SELECT transform FROM pgwh.subscriptions"), "public.shape(jsonb)");
}

#[test]
fn null_sends_nothing_and_is_counted() {
    let (cluster, receiver) = stage();
    function(
        &cluster,
        "odd",
        "CASE WHEN (event#>>'{data,record,id}')::int % 2 = 1 THEN event->'data'->'record' END",
    );
    cluster.subscribe(&receiver, "s", "transform => 'odd(jsonb)'");
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 10) n");
    assert_eq!(arrived(&cluster, &receiver, "s").len(), 5);
    cluster.wait_status("s", "(delivered, dropped, dead, pending) = (5, 5, 0, 0)");
    cluster.wait_true(
        "SELECT count(*) = 5 FROM pgwh.deliveries WHERE state = 'delivered' AND status_code IS NULL AND error IS NULL",
    );
    cluster.wait_true("SELECT fate = 'dropped' FROM pgwh.why('t', '{\"id\": 2}')");
    cluster.restart(harness::Stop::Fast);
    cluster.wait_status("s", "(delivered, dropped, pending) = (5, 5, 0)");
    assert_eq!(receiver.count(), 5);
}

#[test]
fn dropped_events_leave_their_batch_and_what_fails_fails_alone() {
    let (cluster, receiver) = stage();
    function(
        &cluster,
        "partly",
        "CASE (event#>>'{data,record,id}')::int % 4 WHEN 0 THEN NULL
           WHEN 1 THEN jsonb_build_object('id', 1 / ((event#>>'{data,record,id}')::int - 5)) ELSE event#>'{data,record,id}' END",
    );
    cluster.subscribe(
        &receiver,
        "s",
        "transform => 'partly(jsonb)', batch_size => 20, batch_wait => '20 s', max_in_flight => 4, retry_schedule => '{1h}'",
    );
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 20) n");
    let requests = receiver.wait_for(1, PATIENCE).unwrap();
    assert_eq!(requests[0].json().as_array().unwrap().len(), 14, "{:?}", requests[0]);
    // 5 divides by zero.
    cluster.wait_status("s", "(delivered, dropped, retrying, pending) = (14, 5, 1, 1)");
    assert_eq!(
        cluster.rows(
            "SELECT a.attempt, a.error_class, a.error, d.event_count FROM pgwh.attempts a
             JOIN pgwh.deliveries d ON d.id = a.delivery_id"
        ),
        [["1", "transform", "public.partly(jsonb): division by zero", "1"].map(|text| Some(text.to_owned()))]
    );
    assert_eq!(receiver.count(), 1);
}

#[test]
fn a_render_error_is_retried_and_holds_back_its_row_only() {
    let (cluster, receiver) = stage();
    function(&cluster, "picky", "jsonb_build_object('q', 1 / (event#>>'{data,record,total}')::int)");
    cluster.subscribe(&receiver, "s", "transform => 'picky(jsonb)', retry_schedule => '{200ms,200ms}'");
    cluster.sql("INSERT INTO t VALUES (1, 'bad', 0), (2, 'good', 1)");
    assert_eq!(arrived(&cluster, &receiver, "s").len(), 1);
    cluster.wait_status("s", "(delivered, dead, pending) = (1, 1, 0)");
    let rows = cluster.rows(
        "SELECT state, attempts, error_class, error, status_code FROM pgwh.deliveries WHERE state = 'dead'",
    );
    let expected = ["dead", "3", "transform", "public.picky(jsonb): division by zero"];
    assert_eq!(rows[0][..4], expected.map(|text| Some(text.to_owned())));
    assert_eq!(rows[0][4], None);
    // Who mends the function sends it again.
    function(&cluster, "picky", "event->'data'->'record'");
    cluster.sql("SELECT pgwh.redeliver(id) FROM pgwh.dead_letters");
    let requests = receiver.wait_for(2, PATIENCE).unwrap();
    assert_eq!(requests[1].json()["name"], "bad");
}

#[test]
fn fifty_failing_events_open_no_breaker() {
    let (cluster, receiver) = stage();
    function(&cluster, "never", "(1 / 0)::text::jsonb");
    cluster.subscribe(&receiver, "s", "transform => 'never(jsonb)', retry_schedule => '{1h}'");
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 50) n");
    cluster.wait_status("s", "(retrying, mode) = (50, 'live')");
    // A function that is mended is tried at once when the subscription is told so.
    function(&cluster, "fine", "event->'data'->'record'");
    cluster.sql("UPDATE pgwh.subscriptions SET transform = 'fine'");
    assert_eq!(arrived(&cluster, &receiver, "s").len(), 50);
}

#[test]
fn a_function_that_sleeps_is_cancelled_and_stalls_nobody_else() {
    let (cluster, receiver) = stage();
    cluster.sql("ALTER SYSTEM SET pgwh.transform_timeout = '500ms'");
    cluster.reload();
    function(&cluster, "sleepy", "CASE WHEN pg_sleep(60) IS NULL THEN event END");
    // Catching the cancellation does not help it.
    cluster.sql(
        "CREATE FUNCTION public.stubborn(event jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN
           LOOP BEGIN PERFORM pg_sleep(60); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; END $$",
    );
    function(&cluster, "swift", "event->'data'->'record'");
    for (name, function) in
        [("sleepy1", "sleepy"), ("sleepy2", "sleepy"), ("stubborn", "stubborn"), ("swift", "swift")]
    {
        cluster.subscribe(
            &receiver,
            name,
            &format!("transform => '{function}(jsonb)', tables => '{{public.t}}'"),
        );
    }
    cluster.subscribe(&receiver, "lost", "route => 'sleepy(jsonb)', tables => '{public.t}'");
    cluster.subscribe(&receiver, "plain", "tables => '{public.t}'");
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 20) n");
    for name in ["plain", "swift"] {
        assert_eq!(arrived(&cluster, &receiver, name).len(), 20, "{name}");
    }
    // Who is known to be swift waits for nobody, while the others take all the time that there is.
    let took: Vec<_> = (21..=30)
        .map(|n| {
            let begin = Instant::now();
            cluster.sql(&format!("INSERT INTO t VALUES ({n})"));
            assert_eq!(arrived(&cluster, &receiver, "swift").len(), n);
            begin.elapsed()
        })
        .collect();
    assert!(took.iter().min() < Some(&Duration::from_millis(500)), "{took:?}");
    assert!(took.iter().sum::<Duration>() < Duration::from_secs(20), "{took:?}");
    for (name, class) in [("sleepy1", "transform"), ("lost", "route")] {
        let classes = format!(
            "SELECT DISTINCT a.error_class FROM pgwh.attempts a JOIN pgwh.deliveries d ON d.id = a.delivery_id
             WHERE subscription = '{name}'"
        );
        eventually("a time-out is an attempt", || (cluster.column(&classes) == [class]).then_some(()));
    }
    let message =
        "SELECT bool_or(error LIKE '%longer than pgwh.transform_timeout allows, 500 ms') FROM pgwh.attempts";
    cluster.wait_true(message);
    cluster.wait_status("stubborn", "last_error LIKE '%cannot be stopped%'");
    cluster.wait_true(
        "SELECT count(*) = 0 FROM pgwh.deliveries WHERE subscription = 'sleepy1' AND state = 'delivered'",
    );
}

#[test]
fn renderers_run_only_while_a_subscription_names_a_function() {
    let (cluster, receiver) = stage();
    function(&cluster, "shape", "event->'data'->'record'");
    cluster.subscribe(&receiver, "plain", "");
    cluster.sql("INSERT INTO t VALUES (1)");
    cluster.delivered(&receiver, "plain");
    assert_eq!(cluster.processes(RENDERER), []);
    cluster.subscribe(&receiver, "shaped", "transform => 'shape(jsonb)'");
    cluster.sql("INSERT INTO t VALUES (2)");
    assert_eq!(arrived(&cluster, &receiver, "shaped").len(), 1);
    assert_eq!(cluster.processes(RENDERER).len(), 1);
    cluster.sql("UPDATE pgwh.subscriptions SET transform = NULL");
    eventually("no renderer", || cluster.processes(RENDERER).is_empty().then_some(()));
    cluster.sql(
        "UPDATE pgwh.subscriptions SET transform = 'shape' WHERE name = 'shaped'; INSERT INTO t VALUES (3)",
    );
    assert_eq!(arrived(&cluster, &receiver, "shaped").len(), 2);
    // It stands in nobody's way, and ends politely.
    let other = cluster.create_database("other");
    other.sql("CREATE EXTENSION pgstream_hooks");
    other.sql("CREATE TABLE t (id int PRIMARY KEY)");
    function_in(&other);
    other.subscribe(&receiver, "there", "transform => 'shape(jsonb)'");
    other.sql("INSERT INTO t VALUES (1)");
    assert_eq!(other.value("SELECT pgwh.wait('there', '60 s')"), "t");
    cluster.sql("ALTER DATABASE other RENAME TO another");
    cluster.sql("DROP DATABASE another");
}

fn function_in(database: &harness::Database) {
    database.sql("CREATE FUNCTION shape(event jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT event'");
}

#[test]
fn kill_9_of_a_renderer_loses_nothing() {
    let (cluster, receiver) = stage();
    function(&cluster, "shape", "event->'data'->'record'");
    cluster.subscribe(&receiver, "s", "transform => 'shape(jsonb)'");
    for round in 0..4 {
        cluster
            .sql(&format!("INSERT INTO t SELECT n FROM generate_series({0}, {0} + 499) n", round * 500 + 1));
        let _ = receiver.wait_for(receiver.count() + 100, PATIENCE);
        cluster.kill9(RENDERER);
    }
    // One that is ended politely fails what it was at, and that is tried again.
    cluster.sql("UPDATE pgwh.subscriptions SET retry_schedule = '{100ms,100ms,100ms,100ms}'");
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(2001, 2500) n");
    let renderer = cluster.process(RENDERER);
    cluster.sql(&format!("SELECT pg_terminate_backend({})", renderer.0));
    let mut ids: Vec<u64> = arrived(&cluster, &receiver, "s")
        .iter()
        .map(|request| request.json()["id"].as_u64().unwrap())
        .collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids, (1..=2500).collect::<Vec<_>>());
    cluster.wait_status("s", "(dead, pending) = (0, 0)");
}

#[test]
fn a_function_runs_as_the_owner_and_cannot_write() {
    let (cluster, receiver) = stage();
    cluster.sql(
        "CREATE ROLE alice LOGIN; CREATE TABLE rich (n int); CREATE TABLE loot (n int); INSERT INTO rich VALUES (7);
         GRANT SELECT ON rich TO alice; GRANT ALL ON loot TO alice; GRANT CREATE, USAGE ON SCHEMA public TO alice;
         CREATE TABLE secret (n int)",
    );
    let attempts = [
        ("who", "to_jsonb(current_user)", Ok(json!("alice"))),
        ("reads", "to_jsonb((SELECT n FROM public.rich))", Ok(json!(7))),
        ("pries", "to_jsonb((SELECT n FROM public.secret))", Err("permission denied for table secret")),
        (
            "sets",
            "to_jsonb(set_config('role', 'postgres', false))",
            Err("within security-restricted operation"),
        ),
        (
            "switches",
            "to_jsonb(set_config('session_authorization', 'postgres', false))",
            Err("within security-restricted operation"),
        ),
        ("listens", "to_jsonb(current_setting('transaction_read_only'))", Ok(json!("on"))),
    ];
    for (name, expression, _) in &attempts {
        function(&cluster, name, expression);
    }
    cluster.sql(
        "CREATE FUNCTION public.steals(event jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN
           INSERT INTO public.loot VALUES (1); RETURN event; END $$;
         CREATE FUNCTION public.unlocks(event jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN
           PERFORM set_config('transaction_read_only', 'off', true); INSERT INTO public.loot VALUES (1); RETURN event; END $$;
         CREATE FUNCTION public.shouts(event jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN
           PERFORM pg_notify('loot', 'x'), pg_advisory_lock(1); RETURN 'true'; END $$",
    );
    let more = [
        ("steals", Err("cannot execute INSERT in a read-only transaction")),
        ("unlocks", Err("read-write mode")),
        ("shouts", Ok(json!(true))),
    ];
    let all = attempts.iter().map(|(name, _, outcome)| (*name, outcome.clone())).chain(more);
    let all: Vec<(&str, Result<Value, &str>)> = all.collect();
    for (name, _) in &all {
        cluster.subscribe(
            &receiver,
            name,
            &format!("transform => '{name}(jsonb)', tables => '{{public.t}}'"),
        );
    }
    cluster.sql("GRANT SELECT ON t TO alice");
    cluster.sql("UPDATE pgwh.subscriptions SET owner = 'alice'");
    let listener = cluster.listen("loot");
    cluster.sql("INSERT INTO t VALUES (1)");
    for (name, outcome) in &all {
        match outcome {
            Ok(body) => {
                assert_eq!(bodies(&arrived(&cluster, &receiver, name)), std::slice::from_ref(body), "{name}");
            }
            Err(error) => cluster.wait_status(name, &format!("last_error LIKE '%{error}%'")),
        }
    }
    assert_eq!(cluster.value("SELECT count(*) FROM loot"), "0");
    assert_eq!(cluster.value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"), "0");
    drop(listener);
    // What alice may not execute, nobody runs for her.
    function(&cluster, "private", "event");
    cluster.sql("REVOKE EXECUTE ON FUNCTION private FROM PUBLIC");
    cluster.sql(
        "UPDATE pgwh.subscriptions SET transform = 'private' WHERE name = 'who'; INSERT INTO t VALUES (2)",
    );
    cluster.wait_status("who", "last_error LIKE '%permission denied for function private%'");
    // A role that is not alice's equal cannot have her run its functions, even with rights on the table.
    cluster.sql("CREATE ROLE mallory LOGIN; GRANT USAGE ON SCHEMA pgwh, pgwh_internal TO mallory; GRANT ALL ON pgwh.subscriptions TO mallory;
                 GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgwh, pgwh_internal TO mallory; GRANT SELECT ON ALL TABLES IN SCHEMA pgwh, pgwh_internal TO mallory");
    let steal = "UPDATE pgwh.subscriptions SET transform = 'public.steals' WHERE name = 'reads'";
    cluster.as_role("mallory").sql(steal);
    assert_eq!(
        cluster.value("SELECT transform FROM pgwh.subscriptions WHERE name = 'reads'"),
        "public.reads(jsonb)"
    );
    cluster.sql("ALTER ROLE mallory BYPASSRLS");
    let refusal = cluster.as_role("mallory").refused(steal);
    assert_eq!(refusal.code, "42501", "{refusal:?}");
}

#[test]
fn a_route_says_method_path_and_headers_of_each_event() {
    let (cluster, receiver) = stage();
    function(
        &cluster,
        "way",
        "jsonb_build_object('method', CASE event#>>'{data,action}' WHEN 'insert' THEN 'PUT' WHEN 'delete' THEN 'delete' ELSE 'PATCH' END,
           'path', '/t/' || (event#>>'{data,record,id}') || '?via=db', 'headers', jsonb_build_object('X-Action', event#>'{data,action}'))",
    );
    cluster.subscribe(
        &receiver,
        "s",
        "route => 'way(jsonb)', headers => '{\"x-action\": \"none\", \"x-app\": \"shop\"}'",
    );
    cluster.each(&["INSERT INTO t VALUES (1)", "UPDATE t SET name = 'a'", "DELETE FROM t"]);
    let requests = arrived(&cluster, &receiver, "s");
    let seen: Vec<_> = requests
        .iter()
        .map(|request| {
            (
                request.method(),
                request.path(),
                request.header("x-action").unwrap(),
                request.header("x-app").unwrap(),
            )
        })
        .collect();
    let path = "/s/t/1?via=db";
    assert_eq!(
        seen,
        [
            ("PUT", path, "insert", "shop"),
            ("PATCH", path, "update", "shop"),
            ("DELETE", path, "delete", "shop")
        ]
    );
    // The body is the format's, and signed as ever.
    let secret = Secret::parse(&cluster.value("SELECT pgwh.secret('s')")).unwrap();
    assert!(requests.iter().all(|request| secret.verify(request) == Verdict::Valid));
    assert_eq!(requests[2].json()["data"]["action"], "delete");
    // NULL changes nothing.
    function(&cluster, "way", "NULL");
    cluster.sql("INSERT INTO t VALUES (2)");
    let requests = arrived(&cluster, &receiver, "s");
    assert_eq!((requests[3].method(), requests[3].path()), ("POST", "/s"));
}

#[test]
fn url_encode_makes_one_segment_of_any_text() {
    let cluster = Cluster::with_extension();
    for (text, segment) in [
        ("'A/B?x'", "A%2FB%3Fx"),
        ("'AZaz09-._~'", "AZaz09-._~"),
        ("'100% #1 +&=;'", "100%25%20%231%20%2B%26%3D%3B"),
        ("'é 🙂'", "%C3%A9%20%F0%9F%99%82"),
        ("E'a\\\\b\\n'", "a%5Cb%0A"),
        ("''", ""),
    ] {
        assert_eq!(cluster.value(&format!("SELECT pgwh.url_encode({text})")), segment, "{text}");
    }
    cluster.wait_true("SELECT pgwh.url_encode(NULL) IS NULL");
    // Any length, stored in any way.
    cluster.sql("CREATE TABLE long (value text); INSERT INTO long SELECT repeat('é/', 1000000)");
    cluster.wait_true("SELECT pgwh.url_encode(value) = repeat('%C3%A9%2F', 1000000) FROM long");
    let refusal = cluster.refused("SELECT pgwh.url_encode(repeat('/', 360000000))");
    assert_eq!((refusal.code.as_str(), refusal.message.as_str()), ("54000", "value is too long for a URL"));
    // As a route's owner calls it, in functions that are IMMUTABLE.
    cluster.sql("CREATE ROLE ann; GRANT USAGE ON SCHEMA pgwh, pgwh_internal TO ann; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgwh, pgwh_internal TO ann");
    cluster.sql("SET ROLE ann; SELECT pgwh.url_encode('x')");
    cluster.wait_true("SELECT provolatile = 'i' AND proisstrict FROM pg_proc WHERE proname = 'url_encode'");
}

#[test]
fn an_encoded_key_leads_to_its_own_resource_and_no_key_to_none() {
    let (cluster, receiver) = stage();
    cluster.sql("CREATE TABLE k (id text PRIMARY KEY)");
    function(
        &cluster,
        "way",
        "jsonb_build_object('method', 'DELETE', 'path', '/k/' || nullif(pgwh.url_encode(event#>>'{data,key,id}'), ''))",
    );
    cluster.subscribe(
        &receiver,
        "s",
        "route => 'way(jsonb)', tables => '{public.k}', retry_schedule => '{}'",
    );
    cluster.sql("INSERT INTO k VALUES ('A/B?x#y'), (''), ('..'), ('é')");
    cluster.wait_status("s", "(delivered, dead, pending) = (2, 2, 0)");
    let mut paths: Vec<_> = receiver.requests().iter().map(|request| request.path().to_owned()).collect();
    paths.sort();
    assert_eq!(paths, ["/s/k/%C3%A9", "/s/k/A%2FB%3Fx%23y"]);
    cluster.wait_true(
        "SELECT array_agg(error ~ 'The path is null' ORDER BY error ~ 'null') = '{f,t}' FROM pgwh.attempts",
    );
}

#[test]
fn an_invalid_route_is_a_failed_attempt_on_the_same_host() {
    let (cluster, receiver) = stage();
    for (number, (answer, error)) in [
        ("{\"path\": \"http://169.254.169.254/\"}", "begin with a slash"),
        ("{\"path\": \"/../admin\"}", "a dot for a part"),
        ("{\"method\": \"GET\"}", "not POST"),
        ("{\"headers\": {\"host\": \"evil\"}}", "set by pgstream_hooks itself"),
        ("{\"headers\": {\"webhook-signature\": \"v1,x\"}}", "set by pgstream_hooks itself"),
        ("{\"url\": \"/x\"}", "none of method, path, headers"),
        ("{\"method\": \"DELETE\", \"path\": null}", "The path is null"),
        ("[1]", "no JSON object"),
    ]
    .into_iter()
    .enumerate()
    {
        function(&cluster, &format!("way{number}"), &format!("'{answer}'::jsonb"));
        let name = format!("s{number}");
        cluster.subscribe(
            &receiver,
            &name,
            &format!("route => 'way{number}(jsonb)', tables => '{{public.t}}'"),
        );
        cluster.sql(&format!("INSERT INTO t VALUES ({number})"));
        cluster.wait_status(&name, &format!("last_error LIKE '%{error}%'"));
    }
    cluster.wait_true("SELECT array_agg(DISTINCT error_class) = '{route}' FROM pgwh.attempts");
    assert_eq!(receiver.count(), 0);
}

#[test]
fn gzip_bodies_are_smaller_and_their_signatures_verify() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "compress => 'gzip', batch_size => 10");
    cluster.sql("INSERT INTO t VALUES (1, repeat('long ', 1000))");
    let event = cluster.delivered(&receiver, "s").remove(0);
    assert_eq!(event["record"]["name"].as_str().unwrap().len(), 5000);
    assert_eq!(event.request.header("content-encoding"), Some("gzip"));
    assert!(event.request.sent_body().len() < 1000, "{}", event.request.sent_body().len());
    let secret = Secret::parse(&cluster.value("SELECT pgwh.secret('s')")).unwrap();
    assert_eq!(secret.verify(&event.request), Verdict::Valid);
    cluster.sql("UPDATE pgwh.subscriptions SET compress = NULL; INSERT INTO t VALUES (2)");
    let events = cluster.delivered(&receiver, "s");
    assert_eq!(events[1].request.header("content-encoding"), None);
}

#[test]
fn subscribe_refuses_invalid_transform_route_compression() {
    let (cluster, _) = stage();
    cluster.sql(
        "CREATE FUNCTION shape(event jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT event';
         CREATE FUNCTION texts(event jsonb) RETURNS text LANGUAGE sql AS 'SELECT event::text';
         CREATE FUNCTION many(event jsonb) RETURNS SETOF jsonb LANGUAGE sql AS 'SELECT event';
         CREATE FUNCTION two(event jsonb, more jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT event'",
    );
    let subscribe = |rest: &str| format!("SELECT pgwh.subscribe('http://127.0.0.1:9/', name => 's', {rest})");
    for rest in ["transform => 'texts(jsonb)'", "route => 'many(jsonb)'", "transform => 'two(jsonb, jsonb)'"]
    {
        let refusal = cluster.refused(&subscribe(rest));
        assert_eq!(refusal.code, "42809", "{refusal:?}");
        assert!(refusal.hint.contains("RETURNS jsonb"), "{refusal:?}");
    }
    assert_eq!(cluster.refused(&subscribe("transform => 'shapes(jsonb)'")).code, "42883");
    let refusal = cluster.refused(&subscribe("route => 'shape(jsonb)', batch_size => 10"));
    assert_eq!(
        (refusal.code.as_str(), refusal.hint.contains("batch_size => 1")),
        ("22023", true),
        "{refusal:?}"
    );
    assert_eq!(cluster.refused(&subscribe("compress => 'brotli'")).code, "22023");
    cluster.sql(&subscribe("transform => 'shape(jsonb)'::regprocedure"));
    // As plain SQL, any spelling will do, and a wrong one is told what it may have meant.
    let refusal = cluster.refused("UPDATE pgwh.subscriptions SET route = 'shapes'");
    assert_eq!(refusal.code, "42883", "{refusal:?}");
    assert!(refusal.hint.contains("shape(jsonb)"), "{refusal:?}");
    cluster.sql("UPDATE pgwh.subscriptions SET route = 'shape', compress = 'GZIP'");
    assert_eq!(
        cluster.rows("SELECT transform, route, compress FROM pgwh.subscriptions"),
        [["public.shape(jsonb)", "public.shape(jsonb)", "gzip"].map(|text| Some(text.to_owned()))]
    );
    // A function that is dropped doesn't stand in the way of changing something else.
    cluster.sql("DROP FUNCTION shape; UPDATE pgwh.subscriptions SET timeout = '3 s'");
}

#[test]
fn events_reach_functions_in_databases_of_other_encodings() {
    let cluster = Cluster::start();
    let receiver = Receiver::start().unwrap();
    cluster.sql("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0");
    let latin = cluster.database("latin");
    latin.sql("CREATE EXTENSION pgstream_hooks");
    latin.sql("CREATE TABLE t (id int PRIMARY KEY, name text)");
    latin.sql(
        "CREATE FUNCTION shape(event jsonb) RETURNS jsonb LANGUAGE sql
           AS $$ SELECT jsonb_build_object('name', (event#>>'{data,record,name}') || U&'\\00fc') $$",
    );
    latin.subscribe(&receiver, "s", "transform => 'shape(jsonb)'");
    latin.sql("INSERT INTO t VALUES (1, 'é')");
    assert_eq!(latin.value("SELECT pgwh.wait('s', '60 s')"), "t");
    assert_eq!(receiver.requests()[0].json(), json!({"name": "éü"}));
}
