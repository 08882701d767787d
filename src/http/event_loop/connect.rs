//! From a request to a connection that it can be sent over.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::{Interest, Token};
use rustls::pki_types::ServerName;
use url::Host;

use super::answer::Fault;
use super::connection::Connection;
use super::request_context::Stage;
use super::{EventLoop, Link, Task};
use crate::http::endpoint::Endpoint;
use crate::http::outcome::ErrorClass;
use crate::http::server::Server;
use crate::http::ssrf_guard::is_localhost;
use crate::http::tls::TlsConfig;
use crate::http::tls::errors::describe;

/// A connection idle for longer is asked whether the server has closed it. For a shorter time, a closed one is
/// noticed by its failure, and the request sent again.
const TRUSTED_IDLE: Duration = Duration::from_millis(100);

/// How long a connection is used: then the name is resolved once more.
const MAX_AGE: Duration = Duration::from_secs(4 * 60);
/// How much longer some are.
const MAX_AGE_JITTER: Duration = Duration::from_secs(2 * 60);
/// How long an address may take to answer before the next one is dialled, too (RFC 8305, section 5).
const NEXT_ADDRESS_DELAY: Duration = Duration::from_millis(250);
/// How long the other side's system may take to acknowledge a request on a kept connection. One that it or something in
/// between has forgotten is replaced then; an endpoint that takes its time to answer is none of that.
const ACK_TIMEOUT: Duration = Duration::from_secs(2);
/// The largest request of which that is expected: it fits into anybody's buffers.
const MAX_TIMED_BYTES: usize = 16 * 1024;

impl EventLoop {
    /// Finds a connection for a request: a kept one if it may be, or a new one.
    pub(super) fn connect(&mut self, number: usize) {
        let Some(exchange) = self.exchanges.get(number) else { return };
        let endpoint = exchange.endpoint.clone();
        let kept = if exchange.may_reuse { self.kept_connection(&endpoint) } else { None };
        let Some(connection) = kept else { return self.find_addresses(number) };
        self.assign(number, connection);
        if let Some(exchange) = self.exchanges.get_mut(number) {
            exchange.is_reused = true;
            exchange.stage = Stage::Passing;
            // A server that takes its time for a large body has not forgotten the connection.
            let is_small = exchange.request.as_ref().is_some_and(|request| request.len() <= MAX_TIMED_BYTES);
            if let Some(link) = self.connections.get_mut(connection) {
                link.connection.set_ack_timeout(is_small.then_some(ACK_TIMEOUT));
            }
        }
        self.write(number);
    }

    /// A kept connection that seems open and whose address is still allowed.
    fn kept_connection(&mut self, endpoint: &Endpoint) -> Option<usize> {
        let server = endpoint.server();
        while let Some((number, idle)) = self.idle.take(server, Instant::now()) {
            let Some(link) = self.connections.get_mut(number) else { continue };
            let peer = link.connection.peer();
            let check = match &server.proxy {
                Some(_) => endpoint.guard.check_target(server.secure, &server.host, server.port),
                None => endpoint.guard.check_address(server.secure, peer.ip(), peer.port()),
            };
            if Instant::now() < link.retire_at
                && (idle < TRUSTED_IDLE || link.connection.is_quiet())
                && check.is_ok()
            {
                return Some(number);
            }
            self.close(number);
        }
        None
    }

