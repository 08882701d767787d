//! One subscription: what it has in memory, what waits in the journal, and what it may do.

mod checkpoint;
mod completion;
mod load;
mod next_request;
mod pause;
mod render_results;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::fair_scheduler::{Candidate, Pace, Turns};
use super::in_flight::Requests;
pub(super) use super::in_flight::State;
use super::lanes::Lanes;
use super::limits::circuit_breaker::Breaker;
use super::limits::concurrency_window::Window;
use super::limits::latency_histogram::Latency;
use super::limits::rate_limiter::{PerSecond, Rate};
use super::limits::retry_schedule::Schedule;
use super::ordering::{Order, Ordering};
use super::outcome::{Disabled, Effect, Record, SubscriptionId};
use super::position::{Counts, DeliveryId, Mode, Position};
use super::replay::Replay;
use super::spilled::{Failed, Listed};
use crate::event::{Lsn, Timestamp};

pub(super) use self::load::{Held, Reading};

/// How a subscription wants to be sent to.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Requests at once; at least 1.
    pub max_in_flight: u32,
    /// Requests a second, if there is a limit.
    pub rate_limit: Option<PerSecond>,
    /// The delays between attempts.
    pub schedule: Schedule,
    /// Requests that may be handed over beyond those, to be sent as soon as one of those succeeds.
    pub max_ahead: u32,
    /// The most deliveries in a request; at least 1.
    pub batch_size: u32,
    /// How long to linger for a full batch.
    pub batch_wait: Duration,
    /// What waits for what.
    pub ordering: Ordering,
    /// Tells columns apart that its keys are made of.
    pub keyed_by: u64,
    /// The endpoint's host: those of one host share turns.
    pub host: u64,
    /// The subscription is stopped when more bytes than this are pending.
    pub max_pending_bytes: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            max_in_flight: 16,
            max_ahead: 0,
            rate_limit: None,
            schedule: Schedule::default(),
            batch_size: 1,
            batch_wait: Duration::ZERO,
            ordering: Ordering::Key,
            keyed_by: 0,
            host: 0,
            max_pending_bytes: u64::MAX,
        }
    }
}

/// Where in write-ahead log and when an event was committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct At {
    /// Where its commit record begins.
    pub commit_lsn: Lsn,
    /// The time in the commit record.
    pub committed_at: Timestamp,
}

/// What all subscriptions of an engine write to.
pub(super) struct Shared<P> {
    pub records: Vec<Record<P>>,
    pub effects: Vec<Effect>,
    pub memory_used: usize,
    pub memory_limit: usize,
    /// Subscriptions that have something in memory.
    pub busy: usize,
    /// The highest number that has arrived.
    pub last_id: u64,
    pub serial: u64,
    pub touched: Vec<SubscriptionId>,
    /// The time of the last call that told one.
    pub now: Option<Instant>,
    /// Empty lanes for the next subscription that has something to send.
    #[expect(clippy::vec_box, reason = "the boxes are what is reused")]
    pub spare: Vec<Box<Work<P>>>,
}

impl<P> Shared<P> {
    /// What a subscription that reads the journal may have in memory.
    pub fn share(&self) -> usize {
        self.memory_limit / (2 * self.busy.max(4))
    }

    /// What may still be read from the journal: less than would have others make room, or what has just been read would
    /// leave memory again.
    pub fn room_to_read(&self) -> usize {
        (self.memory_limit / 100 * READ_UPTO).saturating_sub(self.memory_used)
    }

    pub fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }
}

