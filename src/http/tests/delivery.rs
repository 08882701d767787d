use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_channel::{bounded, unbounded};

use super::server::Server;
use super::*;
use crate::http::signature;
use crate::http::signature::SigningKey;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// As nginx does by `keepalive_timeout 1`, and Node's server after 5 s, in a shorter time.
#[test]
fn a_server_that_soon_closes_idle_connections_costs_no_attempt() {
    const CONNECTIONS: usize = 50;
    for idle in [60, 180] {
        let server = Server::closing_after(
            Duration::from_millis(idle),
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        );
        let (sender, endpoint) = (sender(CONNECTIONS), endpoint(&server.url()));
        // Pauses from well before the end of the server's patience to well after it.
        for pause in (0..20).map(|step| idle * (90 + step) / 100) {
            (0..CONNECTIONS as u64).for_each(|ticket| sender.submit(job(ticket, &endpoint)));
            for outcome in outcomes(&sender, CONNECTIONS) {
                assert_eq!(outcome.result, Ok(Success { status: 200, flaw: None }), "a pause of {pause} ms");
            }
            std::thread::sleep(Duration::from_millis(pause));
        }
    }
}

#[test]
fn a_request_says_who_sends_what_and_proves_it() {
    let server = Server::answering(OK);
    let headers =
        vec![("X-Api-Key".to_owned(), "k".to_owned()), ("accept".to_owned(), "text/plain".to_owned())];
    let url = format!("{}?tenant=7", server.url());
    let endpoint = Arc::new(Endpoint::new(EndpointSettings { headers, ..settings(&url) }).unwrap());
    let sender = sender(1);
    sender.submit(Job { attempt: 3, replay: Some(9), ..job(5, &endpoint) });
    let outcome = outcomes(&sender, 1).remove(0);
    assert_eq!((outcome.ticket, outcome.result), (5, Ok(Success { status: 200, flaw: None })));

    let request = server.request();
    assert_eq!(request.head[0], "POST /hook?tenant=7 HTTP/1.1");
    let id = format!("{}_42", event(5).id());
    let timestamp = outcome.started_at.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs().to_string();
    let key = SigningKey::parse(SECRET).unwrap();
    let signature = signature::sign(&[key], &id, timestamp.parse().unwrap(), &request.body);
    for (name, value) in [
        ("host", server.address.to_string().as_str()),
        ("content-type", "application/json"),
        ("content-length", request.body.len().to_string().as_str()),
        ("user-agent", concat!("pgstream_hooks/", env!("CARGO_PKG_VERSION"))),
        ("webhook-id", &id),
        ("webhook-timestamp", &timestamp),
        ("webhook-signature", &signature),
        ("idempotency-key", &id),
        ("webhook-attempt", "3"),
        ("webhook-replay", "9"),
        ("x-api-key", "k"),
        ("accept", "text/plain"),
    ] {
        assert_eq!(request.header(name), Some(value), "{name}");
    }
    assert_eq!(request.head.len(), 13, "{:?}", request.head);
    let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
    assert_eq!(body["data"]["id"], event(5).id().to_string());
    assert_eq!(body["data"]["subscription"], "orders-to-billing");

    sender.submit(job(6, &endpoint));
    outcomes(&sender, 1);
    assert_eq!(server.request().header("webhook-replay"), None, "it is no replay");
}

#[test]
fn a_subscription_that_takes_batches_always_gets_a_list() {
    let server = Server::answering(OK);
    let sender = sender(1);
    let settings = settings(&server.url());
    let batched = Arc::new(Endpoint::new(EndpointSettings { batched: true, ..settings.clone() }).unwrap());
    // One that was under way when its subscription was changed to take none is still whole.
    let unbatched = Arc::new(Endpoint::new(settings).unwrap());
    for (endpoint, ordinals) in [(&batched, 1..2), (&batched, 1..101), (&unbatched, 1..3)] {
        let events = ordinals.clone().map(|ordinal| (event(ordinal), 0)).collect();
        sender.submit(Job { events, ..job(1, endpoint) });
        outcomes(&sender, 1);
        let body: serde_json::Value = serde_json::from_slice(&server.request().body).unwrap();
        let ids: Vec<_> = body.as_array().unwrap().iter().map(|event| event["data"]["id"].clone()).collect();
        assert_eq!(ids, ordinals.map(|ordinal| event(ordinal).id().to_string()).collect::<Vec<_>>());
    }
}

