//! What is taken from the decoder: how much of it at once, and when.

use std::time::{Duration, Instant};

use super::sender::Sending;
use crate::ipc::frame::{Item, Stream};
use crate::pg::shm_mq::Receiver;
use crate::shmem::registry::Database;
use crate::shmem::worker_counters;

/// How many items, and deliveries, are taken before outcomes are looked at again.
const A_ROUND: usize = 128;
/// How many bytes of events that is at most, but for the last.
const BYTES_A_ROUND: usize = 1 << 18;
/// When more subscriptions than this wait for their turn, what else arrives would only lie about until it has left the
/// processor's caches,
const CROWD: usize = 256;
/// but it has to be journaled, whatever endpoints do: that much later at most,
const PATIENCE: Duration = Duration::from_millis(5);
/// and this while nobody gets a turn.
const PATIENCE_WITH_NONE: Duration = Duration::from_millis(1);

/// The end of the queue between decoder and dispatcher.
pub struct Intake {
    stream: Stream,
    /// When something was last taken, how many deliveries, and how many had been sent until then.
    taken_at: Instant,
    taken: usize,
    sent_before: u64,
}

impl Intake {
    /// Nothing has been taken.
    pub fn new() -> Intake {
        Intake { stream: Stream::new(), taken_at: Instant::now(), taken: 0, sent_before: 0 }
    }

    /// Whether nothing is to be taken just now, since many wait for their turn: until as much is sent as was taken.
    pub fn rests(&self, sending: &Sending) -> bool {
        sending.waiting() > CROWD
            && self.sent_since(sending) < self.taken
            && Instant::now() < self.rests_until(sending)
    }

    /// When it rests no more, whatever happens.
    pub fn rests_until(&self, sending: &Sending) -> Instant {
        let patience = if self.sent_since(sending) > 0 { PATIENCE } else { PATIENCE_WITH_NONE };
        self.taken_at + patience
    }

    fn sent_since(&self, sending: &Sending) -> usize {
        (sending.sent() - self.sent_before) as usize
    }

    /// Takes what is there, up to a round of it. The decoder's end is noticed elsewhere.
    pub fn take(&mut self, receiver: &mut Receiver, database: &Database, sending: &Sending) -> Vec<Item> {
        let (mut items, mut bytes) = (Vec::new(), 0);
        (self.taken_at, self.taken, self.sent_before) = (Instant::now(), 0, sending.sent());
        while items.len() < A_ROUND && self.taken < A_ROUND && bytes < BYTES_A_ROUND {
            match self.stream.next() {
                Ok(Some(item)) => {
                    self.taken += item.targets().len();
                    if let Item::Change { event, .. } = &item {
                        bytes += event.memory();
                    }
                    items.push(item);
                }
                Ok(None) => match receiver.receive() {
                    Ok(Some(piece)) => {
                        worker_counters::add(&database.dispatched.unqueued, piece.len() as u64);
                        self.stream.push(piece);
                    }
                    Ok(None) | Err(_) => break,
                },
                Err(error) => pgrx::error!("the decoder of this database is not understood: {error}"),
            }
        }
        items
    }
}
