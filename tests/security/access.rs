//! Safe by default: nobody reads or changes what is not theirs, nothing leaks, and nothing is sent where it must not go.

use harness::{Cluster, Receiver, Setup, events_of, eventually};

const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const OTHER_KEY: &str = "Hx4dHBsaGRgXFhUUExIREA8ODQwLCgkIBwYFBAMCAQA=";

/// What docs/security.md grants to a role that subscribes.
const GRANTS: &[&str] = &[
    "GRANT USAGE ON SCHEMA pgwh, pgwh_internal TO %",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON pgwh.subscriptions TO %",
    "GRANT SELECT ON pgwh_internal.installation, pgwh.status TO %",
    "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgwh, pgwh_internal TO %",
];

fn stage() -> (Cluster, Receiver) {
    let cluster = Cluster::with_extension();
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY, note text)");
    (cluster, Receiver::start().unwrap())
}

fn create_roles(cluster: &Cluster, names: &[&str]) {
    for name in names {
        cluster.sql(&format!(
            "CREATE ROLE {name} LOGIN; GRANT CREATE ON DATABASE postgres TO {name}; GRANT SELECT ON t TO {name}"
        ));
        for grant in GRANTS {
            cluster.sql(&grant.replace('%', name));
        }
    }
}

#[test]
fn nothing_is_granted_to_everybody_and_no_function_runs_by_a_search_path_of_its_callers() {
    let (cluster, _) = stage();
    cluster.sql("CREATE ROLE nobody LOGIN");
    for (what, catalog, privilege) in [
        (
            "function",
            "pg_proc WHERE pronamespace IN ('pgwh'::regnamespace, 'pgwh_internal'::regnamespace)",
            "EXECUTE",
        ),
        (
            "table",
            "pg_class WHERE relnamespace IN ('pgwh'::regnamespace, 'pgwh_internal'::regnamespace) AND relkind IN ('r', 'p', 'v')",
            "SELECT",
        ),
        (
            "table",
            "pg_class WHERE relnamespace IN ('pgwh'::regnamespace, 'pgwh_internal'::regnamespace) AND relkind IN ('r', 'p', 'v')",
            "INSERT, UPDATE, DELETE, TRUNCATE",
        ),
        (
            "sequence",
            "pg_class WHERE relnamespace IN ('pgwh'::regnamespace, 'pgwh_internal'::regnamespace) AND relkind = 'S'",
            "USAGE, SELECT, UPDATE",
        ),
        ("schema", "pg_namespace WHERE nspname IN ('pgwh', 'pgwh_internal')", "CREATE"),
        ("schema", "pg_namespace WHERE nspname = 'pgwh_internal'", "USAGE"),
    ] {
        let allowed = format!(
            "SELECT count(*) FROM (SELECT oid FROM {catalog} OFFSET 0) o
             WHERE has_{what}_privilege('nobody', oid, '{privilege}')"
        );
        assert_eq!(cluster.value(&allowed), "0", "{what} {privilege}");
        assert_ne!(cluster.value(&format!("SELECT count(*) FROM {catalog}")), "0", "{what}");
    }
    assert_eq!(
        cluster.value(
            "SELECT count(*) FROM pg_proc WHERE pronamespace IN ('pgwh'::regnamespace, 'pgwh_internal'::regnamespace) AND prosecdef
             AND NOT coalesce(proconfig::text LIKE '%search_path=%', false)"
        ),
        "0"
    );
    assert_eq!(
        cluster.value(
            "SELECT count(*) FROM pg_class WHERE relnamespace IN ('pgwh'::regnamespace, 'pgwh_internal'::regnamespace) AND relkind IN ('r', 'p') AND NOT relrowsecurity"
        ),
        "0"
    );
    assert_eq!(cluster.as_role("nobody").refused("SELECT pgwh.secret('s')").code, "42501");
}

