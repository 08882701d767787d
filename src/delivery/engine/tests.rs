use super::*;
use crate::delivery::{
    Disabled, End, FailureClass, Item, KeyFilter, Keyed, Keys, Mode, Ordering, Page, ReadWhat, Schedule,
};

const A: SubscriptionId = SubscriptionId(1);
const B: SubscriptionId = SubscriptionId(2);
const LIMIT: usize = 10 << 20;
const MIDDLE: u32 = u32::MAX / 2;

/// An engine whose payload is a delivery's number, and its clock.
struct Bench {
    engine: Engine<u64>,
    now: Instant,
    last: u64,
}

type Sent = (Ticket, Vec<u64>, u32);

impl Bench {
    fn new(settings: Settings) -> Bench {
        let mut engine = Engine::new(100, LIMIT);
        engine.subscribe(A, settings.clone(), Position::default());
        engine.subscribe(B, Settings { host: 1, ..settings }, Position::default());
        Bench { engine, now: Instant::now(), last: 0 }
    }

    fn arrive(&mut self, id: SubscriptionId, keys: Keys) -> u64 {
        self.last += 1;
        let order = Order { keys, table: 1, barrier: false, keyed: Keyed::default() };
        assert!(self.engine.arrive(id, DeliveryId(self.last), order, At::default(), self.last, 100));
        self.last
    }

    fn send(&mut self) -> Option<Sent> {
        let request = self.engine.next_to_send(self.now)?;
        let members = request.members.iter().map(|(id, _)| id.0).collect();
        Some((request.ticket, members, request.attempt))
    }

    fn succeed(&mut self, sent: &Sent) {
        let success = Success { status: 200, flaw: None, duration: Duration::from_millis(1) };
        self.engine.succeeded(sent.0, success, self.now);
    }

    fn fail(&mut self, sent: &Sent, class: FailureClass) {
        let failure = Failure { class, error: "it broke".to_owned(), ..Failure::default() };
        self.engine.failed(sent.0, failure, Duration::from_millis(1), self.now, MIDDLE);
    }

    fn wake(&mut self) {
        self.now = self.engine.next_wakeup().unwrap();
    }

    /// Reads all of a subscription's log, whose deliveries have keys of their own, but those that are done.
    fn read(&mut self, done: &[u64]) -> bool {
        let Some(read) = self.engine.next_read() else { return false };
        let ids: Vec<u64> = match &read.what {
            ReadWhat::Listed(ids) => ids.iter().map(|id| id.0).collect(),
            ReadWhat::Log { after } => (after.0 + 1..=self.last).collect(),
            ReadWhat::Replay { .. } => Vec::new(),
        };
        let at_tail = !matches!(read.what, ReadWhat::Listed(_));
        let item = |id: u64| {
            let order = Order { keys: Keys::one(id), table: 1, barrier: false, keyed: Keyed::default() };
            Item { id: DeliveryId(id), order, at: At::default(), payload: id, charge: 100 }
        };
        let upto = DeliveryId(if at_tail { self.last } else { ids[ids.len() - 1] });
        let items = ids.into_iter().filter(|id| !done.contains(id)).map(item).collect();
        self.engine.page(read.subscription, Page { items, upto, at_tail });
        true
    }

    fn mode(&self) -> Mode {
        self.engine.counters(A).unwrap().mode
    }
}

#[test]
fn what_was_under_way_when_the_breaker_opened_does_not_put_off_the_first_probe() {
    let mut bench = Bench::new(Settings { max_in_flight: 16, ..short() });
    for key in 0..100 {
        bench.arrive(A, Keys::one(key));
    }
    // The window opens with success.
    for _ in 0..20 {
        let sent = bench.send().unwrap();
        bench.succeed(&sent);
    }
    let under_way: Vec<Sent> = std::iter::from_fn(|| bench.send()).collect();
    assert!(under_way.len() > 8, "{}", under_way.len());
    under_way.iter().for_each(|sent| bench.fail(sent, FailureClass::Connection));
    assert_eq!(bench.mode(), Mode::Open);
    let opened = bench.now;
    bench.wake();
    assert!(bench.now - opened < Duration::from_secs(2), "{:?}", bench.now - opened);
}

