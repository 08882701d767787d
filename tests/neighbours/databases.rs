//! Commands on databases work as if the extension weren't there, and leave nothing behind.

use harness::{Cluster, DECODER, DISPATCHER, Database, Receiver, Stop, eventually};

/// A cluster whose database `shop` has the extension, a table `t` and a subscription `s`.
fn stage() -> (Cluster, Database, Receiver) {
    let cluster = Cluster::start();
    let shop = cluster.create_database("shop");
    let receiver = Receiver::start().unwrap();
    equip(&shop, &receiver);
    (cluster, shop, receiver)
}

fn equip(database: &Database, receiver: &Receiver) {
    database.each(&[
        "CREATE EXTENSION pgstream_hooks",
        "CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY)",
    ]);
    database.subscribe(receiver, "s", "");
    works(database, receiver);
}

#[track_caller]
fn works(database: &Database, receiver: &Receiver) {
    let before = database.delivered(receiver, "s").len();
    database.sql("INSERT INTO t DEFAULT VALUES");
    assert_eq!(database.delivered(receiver, "s").len(), before + 1);
}

#[track_caller]
fn nothing_is_left(cluster: &Cluster) {
    cluster.wait_true("SELECT count(*) = 0 FROM pg_replication_slots");
    eventually("no worker left", || {
        (cluster.processes(DECODER).is_empty() && cluster.processes(DISPATCHER).is_empty()).then_some(())
    });
}

#[test]
fn drop_database_works_and_leaves_nothing() {
    for options in ["", " WITH (FORCE)"] {
        let (cluster, ..) = stage();
        cluster.sql(&format!("DROP DATABASE shop{options}"));
        assert_eq!(cluster.value("SELECT count(*) FROM pg_database WHERE datname = 'shop'"), "0");
        nothing_is_left(&cluster);
        let receiver = Receiver::start().unwrap();
        equip(&cluster.create_database("shop"), &receiver);
    }
}

#[test]
fn drop_database_works_while_events_cannot_be_delivered() {
    let (cluster, shop, receiver) = stage();
    receiver.behave(harness::Script::always(harness::Answer::Hang));
    shop.sql("INSERT INTO t SELECT FROM generate_series(1, 20000)");
    cluster.sql("DROP DATABASE shop");
    nothing_is_left(&cluster);
}

#[test]
fn a_refused_drop_database_changes_nothing() {
    let (cluster, shop, receiver) = stage();
    let slot = "SELECT slot_name FROM pg_replication_slots";
    let before = cluster.value(slot);
    cluster.sql("CREATE ROLE nobody LOGIN");
    // By a privilege, by an open session, by a name, by a transaction.
    assert_eq!(cluster.as_role("nobody").refused("DROP DATABASE shop").code, "42501");
    works(&shop, &receiver);
    let session = shop.connect();
    assert_eq!(cluster.refused("DROP DATABASE shop").code, "55006");
    drop(session);
    works(&shop, &receiver);
    assert_eq!(cluster.refused("DROP DATABASE shopp").code, "3D000");
    assert_eq!(cluster.refused("BEGIN; DROP DATABASE shop").code, "25001");
    works(&shop, &receiver);
    assert_eq!(cluster.value(slot), before, "the same slot: nothing was missed");
}

#[test]
fn rename_works_and_events_go_on_under_the_new_name() {
    let (cluster, shop, receiver) = stage();
    let came = shop.delivered(&receiver, "s").len();
    cluster.sql("ALTER DATABASE shop RENAME TO store");
    let store = cluster.database("store");
    works(&store, &receiver);
    assert_eq!(store.delivered(&receiver, "s").len(), came + 1);
    assert_eq!(store.delivered(&receiver, "s").last().unwrap()["database"], "store");
    assert_eq!(cluster.value("SELECT count(*) FROM pg_replication_slots"), "1");
}

#[test]
fn a_rename_rolled_back_or_refused_changes_nothing() {
    let (cluster, shop, receiver) = stage();
    cluster.sql("BEGIN; ALTER DATABASE shop RENAME TO store; ROLLBACK");
    works(&shop, &receiver);
    assert_eq!(cluster.refused("ALTER DATABASE shop RENAME TO postgres").code, "42P04");
    works(&shop, &receiver);
}

