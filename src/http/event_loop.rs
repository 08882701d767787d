//! The event loop: one thread that sends all requests.
//!
//! It owns every connection and never waits for one. What could hold it up is done elsewhere: names are resolved by
//! threads of their own, large bodies are made by a few more, and both report through the inbox. What it does for one
//! connection in a turn is bounded, so that none delays the others.

mod ahead;
pub mod answer;
mod connect;
pub mod connection;
pub mod connection_pool;
pub mod deadlines;
mod proxy_tunnel;
pub mod request_context;
pub mod request_queue;
mod transfer;

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender as Channel};
use mio::{Events, Poll, Token};
use slab::Slab;
use url::Host;

use self::answer::Fault;
use self::connection::Connection;
use self::connection_pool::IdleConnections;
use self::deadlines::Deadlines;
use self::request_context::{Exchange, Stage};
use self::request_queue::Lines;
use super::channel::{Handle, Input, Network, Post, SenderSettings};
use super::dns::address_order::SilentAddresses;
use super::dns::resolver::Resolver;
use super::dns::thread_pool::{ThreadSettings, Threads};
use super::job::Job;
use super::outcome::{ErrorClass, Failure, Outcome};
use super::request::{Request, bug};
use super::server::Server;
use super::tls::{RootsWanted, TlsConfigs};

/// Events taken at once.
const MAX_EVENTS: usize = 256;
/// How long the dispatcher may not know of outcomes while it need not hand over more.
const MAX_UNTOLD: Duration = Duration::from_millis(1);
/// Inputs taken in a turn.
const MAX_INPUTS: usize = 256;
/// A body that may be larger is made by a thread of its own.
const MAX_BODY_IN_PLACE: usize = 32 * 1024;
/// The same for one that is compressed.
const MAX_COMPRESSED_IN_PLACE: usize = 4 * 1024;
/// Bytes of an answer that are read at once.
const READ_BYTES: usize = 64 * 1024;
/// How often connections that nobody uses are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);
/// How long to wait when the system gives no events, which it always does.
const POLL_BACKOFF: Duration = Duration::from_millis(10);

/// What would hold up the loop.
enum Task {
    Compose(Handle, Job),
    ReadRoots(RootsWanted),
}

/// A connection and what it is for.
struct Link {
    connection: Connection,
    server: Arc<Server>,
    /// The exchange that uses it; none if it is idle.
    exchange: Option<usize>,
    /// Whether the other side is known to send no more.
    is_read_closed: bool,
    /// Whether it has served a request.
    is_kept: bool,
    /// When it is not used any more: its name may stand for another address by then.
    retire_at: Instant,
    /// How often settings had been read when it was made.
    generation: u64,
}

/// What may be possible on a connection.
#[derive(Clone, Copy)]
struct Readiness {
    readable: bool,
    read_closed: bool,
}

/// The event loop and all it owns.
pub(super) struct EventLoop {
    poll: Poll,
    events: Events,
    post: Post,
    inbox: Receiver<Input>,
    report: Channel<Outcome>,
    /// Outcomes of this turn.
    outcomes: Vec<Outcome>,
    /// Whether the dispatcher has to see them at once.
    is_urgent: bool,
    /// Since when there are outcomes that it has not been woken for.
    untold_since: Option<Instant>,
    lines: Lines,
    /// Subscriptions whose next request may begin.
    freed: Vec<i64>,
    limits: SenderSettings,
    /// Jobs that wait for room.
    queue: VecDeque<Job>,
    exchanges: Slab<Exchange>,
    serial: u64,
    connections: Slab<Link>,
    /// Connections to look at.
    ready: VecDeque<(usize, Readiness)>,
    idle: IdleConnections,
    sweep_at: Instant,
    deadlines: Deadlines,
    resolver: Resolver,
    /// For names that a proxy will resolve, so that those that take long do not hold up others.
    target_resolver: Resolver,
    silent: SilentAddresses,
    /// By name, who waits for its addresses.
    unresolved: HashMap<String, Vec<Handle>>,
    tls: TlsConfigs,
    /// How often settings have been read: connections that were made before are not kept.
    generation: u64,
    /// Who waits for the trusted certificates.
    without_roots: Vec<Handle>,
    threads: Threads<Task>,
    buffer: Box<[u8]>,
    /// The exchange that is being looked at: a panic is its outcome.
    current: Option<usize>,
}

impl EventLoop {
    /// The token of what wakes it.
    pub const WAKER: Token = Token(usize::MAX);