    /// Finds the addresses that may be dialled, and dials the first.
    pub(super) fn find_addresses(&mut self, number: usize) {
        let Some(exchange) = self.exchanges.get(number) else { return };
        let endpoint = exchange.endpoint.clone();
        let server = endpoint.server();
        if server.proxy.is_some() && !self.judge_proxied(number) {
            return;
        }
        let Some(exchange) = self.exchanges.get_mut(number) else { return };
        let addresses: Arc<[IpAddr]> = match server.dialled().0 {
            Host::Ipv4(address) => Arc::new([IpAddr::V4(*address)]),
            Host::Ipv6(address) => Arc::new([IpAddr::V6(*address)]),
            Host::Domain(name) if is_localhost(name) => {
                Arc::new([IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)])
            }
            Host::Domain(name) => match self.resolver.resolve(name, Instant::now()) {
                Some(Ok(addresses)) => addresses,
                Some(Err(error)) => {
                    let of_proxy = if server.proxy.is_some() { " of the proxy" } else { "" };
                    let message = format!("the name {name}{of_proxy} could not be resolved: {error}");
                    return self.fail(number, Fault::new(ErrorClass::Dns, message));
                }
                None => {
                    exchange.stage = Stage::Resolving;
                    let handle = self.handle(number);
                    return self.unresolved.entry(name.clone()).or_default().push(handle);
                }
            },
        };
        // A proxy is where its setting says, and trusted.
        let allowed = match server.proxy {
            Some(_) => Ok(addresses.to_vec()),
            None => allowed_addresses(&endpoint, &addresses),
        };
        match allowed {
            Ok(allowed) => {
                exchange.addresses = self.silent.in_order(allowed, Instant::now()).into();
                self.dial(number);
            }
            Err(fault) => self.fail(number, fault),
        }
    }

    /// Dials the next address, beside those that have not answered yet.
    pub(super) fn dial(&mut self, number: usize) {
        loop {
            let may_open = self.make_room();
            let Some(exchange) = self.exchanges.get_mut(number) else { return };
            if !may_open && exchange.racing.is_empty() {
                let message = "no more connections may be open: the limit on open files is reached";
                return self.fail(number, Fault::new(ErrorClass::Connect, message));
            }
            let server = exchange.endpoint.server().clone();
            let Some(address) = exchange.addresses.pop_front().filter(|_| may_open) else {
                if !exchange.racing.is_empty() {
                    exchange.next_address_at = None;
                    return self.deadlines.set(number, exchange.deadline);
                }
                let fault = match exchange.refusal.take() {
                    Some((peer, error)) => {
                        let of_proxy = server.proxy.iter().map(|proxy| format!("the proxy {proxy} at "));
                        let message =
                            format!("no connection to {}{peer}: {error}", of_proxy.collect::<String>());
                        Fault::new(ErrorClass::Connect, message)
                    }
                    None => Fault::new(ErrorClass::Dns, "the name has no address"),
                };
                return self.fail(number, fault);
            };
            let more = !exchange.addresses.is_empty();
            exchange.next_address_at = more.then(|| Instant::now() + NEXT_ADDRESS_DELAY);
            exchange.stage = Stage::Connecting;
            let deadline = exchange.next_deadline();
            let peer = SocketAddr::new(address, server.dialled().1);
            match self.open(peer, &server, number) {
                Ok(()) => return self.deadlines.set(number, deadline),
                Err(error) => self.refused(number, peer, error),
            }
        }
    }

    /// Closes idle connections if no more may be open. Whether one more may be.
    fn make_room(&mut self) -> bool {
        if self.connections.len() >= self.limits.max_connections {
            let closed = self.idle.make_room(Instant::now(), 1);
            closed.into_iter().for_each(|connection| self.close(connection));
        }
        self.connections.len() < self.limits.max_connections
    }

    /// Begins to connect, for an exchange.
    fn open(&mut self, peer: SocketAddr, server: &Arc<Server>, number: usize) -> io::Result<()> {
        let Some(exchange) = self.exchanges.get_mut(number) else { return Ok(()) };
        let mut connection = Connection::dial(peer)?;
        let entry = self.connections.vacant_entry();
        let interests = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(connection.source(), Token(entry.key()), interests)?;
        exchange.racing.push(entry.key());
        // So that those made together do not all end together.
        let jitter = MAX_AGE_JITTER.mul_f64(f64::from(exchange.serial as u32 % 1000) / 1000.0);
        entry.insert(Link {
            connection,
            server: server.clone(),
            exchange: Some(number),
            is_read_closed: false,
            is_kept: false,
            retire_at: Instant::now() + MAX_AGE + jitter,
            generation: self.generation,
        });
        Ok(())
    }

    fn assign(&mut self, number: usize, connection: usize) {
        if let (Some(exchange), Some(link)) =
            (self.exchanges.get_mut(number), self.connections.get_mut(connection))
        {
            exchange.connection = Some(connection);
            link.exchange = Some(number);
        }
    }

    /// Notes that an address cannot be connected to.
    fn refused(&mut self, number: usize, peer: SocketAddr, error: io::Error) {
        self.silent.note(peer.ip());
        if let Some(exchange) = self.exchanges.get_mut(number) {
            exchange.refusal = Some((peer, error));
        }
    }

    /// Looks whether a connection is open. The first one that is serves, the others are closed.
    pub(super) fn go_on_connecting(&mut self, number: usize, connection: usize) {
        let Some(link) = self.connections.get_mut(connection) else { return };
        let peer = link.connection.peer();
        match link.connection.is_connected() {
            Ok(false) => return,
            Ok(true) => self.silent.forget(peer.ip()),
            Err(error) => {
                self.close(connection);
                if let Some(exchange) = self.exchanges.get_mut(number) {
                    exchange.racing.retain(|racing| *racing != connection);
                }
                self.refused(number, peer, error);
                return self.dial(number);
            }
        }
        let Some(exchange) = self.exchanges.get_mut(number) else { return };
        exchange.connection = Some(connection);
        exchange.next_address_at = None;
        exchange.addresses.clear();
        let racing = std::mem::take(&mut exchange.racing);
        let server = exchange.endpoint.server().clone();
        // Those that had more time and did not answer are tried last from now on.
        let mut had_more_time = true;
        for other in racing {
            if other == connection {
                had_more_time = false;
                continue;
            }
            if had_more_time && let Some(link) = self.connections.get(other) {
                self.silent.note(link.connection.peer().ip());
            }
            self.close(other);
        }
        match &server.proxy {
            Some(proxy) if server.secure => self.begin_tunnel(number, proxy),
            _ if server.secure => self.secure(number),
            _ => self.pass(number),
        }
    }

    /// No address has answered within the time of the request.
    pub(super) fn give_up_connecting(&mut self, number: usize) {
        let Some(exchange) = self.exchanges.get(number) else { return };
        for racing in &exchange.racing {
            if let Some(link) = self.connections.get(*racing) {
                self.silent.note(link.connection.peer().ip());
            }
        }
        let fault = exchange.timed_out();
        self.fail(number, fault);
    }

    /// Begins to secure the connection.
    pub(super) fn secure(&mut self, number: usize) {
        let Some(exchange) = self.exchanges.get_mut(number) else { return };
        let endpoint = exchange.endpoint.clone();
        let name = match server_name(&endpoint.server().host) {
            Ok(name) => name,
            Err(fault) => return self.fail(number, fault),
        };
        let config = match self.tls.config(endpoint.identity.as_ref()) {
            Ok(TlsConfig::Ready(config)) => config,
            Ok(TlsConfig::Wanting(wanted)) => {
                exchange.stage = Stage::ReadingRoots;
                let handle = self.handle(number);
                self.without_roots.push(handle);
                if let Some(wanted) = wanted {
                    self.delegate(number, Task::ReadRoots(wanted));
                }
                return;
            }
            Err(error) => return self.fail(number, Fault::new(ErrorClass::Tls, error)),
        };
        exchange.stage = Stage::Securing;
        let begun = self.link_of(number).map(|link| link.connection.begin_tls(name, config));
        match begun {
            Some(Ok(())) => self.go_on_securing(number),
            Some(Err(error)) => {
                let message = format!("the connection could not be secured: {}", describe(&error));
                self.fail(number, Fault::new(ErrorClass::Tls, message));
            }
            None => {}
        }
    }

    /// Goes on with what secures the connection.
    pub(super) fn go_on_securing(&mut self, number: usize) {
        let Some(link) = self.link_of(number) else { return };
        match link.connection.handshake() {
            Ok(false) => {}
            Ok(true) => self.pass(number),
            Err(error) => {
                let Some(fault) = self.exchanges.get(number).map(|exchange| exchange.fault(&error)) else {
                    return;
                };
                self.fail(number, fault);
            }
        }
    }

    /// Sends a request over a new connection.
    fn pass(&mut self, number: usize) {
        let Some(exchange) = self.exchanges.get_mut(number) else { return };
        exchange.stage = Stage::Passing;
        self.write(number);
        // The server may have spoken first, or with the last of what secured the connection.
        if self.exchanges.get(number).is_some_and(|exchange| exchange.connection.is_some()) {
            self.read(number);
        }
    }

    /// The connection of an exchange.
    pub(super) fn link_of(&mut self, number: usize) -> Option<&mut Link> {
        let connection = self.exchanges.get(number)?.connection?;
        self.connections.get_mut(connection)
    }

    /// Closes a connection.
    pub(super) fn close(&mut self, connection: usize) {
        self.connections.try_remove(connection);
    }

    /// Closes the connection of an exchange.
    pub(super) fn close_of(&mut self, number: usize) {
        let connection = self.exchanges.get_mut(number).and_then(|exchange| exchange.connection.take());
        connection.into_iter().for_each(|connection| self.close(connection));
    }
}

