//! The dispatcher's part in backfills: which one is read next, and when what was read joins what happens.
//!
//! A chunk goes through four steps. From before it is read, the events of its subscription are watched. It is read by the
//! backfiller. When all that it shows has arrived, it is journaled with how far its table has been read, as events that
//! stand behind all that has arrived. Then it is sent as if it had just happened.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pgrx::pg_sys;

use super::journal_writer::Recording;
use super::sender::Sending;
use crate::bgworkers::backfiller::{END, NOTHING};
use crate::delivery::{Load, Mode, Pacing, SubscriptionId, Watch, backfill_throttle};
use crate::event::{Cell, Event, Fingerprint, Transaction};
use crate::ipc::frame::{ChunkEnd, Failure, Item, NoChunk, Stream};
use crate::journal;
use crate::journal::{
    BackfillState, Locked, Notification, OpenBackfill, SESSION_TABLES, StateNoted, Strayed,
};
use crate::pg::process::bgworker::WorkerHandle;
use crate::pg::process::{bgworker, clock};
use crate::pg::shm_mq::Receiver;
use crate::shmem::dynamic;
use crate::shmem::registry::Database;

/// How long until a backfill is tried again whose table is locked, or for which there was no worker process.
const PAUSE: Duration = Duration::from_secs(1);
/// A backfill is read on when no more than so much is pending of its subscription.
const MOST_PENDING: u64 = 4_000;
/// The same in bytes.
const MOST_PENDING_BYTES: u64 = 2 << 20;
/// No chunk is ordered while more than this share of the memory for events is taken.
const MOST_MEMORY: f64 = 0.5;
/// The bytes of a chunk; and while there are live events, which wait when it is journaled and when its batches are sent.
const CHUNK_BYTES: u32 = 128 << 10;
const SMALL_CHUNK_BYTES: u32 = 12 << 10;
/// For how long after a live event others are expected.
const LIVE: Duration = Duration::from_millis(100);
/// The bytes of the queue from the backfiller.
const QUEUE_BYTES: usize = 256 * 1024;
/// What shared memory is for.
const TO_READ: &str = "to read backfills";
/// A backfill that has waited longer than this was not at work.
const LONGEST_STEP: f64 = 1.0;

/// The backfills that are open.
pub struct Backfilling {
    database: &'static Database,
    open: BTreeMap<i64, Open>,
    /// The one whose chunk is being read, and since when.
    ordered: Option<(i64, Instant)>,
    /// The one that was last ordered; the next one's turn is next.
    last: i64,
    link: Option<Link>,
    pacing: Pacing,
    /// When the last live event came.
    live_at: Option<Instant>,
    /// When it was last looked for what can be done.
    looked_at: Instant,
    /// When the next chunk may be ordered.
    rests_until: Instant,
    /// When a backfiller may be started.
    not_before: Instant,
    /// Ends that could not be noted, since somebody held a lock.
    unnoted: Vec<(i64, BackfillState, Option<String>)>,
    /// Ends that nobody has been notified of.
    ended: Vec<Notification>,
}

struct Open {
    subscription: i64,
    state: BackfillState,
    not_before: Instant,
    /// Since when it is at the present step.
    since: Instant,
    /// What its subscription got since the chunk was ordered.
    watch: Option<Watch>,
    /// Tables of which has been noted, since the chunk was ordered, that they have to be read again.
    again: HashSet<u32>,
    /// Whether such a note may not be written yet.
    unwritten: bool,
    /// The chunk that was read, and waits until all that it shows has arrived; and since when.
    chunk: Option<(Box<ChunkEnd>, Vec<Item>, Instant)>,
}

/// The backfiller, and what it sends.
struct Link {
    worker: WorkerHandle,
    receiver: Receiver,
    stream: Stream,
    /// Of the chunk that is being told.
    rows: Vec<Item>,
}

