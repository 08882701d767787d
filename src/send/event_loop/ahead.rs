//! Requests that begin when others have ended, or are handed back.

use std::time::Instant;

use super::super::job::Job;
use super::super::lines::Turn;
use super::super::outcome::Outcome;
use super::EventLoop;

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
