//! Mistakes in calls of functions other than `pgwh.subscribe`, and of roles without rights.

use harness::{DISPATCHER, Receiver, Reply, Script, eventually};

use super::transcript::{Transcript, URL, commands};
use super::{stage, subscribe};

/// All that a role needs to subscribe.
const GRANTS: &[&str] =
    &["CREATE ROLE app LOGIN", "SELECT pgwh.grant_usage('app')", "GRANT SELECT ON orders TO app"];

/// A role that may call one function and nothing else hears at once of all that it lacks.
#[test]
fn one_denial_names_all_that_a_caller_by_name_lacks() {
    let cluster = stage();
    cluster.sql(&format!("SELECT pgwh.subscribe('{URL}', name => 's', tables => '{{orders}}')"));
    cluster.each(&["CREATE ROLE app LOGIN", "GRANT USAGE ON SCHEMA pgwh TO app"]);
    let app = cluster.as_role("app");
    for call in
        ["pause('s')", "unsubscribe('s')", "secret('s')", "wait('s')", "backfill('s')", "replay('s', now())"]
    {
        let function = call.split('(').next().unwrap();
        cluster.sql(&format!(
            "DO $$ DECLARE f regprocedure; BEGIN FOR f IN SELECT oid FROM pg_proc WHERE pronamespace IN ('pgwh'::regnamespace, 'pgwh_internal'::regnamespace)
                 AND proname = '{function}' LOOP EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO app', f); END LOOP; END $$"
        ));
        let refusal = app.refused(&format!("SELECT pgwh.{call}"));
        assert_eq!(refusal.message, "permission denied to read subscriptions", "{call}: {refusal:?}");
        assert_eq!(
            refusal.detail,
            "Role \"app\" lacks USAGE on schema pgwh_internal, SELECT on table pgwh.subscriptions, EXECUTE on function pgwh_internal.sees(text)."
        );
        for command in commands(&refusal.hint) {
            cluster.sql(&format!("BEGIN; {command} ROLLBACK"));
        }
    }
    let refusal = app.refused("SELECT pgwh.pause('s')");
    cluster.each(&commands(&refusal.hint));
    // What is left is that the subscription is another role's.
    assert_eq!(
        app.refused("SELECT pgwh.pause('s')").detail,
        "Subscription \"s\" belongs to another role, and you are no member of that."
    );
}

/// The server would list each function.
#[test]
fn a_role_with_privileges_is_dropped_by_what_the_hint_says() {
    let cluster = stage();
    cluster.each(GRANTS);
    cluster.as_role("app").sql(&subscribe("tables => '{orders}'"));
    let refusal = cluster.refused("DROP ROLE app");
    assert_eq!((refusal.code.as_str(), refusal.detail.lines().count()), ("2BP01", 1), "{refusal:?}");
    assert_eq!(refusal.message, "role \"app\" cannot be dropped because some objects depend on it");
    assert!(refusal.detail.starts_with("It has privileges on "), "{refusal:?}");
    assert!(refusal.detail.contains("owns 1 of pgwh.subscriptions"), "{refusal:?}");
    cluster.each(&commands(&refusal.hint));
    // What is not in the schema is named by the server.
    assert_eq!(cluster.refused("DROP ROLE app").detail, "privileges for table orders");
    cluster.each(&["REVOKE ALL ON orders FROM app", "DROP ROLE app"]);
    assert_eq!(cluster.value("SELECT count(*) FROM pgwh.subscriptions"), "0");
    // As docs/troubleshooting.md has it; and a role that is not there, or has no privileges, is as it is without the extension.
    cluster.each(GRANTS);
    cluster.each(&["REASSIGN OWNED BY app TO postgres", "DROP OWNED BY app", "DROP ROLE app"]);
    cluster.each(&["DROP ROLE IF EXISTS app", "CREATE ROLE \"App\"", "DROP ROLE \"App\""]);
    assert_eq!(cluster.refused("DROP ROLE app").code, "42704");
}

