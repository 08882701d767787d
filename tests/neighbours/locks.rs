//! Locks that sessions hold on rows and tables of the extension: whoever holds them, and for however long, nothing waits but the
//! subscription that they are about.

use std::sync::mpsc;

use harness::{
    Client, Cluster, DISPATCHER, PATIENCE, Receiver, Reply, Script, Setup, Stop, distinct, events_of,
    eventually,
};

/// What docs/security.md grants to a role that subscribes.
const GRANTS: &str = "
    GRANT USAGE ON SCHEMA pgwh, pgwh_internal TO app;
    GRANT SELECT, INSERT, UPDATE, DELETE ON pgwh.subscriptions TO app;
    GRANT SELECT ON pgwh_internal.installation, pgwh.status TO app;
    GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgwh, pgwh_internal TO app;
    GRANT SELECT ON t TO app";

/// A healthy subscription `well`, and one of the role `app`, whose endpoint at `/app` is gone.
struct Stage {
    cluster: Cluster,
    receiver: Receiver,
}

impl Stage {
    fn set() -> Self {
        let cluster = Setup::new().set("max_prepared_transactions = 5").start();
        cluster.each(&[
            "CREATE EXTENSION pgstream_hooks",
            "CREATE TABLE t (id int PRIMARY KEY)",
            "CREATE ROLE app LOGIN",
            GRANTS,
        ]);
        let receiver = Receiver::start().unwrap();
        receiver.behave_at("/app", Script::always(Reply::status(410)));
        cluster.subscribe(&receiver, "well", "");
        cluster.as_role("app").subscribe(&receiver, "app", "tables => '{public.t}'");
        let stage = Self { cluster, receiver };
        stage.is_known("well");
        stage.is_known("app");
        stage
    }

    /// Waits until the workers know of a subscription.
    #[track_caller]
    fn is_known(&self, name: &str) {
        assert_eq!(self.cluster.value(&format!("SELECT pgwh.wait('{name}', '60 s')")), "t", "{name}");
    }

    fn insert(&self, rows: std::ops::RangeInclusive<u64>) {
        self.cluster.sql(&format!(
            "INSERT INTO t SELECT n FROM generate_series({}, {}) n",
            rows.start(),
            rows.end()
        ));
    }

    fn requests(&self, name: &str) -> usize {
        self.receiver.requests().iter().filter(|request| request.path() == format!("/{name}")).count()
    }

    /// Waits until a subscription has got so many events, without asking any table.
    #[track_caller]
    fn has_got(&self, name: &str, count: usize) {
        eventually(&format!("{count} events for {name}"), || {
            let got = distinct(events_of(&self.receiver, name));
            assert!(got.len() <= count, "too many for {name}: {got:?}");
            (got.len() == count).then_some(())
        });
    }

    fn health(&self, check: &str, column: &str) -> String {
        self.cluster.value(&format!("SELECT {column} FROM pgwh.health() WHERE check_name = '{check}'"))
    }
}

fn pid(client: &mut Client) -> i32 {
    client.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0)
}

