//! Requests whose events go through users' functions first: who waits for a renderer, and who is at one.
//!
//! A subscription is at one renderer at most, and those whose functions are slow leave one to the others. So a function
//! that sleeps holds up its own subscription and nobody else.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::bgworkers::renderer;
use crate::delivery::DeliveryId;
use crate::delivery::Payload;
use crate::gucs;
use crate::http::Endpoint;
use crate::ipc::frame::FrameReader;
use crate::ipc::render::{Ask, Shaped, read_answer};
use crate::pg::process::bgworker;
use crate::pg::process::bgworker::WorkerHandle;
use crate::pg::shm_mq::{Detached, Pair};
use crate::shmem::dynamic;
use crate::shmem::registry::Database;

/// Functions that take longer, for all events of a request, are slow.
const SLOW: Duration = Duration::from_millis(100);
/// How much longer than the functions may take a renderer is waited for.
const GRACE: Duration = Duration::from_secs(2);
/// How long until a renderer is tried again for which there was no free worker process.
const NO_WORKER_PAUSE: Duration = Duration::from_secs(2);
/// What shared memory is for.
const TO_RENDER: &str = "to run transforms and routes";

/// What a subscription's events go through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Functions {
    /// The role whose rights they have.
    pub owner: String,
    /// The function that makes the body.
    pub transform: Option<String>,
    /// The function that says where an event goes.
    pub route: Option<String>,
}

/// A request that waits for its events to be rendered.
pub struct Unrendered {
    /// Its number among those under way.
    pub number: usize,
    /// Whose it is.
    pub subscription: i64,
    /// Where it goes.
    pub endpoint: Arc<Endpoint>,
    /// What its events go through.
    pub functions: Arc<Functions>,
    /// What it holds.
    pub members: Vec<(DeliveryId, Payload)>,
    /// Which attempt this is.
    pub attempt: u32,
    /// The replay that it belongs to.
    pub replay: Option<i64>,
}

/// A request whose events have been put through functions, or could not be.
pub struct Rendered {
    /// The request.
    pub request: Unrendered,
    /// What came of each event, or why nothing came of any.
    pub shaped: Result<Vec<Shaped>, String>,
    /// How long it took.
    pub duration: Duration,
}

/// Requests on their way through renderers.
pub struct Rendering {
    database: &'static Database,
    renderers: Vec<Renderer>,
    queues: HashMap<i64, Queue>,
    /// Subscriptions that have something waiting, in their turn.
    turns: VecDeque<i64>,
    /// Whether any subscription names a function.
    wanted: bool,
    not_before: Option<Instant>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Unrendered>,
    at_renderer: bool,
    /// How long its last request took; none when that is not known yet.
    last: Option<Duration>,
}

impl Queue {
    fn is_swift(&self) -> bool {
        self.last.is_some_and(|last| last <= SLOW)
    }
}

impl Rendering {
    /// No renderer runs yet.
    pub fn new(database: &'static Database) -> Rendering {
        database.lacks_renderer.store(false, Ordering::SeqCst);
        Rendering {
            database,
            renderers: Vec::new(),
            queues: HashMap::new(),
            turns: VecDeque::new(),
            wanted: false,
            not_before: None,
        }
    }

    /// Whether any subscription names a function; without one no renderer is kept.
    pub fn set_wanted(&mut self, wanted: bool) {
        self.wanted = wanted;
    }

    /// Takes a request; it comes out of [`Rendering::turn`].
    pub fn take(&mut self, request: Unrendered) {
        let id = request.subscription;
        let queue = self.queues.entry(id).or_default();
        queue.waiting.push_back(request);
        if queue.waiting.len() == 1 && !queue.at_renderer {
            self.turns.push_back(id);
        }
    }

    /// Forgets a subscription; the requests of it that waited.
    pub fn remove(&mut self, subscription: i64) -> impl Iterator<Item = Unrendered> {
        self.turns.retain(|id| *id != subscription);
        self.queues.remove(&subscription).map(|queue| queue.waiting).into_iter().flatten()
    }

