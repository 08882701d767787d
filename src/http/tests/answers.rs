//! Whatever an endpoint answers is judged, and harms nobody.

use std::sync::{Arc, LazyLock, Mutex};

use proptest::prelude::*;

use super::server::Server;
use super::*;
use crate::http::event_loop::answer::{Answer, Progress};

/// Answers each request with the bytes that were set last, and closes the connection.
static ENDPOINT: LazyLock<(Server, Arc<Mutex<Vec<u8>>>)> = LazyLock::new(|| {
    let answer = Arc::new(Mutex::new(Vec::new()));
    let next = Arc::clone(&answer);
    let server = Server::start(move |_, stream| stream.write_all(&next.lock().unwrap()).map(|()| false));
    (server, answer)
});

/// What comes of an answer of these bytes. One test at a time may ask.
fn judged(bytes: &[u8]) -> Result<Success, Failure> {
    static TURN: Mutex<Option<Sender>> = Mutex::new(None);
    let mut turn = TURN.lock().unwrap();
    let sender = turn.get_or_insert_with(|| sender(4));
    let (server, answer) = &*ENDPOINT;
    *answer.lock().unwrap() = bytes.to_vec();
    let result = deliver(sender, &endpoint(&server.url()));
    server.requests();
    result
}

fn any_header() -> impl Strategy<Value = String> {
    let name = prop::sample::select(
        &[
            "content-length",
            "Content-Length",
            "transfer-encoding",
            "retry-after",
            "location",
            "connection",
            "content-encoding",
            "set-cookie",
            "x",
            "",
            "bad name",
            "\u{7f}",
        ][..],
    );
    let value = prop_oneof![
        prop::sample::select(
            &[
                "0",
                "5",
                "-1",
                "+5",
                "5, 5",
                "0x5",
                "99999999999999999999",
                "chunked",
                "gzip, chunked",
                "chunked, chunked",
                "close",
                "keep-alive",
                "gzip",
                "Sun, 06 Nov 1994 08:49:37 GMT",
                "later",
                "120",
                "",
                "\t",
                "é\u{1}",
            ][..]
        )
        .prop_map(str::to_owned),
        "[ -~]{0,300}",
        "\\PC{0,20}",
    ];
    let end = prop::sample::select(&["\r\n", "\r\n", "\r\n", "\n", "\r", " \r\n\t", ""][..]);
    let colon = prop::sample::select(&[": ", ":", " : ", ""][..]);
    (name, colon, value, end).prop_map(|(name, colon, value, end)| format!("{name}{colon}{value}{end}"))
}

/// Something like an answer.
fn any_answer() -> impl Strategy<Value = Vec<u8>> {
    let version = prop::sample::select(
        &["HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/2", "HTTP", "http/1.1", "ICY", ""][..],
    );
    let status = prop_oneof![
        prop::sample::select(
            &[
                "200", "204", "304", "100", "101", "103", "301", "410", "429", "503", "099", "1000", "2xx",
                "-1", ""
            ][..]
        )
        .prop_map(str::to_owned),
        "[0-9]{3}",
    ];
    let body = prop_oneof![
        Just(Vec::new()),
        Just(b"5\r\nhello\r\n0\r\n\r\n".to_vec()),
        "[0-9a-f]{0,9}(;x)?\r\n.{0,9}\r\n0?\r\n(x: y\r\n)?\r\n".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..40),
        Just(vec![b'x'; 3000]),
    ];
    let headers = prop::collection::vec(any_header(), 0..6);
    let blank = prop::sample::select(&["\r\n", "\r\n", "\r\n", "\n", ""][..]);
    let damage = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3);
    let cut = prop::option::weighted(0.2, any::<prop::sample::Index>());
    (version, status, " ?.{0,12}", headers, blank, body, damage, cut).prop_map(
        |(version, status, reason, headers, blank, body, damage, cut)| {
            let mut bytes = format!("{version} {status}{reason}\r\n{}{blank}", headers.concat()).into_bytes();
            bytes.extend_from_slice(&body);
            for (place, value) in damage {
                let place = place.index(bytes.len());
                bytes[place] = value;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            bytes
        },
    )
}