fn short() -> Settings {
    Settings { schedule: Schedule::new(&[Duration::from_secs(5); 3]), ..Settings::default() }
}

#[test]
fn a_poison_event_dies_by_its_schedule_and_its_key_goes_on() {
    let mut bench = Bench::new(short());
    let (poison, next) = (bench.arrive(A, Keys::one(1)), bench.arrive(A, Keys::one(1)));
    for attempt in 1..=4 {
        let sent = bench.send().unwrap();
        assert_eq!((&sent.1, sent.2), (&vec![poison], attempt));
        bench.fail(&sent, FailureClass::Other);
        if attempt < 4 {
            assert!(bench.send().is_none());
            bench.wake();
        }
    }
    assert_eq!(bench.engine.take_effects(), [Effect::DeadLetter(A, DeliveryId(poison), "")]);
    let sent = bench.send().unwrap();
    assert_eq!(sent.1, [next]);
    bench.succeed(&sent);
    let counters = bench.engine.counters(A).unwrap();
    assert_eq!((counters.pending, counters.delivered, counters.dead), (0, 1, 1));
}

#[test]
fn ninety_nine_good_neighbours_of_a_poison_event_arrive_at_once() {
    let mut bench = Bench::new(Settings { batch_size: 100, max_in_flight: 16, ..Settings::default() });
    for _ in 0..100 {
        bench.arrive(A, Keys::NONE);
    }
    let mut delivered = 0;
    let mut requests = 0;
    while let Some(sent) = bench.send() {
        requests += 1;
        if sent.1.contains(&37) {
            bench.fail(&sent, FailureClass::Content);
        } else {
            delivered += sent.1.len();
            bench.succeed(&sent);
        }
    }
    assert_eq!(delivered, 99);
    assert!(requests < 20, "{requests}");
    assert_eq!(bench.engine.counters(A).unwrap().retrying, 1);
}

#[test]
fn a_batch_holds_events_of_one_key_in_order_and_is_tried_again_as_it_was() {
    let mut bench = Bench::new(Settings { batch_size: 10, ..Settings::default() });
    (0..5).for_each(|_| _ = bench.arrive(A, Keys::one(7)));
    let sent = bench.send().unwrap();
    assert_eq!(sent.1, [1, 2, 3, 4, 5]);
    bench.arrive(A, Keys::one(7));
    bench.fail(&sent, FailureClass::Other);
    assert!(bench.send().is_none());
    bench.wake();
    let again = bench.send().unwrap();
    assert_eq!((again.1, again.2), (vec![1, 2, 3, 4, 5], 2));
}

#[test]
fn a_batch_lingers_until_it_is_full_or_its_time_is_over() {
    let wait = Duration::from_secs(2);
    let mut bench = Bench::new(Settings { batch_size: 3, batch_wait: wait, ..Settings::default() });
    bench.arrive(A, Keys::NONE);
    assert!(bench.send().is_none());
    assert_eq!(bench.engine.next_wakeup(), Some(bench.now + wait));
    bench.arrive(A, Keys::NONE);
    assert!(bench.send().is_none());
    bench.arrive(A, Keys::NONE);
    let full = bench.send().unwrap();
    assert_eq!(full.1, [1, 2, 3]);
    bench.succeed(&full);
    bench.arrive(A, Keys::NONE);
    assert!(bench.send().is_none());
    bench.now += wait;
    assert_eq!(bench.send().unwrap().1, [4]);
}

#[test]
fn a_busy_endpoint_is_left_alone_and_no_attempt_is_counted() {
    let mut bench = Bench::new(short());
    bench.arrive(A, Keys::NONE);
    for _ in 0..30 {
        let sent = bench.send().unwrap();
        assert_eq!(sent.2, 1);
        bench.fail(&sent, FailureClass::Busy);
        assert!(bench.send().is_none());
        assert!(bench.engine.counters(A).unwrap().hold_until.is_some());
        bench.wake();
    }
    assert_eq!(bench.mode(), Mode::Live);
}

