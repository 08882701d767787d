//! Names to addresses, on threads of their own.
//!
//! `getaddrinfo` has no time limit and may block for half a minute, so no sender calls it: a sender waits for an
//! answer no longer than its request may take. Answers are kept for a while, and an answer that grew old goes on
//! serving while it is renewed, so that one name whose servers hang doesn't hold up the others.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::threads::{ThreadSettings, Threads};

/// How long an answer is used before it is asked for again.
const FRESH: Duration = Duration::from_secs(30);
/// How long an old answer goes on serving while it is renewed.
const STALE: Duration = Duration::from_secs(300);
/// How long a failure is remembered.
const FAILED: Duration = Duration::from_secs(5);
/// Names kept at once; past it, those that are no longer fresh are forgotten.
const MAX_NAMES: usize = 10_000;

const THREADS: ThreadSettings = ThreadSettings {
    name: "pgwh-resolver",
    max_threads: 8,
    stack_size: 512 * 1024,
    max_idle: Duration::from_secs(30),
};

/// Why a name has no address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unresolved {
    /// The system said so, in these words.
    Failed(String),
    /// No answer came in time.
    TimedOut,
}

type Answer = Result<Arc<[IpAddr]>, String>;
pub(super) type Lookup = Box<dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync>;

/// A cache of names in front of the system's resolver.
pub(super) struct Resolver {
    names: Arc<Names>,
    threads: Threads<String>,
}

/// The cache, shared with the threads that fill it.
struct Names {
    lookup: Lookup,
    entries: Mutex<HashMap<String, Entry>>,
    answered: Condvar,
}

/// What is known of one name.
struct Entry {
    /// The last answer and when it came.
    answer: Option<(Answer, Instant)>,
    /// Whether a thread is about to answer.
    asked: bool,
}

impl Resolver {
    /// A resolver that asks the system.
    pub fn new() -> Resolver {
        Resolver::with_lookup(Box::new(|name| {
            Ok((name, 0).to_socket_addrs()?.map(|address| address.ip()).collect())
        }))
    }

    pub(super) fn with_lookup(lookup: Lookup) -> Resolver {
        let names = Arc::new(Names { lookup, entries: Mutex::new(HashMap::new()), answered: Condvar::new() });
        let shared = names.clone();
        let threads = Threads::new(THREADS, move || {
            let names = shared.clone();
            Box::new(move |name: String| names.ask(&name))
        });
        Resolver { names, threads }
    }

