//! Requests go to allowed addresses only, and to none by a proxy or certificate that was not set.

use harness::{Receiver, Setup, eventually};

#[test]
fn by_default_only_public_addresses_get_requests() {
    let cluster = Setup::new().set("pgwh.allowed_networks = ''").start();
    cluster.sql("CREATE EXTENSION pgstream_hooks");
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let receiver = Receiver::start().unwrap();
    let subscribe =
        format!("SELECT pgwh.subscribe('{}', name => 's', tables => '{{t}}')", receiver.url("/s"));
    let refusal = cluster.refused(&subscribe);
    assert!(refusal.message.contains("127.0.0.1") && refusal.detail.contains("loopback"), "{refusal:?}");
    let (alter, reload) = refusal.hint.strip_prefix("To allow it: ").unwrap().split_once("; ").unwrap();
    cluster.each(&[alter, reload]);
    eventually("it is allowed", || cluster.try_sql(&subscribe).ok());
    cluster.sql("INSERT INTO t VALUES (1)");
    assert_eq!(cluster.delivered(&receiver, "s").len(), 1);
    // Closed again, the connection that is kept serves no more.
    cluster.sql("ALTER SYSTEM RESET pgwh.allowed_networks");
    cluster.reload();
    cluster.wait_true("SELECT state = 'error' FROM pgwh.status WHERE name = 's'");
    assert!(cluster.status("s", "reason").contains("loopback"));
    cluster.sql("INSERT INTO t VALUES (2)");
    cluster.wait_true("SELECT bool_or(error_class = 'blocked') FROM pgwh.attempts");
    assert!(
        cluster
            .value("SELECT error FROM pgwh.attempts LIMIT 1")
            .contains("ALTER SYSTEM SET pgwh.allowed_networks")
    );
    assert_eq!(receiver.count(), 1);
}

#[test]
fn proxies_of_the_environment_are_not_used() {
    let mut setup = Setup::new();
    for name in ["http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
        setup = setup.environment(name, "http://127.0.0.1:1");
    }
    let cluster = setup.start();
    cluster.sql("CREATE EXTENSION pgstream_hooks");
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let receiver = Receiver::start().unwrap();
    cluster.subscribe(&receiver, "s", "");
    cluster.sql("INSERT INTO t VALUES (1)");
    assert_eq!(cluster.delivered(&receiver, "s").len(), 1);
}

#[test]
fn an_invalid_certificate_file_fails_requests_and_is_named() {
    let cluster = Setup::new().set("pgwh.ca_file = 'PG_VERSION'").start();
    cluster.sql("CREATE EXTENSION pgstream_hooks");
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let receiver = Receiver::start().unwrap();
    let url = receiver.url("/s").replace("http:", "https:");
    cluster.sql(&format!("SELECT pgwh.subscribe('{url}', name => 's')"));
    cluster.sql("INSERT INTO t VALUES (1)");
    cluster
        .wait_true("SELECT bool_or(error_class = 'tls' AND error LIKE '%pgwh.ca_file%') FROM pgwh.attempts");
    let refusal = cluster
        .refused(&format!("SELECT pgwh.subscribe('{url}', name => 's', client_certificate => 'hunter2')"));
    assert_eq!(refusal.code, "22023");
    assert!(!format!("{refusal:?}").contains("hunter2"));
}
