use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::thread;

use nix::sys::socket::{setsockopt, sockopt};

use super::server::Server;
use super::*;

fn failure(url: &str) -> Failure {
    deliver(&sender(1), &endpoint(url)).unwrap_err()
}

/// What comes of an answer of these bytes, after which the connection closes.
fn failure_of(answer: &[u8]) -> Failure {
    let answer = answer.to_vec();
    let server = Server::start(move |_, stream| stream.write_all(&answer).map(|()| false));
    failure(&server.url())
}

#[test]
fn an_event_loop_that_ends_wakes_the_dispatcher() {
    let sender = sender(1);
    assert!(!sender.has_ended());
    sender.set_limits(SenderSettings { max_requests: crate::http::channel::PANIC, max_connections: 0 });
    assert!(is_ringing(&sender, 60_000));
    assert!(sender.has_ended());
}

#[test]
fn a_status_other_than_2xx_is_a_failure_with_the_answer() {
    for (answer, class, retry_after) in [
        ("400 Bad Request\r\n", ErrorClass::Http4xx, None),
        ("410 Gone\r\n", ErrorClass::Http4xx, None),
        ("429 Too Many Requests\r\nretry-after: 7\r\n", ErrorClass::Http4xx, Some(7)),
        ("429 Too Many Requests\r\nretry-after: later\r\n", ErrorClass::Http4xx, None),
        ("500 Oops\r\n", ErrorClass::Http5xx, None),
        ("503 Busy\r\nRetry-After: 999999999\r\n", ErrorClass::Http5xx, Some(86_400)),
        ("503 Busy\r\nretry-after: Sun, 06 Nov 1994 08:49:37 GMT\r\n", ErrorClass::Http5xx, Some(0)),
        ("599 Odd\r\n", ErrorClass::Http5xx, None),
    ] {
        let failure = failure_of(format!("HTTP/1.1 {answer}content-length: 4\r\n\r\nwhy!").as_bytes());
        assert_eq!(failure.class, class, "{answer}");
        assert_eq!(failure.status.unwrap().to_string(), answer[..3]);
        assert_eq!(failure.retry_after, retry_after.map(Duration::from_secs), "{answer}");
        assert_eq!(failure.response, "why!");
        assert!(failure.message.starts_with(&answer[..3]));
    }
}

#[test]
fn an_answer_says_what_is_wrong_with_the_endpoint_or_the_request() {
    for (answer, kind) in [
        ("301 Moved\r\n", FailureKind::Other),
        ("400 Bad Request\r\n", FailureKind::Content),
        ("404 Not Found\r\n", FailureKind::Content),
        ("422 Odd\r\nretry-after: 7\r\n", FailureKind::Content),
        ("408 Too Slow\r\n", FailureKind::Other),
        ("410 Gone\r\n", FailureKind::Gone),
        ("429 Too Many Requests\r\n", FailureKind::Busy),
        ("500 Oops\r\n", FailureKind::Other),
        ("503 Busy\r\nretry-after: 7\r\n", FailureKind::Busy),
        ("503 Busy\r\nretry-after: later\r\n", FailureKind::Other),
    ] {
        let failure = failure_of(format!("HTTP/1.1 {answer}\r\n").as_bytes());
        assert_eq!(failure.kind(), kind, "{answer}");
    }
    for class in
        [ErrorClass::Dns, ErrorClass::Connect, ErrorClass::Tls, ErrorClass::Timeout, ErrorClass::Reset]
    {
        assert_eq!(Failure::unanswered(class, "").kind(), FailureKind::Connection);
    }
    for class in [ErrorClass::Blocked, ErrorClass::TooLarge, ErrorClass::Encode] {
        assert_eq!(Failure::unanswered(class, "").kind(), FailureKind::Other);
    }
}

#[test]
fn an_answer_is_kept_as_text_that_a_database_can_store() {
    let failure = failure_of(b"HTTP/1.1 500 Oops\r\ncontent-length: 9\r\n\r\n\xc3\xa9\0\xffok\xc3\n");
    assert_eq!(failure.response, "\u{e9}\u{fffd}ok\u{fffd}\n");
}

