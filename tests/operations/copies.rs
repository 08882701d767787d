//! A copy never sends by surprise: it comes up held, says why and what to type, and sends when it is adopted. A promoted
//! standby that has its slot goes on by itself.

use std::process::Command;

use harness::{Cluster, Database, Receiver, Reply, Request, Server, Setup, Stop, events_of, eventually};

/// A cluster with a subscription, and a change that its endpoint has taken.
fn stage() -> (Cluster, Receiver) {
    let cluster = Cluster::start();
    let receiver = subscribed(&cluster);
    (cluster, receiver)
}

fn subscribed(cluster: &Cluster) -> Receiver {
    cluster.sql("CREATE EXTENSION pgstream_hooks");
    cluster.wait_true("SELECT ok FROM pgwh.health() WHERE check_name = 'slot present and valid'");
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let receiver = Receiver::start().unwrap();
    cluster.subscribe(&receiver, "s", "tables => '{t}'");
    cluster.sql("INSERT INTO t VALUES (1)");
    assert_eq!(ids(&cluster.delivered(&receiver, "s")), [1]);
    cluster.wait_confirmed();
    receiver
}

fn ids(events: &[harness::Event]) -> Vec<i64> {
    let mut ids: Vec<i64> = events.iter().filter_map(|event| event["key"]["id"].as_i64()).collect();
    ids.sort_unstable();
    ids
}

/// Held, with a reason and with what to type, in status and log, and capturing.
#[track_caller]
fn assert_held(cluster: &Cluster) {
    cluster.wait_true("SELECT ok FROM pgwh.health() WHERE check_name = 'slot present and valid'");
    cluster.wait_true("SELECT ok FROM pgwh.health() WHERE check_name = 'worker running'");
    assert_eq!(cluster.status("s", "state"), "held");
    assert!(cluster.status("s", "reason").contains("copy"), "{}", cluster.status("s", "reason"));
    assert_eq!(cluster.status("s", "next_step"), "SELECT pgwh.adopt();");
    eventually("the log says so", || {
        cluster.log().contains("To send from here: SELECT pgwh.adopt();").then_some(())
    });
}

/// A copy with changes that were committed in it keeps them, and sends them when told.
#[track_caller]
fn assert_sends_when_adopted(copy: &Cluster, receiver: &Receiver) {
    receiver.clear();
    copy.sql("INSERT INTO t VALUES (100)");
    copy.wait_true("SELECT pending > 0 FROM pgwh.status WHERE name = 's'");
    assert_eq!(receiver.count(), 0, "nothing leaves before it is adopted");
    // A restart adopts nothing.
    copy.restart(Stop::Fast);
    copy.wait_true("SELECT state = 'held' AND pending > 0 FROM pgwh.status WHERE name = 's'");
    assert_eq!(receiver.count(), 0, "nothing leaves before it is adopted");
    assert_eq!(copy.value("SELECT pgwh.adopt()"), "1");
    copy.sql("INSERT INTO t VALUES (101)");
    assert!(ids(&copy.delivered(receiver, "s")).ends_with(&[100, 101]));
    assert_eq!(copy.status("s", "state"), "active");
    assert_eq!(copy.value("SELECT pgwh.adopt()"), "0");
    // It is at home now.
    copy.restart(Stop::Fast);
    copy.sql("INSERT INTO t VALUES (102)");
    assert!(ids(&copy.delivered(receiver, "s")).ends_with(&[102]));
}

#[test]
fn a_restart_and_a_crash_are_no_copies() {
    let (cluster, receiver) = stage();
    for (id, how) in [(2, Stop::Fast), (3, Stop::Kill)] {
        cluster.restart(how);
        cluster.sql(&format!("INSERT INTO t VALUES ({id})"));
        assert!(ids(&cluster.delivered(&receiver, "s")).contains(&id));
        assert_eq!(cluster.status("s", "state"), "active");
    }
}

#[test]
fn a_cloned_data_directory_is_held_until_it_is_adopted() {
    let (cluster, receiver) = stage();
    cluster.stop(Stop::Fast);
    let copy = cluster.copied();
    copy.begin();
    assert_held(&copy);
    assert_sends_when_adopted(&copy, &receiver);
    // The original is where it was.
    receiver.clear();
    cluster.begin();
    cluster.sql("INSERT INTO t VALUES (2)");
    assert_eq!(ids(&cluster.delivered(&receiver, "s")), [2]);
}

