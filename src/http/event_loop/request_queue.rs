//! Requests that were handed over ahead of their turn, a line for each subscription.
//!
//! A subscription may have so many requests under way. The next one begins when one of them succeeds, without asking the
//! dispatcher; when one fails, all that wait are handed back, and the dispatcher decides again.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use crate::http::job::Job;

/// How long a request waits at most: what was decided when it was handed over holds no longer than that.
const MAX_WAIT: Duration = Duration::from_millis(20);

/// The lines of the subscriptions that are being sent to; the others cost nothing.
#[derive(Default)]
pub(super) struct Lines(FxHashMap<i64, Line>);

#[derive(Default)]
struct Line {
    /// Requests that have begun, or wait for nothing but room.
    under_way: u32,
    /// Those that wait for these, since when.
    waiting: VecDeque<(Job, Instant)>,
}

/// What becomes of a request whose turn may have come.
pub(super) enum Turn {
    /// It begins.
    Begins(Job),
    /// It is handed back.
    HandedBack(Job),
}

impl Lines {
    /// Takes a request; gives it back if it begins at once.
    pub fn join(&mut self, job: Job) -> Option<Job> {
        let line = self.0.entry(job.endpoint.subscription_id).or_default();
        if line.waiting.is_empty() && line.under_way < job.endpoint.max_in_flight {
            line.under_way += 1;
            return Some(job);
        }
        line.waiting.push_back((job, Instant::now()));
        None
    }

    /// A request of this subscription has ended. How many wait for that.
    pub fn ended(&mut self, subscription: i64) -> usize {
        let Some(line) = self.0.get_mut(&subscription) else { return 0 };
        line.under_way = line.under_way.saturating_sub(1);
        let waiting = line.waiting.len();
        if line.under_way == 0 && waiting == 0 {
            self.0.remove(&subscription);
        }
        waiting
    }

    /// The next request of this subscription whose turn it is.
    pub fn next(&mut self, subscription: i64, now: Instant) -> Option<Turn> {
        let line = self.0.get_mut(&subscription)?;
        let (job, since) = line.waiting.front()?;
        let is_old = job.endpoint.is_retired() || now.saturating_duration_since(*since) > MAX_WAIT;
        if !is_old && line.under_way >= job.endpoint.max_in_flight {
            return None;
        }
        let (job, _) = line.waiting.pop_front()?;
        if !is_old {
            line.under_way += 1;
            return Some(Turn::Begins(job));
        }
        if line.under_way == 0 && line.waiting.is_empty() {
            self.0.remove(&subscription);
        }
        Some(Turn::HandedBack(job))
    }

    /// Takes out all that wait, since one failed.
    pub fn clear(&mut self, subscription: i64) -> VecDeque<(Job, Instant)> {
        let Some(line) = self.0.get_mut(&subscription) else { return VecDeque::new() };
        let waiting = std::mem::take(&mut line.waiting);
        if line.under_way == 0 {
            self.0.remove(&subscription);
        }
        waiting
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::http::endpoint::{Endpoint, EndpointSettings};
    use crate::http::tests::settings;

    fn endpoint(max_in_flight: u32) -> Arc<Endpoint> {
        Arc::new(Endpoint::new(EndpointSettings { max_in_flight, ..settings("http://127.0.0.1/") }).unwrap())
    }

    fn job(ticket: u64, endpoint: &Arc<Endpoint>) -> Job {
        let endpoint = endpoint.clone();
        Job { ticket, endpoint, events: Vec::new(), attempt: 1, replay: None, prepared: None }
    }

    /// The ticket of the request that begins next, or the negative one of that which is handed back.
    fn next(lines: &mut Lines, now: Instant) -> Option<i64> {
        lines.next(42, now).map(|turn| match turn {
            Turn::Begins(job) => job.ticket as i64,
            Turn::HandedBack(job) => -(job.ticket as i64),
        })
    }

    #[test]
    fn requests_begin_in_order_as_others_end() {
        let (mut lines, endpoint, now) = (Lines::default(), endpoint(2), Instant::now());
        let begun: Vec<u64> =
            (1..=5).filter_map(|ticket| lines.join(job(ticket, &endpoint))).map(|job| job.ticket).collect();
        assert_eq!(begun, [1, 2]);
        assert_eq!(next(&mut lines, now), None);
        assert_eq!(lines.ended(42), 3);
        assert_eq!((next(&mut lines, now), next(&mut lines, now)), (Some(3), None));
        assert_eq!((lines.ended(42), lines.ended(42)), (2, 2));
        assert_eq!([next(&mut lines, now), next(&mut lines, now)], [Some(4), Some(5)]);
        assert_eq!((lines.ended(42), lines.ended(42)), (0, 0));
        assert!(lines.0.is_empty());
    }

    #[test]
    fn what_is_old_or_of_a_replaced_endpoint_is_handed_back() {
        let (mut lines, before, after) = (Lines::default(), endpoint(1), endpoint(1));
        lines.join(job(1, &before));
        lines.join(job(2, &before));
        lines.join(job(3, &after));
        before.retire();
        let now = Instant::now();
        assert_eq!((next(&mut lines, now), next(&mut lines, now)), (Some(-2), None));
        let later = now + MAX_WAIT + Duration::from_millis(1);
        assert_eq!((next(&mut lines, later), next(&mut lines, later)), (Some(-3), None));
        assert_eq!(lines.ended(42), 0);
        assert!(lines.0.is_empty());
    }

    #[test]
    fn a_failure_clears_the_line() {
        let (mut lines, endpoint) = (Lines::default(), endpoint(1));
        (1..=4).for_each(|ticket| drop(lines.join(job(ticket, &endpoint))));
        assert_eq!(lines.ended(42), 3);
        let tickets: Vec<u64> = lines.clear(42).into_iter().map(|(job, _)| job.ticket).collect();
        assert_eq!(tickets, [2, 3, 4]);
        assert!(lines.0.is_empty());
        assert!(lines.join(job(5, &endpoint)).is_some());
    }
}