#[test]
fn a_redirect_is_a_failure_and_not_followed() {
    for status in [301, 302, 303, 307, 308] {
        let server = Server::answering(format!(
            "HTTP/1.1 {status} Moved\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n"
        ));
        let failure = failure(&server.url());
        assert_eq!((failure.class, failure.status), (ErrorClass::Http3xx, Some(status)));
        assert!(failure.message.contains("/elsewhere"), "{}", failure.message);
        assert_eq!(server.requests().len(), 1);
    }
}

#[test]
fn what_is_not_http_is_a_broken_connection() {
    for answer in [
        "SSH-2.0-OpenSSH_9.2\r\n\r\n",
        "HTTP/1.1 twohundred OK\r\n\r\n",
        "HTTP/9.9 200 OK\r\n\r\n",
        "\r\n\r\n\r\n",
        "HTTP/1.1 200 OK\r\n: nameless\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx-half: ",
        "",
    ] {
        assert_eq!(failure_of(answer.as_bytes()).class, ErrorClass::Reset, "{answer:?}");
    }
}

#[test]
fn the_head_of_a_success_decides_whatever_comes_after_it() {
    for (body, flaw) in [
        ("content-length: 100\r\n\r\ntoo short", "closed before the answer was complete"),
        ("transfer-encoding: chunked\r\n\r\nzz\r\n", "not valid HTTP"),
        ("transfer-encoding: chunked\r\n\r\n5\r\nhel", "closed before the answer was complete"),
        ("content-encoding: gzip\r\ncontent-length: 3\r\n\r\nxyz", ""),
        ("content-encoding: unheard-of\r\ncontent-length: 3\r\n\r\nxyz", ""),
    ] {
        let answer = format!("HTTP/1.1 201 Created\r\n{body}");
        let server = Server::start(move |_, stream| stream.write_all(answer.as_bytes()).map(|()| false));
        let (sender, endpoint) = (sender(1), endpoint(&server.url()));
        for _ in 0..2 {
            let success = deliver(&sender, &endpoint).unwrap();
            assert_eq!(success.status, 201);
            let found = success.flaw.unwrap_or_default();
            assert!(found.contains(flaw) && found.is_empty() == flaw.is_empty(), "{body:?}: {found}");
        }
        assert_eq!(server.requests().len(), 2, "each was sent once");
    }
}

#[test]
fn a_success_whose_body_never_ends_is_a_success_soon() {
    let server = Server::start(move |_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n")?;
        loop {
            stream.write_all(b"x")?;
            thread::sleep(Duration::from_millis(20));
        }
    });
    let sender = sender(1);
    sender.submit(job(1, &endpoint(&server.url())));
    let outcome = outcomes(&sender, 1).remove(0);
    assert!(outcome.result.unwrap().flaw.unwrap().contains("did not end"));
    // The endpoint's timeout is 30 s.
    assert!(outcome.duration < Duration::from_secs(15), "{:?}", outcome.duration);
}

/// Has the system drop all that arrives on a socket, as if something on the way had forgotten the connection.
fn forget(socket: &TcpStream) {
    const RETURN: u16 = 0x06;
    let drop_all = socket2::SockFilter::new(RETURN, 0, 0, 0);
    socket2::SockRef::from(socket).attach_filter(&[drop_all]).unwrap();
}

#[test]
fn a_kept_connection_that_was_forgotten_costs_seconds_and_no_attempt() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let (accepted, sockets) = crossbeam_channel::unbounded();
    thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.unwrap();
            accepted.send(socket.try_clone().unwrap()).unwrap();
            thread::spawn(move || {
                let mut request = [0; 4096];
                while socket.read(&mut request).unwrap_or(0) > 0 {
                    thread::sleep(Duration::from_millis(100));
                    socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
                }
            });
        }
    });
    let (sender, endpoint) = (sender(3), endpoint(&url));
    (1..=3).for_each(|ticket| sender.submit(job(ticket, &endpoint)));
    assert!(outcomes(&sender, 3).iter().all(|outcome| outcome.result.is_ok()));
    assert_eq!(sender.idle_connections(), 3);
    for _ in 0..3 {
        forget(&sockets.recv().unwrap());
    }
    sender.submit(job(4, &endpoint));
    let outcome = outcomes(&sender, 1).remove(0);
    assert_eq!(outcome.result, Ok(Success { status: 200, flaw: None }));
    assert!(outcome.duration < Duration::from_secs(10), "{:?}", outcome.duration);
    assert_eq!(sender.idle_connections(), 1, "the others were forgotten, too");
}

