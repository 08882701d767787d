//! Names to addresses, on threads of their own.
//!
//! `getaddrinfo` has no time limit and may block for half a minute, so the event loop never calls it. Answers are kept
//! for a while, and an answer that grew old goes on serving while it is renewed, so that one name whose servers hang
//! does not hold up the others.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::thread_pool::{ThreadSettings, Threads};

/// How long an answer is used before it is asked for again.
const FRESH: Duration = Duration::from_secs(30);
/// How long an old answer goes on serving while it is renewed: no connection is made by an older one.
const STALE: Duration = Duration::from_secs(60);
/// How long a failure is remembered.
const FAILED: Duration = Duration::from_secs(5);
/// Names kept at once; past it, those that are no longer fresh are forgotten.
const MAX_NAMES: usize = 10_000;

const THREADS: ThreadSettings =
    ThreadSettings { name: "pgwh-resolver", max_threads: 8, max_idle: Duration::from_secs(30) };

/// The addresses of a name, in the order to try them, at least one; or why there are none, in the system's words.
pub(crate) type Answer = Result<Arc<[IpAddr]>, String>;
pub(crate) type Lookup = Arc<dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync>;

/// A cache of names in front of the system's resolver.
pub(crate) struct Resolver {
    entries: HashMap<String, Entry>,
    threads: Threads<String>,
}

/// What is known of one name.
#[derive(Default)]
struct Entry {
    /// The last answer and when it came.
    answer: Option<(Answer, Instant)>,
    /// Whether a thread is about to answer.
    asked: bool,
}

/// Asks the system.
pub(crate) fn system_lookup() -> Lookup {
    Arc::new(|name| Ok((name, 0).to_socket_addrs()?.map(|address| address.ip()).collect()))
}

impl Resolver {
    /// A resolver that asks by `lookup`. `report` gets each answer, in a thread of its own, and hands it to
    /// [`Resolver::answered`].
    pub fn new(lookup: Lookup, report: impl Fn(String, Answer) + Send + Sync + 'static) -> Resolver {
        let shared = Arc::new((lookup, report));
        let threads = Threads::new(THREADS, move || {
            let shared = shared.clone();
            Box::new(move |name: String| {
                let answer = ask(&shared.0, &name);
                (shared.1)(name, answer);
            })
        });
        Resolver { entries: HashMap::new(), threads }
    }

    /// What is known of `name`; none when an answer has to be waited for.
    pub fn resolve(&mut self, name: &str, now: Instant) -> Option<Answer> {
        if !self.entries.contains_key(name) {
            self.make_room(now);
        }
        let entry = self.entries.entry(name.to_owned()).or_default();
        let (usable, renew) = match &entry.answer {
            Some((answer, at)) => (answer.is_ok(), now.saturating_duration_since(*at) >= lifetime(answer)),
            None => (false, true),
        };
        if renew && !entry.asked {
            if let Err((_, error)) = self.threads.submit(name.to_owned()) {
                return Some(Err(format!("no thread could be started: {error}")));
            }
            entry.asked = true;
        }
        match &entry.answer {
            Some((answer, at)) if !renew || (usable && now.saturating_duration_since(*at) < STALE) => {
                Some(answer.clone())
            }
            _ => None,
        }
    }

    /// Has the name asked for once more when it is needed next.
    pub fn forget(&mut self, name: &str) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.answer = None;
        }
    }

    /// Takes the answer to a name that was asked for.
    pub fn answered(&mut self, name: &str, answer: Answer, now: Instant) {
        let Some(entry) = self.entries.get_mut(name) else { return };
        entry.asked = false;
        // A failure to renew leaves what was known: a hiccup of a name server is no reason to stop sending.
        let known = entry.answer.as_ref();
        let known = known.is_some_and(|(old, at)| old.is_ok() && now.saturating_duration_since(*at) < STALE);
        if answer.is_ok() || !known {
            entry.answer = Some((answer, now));
        }
    }

    fn make_room(&mut self, now: Instant) {
        if self.entries.len() < MAX_NAMES {
            return;
        }
        self.entries.retain(|_, entry| match &entry.answer {
            Some((answer, at)) => entry.asked || now.saturating_duration_since(*at) < lifetime(answer),
            None => true,
        });
    }
}

