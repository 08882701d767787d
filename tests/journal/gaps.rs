//! What an enabled subscription misses is on record with its reason, its table and its range; what ends it and sends the rows
//! is named, and works as typed.

use harness::{Cluster, Database, Event, Receiver, Reply, Request, Stop, events_of, eventually};

const GRANTS: &[&str] = &[
    "GRANT USAGE ON SCHEMA pgwh, pgwh_internal TO ann",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON pgwh.subscriptions TO ann",
    "GRANT SELECT ON pgwh_internal.installation, pgwh.status, pgwh.events, pgwh.deliveries, pgwh.attempts, pgwh.dead_letters, \
     pgwh.replays, pgwh.backfills, pgwh.gaps TO ann",
    "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgwh, pgwh_internal TO ann",
    "GRANT USAGE ON SCHEMA app TO ann",
];

/// A role `ann` with a table `app.t`, and a subscription `everything` of a superuser.
fn stage() -> (Cluster, Receiver) {
    let cluster = Cluster::with_extension();
    cluster.sql(
        "CREATE ROLE ann LOGIN; CREATE ROLE readers; CREATE SCHEMA app;
         CREATE TABLE app.t (id int PRIMARY KEY, note text)",
    );
    grant(&cluster);
    let receiver = Receiver::start().unwrap();
    cluster.subscribe(&receiver, "everything", "");
    (cluster, receiver)
}

fn grant(cluster: &Cluster) {
    cluster.each(GRANTS);
}

