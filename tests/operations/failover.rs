//! Failover: a standby that synchronizes slots takes over in mid-load and nothing is lost; where the slot is not there, the
//! gap is on record, with what closes it.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use harness::{
    Cluster, DECODER, DISPATCHER, Database, Event, LAUNCHER, PATIENCE, Receiver, Server, Setup, Stop,
    distinct, events, events_of, eventually, in_key_order, within,
};

const KEYS: u64 = 100;

/// Whether the server can synchronize slots to standbys.
fn synchronizes_slots() -> bool {
    Server::get().major() >= 17
}

/// A primary with two subscriptions to `t`, one of them paused, and its standby, which has a slot of its own.
struct Pair {
    primary: Cluster,
    standby: Cluster,
    receiver: Receiver,
}

impl Pair {
    fn start() -> Pair {
        let pair = Pair::start_without_slot();
        pair.wait_for_standby();
        pair
    }

    /// The standby may not have the slot yet.
    fn start_without_slot() -> Pair {
        let primary = Setup::new().set("wal_keep_size = '256MB'").start();
        primary.sql("SELECT pg_create_physical_replication_slot('standby', true)");
        let standby = primary.standby();
        standby.set(&format!(
            "primary_conninfo = 'host={} user=postgres dbname=postgres'
             primary_slot_name = 'standby'
             hot_standby_feedback = on
             wal_receiver_status_interval = 1",
            primary.host().display()
        ));
        if synchronizes_slots() {
            standby.set("sync_replication_slots = on");
        }
        standby.begin();
        if synchronizes_slots() {
            primary.set("synchronized_standby_slots = 'standby'");
            primary.reload();
        }
        primary.sql("CREATE EXTENSION pgstream_hooks");
        primary.sql("CREATE TABLE t (id int PRIMARY KEY, version int)");
        let receiver = Receiver::start().unwrap();
        primary.subscribe(&receiver, "now", "tables => '{t}'");
        primary.subscribe(&receiver, "later", "tables => '{t}'");
        primary.sql("SELECT pgwh.pause('later')");
        Pair { primary, standby, receiver }
    }

    /// Waits until the standby has all that the primary has, its slot included if it can have it.
    fn wait_for_standby(&self) {
        let end = self.primary.value("SELECT pg_current_wal_lsn()");
        self.standby.wait_true(&format!("SELECT pg_last_wal_replay_lsn() >= '{end}'"));
        if synchronizes_slots() {
            // It stays once the standby has heard, behind where it was made, of what runs, and our slot has passed that.
            // An idle primary tells so each 15 s at most.
            within(PATIENCE * 3, "the slot on the standby", || {
                self.primary.each(&[
                    "SELECT pg_log_standby_snapshot()",
                    "SELECT pg_logical_emit_message(true, 'nobody', '')",
                ]);
                std::thread::sleep(Duration::from_millis(200));
                let synced = "SELECT synced AND NOT temporary FROM pg_replication_slots WHERE slot_name = pgwh.slot_name()";
                (self.standby.value(synced) == "t").then_some(())
            });
        }
    }

    /// Kills the primary while `t` is written to, and has the standby take over.
    fn fail_over_in_mid_load(&self) {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| write(&self.primary, &stop));
            let seen = self.receiver.count();
            self.receiver.wait_for(seen + 20 * KEYS + 7, PATIENCE).expect("events");
            self.primary.stop(Stop::Kill);
            stop.store(true, Ordering::Relaxed);
        });
        self.standby.sql("SELECT pg_promote()");
    }
}

/// Counts up each key of `t` by one, in one transaction after the other.
fn write(database: &Database, stop: &AtomicBool) {
    let mut client = database.connect();
    while !stop.load(Ordering::Relaxed) {
        let sql = format!(
            "INSERT INTO t SELECT n, 1 FROM generate_series(1, {KEYS}) n
               ON CONFLICT (id) DO UPDATE SET version = t.version + 1"
        );
        if client.batch_execute(&sql).is_err() {
            break;
        }
    }
}

/// The versions of each key that came, in order of arrival.
fn versions(events: &[Event]) -> BTreeMap<u64, Vec<u64>> {
    let mut versions: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for event in events {
        let number = |field: &str| event["record"][field].as_u64().unwrap();
        versions.entry(number("id")).or_default().push(number("version"));
    }
    versions
}

