//! Beside extensions that log statements with their parameters (pgaudit, auto_explain): no key, no hidden header and no row of
//! the journal is in the server's log, and what workers note is nobody's statement.

use std::path::Path;
use std::process::Command;

use harness::{Cluster, DISPATCHER, PATIENCE, Receiver, Reply, Script, Server, Setup, Stop, Which};

const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

/// A cluster that logs all statements with all parameters, or none where Debian has no pgaudit for the server.
fn audited(settings: &[&str]) -> Option<Cluster> {
    let major = Server::get().major();
    let library = format!("/usr/lib/postgresql/{major}/lib/pgaudit.so");
    if !Path::new(&library).exists() {
        let packages = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/packages");
        let status = Command::new(packages).arg(format!("postgresql-{major}-pgaudit")).status().unwrap();
        if !status.success() && major != 15 {
            return None;
        }
        assert!(Path::new(&library).exists(), "there is no {library}");
    }
    let mut setup = Setup::new()
        .set(&format!("shared_preload_libraries = '{library}, auto_explain, pgstream_hooks'"))
        .set("pgaudit.log = 'all'")
        .set("pgaudit.log_parameter = on")
        .set("pgaudit.log_relation = on")
        .set("auto_explain.log_min_duration = 0")
        .set("auto_explain.log_nested_statements = on");
    for line in settings {
        setup = setup.set(line);
    }
    let cluster = setup.start();
    cluster.sql("CREATE EXTENSION pgstream_hooks");
    cluster.wait_true("SELECT ok FROM pgwh.health() WHERE check_name = 'slot present and valid'");
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY, note text)");
    Some(cluster)
}

/// Log entries of these kinds, each with the lines that belong to it.
fn entries(cluster: &Cluster, is_wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let mut entries: Vec<String> = Vec::new();
    for line in cluster.log().lines() {
        match entries.last_mut() {
            Some(entry) if line.starts_with('\t') => entry.push_str(line),
            _ => entries.push(line.to_owned()),
        }
    }
    entries.retain(|entry| is_wanted(entry));
    entries
}

/// What was logged for others than clients.
fn of_workers(cluster: &Cluster) -> Vec<String> {
    entries(cluster, |entry| {
        ["AUDIT:", "plan:", "Query Text:"].iter().any(|word| entry.contains(word))
            && !entry.contains("] client backend ")
    })
}

#[test]
fn keys_headers_and_rows_are_in_no_log_of_statements() {
    for settings in [&[][..], &["pgwh.encryption_key_file = 'pgwh.key'"]] {
        let Some(cluster) = audited(&[]) else { return };
        if !settings.is_empty() {
            cluster.write_private("pgwh.key", &format!("{KEY}\n"));
            cluster.set(settings[0]);
            cluster.reload();
            cluster.wait_true("SELECT current_setting('pgwh.encryption_key_file') <> ''");
        }
        let receiver = Receiver::start().unwrap();
        receiver.behave_at(
            "/failing",
            Script::new(Which::FirstOfEach(1), Reply::status(500).body("the endpoint's own secret")),
        );
        cluster.subscribe(&receiver, "s", "tables => '{public.t}'");
        cluster.subscribe(&receiver, "failing", "tables => '{public.t}', retry_schedule => '{10 ms}'");
        let mut secrets = vec![cluster.value("SELECT pgwh.secret('s')")];
        // A value that no statement has typed.
        cluster.sql("UPDATE pgwh.subscriptions SET headers = json_build_object('authorization', md5('header')) WHERE name = 's'");
        secrets.push(cluster.value("SELECT pgwh.rotate_secret('s')"));
        secrets.push(cluster.value("SELECT pgwh.rotate_secret('s', '0')"));
        secrets.push(cluster.value("SELECT pgwh.secret('failing')"));
        // Subscribed again, it keeps its key and gives another header.
        cluster.sql(&format!(
            "SELECT pgwh.subscribe('{}', name => 's', tables => '{{public.t}}',
                 headers => json_build_object('authorization', md5('subscribed'))::jsonb)",
            receiver.url("/s")
        ));
        cluster.sql("SELECT pgwh.seal_secrets()");
        cluster.sql("INSERT INTO t SELECT n, md5('row' || n) FROM generate_series(1, 20) n");
        let events = cluster.delivered(&receiver, "s");
        assert_eq!(events.len(), 20);
        assert_eq!(cluster.delivered(&receiver, "failing").len(), 20);
        let verifier = receiver::Secret::parse(&cluster.value("SELECT pgwh.secret('s')")).unwrap();
        let header = events[0].request.header("authorization").unwrap();
        assert_eq!(header, cluster.value("SELECT md5('subscribed')"));
        assert_eq!(verifier.verify(&events[0].request), receiver::Verdict::Valid);
        cluster.sql("SELECT pgwh.forget('public.t', '{\"id\": 7}')");
        cluster
            .sql("SELECT count(*) FROM pgwh.attempts; SELECT count(*) FROM pgwh.events; TABLE pgwh.status");
        cluster.restart(Stop::Fast);
        cluster.sql("INSERT INTO t VALUES (21, NULL)");
        cluster.delivered(&receiver, "s");

        let log = cluster.log();
        for secret in &secrets {
            assert!(secret.starts_with("whsec_") && !log.contains(secret.as_str()), "{secret}");
        }
        for value in ["header", "subscribed", "row1", "row7", "row20"] {
            let value = cluster.value(&format!("SELECT md5('{value}')"));
            assert!(!log.contains(&value), "{value}");
        }
        assert!(!log.contains("the endpoint's own secret"));
        assert!(!entries(&cluster, |entry| entry.contains("AUDIT:")).is_empty());
        let written = entries(&cluster, |entry| {
            entry.contains("AUDIT:") && (entry.contains("\\x") || entry.contains("sealed:"))
        });
        assert!(written.is_empty(), "packed or sealed: {written:?}");
        let workers = of_workers(&cluster);
        assert!(workers.is_empty(), "{workers:#?}");
    }
}

