use super::*;
use crate::dispatch::Keys;

const A: SubscriptionId = SubscriptionId(1);
const B: SubscriptionId = SubscriptionId(2);

fn engine(max_requests: usize) -> Engine<&'static str> {
    let mut engine = Engine::new(Lsn(0), max_requests);
    engine.subscribe(A, Settings::default());
    engine.subscribe(B, Settings::default());
    engine
}

fn commit(engine: &mut Engine<&'static str>, lsn: u64, events: &[(SubscriptionId, Keys, &'static str)]) {
    engine.transaction_begin(Lsn(lsn));
    for &(id, keys, name) in events {
        let order = Order { keys, table: 1, barrier: false };
        assert_eq!(engine.arrive(id, order, name, name.len()), Ok(()));
    }
    engine.transaction_commit(Lsn(lsn + 5));
}

fn send_all(engine: &mut Engine<&'static str>, now: Instant) -> Vec<(Ticket, &'static str, u32)> {
    std::iter::from_fn(|| {
        engine.next_to_send(now).map(|attempt| (attempt.ticket, *attempt.payload, attempt.number))
    })
    .collect()
}

fn names(sent: &[(Ticket, &'static str, u32)]) -> Vec<&'static str> {
    sent.iter().map(|&(_, name, _)| name).collect()
}

#[test]
fn a_failing_event_holds_back_its_key_and_no_other_until_it_gets_through() {
    let mut engine = engine(100);
    let now = Instant::now();
    let events = [("a1", 1), ("a2", 1), ("b1", 2)].map(|(name, key)| (A, Keys::one(key), name));
    commit(&mut engine, 100, &events);
    let sent = send_all(&mut engine, now);
    assert_eq!(names(&sent), ["a1", "b1"]);

    let refused = Failure { status: Some(500), error: "it broke".into(), retry_after: None };
    let due = engine.failed(sent[0].0, refused, now, u32::MAX / 2).unwrap();
    assert!(due - now < Duration::from_secs(6));
    engine.succeeded(sent[1].0, 204, now);
    assert_eq!(names(&send_all(&mut engine, now)), Vec::<&str>::new());
    assert_eq!(engine.next_wakeup(), Some(due));
    let counters = engine.counters(A).unwrap();
    assert_eq!((counters.pending, counters.retrying, counters.blocked_keys), (1, 1, 1));
    assert_eq!((counters.last_error, counters.next_attempt_at), (Some("it broke"), Some(due)));
    assert_eq!(
        (engine.confirmed(), engine.reached(A), engine.reached(B)),
        (Lsn(0), Some(Lsn(100)), Some(Lsn(105)))
    );

    let again = send_all(&mut engine, due);
    assert_eq!((again[0].1, again[0].2), ("a1", 2));
    engine.succeeded(again[0].0, 200, due);
    let last = send_all(&mut engine, due);
    assert_eq!(names(&last), ["a2"]);
    engine.succeeded(last[0].0, 200, due);
    assert_eq!((engine.confirmed(), engine.reached(A), engine.memory_used()), (Lsn(105), Some(Lsn(105)), 0));
    assert_eq!(engine.counters(A).unwrap().delivered, 3);
}

#[test]
fn a_change_of_key_waits_for_both_keys_and_holds_both() {
    let mut engine = engine(100);
    let now = Instant::now();
    let events = [
        (A, Keys::one(1), "old"),
        (A, Keys::one(2), "new"),
        (A, Keys::two(1, 2), "moved"),
        (A, Keys::one(2), "after"),
    ];
    commit(&mut engine, 100, &events);
    let sent = send_all(&mut engine, now);
    assert_eq!(names(&sent), ["old", "new"]);
    engine.succeeded(sent[0].0, 200, now);
    assert!(send_all(&mut engine, now).is_empty());
    engine.succeeded(sent[1].0, 200, now);
    let moved = send_all(&mut engine, now);
    assert_eq!(names(&moved), ["moved"]);
    engine.succeeded(moved[0].0, 200, now);
    assert_eq!(names(&send_all(&mut engine, now)), ["after"]);
}

#[test]
fn a_barrier_waits_for_all_of_its_table_and_no_other() {
    let mut engine = engine(100);
    let now = Instant::now();
    engine.transaction_begin(Lsn(100));
    let events = [("one", 1, false), ("elsewhere", 2, false), ("truncate", 1, true), ("two", 1, false)];
    for (name, table, barrier) in events {
        let order = Order { keys: Keys::NONE, table, barrier };
        engine.arrive(A, order, name, 0).unwrap();
    }
    let sent = send_all(&mut engine, now);
    assert_eq!(names(&sent), ["one", "elsewhere"]);
    engine.succeeded(sent[0].0, 200, now);
    let truncate = send_all(&mut engine, now);
    assert_eq!(names(&truncate), ["truncate"]);
    engine.succeeded(truncate[0].0, 200, now);
    assert_eq!(names(&send_all(&mut engine, now)), ["two"]);
}

#[test]
fn a_slow_endpoint_occupies_its_window_and_no_more_of_the_pool() {
    let mut engine = engine(20);
    let now = Instant::now();
    let mut events = vec![(A, Keys::NONE, "slow"); 100];
    events.extend(vec![(B, Keys::NONE, "fast"); 100]);
    commit(&mut engine, 100, &events);
    let sent = send_all(&mut engine, now);
    assert_eq!((sent.len(), engine.counters(A).unwrap().in_flight), (20, 10));
    let mut fast: Vec<_> = sent.into_iter().filter(|sent| sent.1 == "fast").collect();
    let mut delivered = 0;
    while let Some((ticket, ..)) = fast.pop() {
        engine.succeeded(ticket, 200, now);
        delivered += 1;
        fast.extend(send_all(&mut engine, now).into_iter().filter(|sent| sent.1 == "fast"));
    }
    assert_eq!((delivered, engine.counters(A).unwrap().in_flight), (100, 16));
}

#[test]
fn a_removed_subscription_holds_nothing_back_and_its_late_outcomes_do_no_harm() {
    let mut engine = engine(100);
    let now = Instant::now();
    commit(&mut engine, 100, &[(A, Keys::one(1), "x"), (A, Keys::one(1), "y")]);
    let sent = send_all(&mut engine, now);
    assert_eq!((engine.remove(A), engine.confirmed(), engine.memory_used()), (2, Lsn(105), 0));
    assert_eq!(engine.in_flight(), 1);

    engine.subscribe(SubscriptionId(3), Settings::default());
    commit(&mut engine, 200, &[(SubscriptionId(3), Keys::one(1), "z")]);
    let other = send_all(&mut engine, now);
    assert_eq!(engine.succeeded(sent[0].0, 200, now), None);
    assert_eq!(engine.confirmed(), Lsn(105));
    assert_eq!(engine.succeeded(other[0].0, 200, now), Some("z"));
    assert_eq!((engine.confirmed(), engine.in_flight()), (Lsn(205), 0));
}

#[test]
fn settings_change_without_touching_what_is_queued() {
    let mut engine = engine(100);
    let now = Instant::now();
    engine.subscribe(A, Settings { max_in_flight: 1, ..Settings::default() });
    commit(&mut engine, 100, &[(A, Keys::NONE, "x"), (A, Keys::NONE, "y"), (A, Keys::NONE, "z")]);
    assert_eq!(names(&send_all(&mut engine, now)), ["x"]);
    engine.subscribe(A, Settings { max_in_flight: 2, ..Settings::default() });
    assert_eq!(names(&send_all(&mut engine, now)), ["y"]);
}
