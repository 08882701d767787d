//! The dispatcher's end of sending: jobs go to the event loop, outcomes come back.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, fence};

use crossbeam_channel::{Receiver, Sender as Channel, unbounded};
use mio::Waker;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::channel::{Input, Network, Post, SenderSettings, Shared};
use super::dns::thread_pool::spawn_without_signals;
use super::event_loop::EventLoop;
use super::job::Job;
use super::outcome::Outcome;

/// Sends requests by an event loop in a thread of its own. Calls never wait for a request; dropping this abandons those
/// under way.
pub struct Sender {
    inputs: Channel<Input>,
    outcomes: Receiver<Outcome>,
    shared: Arc<Shared>,
}

impl Sender {
    /// Starts the event loop.
    ///
    /// # Errors
    ///
    /// When the process may open no more files, or start no thread.
    pub fn start(settings: SenderSettings) -> io::Result<Sender> {
        Sender::with_network(settings, Network::default())
    }

    pub(super) fn with_network(settings: SenderSettings, network: Network) -> io::Result<Sender> {
        let (inputs, inbox) = unbounded();
        let (report, outcomes) = unbounded();
        let poll = mio::Poll::new()?;
        let shared = Arc::new(Shared {
            waker: Waker::new(poll.registry(), EventLoop::WAKER)?,
            is_asleep: AtomicBool::new(false),
            is_closed: AtomicBool::new(false),
            is_ended: AtomicBool::new(false),
            bell: EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?,
            is_armed: AtomicBool::new(false),
            #[cfg(test)]
            idle: Default::default(),
        });
        let post = Post { inputs: inputs.clone(), shared: shared.clone() };
        let event_loop = EventLoop::new(poll, post, inbox, report, network, settings.at_least_one());
        let end = End(shared.clone());
        spawn_without_signals("pgwh-sender", move || {
            let _end = end;
            event_loop.run();
        })?;
        Ok(Sender { inputs, outcomes, shared })
    }

    /// Allows more or fewer requests under way at once, from now on; those under way come to their end.
    pub fn set_limits(&self, settings: SenderSettings) {
        self.tell(Input::Limits(settings.at_least_one()));
    }

    /// Ends the requests of subscriptions that are gone, and closes their connections. Their outcomes come in any case.
    pub fn abandon(&self, subscriptions: HashSet<i64>) {
        self.tell(Input::Abandon(subscriptions));
    }

    /// Trusts what the system trusts now and, besides, certificates that one of this file signed.
    pub fn trust_file(&self, ca_file: Option<PathBuf>) {
        self.tell(Input::TrustFile(ca_file));
    }

    /// Sends a job, now or as soon as there is room. Its outcome comes in any case.
    pub fn submit(&self, job: Job) {
        self.tell(Input::Job(job));
    }

    /// Appends all outcomes since the last call to `out`, without waiting.
    pub fn outcomes(&self, out: &mut Vec<Outcome>) {
        out.extend(self.outcomes.try_iter());
    }

    /// Asks for [`Sender::wake_fd`] to become readable with the next outcome. True if there are outcomes already: then
    /// don't sleep.
    #[must_use]
    pub fn arm(&self) -> bool {
        self.shared.is_armed.store(true, SeqCst);
        fence(SeqCst);
        if self.outcomes.is_empty() {
            return false;
        }
        self.shared.is_armed.store(false, SeqCst);
        true
    }

    /// Ends what [`Sender::arm`] began: nothing makes the descriptor readable until it is armed again.
    pub fn disarm(&self) {
        self.shared.is_armed.store(false, SeqCst);
        // Silence, if it rang; an error says that it did not.
        let _ = self.shared.bell.read();
    }

    /// Whether the event loop has ended, so that no outcome comes any more. Then the descriptor becomes readable, too.
    pub fn has_ended(&self) -> bool {
        self.shared.is_ended.load(Relaxed)
    }

    /// The descriptor to wait on.
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.shared.bell.as_fd()
    }

    /// How many idle connections are kept.
    #[cfg(test)]
    pub(super) fn idle_connections(&self) -> usize {
        self.shared.idle.load(SeqCst)
    }

    fn tell(&self, input: Input) {
        // The event loop holds the other end as long as this exists.
        let _ = self.inputs.send(input);
        self.shared.wake();
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.shared.is_closed.store(true, SeqCst);
        self.shared.wake();
    }
}

/// Says, when the event loop's thread ends for whatever reason, that it has.
struct End(Arc<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.is_ended.store(true, SeqCst);
        let _ = self.0.bell.write(1);
    }
}
