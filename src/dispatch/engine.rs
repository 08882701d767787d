//! The dispatcher's decisions put together: what arrives from the decoder goes in, what to send comes out.

use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use slab::Slab;

use super::lanes::{ItemId, Lanes, Order};
use super::latency::Latency;
use super::progress::{Progress, TransactionId};
use super::retry::Schedule;
use super::timers::Timers;
use super::turns::Turns;
use crate::event::Lsn;

/// `pgwh.subscriptions.id`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubscriptionId(pub i64);

/// How a subscription wants to be sent to.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Requests at once; at least 1.
    pub max_in_flight: u32,
    /// The delays between attempts.
    pub schedule: Schedule,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { max_in_flight: 16, schedule: Schedule::default() }
    }
}

/// Names an attempt until its outcome is told. It stays safe to tell when its subscription is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    subscription: u32,
    item: ItemId,
}

/// A delivery to be sent now.
#[derive(Debug)]
pub struct Attempt<'a, P> {
    /// What to tell the outcome by.
    pub ticket: Ticket,
    /// Whom to send to.
    pub subscription: SubscriptionId,
    /// What to send.
    pub payload: &'a P,
    /// The header `webhook-attempt`: 1, 2, …
    pub number: u32,
}

/// Why an attempt failed.
#[derive(Clone, Debug, Default)]
pub struct Failure {
    /// The response's status, if there was one.
    pub status: Option<u16>,
    /// In words, for `status()`.
    pub error: String,
    /// What the endpoint asked for with `Retry-After`.
    pub retry_after: Option<Duration>,
}

/// What `status()` shows of a subscription.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters<'a> {
    /// Deliveries that have not failed and are not done, those in flight included.
    pub pending: usize,
    /// Deliveries that have failed and are not done.
    pub retrying: usize,
    /// Requests under way.
    pub in_flight: usize,
    /// Deliveries that have succeeded since the subscription was added.
    pub delivered: u64,
    /// Keys held back by a delivery that has failed; one without a key counts as one.
    pub blocked_keys: usize,
    /// When a request last succeeded.
    pub last_success_at: Option<Instant>,
    /// When a request last failed.
    pub last_failure_at: Option<Instant>,
    /// The last response's status; None if the last request had no response.
    pub last_status: Option<u16>,
    /// Why the last failed request failed.
    pub last_error: Option<&'a str>,
    /// When the first of the failed deliveries is tried again.
    pub next_attempt_at: Option<Instant>,
    /// The time that half of the recent successful requests took, at most an eighth off.
    pub p50: Option<Duration>,
    /// The time that 99 % of the recent successful requests stayed below.
    pub p99: Option<Duration>,
}

/// An event on its way to one subscription.
struct Delivery<P> {
    payload: P,
    charge: usize,
    transaction: TransactionId,
    failures: u32,
    sent_at: Option<Instant>,
}

struct Subscription<P> {
    id: SubscriptionId,
    settings: Settings,
    /// None while nothing is outstanding, so that an idle subscription is small.
    lanes: Option<Box<Lanes<Delivery<P>>>>,
    delivered: u64,
    last_success_at: Option<Instant>,
    last_failure_at: Option<Instant>,
    last_status: Option<u16>,
    last_error: Option<String>,
    latency: Latency,
}

/// Decides for all subscriptions of a database what is sent and when, and knows how far everything is done.
///
/// `P` is what a delivery carries to its sender. No call blocks; every call on the way of a delivery takes
/// constant time, or the logarithm of what waits for a retry.
pub struct Engine<P> {
    subscriptions: Slab<Subscription<P>>,
    slots: FxHashMap<SubscriptionId, u32>,
    progress: Progress,
    turns: Turns,
    timers: Timers,
    /// Empty lanes for the next subscription that has something outstanding.
    #[expect(clippy::vec_box, reason = "the boxes are what is reused")]
    spare: Vec<Box<Lanes<Delivery<P>>>>,
    next_seq: u64,
    memory_used: usize,
}

/// Lanes are kept for reuse unless they hold on to more memory than this many items take.
const SPARE_CAPACITY: usize = 128;
const SPARE_LANES: usize = 64;

impl<P> Engine<P> {
    /// Bytes a delivery is charged for beside what [`Engine::arrive`] is told.
    pub const DELIVERY_BYTES: usize = Lanes::<Delivery<P>>::ITEM_BYTES;

    /// Bytes a subscription is charged for while it has deliveries.
    pub const SUBSCRIPTION_BYTES: usize = Lanes::<Delivery<P>>::BYTES;

    /// Everything that ended at or before `start` is done; at most `max_requests` are under way at once.
    pub fn new(start: Lsn, max_requests: usize) -> Engine<P> {
        Engine {
            subscriptions: Slab::new(),
            slots: FxHashMap::default(),
            progress: Progress::new(start),
            turns: Turns::new(max_requests),
            timers: Timers::default(),
            spare: Vec::new(),
            next_seq: 0,
            memory_used: 0,
        }
    }

