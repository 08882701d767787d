//! The events of a key arrive in the order of their commits, also when what the key is changes while some of them fail.

use harness::{Cluster, Receiver, Reply, Request, events};

/// Whether the receiver refuses it: twice what tells of version 1.
fn is_refused(request: &Request) -> bool {
    request.attempt() <= 2 && request.json()["data"]["record"]["v"] == 1
}

/// A table, and a receiver that refuses what it does at first.
fn stage() -> (Cluster, Receiver) {
    let cluster = Cluster::with_extension();
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY, customer int NOT NULL, v int)");
    let receiver = Receiver::start().unwrap();
    receiver.behave(|request: &Request| Reply::status(if is_refused(request) { 500 } else { 200 }));
    (cluster, receiver)
}

const SLOWLY: &str = "retry_schedule => '{1s,1s,1s,1s}'";

/// Waits until version 1 has failed.
fn failed(receiver: &Receiver) {
    receiver.wait_for(1, harness::PATIENCE).unwrap();
}

/// `action version` of what was taken, in the order in which it came.
fn taken(cluster: &Cluster, receiver: &Receiver) -> Vec<String> {
    cluster.delivered(receiver, "s");
    let taken = events(receiver).into_iter().filter(|event| !is_refused(&event.request));
    taken.map(|event| format!("{} {}", event.text("action"), event["record"]["v"])).collect()
}

#[test]
fn a_read_row_is_in_order_with_its_changes_by_key_columns() {
    for columns in ["customer", "id"] {
        let (cluster, receiver) = stage();
        cluster.sql("ALTER TABLE t REPLICA IDENTITY FULL; INSERT INTO t VALUES (1, 7, 1)");
        cluster.subscribe(
            &receiver,
            "s",
            &format!("tables => '{{t}}', key_columns => '{{{columns}}}', {SLOWLY}"),
        );
        cluster.sql("SELECT pgwh.backfill('s')");
        failed(&receiver);
        cluster.each(&["UPDATE t SET v = 2", "DELETE FROM t"]);
        assert_eq!(taken(&cluster, &receiver), ["read 1", "update 2", "delete 2"], "{columns}");
    }
}

#[test]
fn other_key_columns_take_effect_behind_what_is_pending() {
    for (before, after) in [("NULL", "'{customer}'"), ("'{customer}'", "NULL"), ("'{customer}'", "'{id}'")] {
        let (cluster, receiver) = stage();
        cluster.sql("ALTER TABLE t REPLICA IDENTITY FULL");
        cluster.subscribe(&receiver, "s", &format!("tables => '{{t}}', key_columns => {before}, {SLOWLY}"));
        cluster.sql("INSERT INTO t VALUES (1, 7, 1)");
        failed(&receiver);
        cluster.each(&[
            "UPDATE t SET v = 2",
            &format!("UPDATE pgwh.subscriptions SET key_columns = {after}"),
            "UPDATE t SET v = 3",
        ]);
        assert_eq!(taken(&cluster, &receiver), ["insert 1", "update 2", "update 3"], "{before} to {after}");
    }
}

#[test]
fn a_table_whose_key_or_root_changes_stays_in_order() {
    for change in [
        "CREATE TABLE whole (id int PRIMARY KEY, customer int NOT NULL, v int) PARTITION BY RANGE (id);
         ALTER TABLE whole ATTACH PARTITION t DEFAULT",
        "ALTER TABLE t ALTER id TYPE numeric",
        "ALTER TABLE t ALTER id TYPE text",
        "ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (id, customer)",
        "CREATE UNIQUE INDEX by_customer ON t (customer); ALTER TABLE t REPLICA IDENTITY USING INDEX by_customer",
        "ALTER TABLE t DROP CONSTRAINT t_pkey; ALTER TABLE t REPLICA IDENTITY FULL",
    ] {
        let (cluster, receiver) = stage();
        cluster.subscribe(&receiver, "s", &format!("tables => '{{public.*}}', {SLOWLY}"));
        cluster.sql("INSERT INTO t VALUES (1, 7, 1)");
        failed(&receiver);
        cluster.each(&[change, "UPDATE t SET v = 2", "UPDATE t SET v = 3"]);
        assert_eq!(taken(&cluster, &receiver), ["insert 1", "update 2", "update 3"], "{change}");
    }
}

#[test]
fn a_partition_that_is_detached_stays_in_order() {
    let (cluster, receiver) = stage();
    cluster.sql(
        "CREATE TABLE whole (id int PRIMARY KEY, customer int NOT NULL, v int) PARTITION BY RANGE (id);
         ALTER TABLE whole ATTACH PARTITION t DEFAULT",
    );
    cluster.subscribe(
        &receiver,
        "s",
        &format!("tables => '{{public.*}}', event_types => '{{insert,update,ddl}}', {SLOWLY}"),
    );
    cluster.sql("INSERT INTO t VALUES (1, 7, 1)");
    failed(&receiver);
    cluster.each(&["ALTER TABLE whole DETACH PARTITION t", "UPDATE t SET v = 2"]);
    let taken = taken(&cluster, &receiver);
    let rows: Vec<&String> = taken.iter().filter(|told| !told.starts_with("ddl")).collect();
    assert_eq!(rows, ["insert 1", "update 2"], "{taken:?}");
}

#[test]
fn key_columns_keep_customers_in_order_across_tables() {
    let (cluster, receiver) = stage();
    cluster.sql("CREATE TABLE other (id int PRIMARY KEY, customer int NOT NULL, v int)");
    cluster.subscribe(
        &receiver,
        "s",
        &format!(
            "tables => '{{t,other}}', event_types => '{{insert}}', key_columns => '{{customer}}', {SLOWLY}"
        ),
    );
    cluster.sql("INSERT INTO t VALUES (1, 7, 1)");
    failed(&receiver);
    cluster.each(&["INSERT INTO other VALUES (1, 7, 2)", "INSERT INTO other VALUES (2, 8, 3)"]);
    assert_eq!(taken(&cluster, &receiver), ["insert 3", "insert 1", "insert 2"]);
}