/// Asks for one name; waits as long as that takes.
fn ask(lookup: &Lookup, name: &str) -> Answer {
    match catch_unwind(AssertUnwindSafe(|| lookup(name))) {
        Ok(Ok(addresses)) if addresses.is_empty() => Err("the name has no address".to_owned()),
        Ok(Ok(addresses)) => Ok(addresses.into()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the look-up panicked".to_owned()),
    }
}

fn lifetime(answer: &Answer) -> Duration {
    if answer.is_ok() { FRESH } else { FAILED }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::{Receiver, Sender, unbounded};

    /// A resolver whose answers the test gives, and the names it was asked for.
    struct Scripted {
        resolver: Resolver,
        answers: Sender<io::Result<Vec<IpAddr>>>,
        reports: Receiver<(String, Answer)>,
    }

    impl Scripted {
        fn new() -> Scripted {
            let (answers, scripted) = unbounded::<io::Result<Vec<IpAddr>>>();
            let (report, reports) = unbounded();
            let lookup = move |_: &str| scripted.recv().unwrap();
            let resolver =
                Resolver::new(Arc::new(lookup), move |name, answer| report.send((name, answer)).unwrap());
            Scripted { resolver, answers, reports }
        }

        fn resolve(&mut self, now: Instant) -> Option<Answer> {
            self.resolver.resolve("example.com", now)
        }

        /// Answers what the resolver is asking.
        fn answer(&mut self, answer: io::Result<Vec<IpAddr>>, now: Instant) {
            self.answers.send(answer).unwrap();
            let (name, answer) = self.reports.recv().unwrap();
            self.resolver.answered(&name, answer, now);
        }
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn known(text: &str) -> Option<Answer> {
        Some(Ok(Arc::new([address(text)])))
    }

    #[test]
    fn an_answer_is_asked_for_once_and_kept() {
        let (mut scripted, now) = (Scripted::new(), Instant::now());
        assert_eq!(scripted.resolve(now), None);
        assert_eq!(scripted.resolve(now), None, "it is asked for already");
        scripted.answer(Ok(vec![address("1.2.3.4")]), now);
        for _ in 0..3 {
            assert_eq!(scripted.resolve(now), known("1.2.3.4"));
        }
        assert!(!scripted.resolver.entries["example.com"].asked);
    }

    #[test]
    fn an_old_answer_serves_while_it_is_renewed_within_limits() {
        let (mut scripted, now) = (Scripted::new(), Instant::now());
        scripted.resolve(now);
        scripted.answer(Ok(vec![address("1.2.3.4")]), now);
        assert_eq!(scripted.resolve(now + FRESH), known("1.2.3.4"));
        assert!(scripted.resolver.entries["example.com"].asked);
        assert_eq!(scripted.resolve(now + STALE), None);
        scripted.answer(Err(io::Error::other("hiccup")), now + FRESH);
        assert_eq!(scripted.resolve(now + FRESH), known("1.2.3.4"), "a failure leaves what was known");
        scripted.answer(Ok(vec![address("5.6.7.8")]), now + STALE);
        assert_eq!(scripted.resolve(now + STALE), known("5.6.7.8"));
    }

    #[test]
    fn a_failure_is_remembered_for_a_short_time() {
        let (mut scripted, now) = (Scripted::new(), Instant::now());
        scripted.resolve(now);
        scripted.answer(Err(io::Error::other("no such name")), now);
        assert_eq!(scripted.resolve(now), Some(Err("no such name".to_owned())));
        assert_eq!(scripted.resolve(now + FAILED), None);
        scripted.answer(Ok(vec![address("1.2.3.4")]), now + FAILED);
        assert_eq!(scripted.resolve(now + FAILED), known("1.2.3.4"));
    }
}