#[test]
fn an_endpoint_that_takes_its_time_is_asked_once() {
    let server = Server::start(|request, stream| {
        if request.header("webhook-attempt") == Some("2") {
            thread::sleep(Duration::from_millis(2500));
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").map(|()| true)
    });
    let (sender, endpoint) = (sender(1), endpoint(&server.url()));
    deliver(&sender, &endpoint).unwrap();
    sender.submit(Job { attempt: 2, ..job(2, &endpoint) });
    outcomes(&sender, 1).remove(0).result.unwrap();
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn an_address_that_does_not_answer_delays_a_request_little() {
    let server = Server::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    let port = server.address.port();
    // A listener whose queue is full drops what asks for a connection.
    let silent = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    silent.bind(&SocketAddr::from(([127, 0, 0, 2], port)).into()).unwrap();
    silent.listen(0).unwrap();
    let _filling = TcpStream::connect(("127.0.0.2", port)).unwrap();
    let lookup = Arc::new(|_: &str| Ok(vec!["127.0.0.2".parse().unwrap(), "127.0.0.1".parse().unwrap()]));
    let sender = sender_with(Network { lookup, ..Network::default() });
    sender.submit(job(1, &endpoint(&format!("http://two.example:{port}/"))));
    let outcome = outcomes(&sender, 1).remove(0);
    assert!(outcome.result.is_ok(), "{:?}", outcome.result);
    // Half of the timeout would be 15 s.
    assert!(outcome.duration < Duration::from_secs(8), "{:?}", outcome.duration);
}

#[test]
fn a_reset_is_a_broken_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.unwrap();
            socket.read_exact(&mut [0]).unwrap();
            let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
            setsockopt(&socket.as_fd(), sockopt::Linger, &linger).unwrap();
        }
    });
    assert_eq!(failure(&url).class, ErrorClass::Reset);
}

#[test]
fn a_closed_port_is_a_failure_to_connect() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let failure = failure(&format!("http://{address}/"));
    assert_eq!(failure.class, ErrorClass::Connect);
    assert!(failure.message.contains(&address.to_string()), "{}", failure.message);
}

#[test]
fn a_name_that_does_not_exist_is_a_dns_failure() {
    // RFC 2606: there is no such domain.
    let failure = failure("https://endpoint.invalid/");
    assert_eq!(failure.class, ErrorClass::Dns);
    assert!(failure.message.contains("endpoint.invalid"));
}

#[test]
fn the_guard_judges_what_is_dialled_and_what_was_kept() {
    let server = Server::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    let sender = sender(1);
    assert!(deliver(&sender, &endpoint(&server.url())).is_ok());
    let url = server.url();
    let by_name = url.replace("127.0.0.1", "localhost");
    for url in [url, by_name] {
        let guard = Arc::new(Guard::default());
        let closed = Arc::new(Endpoint::new(EndpointSettings { guard, ..settings(&url) }).unwrap());
        let failure = deliver(&sender, &closed).unwrap_err();
        assert_eq!(failure.class, ErrorClass::Blocked);
        assert!(failure.message.contains("ALTER SYSTEM SET pgwh.allowed_networks"), "{}", failure.message);
    }
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn the_timeout_is_for_the_whole_request() {
    let trickle = |before: &'static str| {
        Server::start(move |_, stream| {
            stream.write_all(before.as_bytes())?;
            loop {
                stream.write_all(b"x")?;
                stream.flush()?;
                thread::sleep(Duration::from_millis(20));
            }
        })
    };
    for before in ["", "HTTP/1.1 200 OK\r\nx-slow: "] {
        let server = trickle(before);
        let sender = sender(1);
        sender.submit(job(1, &impatient(&server.url())));
        let outcome = outcomes(&sender, 1).remove(0);
        let failure = outcome.result.unwrap_err();
        // A byte that is no HTTP may be noticed before the time is over.
        if !before.is_empty() {
            assert_eq!(failure.class, ErrorClass::Timeout, "{before:?}: {}", failure.message);
            assert!(outcome.duration >= Duration::from_millis(300), "{:?}", outcome.duration);
        }
        assert!(outcome.duration < Duration::from_secs(3), "{:?}", outcome.duration);
    }
}

