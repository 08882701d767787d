//! How a subscription fares, for `status()`.

use std::time::{Duration, Instant};

use super::Engine;
use crate::delivery::outcome::SubscriptionId;
use crate::delivery::position::Mode;
use crate::delivery::subscription::Subscription;

/// What `status()` shows of a subscription.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters<'a> {
    /// What it does.
    pub mode: Mode,
    /// Deliveries that are not done, wherever they are.
    pub pending: u64,
    /// What these were charged when they arrived, in bytes.
    pub pending_bytes: u64,
    /// Those of them that have failed, alone or in a batch.
    pub retrying: usize,
    /// Requests under way.
    pub in_flight: usize,
    /// Deliveries that have succeeded.
    pub delivered: u64,
    /// Deliveries of which there was nothing to send.
    pub dropped: u64,
    /// Deliveries that were given up.
    pub dead: u64,
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
    /// When the first of the failed deliveries is tried again, or the next probe is sent.
    pub next_attempt_at: Option<Instant>,
    /// Until when the endpoint asked to be left alone.
    pub hold_until: Option<Instant>,
    /// The time that half of the recent successful requests took, at most an eighth off.
    pub p50: Option<Duration>,
    /// The time that 99 % of the recent successful requests stayed below.
    pub p99: Option<Duration>,
    /// The endpoint fails as a whole, and a probe is due or under way.
    pub probing: bool,
    /// What keeps it from sending more.
    pub bottleneck: Bottleneck,
}

/// What keeps a subscription from sending more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Bottleneck {
    /// Nothing: there is no more.
    #[default]
    None,
    /// It is paused or stopped.
    Paused,
    /// The endpoint fails as a whole.
    Breaker,
    /// The endpoint asked to be left alone.
    Hold,
    /// The rate that the subscription may be sent at.
    RateLimit,
    /// The endpoint does not answer faster: as many requests are under way as it gets.
    Endpoint,
    /// All that is in memory waits for something that has failed.
    RetryWait,
    /// What waits for something that has failed fills its share of memory.
    Memory,
    /// Reading the journal.
    Journal,
    /// All subscriptions together: `max_requests`.
    Connections,
    /// What its host may be sent, over all subscriptions.
    Host,
}

/// What a subscription has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// What it does.
    pub mode: Mode,
    /// Deliveries that are not done, wherever they are.
    pub pending: u64,
    /// What these were charged when they arrived, in bytes.
    pub pending_bytes: u64,
}

impl<P: Clone> Engine<P> {
    /// What a subscription has to do; none when there is no such subscription.
    pub fn load(&self, id: SubscriptionId) -> Option<Load> {
        let subscription = self.subscription(id)?;
        let counts = subscription.counts;
        Some(Load { mode: subscription.mode, pending: counts.pending, pending_bytes: counts.pending_bytes })
    }

    /// What became of a subscription's deliveries.
    pub fn counters(&self, id: SubscriptionId) -> Option<Counters<'_>> {
        let subscription = self.subscription(id)?;
        let work = subscription.work.as_ref();
        let in_lanes = work.map_or(0, |work| work.failed + work.requests.failed_members());
        let is_open = subscription.mode == Mode::Open;
        let probe_at = subscription.breaker.probe_at().filter(|_| is_open);
        Some(Counters {
            mode: subscription.mode,
            pending: subscription.counts.pending,
            pending_bytes: subscription.counts.pending_bytes,
            retrying: in_lanes + subscription.listed.retrying(),
            // What is handed over ahead waits for these.
            in_flight: subscription.under_way().min(subscription.settings.max_in_flight.max(1) as usize),
            delivered: subscription.counts.delivered,
            dropped: subscription.counts.dropped,
            dead: subscription.counts.dead,
            blocked_keys: work.map_or(0, |work| work.requests.blocked_keys()),
            last_success_at: subscription.last_success_at,
            last_failure_at: subscription.last_failure_at,
            last_status: subscription.last_status,
            last_error: subscription.last_error.as_deref(),
            next_attempt_at: probe_at
                .or(subscription.hold_until)
                .or_else(|| work.and_then(|work| work.requests.first_due())),
            hold_until: subscription.hold_until,
            p50: subscription.latency.quantile(0.5),
            p99: subscription.latency.quantile(0.99),
            probing: is_open && probe_at.is_none(),
            bottleneck: self.bottleneck(subscription),
        })
    }

    fn bottleneck(&self, subscription: &Subscription<P>) -> Bottleneck {
        let waits_in_journal = !subscription.listed.is_empty() || subscription.mode == Mode::Draining;
        match subscription.mode {
            Mode::Paused | Mode::Stopped => return Bottleneck::Paused,
            Mode::Open => return Bottleneck::Breaker,
            Mode::Live | Mode::Draining if subscription.hold_until.is_some() => return Bottleneck::Hold,
            Mode::Live | Mode::Draining => {}
        }
        let nothing_here = if waits_in_journal { Bottleneck::Journal } else { Bottleneck::None };
        let Some(work) = &subscription.work else { return nothing_here };
        let window = subscription.window.size(subscription.settings.max_in_flight);
        if subscription.may_send() {
            return if !self.turns.has_room_for(subscription.candidate()) {
                Bottleneck::Connections
            } else if !self.turns.may_send_to(subscription.settings.host) {
                Bottleneck::Host
            } else {
                Bottleneck::None
            };
        }
        if subscription.rate_until.is_some() && (work.lanes.is_ready() || work.requests.has_ready()) {
            return Bottleneck::RateLimit;
        }
        if work.requests.under_way() >= window && work.lanes.unsent() > 0 {
            return Bottleneck::Endpoint;
        }
        if work.requests.blocked_keys() > 0 && work.requests.under_way() == 0 {
            let is_full = waits_in_journal && subscription.charged >= self.shared.share() / 4 * 3;
            return if is_full { Bottleneck::Memory } else { Bottleneck::RetryWait };
        }
        if work.lanes.unsent() == 0 { nothing_here } else { Bottleneck::None }
    }
}
