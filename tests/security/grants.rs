//! Grants: nothing to PUBLIC, and `pgwh.grant_usage` gives a role what it needs.

use crate::roles::stage;

#[test]
fn public_has_no_grants_and_search_paths_are_fixed() {
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
fn grant_usage_is_enough_and_revoke_usage_ends_it() {
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

#[test]
fn a_hint_quotes_a_role_as_sql_does() {
    let (cluster, receiver) = super::roles::stage_with_roles(&[]);
    cluster.sql("CREATE ROLE \"o\"\"x\\\" LOGIN; SELECT pgwh.grant_usage('o\"x\\')");
    let role = cluster.as_role("o\"x\\");
    let ask = format!(
        "SELECT pgwh.subscribe('{}', name => 'm', event_types => '{{message:app}}')",
        receiver.url("/m")
    );
    let refusal = role.refused(&ask);
    assert!(refusal.detail.contains("owner \"o\"x\\\""), "{refusal:?}");
    let command = refusal.hint.split_inclusive(';').next().unwrap();
    assert_eq!(command, "ALTER ROLE \"o\"\"x\\\" REPLICATION;");
    cluster.sql(command);
    role.sql(&ask);
}
