//! What is replicated from another server has the time of its commit here, and says where it came from.

use std::collections::BTreeSet;

use harness::{Cluster, Event, Receiver, Setup, Stop, events_of};
use serde_json::{Value, json};

fn stage() -> (Cluster, Receiver) {
    let cluster = Setup::new().set("max_prepared_transactions = 2").start();
    cluster.sql("CREATE EXTENSION pgstream_hooks; CREATE TABLE t (id int PRIMARY KEY, note text)");
    cluster.sql("SELECT pg_replication_origin_create('far')");
    (cluster, Receiver::start().unwrap())
}

/// A transaction that says that it committed elsewhere, a quarter of a century ago. The origin is free for the next session as
/// soon as this returns.
const REPLICATED: &str = "SELECT pg_replication_origin_session_setup('far');
    BEGIN; INSERT INTO t VALUES (%, 'far'); SELECT pg_replication_origin_xact_setup('A/BCDEF0', '2001-02-03 04:05:06.789+00'); COMMIT;
    SELECT pg_replication_origin_session_reset()";

/// A transaction of which is said where it committed, but not when.
fn far(cluster: &Cluster, statement: &str) {
    let sql = format!(
        "SELECT pg_replication_origin_session_setup('far'); BEGIN; {statement}; COMMIT;
         SELECT pg_replication_origin_session_reset()"
    );
    cluster.connect().simple_query(&sql).unwrap();
}

fn replicate(cluster: &Cluster, id: u32) {
    cluster.connect().simple_query(&REPLICATED.replace('%', &id.to_string())).unwrap();
}

/// How long ago a time of a payload is, in seconds.
fn age(timestamp: &Value, cluster: &Cluster) -> f64 {
    let text = timestamp.as_str().unwrap();
    cluster
        .value(&format!("SELECT extract(epoch FROM clock_timestamp() - '{text}'::timestamptz)"))
        .parse()
        .unwrap()
}

fn of(events: &[Event], id: u64) -> &Event {
    events.iter().find(|event| event["key"]["id"] == id).unwrap_or_else(|| panic!("no event of row {id}"))
}

#[test]
fn a_replicated_change_has_the_time_of_its_commit_here() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "");
    cluster.subscribe(&receiver, "cloud", "format => 'cloudevents'");
    let before = cluster.value("SELECT clock_timestamp()");
    cluster.sql("INSERT INTO t VALUES (1)");
    replicate(&cluster, 2);
    // An origin that says nothing of the commit there.
    far(&cluster, "INSERT INTO t VALUES (3)");
    let mut client = cluster.connect();
    for step in [
        "SELECT pg_replication_origin_session_setup('far')",
        "BEGIN; INSERT INTO t VALUES (4); PREPARE TRANSACTION 'p'",
        "SELECT pg_replication_origin_xact_setup('A/BCDEF0', '2001-02-03 04:05:06.789+00')",
        "COMMIT PREPARED 'p'",
        "SELECT pg_replication_origin_session_reset()",
    ] {
        client.batch_execute(step).unwrap();
    }
    let events = cluster.delivered(&receiver, "s");
    let told = json!({"name": "far", "lsn": "A/BCDEF0", "timestamp": "2001-02-03T04:05:06.789000Z"});
    let silent = json!({"name": "far", "lsn": null, "timestamp": null});
    for (id, origin) in [(1, &Value::Null), (2, &told), (3, &silent), (4, &told)] {
        let event = of(&events, id);
        assert_eq!(&event["commit"]["origin"], origin, "row {id}");
        assert!(
            (0.0..60.0).contains(&age(&event["commit"]["timestamp"], &cluster)),
            "row {id}: {}",
            event.whole
        );
        assert_eq!(event.whole["timestamp"], event["commit"]["timestamp"]);
    }
    let cloud = events_of(&receiver, "cloud");
    let cloud =
        cloud.iter().find(|event| event.whole["data"]["key"]["id"] == 2).expect("row 2 as a cloud event");
    assert_eq!(cloud.whole["data"]["commit"]["origin"], told);
    assert!(age(&cloud.whole["time"], &cluster) < 60.0);
    // Everything that goes by time goes by that one.
    cluster.wait_true("SELECT count(*) = 8 FROM pgwh.deliveries WHERE state = 'delivered'");
    assert_eq!(
        cluster.value(&format!("SELECT count(*) FROM pgwh.events WHERE committed_at < '{before}'")),
        "0"
    );
    receiver.clear();
    let replay = cluster.value(&format!("SELECT pgwh.replay('s', since => '{before}'::timestamptz)"));
    cluster.wait_true(&format!("SELECT finished_at IS NOT NULL FROM pgwh.replays WHERE id = {replay}"));
    cluster.wait_true("SELECT lag_seconds IS NULL OR lag_seconds < 60 FROM pgwh.status WHERE name = 's'");
    let again = events_of(&receiver, "s");
    // Each is of another row: they may arrive in any order.
    let ids = |events: &[Event]| -> BTreeSet<String> {
        events.iter().map(|event| event.text("id").to_owned()).collect()
    };
    assert_eq!(again.len(), 4);
    assert_eq!(ids(&again), ids(&events), "all of them, under the same ids");
    let latest = cluster.value(
        "SELECT max(value) FROM pgwh.metric_samples('pgwh_delivery_latency') WHERE metric LIKE '%_sum' AND subscription = 's'",
    );
    assert!(latest.is_empty() || latest.parse::<f64>().unwrap() < 600.0, "{latest}");
}

