//! The harness itself: what the other tests stand on.

use crate::{Cluster, Process, Server, Setup, Stop, eventually};

fn bare() -> Setup {
    Setup::new().not_preloaded()
}

#[test]
fn a_cluster_comes_up_answers_and_leaves_nothing_behind() {
    let cluster = bare().start();
    let level = if Server::get().major() >= 19 { "replica" } else { "logical" };
    assert_eq!(cluster.value("SELECT current_setting('wal_level')"), level);
    let shop = cluster.create_database("shop");
    shop.sql("CREATE TABLE t (id int, note text); INSERT INTO t VALUES (1, NULL), (2, 'two')");
    let rows = shop.rows("SELECT * FROM t ORDER BY id");
    assert_eq!(rows, [[Some("1".into()), None], [Some("2".into()), Some("two".into())]]);
    assert!(shop.psql("SELECT note FROM t WHERE id = 2;").contains("two"));
    let refusal = shop.refused("INSERT INTO nowhere VALUES (1)");
    assert_eq!(refusal.code, "42P01");
    let (directory, postmaster) = (cluster.host().to_owned(), postmaster(&cluster));
    drop(cluster);
    assert!(!directory.exists());
    assert!(!postmaster.is_alive());
}

#[test]
fn what_is_committed_outlives_every_way_to_stop() {
    let cluster = bare().start();
    cluster.sql("CREATE TABLE t (n int)");
    for (n, how) in [Stop::Fast, Stop::Immediate, Stop::Kill].into_iter().enumerate() {
        cluster.sql(&format!("INSERT INTO t VALUES ({n})"));
        cluster.restart(how);
        assert_eq!(cluster.value("SELECT count(*) FROM t"), (n + 1).to_string(), "{how:?}");
    }
}

#[test]
fn a_killed_process_is_gone_and_the_server_recovers() {
    let cluster = bare().start();
    let walwriter = cluster.process("walwriter");
    cluster.kill9("walwriter");
    assert!(!walwriter.is_alive());
    assert_ne!(cluster.process("walwriter"), walwriter);
    assert_eq!(cluster.value("SELECT 1"), "1");
}

#[test]
fn settings_can_change_while_it_runs() {
    let cluster = bare().set("work_mem = '5MB'").start();
    assert_eq!(cluster.value("SHOW work_mem"), "5MB");
    cluster.set("work_mem = '6MB'");
    cluster.reload();
    cluster.wait_true("SELECT current_setting('work_mem') = '6MB'");
}

#[test]
fn a_process_tells_what_it_uses() {
    let cluster = bare().start();
    let mut client = cluster.connect();
    let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).expect("a pid").get(0);
    let backend = Process(pid);
    let before = backend.cpu();
    client.batch_execute("SELECT sum(n) FROM generate_series(1, 2000000) n").expect("a sum");
    assert!(backend.cpu() > before);
    assert!(backend.memory() > 100_000);
    let sleeps = backend.sleeps();
    client.batch_execute("SELECT 1").expect("an answer");
    eventually("asleep again", || (backend.sleeps() > sleeps).then_some(()));
}

fn postmaster(cluster: &Cluster) -> Process {
    let text = std::fs::read_to_string(cluster.data().join("postmaster.pid")).expect("a pid file");
    Process(text.lines().next().expect("a line").parse().expect("a number"))
}
