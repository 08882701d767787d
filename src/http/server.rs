//! A server: what connections lead to, and are kept and shared by.

use std::sync::Arc;

use url::Host;

use super::proxy::ProxyServer;

/// What a connection leads to; connections are kept and shared by it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Server {
    /// Whether by https.
    pub secure: bool,
    /// The host, normalised.
    pub host: Host<String>,
    /// The port.
    pub port: u16,
    /// Who we are there, for mutual TLS.
    pub(super) identity: Option<[u8; 32]>,
    /// The proxy on the way.
    pub(super) proxy: Option<Arc<ProxyServer>>,
}

impl Server {
    /// The host and port that connections are made to.
    pub(super) fn dialled(&self) -> (&Host<String>, u16) {
        match &self.proxy {
            Some(proxy) => (&proxy.host, proxy.port),
            None => (&self.host, self.port),
        }
    }

    /// The proxy that sees and passes on the requests themselves, as those by http.
    pub(super) fn plain_proxy(&self) -> Option<&ProxyServer> {
        self.proxy.as_deref().filter(|_| !self.secure)
    }
}