#[test]
fn ids_of_replicated_changes_stay_when_they_are_decoded_again() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "");
    for id in 1..=3 {
        replicate(&cluster, id);
    }
    let first: Vec<String> =
        cluster.delivered(&receiver, "s").iter().map(|event| event.text("id").to_owned()).collect();
    // A server that dies decodes what its slot is not confirmed to have.
    receiver.clear();
    cluster.restart(Stop::Kill);
    replicate(&cluster, 4);
    cluster.delivered(&receiver, "s");
    let again: Vec<String> =
        events_of(&receiver, "s").iter().map(|event| event.text("id").to_owned()).collect();
    assert!(again.len() == 1 || again.iter().any(|id| first.contains(id)), "{first:?} {again:?}");
    let known = cluster.column("SELECT id FROM pgwh.events ORDER BY id");
    assert_eq!(known.len(), 4);
    assert!(first.iter().all(|id| known.contains(id)));
}

#[test]
fn a_subscription_to_local_changes_gets_no_replicated_ones() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "local", "origin => 'Local', event_types => '{insert,truncate,message}'");
    cluster.subscribe(&receiver, "any", "");
    assert_eq!(cluster.column("SELECT origin FROM pgwh.subscriptions ORDER BY id"), ["local", "any"]);
    cluster.sql("INSERT INTO t VALUES (1)");
    replicate(&cluster, 2);
    for statement in ["SELECT pgwh.emit('far', '{}')", "TRUNCATE t"] {
        far(&cluster, statement);
    }
    cluster.sql("INSERT INTO t VALUES (3)");
    let got = |name: &str| -> Vec<String> {
        let events = cluster.delivered(&receiver, name);
        events.iter().map(|event| format!("{} {}", event.text("action"), event["key"]["id"])).collect()
    };
    assert_eq!(got("local"), ["insert 1", "insert 3"]);
    assert_eq!(got("any"), ["insert 1", "insert 2", "truncate null", "insert 3"]);
    let why = cluster.value(
        "SELECT string_agg(fate, '; ') FROM pgwh.why('t', '{\"id\": 2}') WHERE subscription = 'local'",
    );
    assert!(why.contains("replicated"), "{why}");
    // From the commit of another choice on.
    cluster.sql("UPDATE pgwh.subscriptions SET origin = 'any' WHERE name = 'local'");
    replicate(&cluster, 4);
    cluster.sql("UPDATE pgwh.subscriptions SET origin = 'local' WHERE name = 'local'");
    // Also after a restart.
    cluster.restart(Stop::Fast);
    replicate(&cluster, 5);
    cluster.sql("INSERT INTO t VALUES (6)");
    assert_eq!(got("local"), ["insert 1", "insert 3", "insert 4", "insert 6"]);
    let refused = cluster.refused("UPDATE pgwh.subscriptions SET origin = 'remote'");
    assert_eq!((refused.code.as_str(), refused.hint.as_str()), ("22023", "For example: origin => 'local'"));
}

#[test]
fn changes_by_a_native_subscription_name_their_origin() {
    let publisher = Cluster::start();
    publisher.sql("CREATE TABLE t (id int PRIMARY KEY, note text); INSERT INTO t VALUES (1, 'copied')");
    publisher.sql("CREATE PUBLICATION pub FOR TABLE t");
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "");
    cluster.subscribe(&receiver, "local", "origin => 'local'");
    cluster.sql(&format!(
        "CREATE SUBSCRIPTION sub CONNECTION 'host={} user=postgres dbname=postgres' PUBLICATION pub",
        publisher.host().display()
    ));
    cluster.wait_true("SELECT bool_and(srsubstate = 'r') FROM pg_subscription_rel");
    publisher.sql("INSERT INTO t VALUES (2, 'streamed')");
    cluster.wait_true("SELECT count(*) = 2 FROM t");
    cluster.sql("INSERT INTO t VALUES (3, 'here')");
    let events = cluster.delivered(&receiver, "s");
    assert_eq!(events.len(), 3);
    let number = cluster.value("SELECT oid FROM pg_subscription");
    // The COPY runs under an origin of its own, which says nothing of when and where there.
    let copied = &of(&events, 1)["commit"];
    let name = copied["origin"]["name"].as_str().unwrap();
    assert!(name.starts_with(&format!("pg_{number}_")), "{name}");
    assert_eq!((&copied["origin"]["lsn"], &copied["origin"]["timestamp"]), (&Value::Null, &Value::Null));
    let streamed = &of(&events, 2)["commit"];
    assert_eq!(streamed["origin"]["name"], format!("pg_{number}"));
    assert!(streamed["origin"]["lsn"].as_str().unwrap().contains('/'));
    for commit in [copied, streamed] {
        assert!(age(&commit["timestamp"], &cluster) < 120.0, "{commit}");
    }
    assert!(age(&streamed["origin"]["timestamp"], &cluster) < 120.0, "{streamed}");
    assert_eq!(of(&events, 3)["commit"]["origin"], Value::Null);
    let local = cluster.delivered(&receiver, "local");
    assert_eq!(local.iter().map(|event| event["key"]["id"].as_u64().unwrap()).collect::<Vec<_>>(), [3]);
    cluster.each(&["ALTER SUBSCRIPTION sub DISABLE", "DROP SUBSCRIPTION sub"]);
}
