//! Where there are too few worker processes or slots: who captures changes goes on, who sends nothing gives way, and who is
//! refused is told at once and why.

use std::time::{Duration, Instant};

use harness::{Cluster, DECODER, DISPATCHER, Database, PATIENCE, Receiver, Setup, Stop, eventually, within};

/// Two processes of a server's are our launcher and that of logical replication.
const OTHERS: usize = 2;

fn cluster(workers: usize, slots: usize) -> Cluster {
    Setup::new().set(&format!("max_worker_processes = {workers}\nmax_replication_slots = {slots}")).start()
}

/// A database with the extension, a table `t` and a subscription `s`.
fn equipped(cluster: &Cluster, name: &str, receiver: &Receiver) -> Database {
    let database = cluster.create_database(name);
    prepare(&database);
    database.subscribe(receiver, name, "tables => '{public.t}'");
    works(&database, receiver);
    database
}

fn prepare(database: &Database) {
    database.each(&[
        "CREATE EXTENSION pgstream_hooks",
        "CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY)",
    ]);
}

#[track_caller]
fn works(database: &Database, receiver: &Receiver) {
    let before = database.delivered(receiver, database.name()).len();
    database.sql("INSERT INTO t DEFAULT VALUES");
    assert_eq!(database.delivered(receiver, database.name()).len(), before + 1, "{}", database.name());
}

/// Subscribing is refused, with what to type, sooner than by waiting for the workers.
#[track_caller]
fn is_refused(database: &Database, receiver: &Receiver, hint: &str) {
    let url = receiver.url(&format!("/{}", database.name()));
    let begin = Instant::now();
    let refusal = database.refused(&format!("SELECT pgwh.subscribe('{url}', name => '{}')", database.name()));
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    assert_eq!(refusal.code, "53400", "{refusal:?}");
    assert!(refusal.hint.contains(hint) && !refusal.detail.is_empty(), "{refusal:?}");
}

#[track_caller]
fn processes_of(cluster: &Cluster, database: &str) -> usize {
    let sql = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}' AND backend_type LIKE 'pgstream_hooks%'"
    );
    cluster.value(&sql).parse().unwrap()
}

/// How often the log warns with these words.
fn warnings(cluster: &Cluster, words: &[&str]) -> usize {
    let log = cluster.log();
    let lines = log.lines().filter(|line| line.contains("WARNING:  pgstream_hooks: "));
    lines.filter(|line| words.iter().all(|word| line.contains(word))).count()
}

/// Ends a process of a database's pair.
#[track_caller]
fn end(cluster: &Cluster, kind: &str, database: &Database) {
    let process = cluster.process_of(kind, database.name());
    cluster.sql(&format!("SELECT pg_terminate_backend({})", process.0));
    eventually("it has ended", || (!process.is_alive()).then_some(()));
}

#[test]
fn who_captures_keeps_its_processes_and_the_next_is_refused() {
    let cluster = cluster(OTHERS + 6, 20);
    let receiver = Receiver::start().unwrap();
    let running = ["a", "b", "c"].map(|name| equipped(&cluster, name, &receiver));
    let late = cluster.create_database("late");
    prepare(&late);
    is_refused(&late, &receiver, "ALTER SYSTEM SET max_worker_processes = 16;");
    late.wait_true(
        "SELECT NOT ok AND hint LIKE '%max_worker_processes = 16%' FROM pgwh.health() WHERE check_name = 'worker running'",
    );
    for database in &running {
        for kind in [DECODER, DISPATCHER, DECODER] {
            end(&cluster, kind, database);
            works(database, &receiver);
        }
    }
    assert_eq!(processes_of(&cluster, "late"), 0);
    is_refused(&late, &receiver, "max_worker_processes");
    assert_eq!(warnings(&cluster, &["worker processes", "\"late\""]), 1, "it is said once");
    // The processes of an extension that is dropped are for others.
    running[0].sql("DROP EXTENSION pgstream_hooks");
    eventually("there is room", || {
        let url = receiver.url("/late");
        late.try_sql(&format!("SELECT pgwh.subscribe('{url}', name => 'late', tables => '{{public.t}}')"))
            .ok()
    });
    works(&late, &receiver);
    works(&running[1], &receiver);
    assert_eq!(processes_of(&cluster, "a"), 0);
}