#[test]
fn an_endpoint_that_never_answers_or_never_reads_times_out() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let sender = sender(1);
    assert_eq!(deliver(&sender, &impatient(&url)).unwrap_err().class, ErrorClass::Timeout);
    let subscription = "x".repeat(20_000_000);
    let timeout = Duration::from_millis(300);
    let large = EndpointSettings { subscription, timeout, ..settings(&url) };
    let failure = deliver(&sender, &Arc::new(Endpoint::new(large).unwrap())).unwrap_err();
    assert_eq!(failure.class, ErrorClass::Timeout);
    assert!(failure.message.contains("sending"), "{}", failure.message);
}

#[test]
fn endless_answers_are_bounded() {
    let endless = |before: &'static str, again: &'static str| {
        Server::start(move |_, stream| {
            stream.write_all(before.as_bytes())?;
            loop {
                stream.write_all(again.as_bytes())?;
            }
        })
    };
    let sender = sender(1);
    for (before, again, class) in [
        ("HTTP/1.1 200 OK\r\nx: ", "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", Some(ErrorClass::TooLarge)),
        ("HTTP/1.1 200 OK\r\n", "x: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n", Some(ErrorClass::Reset)),
        ("HTTP/1.1 200 OK\r\n\r\n", "body without an end", None),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", "4\r\nbody\r\n", None),
    ] {
        let server = endless(before, again);
        let result = deliver(&sender, &endpoint(&server.url()));
        assert_eq!(result.as_ref().err().map(|failure| failure.class), class, "{before:?}: {result:?}");
    }
    let server = endless("HTTP/1.1 500 Oops\r\n\r\n", "body without an end");
    assert_eq!(deliver(&sender, &endpoint(&server.url())).unwrap_err().response.len(), 1000);
}

#[test]
fn an_answer_that_comes_before_the_request_was_read_counts() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.unwrap();
            socket.write_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n").unwrap();
            socket.shutdown(Shutdown::Write).unwrap();
            // Reads on, so that the answer isn't overtaken by a reset.
            let _ = std::io::copy(&mut socket, &mut std::io::sink());
        }
    });
    let large = EndpointSettings { subscription: "x".repeat(3_000_000), ..settings(&url) };
    let failure = deliver(&sender(1), &Arc::new(Endpoint::new(large).unwrap())).unwrap_err();
    assert_eq!((failure.class, failure.status), (ErrorClass::Http4xx, Some(413)));
}

#[test]
fn a_panic_while_sending_is_the_outcome_of_that_attempt() {
    let server = Server::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    let (sender, endpoint) = (sender(1), endpoint(&server.url()));
    sender.submit(Job { attempt: crate::http::request::PANIC, ..job(1, &endpoint) });
    sender.submit(job(2, &endpoint));
    let outcomes = outcomes(&sender, 2);
    let failure = outcomes[0].result.as_ref().unwrap_err();
    assert_eq!(failure.class, ErrorClass::Encode);
    assert!(failure.message.contains("for a test"), "{}", failure.message);
    assert!(outcomes[1].result.is_ok());
}

#[test]
fn what_a_name_stands_for_is_judged_when_it_is_dialled() {
    let server = Server::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    let port = server.address.port();
    let lookup = Arc::new(|name: &str| {
        Ok(match name {
            // Private and open addresses together: only the open one is dialled.
            "mixed.example" => vec!["192.168.0.1".parse().unwrap(), "127.0.0.1".parse().unwrap()],
            // Another address than when it was subscribed, on which somebody listens, too.
            _ => vec!["127.0.0.2".parse().unwrap(), "::ffff:127.0.0.3".parse().unwrap()],
        })
    });
    let sender = sender_with(Network { lookup, ..Network::default() });
    let guard = Arc::new(Guard::parse("127.0.0.1").unwrap());
    let to = |name: &str| {
        let url = format!("http://{name}:{port}/");
        Arc::new(Endpoint::new(EndpointSettings { guard: guard.clone(), ..settings(&url) }).unwrap())
    };
    assert_eq!(deliver(&sender, &to("mixed.example")), Ok(Success { status: 200, flaw: None }));
    let failure = deliver(&sender, &to("rebound.example")).unwrap_err();
    assert_eq!(failure.class, ErrorClass::Blocked);
    for word in
        ["127.0.0.2", "loopback", "ALTER SYSTEM SET pgwh.allowed_networks = '127.0.0.1/32, 127.0.0.2/32'"]
    {
        assert!(failure.message.contains(word), "{}", failure.message);
    }
}