impl Backfilling {
    /// None is open.
    pub fn new(database: &'static Database) -> Backfilling {
        database.lacks_backfiller.store(false, Ordering::SeqCst);
        Backfilling {
            database,
            open: BTreeMap::new(),
            ordered: None,
            last: 0,
            link: None,
            pacing: Pacing::default(),
            live_at: None,
            looked_at: Instant::now(),
            rests_until: Instant::now(),
            not_before: Instant::now(),
            unnoted: Vec::new(),
            ended: Vec::new(),
        }
    }

    /// Takes the backfills that are open and not known yet.
    pub fn take_up(&mut self, open: Vec<OpenBackfill>) {
        for OpenBackfill { id, subscription, state } in open {
            // One that is over is not begun again because its end is not on record yet.
            if self.unnoted.iter().any(|(ended, state, _)| *ended == id && state.is_over()) {
                continue;
            }
            let now = Instant::now();
            self.open.entry(id).or_insert(Open {
                subscription,
                state,
                not_before: now,
                since: now,
                watch: None,
                again: HashSet::new(),
                unwritten: false,
                chunk: None,
            });
        }
    }

    /// Takes the ends that are to be notified.
    pub fn take_ended(&mut self) -> Vec<Notification> {
        std::mem::take(&mut self.ended)
    }

    /// Whether any is open.
    pub fn is_idle(&self) -> bool {
        self.open.is_empty()
    }

    /// Just these are open: subscriptions of others are gone.
    pub fn keep(&mut self, open: &[OpenBackfill]) {
        self.open.retain(|id, _| open.iter().any(|open| open.id == *id));
    }

    /// Takes note of a change that has just been journaled, and that all its targets get but those in `refusals`.
    pub fn note(&mut self, item: &Item, refusals: &HashMap<i64, String>, recording: &mut Recording) {
        if self.open.is_empty() {
            return;
        }
        self.live_at = Some(Instant::now());
        let moved = moved_in_part(item);
        for (id, open) in &mut self.open {
            let is_target = item.targets().iter().any(|target| target.subscription == open.subscription);
            if !is_target || refusals.contains_key(&open.subscription) {
                continue;
            }
            if let Some(watch) = &mut open.watch {
                watch.note(item);
            }
            if let Some(table) = moved.filter(|table| open.again.insert(*table)) {
                recording.backfill_again(*id, table);
                open.unwritten = true;
            }
        }
    }

    /// A gap of these subscriptions has ended: what was being read for them is read again.
    pub fn read_again(&mut self, subscriptions: &[i64]) {
        for open in self.open.values_mut().filter(|open| subscriptions.contains(&open.subscription)) {
            open.let_go();
            // What the backfiller is about to say may be from before that was noted.
            open.unwritten = true;
        }
    }

    /// Reads no more of a backfill for now.
    pub fn pause(&mut self, id: i64) {
        if let Some(open) = self.open.get_mut(&id) {
            open.state = BackfillState::Paused;
            open.let_go();
            self.note_state(id, BackfillState::Paused, None);
        }
    }

    /// Goes on with a backfill, also one that has failed.
    pub fn resume(&mut self, id: i64) {
        if let Some(open) = self.open.get_mut(&id) {
            if open.state != BackfillState::Paused {
                return;
            }
            open.state = BackfillState::Waiting;
            open.since = Instant::now();
        }
        self.note_state(id, BackfillState::Waiting, None);
        match journal::unless_locked(pg_sys::RowExclusiveLock, &SESSION_TABLES, |_| journal::open_backfills())
        {
            Locked::Done(open) => self.take_up(open),
            Locked::Gone => {}
            // They are looked at with the commands.
            Locked::Yes => self.database.commands.store(true, Ordering::SeqCst),
        }
    }

    /// Ends a backfill.
    pub fn cancel(&mut self, id: i64) {
        self.open.remove(&id);
        self.note_state(id, BackfillState::Cancelled, None);
    }

