//! Memory: when it is short, what nobody has sent yet leaves it, to be read back from the journal.

use super::Engine;
use crate::delivery::position::Mode;
use crate::delivery::subscription::Subscription;

/// Shares of the memory limit, in percent: when room is made, and how much.
const FULL: usize = 80;
const RELIEVED: usize = 60;

impl<P: Clone> Engine<P> {
    /// Something has arrived for a subscription: what does not fit into memory leaves it for the journal.
    pub(super) fn see_to_memory(&mut self, arrived: u32) {
        let subscription = &mut self.subscriptions[arrived as usize];
        if self.shared.memory_used > self.shared.memory_limit / 100 * FULL {
            self.make_room(arrived);
        } else if subscription.charged > self.shared.memory_limit / 2 && subscription.mode == Mode::Live {
            subscription.flip(&mut self.shared);
        }
    }

    /// Memory is short: those that hold most let go what nobody has sent.
    fn make_room(&mut self, arrived: u32) {
        if self.crammed {
            let subscription = &mut self.subscriptions[arrived as usize];
            if subscription.mode == Mode::Live {
                subscription.flip(&mut self.shared);
            }
            self.crammed = self.shared.memory_used > self.shared.memory_limit / 100 * FULL;
            return;
        }
        let has_unsent = |subscription: &Subscription<P>| {
            subscription.work.as_ref().is_some_and(|work| work.lanes.unsent() > 0)
        };
        let holders = self.subscriptions.iter().filter(|(_, subscription)| has_unsent(subscription));
        let mut holders: Vec<(usize, u32)> =
            holders.map(|(slot, subscription)| (subscription.charged, slot as u32)).collect();
        holders.sort_unstable();
        while self.shared.memory_used > self.shared.memory_limit / 100 * RELIEVED
            && let Some((_, slot)) = holders.pop()
        {
            self.subscriptions[slot as usize].flip(&mut self.shared);
            self.look_after(slot);
        }
        self.crammed = self.shared.memory_used > self.shared.memory_limit / 100 * FULL;
    }
}
