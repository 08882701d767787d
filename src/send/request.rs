//! A request ready to go out: its bytes, and what reads the answer to it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::SystemTime;

use ureq_proto::client::state::{Prepare, RecvResponse};
use ureq_proto::client::{Call, SendRequestResult};
use ureq_proto::http;
use ureq_proto::http::header::CONTENT_LENGTH;

use super::compose;
use super::job::Job;
use super::outcome::{ErrorClass, Failure};

/// What is first allocated for a head.
const HEAD_BYTES: usize = 1024;
/// A head is never longer: URL and headers have limits of their own.
const MAX_HEAD_BYTES: usize = 16 * 1024 * 1024;

/// The attempt at which a test's sender panics.
#[cfg(test)]
pub(super) const PANIC: u32 = u32::MAX;

/// A request in bytes.
pub(super) struct Request {
    /// The request line and the headers, with the blank line that ends them.
    pub head: Vec<u8>,
    /// The body as it goes over the wire.
    pub body: Vec<u8>,
    /// What reads the answer; taken by the first who does.
    pub call: Option<Call<RecvResponse>>,
    /// The time in `webhook-timestamp`.
    pub started_at: SystemTime,
}

impl Request {
    /// Renders, signs and compresses what a job sends. A panic is an error, too.
    pub fn compose(job: &Job) -> Result<Request, Failure> {
        catch_unwind(AssertUnwindSafe(|| try_compose(job))).unwrap_or_else(|panic| Err(bug(&*panic)))
    }

    /// How many bytes go out.
    pub fn len(&self) -> usize {
        self.head.len() + self.body.len()
    }

    /// What follows the first `sent` bytes: of the head, and of the body.
    pub fn rest(&self, sent: usize) -> (&[u8], &[u8]) {
        match sent.checked_sub(self.head.len()) {
            Some(sent) => (&[], self.body.get(sent..).unwrap_or_default()),
            None => (&self.head[sent..], &self.body),
        }
    }
}

/// What a panic is to the attempt in which it happened.
pub(super) fn bug(panic: &(dyn std::any::Any + Send)) -> Failure {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or_default();
    Failure::unanswered(ErrorClass::Encode, format!("a bug in pgstream_hooks stopped the request: {text}"))
}

fn try_compose(job: &Job) -> Result<Request, Failure> {
    #[cfg(test)]
    assert_ne!(job.attempt, PANIC, "for a test");
    let mut body = Vec::new();
    compose::body(&mut body, job);
    let started_at = SystemTime::now();
    let headers = compose::head(job, &body, started_at).map_err(|error| unsendable(&error))?;
    let body = compose::compressed(job, &body).unwrap_or(body);
    let mut request = http::Request::new(());
    *request.method_mut() = compose::method(job);
    *request.uri_mut() = compose::uri(job).clone();
    *request.headers_mut() = headers;
    let mut call = Call::new(request).map_err(|error| unsendable(&error))?;
    call.header(CONTENT_LENGTH, body.len() as u64).map_err(|error| unsendable(&error))?;
    let (mut head, call) = write_head(call, body.len()).map_err(|error| unsendable(&error))?;
    if let Some(proxy) = job.endpoint.server().plain_proxy() {
        proxy.address(&mut head, compose::uri(job));
    }
    Ok(Request { head, body, call: Some(call), started_at })
}

/// Writes the head of a request with a body of that length.
fn write_head(
    call: Call<Prepare>,
    body_length: usize,
) -> Result<(Vec<u8>, Call<RecvResponse>), ureq_proto::Error> {
    let mut call = call.proceed();
    let mut head = vec![0; HEAD_BYTES];
    let mut length = 0;
    while !call.can_proceed() && head.len() <= MAX_HEAD_BYTES {
        match call.write(&mut head[length..]) {
            Ok(amount) => length += amount,
            Err(ureq_proto::Error::OutputOverflow) => {}
            Err(error) => return Err(error),
        }
        if !call.can_proceed() {
            head.resize(head.len() * 2, 0);
        }
    }
    head.truncate(length);
    // The body is written by others, straight from where it is.
    let call = match call.proceed()? {
        Some(SendRequestResult::SendBody(mut call)) => {
            call.consume_direct_write(body_length)?;
            call.proceed()
        }
        Some(SendRequestResult::RecvResponse(call)) => Some(call),
        Some(SendRequestResult::Await100(_)) | None => None,
    };
    Ok((head, call.ok_or(ureq_proto::Error::OutputOverflow)?))
}

fn unsendable(error: &dyn std::fmt::Display) -> Failure {
    Failure::unanswered(ErrorClass::Encode, format!("the request could not be made: {error}"))
}
