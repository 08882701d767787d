//! When the journal is written, and what that proves: how far the slot may be confirmed.

use std::time::{Duration, Instant};

use crate::delivery::Payload;
use crate::delivery::{DeliveryId, Position, Record};
use crate::event::{Event, EventId, Lsn, Transaction};
use crate::ipc::frame::{ChunkEnd, Failure, Item};
use crate::journal::packed::outcome_chunk::{DROPPED, End, FILTER, Outcome};
use crate::journal::{Attempt, Journal, Loaded, Retention, Retentions, SubscriptionRow};
use crate::pg::process::{bgworker, clock};
use crate::{delivery, gucs, journal};

/// How long what has happened waits to be written together with what happens next.
const WRITE_AFTER: Duration = Duration::from_millis(10);
/// How many bytes wait at most.
const WRITE_BYTES: usize = 1 << 20;
/// A restart applies what came after the last checkpoint, so this bounds how long it takes.
const CHECKPOINT_AFTER: Duration = Duration::from_secs(10);
/// See [`CHECKPOINT_AFTER`].
const CHECKPOINT_DELIVERIES: u64 = 200_000;
/// How often is looked for what may be cleared.
const RETAIN_EVERY: Duration = Duration::from_secs(1);
/// How often is looked for schema changes that are too old to be kept.
const FORGET_EVERY: Duration = Duration::from_secs(3600);

/// The journal, and what it proves.
pub struct Recording {
    journal: Journal,
    /// Everything that ended at or before this has arrived and is in the journal or its buffer.
    frontier: Lsn,
    /// What of that was written when last looked.
    proven: Lsn,
    /// Since when something is committed that may not be on disk.
    unflushed_since: Option<Instant>,
    /// Something has arrived that cannot be written for now: what follows is not proven.
    is_held: bool,
    checkpointed_at: Instant,
    checkpointed: DeliveryId,
    /// The positions of all subscriptions are wanted, not only of those that something happened to.
    all_wanted: bool,
    retained_at: Instant,
    schema_changes_forgotten_at: Option<Instant>,
    retentions: Retentions,
}

impl Recording {
    /// Opens the journal and says where everything stands; none when the extension isn't here.
    pub fn open() -> Option<(Recording, Loaded)> {
        let (journal, loaded) = Journal::open()?;
        let recording = Recording {
            journal,
            frontier: Lsn(0),
            proven: Lsn(0),
            unflushed_since: None,
            is_held: false,
            checkpointed_at: Instant::now(),
            checkpointed: loaded.last,
            all_wanted: false,
            retained_at: Instant::now(),
            schema_changes_forgotten_at: None,
            retentions: Retentions::default(),
        };
        Some((recording, loaded))
    }

    /// The journal, to be read.
    pub fn journal(&mut self) -> &mut Journal {
        &mut self.journal
    }

    /// The last number that a delivery was given.
    pub fn last(&self) -> DeliveryId {
        self.journal.last()
    }

    /// Journals a change that arrived; the number of its first delivery, none if it is in the journal already.
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

    /// Keeps events as long as subscriptions and the setting ask for, and tells them by their keys. Of the subscriptions
    /// `ids`, those that are not in `rows` are gone.
    pub fn keep_for(&mut self, ids: &[i64], rows: &[SubscriptionRow]) {
        for id in ids {
            self.journal.own_keys.set(*id, None);
            self.retentions.set(*id, None);
        }
        for row in rows {
            self.journal.own_keys.set(row.id, row.key_columns.as_deref());
            self.retentions.set(row.id, row.retention);
        }
    }

    /// Where something may stand that is taken behind all that has arrived: a position that no commit has, and the first
    /// place there. Not while a transaction is half told.
    pub fn place_at_frontier(&self) -> (Lsn, u64) {
        self.journal.place_before(self.frontier)
    }

    /// Takes how far a backfill has read a table, after the rows of it that have been taken.
    pub fn backfilled(&mut self, chunk: ChunkEnd, sent: u64, seconds: f64) {
        self.journal.backfilled(chunk, sent, seconds);
    }

    /// Takes that a backfill has to read a table again, with the change that is the reason.
    pub fn backfill_again(&mut self, backfill: i64, table: u32) {
        self.journal.backfill_again(backfill, table);
    }

    /// Takes what became of a request.
    pub fn record(&mut self, record: Record<Payload>) {
        match record {
            Record::Finished { subscription, members, end, attempts, duration, replay } => {
                let Some((id, (event, _))) = members.first() else { return };
                if let delivery::End::Delivered { status, flaw: Some(flaw) } = &end {
                    self.journal.attempt(Attempt {
                        subscription: subscription.0,
                        members: members.iter().map(|(id, _)| *id).collect(),
                        attempt: attempts,
                        started_at: clock::before_now(duration),
                        duration,
                        status: Some(*status),
                        class: None,
                        error: flaw.clone(),
                        response: None,
                        next_in: None,
                        replay,
                    });
                }
                self.journal.finished(&Outcome {
                    subscription: subscription.0,
                    id: *id,
                    others: members[1..].iter().map(|(id, _)| *id).collect(),
                    event: event.id(),
                    other_events: replay.map_or_else(Vec::new, |_| {
                        members[1..].iter().map(|(_, (event, _))| event.id()).collect()
                    }),
                    committed_at: event.transaction.committed_at,
                    finished_at: clock::now(),
                    duration,
                    attempts,
                    end: match end {
                        delivery::End::Delivered { status, .. } => End::Delivered { status },
                        delivery::End::Dropped => End::Delivered { status: DROPPED },
                        delivery::End::Dead { status, kind, reason } => {
                            End::Dead { status, class: kind.to_owned(), reason }
                        }
                    },
                    replay,
                });
            }
            Record::Attempt {
                subscription,
                members,
                attempt,
                failure,
                duration,
                next_attempt_in,
                failures,
                replay,
            } => {
                self.journal.attempt(Attempt {
                    subscription: subscription.0,
                    members: members.iter().map(|(id, _)| *id).collect(),
                    attempt,
                    started_at: clock::before_now(duration),
                    duration,
                    status: failure.status,
                    class: Some(failure.kind.to_owned()),
                    error: failure.error,
                    response: Some(failure.response).filter(|response| !response.is_empty()),
                    // What was not counted is no failure to begin from after a restart.
                    next_in: next_attempt_in.filter(|_| failures >= attempt || members.len() > 1),
                    replay,
                });
            }
        }
    }

