//! One attempt at one request, from its body to its answer.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use smallvec::SmallVec;

use super::answer::{Answer, Fault};
use crate::http::endpoint::Endpoint;
use crate::http::outcome::{ErrorClass, Failure, Outcome, Success};
use crate::http::request::Request;
use crate::http::tls::errors::describe;
use crate::http::tunnel::Tunnel;

/// How long the body of a success may take: the head has decided.
pub(super) const SUCCESS_BODY_TIME: Duration = Duration::from_secs(1);

/// How far an exchange has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// A thread makes its body.
    Composing,
    /// The name has not been resolved.
    Resolving,
    /// The trusted certificates have not been read.
    ReadingRoots,
    /// The connection is not open.
    Connecting,
    /// The proxy has not connected to the server.
    Tunnelling,
    /// The connection is not secure.
    Securing,
    /// Request and answer pass.
    Passing,
}

/// An attempt under way.
pub(super) struct Exchange {
    /// Tells it from earlier ones of the same number.
    pub serial: u64,
    pub ticket: u64,
    pub endpoint: Arc<Endpoint>,
    /// Whether it counts among those that its subscription may have under way.
    pub is_in_line: bool,
    pub stage: Stage,
    pub request: Option<Request>,
    pub answer: Option<Answer>,
    /// The number of its connection, once that is open.
    pub connection: Option<usize>,
    /// Those that are not open yet, in the order in which they were dialled: the first to be open wins.
    pub racing: SmallVec<[usize; 2]>,
    /// Whether the connection was used before.
    pub is_reused: bool,
    /// Whether a kept connection may be used.
    pub may_reuse: bool,
    /// Whether a byte of the answer arrived.
    pub is_heard: bool,
    /// How many bytes of the request have been written.
    pub sent: usize,
    /// A server may answer and close before it has read all of a request: what it said is worth reading.
    pub write_error: Option<io::Error>,
    /// Whether the rest of the body is read only for the sake of the connection.
    pub is_draining: bool,
    /// Whether the answer is known to be a success, and its body to be all that is waited for.
    pub is_success: bool,
    /// The answer was whole before the request was.
    pub is_answered: bool,
    /// Whether an endpoint beyond a proxy has been judged.
    pub is_judged: bool,
    /// What asks the proxy for a connection to the server.
    pub tunnel: Option<Box<Tunnel>>,
    /// The addresses that have not been tried.
    pub addresses: VecDeque<IpAddr>,
    /// The address that refused last, and how.
    pub refusal: Option<(SocketAddr, io::Error)>,
    /// When the next address is tried, or no longer waited for them.
    pub next_address_at: Option<Instant>,
    pub started_at: SystemTime,
    pub started: Instant,
    pub deadline: Instant,
}

impl Exchange {
    pub fn new(serial: u64, ticket: u64, endpoint: Arc<Endpoint>, is_in_line: bool) -> Exchange {
        let now = Instant::now();
        Exchange {
            serial,
            ticket,
            is_in_line,
            stage: Stage::Composing,
            request: None,
            answer: None,
            connection: None,
            racing: SmallVec::new(),
            is_reused: false,
            may_reuse: true,
            is_heard: false,
            sent: 0,
            write_error: None,
            is_draining: false,
            is_success: false,
            is_answered: false,
            is_judged: false,
            tunnel: None,
            addresses: VecDeque::new(),
            refusal: None,
            next_address_at: None,
            started_at: SystemTime::now(),
            started: now,
            deadline: now + endpoint.timeout,
            endpoint,
        }
    }

    /// The request is made; from now on the network has the endpoint's timeout.
    pub fn set_request(&mut self, request: Request) {
        self.started_at = request.started_at;
        self.started = Instant::now();
        self.deadline = self.started + self.endpoint.timeout;
        self.answer = Some(Answer::new(self.endpoint.max_response_size));
        self.request = Some(request);
    }

    /// Whether all of the request has been written.
    pub fn is_sent(&self) -> bool {
        self.request.as_ref().is_some_and(|request| self.sent >= request.len())
    }

    /// Whether the request has gone out whole, and the head of the answer says that the endpoint took it.
    pub fn has_succeeded(&self) -> bool {
        let status = self.answer.as_ref().and_then(Answer::status);
        self.is_sent() && status.is_some_and(|status| status.is_success())
    }

    /// When it has to be looked at.
    pub fn next_deadline(&self) -> Instant {
        self.next_address_at.map_or(self.deadline, |at| at.min(self.deadline))
    }

    /// Whether nothing is wrong but that the server had closed the kept connection: the request was not served, and on a
    /// new connection it may be.
    pub fn was_stale(&self, fault: &Fault) -> bool {
        self.is_reused && !self.is_heard && fault.class == ErrorClass::Reset
    }

    /// Begins again, on a new connection.
    pub fn start_over(&mut self) {
        self.may_reuse = false;
        self.is_reused = false;
        self.sent = 0;
        self.write_error = None;
    }

    /// What it is to have taken too long.
    pub fn timed_out(&self) -> Fault {
        let proxy = self.endpoint.server().proxy.as_ref();
        let doing = match (self.stage, proxy) {
            (Stage::Composing, _) => "making the request",
            (Stage::Resolving, _) => "resolving the name",
            (Stage::Connecting, Some(proxy)) => &format!("connecting to the proxy {proxy}"),
            (Stage::Connecting, None) => "connecting",
            (Stage::Tunnelling, Some(proxy)) => {
                &format!("waiting for the proxy {proxy} to connect to the endpoint")
            }
            (Stage::ReadingRoots | Stage::Tunnelling | Stage::Securing, _) => "securing the connection",
            (Stage::Passing, _) if self.is_sent() => "waiting for the answer",
            (Stage::Passing, _) => "sending the request",
        };
        if self.is_success {
            let message = format!("the answer's body did not end within {SUCCESS_BODY_TIME:?} of its head");
            return Fault::new(ErrorClass::Timeout, message);
        }
        let timeout = self.endpoint.timeout;
        Fault::new(ErrorClass::Timeout, format!("timed out after {timeout:?} while {doing}"))
    }

    /// What an error of its connection is.
    pub fn fault(&self, error: &io::Error) -> Fault {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let doing = if self.is_sent() { "waiting for the answer" } else { "sending the request" };
        match (self.stage, tls) {
            (Stage::Securing, tls) => {
                let why = tls.map_or_else(|| securing_error(error), describe);
                Fault::new(ErrorClass::Tls, format!("the connection could not be secured: {why}"))
            }
            (_, Some(tls)) => {
                Fault::new(ErrorClass::Tls, format!("TLS failed while {doing}: {}", describe(tls)))
            }
            _ => Fault::new(ErrorClass::Reset, format!("the connection broke while {doing}: {error}")),
        }
    }

    /// What came of it.
    pub fn outcome(&self, result: Result<Success, Failure>) -> Outcome {
        let duration = match self.request {
            Some(_) => self.started.elapsed(),
            None => Duration::ZERO,
        };
        Outcome { ticket: self.ticket, result, started_at: self.started_at, duration }
    }
}

/// Why a connection broke before it was secure.
fn securing_error(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "the server closed it".to_owned(),
        _ => error.to_string(),
    }
}
