//! Deliveries by https: real certificates, a real authority, and endpoints that ask who is calling.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use harness::{Cluster, PATIENCE, Receiver};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConnection};

/// An authority that signs certificates.
struct Authority {
    certificate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Authority { certificate: parameters.self_signed(&key).unwrap(), issuer: Issuer::new(parameters, key) }
    }

    /// A certificate for 127.0.0.1 and its key.
    fn sign(&self) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let parameters = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        (parameters.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// Speaks TLS in front of a receiver, and only with those whom the authority has signed if `mutual`.
    fn guard(&self, receiver: &Receiver, mutual: bool) -> SocketAddr {
        let provider = Arc::new(default_provider());
        let builder =
            ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let builder = if mutual {
            let mut roots = RootCertStore::empty();
            roots.add(self.certificate.der().clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.unwrap().with_client_cert_verifier(verifier.build().unwrap())
        } else {
            builder.unwrap().with_no_client_auth()
        };
        let (certificate, key) = self.sign();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = Arc::new(builder.with_single_cert(vec![certificate.der().clone()], key).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, behind) = (listener.local_addr().unwrap(), receiver.address());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let tls = ServerConnection::new(config.clone()).unwrap();
                // A handshake that fails is what some of these tests are about.
                thread::spawn(move || relay(client, tls, behind));
            }
        });
        address
    }

    /// A file of the data directory that says whom to trust.
    fn trusted_by(&self, cluster: &Cluster) -> PathBuf {
        cluster.write_private("authority.pem", &self.certificate.pem())
    }
}

/// Takes what one side sends to the other, in the clear behind and encrypted before, until one of them ends.
fn relay(mut client: TcpStream, mut tls: ServerConnection, behind: SocketAddr) -> io::Result<()> {
    let mut receiver = TcpStream::connect(behind)?;
    let mut buffer = [0; 16 * 1024];
    loop {
        while tls.wants_write() {
            tls.write_tls(&mut client)?;
        }
        let [from_client, from_receiver] = readable(&client, &receiver)?;
        if from_client {
            if tls.read_tls(&mut client)? == 0 {
                return Ok(());
            }
            let state = tls.process_new_packets();
            if let Err(error) = state {
                // With the alert that says why.
                tls.write_tls(&mut client)?;
                return Err(io::Error::other(error));
            }
            while let Ok(count @ 1..) = tls.reader().read(&mut buffer) {
                receiver.write_all(&buffer[..count])?;
            }
        }
        if from_receiver {
            match receiver.read(&mut buffer)? {
                0 => return Ok(()),
                count => tls.writer().write_all(&buffer[..count])?,
            }
        }
    }
}

/// Waits until one of them has something to read; which of them have.
fn readable(one: &TcpStream, other: &TcpStream) -> io::Result<[bool; 2]> {
    let mut waited =
        [one, other].map(|stream| libc::pollfd { fd: stream.as_raw_fd(), events: libc::POLLIN, revents: 0 });
    // SAFETY: two open descriptors, and memory for what is told of them.
    match unsafe { libc::poll(waited.as_mut_ptr(), 2, -1) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(waited.map(|polled| polled.revents != 0)),
    }
}

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
fn what_is_sent_by_https_arrives_once_the_authority_is_trusted_and_waits_until_then() {
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
fn an_endpoint_that_asks_who_is_calling_takes_what_comes_with_the_certificate_of_its_subscription() {
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
