//! What is sent next.

use std::time::{Duration, Instant};

use smallvec::smallvec;

use super::{Fate, Linger, Mode, Shared, Subscription};
use crate::delivery::lanes::Members;

impl<P: Clone> Subscription<P> {
    /// Whether it has something to send and may.
    pub fn may_send(&self) -> bool {
        let Some(work) = &self.work else { return false };
        let has_ready = work.lanes.is_ready() || work.requests.has_ready();
        match self.mode {
            Mode::Paused | Mode::Stopped => false,
            Mode::Open => {
                let free = self.probe_now && self.hold_until.is_none() && work.requests.under_way() == 0;
                free && (has_ready || work.requests.has_probed())
            }
            Mode::Live | Mode::Draining => {
                has_ready
                    && self.hold_until.is_none()
                    && self.rate_until.is_none()
                    && work.requests.under_way() < self.room()
                    && !self.lingers(work.requests.has_ready(), work.lanes.unsent())
            }
        }
    }

    fn lingers(&self, has_retry: bool, unsent: usize) -> bool {
        matches!(self.linger, Linger::Until(_)) && !has_retry && unsent < self.settings.batch_size as usize
    }

    /// When something becomes possible that is not now.
    pub fn next_wakeup(&mut self) -> Option<Instant> {
        let linger = match self.linger {
            Linger::Until(until) => Some(until),
            _ => None,
        };
        match self.mode {
            Mode::Paused | Mode::Stopped => None,
            Mode::Open => [self.hold_until, self.breaker.probe_at()].into_iter().flatten().min(),
            Mode::Live | Mode::Draining => {
                let due = self.work.as_mut().and_then(|work| work.requests.next_due());
                [self.hold_until, self.rate_until, due, linger].into_iter().flatten().min()
            }
        }
    }

    /// Its time has come.
    pub fn wake(&mut self, now: Instant) {
        self.hold_until.take_if(|until| *until <= now);
        self.rate_until.take_if(|until| *until <= now);
        if matches!(self.linger, Linger::Until(until) if until <= now) {
            self.linger = Linger::Over;
        }
        if self.mode == Mode::Open && self.breaker.probe_at().is_some_and(|at| at <= now) {
            self.breaker.probe_now();
            self.probe_now = true;
        }
        let Some(work) = &mut self.work else { return };
        if matches!(self.mode, Mode::Live | Mode::Draining) {
            while let Some(index) = work.requests.due(now) {
                let first = work.lanes.seq(work.requests.get(index).members[0]);
                work.requests.again(index, first);
            }
        }
    }

    /// The request to send now, under way from here on. None when there is nothing to send after all, or it lingers.
    pub fn next(&mut self, shared: &mut Shared<P>, now: Instant) -> Option<(u32, u64)> {
        if !self.may_send() {
            return None;
        }
        let serial = shared.next_serial();
        let found = if self.mode == Mode::Open { self.probe(shared, now, serial) } else { None };
        let index = match found {
            Some(index) => Some(index),
            None if self.mode == Mode::Open => None,
            None => self.retry(now, serial).or_else(|| self.fresh(shared, now, serial)),
        };
        // What was done before its turn may have been the last of it.
        self.end_replay_when_over(shared);
        self.tidy(shared);
        if let (Some(_), Some(limit)) = (index, self.settings.rate_limit) {
            self.rate_until = self.rate.sent(now, limit);
        }
        index.map(|index| (index, serial))
    }

    /// The oldest that was not probed yet, then those that were, in turn.
    fn probe(&mut self, shared: &mut Shared<P>, now: Instant, serial: u64) -> Option<u32> {
        let index = self.single(shared, now, serial, false).or_else(|| {
            let work = self.work.as_mut()?;
            let index = work.requests.next_probe()?;
            work.requests.start_again(index, serial, now);
            Some(index)
        })?;
        self.probe_now = false;
        Some(index)
    }

    fn retry(&mut self, now: Instant, serial: u64) -> Option<u32> {
        let work = self.work.as_mut()?;
        let index = work.requests.next_ready()?;
        work.requests.start_again(index, serial, now);
        Some(index)
    }

    fn fresh(&mut self, shared: &mut Shared<P>, now: Instant, serial: u64) -> Option<u32> {
        let limit = self.settings.batch_size.max(1) as usize;
        if limit > 1 && self.settings.batch_wait > Duration::ZERO && self.linger == Linger::Not {
            let work = self.work.as_ref()?;
            if work.lanes.unsent() < limit {
                self.linger = Linger::Until(now + self.settings.batch_wait);
                return None;
            }
        }
        let index = self.single(shared, now, serial, true)?;
        self.linger = Linger::Not;
        let work = self.work.as_mut()?;
        let request = work.requests.get_mut(index);
        let first = work.lanes.get(request.members[0]);
        if limit > 1 && first.failures == 0 {
            let replay = request.replay;
            let fits = |other: &super::Delivery<P>| {
                other.failures == 0 && other.fate == Fate::Wanted && other.replay.map(|(id, _)| id) == replay
            };
            work.lanes.take_more(&mut request.members, limit, fits);
        }
        Some(index)
    }

    /// A request of the oldest delivery that need not wait. On the way those that were skipped go, and those whose
    /// time has not come begin to wait for it if `by_schedule`.
    fn single(
        &mut self,
        shared: &mut Shared<P>,
        now: Instant,
        serial: u64,
        by_schedule: bool,
    ) -> Option<u32> {
        loop {
            let work = self.work.as_mut()?;
            let slot = work.lanes.take()?;
            let delivery = work.lanes.get_mut(slot);
            let replay = delivery.replay.map(|(id, _)| id);
            if delivery.fate == Fate::Done {
                let delivery = work.lanes.finish(slot);
                self.discharge(shared, &delivery);
                self.left_replay(&delivery);
                continue;
            }
            let failed = delivery.failures > 0;
            let left = if by_schedule { delivery.left.take().filter(|left| !left.is_zero()) } else { None };
            work.failed -= usize::from(failed);
            let members: Members = smallvec![slot];
            let index = match left {
                Some(left) => {
                    let serial = shared.next_serial();
                    work.requests.add_waiting(members, replay, serial, now + left)
                }
                None => work.requests.start(members, replay, serial, now),
            };
            if failed {
                work.requests.block(index, work.lanes.keys_of(slot));
            }
            if left.is_none() {
                return Some(index);
            }
        }
    }
}
