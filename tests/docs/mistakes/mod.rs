//! Mistakes of newcomers, each with the message that it gets. The messages are judged by reading: `mistakes/*.txt` record
//! them, and every command that a HINT has is pasted and must run.
//!
//! After an intended change: `PGWH_ACCEPT=1 make end-to-end TESTS='--test docs mistakes::'`, and read the difference.

use std::net::ToSocketAddrs;
use std::path::Path;

use harness::{Cluster, Receiver, Reply, Script, Server, Setup};

mod calls;
mod transcript;

use transcript::{Transcript, URL, commands, paste_commands};

/// Tables and functions that the mistakes are about.
const STAGE: &[&str] = &[
    "CREATE SCHEMA sales",
    "CREATE TYPE state AS ENUM ('open', 'paid')",
    "CREATE TABLE orders (id int PRIMARY KEY, status text, total numeric, placed timestamptz, state state, note json)",
    "CREATE TABLE sales.leads (id int PRIMARY KEY, name text)",
    "CREATE TABLE \"OrderItems\" (id int PRIMARY KEY, \"unitPrice\" numeric)",
    "CREATE TABLE keyless (id int, note text)",
    "CREATE VIEW open_orders AS SELECT * FROM orders WHERE status = 'open'",
    "CREATE UNLOGGED TABLE scratch (id int PRIMARY KEY)",
    "CREATE TABLE sliced (id int) PARTITION BY RANGE (id)",
    "CREATE UNLOGGED TABLE sliced_1 PARTITION OF sliced FOR VALUES FROM (0) TO (10)",
    "CREATE TABLE sliced_2 PARTITION OF sliced FOR VALUES FROM (10) TO (20)",
    "CREATE FUNCTION nowhere(event jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE AS 'SELECT jsonb_build_object(''method'', 7)'",
    "CREATE FUNCTION is_large(total numeric) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT total > 100'",
    "CREATE FUNCTION shape(event jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE AS 'SELECT event'",
    "CREATE FUNCTION broken(event jsonb) RETURNS jsonb LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no such customer''; END'",
    "CREATE FUNCTION to_text(event jsonb) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT event::text'",
];

fn stage() -> Cluster {
    stage_with(Setup::new())
}

fn stage_with(setup: Setup) -> Cluster {
    let cluster = setup.start();
    cluster.sql("CREATE EXTENSION pgstream_hooks");
    cluster.wait_true("SELECT ok FROM pgwh.health() WHERE check_name = 'slot present and valid'");
    cluster.each(STAGE);
    cluster
}

fn subscribe(arguments: &str) -> String {
    format!("SELECT pgwh.subscribe('{URL}', name => 's', {arguments})")
}

#[test]
fn mistakes_in_tables_get_the_recorded_messages() {
    let cluster = stage();
    let mut transcript = Transcript::of(&cluster);
    for (title, arguments) in [
        ("typo in a table", "tables => '{ordrs}'"),
        ("typo in a table with its schema", "tables => '{public.oders}'"),
        ("typo in a schema", "tables => '{pubic.orders}'"),
        ("typo in the schema of a pattern", "tables => '{pubic.*}'"),
        ("typo in a pattern", "tables => '{public.ordres*}'"),
        ("tables that come later", "tables => '{tenant_*.orders}'"),
        ("one pattern of two", "tables => '{public.orders,pubic.*}'"),
        ("typo in schema", "schema => 'pubic'"),
        ("a list with blanks, as pgstream writes it", "tables => '{sales.* orders}'"),
        ("a list in one element", "tables => '{\"public.orders, sales.leads\"}'"),
        ("no braces", "tables => 'public.orders'"),
        ("a list without braces", "tables => 'public.orders, sales.leads'"),
        ("% as wildcard", "tables => '{public.%}'"),
        ("a database before the schema", "tables => '{postgres.public.orders}'"),
        ("a CamelCase table without quotes", "tables => '{public.OrderItems}'"),
        ("a CamelCase table in a bare name", "tables => '{OrderItems}'"),
        ("a schema in table_name", "table_name => 'public.orders'"),
        ("a schema in table_name and in schema", "schema => 'sales', table_name => 'sales.leads'"),
        ("a wildcard in table_name", "schema => 'sales', table_name => 'l*'"),
        ("tables twice", "tables => '{orders}', table_name => 'orders'"),
        ("a view", "tables => '{open_orders}'"),
        ("an unlogged table", "tables => '{scratch}'"),
        ("a table of the extension", "tables => '{pgwh.subscriptions}'"),
        ("a system catalog", "tables => '{pg_catalog.pg_class}'"),
        ("no table at all", "tables => '{}'"),
        ("a table of which a partition is unlogged", "tables => '{sliced}'"),
    ] {
        transcript.title(title);
        transcript.run(&subscribe(arguments));
    }
    transcript.compare("tables");
}

