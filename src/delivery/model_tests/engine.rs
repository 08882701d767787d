//! The engine, with a few subscriptions, everything that can go wrong, and crashes.

use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::Index;

use super::orders;
use super::world::{World, settings};
use crate::delivery::{DeliveryId, FailureClass, Keyed, Keys, Order, SubscriptionId};

/// One thing that happens.
#[derive(Clone, Debug)]
enum Happening {
    Arrive(Vec<(Order, u8)>),
    Send(usize),
    Read(usize),
    Succeed(Index),
    Fail(Index, FailureClass, u32),
    HandBack(Index),
    Sift(Index, u32, u32),
    FailAll(FailureClass),
    Pass(u64),
    Flush,
    Crash,
    Pause(i64),
    Resume(i64),
    Stop(i64),
    Skip(i64, Index),
    Change(i64, u32),
    Replay(i64, Index, Index),
    Cancel(i64),
}

const SUBSCRIPTIONS: i64 = 3;

fn happenings() -> impl Strategy<Value = Happening> {
    let index = any::<Index>;
    let id = || 0..SUBSCRIPTIONS;
    let classes = || {
        use FailureClass::*;
        prop_oneof![4 => Just(Connection), 4 => Just(Content), 1 => Just(Busy), 1 => Just(Gone), 4 => Just(Other)]
    };
    prop_oneof![
        12 => prop::collection::vec((orders(), 1..8u8), 1..8).prop_map(Happening::Arrive),
        20 => (1..6usize).prop_map(Happening::Send),
        14 => (1..8usize).prop_map(Happening::Read),
        12 => index().prop_map(Happening::Succeed),
        10 => (index(), classes(), any::<u32>()).prop_map(|(at, class, jitter)| Happening::Fail(at, class, jitter)),
        3 => index().prop_map(Happening::HandBack),
        6 => (index(), any::<u32>(), any::<u32>())
            .prop_map(|(at, which, jitter)| Happening::Sift(at, which, jitter)),
        3 => classes().prop_map(Happening::FailAll),
        6 => (0..10u64).prop_map(Happening::Pass),
        2 => Just(Happening::Flush),
        1 => Just(Happening::Crash),
        1 => id().prop_map(Happening::Pause),
        4 => id().prop_map(Happening::Resume),
        1 => id().prop_map(Happening::Stop),
        2 => (id(), index()).prop_map(|(id, which)| Happening::Skip(id, which)),
        1 => (id(), any::<u32>()).prop_map(|(id, seed)| Happening::Change(id, seed)),
        1 => (id(), index(), index()).prop_map(|(id, from, to)| Happening::Replay(id, from, to)),
        1 => id().prop_map(Happening::Cancel),
    ]
}

impl World {
    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Arrive(events) => {
                events.into_iter().for_each(|(order, targets)| self.arrive(order, targets));
            }
            Happening::Send(times) => _ = (0..times).all(|_| self.send()),
            Happening::Read(most) => _ = self.read(most),
            Happening::Succeed(which) if !self.under_way.is_empty() => {
                self.succeed(which.index(self.under_way.len()));
            }
            Happening::Sift(which, members, jitter) if !self.under_way.is_empty() => {
                self.sift(which.index(self.under_way.len()), members, jitter);
            }
            Happening::HandBack(which) if !self.under_way.is_empty() => {
                self.hand_back(which.index(self.under_way.len()));
            }
            Happening::Fail(which, class, jitter) if !self.under_way.is_empty() => {
                self.fail(which.index(self.under_way.len()), class, jitter);
            }
            Happening::FailAll(class) => {
                while !self.under_way.is_empty() {
                    self.fail(0, class, 0);
                }
            }
            Happening::Pass(seconds) => self.now += Duration::from_secs(seconds),
            Happening::Flush => {
                self.take_records();
                self.flush();
            }
            Happening::Crash => self.crash(),
            Happening::Pause(id) => self.engine.pause(SubscriptionId(id), self.now),
            Happening::Resume(id) => self.engine.resume(SubscriptionId(id)),
            Happening::Stop(id) => self.engine.stop(SubscriptionId(id), self.now),
            Happening::Skip(id, which) if !self.models[&id].arrivals.is_empty() => {
                let arrivals = &self.models[&id].arrivals;
                let which = arrivals.keys().copied().nth(which.index(arrivals.len())).unwrap();
                self.engine.skip(SubscriptionId(id), DeliveryId(which));
            }
            Happening::Change(id, seed) => {
                self.models.get_mut(&id).unwrap().settings = settings(seed);
                self.engine.change(SubscriptionId(id), settings(seed), self.now);
            }
            Happening::Replay(id, from, to) if self.last > 0 => {
                let place = |index: Index| index.index(self.last as usize) as u64;
                self.replay(id, place(from), place(to) + 1);
            }
            Happening::Cancel(id) => {
                if self.engine.replay_cancel(SubscriptionId(id), self.now) {
                    self.models.get_mut(&id).unwrap().replay = None;
                }
            }
            Happening::Succeed(_)
            | Happening::Fail(..)
            | Happening::HandBack(_)
            | Happening::Sift(..)
            | Happening::Skip(..)
            | Happening::Replay(..) => {}
        }
        self.check();
    }
}

proptest! {
    #![proptest_config(crate::proptest_config::config(1500))]

    #[test]
    fn nothing_is_lost_or_overtaken_or_stalls_whatever_happens(
        limit in prop_oneof![Just(8_000usize), Just(30_000), Just(1_000_000)],
        seeds in prop::collection::vec(any::<u32>(), SUBSCRIPTIONS as usize),
        history in prop::collection::vec(happenings(), 0..200),
    ) {
        let mut world = World::new(limit, &seeds);
        history.into_iter().for_each(|happening| world.happen(happening));
        world.calm();
    }
}

#[test]
fn a_replay_ends_though_its_last_event_was_dropped_before_its_turn() {
    let strict_in_batches_of_three = 1_140_993_736;
    let order = Order { keys: Keys::NONE, table: 0, barrier: false, keyed: Keyed::default() };
    let mut world = World::new(1_000_000, &[0, 0, strict_in_batches_of_three]);
    (0..3).for_each(|_| world.arrive(order, 0b100));
    world.replay(2, 0, 2);
    world.happen(Happening::Read(2));
    assert!(world.send());
    // The second is dropped; the first is refused, and goes again alone.
    world.sift(0, 0b0010, 0);
    world.fail(0, FailureClass::Content, 0);
    world.calm();
}
