//! The engine, with a few subscriptions that come and go.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::{Model, State, config, orders};
use crate::dispatch::{Engine, Failure, Order, Schedule, Settings, SubscriptionId, Ticket};
use crate::event::Lsn;

/// One thing that happens to an engine of a few subscriptions.
#[derive(Clone, Debug)]
enum Happening {
    Transaction(Vec<(i64, Order)>),
    /// A transaction of which half arrives now and half when something else has happened.
    Halves(Vec<(i64, Order)>, Vec<(i64, Order)>),
    Idle,
    Send,
    Succeed(prop::sample::Index),
    Fail(prop::sample::Index, u32),
    Pass(u64),
    Remove(i64),
    Subscribe(i64, u32),
}

fn happenings() -> impl Strategy<Value = Happening> {
    let events = || prop::collection::vec((0..4i64, orders()), 0..6);
    prop_oneof![
        4 => events().prop_map(Happening::Transaction),
        1 => (events(), events()).prop_map(|(first, second)| Happening::Halves(first, second)),
        1 => Just(Happening::Idle),
        10 => Just(Happening::Send),
        5 => any::<prop::sample::Index>().prop_map(Happening::Succeed),
        3 => (any::<prop::sample::Index>(), any::<u32>()).prop_map(|(w, jitter)| Happening::Fail(w, jitter)),
        2 => (0..10u64).prop_map(Happening::Pass),
        1 => (0..4i64).prop_map(Happening::Remove),
        1 => (0..4i64, 1..4u32).prop_map(|(id, window)| Happening::Subscribe(id, window)),
    ]
}

const POOL: usize = 5;
const CHARGE: usize = 100;

struct World {
    engine: Engine<usize>,
    /// Each subscription's window and items; the payload is an item's index.
    models: BTreeMap<i64, (u32, Model)>,
    /// Of each item of a subscription, its transaction.
    transactions_of: BTreeMap<i64, Vec<usize>>,
    /// Transactions: where the commit record begins, and how far all is proved done with it.
    transactions: Vec<(Lsn, Option<Lsn>)>,
    in_flight: Vec<(Ticket, Option<(i64, usize)>)>,
    tail: u64,
    half: Option<Vec<(i64, Order)>>,
    confirmed: Lsn,
    now: Instant,
}

impl World {
    fn new() -> World {
        World {
            engine: Engine::new(Lsn(0), POOL),
            models: BTreeMap::new(),
            transactions_of: BTreeMap::new(),
            transactions: vec![(Lsn(0), Some(Lsn(0)))],
            in_flight: Vec::new(),
            tail: 0,
            half: None,
            confirmed: Lsn(0),
            now: Instant::now(),
        }
    }

    fn begin(&mut self) {
        self.tail += 10;
        self.engine.transaction_begin(Lsn(self.tail));
        self.transactions.push((Lsn(self.tail), None));
    }

    fn arrive(&mut self, events: Vec<(i64, Order)>) {
        for (id, order) in events {
            let Some((_, model)) = self.models.get_mut(&id) else {
                assert_eq!(self.engine.arrive(SubscriptionId(id), order, 0, CHARGE), Err(0));
                continue;
            };
            let index = model.arrive(order);
            self.transactions_of.entry(id).or_default().push(self.transactions.len() - 1);
            assert_eq!(self.engine.arrive(SubscriptionId(id), order, index, CHARGE), Ok(()));
        }
    }

    fn commit(&mut self) {
        self.tail += 5;
        self.engine.transaction_commit(Lsn(self.tail));
        if let Some((_, end)) = self.transactions.last_mut() {
            *end = Some(Lsn(self.tail));
        }
    }

    fn finish_half(&mut self) {
        if let Some(events) = self.half.take() {
            self.arrive(events);
            self.commit();
        }
    }

    fn send(&mut self) -> bool {
        self.models.values_mut().for_each(|(_, model)| model.ready_again(self.now));
        let may_send = |(window, model): &(u32, Model)| {
            model.next().is_some() && model.count(State::InFlight) < *window as usize
        };
        let somebody = self.in_flight.len() < POOL && self.models.values().any(may_send);
        let sent = self
            .engine
            .next_to_send(self.now)
            .map(|attempt| (attempt.ticket, attempt.subscription.0, *attempt.payload));
        assert_eq!(sent.is_some(), somebody, "what may be sent is sent");
        if let Some(wakeup) = self.engine.next_wakeup() {
            assert!(wakeup > self.now);
        }
        let Some((ticket, id, index)) = sent else { return false };
        let entry = self.models.get_mut(&id).unwrap();
        assert!(may_send(entry));
        assert_eq!(entry.1.next(), Some(index));
        entry.1.0[index].state = State::InFlight;
        self.in_flight.push((ticket, Some((id, index))));
        true
    }

