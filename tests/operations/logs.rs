//! The log of the server: at the level of the setting, without internals of the extension.

use harness::{Cluster, eventually};

#[test]
fn messages_of_the_processes_are_logged_as_the_setting_says() {
    let cluster = Cluster::with_extension();
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY)");
    assert!(!cluster.log().contains("DEBUG:"));
    cluster.sql("ALTER SYSTEM SET pgwh.log_level = 'debug2'");
    cluster.reload();
    cluster.sql("INSERT INTO t VALUES (1)");
    eventually("debug messages of a process of ours", || {
        cluster
            .log()
            .lines()
            .any(|line| line.contains("pgstream_hooks") && line.contains("DEBUG:"))
            .then_some(())
    });
    assert!(!cluster.log().lines().any(|line| line.contains("client backend") && line.contains("DEBUG:")));
}

#[test]
fn an_error_of_the_server_has_no_backtrace_in_its_detail() {
    let cluster = Cluster::with_extension();
    cluster.sql(
        "CREATE ROLE stranger LOGIN; GRANT USAGE ON SCHEMA pgwh, pgwh_internal TO stranger;
         GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgwh, pgwh_internal TO stranger",
    );
    for call in ["unsubscribe('s')", "subscribe('https://example.com/')", "pause('s')", "replay('s', now())"]
    {
        let refused = cluster.as_role("stranger").refused(&format!("SELECT pgwh.{call}"));
        assert_eq!(refused.code, "42501", "{call}: {refused:?}");
        assert!(!refused.detail.contains('\n'), "{call}: {refused:?}");
    }
}