fn ids(receiver: &Receiver, name: &str) -> Vec<i64> {
    let mut ids: Vec<i64> =
        events_of(receiver, name).iter().filter_map(|event| event["key"]["id"].as_i64()).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

fn insert(database: &Database, table: &str, id: i64) {
    database.sql(&format!("INSERT INTO {table} (id, note) VALUES ({id}, 'x')"));
}

/// Waits until all that was committed has been decoded and recorded.
fn caught_up(cluster: &Cluster) {
    assert_eq!(cluster.value("SELECT pgwh.wait('everything', '60 s')"), "t");
}

fn gaps(cluster: &Cluster, name: &str) -> Vec<Vec<Option<String>>> {
    cluster.rows(&format!(
        "SELECT table_name, reason, to_lsn IS NULL FROM pgwh.gaps g JOIN pgwh.subscriptions s ON s.id = g.subscription_id
         WHERE s.name = '{name}' ORDER BY g.id"
    ))
}

/// The one gap of the subscription is over. What the status says next sends what was missed, and ends the matter.
#[track_caller]
fn assert_gap_and_cure(cluster: &Cluster, receiver: &Receiver, table: &str, missed: &[i64], case: &str) {
    cluster.wait_true(
        "SELECT count(*) > 0 AND bool_and(to_lsn IS NOT NULL AND until IS NOT NULL) FROM pgwh.gaps",
    );
    let found = gaps(cluster, "s");
    assert_eq!(found.len(), 1, "{case}: {found:?}");
    assert_eq!(found[0][0].as_deref(), Some(table), "{case}");
    let reason = found[0][1].clone().unwrap();
    assert!(cluster.status("s", "gap").starts_with(&format!("{table} from ")), "{case}");
    assert!(cluster.status("s", "gap").ends_with(&reason), "{case}");
    let step = format!("SELECT pgwh.backfill('s', '{table}');");
    assert_eq!(cluster.status("s", "next_step"), step, "{case}");
    assert!(cluster.status("s", "reason").ends_with(&reason), "{case}");
    let health =
        cluster.rows("SELECT ok, detail, hint FROM pgwh.health() WHERE check_name = 'gaps'").remove(0);
    assert_eq!(health[0].as_deref(), Some("f"), "{case}");
    assert!(
        health[1].as_deref().unwrap().contains(&format!("s misses changes of {table} committed from ")),
        "{case}"
    );
    assert_eq!(health[2].as_deref(), Some(step.as_str()), "{case}");
    // The commits that were missed lie in it, and no other does.
    let covered = "SELECT array_agg(DISTINCT (e.data->'record'->>'id')::int ORDER BY (e.data->'record'->>'id')::int)
         FROM pgwh.events e, pgwh.gaps g WHERE e.commit_lsn >= g.from_lsn AND e.commit_lsn < g.to_lsn AND e.action <> 'truncate'";
    let expected: Vec<String> = missed.iter().map(i64::to_string).collect();
    assert_eq!(cluster.value(covered), format!("{{{}}}", expected.join(",")), "{case}");
    cluster.sql(&step);
    cluster.wait_true("SELECT bool_and(state = 'done') FROM pgwh.backfills");
    eventually(&format!("the rows that were missed: {case}"), || {
        missed.iter().all(|id| ids(receiver, "s").contains(id)).then_some(())
    });
    cluster.wait_true("SELECT ok FROM pgwh.health() WHERE check_name = 'gaps'");
    assert_eq!(
        (cluster.status("s", "next_step"), cluster.status("s", "reason")),
        Default::default(),
        "{case}"
    );
}

#[test]
fn a_lack_of_privileges_leaves_a_gap_that_a_backfill_closes() {
    let (cluster, receiver) = stage();
    let ann = cluster.as_role("ann");
    cluster.sql("CREATE ROLE other");
    let mut next = 0;
    for (give, take, terms) in [
        ("GRANT SELECT ON app.t TO ann", "REVOKE ALL ON app.t FROM ann", ""),
        ("GRANT SELECT ON app.t TO PUBLIC", "REVOKE SELECT ON app.t FROM PUBLIC", ""),
        ("GRANT SELECT ON app.t TO readers; GRANT readers TO ann", "REVOKE readers FROM ann", ""),
        (
            "GRANT SELECT ON app.t TO ann; GRANT USAGE ON SCHEMA app TO ann",
            "REVOKE USAGE ON SCHEMA app FROM ann",
            "",
        ),
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
        ("GRANT SELECT ON app.t TO ann", "ALTER ROLE ann RENAME TO anna", ""),
    ] {
        cluster.sql("REVOKE ALL ON app.t FROM ann, readers, PUBLIC");
        grant(&cluster);
        cluster.sql(give);
        ann.subscribe(&receiver, "s", &format!("tables => '{{app.t}}'{terms}"));
        let (before, first, second, again) = (next + 1, next + 2, next + 3, next + 4);
        next += 4;
        insert(&cluster, "app.t", before);
        cluster.sql(take);
        insert(&cluster, "app.t", first);
        caught_up(&cluster);
        cluster.wait_true("SELECT count(*) = 1 FROM pgwh.gaps WHERE to_lsn IS NULL");
        assert!(
            cluster.status("s", "gap").contains(" to now: its owner ann ")
                || cluster.status("s", "gap").contains("row-level"),
            "{take}"
        );
        insert(&cluster, "app.t", second);
        if take.contains("RENAME") {
            cluster.sql("ALTER ROLE anna RENAME TO ann");
        } else {
            cluster.sql(give);
        }
        insert(&cluster, "app.t", again);
        caught_up(&cluster);
        eventually(&format!("sent again: {give}"), || (ids(&receiver, "s") == [before, again]).then_some(()));
        assert_gap_and_cure(&cluster, &receiver, "app.t", &[first, second], take);
        cluster.sql("SELECT pgwh.unsubscribe('s'); DELETE FROM pgwh.gaps; ALTER TABLE app.t OWNER TO postgres; ALTER ROLE ann NOSUPERUSER NOBYPASSRLS");
        receiver.clear();
    }
}

#[test]
fn a_role_that_is_dropped_and_made_again_leaves_a_gap() {
    let (cluster, receiver) = stage();
    cluster.sql("GRANT SELECT ON app.t TO ann");
    cluster.as_role("ann").subscribe(&receiver, "s", "tables => '{app.t}'");
    insert(&cluster, "app.t", 1);
    cluster.sql("DROP OWNED BY ann; DROP ROLE ann");
    insert(&cluster, "app.t", 2);
    caught_up(&cluster);
    assert_eq!(gaps(&cluster, "s")[0][1].as_deref(), Some("its owner ann does not exist"));
    cluster.sql("CREATE ROLE ann LOGIN; GRANT SELECT ON app.t TO ann");
    grant(&cluster);
    insert(&cluster, "app.t", 3);
    caught_up(&cluster);
    assert_gap_and_cure(&cluster, &receiver, "app.t", &[2], "dropped");
}

#[test]
fn a_gap_is_recorded_once_whatever_ends_the_workers() {
    let (cluster, receiver) = stage();
    cluster.sql("GRANT SELECT ON app.t TO ann");
    cluster.as_role("ann").subscribe(&receiver, "s", "tables => '{app.t}'");
    let kill = || {
        cluster.restart(Stop::Kill);
        cluster.wait_true("SELECT bool_and(ok) FROM pgwh.health() WHERE check_name IN ('worker running', 'slot present and valid')");
    };
    insert(&cluster, "app.t", 1);
    kill();
    cluster.sql("REVOKE SELECT ON app.t FROM ann");
    kill();
    insert(&cluster, "app.t", 2);
    kill();
    insert(&cluster, "app.t", 3);
    caught_up(&cluster);
    kill();
    cluster.sql("GRANT SELECT ON app.t TO ann");
    kill();
    insert(&cluster, "app.t", 4);
    kill();
    caught_up(&cluster);
    eventually("sent", || (ids(&receiver, "s") == [1, 4]).then_some(()));
    assert_gap_and_cure(&cluster, &receiver, "app.t", &[2, 3], "restarts");
    kill();
    caught_up(&cluster);
    assert_eq!(gaps(&cluster, "s").len(), 1);
    cluster.wait_true("SELECT ok FROM pgwh.health() WHERE check_name = 'gaps'");
}

#[test]
fn each_time_that_changes_are_missed_is_told_and_no_other() {
    let (cluster, receiver) = stage();
    cluster.sql("GRANT SELECT ON app.t TO ann");
    cluster.as_role("ann").subscribe(&receiver, "s", "tables => '{app.t}'");
    cluster.subscribe(&receiver, "watch", "event_types => '{system}'");
    let mut listener = cluster.listen("pgwh");
    for id in 1..=3 {
        // Nothing is missed.
        cluster.sql("REVOKE SELECT ON app.t FROM ann");
        cluster.sql("GRANT SELECT ON app.t TO ann");
        // Something is, and the gap is over before anything is captured again.
        cluster.sql("REVOKE SELECT ON app.t FROM ann");
        cluster.sql(&format!("INSERT INTO app.t VALUES ({id}); UPDATE app.t SET note = 'y'"));
        cluster.sql("GRANT SELECT ON app.t TO ann");
        caught_up(&cluster);
    }
    assert_eq!(
        gaps(&cluster, "s"),
        vec![
            vec![
                Some("app.t".to_owned()),
                Some("its owner ann may not read app.t".to_owned()),
                Some("f".to_owned())
            ];
            3
        ]
    );
    let told =
        "pgstream_hooks: 1 subscriptions miss changes of table app.t: its owner ann may not read app.t";
    assert_eq!(cluster.log().matches(told).count(), 3);
    let heard = listener.wait_for(&["\"gap\"", "app.t"]);
    assert!(heard.contains("its owner ann may not read app.t"), "{heard}");
    let gaps_told = || {
        let told: Vec<Event> = events_of(&receiver, "watch");
        (told
            .iter()
            .filter(|event| event.whole["type"] == "pgwh.gap" && event["payload"]["table"] == "app.t")
            .count()
            == 3)
            .then_some(())
    };
    eventually("system events", gaps_told);
    cluster.wait_true("SELECT value = 3 FROM pgwh.metric_samples('pgwh_database_gaps')");
    cluster.wait_true("SELECT value = 0 FROM pgwh.metric_samples('pgwh_database_open_gaps')");
}

#[test]
fn why_knows_of_a_change_that_was_missed() {
    let (cluster, receiver) = stage();
    cluster.sql("GRANT SELECT ON app.t TO ann");
    let ann = cluster.as_role("ann");
    ann.subscribe(&receiver, "s", "tables => '{app.t}'");
    cluster.sql("REVOKE SELECT ON app.t FROM ann");
    insert(&cluster, "app.t", 1);
    cluster.sql("GRANT SELECT ON app.t TO ann");
    caught_up(&cluster);
    let fate = |name: &str| {
        cluster.value(&format!(
            "SELECT fate FROM pgwh.why('app.t', '{{\"id\": 1}}') WHERE subscription = '{name}'"
        ))
    };
    assert_eq!(fate("s"), "missed: its owner ann may not read app.t");
    assert_eq!(fate("everything"), "delivered");
    // When nobody else had it, the journal has nothing of it.
    cluster.sql("SELECT pgwh.unsubscribe('everything')");
    cluster.sql("REVOKE SELECT ON app.t FROM ann");
    insert(&cluster, "app.t", 2);
    cluster.wait_true("SELECT count(*) = 1 FROM pgwh.gaps WHERE to_lsn IS NULL");
    let fate = cluster.value("SELECT fate FROM pgwh.why('app.t', '{\"id\": 2}')");
    assert!(
        fate.starts_with("missed, if it was committed from ")
            && fate.ends_with(" to now: its owner ann may not read app.t"),
        "{fate}"
    );
    // Also of all tables, while the subscription was disabled, whoever else had it not.
    cluster.sql("GRANT SELECT ON app.t TO ann");
    cluster.sql("UPDATE pgwh.subscriptions SET enabled = false WHERE name = 's'");
    insert(&cluster, "app.t", 3);
    cluster.sql("UPDATE pgwh.subscriptions SET enabled = true WHERE name = 's'");
    insert(&cluster, "app.t", 4);
    assert_eq!(cluster.value("SELECT pgwh.wait('s', '60 s')"), "t");
    let fate = |id: u32| cluster.value(&format!("SELECT fate FROM pgwh.why('app.t', '{{\"id\": {id}}}')"));
    assert_eq!(fate(4), "delivered");
    cluster.wait_true("SELECT count(*) = 0 FROM pgwh.gaps WHERE to_lsn IS NULL");
    let fate = fate(3);
    assert!(fate.starts_with("missed, if it was committed from ") && fate.ends_with("disabled"), "{fate}");
}

#[test]
fn a_table_that_is_renamed_there_and_back_leaves_a_gap() {
    let (cluster, receiver) = stage();
    cluster.sql("CREATE SCHEMA elsewhere");
    let mut next = 0;
    for tables in ["{app.t}", "{app.*}"] {
        for (there, name, back) in [
            ("ALTER TABLE app.t RENAME TO u", "app.u", "ALTER TABLE app.u RENAME TO t"),
            (
                "ALTER TABLE app.t SET SCHEMA elsewhere",
                "elsewhere.t",
                "ALTER TABLE elsewhere.t SET SCHEMA app",
            ),
            ("ALTER SCHEMA app RENAME TO away", "away.t", "ALTER SCHEMA away RENAME TO app"),
        ] {
            if tables == "{app.*}" && name == "app.u" {
                continue;
            }
            cluster.subscribe(&receiver, "s", &format!("tables => '{tables}'"));
            let (missed, again) = (next + 1, next + 2);
            next += 2;
            // Without a change in between nothing is missed.
            cluster.sql(there);
            cluster.sql(back);
            cluster.sql(&format!("BEGIN; {there}; {back}; COMMIT"));
            caught_up(&cluster);
            assert_eq!(gaps(&cluster, "s"), Vec::<Vec<_>>::new(), "{there}");
            cluster.sql(there);
            insert(&cluster, name, missed);
            caught_up(&cluster);
            let reason = format!("table app.t was renamed to {name}");
            assert_eq!(
                gaps(&cluster, "s"),
                [[Some("app.t".to_owned()), Some(reason), Some("t".to_owned())]],
                "{there}"
            );
            cluster.sql(back);
            insert(&cluster, "app.t", again);
            caught_up(&cluster);
            eventually("sent again", || ids(&receiver, "s").contains(&again).then_some(()));
            assert_gap_and_cure(&cluster, &receiver, "app.t", &[missed], there);
            cluster.sql("SELECT pgwh.unsubscribe('s'); DELETE FROM pgwh.gaps");
            receiver.clear();
        }
    }
}

#[test]
fn a_renamed_table_is_followed_by_the_backfill_of_its_hint() {
    for tables in ["{app.t, app.other}", "{app.*}"] {
        let (cluster, receiver) = stage();
        cluster.sql("CREATE SCHEMA elsewhere; CREATE TABLE app.other (id int PRIMARY KEY)");
        cluster.subscribe(&receiver, "s", &format!("tables => '{tables}'"));
        cluster.sql("ALTER TABLE app.t SET SCHEMA elsewhere");
        insert(&cluster, "elsewhere.t", 1);
        caught_up(&cluster);
        let step = cluster.status("s", "next_step");
        let kept = if tables.contains('*') { "app.*" } else { "app.other" };
        let update =
            format!("UPDATE pgwh.subscriptions SET tables = '{{{kept},elsewhere.t}}' WHERE name = 's';");
        assert_eq!(step, update);
        cluster.sql(&step);
        insert(&cluster, "elsewhere.t", 2);
        assert_eq!(cluster.delivered(&receiver, "s").len(), 1);
        cluster.wait_status("s", "next_step LIKE 'SELECT pgwh.backfill(%'");
        let step = cluster.status("s", "next_step");
        assert_eq!(step, "SELECT pgwh.backfill('s', 'elsewhere.t');");
        cluster.sql(&step);
        eventually("backfilled", || (ids(&receiver, "s") == [1, 2]).then_some(()));
        cluster.wait_status("s", "next_step IS NULL");
    }
}

#[test]
fn pending_events_of_a_lost_privilege_are_dead_letters() {
    let (cluster, receiver) = stage();
    cluster.sql("GRANT SELECT ON app.t TO ann");
    let ann = cluster.as_role("ann");
    receiver.behave_at("/s", |_: &Request| Reply::status(503));
    ann.subscribe(&receiver, "s", "tables => '{app.t}', retry_schedule => '{100 ms, 100 ms, 1 s}'");
    insert(&cluster, "app.t", 1);
    cluster.wait_status("s", "retrying = 1");
    cluster.sql("REVOKE SELECT ON app.t FROM ann");
    receiver.behave_at("/s", |_: &Request| Reply::status(200));
    cluster
        .wait_true("SELECT count(*) = 1 FROM pgwh.dead_letters WHERE reason LIKE '%ann%may not read app.t%'");
    cluster.sql("GRANT SELECT ON app.t TO ann");
    let fate = "SELECT fate FROM pgwh.why('app.t', '{\"id\": 1}') WHERE subscription = 's'";
    assert_eq!(cluster.value(fate), "dead");
    receiver.clear();
    cluster.sql("SELECT pgwh.redeliver(id) FROM pgwh.dead_letters");
    eventually("redelivered", || (ids(&receiver, "s") == [1]).then_some(()));
}

#[test]
fn a_table_that_takes_the_place_of_another_leaves_no_gap() {
    let (cluster, receiver) = stage();
    cluster.sql("CREATE TABLE app.new (LIKE app.t INCLUDING ALL)");
    cluster.subscribe(&receiver, "s", "tables => '{app.t}'");
    insert(&cluster, "app.t", 1);
    cluster.sql("BEGIN; ALTER TABLE app.t RENAME TO old; ALTER TABLE app.new RENAME TO t; COMMIT");
    insert(&cluster, "app.t", 2);
    insert(&cluster, "app.old", 3);
    cluster.sql("ALTER TABLE app.t RENAME TO new");
    cluster.sql("ALTER TABLE app.old RENAME TO t");
    insert(&cluster, "app.t", 4);
    // Who follows it, too.
    cluster.sql("BEGIN; ALTER TABLE app.t RENAME TO moved; UPDATE pgwh.subscriptions SET tables = '{app.moved}' WHERE name = 's'; COMMIT");
    insert(&cluster, "app.moved", 5);
    // And one that is dropped.
    cluster.sql("DROP TABLE app.moved");
    caught_up(&cluster);
    eventually("sent", || (ids(&receiver, "s") == [1, 2, 4, 5]).then_some(()));
    assert_eq!(gaps(&cluster, "s"), Vec::<Vec<_>>::new());
}

#[test]
fn a_table_that_is_unlogged_for_a_while_leaves_a_gap() {
    for tables in ["{app.t}", "{app.*}"] {
        let (cluster, receiver) = stage();
        cluster.subscribe(&receiver, "s", &format!("tables => '{tables}'"));
        cluster.restart(Stop::Kill);
        cluster.sql("ALTER TABLE app.t SET UNLOGGED");
        insert(&cluster, "app.t", 1);
        caught_up(&cluster);
        assert_eq!(gaps(&cluster, "s").len(), 1);
        assert!(
            cluster
                .status("s", "gap")
                .ends_with("table app.t is UNLOGGED: its changes are not in the write-ahead log")
        );
        let hint = cluster.value("SELECT hint FROM pgwh.health() WHERE check_name = 'gaps'");
        assert_eq!(
            (hint.as_str(), cluster.status("s", "next_step")),
            ("ALTER TABLE app.t SET LOGGED;", hint.clone())
        );
        cluster.sql(&hint);
        insert(&cluster, "app.t", 2);
        caught_up(&cluster);
        eventually("sent again", || (ids(&receiver, "s") == [2]).then_some(()));
        let step = cluster.status("s", "next_step");
        assert_eq!(step, "SELECT pgwh.backfill('s', 'app.t');");
        cluster.sql(&step);
        cluster.wait_true("SELECT bool_and(state = 'done') FROM pgwh.backfills");
        eventually("backfilled", || ids(&receiver, "s").contains(&1).then_some(()));
        cluster.wait_status("s", "next_step IS NULL");
        assert_eq!(gaps(&cluster, "s").len(), 1);
        // It is recorded once, also when all of it is decoded again.
        cluster.restart(Stop::Kill);
        caught_up(&cluster);
        assert_eq!(gaps(&cluster, "s").len(), 1);
    }
    let (cluster, receiver) = stage();
    // One that never was in the log is not meant by a wildcard.
    cluster.subscribe(&receiver, "s", "tables => '{app.*}'");
    cluster.sql("CREATE UNLOGGED TABLE app.cache (id int PRIMARY KEY); ALTER TABLE app.cache ADD note text; TRUNCATE app.cache");
    caught_up(&cluster);
    assert_eq!(gaps(&cluster, "s"), Vec::<Vec<_>>::new());
}

#[test]
fn a_right_that_a_wildcard_had_is_missed_when_it_is_gone() {
    let (cluster, receiver) = stage();
    cluster.sql("GRANT SELECT ON app.t TO readers; GRANT readers TO ann");
    let ann = cluster.as_role("ann");
    let mut next = 0;
    for (take, give) in [
        ("REVOKE SELECT ON app.t FROM readers", "GRANT SELECT ON app.t TO readers"),
        ("REVOKE readers FROM ann", "GRANT readers TO ann"),
        ("REVOKE USAGE ON SCHEMA app FROM ann", "GRANT USAGE ON SCHEMA app TO ann"),
    ] {
        ann.subscribe(&receiver, "s", "tables => '{app.*}'");
        cluster.sql("CREATE TABLE app.closed (id int PRIMARY KEY, note text)");
        // The decoder knows no more of the table than the catalogs say.
        cluster.restart(Stop::Kill);
        cluster.sql(take);
        insert(&cluster, "app.t", next + 1);
        insert(&cluster, "app.closed", 1);
        cluster.sql(give);
        insert(&cluster, "app.t", next + 2);
        caught_up(&cluster);
        eventually(&format!("sent again: {give}"), || (ids(&receiver, "s") == [next + 2]).then_some(()));
        assert_eq!(gaps(&cluster, "s").len(), 1, "{take}: {:?}", gaps(&cluster, "s"));
        assert_eq!(gaps(&cluster, "s")[0][0].as_deref(), Some("app.t"), "{take}");
        cluster.sql("SELECT pgwh.unsubscribe('s'); DELETE FROM pgwh.gaps; DROP TABLE app.closed");
        receiver.clear();
        next += 2;
    }
}

#[test]
fn a_partitioned_table_has_one_gap_whatever_its_parts() {
    let (cluster, receiver) = stage();
    cluster.sql(
        "CREATE TABLE app.p (id int PRIMARY KEY, note text) PARTITION BY RANGE (id);
         CREATE TABLE app.p1 PARTITION OF app.p FOR VALUES FROM (0) TO (100);
         CREATE TABLE app.p2 PARTITION OF app.p FOR VALUES FROM (100) TO (200);
         GRANT SELECT ON app.p TO ann",
    );
    cluster.as_role("ann").subscribe(&receiver, "s", "tables => '{app.p}'");
    cluster.sql("REVOKE SELECT ON app.p FROM ann");
    insert(&cluster, "app.p", 1);
    insert(&cluster, "app.p", 101);
    cluster.sql("GRANT SELECT ON app.p TO ann");
    insert(&cluster, "app.p", 2);
    caught_up(&cluster);
    eventually("sent again", || (ids(&receiver, "s") == [2]).then_some(()));
    assert_gap_and_cure(&cluster, &receiver, "app.p", &[1, 101], "partitions");
    // A part that leaves the log for a while.
    cluster.sql("ALTER TABLE app.p2 SET UNLOGGED");
    insert(&cluster, "app.p", 102);
    cluster.sql("ALTER TABLE app.p2 SET LOGGED");
    caught_up(&cluster);
    cluster.wait_true(
        "SELECT count(*) = 1 FROM pgwh.open_gaps
         WHERE name = 's' AND to_lsn IS NOT NULL AND table_name = 'app.p' AND reason LIKE '%app.p2 is UNLOGGED%'",
    );
    cluster.sql(&cluster.status("s", "next_step"));
    eventually("backfilled", || ids(&receiver, "s").contains(&102).then_some(()));
    cluster.wait_status("s", "next_step IS NULL");
}

#[test]
fn disabled_and_enabled_in_one_transaction_leaves_no_gap() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "tables => '{app.t}'");
    for (id, statement) in [
        (
            1,
            "BEGIN; UPDATE pgwh.subscriptions SET enabled = false WHERE name = 's'; UPDATE pgwh.subscriptions SET enabled = true WHERE name = 's'; COMMIT",
        ),
        (
            2,
            "BEGIN; UPDATE pgwh.subscriptions SET enabled = false WHERE name = 's'; INSERT INTO app.t VALUES (20); SAVEPOINT a; UPDATE pgwh.subscriptions SET enabled = true WHERE name = 's'; COMMIT",
        ),
        (
            3,
            "BEGIN; UPDATE pgwh.subscriptions SET enabled = false WHERE name = 's'; SAVEPOINT a; UPDATE pgwh.subscriptions SET url = url; ROLLBACK TO a; UPDATE pgwh.subscriptions SET enabled = true WHERE name = 's'; COMMIT",
        ),
    ] {
        cluster.sql(statement);
        insert(&cluster, "app.t", id);
        let sent = cluster.delivered(&receiver, "s");
        assert!(sent.iter().any(|event| event["key"]["id"] == id), "{statement}");
        assert_eq!(cluster.value("SELECT count(*) FROM pgwh.gaps"), "0", "{statement}");
        assert_eq!(cluster.status("s", "gap"), "", "{statement}");
    }
    // A gap is one still, and ends.
    cluster.sql("UPDATE pgwh.subscriptions SET enabled = false WHERE name = 's'");
    cluster.sql("BEGIN; UPDATE pgwh.subscriptions SET enabled = true WHERE name = 's'; UPDATE pgwh.subscriptions SET enabled = false WHERE name = 's'; COMMIT");
    caught_up(&cluster);
    assert_eq!(cluster.value("SELECT count(*) FROM pgwh.gaps WHERE to_lsn IS NULL"), "1");
    cluster.sql("UPDATE pgwh.subscriptions SET enabled = true WHERE name = 's'");
    caught_up(&cluster);
    cluster.wait_true("SELECT count(*) = 1 AND bool_and(to_lsn IS NOT NULL) FROM pgwh.gaps");
}