#[test]
fn a_subscription_and_its_keys_are_its_owners() {
    let (cluster, receiver) = stage();
    create_roles(&cluster, &["ann", "bob"]);
    let (ann, bob) = (cluster.as_role("ann"), cluster.as_role("bob"));
    ann.subscribe(&receiver, "s", "tables => '{t}', headers => '{\"authorization\": \"Bearer s3cret\"}'");
    let secret = ann.value("SELECT pgwh.secret('s')");
    assert!(secret.starts_with("whsec_"));
    for attempt in [
        "INSERT INTO pgwh.subscriptions (name, url, owner) VALUES ('mine', 'http://127.0.0.1:1/', 'ann')",
        "SELECT pgwh.subscribe('http://127.0.0.1:1/evil', name => 's')",
        "SELECT pgwh.subscribe('http://127.0.0.1:1/evil', name => 's', secret => 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw')",
        "SELECT * FROM pgwh.secrets",
        "UPDATE pgwh.secrets SET secret = NULL",
        "SELECT pgwh.seal_secrets()",
        "INSERT INTO pgwh_internal.commands (command) VALUES ('forget')",
        "SELECT * FROM pgwh_internal.event_chunks",
        "SELECT pgwh.forget('t', '{\"id\": 1}')",
    ] {
        let refusal = bob.refused(attempt);
        assert_eq!(refusal.code, "42501", "{attempt}: {refusal:?}");
        assert!(!format!("{refusal:?}").contains("s3cret"));
    }
    // Nor does who is shown everything.
    cluster.sql("CREATE ROLE auditor LOGIN BYPASSRLS; GRANT SELECT ON t TO auditor");
    for grant in GRANTS {
        cluster.sql(&grant.replace('%', "auditor"));
    }
    for attempt in [
        "SELECT pgwh.secret('s')",
        "SELECT pgwh.public_key('s')",
        "SELECT pgwh.rotate_secret('s')",
        "SELECT pgwh.unsubscribe('s')",
        "SELECT pgwh.pause('s')",
        "UPDATE pgwh.subscriptions SET url = 'http://127.0.0.1:1/evil' WHERE name = 's'",
        "UPDATE pgwh.subscriptions SET owner = 'auditor' WHERE name = 's'",
        "DELETE FROM pgwh.subscriptions WHERE name = 's'",
    ] {
        assert_eq!(cluster.as_role("auditor").refused(attempt).code, "42501", "{attempt}");
        match bob.try_sql(attempt) {
            Err(error) => assert_eq!(error.code().unwrap().code(), "42501", "{attempt}: {error:?}"),
            // There is nothing to update or delete.
            Ok(()) => assert!(!attempt.starts_with("SELECT"), "{attempt}"),
        }
    }
    assert_eq!(cluster.value("SELECT owner FROM pgwh.subscriptions WHERE name = 's'"), "ann");
    assert_eq!(ann.value("SELECT pgwh.secret('s')"), secret);
    // A member may what the owner may.
    cluster.sql("GRANT ann TO bob");
    assert_eq!(bob.value("SELECT pgwh.secret('s')"), secret);
    cluster.sql("INSERT INTO t VALUES (1)");
    assert_eq!(cluster.delivered(&receiver, "s").len(), 1);
    ann.sql("SELECT pgwh.pause('s')");
    ann.sql("SELECT pgwh.resume('s')");
    ann.sql("SELECT pgwh.unsubscribe('s')");
}

