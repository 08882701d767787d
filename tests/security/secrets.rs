//! Signing keys, header values and the key file: encrypted, rotated, never shown.

use harness::{Receiver, events_of};

use crate::roles::stage;

const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const OTHER_KEY: &str = "Hx4dHBsaGRgXFhUUExIREA8ODQwLCgkIBwYFBAMCAQA=";

#[test]
fn secrets_are_in_no_view_no_event_and_no_log() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "all", "");
    cluster.sql("INSERT INTO t VALUES (0)");
    assert_eq!(cluster.delivered(&receiver, "all").len(), 1);
    let down = "SELECT pgwh.subscribe('http://127.0.0.1:1/down', name => 's', tables => '{t}', retry_schedule => '{}',
        headers => '{\"Authorization\": \"Bearer s3cret\", \"x-tenant\": \"7\"}')";
    cluster.sql(down);
    cluster.sql("INSERT INTO t VALUES (1, 'pr1vate')");
    cluster.wait_true("SELECT dead = 1 FROM pgwh.status WHERE name = 's'");
    let secret = cluster.value("SELECT pgwh.rotate_secret('s')");
    let shown: String = cluster
        .rows(
            "SELECT to_jsonb(x)::text FROM pgwh.subscriptions x UNION ALL SELECT to_jsonb(x)::text FROM pgwh.status x
             UNION ALL SELECT to_jsonb(x)::text FROM pgwh.attempts x UNION ALL SELECT to_jsonb(x)::text FROM pgwh.deliveries x
             UNION ALL SELECT to_jsonb(x)::text FROM pgwh.dead_letters x UNION ALL SELECT to_jsonb(x)::text FROM pgwh.events x
             UNION ALL SELECT to_jsonb(x)::text FROM pgwh.health() x UNION ALL SELECT spec FROM pgwh_internal.routing_image
             UNION ALL SELECT to_jsonb(x)::text FROM pg_stat_activity x WHERE backend_type <> 'client backend'",
        )
        .into_iter()
        .flatten()
        .flatten()
        .collect();
    assert!(shown.contains("\"x-tenant\": \"7\"") && shown.contains("hidden:"));
    for hidden in ["s3cret", &secret, "whsec_"] {
        assert!(!shown.contains(hidden), "{hidden} in {shown}");
        assert!(!cluster.log().contains(hidden), "{hidden} in the log");
    }
    assert!(!cluster.log().contains("pr1vate"), "the log has no rows");
    // The extension's own tables are nobody's business, not even that of who wants everything.
    cluster.sql("INSERT INTO t VALUES (2)");
    let events = cluster.delivered(&receiver, "all");
    assert_eq!(events.len(), 3);
    assert!(events.iter().all(|event| event.text("schema") == "public"));
}

#[test]
fn a_sensitive_header_is_sent_and_kept_and_never_shown() {
    let (cluster, receiver) = stage();
    cluster.subscribe(
        &receiver,
        "s",
        "headers => '{\"Authorization\": \"Bearer one\", \"x-tenant\": \"7\"}'",
    );
    let mut id = 0;
    let mut sent = |header: &str| {
        id += 1;
        cluster.sql(&format!("INSERT INTO t VALUES ({id})"));
        let request = cluster.delivered(&receiver, "s").pop().unwrap().request;
        request.header(header).map(str::to_owned)
    };
    assert_eq!(sent("authorization").as_deref(), Some("Bearer one"));
    assert_eq!(sent("x-tenant").as_deref(), Some("7"));
    // What was read can be written back.
    cluster
        .sql("UPDATE pgwh.subscriptions SET headers = headers || '{\"x-tenant\": \"8\"}', timeout = '5 s'");
    assert_eq!(sent("authorization").as_deref(), Some("Bearer one"));
    assert_eq!(sent("x-tenant").as_deref(), Some("8"));
    cluster.sql("UPDATE pgwh.subscriptions SET headers = headers || '{\"Authorization\": \"Bearer two\"}'");
    assert_eq!(sent("authorization").as_deref(), Some("Bearer two"));
    cluster.subscribe(&receiver, "s", "headers => '{\"cookie\": \"three\"}'");
    assert_eq!(sent("authorization"), None);
    assert_eq!(sent("cookie").as_deref(), Some("three"));
    assert!(
        !cluster.value("SELECT headers FROM pgwh.secrets").contains("Bearer"),
        "what is gone is forgotten"
    );
    // A sign that somebody made up stands for nothing.
    cluster.sql("UPDATE pgwh.subscriptions SET headers = '{\"cookie\": \"hidden:AAAAAAAAAAAA\"}'");
    assert_eq!(cluster.status("s", "state"), "error");
    assert!(cluster.status("s", "reason").contains("cookie"));
}