    /// Goes on with what waits; the requests that are rendered.
    pub fn turn(&mut self) -> Vec<Rendered> {
        let mut rendered = Vec::new();
        for renderer in std::mem::take(&mut self.renderers) {
            self.go_on(renderer, &mut rendered);
        }
        while let Some(id) = self.next_turn() {
            if !self.begin(id, &mut rendered) {
                break;
            }
        }
        if self.turns.is_empty() || !self.renderers.is_empty() {
            self.set_lack(false);
        }
        if !self.wanted {
            self.renderers.retain(|renderer| renderer.task.is_some());
        }
        rendered
    }

    /// When there is something to do though no renderer answers.
    pub fn next_wakeup(&self) -> Option<Instant> {
        let deadlines = self.renderers.iter().filter_map(|renderer| Some(renderer.task.as_ref()?.deadline));
        deadlines.chain(self.not_before.filter(|_| !self.turns.is_empty())).min()
    }

    /// Ends all renderers, and waits until they have ended.
    pub fn end(&mut self) {
        let ending: Vec<WorkerHandle> = self.renderers.drain(..).map(|renderer| renderer.worker).collect();
        ending.iter().for_each(WorkerHandle::terminate);
        while ending.iter().any(|worker| !worker.has_ended()) {
            // Their end sets our latch.
            bgworker::sleep(Some(Duration::from_millis(100)));
        }
    }

    fn go_on(&mut self, mut renderer: Renderer, rendered: &mut Vec<Rendered>) {
        let shaped = match renderer.answer() {
            Ok(None) if renderer.worker.has_ended() => Err("the process that runs it has ended".to_owned()),
            Ok(None) if renderer.is_overdue() => {
                Err("it cannot be stopped, so its process is ended".to_owned())
            }
            Ok(None) => return self.renderers.push(renderer),
            Ok(Some(shaped)) => Ok(shaped),
            Err(message) => Err(message),
        };
        let task = renderer.task.take();
        if shaped.is_ok() {
            self.renderers.push(renderer);
        } else {
            // A function that catches its own cancellation is stopped by nothing less.
            renderer.worker.terminate();
        }
        let Some(Task { request, since, .. }) = task else { return };
        let duration = since.elapsed();
        if let Some(queue) = self.queues.get_mut(&request.subscription) {
            queue.at_renderer = false;
            queue.last = Some(duration);
            if !queue.waiting.is_empty() {
                self.turns.push_back(request.subscription);
            }
        }
        rendered.push(Rendered { request, shaped, duration });
    }

    /// The next subscription that may have a renderer now.
    fn next_turn(&mut self) -> Option<i64> {
        let busy_with_others =
            self.renderers.iter().filter(|it| it.task.as_ref().is_some_and(|task| !task.is_swift));
        let room_for_others = busy_with_others.count() < gucs::max_renderers().saturating_sub(1).max(1);
        let may = |id: &i64| room_for_others || self.queues.get(id).is_some_and(Queue::is_swift);
        let place = self.turns.iter().position(may)?;
        self.turns.get(place).copied()
    }

    /// Gives a subscription's oldest request to a renderer; false if there is none free.
    fn begin(&mut self, id: i64, rendered: &mut Vec<Rendered>) -> bool {
        let free = self.renderers.iter().position(|renderer| renderer.task.is_none());
        let Some(free) = free.or_else(|| self.start()) else { return false };
        self.turns.retain(|other| *other != id);
        let Some(queue) = self.queues.get_mut(&id) else { return true };
        let is_swift = queue.is_swift();
        let Some(request) = queue.waiting.pop_front() else { return true };
        match self.renderers[free].begin(request, is_swift) {
            Ok(()) => queue.at_renderer = true,
            Err((request, message)) => {
                rendered.push(Rendered { request, shaped: Err(message), duration: Duration::ZERO });
                if !queue.waiting.is_empty() {
                    self.turns.push_back(id);
                }
            }
        }
        true
    }