    pub fn new(
        poll: Poll,
        post: Post,
        inbox: Receiver<Input>,
        report: Channel<Outcome>,
        network: Network,
        limits: SenderSettings,
    ) -> EventLoop {
        let done = post.clone();
        let resolver = || {
            let resolved = post.clone();
            let report = move |name, answer| resolved.send(Input::Resolved(name, answer));
            Resolver::new(network.lookup.clone(), report)
        };
        let max_threads = thread::available_parallelism().map_or(1, |count| count.get().min(4));
        let settings =
            ThreadSettings { name: "pgwh-composer", max_threads, max_idle: Duration::from_secs(60) };
        EventLoop {
            poll,
            events: Events::with_capacity(MAX_EVENTS),
            inbox,
            report,
            outcomes: Vec::new(),
            is_urgent: false,
            untold_since: None,
            lines: Lines::default(),
            freed: Vec::new(),
            limits,
            queue: VecDeque::new(),
            exchanges: Slab::new(),
            serial: 0,
            connections: Slab::new(),
            ready: VecDeque::new(),
            idle: IdleConnections::default(),
            sweep_at: Instant::now(),
            deadlines: Deadlines::default(),
            resolver: resolver(),
            target_resolver: resolver(),
            silent: SilentAddresses::default(),
            unresolved: HashMap::new(),
            tls: network.tls,
            generation: 0,
            without_roots: Vec::new(),
            threads: Threads::new(settings, move || {
                let post = done.clone();
                Box::new(move |task: Task| post.send(task.run()))
            }),
            buffer: vec![0; READ_BYTES].into_boxed_slice(),
            current: None,
            post,
        }
    }