#[test]
fn a_synchronized_standby_takes_over_without_loss() {
    if !synchronizes_slots() {
        return is_a_gap_that_a_backfill_closes(&Pair::start());
    }
    let pair = Pair::start();
    pair.fail_over_in_mid_load();
    let Pair { standby, receiver, .. } = &pair;
    standby.wait_status("now", "state = 'active'");
    for _ in 0..5 {
        standby.sql("UPDATE t SET version = version + 1");
    }
    let last: u64 = standby.value("SELECT max(version) FROM t").parse().unwrap();
    standby.sql("SELECT pgwh.resume('later')");
    for name in ["now", "later"] {
        let events = standby.delivered(receiver, name);
        in_key_order(&events);
        let versions = versions(&events);
        assert_eq!(versions.len() as u64, KEYS);
        for (key, versions) in versions {
            assert_eq!(versions, (1..=last).collect::<Vec<_>>(), "of key {key} for {name}");
        }
        assert_eq!(standby.status(name, "gap"), "");
        assert_eq!(standby.status(name, "state"), "active");
    }
    // Before and after, for one subscription as for the other, a change has one id.
    let mut ids: HashMap<String, (u64, u64)> = HashMap::new();
    for event in events(receiver) {
        assert_eq!(*ids.entry(event.id()).or_insert(event.place()), event.place(), "{}", event.whole);
    }
    assert_eq!(ids.len() as u64, KEYS * last);
}

#[test]
fn a_standby_without_the_slot_takes_over_with_a_gap() {
    let pair = Pair::start();
    if synchronizes_slots() {
        pair.standby.set("sync_replication_slots = off");
        // As one that never had it.
        pair.standby.stop(Stop::Fast);
        for slot in std::fs::read_dir(pair.standby.data().join("pg_replslot")).unwrap() {
            std::fs::remove_dir_all(slot.unwrap().path()).unwrap();
        }
        pair.standby.begin();
        let health = "SELECT ok, hint FROM pgwh.health() WHERE check_name = 'slot present and valid'";
        let row = pair.standby.rows(health).remove(0);
        assert_eq!(row[0].as_deref(), Some("f"));
        assert!(row[1].as_deref().unwrap().contains("sync_replication_slots"), "{row:?}");
    } else {
        pair.standby.stop(Stop::Fast);
        pair.standby.begin();
    }
    is_a_gap_that_a_backfill_closes(&pair);
}

/// What was committed around the failover is on record as missing, and what to type about it sends the rows that there are.
fn is_a_gap_that_a_backfill_closes(pair: &Pair) {
    let Pair { standby, receiver, .. } = pair;
    pair.fail_over_in_mid_load();
    standby.wait_true("SELECT ok FROM pgwh.health() WHERE check_name = 'slot present and valid'");
    // It cannot know whether its primary still sends.
    standby.wait_status("now", "state = 'held'");
    standby.wait_status("now", "gap IS NOT NULL");
    let gap = standby.status("now", "gap");
    assert!(gap.contains("promoted") && gap.contains("without the replication slot"), "{gap}");
    eventually("the log says so", || standby.log().contains("SELECT pgwh.backfill(name)").then_some(()));
    standby.sql("SELECT pgwh.adopt()");
    standby.wait_status("now", "state = 'active'");
    let health = "SELECT hint FROM pgwh.health() WHERE check_name = 'gaps' AND NOT ok";
    assert_eq!(standby.value(health), "SELECT pgwh.backfill('later'); SELECT pgwh.backfill('now');");
    assert!(standby.status("now", "reason").contains("misses"), "{}", standby.status("now", "reason"));
    receiver.clear();
    standby.sql(&standby.status("now", "next_step"));
    standby.wait_true("SELECT state = 'done' FROM pgwh.backfills");
    standby.sql("UPDATE t SET version = version + 1");
    let last: u64 = standby.value("SELECT max(version) FROM t").parse().unwrap();
    let versions = versions(&standby.delivered(receiver, "now"));
    assert_eq!(versions.len() as u64, KEYS);
    for versions in versions.values() {
        assert!(versions.ends_with(&[last - 1, last]), "{versions:?}");
    }
    assert_eq!(standby.value(health), "SELECT pgwh.backfill('later');");
    assert_eq!((standby.status("now", "reason"), standby.status("now", "next_step")), ("".into(), "".into()));
    assert_ne!(standby.status("now", "gap"), "", "it stays on record");
}

