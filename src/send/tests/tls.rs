use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::server::Server;
use super::*;

/// A server with a certificate of its own making for `localhost`, and the roots that trust it.
fn secure_server() -> (Server, RootCertStore) {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = certified.cert.der().clone();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der()));
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let server = Server::secure(Arc::new(config), |_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")?;
        stream.flush()?;
        Ok(true)
    });
    (server, roots)
}

#[test]
fn a_secure_connection_is_kept_and_reused() {
    let (server, roots) = secure_server();
    let network = Network::new(1);
    network.trust(roots);
    let pool = pool_with(network);
    let endpoint = endpoint(&format!("https://localhost:{}/", server.address.port()));
    for _ in 0..5 {
        assert_eq!(deliver(&pool, &endpoint), Ok(Success { status: 200 }));
    }
    std::thread::sleep(Duration::from_millis(150));
    assert!(deliver(&pool, &endpoint).is_ok());
    assert!(server.requests().iter().all(|request| request.connection == 0));
}

#[test]
fn a_certificate_of_another_name_or_of_nobody_known_is_refused() {
    let (server, roots) = secure_server();
    let trusting = Network::new(1);
    trusting.trust(roots);
    let by_address = endpoint(&format!("https://{}/", server.address));
    let by_name = endpoint(&format!("https://localhost:{}/", server.address.port()));
    let stranger = {
        let network = Network::new(1);
        network.trust(RootCertStore::empty());
        network
    };
    for (network, endpoint) in [(trusting, by_address), (stranger, by_name)] {
        let failure = deliver(&pool_with(network), &endpoint).unwrap_err();
        assert_eq!(failure.class, ErrorClass::Tls, "{}", failure.message);
    }
    assert!(server.requests().is_empty());
}

#[test]
fn a_plain_server_at_an_https_url_is_a_tls_failure() {
    let server = Server::answering("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
    let network = Network::new(1);
    network.trust(RootCertStore::empty());
    let failure =
        deliver(&pool_with(network), &endpoint(&format!("https://localhost:{}/", server.address.port())));
    assert_eq!(failure.unwrap_err().class, ErrorClass::Tls);
}
