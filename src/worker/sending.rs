//! What the dispatcher knows of sending: the engine that decides, the pool that sends, and the endpoints in between.

use std::collections::{HashMap, HashSet};
use std::ffi::CStr;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pgrx::pg_sys;
use slab::Slab;

use super::figures::{Figures, Publisher};
use super::files;
use crate::dispatch::{Attempt, Engine, Failure, Keys, Order, Settings, SubscriptionId, Ticket};
use crate::event::format::{Format, Shown};
use crate::event::{Event, Lsn, Timestamp, Transaction};
use crate::journal::SubscriptionRow;
use crate::link::frame::{self, LaneKeys, Target};
use crate::send::{Endpoint, EndpointSettings, Guard, Job, Outcome, Pool, PoolSettings};
use crate::settings;

/// The share of `pgwh.max_memory` that events may take; threads, their buffers and what the allocator leaves unused
/// take the rest.
const EVENTS_SHARE: f64 = 0.7;
/// How often figures are shown while there is work; a commit that waits for them is shown at once.
const PUBLISH_EVERY: Duration = Duration::from_millis(5);

/// An event on its way to a subscription: the event, and which of its table's names that subscription knows it by.
type Delivery = (Arc<Event>, u8);

/// Events in memory, on their way to endpoints.
pub struct Sending {
    database: String,
    engine: Engine<Delivery>,
    pool: Pool,
    endpoints: HashMap<i64, Arc<Endpoint>>,
    /// By the number that the pool knows a request by.
    under_way: Slab<(Ticket, i64)>,
    outcomes: Vec<Outcome>,
    /// Events that could not be encoded, by subscription.
    dead: HashMap<i64, u64>,
    changed: HashSet<i64>,
    gone: Vec<i64>,
    last_publish: Instant,
    event_memory: usize,
}

impl Sending {
    /// Nobody is subscribed yet.
    pub fn new(database: pg_sys::Oid) -> Sending {
        let settings = PoolSettings { max_threads: files::max_requests(), ..PoolSettings::default() };
        let pool = match Pool::start(settings) {
            Ok(pool) => pool,
            Err(error) => pgrx::error!("pgstream_hooks: the sender threads can't be prepared: {error}"),
        };
        Sending {
            database: super::process::in_bare_transaction(|| database_name(database)),
            engine: Engine::new(Lsn(0), settings.max_threads),
            pool,
            endpoints: HashMap::new(),
            under_way: Slab::new(),
            outcomes: Vec::new(),
            dead: HashMap::new(),
            changed: HashSet::new(),
            gone: Vec::new(),
            last_publish: Instant::now(),
            event_memory: event_memory(),
        }
    }

    /// Begins anew with the settings and subscriptions of now; deliveries stay.
    pub fn reload(&mut self, rows: Vec<SubscriptionRow>) {
        self.event_memory = event_memory();
        self.engine.set_max_requests(files::max_requests());
        let known: Vec<i64> = self.endpoints.keys().copied().collect();
        self.edit(&known, rows);
    }

    /// Of the subscriptions `ids`, and those in `rows`, just those in `rows` may send, and as these say.
    pub fn edit(&mut self, ids: &[i64], rows: Vec<SubscriptionRow>) {
        let staying: HashSet<i64> = rows.iter().map(|row| row.id).collect();
        for id in ids.iter().filter(|id| !staying.contains(id)) {
            self.remove(*id);
        }
        let guard = Arc::new(settings::guard());
        for row in rows {
            let id = row.id;
            let settings = Settings { max_in_flight: row.max_in_flight, ..Settings::default() };
            match endpoint(&self.database, row, &guard) {
                Ok(endpoint) => {
                    self.endpoints.insert(id, Arc::new(endpoint));
                    self.engine.subscribe(SubscriptionId(id), settings);
                    self.changed.insert(id);
                }
                // What is stored has been checked, so somebody has gone round the checks.
                Err(problem) => {
                    pgrx::warning!("pgstream_hooks: subscription {id} can't be sent to: {problem}");
                    self.remove(id);
                }
            }
        }
    }

    fn remove(&mut self, id: i64) {
        let dropped = self.engine.remove(SubscriptionId(id));
        if dropped > 0 {
            pgrx::log!("pgstream_hooks: subscription {id} is gone, {dropped} undelivered events with it");
        }
        self.endpoints.remove(&id);
        self.changed.remove(&id);
        self.gone.push(id);
    }

