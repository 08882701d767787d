//! The lanes of one subscription.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::{Model, State, config, orders};
use crate::dispatch::Order;
use crate::dispatch::lanes::{ItemId, Lanes};

#[derive(Clone, Debug)]
enum Step {
    Arrive(Order),
    Send,
    Succeed(prop::sample::Index),
    Fail(prop::sample::Index, u64),
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => orders().prop_map(Step::Arrive),
        5 => Just(Step::Send),
        3 => any::<prop::sample::Index>().prop_map(Step::Succeed),
        2 => (any::<prop::sample::Index>(), 0..20u64).prop_map(|(which, delay)| Step::Fail(which, delay)),
        1 => (0..10u64).prop_map(Step::Pass),
    ]
}

struct Queue {
    lanes: Lanes<usize>,
    model: Model,
    in_flight: Vec<(ItemId, usize)>,
    now: Instant,
}

impl Queue {
    fn send(&mut self) -> bool {
        let expected = self.model.next();
        assert_eq!(self.lanes.is_ready(), expected.is_some());
        let sent = self.lanes.next().map(|(id, &mut index)| (id, index));
        assert_eq!(sent.map(|(_, index)| index), expected, "the oldest that need not wait");
        let Some((id, index)) = sent else { return false };
        self.model.0[index].state = State::InFlight;
        self.in_flight.push((id, index));
        true
    }

    fn succeed(&mut self, at: usize) {
        let (id, index) = self.in_flight.swap_remove(at);
        assert_eq!(self.lanes.succeeded(id), Some(index));
        assert_eq!(self.lanes.succeeded(id), None, "an outcome counts once");
        self.model.0[index].state = State::Done;
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Arrive(order) => {
                let index = self.model.arrive(order);
                self.lanes.arrive(index as u64, order, index);
            }
            Step::Send => _ = self.send(),
            Step::Succeed(which) if !self.in_flight.is_empty() => {
                self.succeed(which.index(self.in_flight.len()))
            }
            Step::Fail(which, delay) if !self.in_flight.is_empty() => {
                let (id, index) = self.in_flight.swap_remove(which.index(self.in_flight.len()));
                let due = self.now + Duration::from_secs(delay);
                assert!(self.lanes.failed(id, due));
                assert!(!self.lanes.failed(id, due), "an outcome counts once");
                self.model.0[index].state = State::BlockedUntil(due);
            }
            Step::Pass(seconds) => {
                self.now += Duration::from_secs(seconds);
                self.lanes.ready_again(self.now);
                self.model.ready_again(self.now);
            }
            Step::Succeed(_) | Step::Fail(..) => {}
        }
        assert_eq!(self.lanes.len(), self.model.outstanding());
        assert_eq!(self.lanes.in_flight(), self.model.count(State::InFlight));
        assert_eq!(self.lanes.next_due(), self.model.next_due());
        let oldest = self.model.0.iter().position(|item| item.state != State::Done);
        assert_eq!(self.lanes.oldest().copied(), oldest);
    }
}

proptest! {
    #![proptest_config(config(2000))]

    #[test]
    fn lanes_send_the_oldest_that_need_not_wait_and_lose_nothing(
        history in prop::collection::vec(steps(), 0..120)
    ) {
        let mut queue = Queue {
            lanes: Lanes::default(),
            model: Model::default(),
            in_flight: Vec::new(),
            now: Instant::now(),
        };
        history.into_iter().for_each(|step| queue.step(step));
        queue.step(Step::Pass(1000));
        while queue.send() || !queue.in_flight.is_empty() {
            if !queue.in_flight.is_empty() {
                queue.succeed(0);
            }
        }
        prop_assert_eq!(queue.model.outstanding(), 0);
        prop_assert!(queue.lanes.is_empty() && queue.lanes.oldest().is_none());
        prop_assert_eq!((queue.lanes.retrying(), queue.lanes.blocked_keys()), (0, 0));
    }
}