    fn succeed(&mut self, at: usize) {
        let (ticket, item) = self.in_flight.swap_remove(at);
        let payload = self.engine.succeeded(ticket, 200, self.now);
        assert_eq!(payload, item.map(|(_, index)| index), "outcomes of a removed subscription are ignored");
        if let Some((id, index)) = item {
            self.models.get_mut(&id).unwrap().1.0[index].state = State::Done;
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Transaction(events) => {
                self.finish_half();
                self.begin();
                self.arrive(events);
                self.commit();
            }
            Happening::Halves(first, second) => {
                self.finish_half();
                self.begin();
                self.arrive(first);
                self.half = Some(second);
            }
            Happening::Idle => {
                self.finish_half();
                self.tail += 3;
                self.engine.idle(Lsn(self.tail));
                if let Some((_, end)) = self.transactions.last_mut() {
                    *end = Some(Lsn(self.tail));
                }
            }
            Happening::Send => _ = self.send(),
            Happening::Succeed(which) if !self.in_flight.is_empty() => {
                self.succeed(which.index(self.in_flight.len()))
            }
            Happening::Fail(which, jitter) if !self.in_flight.is_empty() => {
                let (ticket, item) = self.in_flight.swap_remove(which.index(self.in_flight.len()));
                let due = self.engine.failed(ticket, Failure::default(), self.now, jitter);
                assert_eq!(due.is_some(), item.is_some());
                if let (Some(due), Some((id, index))) = (due, item) {
                    self.models.get_mut(&id).unwrap().1.0[index].state = State::BlockedUntil(due);
                }
            }
            Happening::Pass(seconds) => self.now += Duration::from_secs(seconds),
            Happening::Remove(id) => {
                let dropped = self.engine.remove(SubscriptionId(id));
                let expected = self.models.remove(&id).map_or(0, |(_, model)| model.outstanding());
                assert_eq!(dropped, expected);
                self.transactions_of.remove(&id);
                for (_, item) in &mut self.in_flight {
                    item.take_if(|(of, _)| *of == id);
                }
            }
            Happening::Subscribe(id, max_in_flight) => {
                let schedule = Schedule::new(&[3, 7].map(Duration::from_secs));
                self.engine.subscribe(SubscriptionId(id), Settings { max_in_flight, schedule });
                self.models.entry(id).or_default().0 = max_in_flight;
            }
            Happening::Succeed(_) | Happening::Fail(..) => {}
        }
        self.check();
    }

    fn outstanding_of(&self, id: i64) -> impl Iterator<Item = usize> {
        let items = self.models[&id].1.0.iter().zip(self.transactions_of.get(&id).into_iter().flatten());
        items.filter(|(item, _)| item.state != State::Done).map(|(_, &transaction)| transaction)
    }

    /// How far all is done when these transactions are the ones with something outstanding.
    fn done_until(&self, first_outstanding: Option<usize>) -> Lsn {
        let ended = self.transactions.iter().take_while(|(_, end)| end.is_some());
        ended.take(first_outstanding.unwrap_or(usize::MAX)).filter_map(|(_, end)| *end).last().unwrap()
    }

    fn check(&mut self) {
        let outstanding: usize = self.models.values().map(|(_, model)| model.outstanding()).sum();
        let busy = self.models.values().filter(|(_, model)| model.outstanding() > 0).count();
        let charged = outstanding * (CHARGE + Engine::<usize>::DELIVERY_BYTES);
        assert_eq!(self.engine.memory_used(), charged + busy * Engine::<usize>::SUBSCRIPTION_BYTES);
        assert_eq!(self.engine.in_flight(), self.in_flight.len());
        let first = self.models.keys().filter_map(|&id| self.outstanding_of(id).min()).min();
        assert_eq!(self.engine.confirmed(), self.done_until(first));
        assert!(self.engine.confirmed() >= self.confirmed, "confirmation never goes back");
        self.confirmed = self.engine.confirmed();
        for (&id, (_, model)) in &self.models {
            let expected = match self.outstanding_of(id).min() {
                Some(transaction) => self.transactions[transaction].0,
                None => self.done_until(None),
            };
            assert_eq!(self.engine.reached(SubscriptionId(id)), Some(expected));
            let counters = self.engine.counters(SubscriptionId(id)).unwrap();
            assert_eq!(counters.pending + counters.retrying, model.outstanding());
            assert_eq!(counters.in_flight, model.count(State::InFlight));
            assert_eq!(counters.delivered as usize, model.count(State::Done));
        }
    }
}

proptest! {
    #![proptest_config(config(1000))]

    #[test]
    fn an_engine_keeps_order_sends_what_it_may_and_confirms_only_what_is_done(
        history in prop::collection::vec(happenings(), 0..150)
    ) {
        let mut world = World::new();
        (0..3).for_each(|id| world.happen(Happening::Subscribe(id, 2)));
        history.into_iter().for_each(|happening| world.happen(happening));
        world.finish_half();
        world.happen(Happening::Pass(1000));
        while world.send() || !world.in_flight.is_empty() {
            if !world.in_flight.is_empty() {
                world.succeed(0);
            }
        }
        world.check();
        prop_assert_eq!(world.engine.memory_used(), 0);
        prop_assert_eq!(world.engine.confirmed(), world.done_until(None));
        prop_assert_eq!(world.engine.next_wakeup(), None);
    }
}
