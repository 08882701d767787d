//! Threads for what would hold up the event loop; they grow with need.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, SigmaskHow};

/// The stack of a thread: little, and known to suffice.
const STACK_BYTES: usize = 512 * 1024;

/// How a set of threads is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ThreadSettings {
    /// What debuggers and `top -H` call the threads.
    pub name: &'static str,
    /// The most threads there are at once.
    pub max_threads: usize,
    /// How long a thread waits for work before it ends.
    pub max_idle: Duration,
}

/// A queue of jobs and the threads that do them.
///
/// A job goes to the thread that became idle last: its caches are warm, and the coldest get to end. Dropping this
/// waits for nothing: idle threads end at once, busy ones after their job.
pub(crate) struct Threads<J> {
    shared: Arc<Shared<J>>,
}

struct Shared<J> {
    settings: ThreadSettings,
    /// Makes what a thread does with each job; made anew for each thread, so that it can keep state.
    make_worker: Box<dyn Fn() -> Box<dyn FnMut(J)> + Send + Sync>,
    state: Mutex<State<J>>,
}

struct State<J> {
    queue: VecDeque<J>,
    /// The idle threads, the one used last at the end.
    idle: Vec<Thread>,
    running: usize,
    closed: bool,
}

impl<J: Send + 'static> Threads<J> {
    /// A set without threads. `make_worker` runs in each new thread; what it returns does the jobs and must not panic.
    pub fn new(
        settings: ThreadSettings,
        make_worker: impl Fn() -> Box<dyn FnMut(J)> + Send + Sync + 'static,
    ) -> Threads<J> {
        let state = State { queue: VecDeque::new(), idle: Vec::new(), running: 0, closed: false };
        Threads {
            shared: Arc::new(Shared {
                settings,
                make_worker: Box::new(make_worker),
                state: Mutex::new(state),
            }),
        }
    }

    /// Queues a job and wakes or starts a thread for it; never waits for one.
    ///
    /// Fails when there is no thread and none can be started; the job is given back.
    pub fn submit(&self, job: J) -> Result<(), (J, io::Error)> {
        let mut state = self.shared.lock();
        state.queue.push_back(job);
        if let Some(thread) = state.idle.pop() {
            drop(state);
            thread.unpark();
            return Ok(());
        }
        if state.running >= self.shared.settings.max_threads {
            return Ok(());
        }
        state.running += 1;
        drop(state);
        self.spawn().or_else(|error| {
            let mut state = self.shared.lock();
            state.running -= 1;
            match state.queue.pop_back() {
                Some(job) if state.running == 0 => Err((job, error)),
                Some(job) => {
                    state.queue.push_back(job);
                    Ok(())
                }
                None => Ok(()),
            }
        })
    }

    /// How many threads there are.
    #[cfg(test)]
    pub fn running(&self) -> usize {
        self.shared.lock().running
    }

    fn spawn(&self) -> io::Result<()> {
        let shared = self.shared.clone();
        spawn_without_signals(self.shared.settings.name, move || shared.work())
    }
}

/// Starts a thread that no signal interrupts.
pub(crate) fn spawn_without_signals(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    // A thread inherits the mask of the one that starts it. Signals are for the main thread: its handlers
    // belong to the process that this runs in, and must never run here.
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    let spawned = thread::Builder::new().name(name.to_owned()).stack_size(STACK_BYTES).spawn(run);
    before.thread_set_mask()?;
    spawned.map(drop)
}

impl<J> Drop for Threads<J> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        state.queue.clear();
        for thread in state.idle.drain(..) {
            thread.unpark();
        }
    }
}

impl<J> Shared<J> {
    fn work(&self) {
        let mut worker = (self.make_worker)();
        while let Some(job) = self.next() {
            worker(job);
        }
    }

