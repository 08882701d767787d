//! A table that a subscription would miss is on record also when the reason came while the subscription was disabled: the gap
//! begins when it is enabled.

use harness::{Cluster, Receiver, Stop, events_of};

/// A table `lone.t`, a subscription `s` to it, and one of everything, which shows how far the log was decoded.
struct Stage {
    cluster: Cluster,
    receiver: Receiver,
}

const DISABLE: &str = "UPDATE pgwh.subscriptions SET enabled = false WHERE name = 's'";
const ENABLE: &str = "UPDATE pgwh.subscriptions SET enabled = true WHERE name = 's'";
const AWAY: &str = "ALTER TABLE lone.t RENAME TO x";
const BACK: &str = "ALTER TABLE lone.x RENAME TO t";
const WRITE: &str = "INSERT INTO lone.x VALUES (2)";
const RENAMED: &str = "table lone.t was renamed to lone.x";
/// Ends the server as a crash does.
const CRASH: &str = "-- crash";

impl Stage {
    fn new() -> Stage {
        let cluster = Cluster::with_extension();
        let receiver = Receiver::start().unwrap();
        cluster.sql("CREATE ROLE ann LOGIN; CREATE SCHEMA app2");
        cluster.subscribe(&receiver, "everything", "event_types => '{insert}'");
        Stage { cluster, receiver }
    }

    fn run(&self, commands: &[&str]) {
        for command in commands {
            if *command == CRASH {
                self.caught_up();
                self.cluster.wait_confirmed();
                self.cluster.sql("CHECKPOINT");
                self.cluster.restart(Stop::Kill);
            } else {
                self.cluster.sql(command);
            }
        }
        self.caught_up();
    }

    /// A new table, and `s` with these terms.
    fn begin(&self, terms: &str) {
        self.cluster.sql("DROP SCHEMA IF EXISTS lone CASCADE; CREATE SCHEMA lone; CREATE TABLE lone.t (id int PRIMARY KEY)");
        self.cluster.subscribe(&self.receiver, "s", terms);
        self.receiver.clear();
    }

    fn end(&self) {
        self.cluster.sql("SELECT pgwh.unsubscribe('s')");
    }

    fn caught_up(&self) {
        assert_eq!(self.cluster.value("SELECT pgwh.wait('everything', '60 s')"), "t");
    }

    /// The rows of the table that `s` got something of.
    fn ids(&self) -> Vec<i64> {
        assert_eq!(self.cluster.value("SELECT pgwh.wait('s', '60 s')"), "t");
        let events = events_of(&self.receiver, "s");
        let mut ids: Vec<i64> = events.iter().filter_map(|event| event["key"]["id"].as_i64()).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// The reasons of the gaps of tables, and whether they are open.
    fn gaps(&self) -> Vec<(String, bool)> {
        let rows = self.cluster.rows(
            "SELECT reason, to_lsn IS NULL FROM pgwh.gaps g JOIN pgwh.subscriptions s ON s.id = g.subscription_id
             WHERE s.name = 's' AND relation IS NOT NULL ORDER BY g.from_lsn",
        );
        let text = |cell: &Option<String>| cell.clone().unwrap();
        rows.iter().map(|row| (text(&row[0]), text(&row[1]) == "t")).collect()
    }
}

/// Commands, how many gaps they leave, and the rows that arrive before and after the backfill that the status asks for.
type Order = (&'static [&'static str], usize, &'static [i64], &'static [i64]);

