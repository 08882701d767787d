//! Who is subscribed gets exactly what was committed after the subscription, under the same rules by function and by
//! plain SQL; what makes no sense is refused in words that help.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use harness::{Cluster, Database, Event, Receiver, Setup, eventually};
use serde_json::json;

fn stage() -> (Cluster, Receiver) {
    let cluster = Cluster::with_extension();
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY, note text); CREATE TABLE other (id int PRIMARY KEY)");
    (cluster, Receiver::start().unwrap())
}

fn what(events: &[Event]) -> Vec<String> {
    let mut told: Vec<_> = events.iter().map(Event::what).collect();
    told.sort();
    told
}

#[test]
fn changes_from_before_the_subscription_are_not_sent() {
    let (cluster, receiver) = stage();
    cluster.sql("INSERT INTO t VALUES (1)");
    cluster.subscribe(&receiver, "s", "");
    cluster.sql("INSERT INTO t VALUES (2)");
    let events = cluster.delivered(&receiver, "s");
    assert_eq!(events.iter().map(|e| e["key"]["id"].to_string()).collect::<Vec<_>>(), ["2"]);
}

/// WAL itself tells the order of commits: what must arrive is what committed between the changes of the subscription.
#[test]
fn under_load_exactly_what_commits_while_subscribed_is_sent() {
    let cluster = Cluster::start();
    cluster.each(&[
        "CREATE EXTENSION pgstream_hooks",
        "CREATE EXTENSION pg_walinspect",
        "CREATE TABLE t (id int PRIMARY KEY)",
    ]);
    let start = cluster.value("SELECT pg_current_wal_lsn()");
    let receiver = Receiver::start().unwrap();
    let (stop, next) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut switches = Vec::new();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut client = cluster.connect();
                while !stop.load(Ordering::Relaxed) {
                    let id = next.fetch_add(1, Ordering::Relaxed);
                    client.batch_execute(&format!("INSERT INTO t VALUES ({id})")).unwrap();
                }
            });
        }
        let mut client = cluster.connect();
        let mut switch = |sql: &str, on: bool| {
            let seen = next.load(Ordering::Relaxed);
            eventually("some more was written", || (next.load(Ordering::Relaxed) > seen + 30).then_some(()));
            let row =
                client.query_one(&format!("WITH s AS ({sql}) SELECT pg_current_xact_id()::text FROM s"), &[]);
            switches.push((row.unwrap().get::<_, String>(0), on));
        };
        let url = receiver.url("/s");
        switch(&format!("SELECT pgwh.subscribe('{url}', name => 's', tables => '{{public.t}}')"), true);
        for _ in 0..5 {
            switch("SELECT pgwh.unsubscribe('s')", false);
            switch(&format!("SELECT pgwh.subscribe('{url}', name => 's', tables => '{{public.t}}')"), true);
        }
        let seen = next.load(Ordering::Relaxed);
        eventually("some more was written", || (next.load(Ordering::Relaxed) > seen + 30).then_some(()));
        stop.store(true, Ordering::Relaxed);
    });
    cluster.delivered(&receiver, "s");

    // Every subscription in between has an id of its own; unsubscribing may drop what it had not sent yet. So what
    // came must have been committed while subscribed, and what the last one matched must all have come.
    let commits: Vec<String> = cluster.column(&format!(
        "SELECT xid FROM pg_get_wal_records_info('{start}', pg_current_wal_flush_lsn())
         WHERE resource_manager = 'Transaction' AND record_type LIKE 'COMMIT%' ORDER BY start_lsn"
    ));
    let writer_of =
        |row: Vec<Option<String>>| (row[0].clone().unwrap(), row[1].clone().unwrap().parse::<i64>().unwrap());
    let written: std::collections::HashMap<String, i64> =
        cluster.rows("SELECT xmin, id FROM t").into_iter().map(writer_of).collect();
    let (mut on, mut allowed, mut required) = (false, BTreeSet::new(), BTreeSet::new());
    for xid in &commits {
        if let Some((_, switched)) = switches.iter().find(|(switch, _)| switch == xid) {
            on = *switched;
            required.clear();
        } else if let Some(id) = written.get(xid).filter(|_| on) {
            allowed.insert(*id);
            required.insert(*id);
        }
    }
    assert!(required.len() >= 30 && allowed.len() < written.len());
    let came: BTreeSet<i64> =
        harness::events_of(&receiver, "s").iter().map(|event| event["key"]["id"].as_i64().unwrap()).collect();
    assert_eq!(came.difference(&allowed).collect::<Vec<_>>(), [] as [&i64; 0], "not subscribed then");
    assert_eq!(required.difference(&came).collect::<Vec<_>>(), [] as [&i64; 0], "lost");
}

