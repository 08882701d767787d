//! An ordinary role cannot see or change the subscriptions of others, nor their events and deliveries.

use harness::{Database, Reply, Request};

use crate::roles::{grant, stage_with_roles};

#[test]
fn each_role_sees_its_own_subscriptions_and_deliveries() {
    let (cluster, receiver) = stage_with_roles(&["petra", "quentin", "eve"]);
    // More than docs/security.md grants.
    cluster.sql("GRANT ALL ON ALL TABLES IN SCHEMA pgwh, pgwh_internal TO petra, quentin, eve; GRANT ALL ON ALL SEQUENCES IN SCHEMA pgwh, pgwh_internal TO eve");
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY, note text); ALTER TABLE t REPLICA IDENTITY FULL; GRANT SELECT ON t TO petra, quentin");
    let roles = ["petra", "quentin"];
    for role in roles {
        cluster.as_role(role).subscribe(
            &receiver,
            role,
            &format!("tables => '{{t}}', retry_schedule => '{{}}', filter => 'note = ''{role}'''"),
        );
    }
    receiver.behave(|_: &Request| Reply::status(500));
    for (id, role) in [(1, "petra"), (2, "quentin")] {
        cluster.sql(&format!("INSERT INTO t VALUES ({id}, '{role}')"));
        cluster.wait_status(role, "dead = 1");
    }
    receiver.behave(|_: &Request| Reply::status(200));
    for role in roles {
        cluster.as_role(role).sql(&format!("SELECT pgwh.replay('{role}', now() - interval '1 hour')"));
        cluster.as_role(role).sql(&format!("SELECT pgwh.backfill('{role}')"));
    }
    cluster.wait_true("SELECT count(*) = 2 FROM pgwh.backfills WHERE state = 'done'");
    cluster.wait_true("SELECT count(*) = 2 FROM pgwh.replays WHERE state = 'done' AND done = total");
    cluster.sql("INSERT INTO pgwh.gaps (subscription_id, from_lsn, reason) SELECT id, '0/1', 'test of ' || name FROM pgwh.subscriptions");
    let relations = cluster.column(
        "SELECT c.oid::regclass FROM pg_class c WHERE relnamespace IN ('pgwh'::regnamespace, 'pgwh_internal'::regnamespace) AND relkind IN ('r', 'p', 'v') ORDER BY 1",
    );
    assert!(relations.len() > 40);
    let functions = [
        "pgwh.status()",
        "(SELECT (pgwh_internal.delivery_stats(n)).* FROM generate_series(1, 40) n)",
        "pgwh_internal.secret_problems()",
        "pgwh_internal.pending_deliveries()",
        "pgwh.metric_samples()",
        "pgwh.health()",
        "pgwh.why('t', '{\"id\": 1}')",
        "pgwh.why('t', '{\"id\": 2}')",
    ];
    let everything = |role: &Database| -> String {
        let mut seen = String::new();
        for relation in relations.iter().map(String::as_str).chain(functions) {
            match role.try_rows(&format!("SELECT to_jsonb(x)::text FROM {relation} x")) {
                Ok(rows) => seen
                    .extend(rows.into_iter().flatten().flatten().map(|row| format!("{relation}: {row}\n"))),
                Err(error) => assert_eq!(error.code().unwrap().code(), "42501", "{relation}: {error:?}"),
            }
        }
        seen + &role.value("SELECT pgwh.metrics()")
    };
    for (role, other) in [("petra", "quentin"), ("quentin", "petra")] {
        let seen = everything(&cluster.as_role(role));
        for relation in [
            "subscriptions",
            "status",
            "events",
            "deliveries",
            "attempts",
            "dead_letters",
            "replays",
            "backfills",
            "gaps",
        ] {
            // What a replay has brought is no dead letter.
            let expected = relation != "dead_letters";
            assert_eq!(
                seen.contains(&format!("pgwh.{relation}: ")),
                expected,
                "{role} and {relation}: {seen}"
            );
        }
        assert!(seen.contains(role), "{seen}");
        // However many are asked for in one command.
        for asked in [1, 40] {
            let figures = |of: &str| {
                let id = cluster.value(&format!("SELECT id FROM pgwh.subscriptions WHERE name = '{of}'"));
                cluster.as_role(role).value(&format!(
                    "SELECT count((pgwh_internal.delivery_stats({id})).pending) FROM generate_series(1, {asked})"
                ))
            };
            assert_eq!((figures(role), figures(other)), (asked.to_string(), "0".into()), "{role} of {other}");
        }
        let shown =
            seen.lines().filter(|line| !line.starts_with("pgwh.schema_")).find(|line| line.contains(other));
        assert_eq!(shown, None, "{role} sees of {other}");
    }
    let seen = everything(&cluster.as_role("eve"));
    for name in roles {
        assert!(!seen.contains(&format!("\"{name}\"")), "{seen}");
    }
    // Others' are not changed either, nor the journal.
    let eve = cluster.as_role("eve");
    for statement in [
        "UPDATE pgwh.subscriptions SET url = 'http://127.0.0.1:1/'",
        "DELETE FROM pgwh.subscriptions",
        "DELETE FROM pgwh.secrets",
        "UPDATE pgwh_internal.message_key SET key = 'x'",
        "DELETE FROM pgwh_internal.event_chunks",
        "DELETE FROM pgwh_internal.event_chunks_0",
    ] {
        let before = cluster.value(
            "SELECT count(*) FROM pgwh.subscriptions s JOIN pgwh.secrets k ON k.subscription_id = s.id",
        );
        let keys = cluster.value("SELECT key FROM pgwh_internal.message_key");
        let _ = eve.try_sql(statement);
        assert_eq!(
            cluster.value(
                "SELECT count(*) FROM pgwh.subscriptions s JOIN pgwh.secrets k ON k.subscription_id = s.id"
            ),
            before
        );
        assert_eq!(cluster.value("SELECT key FROM pgwh_internal.message_key"), keys, "{statement}");
    }
    for table in [
        "pgwh_internal.commands (command, subscription_id) VALUES ('retry', 1)",
        "pgwh_internal.message_key VALUES ('x')",
        "pgwh.secrets VALUES (99)",
    ] {
        assert_eq!(eve.refused(&format!("INSERT INTO {table}")).code, "42501", "{table}");
    }
    // Superusers see all, members what the role sees.
    assert_eq!(cluster.value("SELECT count(*) FROM pgwh.status"), "2");
    cluster.sql("GRANT petra TO eve");
    assert_eq!(eve.column("SELECT name FROM pgwh.status"), ["petra"]);
    assert_eq!(eve.column("SELECT DISTINCT subscription FROM pgwh.deliveries"), ["petra"]);
}

