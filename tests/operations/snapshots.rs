//! A snapshot of a volume has the path, the files and their inodes of its original. It never sends by surprise, and the volume of
//! a container that is made again does.

use harness::{Cluster, DISPATCHER, Machine, Receiver, Setup, Stop, Volume, events_of};

const ID: &str = "0123456789abcdef0123456789abcdef";

/// A cluster on a volume of its own with a subscription, which was stopped with a change that is not delivered.
struct Stage {
    // Unmounted before the cluster's directory is removed.
    volume: Option<Volume>,
    cluster: Cluster,
    receiver: Receiver,
}

/// Starts it on that machine. None where nobody may mount a volume, which takes root and loop devices.
#[track_caller]
fn stage(machine: &Machine, arguments: &[&str]) -> Option<Stage> {
    let cluster = Setup::new().prepare();
    let volume = Volume::mount(&cluster.data())
        .inspect_err(|reason| println!("no snapshot is made: {reason}"))
        .ok()?;
    Some(Stage::fill(cluster, Some(volume), machine, arguments))
}

impl Stage {
    #[track_caller]
    fn fill(cluster: Cluster, volume: Option<Volume>, machine: &Machine, arguments: &[&str]) -> Self {
        cluster.begin_on(machine, arguments);
        cluster.sql("CREATE EXTENSION pgstream_hooks; CREATE TABLE t (id int PRIMARY KEY)");
        let receiver = Receiver::start().unwrap();
        cluster.subscribe(&receiver, "s", "tables => '{t}'");
        cluster.sql("INSERT INTO t VALUES (1)");
        assert_eq!(cluster.delivered(&receiver, "s").len(), 1);
        cluster.sql("SELECT pgwh.pause('s')");
        cluster.sql("INSERT INTO t VALUES (2)");
        cluster.wait_status("s", "pending = 1");
        cluster.sql("SELECT pgwh.resume('s')");
        cluster.delivered(&receiver, "s");
        receiver.clear();
        Stage { cluster, volume, receiver }
    }

    #[track_caller]
    fn volume(&self) -> &Volume {
        self.volume.as_ref().unwrap()
    }

    /// Starts a snapshot of the volume in its place.
    #[track_caller]
    fn snapshot(&self, machine: Machine, arguments: &[&str]) {
        self.cluster.stop(Stop::Fast);
        let image = self.volume().snapshot("copy").unwrap();
        self.cluster.begin_on(&machine.with_volume(&image), arguments);
    }

    /// Nothing of it is sent, and what to type arms it.
    #[track_caller]
    fn assert_held_until_adopted(&self) {
        let Stage { cluster, receiver, .. } = self;
        cluster.wait_true("SELECT bool_and(ok) FROM pgwh.health() WHERE check_name IN ('worker running', 'slot present and valid')");
        cluster.wait_status("s", "state = 'held'");
        cluster.sql("INSERT INTO t VALUES (10)");
        cluster.wait_status("s", "pending > 0");
        assert_eq!(receiver.count(), 0, "nothing leaves before it is adopted");
        assert!(cluster.status("s", "reason").contains("copy"));
        cluster.sql(&cluster.status("s", "next_step"));
        cluster.delivered(receiver, "s");
        assert!(events_of(receiver, "s").iter().any(|event| event["key"]["id"] == 10));
    }

    #[track_caller]
    fn assert_sends(&self, id: u32) {
        self.cluster.sql(&format!("INSERT INTO t VALUES ({id})"));
        self.cluster.wait_status("s", "state = 'active'");
        let events = self.cluster.delivered(&self.receiver, "s");
        assert!(events.iter().any(|event| event["key"]["id"] == id));
    }

    fn detection(&self, column: &str) -> String {
        self.cluster.value(&format!("SELECT {column} FROM pgwh.health() WHERE check_name = 'copy detection'"))
    }
}