    /// How many requests may be under way at once, over all subscriptions.
    pub fn set_max_requests(&mut self, max_requests: usize) {
        self.turns.set_limit(max_requests);
    }

    /// Adds a subscription, or changes the settings of one and keeps its deliveries.
    pub fn subscribe(&mut self, id: SubscriptionId, settings: Settings) {
        if let Some(&slot) = self.slots.get(&id) {
            self.subscriptions[slot as usize].settings = settings;
            self.offer(slot);
        } else {
            let slot = self.subscriptions.insert(Subscription::new(id, settings)) as u32;
            self.slots.insert(id, slot);
        }
    }

    /// Forgets a subscription with its deliveries: how many were not done. Those under way are in this number,
    /// and their outcomes must still be told.
    pub fn remove(&mut self, id: SubscriptionId) -> usize {
        let Some(slot) = self.slots.remove(&id) else { return 0 };
        self.turns.withdraw(slot);
        self.timers.set(slot, None);
        let subscription = self.subscriptions.remove(slot as usize);
        let Some(lanes) = subscription.lanes else { return 0 };
        let dropped = lanes.len();
        self.memory_used -= Self::SUBSCRIPTION_BYTES;
        for delivery in lanes.into_items() {
            self.memory_used -= delivery.charge;
            self.progress.done(delivery.transaction);
        }
        dropped
    }

    /// The next transaction in commit order begins to arrive. If the one before has not ended, its decoder is
    /// gone and will send it again.
    pub fn transaction_begin(&mut self, commit_lsn: Lsn) {
        self.progress.begin(commit_lsn);
    }

    /// An event of the transaction that is arriving goes to a subscription. It is charged `charge` bytes
    /// besides [`Engine::DELIVERY_BYTES`], until it is done. Hands the payload back when there is no such
    /// subscription, or no transaction has begun.
    pub fn arrive(&mut self, id: SubscriptionId, order: Order, payload: P, charge: usize) -> Result<(), P> {
        let Some(&slot) = self.slots.get(&id) else { return Err(payload) };
        let Some(transaction) = self.progress.added() else { return Err(payload) };
        let charge = charge + Self::DELIVERY_BYTES;
        self.memory_used += charge;
        self.next_seq += 1;
        let lanes = &mut self.subscriptions[slot as usize].lanes;
        let lanes = lanes.get_or_insert_with(|| {
            self.memory_used += Self::SUBSCRIPTION_BYTES;
            self.spare.pop().unwrap_or_default()
        });
        let delivery = Delivery { payload, charge, transaction, failures: 0, sent_at: None };
        lanes.arrive(self.next_seq, order, delivery);
        self.offer(slot);
        Ok(())
    }

    /// The transaction has arrived whole.
    pub fn transaction_commit(&mut self, end_lsn: Lsn) {
        self.progress.commit(end_lsn);
    }

    /// Everything that ended at or before `lsn` has arrived.
    pub fn idle(&mut self, lsn: Lsn) {
        self.progress.idle(lsn);
    }

