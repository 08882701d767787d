//! HTTP/1.1 as far as a webhook's receiver needs it (RFC 9112).

use crate::Answer;

/// More headers than this are refused.
const MAX_HEADERS: usize = 100;

/// What the next bytes of a connection are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    /// The beginning of a request.
    Partial,
    /// A request: length of its head, length of head and body, whether the connection stays open after it.
    Whole { head: usize, total: usize, keep_alive: bool },
    /// No request; the status says why.
    Bad(u16),
}

/// Looks at the beginning of `input`.
pub(crate) fn parse(input: &[u8]) -> Parsed {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let head = match request.parse(input) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) => return Parsed::Partial,
        Err(_) => return Parsed::Bad(400),
    };
    let mut length = 0;
    let mut keep_alive = request.version == Some(1);
    for header in request.headers.iter() {
        let value = std::str::from_utf8(header.value).unwrap_or_default().trim();
        if header.name.eq_ignore_ascii_case("content-length") {
            match value.parse() {
                Ok(bytes) => length = bytes,
                Err(_) => return Parsed::Bad(400),
            }
        } else if header.name.eq_ignore_ascii_case("connection") {
            keep_alive = !value.eq_ignore_ascii_case("close");
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            // Webhooks say how long they are.
            return Parsed::Bad(411);
        }
    }
    match head.checked_add(length) {
        Some(total) if total <= input.len() => Parsed::Whole { head, total, keep_alive },
        Some(_) => Parsed::Partial,
        None => Parsed::Bad(413),
    }
}

/// Appends a whole response.
pub(crate) fn respond(output: &mut Vec<u8>, status: u16, headers: &[(String, String)], body: &[u8]) {
    if (status, headers, body) == (200, &[], &[]) {
        output.extend_from_slice(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        return;
    }
    output.extend_from_slice(format!("HTTP/1.1 {status} {}\r\n", reason(status)).as_bytes());
    for (name, value) in headers {
        output.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    output.extend_from_slice(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
    output.extend_from_slice(body);
}

/// The bytes of an answer that ends with the connection's end, if there are any.
pub(crate) fn fragment(answer: &Answer) -> &'static [u8] {
    match answer {
        Answer::Cut => b"HTTP/1.1 200 OK\r\ncontent-len",
        Answer::CutBody => b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nhalf of",
        Answer::Garbage => b"\x16\x03\x01 this is no HTTP\r\n\r\n",
        _ => b"",
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        202 => "Accepted",
        204 => "No Content",
        301 => "Moved Permanently",
        302 => "Found",
        400 => "Bad Request",
        404 => "Not Found",
        408 => "Request Timeout",
        410 => "Gone",
        411 => "Length Required",
        413 => "Content Too Large",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        _ => "Status",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_whole_once_its_body_is() {
        let bytes = b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi";
        for cut in 0..bytes.len() {
            assert_eq!(parse(&bytes[..cut]), Parsed::Partial, "{cut}");
        }
        assert_eq!(
            parse(bytes),
            Parsed::Whole { head: bytes.len() - 2, total: bytes.len(), keep_alive: true }
        );
    }

    #[test]
    fn close_and_the_older_version_end_the_connection() {
        for bytes in ["GET / HTTP/1.0\r\n\r\n", "GET / HTTP/1.1\r\nconnection: close\r\n\r\n"] {
            let head = bytes.len();
            assert_eq!(parse(bytes.as_bytes()), Parsed::Whole { head, total: head, keep_alive: false });
        }
    }

    #[test]
    fn what_is_no_request_is_refused() {
        assert_eq!(parse(b"\x16\x03\x01\x02"), Parsed::Bad(400));
        assert_eq!(parse(b"POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n"), Parsed::Bad(400));
        assert_eq!(parse(b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"), Parsed::Bad(411));
    }
}
