//! What was received, and who waits for more.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crate::{Behaviour, Reply, Request, Secret, Verdict, signature};

/// Counts since the start, or since the last `clear`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// Requests that came.
    pub requests: u64,
    /// Of these, how many were not answered 2xx.
    pub faults: u64,
    /// Connections that were accepted.
    pub connections: u64,
    /// When the first request came.
    pub first: Option<Instant>,
    /// When the last one came.
    pub last: Option<Instant>,
}

/// Requests and counts, guarded by one lock.
#[derive(Default)]
pub(crate) struct All {
    pub(crate) kept: VecDeque<Arc<Request>>,
    pub(crate) stats: Stats,
    waiting: usize,
}

/// Is shown each request with its reply.
pub(crate) type Observer = dyn FnMut(&Request, &Reply) + Send;

/// Who replies: at some paths somebody else than everywhere.
struct Behaviours {
    everywhere: Box<dyn Behaviour>,
    at: HashMap<String, Box<dyn Behaviour>>,
}

impl Behaviour for Behaviours {
    fn reply(&mut self, request: &Request) -> Reply {
        // Most receivers treat all paths alike, and are spared the look at it.
        if !self.at.is_empty()
            && let Some(behaviour) = self.at.get_mut(request.path())
        {
            return behaviour.reply(request);
        }
        self.everywhere.reply(request)
    }
}

/// What the serving thread and its user share.
pub(crate) struct Record {
    all: Mutex<All>,
    changed: Condvar,
    // Not under the lock above, so that a behaviour may look at what was received.
    behaviours: Mutex<Behaviours>,
    observer: Mutex<Option<Box<Observer>>>,
    /// Keys that sign requests; without one, signatures are not checked.
    secrets: RwLock<Vec<Secret>>,
    keep: usize,
    stopped: AtomicBool,
}

impl Record {
    pub(crate) fn new(keep: usize) -> Self {
        Self {
            all: Mutex::default(),
            changed: Condvar::new(),
            behaviours: Mutex::new(Behaviours {
                everywhere: Box::new(|_: &Request| Reply::default()),
                at: HashMap::new(),
            }),
            observer: Mutex::default(),
            secrets: RwLock::default(),
            keep,
            stopped: AtomicBool::new(false),
        }
    }

    /// Checks and records a request, then asks what it gets. One that no key has signed gets 401.
    pub(crate) fn take(&self, mut request: Request) -> Reply {
        if let Some(verdict) = self.verify(&request) {
            request.judge(verdict);
        }
        let request = Arc::new(request);
        {
            let mut all = self.all();
            all.stats.requests += 1;
            all.stats.first.get_or_insert(request.arrived());
            all.stats.last = Some(request.arrived());
            if self.keep > 0 {
                if all.kept.len() >= self.keep {
                    all.kept.pop_front();
                }
                all.kept.push_back(Arc::clone(&request));
            }
            if all.waiting > 0 {
                self.changed.notify_all();
            }
        }
        let reply = match request.verdict() {
            None | Some(Verdict::Valid) => self.behaviours().reply(&request),
            Some(verdict) => Reply::status(401).body(format!("{}\n", verdict.words())),
        };
        if !reply.is_success() {
            self.all().stats.faults += 1;
        }
        if let Some(observer) = self.observer.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            observer(&request, &reply);
        }
        reply
    }

    pub(crate) fn connected(&self) {
        self.all().stats.connections += 1;
    }

    pub(crate) fn behave(&self, behaviour: Box<dyn Behaviour>) {
        self.behaviours().everywhere = behaviour;
    }

    pub(crate) fn behave_at(&self, path: &str, behaviour: Box<dyn Behaviour>) {
        self.behaviours().at.insert(path.to_owned(), behaviour);
    }

    pub(crate) fn check_signatures(&self, secrets: Vec<Secret>) {
        *self.secrets.write().unwrap_or_else(PoisonError::into_inner) = secrets;
    }

    fn verify(&self, request: &Request) -> Option<Verdict> {
        let secrets = self.secrets.read().unwrap_or_else(PoisonError::into_inner);
        signature::verify_any(&secrets, request)
    }

    pub(crate) fn observe(&self, observer: Box<Observer>) {
        *self.observer.lock().unwrap_or_else(PoisonError::into_inner) = Some(observer);
    }

    pub(crate) fn requests(&self) -> Vec<Arc<Request>> {
        self.all().kept.iter().cloned().collect()
    }

    pub(crate) fn stats(&self) -> Stats {
        self.all().stats
    }

    pub(crate) fn clear(&self) {
        let mut all = self.all();
        all.kept.clear();
        all.stats = Stats::default();
    }

    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    pub(crate) fn stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    pub(crate) fn wait(
        &self,
        what: &str,
        within: Duration,
        mut condition: impl FnMut(&mut All) -> bool,
    ) -> Result<Vec<Arc<Request>>, Unmet> {
        let deadline = Instant::now() + within;
        let mut all = self.all();
        loop {
            if condition(&mut all) {
                return Ok(all.kept.iter().cloned().collect());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Unmet { what: what.into(), within, came: all.stats.requests });
            }
            all.waiting += 1;
            all = self.changed.wait_timeout(all, left).unwrap_or_else(PoisonError::into_inner).0;
            all.waiting -= 1;
        }
    }

    fn all(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn behaviours(&self) -> MutexGuard<'_, Behaviours> {
        self.behaviours.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was waited for did not come in time.
pub struct Unmet {
    what: String,
    within: Duration,
    came: u64,
}

impl fmt::Display for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "waited {:?} for {}; {} requests came", self.within, self.what, self.came)
    }
}

impl fmt::Debug for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Unmet {}