#[test]
fn set_tablespace_works() {
    let (cluster, shop, receiver) = stage();
    let space = cluster.make_directory("space");
    cluster.sql(&format!("CREATE TABLESPACE space LOCATION '{}'", space.display()));
    cluster.sql("ALTER DATABASE shop SET TABLESPACE space");
    works(&shop, &receiver);
    assert_eq!(cluster.value("SELECT count(*) FROM pg_replication_slots"), "1");
    cluster.sql("ALTER DATABASE shop SET TABLESPACE pg_default");
    works(&shop, &receiver);
}

#[test]
fn a_copy_of_a_template_with_the_extension_sends_nothing() {
    let (cluster, shop, receiver) = stage();
    cluster.sql("CREATE DATABASE copy TEMPLATE shop");
    works(&shop, &receiver);
    let came = receiver.count();
    let copy = cluster.database("copy");
    copy.wait_true("SELECT state = 'held' AND reason IS NOT NULL AND next_step IS NOT NULL FROM pgwh.status");
    copy.sql("INSERT INTO t DEFAULT VALUES");
    works(&shop, &receiver);
    assert_eq!(receiver.count(), came + 1, "only the original sends");
    // What status says to type arms it.
    let other = Receiver::start().unwrap();
    let next_step = copy.value("SELECT next_step FROM pgwh.status");
    copy.each(&[&format!("UPDATE pgwh.subscriptions SET url = '{}'", other.url("/s")), &next_step]);
    copy.sql("INSERT INTO t DEFAULT VALUES");
    assert_eq!(copy.delivered(&other, "s").len(), 1);
}

#[test]
fn a_copy_of_a_template_without_subscriptions_just_works() {
    let cluster = Cluster::start();
    cluster.database("template1").sql("CREATE EXTENSION pgstream_hooks");
    let receiver = Receiver::start().unwrap();
    for name in ["a", "b"] {
        let database = cluster.create_database(name);
        database.sql("CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY)");
        database.subscribe(&receiver, "s", "");
        receiver.clear();
        works(&database, &receiver);
    }
}

#[test]
fn a_database_that_refuses_connections_is_served() {
    let (cluster, shop, receiver) = stage();
    let mut session = shop.connect();
    cluster.sql("ALTER DATABASE shop ALLOW_CONNECTIONS false");
    let before = receiver.count();
    session.batch_execute("INSERT INTO t DEFAULT VALUES").unwrap();
    receiver.wait_for(before + 1, harness::PATIENCE).unwrap();
    drop(session);
    // Also after a restart, when nobody can connect to say that the extension is there.
    cluster.restart(Stop::Fast);
    cluster.process_of(DECODER, "shop");
    cluster.sql("DROP DATABASE shop");
    nothing_is_left(&cluster);
}

#[test]
fn wal_is_not_retained_for_a_database_that_is_gone() {
    let (cluster, shop, receiver) = stage();
    receiver.behave(harness::Script::always(harness::Reply::status(500)));
    shop.sql("INSERT INTO t DEFAULT VALUES");
    shop.sql("DROP EXTENSION pgstream_hooks");
    nothing_is_left(&cluster);
    cluster.sql("DROP DATABASE shop");
    nothing_is_left(&cluster);
}

#[test]
fn commands_on_other_databases_disturb_nobody() {
    let (cluster, shop, receiver) = stage();
    let decoder = cluster.process_of(DECODER, "shop");
    for sql in [
        "CREATE DATABASE plain",
        "ALTER DATABASE plain RENAME TO simple",
        "CREATE DATABASE other TEMPLATE simple",
        "DROP DATABASE simple",
        "DROP DATABASE other WITH (FORCE)",
    ] {
        cluster.sql(sql);
    }
    works(&shop, &receiver);
    assert_eq!(cluster.process_of(DECODER, "shop"), decoder, "its decoder was left alone");
}