/// The number of events that go with subscriptions, whichever way these are deleted.
#[test]
fn deleting_subscriptions_reports_undelivered_events() {
    let cluster = stage();
    let receiver = Receiver::start().unwrap();
    receiver.behave(Script::always(Reply::status(500)));
    for name in ["a", "b", "c"] {
        let url = receiver.url("/down");
        cluster.sql(&format!("SELECT pgwh.subscribe('{url}', name => '{name}', tables => '{{orders}}', retry_schedule => '{{1h}}')"));
    }
    cluster.sql(&format!("SELECT pgwh.subscribe('{URL}', name => 'idle', tables => '{{sales.leads}}')"));
    cluster.sql("INSERT INTO orders SELECT generate_series(1, 7)");
    cluster.wait_true("SELECT count(*) = 3 FROM pgwh.status WHERE pending = 7");
    let mut transcript = Transcript::of(&cluster);
    transcript.title("a subscription with undelivered events is ended");
    transcript.run("SELECT pgwh.unsubscribe('a')");
    transcript.title("subscriptions with undelivered events are deleted");
    transcript.run("BEGIN; DELETE FROM pgwh.subscriptions; ROLLBACK");
    transcript.run("BEGIN; DELETE FROM pgwh.subscriptions WHERE name = 'c'; ROLLBACK");
    transcript.run("DELETE FROM pgwh.subscriptions WHERE name = 'idle'");
    transcript.title("the same while nothing is sent");
    cluster.each(&["ALTER SYSTEM SET pgwh.enabled = off", "SELECT pg_reload_conf()"]);
    eventually("at rest", || cluster.processes(DISPATCHER).is_empty().then_some(()));
    transcript.run("DELETE FROM pgwh.subscriptions");
    transcript.compare("deletes");
}

/// Every function that takes the name of a subscription knows names that look like a mistyped one.
#[test]
fn each_function_suggests_the_name_that_was_meant() {
    let cluster = stage();
    cluster.sql(&format!("SELECT pgwh.subscribe('{URL}', name => 'orders', tables => '{{orders}}')"));
    // What follows the name, without what has a default.
    let functions = cluster.rows(
        "SELECT p.proname, (SELECT string_agg(
                 format(', %L::%s', CASE t WHEN 'timestamptz'::regtype THEN now()::text
                     WHEN 'pg_lsn'::regtype THEN '0/1' WHEN 'jsonb'::regtype THEN '{}' ELSE 'now' END, t::regtype), '' ORDER BY n)
             FROM unnest(p.proargtypes::oid[]) WITH ORDINALITY a (t, n)
             WHERE n BETWEEN 2 AND p.pronargs - p.pronargdefaults)
         FROM pg_proc p WHERE p.pronamespace IN ('pgwh'::regnamespace, 'pgwh_internal'::regnamespace) AND p.proargtypes[0] = 'text'::regtype
             AND p.proargnames[1] IN ('name', 'subscription')",
    );
    assert!(functions.len() >= 12, "{functions:?}");
    for function in functions {
        let name = function[0].as_deref().unwrap();
        let rest = function[1].as_deref().unwrap_or_default();
        for (typed, hint) in [
            ("ordrs", "Perhaps you meant \"orders\"."),
            ("billing", "SELECT name, url FROM pgwh.subscriptions; shows those that there are."),
        ] {
            let refusal = cluster.refused(&format!("SELECT pgwh.{name}('{typed}'{rest})"));
            assert_eq!(refusal.code, "42704", "{name}: {refusal:?}");
            assert_eq!(refusal.message, "subscription does not exist", "{name}");
            assert_eq!(refusal.hint, hint, "{name}");
        }
        let refusal = cluster.refused(&format!("SELECT pgwh.{name}(NULL::text{rest})"));
        assert_eq!(
            (refusal.code.as_str(), refusal.message.as_str()),
            ("22004", "name must be given"),
            "{name}"
        );
    }
}

