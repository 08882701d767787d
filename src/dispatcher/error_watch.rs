//! Tells when a subscription goes to the state `error` and when it comes back.

use std::time::{Duration, Instant};

use super::effects;
use super::notices::Notices;
use crate::event::Lsn;
use crate::journal;
use crate::journal::SystemEvent;

/// How long after a start subscriptions are looked at first.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// How long until all are looked at again, if something has been committed meanwhile.
const PASS_PAUSE: Duration = Duration::from_secs(20);
/// How many are looked at in one go.
const AT_ONCE: i64 = 64;
/// A go is followed by a pause of so many times its duration, which leaves the time to what is sent.
const PAUSE_RATIO: u32 = 50;
/// How long a look may wait for a lock.
const LOCK_TIMEOUT: Duration = Duration::from_millis(10);

/// Looks at the states of subscriptions, some at a time.
pub struct ErrorWatch {
    /// What had arrived when it was last looked.
    frontier: Lsn,
    /// Whether anything may have changed since.
    is_due: bool,
    not_before: Instant,
    /// The subscription that was looked at last in the present pass.
    after: i64,
}

impl ErrorWatch {
    /// Nothing has been looked at.
    pub fn new() -> ErrorWatch {
        ErrorWatch { frontier: Lsn(0), is_due: true, not_before: Instant::now() + FIRST_PAUSE, after: 0 }
    }

    /// States may have changed although nothing was committed.
    pub fn look_again(&mut self) {
        self.is_due = true;
    }

    /// Looks at some subscriptions, if it is time. Whether there is something to tell.
    pub fn look(&mut self, frontier: Lsn, notices: &mut Notices) -> bool {
        if frontier != self.frontier {
            self.frontier = frontier;
            self.is_due = true;
        }
        let begin = Instant::now();
        if !self.is_due || begin < self.not_before {
            return false;
        }
        let states = match journal::look_for_errors(LOCK_TIMEOUT, self.after, AT_ONCE) {
            Ok(Some(states)) => states,
            other => {
                if let Err(raised) = other {
                    pgrx::log!("pgstream_hooks: states of subscriptions cannot be read: {}", raised.message);
                }
                self.not_before = Instant::now() + PASS_PAUSE;
                return false;
            }
        };
        let took = begin.elapsed();
        self.after = states.last.unwrap_or_default();
        self.is_due = states.last.is_some();
        let pause = if self.is_due { Duration::ZERO } else { PASS_PAUSE };
        self.not_before = Instant::now() + pause.max(took * PAUSE_RATIO);
        let begun =
            states.begun.into_iter().map(|(subscription, reason)| ("pgwh.error", subscription, reason));
        let over = states.over.into_iter().map(|subscription| ("pgwh.error_over", subscription, None));
        let mut any = false;
        for (kind, subscription, reason) in begun.chain(over) {
            any = true;
            let event = SystemEvent { kind, subscription, delivery: None, class: None, reason };
            notices.add_notification(effects::notification(&event));
            notices.add_system_event(event);
        }
        any
    }

    /// When it is time to look.
    pub fn next_wakeup(&self) -> Option<Instant> {
        self.is_due.then_some(self.not_before)
    }
}