#[test]
fn mistakes_in_columns_and_filters_get_the_recorded_messages() {
    let cluster = stage();
    let mut transcript = Transcript::of(&cluster);
    for (title, arguments) in [
        ("typo in columns", "columns => '{id,stauts}'"),
        ("typo in exclude_columns", "exclude_columns => '{ttal}'"),
        ("typo in changed", "changed => '{stauts}'"),
        ("typo in key_columns", "key_columns => '{idd}'"),
        ("a column in the wrong case", "columns => '{Status}'"),
        ("columns in two ways", "columns => '{id}', exclude_columns => '{note}'"),
        ("changed without old values", "changed => '{status}', event_types => '{update}'"),
        ("a filter of the wrong type", "filter => 'total'"),
        ("a comparison of wrong types", "filter => 'total = ''many'''"),
        ("an operator that there is not", "filter => 'status == ''paid'''"),
        ("a json compared", "filter => 'note = ''{}'''"),
        ("WHERE in a filter", "filter => 'WHERE total > 100'"),
        ("a whole query in a filter", "filter => 'SELECT * FROM orders'"),
        ("a subquery in a filter", "filter => 'id IN (SELECT id FROM orders)'"),
        ("double quotes around a text", "filter => 'status = \"paid\"'"),
        ("no quotes around a text", "filter => 'status = paid'"),
        ("typo in a column of a filter", "filter => 'totla > 100'"),
        ("the table's name in a filter", "filter => 'orders.total > 100'"),
        ("now() in a filter", "filter => 'placed > now() - interval ''1 hour'''"),
        ("current_date in a filter", "filter => 'placed > current_date'"),
        ("'now' in a filter", "filter => 'placed > ''now'''"),
        ("random() in a filter", "filter => 'random() < 0.1'"),
        ("a user's function in a filter", "filter => 'is_large(total)'"),
        ("a value that the enum does not have", "filter => 'state = ''done'''"),
        ("a filter that is empty", "filter => ' '"),
        ("a filter that is not closed", "filter => '(total > 100'"),
        ("old values in a filter", "filter => 'OLD.status IS DISTINCT FROM NEW.status'"),
        ("an aggregate in a filter", "filter => 'count(*) > 1'"),
    ] {
        transcript.title(title);
        transcript.run(&subscribe(&format!("tables => '{{orders}}', {arguments}")));
    }
    transcript.title("a time without its zone in a filter");
    let zoned = subscribe("tables => '{orders}', filter => 'placed > ''2026-01-31 12:00'' '");
    transcript.run(&format!("SET TimeZone = 'Europe/Berlin'; {zoned}"));
    transcript.compare("filters");
}