#[test]
fn a_lock_on_a_row_stops_nothing_but_its_subscription() {
    let stage = Stage::set();
    let mut open = stage.cluster.as_role("app").connect();
    let holder = pid(&mut open);
    open.batch_execute("BEGIN; UPDATE pgwh.subscriptions SET rate_limit = 10 WHERE name = 'app'").unwrap();
    stage.insert(1..=1);
    stage.cluster.wait_status("app", "state = 'disabled'");
    stage.insert(2..=29);
    assert_eq!(stage.cluster.delivered(&stage.receiver, "well").len(), 29);
    stage.cluster.wait_confirmed();
    stage.cluster.wait_status(
        "app",
        &format!("reason LIKE '%410%process {holder} (app, idle in transaction)%' AND next_step LIKE '%({holder})%'"),
    );
    // What takes a moment is not worth a word.
    stage.cluster.wait_true("SELECT NOT ok FROM pgwh.health() WHERE check_name = 'deferred work'");
    // Who is new meanwhile is served, too.
    stage.cluster.subscribe(&stage.receiver, "new", "");
    stage.insert(30..=30);
    assert_eq!(stage.cluster.delivered(&stage.receiver, "new").len(), 1);
    assert_eq!(stage.requests("app"), 1, "who is gone is left alone");

    stage.cluster.sql(&stage.cluster.status("app", "next_step"));
    stage.cluster.wait_true(
        "SELECT NOT enabled AND disabled_reason LIKE '%410%' FROM pgwh.subscriptions WHERE name = 'app'",
    );
    stage.cluster.wait_status("app", "state = 'disabled' AND next_step LIKE '%enabled = true%'");
    stage.cluster.wait_true("SELECT count(*) = 0 FROM pgwh_internal.commands");
    assert_eq!(stage.health("deferred work", "ok"), "t");
    assert_eq!(stage.requests("app"), 1);
}

#[test]
fn a_410_holds_after_restarts_though_the_row_is_locked() {
    let stage = Stage::set();
    stage.cluster.as_role("app").sql(
        "BEGIN; SELECT FROM pgwh.subscriptions WHERE name = 'app' FOR UPDATE; PREPARE TRANSACTION 'xa-7'",
    );
    stage.insert(1..=3);
    let told = "state = 'disabled' AND reason LIKE '%410%prepared transaction ''xa-7''%' \
                AND next_step LIKE 'ROLLBACK PREPARED ''xa-7''%'";
    stage.cluster.wait_status("app", told);
    let asked = stage.requests("app");
    let before = stage.cluster.process(DISPATCHER);
    stage.cluster.sql(&format!("SELECT pg_terminate_backend({})", before.0));
    eventually("another dispatcher", || (!before.is_alive()).then_some(()));
    stage.insert(4..=6);
    assert_eq!(stage.cluster.delivered(&stage.receiver, "well").len(), 6);
    stage.cluster.restart(Stop::Immediate);
    stage.insert(7..=9);
    assert_eq!(stage.cluster.delivered(&stage.receiver, "well").len(), 9);
    stage.cluster.wait_status("app", told);
    assert_eq!(stage.requests("app"), asked, "who is gone is left alone");
    stage.cluster.sql(&stage.cluster.status("app", "next_step"));
    stage.cluster.wait_true("SELECT NOT enabled FROM pgwh.subscriptions WHERE name = 'app'");
    assert_eq!(stage.requests("app"), asked);
}

#[test]
fn a_url_changed_under_a_lock_gets_the_pending_events() {
    let stage = Stage::set();
    let mut open = stage.cluster.as_role("app").connect();
    let url = stage.receiver.url("/moved");
    open.batch_execute(&format!("BEGIN; UPDATE pgwh.subscriptions SET url = '{url}' WHERE name = 'app'"))
        .unwrap();
    stage.insert(1..=1);
    stage.cluster.wait_status("app", "state = 'disabled'");
    open.batch_execute("COMMIT").unwrap();
    stage.has_got("moved", 1);
    stage.cluster.wait_status("app", "state = 'active'");
    stage.cluster.wait_true("SELECT count(*) = 0 FROM pgwh_internal.commands");
}

