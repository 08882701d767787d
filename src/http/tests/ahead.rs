//! Requests that are handed over ahead of their turn.

use std::collections::{BTreeSet, HashSet};
use std::sync::Barrier;

use super::server::Server;
use super::*;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

fn limited(url: &str, max_in_flight: u32) -> Arc<Endpoint> {
    Arc::new(Endpoint::new(EndpointSettings { max_in_flight, ..settings(url) }).unwrap())
}

/// Hands requests over until each has been answered, as the dispatcher does with those that come back.
fn deliver_all(sender: &Sender, endpoint: &Arc<Endpoint>, count: u64) {
    let mut tickets: Vec<u64> = (1..=count).collect();
    while !tickets.is_empty() {
        tickets.iter().for_each(|ticket| sender.submit(job(*ticket, endpoint)));
        let outcomes = outcomes(sender, tickets.len());
        tickets.clear();
        for outcome in outcomes {
            match outcome.result {
                Ok(success) => assert_eq!(success.status, 200),
                Err(failure) => {
                    assert_eq!(failure.class, ErrorClass::HandedBack, "{failure:?}");
                    tickets.push(outcome.ticket);
                }
            }
        }
    }
}

#[test]
fn no_more_are_under_way_than_a_subscription_allows() {
    let (release, released) = crossbeam_channel::bounded::<()>(0);
    let server = Server::start(move |_, stream| {
        let _ = released.recv();
        stream.write_all(OK).map(|()| true)
    });
    let (sender, endpoint) = (sender(100), limited(&server.url(), 3));
    // None is answered before all have been handed over.
    (1000..1100).for_each(|ticket| sender.submit(job(ticket, &endpoint)));
    let mut requests: Vec<_> = (0..3).map(|_| server.request()).collect();
    drop(release);
    outcomes(&sender, 100);
    deliver_all(&sender, &endpoint, 500);
    requests.extend(server.requests());
    assert!(requests.len() >= 503);
    // A connection is made when all others are in use, and all are kept.
    let connections: BTreeSet<usize> = requests.iter().map(|request| request.connection).collect();
    assert_eq!(connections, BTreeSet::from([0, 1, 2]));
}

#[test]
fn requests_of_a_subscription_that_is_gone_free_their_room() {
    let (release, released) = crossbeam_channel::bounded::<()>(0);
    let hanging = Server::start(move |_, stream| {
        let _ = released.recv();
        stream.write_all(OK).map(|()| true)
    });
    let well = Server::answering(OK);
    let sender = sender(4);
    let gone = limited(&hanging.url(), u32::MAX);
    let stays =
        Arc::new(Endpoint::new(EndpointSettings { subscription_id: 43, ..settings(&well.url()) }).unwrap());
    // Four are under way, and four wait for room.
    (1..=8).for_each(|ticket| sender.submit(job(ticket, &gone)));
    (0..4).for_each(|_| drop(hanging.request()));
    sender.submit(job(9, &stays));
    sender.abandon(HashSet::from([42]));
    let outcomes = outcomes(&sender, 9);
    let (gone, stays) = outcomes.split_at(8);
    assert!(stays[0].result.is_ok(), "{:?}", stays[0].result);
    for outcome in gone {
        assert_eq!(outcome.result.as_ref().unwrap_err().class, ErrorClass::HandedBack);
    }
    drop(release);
    assert!(hanging.requests().is_empty(), "one was sent that had not begun");
}