#[test]
fn health_on_a_standby_says_why_it_has_no_slot_yet() {
    if !synchronizes_slots() {
        let Pair { standby, .. } = Pair::start();
        // The server has no such thing: that it is missing is no failure of its.
        let health = "SELECT ok FROM pgwh.health() WHERE check_name = 'slot present and valid'";
        return assert_eq!(standby.value(health), "t");
    }
    let pair = Pair::start_without_slot();
    let health =
        "SELECT detail, hint FROM pgwh.health() WHERE check_name = 'slot present and valid' AND NOT ok";
    let (detail, hint) = eventually("a slot that is not there yet", || {
        let row = pair.standby.try_rows(health).ok()?.pop()?;
        let mut texts = row.into_iter().map(Option::unwrap_or_default);
        let (detail, hint) = (texts.next()?, texts.next()?);
        detail.contains("being synchronized").then_some((detail, hint))
    });
    if Server::get().major() >= 19 {
        let reason = detail.rsplit_once("skipped: ").expect("a reason").1;
        assert!(
            ["wal_or_rows_removed", "wal_not_flushed", "no_consistent_snapshot"].contains(&reason),
            "{detail}"
        );
        assert!(hint.contains("standby") || hint.contains("pg_log_standby_snapshot()"), "{hint}");
    } else {
        assert!(hint.contains("pg_replication_slots"), "{hint}");
    }
    pair.wait_for_standby();
    assert_eq!(pair.standby.rows(health).len(), 0);
}

/// What WAL holds at present: since 19, logical slots switch it.
const LEVEL: &str =
    "SELECT coalesce(current_setting('effective_wal_level', true), current_setting('wal_level'))";

#[test]
fn a_standby_follows_logical_decoding_and_takes_over() {
    let pair = Pair::start();
    let Pair { primary, standby, receiver } = &pair;
    let level_of_standby = |level: &str| standby.wait_true(&format!("SELECT ({LEVEL}) = '{level}'"));
    level_of_standby("logical");
    primary.sql("DROP EXTENSION pgstream_hooks");
    level_of_standby(if Server::get().major() >= 19 { "replica" } else { "logical" });
    primary.sql("CREATE EXTENSION pgstream_hooks");
    primary.subscribe(receiver, "now", "tables => '{t}'");
    level_of_standby("logical");
    pair.wait_for_standby();
    assert_eq!(standby.value("SELECT ok FROM pgwh.health() WHERE check_name = 'wal_level'"), "t");
    primary.sql("INSERT INTO t VALUES (1, 1)");
    assert_eq!(primary.delivered(receiver, "now").len(), 1);
    pair.wait_for_standby();
    primary.stop(Stop::Kill);
    standby.sql("SELECT pg_promote()");
    if !synchronizes_slots() {
        standby.wait_status("now", "state = 'held'");
        standby.sql("SELECT pgwh.adopt()");
    }
    standby.wait_status("now", "state = 'active'");
    standby.sql("INSERT INTO t VALUES (2, 1)");
    assert_eq!(standby.delivered(receiver, "now").len(), 2);
    assert_eq!(standby.value(LEVEL), "logical");
}

#[test]
fn nothing_is_sent_that_standbys_must_have_first_and_have_not() {
    if !synchronizes_slots() {
        // The server cannot be told which: what is sent waits for nobody.
        let primary = Cluster::with_extension();
        let standbys = "SELECT ok, detail FROM pgwh.health() WHERE check_name = 'standbys'";
        return assert_eq!(
            primary.rows(standbys),
            [[Some("t".into()), Some("decoding waits for none".into())]]
        );
    }
    let Pair { primary, standby, receiver } = Pair::start();
    primary.sql("INSERT INTO t VALUES (1, 1)");
    assert_eq!(primary.delivered(&receiver, "now").len(), 1);
    standby.stop(Stop::Fast);
    let standbys = "SELECT ok, detail, hint FROM pgwh.health() WHERE check_name = 'standbys'";
    primary.wait_true(&format!("SELECT NOT ok FROM ({standbys}) h"));
    let row = primary.rows(standbys).remove(0);
    assert!(row[1].as_deref().unwrap().contains("slot standby"), "{row:?}");
    assert!(row[2].as_deref().unwrap().contains("synchronized_standby_slots"), "{row:?}");
    primary.sql("INSERT INTO t VALUES (2, 1)");
    assert_eq!(primary.value("SELECT pgwh.wait('now', '1 s')"), "f");
    assert_eq!(distinct(events_of(&receiver, "now")).len(), 1);
    primary.wait_true(&format!(
        "SELECT query LIKE 'waiting for standbys%' FROM pg_stat_activity WHERE backend_type = '{DECODER}'"
    ));
    // A restart forgets nothing of it.
    primary.restart(Stop::Fast);
    assert_eq!(primary.value("SELECT pgwh.wait('now', '1 s')"), "f");
    assert_eq!(distinct(events_of(&receiver, "now")).len(), 1);
    standby.begin();
    assert_eq!(primary.delivered(&receiver, "now").len(), 2);
    primary.wait_true(&format!("SELECT ok FROM ({standbys}) h"));
}

