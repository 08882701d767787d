//! The pool of sender threads, and how the dispatcher talks to it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::client::Client;
use super::job::Job;
use super::network::Network;
use super::outcome::{ErrorClass, Failure, Outcome};
use super::threads::{ThreadSettings, Threads};

/// How the pool is made.
#[derive(Clone, Copy, Debug)]
pub struct PoolSettings {
    /// The most requests under way at once, and so the most threads and connections.
    pub max_threads: usize,
    /// Bytes of stack a thread.
    pub stack_size: usize,
    /// How long a thread waits for work before it ends; longer than connections are kept, so that the last thread
    /// to end closes them all.
    pub max_idle: Duration,
}

impl Default for PoolSettings {
    fn default() -> PoolSettings {
        PoolSettings { max_threads: 256, stack_size: 512 * 1024, max_idle: Duration::from_secs(60) }
    }
}

/// Sender threads. Calls never wait for a request; dropping the pool abandons those under way.
pub struct Pool {
    threads: Threads<Job>,
    network: Arc<Network>,
    outcomes: Arc<Outcomes>,
}

impl Pool {
    /// A pool without threads; they come with need.
    ///
    /// Fails when the process may open no more files.
    pub fn start(settings: PoolSettings) -> io::Result<Pool> {
        Pool::with_network(settings, Arc::new(Network::new(settings.max_threads)))
    }

    pub(super) fn with_network(settings: PoolSettings, network: Arc<Network>) -> io::Result<Pool> {
        let outcomes = Arc::new(Outcomes::new()?);
        let (report, ways) = (outcomes.clone(), network.clone());
        let threads = ThreadSettings {
            name: "pgwh-sender",
            max_threads: settings.max_threads.max(1),
            stack_size: settings.stack_size,
            max_idle: settings.max_idle,
        };
        let threads = Threads::new(threads, move || {
            let mut sender = Sender { client: None, network: ways.clone() };
            let outcomes = report.clone();
            Box::new(move |job: Job| outcomes.push(sender.send(&job)))
        });
        Ok(Pool { threads, network, outcomes })
    }

    /// Allows more or fewer requests under way at once, from now on; those under way come to their end.
    pub fn set_max_requests(&self, most: usize) {
        self.threads.set_max_threads(most.max(1));
        self.network.idle.set_limit(most);
    }

    /// Trusts what the system trusts now and, besides, certificates that one of this file signed.
    pub fn trust_file(&self, ca_file: Option<PathBuf>) {
        self.network.trust_file(ca_file);
    }

    /// How many threads there are.
    #[cfg(test)]
    pub(super) fn threads(&self) -> usize {
        self.threads.running()
    }

    /// Hands a job to a thread, now or as soon as one is free. Its outcome comes in any case.
    pub fn submit(&self, job: Job) {
        if let Err((job, error)) = self.threads.submit(job) {
            let message = format!("no sender thread could be started: {error}");
            self.outcomes.push(unsent(job.ticket, ErrorClass::Connect, message));
        }
    }

    /// Appends all outcomes since the last call to `out`, without waiting.
    pub fn outcomes(&self, out: &mut Vec<Outcome>) {
        self.outcomes.drain(out);
    }

    /// Asks for [`Pool::wake_fd`] to become readable with the next outcome. True if there are outcomes already: then
    /// don't sleep.
    #[must_use]
    pub fn arm(&self) -> bool {
        self.outcomes.arm()
    }

    /// Ends what [`Pool::arm`] began: nothing makes the descriptor readable until it is armed again.
    pub fn disarm(&self) {
        self.outcomes.disarm();
    }

    /// The descriptor to wait on.
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.outcomes.bell.as_fd()
    }
}

/// What one thread does with its jobs.
struct Sender {
    /// Made with the first job, and anew after a panic.
    client: Option<Client>,
    network: Arc<Network>,
}

impl Sender {
    fn send(&mut self, job: &Job) -> Outcome {
        let mut client = self.client.take().unwrap_or_else(|| Client::new(self.network.clone()));
        let sent = catch_unwind(AssertUnwindSafe(|| {
            let outcome = client.deliver(job);
            (client, outcome)
        }));
        match sent {
            Ok((client, outcome)) => {
                self.client = Some(client);
                outcome
            }
            Err(panic) => {
                let text = panic.downcast_ref::<&str>().copied().map(str::to_owned);
                let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
                let message = format!("a bug in pgstream_hooks stopped the request: {text}");
                unsent(job.ticket, ErrorClass::Encode, message)
            }
        }
    }
}

impl Drop for Sender {
    /// A thread ends when there is little to do: time to close what nobody used.
    fn drop(&mut self) {
        self.network.idle.sweep();
    }
}

fn unsent(ticket: u64, class: ErrorClass, message: String) -> Outcome {
    Outcome {
        ticket,
        result: Err(Failure::unanswered(class, message)),
        started_at: SystemTime::now(),
        duration: Duration::ZERO,
    }
}

/// Outcomes on their way to the dispatcher, with a bell that is rung only when it asked for it: each ring is a
/// system call, and a busy dispatcher looks by itself.
struct Outcomes {
    state: Mutex<OutcomeState>,
    bell: EventFd,
}

struct OutcomeState {
    waiting: Vec<Outcome>,
    armed: bool,
}

impl Outcomes {
    fn new() -> io::Result<Outcomes> {
        let bell = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Outcomes { state: Mutex::new(OutcomeState { waiting: Vec::new(), armed: false }), bell })
    }

    fn push(&self, outcome: Outcome) {
        let mut state = self.lock();
        state.waiting.push(outcome);
        let ring = std::mem::take(&mut state.armed);
        drop(state);
        if ring {
            // It can only fail when it has rung four billion times four billion times.
            let _ = self.bell.write(1);
        }
    }

    fn drain(&self, out: &mut Vec<Outcome>) {
        let mut state = self.lock();
        if out.is_empty() {
            std::mem::swap(&mut state.waiting, out);
        } else {
            out.append(&mut state.waiting);
        }
    }

    fn arm(&self) -> bool {
        let mut state = self.lock();
        state.armed = state.waiting.is_empty();
        !state.armed
    }

    fn disarm(&self) {
        self.lock().armed = false;
        // Silence, if it rang; an error says that it didn't.
        let _ = self.bell.read();
    }

    fn lock(&self) -> MutexGuard<'_, OutcomeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