#[test]
fn disabling_and_narrowing_under_load_are_exact_as_well() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "tables => '{public.t}'");
    let mut id = 0;
    let mut insert = |table: &str| {
        id += 1;
        cluster.sql(&format!("INSERT INTO {table} VALUES ({id})"));
        id
    };
    let mut expected = Vec::new();
    for _ in 0..5 {
        expected.push(insert("t"));
        insert("other");
        cluster.sql("UPDATE pgwh.subscriptions SET enabled = false");
        insert("t");
        cluster.sql("UPDATE pgwh.subscriptions SET enabled = true, tables = '{public.other}'");
        insert("t");
        expected.push(insert("other"));
        cluster.sql("UPDATE pgwh.subscriptions SET tables = '{public.t}'");
    }
    let mut came: Vec<i64> =
        cluster.delivered(&receiver, "s").iter().map(|event| event["key"]["id"].as_i64().unwrap()).collect();
    came.sort_unstable();
    assert_eq!(came, expected);
}

#[test]
fn a_subscription_and_the_changes_of_its_own_transaction() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "first", "");
    let url = receiver.url("/s");
    cluster.sql(&format!(
        "BEGIN; INSERT INTO t VALUES (1); SELECT pgwh.subscribe('{url}', name => 's'); INSERT INTO t VALUES (2); COMMIT"
    ));
    cluster.sql(&format!("BEGIN; SELECT pgwh.subscribe('{url}', name => 'undone'); ROLLBACK"));
    cluster.sql("INSERT INTO t VALUES (3)");
    let came: Vec<_> = cluster.delivered(&receiver, "s").iter().map(|e| e["key"]["id"].to_string()).collect();
    assert_eq!(came, ["3"], "what was committed with it is not after it");
    assert_eq!(cluster.column("SELECT name FROM pgwh.subscriptions ORDER BY id"), ["first", "s"]);
}

#[test]
fn event_types_are_words_or_letters() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "words", "event_types => '{insert, Delete}'");
    cluster.subscribe(&receiver, "letters", "event_types => '{U,t}'");
    cluster.each(&["INSERT INTO t VALUES (1)", "UPDATE t SET note = ''", "DELETE FROM t", "TRUNCATE t"]);
    assert_eq!(what(&cluster.delivered(&receiver, "words")), ["public.t delete", "public.t insert"]);
    assert_eq!(what(&cluster.delivered(&receiver, "letters")), ["public.t truncate", "public.t update"]);
}

#[test]
fn tables_are_chosen_by_pattern_bare_name_or_schema() {
    let (cluster, receiver) = stage();
    cluster.sql(
        "CREATE SCHEMA sales; CREATE TABLE sales.orders (id int); CREATE TABLE sales.order_lines (id int);
         CREATE SCHEMA \"Odd.One\"; CREATE TABLE \"Odd.One\".\"T*x\" (id int); CREATE TABLE \"Odd.One\".tax (id int)",
    );
    let cases = [
        ("everything", "", 6),
        ("one_schema", "tables => '{sales.*}'", 2),
        ("by_prefix", "tables => '{*.order*}'", 2),
        ("two", "tables => '{public.t, sales.orders}'", 2),
        ("bare", "tables => '{other}'", 1),
        ("schema_argument", "schema => 'sales'", 2),
        ("table_argument", "schema => 'sales', table_name => 'orders'", 1),
        ("quoted", "tables => array['\"Odd.One\".\"T*x\"']", 1),
    ];
    for (name, arguments, _) in cases {
        cluster.subscribe(&receiver, name, arguments);
    }
    cluster.sql(
        "INSERT INTO t VALUES (1); INSERT INTO other VALUES (1); INSERT INTO sales.orders VALUES (1);
         INSERT INTO sales.order_lines VALUES (1); INSERT INTO \"Odd.One\".\"T*x\" VALUES (1);
         INSERT INTO \"Odd.One\".tax VALUES (1)",
    );
    for (name, _, count) in cases {
        let came = what(&cluster.delivered(&receiver, name));
        assert_eq!(came.len(), count, "{name}: {came:?}");
    }
    // A bare name is looked up when it is given, and means that table ever after.
    let tables = cluster.value("SELECT tables FROM pgwh.subscriptions WHERE name = 'bare'");
    assert_eq!(tables, "{public.other}");
    cluster.sql(&format!(
        "SET search_path = sales; SELECT pgwh.subscribe('{}', name => 'bare', tables => '{{orders}}')",
        receiver.url("/bare")
    ));
    assert_eq!(cluster.value("SELECT tables FROM pgwh.subscriptions WHERE name = 'bare'"), "{sales.orders}");
}