#[test]
fn a_moved_volume_is_held_and_loses_nothing() {
    let (cluster, receiver) = stage();
    cluster.sql("SELECT pgwh.pause('s'); INSERT INTO t VALUES (2)");
    cluster.stop(Stop::Fast);
    let moved = cluster.moved();
    moved.begin();
    assert_held(&moved);
    moved.sql("SELECT pgwh.resume('s')");
    receiver.clear();
    moved.wait_true("SELECT pending = 1 FROM pgwh.status WHERE name = 's'");
    moved.sql("SELECT pgwh.adopt(pending => 'send')");
    assert_eq!(ids(&moved.delivered(&receiver, "s")), [2]);
}

#[test]
fn what_is_pending_can_be_discarded_and_stays_so() {
    let (cluster, receiver) = stage();
    cluster.sql("SELECT pgwh.pause('s')");
    cluster.sql("INSERT INTO t SELECT generate_series(2, 50)");
    cluster.wait_true("SELECT pending = 49 FROM pgwh.status WHERE name = 's'");
    cluster.stop(Stop::Fast);
    let copy = cluster.copied();
    copy.begin();
    assert_held(&copy);
    receiver.clear();
    copy.sql("INSERT INTO t VALUES (51)");
    let refusal = copy.refused("SELECT pgwh.adopt(pending => 'keep')");
    assert_eq!(refusal.code, "22023");
    copy.sql("SELECT pgwh.resume('s'); SELECT pgwh.adopt(pending => 'discard')");
    copy.sql("INSERT INTO t VALUES (52)");
    assert_eq!(ids(&copy.delivered(&receiver, "s")), [52]);
    assert_eq!(copy.status("s", "pending"), "0");
    copy.restart(Stop::Kill);
    copy.sql("INSERT INTO t VALUES (53)");
    assert_eq!(ids(&copy.delivered(&receiver, "s")), [52, 53]);
    assert_eq!(copy.value("SELECT count(*) FROM pgwh_internal.commands"), "0");
}

#[test]
fn a_base_backup_started_beside_its_original_is_held() {
    let (cluster, receiver) = stage();
    let copy = cluster.backed_up();
    copy.begin();
    assert_held(&copy);
    // Without the slot it knows that it misses something.
    assert_ne!(copy.status("s", "gap"), "");
    assert_sends_when_adopted(&copy, &receiver);
    receiver.clear();
    cluster.sql("INSERT INTO t VALUES (2)");
    assert_eq!(ids(&cluster.delivered(&receiver, "s")), [2]);
}

#[test]
fn a_point_in_time_recovery_in_the_same_place_is_held() {
    let (cluster, receiver) = stage();
    cluster.stop(Stop::Fast);
    // As a snapshot of the volume has it: also the slot is there. Recovery ends at once, on a new timeline.
    cluster.set("restore_command = 'false'");
    cluster.signal("recovery.signal");
    cluster.begin();
    cluster.wait_true("SELECT NOT pg_is_in_recovery()");
    assert_held(&cluster);
    assert_sends_when_adopted(&cluster, &receiver);
}

#[test]
fn a_promoted_standby_that_has_its_slot_goes_on_by_itself() {
    let cluster = Setup::new().set("wal_keep_size = '256MB'").start();
    let standby = cluster.standby();
    standby.begin();
    let receiver = subscribed(&cluster);
    let end = cluster.value("SELECT pg_current_wal_lsn()");
    standby.wait_true(&format!("SELECT pg_last_wal_replay_lsn() >= '{end}'"));
    // As tools that keep slots on standbys do it.
    standby.stop(Stop::Fast);
    copy_slots(&cluster, &standby);
    standby.begin();
    assert_eq!(standby.status("s", "state"), "held");
    assert!(standby.status("s", "reason").contains("standby"), "{}", standby.status("s", "reason"));
    cluster.sql("INSERT INTO t VALUES (2)");
    assert!(ids(&cluster.delivered(&receiver, "s")).contains(&2));
    let end = cluster.value("SELECT pg_current_wal_lsn()");
    standby.wait_true(&format!("SELECT pg_last_wal_replay_lsn() >= '{end}'"));
    cluster.stop(Stop::Kill);
    receiver.clear();
    standby.sql("SELECT pg_promote()");
    standby.wait_true("SELECT state = 'active' FROM pgwh.status");
    standby.sql("INSERT INTO t VALUES (3)");
    assert!(ids(&standby.delivered(&receiver, "s")).ends_with(&[3]));
    assert_eq!(standby.status("s", "state"), "active");
    assert_eq!(standby.status("s", "gap"), "");
    // It is at home now, also after a restart.
    standby.restart(Stop::Fast);
    standby.sql("INSERT INTO t VALUES (4)");
    assert!(ids(&standby.delivered(&receiver, "s")).ends_with(&[4]));
}

