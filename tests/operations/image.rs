//! The image of the Dockerfile: its settings are in the file that `initdb` reads, so that users can change them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use harness::{Cluster, Server, Setup, Stop};

/// The sample that the Dockerfile appends to, in the official image.
const SAMPLE: &str = "/usr/share/postgresql/postgresql.conf.sample";

fn dockerfile() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Dockerfile");
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A cluster as the image's `initdb` makes it: the command of the Dockerfile that changes the sample runs on a copy of it.
fn cluster_of_the_image(setup: Setup) -> Cluster {
    let cluster = setup.prepare();
    let share = cluster.make_directory("share");
    let extensions = Server::get().extensions();
    let original = extensions.parent().unwrap();
    for entry in fs::read_dir(original).unwrap() {
        let name = entry.unwrap().file_name();
        symlink(original.join(&name), share.join(&name)).unwrap();
    }
    let sample = share.join("postgresql.conf.sample");
    fs::remove_file(&sample).unwrap();
    fs::copy(original.join("postgresql.conf.sample"), &sample).unwrap();

    let text = dockerfile().replace("\\\n", "");
    let mut commands =
        text.lines().filter_map(|line| line.strip_prefix("RUN ")).filter(|run| run.contains(SAMPLE));
    let command =
        commands.next().expect("a RUN that changes the sample").replace(SAMPLE, sample.to_str().unwrap());
    let major = Server::get().major().to_string();
    assert!(
        Command::new("sh").args(["-ec", &command]).env("PG", major).status().unwrap().success(),
        "{command}"
    );

    fs::remove_dir_all(cluster.data()).unwrap();
    let (data, share) = (cluster.data(), share.to_str().unwrap());
    let initdb = ["-D", data.to_str().unwrap(), "-L", share, "-U", "postgres", "-A", "trust", "--no-sync"];
    cluster.run("initdb", &initdb).unwrap_or_else(|error| panic!("{error}"));
    cluster.set(&format!(
        "unix_socket_directories = '{}'\nlisten_addresses = ''\nfsync = off",
        cluster.host().display()
    ));
    cluster.begin();
    cluster
}

#[test]
fn a_new_cluster_of_the_image_needs_no_setting() {
    let cluster = cluster_of_the_image(Setup::new());
    cluster.sql("CREATE EXTENSION pgstream_hooks");
    cluster.wait_true("SELECT ok FROM pgwh.health() WHERE check_name = 'slot present and valid'");
}

#[test]
fn alter_system_changes_the_settings_of_the_image() {
    let cluster = cluster_of_the_image(Setup::new());
    cluster.each(&[
        "ALTER SYSTEM SET shared_preload_libraries = 'pgstream_hooks', 'auto_explain'",
        "ALTER SYSTEM SET wal_level = replica",
    ]);
    cluster.restart(Stop::Fast);
    assert_eq!(cluster.value("SHOW shared_preload_libraries"), "pgstream_hooks, auto_explain");
    assert_eq!(cluster.value("SHOW wal_level"), "replica");
}

#[test]
fn arguments_of_the_server_keep_the_settings_of_the_image() {
    // What `docker run pgstream_hooks -c max_connections=300` starts: arguments replace CMD.
    let cluster = cluster_of_the_image(Setup::new().argument("-cmax_connections=300"));
    assert_eq!(cluster.value("SHOW max_connections"), "300");
    cluster.sql("CREATE EXTENSION pgstream_hooks");
    cluster.wait_true("SELECT ok FROM pgwh.health() WHERE check_name = 'slot present and valid'");
    cluster.restart(Stop::Fast);
    // From 19 on, the default is enough.
    let level = if Server::get().major() >= 19 { "replica" } else { "logical" };
    assert_eq!(cluster.value("SHOW wal_level"), level);
}

#[test]
fn the_dockerfile_sets_nothing_on_a_command_line() {
    let text = dockerfile();
    for line in text.lines().filter(|line| line.starts_with("CMD") || line.starts_with("ENTRYPOINT")) {
        assert!(!line.contains("-c") && !line.contains("--"), "{line}");
    }
}
