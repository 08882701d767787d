//! The promises of the dispatcher, tried on random histories against a plain model that looks at every item.

use std::time::Instant;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::{Keys, Order};

/// The same histories in every run.
fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        rng_seed: RngSeed::Fixed(1),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

fn orders() -> impl Strategy<Value = Order> {
    let keys = prop_oneof![
        2 => Just(Keys::NONE),
        6 => (0..5u64).prop_map(Keys::one),
        2 => (0..5u64, 0..5u64).prop_map(|(old, new)| Keys::two(old, new)),
    ];
    (keys, 0..3u32, prop::bool::weighted(0.1)).prop_map(|(keys, table, barrier)| Order {
        keys,
        table,
        barrier,
    })
}

/// The rule of order: whether `newer` has to wait until `older` is done.
fn must_wait(newer: &Order, older: &Order) -> bool {
    let share_key = newer.keys.as_slice().iter().any(|key| older.keys.as_slice().contains(key));
    share_key || newer.table == older.table && (newer.barrier || older.barrier)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Queued,
    InFlight,
    BlockedUntil(Instant),
    Done,
}

#[derive(Clone, Debug)]
struct Item {
    order: Order,
    state: State,
}

/// The items of one subscription, in order of arrival.
#[derive(Clone, Debug, Default)]
struct Model(Vec<Item>);

impl Model {
    fn arrive(&mut self, order: Order) -> usize {
        self.0.push(Item { order, state: State::Queued });
        self.0.len() - 1
    }

    fn ready_again(&mut self, now: Instant) {
        for item in &mut self.0 {
            if matches!(item.state, State::BlockedUntil(due) if due <= now) {
                item.state = State::Queued;
            }
        }
    }

    /// The oldest item that may be sent.
    fn next(&self) -> Option<usize> {
        self.0.iter().enumerate().position(|(index, item)| {
            let mut older = self.0[..index].iter().filter(|older| older.state != State::Done);
            item.state == State::Queued && !older.any(|older| must_wait(&item.order, &older.order))
        })
    }

    fn count(&self, state: State) -> usize {
        self.0.iter().filter(|item| item.state == state).count()
    }

    fn outstanding(&self) -> usize {
        self.0.len() - self.count(State::Done)
    }

    fn next_due(&self) -> Option<Instant> {
        let due = self.0.iter().filter_map(|item| match item.state {
            State::BlockedUntil(due) => Some(due),
            _ => None,
        });
        due.min()
    }
}
