//! Requests as they go out: body, id, signature and headers.

use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};
use ureq_proto::http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName, InvalidHeaderValue, USER_AGENT};
use ureq_proto::http::{HeaderMap, HeaderValue, Method, Uri};

use super::job::{Job, Prepared};
use super::problem::Problem;
use super::signature;

// Made once, so that a request doesn't spell them out anew.
static WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
static WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
static WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");
static WEBHOOK_ATTEMPT: HeaderName = HeaderName::from_static("webhook-attempt");
static WEBHOOK_REPLAY: HeaderName = HeaderName::from_static("webhook-replay");
static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Stands for the value of a sensitive header in a request that is shown.
const HIDDEN: &str = "hidden";

/// A request as it would go out, to be looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Composed {
    /// Such as `POST`.
    pub method: String,
    /// Where to.
    pub url: String,
    /// Names in lower case, with their values; those of sensitive ones are not shown.
    pub headers: Vec<(String, String)>,
    /// The body before compression: what the signature is over.
    pub body: Vec<u8>,
}

/// The request that a job would make at that time.
///
/// # Errors
///
/// When one of its headers can't be sent.
pub fn compose(job: &Job, now: SystemTime) -> Result<Composed, Problem> {
    let mut content = Vec::new();
    body(&mut content, job);
    let headers = head(job, &content, now).map_err(|error| {
        let hint = "Look at the subscription's headers, and those that its route gives.";
        Problem::new("the request can't be made", format!("{error}."), hint)
    })?;
    let text = |value: &HeaderValue| match value.is_sensitive() {
        true => HIDDEN.to_owned(),
        false => String::from_utf8_lossy(value.as_bytes()).into_owned(),
    };
    let headers = headers.iter().map(|(name, value)| (name.to_string(), text(value)));
    Ok(Composed {
        method: method(job).to_string(),
        url: uri(job).to_string(),
        headers: headers.collect(),
        body: content,
    })
}

/// Appends the body of a job's request, before compression.
pub(super) fn body(out: &mut Vec<u8>, job: &Job) {
    let (format, context) = (job.endpoint.format, job.endpoint.context());
    if let Some(bodies) = prepared(job).and_then(|prepared| prepared.bodies.as_ref()) {
        return join(out, bodies, job.endpoint.batched);
    }
    match &job.events[..] {
        [(event, level)] if !is_batch(job) => format.render_one(out, event, usize::from(*level), &context),
        events => {
            let events = events.iter().map(|(event, level)| (&**event, usize::from(*level)));
            format.render_batch(out, events, &context);
        }
    }
}

/// Whether the body is that of a batch: also of one event, if the subscription takes several. A batch stays one when its
/// subscription is changed to take none.
fn is_batch(job: &Job) -> bool {
    job.endpoint.batched || job.events.len() > 1
}

fn join(out: &mut Vec<u8>, bodies: &[Vec<u8>], batched: bool) {
    match bodies {
        [body] if !batched => out.extend_from_slice(body),
        bodies => {
            out.push(b'[');
            out.extend_from_slice(&bodies.join(&b','));
            out.push(b']');
        }
    }
}

/// The body as it goes over the wire, where that is another.
pub(super) fn compressed(job: &Job, body: &[u8]) -> Option<Vec<u8>> {
    if !job.endpoint.compress {
        return None;
    }
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4), Compression::default());
    // Writing to memory does not fail.
    let _ = encoder.write_all(body);
    encoder.finish().ok()
}

/// The headers of a job's request with this body, which has not been compressed yet: receivers' frameworks decompress
/// before anybody can check a signature.
pub(super) fn head(job: &Job, body: &[u8], now: SystemTime) -> Result<HeaderMap, InvalidHeaderValue> {
    let endpoint = &*job.endpoint;
    let prepared = prepared(job);
    let id = prepared.and_then(|prepared| prepared.id.clone()).unwrap_or_else(|| webhook_id(job));
    let timestamp = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    let signature = signature::sign(&endpoint.keys, &id, timestamp, body);
    let id = HeaderValue::from_maybe_shared(id)?;
    let mut headers = HeaderMap::with_capacity(10 + endpoint.headers.len());
    let content_type = match prepared {
        Some(Prepared { bodies: Some(_), .. }) => "application/json",
        _ => endpoint.format.content_type(is_batch(job)),
    };
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    if endpoint.compress {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    headers
        .insert(USER_AGENT, HeaderValue::from_static(concat!("pgstream_hooks/", env!("CARGO_PKG_VERSION"))));
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
    for (name, value) in
        prepared.iter().filter_map(|prepared| prepared.route.as_ref()).flat_map(|it| &it.headers)
    {
        headers.insert(name.clone(), value.clone());
    }
    Ok(headers)
}

/// How a job's request is made.
pub(super) fn method(job: &Job) -> Method {
    let route = prepared(job).and_then(|prepared| prepared.route.as_ref());
    route.map_or(Method::POST, |route| route.method.clone())
}

/// Where a job's request goes.
pub(super) fn uri(job: &Job) -> &Uri {
    let route = prepared(job).and_then(|prepared| prepared.route.as_ref());
    route.and_then(|route| route.uri.as_ref()).unwrap_or(&job.endpoint.target.uri)
}

fn prepared(job: &Job) -> Option<&Prepared> {
    job.prepared.as_deref()
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