#[test]
fn what_may_be_done_to_a_subscription_is_its_owners_to_do() {
    let (cluster, receiver) = stage_with_roles(&["ann", "bob"]);
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY); GRANT SELECT ON t TO ann, bob");
    let (ann, bob) = (cluster.as_role("ann"), cluster.as_role("bob"));
    ann.subscribe(&receiver, "s", "tables => '{t}'");
    cluster.sql("INSERT INTO t VALUES (1)");
    assert_eq!(cluster.delivered(&receiver, "s").len(), 1);
    ann.sql("SELECT pgwh.replay('s', now() - interval '1 hour')");
    ann.sql("SELECT pgwh.backfill('s')");
    ann.sql("SELECT pgwh.redeliver(1)");
    cluster.wait_true("SELECT bool_and(state = 'done') FROM pgwh.replays");
    cluster.wait_true("SELECT bool_and(state = 'done') FROM pgwh.backfills");
    let count = || {
        cluster.value("SELECT (SELECT count(*) FROM pgwh.replays) + (SELECT count(*) FROM pgwh.backfills)")
    };
    let before = count();
    for attempt in [
        "SELECT pgwh.replay('s', now() - interval '1 hour')",
        "SELECT pgwh.replay('s', since_lsn => '0/1')",
        "SELECT pgwh.redeliver(1)",
        "SELECT pgwh.skip(1)",
        "SELECT pgwh.cancel_replay(1)",
        "SELECT pgwh.backfill('s')",
        "SELECT pgwh.pause_backfill(1)",
        "SELECT pgwh.resume_backfill(1)",
        "SELECT pgwh.cancel_backfill(1)",
        "SELECT pgwh.preview('s', '{\"id\": 1}')",
        "SELECT pgwh.test('s')",
        "SELECT pgwh.wait('s')",
        "SELECT pgwh.secret('s')",
        "SELECT pgwh.public_key('s')",
        "SELECT pgwh.rotate_secret('s')",
        "SELECT pgwh.pause('s')",
        "SELECT pgwh.resume('s')",
        "SELECT pgwh.unsubscribe('s')",
        "SELECT pgwh.subscribe('http://127.0.0.1:1/', name => 's', tables => '{t}')",
        "SELECT pgwh.forget('t', '{\"id\": 1}')",
        "SELECT pgwh.seal_secrets()",
    ] {
        let refusal = bob.refused(attempt);
        assert!(["42501", "22023"].contains(&refusal.code.as_str()), "{attempt}: {refusal:?}");
        let told = format!("{refusal:?}");
        assert!(!told.contains("ann") && !told.contains(&receiver.url("/s")), "{attempt}: {told}");
    }
    bob.sql("UPDATE pgwh.subscriptions SET url = 'http://127.0.0.1:1/' WHERE name = 's'");
    bob.sql("DELETE FROM pgwh.subscriptions WHERE name = 's'");
    bob.sql("SELECT pgwh.adopt()");
    assert_eq!(count(), before);
    assert_eq!(
        cluster.value("SELECT owner || url FROM pgwh.subscriptions"),
        format!("ann{}", receiver.url("/s"))
    );
    assert_eq!(cluster.status("s", "state"), "active");
    // Two roles that give no name have one each.
    let url = receiver.url("/same");
    for role in [&ann, &bob, &ann, &bob] {
        role.sql(&format!("SELECT pgwh.subscribe('{url}', tables => '{{t}}')"));
    }
    assert_eq!(
        cluster.value(&format!(
            "SELECT string_agg(owner, ' ' ORDER BY owner) FROM pgwh.subscriptions WHERE url = '{url}'"
        )),
        "ann bob"
    );
    // What a role may not read it cannot ask about.
    cluster.sql("CREATE TABLE secret (id int PRIMARY KEY)");
    assert_eq!(bob.refused("SELECT pgwh.why('secret', '{\"id\": 1}')").code, "42501");
}

