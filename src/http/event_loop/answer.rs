//! An answer as it arrives, piece by piece.

use std::time::SystemTime;

use ureq_proto::client::state::{RecvBody, RecvResponse};
use ureq_proto::client::{Call, RecvBodyResult, RecvResponseResult, SendRequestResult};
use ureq_proto::http::header::{CONNECTION, CONTENT_LENGTH, LOCATION, RETRY_AFTER, TRANSFER_ENCODING};
use ureq_proto::http::{HeaderMap, Request, StatusCode};

use crate::http::outcome::{ErrorClass, Failure, Success, parse_retry_after};

/// The longest head of an answer, in bytes.
const MAX_HEAD_BYTES: usize = 32 * 1024;
/// The most that is held of a body not yet understood: the size of a chunk, or a trailer.
const MAX_LINE_BYTES: usize = 32 * 1024;
/// The most headers of an answer that is understood at a glance.
const MAX_PLAIN_HEADERS: usize = 24;
/// How much of an answer is read past the limit, so that its connection can serve again.
const MAX_DRAINED_BYTES: usize = 16 * 1024;

/// Why a request could not be sent or answered.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub class: ErrorClass,
    pub message: String,
}

impl Fault {
    pub fn new(class: ErrorClass, message: impl Into<String>) -> Fault {
        Fault { class, message: message.into() }
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Failure {
        Failure::unanswered(fault.class, fault.message)
    }
}

/// How far an answer has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// More has to be read.
    Partial,
    /// The rest of the body is read only for the sake of the connection.
    Draining,
    /// Nothing more is to be read. The connection may serve another request if this says so.
    Complete {
        /// Whether it may.
        reusable: bool,
    },
}

/// One answer: its head, and the beginning of its body.
pub(crate) struct Answer {
    state: State,
    /// Arrived, and not understood yet.
    input: Vec<u8>,
    head: Option<(StatusCode, HeaderMap)>,
    body: Vec<u8>,
    /// Bytes of the body so far.
    length: usize,
    max_body: usize,
}

enum State {
    /// With what understands it, once it is known not to be a plain one.
    Head(Option<Box<Call<RecvResponse>>>),
    Body(Box<Call<RecvBody>>),
    Complete {
        /// Whether the connection may serve another request.
        reusable: bool,
    },
}

/// Stands while a piece is looked at, and after one that is not HTTP.
const UNUSABLE: State = State::Complete { reusable: false };

impl Answer {
    /// The answer to a request that is about to go out; at most `max_body` bytes of its body are kept.
    pub fn new(max_body: usize) -> Answer {
        Answer {
            state: State::Head(None),
            input: Vec::new(),
            head: None,
            body: Vec::new(),
            length: 0,
            max_body,
        }
    }

    /// The status, once the head is complete.
    pub fn status(&self) -> Option<StatusCode> {
        self.head.as_ref().map(|(status, _)| *status)
    }

