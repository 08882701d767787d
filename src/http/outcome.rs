//! What became of a request.

use std::time::{Duration, SystemTime};

/// What came of one attempt at one request.
#[derive(Debug)]
pub struct Outcome {
    /// The job's own number.
    pub ticket: u64,
    /// Whether the endpoint took it.
    pub result: Result<Success, Failure>,
    /// When the attempt began; also the request's `webhook-timestamp`.
    pub started_at: SystemTime,
    /// How long it took.
    pub duration: Duration,
}

impl Outcome {
    /// Of a request that was not sent.
    pub(super) fn handed_back(ticket: u64) -> Outcome {
        let failure = Failure::unanswered(ErrorClass::HandedBack, "the request was not sent");
        Outcome { ticket, result: Err(failure), started_at: SystemTime::UNIX_EPOCH, duration: Duration::ZERO }
    }
}

/// An answer of the class 2xx.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Success {
    /// The status.
    pub status: u16,
    /// What is wrong with the answer's body, if anything.
    pub flaw: Option<String>,
}

/// Anything else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What kind of failure.
    pub class: ErrorClass,
    /// The status, if an answer came.
    pub status: Option<u16>,
    /// What happened, in plain words.
    pub message: String,
    /// How long the endpoint asked to be left alone, 24 hours at most.
    pub retry_after: Option<Duration>,
    /// The first bytes of the answer's body as text, without NUL; what is no UTF-8 is replaced.
    pub response: String,
}

impl Failure {
    /// A failure without an answer.
    pub(super) fn unanswered(class: ErrorClass, message: impl Into<String>) -> Failure {
        Failure { class, status: None, message: message.into(), retry_after: None, response: String::new() }
    }

    /// What it says about the endpoint, and so what is to be done.
    pub fn kind(&self) -> FailureKind {
        match (self.class, self.status) {
            (_, Some(410)) => FailureKind::Gone,
            (_, Some(429)) => FailureKind::Busy,
            (_, Some(503)) if self.retry_after.is_some() => FailureKind::Busy,
            (_, Some(400..=407 | 409..=499)) => FailureKind::Content,
            (ErrorClass::Dns | ErrorClass::Connect | ErrorClass::Tls, _)
            | (ErrorClass::Timeout | ErrorClass::Reset, _) => FailureKind::Connection,
            _ => FailureKind::Other,
        }
    }
}

/// What a failure says about the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// It cannot be reached: name, connection, TLS, time.
    Connection,
    /// It refuses what is in this request: 4xx but 408, 410 and 429.
    Content,
    /// It has too much to do: 429, or 503 with `Retry-After`.
    Busy,
    /// It wants no more: 410.
    Gone,
    /// It fails otherwise.
    Other,
}

/// Kinds of failure that sending knows, as the column `error_class` shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// The name could not be resolved.
    Dns,
    /// No connection could be made.
    Connect,
    /// The connection could not be secured, or the certificate is not trusted.
    Tls,
    /// The whole request took longer than the subscription's timeout.
    Timeout,
    /// The connection broke, or what came over it was not HTTP.
    Reset,
    /// The network guard refused the address.
    Blocked,
    /// A redirect, which is not followed.
    Http3xx,
    /// The endpoint refused the request.
    Http4xx,
    /// The endpoint failed.
    Http5xx,
    /// The answer's head was larger than anyone needs.
    TooLarge,
    /// The request could not be made.
    Encode,
    /// It was handed back before its turn came; nothing has been sent.
    HandedBack,
}

impl ErrorClass {
    /// The name users see.
    pub const fn as_str(self) -> &'static str {
        match self {
            ErrorClass::Dns => "dns",
            ErrorClass::Connect => "connect",
            ErrorClass::Tls => "tls",
            ErrorClass::Timeout => "timeout",
            ErrorClass::Reset => "reset",
            ErrorClass::Blocked => "blocked",
            ErrorClass::Http3xx => "http_3xx",
            ErrorClass::Http4xx => "http_4xx",
            ErrorClass::Http5xx => "http_5xx",
            ErrorClass::TooLarge => "too_large",
            ErrorClass::Encode => "encode",
            ErrorClass::HandedBack => "handed_back",
        }
    }
}

/// The longest time that `Retry-After` is obeyed.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// Reads `Retry-After`: seconds or an HTTP date (RFC 9110, section 10.2.3); none if it is neither.
pub(super) fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    let delay = if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // A number too large to hold is a wish for a long time, too.
        value.parse().map_or(MAX_RETRY_AFTER, Duration::from_secs)
    } else {
        httpdate::parse_http_date(value).ok()?.duration_since(now).unwrap_or_default()
    };
    Some(delay.min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date_capped_at_a_day() {
        let now = httpdate::parse_http_date("Fri, 20 Nov 2026 10:00:00 GMT").unwrap();
        let seconds = Duration::from_secs;
        for (value, delay) in [
            ("0", Some(seconds(0))),
            (" 120 ", Some(seconds(120))),
            ("86401", Some(seconds(86_400))),
            ("99999999999999999999999", Some(seconds(86_400))),
            ("Fri, 20 Nov 2026 10:01:30 GMT", Some(seconds(90))),
            ("Fri, 20 Nov 2026 09:00:00 GMT", Some(seconds(0))),
            ("Fri, 20 Nov 2037 10:00:00 GMT", Some(seconds(86_400))),
            ("", None),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
        ] {
            assert_eq!(parse_retry_after(value, now), delay, "{value}");
        }
    }
}
