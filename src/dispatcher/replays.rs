//! Replays under way: each is read once for the keys that have to wait for it, then page by page for what it sends.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use pgrx::pg_sys;

use super::payload::{item_of, order_of};
use crate::delivery::Payload;
use crate::delivery::{DeliveryId, Engine, KeyFilter, Page, SubscriptionId};
use crate::journal;
use crate::journal::{Journal, Locked, Replay, ReplayEnd, ReplayReader, Standing, What};

/// How often a replay's progress is noted.
const NOTE_EVERY: Duration = Duration::from_secs(1);
/// How much is read at once for the keys: little, since what is live waits meanwhile.
const KEYS_BYTES: usize = 64 << 10;
/// The filter is made for no more events than this; with more, live ones wait that need not.
const MOST_KEYS: u64 = 10_000_000;

/// The replays that are not over; those of one subscription come one after the other.
#[derive(Default)]
pub struct Replaying {
    waiting: VecDeque<Replay>,
    running: HashMap<i64, Running>,
    /// Ends that could not be noted, since another session held a lock.
    unnoted: Vec<(i64, u64, ReplayEnd)>,
    /// When these are tried again, and a beginning that could not be noted.
    retry_at: Option<Instant>,
}

struct Running {
    replay: Replay,
    reader: ReplayReader,
    /// The keys found so far; none once the engine has them.
    keys: Option<KeyFilter>,
    /// How many events it is about, as far as it has been read.
    total: u64,
    noted: Instant,
}

impl Replaying {
    /// Takes the replays that are open and not known yet. What is newer than one that was under way waits from here on.
    pub fn take_up(&mut self, open: Vec<Replay>, engine: &mut Engine<Payload>) {
        for replay in open {
            let mut known = self.waiting.iter().chain(self.running.values().map(|running| &running.replay));
            // One that is over, only not on record yet, would hold what is newer for as long as its row is locked.
            let is_over = self.unnoted.iter().any(|(ended, ..)| *ended == replay.id);
            if is_over || known.any(|other| other.id == replay.id) {
                continue;
            }
            if replay.range.is_some() {
                let subscription = SubscriptionId(replay.subscription);
                engine.replay_resume(subscription, replay.id, replay.cursor, Instant::now());
            }
            self.waiting.push_back(replay);
        }
    }

    /// Begins what waits, and reads on for the keys. Returns whether there was anything to do.
    pub fn go_on(&mut self, engine: &mut Engine<Payload>, journal: &mut Journal) -> bool {
        self.retry_at.take_if(|at| *at <= Instant::now());
        if self.retry_at.is_none() {
            for (replay, done, end) in std::mem::take(&mut self.unnoted) {
                self.note_end(replay, done, end);
            }
        }
        let began = self.retry_at.is_none() && self.begin_next(engine, journal);
        let mut busy = began;
        if let Some(running) = self.running.values_mut().find(|running| running.keys.is_some()) {
            busy = true;
            // What filters could not judge must be told apart from here on, so that has to be there to be read.
            if running.read_keys(journal) && journal.flush().is_some() {
                running.begin(engine);
            }
        }
        self.note(engine);
        busy
    }

    /// Begins the first that waits for no other of its subscription.
    fn begin_next(&mut self, engine: &Engine<Payload>, journal: &mut Journal) -> bool {
        let ready = |replay: &Replay| !self.running.contains_key(&replay.subscription);
        let Some(mut replay) =
            self.waiting.iter().position(ready).and_then(|place| self.waiting.remove(place))
        else {
            return false;
        };
        if !engine.knows(SubscriptionId(replay.subscription)) {
            return true;
        }
        let Some(range) = replay.range.or_else(|| journal.begin_replay(&mut replay)) else {
            self.waiting.push_front(replay);
            self.retry_at = Some(Instant::now() + NOTE_EVERY);
            return false;
        };
        let most = (range.last.0 + 1).saturating_sub(range.first.0).min(MOST_KEYS);
        let running = Running {
            reader: ReplayReader::new(&replay, range),
            keys: Some(KeyFilter::with_capacity(most as usize)),
            total: 0,
            noted: Instant::now(),
            replay,
        };
        self.running.insert(running.replay.subscription, running);
        true
    }

    /// The next page of what a replay sends, each under a number of its own. None when there is no such replay, or our
    /// tables are gone.
    pub fn page(
        &mut self,
        journal: &mut Journal,
        subscription: SubscriptionId,
        after: DeliveryId,
        max_bytes: usize,
    ) -> Option<Page<Payload>> {
        let running = self.running.get_mut(&subscription.0)?;
        // The engine begins anew behind what is done when it had no room for what it had read.
        if running.reader.at() > after {
            running.reader.rewind(after);
        }
        // What depends on what came before is read from its beginning, up to where the engine is.
        while running.reader.at() < after {
            running.reader.page(journal, max_bytes)?;
        }
        let page = running.reader.page(journal, max_bytes)?;
        let mut items = Vec::with_capacity(page.found.len());
        for mut found in page.found {
            found.id = journal.number_again();
            items.extend(item_of(found));
        }
        Some(Page { items, upto: page.upto, at_tail: page.at_end })
    }