#[test]
fn a_snapshot_in_another_container_is_held() {
    let Some(stage) = stage(&Machine::named("production"), &[]) else { return };
    assert!(stage.detection("detail").starts_with("weak: the host name"), "{}", stage.detection("detail"));
    assert!(stage.detection("hint").contains("-c pgwh.server_identity="), "{}", stage.detection("hint"));
    // The volume in its own container goes on.
    stage.cluster.stop(Stop::Fast);
    stage.cluster.begin_on(&Machine::named("production"), &[]);
    stage.assert_sends(3);
    stage.receiver.clear();
    stage.snapshot(Machine::named("clone"), &[]);
    stage.assert_held_until_adopted();
    // The original is where it was.
    stage.cluster.stop(Stop::Fast);
    stage.cluster.begin_on(&Machine::named("production"), &[]);
    stage.assert_sends(4);
}

#[test]
fn a_snapshot_with_the_same_host_is_held_by_its_device() {
    for machine in [Machine::named("db"), Machine::named("db").with_id(ID)] {
        let Some(stage) = stage(&machine, &[]) else { return };
        stage.snapshot(machine, &[]);
        stage.assert_held_until_adopted();
        // It is at home there, also when its workers are started again.
        stage.cluster.kill9(DISPATCHER);
        stage.assert_sends(11);
    }
}

#[test]
fn a_container_that_is_made_again_goes_on_under_its_identity() {
    let identity = ["-cpgwh.server_identity=production"];
    let Some(stage) = stage(&Machine::named("pod-1"), &identity) else { return };
    assert!(stage.detection("detail").starts_with("strong"), "{}", stage.detection("detail"));
    assert_eq!(stage.detection("hint"), "");
    for (id, name) in [(3, "pod-2"), (4, "pod-3")] {
        stage.cluster.stop(Stop::Fast);
        stage.cluster.begin_on(&Machine::named(name), &identity);
        stage.assert_sends(id);
    }
    stage.receiver.clear();
    stage.snapshot(Machine::named("pod-3"), &["-cpgwh.server_identity=staging"]);
    stage.assert_held_until_adopted();
}

#[test]
fn an_identity_counts_from_outside_of_the_data_directory_only() {
    let Some(stage) = stage(&Machine::named("production"), &[]) else { return };
    let refused = stage.cluster.refused("ALTER SYSTEM SET pgwh.server_identity = 'production'");
    assert_eq!(refused.code, "55P02", "{refused:?}");
    stage.cluster.set("pgwh.server_identity = 'production'");
    stage.cluster.stop(Stop::Fast);
    stage.cluster.begin_on(&Machine::named("production"), &[]);
    assert_eq!(stage.detection("ok"), "f");
    assert!(stage.detection("hint").contains("outside of the data directory"), "{}", stage.detection("hint"));
    stage.assert_sends(3);
    stage.receiver.clear();
    stage.snapshot(Machine::named("clone"), &[]);
    stage.assert_held_until_adopted();
    // In a file that is not copied with the data it does.
    stage.cluster.stop(Stop::Fast);
    let directory = stage.cluster.make_directory("outside");
    std::fs::write(directory.join("identity.conf"), "pgwh.server_identity = 'production'\n").unwrap();
    stage.cluster.set(&format!("include '{}'", directory.join("identity.conf").display()));
    stage.cluster.begin_on(&Machine::named("pod-1"), &[]);
    assert!(stage.detection("detail").starts_with("strong"), "{}", stage.detection("detail"));
    stage.cluster.sql("SELECT pgwh.adopt()");
    stage.cluster.stop(Stop::Fast);
    stage.cluster.begin_on(&Machine::named("pod-2"), &[]);
    stage.assert_sends(5);
}

