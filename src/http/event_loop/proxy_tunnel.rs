//! Through a proxy: what is judged before, and the tunnel to servers that are reached by https.

use std::io;
use std::time::{Duration, Instant};

use url::Host;

use super::answer::Fault;
use super::request_context::Stage;
use super::transfer::READS_A_TURN;
use super::{EventLoop, Readiness};
use crate::http::outcome::ErrorClass;
use crate::http::proxy::ProxyServer;
use crate::http::ssrf_guard::is_localhost;
use crate::http::tunnel::Tunnel;

/// How long an endpoint's name may take to be resolved here. The proxy resolves it in any case, and where only it can, the
/// guard knows nothing of its addresses.
const NAME_TIME: Duration = Duration::from_secs(1);

impl EventLoop {
    /// Judges an endpoint that a proxy is to connect to: by its name, and by the addresses that the name has here. False if
    /// it is refused, or the name is still being resolved.
    pub(super) fn judge_proxied(&mut self, number: usize) -> bool {
        let Some(exchange) = self.exchanges.get_mut(number) else { return false };
        if exchange.is_judged {
            return true;
        }
        let (endpoint, now) = (exchange.endpoint.clone(), Instant::now());
        let server = endpoint.server();
        let mut verdict = endpoint.guard.check_target(server.secure, &server.host, server.port);
        match &server.host {
            Host::Domain(name) if verdict.is_ok() && !is_localhost(name) => {
                match self.target_resolver.resolve(name, now) {
                    // The proxy may take any of them.
                    Some(Ok(addresses)) => {
                        verdict = addresses.iter().try_for_each(|address| {
                            endpoint.guard.check_dial(server.secure, *address, server.port)
                        });
                    }
                    Some(Err(_)) => {}
                    None if exchange.next_address_at.is_some_and(|at| at <= now) => {}
                    None => {
                        exchange.stage = Stage::Resolving;
                        exchange.next_address_at.get_or_insert(now + NAME_TIME);
                        self.deadlines.set(number, exchange.next_deadline());
                        let handle = self.handle(number);
                        self.unresolved.entry(name.clone()).or_default().push(handle);
                        return false;
                    }
                }
            }
            Host::Ipv4(address) if verdict.is_ok() => {
                verdict = endpoint.guard.check_dial(server.secure, (*address).into(), server.port);
            }
            Host::Ipv6(address) if verdict.is_ok() => {
                verdict = endpoint.guard.check_dial(server.secure, (*address).into(), server.port);
            }
            _ => {}
        }
        exchange.next_address_at = None;
        exchange.is_judged = verdict.is_ok();
        if let Err(problem) = &verdict {
            self.fail(number, Fault::new(ErrorClass::Blocked, problem.to_string()));
        }
        verdict.is_ok()
    }

    /// Asks the proxy for a connection to the server.
    pub(super) fn begin_tunnel(&mut self, number: usize, proxy: &ProxyServer) {
        let Some(exchange) = self.exchanges.get_mut(number) else { return };
        exchange.stage = Stage::Tunnelling;
        exchange.tunnel = Some(Box::new(Tunnel::new(proxy, exchange.endpoint.server())));
        self.go_on_tunnelling(number);
    }

    /// Goes on with that.
    pub(super) fn go_on_tunnelling(&mut self, number: usize) {
        let Some(exchange) = self.exchanges.get_mut(number) else { return };
        let (Some(connection), Some(tunnel)) = (exchange.connection, &mut exchange.tunnel) else { return };
        let (Some(link), Some(proxy)) =
            (self.connections.get_mut(connection), exchange.endpoint.server().proxy.clone())
        else {
            return;
        };
        let broken = |error: &io::Error| proxy.fault(format_args!("broke the connection: {error}"));
        while !tunnel.rest().is_empty() {
            match link.connection.write(tunnel.rest(), &[]) {
                Ok(amount) => tunnel.advance(amount),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return self.fail(number, broken(&error)),
            }
        }
        for _ in 0..READS_A_TURN {
            let fed = match link.connection.read(&mut self.buffer) {
                Ok(0) => Err(proxy.fault("closed the connection before it had answered CONNECT")),
                Ok(amount) => tunnel.feed(&self.buffer[..amount], &proxy),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => Err(broken(&error)),
            };
            match fed {
                Ok(false) => {}
                Ok(true) => {
                    exchange.tunnel = None;
                    return self.secure(number);
                }
                Err(fault) => return self.fail(number, fault),
            }
        }
        self.ready.push_back((connection, Readiness { readable: true, read_closed: false }));
    }
}