#[test]
fn secrets_are_encrypted_at_rest_and_the_key_can_be_changed() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "headers => '{\"x-api-key\": \"s3cret\"}'");
    let secret = cluster.value("SELECT pgwh.secret('s')");
    let stored = "SELECT secret || coalesce(previous_secret, '') || headers FROM pgwh.secrets";
    assert!(cluster.value(stored).contains(&secret), "without a key file they are in the clear");
    let file = cluster.write_private("pgwh.key", &format!("{KEY}\n"));
    cluster.sql("ALTER SYSTEM SET pgwh.encryption_key_file = 'pgwh.key'");
    cluster.reload();
    cluster.wait_true("SELECT current_setting('pgwh.encryption_key_file') = 'pgwh.key'");
    assert_eq!(cluster.value("SELECT pgwh.seal_secrets()"), "1");
    let sealed = cluster.value(stored);
    assert!(!sealed.contains("whsec_") && !sealed.contains("s3cret") && sealed.starts_with("sealed:1:"));
    assert_eq!(cluster.value("SELECT pgwh.secret('s')"), secret);
    let works = |id: i32| {
        cluster.sql(&format!("INSERT INTO t VALUES ({id})"));
        let request = cluster.delivered(&receiver, "s").pop().unwrap().request;
        let verifier = receiver::Secret::parse(&cluster.value("SELECT pgwh.secret('s')")).unwrap();
        assert_eq!(verifier.verify(&request), receiver::Verdict::Valid);
        assert_eq!(request.header("x-api-key"), Some("s3cret"));
    };
    works(1);
    // A new key above the old one; all is sealed by it; then the old one goes.
    cluster.write_private("pgwh.key", &format!("{OTHER_KEY}\n{KEY}\n"));
    works(2);
    cluster.sql("SELECT pgwh.seal_secrets()");
    cluster.write_private("pgwh.key", &format!("{OTHER_KEY}\n"));
    cluster.reload();
    works(3);
    cluster.sql("SELECT pgwh.rotate_secret('s')");
    works(4);
    // Without its key nothing is sent, and status says why.
    cluster.write_private("pgwh.key", &format!("{KEY}\n"));
    cluster.reload();
    assert_eq!(cluster.status("s", "state"), "error");
    assert!(
        cluster.status("s", "reason").contains("cannot be decrypted"),
        "{}",
        cluster.status("s", "reason")
    );
    assert!(cluster.status("s", "next_step").contains("pgwh.encryption_key_file"));
    assert_eq!(cluster.refused("SELECT pgwh.secret('s')").code, "F0000");
    cluster.sql("INSERT INTO t VALUES (5)");
    cluster.wait_true("SELECT pending = 1 FROM pgwh.status WHERE name = 's'");
    // A file that everybody may read is no place for a key.
    let everybody = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o644);
    std::fs::set_permissions(&file, everybody).unwrap();
    let refusal = cluster.refused("SELECT pgwh.subscribe('http://127.0.0.1:1/', name => 'new')");
    assert!(refusal.detail.contains("everybody may read"), "{refusal:?}");
    // With it, what waited is sent.
    cluster.write_private("pgwh.key", &format!("{OTHER_KEY}\n"));
    cluster.reload();
    works(6);
    assert_eq!(events_of(&receiver, "s").len(), 6);
}