    /// A replay of this subscription is done.
    pub fn ended(&mut self, subscription: i64) {
        if let Some(running) = self.running.remove(&subscription) {
            self.note_end(running.replay.id, running.total, ReplayEnd::Done);
        }
    }

    /// Notes that a replay is over, now or as soon as no other session has a lock on its row.
    fn note_end(&mut self, replay: i64, done: u64, end: ReplayEnd) {
        self.unnoted.retain(|(other, ..)| *other != replay);
        let noted = journal::unless_locked(pg_sys::RowExclusiveLock, &[c"replays"], |_| {
            journal::replay_ended(replay, done, &end)
        });
        if matches!(noted, Locked::Yes | Locked::Done(false)) {
            self.unnoted.push((replay, done, end));
            self.retry_at = Some(Instant::now() + NOTE_EVERY);
        }
    }

    /// When something is tried again.
    pub fn next_wakeup(&self) -> Option<Instant> {
        self.retry_at
    }

    /// The oldest delivery that is to be sent again.
    pub fn oldest(&self) -> Option<DeliveryId> {
        let open = self.waiting.iter().chain(self.running.values().map(|running| &running.replay));
        open.filter(|replay| replay.range.is_some()).map(|replay| DeliveryId(replay.cursor.0 + 1)).min()
    }

    /// Somebody wants no more of a replay.
    pub fn cancel(&mut self, engine: &mut Engine<Payload>, replay: i64) {
        let open = self.waiting.iter().chain(self.running.values().map(|running| &running.replay));
        let subscription = open.filter(|open| open.id == replay).map(|open| open.subscription).next();
        let mut done = 0;
        if let Some(subscription) = subscription {
            // One that goes on after a restart holds what is newer although its turn has not come.
            let id = SubscriptionId(subscription);
            if let Some(progress) = engine.replay(id).filter(|progress| progress.replay == replay) {
                done = progress.delivered + progress.dead;
                engine.replay_cancel(id, Instant::now());
            }
            self.waiting.retain(|waiting| waiting.id != replay);
            self.running.retain(|_, running| running.replay.id != replay);
        }
        self.note_end(replay, done, ReplayEnd::Cancelled);
    }

    /// A subscription is gone, and its replays with it.
    pub fn forget(&mut self, subscription: i64) {
        self.waiting.retain(|waiting| waiting.subscription != subscription);
        self.running.remove(&subscription);
    }

    fn note(&mut self, engine: &Engine<Payload>) {
        for (subscription, running) in &mut self.running {
            let Some(progress) = engine.replay(SubscriptionId(*subscription)) else { continue };
            if running.noted.elapsed() >= NOTE_EVERY && progress.done > running.replay.cursor {
                running.noted = Instant::now();
                running.replay.cursor = progress.done;
                let done = running.replay.done + progress.delivered + progress.dead;
                journal::unless_locked(pg_sys::RowExclusiveLock, &[c"replays"], |_| {
                    journal::replay_progress(running.replay.id, progress.done, done, Some(running.total));
                });
            }
        }
    }
}

impl Running {
    /// Has the engine send it. From here on live events of its keys wait, so what has arrived by now belongs to it, and
    /// what has been sent by now is what there is to be sent again.
    fn begin(&mut self, engine: &mut Engine<Payload>) {
        let (subscription, now) = (SubscriptionId(self.replay.subscription), Instant::now());
        let Some((keys, position)) = self.keys.take().zip(engine.position(subscription, now)) else { return };
        self.reader.stand(Standing { position, never_sent: engine.never_sent(subscription) });
        self.reader.rewind(self.replay.cursor);
        engine.replay_begin(subscription, self.replay.id, self.reader.at(), keys, now);
    }

    /// Reads a page for its keys. True when all have been found that have arrived by now.
    fn read_keys(&mut self, journal: &mut Journal) -> bool {
        let Some(keys) = &mut self.keys else { return false };
        let Some(page) = self.reader.page(journal, KEYS_BYTES) else { return false };
        for found in page.found {
            if let What::Event { event, keys: lanes, barrier } = &found.what {
                self.total += 1;
                keys.add(&order_of(*lanes, event, *barrier));
            }
        }
        page.at_end && !self.reader.extend(journal.last())
    }
}
