//! How connections are secured: trusted certificates, and who we are.

pub mod client_certificate;
pub mod errors;
pub mod validity;
pub mod verifier;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use self::client_certificate::Identity;
use self::verifier::Verifier;

/// Settings of TLS kept at once, one an identity.
const MAX_CONFIGS: usize = 1000;

/// The trusted certificates, read when first needed, and what is made of them.
#[derive(Default)]
pub(super) struct TlsConfigs {
    ca_file: Option<PathBuf>,
    /// Counts what was to be trusted so far, to know a late answer.
    version: u64,
    is_reading: bool,
    trusted: Option<Trusted>,
    configs: HashMap<Option<[u8; 32]>, Arc<ClientConfig>>,
}

/// Whom to trust.
#[derive(Clone)]
pub(super) struct Trusted {
    authorities: Arc<RootCertStore>,
    /// The certificates of the file, each of which is trusted for its own names, too.
    own: Arc<[CertificateDer<'static>]>,
}

/// What has to be read before a connection can be secured.
pub(super) struct RootsWanted {
    ca_file: Option<PathBuf>,
    version: u64,
}

/// What came of reading.
pub(super) struct Roots {
    version: u64,
    found: Result<Trusted, String>,
}

/// How to secure a connection, or what that waits for.
pub(super) enum TlsConfig {
    Ready(Arc<ClientConfig>),
    /// Roots have to be read; this asks for it, unless they are being read already.
    Wanting(Option<RootsWanted>),
}

impl TlsConfigs {
    /// Trusts from now on what the system and this file have now. Returns what is to be read for that, if it has to be now.
    pub fn trust_file(&mut self, ca_file: Option<PathBuf>) -> Option<RootsWanted> {
        self.ca_file = ca_file;
        self.version += 1;
        self.is_reading |= self.trusted.is_some();
        self.is_reading.then(|| self.wanted())
    }

    /// Trusts these certificates instead of the system's.
    #[cfg(test)]
    pub fn trusting(roots: RootCertStore) -> TlsConfigs {
        let trusted = Trusted { authorities: Arc::new(roots), own: Arc::new([]) };
        TlsConfigs { trusted: Some(trusted), ..TlsConfigs::default() }
    }

    /// How to secure a connection as that identity, if any.
    pub fn config(&mut self, identity: Option<&Identity>) -> Result<TlsConfig, String> {
        let mark = identity.map(|identity| identity.mark);
        if self.is_reading {
            return Ok(TlsConfig::Wanting(None));
        }
        if let Some(config) = self.configs.get(&mark) {
            return Ok(TlsConfig::Ready(config.clone()));
        }
        let Some(trusted) = &self.trusted else {
            self.is_reading = true;
            return Ok(TlsConfig::Wanting(Some(self.wanted())));
        };
        let config = client_config(trusted, identity)?;
        if self.configs.len() >= MAX_CONFIGS {
            self.configs.clear();
        }
        self.configs.insert(mark, config.clone());
        Ok(TlsConfig::Ready(config))
    }

    /// Takes what was read. What was trusted before stays if that cannot be used; without it, returns why.
    pub fn take_roots(&mut self, roots: Roots) -> Result<(), String> {
        if roots.version != self.version {
            return Ok(());
        }
        self.is_reading = false;
        match roots.found {
            Ok(trusted) => {
                self.trusted = Some(trusted);
                self.configs.clear();
                Ok(())
            }
            Err(_) if self.trusted.is_some() => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn wanted(&self) -> RootsWanted {
        RootsWanted { ca_file: self.ca_file.clone(), version: self.version }
    }
}

impl RootsWanted {
    /// Reads them, which takes some milliseconds.
    pub fn read(self) -> Roots {
        Roots { version: self.version, found: trusted(self.ca_file.as_deref()) }
    }

    /// They could not be read.
    pub fn failed(self, why: String) -> Roots {
        Roots { version: self.version, found: Err(why) }
    }
}

/// The system's root certificates, and those of a file in PEM.
fn trusted(ca_file: Option<&Path>) -> Result<Trusted, String> {
    let mut own = Vec::new();
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    if let Some(path) = ca_file {
        own = add_file(&mut roots, path)?;
    }
    if roots.is_empty() {
        let errors: Vec<_> = found.errors.iter().map(ToString::to_string).collect();
        return Err(format!(
            "the system has no root certificates to trust: install ca-certificates ({})",
            errors.join("; ")
        ));
    }
    Ok(Trusted { authorities: Arc::new(roots), own: own.into() })
}

/// Adds the certificates of a file in PEM, and returns them.
fn add_file(roots: &mut RootCertStore, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let refuse = |why: String| format!("pgwh.ca_file \"{}\" cannot be used: {why}", path.display());
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| refuse(error.to_string()))?;
    if certificates.is_empty() {
        return Err(refuse("it holds no certificate in PEM".to_owned()));
    }
    for certificate in certificates.clone() {
        roots.add(certificate).map_err(|error| refuse(error.to_string()))?;
    }
    Ok(certificates)
}

/// The certificates of a text in PEM, as far as they can be read.
pub fn certificates(pem: &[u8]) -> Vec<Vec<u8>> {
    CertificateDer::pem_slice_iter(pem)
        .map_while(Result::ok)
        .map(|certificate| certificate.to_vec())
        .collect()
}

/// Those of a file; none if it cannot be read.
pub fn file_certificates(path: &Path) -> Vec<Vec<u8>> {
    std::fs::read(path).map(|pem| certificates(&pem)).unwrap_or_default()
}

/// Whether the file holds certificates that can be trusted.
///
/// # Errors
///
/// In words for the user, when it cannot be used.
pub fn check_ca_file(path: &Path) -> Result<(), String> {
    add_file(&mut RootCertStore::empty(), path).map(drop)
}

fn client_config(trusted: &Trusted, identity: Option<&Identity>) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(ring::default_provider());
    let verifier = Verifier::new(trusted.authorities.clone(), trusted.own.clone(), provider.clone())?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match identity {
        Some(identity) => builder
            .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())
            .map_err(|error| error.to_string())?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