#[test]
fn the_slot_is_not_confirmed_before_standbys_have_the_journal() {
    let Pair { primary, standby, receiver } = Pair::start();
    // Also without the setting: that they are connected is enough.
    if synchronizes_slots() {
        primary.set("synchronized_standby_slots = ''");
        primary.reload();
    }
    let walreceiver = eventually("a walreceiver", || standby.processes("walreceiver").first().copied());
    walreceiver.pause();
    primary.sql("INSERT INTO t VALUES (1, 1)");
    let end = primary.value("SELECT pg_current_wal_lsn()");
    assert_eq!(primary.delivered(&receiver, "now").len(), 1);
    let confirmed = format!(
        "SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots WHERE slot_name = pgwh.slot_name()"
    );
    for _ in 0..5 {
        primary.sql("INSERT INTO t VALUES (2, 1) ON CONFLICT (id) DO UPDATE SET version = t.version + 1");
        assert_eq!(primary.value("SELECT pgwh.wait('now', '10 s')"), "t");
    }
    assert_eq!(primary.value(&confirmed), "f");
    walreceiver.resume();
    primary.wait_true(&confirmed);
}

#[test]
fn on_a_standby_workers_rest_and_calls_say_so() {
    let Pair { primary, standby, .. } = Pair::start();
    for kind in [LAUNCHER, DISPATCHER, DECODER] {
        assert!(standby.processes(kind).is_empty(), "{kind}");
    }
    let health = "SELECT ok, detail, hint FROM pgwh.health() WHERE check_name = 'worker running'";
    let row = standby.rows(health).remove(0);
    assert_eq!((row[0].as_deref(), row[2].as_deref()), (Some("t"), None));
    assert!(row[1].as_deref().unwrap().contains("standby"), "{row:?}");
    assert_eq!(
        standby.value("SELECT string_agg(check_name, ', ') FROM pgwh.health() WHERE NOT ok"),
        "subscriptions valid"
    );
    assert_eq!(standby.status("now", "state"), "held");
    assert_eq!(standby.status("now", "next_step"), "");
    for call in [
        "pgwh.subscribe('https://example.com/')",
        "pgwh.unsubscribe('now')",
        "pgwh.pause('now')",
        "pgwh.resume('now')",
        "pgwh.test('now')",
        "pgwh.rotate_secret('now')",
        "pgwh.emit('a', '{}')",
        "pgwh.annotate('{\"a\": 1}'::jsonb)",
        "pgwh.replay('now', now() - interval '1 hour')",
        "pgwh.redeliver(1)",
        "pgwh.skip(1)",
        "pgwh.cancel_replay(1)",
        "pgwh.forget('t', '{\"id\": 1}')",
        "pgwh.adopt()",
        "pgwh.backfill('now')",
        "pgwh.pause_backfill(1)",
        "pgwh.resume_backfill(1)",
        "pgwh.cancel_backfill(1)",
        "pgwh.wait('now')",
    ] {
        let refusal = standby.refused(&format!("SELECT {call}"));
        assert_eq!(refusal.code, "25006", "{call}: {refusal:?}");
        assert!(refusal.message.contains("standby"), "{call}: {refusal:?}");
        assert_eq!(refusal.hint, "Call this on the primary.", "{call}");
    }
    // Whoever looks may look.
    for look in ["TABLE pgwh.events", "TABLE pgwh.deliveries", "TABLE pgwh.gaps", "SELECT pgwh.metrics()"] {
        standby.sql(look);
    }
    assert!(!standby.log().contains("pgstream_hooks:"), "{}", standby.log());
    assert_eq!(primary.status("now", "state"), "active");
}
