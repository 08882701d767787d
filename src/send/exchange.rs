//! What a sender and the connection it uses tell each other past `ureq`, which stands between them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::buffers::RequestBuffers;
use super::endpoint::Endpoint;
use super::outcome::{ErrorClass, Failure};

/// The request that one sender thread is at.
pub(super) struct Exchange {
    state: Mutex<State>,
}

struct State {
    request: Option<Request>,
    /// The thread's buffers while no connection uses them.
    buffers: RequestBuffers,
    progress: Progress,
}

/// What the sender asks for.
#[derive(Clone)]
pub(super) struct Request {
    pub endpoint: Arc<Endpoint>,
    pub deadline: Instant,
    /// Whether a kept connection may be used.
    pub reuse: bool,
}

/// What the connection tells.
#[derive(Default)]
pub(super) struct Progress {
    /// Whether the connection was used before.
    pub reused: bool,
    /// Whether a byte of the answer arrived.
    pub heard: bool,
    /// Why it can't go on.
    pub fault: Option<Fault>,
}

impl Progress {
    /// Whether nothing is wrong but that the server had closed the kept connection: the request was not served,
    /// and on a new connection it may be.
    pub fn was_stale(&self) -> bool {
        self.reused
            && !self.heard
            && self.fault.as_ref().is_some_and(|fault| fault.class == ErrorClass::Reset)
    }
}

/// Why a request could not be sent or answered.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    pub class: ErrorClass,
    pub message: String,
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Failure {
        Failure::unanswered(fault.class, fault.message)
    }
}

impl Exchange {
    pub fn new() -> Exchange {
        let state =
            State { request: None, buffers: RequestBuffers::default(), progress: Progress::default() };
        Exchange { state: Mutex::new(state) }
    }

    /// Begins a request.
    pub fn begin(&self, request: Request) {
        let mut state = self.lock();
        state.progress = Progress::default();
        state.request = Some(request);
    }

    /// Ends a request, with what the connection told.
    pub fn end(&self) -> Progress {
        let mut state = self.lock();
        state.request = None;
        std::mem::take(&mut state.progress)
    }

    /// The request under way.
    pub fn request(&self) -> Option<Request> {
        self.lock().request.clone()
    }

    /// When the request under way must have ended.
    pub fn deadline(&self) -> Option<Instant> {
        self.lock().request.as_ref().map(|request| request.deadline)
    }

    /// Leaves less time to the request under way.
    pub fn hurry(&self, deadline: Instant) {
        if let Some(request) = &mut self.lock().request {
            request.deadline = request.deadline.min(deadline);
        }
    }

    /// Notes how far it came.
    pub fn note(&self, note: impl FnOnce(&mut Progress)) {
        note(&mut self.lock().progress);
    }

    /// Notes why it can't go on.
    pub fn fail(&self, fault: Fault) {
        self.note(|progress| progress.fault = Some(fault));
    }

    pub fn lend_buffers(&self) -> RequestBuffers {
        std::mem::take(&mut self.lock().buffers)
    }

    pub fn return_buffers(&self, buffers: RequestBuffers) {
        self.lock().buffers = buffers;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