    /// Takes what has been read, and has more read. `between`: no transaction is half told. Returns whether there was
    /// anything to do.
    pub fn go_on(&mut self, sending: &mut Sending, recording: &mut Recording, between: bool) -> bool {
        self.looked_at = Instant::now();
        self.note_again();
        if self.open.is_empty() && self.link.is_none() {
            return false;
        }
        let mut busy = self.receive();
        if between {
            busy |= self.send(sending, recording);
        }
        self.see_to_worker();
        busy | self.order(sending, recording)
    }

    /// When there is something to do though nothing arrives; perhaps since it was last looked. What could have been done by
    /// then and was not waits for something else.
    pub fn next_wakeup(&self) -> Option<Instant> {
        let waiting = self.open.values().filter(|open| open.is_ready()).map(|open| open.not_before);
        let next = waiting.min().filter(|_| self.ordered.is_none());
        let order = next.map(|next| self.passes_at(next.max(self.not_before).max(self.rests_until)));
        let chunks = self.open.values().filter_map(|open| open.chunk.as_ref());
        let taken = chunks.map(|(.., since)| self.passes_at(*since)).min();
        let again = (!self.unnoted.is_empty()).then_some(self.not_before);
        [order, taken, again].into_iter().flatten().filter(|next| *next > self.looked_at).min()
    }

    fn receive(&mut self) -> bool {
        let Some(link) = &mut self.link else { return false };
        let mut told = Vec::new();
        let mut any = false;
        loop {
            match link.stream.next() {
                Ok(Some(Item::Begin(_))) => link.rows.clear(),
                Ok(Some(item @ (Item::Change { .. } | Item::Failed { .. }))) => link.rows.push(item),
                Ok(Some(Item::Chunk(end))) => {
                    told.push((end.backfill, Ok((end, std::mem::take(&mut link.rows)))))
                }
                Ok(Some(Item::NoChunk { backfill, why })) => told.push((backfill, Err(why))),
                Ok(Some(_)) => {}
                Ok(None) => match link.receiver.receive() {
                    Ok(Some(piece)) => {
                        any = true;
                        link.stream.push(piece);
                    }
                    // Its end is noticed in the next round.
                    Ok(None) | Err(_) => break,
                },
                Err(error) => pgrx::error!("the backfiller of this database is not understood: {error}"),
            }
        }
        for (backfill, what) in told {
            if let Some((_, since)) = self.ordered.take_if(|ordered| ordered.0 == backfill) {
                let pid = self.database.backfiller_pid.load(Ordering::SeqCst);
                let counted = bgworker::processor_time(pid);
                self.rests_until =
                    Instant::now() + self.pacing.rest(since.elapsed(), self.is_live(), counted);
            }
            match what {
                Ok(chunk) => self.take_chunk(backfill, chunk),
                Err(why) => self.no_chunk(backfill, why),
            }
        }
        any
    }

    fn take_chunk(&mut self, backfill: i64, (end, rows): (Box<ChunkEnd>, Vec<Item>)) {
        // One that was paused meanwhile has no watch: its chunk is read again.
        if let Some(open) = self.open.get_mut(&backfill).filter(|open| open.watch.is_some()) {
            open.chunk = Some((end, rows, Instant::now()));
        }
    }

    fn no_chunk(&mut self, backfill: i64, why: NoChunk) {
        let Some(open) = self.open.get_mut(&backfill) else { return };
        open.let_go();
        match why {
            NoChunk::Later => open.not_before = Instant::now() + PAUSE,
            // The backfiller may not have seen what there is to be read again.
            NoChunk::End if open.unwritten => {}
            NoChunk::End => {
                let end =
                    journal::unless_locked(pg_sys::AccessShareLock, &SESSION_TABLES, |_| end_of(backfill));
                match end {
                    Locked::Yes => open.not_before = Instant::now() + PAUSE,
                    Locked::Done((state, reason)) => self.end(backfill, state, reason),
                    Locked::Gone => self.end(backfill, BackfillState::Done, None),
                }
            }
            NoChunk::Failed(reason) => self.end(backfill, BackfillState::Failed, Some(reason)),
        }
    }