#[test]
fn a_lock_of_any_kind_on_the_row_is_worked_around() {
    for lock in ["FOR SHARE", "FOR NO KEY UPDATE", "FOR KEY SHARE"] {
        let stage = Stage::set();
        let mut open = stage.cluster.as_role("app").connect();
        open.batch_execute(&format!("BEGIN; SELECT FROM pgwh.subscriptions WHERE name = 'app' {lock}"))
            .unwrap();
        // Two who share it.
        let mut second = stage.cluster.as_role("app").connect();
        if lock != "FOR NO KEY UPDATE" {
            let share = format!("BEGIN; SELECT FROM pgwh.subscriptions WHERE name = 'app' {lock}");
            second.batch_execute(&share).unwrap();
        }
        stage.insert(1..=5);
        assert_eq!(stage.cluster.delivered(&stage.receiver, "well").len(), 5, "{lock}");
        stage.cluster.wait_status("app", "state = 'disabled' AND reason LIKE '%410%'");
        if lock == "FOR KEY SHARE" {
            stage.cluster.wait_true("SELECT NOT enabled FROM pgwh.subscriptions WHERE name = 'app'");
        } else {
            stage.cluster.wait_status("app", "reason LIKE '%(app, idle in transaction)%'");
        }
    }
}

#[test]
fn a_role_locks_no_table_of_all_roles() {
    let stage = Stage::set();
    stage.cluster.sql("CREATE VIEW shown AS TABLE pgwh.subscriptions");
    stage.cluster.sql("CREATE VIEW counted AS SELECT (SELECT count(*) FROM shown)");
    stage.cluster.sql("ALTER VIEW shown OWNER TO app; ALTER VIEW counted OWNER TO app");
    let app = stage.cluster.as_role("app");
    let mut hint = String::new();
    for mode in ["SHARE", "SHARE ROW EXCLUSIVE", "EXCLUSIVE", "ACCESS EXCLUSIVE"] {
        for relation in ["pgwh.subscriptions", "ONLY pgwh.subscriptions", "shown", "counted"] {
            let refused = app.refused(&format!("LOCK TABLE {relation} IN {mode} MODE"));
            assert_eq!(refused.code, "42501", "{refused:?}");
            let message = format!("permission denied to lock table pgwh.subscriptions in {mode} mode");
            assert_eq!(refused.message, message, "{relation}");
            hint = refused.hint;
        }
    }
    let commands = [
        "SELECT FROM pgwh.subscriptions FOR UPDATE;",
        "LOCK TABLE pgwh.subscriptions IN SHARE UPDATE EXCLUSIVE MODE;",
    ];
    let mut open = app.connect();
    open.batch_execute("BEGIN").unwrap();
    for command in commands {
        assert!(hint.contains(command), "{hint}");
        open.batch_execute(command).unwrap();
    }
    let mut other = stage.cluster.connect();
    other.batch_execute("SET lock_timeout = '10 s'").unwrap();
    for command in ["ALTER TABLE t ADD c int", "TABLE pgwh.status", "SELECT pgwh.health()"] {
        other.batch_execute(command).unwrap();
    }
    stage.cluster.subscribe(&stage.receiver, "new", "");
    let before = stage.cluster.process(DISPATCHER);
    stage.cluster.sql(&format!("SELECT pg_terminate_backend({})", before.0));
    stage.insert(1..=9);
    stage.has_got("well", 9);
    stage.has_got("new", 9);
    // Whoever owns them does as with any table.
    open.batch_execute("ROLLBACK").unwrap();
    stage.cluster.sql("BEGIN; LOCK TABLE pgwh.subscriptions, shown IN ACCESS EXCLUSIVE MODE; COMMIT");
}

