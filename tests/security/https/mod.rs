//! Deliveries by https: real certificates, a real authority, and endpoints that ask who is calling.

mod authority;
mod memory;
mod proxies;

use authority::Authority;
use harness::{Cluster, PATIENCE, Receiver, eventually};

fn stage() -> (Cluster, Receiver, Authority) {
    let cluster = Cluster::with_extension();
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY)");
    (cluster, Receiver::start().unwrap(), Authority::new())
}

fn trust(cluster: &Cluster, authority: &Authority) {
    cluster.set(&format!("pgwh.ca_file = '{}'", authority.trusted_by(cluster).display()));
    cluster.reload();
}

#[test]
fn https_deliveries_wait_until_the_authority_is_trusted() {
    let (cluster, receiver, authority) = stage();
    let url = format!("https://{}/t", authority.guard(&receiver, false));
    cluster.sql(&format!("SELECT pgwh.subscribe('{url}', name => 't')"));
    cluster.sql("INSERT INTO t SELECT generate_series(1, 20)");
    cluster.wait_true("SELECT count(*) > 0 FROM pgwh.attempts WHERE error_class = 'tls'");
    assert_eq!(receiver.count(), 0, "nothing is said to a stranger");
    trust(&cluster, &authority);
    cluster.sql("SELECT pgwh.resume('t')");
    let requests = receiver.wait_for(20, PATIENCE).unwrap();
    let mut ids: Vec<i64> =
        requests.iter().map(|request| request.json()["data"]["record"]["id"].as_i64().unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(ids, (1..=20).collect::<Vec<_>>());
}

#[test]
fn a_client_certificate_of_its_subscription_is_presented() {
    let (cluster, receiver, authority) = stage();
    trust(&cluster, &authority);
    let url = format!("https://{}", authority.guard(&receiver, true));
    let (certificate, key) = authority.sign();
    let shown = certificate.pem() + &key.serialize_pem();
    cluster.sql(&format!(
        "SELECT pgwh.subscribe('{url}/known', name => 'known', client_certificate => '{shown}');
         SELECT pgwh.subscribe('{url}/stranger', name => 'stranger')"
    ));
    cluster.sql("INSERT INTO t VALUES (1)");
    assert_eq!(receiver.wait_for(1, PATIENCE).unwrap()[0].path(), "/known");
    cluster.wait_true("SELECT count(*) > 0 FROM pgwh.attempts WHERE error_class = 'tls'");
    assert_eq!(receiver.count(), 1);
    assert_eq!(
        cluster.value("SELECT pending FROM pgwh.status WHERE name = 'stranger'"),
        "1",
        "nothing is lost"
    );
}

#[test]
fn a_ca_file_counts_from_the_reload_at_which_it_can_be_read() {
    let (cluster, receiver, first) = stage();
    let second = Authority::new();
    trust(&cluster, &first);
    let mut made = 0;
    // A server of its own each time, so that there is no connection yet.
    let mut ping = |authority: &Authority| {
        made += 1;
        let url = format!("https://{}/{made}", authority.guard(&receiver, false));
        cluster.sql(&format!("SELECT pgwh.subscribe('{url}', name => '{made}')"));
        cluster.value(&format!("SELECT coalesce(status::text, error_class) FROM pgwh.test('{made}')"))
    };
    assert_eq!((ping(&first), ping(&second)), ("200".to_owned(), "tls".to_owned()));
    let file = cluster.write_private("authority.pem", "no certificate\n");
    cluster.reload();
    let told = format!("WARNING:  pgstream_hooks: pgwh.ca_file \"{}\" cannot be used: ", file.display());
    eventually("a WARNING in the log", || cluster.log().contains(&told).then_some(()));
    assert_eq!((ping(&first), ping(&second)), ("200".to_owned(), "tls".to_owned()), "as before");
    second.trusted_by(&cluster);
    cluster.reload();
    eventually("the new authority is trusted", || (ping(&second) == "200").then_some(()));
    assert_eq!(ping(&first), "tls");
}
