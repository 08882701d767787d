//! What a sender meets when it talks to the receiver.

#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use receiver::{Answer, Options, Receiver, Reply, Request, Script};

const PATIENCE: Duration = Duration::from_secs(10);

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn post(body: &str) -> String {
    format!(
        "POST /hook HTTP/1.1\r\nhost: x\r\nwebhook-id: {body}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Reads one response with an empty body, or a `content-length` one.
fn response(stream: &mut TcpStream) -> String {
    let (mut text, mut byte) = (String::new(), [0]);
    while !text.ends_with("\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        text.push(byte[0] as char);
    }
    let length = text.split("content-length: ").nth(1).unwrap().split("\r\n").next().unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    stream.read_exact(&mut body).unwrap();
    text + &String::from_utf8(body).unwrap()
}

fn until_end(mut stream: TcpStream) -> std::io::Result<String> {
    let mut text = Vec::new();
    stream.read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn requests_are_recorded_in_order_with_their_bytes() {
    let receiver = Receiver::start().unwrap();
    let mut stream = connect(receiver.address());
    for body in ["one", "two", "three"] {
        stream.write_all(post(body).as_bytes()).unwrap();
        assert!(response(&mut stream).starts_with("HTTP/1.1 200 OK"));
    }
    let requests = receiver.wait_for(3, PATIENCE).unwrap();
    let bodies: Vec<_> = requests.iter().map(|request| request.body()).collect();
    assert_eq!(bodies, [b"one".as_slice(), b"two", b"three"]);
    assert_eq!((requests[0].method(), requests[0].path()), ("POST", "/hook"));
    assert_eq!(requests[2].header("Webhook-ID"), Some("three"));
    assert!(requests.iter().all(|request| request.connection() == 1), "keep-alive");
    assert_eq!(receiver.stats().connections, 1);
}

#[test]
fn pipelined_and_chopped_requests_are_told_apart() {
    let receiver = Receiver::start().unwrap();
    let mut stream = connect(receiver.address());
    let bytes: String = (0..100).map(|n| post(&n.to_string())).collect();
    for piece in bytes.as_bytes().chunks(777) {
        stream.write_all(piece).unwrap();
    }
    for _ in 0..100 {
        assert!(response(&mut stream).contains("200"));
    }
    let bodies: Vec<_> = receiver
        .requests()
        .iter()
        .map(|request| String::from_utf8_lossy(request.body()).into_owned())
        .collect();
    assert_eq!(bodies, (0..100).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[test]
fn a_body_of_megabytes_arrives_whole() {
    let receiver = Receiver::start().unwrap();
    let mut stream = connect(receiver.address());
    let body = "x".repeat(8 << 20);
    stream.write_all(post(&body).replace(&format!("webhook-id: {body}\r\n"), "").as_bytes()).unwrap();
    response(&mut stream);
    assert_eq!(receiver.requests()[0].body().len(), 8 << 20);
}

#[test]
fn a_late_reply_is_late_and_keeps_the_order_of_what_follows() {
    let receiver = Receiver::start().unwrap();
    let delay = Duration::from_millis(100);
    receiver.behave(move |request: &Request| match request.body() {
        b"slow" => Reply::status(202).after(delay),
        _ => Reply::status(204),
    });
    let mut stream = connect(receiver.address());
    let begin = Instant::now();
    stream.write_all((post("slow") + &post("quick")).as_bytes()).unwrap();
    assert!(response(&mut stream).contains("202"));
    assert!(begin.elapsed() >= delay);
    assert!(response(&mut stream).contains("204"));
}

#[test]
fn every_misbehaviour_looks_as_it_should() {
    let receiver = Receiver::start().unwrap();
    let meet = |answer: Answer| {
        receiver.behave(Script::always(answer));
        let mut stream = connect(receiver.address());
        stream.write_all(post("x").as_bytes()).unwrap();
        stream
    };
    assert_eq!(until_end(meet(Answer::Close)).unwrap(), "");
    assert_eq!(until_end(meet(Answer::Cut)).unwrap(), "HTTP/1.1 200 OK\r\ncontent-len");
    assert!(until_end(meet(Answer::CutBody)).unwrap().contains("content-length: 1000\r\n\r\nhalf"));
    assert!(!until_end(meet(Answer::Garbage)).unwrap().starts_with("HTTP"));
    assert_eq!(until_end(meet(Answer::Reset)).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);

    let mut hanging = meet(Answer::Hang);
    hanging.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert!(hanging.read(&mut [0]).is_err());

    let begin = Instant::now();
    let every = Duration::from_millis(2);
    let mut trickling = meet(Answer::Trickle { status: 200, every });
    let bytes = response(&mut trickling).len() as u32;
    assert!(begin.elapsed() >= every * (bytes - 1));
    receiver.behave(Script::default());
    trickling.write_all(post("again").as_bytes()).unwrap();
    assert!(response(&mut trickling).starts_with("HTTP/1.1 200 OK"));
}

#[test]
fn redirects_and_headers_are_sent_as_told() {
    let receiver = Receiver::start().unwrap();
    receiver
        .behave(|_: &Request| Reply::status(302).header("location", "/elsewhere").header("retry-after", 7));
    let mut stream = connect(receiver.address());
    stream.write_all(post("x").as_bytes()).unwrap();
    let text = response(&mut stream);
    assert!(text.contains("302 Found\r\nlocation: /elsewhere\r\nretry-after: 7\r\n"), "{text}");
    assert_eq!(receiver.stats().faults, 1);
}

#[test]
fn waiting_ends_at_the_deadline_and_says_what_came() {
    let receiver = Receiver::start().unwrap();
    let error = receiver.wait_for(1, Duration::from_millis(10)).unwrap_err();
    assert_eq!(error.to_string(), "waited 10ms for 1 requests; 0 requests came");
}

#[test]
fn a_stopped_receiver_refuses_and_its_successor_takes_the_port() {
    let receiver = Receiver::start().unwrap();
    let address = receiver.address();
    let mut stream = connect(address);
    stream.write_all(post("x").as_bytes()).unwrap();
    response(&mut stream);
    drop(receiver);
    assert_eq!(until_end(stream).unwrap(), "");
    assert_eq!(TcpStream::connect(address).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    let successor = Receiver::at(address).unwrap();
    connect(address).write_all(post("y").as_bytes()).unwrap();
    successor.wait_for(1, PATIENCE).unwrap();
}

#[test]
fn it_is_controlled_over_http() {
    let listen = ([127, 0, 0, 1], 0).into();
    let receiver = Receiver::with(Options { listen, keep: 10, control: true }).unwrap();
    let mut stream = connect(receiver.address());
    let mut ask = |method: &str, path: &str, body: &str| {
        let length = body.len();
        let text = format!("{method} {path} HTTP/1.1\r\ncontent-length: {length}\r\n\r\n{body}");
        stream.write_all(text.as_bytes()).unwrap();
        response(&mut stream)
    };
    assert!(
        ask("POST", "/_control", r#"{"status": 429, "fail_first": 1, "retry_after": 3}"#).contains("200")
    );
    assert!(ask("POST", "/hook", r#"{"n": 1}"#).contains("429 Too Many Requests\r\nretry-after: 3"));
    assert!(ask("POST", "/hook", r#"{"n": 2}"#).contains("200"));
    assert!(ask("GET", "/_events", "").contains(r#""body":{"n":2}"#));
    assert!(ask("GET", "/_stats", "").contains(r#""requests":2"#));
    assert!(ask("POST", "/_control", r#"{"oops": 1}"#).contains("unknown word: oops"));
    assert!(ask("DELETE", "/_events", "").contains("200"));
    assert_eq!(receiver.count(), 0);
}

#[test]
fn a_path_may_have_a_behaviour_of_its_own() {
    let receiver = Receiver::start().unwrap();
    receiver.behave_at("/hook", |_: &Request| Reply::status(503));
    let mut stream = connect(receiver.address());
    for (path, status) in [("/hook", "503"), ("/other", "200")] {
        stream.write_all(post("x").replace("/hook", path).as_bytes()).unwrap();
        assert!(response(&mut stream).contains(status), "{path}");
    }
}
