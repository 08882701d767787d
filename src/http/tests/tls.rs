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
    let sender = sender_trusting(roots);
    let endpoint = endpoint(&format!("https://localhost:{}/", server.address.port()));
    for _ in 0..5 {
        assert_eq!(deliver(&sender, &endpoint), Ok(Success { status: 200, flaw: None }));
    }
    std::thread::sleep(Duration::from_millis(150));
    assert!(deliver(&sender, &endpoint).is_ok());
    assert!(server.requests().iter().all(|request| request.connection == 0));
}

#[test]
fn a_certificate_of_another_name_or_of_nobody_known_is_refused() {
    let (server, roots) = secure_server();
    let by_address = endpoint(&format!("https://{}/", server.address));
    let by_name = endpoint(&format!("https://localhost:{}/", server.address.port()));
    for (roots, endpoint) in [(roots, by_address), (Authority::new().roots(), by_name)] {
        let failure = deliver(&sender_trusting(roots), &endpoint).unwrap_err();
        assert_eq!(failure.class, ErrorClass::Tls, "{}", failure.message);
    }
    assert!(server.requests().is_empty());
}

#[test]
fn a_plain_server_at_an_https_url_is_a_tls_failure() {
    let server = Server::answering("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
    let sender = sender_trusting(Authority::new().roots());
    let failure = deliver(&sender, &endpoint(&format!("https://localhost:{}/", server.address.port())));
    assert_eq!(failure.unwrap_err().class, ErrorClass::Tls);
}

/// An authority that signs, and what it signs.
pub(super) struct Authority {
    certificate: rcgen::Certificate,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    pub fn new() -> Authority {
        Authority::named("authority")
    }

    fn named(name: &str) -> Authority {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
        parameters.distinguished_name.push(rcgen::DnType::CommonName, name);
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = parameters.self_signed(&key).unwrap();
        Authority { certificate, issuer: rcgen::Issuer::new(parameters, key) }
    }

    pub fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.der().clone()).unwrap();
        roots
    }

    /// A certificate for `localhost` that is no longer valid from that year on, and its key.
    pub fn sign(&self, until: i32) -> (rcgen::Certificate, rcgen::KeyPair) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        parameters.not_before = rcgen::date_time_ymd(2000, 1, 1);
        parameters.not_after = rcgen::date_time_ymd(until, 1, 1);
        (parameters.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// A server with such a certificate, which asks for one that this authority signed.
    pub fn server(&self, until: i32, mutual: bool) -> Server {
        self.start(until, mutual, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
    }

    /// A server that answers with these bytes.
    pub fn answering(&self, answer: &'static [u8]) -> Server {
        self.start(2100, false, answer)
    }

    fn start(&self, until: i32, mutual: bool, answer: &'static [u8]) -> Server {
        let (certificate, key) = self.sign(until);
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if mutual {
            let verifier =
                rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        } else {
            builder.with_no_client_auth()
        };
        let config = builder.with_single_cert(vec![certificate.der().clone()], key).unwrap();
        Server::secure(Arc::new(config), move |_, stream| {
            stream.write_all(answer)?;
            stream.flush()?;
            Ok(true)
        })
    }
}

pub(super) fn pem(certificate: &rcgen::Certificate) -> String {
    in_pem("CERTIFICATE", certificate.der())
}

pub(super) fn pem_key(key: &rcgen::KeyPair) -> String {
    in_pem("PRIVATE KEY", &key.serialize_der())
}

fn in_pem(label: &str, der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
}

fn localhost(server: &Server) -> String {
    format!("https://localhost:{}/", server.address.port())
}

fn sender_for(authority: &Authority) -> Sender {
    sender_trusting(authority.roots())
}

#[test]
fn an_expired_certificate_is_a_tls_failure() {
    let authority = Authority::new();
    let sender = sender_for(&authority);
    assert!(deliver(&sender, &endpoint(&localhost(&authority.server(2100, false)))).is_ok());
    let failure = deliver(&sender, &endpoint(&localhost(&authority.server(2001, false)))).unwrap_err();
    assert_eq!(failure.class, ErrorClass::Tls);
    assert!(failure.message.contains("expired"), "{}", failure.message);
}

#[test]
fn an_endpoint_that_asks_who_we_are_is_shown_the_certificate_of_its_subscription_and_no_others() {
    let authority = Authority::new();
    let server = authority.server(2100, true);
    let (certificate, key) = authority.sign(2100);
    let both = pem(&certificate) + &pem_key(&key);
    let known = Arc::new(
        Endpoint::new(EndpointSettings { client_certificate: Some(both), ..settings(&localhost(&server)) })
            .unwrap(),
    );
    let nobody = endpoint(&localhost(&server));
    let sender = sender_for(&authority);
    assert_eq!(deliver(&sender, &known), Ok(Success { status: 200, flaw: None }));
    // The connection that is kept is not theirs.
    assert_eq!(deliver(&sender, &nobody).unwrap_err().class, ErrorClass::Tls);
    assert_eq!(deliver(&sender, &known), Ok(Success { status: 200, flaw: None }));
    assert!(server.requests().iter().all(|request| request.connection == 0));
    assert!(!format!("{known:?}").contains("PRIVATE"));
}

#[test]
fn what_is_no_client_certificate_is_refused_and_not_repeated() {
    let authority = Authority::new();
    let ((certificate, key), (_, other)) = (authority.sign(2100), authority.sign(2100));
    for text in [
        String::new(),
        "hunter2".to_owned(),
        pem(&certificate),
        pem_key(&key),
        pem(&certificate) + &pem_key(&other),
    ] {
        let problem = Identity::parse(&text).unwrap_err();
        assert!(
            !problem.to_string().contains("hunter2") && !problem.to_string().contains("-----"),
            "{problem}"
        );
    }
}

#[test]
fn a_file_of_certificates_is_trusted_besides_the_systems_and_a_bad_one_is_told_of() {
    let authority = Authority::new();
    let server = authority.server(2100, false);
    let endpoint = endpoint(&localhost(&server));
    let file = std::env::temp_dir().join(format!("pgwh-ca-{}.pem", std::process::id()));
    std::fs::write(&file, pem(&authority.certificate)).unwrap();
    let sender = sender(1);
    sender.trust_file(Some(file.clone()));
    assert_eq!(deliver(&sender, &endpoint), Ok(Success { status: 200, flaw: None }));
    // What cannot be used at a reload changes nothing; who has nothing else says so.
    std::fs::write(&file, "nothing").unwrap();
    sender.trust_file(Some(file.clone()));
    assert_eq!(deliver(&sender, &endpoint), Ok(Success { status: 200, flaw: None }));
    std::fs::remove_file(&file).unwrap();
    sender.trust_file(Some(file.clone()));
    assert_eq!(deliver(&sender, &endpoint), Ok(Success { status: 200, flaw: None }));
    let new = self::sender(1);
    new.trust_file(Some(file.clone()));
    let failure = deliver(&new, &endpoint).unwrap_err();
    assert_eq!(failure.class, ErrorClass::Tls);
    assert!(failure.message.contains("pgwh.ca_file"), "{}", failure.message);
    // New contents count.
    std::fs::write(&file, pem(&Authority::new().certificate)).unwrap();
    sender.trust_file(Some(file.clone()));
    assert_eq!(deliver(&sender, &endpoint).unwrap_err().class, ErrorClass::Tls);
    std::fs::remove_file(&file).unwrap();
    // Without the file only the system is trusted, also by what was kept.
    sender.trust_file(None);
    assert_eq!(deliver(&sender, &endpoint).unwrap_err().class, ErrorClass::Tls);
}

#[test]
fn a_server_that_knows_only_old_versions_is_a_tls_failure_and_one_that_stalls_times_out() {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut sockets = Vec::new();
        for (n, socket) in listener.incoming().enumerate() {
            let mut socket = socket.unwrap();
            if n == 0 {
                let _ = socket.read(&mut [0; 512]);
                // A fatal alert: protocol_version (RFC 8446, section 6).
                socket.write_all(&[21, 3, 1, 0, 2, 2, 70]).unwrap();
            }
            sockets.push(socket);
        }
    });
    let url = format!("https://localhost:{port}/");
    let sender = sender_for(&Authority::new());
    let failure = deliver(&sender, &endpoint(&url)).unwrap_err();
    assert_eq!(failure.class, ErrorClass::Tls, "{}", failure.message);
    let failure = deliver(&sender, &impatient(&url)).unwrap_err();
    assert_eq!(failure.class, ErrorClass::Timeout, "{}", failure.message);
    assert!(failure.message.contains("securing"), "{}", failure.message);
}

