//! The extension comes, works, survives and goes by itself, with two lines of configuration.

use harness::{
    Answer, Cluster, DECODER, DISPATCHER, Database, LAUNCHER, PATIENCE, Process, Receiver, Reply, Request,
    Script, Server, Setup, Stop, eventually,
};

const SLOTS: &str = "SELECT count(*) FROM pg_replication_slots";

/// Whether changes of this database arrive: the whole way, once.
#[track_caller]
fn works(database: &Database) {
    let receiver = Receiver::start().unwrap();
    database.sql("CREATE TABLE IF NOT EXISTS probe (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY)");
    database.subscribe(&receiver, "probe", "tables => '{public.probe}'");
    database.sql("INSERT INTO probe DEFAULT VALUES");
    assert_eq!(database.delivered(&receiver, "probe").len(), 1);
    database.sql("SELECT pgwh.unsubscribe('probe')");
}

/// Waits until nothing of the extension is left in the cluster but the launcher.
#[track_caller]
fn nothing_is_left(cluster: &Cluster) {
    cluster.wait_true("SELECT count(*) = 0 FROM pg_replication_slots");
    cluster.wait_true(
        "SELECT count(*) = 0 FROM pg_stat_activity \
         WHERE backend_type IN ('pgstream_hooks dispatcher', 'pgstream_hooks decoder')",
    );
}

#[test]
fn the_documented_configuration_is_enough() {
    let cluster = Setup::new()
        // As the server ships, but for those two lines and where we listen.
        .set("max_worker_processes = 8\nmax_replication_slots = 10\nmax_wal_senders = 10\nfsync = on")
        .start();
    cluster.sql("CREATE EXTENSION pgstream_hooks");
    works(&cluster);
    for kind in [LAUNCHER, DISPATCHER, DECODER] {
        cluster.process(kind);
    }
    assert_eq!(cluster.value("SELECT plugin FROM pg_replication_slots"), "pgstream_hooks");
}

#[test]
fn without_the_extension_there_is_a_launcher_and_no_slot() {
    let cluster = Cluster::start();
    cluster.process(LAUNCHER);
    nothing_is_left(&cluster);
}

#[test]
fn several_databases_have_their_own_slot_and_processes() {
    let cluster = Cluster::with_extension();
    let databases = ["one", "two", "three"].map(|name| cluster.create_database(name));
    let receiver = Receiver::start().unwrap();
    for database in &databases {
        database.each(&["CREATE EXTENSION pgstream_hooks", "CREATE TABLE t (id int PRIMARY KEY)"]);
        database.subscribe(&receiver, database.name(), "");
    }
    for database in &databases {
        database.sql("INSERT INTO t VALUES (1)");
    }
    for database in &databases {
        let events = database.delivered(&receiver, database.name());
        assert_eq!(events.len(), 1);
        assert_eq!(events[0]["database"], database.name());
    }
    assert_eq!(cluster.value(SLOTS), "4");
    databases[0].sql("DROP EXTENSION pgstream_hooks");
    cluster.wait_true("SELECT count(*) = 3 FROM pg_replication_slots");
    works(&databases[1]);
}

#[test]
fn not_preloaded_is_an_error_that_gives_the_line_to_add() {
    let cluster = Setup::new().not_preloaded().start();
    let refusal = cluster.refused("CREATE EXTENSION pgstream_hooks");
    assert!(refusal.hint.contains("shared_preload_libraries = 'pgstream_hooks'"), "{refusal:?}");
    assert_eq!(
        cluster.value("SELECT count(*) FROM pg_namespace WHERE nspname IN ('pgwh', 'pgwh_internal')"),
        "0"
    );
    cluster.set("shared_preload_libraries = 'pgstream_hooks'");
    cluster.restart(Stop::Fast);
    cluster.sql("CREATE EXTENSION pgstream_hooks");
    works(&cluster);
}

/// The warnings that statements give.
#[track_caller]
fn warnings(database: &Database, sql: &str) -> Vec<String> {
    let log = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let told = std::sync::Arc::clone(&log);
    let mut client = database.connect_noticing(move |notice| {
        told.lock().unwrap().push(format!(
            "{} {} {}",
            notice.message(),
            notice.detail().unwrap_or(""),
            notice.hint().unwrap_or("")
        ));
    });
    client.batch_execute(sql).unwrap();
    drop(client);
    std::mem::take(&mut log.lock().unwrap())
}