#[test]
fn a_locked_table_holds_up_no_call_that_does_not_name_it() {
    let stage = Stage::set();
    stage.cluster.sql("CREATE TABLE theirs (id int PRIMARY KEY); ALTER TABLE theirs OWNER TO app");
    stage.insert(1..=3);
    stage.has_got("well", 3);
    let mut open = stage.cluster.as_role("app").connect();
    open.batch_execute("BEGIN; LOCK TABLE theirs IN ACCESS EXCLUSIVE MODE").unwrap();
    let mut session = stage.cluster.connect();
    session.batch_execute("BEGIN; SET LOCAL lock_timeout = '10 s'").unwrap();
    let url = stage.receiver.url("/wild");
    let wild = format!("SELECT pgwh.subscribe('{url}', name => 'wild', filter => 'id > 2')");
    session.batch_execute(&wild).unwrap();
    session.batch_execute("SELECT pgwh.backfill('well'); COMMIT").unwrap();
    // Nor does the backfill hold what it has looked at.
    session.batch_execute("SET lock_timeout = '10 s'; ALTER TABLE t ADD c int").unwrap();
    stage.insert(4..=5);
    stage.has_got("wild", 2);
    open.batch_execute("INSERT INTO theirs VALUES (1); COMMIT").unwrap();
    stage.cluster.wait_true("SELECT bool_and(state = 'done') FROM pgwh.backfills");
    stage.has_got("wild", 2);
    stage.cluster.sql("INSERT INTO theirs VALUES (7)");
    stage.has_got("wild", 3);
}

#[test]
fn a_locked_table_of_subscriptions_stops_nobody() {
    let stage = Stage::set();
    stage.insert(1..=1);
    stage.cluster.wait_status("app", "state = 'disabled'");
    stage.cluster.subscribe(&stage.receiver, "refusing", "retry_schedule => '{}'");
    stage.receiver.behave_at("/refusing", Script::always(Reply::status(500)));
    // What it had not come to read when the lock was taken.
    let dispatcher = stage.cluster.process(DISPATCHER);
    let is_in_transaction = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE pid = {} AND xact_start IS NOT NULL",
        dispatcher.0
    );
    eventually("it stands still, and holds no lock", || {
        dispatcher.pause();
        eventually("it stands still", || dispatcher.stands_still().then_some(()));
        if stage.cluster.value(&is_in_transaction) == "0" {
            return Some(());
        }
        dispatcher.resume();
        None
    });
    stage.cluster.subscribe(&stage.receiver, "late", "");
    stage.cluster.sql("UPDATE pgwh.subscriptions SET rate_limit = 1000 WHERE name = 'refusing'");
    let mut open = stage.cluster.connect();
    open.batch_execute("BEGIN; LOCK TABLE pgwh.subscriptions IN ACCESS EXCLUSIVE MODE").unwrap();
    dispatcher.resume();
    stage.insert(2..=10);
    stage.has_got("well", 10);
    // Also by other settings of the server.
    stage.cluster.sql("ALTER SYSTEM SET pgwh.max_connections = 100");
    stage.cluster.reload();
    stage.insert(11..=20);
    stage.has_got("well", 20);
    assert_eq!(stage.requests("late"), 0);
    assert_eq!(stage.cluster.process(DISPATCHER).0, dispatcher.0, "it goes on");
    open.batch_execute("COMMIT").unwrap();
    stage.has_got("late", 19);
    stage.cluster.wait_status("refusing", "dead = 19");
    stage.cluster.wait_confirmed();
}

#[test]
fn a_start_that_a_lock_holds_up_names_it_and_loses_nothing() {
    let stage = Stage::set();
    let mut open = stage.cluster.connect();
    let holder = pid(&mut open);
    open.batch_execute("BEGIN; LOCK TABLE pgwh.subscriptions IN ACCESS EXCLUSIVE MODE").unwrap();
    let before = stage.cluster.process(DISPATCHER);
    stage.cluster.sql(&format!("SELECT pg_terminate_backend({})", before.0));
    let step = format!("SELECT pg_terminate_backend({holder});");
    let told = [
        "nothing is sent from this database before a lock on pgwh.subscriptions ends".to_owned(),
        format!("Process {holder} (postgres, idle in transaction) holds it."),
        format!("HINT:  {step}"),
    ];
    eventually("named in the log", || {
        let log = stage.cluster.log();
        told.iter().all(|text| log.contains(text.as_str())).then_some(())
    });
    stage.insert(1..=9);
    stage.cluster.sql(&step);
    stage.has_got("well", 9);
    assert_eq!(stage.cluster.log().matches(&told[0]).count(), 1);
    stage.cluster.wait_confirmed();
}