    fn end(&mut self, id: i64, state: BackfillState, reason: Option<String>) {
        self.open.remove(&id);
        self.note_state(id, state, reason);
    }

    /// Notes what a backfill does, now or as soon as nobody has a lock on its row.
    fn note_state(&mut self, id: i64, state: BackfillState, reason: Option<String>) {
        self.unnoted.retain(|(other, ..)| *other != id);
        let is_over = state.is_over();
        let noted = journal::unless_locked(pg_sys::RowExclusiveLock, &SESSION_TABLES, |_| {
            journal::set_backfill_state(id, state, reason.as_deref())
        });
        match noted {
            Locked::Yes | Locked::Done(StateNoted::Locked) => self.unnoted.push((id, state, reason)),
            Locked::Done(StateNoted::Of(subscription)) if is_over => self.ended.push(Notification {
                event: format!("backfill_{}", state.word()),
                subscription,
                delivery: None,
                backfill: Some(id),
                reason,
            }),
            _ => {}
        }
    }

    /// Sends the chunks of which all that they show has arrived.
    fn send(&mut self, sending: &mut Sending, recording: &mut Recording) -> bool {
        let frontier = recording.frontier();
        let ready = self.open.iter().find_map(|(id, open)| {
            let (end, _, since) = open.chunk.as_ref()?;
            (end.high <= frontier).then_some((*id, *since))
        });
        let Some((id, since)) = ready else {
            if self.open.values().any(|open| open.chunk.is_some()) {
                self.database.ask_for_progress();
            }
            return false;
        };
        if self.passes_at(since) > Instant::now() {
            return false;
        }
        let Some(open) = self.open.get_mut(&id) else { return false };
        let (Some((end, rows, _)), Some(watch)) = (open.chunk.take(), open.watch.take()) else {
            return false;
        };
        let seconds = open.since.elapsed().as_secs_f64().min(LONGEST_STEP);
        open.since = Instant::now();
        // Where that cannot be told, the chunk is read again.
        if let Some(rows) = watch.settle(&end, rows) {
            let sent = rows.len() as u64;
            let rows = stand_behind(recording, rows);
            let table = end.table;
            // Nothing was there to note it in if this is the first that is read of the table.
            if open.again.contains(&table) {
                recording.backfill_again(id, table);
                open.unwritten = true;
            }
            let mut arrived = Vec::with_capacity(rows.len());
            for row in rows {
                if let Some(first) = recording.append(&row) {
                    arrived.push((first, row));
                }
            }
            recording.backfilled(*end, sent, seconds);
            if !recording.write() {
                self.database.recheck.store(true, Ordering::SeqCst);
                return true;
            }
            for (first, row) in arrived {
                sending.arrive(first, row, &HashMap::new(), recording);
            }
        }
        true
    }

    /// Starts the backfiller when there is something to read, and lets it go when there will be nothing.
    fn see_to_worker(&mut self) {
        if self.link.as_ref().is_some_and(|link| link.worker.has_ended()) {
            self.unlink();
            self.not_before = Instant::now() + PAUSE;
        }
        let wanted = self.open.values().any(Open::is_open);
        if !wanted && self.link.is_some() && self.ordered.is_none() {
            self.database.backfill_order.store(END, Ordering::SeqCst);
            self.database.backfiller.wake();
            self.unlink();
        }
        let is_alone = self.database.backfiller_pid.load(Ordering::SeqCst) == 0;
        if !wanted {
            self.database.lacks_backfiller.store(false, Ordering::SeqCst);
        }
        if wanted && self.link.is_none() && is_alone && self.not_before <= Instant::now() {
            self.start();
        }
    }