#[test]
fn an_outage_stops_the_clock_and_a_probe_that_gets_through_ends_it() {
    let mut bench = Bench::new(Settings { max_in_flight: 8, ..short() });
    (0..50).for_each(|_| _ = bench.arrive(A, Keys::NONE));
    let mut effects = Vec::new();
    while bench.mode() == Mode::Live {
        let sent = bench.send().unwrap();
        bench.fail(&sent, FailureClass::Connection);
        effects.extend(bench.engine.take_effects());
    }
    assert_eq!((bench.mode(), &effects[..]), (Mode::Open, &[Effect::Opened(A)][..]));
    let mut probes = 0;
    let end = bench.now + Duration::from_secs(4 * 86_400);
    while bench.now < end {
        while bench.read(&[]) {}
        while let Some(sent) = bench.send() {
            probes += 1;
            assert_eq!(bench.engine.in_flight(), 1);
            bench.fail(&sent, FailureClass::Connection);
        }
        bench.wake();
    }
    assert!((4_000..8_000).contains(&probes), "{probes}");
    assert_eq!(bench.engine.take_effects(), []);
    let probe = bench.send().unwrap();
    bench.succeed(&probe);
    let done = probe.1.clone();
    assert_eq!(bench.engine.take_effects(), [Effect::Recovered(A)]);
    while bench.mode() != Mode::Live {
        assert!(bench.read(&done));
    }
    let mut sent = 0;
    loop {
        match bench.send() {
            Some(request) => {
                sent += 1;
                bench.succeed(&request);
            }
            None if bench.engine.counters(A).unwrap().pending == 0 => break,
            None => bench.wake(),
        }
    }
    assert_eq!((sent, bench.engine.counters(A).unwrap().dead), (49, 0));
}

#[test]
fn one_poison_event_does_not_keep_an_endpoint_shut() {
    let mut bench = Bench::new(short());
    (0..30).for_each(|_| _ = bench.arrive(A, Keys::NONE));
    while bench.mode() == Mode::Live {
        let sent = bench.send().unwrap();
        bench.fail(&sent, FailureClass::Connection);
    }
    for expected in [1, 2] {
        while bench.read(&[]) {}
        bench.wake();
        let probe = bench.send().unwrap();
        assert_eq!(probe.1, [expected]);
        if expected == 1 {
            bench.fail(&probe, FailureClass::Content);
        } else {
            bench.succeed(&probe);
        }
    }
    assert_eq!(bench.mode(), Mode::Draining);
}

#[test]
fn gone_and_too_much_pending_disable_and_keep_what_is_pending() {
    let mut bench = Bench::new(Settings { max_pending_bytes: 250, ..short() });
    bench.arrive(A, Keys::NONE);
    let sent = bench.send().unwrap();
    bench.fail(&sent, FailureClass::Gone);
    (0..3).for_each(|_| _ = bench.arrive(B, Keys::NONE));
    assert_eq!(
        bench.engine.take_effects(),
        [Effect::Disable(A, Disabled::Gone), Effect::Disable(B, Disabled::TooMuchPending { bytes: 300 })]
    );
    assert!(bench.send().is_none());
    assert_eq!(bench.engine.counters(A).unwrap().pending, 1);
    assert_eq!(bench.engine.counters(B).unwrap().pending, 3);
    assert_eq!(bench.engine.position(A, bench.now).unwrap().pending.len(), 1);
}

