//! The lanes of one subscription.

use proptest::prelude::*;

use super::{must_wait, orders};
use crate::delivery::Order;
use crate::delivery::lanes::{Lanes, Members};

#[derive(Clone, Debug)]
enum Step {
    Arrive(Order),
    Take(usize),
    Finish(prop::sample::Index),
    Release(prop::sample::Index),
    Part(prop::sample::Index, prop::sample::Index),
    Flip,
}

fn steps() -> impl Strategy<Value = Step> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        8 => orders().prop_map(Step::Arrive),
        5 => (1..6usize).prop_map(Step::Take),
        3 => index().prop_map(Step::Finish),
        1 => index().prop_map(Step::Release),
        1 => (index(), index()).prop_map(|(which, at)| Step::Part(which, at)),
        1 => Just(Step::Flip),
    ]
}

#[derive(Default)]
struct Queue {
    lanes: Lanes<usize>,
    /// Of each number, its order; None when it is done.
    model: Vec<Option<Order>>,
    /// Those out of memory.
    away: Vec<usize>,
    requests: Vec<Members>,
}

impl Queue {
    fn held(&self) -> Vec<usize> {
        self.requests.iter().flatten().map(|&slot| *self.lanes.get(slot)).collect()
    }

    fn take(&mut self, limit: usize) -> bool {
        let held = self.held();
        let free = |index: usize, chosen: &[usize]| {
            let Some(order) = self.model[index] else { return false };
            !held.contains(&index)
                && !self.away.contains(&index)
                && (0..index).all(|older| {
                    chosen.contains(&older)
                        || self.model[older].is_none_or(|older| !must_wait(&order, &older))
                })
        };
        let mut expected: Vec<usize> = Vec::new();
        while expected.len() < limit
            && let Some(next) =
                (0..self.model.len()).find(|&index| !expected.contains(&index) && free(index, &expected))
        {
            expected.push(next);
        }
        let Some(slot) = self.lanes.take() else {
            assert!(expected.is_empty());
            return false;
        };
        let mut members = Members::from_slice(&[slot]);
        self.lanes.take_more(&mut members, limit, |_| true);
        let taken: Vec<usize> = members.iter().map(|&slot| *self.lanes.get(slot)).collect();
        assert_eq!(taken, expected, "the oldest that need to wait for nothing but those before them");
        self.requests.push(members);
        true
    }

    fn finish(&mut self, at: usize) {
        for slot in self.requests.swap_remove(at) {
            let index = self.lanes.finish(slot);
            self.model[index] = None;
        }
    }

    fn come_back(&mut self) {
        for index in std::mem::take(&mut self.away) {
            self.lanes.arrive(index as u64, self.model[index].unwrap(), index);
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Arrive(order) => {
                self.come_back();
                self.model.push(Some(order));
                let index = self.model.len() - 1;
                self.lanes.arrive(index as u64, order, index);
            }
            Step::Take(limit) => _ = self.take(limit),
            Step::Finish(which) if !self.requests.is_empty() => self.finish(which.index(self.requests.len())),
            Step::Release(which) if !self.requests.is_empty() => {
                let members = self.requests.swap_remove(which.index(self.requests.len()));
                members.iter().for_each(|&slot| self.lanes.release(slot));
            }
            Step::Part(which, at) if !self.requests.is_empty() => {
                let members = self.requests.swap_remove(which.index(self.requests.len()));
                let (first, second) = members.split_at(at.index(members.len()));
                let (second, dependent) = self.lanes.part(second, |_| true);
                dependent.iter().for_each(|&slot| self.lanes.release(slot));
                let halves = [Members::from_slice(first), second];
                self.requests.extend(halves.into_iter().filter(|half| !half.is_empty()));
            }
            Step::Flip => {
                let mut away: Vec<usize> =
                    self.lanes.drain_unsent().into_iter().map(|(_, index)| index).collect();
                self.away.append(&mut away);
                self.away.sort_unstable();
            }
            Step::Finish(_) | Step::Release(_) | Step::Part(..) => {}
        }
        let held = self.held();
        let outstanding = (0..self.model.len()).filter(|&index| self.model[index].is_some());
        let here: Vec<usize> = outstanding.filter(|index| !self.away.contains(index)).collect();
        let listed: Vec<usize> = self.lanes.iter().map(|(_, _, &index)| index).collect();
        assert_eq!(listed, here);
        assert_eq!(self.lanes.unsent(), here.len() - held.len());
    }
}

proptest! {
    #![proptest_config(crate::proptest_config::config(2000))]

    #[test]
    fn lanes_give_the_oldest_that_need_not_wait_and_lose_nothing(
        history in prop::collection::vec(steps(), 0..120)
    ) {
        let mut queue = Queue::default();
        history.into_iter().for_each(|step| queue.step(step));
        queue.come_back();
        while queue.take(3) || !queue.requests.is_empty() {
            if !queue.requests.is_empty() {
                queue.finish(0);
            }
        }
        prop_assert!(queue.model.iter().all(Option::is_none));
        prop_assert!(queue.lanes.is_empty() && !queue.lanes.is_ready());
    }
}
