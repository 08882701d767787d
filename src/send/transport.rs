//! `ureq`'s transport and connector of our own: a request is one write, a kept connection is used without
//! asking the kernel about it, and names are resolved only when a connection has to be made.

use std::fmt;
use std::io::{self, Read, Write};
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};
use url::Host;

use super::buffers::RequestBuffers;
use super::connection::Connection;
use super::endpoint::{Endpoint, Server};
use super::exchange::{Exchange, Fault, Request};
use super::guard::is_localhost;
use super::network::Network;
use super::outcome::ErrorClass;
use super::resolver::Unresolved;

/// A connection idle for longer is asked whether the server has closed it. For a shorter time, a closed one is
/// noticed by its failure, and the request sent again.
const TRUSTED_IDLE: Duration = Duration::from_millis(100);

/// Gives `ureq` connections for the request that its thread is at.
pub(super) struct Dialler {
    pub network: Arc<Network>,
    pub exchange: Arc<Exchange>,
}

impl Connector for Dialler {
    type Out = Wire;

    fn connect(&self, _details: &ConnectionDetails, _chained: Option<()>) -> Result<Option<Wire>, Error> {
        let Some(request) = self.exchange.request() else { return Err(Error::ConnectionFailed) };
        let kept = if request.reuse { self.kept(&request) } else { None };
        self.exchange.note(|progress| progress.reused = kept.is_some());
        let connection = match kept {
            Some(connection) => connection,
            None => self.dial(&request).map_err(|fault| {
                self.exchange.fail(fault);
                Error::ConnectionFailed
            })?,
        };
        Ok(Some(Wire {
            connection: Some(connection),
            buffers: self.exchange.lend_buffers(),
            server: request.endpoint.target.server.clone(),
            network: self.network.clone(),
            exchange: self.exchange.clone(),
            timeout: request.endpoint.timeout,
            write_error: None,
            reusable: false,
        }))
    }
}

impl Dialler {
    /// A kept connection that seems open and whose address is still allowed.
    fn kept(&self, request: &Request) -> Option<Connection> {
        let Request { endpoint, .. } = request;
        let server = &endpoint.target.server;
        while let Some((connection, idle)) = self.network.idle.take(server) {
            let peer = connection.peer();
            if (idle < TRUSTED_IDLE || connection.is_quiet())
                && endpoint.guard.check_address(server.secure, peer.ip(), peer.port()).is_ok()
            {
                return Some(connection);
            }
        }
        None
    }

    /// A new connection to the first address that is allowed and answers.
    fn dial(&self, request: &Request) -> Result<Connection, Fault> {
        let Request { endpoint, deadline, .. } = request;
        let server = &*endpoint.target.server;
        let addresses = self.allowed_addresses(endpoint, *deadline)?;
        let mut refusal = None;
        for (tried, address) in addresses.iter().enumerate() {
            // An address that doesn't answer leaves the others their share of the time.
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / (addresses.len() - tried) as u32;
            match Connection::dial(SocketAddr::new(*address, server.port), Instant::now() + share) {
                Ok(connection) => return self.secure(connection, server, request),
                Err(error) => refusal = Some((address, error)),
            }
        }
        Err(match refusal {
            _ if Instant::now() >= *deadline => timed_out(endpoint.timeout, "connecting"),
            Some((address, error)) => Fault {
                class: ErrorClass::Connect,
                message: format!("no connection to {}: {error}", SocketAddr::new(*address, server.port)),
            },
            None => Fault { class: ErrorClass::Dns, message: "the name has no address".to_owned() },
        })
    }

    fn secure(
        &self,
        mut connection: Connection,
        server: &Server,
        request: &Request,
    ) -> Result<Connection, Fault> {
        connection.set_deadline(request.deadline);
        if !server.secure {
            return Ok(connection);
        }
        let fault = |message| Fault { class: ErrorClass::Tls, message };
        let name = match &server.host {
            Host::Domain(name) => ServerName::try_from(name.trim_end_matches('.').to_owned())
                .map_err(|_| fault(format!("no certificate can be valid for the name \"{name}\"")))?,
            Host::Ipv4(address) => ServerName::from(IpAddr::V4(*address)),
            Host::Ipv6(address) => ServerName::from(IpAddr::V6(*address)),
        };
        let config = self.network.tls_config(request.endpoint.identity.as_ref()).map_err(fault)?;
        connection.secure(name, config).map_err(|error| match error.kind() {
            io::ErrorKind::TimedOut => timed_out(request.endpoint.timeout, "securing the connection"),
            _ => fault(format!("the connection could not be secured: {error}")),
        })
    }

