//! One attempt at one request: render, sign, send, read the answer.

use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use ureq::http::header::{CONTENT_TYPE, InvalidHeaderValue, LOCATION, RETRY_AFTER, USER_AGENT};
use ureq::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use ureq::{Agent, Body};

use super::buffers::MAX_HEAD_SIZE;
use super::endpoint::Endpoint;
use super::exchange::{self, Exchange, Progress};
use super::network::Network;
use super::outcome::{ErrorClass, Failure, Outcome, Success, parse_retry_after};
use super::pool::Job;
use super::signature;
use super::transport::{Dialler, NoResolver};
use crate::event::format::RenderContext;

/// How much of an answer is read past what is kept, so that its connection can serve again.
const DRAINED: u64 = 16 * 1024;
/// How long that may take.
const DRAIN_TIME: Duration = Duration::from_millis(100);
/// A body buffer larger than this is not kept between requests.
const KEPT_BODY: usize = 256 * 1024;

/// What one sender thread sends with.
pub(super) struct Client {
    agent: Agent,
    exchange: Arc<Exchange>,
    body: Vec<u8>,
}

impl Client {
    /// A client of its own agent: what `ureq` shares in an agent, it locks.
    pub fn new(network: Arc<Network>) -> Client {
        let exchange = Arc::new(Exchange::new());
        // Connections are kept in `network`, since `ureq`'s own pool takes longer the more servers there are.
        let config = Agent::config_builder()
            .max_idle_connections(0)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .user_agent("")
            .accept("")
            .accept_encoding("")
            .max_response_header_size(MAX_HEAD_SIZE)
            .build();
        let dialler = Dialler { network, exchange: exchange.clone() };
        Client { agent: Agent::with_parts(config, dialler, NoResolver), exchange, body: Vec::new() }
    }

    /// Makes one attempt.
    pub fn deliver(&mut self, job: &Job) -> Outcome {
        let (started_at, started) = (SystemTime::now(), Instant::now());
        let deadline = started + job.endpoint.timeout;
        self.render(job);
        let result = match self.head(job, started_at) {
            Ok(headers) => self.exchange(job, &headers, deadline),
            Err(error) => Err(Failure::unanswered(ErrorClass::Encode, error.to_string())),
        };
        if self.body.capacity() > KEPT_BODY {
            self.body = Vec::new();
        }
        Outcome { ticket: job.ticket, result, started_at, duration: started.elapsed() }
    }

    fn render(&mut self, job: &Job) {
        let Endpoint { format, database, subscription, .. } = &*job.endpoint;
        let context = RenderContext { database, subscription };
        self.body.clear();
        for (event, level) in &job.events {
            format.render_one(&mut self.body, event, usize::from(*level), &context);
        }
    }

    fn head(&self, job: &Job, now: SystemTime) -> Result<HeaderMap, InvalidHeaderValue> {
        let endpoint = &*job.endpoint;
        let id = webhook_id(job);
        let timestamp = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let signature = signature::sign(&endpoint.keys, &id, timestamp, &self.body);
        let id = HeaderValue::from_maybe_shared(id)?;
        let mut headers = HeaderMap::with_capacity(8 + endpoint.headers.len());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(
            USER_AGENT,
            HeaderValue::from_static(concat!("pgstream_hooks/", env!("CARGO_PKG_VERSION"))),
        );
        headers.insert("webhook-id", id.clone());
        headers.insert("webhook-timestamp", HeaderValue::from(timestamp));
        if !signature.is_empty() {
            headers.insert("webhook-signature", HeaderValue::from_maybe_shared(signature)?);
        }
        headers.insert("idempotency-key", id);
        headers.insert("webhook-attempt", HeaderValue::from(job.attempt));
        for (name, value) in &endpoint.headers {
            headers.append(name.clone(), value.clone());
        }
        Ok(headers)
    }

