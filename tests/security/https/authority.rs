//! An authority that signs certificates, and a server that speaks TLS in front of a receiver.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use harness::{Cluster, Receiver};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConnection};

/// An authority that signs certificates.
pub struct Authority {
    certificate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Authority { certificate: parameters.self_signed(&key).unwrap(), issuer: Issuer::new(parameters, key) }
    }

    /// A certificate for 127.0.0.1 and its key.
    pub fn sign(&self) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let parameters = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        (parameters.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// How a server speaks TLS, and only with those whom the authority has signed if `mutual`.
    pub fn config(&self, mutual: bool) -> Arc<ServerConfig> {
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
        Arc::new(builder.with_single_cert(vec![certificate.der().clone()], key).unwrap())
    }

    /// Speaks so in front of a receiver.
    pub fn guard(&self, receiver: &Receiver, mutual: bool) -> SocketAddr {
        let config = self.config(mutual);
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
    pub fn trusted_by(&self, cluster: &Cluster) -> PathBuf {
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