    /// What to send next, each subscription in its turn; None when nothing may be sent now. It is under way
    /// from here on: its outcome must be told by [`Engine::succeeded`] or [`Engine::failed`], once.
    pub fn next_to_send(&mut self, now: Instant) -> Option<Attempt<'_, P>> {
        while let Some(slot) = self.timers.due(now) {
            if let Some(lanes) = self.lanes_mut(slot) {
                lanes.ready_again(now);
            }
            self.set_timer(slot);
            self.offer(slot);
        }
        let slot = self.turns.next()?;
        let subscription = self.subscriptions.get_mut(slot as usize)?;
        let (id, lanes) = (subscription.id, subscription.lanes.as_mut()?);
        let (item, delivery) = lanes.next()?;
        delivery.sent_at = Some(now);
        let number = delivery.failures.saturating_add(1);
        self.turns.started();
        self.offer(slot);
        let ticket = Ticket { subscription: slot, item };
        let payload = &self.lanes_mut(slot)?.in_flight_mut(item)?.payload;
        Some(Attempt { ticket, subscription: id, payload, number })
    }

    /// A delivery got through. Hands back what it carried; None when its subscription is gone.
    pub fn succeeded(&mut self, ticket: Ticket, status: u16, now: Instant) -> Option<P> {
        self.turns.ended();
        let slot = ticket.subscription;
        let subscription = self.subscriptions.get_mut(slot as usize)?;
        let lanes = subscription.lanes.as_mut()?;
        let delivery = lanes.succeeded(ticket.item)?;
        if lanes.is_empty()
            && let Some(lanes) = subscription.lanes.take()
        {
            self.memory_used -= Self::SUBSCRIPTION_BYTES;
            if self.spare.len() < SPARE_LANES && lanes.capacity() <= SPARE_CAPACITY {
                self.spare.push(lanes);
            }
        }
        subscription.delivered += 1;
        subscription.last_success_at = Some(now);
        subscription.last_status = Some(status);
        if let Some(sent_at) = delivery.sent_at {
            subscription.latency.record(now.saturating_duration_since(sent_at));
        }
        self.memory_used -= delivery.charge;
        self.progress.done(delivery.transaction);
        self.offer(slot);
        Some(delivery.payload)
    }

    /// An attempt failed: the delivery holds back its keys until it is tried again. `jitter` is a random
    /// number. When that will be; None when its subscription is gone.
    pub fn failed(&mut self, ticket: Ticket, failure: Failure, now: Instant, jitter: u32) -> Option<Instant> {
        self.turns.ended();
        let slot = ticket.subscription;
        let subscription = self.subscriptions.get_mut(slot as usize)?;
        let lanes = subscription.lanes.as_mut()?;
        let delivery = lanes.in_flight_mut(ticket.item)?;
        delivery.failures = delivery.failures.saturating_add(1);
        let due = now + subscription.settings.schedule.delay(delivery.failures, failure.retry_after, jitter);
        lanes.failed(ticket.item, due);
        subscription.last_failure_at = Some(now);
        subscription.last_status = failure.status;
        subscription.last_error = Some(failure.error);
        self.set_timer(slot);
        self.offer(slot);
        Some(due)
    }

    /// When to call [`Engine::next_to_send`] again though nothing arrived and no request ended. Later than the
    /// time it was last called with.
    pub fn next_wakeup(&mut self) -> Option<Instant> {
        self.timers.next()
    }

    /// Bytes charged for all deliveries that are not done; 0 when all are.
    pub fn memory_used(&self) -> usize {
        self.memory_used
    }

    /// Requests under way, those of removed subscriptions included.
    pub fn in_flight(&self) -> usize {
        self.turns.in_flight()
    }

    /// Every transaction that ended at or before this is done: what the slot may be confirmed to. Never
    /// goes back.
    pub fn confirmed(&self) -> Lsn {
        self.progress.confirmed()
    }

    /// Everything that ended at or before this has arrived.
    pub fn frontier(&self) -> Lsn {
        self.progress.frontier()
    }

    /// Every transaction that ended at or before this has reached this subscription.
    pub fn reached(&self, id: SubscriptionId) -> Option<Lsn> {
        let oldest = self.subscription(id)?.lanes.as_ref().and_then(|lanes| lanes.oldest());
        Some(oldest.map_or(self.progress.frontier(), |oldest| self.progress.commit_lsn(oldest.transaction)))
    }

    /// What the oldest delivery that is not done carries.
    pub fn oldest(&self, id: SubscriptionId) -> Option<&P> {
        Some(&self.subscription(id)?.lanes.as_ref()?.oldest()?.payload)
    }

    /// The subscriptions there are.
    pub fn subscriptions(&self) -> impl Iterator<Item = SubscriptionId> {
        self.subscriptions.iter().map(|(_, subscription)| subscription.id)
    }

    /// What became of a subscription's deliveries.
    pub fn counters(&self, id: SubscriptionId) -> Option<Counters<'_>> {
        let subscription = self.subscription(id)?;
        let mut counters = Counters {
            delivered: subscription.delivered,
            last_success_at: subscription.last_success_at,
            last_failure_at: subscription.last_failure_at,
            last_status: subscription.last_status,
            last_error: subscription.last_error.as_deref(),
            p50: subscription.latency.quantile(0.5),
            p99: subscription.latency.quantile(0.99),
            ..Counters::default()
        };
        if let Some(lanes) = &subscription.lanes {
            counters.pending = lanes.len() - lanes.retrying();
            counters.retrying = lanes.retrying();
            counters.in_flight = lanes.in_flight();
            counters.blocked_keys = lanes.blocked_keys();
            counters.next_attempt_at = lanes.next_due();
        }
        Some(counters)
    }

    fn subscription(&self, id: SubscriptionId) -> Option<&Subscription<P>> {
        self.subscriptions.get(*self.slots.get(&id)? as usize)
    }

    fn lanes_mut(&mut self, slot: u32) -> Option<&mut Lanes<Delivery<P>>> {
        self.subscriptions.get_mut(slot as usize)?.lanes.as_deref_mut()
    }

    /// Gives a subscription a turn if it can use one.
    fn offer(&mut self, slot: u32) {
        if self.subscriptions.get(slot as usize).is_some_and(Subscription::may_send) {
            self.turns.offer(slot);
        } else {
            self.turns.withdraw(slot);
        }
    }

    fn set_timer(&mut self, slot: u32) {
        let due = self.lanes_mut(slot).and_then(|lanes| lanes.next_due());
        self.timers.set(slot, due);
    }
}

impl<P> Subscription<P> {
    fn new(id: SubscriptionId, settings: Settings) -> Self {
        Subscription {
            id,
            settings,
            lanes: None,
            delivered: 0,
            last_success_at: None,
            last_failure_at: None,
            last_status: None,
            last_error: None,
            latency: Latency::default(),
        }
    }

    fn may_send(&self) -> bool {
        let window = self.settings.max_in_flight.max(1) as usize;
        self.lanes.as_ref().is_some_and(|lanes| lanes.is_ready() && lanes.in_flight() < window)
    }
}

#[cfg(test)]
mod tests;