    /// Sends the request, once more if a kept connection turns out to be closed.
    fn exchange(&self, job: &Job, headers: &HeaderMap, deadline: Instant) -> Result<Success, Failure> {
        let endpoint = &job.endpoint;
        let send = |reuse| {
            self.exchange.begin(exchange::Request { endpoint: endpoint.clone(), deadline, reuse });
            let mut request = Request::new(&self.body[..]);
            *request.method_mut() = Method::POST;
            *request.uri_mut() = endpoint.target.uri.clone();
            *request.headers_mut() = headers.clone();
            let answer = match self.agent.run(request) {
                Ok(response) => self.read(response, endpoint.max_response_size),
                Err(error) => Err(error),
            };
            (answer, self.exchange.end())
        };
        let (mut answer, mut progress) = send(true);
        if answer.is_err() && progress.was_stale() {
            (answer, progress) = send(false);
        }
        match answer {
            Ok(answer) => answer.judge(progress),
            Err(error) => Err(failure(&error, progress)),
        }
    }

    /// Reads the body of an answer up to `limit` bytes, and a little more if that ends it.
    fn read(&self, response: Response<Body>, limit: usize) -> Result<Answer, ureq::Error> {
        let (head, body) = response.into_parts();
        let mut answer = Answer { status: head.status, headers: head.headers, body: Vec::new(), complete: true };
        let mut reader = body.into_reader();
        answer.complete = (&mut reader).take(limit as u64).read_to_end(&mut answer.body).is_ok();
        if answer.body.len() >= limit {
            self.exchange.hurry(Instant::now() + DRAIN_TIME);
            // Whether it ends is all the same: what was wanted has been read.
            let _ = std::io::copy(&mut reader.take(DRAINED), &mut std::io::sink());
        }
        Ok(answer)
    }
}

/// What an endpoint answered.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
    /// Whether the body came as far as it was to be read.
    complete: bool,
}

impl Answer {
    fn judge(self, progress: Progress) -> Result<Success, Failure> {
        let status = self.status.as_u16();
        let text = |name| self.headers.get(name).and_then(|value| value.to_str().ok());
        let retry_after = text(RETRY_AFTER).and_then(|value| parse_retry_after(value, SystemTime::now()));
        let (class, message) = match status {
            _ if !self.complete => {
                let fault = progress.fault.map(|fault| (fault.class, fault.message));
                fault.unwrap_or((ErrorClass::Reset, "the answer's body is not valid HTTP".to_owned()))
            }
            200..300 => return Ok(Success { status }),
            300..400 => {
                let location = text(LOCATION).map(|to| format!(" to {}", &to[..to.len().min(200)]));
                let location = location.unwrap_or_default();
                (ErrorClass::Http3xx, format!("{}{location}: redirects are not followed", self.status))
            }
            400..500 => (ErrorClass::Http4xx, self.status.to_string()),
            _ => (ErrorClass::Http5xx, self.status.to_string()),
        };
        Err(Failure { class, status: Some(status), message, retry_after, response: self.body })
    }
}

/// What went wrong when no answer came: what the connection told, or else what `ureq` made of the bytes.
fn failure(error: &ureq::Error, progress: Progress) -> Failure {
    match (error, progress.fault) {
        (ureq::Error::LargeResponseHeader(..), _) => Failure::unanswered(
            ErrorClass::TooLarge,
            format!("the answer's head is larger than {MAX_HEAD_SIZE} bytes"),
        ),
        (ureq::Error::ConnectionFailed | ureq::Error::Io(_), Some(fault)) => fault.into(),
        (error, _) if progress.heard => {
            Failure::unanswered(ErrorClass::Reset, format!("the answer is not valid HTTP: {error}"))
        }
        (error, _) => {
            Failure::unanswered(ErrorClass::Encode, format!("the request could not be made: {error}"))
        }
    }
}

/// The id of a request: its event's, or one derived from all of a batch's members, and the subscription's. Two
/// subscriptions may share an endpoint and send it different bodies for one event.
fn webhook_id(job: &Job) -> String {
    let subscription = job.endpoint.subscription_id;
    match &job.events[..] {
        [(event, _)] => format!("{}_{subscription}", event.id()),
        events => {
            let mut hash = Sha256::new();
            for (event, _) in events {
                hash.update(event.id().to_string());
                hash.update(b",");
            }
            format!("batch_{}_{subscription}", URL_SAFE_NO_PAD.encode(&hash.finalize()[..18]))
        }
    }
}