    /// Whether there is room for more from the decoder, which itself holds `stream` bytes half received.
    pub fn has_room(&self, stream: usize) -> bool {
        self.engine.memory_used() + stream < self.event_memory
    }

    /// A transaction's events follow.
    pub fn begin(&mut self, transaction: &Transaction) {
        self.engine.transaction_begin(transaction.commit_lsn);
    }

    /// The transaction is complete.
    pub fn commit(&mut self, end_lsn: Lsn) {
        self.engine.transaction_commit(end_lsn);
    }

    /// Everything that ended at or before `lsn` has arrived.
    pub fn idle(&mut self, lsn: Lsn) {
        self.engine.idle(lsn);
    }

    /// An event for each of its targets. Who is not known any more gets nothing.
    pub fn arrive(&mut self, event: &Arc<Event>, keys: LaneKeys, barrier: bool, targets: &[Target]) {
        let order = Order { keys: Keys::of(keys.key, keys.old), table: event.relation.root_oid, barrier };
        // Shared by all targets, but charged to each: memory is then never more than what is charged.
        let charge = event.memory();
        for target in targets {
            let id = target.subscription;
            let delivery = (event.clone(), target.level);
            if self.engine.arrive(SubscriptionId(id), order, delivery, charge).is_ok() {
                self.changed.insert(id);
            }
        }
    }

    /// An event that can't be encoded stops nothing; it is on record in the server's log.
    pub fn failed_to_encode(&mut self, failure: &frame::Failure, targets: &[Target]) {
        pgrx::warning!(
            "pgstream_hooks: event {} can't be sent to {} subscriptions: {} (SQLSTATE {})",
            failure.id(),
            targets.len(),
            failure.message,
            failure.sqlstate
        );
        for target in targets {
            *self.dead.entry(target.subscription).or_default() += 1;
            self.changed.insert(target.subscription);
        }
    }

    /// Hands to the pool what may be sent now. Returns whether there was anything.
    pub fn submit(&mut self) -> bool {
        let now = Instant::now();
        let mut any = false;
        while let Some(Attempt { ticket, subscription, payload, number }) = self.engine.next_to_send(now) {
            // The engine knows the subscriptions that have an endpoint.
            let Some(endpoint) = self.endpoints.get(&subscription.0) else { continue };
            let (endpoint, events) = (endpoint.clone(), vec![payload.clone()]);
            let ticket = self.under_way.insert((ticket, subscription.0)) as u64;
            self.pool.submit(Job { ticket, endpoint, events, attempt: number, replay: None });
            self.changed.insert(subscription.0);
            any = true;
        }
        any
    }

    /// Takes the outcomes of requests. Returns whether there were any.
    pub fn collect_outcomes(&mut self) -> bool {
        let mut outcomes = std::mem::take(&mut self.outcomes);
        self.pool.outcomes(&mut outcomes);
        let any = !outcomes.is_empty();
        let now = Instant::now();
        for outcome in outcomes.drain(..) {
            let Some((ticket, id)) = self.under_way.try_remove(outcome.ticket as usize) else { continue };
            match outcome.result {
                Ok(success) => {
                    self.engine.succeeded(ticket, success.status, now);
                }
                Err(failure) => {
                    let error = format!("{}: {}", failure.class.as_str(), failure.message);
                    let failure = Failure { status: failure.status, error, retry_after: failure.retry_after };
                    self.engine.failed(ticket, failure, now, jitter(outcome.ticket));
                }
            }
            self.changed.insert(id);
        }
        self.outcomes = outcomes;
        any
    }

    /// Where everything that ended has arrived, and where everything that ended is done.
    pub fn progress(&self) -> (Lsn, Lsn) {
        (self.engine.frontier(), self.engine.confirmed())
    }

    /// Shows how subscriptions fare. While there is work this is not done each round.
    pub fn publish(&mut self, publisher: &mut Publisher) -> bool {
        let now = Instant::now();
        if now.duration_since(self.last_publish) < PUBLISH_EVERY && self.engine.in_flight() > 0 {
            return false;
        }
        self.last_publish = now;
        self.gone.drain(..).for_each(|id| publisher.withdraw(id));
        let changed = std::mem::take(&mut self.changed);
        for id in &changed {
            match self.figures(*id, now) {
                Some(figures) => publisher.publish(&figures),
                None => publisher.withdraw(*id),
            }
        }
        self.changed = changed;
        self.changed.clear();
        true
    }