    /// The addresses of `name`, in the order to try them; at least one.
    pub fn resolve(&self, name: &str, deadline: Instant) -> Result<Arc<[IpAddr]>, Unresolved> {
        let mut entries = self.names.lock();
        loop {
            let now = Instant::now();
            let entry = entries.entry(name.to_owned()).or_insert(Entry { answer: None, asked: false });
            let (usable, renew) = match &entry.answer {
                Some((answer, at)) => (answer.is_ok(), now - *at >= lifetime(answer)),
                None => (false, true),
            };
            if renew && !entry.asked {
                self.threads.submit(name.to_owned()).map_err(|(_, error)| {
                    Unresolved::Failed(format!("no thread could be started: {error}"))
                })?;
                entry.asked = true;
            }
            match &entry.answer {
                Some((answer, at)) if !renew || (usable && now - *at < STALE) => {
                    return answer.clone().map_err(Unresolved::Failed);
                }
                _ => {}
            }
            if now >= deadline {
                return Err(Unresolved::TimedOut);
            }
            entries = self
                .names
                .answered
                .wait_timeout(entries, deadline - now)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

impl Names {
    /// Asks the system for one name; waits as long as that takes.
    fn ask(&self, name: &str) {
        let asked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (self.lookup)(name)));
        let answer: Answer = match asked {
            Ok(Ok(addresses)) if addresses.is_empty() => Err("the name has no address".to_owned()),
            Ok(Ok(addresses)) => Ok(addresses.into()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the look-up panicked".to_owned()),
        };
        let now = Instant::now();
        let mut entries = self.lock();
        if entries.len() > MAX_NAMES {
            entries.retain(|_, entry| match &entry.answer {
                Some((answer, at)) => now - *at < lifetime(answer),
                None => true,
            });
        }
        // A failure to renew leaves what was known: a hiccup of a name server is no reason to stop sending.
        let entry = entries.entry(name.to_owned()).or_insert(Entry { answer: None, asked: false });
        entry.asked = false;
        let known = entry.answer.as_ref().is_some_and(|(old, at)| old.is_ok() && now - *at < STALE);
        if answer.is_ok() || !known {
            entry.answer = Some((answer, now));
        }
        drop(entries);
        self.answered.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lifetime(answer: &Answer) -> Duration {
    if answer.is_ok() { FRESH } else { FAILED }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::{Receiver, unbounded};

    const LONG: Duration = Duration::from_secs(60);

    /// A resolver whose answers the test gives, and the names it was asked for.
    fn scripted(answers: Receiver<io::Result<Vec<IpAddr>>>) -> (Resolver, Receiver<String>) {
        let (asked, names) = unbounded();
        let lookup = move |name: &str| {
            asked.send(name.to_owned()).unwrap();
            answers.recv().unwrap()
        };
        (Resolver::with_lookup(Box::new(lookup)), names)
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// Lets an answer grow old.
    fn age(resolver: &Resolver, by: Duration) {
        for entry in resolver.names.lock().values_mut() {
            if let Some((_, at)) = &mut entry.answer {
                *at -= by;
            }
        }
    }

    #[test]
    fn an_answer_is_asked_for_once_and_kept() {
        let (answer, answers) = unbounded();
        let (resolver, names) = scripted(answers);
        answer.send(Ok(vec![address("1.2.3.4")])).unwrap();
        for _ in 0..3 {
            let found = resolver.resolve("example.com", Instant::now() + LONG).unwrap();
            assert_eq!(*found, [address("1.2.3.4")]);
        }
        assert_eq!(names.try_iter().count(), 1);
    }

    #[test]
    fn an_old_answer_serves_while_it_is_renewed_and_not_for_ever() {
        let (answer, answers) = unbounded();
        let (resolver, names) = scripted(answers);
        answer.send(Ok(vec![address("1.2.3.4")])).unwrap();
        resolver.resolve("example.com", Instant::now() + LONG).unwrap();
        names.recv().unwrap();
        age(&resolver, FRESH);
        let old = resolver.resolve("example.com", Instant::now() + LONG).unwrap();
        assert_eq!(*old, [address("1.2.3.4")]);
        assert_eq!(names.recv().unwrap(), "example.com");
        age(&resolver, STALE);
        answer.send(Ok(vec![address("5.6.7.8")])).unwrap();
        let new = resolver.resolve("example.com", Instant::now() + LONG).unwrap();
        assert_eq!(*new, [address("5.6.7.8")]);
    }

    #[test]
    fn a_failure_is_remembered_for_a_short_time() {
        let (answer, answers) = unbounded();
        let (resolver, names) = scripted(answers);
        answer.send(Err(io::Error::other("no such name"))).unwrap();
        for _ in 0..2 {
            let failure = resolver.resolve("example.com", Instant::now() + LONG);
            assert_eq!(failure, Err(Unresolved::Failed("no such name".to_owned())));
        }
        assert_eq!(names.try_iter().count(), 1);
        age(&resolver, FAILED);
        answer.send(Ok(vec![address("1.2.3.4")])).unwrap();
        assert!(resolver.resolve("example.com", Instant::now() + LONG).is_ok());
    }

    #[test]
    fn nobody_waits_past_their_deadline() {
        let (_answer, answers) = unbounded();
        let (resolver, _names) = scripted(answers);
        let deadline = Instant::now() + Duration::from_millis(5);
        assert_eq!(resolver.resolve("hangs.example", deadline), Err(Unresolved::TimedOut));
        assert!(Instant::now() >= deadline);
    }
}