#[test]
fn a_pattern_matches_tables_that_come_later() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "tables => '{later.*}'");
    cluster.sql("CREATE SCHEMA later; CREATE TABLE later.born (id int); INSERT INTO later.born VALUES (1)");
    assert_eq!(what(&cluster.delivered(&receiver, "s")), ["later.born insert"]);
}

#[test]
fn subscribing_again_changes_the_subscription() {
    let (cluster, receiver) = stage();
    let url = receiver.url("/s");
    let subscribe = |rest: &str| cluster.value(&format!("SELECT pgwh.subscribe('{url}'{rest})"));
    let named = subscribe(", name => 'n', tables => '{public.t}'");
    assert_eq!(subscribe(", name => 'n', tables => '{public.other}', timeout => '3 s'"), named);
    let row = cluster.rows("SELECT tables, timeout FROM pgwh.subscriptions WHERE name = 'n'").remove(0);
    assert_eq!(row, [Some("{public.other}".into()), Some("00:00:03".into())]);

    let nameless = subscribe(", tables => '{public.t}'");
    assert_ne!(nameless, named);
    assert_eq!(subscribe(", tables => '{public.t}', event_types => '{insert}'"), nameless);
    assert_ne!(subscribe(""), nameless, "other tables, another subscription");
    assert_eq!(cluster.value("SELECT count(*) FROM pgwh.subscriptions WHERE name <> ''"), "3");
    cluster.sql("INSERT INTO other VALUES (1)");
    for name in cluster.column("SELECT name FROM pgwh.subscriptions") {
        cluster.delivered(&receiver, &name);
    }
    assert_eq!(harness::events_of(&receiver, "s").len(), 2, "the named one and the one of all tables");
}

#[test]
fn plain_sql_is_as_good_as_the_functions() {
    let (cluster, receiver) = stage();
    let (here, there) = (receiver.url("/here"), receiver.url("/there"));
    cluster.sql(&format!(
        "INSERT INTO pgwh.subscriptions (url, name, tables) VALUES ('{here}', 'here', '{{t}}')"
    ));
    assert_eq!(cluster.value("SELECT tables FROM pgwh.subscriptions"), "{public.t}");
    cluster.sql("INSERT INTO t VALUES (1)");
    assert_eq!(cluster.delivered(&receiver, "here").len(), 1);
    cluster.sql(&format!(
        "UPDATE pgwh.subscriptions SET url = '{there}', name = 'there', event_types = '{{D}}'"
    ));
    cluster.each(&["INSERT INTO t VALUES (2)", "DELETE FROM t WHERE id = 1"]);
    assert_eq!(what(&cluster.delivered(&receiver, "there")), ["public.t delete"]);
    cluster.sql("DELETE FROM pgwh.subscriptions");
    receiver.clear();
    cluster.sql("INSERT INTO t VALUES (3)");
    cluster.subscribe(&receiver, "after", "");
    cluster.sql("INSERT INTO t VALUES (4)");
    cluster.delivered(&receiver, "after");
    assert_eq!(receiver.count(), 1);
}