const ORDERS: &[Order] = &[
    (&[DISABLE, AWAY, ENABLE, WRITE, BACK], 1, &[3], &[2, 3]),
    (&[DISABLE, AWAY, CRASH, ENABLE, CRASH, WRITE, CRASH, BACK], 1, &[3], &[2, 3]),
    (&[AWAY, DISABLE, ENABLE, WRITE, BACK], 1, &[3], &[2, 3]),
    // After a crash it is not known whether something was missed before.
    (&[AWAY, CRASH, DISABLE, CRASH, ENABLE, WRITE, BACK], 2, &[3], &[2, 3]),
    (&[AWAY, WRITE, DISABLE, ENABLE, "INSERT INTO lone.x VALUES (4)", BACK], 2, &[3], &[2, 3, 4]),
    (&[AWAY, WRITE, DISABLE, BACK, ENABLE], 1, &[3], &[2, 3]),
    (&[DISABLE, AWAY, ENABLE, DISABLE, ENABLE, WRITE, DISABLE, BACK, ENABLE], 1, &[3], &[2, 3]),
    (
        &[
            DISABLE,
            AWAY,
            "ALTER TABLE lone.x RENAME TO y",
            ENABLE,
            "INSERT INTO lone.y VALUES (2)",
            "ALTER TABLE lone.y RENAME TO t",
        ],
        1,
        &[3],
        &[2, 3],
    ),
    (
        &[
            "BEGIN; UPDATE pgwh.subscriptions SET enabled = false WHERE name = 's'; ALTER TABLE lone.t RENAME TO x; COMMIT",
            ENABLE,
            WRITE,
            BACK,
        ],
        1,
        &[3],
        &[2, 3],
    ),
    (
        &[
            DISABLE,
            "BEGIN; ALTER TABLE lone.t RENAME TO x; UPDATE pgwh.subscriptions SET enabled = true WHERE name = 's'; COMMIT",
            WRITE,
            BACK,
        ],
        1,
        &[3],
        &[2, 3],
    ),
    // Nothing is written that an enabled subscription misses.
    (&[DISABLE, AWAY, WRITE, BACK, ENABLE], 0, &[3], &[]),
    (&[DISABLE, AWAY, CRASH, WRITE, CRASH, BACK, ENABLE], 0, &[3], &[]),
    (&[DISABLE, AWAY, WRITE, ENABLE, BACK], 0, &[3], &[]),
    (&[DISABLE, AWAY, ENABLE, BACK], 0, &[3], &[]),
    // Another table has the name: that is the one that is meant.
    (&[DISABLE, AWAY, "CREATE TABLE lone.t (id int PRIMARY KEY)", ENABLE, WRITE], 0, &[3], &[]),
    (
        &[
            DISABLE,
            "BEGIN; ALTER TABLE lone.t RENAME TO x; CREATE TABLE lone.t (id int PRIMARY KEY); COMMIT",
            ENABLE,
            WRITE,
        ],
        0,
        &[3],
        &[],
    ),
];

#[test]
fn a_table_renamed_while_its_subscription_is_disabled_is_a_gap() {
    let stage = Stage::new();
    for (commands, gaps, before, after) in ORDERS {
        stage.begin("tables => '{lone.t}'");
        stage.run(commands);
        stage.run(&["INSERT INTO lone.t VALUES (3)"]);
        assert_eq!(stage.gaps(), vec![(RENAMED.to_owned(), false); *gaps], "{commands:?}");
        assert_eq!(stage.ids(), *before, "{commands:?}");
        if *gaps > 0 {
            let step = stage.cluster.status("s", "next_step");
            assert_eq!(step, "SELECT pgwh.backfill('s', 'lone.t');", "{commands:?}");
            stage.cluster.sql(&step);
            stage.cluster.wait_true("SELECT bool_and(state = 'done') FROM pgwh.backfills");
            assert_eq!(stage.ids(), *after, "{commands:?}");
        }
        assert_eq!(stage.cluster.value("SELECT count(*) FROM pgwh.open_gaps WHERE name = 's'"), "0");
        stage.end();
    }
}

#[test]
fn a_disabled_subscription_misses_nothing_before_it_is_enabled() {
    let stage = Stage::new();
    stage.begin("tables => '{lone.t}', enabled => false");
    stage.run(&[AWAY, WRITE]);
    let open = "SELECT count(*) FROM pgwh.open_gaps WHERE name = 's'";
    assert_eq!(stage.cluster.value(open), "0");
    assert_eq!(stage.cluster.value("SELECT ok FROM pgwh.health() WHERE check_name = 'gaps'"), "t");
    assert!(!stage.cluster.log().contains(RENAMED));
    let at = stage.cluster.value("SELECT pg_current_wal_insert_lsn()");
    stage.run(&[ENABLE, "INSERT INTO lone.x VALUES (4)"]);
    assert_eq!(stage.gaps(), [(RENAMED.to_owned(), true)]);
    assert_eq!(stage.cluster.value(&format!("SELECT from_lsn > '{at}' FROM pgwh.open_gaps")), "t");
    assert_eq!(stage.cluster.value("SELECT ok FROM pgwh.health() WHERE check_name = 'gaps'"), "f");
    // What is to be typed names the table as it is now.
    let step = stage.cluster.value("SELECT next_step FROM pgwh.open_gaps");
    assert_eq!(step, "UPDATE pgwh.subscriptions SET tables = '{lone.x}' WHERE name = 's';");
    stage.run(&[&step, "INSERT INTO lone.x VALUES (5)"]);
    assert_eq!(stage.ids(), [5]);
    assert_eq!(stage.gaps(), [(RENAMED.to_owned(), false)]);
    stage.cluster.sql(&stage.cluster.status("s", "next_step"));
    stage.cluster.wait_true("SELECT bool_and(state = 'done') FROM pgwh.backfills");
    assert_eq!(stage.ids(), [2, 4, 5]);
}