#[test]
fn status_judges_the_rights_of_each_owner_and_of_each_choice_of_columns() {
    let (cluster, receiver) = stage();
    cluster.sql("CREATE TABLE other (id int PRIMARY KEY)");
    create_roles(&cluster, &["ann", "bob", "cid"]);
    cluster.sql("GRANT SELECT ON other TO ann, bob, cid");
    let subscriptions = [
        ("ann", "tables => '{t}'", ""),
        ("bob", "tables => '{t}'", "its owner bob may not read note of public.t"),
        ("bob", "tables => '{t}', exclude_columns => '{note}'", ""),
        ("bob", "tables => '{t}', columns => '{id}'", ""),
        (
            "bob",
            "tables => '{t}', columns => '{id}', event_types => '{insert}', filter => 'note = ''x'''",
            "its owner bob may not read note of public.t",
        ),
        ("bob", "tables => '{t}', columns => '{id}', event_types => '{insert}', filter => 'id = 1'", ""),
        ("bob", "tables => '{t}', columns => '{id,note}'", "its owner bob may not read note of public.t"),
        ("cid", "tables => '{t}'", "its owner cid may not read public.t"),
        ("cid", "tables => '{other}'", ""),
        ("cid", "tables => '{t}', event_types => '{ddl}'", ""),
        ("ann", "tables => '{other,t}'", ""),
    ];
    for (place, (owner, arguments, _)) in subscriptions.iter().enumerate() {
        cluster.as_role(owner).subscribe(&receiver, &format!("s{place:02}"), arguments);
    }
    cluster.sql("REVOKE SELECT ON t FROM bob, cid; GRANT SELECT (id) ON t TO bob");
    // Asked of all in one command, and of each alone.
    let told = |query: &str| cluster.column(&format!("SELECT coalesce(reason, '') FROM {query}"));
    let expected: Vec<&str> = subscriptions.iter().map(|(_, _, reason)| *reason).collect();
    assert_eq!(told("pgwh.status ORDER BY name"), expected);
    for (place, reason) in expected.iter().enumerate() {
        assert_eq!(told(&format!("pgwh.status WHERE name = 's{place:02}'")), [*reason], "s{place:02}");
    }
}

/// Who owns the table already is not told to let it belong to its owner.
#[test]
fn an_owner_on_whom_row_security_is_forced_is_told_what_helps() {
    let (cluster, receiver) = stage();
    create_roles(&cluster, &["ann"]);
    cluster.sql("ALTER TABLE t OWNER TO ann; ALTER TABLE t ENABLE ROW LEVEL SECURITY");
    let ann = cluster.as_role("ann");
    ann.subscribe(&receiver, "s", "tables => '{t}'");
    ann.sql("ALTER TABLE t FORCE ROW LEVEL SECURITY");
    let again = format!("SELECT pgwh.subscribe('{}', tables => '{{t}}')", receiver.url("/s"));
    let refused = ann.refused(&again);
    assert!(refused.detail.contains("forced on ann") && refused.hint.contains("NO FORCE"), "{refused:?}");
    let next_step = ann.status("s", "next_step");
    assert!(next_step.starts_with("ALTER TABLE public.t NO FORCE ROW LEVEL SECURITY;"), "{next_step}");
    ann.sql("ALTER TABLE public.t NO FORCE ROW LEVEL SECURITY");
    assert_eq!(ann.status("s", "state = 'active' AND next_step IS NULL"), "t");
}