/// Subscriptions to a receiver that takes nothing, and a hundred events for each of the two.
fn undelivered(cluster: &Cluster, receiver: &Receiver) {
    receiver.behave(|_: &Request| Reply::status(503));
    cluster.subscribe(receiver, "one", "tables => '{t}'");
    cluster.subscribe(receiver, "two", "tables => '{t}'");
    cluster.sql("INSERT INTO t SELECT generate_series(1, 100)");
}

#[test]
fn whoever_drops_the_extension_hears_of_undelivered_events() {
    let cluster = Cluster::start();
    cluster.sql("CREATE ROLE boss SUPERUSER LOGIN; CREATE TABLE t (id int)");
    let receiver = Receiver::start().unwrap();
    let notice = "200 undelivered events of 2 subscriptions are dropped with extension pgstream_hooks";
    for (create, drop) in [
        ("CREATE EXTENSION pgstream_hooks", "DROP EXTENSION pgstream_hooks"),
        ("CREATE EXTENSION pgstream_hooks", "DROP EXTENSION IF EXISTS pgstream_hooks CASCADE"),
        ("CREATE EXTENSION pgstream_hooks", "DO $$ BEGIN EXECUTE 'DROP EXTENSION pgstream_hooks'; END $$"),
        ("SET ROLE boss; CREATE EXTENSION pgstream_hooks", "DROP OWNED BY boss CASCADE"),
    ] {
        cluster.sql(create);
        undelivered(&cluster, &receiver);
        assert!(
            !warnings(&cluster, "CREATE SCHEMA other; DROP SCHEMA other")
                .iter()
                .any(|told| told.contains(notice))
        );
        let told = warnings(&cluster, &format!("BEGIN; {drop}; ROLLBACK"));
        assert!(told.iter().any(|told| told.starts_with(notice)), "{drop}: {told:?}");
        // Also when the workers rest.
        cluster.wait_confirmed();
        cluster.each(&["ALTER SYSTEM SET pgwh.enabled = off", "SELECT pg_reload_conf()"]);
        eventually("at rest", || cluster.processes(DISPATCHER).is_empty().then_some(()));
        let told = warnings(&cluster, drop);
        assert!(told.iter().any(|told| told.starts_with(notice)), "at rest, {drop}: {told:?}");
        assert_eq!(
            cluster.value("SELECT count(*) FROM pg_extension WHERE extname = 'pgstream_hooks'"),
            "0",
            "{drop}"
        );
        cluster.each(&["ALTER SYSTEM RESET pgwh.enabled", "SELECT pg_reload_conf()"]);
    }
    // As `pg_restore` has it, which wants no notices.
    cluster.sql("CREATE EXTENSION pgstream_hooks");
    undelivered(&cluster, &receiver);
    let told = warnings(&cluster, "SET client_min_messages = warning; DROP EXTENSION pgstream_hooks");
    assert!(told.iter().any(|told| told.starts_with(notice)), "{told:?}");
    // Without any there is nothing to say.
    cluster.sql("CREATE EXTENSION pgstream_hooks");
    let told = warnings(&cluster, "DROP EXTENSION pgstream_hooks");
    assert!(!told.iter().any(|told| told.contains("undelivered")), "{told:?}");
}

#[track_caller]
fn says(database: &Database, check: &str, hint: &str) {
    database.wait_true(&format!(
        "SELECT NOT ok AND hint LIKE '%{hint}%' FROM pgwh.health() WHERE check_name = '{check}'"
    ));
}

/// Since 19 the first logical slot switches logical decoding on, and the last one switches it off.
fn decodes_on_demand() -> bool {
    Server::get().major() >= 19
}

