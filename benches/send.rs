//! How many requests a second the sender makes, and how many events they bring.
//!
//!     cargo bench --bench send -- http://127.0.0.1:9000/ [requests] [in flight] [events a request] [ahead]
//!
//! The requests ahead are handed over beyond those in flight. It
//! wants a receiver listening there, such as `receiver --quiet`. Like the dispatcher, it keeps a window of requests
//! in flight and sleeps when there is nothing to collect.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pgstream_hooks::event::format::{Format, Shown, Source};
use pgstream_hooks::event::{
    Action, Cell, Column, Event, Fingerprint, Kind, Lsn, Relation, Row, TableName, Timestamp, Transaction,
};
use pgstream_hooks::http::{Endpoint, EndpointSettings, Guard, Job, Sender, SenderSettings, signature};

fn main() -> Result<(), Box<dyn Error>> {
    // `cargo bench` adds an option of its own.
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let Some(url) = arguments.next() else {
        println!("send: no address of a receiver given, nothing measured");
        return Ok(());
    };
    let requests: u64 = arguments.next().map_or(Ok(300_000), |count| count.parse())?;
    let in_flight: usize = arguments.next().map_or(Ok(16), |count| count.parse())?;
    let batch: u64 = arguments.next().map_or(Ok(1), |count| count.parse())?;
    let ahead: u64 = arguments.next().map_or(Ok(0), |count| count.parse())?;

    let endpoint = Arc::new(Endpoint::new(EndpointSettings {
        subscription_id: 1,
        subscription: "bench".to_owned(),
        source: Arc::new(Source { database: "bench".to_owned(), ..Source::default() }),
        url,
        headers: Vec::new(),
        timeout: Duration::from_secs(15),
        secrets: vec![signature::generate_secret(signature::Scheme::V1)?],
        previous_secret: None,
        client_certificate: None,
        max_in_flight: in_flight as u32,
        format: Format::Pgwh,
        columns: Shown::All,
        batched: batch > 1,
        compress: false,
        max_response_size: 16 * 1024,
        proxy: None,
        guard: Arc::new(Guard::parse("127.0.0.0/8 10.0.0.0/8 192.168.0.0/16")?),
    })?);
    let sender = Sender::start(SenderSettings { max_requests: in_flight, max_connections: 2 * in_flight })?;
    let window = in_flight as u64 + ahead;
    let (mut submitted, mut done, mut failed) = (0, 0, 0);
    let mut latencies = Vec::with_capacity(requests as usize);
    let mut outcomes = Vec::new();
    // Made before, as they are decoded elsewhere.
    let events: Vec<_> = (0..10_000).map(event).collect();
    let started = Instant::now();
    while done < requests {
        while submitted < requests && submitted - done < window {
            submitted += 1;
            let members = (submitted * batch) as usize..;
            let events =
                members.take(batch as usize).map(|at| (events[at % events.len()].clone(), 0)).collect();
            sender.submit(Job {
                ticket: submitted,
                endpoint: endpoint.clone(),
                events,
                attempt: 1,
                replay: None,
                prepared: None,
            });
        }
        sender.outcomes(&mut outcomes);
        if outcomes.is_empty() && !sender.arm() {
            poll(&mut [PollFd::new(sender.wake_fd(), PollFlags::POLLIN)], PollTimeout::NONE)?;
            sender.disarm();
        }
        for outcome in outcomes.drain(..) {
            done += 1;
            latencies.push(outcome.duration);
            if let Err(failure) = outcome.result {
                failed += 1;
                if failed == 1 {
                    println!("first failure: {failure:?}");
                }
            }
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let percentile = |part: f64| latencies[((latencies.len() - 1) as f64 * part) as usize];
    println!(
        "{requests} requests of {batch} events, {in_flight} in flight, {failed} failed: {:.0} requests/s, {:.0} events/s; request p50 {:?}, p99 {:?}",
        requests as f64 / seconds,
        (requests * batch) as f64 / seconds,
        percentile(0.5),
        percentile(0.99)
    );
    Ok(())
}

/// A new row of a small table, whose body has some 460 bytes.
fn event(ordinal: u64) -> Arc<Event> {
    let committed_at = Timestamp(848_484_848_484_848);
    let column = |(at, (name, type_oid, type_name)): (usize, (&str, u32, &str))| Column {
        name: name.to_owned(),
        number: at as i16 + 1,
        type_oid,
        type_name: type_name.to_owned(),
        kind: Kind::Text,
        is_key: at == 0,
        heads: Default::default(),
    };
    let columns = [("id", 20, "bigint"), ("status", 25, "text"), ("total", 1700, "numeric")];
    let relation = Relation {
        oid: 16_384,
        root_oid: 16_384,
        names: vec![TableName { schema: "public".to_owned(), table: "orders".to_owned() }],
        columns: columns.into_iter().enumerate().map(column).collect(),
        version: 1,
        key: Default::default(),
    };
    let id = ordinal.to_string();
    let cells = [Cell::Json(id.as_bytes()), Cell::Json(b"\"paid\""), Cell::Json(b"99.90")];
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
        action: Action::Insert,
        annotations: None,
        relation: Arc::new(relation),
        new: Some(Row::from_iter(cells)),
        old: None,
    })
}