#[test]
fn mistakes_in_other_arguments_get_the_recorded_messages() {
    let cluster = stage();
    let mut transcript = Transcript::of(&cluster);
    for (title, arguments) in [
        ("a secret that is any text", "secret => 'my secret'"),
        ("a secret that is too short", "secret => 'whsec_c2hvcnQ='"),
        ("a secret that is not base64", "secret => 'whsec_!!!'"),
        ("a private key that is none", "secret => 'whsk_c2hvcnQ='"),
        ("an unknown signature", "signature => 'sha256'"),
        (
            "a secret of one kind, a signature of another",
            "secret => 'whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz', signature => 'v1a'",
        ),
        ("a client certificate that is none", "client_certificate => 'client.pem'"),
        ("headers that are no strings", "headers => '{\"x-retries\": 3}'"),
        ("headers that are a list", "headers => '[\"x-api-key: k\"]'"),
        ("a header that is set already", "headers => '{\"Content-Type\": \"text/plain\"}'"),
        ("a header twice", "headers => '{\"X-Key\": \"a\", \"x-key\": \"b\"}'"),
        ("an unknown argument", "topic => 'orders'"),
        ("an unknown format", "format => 'xml'"),
        ("batches in a format without them", "format => 'supabase', batch_size => 10"),
        ("an unknown event type", "event_types => '{inserted}'"),
        ("an unknown ordering", "ordering => 'fifo'"),
        ("an unknown compression", "compress => 'zstd'"),
        ("an unknown origin", "origin => 'remote'"),
        ("a timeout in milliseconds", "timeout => '15000 s'"),
        ("no delays at all", "retry_schedule => '{0 s}'"),
        ("too many at once", "max_in_flight => 100000"),
        ("a batch of none", "batch_size => 0"),
        ("a rate of none", "rate_limit => 0"),
        ("a retention of none", "retention => '0'"),
        ("a function by its bare name", "transform => 'public.shape'"),
        ("a function with its argument", "transform => 'public.shape(jsonb)'"),
        ("a regprocedure", "transform => 'public.shape(jsonb)'::regprocedure"),
        ("typo in a function", "transform => 'public.shap'"),
        ("a function that there is not", "route => 'public.destination'"),
        ("a function that returns something else", "transform => 'public.to_text'"),
        ("a route of batches", "route => 'public.shape', batch_size => 10"),
    ] {
        transcript.title(title);
        transcript.run(&subscribe(arguments));
        cluster.sql("DELETE FROM pgwh.subscriptions");
    }
    for (title, url) in [
        ("a user and password in the URL", "https://user:password@example.com/hook"),
        ("no scheme in the URL", "example.com/hook"),
        ("another scheme", "ftp://example.com/hook"),
        ("a blank in the URL", "https://example.com/my hook"),
        ("plain http", "http://example.com/hook"),
        ("a port that is not one of https", "https://93.184.215.14:25/"),
        ("an address of the private network", "https://10.0.0.7/hook"),
    ] {
        transcript.title(title);
        transcript.run(&format!("SELECT pgwh.subscribe('{url}', name => 's')"));
        cluster.sql("DELETE FROM pgwh.subscriptions");
    }
    transcript.title("no URL");
    transcript.run("SELECT pgwh.subscribe(NULL)");
    transcript.compare("arguments");
}

/// After the hint is followed, the role subscribes.
#[test]
fn one_denial_names_all_that_a_role_lacks() {
    let cluster = stage();
    cluster.each(&[
        "CREATE ROLE app LOGIN",
        "GRANT USAGE ON SCHEMA pgwh, pgwh_internal TO app",
        "GRANT EXECUTE ON FUNCTION pgwh.subscribe TO app",
        "GRANT SELECT ON orders TO app",
    ]);
    let app = cluster.as_role("app");
    let statement = subscribe("tables => '{orders}'");
    let refusal = app.refused(&statement);
    assert_eq!(refusal.code, "42501", "{refusal:?}");
    for lacking in
        ["SELECT on table pgwh.subscriptions", "pgwh_internal.installation", "function pgwh_internal.home()"]
    {
        assert!(refusal.detail.contains(lacking), "{refusal:?}");
    }
    cluster.each(&commands(&refusal.hint));
    app.sql(&statement);
}

#[test]
fn mistakes_of_transactions_get_the_recorded_answers() {
    let cluster = stage();
    let mut transcript = Transcript::of(&cluster);
    transcript.title("subscribe and roll back");
    transcript.run(&format!("BEGIN; {}; ROLLBACK", subscribe("tables => '{orders}'")));
    transcript.run("SELECT pgwh.wait('s')");
    transcript.title("insert and subscribe in one transaction");
    transcript
        .run(&format!("BEGIN; INSERT INTO orders VALUES (1); {}; COMMIT", subscribe("tables => '{orders}'")));
    transcript.status("s", "state = 'active'", "state, reason, next_step, pending, delivered");
    transcript.compare("transactions");
}