proptest! {
    #![proptest_config(crate::proptest_config::config(300))]

    #[test]
    fn any_answer_is_judged(bytes in any_answer()) {
        match judged(&bytes) {
            Ok(success) => {
                prop_assert!((200..300).contains(&success.status));
                prop_assert!(bytes.starts_with(b"HTTP/1."), "{:?}", String::from_utf8_lossy(&bytes));
            }
            Err(failure) => {
                prop_assert!(!failure.message.is_empty());
                prop_assert!(!failure.response.contains('\0') && failure.response.len() <= 3000);
                prop_assert!(failure.class != ErrorClass::Timeout && failure.class != ErrorClass::Encode, "{:?}", failure);
            }
        }
    }

    #[test]
    fn an_answer_that_is_whole_is_what_it_says(
        // Those that may have a body.
        status in prop_oneof![200u16..204, 205u16..304, 305u16..600],
        body in prop::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 1..900),
        framing in 0..3,
        reason in "[ -~]{0,20}",
    ) {
        let mut bytes = format!("HTTP/1.1 {status} {reason}\r\n").into_bytes();
        match framing {
            0 => {
                bytes.extend_from_slice(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
                bytes.extend_from_slice(&body);
            }
            1 => {
                bytes.extend_from_slice(b"transfer-encoding: chunked\r\n\r\n");
                for piece in body.chunks(70) {
                    bytes.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                    bytes.extend_from_slice(piece);
                    bytes.extend_from_slice(b"\r\n");
                }
                bytes.extend_from_slice(b"0\r\n\r\n");
            }
            _ => {
                bytes.extend_from_slice(b"connection: close\r\n\r\n");
                bytes.extend_from_slice(&body);
            }
        }
        match judged(&bytes) {
            Ok(success) => prop_assert!(success.status == status && status < 300),
            Err(failure) => {
                prop_assert!(status >= 300, "{:?}", failure);
                prop_assert_eq!(failure.status, Some(status));
                prop_assert_eq!(failure.response, String::from_utf8_lossy(&body).replace('\0', ""));
            }
        }
    }
}

/// What is made of an answer that arrives in these pieces: how far it has come, and what it says if it is whole.
fn read(pieces: &[&[u8]]) -> (Result<Progress, String>, Option<Result<Success, Failure>>) {
    let mut answer = Answer::new(1000);
    let mut progress = Ok(Progress::Partial);
    for piece in pieces {
        progress = answer.feed(piece).map_err(|fault| fault.message);
        if progress.is_err() {
            return (progress, None);
        }
    }
    let judged = matches!(progress, Ok(Progress::Complete { .. })).then(|| answer.judge(None));
    (progress, judged)
}

/// Answers of which many are plain successes, and the others nearly so.
fn nearly_plain_answer() -> impl Strategy<Value = Vec<u8>> {
    let header = prop::sample::select(
        &[
            "content-length: 4\r\n",
            "Content-Length:4\r\n",
            "content-length:  04 \r\n",
            "content-length: +4\r\n",
            "content-length: 5\r\n",
            "content-length: 0\r\n",
            "Connection: keep-alive\r\n",
            "connection: Keep-Alive\r\n",
            "connection: close\r\n",
            "connection: keep-alive, close\r\n",
            "transfer-encoding: chunked\r\n",
            "date: Mon, 30 Nov 2026 20:00:00 GMT\r\n",
            "x-y: z\r\n",
        ][..],
    );
    let version = prop::sample::select(&["HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0"][..]);
    let status = prop::sample::select(&["200", "201", "204", "205", "299", "304", "103", "500"][..]);
    let body = prop::sample::select(&["body", "", "bod", "body\r\n", "0\r\n\r\n"][..]);
    (version, status, prop::collection::vec(header, 0..4), body).prop_map(
        |(version, status, headers, body)| {
            format!("{version} {status} OK\r\n{}\r\n{body}", headers.concat()).into_bytes()
        },
    )
}

proptest! {
    #![proptest_config(crate::proptest_config::config(2000))]

    /// One that arrives in pieces is never taken for a plain one.
    #[test]
    fn an_answer_is_the_same_whole_and_in_pieces(
        bytes in prop_oneof![1 => any_answer(), 3 => nearly_plain_answer()],
    ) {
        let begin = bytes.len().min(1);
        prop_assert_eq!(read(&[&bytes]), read(&[&bytes[..begin], &bytes[begin..]]));
    }
}
