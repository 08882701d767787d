//! An ordinary role tries to read what is not its own: rows by webhooks, and what became of others' subscriptions.

use harness::{Cluster, Database, Event, Receiver, Refusal, Reply, Request, events_of, eventually};

/// What docs/security.md grants to a role that subscribes.
const GRANTS: &[&str] = &[
    "GRANT USAGE ON SCHEMA pgwh, pgwh_internal TO %",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON pgwh.subscriptions TO %",
    "GRANT SELECT ON pgwh_internal.installation, pgwh.status, pgwh.events, pgwh.deliveries, pgwh.attempts, pgwh.dead_letters, \
     pgwh.replays, pgwh.backfills, pgwh.gaps TO %",
    "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgwh, pgwh_internal TO %",
];

fn stage(roles: &[&str]) -> (Cluster, Receiver) {
    let cluster = Cluster::with_extension();
    for name in roles {
        cluster.sql(&format!("CREATE ROLE {name} LOGIN"));
        for grant in GRANTS {
            cluster.sql(&grant.replace('%', name));
        }
    }
    (cluster, Receiver::start().unwrap())
}

/// What a receiver got of a subscription, by the ids of the rows, in order.
fn ids(receiver: &Receiver, name: &str) -> Vec<i64> {
    let mut ids: Vec<i64> =
        events_of(receiver, name).iter().filter_map(|event| event["key"]["id"].as_i64()).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// Waits until the decoder has seen all that was committed, by a subscription that gets everything.
fn caught_up(cluster: &Cluster) {
    assert_eq!(cluster.value("SELECT pgwh.wait('everything', '60 s')"), "t");
}

fn subscribe(role: &Database, url: &str, name: &str, rest: &str) -> Result<(), Refusal> {
    let sql = format!("SELECT pgwh.subscribe('{url}', name => '{name}', {rest})");
    role.try_sql(&sql).map_err(|error| error.as_db_error().expect("refused").into())
}

#[test]
fn one_refusal_names_all_tables_that_may_not_be_read() {
    let (cluster, receiver) = stage(&["ann"]);
    cluster.sql(
        "CREATE SCHEMA closed;
         CREATE TABLE closed.t (id int PRIMARY KEY);
         CREATE TABLE closed.u (id int PRIMARY KEY);
         GRANT SELECT ON closed.t, closed.u TO ann;
         CREATE TABLE open (id int PRIMARY KEY);
         GRANT SELECT ON open TO ann;
         CREATE TABLE a (id int PRIMARY KEY);
         CREATE TABLE b (id int PRIMARY KEY, hidden text);
         GRANT SELECT (id) ON b TO ann;
         CREATE TABLE parted (id int PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE TABLE part_1 PARTITION OF parted FOR VALUES FROM (0) TO (10);
         CREATE TABLE part_2 PARTITION OF parted FOR VALUES FROM (10) TO (20)",
    );
    let (ann, url) = (cluster.as_role("ann"), receiver.url("/refused"));
    for (wanted, message) in [
        ("tables => '{closed.t, closed.u}'", "permission denied for tables closed.t, closed.u"),
        (
            "tables => '{b, open, a, parted}'",
            "permission denied for tables public.a, public.b, public.parted",
        ),
    ] {
        let refused = subscribe(&ann, &url, "s", wanted).unwrap_err();
        assert_eq!((refused.code.as_str(), refused.message.as_str()), ("42501", message), "{refused:?}");
        assert!(
            refused.detail.starts_with("The subscription cannot have them: its owner ann "),
            "{refused:?}"
        );
        cluster.sql(&refused.hint);
        subscribe(&ann, &url, "s", wanted).unwrap_or_else(|refused| panic!("{wanted}: {refused:?}"));
    }
    // Of very many, the first: what is named comes before what a wildcard finds.
    cluster.sql(
        "DO $$ BEGIN FOR n IN 1..40 LOOP EXECUTE format('CREATE TABLE many_%s (id int PRIMARY KEY)', n); END LOOP; END $$;
         REVOKE ALL ON a FROM ann",
    );
    let refused = subscribe(&ann, &url, "many", "tables => '{public.many_*, a}'").unwrap_err();
    assert!(
        refused.message.starts_with("permission denied for tables public.a, public.many_1, "),
        "{refused:?}"
    );
    assert_eq!(refused.hint.matches("GRANT SELECT").count(), 10, "{refused:?}");
    cluster.sql(&refused.hint);
}

#[test]
fn subscribing_takes_the_right_to_read_every_table_and_column_of_it_and_the_hint_grants_it() {
    let (cluster, receiver) = stage(&["ann"]);
    cluster.sql(
        "CREATE SCHEMA closed;
         CREATE TABLE closed.t (id int PRIMARY KEY);
         CREATE TABLE open (id int PRIMARY KEY, note text);
         GRANT SELECT ON open, closed.t TO ann;
         CREATE TABLE secret (id int PRIMARY KEY, note text);
         CREATE TABLE \"Odd 'name\" (id int PRIMARY KEY);
         CREATE TABLE parted (id int PRIMARY KEY, note text) PARTITION BY RANGE (id);
         CREATE TABLE part PARTITION OF parted FOR VALUES FROM (0) TO (10);
         CREATE TABLE columns (id int PRIMARY KEY, shown text, hidden text);
         ALTER TABLE columns REPLICA IDENTITY FULL;
         GRANT SELECT (id, shown) ON columns TO ann;
         CREATE TABLE guarded (id int PRIMARY KEY, whose text);
         GRANT SELECT ON guarded TO ann;
         ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
         CREATE POLICY own ON guarded USING (whose = current_user);
         CREATE VIEW seen AS SELECT * FROM secret;
         GRANT SELECT ON seen TO ann;",
    );
    let ann = cluster.as_role("ann");
    let url = receiver.url("/refused");
    let mut number = 0;
    for (wanted, grant) in [
        ("tables => '{secret}'", "GRANT SELECT ON public.secret TO ann;"),
        ("tables => '{open, secret}'", "GRANT SELECT ON public.secret TO ann;"),
        ("schema => 'public', table_name => 'secret'", "GRANT SELECT ON public.secret TO ann;"),
        ("tables => '{\"public.\\\"Odd ''name\\\"\"}'", "GRANT SELECT ON public.\"Odd 'name\" TO ann;"),
        ("tables => '{public.sec*}'", "GRANT SELECT ON public.secret TO ann;"),
        ("tables => '{parted}'", "GRANT SELECT ON public.parted TO ann;"),
        ("tables => '{part}'", "GRANT SELECT ON public.part TO ann;"),
        ("tables => '{closed.t}'", "GRANT USAGE ON SCHEMA closed TO ann;"),
        ("tables => '{columns}'", "GRANT SELECT (hidden) ON public.columns TO ann;"),
        ("tables => '{columns}', columns => '{hidden}'", "GRANT SELECT (hidden) ON public.columns TO ann;"),
        (
            "tables => '{columns}', exclude_columns => '{shown}'",
            "GRANT SELECT (hidden) ON public.columns TO ann;",
        ),
        (
            "tables => '{columns}', columns => '{shown}', filter => 'length(hidden) > 3'",
            "GRANT SELECT (hidden) ON public.columns TO ann;",
        ),
        (
            "tables => '{columns}', columns => '{shown}', filter => 'OLD.hidden IS NULL', event_types => '{update}'",
            "GRANT SELECT (hidden) ON public.columns TO ann;",
        ),
        (
            "tables => '{columns}', columns => '{shown}', changed => '{hidden}'",
            "GRANT SELECT (hidden) ON public.columns TO ann;",
        ),
        (
            "tables => '{columns}', columns => '{shown}', key_columns => '{hidden}'",
            "GRANT SELECT (hidden) ON public.columns TO ann;",
        ),
        ("tables => '{guarded}'", "ALTER ROLE ann BYPASSRLS;"),
    ] {
        number += 1;
        let name = format!("s{number}");
        let refused = subscribe(&ann, &url, &name, wanted).expect_err(wanted);
        assert_eq!(refused.code, "42501", "{wanted}: {refused:?}");
        assert!(refused.hint.ends_with(grant), "{wanted}: {refused:?}");
        // What the HINT says makes it possible.
        cluster.sql(grant);
        subscribe(&ann, &url, &name, wanted).unwrap_or_else(|refused| panic!("{wanted}: {refused:?}"));
        ann.sql(&format!("SELECT pgwh.unsubscribe('{name}')"));
        let take = match grant.strip_prefix("GRANT ").map(|rest| rest.replace(" TO ann", " FROM ann")) {
            Some(rest) => format!("REVOKE {rest}"),
            None => "ALTER ROLE ann NOBYPASSRLS".to_owned(),
        };
        cluster.sql(&take);
    }
    for allowed in [
        "tables => '{open}'",
        "tables => '{columns}', columns => '{shown}', filter => 'shown <> $$x$$', changed => '{shown}'",
        "tables => '{columns}', exclude_columns => '{hidden}'",
        "tables => '{nowhere.*}'",
        "event_types => '{ddl}'",
    ] {
        subscribe(&ann, &url, "allowed", allowed).unwrap_or_else(|refused| panic!("{allowed}: {refused:?}"));
        ann.sql("SELECT pgwh.unsubscribe('allowed')");
    }
    // Other applications' messages stand in the log, which is not for everybody to read.
    let refused = subscribe(&ann, &url, "messages", "event_types => '{message:outbox}'").unwrap_err();
    assert_eq!((refused.code.as_str(), refused.hint.contains("REPLICATION")), ("42501", true), "{refused:?}");
    cluster.sql("ALTER ROLE ann REPLICATION");
    ann.subscribe(&receiver, "messages", "event_types => '{message:outbox, message}'");
    cluster.sql("SELECT pg_logical_emit_message(true, 'outbox', '1')");
    cluster.sql("ALTER ROLE ann NOREPLICATION");
    cluster.sql("SELECT pg_logical_emit_message(true, 'outbox', '2'), pgwh.emit('mine', '3')");
    let mut told = cluster.delivered(&receiver, "messages");
    told.sort_by_key(Event::place);
    let told: Vec<String> = told.iter().map(|event| event["payload"].to_string()).collect();
    assert_eq!(told, ["1", "3"]);
    ann.sql("SELECT pgwh.unsubscribe('messages')");
    // By plain SQL, too; a change of something else is none of a right's business.
    subscribe(&ann, &url, "s", "tables => '{open}'").unwrap();
    for attempt in [
        "UPDATE pgwh.subscriptions SET tables = '{public.secret}'",
        "UPDATE pgwh.subscriptions SET tables = '{*.*}'",
        "INSERT INTO pgwh.subscriptions (name, url, tables, event_types, headers, timeout, max_in_flight)
         VALUES ('plain', 'http://127.0.0.1:1/', '{secret}', '{insert}', '{}', '1 s', 1)",
    ] {
        assert_eq!(ann.refused(attempt).code, "42501", "{attempt}");
    }
    // A view is no table, whoever may read it.
    assert_eq!(subscribe(&ann, &url, "view", "tables => '{seen}'").unwrap_err().code, "42809");
    cluster.sql("REVOKE SELECT ON open FROM ann");
    ann.sql("SELECT pgwh.pause('s')");
    ann.sql("SELECT pgwh.resume('s')");
    assert_eq!(ann.refused("UPDATE pgwh.subscriptions SET columns = '{note}'").code, "42501");
    // Judged is the owner, not who writes the row.
    cluster.sql("CREATE ROLE zoe; GRANT SELECT ON open TO zoe; GRANT zoe TO ann");
    ann.sql("UPDATE pgwh.subscriptions SET owner = 'zoe'");
    assert_eq!(
        cluster.refused("UPDATE pgwh.subscriptions SET owner = 'nobody'").code,
        "42501",
        "a role that is not there"
    );
}

#[test]
fn no_row_leaves_that_was_committed_when_its_owner_might_not_read_it() {
    let (cluster, receiver) = stage(&["ann"]);
    cluster.sql(
        "CREATE SCHEMA app; GRANT USAGE ON SCHEMA app TO ann;
         CREATE TABLE app.t (id int PRIMARY KEY, note text, extra text);
         ALTER TABLE app.t REPLICA IDENTITY FULL;
         CREATE ROLE readers; CREATE ROLE other",
    );
    cluster.subscribe(&receiver, "everything", "");
    let ann = cluster.as_role("ann");
    let mut next = 0;
    for (give, take, terms) in [
        ("GRANT SELECT ON app.t TO ann", "REVOKE SELECT ON app.t FROM ann", ""),
        ("GRANT SELECT ON app.t TO PUBLIC", "REVOKE SELECT ON app.t FROM PUBLIC", ""),
        ("GRANT SELECT ON app.t TO readers; GRANT readers TO ann", "REVOKE readers FROM ann", ""),
        ("GRANT readers TO ann; GRANT SELECT ON app.t TO readers", "REVOKE SELECT ON app.t FROM readers", ""),
        (
            "GRANT SELECT ON app.t TO ann; GRANT USAGE ON SCHEMA app TO ann",
            "REVOKE USAGE ON SCHEMA app FROM ann",
            "",
        ),
        ("GRANT SELECT ON app.t TO ann; GRANT USAGE ON SCHEMA app TO ann", "DROP OWNED BY ann", ""),
        ("ALTER TABLE app.t OWNER TO ann", "ALTER TABLE app.t OWNER TO other", ""),
        ("ALTER ROLE ann SUPERUSER", "ALTER ROLE ann NOSUPERUSER", ""),
        (
            "GRANT SELECT ON app.t TO ann; ALTER TABLE app.t DISABLE ROW LEVEL SECURITY",
            "ALTER TABLE app.t ENABLE ROW LEVEL SECURITY",
            "",
        ),
        (
            "GRANT SELECT ON app.t TO ann; ALTER TABLE app.t ENABLE ROW LEVEL SECURITY; ALTER ROLE ann BYPASSRLS",
            "ALTER ROLE ann NOBYPASSRLS",
            "",
        ),
        (
            "ALTER TABLE app.t DISABLE ROW LEVEL SECURITY; GRANT SELECT (id, note) ON app.t TO ann",
            "REVOKE SELECT (note) ON app.t FROM ann",
            ", columns => '{note}'",
        ),
        (
            "GRANT SELECT (id, note, extra) ON app.t TO ann",
            "REVOKE SELECT (extra) ON app.t FROM ann",
            ", columns => '{note}', filter => 'extra IS NULL'",
        ),
    ] {
        // Rights that earlier ones have left would do.
        cluster.sql("REVOKE ALL ON app.t FROM ann, readers, PUBLIC; GRANT USAGE ON SCHEMA app TO ann");
        for grant in GRANTS {
            cluster.sql(&grant.replace('%', "ann"));
        }
        cluster.sql(give);
        ann.subscribe(&receiver, "s", &format!("tables => '{{app.t}}'{terms}"));
        let row = |id: i64| cluster.sql(&format!("INSERT INTO app.t (id, note) VALUES ({id}, 'x')"));
        let (before, without, again) = (next + 1, next + 2, next + 3);
        next += 3;
        row(before);
        caught_up(&cluster);
        eventually(&format!("sent before: {take}"), || (ids(&receiver, "s") == [before]).then_some(()));
        cluster.sql(take);
        row(without);
        assert_eq!(cluster.status("s", "state"), "error", "{take}");
        let (reason, next_step) = (cluster.status("s", "reason"), cluster.status("s", "next_step"));
        assert!(reason.contains("app.t") && !next_step.is_empty(), "{take}: {reason}; {next_step}");
        assert!(
            cluster
                .value("SELECT detail FROM pgwh.health() WHERE check_name = 'subscriptions valid'")
                .contains("app.t"),
            "{take}"
        );
        cluster.sql(give);
        for grant in GRANTS {
            cluster.sql(&grant.replace('%', "ann"));
        }
        assert_eq!(cluster.status("s", "state"), "active", "{give}");
        row(again);
        caught_up(&cluster);
        eventually(&format!("sent again: {give}"), || ids(&receiver, "s").contains(&again).then_some(()));
        assert_eq!(ids(&receiver, "s"), [before, again], "{take}");
        cluster.sql("SELECT pgwh.unsubscribe('s'); ALTER TABLE app.t OWNER TO postgres; ALTER ROLE ann NOSUPERUSER NOBYPASSRLS");
        receiver.clear();
    }
}

#[test]
fn what_waits_does_not_leave_either_once_its_owner_may_not_read_it() {
    let (cluster, receiver) = stage(&["ann"]);
    cluster.sql(
        "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE other (id int PRIMARY KEY); GRANT SELECT ON t, other TO ann",
    );
    let ann = cluster.as_role("ann");
    receiver.behave_at("/s", |_: &Request| Reply::status(503));
    ann.subscribe(
        &receiver,
        "s",
        "tables => '{t, other}', retry_schedule => array_fill(interval '300 ms', '{100}')",
    );
    cluster.sql("INSERT INTO t VALUES (1)");
    cluster.wait_status("s", "retrying = 1");
    cluster.sql("REVOKE SELECT ON t FROM ann");
    receiver.clear();
    receiver.behave_at("/s", |_: &Request| Reply::status(200));
    cluster.wait_true(
        "SELECT count(*) > 0 FROM pgwh.attempts WHERE error_class = 'denied' AND error LIKE '%public.t%'",
    );
    cluster.sql("INSERT INTO other VALUES (7)");
    eventually("the other table's", || (ids(&receiver, "s") == [7]).then_some(()));
    // What waits in the journal of the paused and what is asked for again, no more than that.
    cluster.sql("GRANT SELECT ON t TO ann");
    ann.sql("SELECT pgwh.resume('s')");
    eventually("mended", || (ids(&receiver, "s") == [1, 7]).then_some(()));
    cluster.sql("REVOKE SELECT ON t FROM ann");
    receiver.clear();
    ann.sql("SELECT pgwh.replay('s', now() - interval '1 hour')");
    ann.sql("UPDATE pgwh.subscriptions SET retry_schedule = '{}'");
    eventually("the other table's again", || (ids(&receiver, "s") == [7]).then_some(()));
    cluster.wait_true("SELECT state = 'done' AND done = total FROM pgwh.replays");
    assert_eq!(ids(&receiver, "s"), [7]);
    assert_eq!(ann.refused("SELECT pgwh.backfill('s', 't')").code, "42501");
    assert_eq!(
        ann.value("SELECT count(*) FROM pgwh.events WHERE table_name = 't' AND (data IS NOT NULL OR key IS NOT NULL)"),
        "0"
    );
}

#[test]
fn a_table_that_only_a_wildcard_leads_to_is_left_out_until_its_owner_may_read_it() {
    let (cluster, receiver) = stage(&["ann"]);
    cluster.sql("CREATE SCHEMA app; GRANT USAGE ON SCHEMA app TO ann; CREATE TABLE app.t (id int PRIMARY KEY); GRANT SELECT ON app.t TO ann");
    cluster.subscribe(&receiver, "everything", "");
    cluster.as_role("ann").subscribe(&receiver, "s", "tables => '{app.*}'");
    cluster.sql("CREATE TABLE app.later (id int PRIMARY KEY)");
    cluster.sql("INSERT INTO app.later VALUES (1)");
    cluster.sql("INSERT INTO app.t VALUES (2)");
    assert_eq!(cluster.status("s", "state"), "active");
    cluster.sql("INSERT INTO app.later VALUES (4)");
    caught_up(&cluster);
    assert_eq!(
        cluster.log().matches("subscriptions of role \"ann\" get nothing of table app.later").count(),
        1
    );
    assert!(cluster.status("s", "reason").contains("app.later"));
    assert_eq!(cluster.status("s", "next_step"), "GRANT SELECT ON app.later TO ann;");
    cluster.sql(&cluster.status("s", "next_step"));
    cluster.sql("INSERT INTO app.later VALUES (3)");
    caught_up(&cluster);
    eventually("what may be read", || (ids(&receiver, "s") == [2, 3]).then_some(()));
    assert_eq!(cluster.status("s", "reason"), "");
}

#[test]
fn each_role_sees_its_own_subscriptions_and_what_became_of_them_whatever_is_granted() {
    let (cluster, receiver) = stage(&["petra", "quentin", "eve"]);
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
    let (cluster, receiver) = stage(&["ann", "bob"]);
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
fn a_view_shows_of_an_event_no_more_than_who_looks_may_read_by_now() {
    let (cluster, receiver) = stage(&["ann"]);
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
    for grant in GRANTS {
        cluster.sql(&grant.replace('%', "bob"));
    }
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

#[test]
fn functions_of_users_types_and_casts_never_run_with_the_rights_of_the_extension() {
    let (cluster, receiver) = stage(&["eve"]);
    cluster.sql("GRANT CREATE ON DATABASE postgres TO eve");
    let eve = cluster.as_role("eve");
    eve.sql(
        "CREATE SCHEMA evil; GRANT USAGE ON SCHEMA evil TO PUBLIC;
         CREATE FUNCTION evil.tell(what text) RETURNS boolean LANGUAGE plpgsql AS
             $$ BEGIN RAISE WARNING 'hijacked by % as %', what, current_user; RETURN true; END $$;
         CREATE TYPE evil.mood AS ENUM ('glad', 'sad');
         CREATE TYPE evil.pair AS (a int, b text);
         CREATE DOMAIN evil.checked AS text CHECK (evil.tell('a domain of ' || value));
         CREATE TYPE evil.span AS RANGE (subtype = text);
         CREATE FUNCTION evil.pair_json(evil.pair) RETURNS json LANGUAGE plpgsql AS $$ BEGIN PERFORM evil.tell('a cast'); RETURN '1'; END $$;
         CREATE CAST (evil.pair AS json) WITH FUNCTION evil.pair_json(evil.pair) AS IMPLICIT;
         CREATE FUNCTION evil.mood_json(evil.mood) RETURNS json LANGUAGE plpgsql AS $$ BEGIN PERFORM evil.tell('a cast'); RETURN '1'; END $$;
         CREATE CAST (evil.mood AS json) WITH FUNCTION evil.mood_json(evil.mood) AS IMPLICIT;
         CREATE FUNCTION evil.pair_text(evil.pair) RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM evil.tell('a cast'); RETURN '1'; END $$;
         CREATE CAST (evil.pair AS text) WITH FUNCTION evil.pair_text(evil.pair) AS IMPLICIT;
         CREATE FUNCTION evil.pair_same(evil.pair, evil.pair) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RETURN evil.tell('an operator'); END $$;
         CREATE OPERATOR evil.= (LEFTARG = evil.pair, RIGHTARG = evil.pair, FUNCTION = evil.pair_same);
         CREATE TABLE evil.t (
             id int PRIMARY KEY, mood evil.mood, pair evil.pair, pairs evil.pair[], checked evil.checked, span evil.span,
             made text GENERATED ALWAYS AS (CASE WHEN id > 0 THEN 'x' END) STORED);
         ALTER TABLE evil.t REPLICA IDENTITY FULL;",
    );
    let insert = |id: i32| {
        eve.sql(&format!(
            "INSERT INTO evil.t VALUES ({id}, 'glad', ROW(1, 'b'), ARRAY[ROW(1, 'b')::evil.pair], 'c', '[a,b]')"
        ));
    };
    eve.subscribe(&receiver, "s", "tables => '{evil.t}'");
    let mut filtered = 0;
    for filter in [
        "pair = ROW(1, ''b'')::evil.pair",
        "pair::text = ''x''",
        "checked = ''c''::evil.checked",
        "evil.tell(''a filter'')",
        "pair OPERATOR(evil.=) pair",
    ] {
        let refused = eve.refused(&format!("SELECT pgwh.subscribe('http://127.0.0.1:1/', name => 'f', tables => '{{evil.t}}', filter => '{filter}')"));
        assert!(!refused.hint.is_empty(), "{refused:?}");
        filtered += 1;
    }
    assert_eq!(filtered, 5);
    eve.subscribe(
        &receiver,
        "enum",
        "tables => '{evil.t}', filter => 'mood = ''glad''', changed => '{pair, mood}'",
    );
    // The eyes of the owner are of no avail: what follows is what the workers do.
    let seen = cluster.log().matches("hijacked").count();
    insert(1);
    let told = cluster.log().matches("hijacked").count() - seen;
    eve.sql("UPDATE evil.t SET mood = 'sad', pair = ROW(2, 'c')");
    eve.sql("DELETE FROM evil.t");
    insert(2);
    assert_eq!(cluster.delivered(&receiver, "s").len(), 4);
    let event = &cluster.delivered(&receiver, "s")[0];
    assert_eq!(event["record"]["mood"], "glad");
    assert_eq!(event["record"]["pair"]["b"], "b");
    let seen_by_statements = cluster.log().matches("hijacked").count();
    assert!(told >= 1, "the domain does tell who inserts");
    eve.sql("SELECT pgwh.backfill('s')");
    cluster.wait_true("SELECT state = 'done' FROM pgwh.backfills");
    assert_eq!(cluster.delivered(&receiver, "s").len(), 5);
    let hidden: Vec<String> =
        cluster.log().lines().filter(|line| line.contains("hijacked")).map(str::to_owned).collect();
    assert!(hidden.iter().all(|line| line.contains("as eve")), "{hidden:?}");
    assert_eq!(hidden.len(), seen_by_statements, "{hidden:?}");
    assert!(hidden.iter().all(|line| line.contains("client backend")), "{hidden:?}");
}

#[test]
fn no_statement_of_the_extension_shows_a_secret_to_statistics_of_statements() {
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

#[test]
fn no_function_panics_or_crashes_whatever_it_is_given() {
    let cluster = Cluster::with_extension();
    // By the category of each argument's type (pg_type.typcategory): nulls, arrays of nulls, and the odd values.
    let values = [
        "'NULL'",
        "CASE category WHEN 'A' THEN '''{NULL}''' ELSE 'NULL' END",
        "CASE category WHEN 'A' THEN '''{}''' WHEN 'N' THEN '''-1''' WHEN 'B' THEN 'true' WHEN 'D' THEN '''infinity'''
            WHEN 'T' THEN '''-178000000 years''' WHEN 'S' THEN '''''' ELSE 'NULL' END",
    ];
    let mut internal = Vec::new();
    for value in values {
        let calls = cluster.column(&format!(
            "SELECT proname || '(' || coalesce(string_agg({value} || '::' || format_type(type, NULL), ', ' ORDER BY n), '') || ')'
             FROM pg_proc p LEFT JOIN LATERAL unnest(proargtypes::oid[]) WITH ORDINALITY a (type, n) ON true
                 LEFT JOIN LATERAL (SELECT typcategory FROM pg_type t WHERE t.oid = type) t (category) ON true
             WHERE pronamespace IN ('pgwh'::regnamespace, 'pgwh_internal'::regnamespace) AND prokind = 'f'
                 AND prorettype NOT IN ('trigger'::regtype, 'event_trigger'::regtype)
             GROUP BY p.oid, proname ORDER BY proname"
        ));
        assert!(calls.len() > 50);
        for call in calls {
            let mut session = cluster.connect();
            let call = format!("SET statement_timeout = '10 s'; BEGIN; SELECT pgwh.{call}");
            if let Err(error) = session.batch_execute(&call)
                && error.code().is_none_or(|code| code.code() == "XX000")
            {
                internal.push(format!("{call}: {error:?}"));
            }
        }
    }
    assert_eq!(internal, [] as [&str; 0]);
    assert!(!cluster.log().contains("was terminated by signal"));
}
