//! A webhook receiver for the demo, the tests and the benchmarks.
//!
//! One thread, one epoll loop, HTTP/1.1 with keep-alive and pipelining: fast enough (100,000 POSTs a second on
//! loopback) that a benchmark measures the sender and not this. Every request is recorded with the moment of its
//! arrival, and a behaviour decides what each one gets: an answer, a late one, half of one, none, or a reset.
//!
//! ```
//! use receiver::{Receiver, Reply, Script};
//! let receiver = Receiver::start()?;
//! receiver.behave(Script::fail_first(3, 503));
//! receiver.behave(|request: &receiver::Request| Reply::status(if request.path() == "/gone" { 410 } else { 200 }));
//! assert_eq!(receiver.count(), 0);
//! # Ok::<(), std::io::Error>(())
//! ```

mod connection;
mod control;
mod http;
mod record;
mod reply;
mod request;
mod script;
mod server;
mod signature;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use record::Record;
pub use record::{Stats, Unmet};
pub use reply::{Answer, Reply};
pub use request::Request;
pub use script::{Script, Which};
use server::Server;
pub use signature::{Secret, Verdict};

/// Decides what a request gets. Runs on the receiver's one thread: while it runs, nobody else is served.
pub trait Behaviour: Send {
    /// The reply to this request, which has been recorded already.
    fn reply(&mut self, request: &Request) -> Reply;
}

impl<F: FnMut(&Request) -> Reply + Send> Behaviour for F {
    fn reply(&mut self, request: &Request) -> Reply {
        self(request)
    }
}

/// How a receiver is set up.
pub struct Options {
    /// Where it listens; port 0 picks a free one.
    pub listen: SocketAddr,
    /// How many requests it keeps; the oldest go first.
    pub keep: usize,
    /// Whether `/_control`, `/_events` and `/_stats` are served.
    pub control: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), keep: usize::MAX, control: false }
    }
}

/// A running receiver. Dropping it closes its port and every connection.
pub struct Receiver {
    address: SocketAddr,
    record: Arc<Record>,
    waker: Arc<mio::Waker>,
    thread: Option<JoinHandle<()>>,
}

impl Receiver {
    /// Starts one on a free port of loopback that answers 200 to all.
    pub fn start() -> io::Result<Self> {
        Self::with(Options::default())
    }

    /// Starts one at a given address, such as that of one that was stopped.
    pub fn at(listen: SocketAddr) -> io::Result<Self> {
        Self::with(Options { listen, ..Options::default() })
    }

    /// Starts one.
    pub fn with(options: Options) -> io::Result<Self> {
        let record = Arc::new(Record::new(options.keep));
        let server = Server::bind(&options, Arc::clone(&record))?;
        let (address, waker) = (server.address(), server.waker());
        let thread = std::thread::Builder::new().name("receiver".into()).spawn(move || server.run())?;
        Ok(Self { address, record, waker, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of a path, which begins with a slash.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// From now on, replies are made by this.
    pub fn behave(&self, behaviour: impl Behaviour + 'static) {
        self.record.behave(Box::new(behaviour));
    }

    /// From now on, replies to requests at this path, which begins with a slash, are made by this; it goes before what
    /// [`Receiver::behave`] says.
    pub fn behave_at(&self, path: &str, behaviour: impl Behaviour + 'static) {
        self.record.behave_at(path, Box::new(behaviour));
    }

    /// From now on, requests that none of these keys has signed are answered 401; without a key, signatures are not
    /// checked.
    pub fn check_signatures(&self, secrets: Vec<Secret>) {
        self.record.check_signatures(secrets);
    }

    /// From now on, this is shown each request with its reply.
    pub fn observe(&self, observer: impl FnMut(&Request, &Reply) + Send + 'static) {
        self.record.observe(Box::new(observer));
    }

    /// The requests that are kept, in order of arrival.
    pub fn requests(&self) -> Vec<Arc<Request>> {
        self.record.requests()
    }

    /// How many requests came, kept or not.
    pub fn count(&self) -> u64 {
        self.stats().requests
    }

    /// What was counted so far.
    pub fn stats(&self) -> Stats {
        self.record.stats()
    }

    /// Forgets all requests and counts.
    pub fn clear(&self) {
        self.record.clear();
    }

    /// Waits until `count` requests have come in all, and returns those that are kept.
    pub fn wait_for(&self, count: u64, within: Duration) -> Result<Vec<Arc<Request>>, Unmet> {
        self.record.wait(&format!("{count} requests"), within, |all| all.stats.requests >= count)
    }

    /// Waits until the condition holds for the requests that are kept; it is asked again after each arrival.
    pub fn wait_until(
        &self,
        within: Duration,
        mut condition: impl FnMut(&[Arc<Request>]) -> bool,
    ) -> Result<Vec<Arc<Request>>, Unmet> {
        self.record.wait("a condition", within, |all| condition(all.kept.make_contiguous()))
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.record.stop();
        if self.waker.wake().is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}
