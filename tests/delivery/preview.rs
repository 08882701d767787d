//! Looking before sending: what a request would be, and whether an endpoint answers.

use harness::{Answer, Cluster, Receiver, Reply, Script};
use receiver::{Secret, Verdict};
use serde_json::{Value, json};

fn stage() -> (Cluster, Receiver) {
    let cluster = Cluster::with_extension();
    cluster.sql("CREATE TABLE orders (id int PRIMARY KEY, status text, total numeric)");
    (cluster, Receiver::start().unwrap())
}

/// The one row of a preview: method, url, headers, body.
#[track_caller]
fn preview(cluster: &Cluster, arguments: &str) -> (String, String, Value, String) {
    let rows = cluster.rows(&format!("SELECT method, url, headers, body FROM pgwh.preview({arguments})"));
    let row: Vec<String> = rows[0].iter().map(|text| text.clone().unwrap()).collect();
    (row[0].clone(), row[1].clone(), serde_json::from_str(&row[2]).unwrap(), row[3].clone())
}

/// A request or a body without what differs from event to event.
fn timeless(mut body: Value) -> Value {
    body["timestamp"] = Value::Null;
    body["data"]["id"] = Value::Null;
    body["data"]["commit"] = Value::Null;
    body
}

#[test]
fn a_preview_is_the_request_that_then_comes() {
    let (cluster, receiver) = stage();
    cluster.sql("ALTER TABLE orders REPLICA IDENTITY FULL");
    cluster.subscribe(&receiver, "s", "headers => '{\"x-tenant\": \"k\"}', exclude_columns => '{total}'");
    let row = r#"'{"id": 1, "status": "paid", "total": 12345678901234567890.10}'"#;
    let previews = [
        preview(&cluster, &format!("'s', {row}, changes => NULL")),
        preview(&cluster, &format!("'s', {row}, action => 'update', changes => '{{\"status\": \"open\"}}'")),
        preview(&cluster, &format!("'s', {row}, action => 'delete', table_name => 'public.orders'")),
        preview(&cluster, "'s', NULL, action => 'truncate'"),
    ];
    assert_eq!(receiver.count(), 0, "a preview sends nothing");
    cluster.each(&[
        "INSERT INTO orders VALUES (1, 'paid', 12345678901234567890.10)",
        "UPDATE pgwh.subscriptions SET event_types = '{update,delete,truncate}'",
        "UPDATE orders SET status = 'open'",
        "UPDATE orders SET status = 'paid'",
        "DELETE FROM orders",
        "TRUNCATE orders",
    ]);
    let mut events = cluster.delivered(&receiver, "s");
    // The row was opened first, of which there was no preview.
    events.remove(1);
    for (event, (method, url, headers, body)) in events.iter().zip(previews) {
        assert_eq!((event.request.method(), &receiver.url(event.request.path())), (method.as_str(), &url));
        assert_eq!(timeless(harness::json(&body).unwrap()), timeless(event.whole.clone()));
        let mut names: Vec<&str> = headers.as_object().unwrap().keys().map(String::as_str).collect();
        names.sort_unstable();
        let mut sent: Vec<String> =
            event.request.headers().map(|(name, _)| name.to_ascii_lowercase()).collect();
        sent.retain(|name| !["host", "content-length", "accept", "connection"].contains(&name.as_str()));
        sent.sort();
        assert_eq!(names, sent);
        assert_eq!(headers["x-tenant"], "k");
        assert!(headers["webhook-id"].as_str().unwrap().starts_with("evt_"), "{headers}");
        // It is signed as it would be.
        let secret = Secret::parse(&cluster.value("SELECT pgwh.secret('s')")).unwrap();
        let text = |name: &str| headers[name].as_str().unwrap().to_owned();
        let signature = secret.sign(&text("webhook-id"), &text("webhook-timestamp"), body.as_bytes());
        assert_eq!(signature, text("webhook-signature"));
    }
}