#[test]
fn all_databases_run_after_a_restart_and_after_the_hint() {
    let cluster = cluster(OTHERS + 4, 20);
    let receiver = Receiver::start().unwrap();
    let late = cluster.create_database("late");
    let running = ["a", "b"].map(|name| equipped(&cluster, name, &receiver));
    prepare(&late);
    is_refused(&late, &receiver, "max_worker_processes");
    for how in [Stop::Fast, Stop::Kill] {
        cluster.restart(how);
        running.iter().for_each(|database| works(database, &receiver));
        // Of databases without the extension nobody is warned.
        let said = "no worker process is free to look whether database";
        eventually("it is said that nobody could look", || cluster.log().contains(said).then_some(()));
        assert_eq!(warnings(&cluster, &["template1"]) + warnings(&cluster, &["postgres"]), 0);
        is_refused(&late, &receiver, "max_worker_processes");
    }
    let hint = late.value("SELECT hint FROM pgwh.health() WHERE check_name = 'worker running'");
    cluster.sql(hint.split(';').next().unwrap());
    cluster.restart(Stop::Fast);
    late.subscribe(&receiver, "late", "tables => '{public.t}'");
    works(&late, &receiver);
    running.iter().for_each(|database| works(database, &receiver));
}

#[test]
fn copies_that_send_nothing_give_way() {
    let cluster = cluster(OTHERS + 6, 20);
    let receiver = Receiver::start().unwrap();
    let shop = equipped(&cluster, "shop", &receiver);
    let copies = ["copy1", "copy2", "copy3"].map(|name| {
        cluster.sql(&format!("CREATE DATABASE {name} TEMPLATE shop"));
        works(&shop, &receiver);
        cluster.database(name)
    });
    eventually("all processes are taken", || {
        (processes_of(&cluster, "copy1") + processes_of(&cluster, "copy2") == 4).then_some(())
    });
    for kind in [DECODER, DISPATCHER] {
        end(&cluster, kind, &shop);
        works(&shop, &receiver);
    }
    cluster.restart(Stop::Fast);
    works(&shop, &receiver);
    let other = equipped(&cluster, "other", &receiver);
    works(&shop, &receiver);
    let held = "SELECT state = 'held' AND reason IS NOT NULL AND next_step = 'SELECT pgwh.adopt();' FROM pgwh.status";
    copies.iter().for_each(|copy| copy.wait_true(held));
    // Whose workers have gone keeps no log.
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE NOT active AND database LIKE 'copy%'";
    cluster.wait_true(&format!("SELECT ({slots}) = 0"));
    // A copy that is adopted has something to send.
    let mine = Receiver::start().unwrap();
    for copy in &copies[..1] {
        copy.sql(&format!("UPDATE pgwh.subscriptions SET url = '{}'", mine.url("/shop")));
        eventually("it is adopted", || copy.try_sql("SELECT pgwh.adopt()").ok());
        copy.sql("INSERT INTO t DEFAULT VALUES");
        assert_eq!(copy.delivered(&mine, "shop").len(), 1);
    }
    works(&shop, &receiver);
    works(&other, &receiver);
}

#[test]
fn copies_that_send_nothing_leave_their_slots() {
    let cluster = cluster(40, 2);
    let receiver = Receiver::start().unwrap();
    let shop = equipped(&cluster, "shop", &receiver);
    cluster.sql("CREATE DATABASE copy TEMPLATE shop");
    cluster.wait_true("SELECT count(*) = 2 FROM pg_replication_slots WHERE active");
    let other = equipped(&cluster, "other", &receiver);
    works(&shop, &receiver);
    // Now there is nobody who gives way.
    let late = cluster.create_database("late");
    prepare(&late);
    is_refused(&late, &receiver, "ALTER SYSTEM SET max_replication_slots = 10;");
    is_refused(&late, &receiver, "max_replication_slots");
    assert_eq!(warnings(&cluster, &["replication slot", "\"late\""]), 1, "it is said once");
    other.sql("DROP EXTENSION pgstream_hooks");
    eventually("there is room", || {
        late.try_sql(&format!("SELECT pgwh.subscribe('{}', name => 'late')", receiver.url("/late"))).ok()
    });
    works(&late, &receiver);
}