    fn figures(&self, id: i64, now: Instant) -> Option<Figures> {
        let counters = self.engine.counters(SubscriptionId(id))?;
        let oldest = self.engine.oldest(SubscriptionId(id)).map(|(event, _)| &event.transaction);
        let wall = |at: Option<Instant>| at.map_or(0, |at| wall_clock(at, now));
        let micros =
            |time: Option<Duration>| time.map_or(0, |time| time.as_micros().clamp(1, u32::MAX.into()) as u32);
        let mut figures = Figures {
            subscription_id: id,
            pending: (counters.pending + counters.retrying) as u64,
            retrying: counters.retrying as u64,
            in_flight: counters.in_flight as u64,
            delivered: counters.delivered,
            dead: self.dead.get(&id).copied().unwrap_or_default(),
            blocked_keys: counters.blocked_keys as u64,
            oldest_pending: oldest.map_or(0, |transaction| transaction.committed_at.0),
            oldest_lsn: oldest.map_or(0, |transaction| transaction.commit_lsn.0),
            last_success_at: wall(counters.last_success_at),
            last_failure_at: wall(counters.last_failure_at),
            next_attempt_at: wall(counters.next_attempt_at),
            last_status: counters.last_status.map_or(0, u32::from),
            p50_us: micros(counters.p50),
            p99_us: micros(counters.p99),
            ..Figures::default()
        };
        figures.set_error(counters.last_error.unwrap_or_default());
        Some(figures)
    }

    /// What [`Sending::arm`] makes readable.
    pub fn wake_fd(&self) -> RawFd {
        self.pool.wake_fd().as_raw_fd()
    }

    /// Asks to be woken by the next outcome; true if there are some already, or figures still to be shown.
    pub fn arm(&self) -> bool {
        self.pool.arm()
    }

    /// Ends what [`Sending::arm`] began.
    pub fn disarm(&self) {
        self.pool.disarm();
    }

    /// When there is something to do though nothing arrives: a retry, or figures that were not shown yet.
    pub fn next_wakeup(&mut self) -> Option<Instant> {
        let figures = (!self.changed.is_empty()).then(|| self.last_publish + PUBLISH_EVERY);
        self.engine.next_wakeup().into_iter().chain(figures).min()
    }

    /// For `pg_stat_activity`.
    pub fn what_it_waits_for(&self) -> &'static CStr {
        if self.engine.in_flight() > 0 {
            c"waiting for endpoints"
        } else if self.engine.memory_used() > 0 {
            c"waiting to try again"
        } else {
            c"waiting for events"
        }
    }
}

fn endpoint(database: &str, row: SubscriptionRow, guard: &Arc<Guard>) -> Result<Endpoint, String> {
    let headers: HashMap<String, String> =
        serde_json::from_str(&row.headers).map_err(|error| error.to_string())?;
    Endpoint::new(EndpointSettings {
        subscription_id: row.id,
        subscription: row.name,
        database: database.to_owned(),
        url: row.url,
        headers: headers.into_iter().collect(),
        timeout: row.timeout,
        secrets: row.secrets,
        format: Format::Pgwh,
        columns: match (row.columns, row.exclude_columns) {
            (Some(only), _) => Shown::Only(only),
            (None, Some(except)) => Shown::Except(except),
            (None, None) => Shown::All,
        },
        batched: row.batch_size > 1,
        max_response_size: settings::max_response_size(),
        guard: guard.clone(),
    })
    .map_err(|problem| problem.to_string())
}

/// How much memory events may take, in bytes.
fn event_memory() -> usize {
    (settings::max_memory() as f64 * EVENTS_SHARE) as usize
}

/// The time of day at an instant, in microseconds since 2000.
fn wall_clock(at: Instant, now: Instant) -> i64 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as i64;
    let Timestamp(now_micros) = Timestamp::from_unix_micros(unix);
    let ahead = at.saturating_duration_since(now).as_micros() as i64;
    let behind = now.saturating_duration_since(at).as_micros() as i64;
    now_micros + ahead - behind
}

/// A number that differs from retry to retry.
fn jitter(ticket: u64) -> u32 {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().subsec_nanos();
    xxhash_rust::xxh3::xxh3_64(&(ticket ^ (u64::from(nanos) << 32)).to_le_bytes()) as u32
}

fn database_name(oid: pg_sys::Oid) -> String {
    // SAFETY: a syscache look-up in a transaction; the name is copied.
    unsafe {
        let name = pg_sys::get_database_name(oid);
        if name.is_null() { String::new() } else { CStr::from_ptr(name).to_string_lossy().into_owned() }
    }
}