#[test]
fn an_identity_on_the_file_system_of_the_data_is_weak() {
    // What a snapshot of this file system is, without one: the same files, path and inodes.
    let unshare = std::process::Command::new("unshare").args(["--mount", "--uts", "true"]).status();
    if !unshare.is_ok_and(|status| status.success()) {
        return println!("no machine is made, which takes root");
    }
    let cluster = Setup::new().prepare();
    let file = cluster.make_directory("beside").join("identity.conf");
    std::fs::write(&file, "pgwh.server_identity = 'production'\n").unwrap();
    cluster.set(&format!("include '{}'", file.display()));
    let stage = Stage::fill(cluster, None, &Machine::named("production"), &[]);
    let detail = stage.detection("detail");
    assert!(detail.starts_with("weak: pgwh.server_identity is set in a file on the file system"), "{detail}");
    assert!(stage.detection("hint").contains("command line"), "{}", stage.detection("hint"));
    stage.cluster.stop(Stop::Fast);
    stage.cluster.begin_on(&Machine::named("production"), &[]);
    stage.assert_sends(3);
    stage.receiver.clear();
    stage.cluster.stop(Stop::Fast);
    stage.cluster.begin_on(&Machine::named("clone"), &[]);
    stage.assert_held_until_adopted();
    stage.cluster.sql("DELETE FROM t WHERE id = 10");
    stage.cluster.delivered(&stage.receiver, "s");
    stage.cluster.stop(Stop::Fast);
    // A copy that has another name is known by that, too.
    std::fs::write(&file, "pgwh.server_identity = 'staging'\n").unwrap();
    stage.receiver.clear();
    stage.cluster.begin_on(&Machine::named("clone"), &[]);
    stage.assert_held_until_adopted();
}

#[test]
fn a_snapshot_that_pg_ctl_restarts_is_held() {
    let production = Machine::named("production");
    let Some(stage) = stage(&production, &[]) else { return };
    let start = ["start", "-o", "-c pgwh.server_identity=production"];
    stage.cluster.stop(Stop::Fast);
    stage.cluster.begin_by_pg_ctl(&production, &start);
    stage.cluster.sql("SELECT pgwh.adopt()");
    assert!(stage.detection("detail").starts_with("strong"), "{}", stage.detection("detail"));
    // The original goes on, whoever restarts it.
    stage.cluster.stop(Stop::Fast);
    stage.cluster.begin_by_pg_ctl(&production, &["restart"]);
    let detail = stage.detection("detail");
    assert!(detail.starts_with("weak: pgwh.server_identity is from postmaster.opts"), "{detail}");
    assert!(stage.detection("hint").contains("pg_ctl start -o"), "{}", stage.detection("hint"));
    stage.assert_sends(3);
    for (name, id) in [("clone", 4), ("production", 5)] {
        stage.receiver.clear();
        stage.cluster.stop(Stop::Fast);
        let image = stage.volume().snapshot(name).unwrap();
        stage.cluster.begin_by_pg_ctl(&Machine::named(name).with_volume(&image), &["restart"]);
        stage.assert_held_until_adopted();
        // A container that is made again and says which server it is.
        stage.cluster.stop(Stop::Fast);
        stage.cluster.begin_by_pg_ctl(&Machine::named("pod"), &start);
        stage.assert_sends(id);
        stage.cluster.stop(Stop::Fast);
        stage.cluster.begin_by_pg_ctl(&production, &start);
    }
}

#[test]
fn a_machine_id_on_the_volume_of_the_data_is_weak() {
    let machine = Machine::named("db").with_id_on_volume(ID);
    let Some(stage) = stage(&machine, &[]) else { return };
    let detail = stage.detection("detail");
    assert!(detail.starts_with("weak: /etc/machine-id, which is on the file system of the data"), "{detail}");
    assert!(stage.detection("hint").contains("-c pgwh.server_identity="), "{}", stage.detection("hint"));
    stage.snapshot(machine, &[]);
    stage.assert_held_until_adopted();
}

#[test]
fn a_machine_with_an_id_of_its_own_may_be_renamed() {
    let Some(stage) = stage(&Machine::named("old").with_id(ID), &[]) else { return };
    assert!(
        stage.detection("detail").starts_with("strong: /etc/machine-id"),
        "{}",
        stage.detection("detail")
    );
    stage.cluster.stop(Stop::Fast);
    stage.cluster.begin_on(&Machine::named("new").with_id(ID), &[]);
    stage.assert_sends(3);
    stage.receiver.clear();
    stage.cluster.stop(Stop::Fast);
    stage.cluster.begin_on(&Machine::named("new").with_id(&ID.replace('0', "f")), &[]);
    stage.assert_held_until_adopted();
}