    fn start(&mut self) {
        let receiver = dynamic::make(self.database, TO_READ, || Receiver::create(QUEUE_BYTES));
        let Some(receiver) = receiver else {
            self.not_before = Instant::now() + PAUSE;
            return;
        };
        self.database.backfill_queue.store(receiver.handle(), Ordering::SeqCst);
        self.database.backfill_order.store(NOTHING, Ordering::SeqCst);
        match bgworker::start_worker("backfiller", "pgwh_backfiller_main", self.database.oid()) {
            Some(worker) => {
                self.link = Some(Link { worker, receiver, stream: Stream::new(), rows: Vec::new() });
                self.database.lacks_backfiller.store(false, Ordering::SeqCst);
            }
            None => {
                receiver.close();
                if !self.database.lacks_backfiller.swap(true, Ordering::SeqCst) {
                    crate::shmem::registry::warn_of_no_worker("to read backfills");
                }
                self.not_before = Instant::now() + PAUSE;
            }
        }
    }

    /// What the backfiller had read and not told is read again.
    fn unlink(&mut self) {
        if let Some(link) = self.link.take() {
            link.receiver.close();
        }
        if let Some(open) = self.ordered.take().and_then(|(id, _)| self.open.get_mut(&id)) {
            open.let_go();
        }
    }

    /// Has the next chunk read, of each backfill in its turn.
    fn order(&mut self, sending: &Sending, recording: &mut Recording) -> bool {
        if self.link.is_none() || self.ordered.is_some() || sending.memory_share() > MOST_MEMORY {
            return false;
        }
        let now = Instant::now();
        if self.passes_at(self.rests_until) > now {
            return false;
        }
        let may = |open: &Open| {
            open.is_ready()
                && open.not_before <= now
                && has_room(sending.load(SubscriptionId(open.subscription)))
        };
        let later = self.open.range(self.last + 1..).find(|(_, open)| may(open));
        let next = later.or_else(|| self.open.iter().find(|(_, open)| may(open))).map(|(id, _)| *id);
        let Some(id) = next else { return false };
        if let Some(open) = self.open.get_mut(&id) {
            if open.unwritten && !recording.write() {
                self.database.recheck.store(true, Ordering::SeqCst);
                return false;
            }
            open.unwritten = false;
            open.again.clear();
            open.watch = Some(Watch::default());
            if open.state == BackfillState::Waiting {
                open.state = BackfillState::Running;
                open.since = now;
                self.note_state(id, BackfillState::Running, None);
            }
        }
        (self.ordered, self.last) = (Some((id, now)), id);
        let bytes = if self.is_live() { SMALL_CHUNK_BYTES } else { CHUNK_BYTES };
        self.database.backfill_bytes.store(bytes, Ordering::SeqCst);
        self.database.backfill_order.store(id, Ordering::SeqCst);
        self.database.backfiller.wake();
        true
    }

    /// Whether there are live events.
    fn is_live(&self) -> bool {
        self.live_at.is_some_and(|at| at.elapsed() < LIVE)
    }

    /// When what could be done since then is done, which lets live events pass.
    fn passes_at(&self, since: Instant) -> Instant {
        self.live_at.map_or(since, |at| backfill_throttle::behind(at, since))
    }

    fn note_again(&mut self) {
        if self.unnoted.is_empty() || self.not_before > Instant::now() {
            return;
        }
        self.not_before = Instant::now() + PAUSE;
        for (id, state, reason) in std::mem::take(&mut self.unnoted) {
            self.note_state(id, state, reason);
        }
    }
}

impl Open {
    fn is_open(&self) -> bool {
        matches!(self.state, BackfillState::Waiting | BackfillState::Running)
    }

    /// Whether its next chunk may be ordered, as far as it is concerned.
    fn is_ready(&self) -> bool {
        self.is_open() && self.watch.is_none()
    }