    /// The addresses that may be dialled; at least one.
    fn allowed_addresses(&self, endpoint: &Endpoint, deadline: Instant) -> Result<Vec<IpAddr>, Fault> {
        let server = &*endpoint.target.server;
        let addresses: Arc<[IpAddr]> = match &server.host {
            Host::Ipv4(address) => Arc::new([IpAddr::V4(*address)]),
            Host::Ipv6(address) => Arc::new([IpAddr::V6(*address)]),
            Host::Domain(name) if is_localhost(name) => {
                Arc::new([IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)])
            }
            Host::Domain(name) => {
                self.network.resolver.resolve(name, deadline).map_err(|unresolved| match unresolved {
                    Unresolved::Failed(error) => Fault {
                        class: ErrorClass::Dns,
                        message: format!("the name {name} could not be resolved: {error}"),
                    },
                    Unresolved::TimedOut => timed_out(endpoint.timeout, "resolving the name"),
                })?
            }
        };
        let mut refusal = None;
        let mut allowed = Vec::with_capacity(addresses.len());
        for address in addresses.iter() {
            match endpoint.guard.check_dial(server.secure, *address, server.port) {
                Ok(()) => allowed.push(*address),
                Err(problem) => refusal = refusal.or(Some(problem)),
            }
        }
        match refusal {
            Some(problem) if allowed.is_empty() => {
                Err(Fault { class: ErrorClass::Blocked, message: problem.to_string() })
            }
            _ => Ok(allowed),
        }
    }
}

impl fmt::Debug for Dialler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dialler")
    }
}

fn timed_out(timeout: Duration, doing: &str) -> Fault {
    Fault { class: ErrorClass::Timeout, message: format!("timed out after {timeout:?} while {doing}") }
}

/// `ureq` asks for addresses with every request. The connector knows whether they are needed, so this has none.
#[derive(Debug)]
pub(super) struct NoResolver;

impl Resolver for NoResolver {
    fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        Ok(self.empty())
    }
}

/// A connection in use. Dropped when its request has ended, it is kept if it can serve another.
pub(super) struct Wire {
    connection: Option<Connection>,
    buffers: RequestBuffers,
    server: Arc<Server>,
    network: Arc<Network>,
    exchange: Arc<Exchange>,
    timeout: Duration,
    /// A server may answer and close before it has read all of a request: what it said is worth reading.
    write_error: Option<io::Error>,
    reusable: bool,
}

impl Wire {
    /// Writes what was gathered.
    fn write(&mut self) -> Result<(), Error> {
        let Some(connection) = &mut self.connection else { return Err(Error::ConnectionFailed) };
        if self.write_error.is_none() && !self.buffers.gathered().is_empty() {
            if let Some(deadline) = self.exchange.deadline() {
                connection.set_deadline(deadline);
            }
            match connection.write_all(self.buffers.gathered()).and_then(|()| connection.flush()) {
                Ok(()) => {}
                Err(error) if is_closed(&error) => self.write_error = Some(error),
                Err(error) => return Err(self.fail(&error, "sending the request")),
            }
        }
        self.buffers.written();
        Ok(())
    }

    fn fail(&self, error: &io::Error, doing: &str) -> Error {
        let is_tls = error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>());
        self.exchange.fail(match error.kind() {
            io::ErrorKind::TimedOut => timed_out(self.timeout, doing),
            _ if is_tls => {
                Fault { class: ErrorClass::Tls, message: format!("TLS failed while {doing}: {error}") }
            }
            _ => Fault {
                class: ErrorClass::Reset,
                message: format!("the connection broke while {doing}: {error}"),
            },
        });
        Error::ConnectionFailed
    }
}

impl Transport for Wire {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    /// Gathers; what is gathered is written when it is much, or when an answer is waited for.
    fn transmit_output(&mut self, amount: usize, _: NextTimeout) -> Result<(), Error> {
        self.buffers.gather(amount);
        if self.buffers.is_output_full() { self.write() } else { Ok(()) }
    }

    fn await_input(&mut self, _: NextTimeout) -> Result<bool, Error> {
        self.write()?;
        if self.buffers.is_input_full() {
            self.exchange.fail(Fault {
                class: ErrorClass::TooLarge,
                message: "the answer has a line that is too long".to_owned(),
            });
            return Err(Error::ConnectionFailed);
        }
        let Some(connection) = &mut self.connection else { return Err(Error::ConnectionFailed) };
        if let Some(deadline) = self.exchange.deadline() {
            connection.set_deadline(deadline);
        }
        let amount = match (connection.read(self.buffers.input_append_buf()), self.write_error.take()) {
            (Ok(0) | Err(_), Some(error)) => return Err(self.fail(&error, "sending the request")),
            (Ok(amount), write_error) => {
                self.write_error = write_error;
                amount
            }
            // A server that closes without TLS's farewell has closed all the same.
            (Err(error), None) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
            (Err(error), None) => return Err(self.fail(&error, "waiting for the answer")),
        };
        self.buffers.input_appended(amount);
        self.exchange.note(|progress| match amount {
            0 => {
                progress.fault = Some(Fault {
                    class: ErrorClass::Reset,
                    message: "the connection was closed before the answer was complete".to_owned(),
                });
            }
            _ => progress.heard = true,
        });
        Ok(amount > 0)
    }

    /// `ureq` asks this once an answer has been read to its end and the connection may serve again.
    fn is_open(&mut self) -> bool {
        self.reusable = self.write_error.is_none() && self.buffers.gathered().is_empty();
        self.reusable
    }

    fn is_tls(&self) -> bool {
        self.connection.as_ref().is_some_and(Connection::is_secure)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let mut buffers = mem::take(&mut self.buffers);
        buffers.clear();
        self.exchange.return_buffers(buffers);
        if let Some(connection) = self.connection.take().filter(|_| self.reusable) {
            self.network.idle.keep(&self.server, connection);
        }
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").field("server", &self.server).finish_non_exhaustive()
    }
}

/// Whether a write failed because the other side has closed.
fn is_closed(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset)
}