#[test]
fn the_id_of_a_batch_is_that_of_its_members_and_its_subscription() {
    let server = Server::answering(OK);
    let sender = sender(1);
    let endpoint = endpoint(&server.url());
    for ordinals in [&[1, 2], &[1, 2], &[1, 3]] {
        let events = ordinals.iter().map(|ordinal| (event(*ordinal), 0)).collect();
        sender.submit(Job { events, ..job(1, &endpoint) });
    }
    outcomes(&sender, 3);
    let ids: Vec<_> =
        server.requests().iter().map(|request| request.header("webhook-id").unwrap().to_owned()).collect();
    assert_eq!(ids[0], ids[1]);
    assert_ne!(ids[0], ids[2]);
    assert!(ids[0].ends_with("_42"));
    assert!(ids[0].bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'));
}

#[test]
fn a_large_body_arrives_whole() {
    let server = Server::answering(OK);
    let name = "x".repeat(3_000_000);
    let settings = EndpointSettings { subscription: name.clone(), ..settings(&server.url()) };
    deliver(&sender(1), &Arc::new(Endpoint::new(settings).unwrap())).unwrap();
    let body: serde_json::Value = serde_json::from_slice(&server.request().body).unwrap();
    assert_eq!(body["data"]["subscription"], name);
}

#[test]
fn one_connection_serves_many_requests() {
    for answer in [
        OK,
        "HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 500 Oops\r\ncontent-length: 4\r\n\r\noops",
        "HTTP/1.1 302 Found\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
    ] {
        let server = Server::answering(answer);
        let (sender, endpoint) = (sender(1), endpoint(&server.url()));
        for ticket in 0..5 {
            sender.submit(job(ticket, &endpoint));
        }
        outcomes(&sender, 5);
        assert!(server.requests().iter().all(|request| request.connection == 0), "{answer}");
    }
}

#[test]
fn an_answer_somewhat_larger_than_is_kept_costs_no_connection_and_an_endless_one_does() {
    let sized =
        |length: usize| format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{}", "x".repeat(length));
    for (length, connections) in [(1_000, 1), (10_000, 1), (1_000_000, 2)] {
        let server = Server::answering(sized(length));
        let (sender, endpoint) = (sender(1), endpoint(&server.url()));
        deliver(&sender, &endpoint).unwrap();
        deliver(&sender, &endpoint).unwrap();
        assert_eq!(server.requests().last().unwrap().connection + 1, connections, "{length}");
    }
}

#[test]
fn a_connection_that_the_server_closed_is_replaced_without_a_failure() {
    for idle in [Duration::ZERO, Duration::from_millis(150)] {
        let (closed, closes) = unbounded();
        let server = Server::start(move |_, stream| {
            // Promises to keep the connection, and closes it.
            stream.write_all(OK.as_bytes())?;
            closed.send(()).unwrap();
            Ok(false)
        });
        let (sender, endpoint) = (sender(1), endpoint(&server.url()));
        for expected in 0..5 {
            assert_eq!(deliver(&sender, &endpoint), Ok(Success { status: 200, flaw: None }));
            assert_eq!(server.request().connection, expected);
            closes.recv().unwrap();
            std::thread::sleep(idle);
        }
    }
}

#[test]
fn connections_are_not_kept_past_their_number() {
    let servers: Vec<_> = (0..6).map(|_| Server::answering(OK)).collect();
    let sender = sender(3);
    for server in servers.iter().chain(&servers) {
        deliver(&sender, &endpoint(&server.url())).unwrap();
        assert!(sender.idle_connections() <= 3);
    }
    assert!(sender.idle_connections() > 0);
}

#[test]
fn hundreds_that_hang_take_no_more_sockets_than_are_allowed() {
    let (release, released) = bounded::<()>(0);
    let (open, most_open) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let seen = (open.clone(), most_open.clone());
    let server = Server::start(move |_, stream| {
        seen.1.fetch_max(seen.0.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let _ = released.recv();
        seen.0.fetch_sub(1, Ordering::SeqCst);
        stream.write_all(OK.as_bytes()).map(|()| true)
    });
    let await_hanging = |count| {
        let end = Instant::now() + Duration::from_secs(60);
        while open.load(Ordering::SeqCst) != count {
            assert!(Instant::now() < end, "{} hang, not {count}", open.load(Ordering::SeqCst));
            std::thread::yield_now();
        }
    };
    let (sender, endpoint) = (sender(8), endpoint(&server.url()));
    (0..300).for_each(|ticket| sender.submit(job(ticket, &endpoint)));
    await_hanging(8);
    // More may be allowed meanwhile.
    sender.set_limits(limits(12));
    (300..310).for_each(|ticket| sender.submit(job(ticket, &endpoint)));
    await_hanging(12);
    drop(release);
    assert!(outcomes(&sender, 310).iter().all(|outcome| outcome.result.is_ok()));
    assert_eq!(most_open.load(Ordering::SeqCst), 12);
    assert!(server.requests().iter().all(|request| request.connection < 12));
}

#[test]
fn requests_to_a_slow_endpoint_leave_room_for_others() {
    let (release, released) = bounded::<()>(0);
    let slow = Server::start(move |_, stream| {
        let _ = released.recv();
        stream.write_all(OK.as_bytes()).map(|()| true)
    });
    let fast = Server::answering(OK);
    let sender = sender(8);
    let (slow_endpoint, fast_endpoint) = (endpoint(&slow.url()), endpoint(&fast.url()));
    for ticket in 100..107 {
        sender.submit(job(ticket, &slow_endpoint));
    }
    for ticket in 0..20 {
        sender.submit(job(ticket, &fast_endpoint));
    }
    assert!(outcomes(&sender, 20).iter().all(|outcome| outcome.ticket < 20));
    drop(release);
    assert_eq!(outcomes(&sender, 7).len(), 7);
}

#[test]
fn the_dispatcher_is_woken_only_when_it_asked() {
    let server = Server::answering(OK);
    let (sender, endpoint) = (sender(1), endpoint(&server.url()));
    let mut seen = Vec::new();
    sender.submit(job(1, &endpoint));
    while seen.is_empty() {
        sender.outcomes(&mut seen);
    }
    assert!(!is_ringing(&sender, 0));

    assert!(!sender.arm());
    sender.submit(job(2, &endpoint));
    assert!(is_ringing(&sender, 60_000));
    assert!(sender.arm(), "an outcome waits");
    sender.disarm();
    assert!(!is_ringing(&sender, 0));
    sender.outcomes(&mut seen);
    assert_eq!(seen.iter().map(|outcome| outcome.ticket).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn dropping_the_sender_waits_for_no_request() {
    let (_hold, held) = bounded::<()>(0);
    let server = Server::start(move |_, _| {
        let _ = held.recv();
        Ok(false)
    });
    let sender = sender(1);
    sender.submit(job(1, &endpoint(&server.url())));
    server.request();
    let dropped = Instant::now();
    drop(sender);
    assert!(dropped.elapsed() < Duration::from_secs(5));
}