    /// Takes the next bytes.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Progress, Fault> {
        if matches!(self.state, State::Head(None))
            && let Some(status) = plain_success(bytes)
        {
            self.head = Some((status, HeaderMap::new()));
            self.state = State::Complete { reusable: true };
        } else if self.input.is_empty() {
            let used = self.consume(bytes)?;
            self.input.extend_from_slice(&bytes[used.min(bytes.len())..]);
        } else {
            let mut input = std::mem::take(&mut self.input);
            input.extend_from_slice(bytes);
            let used = self.consume(&input)?;
            input.drain(..used.min(input.len()));
            self.input = input;
        }
        self.progress()
    }

    /// The other side sends no more. Says whether the answer is whole.
    pub fn end(&mut self) -> bool {
        let whole = match &self.state {
            State::Head(_) => false,
            State::Body(call) => {
                call.can_proceed() || call.is_ended_chunked() || self.length >= self.max_body
            }
            State::Complete { .. } => true,
        };
        self.state = UNUSABLE;
        whole
    }

    /// What the answer says; `flaw` is what is wrong with its body, if anything.
    pub fn judge(self, flaw: Option<Fault>) -> Result<Success, Failure> {
        let Some((status, headers)) = self.head else {
            let fault = flaw.unwrap_or_else(closed_early);
            return Err(fault.into());
        };
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let retry_after = text(RETRY_AFTER).and_then(|value| parse_retry_after(value, SystemTime::now()));
        let (class, message) = match (status.as_u16(), flaw) {
            // The head decides: what comes after it changes nothing about what the endpoint has done.
            (200..300, flaw) => {
                return Ok(Success { status: status.as_u16(), flaw: flaw.map(|flaw| flaw.message) });
            }
            (300..400, _) => {
                let location = text(LOCATION).map(|to| format!(" to {}", &to[..to.len().min(200)]));
                let location = location.unwrap_or_default();
                (ErrorClass::Http3xx, format!("{status}{location}: redirects are not followed"))
            }
            (400..500, _) => (ErrorClass::Http4xx, status.to_string()),
            _ => (ErrorClass::Http5xx, status.to_string()),
        };
        // Text that Postgres can store.
        let response = String::from_utf8_lossy(&self.body).replace('\0', "");
        Err(Failure { class, status: Some(status.as_u16()), message, retry_after, response })
    }

    fn progress(&self) -> Result<Progress, Fault> {
        match &self.state {
            State::Head(_) if self.input.len() > MAX_HEAD_BYTES => Err(head_too_large()),
            State::Head(_) => Ok(Progress::Partial),
            State::Body(_) if self.input.len() > MAX_LINE_BYTES => {
                Err(Fault::new(ErrorClass::TooLarge, "the answer has a line that is too long"))
            }
            State::Body(_) if self.length > self.max_body + MAX_DRAINED_BYTES => {
                Ok(Progress::Complete { reusable: false })
            }
            State::Body(_) if self.length >= self.max_body => Ok(Progress::Draining),
            State::Body(_) => Ok(Progress::Partial),
            // What comes after the answer was not asked for.
            State::Complete { reusable } => {
                Ok(Progress::Complete { reusable: *reusable && self.input.is_empty() })
            }
        }
    }

    /// Understands as much of the input as is whole; returns how much.
    fn consume(&mut self, input: &[u8]) -> Result<usize, Fault> {
        let mut used = 0;
        loop {
            let (amount, goes_on) = match std::mem::replace(&mut self.state, UNUSABLE) {
                State::Head(call) => self.consume_head(call, &input[used..])?,
                State::Body(call) => self.consume_body(call, &input[used..])?,
                complete @ State::Complete { .. } => {
                    self.state = complete;
                    (0, false)
                }
            };
            used += amount;
            if !goes_on {
                return Ok(used);
            }
        }
    }

    fn consume_head(
        &mut self,
        call: Option<Box<Call<RecvResponse>>>,
        input: &[u8],
    ) -> Result<(usize, bool), Fault> {
        let mut call = match call {
            Some(call) => call,
            None => Box::new(expect_answer().map_err(|error| not_http("answer", &error))?),
        };
        let (used, response) = call.try_response(input, false).map_err(|error| not_http("answer", &error))?;
        if used > MAX_HEAD_BYTES {
            return Err(head_too_large());
        }
        let Some(response) = response else {
            self.state = State::Head(Some(call));
            // An informational answer has been passed over, and another follows.
            return Ok((used, used > 0));
        };
        let (parts, ()) = response.into_parts();
        self.head = Some((parts.status, parts.headers));
        let must_close = match call.proceed() {
            Some(RecvResponseResult::RecvBody(call)) => {
                self.state = State::Body(Box::new(call));
                return Ok((used, true));
            }
            Some(RecvResponseResult::Redirect(call)) => call.must_close_connection(),
            Some(RecvResponseResult::Cleanup(call)) => call.must_close_connection(),
            None => true,
        };
        self.state = State::Complete { reusable: !must_close };
        Ok((used, false))
    }

    fn consume_body(&mut self, mut call: Box<Call<RecvBody>>, input: &[u8]) -> Result<(usize, bool), Fault> {
        let mut scratch = [0; 4096];
        let (used, produced) =
            call.read(input, &mut scratch).map_err(|error| not_http("answer's body", &error))?;
        // The body of a success says nothing that is kept.
        let is_success = self.status().is_some_and(|status| status.is_success());
        let room = if is_success { 0 } else { self.max_body.saturating_sub(self.length) };
        let kept = produced.min(room);
        self.body.extend_from_slice(&scratch[..kept]);
        self.length += produced;
        // A body that ends with its connection is never known to be complete before that.
        let is_closing = matches!(call.body_mode(), ureq_proto::BodyMode::CloseDelimited);
        if !is_closing && call.can_proceed() {
            let must_close = match call.proceed() {
                Some(RecvBodyResult::Redirect(call)) => call.must_close_connection(),
                Some(RecvBodyResult::Cleanup(call)) => call.must_close_connection(),
                None => true,
            };
            self.state = State::Complete { reusable: !must_close };
            return Ok((used, false));
        }
        self.state = State::Body(call);
        Ok((used, used > 0 || produced > 0))
    }
}

/// The status of an answer that is a success, whole, and leaves its connection open, as most are. None of any other, and of
/// one that takes more than a glance to understand.
fn plain_success(bytes: &[u8]) -> Option<StatusCode> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_PLAIN_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let Ok(httparse::Status::Complete(head)) = response.parse(bytes) else { return None };
    let (Some(1), Some(status @ 200..300)) = (response.version, response.code) else { return None };
    let mut length = None;
    for header in response.headers {
        let is = |name: &ureq_proto::http::HeaderName| header.name.eq_ignore_ascii_case(name.as_str());
        if is(&CONTENT_LENGTH) {
            if length.is_some() || !header.value.iter().all(u8::is_ascii_digit) {
                return None;
            }
            length = Some(std::str::from_utf8(header.value).ok()?.parse::<usize>().ok()?);
        } else if is(&TRANSFER_ENCODING)
            || is(&CONNECTION) && !header.value.eq_ignore_ascii_case(b"keep-alive")
        {
            return None;
        }
    }
    let status = StatusCode::from_u16(status).ok()?;
    let has_body = status != StatusCode::NO_CONTENT;
    let is_whole = bytes.len() - head == if has_body { length? } else { 0 };
    (is_whole && head <= MAX_HEAD_BYTES).then_some(status)
}

/// What understands any answer. It asks nothing of the request but that its answer may have a body.
fn expect_answer() -> Result<Call<RecvResponse>, ureq_proto::Error> {
    let mut call = Call::new(Request::new(()))?.proceed();
    call.write(&mut [0; 64])?;
    match call.proceed()? {
        Some(SendRequestResult::RecvResponse(call)) => Ok(call),
        _ => Err(ureq_proto::Error::OutputOverflow),
    }
}

/// What is wrong with an answer that ends before its head does.
pub(super) fn closed_early() -> Fault {
    Fault::new(ErrorClass::Reset, "the connection was closed before the answer was complete")
}

fn head_too_large() -> Fault {
    Fault::new(ErrorClass::TooLarge, format!("the answer's head is larger than {MAX_HEAD_BYTES} bytes"))
}

fn not_http(part: &str, error: &ureq_proto::Error) -> Fault {
    Fault::new(ErrorClass::Reset, format!("the {part} is not valid HTTP: {error}"))
}