#[test]
fn a_preview_shows_transform_route_batch_and_gzip() {
    let (cluster, receiver) = stage();
    cluster.sql(
        "CREATE FUNCTION shape(event jsonb) RETURNS jsonb LANGUAGE sql
           AS $$ SELECT CASE WHEN event#>>'{data,record,status}' <> 'draft' THEN event#>'{data,record}' END $$;
         CREATE FUNCTION way(event jsonb) RETURNS jsonb LANGUAGE sql
           AS $$ SELECT jsonb_build_object('method', 'PUT', 'path', '/' || (event#>>'{data,record,id}')) $$;
         CREATE FUNCTION fails(event jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT to_jsonb(1 / 0)';
         CREATE FUNCTION sleeps(event jsonb) RETURNS jsonb LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(60); RETURN event; END'",
    );
    cluster.subscribe(
        &receiver,
        "s",
        "transform => 'shape(jsonb)', route => 'way(jsonb)', compress => 'gzip'",
    );
    let (method, url, headers, body) =
        preview(&cluster, r#"'s', '{"id": 7, "status": "paid", "total": 1.50}'"#);
    assert_eq!((method.as_str(), url), ("PUT", receiver.url("/s/7")));
    assert_eq!(
        harness::json(&body).unwrap(),
        json!({"id": 7, "status": "paid", "total": serde_json::from_str::<Value>("1.50").unwrap()})
    );
    assert_eq!(headers["content-encoding"], "gzip");
    let notices = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let heard = notices.clone();
    let mut client =
        cluster.connect_noticing(move |notice| heard.lock().unwrap().push(notice.message().to_owned()));
    let rows =
        client.query("SELECT 1 FROM pgwh.preview('s', '{\"id\": 7, \"status\": \"draft\"}')", &[]).unwrap();
    assert_eq!((rows.len(), notices.lock().unwrap().len()), (0, 1));
    cluster.sql("UPDATE pgwh.subscriptions SET route = NULL, transform = NULL, batch_size = 5");
    let (.., body) = preview(&cluster, r#"'s', '{"id": 7}'"#);
    assert!(body.starts_with('['), "{body}");
    // A function that fails says so, and how it runs; what the session holds stays.
    cluster.sql("UPDATE pgwh.subscriptions SET transform = 'fails'");
    let refusal = cluster.refused(r#"SELECT * FROM pgwh.preview('s', '{"id": 7}')"#);
    assert!(
        refusal.detail.contains("division by zero") && refusal.hint.contains("search_path"),
        "{refusal:?}"
    );
    cluster.sql("UPDATE pgwh.subscriptions SET transform = 'sleeps'");
    let refusal = cluster.refused(r#"SELECT * FROM pgwh.preview('s', '{"id": 7}')"#);
    assert!(refusal.detail.contains("pgwh.transform_timeout"), "{refusal:?}");
    cluster.sql("UPDATE pgwh.subscriptions SET transform = 'shape'");
    let mut client = cluster.connect();
    let row = client
        .query_one(
            "SELECT pg_advisory_lock(7)::text, (SELECT count(*) FROM pgwh.preview('s', '{\"id\": 7, \"status\": \"a\"}')),
               current_setting('transaction_read_only'), current_setting('search_path'), current_user::text,
               (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted)",
            &[],
        )
        .unwrap();
    let texts = [2, 3, 4].map(|at| row.get::<_, String>(at));
    assert_eq!(texts, ["off", "\"$user\", public", "postgres"]);
    assert_eq!((row.get::<_, i64>(1), row.get::<_, i64>(5)), (1, 1));
    assert_eq!(receiver.count(), 0);
}

#[test]
fn a_preview_of_what_cannot_be_says_why() {
    let (cluster, receiver) = stage();
    cluster.sql("CREATE TABLE customers (id int PRIMARY KEY, email text)");
    cluster.subscribe(&receiver, "s", "");
    // The first table that has such rows is meant.
    let (.., body) = preview(&cluster, r#"'s', '{"id": 1, "email": "a"}'"#);
    assert_eq!(harness::json(&body).unwrap()["type"], "public.customers.insert");
    for (arguments, code, said) in [
        (r#"'s', '{"id": 1, "color": "red"}'"#, "22023", "table_name => "),
        (r#"'s', '{"id": 1, "emial": "a"}', table_name => 'customers'"#, "42703", "email"),
        (r#"'s', '[1]'"#, "22023", "record => "),
        (r#"'s', '{}', action => 'upsert'"#, "22023", "action => "),
        (r#"'t', '{}'"#, "42704", "SELECT name"),
        (r#"'s', '{}', table_name => 'nowhere'"#, "42P01", ""),
    ] {
        let refusal = cluster.refused(&format!("SELECT * FROM pgwh.preview({arguments})"));
        assert_eq!(refusal.code, code, "{arguments}: {refusal:?}");
        assert!(refusal.hint.contains(said), "{arguments}: {refusal:?}");
    }
}

#[test]
fn only_who_can_act_as_the_owner_has_its_functions_run() {
    let (cluster, receiver) = stage();
    cluster.sql(
        "CREATE FUNCTION shape(event jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT to_jsonb(current_user)';
         CREATE ROLE alice; CREATE ROLE mallory; CREATE ROLE carol; GRANT alice TO carol",
    );
    cluster.subscribe(&receiver, "s", "transform => 'shape(jsonb)'");
    cluster.sql(
        "GRANT SELECT ON ALL TABLES IN SCHEMA public TO alice;
         UPDATE pgwh.subscriptions SET owner = 'alice'; GRANT USAGE ON SCHEMA pgwh, pgwh_internal TO mallory, carol;
         GRANT SELECT ON ALL TABLES IN SCHEMA pgwh, pgwh_internal TO mallory, carol;
         GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgwh, pgwh_internal TO mallory, carol",
    );
    let sql = "SELECT body FROM pgwh.preview('s', '{\"id\": 1}')";
    let as_role = |role: &str| format!("SET ROLE {role}; {sql}");
    assert_eq!(cluster.refused(&as_role("mallory")).code, "42501");
    let body = cluster.connect().simple_query(&as_role("carol")).unwrap();
    let body = body.iter().find_map(|message| match message {
        postgres::SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    assert_eq!(body, Some("\"alice\""));
}

#[test]
fn a_test_sends_a_signed_ping_and_tells_what_came_of_it() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "headers => '{\"x-key\": \"k\"}', compress => 'gzip'");
    receiver.behave(Script::always(Reply::status(202).after(std::time::Duration::from_millis(100))));
    let rows = cluster.rows(
        "SELECT status, latency >= '100 ms', latency_ms BETWEEN 100 AND 10000, error_class, error FROM pgwh.test('s')",
    );
    assert_eq!(rows, [[Some("202"), Some("t"), Some("t"), None, None].map(|text| text.map(str::to_owned))]);
    let request = receiver.requests().remove(0);
    let secret = Secret::parse(&cluster.value("SELECT pgwh.secret('s')")).unwrap();
    assert_eq!(secret.verify(&request), Verdict::Valid);
    assert_eq!((request.header("x-key"), request.path()), (Some("k"), "/s"));
    let body = request.json();
    assert_eq!((&body["type"], &body["data"]["action"]), (&json!("pgwh.ping"), &json!("ping")));
    assert_eq!(body["data"]["subscription"], "s");
    // It is no delivery, and no failure counts.
    receiver.behave(Script::always(Reply::status(500).body("broken")));
    let failed = "SELECT status || ' ' || error_class || ' ' || error FROM pgwh.test('s')";
    for _ in 0..30 {
        assert_eq!(cluster.value(failed), "500 http_5xx 500 Internal Server Error");
    }
    cluster.wait_status(
        "s",
        "(delivered, pending, dead, mode, last_error) IS NOT DISTINCT FROM (0, 0, 0, 'live', NULL)",
    );
    assert_eq!(cluster.value("SELECT count(*) FROM pgwh.deliveries"), "0");
    assert_eq!(cluster.value("SELECT count(*) FROM pgwh.attempts"), "0");
    let log = cluster.log();
    assert!(!log.contains("leak"), "{log}");
}

#[test]
fn a_ping_says_whether_it_is_paused_disabled_or_down() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "timeout => '5 s'");
    let class = "SELECT coalesce(status::text, error_class) FROM pgwh.test('s')";
    cluster.sql("SELECT pgwh.pause('s')");
    assert_eq!(cluster.value(class), "200");
    cluster.sql("UPDATE pgwh.subscriptions SET enabled = false");
    assert_eq!(cluster.value(class), "200");
    receiver.behave(Script::always(Answer::Hang));
    assert_eq!(cluster.value(class), "timeout");
    cluster.sql("UPDATE pgwh.subscriptions SET url = 'http://127.0.0.1:1/'");
    assert_eq!(cluster.value(class), "connect");
    cluster.sql("ALTER SYSTEM SET pgwh.allowed_networks = ''");
    cluster.reload();
    harness::eventually("blocked", || (cluster.value(class) == "blocked").then_some(()));
    let refusal = cluster.refused(
        "BEGIN; INSERT INTO pgwh.subscriptions (name, url, home) VALUES ('new', 'https://example.com/', pgwh_internal.home());
         SELECT * FROM pgwh.test('new')",
    );
    assert_eq!(refusal.message, "the test cannot be made", "{refusal:?}");
    assert!(refusal.hint.starts_with("Commit"), "{refusal:?}");
    // Nor is anything sent when there is nobody to send.
    cluster.sql("ALTER SYSTEM SET pgwh.enabled = off");
    cluster.reload();
    harness::eventually("nobody", || cluster.processes(harness::DISPATCHER).is_empty().then_some(()));
    assert_eq!(cluster.refused("SELECT * FROM pgwh.test('s')").message, "the test cannot be made");
}
