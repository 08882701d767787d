//! Requests out, answers in.

use std::io;
use std::time::{Duration, Instant};

use super::answer::{Fault, Progress, closed_early};
use super::request_context::{SUCCESS_BODY_TIME, Stage};
use super::{EventLoop, Readiness};
use crate::http::outcome::{Failure, Success};

/// How long the rest of an answer is read past what is kept.
const DRAIN_TIME: Duration = Duration::from_millis(100);
/// Bytes written to one connection before others have their turn.
const WRITTEN_A_TURN: usize = 256 * 1024;
/// How often one connection is read from before others have their turn.
pub(super) const READS_A_TURN: usize = 4;

impl EventLoop {
    /// Does what a connection is ready for.
    pub(super) fn look_at(&mut self, connection: usize, readiness: Readiness) {
        let Some(link) = self.connections.get_mut(connection) else { return };
        link.is_read_closed |= readiness.read_closed;
        let Some(number) = link.exchange else {
            // What an idle server says is farewell, or nothing that was asked for.
            if !link.connection.is_quiet() {
                let server = link.server.clone();
                self.idle.remove(&server, connection);
                self.close(connection);
            }
            return;
        };
        self.current = Some(number);
        match self.exchanges.get(number).map(|exchange| exchange.stage) {
            Some(Stage::Connecting) => self.go_on_connecting(number, connection),
            Some(Stage::Tunnelling) => self.go_on_tunnelling(number),
            Some(Stage::Securing) => self.go_on_securing(number),
            Some(Stage::Passing) => {
                self.write(number);
                let is_there = self.exchanges.get(number).is_some_and(|it| it.connection == Some(connection));
                if readiness.readable && is_there {
                    self.read(number);
                }
            }
            _ => {}
        }
        self.current = None;
    }