#[test]
fn mistakes_in_other_calls_get_the_recorded_messages() {
    let cluster = stage();
    cluster.create_database("other");
    cluster.each(&[
        &format!("SELECT pgwh.subscribe('{URL}', name => 'orders', tables => '{{orders,keyless}}')"),
        &format!("SELECT pgwh.subscribe('{URL}', name => 'leads', tables => '{{sales.leads}}')"),
        &format!(
            "SELECT pgwh.subscribe('{URL}', name => 'routed', tables => '{{orders}}', route => 'nowhere')"
        ),
        "CREATE ROLE app LOGIN",
        "CREATE ROLE other LOGIN",
        "GRANT USAGE ON SCHEMA pgwh, pgwh_internal TO other",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON pgwh.subscriptions TO other",
        "GRANT SELECT ON pgwh_internal.installation TO other",
        "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgwh, pgwh_internal TO other",
        "CREATE ROLE trusted LOGIN",
        "GRANT USAGE ON SCHEMA pgwh TO trusted",
        "GRANT EXECUTE ON FUNCTION pgwh.subscribe TO trusted",
    ]);
    let mut transcript = Transcript::of(&cluster);
    for (title, statement) in [
        ("typo in a subscription", "SELECT pgwh.pause('ordres')"),
        ("a name of no subscription", "SELECT pgwh.secret('billing')"),
        ("ending a subscription that is not there", "SELECT pgwh.unsubscribe('billing')"),
        ("no name", "SELECT pgwh.pause(NULL)"),
        ("an unknown function", "SELECT pgwh.unsubscripe('orders')"),
        ("a backfill of another table", "SELECT pgwh.backfill('leads', 'public.orders')"),
        (
            "a backfill of a table that is not there",
            "SELECT pgwh.backfill('orders', table_name => 'public.oders')",
        ),
        ("a backfill of a CamelCase table", "SELECT pgwh.backfill('orders', table_name => 'OrderItems')"),
        ("a backfill of a table without a key", "SELECT pgwh.backfill('orders', 'public.keyless')"),
        (
            "typo in the order of a backfill",
            "SELECT pgwh.backfill('orders', 'public.orders', order_by => 'palced')",
        ),
        (
            "typo in the order of a backfill without a key",
            "SELECT pgwh.backfill('orders', 'public.keyless', order_by => 'idd')",
        ),
        (
            "a start without an order",
            "SELECT pgwh.backfill('orders', 'public.orders', start => '2026-01-01')",
        ),
        ("an order of nulls", "SELECT pgwh.backfill('orders', 'public.orders', order_by => 'placed')"),
        ("a backfill that is not there", "SELECT pgwh.pause_backfill(4711)"),
        ("a delivery that is not there", "SELECT pgwh.redeliver(4711)"),
        (
            "a replay of an unknown choice",
            "SELECT pgwh.replay('orders', now() - interval '1 hour', \"only\" => 'failed')",
        ),
        (
            "a replay from before",
            "SELECT pgwh.replay('orders', '2026-01-02 00:00+00', '2026-01-01 00:00+00')",
        ),
        ("a key that is no object", "SELECT * FROM pgwh.why('public.orders', '7')"),
        ("typo in a key", "SELECT * FROM pgwh.why('public.orders', '{\"idd\": 7}')"),
        ("an unknown action", "SELECT * FROM pgwh.preview('leads', '{\"id\": 7}', 'upsert')"),
        ("a row that is no object", "SELECT * FROM pgwh.preview('leads', '7')"),
        ("a row of no table", "SELECT * FROM pgwh.preview('leads', '{\"total\": 7}')"),
        ("a row of none of several tables", "SELECT * FROM pgwh.preview('orders', '{\"weight\": 7}')"),
        ("a route that gives no method", "SELECT * FROM pgwh.preview('routed', '{\"id\": 7}')"),
        ("a row that is no JSON", "SELECT * FROM pgwh.preview('leads', 'id=7')"),
        ("a message without a type", "SELECT pgwh.emit('', '{}')"),
        ("a gap that is not there", "SELECT pgwh.acknowledge_gap(4711)"),
        ("skipping what is not there", "SELECT pgwh.skip(4711)"),
        ("resuming a backfill that is not there", "SELECT pgwh.resume_backfill(NULL)"),
        ("waiting for a backfill that is not there", "SELECT pgwh.wait('orders', backfill => 4711)"),
        ("waiting for a replay that is not there", "SELECT pgwh.wait('orders', replay => 4711)"),
        ("a row of a table that is not there", "SELECT * FROM pgwh.why('public.oders', '{\"id\": 7}')"),
        ("a pattern where a row is asked for", "SELECT * FROM pgwh.why('public.*', '{\"id\": 7}')"),
        ("forgetting a row by a part of its key", "SELECT * FROM pgwh.forget('public.orders', '{}')"),
        ("an unknown kind of key", "SELECT pgwh.generate_secret('v2')"),
        ("an unknown way to adopt", "SELECT pgwh.adopt(pending => 'keep')"),
        (
            "a ping to a subscription that is not committed",
            "BEGIN; SELECT pgwh.subscribe('https://example.com/p', name => 'p'); SELECT * FROM pgwh.test('p'); ROLLBACK",
        ),
        (
            "a replay of times and positions",
            "SELECT pgwh.replay('orders', since => now(), since_lsn => '0/1')",
        ),
        ("a replay from no time", "SELECT pgwh.replay('orders')"),
        ("a replay from a time that is none", "SELECT pgwh.replay('orders', 'ysterday')"),
        ("a replay of tables that are not there", "SELECT pgwh.replay('orders', now(), tables => '{oders}')"),
        ("a chunk of no rows", "SELECT pgwh.backfill('orders', 'public.orders', chunk_size => 0)"),
        (
            "a filter of a backfill with a typo",
            "SELECT pgwh.backfill('orders', 'public.orders', filter => 'totla > 1')",
        ),
        ("an overlap that is negative", "SELECT pgwh.rotate_secret('orders', '-1 h')"),
        ("a replay that is not there", "SELECT pgwh.cancel_replay(4711)"),
    ] {
        transcript.title(title);
        transcript.run(statement);
    }
    let id = cluster.value("SELECT pgwh.backfill('leads')");
    cluster.wait_true(&format!("SELECT state = 'done' FROM pgwh.backfills WHERE id = {id}"));
    transcript.title("a backfill that is over");
    transcript.run(&format!("SELECT pgwh.pause_backfill({id})"));
    let id = cluster.value("SELECT pgwh.replay('leads', now() - interval '1 s')");
    cluster.wait_true(&format!("SELECT state = 'done' FROM pgwh.replays WHERE id = {id}"));
    transcript.title("a replay that is over");
    transcript.run(&format!("SELECT pgwh.cancel_replay({id})"));
    let receiver = Receiver::start().unwrap();
    receiver.behave_at("/refused", Script::always(Reply::status(500)));
    cluster.each(&[
        "DELETE FROM pgwh.subscriptions WHERE name IN ('orders', 'routed')",
        &format!(
            "SELECT pgwh.subscribe('{}', name => 'taken', tables => '{{orders}}')",
            receiver.url("/taken")
        ),
        "INSERT INTO orders VALUES (1)",
    ]);
    let delivery = "SELECT id FROM pgwh.deliveries WHERE subscription = ";
    cluster.wait_status("taken", "delivered = 1");
    cluster.wait_true("SELECT count(*) = 1 FROM pgwh.deliveries WHERE subscription = 'taken'");
    let taken = cluster.value(&format!("{delivery}'taken'"));
    cluster.each(&[
        "DELETE FROM pgwh.subscriptions WHERE name = 'taken'",
        &format!("SELECT pgwh.subscribe('{}', name => 'refused', tables => '{{orders}}', retry_schedule => '{{1h}}')", receiver.url("/refused")),
        "INSERT INTO orders VALUES (2)",
    ]);
    cluster.wait_status("refused", "retrying = 1");
    cluster.wait_true("SELECT count(*) = 1 FROM pgwh.deliveries WHERE subscription = 'refused'");
    let refused = cluster.value(&format!("{delivery}'refused'"));
    transcript.title("a delivery that is pending is sent again");
    transcript.run(&format!("SELECT pgwh.redeliver({refused})"));
    cluster.each(&[
        &format!(
            "SELECT pgwh.subscribe('{}', name => 'kept', tables => '{{orders}}')",
            receiver.url("/kept")
        ),
        "INSERT INTO orders VALUES (3)",
    ]);
    cluster.wait_status("kept", "delivered = 1");
    cluster.wait_true("SELECT count(*) = 1 FROM pgwh.deliveries WHERE subscription = 'kept'");
    let forgotten = cluster.value(&format!("{delivery}'kept'"));
    cluster.each(&[
        "DELETE FROM pgwh.subscriptions WHERE name = 'refused'",
        "SELECT pgwh.forget('public.orders', '{\"id\": 3}')",
    ]);
    for (title, call, id) in [
        ("a delivery that is done is skipped", "skip", &taken),
        ("a delivery of a subscription that is gone", "redeliver", &taken),
        ("a delivery of a row that is forgotten", "redeliver", &forgotten),
    ] {
        transcript.title(title);
        transcript.run(&format!("SELECT pgwh.{call}({id})"));
    }
    for (title, statement) in [
        ("another role's subscription", "SELECT pgwh.pause('leads')".to_owned()),
        ("another role's name", format!("SELECT pgwh.subscribe('{URL}', name => 'leads')")),
        ("a table that the role may not read", subscribe("tables => '{orders}'")),
        (
            "history of a table that the role may not read",
            "SELECT * FROM pgwh.why('public.orders', '{\"id\": 7}')".to_owned(),
        ),
        (
            "erasing as an ordinary role",
            "SELECT * FROM pgwh.forget('public.orders', '{\"id\": 7}')".to_owned(),
        ),
        ("other applications' messages", subscribe("event_types => '{message:outbox}'")),
        (
            "another role as owner",
            "INSERT INTO pgwh.subscriptions (url, owner) VALUES ('https://example.com/', 'postgres')"
                .to_owned(),
        ),
    ] {
        transcript.title(title);
        transcript.run_as(&cluster.as_role("other"), &statement);
    }
    transcript.title("another database");
    transcript.run_as(&cluster.database("other"), &subscribe("tables => '{orders}'"));
    transcript.title("a role without privileges");
    transcript.run_as(&cluster.as_role("app"), &subscribe("tables => '{orders}'"));
    transcript.title("a role without most privileges");
    transcript.run_as(&cluster.as_role("trusted"), &subscribe("tables => '{orders}'"));
    transcript.compare("calls");
}
