//! Notices: `NOTIFY pgwh` and system events. They only inform, so that an ERROR in one stops nothing: it is logged once, and
//! the notices that wait are sent again later.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgLogLevel, PgSqlErrorCode};

use crate::journal;
use crate::journal::{Notification, SystemEvent};
use crate::pg::process::bgworker;
use crate::pg::subtransaction::Raised;
use crate::shmem::registry::{Database, Phase};

/// How many notices of a kind wait at most; older ones are discarded.
const MAX_WAITING: usize = 1000;
/// How long a notice may wait for a lock, such as the one that commits with a NOTIFY take in turn.
const LOCK_TIMEOUT: Duration = Duration::from_millis(100);
/// How long until notices that failed are sent again, doubling from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LAST_PAUSE: Duration = Duration::from_secs(30);

/// What is to be said of what happened.
pub struct Notices {
    database: &'static Database,
    notifications: Outbox<Notification>,
    system_events: Outbox<SystemEvent>,
    /// There may be gaps of which no system event was made.
    gaps_untold: bool,
}

impl Notices {
    /// Nothing has happened, but there may be gaps from before.
    pub fn new(database: &'static Database) -> Notices {
        database.notice_problem.set("");
        Notices {
            database,
            notifications: Outbox::new("notifications (NOTIFY pgwh)"),
            system_events: Outbox::new("system events"),
            gaps_untold: true,
        }
    }

    /// Takes a notification.
    pub fn add_notification(&mut self, notification: Notification) {
        self.notifications.push(notification);
    }

    /// Takes a system event.
    pub fn add_system_event(&mut self, event: SystemEvent) {
        self.system_events.push(event);
    }

    /// There may be gaps that nobody has been told of.
    pub fn look_for_gaps(&mut self) {
        self.gaps_untold = true;
    }

    /// Writes system events into the log. To be called before what led to them is journaled: a crash in between has it
    /// happen again, rather than never.
    pub fn write_system_events(&mut self) {
        // There is somebody who decodes what is told.
        let with_gaps = self.gaps_untold && self.database.phase() == Phase::Ready;
        if !self.system_events.is_due(with_gaps) {
            return;
        }
        let sent = self.system_events.send(|events| {
            journal::attempt_as_news(LOCK_TIMEOUT, || {
                if !events.is_empty() {
                    journal::tell_of(events);
                }
                if with_gaps {
                    journal::tell_of_gaps();
                }
            })
        });
        self.gaps_untold &= !(sent && with_gaps);
        self.show_problem();
    }

    /// Notifies sessions that listen. To be called when what led to it is journaled, so that who hears of it finds it.
    pub fn notify(&mut self) {
        if !self.notifications.is_due(false) {
            return;
        }
        let is_repeated = self.notifications.problem.is_some();
        self.notifications.send(|notifications| {
            bgworker::attempt(LOCK_TIMEOUT, || {
                if is_repeated {
                    journal::empty_notify_queue();
                }
                journal::with_tables(|_| journal::notify(notifications));
            })
        });
        self.show_problem();
    }

    /// When something that failed is to be sent again.
    pub fn next_wakeup(&self) -> Option<Instant> {
        self.notifications.not_before.into_iter().chain(self.system_events.not_before).min()
    }

    fn show_problem(&self) {
        let problems = [&self.notifications.problem, &self.system_events.problem];
        let problems: Vec<&str> = problems.into_iter().flatten().map(String::as_str).collect();
        if self.database.notice_problem.is_set() || !problems.is_empty() {
            self.database.notice_problem.set(&problems.join("; "));
        }
    }
}

/// Notices of a kind that wait to be sent.
struct Outbox<T> {
    kind: &'static str,
    waiting: VecDeque<T>,
    discarded: u64,
    failures: u32,
    /// Set while the last try has failed.
    not_before: Option<Instant>,
    problem: Option<String>,
}

impl<T> Outbox<T> {
    fn new(kind: &'static str) -> Outbox<T> {
        Outbox { kind, waiting: VecDeque::new(), discarded: 0, failures: 0, not_before: None, problem: None }
    }

    fn push(&mut self, notice: T) {
        if self.waiting.len() >= MAX_WAITING {
            self.waiting.pop_front();
            self.discarded += 1;
        }
        self.waiting.push_back(notice);
    }

    fn is_due(&self, is_more: bool) -> bool {
        (is_more || !self.waiting.is_empty()) && self.not_before.is_none_or(|at| at <= Instant::now())
    }

    /// Sends all that waits; whether that was done.
    fn send(&mut self, send: impl FnOnce(&[T]) -> Result<(), Raised>) -> bool {
        match send(self.waiting.make_contiguous()) {
            Ok(()) => self.sent(),
            Err(raised) => self.failed(&raised),
        }
        self.problem.is_none()
    }

    fn sent(&mut self) {
        self.waiting.clear();
        if self.problem.take().is_some() {
            pgrx::log!(
                "pgstream_hooks: {} are sent again; {} were discarded meanwhile",
                self.kind,
                self.discarded
            );
        }
        (self.discarded, self.failures, self.not_before) = (0, 0, None);
    }

    fn failed(&mut self, raised: &Raised) {
        let pause = (FIRST_PAUSE * 2u32.pow(self.failures.min(16))).min(LAST_PAUSE);
        self.failures += 1;
        self.not_before = Some(Instant::now() + pause);
        let problem = format!("{} cannot be sent: {}", self.kind, raised.message);
        if self.problem.is_none() {
            ErrorReport::new(
                PgSqlErrorCode::ERRCODE_WARNING,
                format!("pgstream_hooks: {problem}"),
                "pgstream_hooks",
            )
            .set_detail(format!(
                "Deliveries go on. Up to {MAX_WAITING} of them are kept and sent when that is possible again."
            ))
            .set_hint("SELECT detail, hint FROM pgwh.health() WHERE check_name = 'notices';")
            .report(PgLogLevel::WARNING);
        }
        self.problem = Some(problem);
    }
}