#[test]
fn a_preview_of_rows_logs_no_row() {
    let Some(cluster) = audited(&[]) else { return };
    let receiver = Receiver::start().unwrap();
    cluster.each(&[
        "CREATE FUNCTION body(event jsonb) RETURNS jsonb LANGUAGE plpgsql STRICT AS $$ BEGIN RETURN event->'data'->'record'; END $$",
        "CREATE FUNCTION part(event jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT event->'data'->'record' $$",
        "CREATE FUNCTION nothing(event jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT NULL::jsonb $$",
        "CREATE FUNCTION target(event jsonb) RETURNS jsonb LANGUAGE plpgsql SECURITY DEFINER SET search_path = public
             AS $$ BEGIN RETURN jsonb_build_object('path', '/' || (event->'data'->'record'->>'id')); END $$",
        "INSERT INTO t SELECT n, md5('row' || n) FROM generate_series(1, 3) n",
    ]);
    cluster.subscribe(&receiver, "s", "tables => '{public.t}', transform => 'body', route => 'target'");
    cluster.subscribe(&receiver, "sql", "tables => '{public.t}', transform => 'part'");
    cluster.subscribe(&receiver, "none", "tables => '{public.t}', transform => 'nothing'");
    let previews = |name: &str| {
        cluster.rows(&format!(
            "SELECT (p).body::jsonb = to_jsonb(t), (p).url FROM (SELECT t, pgwh.preview('{name}', to_jsonb(t)) p FROM t OFFSET 0) t ORDER BY 2"
        ))
    };
    let shown = previews("s");
    assert_eq!(shown.len(), 3);
    assert!(shown.iter().all(|row| row[0].as_deref() == Some("t")), "{shown:?}");
    assert!(shown[2][1].as_deref().unwrap().ends_with("/3"), "{shown:?}");
    // What the function itself runs is audited as ever, and its call, too.
    assert!(cluster.log().contains("FUNCTION,EXECUTE,FUNCTION,public.body"));
    let log = cluster.log();
    for n in 1..=3 {
        let value = cluster.value(&format!("SELECT md5('row{n}')"));
        assert!(!log.contains(&value), "row {n}");
    }
    // A function in SQL is itself a statement, and audited as any other.
    assert!(previews("sql").iter().all(|row| row[0].as_deref() == Some("t")));
    assert!(previews("none").is_empty());
    cluster.sql("CREATE ROLE app LOGIN; SELECT pgwh.grant_usage('app'); GRANT SELECT ON t TO app");
    let app = cluster.as_role("app");
    app.subscribe(&receiver, "apps", "tables => '{public.t}', transform => 'part'");
    cluster.sql("REVOKE EXECUTE ON FUNCTION part FROM PUBLIC");
    let refusal = app.refused("SELECT pgwh.preview('apps', '{\"id\": 1}')");
    assert!(refusal.detail.contains("permission denied for function part"), "{refusal:?}");
    cluster.sql("DROP FUNCTION part");
    let refusal = app.refused("SELECT pgwh.preview('apps', '{\"id\": 1}')");
    assert!(refusal.detail.contains("does not exist"), "{refusal:?}");
}