    /// Starts another renderer, if there may be one more; its place.
    fn start(&mut self) -> Option<usize> {
        let now = Instant::now();
        if self.renderers.len() >= gucs::max_renderers() || self.not_before.is_some_and(|at| now < at) {
            return None;
        }
        self.not_before = None;
        let pair = dynamic::make(self.database, TO_RENDER, || Pair::create(renderer::QUEUE));
        let Some(pair) = pair else {
            self.not_before = Some(now + NO_WORKER_PAUSE);
            return None;
        };
        let worker =
            bgworker::start_worker_with("renderer", "pgwh_renderer_main", self.database.oid(), pair.handle());
        let Some(worker) = worker else {
            self.not_before = Some(now + NO_WORKER_PAUSE);
            self.set_lack(self.renderers.is_empty());
            return None;
        };
        self.renderers.push(Renderer {
            worker,
            pair,
            frames: FrameReader::default(),
            output: Vec::new(),
            sent: 0,
            task: None,
        });
        Some(self.renderers.len() - 1)
    }

    /// Says whether there is no process at all to run functions. The launcher may find one.
    fn set_lack(&self, lacks: bool) {
        let lacked = self.database.lacks_renderer.swap(lacks, Ordering::SeqCst);
        if lacks && !lacked {
            crate::shmem::registry::warn_of_no_worker("to run transforms and routes");
        }
    }
}

struct Renderer {
    worker: WorkerHandle,
    pair: Pair,
    frames: FrameReader,
    /// What is to be sent to it, and how much of it has been.
    output: Vec<u8>,
    sent: usize,
    task: Option<Task>,
}

/// What a renderer is at.
struct Task {
    request: Unrendered,
    since: Instant,
    deadline: Instant,
    is_swift: bool,
}

impl Renderer {
    fn begin(&mut self, request: Unrendered, is_swift: bool) -> Result<(), (Unrendered, String)> {
        let ask = request.ask();
        self.output.clear();
        self.sent = 0;
        if let Err(too_long) = ask.write(&mut self.output) {
            return Err((request, too_long.to_string()));
        }
        let since = Instant::now();
        let deadline = since + renderer::most(&ask) * ask.events.len() as u32 + GRACE;
        self.task = Some(Task { request, since, deadline, is_swift });
        // Should it be gone already, that is noticed when its answer is looked for.
        let _ = self.push();
        Ok(())
    }

    fn push(&mut self) -> Result<(), Detached> {
        self.sent += self.pair.sender().send_some(&self.output[self.sent..])?;
        if self.sent == self.output.len() {
            self.output = Vec::new();
            self.sent = 0;
        }
        Ok(())
    }

    /// Its answer, if it has come.
    fn answer(&mut self) -> Result<Option<Vec<Shaped>>, String> {
        let gone = |_| "the process that runs it has gone".to_owned();
        if self.sent < self.output.len() {
            self.push().map_err(gone)?;
        }
        loop {
            if let Some(frame) = self.frames.next_frame().map_err(|error| error.to_string())? {
                return read_answer(frame).map(Some).map_err(|error| error.to_string());
            }
            match self.pair.receiver().receive().map_err(gone)? {
                Some(piece) => self.frames.push(piece),
                None => return Ok(None),
            }
        }
    }

    fn is_overdue(&self) -> bool {
        self.task.as_ref().is_some_and(|task| Instant::now() > task.deadline)
    }
}

impl Unrendered {
    fn ask(&self) -> Ask {
        let event =
            |(_, (event, level)): &(DeliveryId, Payload)| self.endpoint.show(event, usize::from(*level));
        Ask {
            owner: self.functions.owner.clone(),
            transform: self.functions.transform.clone(),
            route: self.functions.route.clone(),
            limit: gucs::transform_timeout(),
            events: self.members.iter().map(event).collect(),
        }
    }
}
