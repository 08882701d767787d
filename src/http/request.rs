//! A request ready to go out, in bytes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::SystemTime;

use super::job::Job;
use super::outcome::{ErrorClass, Failure};
use super::request_builder;

/// What is first allocated for a head.
const HEAD_BYTES: usize = 1024;
/// What is first allocated for a body, beside the bytes of its events.
const BODY_BYTES: usize = 512;

/// The attempt at which a test's sender panics.
#[cfg(test)]
pub(super) const PANIC: u32 = u32::MAX;

/// A request in bytes.
pub(super) struct Request {
    /// The request line and the headers, with the blank line that ends them.
    pub head: Vec<u8>,
    /// The body as it goes over the wire.
    pub body: Vec<u8>,
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
    let rows = job.events.iter().map(|(event, _)| event.memory() + BODY_BYTES);
    let mut body = Vec::with_capacity(rows.sum());
    request_builder::body(&mut body, job);
    let started_at = SystemTime::now();
    let compressed = request_builder::compressed(job, &body);
    let length = compressed.as_ref().map_or(body.len(), Vec::len);
    let mut head = Vec::with_capacity(HEAD_BYTES);
    request_builder::write_head(&mut head, job, &body, length, started_at)
        .map_err(|error| unsendable(&error))?;
    if let Some(proxy) = job.endpoint.server().plain_proxy() {
        proxy.address(&mut head, request_builder::uri(job));
    }
    Ok(Request { head, body: compressed.unwrap_or(body), started_at })
}

fn unsendable(error: &dyn std::fmt::Display) -> Failure {
    Failure::unanswered(ErrorClass::Encode, format!("the request could not be made: {error}"))
}
