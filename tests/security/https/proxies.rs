//! Requests through an HTTP proxy: a real one, and what is shown of its setting.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command};

use harness::{Cluster, eventually};

use super::stage;

const PASSWORD: &str = "hunter2";

/// Debian's tinyproxy, which wants a user and password.
struct TinyProxy {
    address: SocketAddr,
    log: std::path::PathBuf,
    process: Child,
}

impl TinyProxy {
    fn start(cluster: &Cluster) -> TinyProxy {
        let address = unused_address();
        let log =
            std::env::temp_dir().join(format!("pgwh-proxy-{}-{}.log", std::process::id(), address.port()));
        let port = address.port();
        let configuration = cluster.write_private(
            "tinyproxy.conf",
            &format!(
                "Port {port}\nListen 127.0.0.1\nTimeout 60\nMaxClients 50\nAllow 127.0.0.1\nBasicAuth user {PASSWORD}\n\
                 LogLevel Connect\nLogFile \"{}\"\n",
                log.display()
            ),
        );
        let process = Command::new("tinyproxy").arg("-d").arg("-c").arg(configuration).spawn();
        let process = process.expect("the package tinyproxy is installed");
        eventually("tinyproxy listens", || std::net::TcpStream::connect(address).ok());
        TinyProxy { address, log, process }
    }

    fn url(&self) -> String {
        format!("http://user:{PASSWORD}@{}", self.address)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for TinyProxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_file(&self.log);
    }
}

/// An address where nobody listens.
fn unused_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn set(cluster: &Cluster, setting: &str, value: &str) {
    cluster.each(&[&format!("ALTER SYSTEM SET {setting} = '{value}'"), "SELECT pg_reload_conf()"]);
}

/// Waits until the setting is shown so, which a session does after a reload.
fn wait_shown(cluster: &Cluster, setting: &str, value: &str) {
    cluster.wait_true(&format!("SELECT current_setting('{setting}') = '{value}'"));
}

#[test]
fn requests_go_through_a_real_proxy_by_http_and_https() {
    let (cluster, receiver, authority) = stage();
    let proxy = TinyProxy::start(&cluster);
    let guarded = authority.guard(&receiver, true);
    let (certificate, key) = authority.sign();
    let shown = certificate.pem() + &key.serialize_pem();
    cluster.set(&format!(
        "pgwh.ca_file = '{}'\npgwh.proxy = '{}'",
        authority.trusted_by(&cluster).display(),
        proxy.url()
    ));
    cluster.reload();
    wait_shown(&cluster, "pgwh.proxy", &format!("http://user:********@{}", proxy.address));
    cluster.subscribe(&receiver, "plain", "");
    cluster.sql(&format!(
        "SELECT pgwh.subscribe('https://{guarded}/secure', name => 'secure', client_certificate => '{shown}')"
    ));
    cluster.sql("INSERT INTO t SELECT generate_series(1, 20)");
    for name in ["plain", "secure"] {
        cluster.wait_status(name, "pending = 0 AND delivered = 20");
        let status = cluster.value(&format!("SELECT status FROM pgwh.test('{name}')"));
        assert_eq!(status, "200", "{name}");
    }
    for request in receiver.requests() {
        assert_eq!(request.header("proxy-authorization"), None);
        assert!(request.header("webhook-signature").is_some(), "{}", request.path());
        assert_eq!(
            request.header("via").is_some(),
            request.path() == "/plain",
            "a tunnel is not looked into"
        );
    }
    let log = proxy.log();
    assert!(log.contains(&format!("CONNECT {guarded} HTTP/1.1")), "{log}");
    assert!(log.contains(&format!("POST {}", receiver.url("/plain"))), "{log}");
    assert!(!log.contains("/secure"), "{log}");
    // Without the proxy, all goes on by itself.
    set(&cluster, "pgwh.no_proxy", "127.0.0.0/8");
    wait_shown(&cluster, "pgwh.no_proxy", "127.0.0.0/8");
    drop(proxy);
    cluster.sql("INSERT INTO t VALUES (21)");
    cluster.wait_status("plain", "pending = 0 AND delivered = 21");
    cluster.wait_status("secure", "pending = 0 AND delivered = 21");
}

#[test]
fn a_proxy_that_refuses_or_is_down_loses_nothing() {
    let (cluster, receiver, authority) = stage();
    let proxy = TinyProxy::start(&cluster);
    let guarded = authority.guard(&receiver, false);
    let wrong = format!("http://user:wr0ng@{}", proxy.address);
    cluster.set(&format!(
        "pgwh.ca_file = '{}'\npgwh.proxy = '{wrong}'",
        authority.trusted_by(&cluster).display()
    ));
    cluster.reload();
    wait_shown(&cluster, "pgwh.proxy", &format!("http://user:********@{}", proxy.address));
    cluster.subscribe(&receiver, "plain", "");
    cluster.sql(&format!("SELECT pgwh.subscribe('https://{guarded}/secure', name => 'secure')"));
    cluster.sql("INSERT INTO t VALUES (1)");
    // This proxy answers a wrong password by 401, and what comes by http may be the endpoint's.
    for (name, class, words) in [
        ("secure", "connect", "does not accept the user and password of pgwh.proxy (401)"),
        ("plain", "http_4xx", "which may have answered itself"),
    ] {
        cluster.wait_true(&format!(
            "SELECT count(*) > 0 FROM pgwh.attempts a JOIN pgwh.subscriptions s ON s.id = a.subscription_id
             WHERE s.name = '{name}' AND error_class = '{class}' AND error LIKE '%the proxy {}%{words}%'",
            proxy.address
        ));
    }
    let down = unused_address();
    set(&cluster, "pgwh.proxy", &format!("http://{down}"));
    cluster.wait_true(&format!(
        "SELECT count(DISTINCT subscription_id) = 2 FROM pgwh.attempts WHERE error LIKE 'no connection to the proxy {down} %'"
    ));
    assert_eq!(receiver.count(), 0);
    // What is mended is tried at once.
    set(&cluster, "pgwh.proxy", &proxy.url());
    cluster.wait_status("plain", "pending = 0 AND delivered = 1");
    cluster.wait_status("secure", "pending = 0 AND delivered = 1");
    assert_eq!(cluster.value("SELECT count(*) FROM pgwh.dead_letters"), "0");
}