    /// Forgets the chunk that was ordered.
    fn let_go(&mut self) {
        self.watch = None;
        self.chunk = None;
    }
}

/// How a backfill ends that has nothing left to read, and why. Inside a transaction.
fn end_of(backfill: i64) -> (BackfillState, Option<String>) {
    // The backfiller sees that at once, the dispatcher when the commit has been decoded.
    if journal::is_orphan(backfill) {
        return (BackfillState::Cancelled, Some(journal::SUBSCRIPTION_GONE.to_owned()));
    }
    if let Some(patterns) = journal::without_tables(backfill) {
        return (BackfillState::Failed, Some(no_table(backfill, &patterns)));
    }
    let not_read = match journal::strayed(backfill) {
        Strayed::None => None,
        Strayed::Elsewhere(tables) => {
            Some(format!("it left out tables that the subscription is no longer about: {tables}"))
        }
        Strayed::Named(tables) => {
            let reason = format!(
                "renamed or moved before they were read to their end: {tables}. To go on once they are back: \
                 SELECT pgwh.resume_backfill({backfill}); To give it up: SELECT pgwh.cancel_backfill({backfill});"
            );
            return (BackfillState::Failed, Some(reason));
        }
    };
    let reasons: Vec<String> = not_read.into_iter().chain(journal::left_out(backfill)).collect();
    (BackfillState::Done, (!reasons.is_empty()).then(|| reasons.join("; ")))
}

/// Why a backfill failed that had nothing to read, and what to type when it has.
fn no_table(backfill: i64, patterns: &str) -> String {
    format!(
        "there was no table to read that matches {patterns}; when there is one: SELECT pgwh.resume_backfill({backfill});"
    )
}

/// The table in which a change gave a row another key and left a large value of it alone. If the row came from where
/// the table has not been read yet to where it has, neither the change nor a read tells all of it.
fn moved_in_part(item: &Item) -> Option<u32> {
    let Item::Change { event, keys, .. } = item else { return None };
    let is_whole = event.new.as_ref()?.cells().all(|cell| cell != Cell::Unchanged);
    (keys.old.is_some() && !is_whole).then_some(event.relation.oid)
}

/// Whether a subscription keeps up, so that more may be read for it.
fn has_room(load: Option<Load>) -> bool {
    load.is_some_and(|load| {
        let sends = matches!(load.mode, Mode::Live | Mode::Draining);
        sends && load.pending <= MOST_PENDING && load.pending_bytes <= MOST_PENDING_BYTES
    })
}

/// The rows as events that stand behind all that has arrived, at a position where no commit is: the frontier is where a
/// record ended, and none begins a byte before that.
fn stand_behind(recording: &mut Recording, rows: Vec<Item>) -> Vec<Item> {
    let (commit_lsn, first) = recording.place_at_frontier();
    let committed_at = clock::now();
    // SAFETY: reads shared memory.
    let system = unsafe { pg_sys::GetSystemIdentifier() };
    let fingerprint = Fingerprint::of(system, 0, committed_at);
    let transaction = Arc::new(Transaction { xid: 0, commit_lsn, committed_at, fingerprint, origin: None });
    let place = |(item, ordinal): (Item, u64)| {
        let transaction = Arc::clone(&transaction);
        match item {
            Item::Change { event, keys, barrier, targets } => {
                let event = Arc::unwrap_or_clone(event);
                let event = Arc::new(Event { transaction, ordinal, lsn: commit_lsn, ..event });
                Item::Change { event, keys, barrier, targets }
            }
            Item::Failed { failure, keys, barrier, targets } => {
                let failure = Arc::unwrap_or_clone(failure);
                let failure = Arc::new(Failure { transaction, ordinal, ..failure });
                Item::Failed { failure, keys, barrier, targets }
            }
            other => other,
        }
    };
    rows.into_iter().zip(first..).map(place).collect()
}