#[test]
fn idle_connections_make_room_for_others() {
    let (release, released) = crossbeam_channel::bounded::<()>(0);
    let hanging = Server::start(move |_, stream| {
        let _ = released.recv();
        stream.write_all(OK).map(|()| true)
    });
    let together = Arc::new(Barrier::new(4));
    let well = Server::start(move |_, stream| {
        together.wait();
        stream.write_all(OK).map(|()| true)
    });
    let sender = Sender::start(SenderSettings { max_requests: 4, max_connections: 6 }).unwrap();
    let (hanging_endpoint, well_endpoint) = (endpoint(&hanging.url()), endpoint(&well.url()));
    (1..=4).for_each(|ticket| sender.submit(job(ticket, &well_endpoint)));
    assert!(outcomes(&sender, 4).iter().all(|outcome| outcome.result.is_ok()));
    assert_eq!(sender.idle_connections(), 4);
    (1..=4).for_each(|ticket| sender.submit(job(ticket, &hanging_endpoint)));
    (0..4).for_each(|_| drop(hanging.request()));
    let end = Instant::now() + Duration::from_secs(60);
    while sender.idle_connections() > 2 {
        assert!(Instant::now() < end, "more than six connections are open");
        std::thread::yield_now();
    }
    drop(release);
    assert!(outcomes(&sender, 4).iter().all(|outcome| outcome.result.is_ok()));
}

#[test]
fn one_at_a_time_goes_in_order_over_one_connection() {
    let server = Server::answering(OK);
    let sender = sender(100);
    deliver_all(&sender, &limited(&server.url(), 1), 100);
    let requests = server.requests();
    assert!(requests.iter().all(|request| request.connection == 0));
    let ids: Vec<_> = requests.iter().map(|request| request.header("webhook-id").unwrap()).collect();
    assert_eq!(ids.len(), 100);
    assert!(ids.is_sorted(), "{ids:?}");
}

#[test]
fn what_waits_behind_a_failure_is_handed_back_and_not_sent() {
    let server = Server::answering("HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n");
    let (sender, endpoint) = (sender(100), limited(&server.url(), 1));
    // Before the first can have failed.
    (1..=20).for_each(|ticket| sender.submit(job(ticket, &endpoint)));
    let outcomes = outcomes(&sender, 20);
    let classes: Vec<_> = outcomes.into_iter().map(|outcome| outcome.result.unwrap_err().class).collect();
    let sent = classes.iter().filter(|class| **class == ErrorClass::Http5xx).count();
    assert_eq!(classes[0], ErrorClass::Http5xx);
    assert!(classes.iter().all(|class| matches!(class, ErrorClass::Http5xx | ErrorClass::HandedBack)));
    assert_eq!(server.requests().len(), sent);
    assert!(sent < 20, "none was handed back");
}

#[test]
fn what_has_waited_too_long_is_handed_back_and_not_sent() {
    let (release, released) = crossbeam_channel::bounded::<()>(0);
    let server = Server::start(move |_, stream| {
        let _ = released.recv();
        stream.write_all(OK).map(|()| true)
    });
    let (sender, endpoint) = (sender(100), limited(&server.url(), 1));
    (1..=3).for_each(|ticket| sender.submit(job(ticket, &endpoint)));
    server.request();
    // The endpoint takes longer than any that is handed something ahead.
    std::thread::sleep(Duration::from_millis(100));
    drop(release);
    let results: Vec<_> = outcomes(&sender, 3).into_iter().map(|outcome| outcome.result).collect();
    assert_eq!(results[0].as_ref().unwrap().status, 200);
    assert!(
        results[1..].iter().all(|it| it.as_ref().is_err_and(|it| it.class == ErrorClass::HandedBack)),
        "{results:?}"
    );
    assert!(server.requests().is_empty());
    assert!(deliver(&sender, &endpoint).is_ok(), "the line is free again");
}

#[test]
fn what_waits_for_an_endpoint_that_is_replaced_is_handed_back() {
    let (release, released) = crossbeam_channel::bounded::<()>(0);
    let server = Server::start(move |_, stream| {
        let _ = released.recv();
        stream.write_all(OK).map(|()| true)
    });
    let (sender, before, after) = (sender(100), limited(&server.url(), 1), limited(&server.url(), 1));
    (1..=3).for_each(|ticket| sender.submit(job(ticket, &before)));
    server.request();
    before.retire();
    sender.submit(job(4, &after));
    drop(release);
    let outcomes = outcomes(&sender, 4);
    assert!(outcomes[0].result.is_ok());
    for outcome in &outcomes[1..3] {
        assert_eq!(outcome.result.as_ref().unwrap_err().class, ErrorClass::HandedBack);
    }
}