#[test]
fn a_proxys_password_is_shown_nowhere() {
    let (cluster, receiver, _) = stage();
    let down = unused_address();
    cluster.sql("CREATE ROLE app LOGIN");
    set(&cluster, "pgwh.proxy", &format!("http://user:{PASSWORD}@{down}"));
    wait_shown(&cluster, "pgwh.proxy", &format!("http://user:********@{down}"));
    let app = cluster.as_role("app");
    assert_eq!(app.refused("SHOW pgwh.proxy").code, "42501");
    assert_eq!(app.value("SELECT count(*) FROM pg_settings WHERE name = 'pgwh.proxy'"), "0");
    cluster.subscribe(&receiver, "s", "retry_schedule => '{}'");
    cluster.sql("INSERT INTO t VALUES (1)");
    cluster.wait_true("SELECT bool_or(error LIKE '%the proxy %') FROM pgwh.attempts");
    let shown = [
        "SELECT pg_settings::text FROM pg_settings WHERE name LIKE 'pgwh.%'",
        "SELECT t::text FROM pgwh.status() t",
        "SELECT t::text FROM pgwh.health() t",
        "SELECT t::text FROM pgwh.attempts t",
        "SELECT t::text FROM pgwh.deliveries t",
        "SELECT t::text FROM pgwh.dead_letters t",
        "SELECT t::text FROM pgwh.test('s') t",
        "SELECT t::text FROM pgwh.preview('s', '{\"id\": 7}') t",
        "SELECT pgwh.metrics()",
    ];
    let look = || {
        for statement in shown {
            let text = cluster.column(statement).concat();
            assert!(!text.contains(PASSWORD), "{statement}: {text}");
        }
    };
    look();
    // A line of the file that is none: what was set before stays, and the log and health() say which setting it is.
    let configuration = cluster.data().join("postgresql.auto.conf");
    let good = std::fs::read_to_string(&configuration).unwrap();
    std::fs::write(&configuration, good.replace("http://user", "ftp://user")).unwrap();
    cluster.reload();
    cluster.wait_true("SELECT NOT ok AND detail LIKE '%pgwh.proxy is no http://[user:password@]host:port (line %' FROM pgwh.health() WHERE check_name = 'settings valid'");
    look();
    wait_shown(&cluster, "pgwh.proxy", &format!("http://user:********@{down}"));
    std::fs::write(&configuration, good.replace(PASSWORD, "hunter2again")).unwrap();
    cluster.reload();
    cluster.wait_true("SELECT ok FROM pgwh.health() WHERE check_name = 'settings valid'");
    let log = cluster.log();
    assert!(log.contains("invalid value for parameter \"pgwh.proxy\"") && !log.contains(PASSWORD), "{log}");
    cluster.restart(harness::Stop::Fast);
    assert_eq!(cluster.value("SHOW pgwh.proxy"), format!("http://user:********@{down}"));
    assert!(!cluster.log().contains(PASSWORD));
}

#[test]
fn a_bad_proxy_is_refused_and_its_hint_is_right() {
    let (cluster, ..) = stage();
    for (setting, wrong) in [
        ("pgwh.proxy", "proxy:3128"),
        ("pgwh.proxy", "https://user:hunter2@proxy:3128"),
        ("pgwh.proxy", "socks5://user:hunter2@proxy:1080"),
        ("pgwh.proxy", "http://user:hunter2/@proxy:3128"),
        ("pgwh.no_proxy", "*.example.com"),
        ("pgwh.no_proxy", "example.com:443"),
    ] {
        let refusal = cluster.refused(&format!("ALTER SYSTEM SET {setting} = '{wrong}'"));
        assert_eq!(refusal.code, "22023", "{refusal:?}");
        assert!(!format!("{refusal:?}").contains(PASSWORD), "{refusal:?}");
        assert!(
            refusal.message.starts_with(&format!("invalid value for parameter \"{setting}\"")),
            "{refusal:?}"
        );
        assert!(refusal.detail.ends_with('.'), "{refusal:?}");
        let example = refusal.hint.split("ALTER SYSTEM ").nth(1).unwrap().split(';').next().unwrap();
        cluster.sql(&format!("ALTER SYSTEM {example}"));
        cluster.sql("ALTER SYSTEM RESET ALL");
    }
    assert_eq!(cluster.refused("SET pgwh.proxy = 'http://proxy:3128'").code, "55P02");
}
