//! Promises of sending as a whole, held against real sockets.

mod ahead;
mod answers;
mod delivery;
mod failures;
mod proxies;
mod server;
mod tls;
mod tls_servers;

use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::channel::Network;
use super::tls::TlsConfigs;
use super::*;
use crate::event::format::{Format, Shown, Source};
use crate::event::{Action, Event, Fingerprint, Lsn, Relation, TableName, Timestamp, Transaction};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

fn event(ordinal: u64) -> Arc<Event> {
    let committed_at = Timestamp(848_484_848_484_848);
    Arc::new(Event {
        transaction: Arc::new(Transaction {
            xid: 745,
            commit_lsn: Lsn(0x15A_8F50),
            committed_at,
            fingerprint: Fingerprint::of(7, 745, committed_at),
            origin: None,
        }),
        ordinal,
        lsn: Lsn(0x15A_8F00),
        action: Action::Truncate,
        annotations: None,
        relation: Arc::new(Relation {
            oid: 16_384,
            root_oid: 16_384,
            names: vec![TableName { schema: "public".to_owned(), table: "orders".to_owned() }],
            columns: Vec::new(),
            key: Default::default(),
            version: 1,
        }),
        new: None,
        old: None,
    })
}

pub(super) fn settings(url: &str) -> EndpointSettings {
    EndpointSettings {
        subscription_id: 42,
        subscription: "orders-to-billing".to_owned(),
        source: Arc::new(Source { database: "shop".to_owned(), ..Source::default() }),
        url: url.to_owned(),
        headers: Vec::new(),
        timeout: Duration::from_secs(30),
        secrets: vec![SECRET.to_owned()],
        previous_secret: None,
        client_certificate: None,
        max_in_flight: u32::MAX,
        format: Format::Pgwh,
        columns: Shown::All,
        batched: false,
        compress: false,
        max_response_size: 1000,
        guard: Arc::new(Guard::parse("127.0.0.0/8").unwrap()),
        proxy: None,
    }
}

fn endpoint(url: &str) -> Arc<Endpoint> {
    Arc::new(Endpoint::new(settings(url)).unwrap())
}

/// An endpoint that gives up soon.
fn impatient(url: &str) -> Arc<Endpoint> {
    Arc::new(
        Endpoint::new(EndpointSettings { timeout: Duration::from_millis(300), ..settings(url) }).unwrap(),
    )
}

fn job(ticket: u64, endpoint: &Arc<Endpoint>) -> Job {
    let (endpoint, events) = (endpoint.clone(), vec![(event(ticket), 0)]);
    Job { ticket, endpoint, events, attempt: 1, replay: None, prepared: None }
}

fn limits(max_requests: usize) -> SenderSettings {
    SenderSettings { max_requests, max_connections: 2 * max_requests }
}

fn sender(max_requests: usize) -> Sender {
    Sender::start(limits(max_requests)).unwrap()
}

fn sender_with(network: Network) -> Sender {
    Sender::with_network(limits(4), network).unwrap()
}

/// A sender that trusts these certificates instead of the system's.
fn sender_trusting(roots: rustls::RootCertStore) -> Sender {
    sender_with(Network { tls: TlsConfigs::trusting(roots), ..Network::default() })
}

/// Waits for so many outcomes as the dispatcher does; in the order of their tickets.
fn outcomes(sender: &Sender, count: usize) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    let end = Instant::now() + Duration::from_secs(60);
    while outcomes.len() < count {
        assert!(Instant::now() < end, "only {} of {count} outcomes came", outcomes.len());
        if !sender.arm() {
            assert!(is_ringing(sender, 60_000), "the sender did not ring");
        }
        sender.disarm();
        sender.outcomes(&mut outcomes);
    }
    outcomes.sort_by_key(|outcome| outcome.ticket);
    outcomes
}

fn is_ringing(sender: &Sender, milliseconds: u16) -> bool {
    poll(&mut [PollFd::new(sender.wake_fd(), PollFlags::POLLIN)], PollTimeout::from(milliseconds)).unwrap()
        == 1
}

/// Sends one request through a sender and returns what came of it.
fn deliver(sender: &Sender, endpoint: &Arc<Endpoint>) -> Result<Success, Failure> {
    sender.submit(job(1, endpoint));
    outcomes(sender, 1).remove(0).result
}