#[test]
fn a_view_shows_only_events_its_reader_may_read_now() {
    let (cluster, receiver) = stage_with_roles(&["ann"]);
    cluster.sql(
        "CREATE TABLE t (id int PRIMARY KEY, shown text, hidden text); GRANT SELECT (id, shown) ON t TO ann",
    );
    let ann = cluster.as_role("ann");
    ann.subscribe(&receiver, "s", "tables => '{t}', columns => '{shown}', retry_schedule => '{}'");
    receiver.behave(|_: &Request| Reply::status(500));
    cluster.sql("INSERT INTO t VALUES (1, 'a', 'pr1vate')");
    cluster.wait_status("s", "dead = 1");
    for view in ["events", "dead_letters"] {
        let shown = ann.value(&format!("SELECT to_jsonb(x)::text FROM pgwh.{view} x"));
        assert!(shown.contains("\"shown\": \"a\"") && !shown.contains("pr1vate"), "{view}: {shown}");
        assert_eq!(
            cluster.value(&format!("SELECT data #>> '{{record,hidden}}' FROM pgwh.{view}")),
            "pr1vate"
        );
        // Not by a function that looks at rows before they are left out either.
        ann.sql("CREATE OR REPLACE FUNCTION pg_temp.leak(text) RETURNS boolean LANGUAGE plpgsql COST 0.0001 AS $$ BEGIN RAISE 'leaked %', $1; END $$;");
    }
    cluster.sql("CREATE ROLE bob LOGIN; GRANT SELECT ON t TO bob");
    grant(&cluster, "bob");
    let bob = cluster.as_role("bob");
    for view in [
        "subscriptions",
        "events",
        "deliveries",
        "attempts",
        "dead_letters",
        "status",
        "backfills",
        "replays",
    ] {
        bob.sql(&format!(
            "CREATE FUNCTION pg_temp.leak(text) RETURNS boolean LANGUAGE plpgsql COST 0.0001 AS $$ BEGIN RAISE 'leaked %', $1; END $$;
             SELECT * FROM pgwh.{view} x WHERE pg_temp.leak(x::text)"
        ));
    }
    // Of what is joined neither, whether a null could get that far or not.
    cluster.sql("INSERT INTO pgwh.gaps (subscription_id, from_lsn, lost, reason) SELECT id, '0/1', true, 'a secret' FROM pgwh.subscriptions");
    assert!(cluster.status("s", "gap").contains("a secret"));
    for (column, strict) in
        ["name", "url", "state", "reason", "next_step", "gap", "last_error", "pending::text"]
            .into_iter()
            .flat_map(|column| [(column, "STRICT"), (column, "")])
    {
        bob.sql(&format!(
            "CREATE FUNCTION pg_temp.leak(text) RETURNS boolean LANGUAGE plpgsql {strict} COST 0.0001 AS $$ BEGIN RAISE 'leaked %', $1; END $$;
             SELECT * FROM pgwh.status WHERE pg_temp.leak({column})"
        ));
    }
    assert!(
        !receiver
            .requests()
            .iter()
            .any(|request| String::from_utf8_lossy(request.body()).contains("pr1vate"))
    );
    // A table of the same name that ann may read is another one.
    cluster.sql("REVOKE SELECT (id, shown) ON t FROM ann; ALTER TABLE t RENAME TO gone; CREATE TABLE t (LIKE gone); GRANT SELECT ON t TO ann");
    assert_eq!(ann.value("SELECT data FROM pgwh.events"), "");
    cluster.sql("DROP TABLE gone");
    assert_eq!(ann.value("SELECT data FROM pgwh.events"), "");
}
