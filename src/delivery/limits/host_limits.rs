//! What hosts may be sent, over all subscriptions that share one.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

use rustc_hash::FxHashMap;

use super::rate_limiter::{PerSecond, Rate};

/// Limits of each host; none where absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostLimits {
    /// Requests under way at once.
    pub max_in_flight: Option<usize>,
    /// Requests a second.
    pub rate_limit: Option<PerSecond>,
}

/// Hosts that are being sent to; the others cost nothing.
#[derive(Default)]
pub(crate) struct Hosts {
    limits: HostLimits,
    known: FxHashMap<u64, Host>,
    /// So many are known when those that are idle are forgotten next.
    tidy_at: usize,
    /// When hosts may be sent to again, the next first.
    held: BinaryHeap<Reverse<(Instant, u64)>>,
}

#[derive(Default)]
struct Host {
    in_flight: usize,
    rate: Rate,
    held_until: Option<Instant>,
}

impl Hosts {
    pub fn set_limits(&mut self, limits: HostLimits) {
        self.limits = limits;
    }

    /// Whether there are any.
    pub fn has_limits(&self) -> bool {
        self.limits != HostLimits::default()
    }

    /// Whether a request may be sent there.
    pub fn may_send(&self, host: u64) -> bool {
        let Some(host) = self.known.get(&host) else { return true };
        host.held_until.is_none() && self.limits.max_in_flight.is_none_or(|most| host.in_flight < most)
    }

    /// A request has started.
    pub fn started(&mut self, id: u64, now: Instant) {
        if self.limits == HostLimits::default() && self.known.is_empty() {
            return;
        }
        if self.known.len() >= self.tidy_at {
            self.known.retain(|_, host| !host.is_idle(now));
            self.tidy_at = 2 * self.known.len() + 64;
        }
        let host = self.known.entry(id).or_default();
        host.in_flight += 1;
        if let Some(limit) = self.limits.rate_limit {
            host.held_until = host.rate.sent(now, limit);
            self.held.extend(host.held_until.map(|until| Reverse((until, id))));
        }
    }

    /// A request has ended.
    pub fn ended(&mut self, id: u64) {
        if let Some(host) = self.known.get_mut(&id) {
            host.in_flight = host.in_flight.saturating_sub(1);
        }
    }

    /// Takes a host that may be sent to again since its time has come.
    pub fn due(&mut self, now: Instant) -> Option<u64> {
        let &Reverse((until, id)) = self.held.peek()?;
        if until > now {
            return None;
        }
        self.held.pop();
        if let Some(host) = self.known.get_mut(&id) {
            host.held_until = None;
        }
        Some(id)
    }

    /// When [`Hosts::due`] has the next one.
    pub fn next_due(&self) -> Option<Instant> {
        self.held.peek().map(|Reverse((until, _))| *until)
    }
}

impl Host {
    fn is_idle(&self, now: Instant) -> bool {
        self.in_flight == 0 && self.held_until.is_none() && self.rate.is_idle(now)
    }
}
