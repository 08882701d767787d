//! A request as it came over the wire.

use std::io::Read;
use std::time::Instant;

use flate2::read::MultiGzDecoder;
use serde_json::Value;

use crate::signature::Verdict;

/// One received request: the bytes, and when and where they came in.
pub struct Request {
    bytes: Box<[u8]>,
    head: usize,
    /// The body decompressed, if it came compressed.
    inflated: Option<Vec<u8>>,
    arrived: Instant,
    connection: u64,
    verdict: Option<Verdict>,
}

impl Request {
    /// A request of `head` bytes of request line and headers, the rest being its body.
    pub(crate) fn new(bytes: &[u8], head: usize, arrived: Instant, connection: u64) -> Self {
        let mut request =
            Self { bytes: bytes.into(), head, inflated: None, arrived, connection, verdict: None };
        if request.header("content-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("gzip")) {
            let mut inflated = Vec::new();
            // What cannot be decompressed is left as it came, and no signature will be right for it.
            if MultiGzDecoder::new(request.sent_body()).read_to_end(&mut inflated).is_ok() {
                request.inflated = Some(inflated);
            }
        }
        request
    }

    /// The result of the check of its signature; none when the receiver has no key.
    pub fn verdict(&self) -> Option<Verdict> {
        self.verdict
    }

    pub(crate) fn judge(&mut self, verdict: Verdict) {
        self.verdict = Some(verdict);
    }

    /// When its last byte was read.
    pub fn arrived(&self) -> Instant {
        self.arrived
    }

    /// The connection it came over, counted from 1.
    pub fn connection(&self) -> u64 {
        self.connection
    }

    /// Such as `POST`.
    pub fn method(&self) -> &str {
        self.request_line().next().unwrap_or_default()
    }

    /// The path with its query.
    pub fn path(&self) -> &str {
        self.request_line().nth(1).unwrap_or_default()
    }

    /// Header names, spelled as they came, with their values.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.head().split("\r\n").skip(1).filter_map(|line| {
            let (name, value) = line.split_once(':')?;
            Some((name, value.trim_matches([' ', '\t'])))
        })
    }

    /// The value of a header, whatever the case of its name; the first, if there are several.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers().find(|(its, _)| its.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The body's bytes, decompressed: what the signature is over.
    pub fn body(&self) -> &[u8] {
        self.inflated.as_deref().unwrap_or(self.sent_body())
    }

    /// The body's bytes as they came over the wire.
    pub fn sent_body(&self) -> &[u8] {
        &self.bytes[self.head..]
    }

    /// The body as JSON; null if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(self.body()).unwrap_or_default()
    }

    /// The events in it: of a single webhook one, of a batch its members.
    pub fn events(&self) -> Vec<Value> {
        match self.json() {
            Value::Array(events) => events,
            Value::Null => Vec::new(),
            event => vec![event],
        }
    }

    /// The header `webhook-id`, or nothing.
    pub fn webhook_id(&self) -> &str {
        self.header("webhook-id").unwrap_or_default()
    }

    /// The header `webhook-attempt`, or 0.
    pub fn attempt(&self) -> u32 {
        self.header("webhook-attempt").and_then(|value| value.parse().ok()).unwrap_or(0)
    }

    fn head(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.head]).unwrap_or_default()
    }

    fn request_line(&self) -> impl Iterator<Item = &str> {
        self.head().split("\r\n").next().unwrap_or_default().split(' ')
    }
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.method(), self.path(), String::from_utf8_lossy(self.body()))
    }
}
