//! What all sender threads share: kept connections, resolved names, trusted certificates.

use std::sync::{Arc, OnceLock};

use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};

use super::idle::IdleConnections;
use super::resolver::Resolver;

/// The ways out of this process.
pub(super) struct Network {
    pub idle: IdleConnections,
    pub resolver: Resolver,
    tls: OnceLock<Arc<ClientConfig>>,
}

impl Network {
    /// Keeps at most `max_idle` connections.
    pub fn new(max_idle: usize) -> Network {
        Network { idle: IdleConnections::new(max_idle), resolver: Resolver::new(), tls: OnceLock::new() }
    }

    /// How connections are secured: by the system's root certificates, read when first needed.
    pub fn tls_config(&self) -> Result<Arc<ClientConfig>, rustls::Error> {
        if let Some(config) = self.tls.get() {
            return Ok(config.clone());
        }
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            let errors: Vec<_> = found.errors.iter().map(ToString::to_string).collect();
            return Err(rustls::Error::General(format!(
                "the system has no root certificates to trust: install ca-certificates ({})",
                errors.join("; ")
            )));
        }
        let config = client_config(roots)?;
        Ok(self.tls.get_or_init(|| config).clone())
    }

    /// Trusts these certificates instead of the system's.
    #[cfg(test)]
    pub fn trust(&self, roots: RootCertStore) {
        let _ = self.tls.set(client_config(roots).unwrap());
    }
}

fn client_config(roots: RootCertStore) -> Result<Arc<ClientConfig>, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
