//! What all sender threads share: kept connections, resolved names, trusted certificates.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use super::identity::Identity;
use super::idle::IdleConnections;
use super::resolver::Resolver;

/// Settings of TLS kept at once, one an identity.
const MAX_CONFIGS: usize = 1000;

/// The ways out of this process.
pub(super) struct Network {
    pub idle: IdleConnections,
    pub resolver: Resolver,
    tls: Mutex<Tls>,
}

/// How connections are secured; made when first needed.
#[derive(Default)]
struct Tls {
    ca_file: Option<PathBuf>,
    roots: Option<Arc<RootCertStore>>,
    configs: HashMap<Option<[u8; 32]>, Arc<ClientConfig>>,
}

impl Network {
    /// Keeps at most `max_idle` connections.
    pub fn new(max_idle: usize) -> Network {
        Network { idle: IdleConnections::new(max_idle), resolver: Resolver::new(), tls: Mutex::default() }
    }

    /// Trusts from now on what the system and this file have now. Kept connections were made by what was trusted before.
    pub fn trust_file(&self, ca_file: Option<PathBuf>) {
        *self.tls() = Tls { ca_file, ..Tls::default() };
        self.idle.clear();
    }

    /// How to secure a connection as that identity, if any.
    pub fn tls_config(&self, identity: Option<&Identity>) -> Result<Arc<ClientConfig>, String> {
        let mark = identity.map(|identity| identity.mark);
        let mut tls = self.tls();
        if let Some(config) = tls.configs.get(&mark) {
            return Ok(config.clone());
        }
        let roots = match &tls.roots {
            Some(roots) => roots.clone(),
            None => Arc::new(trusted(tls.ca_file.as_deref())?),
        };
        tls.roots = Some(roots.clone());
        let config = client_config(roots, identity).map_err(|error| error.to_string())?;
        if tls.configs.len() >= MAX_CONFIGS {
            tls.configs.clear();
        }
        tls.configs.insert(mark, config.clone());
        Ok(config)
    }

    fn tls(&self) -> MutexGuard<'_, Tls> {
        self.tls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resolves names as the test says.
    #[cfg(test)]
    pub fn resolving(lookup: super::resolver::Lookup) -> Network {
        Network { resolver: Resolver::with_lookup(lookup), ..Network::new(1) }
    }

    /// Trusts these certificates instead of the system's.
    #[cfg(test)]
    pub fn trust(&self, roots: RootCertStore) {
        self.tls().roots = Some(Arc::new(roots));
    }
}

/// The system's root certificates, and those of a file in PEM.
fn trusted(ca_file: Option<&Path>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    if let Some(path) = ca_file {
        let refuse = |why: String| format!("pgwh.ca_file \"{}\" can't be used: {why}", path.display());
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