#[test]
fn mistakes_in_settings_get_the_recorded_messages() {
    let cluster = stage();
    let mut transcript = Transcript::of(&cluster);
    for (title, statement) in [
        ("SET instead of ALTER SYSTEM", "SET pgwh.allowed_networks = '127.0.0.0/8'"),
        ("typo in a setting", "ALTER SYSTEM SET pgwh.alowed_networks = '127.0.0.0/8'"),
        ("a host instead of a network", "ALTER SYSTEM SET pgwh.allowed_networks = 'localhost'"),
        ("a word instead of a time", "ALTER SYSTEM SET pgwh.retention = 'soon'"),
        ("a setting for a database", "ALTER DATABASE postgres SET pgwh.enabled = off"),
    ] {
        transcript.title(title);
        transcript.run(statement);
    }
    transcript.title("a key file that is not there");
    let keys = cluster.write_private("keys", "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=\n");
    let keys = format!("ALTER SYSTEM SET pgwh.encryption_key_file = '{}'", keys.display());
    cluster.each(&[&keys, "SELECT pg_reload_conf()"]);
    cluster.wait_true("SELECT current_setting('pgwh.encryption_key_file') <> ''");
    cluster.sql(&format!("SELECT pgwh.subscribe('{URL}', name => 'sealed', tables => '{{orders}}')"));
    cluster.each(&[
        "ALTER SYSTEM SET pgwh.encryption_key_file = '/etc/pgwh/no-such-file'",
        "SELECT pg_reload_conf()",
    ]);
    cluster.wait_true("SELECT current_setting('pgwh.encryption_key_file') LIKE '%no-such-file'");
    transcript.run("SELECT * FROM pgwh.preview('sealed', '{\"id\": 7}')");
    transcript.run(&subscribe("headers => '{\"authorization\": \"Bearer b\"}'"));
    transcript.health("settings valid");
    cluster.each(&["ALTER SYSTEM RESET pgwh.encryption_key_file", "SELECT pg_reload_conf()"]);
    cluster.wait_true("SELECT current_setting('pgwh.encryption_key_file') = ''");
    transcript.title("wrong lines in postgresql.conf");
    cluster.set(
        "pgwh.retention = 'soon'\npgwh.alowed_networks = '127.0.0.0/8'\npgstream_hooks.retention = '1d'",
    );
    cluster.reload();
    cluster.wait_true("SELECT NOT ok FROM pgwh.health() WHERE check_name = 'settings valid'");
    let lines = "SELECT regexp_replace(detail, 'line \\d+', 'line N', 'g'), hint FROM pgwh.health() WHERE check_name = 'settings valid'";
    transcript.run(lines);
    transcript.compare("settings");
}

#[test]
fn refused_addresses_get_one_cure_everywhere() {
    let cluster = stage_with(Setup::new().set("pgwh.allowed_networks = ''"));
    let mut transcript = Transcript::of(&cluster);
    for (title, url) in [
        ("this machine by name", "http://localhost:9910/hook"),
        ("this machine by address", "http://127.0.0.1:9910/hook"),
        ("a host of the intranet", "http://hooks.internal/hook"),
        ("an address of the private network", "https://10.0.0.7/hook"),
    ] {
        transcript.title(title);
        transcript.run(&format!("SELECT pgwh.subscribe('{url}', name => 's')"));
    }
    transcript.compare("addresses");

    // What is accepted and refused later says the same as what is refused at once.
    let refusal = cluster.refused("SELECT pgwh.subscribe('http://127.0.0.1:9910/hook', name => 's')");
    let cure = "ALTER SYSTEM SET pgwh.allowed_networks = '127.0.0.1/32'; SELECT pg_reload_conf();";
    assert_eq!(refusal.hint, format!("To allow it: {cure}"));
    let allow = |networks: &str| {
        cluster.each(&[
            &format!("ALTER SYSTEM SET pgwh.allowed_networks = '{networks}'"),
            "SELECT pg_reload_conf()",
        ]);
        cluster.wait_true(&format!("SELECT current_setting('pgwh.allowed_networks') = '{networks}'"));
    };
    allow("127.0.0.1");
    cluster.sql("SELECT pgwh.subscribe('http://127.0.0.1:9910/hook', name => 's')");
    allow("");
    cluster.wait_status("s", "state = 'error'");
    assert_eq!(cluster.status("s", "next_step"), cure);
    assert!(cluster.status("s", "reason").contains("endpoint address 127.0.0.1 is not allowed"));
    let hint = "SELECT hint FROM pgwh.health() WHERE check_name = 'subscriptions valid' AND NOT ok";
    assert!(cluster.value(hint).contains(cure), "{}", cluster.value(hint));
    cluster.each(&commands(&cluster.status("s", "next_step")));
    cluster.wait_status("s", "state <> 'error'");

    // What a name stands for is judged when a request is to be sent.
    allow("192.0.2.0/24");
    let resolves =
        |name: &String| (name.as_str(), 9910).to_socket_addrs().is_ok_and(|addresses| addresses.count() > 0);
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim().to_owned();
    let name =
        ["ip6-localhost".to_owned(), hostname].into_iter().find(resolves).expect("a name of this machine");
    cluster.each(&[
        "DELETE FROM pgwh.subscriptions",
        &format!("SELECT pgwh.subscribe('http://{name}:9910/hook', name => 'n', retry_schedule => '{{1h}}')"),
        "INSERT INTO orders VALUES (1)",
    ]);
    cluster.wait_status("n", "state = 'retrying'");
    let next_step = cluster.status("n", "next_step");
    assert!(next_step.starts_with("ALTER SYSTEM SET pgwh.allowed_networks = '192.0.2.0/24, "), "{next_step}");
    assert!(cluster.status("n", "last_error").contains(&next_step));
    let hint = cluster
        .value("SELECT hint FROM pgwh.health() WHERE check_name = 'endpoints reachable lately' AND NOT ok");
    assert!(hint.contains(&next_step), "{hint}");
    paste_commands(&cluster, &next_step);
    let troubleshooting = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/troubleshooting.md");
    let page = std::fs::read_to_string(troubleshooting).unwrap();
    assert!(
        page.contains("ALTER SYSTEM SET pgwh.allowed_networks"),
        "the page that a user looks at has the cure"
    );
}