#[test]
fn a_wal_level_too_low_warns_and_waits_and_goes_on_when_mended() {
    let (low, required) = if decodes_on_demand() { ("minimal", "replica") } else { ("replica", "logical") };
    let cluster = Setup::new().set(&format!("wal_level = {low}\nmax_wal_senders = 0")).start();
    let told = warnings(&cluster, "CREATE EXTENSION pgstream_hooks").join("\n");
    let command = format!("ALTER SYSTEM SET wal_level = {required};");
    assert!(told.contains(&command), "{told}");
    says(&cluster, "wal_level", &command);
    let refusal = cluster.refused("SELECT pgwh.subscribe('http://127.0.0.1:9/')");
    assert!(!refusal.detail.is_empty() && !refusal.hint.is_empty(), "{refusal:?}");
    cluster.sql(&command);
    cluster.restart(Stop::Fast);
    works(&cluster);
}

#[test]
fn the_first_slot_switches_decoding_on_and_the_last_one_off() {
    let cluster = Cluster::start();
    let level = |expected: &str| {
        let found = "coalesce(current_setting('effective_wal_level', true), current_setting('wal_level'))";
        cluster.wait_true(&format!("SELECT {found} = '{expected}'"));
    };
    let without_slot = if decodes_on_demand() { "replica" } else { "logical" };
    level(without_slot);
    for _ in 0..2 {
        assert_eq!(warnings(&cluster, "CREATE EXTENSION pgstream_hooks"), Vec::<String>::new());
        works(&cluster);
        level("logical");
        for how in [Stop::Fast, Stop::Kill] {
            cluster.restart(how);
            works(&cluster);
            level("logical");
        }
        let health =
            cluster.rows("SELECT ok, detail FROM pgwh.health() WHERE check_name = 'wal_level'").remove(0);
        assert_eq!(health[0].as_deref(), Some("t"));
        let shows = health[1].as_deref().unwrap().contains("effective_wal_level is logical");
        assert_eq!(shows, decodes_on_demand(), "{health:?}");
        cluster.sql("DROP EXTENSION pgstream_hooks");
        nothing_is_left(&cluster);
        level(without_slot);
    }
}

#[test]
fn no_free_slot_warns_and_waits_and_goes_on_when_there_is_one() {
    let cluster = Setup::new().set("max_replication_slots = 1").start();
    cluster.sql("SELECT pg_create_physical_replication_slot('taken')");
    let told = warnings(&cluster, "CREATE EXTENSION pgstream_hooks").join("\n");
    assert!(told.contains("slot"), "{told}");
    says(&cluster, "slot present and valid", "max_replication_slots");
    cluster.sql("SELECT pg_drop_replication_slot('taken')");
    works(&cluster);
}

#[test]
fn no_free_worker_warns_and_waits_for_one() {
    // One for the launcher, one for logical replication's.
    let cluster = Setup::new().set("max_worker_processes = 2").start();
    let told = warnings(&cluster, "CREATE EXTENSION pgstream_hooks").join("\n");
    assert!(told.contains("worker"), "{told}");
    says(&cluster, "worker running", "");
    cluster.set("max_worker_processes = 20");
    cluster.restart(Stop::Fast);
    works(&cluster);
}

#[test]
fn killed_processes_come_back_by_themselves() {
    let cluster = Cluster::with_extension();
    for kind in [LAUNCHER, DISPATCHER, DECODER] {
        cluster.kill9(kind);
        works(&cluster);
        for kind in [LAUNCHER, DISPATCHER, DECODER] {
            cluster.process(kind);
        }
    }
}

#[test]
fn terminated_processes_come_back_by_themselves() {
    let cluster = Cluster::with_extension();
    for kind in [DECODER, DISPATCHER, LAUNCHER] {
        let process = cluster.process(kind);
        cluster.sql(&format!("SELECT pg_terminate_backend({})", process.0));
        eventually(&format!("another {kind}"), || {
            (!process.is_alive() && !cluster.processes(kind).is_empty()).then_some(())
        });
        works(&cluster);
    }
    assert_eq!(cluster.value(SLOTS), "1");
}

#[test]
fn every_way_to_restart_the_server_leaves_it_working() {
    let cluster = Cluster::with_extension();
    works(&cluster);
    for how in [Stop::Fast, Stop::Immediate, Stop::Kill] {
        cluster.restart(how);
        works(&cluster);
        assert_eq!(cluster.value(SLOTS), "1", "{how:?}");
    }
}