#[test]
fn a_row_makes_one_line_of_audit_its_own() {
    let Some(cluster) = audited(&[]) else { return };
    let receiver = Receiver::start().unwrap();
    cluster.sql(
        "CREATE FUNCTION body(event jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
             BEGIN PERFORM count(*) FROM pg_class WHERE relname = event->'data'->'record'->>'note'; RETURN event; END $$",
    );
    cluster.subscribe(&receiver, "s", "tables => '{public.t}', transform => 'body(jsonb)'");
    cluster.sql("INSERT INTO t SELECT n, md5('old' || n) FROM generate_series(1, 100) n");
    assert_eq!(cluster.delivered(&receiver, "s").len(), 100);
    cluster.sql("SELECT pgwh.backfill('s')");
    cluster.wait_true("SELECT state = 'done' FROM pgwh.backfills");
    cluster.delivered(&receiver, "s");
    cluster.sql("INSERT INTO t VALUES (1000, 'new')");
    receiver.wait_for(201, PATIENCE).unwrap();
    cluster.kill9(DISPATCHER);
    cluster.delivered(&receiver, "s");
    assert_eq!(entries(&cluster, |entry| entry.contains("AUDIT:") && entry.contains("'new'")).len(), 1);
    let workers = of_workers(&cluster);
    assert!(workers.is_empty(), "{workers:#?}");
    let log = cluster.log();
    assert!(!log.contains(&cluster.value("SELECT md5('old' || 7)")));
}

#[test]
fn a_transform_is_called_without_a_statement() {
    let cluster = harness::Setup::new()
        .set("shared_preload_libraries = 'pg_stat_statements, pgstream_hooks'")
        .set("pg_stat_statements.track = 'all'")
        .start();
    cluster.sql("CREATE EXTENSION pgstream_hooks; CREATE EXTENSION pg_stat_statements");
    cluster.wait_true("SELECT ok FROM pgwh.health() WHERE check_name = 'slot present and valid'");
    let receiver = Receiver::start().unwrap();
    cluster.each(&[
        "CREATE TABLE t (id int PRIMARY KEY, note text)",
        "CREATE FUNCTION body(event jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN RETURN event->'data'->'record'; END $$",
        "CREATE FUNCTION target(event jsonb) RETURNS jsonb LANGUAGE plpgsql SECURITY DEFINER SET search_path = public
             AS $$ BEGIN RETURN jsonb_build_object('path', '/' || (event->'data'->'record'->>'id')); END $$",
        "CREATE FUNCTION part(event jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT event->'data'->'record' $$",
    ]);
    cluster.subscribe(&receiver, "s", "tables => '{public.t}', transform => 'body', route => 'target'");
    cluster.subscribe(&receiver, "sql", "tables => '{public.t}', transform => 'part'");
    cluster.sql("INSERT INTO t SELECT n, 'x' FROM generate_series(1, 10) n");
    for name in ["s", "sql"] {
        assert_eq!(cluster.value(&format!("SELECT pgwh.wait('{name}', '60 s')")), "t");
    }
    let requests = receiver.requests();
    for path in (1..=10).map(|id| format!("/s/{id}")) {
        assert_eq!(requests.iter().filter(|request| request.path() == path).count(), 1, "{path}");
    }
    let records = requests.iter().filter(|request| request.path() == "/sql").map(|request| request.json());
    assert_eq!(records.filter(|record| record["note"] == "x").count(), 10);
    // What the workers themselves run is there.
    let statements = cluster.column("SELECT query FROM pg_stat_statements");
    assert!(statements.iter().any(|it| it.contains("pgwh_internal.event_chunks")), "{statements:#?}");
    let calls: Vec<_> = statements.iter().filter(|it| it.contains("$1::pg_catalog.jsonb")).collect();
    assert!(calls.is_empty(), "{calls:?}");
}