#[test]
fn a_locked_row_delays_no_other_on_a_promoted_standby() {
    let cluster = Setup::new().set("wal_keep_size = '256MB'").start();
    let standby = cluster.standby();
    standby.begin();
    let receiver = subscribed(&cluster);
    cluster.subscribe(&receiver, "other", "tables => '{t}'");
    cluster.delivered(&receiver, "other");
    let end = cluster.value("SELECT pg_current_wal_lsn()");
    standby.wait_true(&format!("SELECT pg_last_wal_replay_lsn() >= '{end}'"));
    standby.stop(Stop::Fast);
    copy_slots(&cluster, &standby);
    standby.set("pgwh.enabled = off");
    standby.begin();
    cluster.stop(Stop::Kill);
    receiver.clear();
    standby.sql("SELECT pg_promote()");
    standby.wait_true("SELECT NOT pg_is_in_recovery()");
    let mut open = standby.connect();
    open.batch_execute("BEGIN; SELECT FROM pgwh.subscriptions WHERE name = 's' FOR UPDATE").unwrap();
    standby.set("pgwh.enabled = on");
    standby.reload();
    standby.wait_true("SELECT state = 'active' FROM pgwh.status WHERE name = 'other'");
    standby.sql("INSERT INTO t VALUES (3)");
    assert!(ids(&standby.delivered(&receiver, "other")).ends_with(&[3]));
    assert_eq!(standby.status("s", "state"), "held");
    open.batch_execute("ROLLBACK").unwrap();
    standby.wait_true("SELECT state = 'active' FROM pgwh.status WHERE name = 's'");
    assert!(ids(&standby.delivered(&receiver, "s")).ends_with(&[3]));
    standby.restart(Stop::Fast);
    standby.sql("INSERT INTO t VALUES (4)");
    for name in ["s", "other"] {
        assert!(ids(&standby.delivered(&receiver, name)).ends_with(&[4]), "{name}");
    }
}

#[test]
fn a_promoted_standby_without_its_slot_is_held() {
    let (cluster, receiver) = stage();
    let standby = cluster.standby();
    standby.begin();
    cluster.stop(Stop::Fast);
    standby.sql("SELECT pg_promote()");
    assert_held(&standby);
    assert_sends_when_adopted(&standby, &receiver);
}

fn copy_slots(from: &Cluster, to: &Cluster) {
    from.sql("CHECKPOINT");
    // The server puts new files in the places of old ones meanwhile.
    eventually("all files of slots were copied", || {
        let done = Command::new("cp")
            .args(["-a"])
            .arg(from.data().join("pg_replslot/."))
            .arg(to.data().join("pg_replslot"))
            .status()
            .unwrap();
        done.success().then_some(())
    });
}