#[test]
fn a_certificate_in_the_ca_file_is_trusted_for_its_own_names() {
    // What `openssl req -x509` makes: an authority that is its own server.
    let key = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = parameters.self_signed(&key).unwrap();
    let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], der)
        .unwrap();
    let server = Server::secure(Arc::new(config), |_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")?;
        stream.flush()?;
        Ok(true)
    });
    let file = std::env::temp_dir().join(format!("pgwh-own-{}.pem", std::process::id()));
    std::fs::write(&file, pem(&certificate)).unwrap();
    let trusting = sender(1);
    trusting.trust_file(Some(file.clone()));
    let (by_name, by_address) = (localhost(&server), format!("https://{}/", server.address));
    assert_eq!(deliver(&trusting, &endpoint(&by_name)), Ok(Success { status: 200, flaw: None }));
    let failure = deliver(&trusting, &endpoint(&by_address)).unwrap_err();
    assert_eq!(failure.class, ErrorClass::Tls);
    assert!(failure.message.contains("not valid for 127.0.0.1, only for localhost"), "{}", failure.message);
    let failure = deliver(&sender_trusting(Authority::new().roots()), &endpoint(&by_name)).unwrap_err();
    assert!(failure.message.contains("add it to pgwh.ca_file"), "{}", failure.message);
    std::fs::remove_file(&file).unwrap();
}

#[test]
fn a_failure_of_tls_is_said_in_words_to_act_on() {
    let authority = Authority::new();
    let plain = Server::blurting(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
    for (server, roots, words) in [
        (authority.server(2001, false), authority.roots(), "has expired"),
        (
            authority.server(2100, false),
            Authority::named("stranger").roots(),
            "the issuer of the server's certificate is not trusted",
        ),
        (authority.server(2100, true), authority.roots(), "client certificate"),
        (plain, authority.roots(), "may expect http on this port"),
    ] {
        let failure = deliver(&sender_trusting(roots), &endpoint(&localhost(&server))).unwrap_err();
        assert_eq!(failure.class, ErrorClass::Tls, "{}", failure.message);
        assert!(failure.message.contains(words), "{}, not {words}", failure.message);
        for debris in ["Other", "(", "{"] {
            assert!(!failure.message.contains(debris), "{}", failure.message);
        }
    }
}