#[test]
fn a_stop_takes_no_longer_than_without_us() {
    let cluster = Cluster::with_extension();
    works(&cluster);
    let begin = std::time::Instant::now();
    cluster.stop(Stop::Fast);
    assert!(begin.elapsed() < std::time::Duration::from_secs(10), "{:?}", begin.elapsed());
    assert!(!cluster.log().contains("PANIC"), "no panic");
}

#[test]
fn a_slot_is_called_valid_when_it_stays() {
    let cluster = Cluster::start();
    // A slot is consistent when who writes has ended; its decoder keeps it when the dispatcher has stored an image.
    let mut writer = cluster.connect();
    writer.batch_execute("BEGIN; SELECT txid_current()").unwrap();
    cluster.sql("CREATE EXTENSION pgstream_hooks");
    cluster.wait_true("SELECT count(*) = 1 FROM pg_replication_slots");
    let dispatcher = cluster.process(DISPATCHER);
    dispatcher.pause();
    writer.batch_execute("COMMIT").unwrap();
    cluster.wait_true("SELECT confirmed_flush_lsn IS NOT NULL FROM pg_replication_slots");
    let said = cluster
        .rows("SELECT ok, detail FROM pgwh.health() WHERE check_name = 'slot present and valid'")
        .remove(0);
    dispatcher.resume();
    assert_eq!(said[0].as_deref(), Some("f"));
    assert!(said[1].as_ref().unwrap().contains("is being created"), "{said:?}");
    cluster.wait_true("SELECT ok FROM pgwh.health() WHERE check_name = 'slot present and valid'");
    cluster.sql("CREATE TABLE t (); SELECT pgwh.subscribe('https://example.com/')");
}

#[test]
fn commits_are_confirmed_before_a_stop_despite_terminations() {
    let cluster = Cluster::with_extension();
    let receiver = Receiver::start().unwrap();
    receiver.behave(Script::always(Answer::Hang));
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY)");
    cluster.subscribe(&receiver, "s", "");
    cluster.sql("INSERT INTO t VALUES (1)");
    // The pair waits a little for its answer before it ends.
    receiver.wait_for(1, PATIENCE).unwrap();
    let pair = [DISPATCHER, DECODER].map(|kind| cluster.process(kind));
    let says = || std::fs::read_to_string(cluster.data().join("postmaster.pid"));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // As the postmaster does: first it writes so, then it signals.
            eventually("the server goes down", || {
                says().is_ok_and(|text| text.contains("stopping")).then_some(())
            });
            while pair.iter().any(|process| process.is_alive()) {
                pair.iter().for_each(|process| process.terminate());
            }
        });
        cluster.stop(Stop::Fast);
    });
    for kind in [DISPATCHER, DECODER] {
        assert!(!cluster.log().contains(&format!("terminating background worker \"{kind}\"")), "{kind}");
    }
}

#[test]
fn a_dropped_extension_leaves_nothing_and_can_come_again() {
    let cluster = Cluster::with_extension();
    for statement in ["DROP EXTENSION pgstream_hooks", "DROP EXTENSION pgstream_hooks CASCADE"] {
        works(&cluster);
        cluster.sql(statement);
        assert_eq!(
            cluster.value("SELECT count(*) FROM pg_namespace WHERE nspname IN ('pgwh', 'pgwh_internal')"),
            "0"
        );
        nothing_is_left(&cluster);
        cluster.sql("CREATE EXTENSION pgstream_hooks");
    }
    works(&cluster);
}

#[test]
fn dropping_counts_when_it_has_committed() {
    let cluster = Cluster::with_extension();
    works(&cluster);
    let slot = cluster.value("SELECT slot_name FROM pg_replication_slots");
    let receiver = Receiver::start().unwrap();
    cluster.subscribe(&receiver, "s", "tables => '{public.probe}'");
    cluster.sql("BEGIN; DROP EXTENSION pgstream_hooks; INSERT INTO probe DEFAULT VALUES; ROLLBACK");
    cluster.sql("BEGIN; SAVEPOINT a; DROP EXTENSION pgstream_hooks; ROLLBACK TO a; INSERT INTO probe DEFAULT VALUES; COMMIT");
    assert_eq!(cluster.delivered(&receiver, "s").len(), 1);
    assert_eq!(cluster.value("SELECT slot_name FROM pg_replication_slots"), slot, "the slot is the same");
}