#[test]
fn failing_endpoints_and_functions_get_the_recorded_reasons() {
    let cluster = stage();
    let receiver = Receiver::start().unwrap();
    receiver.behave_at("/secret", Script::always(Reply::status(401).body("invalid signature")));
    receiver
        .behave_at("/moved", Script::always(Reply::status(302).header("location", "https://example.com/")));
    receiver.behave_at("/gone", Script::always(Reply::status(410)));
    let mut transcript = Transcript::of(&cluster);
    let mut id = 0;
    let mut change = |transcript: &mut Transcript,
                      title: &str,
                      name: &str,
                      url: &str,
                      rest: &str,
                      condition: &str| {
        id += 1;
        transcript.title(title);
        cluster.each(&[
            "DELETE FROM pgwh.subscriptions",
            &format!("SELECT pgwh.subscribe('{url}', name => '{name}', tables => '{{orders}}', retry_schedule => '{{1h}}'{rest})"),
            &format!("INSERT INTO orders VALUES ({id})"),
        ]);
        // Words of the machine's resolver are not ours.
        let columns = if url.contains(".invalid") {
            "state, next_step, last_status"
        } else {
            "state, reason, next_step, last_status"
        };
        transcript.status(name, condition, columns);
    };
    let failed = "state = 'retrying'";
    change(&mut transcript, "a receiver with another secret", "secret", &receiver.url("/secret"), "", failed);
    change(&mut transcript, "a redirect", "moved", &receiver.url("/moved"), "", failed);
    change(
        &mut transcript,
        "an endpoint that is gone",
        "gone",
        &receiver.url("/gone"),
        "",
        "state = 'disabled'",
    );
    change(&mut transcript, "a name that does not resolve", "nowhere", "https://hooks.invalid/", "", failed);
    change(
        &mut transcript,
        "a function that raises",
        "raises",
        &receiver.url("/ok"),
        ", transform => 'public.broken'",
        failed,
    );
    transcript.compare("endpoints");
}

#[test]
fn servers_that_are_not_set_up_get_the_recorded_messages() {
    let mut text = String::new();
    for (title, setup) in [
        ("not preloaded", Setup::new().not_preloaded()),
        (
            "not preloaded beside others",
            Setup::new().set("shared_preload_libraries = 'auto_explain, pg_prewarm'"),
        ),
    ] {
        let cluster = setup.start();
        let mut transcript = Transcript::of(&cluster);
        transcript.title(title);
        transcript.run("CREATE EXTENSION pgstream_hooks");
        text += &transcript.text;
    }
    let cluster = Setup::new().set("wal_level = replica").start();
    let mut transcript = Transcript::of(&cluster);
    transcript.title("wal_level");
    transcript.run("CREATE EXTENSION pgstream_hooks");
    // Since 19 the slot that the workers make raises it.
    if Server::get().major() >= 19 {
        cluster.wait_true("SELECT ok FROM pgwh.health() WHERE check_name = 'slot present and valid'");
    }
    transcript.health("wal_level");
    text += &transcript.text;

    let cluster = Setup::new().set("max_worker_processes = 1").start();
    let mut transcript = Transcript::of(&cluster);
    transcript.title("no worker");
    transcript.run("CREATE EXTENSION pgstream_hooks");
    cluster.wait_true(
        "SELECT NOT ok AND hint LIKE 'ALTER SYSTEM%' FROM pgwh.health() WHERE check_name = 'worker running'",
    );
    transcript.run("SELECT ok, hint FROM pgwh.health() WHERE check_name = 'worker running'");
    transcript.text = text + &transcript.text;
    transcript.compare("servers");
}