#[test]
fn skipping_gives_up_what_waits_wherever_it_is() {
    let mut bench = Bench::new(short());
    let (first, second) = (bench.arrive(A, Keys::one(1)), bench.arrive(A, Keys::one(1)));
    let sent = bench.send().unwrap();
    assert_eq!(bench.engine.skip(A, DeliveryId(first)), Skipped::UnlessItSucceeds);
    bench.fail(&sent, FailureClass::Other);
    let sent = bench.send().unwrap();
    assert_eq!(sent.1, [second]);
    bench.fail(&sent, FailureClass::Other);
    assert_eq!(bench.engine.skip(A, DeliveryId(second)), Skipped::Now);
    assert_eq!(bench.engine.skip(A, DeliveryId(second)), Skipped::NotPending);
    bench.engine.pause(A, bench.now);
    let third = bench.arrive(A, Keys::one(3));
    assert_eq!(bench.engine.skip(A, DeliveryId(third)), Skipped::Soon);
    assert!(bench.read(&[]));
    let counters = bench.engine.counters(A).unwrap();
    assert_eq!((counters.pending, counters.dead), (0, 3));
    let skipped = bench.engine.take_records().into_iter().filter(
        |record| matches!(record, Record::Finished { end: End::Dead { reason, .. }, .. } if reason == "skipped"),
    );
    assert_eq!(skipped.count(), 3);
}

#[test]
fn strict_order_is_one_request_at_a_time_and_none_is_no_order() {
    let mut bench = Bench::new(Settings { ordering: Ordering::Strict, batch_size: 2, ..short() });
    (0..4).for_each(|_| _ = bench.arrive(A, Keys::NONE));
    let sent = bench.send().unwrap();
    assert_eq!(sent.1, [1, 2]);
    assert!(bench.send().is_none());
    bench.succeed(&sent);
    assert_eq!(bench.send().unwrap().1, [3, 4]);

    let mut bench = Bench::new(Settings { ordering: Ordering::None, ..short() });
    (0..3).for_each(|_| _ = bench.arrive(A, Keys::one(1)));
    let sent = bench.send().unwrap();
    bench.succeed(&sent);
    assert!(bench.send().is_some() && bench.send().is_some());
}

#[test]
fn ten_million_pending_in_the_journal_cost_nothing_to_remove() {
    let mut bench = Bench::new(short());
    bench.engine.pause(A, bench.now);
    (0..1_000_000).for_each(|_| _ = bench.arrive(A, Keys::NONE));
    assert_eq!((bench.engine.memory_used(), bench.engine.remove(A)), (0, Some(1_000_000)));
    assert_eq!(bench.engine.oldest_pending(), None);
}

#[test]
fn slow_endpoints_leave_half_of_the_pool_to_the_others() {
    let now = Instant::now();
    let mut engine: Engine<u64> = Engine::new(100, 100 << 20);
    let mut last = 0;
    for id in 0..1000 {
        let settings = Settings { host: id, ..Settings::default() };
        engine.subscribe(SubscriptionId(id as i64), settings, Position::default());
        for key in 0..20 {
            last += 1;
            let order = Order { keys: Keys::one(key), table: 1, barrier: false, keyed: Keyed::default() };
            assert!(engine.arrive(SubscriptionId(id as i64), DeliveryId(last), order, At::default(), 0, 100));
        }
    }
    let mut delivered = 0;
    while let Some((ticket, id)) = engine.next_to_send(now).map(|sent| (sent.ticket, sent.subscription.0)) {
        if id % 20 != 0 {
            engine.succeeded(
                ticket,
                Success { status: 200, flaw: None, duration: Duration::from_millis(1) },
                now,
            );
            delivered += 1;
        }
    }
    assert_eq!((engine.in_flight(), delivered), (50, 950 * 20));
}