#[test]
fn who_is_gone_while_its_table_is_locked_is_left_alone() {
    for mode in ["ACCESS EXCLUSIVE", "SHARE"] {
        let stage = Stage::set();
        stage.cluster.subscribe(&stage.receiver, "system", "event_types => '{system}'");
        stage.is_known("system");
        let mut listener = stage.cluster.listen("pgwh");
        let mut open = stage.cluster.connect();
        open.batch_execute(&format!("BEGIN; LOCK TABLE pgwh.subscriptions IN {mode} MODE")).unwrap();
        stage.insert(1..=1);
        stage.has_got("well", 1);
        eventually("asked", || (stage.requests("app") == 1).then_some(()));
        stage.insert(2..=20);
        stage.has_got("well", 20);
        let before = stage.cluster.process(DISPATCHER);
        assert_eq!(stage.requests("app"), 1, "who is gone is left alone");
        open.batch_execute("COMMIT").unwrap();
        stage.cluster.wait_true(
            "SELECT NOT enabled AND disabled_reason LIKE '%410%' FROM pgwh.subscriptions WHERE name = 'app'",
        );
        // Disabled, and what it misses from then on.
        stage.has_got("system", 2);
        listener.wait_for(&["disabled", "app"]);
        assert_eq!(stage.cluster.process(DISPATCHER).0, before.0);
        assert_eq!(stage.requests("app"), 1);
    }
}

#[test]
fn locked_rows_of_any_table_that_sessions_write_to_stop_nobody() {
    let stage = Stage::set();
    stage.insert(1..=20);
    stage.cluster.delivered(&stage.receiver, "well");
    stage.cluster.wait_status("app", "state = 'disabled'");
    stage.cluster.sql(
        "INSERT INTO pgwh_internal.commands (command, subscription_id) SELECT 'reload', id FROM pgwh.subscriptions",
    );
    stage.cluster.sql("SELECT pgwh.pause('well')");
    stage.cluster.sql("SELECT pgwh.replay('well', '-infinity'::timestamptz)");
    stage.cluster.sql("SELECT pgwh.backfill('well', 'public.t')");
    // Its gap is open.
    stage.cluster.wait_true("SELECT count(*) = 1 FROM pgwh.gaps WHERE to_lsn IS NULL");
    let mut open = stage.cluster.connect();
    open.batch_execute("BEGIN").unwrap();
    for table in [
        "pgwh.secrets",
        "pgwh_internal.commands",
        "pgwh.replays",
        "pgwh_internal.backfill_requests",
        "pgwh.gaps",
    ] {
        open.batch_execute(&format!("SELECT FROM {table} FOR UPDATE")).unwrap();
    }
    stage.receiver.behave_at("/app", Script::default());
    stage.cluster.sql("UPDATE pgwh.subscriptions SET enabled = true WHERE name = 'app'");
    stage.cluster.sql("SELECT pgwh.resume('well')");
    stage.cluster.subscribe(&stage.receiver, "new", "");
    stage.insert(21..=30);
    eventually("the rows, again and from the beginning", || {
        let came = events_of(&stage.receiver, "well");
        let of = |action: &str| came.iter().filter(|event| event["action"] == action).count();
        (of("insert") >= 50 && of("read") >= 20).then_some(())
    });
    // They are over, only not on record: what makes the dispatcher look at the open ones does not begin them again.
    stage.cluster.sql("SELECT pgwh.pause('well')");
    stage.cluster.sql("SELECT pgwh.resume('well')");
    stage.insert(40..=49);
    eventually("newer rows", || {
        let came = events_of(&stage.receiver, "well");
        came.iter().any(|event| event["key"]["id"] == 49).then_some(())
    });
    open.batch_execute("COMMIT").unwrap();
    stage.cluster.wait_true("SELECT bool_and(state = 'done') FROM pgwh.replays");
    stage.cluster.wait_true("SELECT bool_and(state = 'done') FROM pgwh_internal.backfill_requests");
    stage.cluster.wait_true("SELECT count(*) = 0 FROM pgwh.gaps WHERE to_lsn IS NULL");
    stage.insert(31..=31);
    for name in ["app", "new", "well"] {
        assert!(
            stage.cluster.delivered(&stage.receiver, name).iter().any(|event| event["key"]["id"] == 31),
            "{name}"
        );
    }
    stage.cluster.wait_confirmed();
}