    /// Takes that nobody can say whether the subscription should get an event.
    pub fn record_refused(&mut self, id: DeliveryId, subscription: i64, event: &Event, reason: &str) {
        self.record_dead(id, subscription, event.id(), &event.transaction, FILTER, reason);
    }

    /// Takes that a change could not be encoded, so that this delivery cannot be made.
    pub fn record_failed(&mut self, id: DeliveryId, subscription: i64, failure: &Failure) {
        self.record_dead(id, subscription, failure.id(), &failure.transaction, "encode", &failure.message);
    }

    fn record_dead(
        &mut self,
        id: DeliveryId,
        subscription: i64,
        event: EventId,
        transaction: &Transaction,
        class: &str,
        reason: &str,
    ) {
        self.journal.finished(&Outcome {
            subscription,
            id,
            others: Vec::new(),
            event,
            other_events: Vec::new(),
            committed_at: transaction.committed_at,
            finished_at: clock::now(),
            duration: Duration::ZERO,
            attempts: 0,
            end: End::Dead { status: None, class: class.to_owned(), reason: reason.to_owned() },
            replay: None,
        });
    }

    /// Whether positions are wanted now: false for those of subscriptions that something happened to since they were
    /// last, true for all.
    pub fn checkpoint_wanted(&self) -> Option<bool> {
        let many = self.last().0 - self.checkpointed.0 >= CHECKPOINT_DELIVERIES;
        let due = many || self.checkpointed_at.elapsed() >= CHECKPOINT_AFTER;
        (self.all_wanted || due).then_some(self.all_wanted)
    }

    /// Takes these positions.
    pub fn checkpoint(&mut self, positions: Vec<(i64, Position)>) {
        if std::mem::take(&mut self.all_wanted) {
            self.journal.checkpoint_all(&positions);
        } else {
            self.journal.checkpoint(&positions);
        }
        self.checkpointed = self.last();
        self.checkpointed_at = Instant::now();
    }

    /// Whether so much waits to be written that nothing more should be taken before.
    pub fn is_full(&self) -> bool {
        self.journal.buffered_bytes() >= WRITE_BYTES
    }

    /// Something was committed without waiting for the disk. What follows is proven once that is there, too.
    pub fn must_flush(&mut self) {
        self.unflushed_since.get_or_insert_with(Instant::now);
    }

    /// Something has arrived that cannot be written for now, or (`false`) all of that is written. Until then nothing that arrives is
    /// proven, so that all of it arrives again after a restart.
    pub fn hold(&mut self, is_held: bool) {
        self.is_held = is_held;
    }

    /// Whether all that has happened is written.
    pub fn is_written(&self) -> bool {
        self.waits_since().is_none()
    }

    fn waits_since(&self) -> Option<Instant> {
        self.journal.buffered_since().into_iter().chain(self.unflushed_since).min()
    }

    /// Whether it is time to write.
    pub fn is_due(&self) -> bool {
        self.is_full() || self.waits_since().is_some_and(|since| since.elapsed() >= WRITE_AFTER)
    }

    /// Writes what has happened; false when the extension isn't here any more.
    pub fn write(&mut self) -> bool {
        let written = self.journal.flush().is_some();
        if self.unflushed_since.take().is_some() {
            bgworker::flush_commits();
        }
        written
    }

    /// Clears what is done and old enough.
    pub fn retain(&mut self, oldest_pending: impl FnOnce() -> Option<DeliveryId>) {
        if self.retained_at.elapsed() < RETAIN_EVERY {
            return;
        }
        self.retained_at = Instant::now();
        let retention = Retention {
            longest: self.retentions.longest(gucs::retention()),
            max_bytes: gucs::journal_max_size(),
        };
        self.all_wanted |= self.journal.retain(oldest_pending(), retention);
        if self.schema_changes_forgotten_at.is_none_or(|at| at.elapsed() >= FORGET_EVERY) {
            self.schema_changes_forgotten_at = Some(Instant::now());
            let forget = || journal::with_tables(|_| journal::forget_old_schema_changes());
            if let Err(raised) = bgworker::attempt(RETAIN_EVERY, forget) {
                pgrx::warning!("pgstream_hooks: old schema changes cannot be forgotten: {}", raised.message);
            }
        }
    }

    /// Up to where everything that ended is recorded, on disk.
    pub fn proven(&mut self) -> Lsn {
        if self.is_written() && !self.is_held {
            self.proven = self.frontier;
        }
        self.proven
    }

    /// When there is something to write.
    pub fn next_wakeup(&self) -> Option<Instant> {
        self.waits_since().map(|since| since + WRITE_AFTER)
    }
}