#[test]
fn what_is_dropped_or_fails_before_it_is_sent_leaves_its_batch_and_overtakes_nothing() {
    let mut bench = Bench::new(Settings { batch_size: 10, max_in_flight: 16, ..short() });
    // 1 to 3 are of one row, 4 and 5 of two others, 6 and 7 of one.
    [1, 1, 1, 2, 3, 4, 4].into_iter().for_each(|key| _ = bench.arrive(A, Keys::one(key)));
    let sent = bench.send().unwrap();
    assert_eq!(sent.1, [1, 2, 3, 4, 5, 6, 7]);
    let failure = || Sifted::Failed(Failure { error: "it broke".to_owned(), ..Failure::default() });
    let sifted = [(2, failure()), (4, Sifted::Dropped), (6, failure()), (7, Sifted::Dropped)];
    let sifted = sifted.into_iter().map(|(id, what)| (DeliveryId(id), what)).collect();
    let left = bench.engine.sift(sent.0, sifted, Duration::from_millis(1), bench.now, MIDDLE);
    // 3 waits for 2, and 2, which waits for 1, is judged anew behind it; 6 waits for its time, and 7 for 6.
    assert_eq!(left, [DeliveryId(1), DeliveryId(5)]);
    let counters = bench.engine.counters(A).unwrap();
    assert_eq!((counters.pending, counters.dropped, counters.retrying), (6, 1, 1));
    assert!(bench.send().is_none());
    bench.succeed(&sent);
    let sent = bench.send().unwrap();
    assert_eq!((&sent.1, sent.2), (&vec![2, 3], 1));
    bench.succeed(&sent);
    bench.wake();
    let sent = bench.send().unwrap();
    assert_eq!((&sent.1, sent.2), (&vec![6], 2));
    bench.succeed(&sent);
    let sent = bench.send().unwrap();
    let all = sent.1.iter().map(|id| (DeliveryId(*id), Sifted::Dropped)).collect();
    assert!(bench.engine.sift(sent.0, all, Duration::from_millis(1), bench.now, MIDDLE).is_empty());
    let counters = bench.engine.counters(A).unwrap();
    assert_eq!((counters.pending, counters.delivered, counters.dropped, counters.in_flight), (0, 5, 2, 0));
}

#[test]
fn what_fails_before_it_is_sent_dies_by_its_schedule_and_opens_no_breaker() {
    let mut bench = Bench::new(Settings { max_in_flight: 16, ..short() });
    (0..50).for_each(|key| _ = bench.arrive(A, Keys::one(key)));
    while bench.engine.counters(A).unwrap().pending > 0 {
        let Some(sent) = bench.send() else {
            bench.wake();
            continue;
        };
        let failed = sent.1.iter().map(|id| (DeliveryId(*id), Sifted::Failed(Failure::default()))).collect();
        assert!(bench.engine.sift(sent.0, failed, Duration::ZERO, bench.now, MIDDLE).is_empty());
        assert_eq!(bench.mode(), Mode::Live);
    }
    assert_eq!(bench.engine.counters(A).unwrap().dead, 50);
    assert_eq!(bench.engine.in_flight(), 0);
}

#[test]
fn while_the_keys_of_a_resumed_replay_are_not_known_everything_waits_and_then_only_what_has_one_of_them() {
    let mut bench = Bench::new(Settings { max_in_flight: 16, ..short() });
    assert!(bench.engine.replay_resume(A, 7, DeliveryId(0), bench.now));
    let (replayed, other) = (bench.arrive(A, Keys::one(1)), bench.arrive(A, Keys::one(2)));
    let elsewhere = bench.arrive(B, Keys::one(1));
    assert_eq!(bench.send().map(|sent| sent.1), Some(vec![elsewhere]));
    assert!(bench.send().is_none());

    let mut keys = KeyFilter::with_capacity(10);
    keys.add(&Order { keys: Keys::one(1), table: 1, barrier: false, keyed: Keyed::default() });
    assert!(bench.engine.replay_begin(A, 7, DeliveryId(0), keys, bench.now));
    let (mut sent, mut last) = (Vec::new(), false);
    for _ in 0..20 {
        while let Some(request) = bench.send() {
            sent.push(request.1[0]);
            bench.succeed(&request);
        }
        let Some(read) = bench.engine.next_read() else { break };
        let item = |id, key| {
            let order = Order { keys: Keys::one(key), table: 1, barrier: false, keyed: Keyed::default() };
            Item { id: DeliveryId(id), order, at: At::default(), payload: id, charge: 100 }
        };
        // What is sent again has a number of its own.
        let (items, upto, at_tail) = match read.what {
            ReadWhat::Replay { .. } => (vec![item(100, 1)], 50, true),
            ReadWhat::Listed(ids) => {
                let items = ids.iter().map(|id| item(id.0, if id.0 == replayed { 1 } else { 2 })).collect();
                (items, ids.last().unwrap().0, false)
            }
            ReadWhat::Log { after } => {
                let arrived = [item(replayed, 1), item(other, 2)].into_iter();
                (arrived.filter(|item| item.id > after).collect(), elsewhere, true)
            }
        };
        last |= at_tail;
        bench.engine.page(A, Page { items, upto: DeliveryId(upto), at_tail });
    }
    assert!(last);
    let place = |id| sent.iter().position(|&it| it == id).unwrap();
    assert_eq!(sent.len(), 3, "{sent:?}");
    assert!(place(100) < place(replayed), "{sent:?}");
}

