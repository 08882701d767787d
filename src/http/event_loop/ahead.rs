//! Requests that begin when others have ended, or are handed back.

use std::collections::{HashSet, VecDeque};
use std::time::Instant;

use super::EventLoop;
use super::answer::Fault;
use super::request_context::Exchange;
use super::request_queue::Turn;
use crate::http::job::Job;
use crate::http::outcome::{ErrorClass, Outcome};

/// With so many requests in line the dispatcher need not hurry to hand over more.
const ENOUGH_AHEAD: usize = 16;

impl EventLoop {
    /// Begins with a job as soon as there is room.
    pub(super) fn admit(&mut self, job: Job) {
        if self.has_room() && self.queue.is_empty() {
            self.begin(job);
        } else {
            self.queue.push_back(job);
        }
    }

    /// Begins with what waited for requests that have ended.
    pub(super) fn serve_lines(&mut self, now: Instant) {
        while let Some(subscription) = self.freed.pop() {
            while let Some(turn) = self.lines.next(subscription, now) {
                match turn {
                    Turn::Begins(job) => self.admit(job),
                    Turn::HandedBack(job) => self.hand_back(job.ticket),
                }
            }
        }
    }

    /// Ends the requests of subscriptions that are gone. An answer that comes later is nobody's.
    pub(super) fn abandon(&mut self, subscriptions: &HashSet<i64>) {
        // Who tries an endpoint waits for what it says.
        let is_gone = |job: &Job| job.is_in_line() && subscriptions.contains(&job.endpoint.subscription_id);
        let (gone, waiting): (VecDeque<Job>, _) =
            std::mem::take(&mut self.queue).into_iter().partition(is_gone);
        self.queue = waiting;
        for job in gone {
            self.hand_back(job.ticket);
            self.leave_line(job.endpoint.subscription_id, false);
        }
        let is_gone = |exchange: &Exchange| {
            exchange.is_in_line && subscriptions.contains(&exchange.endpoint.subscription_id)
        };
        let gone: Vec<usize> =
            self.exchanges.iter().filter(|(_, it)| is_gone(it)).map(|(number, _)| number).collect();
        for number in gone {
            self.fail(number, Fault::new(ErrorClass::HandedBack, "the subscription is gone"));
        }
    }

    fn hand_back(&mut self, ticket: u64) {
        self.is_urgent = true;
        self.outcomes.push(Outcome::handed_back(ticket));
    }

    /// Has the next request of a subscription begin, of which one has ended; or none if that failed.
    pub(super) fn leave_line(&mut self, subscription: i64, is_success: bool) {
        let waiting = self.lines.ended(subscription);
        self.is_urgent |= !is_success || waiting < ENOUGH_AHEAD;
        if waiting == 0 {
            return;
        }
        if is_success {
            return self.freed.push(subscription);
        }
        for (job, _) in self.lines.clear(subscription) {
            self.hand_back(job.ticket);
        }
    }
}
