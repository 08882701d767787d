//! What is shown of subscriptions, for `pgwh.status`.

use std::time::{Duration, Instant};

use rustc_hash::FxHashSet;

use crate::delivery::Payload;
use crate::delivery::{Bottleneck, Engine, Mode, SubscriptionId};
use crate::event::Lsn;
use crate::pg::process::clock::Clock;
use crate::pg::process::rlimit;
use crate::shmem::subscription_stats::{Figures, Publisher, SUSPENDED};

/// How often figures are shown while there is work; a commit that waits for them is shown at once.
const PUBLISH_EVERY: Duration = Duration::from_millis(5);
/// Whose figures are shown in one go: those of a hundred thousand subscriptions keep nothing else waiting for longer than
/// a fraction of a millisecond. While there is work that is a go each time the journal is written, and they are up to a
/// few seconds old.
const AT_ONCE: usize = 256;
/// Before everything: nothing has been reached.
const NOWHERE: u64 = 1;

/// Whose figures are to be shown anew.
pub struct Showing {
    changed: FxHashSet<i64>,
    gone: Vec<i64>,
    pass: Pass,
}

/// What is shown together.
struct Pass {
    /// Who has not been shown yet.
    left: Vec<i64>,
    began_at: Instant,
    /// What had arrived when it began.
    frontier: Lsn,
}

impl Showing {
    /// Nobody's.
    pub fn new() -> Showing {
        let pass = Pass { left: Vec::new(), began_at: Instant::now(), frontier: Lsn(0) };
        Showing { changed: FxHashSet::default(), gone: Vec::new(), pass }
    }

    /// Something happened to a subscription.
    pub fn changed(&mut self, subscription: i64) {
        self.changed.insert(subscription);
    }

    /// A subscription is there no more.
    pub fn gone(&mut self, subscription: i64) {
        self.changed.remove(&subscription);
        self.gone.push(subscription);
    }

    /// Shows how some subscriptions fare, when everything up to the frontier has arrived. While there is work this is not
    /// done each round. The frontier that all that is shown has reached, when it is another one.
    pub fn publish(
        &mut self,
        engine: &Engine<Payload>,
        publisher: &mut Publisher,
        frontier: Lsn,
    ) -> Option<Lsn> {
        let pass = &mut self.pass;
        if pass.left.is_empty() {
            if pass.began_at.elapsed() < PUBLISH_EVERY && engine.in_flight() > 0 {
                return None;
            }
            (pass.began_at, pass.frontier) = (Instant::now(), frontier);
            self.gone.drain(..).for_each(|id| publisher.withdraw(id));
            pass.left.extend(self.changed.drain());
        }
        let clock = Clock::now();
        let now = pass.left.split_off(pass.left.len().saturating_sub(AT_ONCE));
        engine.prefetch(&now);
        for id in now {
            match figures(engine, id, &clock) {
                Some(figures) => {
                    if !publisher.publish(&figures) {
                        self.changed.insert(id);
                    }
                }
                None => publisher.withdraw(id),
            }
        }
        pass.left.is_empty().then_some(pass.frontier)
    }

    /// When there is something to be shown that was not yet.
    pub fn next_wakeup(&self) -> Option<Instant> {
        let next = if self.pass.left.is_empty() { PUBLISH_EVERY } else { Duration::ZERO };
        let is_any = !(self.changed.is_empty() && self.pass.left.is_empty());
        is_any.then(|| self.pass.began_at + next)
    }
}

fn figures(engine: &Engine<Payload>, id: i64, clock: &Clock) -> Option<Figures> {
    let subscription = SubscriptionId(id);
    let counters = engine.counters(subscription)?;
    let oldest = engine.oldest(subscription);
    let wall = |at: Option<Instant>| at.map_or(0, |at| clock.at(at).0);
    let micros =
        |time: Option<Duration>| time.map_or(0, |time| time.as_micros().clamp(1, u32::MAX.into()) as u32);
    let mut figures = Figures {
        subscription_id: id,
        pending: counters.pending,
        pending_bytes: counters.pending_bytes,
        retrying: counters.retrying as u64,
        in_flight: counters.in_flight as u64,
        delivered: counters.delivered,
        dropped: counters.dropped,
        dead: counters.dead,
        blocked_keys: counters.blocked_keys as u64,
        oldest_pending: oldest.map_or(0, |at| at.committed_at.0),
        // What is pending and has not been read since the start may be as old as anything.
        oldest_lsn: match oldest {
            Some(at) => at.commit_lsn.0,
            None if counters.pending > 0 => NOWHERE,
            None => 0,
        },
        last_success_at: wall(counters.last_success_at),
        last_failure_at: wall(counters.last_failure_at),
        next_attempt_at: wall(counters.next_attempt_at),
        last_status: counters.last_status.map_or(0, u32::from),
        p50_us: micros(counters.p50),
        p99_us: micros(counters.p99),
        probing: counters.probing.into(),
        ..Figures::default()
    };
    figures.set_words(mode_word(counters.mode), bottleneck_word(counters.bottleneck));
    figures.set_error(counters.last_error.unwrap_or_default());
    Some(figures)
}

/// As the column `mode` of `pgwh.status` shows it; empty for the usual one.
fn mode_word(mode: Mode) -> &'static str {
    match mode {
        Mode::Live => "",
        Mode::Draining | Mode::Paused | Mode::Stopped => "draining",
        Mode::Open => SUSPENDED,
    }
}

/// As the column `bottleneck` of `pgwh.status` shows it; empty for none.
fn bottleneck_word(bottleneck: Bottleneck) -> &'static str {
    match bottleneck {
        Bottleneck::None | Bottleneck::Paused => "",
        Bottleneck::Breaker => "endpoint fails",
        Bottleneck::RateLimit => "rate_limit",
        Bottleneck::Host => "limits of the host",
        Bottleneck::Hold => "endpoint asked to wait",
        Bottleneck::Endpoint => "endpoint",
        Bottleneck::RetryWait => "retries",
        Bottleneck::Memory => "pgwh.max_memory",
        Bottleneck::Journal => "journal",
        Bottleneck::Connections if rlimit::limit_requests() => "limit on open files",
        Bottleneck::Connections => "pgwh.max_connections",
    }
}
