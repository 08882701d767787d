//! What the sender and the event loop share: how they wake each other, limits, the network.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, fence};

use crossbeam_channel::Sender as Channel;
use mio::Waker;
use nix::sys::eventfd::EventFd;

use super::dns::resolver;
use super::dns::resolver::{Lookup, system_lookup};
use super::job::Job;
use super::outcome::Failure;
use super::request::Request;
use super::tls::{Roots, TlsConfigs};

/// The limit by which a test has the event loop end.
#[cfg(test)]
pub(super) const PANIC: usize = usize::MAX;

/// How sending is set up.
#[derive(Clone, Copy, Debug)]
pub struct SenderSettings {
    /// The most requests under way at once, and the most idle connections.
    pub max_requests: usize,
    /// The most connections that are open at once, idle ones and those that are being opened included.
    pub max_connections: usize,
}

impl SenderSettings {
    pub(super) fn at_least_one(self) -> SenderSettings {
        let max_requests = self.max_requests.max(1);
        SenderSettings { max_requests, max_connections: self.max_connections.max(max_requests) }
    }
}

/// What wakes whom.
pub(super) struct Shared {
    pub(super) waker: Waker,
    /// Whether the event loop sleeps, or is about to.
    pub(super) is_asleep: AtomicBool,
    pub(super) is_closed: AtomicBool,
    /// Whether the event loop's thread has ended.
    pub(super) is_ended: AtomicBool,
    pub(super) bell: EventFd,
    /// Whether the dispatcher wants to be woken.
    pub(super) is_armed: AtomicBool,
    #[cfg(test)]
    pub idle: std::sync::atomic::AtomicUsize,
}

impl Shared {
    /// Whether nobody wants outcomes any more.
    pub fn is_closed(&self) -> bool {
        self.is_closed.load(Relaxed)
    }

    /// Wakes the event loop if it sleeps: each waking is a system call, and a busy one looks on its own.
    pub(super) fn wake(&self) {
        fence(SeqCst);
        if self.is_asleep.load(Relaxed) && self.is_asleep.swap(false, SeqCst) {
            // It can only fail when it has been woken four billion times four billion times.
            let _ = self.waker.wake();
        }
    }

    /// The event loop is about to sleep, and wants to be woken. It has to look for inputs once more.
    pub fn fall_asleep(&self) {
        self.is_asleep.store(true, SeqCst);
        fence(SeqCst);
    }

    /// The event loop looks for inputs on its own.
    pub fn stay_awake(&self) {
        self.is_asleep.store(false, Relaxed);
    }

    /// Wakes the dispatcher if it asked for that, after outcomes were sent.
    pub fn ring(&self) {
        fence(SeqCst);
        if self.is_armed.load(Relaxed) && self.is_armed.swap(false, SeqCst) {
            let _ = self.bell.write(1);
        }
    }
}

/// Where requests may go, in place of the system's own.
pub(super) struct Network {
    pub lookup: Lookup,
    pub tls: TlsConfigs,
}

impl Default for Network {
    fn default() -> Network {
        Network { lookup: system_lookup(), tls: TlsConfigs::default() }
    }
}

/// The way of other threads to the event loop.
#[derive(Clone)]
pub(super) struct Post {
    pub(super) inputs: Channel<Input>,
    pub shared: Arc<Shared>,
}

impl Post {
    /// Has the event loop take this.
    pub fn send(&self, input: Input) {
        let _ = self.inputs.send(input);
        self.shared.wake();
    }
}

/// What the event loop takes from other threads.
pub(super) enum Input {
    /// A request to make.
    Job(Job),
    /// How much may be under way.
    Limits(SenderSettings),
    /// Subscriptions that are gone.
    Abandon(HashSet<i64>),
    /// Whom to trust besides the system's roots.
    TrustFile(Option<PathBuf>),
    /// A body is made.
    Composed(Handle, Result<Box<Request>, Failure>),
    /// A name is resolved.
    Resolved(String, resolver::Answer),
    /// The trusted certificates are read.
    Roots(Roots),
}

/// Names an exchange to other threads.
#[derive(Clone, Copy)]
pub(super) struct Handle {
    pub(super) number: usize,
    pub(super) serial: u64,
}
