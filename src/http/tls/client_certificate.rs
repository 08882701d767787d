//! Who we are to an endpoint that asks: a certificate and its private key, for mutual TLS.

use std::fmt;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use sha2::{Digest, Sha256};

use crate::http::user_error::Problem;

/// A certificate chain and the private key of its first certificate. Never printed.
pub struct Identity {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
    /// Tells it from others.
    pub(crate) mark: [u8; 32],
}

impl Identity {
    /// Reads both out of one text in PEM.
    ///
    /// The text itself is never part of the error.
    pub fn parse(pem: &str) -> Result<Identity, Problem> {
        let refuse = |detail: String| {
            Problem::new(
                "invalid client certificate",
                detail,
                "Give certificate (followed by those between it and its root, if any) and private key in PEM, one behind the other.",
            )
        };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|_| refuse("A certificate in it cannot be read.".to_owned()))?;
        if chain.is_empty() {
            return Err(refuse("It holds no certificate.".to_owned()));
        }
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| refuse("It holds no private key that can be read.".to_owned()))?;
        let identity = Identity { chain, key, mark: Sha256::digest(pem).into() };
        check_identity(&identity)
            .map_err(|error| refuse(format!("Certificate and key cannot be used together: {error}.")))?;
        Ok(identity)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity")
    }
}

/// Checks whether a certificate and its key belong together.
fn check_identity(identity: &Identity) -> Result<(), rustls::Error> {
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(RootCertStore::empty())
        .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())
        .map(drop)
}