#[test]
fn unsubscribe_ends_it() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "");
    cluster.subscribe(&receiver, "stays", "");
    cluster.sql("INSERT INTO t VALUES (1)");
    cluster.delivered(&receiver, "s");
    cluster.sql("SELECT pgwh.unsubscribe('s')");
    cluster.sql("INSERT INTO t VALUES (2)");
    assert_eq!(cluster.delivered(&receiver, "stays").len(), 2);
    assert_eq!(harness::events_of(&receiver, "s").len(), 1);
    let refusal = cluster.refused("SELECT pgwh.unsubscribe('stay')");
    assert_eq!(refusal.code, "42704");
    assert!(refusal.hint.contains("stays"), "{refusal:?}");
}

#[test]
fn headers_arrive_and_a_disabled_subscription_sends_nothing() {
    let (cluster, receiver) = stage();
    cluster.subscribe(
        &receiver,
        "s",
        r#"headers => '{"X-Api-Key": "s3cret", "authorization": "Bearer abc"}'"#,
    );
    cluster.subscribe(&receiver, "off", "enabled => false");
    cluster.sql("INSERT INTO t VALUES (1)");
    let events = cluster.delivered(&receiver, "s");
    assert_eq!(events[0].request.header("x-api-key"), Some("s3cret"));
    assert_eq!(events[0].request.header("authorization"), Some("Bearer abc"));
    assert_eq!(events[0].request.header("content-type"), Some("application/json"));
    assert!(events[0].request.header("user-agent").unwrap().starts_with("pgstream_hooks/"));
    assert_eq!(receiver.count(), 1);
}

/// A statement by function and the same by plain SQL; the SQLSTATE; a word that DETAIL must name.
fn refused_both_ways(database: &Database, arguments: &[(&str, &str)], code: &str, named: &str) {
    let with = |name: &str, default: &str| {
        arguments
            .iter()
            .find(|(its, _)| *its == name)
            .map_or_else(|| default.to_owned(), |(_, value)| (*value).to_owned())
    };
    let url = with("url", "'http://127.0.0.1:9/'");
    let rest: Vec<_> = arguments.iter().filter(|(name, _)| *name != "url").collect();
    let named_arguments: String = rest.iter().map(|(name, value)| format!(", {name} => {value}")).collect();
    let columns: String = rest.iter().map(|(name, _)| format!(", {name}")).collect();
    let values: String = rest.iter().map(|(_, value)| format!(", {value}")).collect();
    let sets: String = arguments.iter().map(|(name, value)| format!("{name} = {value},")).collect();
    for sql in [
        format!("SELECT pgwh.subscribe({url}{named_arguments})"),
        format!("INSERT INTO pgwh.subscriptions (url{columns}) VALUES ({url}{values})"),
        format!("UPDATE pgwh.subscriptions SET {} WHERE name = 'victim'", sets.trim_end_matches(',')),
    ] {
        let refusal = database.refused(&sql);
        assert_eq!(refusal.code, code, "{sql}\n{refusal:?}");
        assert!(refusal.detail.contains(named), "{sql}\n{refusal:?}");
        assert!(!refusal.message.is_empty() && !refusal.hint.is_empty(), "{sql}\n{refusal:?}");
    }
}