/// The share of the memory limit, in percent, up to which the journal is read.
const READ_UPTO: usize = 75;
/// An endpoint that takes no longer for a request may be handed some ahead.
pub(super) const QUICK: Duration = Duration::from_millis(5);
/// How many quick successes in a row it takes for each of these, so that few are handed back when one fails.
const SUCCESSES_PER_AHEAD: u32 = 4;
/// A request that takes longer is slow; slow ones get half of the connections at most.
pub(super) const SLOW: Duration = Duration::from_secs(1);
/// Lanes are kept for reuse, so many of those that hold on to the memory of no more items than this, which is what many
/// subscriptions with an event each now and then need,
const SMALL: (usize, usize) = (4, 4096);
/// and so many of larger ones.
const LARGE: (usize, usize) = (128, 64);

/// Whether a delivery is still wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Wanted,
    /// Given up unless the attempt under way succeeds.
    SkippedIfItFails,
    /// Recorded as done; it only keeps its place until its turn comes.
    Done,
}

/// An event on its way to one subscription.
pub(super) struct Delivery<P> {
    pub payload: P,
    /// Bytes, without what the engine itself takes.
    pub charge: usize,
    pub at: At,
    pub failures: u32,
    /// How long it has to wait before its next attempt, from when it may be tried.
    pub left: Option<Duration>,
    pub fate: Fate,
    /// The replay, and the page of it.
    pub replay: Option<(i64, u32)>,
}

/// What is in memory of a subscription.
pub(super) struct Work<P> {
    pub lanes: Lanes<Delivery<P>>,
    pub requests: Requests,
    /// Those in the lanes, not in a request, that have failed.
    pub failed: usize,
}

impl<P> Default for Work<P> {
    fn default() -> Self {
        Work { lanes: Lanes::default(), requests: Requests::default(), failed: 0 }
    }
}

/// Whether it waits for a full batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Linger {
    Not,
    Until(Instant),
    Over,
}

pub(super) struct Subscription<P> {
    pub id: SubscriptionId,
    pub settings: Settings,
    pub mode: Mode,
    /// While not live: all up to here is done, listed or in the lanes.
    pub reach: u64,
    pub counts: Counts,
    pub listed: Listed,
    pub done_ahead: BTreeSet<u64>,
    /// None while nothing is in memory, so that an idle subscription is small.
    pub work: Option<Box<Work<P>>>,
    /// Bytes that its deliveries take in memory.
    pub charged: usize,
    /// How many of those pending are in the lanes.
    pub in_lanes: usize,
    pub window: Window,
    pub breaker: Breaker,
    pub probe_now: bool,
    pub hold_until: Option<Instant>,
    pub rate: Rate,
    /// Its rate allows no request before.
    pub rate_until: Option<Instant>,
    pub linger: Linger,
    /// The ordering was changed: nothing is read until what was sent by the old one has ended.
    pub settling: bool,
    /// How long its requests take.
    pub pace: Pace,
    /// Its last requests that have succeeded quickly, one after the other.
    pub quick: u32,
    /// Whether there is room to hand over requests ahead.
    pub may_go_ahead: bool,
    pub replay: Option<Box<Replay>>,
    pub replay_read_last: bool,
    /// Deliveries to be read so that they can be given up.
    pub skips: Vec<u64>,
    pub reading: Option<Reading>,
    /// Something has been logged since the last page was asked for.
    pub arrived_since: bool,
    /// The journal has been read to its end.
    pub at_tail: bool,
    /// Nothing that waits in the journal is older than this.
    pub behind_at: Option<At>,
    pub last_success_at: Option<Instant>,
    pub last_failure_at: Option<Instant>,
    pub last_status: Option<u16>,
    pub last_error: Option<String>,
    pub latency: Latency,
    pub touched: bool,
    pub queued_to_read: bool,
    /// It will be looked at whether it is slow.
    pub looked_after: bool,
}

impl<P: Clone> Subscription<P> {
    /// Bytes a delivery is charged for beside its event.
    pub const DELIVERY_BYTES: usize = Lanes::<Delivery<P>>::ITEM_BYTES + Requests::BYTES;
    /// Bytes a subscription is charged for while it has deliveries in memory.
    pub const SUBSCRIPTION_BYTES: usize = Lanes::<Delivery<P>>::BYTES + size_of::<Requests>();