fn dump(database: &Database) -> String {
    let output = Server::get()
        .command("pg_dump")
        .args(["-U", "postgres", "-h"])
        .arg(database.host())
        .arg(database.name())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// `pg_restore --clean` drops the extension, and what it has; then its subscriptions are of an earlier installation.
#[test]
fn a_dump_restored_over_its_database_is_no_copy_of_another() {
    let (cluster, receiver) = stage();
    receiver.behave(|_: &Request| Reply::status(503));
    cluster.sql("INSERT INTO t SELECT generate_series(1000, 1099)");
    let archive = cluster.make_directory("archive").join("dump");
    let archive = archive.to_str().unwrap();
    let run = |program: &str, arguments: &[&str]| {
        let mut command = Server::get().command(program);
        let output = command
            .args(["-U", "postgres", "-h"])
            .arg(cluster.host())
            .args(["-d", cluster.name()])
            .args(arguments)
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{program}: {told}");
        told
    };
    run("pg_dump", &["-Fc", "-f", archive]);
    let told = run("pg_restore", &["--verbose", "--clean", "--if-exists", archive]);
    let warning =
        "WARNING:  100 undelivered events of 1 subscription are dropped with extension pgstream_hooks";
    assert!(told.contains(warning) && cluster.log().contains(warning), "{told}");
    assert_eq!(cluster.status("s", "state"), "held");
    let reason = "it was made in this database before the extension was dropped and created again";
    assert_eq!(cluster.status("s", "reason"), reason);
    assert_eq!(cluster.status("s", "next_step"), "SELECT pgwh.adopt();");
    let detail = cluster.value("SELECT detail FROM pgwh.health() WHERE check_name = 'subscriptions valid'");
    assert_eq!(detail, "s: held, made before the extension was dropped and created again");
    cluster.sql("SELECT pgwh.adopt(); SELECT pgwh.rotate_secret('s')");
    receiver.behave(|_: &Request| Reply::status(200));
    cluster.sql("INSERT INTO t VALUES (2000)");
    assert!(ids(&cluster.delivered(&receiver, "s")).contains(&2000));
}

#[test]
fn a_restored_dump_has_the_subscriptions_held_and_without_keys() {
    let (cluster, receiver) = stage();
    let secret = cluster.value("SELECT pgwh.secret('s')");
    let text = dump(&cluster);
    assert!(!text.contains(&secret), "a dump has no key in the clear");
    for table in ["event_chunks", "outcome_chunks", "positions", "installation", "routing_image"] {
        assert!(!text.contains(&format!("COPY pgwh_internal.{table} ")), "a dump has nothing of {table}");
    }
    let restored = cluster.create_database("restored");
    restored.psql(&text);
    assert_eq!(restored.value("SELECT count(*) FROM pgwh.secrets"), "0");
    assert_eq!(restored.status("s", "state"), "held");
    assert_eq!(restored.status("s", "next_step"), "SELECT pgwh.adopt();");
    restored.wait_true("SELECT ok FROM pgwh.health() WHERE check_name = 'slot present and valid'");
    receiver.clear();
    restored.sql("INSERT INTO t VALUES (100)");
    restored.sql("SELECT pgwh.adopt()");
    // Nothing leaves that receivers could not verify.
    assert_eq!(restored.status("s", "state"), "error");
    assert!(restored.status("s", "reason").contains("signing key is missing"));
    restored.sql("INSERT INTO t VALUES (101)");
    restored.wait_true("SELECT pending = 1 FROM pgwh.status WHERE name = 's'");
    assert_eq!(receiver.count(), 0);
    restored.sql(&restored.status("s", "next_step"));
    assert_eq!(ids(&restored.delivered(&receiver, "s")), [101]);
    let fresh = restored.value("SELECT pgwh.secret('s')");
    assert_ne!(fresh, secret);
    let verifier = receiver::Secret::parse(&fresh).unwrap();
    assert!(
        events_of(&receiver, "s")
            .iter()
            .all(|event| verifier.verify(&event.request) == receiver::Verdict::Valid)
    );
}

#[test]
fn a_restored_dump_has_encrypted_keys_and_headers() {
    let cluster = Setup::new().set("pgwh.encryption_key_file = 'pgwh.key'").start();
    cluster.write_private("pgwh.key", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n");
    cluster.sql("CREATE EXTENSION pgstream_hooks");
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let receiver = Receiver::start().unwrap();
    cluster.subscribe(&receiver, "s", "tables => '{t}', headers => '{\"authorization\": \"Bearer s3cret\"}'");
    let secret = cluster.value("SELECT pgwh.secret('s')");
    let text = dump(&cluster);
    assert!(text.contains("sealed:1:") && !text.contains(&secret) && !text.contains("s3cret"));
    let restored = cluster.create_database("restored");
    restored.psql(&text);
    assert_eq!(restored.status("s", "state"), "held");
    restored.sql("SELECT pgwh.adopt()");
    assert_eq!(restored.value("SELECT pgwh.secret('s')"), secret);
    restored.sql("INSERT INTO t VALUES (100)");
    let events = restored.delivered(&receiver, "s");
    assert_eq!(ids(&events), [100]);
    assert_eq!(events[0].request.header("authorization"), Some("Bearer s3cret"));
}
