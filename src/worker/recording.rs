//! When the journal is written, and what that proves: how far the slot may be confirmed.

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::sending::Payload;
use crate::decode::reader;
use crate::dispatch::{DeliveryId, End, Position, Record};
use crate::event::{Lsn, Timestamp};
use crate::journal::outcome::{self, Outcome};
use crate::journal::{Attempt, Journal, Loaded, Retention};
use crate::link::frame::{Failure, Item, Target};
use crate::settings;

/// How long what has happened waits to be written together with what happens next.
const WRITE_AFTER: Duration = Duration::from_millis(10);
/// How many bytes wait at most.
const WRITE_BYTES: usize = 1 << 20;
/// A restart applies what came after the last checkpoint, so this bounds how long it takes.
const CHECKPOINT_AFTER: Duration = Duration::from_secs(10);
/// See [`CHECKPOINT_AFTER`].
const CHECKPOINT_DELIVERIES: u64 = 200_000;
/// Our commits don't wait for the disk: how often is looked whether they have reached it.
const LOOK_FOR_FLUSH: Duration = Duration::from_millis(50);

/// The journal, and what it proves.
pub struct Recording {
    journal: Journal,
    /// Everything that ended at or before this has arrived and is in the journal or its buffer.
    frontier: Lsn,
    /// Where each of our last commits ends, and up to where everything is recorded once that is on disk.
    written: VecDeque<(Lsn, Lsn)>,
    proven: Lsn,
    checkpointed_at: Instant,
    checkpointed: DeliveryId,
    /// The longest time that a subscription wants its events to stay.
    retention: Duration,
}

impl Recording {
    /// Opens the journal and says where everything stands; none when the extension isn't here.
    pub fn open() -> Option<(Recording, Loaded)> {
        let (journal, loaded) = Journal::open()?;
        let recording = Recording {
            journal,
            frontier: Lsn(0),
            written: VecDeque::new(),
            proven: Lsn(0),
            checkpointed_at: Instant::now(),
            checkpointed: loaded.last,
            retention: settings::retention(),
        };
        Some((recording, loaded))
    }

    /// The journal, to be read.
    pub fn journal(&mut self) -> &mut Journal {
        &mut self.journal
    }

    /// Journals a change that arrived; the number of its first delivery, none if that has happened before.
    pub fn append(&mut self, item: &Item) -> Option<DeliveryId> {
        self.journal.append(item)
    }

    /// Everything that ended at or before `lsn` has arrived.
    pub fn arrived(&mut self, lsn: Lsn) {
        self.frontier = self.frontier.max(lsn);
    }

    /// Up to where everything that ended has arrived.
    pub fn frontier(&self) -> Lsn {
        self.frontier
    }

    /// Records what became of a request.
    pub fn record(&mut self, record: Record<Payload>) {
        match record {
            Record::Finished { subscription, members, end, attempts, duration, replay } => {
                let mut ids = members.iter().map(|(id, _)| *id);
                let Some((id, (event, _))) = members.first().zip(ids.next()).map(|(first, _)| first) else {
                    return;
                };
                let outcome = Outcome {
                    subscription: subscription.0,
                    id: *id,
                    others: ids.collect(),
                    event: event.id(),
                    committed_at: event.transaction.committed_at,
                    finished_at: wall_clock(),
                    duration,
                    attempts,
                    end: match end {
                        End::Delivered { status } => outcome::End::Delivered { status },
                        End::Dead { status, class, reason } => outcome::End::Dead { status, class, reason },
                    },
                    replay,
                };
                self.journal.finished(&outcome);
            }
            Record::Attempt { .. } => {}
        }
    }
}
