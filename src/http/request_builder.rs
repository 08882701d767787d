//! Requests as they go out: body, id, signature and headers.

use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};
use ureq_proto::http::header::{HeaderName, InvalidHeaderValue};
use ureq_proto::http::{HeaderValue, Method, Uri};

use super::job::{Job, Prepared};
use super::signature;
use super::user_error::Problem;
use crate::event::EventId;

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
/// When one of its headers cannot be sent.
pub fn compose(job: &Job, now: SystemTime) -> Result<Composed, Problem> {
    let mut content = Vec::new();
    body(&mut content, job);
    let mut headers = Vec::new();
    each_header(job, &content, now, |Header { name, value, is_sensitive }| {
        let value = if is_sensitive { HIDDEN.into() } else { String::from_utf8_lossy(value) };
        headers.push((name.to_owned(), value.into_owned()));
    })
    .map_err(|error| {
        let hint = "Look at the subscription's headers, and those that its route gives.";
        Problem::new("the request cannot be made", format!("{error}."), hint)
    })?;
    Ok(Composed { method: method(job).to_string(), url: uri(job).to_string(), headers, body: content })
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

/// One header of a request.
struct Header<'a> {
    name: &'a str,
    value: &'a [u8],
    is_sensitive: bool,
}

/// Appends the head of a job's request, up to the blank line that ends it. The body goes out in `length` bytes; `body` is
/// what it was before compression.
pub(super) fn write_head(
    out: &mut Vec<u8>,
    job: &Job,
    body: &[u8],
    length: usize,
    now: SystemTime,
) -> Result<(), InvalidHeaderValue> {
    let uri = uri(job);
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    let slash: &[u8] = if target.starts_with('?') { b"/" } else { b"" };
    let host = uri.host().unwrap_or_default();
    let pieces: [&[u8]; 6] = [
        method(job).as_str().as_bytes(),
        b" ",
        slash,
        target.as_bytes(),
        b" HTTP/1.1\r\nhost: ",
        host.as_bytes(),
    ];
    pieces.iter().for_each(|piece| out.extend_from_slice(piece));
    let default_port = if job.endpoint.server().secure { 443 } else { 80 };
    if let Some(port) = uri.port_u16().filter(|port| *port != default_port) {
        out.push(b':');
        out.extend_from_slice(itoa::Buffer::new().format(port).as_bytes());
    }
    out.extend_from_slice(b"\r\ncontent-length: ");
    out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
    out.extend_from_slice(b"\r\n");
    each_header(job, body, now, |Header { name, value, .. }| {
        [name.as_bytes(), b": ", value, b"\r\n"].iter().for_each(|piece| out.extend_from_slice(piece));
    })?;
    out.extend_from_slice(b"\r\n");
    Ok(())
}

/// Shows the headers of a job's request, but those that say where it goes and how long it is. The signature is over `body`,
/// which has not been compressed yet: receivers' frameworks decompress before anybody can check a signature.
fn each_header(
    job: &Job,
    body: &[u8],
    now: SystemTime,
    mut show: impl FnMut(Header<'_>),
) -> Result<(), InvalidHeaderValue> {
    let endpoint = &*job.endpoint;
    let prepared = prepared(job);
    let id = match prepared.and_then(|prepared| prepared.id.clone()) {
        Some(id) => HeaderValue::try_from(id.as_str()).map(|_| id)?,
        None => webhook_id(job),
    };
    let seconds = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    let mut number = itoa::Buffer::new();
    let timestamp = number.format(seconds);
    let signature = signature::sign(&endpoint.keys, &id, seconds, body);
    let mut plain = |name, value: &str| show(Header { name, value: value.as_bytes(), is_sensitive: false });
    plain("content-type", content_type(job));
    if endpoint.compress {
        plain("content-encoding", "gzip");
    }
    plain("user-agent", concat!("pgstream_hooks/", env!("CARGO_PKG_VERSION")));
    plain("webhook-id", &id);
    plain("webhook-timestamp", timestamp);
    if !signature.is_empty() {
        plain("webhook-signature", &signature);
    }
    plain("idempotency-key", &id);
    plain("webhook-attempt", itoa::Buffer::new().format(job.attempt));
    if let Some(replay) = job.replay {
        plain("webhook-replay", itoa::Buffer::new().format(replay));
    }
    // A header of the format replaces one of the subscription of that name, and a header of the route both.
    let of_format = match &job.events[..] {
        [(event, _)] => endpoint.format.extra_header(event),
        _ => None,
    };
    let of_route =
        prepared.and_then(|prepared| prepared.route.as_ref()).map_or(&[][..], |route| &route.headers);
    let is_routed = |name: &str| of_route.iter().any(|(other, _)| other == name);
    for (name, value) in &endpoint.headers {
        if !is_routed(name.as_str()) && of_format.as_ref().is_none_or(|(other, _)| name != other) {
            show(Header::of(name, value));
        }
    }
    if let Some((name, value)) = of_format.filter(|(name, _)| !is_routed(name)) {
        show(Header { name, value: value.as_bytes(), is_sensitive: false });
    }
    for (at, (name, value)) in of_route.iter().enumerate() {
        if of_route[at + 1..].iter().all(|(other, _)| other != name) {
            show(Header::of(name, value));
        }
    }
    Ok(())
}

impl<'a> Header<'a> {
    fn of(name: &'a HeaderName, value: &'a HeaderValue) -> Header<'a> {
        Header { name: name.as_str(), value: value.as_bytes(), is_sensitive: value.is_sensitive() }
    }
}

fn content_type(job: &Job) -> &'static str {
    match prepared(job) {
        Some(Prepared { bodies: Some(_), .. }) => "application/json",
        _ => job.endpoint.format.content_type(is_batch(job)),
    }
}

/// How a job's request is made.
fn method(job: &Job) -> &Method {
    let route = prepared(job).and_then(|prepared| prepared.route.as_ref());
    route.map_or(&Method::POST, |route| &route.method)
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
    let mut subscription = itoa::Buffer::new();
    let subscription = subscription.format(job.endpoint.subscription_id);
    let mut id = String::with_capacity(EventId::LENGTH + 1 + subscription.len());
    match &job.events[..] {
        [(event, _)] => event.id().push_to(&mut id),
        events => {
            let mut ids = Vec::with_capacity(events.len() * (EventId::LENGTH + 1));
            for (event, _) in events {
                event.id().write_to(&mut ids);
                ids.push(b',');
            }
            id.push_str("batch_");
            URL_SAFE_NO_PAD.encode_string(&Sha256::digest(&ids)[..18], &mut id);
        }
    }
    id.push('_');
    id.push_str(subscription);
    id
}