#[test]
fn a_lock_that_stops_the_workers_is_named_with_the_fix() {
    let stage = Stage::set();
    stage.insert(1..=1);
    stage.cluster.wait_status("app", "state = 'disabled'");
    stage.cluster.delivered(&stage.receiver, "well");
    let mut open = stage.cluster.connect();
    let holder = pid(&mut open);
    open.batch_execute("BEGIN; LOCK TABLE pgwh_internal.event_chunks IN SHARE MODE").unwrap();
    stage.insert(2..=10);
    stage.cluster.wait_status(
        "well",
        &format!(
            "state = 'error' AND reason LIKE '%dispatcher%pgwh_internal.event_chunks_%process {holder} (postgres, idle in transaction)%'"
        ),
    );
    assert_eq!(stage.health("locks", "ok"), "f");
    assert_eq!(stage.health("locks", "hint"), stage.cluster.status("well", "next_step"));
    stage.cluster.sql(&stage.health("locks", "hint"));
    assert_eq!(stage.cluster.delivered(&stage.receiver, "well").len(), 10);
    stage.cluster.wait_status("well", "state = 'active'");
    assert_eq!(stage.health("locks", "ok"), "t");
}

#[test]
fn a_call_that_waits_for_a_name_says_for_whom() {
    let stage = Stage::set();
    let subscribe = |name: &str| {
        format!("SELECT pgwh.subscribe('{}', '{name}', tables => '{{public.t}}')", stage.receiver.url("/x"))
    };
    for (name, command, is_prepared) in [
        ("new", subscribe("new"), false),
        ("well", "UPDATE pgwh.subscriptions SET rate_limit = 7 WHERE name = 'well'".to_owned(), false),
        ("well", "DELETE FROM pgwh.subscriptions WHERE name = 'well'".to_owned(), false),
        ("second", subscribe("second"), true),
    ] {
        let mut holder = stage.cluster.connect();
        let pid = pid(&mut holder);
        holder.batch_execute(&format!("BEGIN; {command}")).unwrap();
        if is_prepared {
            holder.batch_execute("PREPARE TRANSACTION 'half'").unwrap();
        }
        let (told, heard) = mpsc::channel();
        let mut client = stage.cluster.connect_noticing(move |notice| drop(told.send(notice)));
        let query = subscribe(name);
        let waiter = std::thread::spawn(move || client.batch_execute(&query).unwrap());
        let notice = loop {
            let notice = heard.recv_timeout(PATIENCE).unwrap();
            if notice.message().starts_with("waiting for") {
                break notice;
            }
        };
        assert!(notice.message().ends_with(&format!("subscription \"{name}\"")), "{notice:?}");
        let (who, cure) = match is_prepared {
            true => ("prepared transaction 'half'".to_owned(), "ROLLBACK PREPARED 'half';".to_owned()),
            false => (format!("process {pid} ("), format!("SELECT pg_terminate_backend({pid});")),
        };
        assert!(notice.detail().unwrap().contains(&who), "{notice:?}");
        assert_eq!(notice.hint().unwrap(), format!("To end it: {cure}"));
        stage.cluster.sql(&cure);
        waiter.join().unwrap();
        assert_eq!(
            stage.cluster.value(&format!("SELECT owner FROM pgwh.subscriptions WHERE name = '{name}'")),
            "postgres"
        );
    }
}