    pub fn new(id: SubscriptionId, settings: Settings, position: Position, last_id: u64) -> Self {
        let is_idle = position.pending.is_empty() && position.counts.pending == 0;
        let mode = match position.mode {
            Mode::Live if !is_idle => Mode::Draining,
            mode => mode,
        };
        let mut listed = Listed::default();
        let longest = settings.schedule.longest();
        let reach = position.reach.0;
        for pending in &position.pending {
            if pending.failures > 0 {
                let left = pending.due.map(|due| due.min(longest));
                listed.add_failed(pending.id.0, Failed { failures: pending.failures, left });
            }
        }
        listed.add(position.pending.iter().map(|pending| pending.id.0).filter(|&id| id <= reach).collect());
        Subscription {
            id,
            settings,
            mode,
            reach: if mode == Mode::Live { reach.max(last_id) } else { reach },
            counts: position.counts,
            listed,
            done_ahead: position.done_ahead.iter().map(|id| id.0).filter(|&id| id > reach).collect(),
            work: None,
            charged: 0,
            in_lanes: 0,
            window: Window::default(),
            breaker: Breaker::default(),
            probe_now: mode == Mode::Open,
            hold_until: None,
            rate: Rate::default(),
            rate_until: None,
            linger: Linger::Not,
            settling: false,
            pace: Pace::New,
            quick: 0,
            may_go_ahead: false,
            replay: None,
            replay_read_last: false,
            skips: Vec::new(),
            reading: None,
            arrived_since: false,
            at_tail: false,
            behind_at: None,
            last_success_at: None,
            last_failure_at: None,
            last_status: None,
            last_error: None,
            latency: Latency::default(),
            touched: false,
            queued_to_read: false,
            looked_after: false,
        }
    }

    /// It has changed since the last checkpoint.
    pub fn touch(&mut self, shared: &mut Shared<P>) {
        if !std::mem::replace(&mut self.touched, true) {
            shared.touched.push(self.id);
        }
    }

    /// A delivery arrives, the newest of all.
    pub fn arrive(
        &mut self,
        shared: &mut Shared<P>,
        id: u64,
        order: Order,
        at: At,
        payload: P,
        charge: usize,
    ) {
        self.touch(shared);
        self.counts.pending += 1;
        self.counts.pending_bytes = self.counts.pending_bytes.saturating_add(charge as u64);
        if self.mode == Mode::Live {
            self.reach = id;
            if !self.defer(shared, id, &order) {
                self.admit(shared, id, order, Delivery::new(payload, charge, at));
            }
        } else {
            self.arrived_since = true;
            self.at_tail = false;
            self.behind_at.get_or_insert(at);
        }
        if self.counts.pending_bytes > self.settings.max_pending_bytes && self.mode != Mode::Stopped {
            let bytes = self.counts.pending_bytes;
            self.stop(shared, shared.now);
            shared.effects.push(Effect::Disable(self.id, Disabled::TooMuchPending { bytes }));
        }
    }

    /// A delivery that cannot be made arrives, the newest of all.
    pub fn arrive_dead(&mut self, shared: &mut Shared<P>, id: DeliveryId, kind: &'static str) {
        self.touch(shared);
        self.counts.dead += 1;
        if self.mode == Mode::Live {
            self.reach = id.0;
        } else {
            self.done_ahead.insert(id.0);
        }
        shared.effects.push(Effect::DeadLetter(self.id, id, kind));
    }

    /// Puts a live delivery aside if it has to wait for a replay.
    pub fn defer(&mut self, shared: &mut Shared<P>, id: u64, order: &Order) -> bool {
        let Some(replay) = &mut self.replay else { return false };
        if !replay.holds(order, self.settings.ordering) {
            return false;
        }
        replay.filter.add(order);
        replay.deferred.insert(id);
        shared.memory_used += Replay::DEFERRED_BYTES;
        true
    }