#[test]
fn a_database_without_subscriptions_is_no_copy_and_runs_on() {
    let cluster = cluster(OTHERS + 2, 20);
    let receiver = Receiver::start().unwrap();
    prepare(&cluster.create_database("shop"));
    eventually("it runs", || (processes_of(&cluster, "shop") == 2).then_some(()));
    let late = cluster.create_database("late");
    prepare(&late);
    is_refused(&late, &receiver, "max_worker_processes");
    assert_eq!((processes_of(&cluster, "shop"), processes_of(&cluster, "late")), (2, 0));
}

#[test]
fn half_a_pair_takes_no_process() {
    let cluster = cluster(OTHERS + 1, 20);
    let receiver = Receiver::start().unwrap();
    let shop = cluster.create_database("shop");
    prepare(&shop);
    is_refused(&shop, &receiver, "max_worker_processes");
    is_refused(&shop, &receiver, "max_worker_processes");
    eventually("no process is kept", || (processes_of(&cluster, "shop") == 0).then_some(()));
    assert_eq!(warnings(&cluster, &["worker processes", "\"shop\""]), 1, "it is said once");
    shop.sql("DROP EXTENSION pgstream_hooks");
    assert_eq!(processes_of(&cluster, "shop"), 0);
}

#[test]
fn no_process_for_a_transform_or_backfill_is_said() {
    let cluster = cluster(OTHERS + 2, 20);
    let receiver = Receiver::start().unwrap();
    let shop = equipped(&cluster, "shop", &receiver);
    shop.sql("CREATE FUNCTION f(event jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT event'");
    shop.sql("CREATE FUNCTION g(event jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT '{}'::jsonb $$");
    for (name, function) in [("shaped", "transform => 'f(jsonb)'"), ("routed", "route => 'g(jsonb)'")] {
        shop.subscribe(&receiver, name, &format!("tables => '{{public.t}}', {function}"));
    }
    works(&shop, &receiver);
    for name in ["shaped", "routed"] {
        shop.wait_status(
            name,
            "state = 'error' AND reason LIKE '%no worker process%' AND bottleneck = 'max_worker_processes' AND pending = 1",
        );
    }
    let health = "SELECT ok FROM pgwh.health() WHERE check_name = 'free worker processes'";
    shop.wait_true(&format!("SELECT NOT ({health})"));
    assert_eq!(shop.status("shop", "state"), "active");
    assert_eq!(warnings(&cluster, &["worker process", "transforms"]), 1, "it is said once");
    shop.sql("SELECT pgwh.backfill('shop')");
    shop.wait_true("SELECT reason LIKE '%no worker process%' FROM pgwh.backfills");
    let next_step = shop.status("shaped", "next_step");
    shop.sql(next_step.split(';').next().unwrap());
    cluster.restart(Stop::Fast);
    for name in ["shaped", "routed"] {
        assert_eq!(shop.delivered(&receiver, name).len(), 1);
        assert_eq!(shop.status(name, "state"), "active");
    }
    shop.wait_true("SELECT state = 'done' AND reason IS NULL FROM pgwh.backfills");
    shop.wait_true(health);
}

#[test]
fn a_copy_gives_way_to_a_transform() {
    let cluster = cluster(OTHERS + 4, 20);
    let receiver = Receiver::start().unwrap();
    let shop = equipped(&cluster, "shop", &receiver);
    cluster.sql("CREATE DATABASE copy TEMPLATE shop");
    eventually("the copy runs", || (processes_of(&cluster, "copy") == 2).then_some(()));
    shop.sql("CREATE FUNCTION f(event jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT event'");
    shop.subscribe(&receiver, "shaped", "tables => '{public.t}', transform => 'f(jsonb)'");
    works(&shop, &receiver);
    within(2 * PATIENCE, "it is delivered", || (shop.status("shaped", "delivered") == "1").then_some(()));
    assert_eq!(shop.status("shaped", "state"), "active");
}