#[test]
fn rotations_at_the_same_time_come_one_after_the_other() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "tables => '{t}'");
    let mut first = cluster.connect();
    first.batch_execute("BEGIN").unwrap();
    let a: String = first.query_one("SELECT pgwh.rotate_secret('s')", &[]).unwrap().get(0);
    let b = std::thread::scope(|scope| {
        let second = scope.spawn(|| cluster.value("SELECT pgwh.rotate_secret('s')"));
        cluster.wait_true("SELECT count(*) > 0 FROM pg_locks WHERE NOT granted");
        first.batch_execute("COMMIT").unwrap();
        second.join().unwrap()
    });
    assert_eq!(cluster.value("SELECT pgwh.secret('s')"), b);
    let kept = "SELECT secret || ' ' || previous_secret FROM pgwh.secrets";
    assert_eq!(cluster.column(kept), [format!("{b} {a}")]);
    // Nor is a key left of a subscription that goes meanwhile.
    let mut first = cluster.connect();
    first.batch_execute("BEGIN; SELECT pgwh.rotate_secret('s')").unwrap();
    std::thread::scope(|scope| {
        let second = scope.spawn(|| cluster.sql("SELECT pgwh.unsubscribe('s')"));
        cluster.wait_true("SELECT count(*) > 0 FROM pg_locks WHERE NOT granted");
        first.batch_execute("COMMIT").unwrap();
        second.join().unwrap();
    });
    assert_eq!(cluster.value("SELECT count(*) FROM pgwh.secrets"), "0");
    let mut first = cluster.connect();
    cluster.subscribe(&receiver, "s", "tables => '{t}'");
    first.batch_execute("BEGIN; SELECT pgwh.unsubscribe('s')").unwrap();
    std::thread::scope(|scope| {
        let second = scope.spawn(|| cluster.try_sql("SELECT pgwh.rotate_secret('s')"));
        cluster.wait_true("SELECT count(*) > 0 FROM pg_locks WHERE NOT granted");
        first.batch_execute("COMMIT").unwrap();
        assert!(second.join().unwrap().is_err());
    });
    assert_eq!(cluster.value("SELECT count(*) FROM pgwh.secrets"), "0");
}

#[test]
fn statement_statistics_show_no_secret_of_the_extension() {
    let cluster = harness::Setup::new()
        .set("shared_preload_libraries = 'pg_stat_statements, pgstream_hooks'")
        .set("pg_stat_statements.track = all")
        .start();
    cluster.sql("CREATE EXTENSION pg_stat_statements");
    cluster.sql("CREATE EXTENSION pgstream_hooks");
    let receiver = Receiver::start().unwrap();
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY, note text); ALTER TABLE t REPLICA IDENTITY FULL");
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    cluster.subscribe(
        &receiver,
        "s",
        &format!("tables => '{{t}}', secret => '{secret}', headers => '{{\"authorization\": \"Bearer s3cret\"}}', filter => 'note <> ''f1lter'''"),
    );
    cluster.sql("INSERT INTO t VALUES (1, 'pr1vate')");
    assert_eq!(cluster.delivered(&receiver, "s").len(), 1);
    let rotated = cluster.value("SELECT pgwh.rotate_secret('s')");
    cluster.sql("UPDATE pgwh.subscriptions SET headers = '{\"authorization\": \"Bearer oth3r\"}'");
    let statements = cluster.column("SELECT query FROM pg_stat_statements").join("\n");
    assert!(statements.contains("pgwh.subscribe($1, name => $2"), "{statements}");
    for hidden in [secret, "s3cret", "pr1vate", "f1lter", "oth3r", &rotated] {
        assert!(!statements.contains(hidden), "{hidden} in {statements}");
        assert!(!cluster.log().contains(hidden), "{hidden} in the log");
    }
    let active =
        cluster.column("SELECT query FROM pg_stat_activity WHERE backend_type LIKE 'pgstream%'").join("\n");
    assert!(!active.contains("s3cret") && !active.contains("pr1vate"), "{active}");
}