#[test]
fn nobody_has_functions_of_their_own_run_with_the_rights_of_the_extension() {
    let (cluster, receiver) = stage();
    create_roles(&cluster, &["eve"]);
    let eve = cluster.as_role("eve");
    eve.sql(
        "CREATE SCHEMA evil;
         CREATE FUNCTION evil.now() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN RAISE 'hijacked'; END $$;
         CREATE FUNCTION evil.same(bigint, bigint) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'hijacked'; END $$;
         CREATE FUNCTION evil.same(text, text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'hijacked'; END $$;
         CREATE FUNCTION evil.starts_with(text, text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'hijacked'; END $$;
         CREATE OPERATOR evil.= (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = evil.same);
         CREATE OPERATOR evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.same);
         CREATE OPERATOR evil.<> (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.same);",
    );
    let url = receiver.url("/s");
    let mut client = eve.connect();
    client.batch_execute("SET search_path = evil, pg_catalog").unwrap();
    for statement in [
        format!(
            "SELECT pgwh.subscribe('{url}', name => 's', tables => '{{public.t}}', headers => '{{\"x-token\": \"a\"}}')"
        ),
        format!("SELECT pgwh.subscribe('{url}', tables => '{{public.t}}')"),
        "SELECT pgwh.secret('s')".to_owned(),
        "SELECT pgwh.rotate_secret('s', overlap => '1 h')".to_owned(),
        "UPDATE pgwh.subscriptions SET headers = '{\"x-token\": \"b\"}'".to_owned(),
        "SELECT pgwh.adopt()".to_owned(),
        "SELECT * FROM pgwh.status()".to_owned(),
        "SELECT pgwh.pause('s'), pgwh.resume('s')".to_owned(),
    ] {
        client.batch_execute(&statement).unwrap_or_else(|error| panic!("{statement}: {error:?}"));
    }
}

#[test]
fn names_patterns_and_headers_are_never_taken_for_sql_or_for_more_headers() {
    let (cluster, receiver) = stage();
    for name in ["'; DROP TABLE t; --", "\"; DROP TABLE t; --", "$$; DROP TABLE t; $$", "%s %I $1 \\"] {
        let quoted = name.replace('\'', "''");
        cluster.sql(&format!("SELECT pgwh.subscribe('{}', name => '{quoted}')", receiver.url("/injected")));
        cluster.sql(&format!(
            "SELECT pgwh.secret('{quoted}'), pgwh.rotate_secret('{quoted}'), pgwh.pause('{quoted}')"
        ));
        let next_step = cluster.value(&format!("SELECT next_step FROM pgwh.status WHERE name = '{quoted}'"));
        cluster.sql(&next_step);
        assert_eq!(
            cluster.value(&format!("SELECT state FROM pgwh.status WHERE name = '{quoted}'")),
            "active"
        );
        cluster.sql(&format!("SELECT pgwh.unsubscribe('{quoted}')"));
    }
    for pattern in ["t'; DROP TABLE t; --", "public.t\"; DROP TABLE t; --"] {
        let quoted = pattern.replace('\'', "''").replace('"', "\\\"");
        let refused = cluster
            .refused(&format!("SELECT pgwh.subscribe('http://127.0.0.1:1/', tables => '{{\"{quoted}\"}}')"));
        assert!(["22023", "42P01"].contains(&refused.code.as_str()), "{refused:?}");
    }
    for (name, value) in [
        ("x-a", "b\\r\\nwebhook-id: forged"),
        ("x-a", "b\\nc"),
        ("x-a\\r\\nx-b", "c"),
        ("x a", "b"),
        ("", "b"),
        ("webhook-signature", "v1,forged"),
        ("Webhook-Id", "forged"),
        ("Host", "internal"),
        ("content-length", "0"),
        ("transfer-encoding", "chunked"),
        ("x-a", "\\u00e9"),
    ] {
        let refused = cluster.refused(&format!(
            "SELECT pgwh.subscribe('http://127.0.0.1:1/', headers => '{{\"{name}\": \"{value}\"}}')"
        ));
        assert_eq!(refused.code, "22023", "{name}: {value}");
        assert!(!refused.hint.is_empty() && !format!("{refused:?}").contains("forged"), "{refused:?}");
    }
    assert_eq!(cluster.value("SELECT count(*) FROM t"), "0");
}

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
fn by_default_only_public_addresses_are_sent_to_and_the_hint_of_a_refusal_opens_more() {
    let cluster = Setup::new().set("pgwh.allowed_networks = ''").start();
    cluster.sql("CREATE EXTENSION pgstream_hooks");
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let receiver = Receiver::start().unwrap();
    let subscribe =
        format!("SELECT pgwh.subscribe('{}', name => 's', tables => '{{t}}')", receiver.url("/s"));
    let refusal = cluster.refused(&subscribe);
    assert!(refusal.message.contains("127.0.0.1") && refusal.detail.contains("loopback"), "{refusal:?}");
    let (alter, reload) = refusal.hint.strip_prefix("To allow it: ").unwrap().split_once("; ").unwrap();
    cluster.each(&[alter, reload]);
    eventually("it is allowed", || cluster.try_sql(&subscribe).ok());
    cluster.sql("INSERT INTO t VALUES (1)");
    assert_eq!(cluster.delivered(&receiver, "s").len(), 1);
    // Closed again, the connection that is kept serves no more.
    cluster.sql("ALTER SYSTEM RESET pgwh.allowed_networks");
    cluster.reload();
    cluster.wait_true("SELECT state = 'error' FROM pgwh.status WHERE name = 's'");
    assert!(cluster.status("s", "reason").contains("loopback"));
    cluster.sql("INSERT INTO t VALUES (2)");
    cluster.wait_true("SELECT bool_or(error_class = 'blocked') FROM pgwh.attempts");
    assert!(
        cluster
            .value("SELECT error FROM pgwh.attempts LIMIT 1")
            .contains("ALTER SYSTEM SET pgwh.allowed_networks")
    );
    assert_eq!(receiver.count(), 1);
}

#[test]
fn proxies_of_the_environment_are_not_used() {
    let mut setup = Setup::new();
    for name in ["http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
        setup = setup.environment(name, "http://127.0.0.1:1");
    }
    let cluster = setup.start();
    cluster.sql("CREATE EXTENSION pgstream_hooks");
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let receiver = Receiver::start().unwrap();
    cluster.subscribe(&receiver, "s", "");
    cluster.sql("INSERT INTO t VALUES (1)");
    assert_eq!(cluster.delivered(&receiver, "s").len(), 1);
}

#[test]
fn a_file_of_certificates_that_is_none_fails_requests_and_is_named() {
    let cluster = Setup::new().set("pgwh.ca_file = 'PG_VERSION'").start();
    cluster.sql("CREATE EXTENSION pgstream_hooks");
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let receiver = Receiver::start().unwrap();
    let url = receiver.url("/s").replace("http:", "https:");
    cluster.sql(&format!("SELECT pgwh.subscribe('{url}', name => 's')"));
    cluster.sql("INSERT INTO t VALUES (1)");
    cluster
        .wait_true("SELECT bool_or(error_class = 'tls' AND error LIKE '%pgwh.ca_file%') FROM pgwh.attempts");
    let refusal = cluster
        .refused(&format!("SELECT pgwh.subscribe('{url}', name => 's', client_certificate => 'hunter2')"));
    assert_eq!(refusal.code, "22023");
    assert!(!format!("{refusal:?}").contains("hunter2"));
}

#[test]
fn every_dependency_comes_from_the_registry_and_is_pinned_to_its_contents() {
    let lock = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.lock")).unwrap();
    let packages: Vec<&str> = lock.split("[[package]]").skip(1).collect();
    let own: Vec<&&str> = packages.iter().filter(|package| !package.contains("source = ")).collect();
    assert_eq!(own.len(), 4, "besides the packages of this repository: {own:?}");
    for package in packages.iter().filter(|package| package.contains("source = ")) {
        assert!(package.contains("source = \"registry+") && package.contains("checksum = "), "{package}");
    }
}

#[test]
fn messages_of_the_processes_are_logged_as_the_setting_says() {
    let (cluster, _) = stage();
    assert!(!cluster.log().contains("DEBUG:"));
    cluster.sql("ALTER SYSTEM SET pgwh.log_level = 'debug2'");
    cluster.reload();
    cluster.sql("INSERT INTO t VALUES (1)");
    eventually("debug messages of a process of ours", || {
        cluster
            .log()
            .lines()
            .any(|line| line.contains("pgstream_hooks") && line.contains("DEBUG:"))
            .then_some(())
    });
    assert!(!cluster.log().lines().any(|line| line.contains("client backend") && line.contains("DEBUG:")));
}

#[test]
fn an_error_of_the_servers_that_passes_through_has_no_backtrace_in_its_detail() {
    let (cluster, _receiver) = stage();
    cluster.sql(
        "CREATE ROLE stranger LOGIN; GRANT USAGE ON SCHEMA pgwh, pgwh_internal TO stranger;
         GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgwh, pgwh_internal TO stranger",
    );
    for call in ["unsubscribe('s')", "subscribe('https://example.com/')", "pause('s')", "replay('s', now())"]
    {
        let refused = cluster.as_role("stranger").refused(&format!("SELECT pgwh.{call}"));
        assert_eq!(refused.code, "42501", "{call}: {refused:?}");
        assert!(!refused.detail.contains('\n'), "{call}: {refused:?}");
    }
}

#[test]
fn an_owner_who_is_no_superuser_any_more_stops_nothing() {
    // Postgres 16 and later leave the role that the cluster was made with its attribute.
    let owners = if harness::Server::get().major() < 16 { &["admin", "postgres"][..] } else { &["admin"] };
    for owner in owners {
        let cluster = Cluster::start();
        cluster.sql("CREATE ROLE admin SUPERUSER LOGIN; CREATE ROLE boss SUPERUSER LOGIN");
        let (as_owner, as_boss) = (cluster.as_role(owner), cluster.as_role("boss"));
        as_owner.sql("CREATE EXTENSION pgstream_hooks");
        as_owner.wait_true("SELECT ok FROM pgwh.health() WHERE check_name = 'slot present and valid'");
        as_owner.sql("CREATE TABLE t (id int PRIMARY KEY, note text)");
        let receiver = Receiver::start().unwrap();
        as_owner.subscribe(
            &receiver,
            "s",
            "tables => '{public.t}', headers => '{\"authorization\": \"Bearer x\"}'",
        );
        as_boss.sql(&format!("ALTER ROLE {owner} NOSUPERUSER"));
        let views = as_boss.column(
            "SELECT oid::regclass FROM pg_class WHERE relnamespace IN ('pgwh'::regnamespace, 'pgwh_internal'::regnamespace) AND relkind = 'v'",
        );
        let mut count = 0;
        for round in 0..2 {
            for who in [&as_owner, &as_boss] {
                count += 1;
                as_owner.sql(&format!("INSERT INTO t VALUES ({count})"));
                assert_eq!(as_owner.delivered(&receiver, "s").len(), count, "{owner}, round {round}");
                assert_eq!(who.status("s", "state"), "active");
                let wrong = who.column("SELECT check_name FROM pgwh.health() WHERE NOT ok");
                assert_eq!(wrong, ["owner"], "{owner}");
                assert_ne!(who.value("SELECT pgwh.metrics()"), "");
                for view in &views {
                    who.sql(&format!("TABLE {view}"));
                }
                let body = "SELECT body->'data'->'record'->>'note' FROM pgwh.preview('s', '{\"id\": 1, \"note\": \"x\"}')";
                assert_eq!(who.value(body), "x");
                who.each(&[
                    "SELECT pgwh.why('t', '{\"id\": 1}')",
                    "SELECT pgwh.rotate_secret('s')",
                    "SELECT pgwh.forget('t', '{\"id\": 0}')",
                    "SELECT pgwh.adopt()",
                ]);
            }
            as_boss.sql("SELECT pgwh.pause('s'); SELECT pgwh.resume('s')");
            // What is done once, when workers start and when a command is noted, is done as before.
            as_boss.sql(&format!("ALTER TABLE t ADD COLUMN more{round} int"));
            cluster.restart(harness::Stop::Fast);
        }
        let hint = as_boss.value("SELECT hint FROM pgwh.health() WHERE check_name = 'owner'");
        let grants = hint.split_once(" or ").unwrap().1;
        as_boss.sql(grants);
        assert_eq!(as_owner.value("SELECT count(*) FROM pgwh.health() WHERE NOT ok"), "0");
    }
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
fn grant_usage_is_all_that_a_role_needs_and_revoke_usage_ends_it() {
    let (cluster, receiver) = stage();
    for role in ["app", "My-Role"] {
        cluster.sql(&format!("CREATE ROLE \"{role}\" LOGIN; GRANT SELECT ON t TO \"{role}\""));
        let own = cluster.as_role(role);
        assert_eq!(own.refused("SELECT count(*) FROM pgwh.status").code, "42501");
        cluster.sql(&format!("SELECT pgwh.grant_usage('{role}')"));
        own.subscribe(&receiver, role, "tables => '{t}'");
        cluster.sql("INSERT INTO t SELECT coalesce(max(id), 0) + 1 FROM t");
        assert_eq!(own.value(&format!("SELECT pgwh.wait('{role}')")), "t");
        for view in
            ["status", "events", "deliveries", "attempts", "dead_letters", "replays", "backfills", "gaps"]
        {
            own.sql(&format!("SELECT count(*) FROM pgwh.{view}"));
        }
        assert_eq!(own.column("SELECT name FROM pgwh.subscriptions"), [role]);
        own.sql("SELECT count(*) FROM pgwh.health()");
        // Not what it could grant to others.
        let refusal = own.refused("SELECT pgwh.grant_usage('app')");
        assert_eq!(refusal.code, "42501", "{refusal:?}");
        cluster.sql(refusal.hint.strip_prefix("As such a role: ").unwrap());
    }
    let notices = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let sink = notices.clone();
    let mut client = cluster.connect_noticing(move |notice| {
        sink.lock()
            .unwrap()
            .push((notice.message().to_owned(), notice.hint().unwrap_or_default().to_owned()));
    });
    client.batch_execute("SELECT pgwh.revoke_usage('app')").unwrap();
    let (message, hint) = notices.lock().unwrap().pop().unwrap();
    assert_eq!(message, "role \"app\" still has 1 subscription, which delivers as before");
    let app = cluster.as_role("app");
    for call in ["SELECT * FROM pgwh.status", "SELECT pgwh.pause('app')", "DELETE FROM pgwh.subscriptions"] {
        assert_eq!(app.refused(call).code, "42501", "{call}");
    }
    let rest = cluster.value("SELECT count(*) FROM pg_shdepend WHERE refobjid = 'app'::regrole AND classid <> 'pg_class'::regclass");
    assert_eq!(rest, "0", "nothing in pgwh names the role");
    cluster.sql(hint.strip_prefix("To end them: ").unwrap());
    assert_eq!(cluster.column("SELECT owner FROM pgwh.subscriptions"), ["My-Role"]);
}

/// What the server says of its own accord to a role with some of the privileges names one object at a time.
#[test]
fn each_denial_is_cured_by_grant_usage_in_one_step() {
    let (cluster, receiver) = stage();
    let url = receiver.url("/x");
    let troubleshooting =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/troubleshooting.md")).unwrap();
    let row = troubleshooting.lines().find(|line| line.contains("`permission denied` for ")).unwrap();
    let cure = row.split('`').find(|text| text.starts_with("SELECT pgwh.")).unwrap();
    for partial in [
        String::new(),
        "GRANT EXECUTE ON FUNCTION pgwh.subscribe, pgwh.health, pgwh.status() TO app".to_owned(),
        "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgwh TO app".to_owned(),
        "GRANT SELECT, INSERT, UPDATE, DELETE ON pgwh.subscriptions TO app".to_owned(),
    ] {
        cluster.sql("CREATE ROLE app LOGIN; GRANT SELECT ON t TO app");
        cluster.sql(&partial);
        let app = cluster.as_role("app");
        let calls = [
            &format!("SELECT pgwh.subscribe('{url}', name => 'x', tables => '{{t}}')"),
            "TABLE pgwh.status",
            "SELECT pgwh.health()",
            "SELECT pgwh.pause('x')",
            &format!("INSERT INTO pgwh.subscriptions (name, url, tables) VALUES ('y', '{url}', '{{t}}')"),
            "DELETE FROM pgwh.subscriptions",
        ];
        let denied = calls.iter().filter_map(|call| app.try_sql(&format!("BEGIN; {call}; ROLLBACK")).err());
        let denied: Vec<String> = denied.filter_map(|error| Some(error.code()?.code().to_owned())).collect();
        assert!(
            !denied.is_empty() && denied.iter().all(|code| code == "42501" || code == "42704"),
            "{partial}: {denied:?}"
        );
        cluster.sql(cure);
        for call in calls {
            app.sql(call);
        }
        cluster.sql("SELECT pgwh.revoke_usage('app'); REVOKE SELECT ON t FROM app; DROP ROLE app");
    }
}

#[test]
fn usage_is_granted_to_roles_that_are_there() {
    let (cluster, _receiver) = stage();
    cluster.sql("CREATE ROLE app LOGIN");
    cluster.sql("SELECT pgwh.grant_usage('app')");
    for (argument, code, grant, revoke) in [
        (
            "NULL",
            "22004",
            ["role must be given", "For example: SELECT pgwh.grant_usage('app');"],
            ["role must be given", "For example: SELECT pgwh.revoke_usage('app');"],
        ),
        (
            "'App'",
            "42704",
            [
                "role \"App\" does not exist",
                "SELECT pgwh.grant_usage('app'); or create it: CREATE ROLE \"App\";",
            ],
            ["role \"App\" does not exist", "SELECT pgwh.revoke_usage('app');"],
        ),
        (
            "'no one'",
            "42704",
            ["role \"no one\" does not exist", "CREATE ROLE \"no one\";"],
            ["role \"no one\" does not exist", "Roles that have it: app."],
        ),
        (
            "'public'",
            "0A000",
            [
                "usage of pgwh cannot be granted to PUBLIC",
                "Grant it to one role and make others its members: CREATE ROLE webhooks; SELECT pgwh.grant_usage('webhooks');",
            ],
            [
                "usage of pgwh cannot be revoked from PUBLIC",
                "If a GRANT gave it: REVOKE ALL ON SCHEMA pgwh FROM PUBLIC;",
            ],
        ),
    ] {
        for (function, expected) in [("grant_usage", grant), ("revoke_usage", revoke)] {
            let refusal = cluster.refused(&format!("SELECT pgwh.{function}({argument})"));
            let words = [refusal.message.as_str(), refusal.hint.as_str()];
            assert_eq!((refusal.code.as_str(), words), (code, expected), "{function}");
            let commands = ["SELECT", "CREATE", "REVOKE"].iter().filter_map(|word| refusal.hint.find(word));
            if let Some(start) = commands.min() {
                let commands = refusal.hint[start..].replace("or create it: ", "");
                cluster.sql(&format!("BEGIN; {commands} ROLLBACK"));
            }
        }
    }
    // A role that has the right to call it and not what it takes to change rights.
    let refusal = cluster.as_role("app").refused("SELECT pgwh.revoke_usage('app')");
    assert_eq!(refusal.message, "permission denied to revoke usage of pgwh");
    assert_eq!(refusal.hint, "As such a role: SELECT pgwh.revoke_usage('app');");
    cluster.sql(refusal.hint.strip_prefix("As such a role: ").unwrap());
    let refusal = cluster.refused("SELECT pgwh.revoke_usage('no one')");
    assert_eq!(refusal.hint, "No role has it by pgwh.grant_usage().");
    cluster.sql("CREATE ROLE \"no one\"");
    cluster.sql("SELECT pgwh.grant_usage('no one')");
}
