//! The dispatcher's decisions put together: what arrives from the decoder goes in, what to send comes out.

mod eviction;
mod load;
mod replay;
mod stats;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use slab::Slab;
use smallvec::SmallVec;

use super::fair_scheduler::{Pace, Turns};
use super::limits::host_limits::HostLimits;
use super::ordering::Order;
use super::outcome::{Effect, Failure, Record, Sifted, Skipped, SubscriptionId, Success};
use super::position::{DeliveryId, Position};
use super::replay::Replay;
use super::subscription::{At, Fate, Settings, Shared, Subscription};
use super::timer_heap::Timers;
use crate::prefetch::prefetch;

pub use self::load::{Item, Page, Read, ReadWhat};
pub use self::stats::{Bottleneck, Counters, Load};

/// How long after a subscription has been sent to, and how often from then on, it is looked whether it is slow.
const LOOK_FOR_SLOW_AFTER: Duration = Duration::from_millis(100);

/// Names a request until its outcome is told. It stays safe to tell when its subscription is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    subscription: u32,
    request: u32,
    serial: u64,
    /// The host that it goes to, also when its subscription is gone or has moved.
    host: u64,
}

/// Deliveries to be sent now, in one request.
#[derive(Debug)]
pub struct Request<'a, P> {
    /// What to tell the outcome by.
    pub ticket: Ticket,
    /// Whom to send to.
    pub subscription: SubscriptionId,
    /// What to send, in this order; never empty.
    pub members: SmallVec<[(DeliveryId, &'a P); 1]>,
    /// The header `webhook-attempt`: 1, 2, …
    pub attempt: u32,
    /// The replay it belongs to.
    pub replay: Option<i64>,
}

/// Decides for all subscriptions of a database what is sent and when, and knows what is done.
///
/// `P` is what a delivery carries to its sender. No call blocks; every call on the way of a delivery takes
/// constant time, or the logarithm of what waits for a retry.
pub struct Engine<P> {
    subscriptions: Slab<Subscription<P>>,
    slots: FxHashMap<SubscriptionId, u32>,
    shared: Shared<P>,
    turns: Turns,
    timers: Timers,
    /// Those that want something read, perhaps.
    readers: std::collections::VecDeque<u32>,
    /// Those that were being sent to, by when to look whether they are slow.
    perhaps_slow: std::collections::VecDeque<(Instant, u32)>,
    /// Making room has not helped: what is held cannot leave.
    crammed: bool,
}

impl<P: Clone> Engine<P> {
    /// Bytes a delivery in memory is charged for beside what [`Engine::arrive`] is told.
    pub const DELIVERY_BYTES: usize = Subscription::<P>::DELIVERY_BYTES;

    /// Bytes a subscription is charged for while it has deliveries in memory.
    pub const SUBSCRIPTION_BYTES: usize = Subscription::<P>::SUBSCRIPTION_BYTES;

    /// At most `max_requests` are under way at once; deliveries take at most `memory_limit` bytes.
    pub fn new(max_requests: usize, memory_limit: usize) -> Engine<P> {
        Engine {
            subscriptions: Slab::new(),
            slots: FxHashMap::default(),
            shared: Shared {
                records: Vec::new(),
                effects: Vec::new(),
                memory_used: 0,
                memory_limit,
                busy: 0,
                last_id: 0,
                serial: 0,
                touched: Vec::new(),
                now: None,
                spare: Vec::new(),
            },
            turns: Turns::new(max_requests),
            timers: Timers::default(),
            readers: std::collections::VecDeque::new(),
            perhaps_slow: std::collections::VecDeque::new(),
            crammed: false,
        }
    }

    /// Changes what [`Engine::new`] was told.
    pub fn set_limits(&mut self, max_requests: usize, memory_limit: usize) {
        self.turns.set_limit(max_requests);
        self.shared.memory_limit = memory_limit;
        self.crammed = false;
        let slots: Vec<u32> = self.slots.values().copied().collect();
        slots.into_iter().for_each(|slot| self.look_after(slot));
    }

    /// Limits what hosts are sent, over all subscriptions that share one. What is under way stays.
    pub fn set_host_limits(&mut self, limits: HostLimits) {
        self.turns.set_host_limits(limits);
    }

    /// Adds a subscription that stands there: a new one, or one of before a restart.
    pub fn subscribe(&mut self, id: SubscriptionId, settings: Settings, position: Position) {
        self.remove(id);
        let subscription = Subscription::new(id, settings, position, self.shared.last_id);
        self.shared.memory_used += subscription.listed.memory();
        let slot = self.subscriptions.insert(subscription) as u32;
        self.slots.insert(id, slot);
        self.subscriptions[slot as usize].touch(&mut self.shared);
        self.look_after(slot);
    }

    /// Changes the settings of a subscription and keeps its deliveries.
    pub fn change(&mut self, id: SubscriptionId, settings: Settings, now: Instant) {
        self.with(id, |subscription, shared| {
            let reordered = subscription.settings.ordering != settings.ordering
                || subscription.settings.keyed_by != settings.keyed_by;
            let rescheduled = subscription.settings.schedule != settings.schedule;
            let smaller = subscription.settings.batch_size > settings.batch_size;
            subscription.settings = settings;
            if rescheduled {
                subscription.begin_anew(shared, now);
            }
            if reordered {
                subscription.settle(shared, now);
            } else if smaller {
                subscription.stand_still(shared, Some(now), subscription.mode);
            }
        });
    }

    /// The endpoint is another one, or otherwise to be tried at once with all that waits for it.
    pub fn begin_anew(&mut self, id: SubscriptionId, now: Instant) {
        self.with(id, |subscription, shared| subscription.begin_anew(shared, now));
    }

    /// Shows `instead` in place of the last error of a subscription, if there is one.
    pub fn forget_error(&mut self, id: SubscriptionId, instead: &str) {
        self.with(id, |subscription, _| {
            if let Some(error) = &mut subscription.last_error {
                instead.clone_into(error);
            }
        });
    }

    /// Forgets a subscription with its deliveries: how many were pending. None when there is no such subscription.
    /// The outcomes of those under way must still be told.
    pub fn remove(&mut self, id: SubscriptionId) -> Option<u64> {
        let slot = self.slots.remove(&id)?;
        self.turns.withdraw(slot);
        self.timers.set(slot, None);
        let mut subscription = self.subscriptions.remove(slot as usize);
        self.turns.forget(slot, subscription.pace, subscription.under_way());
        let replay = subscription.replay.take();
        let replay =
            replay.map_or(0, |replay| replay.filter_memory + replay.deferred.len() * Replay::DEFERRED_BYTES);
        self.shared.memory_used -= subscription.charged + subscription.listed.memory() + replay;
        if subscription.work.take().is_some() {
            self.shared.memory_used -= Self::SUBSCRIPTION_BYTES;
            self.shared.busy -= 1;
        }
        Some(subscription.counts.pending)
    }

    /// Sends nothing of a subscription until it is resumed; what arrives is logged.
    pub fn pause(&mut self, id: SubscriptionId, now: Instant) {
        self.with(id, |subscription, shared| subscription.pause(shared, Some(now)));
    }

    /// Goes on after [`Engine::pause`] or [`Engine::stop`], or after a stop that the engine told of.
    pub fn resume(&mut self, id: SubscriptionId) {
        self.with(id, |subscription, shared| subscription.resume(shared));
    }

    /// Sends nothing of a subscription, since it is disabled.
    pub fn stop(&mut self, id: SubscriptionId, now: Instant) {
        self.with(id, |subscription, shared| subscription.stop(shared, Some(now)));
    }

    /// A delivery for a subscription; numbers rise from call to call. It is charged `charge` bytes besides
    /// [`Engine::DELIVERY_BYTES`] while it is in memory. False when there is no such subscription.
    pub fn arrive(
        &mut self,
        id: SubscriptionId,
        delivery: DeliveryId,
        order: Order,
        at: At,
        payload: P,
        charge: usize,
    ) -> bool {
        self.shared.last_id = self.shared.last_id.max(delivery.0);
        let Some(&slot) = self.slots.get(&id) else { return false };
        let subscription = &mut self.subscriptions[slot as usize];
        subscription.arrive(&mut self.shared, delivery.0, order, at, payload, charge);
        self.see_to_memory(slot);
        self.look_after(slot);
        true
    }

    /// A delivery for a subscription that cannot be made: it is given up as it arrives, for a reason of this kind. False
    /// when there is no such subscription.
    pub fn arrive_dead(&mut self, id: SubscriptionId, delivery: DeliveryId, kind: &'static str) -> bool {
        self.shared.last_id = self.shared.last_id.max(delivery.0);
        self.with(id, |subscription, shared| subscription.arrive_dead(shared, delivery, kind)).is_some()
    }

    /// The highest number that has been given: what [`Engine::subscribe`] of a new subscription begins behind.
    pub fn last(&self) -> DeliveryId {
        DeliveryId(self.shared.last_id)
    }

    /// What to send next, each subscription in its turn; None when nothing may be sent now. It is under way
    /// from here on: its outcome must be told by [`Engine::succeeded`] or [`Engine::failed`], once.
    pub fn next_to_send(&mut self, now: Instant) -> Option<Request<'_, P>> {
        self.shared.now = Some(now);
        self.turns.wake(now);
        while let Some(slot) = self.timers.due(now) {
            if let Some(subscription) = self.subscriptions.get_mut(slot as usize) {
                subscription.wake(now);
                self.look_after(slot);
            }
        }
        self.look_for_slow(now);
        while let Some(slot) = self.turns.take_held() {
            self.look_after(slot);
        }
        while let Some(slot) = self.turns.next() {
            let Some(subscription) = self.subscriptions.get_mut(slot as usize) else { continue };
            let (candidate, host) = (subscription.candidate(), subscription.settings.host);
            if !self.turns.admit(slot, host, candidate) {
                continue;
            }
            let started = subscription.next(&mut self.shared, now);
            if started.is_some() && !std::mem::replace(&mut subscription.looked_after, true) {
                self.perhaps_slow.push_back((now + LOOK_FOR_SLOW_AFTER, slot));
            }
            self.look_after(slot);
            if let Some((request, serial)) = started {
                self.turns.started(slot, host, candidate, now);
                return self.request(Ticket { subscription: slot, request, serial, host });
            }
        }
        None
    }

    fn request(&self, ticket: Ticket) -> Option<Request<'_, P>> {
        let subscription = self.subscriptions.get(ticket.subscription as usize)?;
        let work = subscription.work.as_ref()?;
        let request = work.requests.get(ticket.request);
        let wanted = request.members.iter().map(|&slot| (work.lanes.seq(slot), work.lanes.get(slot)));
        let members: SmallVec<_> = wanted
            .filter(|(_, delivery)| delivery.fate != Fate::Done)
            .map(|(id, delivery)| (DeliveryId(id), &delivery.payload))
            .collect();
        let failures = request.failures.max(work.lanes.get(request.members[0]).failures);
        let attempt = failures.saturating_add(1);
        Some(Request { ticket, subscription: subscription.id, members, attempt, replay: request.replay })
    }

    /// A request got through.
    pub fn succeeded(&mut self, ticket: Ticket, success: Success, now: Instant) {
        self.ended(ticket, success.duration, now, |subscription, shared, _| {
            subscription.succeeded(shared, ticket.request, success, now);
        });
    }

    /// A request failed. `jitter` is a random number.
    pub fn failed(
        &mut self,
        ticket: Ticket,
        failure: Failure,
        duration: Duration,
        now: Instant,
        jitter: u32,
    ) {
        self.ended(ticket, duration, now, |subscription, shared, sent_at| {
            subscription.failed(shared, ticket.request, sent_at, (failure, duration), now, jitter);
        });
    }

    /// A request comes back that was handed over ahead and has not been sent.
    pub fn handed_back(&mut self, ticket: Ticket, now: Instant) {
        self.shared.now = Some(now);
        if self.take_ended(ticket).is_none() {
            return self.turns.ended(None, ticket.host);
        }
        let Some(subscription) = self.subscriptions.get_mut(ticket.subscription as usize) else { return };
        self.turns.ended(Some((ticket.subscription, subscription.pace)), ticket.host);
        subscription.handed_back(&mut self.shared, ticket.request, now);
        self.look_after(ticket.subscription);
    }

    /// Takes deliveries out of a request before it is sent; what is left of it, in order, goes on being under way. When
    /// nothing is, it has ended. It took `duration` to find out; `jitter` is a random number.
    pub fn sift(
        &mut self,
        ticket: Ticket,
        sifted: Vec<(DeliveryId, Sifted)>,
        duration: Duration,
        now: Instant,
        jitter: u32,
    ) -> Vec<DeliveryId> {
        let (request, serial) = (ticket.request, ticket.serial);
        let subscription = self.subscriptions.get_mut(ticket.subscription as usize);
        let is_under_way = |subscription: &&mut Subscription<P>| {
            subscription.work.as_ref().is_some_and(|work| work.requests.is_under_way(request, serial))
        };
        let Some(subscription) = subscription.filter(is_under_way) else {
            self.turns.ended(None, ticket.host);
            return Vec::new();
        };
        self.shared.now = Some(now);
        let left = subscription.sift(&mut self.shared, (request, serial), sifted, duration, now, jitter);
        if left.is_empty() {
            self.turns.ended(Some((ticket.subscription, subscription.pace)), ticket.host);
            subscription.keep_pace(&mut self.turns, ticket.subscription, duration, now);
        }
        self.look_after(ticket.subscription);
        left
    }

    fn ended(
        &mut self,
        ticket: Ticket,
        duration: Duration,
        now: Instant,
        end: impl FnOnce(&mut Subscription<P>, &mut Shared<P>, Instant),
    ) {
        self.shared.now = Some(now);
        let Some(sent_at) = self.take_ended(ticket) else { return self.turns.ended(None, ticket.host) };
        let Some(subscription) = self.subscriptions.get_mut(ticket.subscription as usize) else { return };
        self.turns.ended(Some((ticket.subscription, subscription.pace)), ticket.host);
        subscription.keep_pace(&mut self.turns, ticket.subscription, duration, now);
        end(subscription, &mut self.shared, sent_at);
        self.look_after(ticket.subscription);
    }

    /// When the request was sent whose outcome is told; None if it is nobody's any more.
    fn take_ended(&mut self, ticket: Ticket) -> Option<Instant> {
        let subscription = self.subscriptions.get_mut(ticket.subscription as usize)?;
        subscription.work.as_mut()?.requests.ended(ticket.request, ticket.serial)
    }

    /// What has become of deliveries since the last call, for the journal, in order.
    pub fn take_records(&mut self) -> Vec<Record<P>> {
        std::mem::take(&mut self.shared.records)
    }

    /// What users should hear of since the last call.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.shared.effects)
    }

    /// Gives a delivery up, wherever it is.
    pub fn skip(&mut self, id: SubscriptionId, delivery: DeliveryId) -> Skipped {
        let skipped = self.with(id, |subscription, shared| subscription.skip(shared, delivery.0));
        skipped.unwrap_or(Skipped::NotPending)
    }

    /// Where a subscription stands. True of the journal only once all that has arrived is in it, so the two belong
    /// into one commit.
    pub fn position(&self, id: SubscriptionId, now: Instant) -> Option<Position> {
        Some(self.subscription(id)?.position(&self.shared, now))
    }

    /// What is pending up to a subscription's reach and in no request, nor ever was, in order.
    pub fn never_sent(&self, id: SubscriptionId) -> Vec<DeliveryId> {
        self.subscription(id).map(Subscription::never_sent).unwrap_or_default()
    }

    /// The subscriptions whose position is another than at the last call, and that are still there.
    pub fn touched_since_checkpoint(&mut self) -> Vec<SubscriptionId> {
        let mut touched = std::mem::take(&mut self.shared.touched);
        touched.sort_unstable();
        touched.dedup();
        touched.retain(|id| {
            let subscription = self.slots.get(id).and_then(|&slot| self.subscriptions.get_mut(slot as usize));
            subscription.is_some_and(|subscription| std::mem::take(&mut subscription.touched))
        });
        touched
    }

    /// The oldest delivery that may be pending, over all subscriptions: what the journal has to keep.
    pub fn oldest_pending(&self) -> Option<DeliveryId> {
        self.subscriptions.iter().filter_map(|(_, subscription)| subscription.oldest_pending()).min()
    }

    /// When to call [`Engine::next_to_send`] again though nothing arrived and no request ended. Later than the
    /// time it was last called with.
    pub fn next_wakeup(&mut self) -> Option<Instant> {
        let is_slow = self.turns.awaits_trials().then(|| self.perhaps_slow.front()).flatten();
        let look_for_slow = is_slow.map(|(due, _)| *due);
        self.timers.next().into_iter().chain(self.turns.next_wakeup()).chain(look_for_slow).min()
    }

    /// Bytes charged for all that is in memory.
    pub fn memory_used(&self) -> usize {
        self.shared.memory_used
    }

    /// Subscriptions that have something to send and wait for their turn.
    pub fn waiting(&self) -> usize {
        self.turns.waiting()
    }

    /// Has the processor bring what these subscriptions are decided by into its caches, of all at once: with a hundred
    /// thousand of them, it would wait for the memory of each.
    pub fn prefetch(&self, ids: &[i64]) {
        ids.iter().filter_map(|id| self.subscription(SubscriptionId(*id))).for_each(prefetch);
    }

    /// Requests under way, those of removed subscriptions included.
    pub fn in_flight(&self) -> usize {
        self.turns.in_flight()
    }

    /// Where the oldest delivery that is not done was committed; while some wait in the journal, perhaps somewhat
    /// before.
    pub fn oldest(&self, id: SubscriptionId) -> Option<At> {
        self.subscription(id)?.oldest_at()
    }

    /// Whether there is such a subscription.
    pub fn knows(&self, id: SubscriptionId) -> bool {
        self.slots.contains_key(&id)
    }

    /// The subscriptions there are.
    pub fn subscriptions(&self) -> impl Iterator<Item = SubscriptionId> {
        self.subscriptions.iter().map(|(_, subscription)| subscription.id)
    }

    fn subscription(&self, id: SubscriptionId) -> Option<&Subscription<P>> {
        self.subscriptions.get(*self.slots.get(&id)? as usize)
    }

    fn with<T>(
        &mut self,
        id: SubscriptionId,
        act: impl FnOnce(&mut Subscription<P>, &mut Shared<P>) -> T,
    ) -> Option<T> {
        let slot = *self.slots.get(&id)?;
        let done = act(self.subscriptions.get_mut(slot as usize)?, &mut self.shared);
        self.look_after(slot);
        Some(done)
    }

    /// Gives a subscription a turn if it can use one, sets its timer, and notes if it wants to read.
    fn look_after(&mut self, slot: u32) {
        let Some(subscription) = self.subscriptions.get_mut(slot as usize) else { return };
        subscription.may_go_ahead = self.turns.has_room_to_spare();
        if subscription.may_send() {
            self.turns.offer(slot, subscription.settings.host, subscription.pace);
        } else {
            self.turns.withdraw(slot);
        }
        self.timers.set(slot, subscription.next_wakeup());
        if !subscription.queued_to_read && subscription.wants(&self.shared).is_some() {
            subscription.queued_to_read = true;
            self.readers.push_back(slot);
        }
    }

    /// Looks at those only that are being sent to: there may be a hundred thousand that are not.
    fn look_for_slow(&mut self, now: Instant) {
        while let Some(&(due, slot)) = self.perhaps_slow.front()
            && due <= now
        {
            self.perhaps_slow.pop_front();
            let Some(subscription) = self.subscriptions.get_mut(slot as usize) else { continue };
            if subscription.pace != Pace::Slow && subscription.has_slow(now) {
                self.turns.changed(slot, subscription.pace, Pace::Slow, subscription.under_way());
                subscription.pace = Pace::Slow;
                if subscription.may_send() {
                    self.turns.offer(slot, subscription.settings.host, Pace::Slow);
                }
            }
            subscription.looked_after = subscription.under_way() > 0;
            if subscription.looked_after {
                self.perhaps_slow.push_back((now + LOOK_FOR_SLOW_AFTER, slot));
            }
        }
    }
}