    /// The next job; none when this thread is to end, which is then counted already.
    fn next(&self) -> Option<J> {
        let mut idle_since = None;
        let mut state = self.lock();
        loop {
            if state.closed {
                state.running -= 1;
                return None;
            }
            if let Some(job) = state.queue.pop_front() {
                return Some(job);
            }
            let now = Instant::now();
            let rest = self.settings.max_idle.saturating_sub(now - *idle_since.get_or_insert(now));
            if rest.is_zero() {
                state.running -= 1;
                return None;
            }
            let this = thread::current();
            state.idle.push(this.clone());
            drop(state);
            thread::park_timeout(rest);
            state = self.lock();
            // Woken by a job, it is no longer there; woken by time or for nothing, it is.
            state.idle.retain(|thread| thread.id() != this.id());
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<J>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::{Sender, bounded, unbounded};

    const SETTINGS: ThreadSettings =
        ThreadSettings { name: "pgwh-test", max_threads: 4, max_idle: Duration::from_secs(60) };

    type Task = Box<dyn FnOnce() + Send>;

    fn threads(settings: ThreadSettings) -> Threads<Task> {
        Threads::new(settings, || Box::new(|task: Task| task()))
    }

    fn submit(threads: &Threads<Task>, task: impl FnOnce() + Send + 'static) {
        threads.submit(Box::new(task)).map_err(|(_, error)| error).unwrap();
    }

    /// A task that says which thread runs it, then blocks until the returned sender goes.
    fn block(threads: &Threads<Task>, started: &Sender<thread::ThreadId>) -> Sender<()> {
        let (release, released) = bounded::<()>(0);
        let started = started.clone();
        submit(threads, move || {
            started.send(thread::current().id()).unwrap();
            let _ = released.recv();
        });
        release
    }

    fn await_idle(threads: &Threads<Task>, count: usize) {
        while threads.shared.lock().idle.len() != count {
            thread::yield_now();
        }
    }

    #[test]
    fn threads_grow_with_need_up_to_their_limit() {
        let threads = threads(SETTINGS);
        let (started, starts) = unbounded();
        let mut releases: Vec<_> = (0..5).map(|_| block(&threads, &started)).collect();
        let ids: std::collections::HashSet<_> = (0..4).map(|_| starts.recv().unwrap()).collect();
        assert_eq!((ids.len(), threads.running()), (4, 4));
        assert!(starts.is_empty());
        releases.remove(0);
        assert!(ids.contains(&starts.recv().unwrap()));
    }

    #[test]
    fn the_thread_used_last_is_woken_first() {
        let threads = threads(SETTINGS);
        let (started, starts) = unbounded();
        let releases: Vec<_> = (0..3).map(|_| block(&threads, &started)).collect();
        let ids: Vec<_> = (0..3).map(|_| starts.recv().unwrap()).collect();
        // Which thread took which job is open, so the order of becoming idle is read from the list itself.
        for (idle, release) in releases.into_iter().enumerate() {
            drop(release);
            await_idle(&threads, idle + 1);
        }
        let last = threads.shared.lock().idle.last().unwrap().id();
        assert!(ids.contains(&last));
        for _ in 0..3 {
            drop(block(&threads, &started));
            assert_eq!(starts.recv().unwrap(), last);
            await_idle(&threads, 3);
        }
    }

    #[test]
    fn an_idle_thread_ends_and_another_takes_its_place() {
        let threads = threads(ThreadSettings { max_idle: Duration::from_millis(1), ..SETTINGS });
        let (started, starts) = unbounded();
        drop(block(&threads, &started));
        let first = starts.recv().unwrap();
        while threads.running() > 0 {
            thread::yield_now();
        }
        drop(block(&threads, &started));
        assert_ne!(starts.recv().unwrap(), first);
    }

    #[test]
    fn dropping_waits_for_nobody() {
        let threads = threads(SETTINGS);
        let shared = threads.shared.clone();
        let (started, starts) = unbounded();
        let release = block(&threads, &started);
        starts.recv().unwrap();
        drop(threads);
        assert_eq!(shared.lock().running, 1);
        drop(release);
        while shared.lock().running > 0 {
            thread::yield_now();
        }
    }

    #[test]
    fn all_signals_are_blocked_in_threads_and_none_outside() {
        let threads = threads(SETTINGS);
        let before = SigSet::thread_get_mask().unwrap();
        let (answer, answers) = bounded(1);
        submit(&threads, move || answer.send(SigSet::thread_get_mask().unwrap()).unwrap());
        let inside = answers.recv().unwrap();
        for signal in nix::sys::signal::Signal::iterator() {
            use nix::sys::signal::Signal::{SIGKILL, SIGSTOP};
            assert_eq!(inside.contains(signal), !matches!(signal, SIGKILL | SIGSTOP), "{signal}");
        }
        assert_eq!(SigSet::thread_get_mask().unwrap(), before);
    }
}