    /// Runs until nobody wants outcomes any more.
    pub fn run(mut self) {
        while !self.post.shared.is_closed() {
            #[cfg(test)]
            assert_ne!(self.limits.max_requests, super::channel::PANIC, "for a test");
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.turn())) {
                self.recover(&bug(&*panic));
            }
        }
    }

    fn turn(&mut self) {
        let timeout = self.timeout();
        if let Err(error) = self.poll.poll(&mut self.events, timeout)
            && error.kind() != std::io::ErrorKind::Interrupted
        {
            thread::sleep(POLL_BACKOFF);
        }
        self.post.shared.stay_awake();
        for event in self.events.iter().filter(|event| event.token() != EventLoop::WAKER) {
            let readable = event.is_readable() || event.is_read_closed() || event.is_error();
            let readiness = Readiness { readable, read_closed: event.is_read_closed() };
            self.ready.push_back((event.token().0, readiness));
        }
        self.events.clear();
        // Those that have more to do come again in the next turn.
        for _ in 0..self.ready.len() {
            let Some((connection, readiness)) = self.ready.pop_front() else { break };
            self.look_at(connection, readiness);
        }
        for _ in 0..MAX_INPUTS {
            let Ok(input) = self.inbox.try_recv() else { break };
            self.take(input);
        }
        let now = Instant::now();
        while let Some(number) = self.deadlines.pop(now) {
            self.current = Some(number);
            self.check_deadline(number, now);
            self.current = None;
        }
        self.serve_lines(now);
        while self.has_room()
            && let Some(job) = self.queue.pop_front()
        {
            self.begin(job);
        }
        self.sweep(now);
        self.hand_over_outcomes(now);
    }

    /// How long to wait for events; with nothing else to do until something happens.
    fn timeout(&self) -> Option<Duration> {
        if !self.ready.is_empty() {
            return Some(Duration::ZERO);
        }
        self.post.shared.fall_asleep();
        if !self.inbox.is_empty() || self.post.shared.is_closed() {
            self.post.shared.stay_awake();
            return Some(Duration::ZERO);
        }
        let sweep = (self.idle.count() > 0).then_some(self.sweep_at);
        let untold = self.untold_since.map(|since| since + MAX_UNTOLD);
        let next = self.deadlines.next().into_iter().chain(sweep).chain(untold).min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Job(job) if job.is_in_line() => {
                if let Some(job) = self.lines.join(job) {
                    self.admit(job);
                }
            }
            Input::Job(job) => self.admit(job),
            Input::Limits(limits) => self.limits = limits,
            Input::Abandon(subscriptions) => self.abandon(&subscriptions),
            Input::TrustFile(ca_file) => {
                let wanted = self.tls.trust_file(ca_file);
                // Without a thread, what was trusted before stays.
                if let Some(Err((Task::ReadRoots(wanted), error))) =
                    wanted.map(|wanted| self.threads.submit(Task::ReadRoots(wanted)))
                {
                    let _ = self.tls.take_roots(wanted.failed(error.to_string()));
                }
                // Kept connections were made by what was set before.
                self.generation += 1;
                self.idle.clear().into_iter().for_each(|connection| self.close(connection));
            }
            Input::Composed(handle, request) => {
                if self.is_at(handle, Stage::Composing) {
                    self.current = Some(handle.number);
                    self.composed(handle.number, request.map(|request| *request));
                }
            }
            Input::Resolved(name, answer) => {
                self.target_resolver.answered(&name, answer.clone(), Instant::now());
                self.resolver.answered(&name, answer, Instant::now());
                for handle in self.unresolved.remove(&name).unwrap_or_default() {
                    if self.is_at(handle, Stage::Resolving) {
                        self.current = Some(handle.number);
                        self.find_addresses(handle.number);
                    }
                }
            }
            Input::Roots(roots) => {
                let taken = self.tls.take_roots(roots);
                for handle in std::mem::take(&mut self.without_roots) {
                    if self.is_at(handle, Stage::ReadingRoots) {
                        self.current = Some(handle.number);
                        match &taken {
                            Ok(()) => self.secure(handle.number),
                            Err(error) => {
                                self.fail(handle.number, Fault::new(ErrorClass::Tls, error.as_str()));
                            }
                        }
                    }
                }
            }
        }
        self.current = None;
    }

    fn has_room(&self) -> bool {
        self.exchanges.len() < self.limits.max_requests
    }

    fn is_at(&self, handle: Handle, stage: Stage) -> bool {
        let exchange = self.exchanges.get(handle.number);
        exchange.is_some_and(|exchange| exchange.serial == handle.serial && exchange.stage == stage)
    }

    fn handle(&self, number: usize) -> Handle {
        Handle { number, serial: self.exchanges.get(number).map_or(0, |exchange| exchange.serial) }
    }

    /// Begins with a job, for which there is room.
    fn begin(&mut self, job: Job) {
        self.serial += 1;
        let mut exchange = Exchange::new(self.serial, job.ticket, job.endpoint.clone(), job.is_in_line());
        if job.prepared.as_ref().is_some_and(|prepared| prepared.is_fresh) {
            exchange.may_reuse = false;
            if let Host::Domain(name) = job.endpoint.server().dialled().0 {
                self.resolver.forget(name);
            }
        }
        let number = self.exchanges.insert(exchange);
        self.current = Some(number);
        if is_large(&job) {
            self.delegate(number, Task::Compose(self.handle(number), job));
        } else {
            let request = Request::compose(&job);
            self.composed(number, request);
        }
        self.current = None;
    }

    fn delegate(&mut self, number: usize, task: Task) {
        if let Err((_, error)) = self.threads.submit(task) {
            let message = format!("no thread could be started: {error}");
            self.fail(number, Fault::new(ErrorClass::Connect, message));
        }
    }

    fn composed(&mut self, number: usize, request: Result<Request, Failure>) {
        match (request, self.exchanges.get_mut(number)) {
            (Ok(request), Some(exchange)) => {
                exchange.set_request(request);
                self.deadlines.set(number, exchange.deadline);
                self.connect(number);
            }
            (Err(failure), _) => self.end(number, Err(failure), false),
            (Ok(_), None) => {}
        }
    }

    /// Lets go of idle connections that are too old.
    fn sweep(&mut self, now: Instant) {
        if now >= self.sweep_at {
            self.sweep_at = now + SWEEP_INTERVAL;
            self.idle.expired(now).into_iter().for_each(|connection| self.close(connection));
        }
    }

    fn hand_over_outcomes(&mut self, now: Instant) {
        #[cfg(test)]
        self.post.shared.idle.store(self.idle.count(), std::sync::atomic::Ordering::SeqCst);
        if self.outcomes.is_empty() && self.untold_since.is_none() {
            return;
        }
        for outcome in self.outcomes.drain(..) {
            // Nobody listens only when this is about to end.
            let _ = self.report.send(outcome);
        }
        let since = *self.untold_since.get_or_insert(now);
        if std::mem::take(&mut self.is_urgent) || now.saturating_duration_since(since) >= MAX_UNTOLD {
            self.untold_since = None;
            self.post.shared.ring();
        }
    }

    /// Ends what was being done when something panicked: one exchange, or else all of them.
    fn recover(&mut self, failure: &Failure) {
        let failed = match self.current.take() {
            Some(number) => vec![number],
            None => self.exchanges.iter().map(|(number, _)| number).collect(),
        };
        for number in failed {
            self.end(number, Err(failure.clone()), false);
        }
    }
}

impl Task {
    fn run(self) -> Input {
        match self {
            Task::Compose(handle, job) => Input::Composed(handle, Request::compose(&job).map(Box::new)),
            Task::ReadRoots(wanted) => Input::Roots(wanted.read()),
        }
    }
}

/// Whether making a job's body takes so long that others would notice.
fn is_large(job: &Job) -> bool {
    let limit = if job.endpoint.compress { MAX_COMPRESSED_IN_PLACE } else { MAX_BODY_IN_PLACE };
    let bodies = job.prepared.iter().flat_map(|prepared| &prepared.bodies).flatten().map(Vec::len);
    let events = job.events.iter().map(|(event, _)| event.memory());
    bodies.chain(events).sum::<usize>() > limit
}
