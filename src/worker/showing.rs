//! What is shown of subscriptions, for `pgwh.status`.

use std::time::{Duration, Instant};

use rustc_hash::FxHashSet;

use super::clock::Clock;
use super::figures::{Figures, Publisher};
use super::sending::Payload;
use crate::dispatch::{Bottleneck, Engine, Mode, SubscriptionId};

/// How often figures are shown while there is work; a commit that waits for them is shown at once.
const PUBLISH_EVERY: Duration = Duration::from_millis(5);
/// Of so many subscriptions figures are shown that often; of more, less often.
const MANY: usize = 256;
/// How many times less often at most: twice a second.
const LEAST_OFTEN: u32 = 100;
/// Before everything: nothing has been reached.
const NOWHERE: u64 = 1;

/// Whose figures are to be shown anew.
pub struct Showing {
    changed: FxHashSet<i64>,
    gone: Vec<i64>,
    last: Instant,
}

impl Showing {
    /// Nobody's.
    pub fn new() -> Showing {
        Showing { changed: FxHashSet::default(), gone: Vec::new(), last: Instant::now() }
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

    /// Shows how subscriptions fare. While there is work this is not done each round; true if it was.
    pub fn publish(&mut self, engine: &Engine<Payload>, publisher: &mut Publisher) -> bool {
        if self.last.elapsed() < self.pause() && engine.in_flight() > 0 {
            return false;
        }
        self.last = Instant::now();
        self.gone.drain(..).for_each(|id| publisher.withdraw(id));
        let clock = Clock::now();
        for id in self.changed.drain() {
            match figures(engine, id, &clock) {
                Some(figures) => publisher.publish(&figures),
                None => publisher.withdraw(id),
            }
        }
        true
    }

    /// When there is something to be shown that was not yet.
    pub fn next_wakeup(&self) -> Option<Instant> {
        (!self.changed.is_empty()).then(|| self.last + self.pause())
    }

    /// Meanwhile what changes again is shown once.
    fn pause(&self) -> Duration {
        let times = u32::try_from(self.changed.len() / MANY).unwrap_or(LEAST_OFTEN);
        PUBLISH_EVERY * (1 + times).min(LEAST_OFTEN)
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

/// As the column `mode` of `pgwh.status` shows it.
fn mode_word(mode: Mode) -> &'static str {
    match mode {
        Mode::Live => "live",
        Mode::Draining | Mode::Paused | Mode::Stopped => "draining",
        Mode::Open => "open",
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
        Bottleneck::Threads => "pgwh.max_connections",
    }
}