/// Of these addresses those that may be dialled; at least one.
fn allowed_addresses(endpoint: &Endpoint, addresses: &[IpAddr]) -> Result<Vec<IpAddr>, Fault> {
    let server = endpoint.server();
    let mut refusal = None;
    let mut allowed = Vec::with_capacity(addresses.len());
    for address in addresses {
        match endpoint.guard.check_dial(server.secure, *address, server.port) {
            Ok(()) => allowed.push(*address),
            Err(problem) => refusal = refusal.or(Some(problem)),
        }
    }
    match refusal {
        Some(problem) if allowed.is_empty() => Err(Fault::new(ErrorClass::Blocked, problem.to_string())),
        _ => Ok(allowed),
    }
}

/// The name that a server's certificate must be valid for.
fn server_name(host: &Host<String>) -> Result<ServerName<'static>, Fault> {
    match host {
        Host::Domain(name) => ServerName::try_from(name.trim_end_matches('.').to_owned()).map_err(|_| {
            Fault::new(ErrorClass::Tls, format!("no certificate can be valid for the name \"{name}\""))
        }),
        Host::Ipv4(address) => Ok(ServerName::from(IpAddr::V4(*address))),
        Host::Ipv6(address) => Ok(ServerName::from(IpAddr::V6(*address))),
    }
}