#[test]
fn a_resumed_replay_that_is_cancelled_lets_go_what_waited_for_its_keys() {
    let mut bench = Bench::new(short());
    assert!(bench.engine.replay_resume(A, 7, DeliveryId(0), bench.now));
    let waiting = bench.arrive(A, Keys::one(1));
    assert!(bench.send().is_none());
    assert!(bench.engine.replay_cancel(A, bench.now));
    while bench.read(&[]) {}
    assert_eq!(bench.send().map(|sent| sent.1), Some(vec![waiting]));
}

#[test]
fn requests_are_handed_over_ahead_only_while_all_goes_well() {
    let mut bench = Bench::new(Settings { max_in_flight: 1, max_ahead: 8, ..short() });
    for key in 0..200 {
        bench.arrive(A, Keys::one(key));
    }
    let first = bench.send().unwrap();
    assert!(bench.send().is_none(), "nothing is known of the endpoint");
    bench.succeed(&first);
    let mut sent = std::collections::VecDeque::new();
    for _ in 0..50 {
        sent.extend(std::iter::from_fn(|| bench.send()));
        let next = sent.pop_front().unwrap();
        bench.succeed(&next);
    }
    sent.extend(std::iter::from_fn(|| bench.send()));
    assert_eq!(sent.len(), 1 + 8);
    assert_eq!(bench.engine.counters(A).unwrap().in_flight, 1, "the others are not under way");

    let failed = sent.pop_front().unwrap();
    bench.fail(&failed, FailureClass::Other);
    let handed_back: Vec<u64> = sent.iter().flat_map(|(_, members, _)| members.clone()).collect();
    sent.iter().for_each(|(ticket, ..)| bench.engine.handed_back(*ticket, bench.now));
    for member in handed_back {
        let sent = bench.send().unwrap();
        assert_eq!((sent.1.as_slice(), sent.2), (&[member][..], 1), "in order, and not counted");
        assert!(bench.send().is_none());
        bench.fail(&sent, FailureClass::Content);
    }
    assert!(bench.engine.take_records().iter().all(|record| match record {
        crate::delivery::Record::Attempt { attempt, .. } => *attempt == 1,
        crate::delivery::Record::Finished { .. } => true,
    }));
}

#[test]
fn what_is_handed_back_to_a_subscription_that_stands_still_waits_with_the_rest() {
    let mut bench = Bench::new(Settings { max_in_flight: 1, max_ahead: 8, ..short() });
    for key in 0..40 {
        bench.arrive(A, Keys::one(key));
    }
    let mut done = Vec::new();
    for _ in 0..8 {
        let next = bench.send().unwrap();
        bench.succeed(&next);
        done.extend(next.1);
    }
    let sent: Vec<Sent> = std::iter::from_fn(|| bench.send()).collect();
    assert!(sent.len() > 1);
    bench.engine.pause(A, bench.now);
    bench.succeed(&sent[0]);
    done.extend(&sent[0].1);
    sent[1..].iter().for_each(|(ticket, ..)| bench.engine.handed_back(*ticket, bench.now));
    assert!(bench.send().is_none());
    assert_eq!(bench.engine.memory_used(), bench.engine.subscription(A).unwrap().listed.memory());
    bench.engine.resume(A);
    while bench.read(&done) {}
    let sent = bench.send().unwrap();
    assert_eq!(sent.1, [10]);
}