#[test]
fn a_table_moved_while_its_subscription_is_disabled_is_a_gap() {
    let stage = Stage::new();
    for (there, write, back) in [
        (
            "ALTER TABLE lone.t SET SCHEMA app2",
            "INSERT INTO app2.t VALUES (2)",
            "ALTER TABLE app2.t SET SCHEMA lone",
        ),
        (
            "ALTER SCHEMA lone RENAME TO away",
            "INSERT INTO away.t VALUES (2)",
            "ALTER SCHEMA away RENAME TO lone",
        ),
    ] {
        stage.begin("tables => '{lone.t}'");
        stage.run(&[DISABLE, there, ENABLE, write]);
        assert_eq!(stage.gaps().iter().map(|gap| gap.1).collect::<Vec<_>>(), [true], "{there}");
        stage.run(&[back]);
        assert_eq!(stage.gaps().iter().map(|gap| gap.1).collect::<Vec<_>>(), [false], "{there}");
        stage.cluster.sql(&stage.cluster.status("s", "next_step"));
        stage.cluster.wait_true("SELECT bool_and(state = 'done') FROM pgwh.backfills");
        assert_eq!(stage.ids(), [2], "{there}");
        stage.end();
    }
}

#[test]
fn what_a_wildcard_loses_while_disabled_is_a_gap() {
    let stage = Stage::new();
    let enable = |rest: &str| format!("BEGIN; {ENABLE}; {rest}; COMMIT");
    for (there, enable, back, reason) in [
        (
            "ALTER TABLE lone.t SET UNLOGGED",
            ENABLE.to_owned(),
            "ALTER TABLE lone.t SET LOGGED",
            "table lone.t is UNLOGGED: its changes are not in the write-ahead log",
        ),
        // Without the right it cannot be enabled; the right may go in the same transaction.
        (
            "SELECT",
            enable("REVOKE SELECT ON lone.t FROM ann"),
            "GRANT SELECT ON lone.t TO ann",
            "its owner ann may not read lone.t",
        ),
        (
            "SELECT",
            enable("REVOKE USAGE ON SCHEMA lone FROM ann"),
            "GRANT USAGE ON SCHEMA lone TO ann",
            "its owner ann may not use the schema of lone.t",
        ),
    ] {
        stage.begin("tables => '{lone.*}'");
        stage.cluster.sql("GRANT USAGE ON SCHEMA lone TO ann; GRANT SELECT ON lone.t TO ann");
        stage.cluster.sql("UPDATE pgwh.subscriptions SET owner = 'ann' WHERE name = 's'");
        stage.run(&[DISABLE, there, &enable, "INSERT INTO lone.t VALUES (2)"]);
        assert_eq!(stage.gaps(), [(reason.to_owned(), true)], "{enable}");
        stage.run(&[back]);
        assert_eq!(stage.gaps(), [(reason.to_owned(), false)], "{enable}");
        assert_eq!(
            stage.cluster.status("s", "next_step"),
            "SELECT pgwh.backfill('s', 'lone.t');",
            "{enable}"
        );
        // Undone before it is enabled, it is none.
        stage.run(&[DISABLE, there, "INSERT INTO lone.t VALUES (4)", back, ENABLE]);
        assert_eq!(stage.gaps().len(), 1, "{enable}");
        stage.end();
    }
}