    /// Writes what the connection takes.
    pub(super) fn write(&mut self, number: usize) {
        let mut written = 0;
        loop {
            let Some(exchange) = self.exchanges.get_mut(number) else { return };
            let (Some(connection), Some(request)) = (exchange.connection, &exchange.request) else { return };
            let Some(link) = self.connections.get_mut(connection) else { return };
            if exchange.write_error.is_some() {
                return;
            }
            let result = match exchange.sent >= request.len() {
                true => link.connection.is_flushed().map(|_| None),
                false => {
                    let (head, body) = request.rest(exchange.sent);
                    link.connection.write(head, body).map(Some)
                }
            };
            match result {
                Ok(Some(amount)) => {
                    exchange.sent += amount;
                    written += amount;
                }
                Ok(None) if exchange.is_answered => return self.finish(number, None, false),
                Ok(None) => return,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) if exchange.is_answered => return self.finish(number, None, false),
                Err(error) if is_closed(&error) => {
                    exchange.write_error = Some(error);
                    return self.read(number);
                }
                Err(error) => return self.broken(number, &error),
            }
            if written >= WRITTEN_A_TURN {
                return self.ready.push_back((connection, Readiness { readable: false, read_closed: false }));
            }
        }
    }

    /// Reads what has arrived.
    pub(super) fn read(&mut self, number: usize) {
        for _ in 0..READS_A_TURN {
            let Some(exchange) = self.exchanges.get_mut(number) else { return };
            let (Some(connection), Some(answer)) = (exchange.connection, &mut exchange.answer) else {
                return;
            };
            let Some(link) = self.connections.get_mut(connection) else { return };
            if exchange.is_answered {
                return;
            }
            let amount = match link.connection.read(&mut self.buffer) {
                Ok(0) => return self.ended(number),
                Ok(amount) => amount,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // A server that closes without TLS's farewell has closed all the same.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return self.ended(number),
                Err(error) => {
                    let error = exchange.write_error.take().unwrap_or(error);
                    return self.broken(number, &error);
                }
            };
            exchange.is_heard = true;
            match answer.feed(&self.buffer[..amount]) {
                Ok(Progress::Partial) if exchange.is_success || !exchange.has_succeeded() => {}
                Ok(Progress::Partial) => {
                    exchange.is_success = true;
                    exchange.deadline = exchange.deadline.min(Instant::now() + SUCCESS_BODY_TIME);
                    self.deadlines.set(number, exchange.deadline);
                }
                Ok(Progress::Draining) if exchange.is_draining => {}
                Ok(Progress::Draining) => {
                    exchange.is_draining = true;
                    exchange.deadline = exchange.deadline.min(Instant::now() + DRAIN_TIME);
                    self.deadlines.set(number, exchange.deadline);
                }
                Ok(Progress::Complete { reusable }) => return self.answered(number, reusable),
                Err(fault) => return self.flawed(number, fault),
            }
            // News come with an event, but for those that came with the last one.
            if amount < self.buffer.len() && link.connection.is_drained() && !link.is_read_closed {
                return;
            }
        }
        if let Some(connection) = self.exchanges.get(number).and_then(|exchange| exchange.connection) {
            self.ready.push_back((connection, Readiness { readable: true, read_closed: false }));
        }
    }

    /// The answer is whole.
    fn answered(&mut self, number: usize, reusable: bool) {
        let Some(exchange) = self.exchanges.get_mut(number) else { return };
        let is_success =
            exchange.answer.as_ref().and_then(|it| it.status()).is_some_and(|status| status.is_success());
        if exchange.is_sent() {
            let is_open = exchange.write_error.is_none();
            let is_open = is_open && self.link_of(number).is_some_and(|link| !link.is_read_closed);
            self.finish(number, None, reusable && is_open);
        } else if is_success && exchange.write_error.is_none() {
            // Who takes a request before it has come wants the rest of it, too.
            exchange.is_answered = true;
        } else {
            self.finish(number, None, false);
        }
    }

    /// The other side has closed.
    fn ended(&mut self, number: usize) {
        let Some(exchange) = self.exchanges.get_mut(number) else { return };
        let error = exchange.write_error.take();
        let closed = error.map_or_else(closed_early, |error| exchange.fault(&error));
        if exchange.was_stale(&closed) {
            return self.start_over(number);
        }
        let whole = exchange.answer.as_mut().is_some_and(|answer| answer.end());
        self.finish(number, (!whole).then_some(closed), false);
    }

    /// The connection is broken.
    fn broken(&mut self, number: usize, error: &io::Error) {
        let Some(exchange) = self.exchanges.get(number) else { return };
        let fault = exchange.fault(error);
        if exchange.is_reused && error.kind() == io::ErrorKind::TimedOut {
            // What lies between has forgotten this connection, and so the others of its age.
            let server = exchange.endpoint.server().clone();
            self.idle.take_all(&server).into_iter().for_each(|connection| self.close(connection));
        }
        self.flawed(number, fault);
    }

    /// Something is wrong with the connection or with what came over it.
    fn flawed(&mut self, number: usize, fault: Fault) {
        match self.exchanges.get(number) {
            Some(exchange) if exchange.was_stale(&fault) => self.start_over(number),
            _ => self.finish(number, Some(fault), false),
        }
    }

    /// Sends the request once more, over a new connection.
    fn start_over(&mut self, number: usize) {
        self.close_of(number);
        if let Some(exchange) = self.exchanges.get_mut(number) {
            exchange.start_over();
            self.connect(number);
        }
    }

    /// Looks at an exchange whose time may have come.
    pub(super) fn check_deadline(&mut self, number: usize, now: Instant) {
        let Some(exchange) = self.exchanges.get(number) else { return };
        if exchange.stage == Stage::Composing {
            return;
        }
        if now < exchange.deadline {
            if exchange.next_address_at.is_some_and(|at| at <= now) {
                return match exchange.stage {
                    Stage::Resolving => self.find_addresses(number),
                    _ => self.dial(number),
                };
            }
            return self.deadlines.set(number, exchange.next_deadline());
        }
        if exchange.stage == Stage::Connecting {
            return self.give_up_connecting(number);
        }
        let flaw = (!exchange.is_draining).then(|| exchange.timed_out());
        self.finish(number, flaw, false);
    }

    /// Ends an exchange by what its answer says, or by what went wrong before that.
    fn finish(&mut self, number: usize, flaw: Option<Fault>, reusable: bool) {
        let Some(exchange) = self.exchanges.get_mut(number) else { return };
        let result = match exchange.answer.take() {
            Some(answer) => answer.judge(flaw),
            None => Err(flaw.unwrap_or_else(closed_early).into()),
        };
        let result = match exchange.endpoint.server().plain_proxy() {
            Some(proxy) => result.map_err(|failure| proxy.judge(failure)),
            None => result,
        };
        self.end(number, result, reusable);
    }

    /// Ends an exchange that got no answer.
    pub(super) fn fail(&mut self, number: usize, fault: Fault) {
        self.end(number, Err(fault.into()), false);
    }

    /// Ends an exchange.
    pub(super) fn end(&mut self, number: usize, result: Result<Success, Failure>, reusable: bool) {
        let Some(exchange) = self.exchanges.try_remove(number) else { return };
        let is_success = result.is_ok();
        self.outcomes.push(exchange.outcome(result));
        if exchange.is_in_line {
            self.leave_line(exchange.endpoint.subscription_id, is_success);
        } else {
            self.is_urgent = true;
        }
        exchange.racing.iter().for_each(|connection| self.close(*connection));
        let Some(connection) = exchange.connection else { return };
        match self.connections.get_mut(connection) {
            Some(link) if reusable && link.generation == self.generation => {
                link.exchange = None;
                if !std::mem::replace(&mut link.is_kept, true) {
                    link.connection.set_keep_alive();
                }
                let server = link.server.clone();
                let closed = self.idle.keep(&server, connection, Instant::now(), self.limits.max_requests);
                closed.into_iter().for_each(|connection| self.close(connection));
            }
            _ => self.close(connection),
        }
    }
}

/// Whether a write failed because the other side has closed.
fn is_closed(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset)
}