#[test]
fn dropping_and_creating_in_one_transaction_works() {
    let cluster = Cluster::with_extension();
    // Who subscribes at once meets the workers of the installation that is gone, more or less far on their way out.
    for _ in 0..10 {
        works(&cluster);
        cluster.sql("BEGIN; DROP EXTENSION pgstream_hooks; CREATE EXTENSION pgstream_hooks; COMMIT");
    }
    works(&cluster);
    cluster.wait_true("SELECT count(*) = 1 FROM pg_replication_slots");
}

#[test]
fn creating_counts_when_it_has_committed() {
    let cluster = Cluster::start();
    cluster.sql("BEGIN; CREATE EXTENSION pgstream_hooks; ROLLBACK");
    nothing_is_left(&cluster);
    cluster.sql("BEGIN; CREATE TABLE other (n int); CREATE EXTENSION pgstream_hooks; COMMIT");
    works(&cluster);
}

#[test]
fn a_drop_under_load_with_pending_events_leaves_nothing() {
    let cluster = Cluster::with_extension();
    let receiver = Receiver::start().unwrap();
    receiver.behave(harness::Script::always(harness::Answer::Hang));
    cluster.sql("CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY)");
    cluster.subscribe(&receiver, "s", "");
    cluster.sql("INSERT INTO t SELECT FROM generate_series(1, 20000)");
    receiver.wait_for(1, PATIENCE).unwrap();
    cluster.sql("DROP EXTENSION pgstream_hooks");
    nothing_is_left(&cluster);
    cluster.sql("CREATE EXTENSION pgstream_hooks");
    works(&cluster);
}

#[test]
fn a_server_killed_after_create_or_drop_recovers() {
    let cluster = Cluster::start();
    for _ in 0..3 {
        cluster.sql("CREATE EXTENSION pgstream_hooks");
        cluster.restart(Stop::Kill);
        works(&cluster);
        cluster.sql("DROP EXTENSION pgstream_hooks");
        cluster.restart(Stop::Kill);
        nothing_is_left(&cluster);
    }
}

/// A slot is consistent once every transaction that ran at its creation has ended.
#[test]
fn a_transaction_that_blocks_the_slot_is_named_by_health() {
    let cluster = Cluster::start();
    cluster.sql("CREATE TABLE held (n int)");
    let mut writer = cluster.connect();
    let pid: i32 = writer.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
    writer.batch_execute("BEGIN; INSERT INTO held VALUES (1)").unwrap();
    cluster.sql("CREATE EXTENSION pgstream_hooks");
    cluster.wait_true(&format!(
        "SELECT NOT ok AND detail LIKE '%{pid}%' AND hint IS NOT NULL FROM pgwh.health() \
         WHERE check_name = 'slot present and valid'"
    ));
    // Subscribing in a transaction that has written would wait for itself.
    let refusal =
        cluster.refused("BEGIN; INSERT INTO held VALUES (2); SELECT pgwh.subscribe('http://127.0.0.1:9/')");
    assert!(!refusal.hint.is_empty(), "{refusal:?}");
    writer.batch_execute("COMMIT").unwrap();
    works(&cluster);
}

