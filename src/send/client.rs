//! One attempt at one request: render, sign, send, read the answer.

use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use ureq::http::header::{CONTENT_TYPE, HeaderName, InvalidHeaderValue, LOCATION, RETRY_AFTER, USER_AGENT};
use ureq::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use ureq::{Agent, Body};

use super::buffers::MAX_HEAD_SIZE;
use super::endpoint::Endpoint;
use super::exchange::{self, Exchange, Progress};
use super::job::Job;
use super::network::Network;
use super::outcome::{ErrorClass, Failure, Outcome, Success, parse_retry_after};
use super::signature;
use super::transport::{Dialler, NoResolver};
use crate::event::format::RenderContext;

/// How much of an answer is read past what is kept, so that its connection can serve again.
const DRAINED: u64 = 16 * 1024;
/// How long that may take.
const DRAIN_TIME: Duration = Duration::from_millis(100);
/// A body buffer larger than this is not kept between requests.
const KEPT_BODY: usize = 256 * 1024;

// Made once, so that a request doesn't spell them out anew.
static WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
static WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
static WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");
static WEBHOOK_ATTEMPT: HeaderName = HeaderName::from_static("webhook-attempt");
static WEBHOOK_REPLAY: HeaderName = HeaderName::from_static("webhook-replay");
static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The attempt at which a test's sender panics.
#[cfg(test)]
pub(super) const PANIC: u32 = u32::MAX;

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
        self.render(job);
        let started_at = SystemTime::now();
        let head = self.head(job, started_at);
        // The subscription's timeout is for the network; a large body may take a while to make.
        let started = Instant::now();
        let result = head.map_err(Failure::from).and_then(|head| {
            let deadline = started + job.endpoint.timeout;
            self.attempt(job, head, started_at, deadline)
        });
        if self.body.capacity() > KEPT_BODY {
            self.body = Vec::new();
        }
        Outcome { ticket: job.ticket, result, started_at, duration: started.elapsed() }
    }

    fn render(&mut self, job: &Job) {
        #[cfg(test)]
        assert_ne!(job.attempt, PANIC, "for a test");
        let Endpoint { format, source, subscription, columns, .. } = &*job.endpoint;
        let subscription_id = job.endpoint.subscription_id;
        let context = RenderContext { source, subscription_id, subscription, columns };
        let body = &mut self.body;
        body.clear();
        match &job.events[..] {
            [(event, level)] if !is_batch(job) => {
                format.render_one(body, event, usize::from(*level), &context);
            }
            events => {
                let events = events.iter().map(|(event, level)| (&**event, usize::from(*level)));
                format.render_batch(body, events, &context);
            }
        }
    }

    fn head(&self, job: &Job, now: SystemTime) -> Result<HeaderMap, InvalidHeaderValue> {
        let endpoint = &*job.endpoint;
        let id = webhook_id(job);
        let timestamp = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let signature = signature::sign(&endpoint.keys, &id, timestamp, &self.body);
        let id = HeaderValue::from_maybe_shared(id)?;
        let mut headers = HeaderMap::with_capacity(9 + endpoint.headers.len());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(endpoint.format.content_type(is_batch(job))));
        headers.insert(
            USER_AGENT,
            HeaderValue::from_static(concat!("pgstream_hooks/", env!("CARGO_PKG_VERSION"))),
        );
        headers.insert(&WEBHOOK_ID, id.clone());
        headers.insert(&WEBHOOK_TIMESTAMP, HeaderValue::from(timestamp));
        if !signature.is_empty() {
            headers.insert(&WEBHOOK_SIGNATURE, HeaderValue::from_maybe_shared(signature)?);
        }
        headers.insert(&IDEMPOTENCY_KEY, id);
        headers.insert(&WEBHOOK_ATTEMPT, HeaderValue::from(job.attempt));
        if let Some(replay) = job.replay {
            headers.insert(&WEBHOOK_REPLAY, HeaderValue::from(replay));
        }
        for (name, value) in &endpoint.headers {
            headers.append(name.clone(), value.clone());
        }
        if let [(event, _)] = &job.events[..]
            && let Some((name, value)) = endpoint.format.extra_header(event)
        {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_maybe_shared(value)?);
        }
        Ok(headers)
    }

    /// Sends the request, once more if a kept connection turns out to be closed.
    fn attempt(
        &self,
        job: &Job,
        head: HeaderMap,
        started_at: SystemTime,
        deadline: Instant,
    ) -> Result<Success, Failure> {
        let (mut answer, mut progress) = self.send(job, head, deadline, true);
        if answer.is_err() && progress.was_stale() {
            (answer, progress) = self.send(job, self.head(job, started_at)?, deadline, false);
        }
        match answer {
            Ok(answer) => answer.judge(progress),
            Err(error) => Err(failure(&error, progress)),
        }
    }

    /// Sends the request over one connection, a kept one if it may be.
    fn send(
        &self,
        job: &Job,
        head: HeaderMap,
        deadline: Instant,
        reuse: bool,
    ) -> (Result<Answer, ureq::Error>, Progress) {
        let endpoint = &job.endpoint;
        self.exchange.begin(exchange::Request { endpoint: endpoint.clone(), deadline, reuse });
        let mut request = Request::new(&self.body[..]);
        *request.method_mut() = Method::POST;
        *request.uri_mut() = endpoint.target.uri.clone();
        *request.headers_mut() = head;
        let response = self.agent.run(request);
        let answer = response.map(|response| self.read(response, endpoint.max_response_size));
        (answer, self.exchange.end())
    }

    /// Reads the body of an answer up to `limit` bytes, and a little more if that ends it.
    fn read(&self, response: Response<Body>, limit: usize) -> Answer {
        let (head, body) = response.into_parts();
        let mut answer =
            Answer { status: head.status, headers: head.headers, body: Vec::new(), complete: true };
        let mut reader = body.into_reader();
        answer.complete = (&mut reader).take(limit as u64).read_to_end(&mut answer.body).is_ok();
        if answer.body.len() >= limit {
            self.exchange.hurry(Instant::now() + DRAIN_TIME);
            // Whether it ends is all the same: what was wanted has been read.
            let _ = std::io::copy(&mut reader.take(DRAINED), &mut std::io::sink());
        }
        answer
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
            200..300 if self.complete => return Ok(Success { status }),
            200..300 => {
                let fault = progress.fault.map(|fault| (fault.class, fault.message));
                fault.unwrap_or((ErrorClass::Reset, "the answer's body is not valid HTTP".to_owned()))
            }
            300..400 => {
                let location = text(LOCATION).map(|to| format!(" to {}", &to[..to.len().min(200)]));
                let location = location.unwrap_or_default();
                (ErrorClass::Http3xx, format!("{}{location}: redirects are not followed", self.status))
            }
            400..500 => (ErrorClass::Http4xx, self.status.to_string()),
            _ => (ErrorClass::Http5xx, self.status.to_string()),
        };
        // Text that Postgres can store.
        let response = String::from_utf8_lossy(&self.body).replace('\0', "");
        Err(Failure { class, status: Some(status), message, retry_after, response })
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

impl From<InvalidHeaderValue> for Failure {
    fn from(error: InvalidHeaderValue) -> Failure {
        Failure::unanswered(ErrorClass::Encode, error.to_string())
    }
}

/// Whether the body is that of a batch: also of one event, if the subscription takes several.
fn is_batch(job: &Job) -> bool {
    job.endpoint.batched || job.events.len() > 1
}

/// The id of a request: its event's, or one derived from all of a batch's members, and the subscription's. Two
/// subscriptions may share an endpoint and send it different bodies for one event.
fn webhook_id(job: &Job) -> String {
    let subscription = job.endpoint.subscription_id;
    match &job.events[..] {
        [(event, _)] => format!("{}_{subscription}", event.id()),
        events => {
            let mut ids = Vec::with_capacity(events.len() * 64);
            for (event, _) in events {
                event.id().write_to(&mut ids);
                ids.push(b',');
            }
            format!("batch_{}_{subscription}", URL_SAFE_NO_PAD.encode(&Sha256::digest(&ids)[..18]))
        }
    }
}
