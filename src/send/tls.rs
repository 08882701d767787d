//! How connections are secured: trusted certificates, and who we are.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use super::identity::Identity;

/// Settings of TLS kept at once, one an identity.
const MAX_CONFIGS: usize = 1000;

/// The trusted certificates, read when first needed, and what is made of them.
#[derive(Default)]
pub(super) struct TlsConfigs {
    ca_file: Option<PathBuf>,
    /// Counts what was to be trusted so far, to know a late answer.
    version: u64,
    is_reading: bool,
    roots: Option<Arc<RootCertStore>>,
    configs: HashMap<Option<[u8; 32]>, Arc<ClientConfig>>,
}

/// What has to be read before a connection can be secured.
pub(super) struct RootsWanted {
    ca_file: Option<PathBuf>,
    version: u64,
}

/// What came of reading.
pub(super) struct Roots {
    version: u64,
    found: Result<RootCertStore, String>,
}

/// How to secure a connection, or what that waits for.
pub(super) enum TlsConfig {
    Ready(Arc<ClientConfig>),
    /// Roots have to be read; this asks for it, unless they are being read already.
    Wanting(Option<RootsWanted>),
}

impl TlsConfigs {
    /// Trusts from now on what the system and this file have now.
    pub fn trust_file(&mut self, ca_file: Option<PathBuf>) {
        *self = TlsConfigs { ca_file, version: self.version + 1, ..TlsConfigs::default() };
    }

    /// Trusts these certificates instead of the system's.
    #[cfg(test)]
    pub fn trusting(roots: RootCertStore) -> TlsConfigs {
        TlsConfigs { roots: Some(Arc::new(roots)), ..TlsConfigs::default() }
    }

    /// How to secure a connection as that identity, if any.
    pub fn config(&mut self, identity: Option<&Identity>) -> Result<TlsConfig, String> {
        let mark = identity.map(|identity| identity.mark);
        if let Some(config) = self.configs.get(&mark) {
            return Ok(TlsConfig::Ready(config.clone()));
        }
        let Some(roots) = &self.roots else {
            let wanted = RootsWanted { ca_file: self.ca_file.clone(), version: self.version };
            let asks = !std::mem::replace(&mut self.is_reading, true);
            return Ok(TlsConfig::Wanting(asks.then_some(wanted)));
        };
        let config = client_config(roots.clone(), identity).map_err(|error| error.to_string())?;
        if self.configs.len() >= MAX_CONFIGS {
            self.configs.clear();
        }
        self.configs.insert(mark, config.clone());
        Ok(TlsConfig::Ready(config))
    }

    /// Takes what was read. Returns why it cannot be used, if so.
    pub fn take_roots(&mut self, roots: Roots) -> Result<(), String> {
        if roots.version != self.version {
            return Ok(());
        }
        self.is_reading = false;
        self.roots = Some(Arc::new(roots.found?));
        Ok(())
    }
}

impl RootsWanted {
    /// Reads them, which takes some milliseconds.
    pub fn read(self) -> Roots {
        Roots { version: self.version, found: trusted(self.ca_file.as_deref()) }
    }
}

/// The system's root certificates, and those of a file in PEM.
fn trusted(ca_file: Option<&Path>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    if let Some(path) = ca_file {
        let refuse = |why: String| format!("pgwh.ca_file \"{}\" cannot be used: {why}", path.display());
        let certificates = CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| refuse(error.to_string()))?;
        if certificates.is_empty() {
            return Err(refuse("it holds no certificate in PEM".to_owned()));
        }
        for certificate in certificates {
            roots.add(certificate).map_err(|error| refuse(error.to_string()))?;
        }
    }
    if roots.is_empty() {
        let errors: Vec<_> = found.errors.iter().map(ToString::to_string).collect();
        return Err(format!(
            "the system has no root certificates to trust: install ca-certificates ({})",
            errors.join("; ")
        ));
    }
    Ok(roots)
}

pub(super) fn client_config(
    roots: impl Into<Arc<RootCertStore>>,
    identity: Option<&Identity>,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let mut config = match identity {
        Some(identity) => builder.with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