#[test]
fn workers_heed_no_setting_of_their_database() {
    let cluster = Cluster::start();
    let odd = cluster.create_database("odd");
    for setting in [
        "statement_timeout = '100ms'",
        "lock_timeout = '100ms'",
        "idle_in_transaction_session_timeout = '100ms'",
        "default_transaction_read_only = on",
        "default_transaction_isolation = 'serializable'",
        "search_path = 'nowhere'",
        "TimeZone = 'Asia/Kathmandu'",
        "DateStyle = 'German'",
        "IntervalStyle = 'sql_standard'",
        "bytea_output = 'escape'",
        "extra_float_digits = -5",
        // Where decoding looks for its output plugin.
        "dynamic_library_path = '/nowhere'",
        "row_security = off",
    ] {
        cluster.sql(&format!("ALTER DATABASE odd SET {setting}"));
    }
    // Too late to be set by a statement, which has to be done in time itself. From 18 on, sessions find no extension's library on such a
    // path either.
    let mut options = "-c statement_timeout=0 -c lock_timeout=0 -c idle_in_transaction_session_timeout=0 \
                       -c dynamic_library_path=$libdir"
        .to_owned();
    if harness::Server::get().major() >= 17 {
        cluster.sql("ALTER DATABASE odd SET transaction_timeout = '100ms'");
        options += " -c transaction_timeout=0";
    }
    let odd = odd.with_options(&options);
    let plain = "SET default_transaction_read_only = off; SET search_path = public;
                 SET default_transaction_isolation = 'read committed'";
    odd.each(&[plain, "CREATE EXTENSION pgstream_hooks"]);
    odd.each(&[plain, "CREATE TABLE t (id int PRIMARY KEY, at timestamptz, raw bytea, f float8)"]);
    let receiver = Receiver::start().unwrap();
    let subscribe = format!("SELECT pgwh.subscribe('{}', name => 's')", receiver.url("/s"));
    odd.each(&[plain, &subscribe]);
    odd.each(&[plain, r"INSERT INTO t VALUES (1, '2026-11-20 12:00+00', '\x00ff', 0.1)"]);
    receiver.wait_for(1, PATIENCE).unwrap();
    let event = harness::events(&receiver).remove(0);
    let expected =
        serde_json::json!({"id": 1, "at": "2026-11-20T12:00:00+00:00", "raw": "\\x00ff", "f": 0.1});
    assert_eq!(event["record"], expected);
}

#[test]
fn workers_stay_who_they_are_whatever_role_is_set() {
    let cluster = Cluster::start();
    cluster.sql("CREATE ROLE nobody");
    let scopes = ["DATABASE odd", "ROLE postgres", "ROLE postgres IN DATABASE odd", "ROLE ALL"];
    let settings = [("role", "nobody"), ("session_authorization", "nobody"), ("exit_on_error", "on")]
        .map(|(name, value)| scopes.map(|scope| (scope, name, value)));
    for (scope, name, value) in settings.into_iter().flatten() {
        let plain = cluster
            .database("postgres")
            .with_options("-c session_authorization=postgres -c role=none -c exit_on_error=off");
        plain.sql("CREATE DATABASE odd");
        plain.sql(&format!("ALTER {scope} SET {name} = {value}"));
        let odd = cluster
            .database("odd")
            .with_options("-c session_authorization=postgres -c role=none -c exit_on_error=off");
        odd.each(&[
            "CREATE EXTENSION pgstream_hooks",
            "CREATE TABLE t (id int PRIMARY KEY)",
            "INSERT INTO t VALUES (1)",
            "CREATE FUNCTION f(event jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT event'",
        ]);
        let receiver = Receiver::start().unwrap();
        odd.subscribe(&receiver, "s", "tables => '{public.t}', transform => 'f(jsonb)', backfill => true");
        odd.wait_true("SELECT bool_and(state = 'done') FROM pgwh.backfills");
        odd.sql("INSERT INTO t VALUES (2)");
        receiver.wait_for(2, PATIENCE).unwrap_or_else(|error| panic!("{scope} {name}: {error:?}"));
        assert_eq!(odd.delivered(&receiver, "s").len(), 2, "{scope} {name}");
        odd.wait_true("SELECT bool_and(ok) FROM pgwh.health() WHERE check_name IN ('worker running', 'slot present and valid')");
        plain.sql(&format!("ALTER {scope} RESET {name}"));
        plain.sql("DROP DATABASE odd");
    }
    let log = cluster.log();
    assert!(!log.contains("has ended; both are started again"), "{log}");
}

#[test]
fn the_log_is_quiet_when_all_is_well() {
    let cluster = Cluster::with_extension();
    works(&cluster);
    let process: Process = cluster.process(DECODER);
    assert!(process.is_alive());
    cluster.stop(Stop::Fast);
    let log = cluster.log();
    for word in ["WARNING", "ERROR", "FATAL", "PANIC", "panicked"] {
        let lines: Vec<_> = log
            .lines()
            .filter(|line| {
                line.contains(word) && !line.contains("terminating") && !line.contains("starting up")
            })
            .collect();
        assert!(lines.is_empty(), "{}", lines.join("\n"));
    }
}