    /// Puts a delivery into the lanes.
    pub fn admit(&mut self, shared: &mut Shared<P>, id: u64, order: Order, delivery: Delivery<P>) {
        let bytes = delivery.charge + Self::DELIVERY_BYTES;
        self.charged += bytes;
        self.in_lanes += usize::from(delivery.is_pending());
        shared.memory_used += bytes;
        if let (Some(replay), Some(_)) = (&mut self.replay, delivery.replay) {
            replay.charged += bytes;
        }
        let work = self.work.get_or_insert_with(|| {
            shared.memory_used += Self::SUBSCRIPTION_BYTES;
            shared.busy += 1;
            shared.spare.pop().unwrap_or_default()
        });
        work.failed += usize::from(delivery.failures > 0);
        work.lanes.arrive(id, self.settings.ordering.apply(order), delivery);
    }

    /// A delivery has left the lanes.
    pub fn discharge(&mut self, shared: &mut Shared<P>, delivery: &Delivery<P>) {
        let bytes = delivery.charge + Self::DELIVERY_BYTES;
        self.charged -= bytes;
        self.in_lanes -= usize::from(delivery.is_pending());
        shared.memory_used -= bytes;
        if let (Some(replay), Some((id, _))) = (&mut self.replay, delivery.replay)
            && replay.id == id
        {
            replay.charged = replay.charged.saturating_sub(bytes);
        }
    }

    /// Gives lanes back that are empty.
    pub fn tidy(&mut self, shared: &mut Shared<P>) {
        if self.work.as_ref().is_some_and(|work| work.lanes.is_empty())
            && let Some(work) = self.work.take()
        {
            shared.memory_used -= Self::SUBSCRIPTION_BYTES;
            shared.busy -= 1;
            let (spare, items) = (shared.spare.len(), work.lanes.capacity());
            if [SMALL, LARGE].iter().any(|&(capacity, count)| items <= capacity && spare < count) {
                shared.spare.push(work);
            }
        }
    }

    /// Requests under way.
    pub fn under_way(&self) -> usize {
        self.work.as_ref().map_or(0, |work| work.requests.under_way())
    }

    /// What decides whether there is room for its next request.
    pub fn candidate(&self) -> Candidate {
        let (pace, under_way) = (self.pace, self.under_way());
        Candidate { pace, under_way, last_success_at: self.last_success_at }
    }

    /// How many requests may be handed over at once: those that may be under way, and some ahead while all goes well.
    pub fn room(&self) -> usize {
        let max = self.settings.max_in_flight;
        let window = self.window.size(max);
        if !self.may_go_ahead || window < max.max(1) as usize {
            return window;
        }
        window + self.settings.max_ahead.min(self.quick / SUCCESSES_PER_AHEAD) as usize
    }

    /// Whether a request under way takes long.
    pub fn has_slow(&self, now: Instant) -> bool {
        let requests = self.work.as_ref().map(|work| &work.requests);
        now.checked_sub(SLOW)
            .is_some_and(|since| requests.is_some_and(|requests| requests.any_sent_before(since)))
    }

    /// A request has ended that took so long.
    pub fn keep_pace(&mut self, turns: &mut Turns, who: u32, duration: Duration, now: Instant) {
        let is_slow = duration > SLOW || self.has_slow(now);
        let pace = if is_slow { Pace::Slow } else { Pace::Swift };
        turns.changed(who, self.pace, pace, self.under_way());
        self.pace = pace;
    }
}

impl<P> Delivery<P> {
    /// One that has not been tried.
    pub fn new(payload: P, charge: usize, at: At) -> Delivery<P> {
        Delivery { payload, charge, at, failures: 0, left: None, fate: Fate::Wanted, replay: None }
    }

    /// Whether it counts as pending.
    pub fn is_pending(&self) -> bool {
        self.fate != Fate::Done && self.replay.is_none()
    }
}