#[test]
fn bad_input_is_refused_with_sqlstate_detail_and_hint() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "victim", "");
    cluster.sql("CREATE UNLOGGED TABLE fleeting (id int); CREATE VIEW seen AS SELECT 1 AS one");
    let no_url = [
        "'no url'",
        "''",
        "'ftp://example.com/'",
        "'https://'",
        "'https://exa mple.com/'",
        "'https://h:99999/'",
    ];
    for url in no_url {
        refused_both_ways(&cluster, &[("url", url)], "22023", url.trim_matches('\''));
    }
    refused_both_ways(&cluster, &[("tables", "'{public.nowhere}'")], "42P01", "public.nowhere");
    refused_both_ways(&cluster, &[("tables", "'{nowhere}'")], "42P01", "nowhere");
    refused_both_ways(&cluster, &[("tables", "'{public.fleeting}'")], "42809", "public.fleeting");
    refused_both_ways(&cluster, &[("tables", "'{public.seen}'")], "42809", "public.seen");
    refused_both_ways(&cluster, &[("tables", "'{a.b.c}'")], "22023", "a.b.c");
    refused_both_ways(&cluster, &[("tables", "'{}'")], "22023", "tables");
    refused_both_ways(&cluster, &[("event_types", "'{insert, upsert}'")], "22023", "upsert");
    refused_both_ways(&cluster, &[("headers", r#"'{"x-a": "b\r\nx-c: d"}'"#)], "22023", "x-a");
    refused_both_ways(&cluster, &[("headers", r#"'{"x\na": "b"}'"#)], "22023", "x");
    refused_both_ways(&cluster, &[("headers", r#"'{"webhook-id": "mine"}'"#)], "22023", "webhook-id");
    refused_both_ways(&cluster, &[("headers", r#"'{"Content-Length": "3"}'"#)], "22023", "ontent-");
    refused_both_ways(&cluster, &[("headers", "'[1]'")], "22023", "");
    refused_both_ways(&cluster, &[("headers", r#"'{"x-a": 1}'"#)], "22023", "x-a");
    refused_both_ways(&cluster, &[("timeout", "'0 s'")], "22023", "");
    refused_both_ways(&cluster, &[("timeout", "'-1 s'")], "22023", "");
    refused_both_ways(&cluster, &[("columns", "'{note, b}'"), ("tables", "'{t}'")], "42703", "b");
    refused_both_ways(&cluster, &[("batch_size", "0")], "22023", "batch_size");
    refused_both_ways(&cluster, &[("batch_wait", "'2 h'")], "22023", "batch_wait");
    refused_both_ways(&cluster, &[("ordering", "'loose'")], "22023", "loose");
    refused_both_ways(&cluster, &[("retry_schedule", "'{31 d}'")], "22023", "retry_schedule");
    refused_both_ways(&cluster, &[("retention", "'0'")], "22023", "retention");
    refused_both_ways(&cluster, &[("name", "''")], "42602", "name");
    assert_eq!(cluster.value("SELECT count(*) FROM pgwh.subscriptions"), "1");
}

#[test]
fn columns_and_batches_are_as_the_subscription_says_now() {
    let (cluster, receiver) = stage();
    cluster.sql("CREATE TABLE people (id int PRIMARY KEY, name text, password text)");
    cluster.sql("ALTER TABLE people REPLICA IDENTITY FULL");
    cluster.subscribe(&receiver, "public", "tables => '{people}', exclude_columns => '{password}'");
    let delivered = |statement: &str| {
        cluster.sql(statement);
        let mut events = cluster.delivered(&receiver, "public");
        events.pop().unwrap()
    };
    let event = delivered("INSERT INTO people VALUES (1, 'Ada', 'secret')");
    assert_eq!(event["record"], json!({"id": 1, "name": "Ada"}));
    let event = delivered("UPDATE people SET password = 'hunter2'");
    assert_eq!((&event["record"], &event["changes"]), (&json!({"id": 1, "name": "Ada"}), &json!({})));
    assert!(event.request.body().starts_with(b"{"));

    // What routing does not know of reaches the dispatcher all the same.
    cluster.sql(
        "UPDATE pgwh.subscriptions SET exclude_columns = NULL, columns = '{password}' WHERE name = 'public'",
    );
    let event = delivered("UPDATE people SET name = 'Eve'");
    assert_eq!(event["record"], json!({"id": 1, "password": "hunter2"}));
    cluster.sql("UPDATE pgwh.subscriptions SET batch_size = 10 WHERE name = 'public'");
    let event = delivered("DELETE FROM people");
    assert!(event.request.body().starts_with(b"[{"));
    assert_eq!(event["record"], json!({"id": 1, "password": "hunter2"}));
}

#[test]
fn a_temporary_table_and_null_and_two_ways_at_once_are_refused() {
    let (cluster, _) = stage();
    for (sql, code) in [
        (
            "CREATE TEMP TABLE mine (id int); SELECT pgwh.subscribe('http://127.0.0.1:9/', tables => '{mine}')",
            "42809",
        ),
        ("SELECT pgwh.subscribe(NULL)", "22004"),
        ("SELECT pgwh.subscribe('http://127.0.0.1:9/', tables => '{t}', schema => 'public')", "22023"),
        ("SELECT pgwh.subscribe('http://127.0.0.1:9/', table_name => 'tt')", "42P01"),
    ] {
        let refusal = cluster.refused(sql);
        assert_eq!(refusal.code, code, "{sql}\n{refusal:?}");
        assert!(!refusal.detail.is_empty() && !refusal.hint.is_empty(), "{sql}\n{refusal:?}");
    }
}

#[test]
fn addresses_outside_the_allowed_networks_are_refused() {
    let (cluster, _) = stage();
    for url in ["http://10.0.0.1/", "http://[::1]/", "http://169.254.169.254/latest/"] {
        let refusal = cluster.refused(&format!("SELECT pgwh.subscribe('{url}')"));
        assert!(
            !refusal.detail.is_empty() && refusal.hint.contains("pgwh.allowed_networks"),
            "{url}: {refusal:?}"
        );
    }
}

#[test]
fn status_shows_each_of_a_thousand_subscriptions() {
    let cluster = Cluster::start();
    cluster.each(&["CREATE EXTENSION pgstream_hooks", "CREATE TABLE t (id int PRIMARY KEY)"]);
    let receiver = Receiver::start().unwrap();
    // More than are shown in one go.
    cluster.sql(&format!(
        "INSERT INTO pgwh.subscriptions (name, url, tables, event_types, headers, timeout, max_in_flight)
         SELECT 's' || n, '{}', '{{t}}', '{{insert}}', '{{}}', '15 s', 4 FROM generate_series(1, 1000) n",
        receiver.url("/")
    ));
    cluster.sql("INSERT INTO t VALUES (1)");
    cluster.wait_true("SELECT count(*) = 1000 FROM pgwh.status WHERE delivered = 1 AND pending = 0");
}

#[test]
fn subscribe_waits_for_capture_with_and_without_a_name() {
    for name in ["", "name => 's', "] {
        let cluster = Cluster::start();
        let receiver = Receiver::start().unwrap();
        let mut holder = cluster.connect();
        // No replication slot is made before this ends.
        holder.batch_execute("BEGIN; SELECT pg_current_xact_id()").unwrap();
        cluster.each(&["CREATE EXTENSION pgstream_hooks", "CREATE TABLE t (id int PRIMARY KEY)"]);
        let call = format!("SELECT pgwh.subscribe('{}', {name}tables => '{{public.t}}')", receiver.url("/s"));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| cluster.try_sql(&call));
            let active = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'SELECT pgwh.subscribe(%'";
            eventually("it waits", || (cluster.value(active) == "1" || waiting.is_finished()).then_some(()));
            holder.batch_execute("COMMIT").unwrap();
            waiting.join().unwrap().unwrap();
        });
        cluster.sql("INSERT INTO t VALUES (1)");
        let name = cluster.value("SELECT name FROM pgwh.subscriptions");
        cluster.wait_status(&name, "delivered = 1");
    }
}

#[test]
fn thousands_of_subscriptions_at_once_take_few_locks() {
    let cluster = Setup::new().set("max_locks_per_transaction = 10\nmax_connections = 20").start();
    cluster.sql("CREATE EXTENSION pgstream_hooks");
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let receiver = Receiver::start().unwrap();
    let url = receiver.url("/s");
    cluster.sql(&format!(
        "INSERT INTO pgwh.subscriptions (name, url, tables) SELECT 's' || n, '{url}', '{{public.t}}' FROM generate_series(1, 5000) n"
    ));
    assert_eq!(cluster.value("SELECT count(DISTINCT secret) FROM pgwh.secrets"), "5000");
    let rotated = "SELECT count(DISTINCT pgwh.rotate_secret(name)) FROM pgwh.subscriptions";
    assert_eq!(cluster.value(rotated), "5000");
    cluster.sql("UPDATE pgwh.subscriptions SET headers = '{\"Authorization\": \"Bearer x\"}'");
    assert_eq!(cluster.value("SELECT pgwh.seal_secrets()"), "5000");
}
