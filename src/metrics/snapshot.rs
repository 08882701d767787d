//! What a scrape shows, gathered.

use super::counters::Totals;

/// All that is shown of one database.
#[derive(Debug, Default)]
pub struct Scrape {
    /// Its name.
    pub name: String,
    /// Its own figures.
    pub database: DatabaseFigures,
    /// Its workers.
    pub workers: Vec<WorkerFigures>,
    /// The checks of its health, and whether each finds all well.
    pub checks: Vec<(String, bool)>,
    /// Its subscriptions, or those that may have series of their own, and the others together.
    pub subscriptions: Vec<SubscriptionFigures>,
}

/// Figures of a database; none where there is nothing to tell.
#[derive(Debug, Default)]
pub struct DatabaseFigures {
    /// What its workers do, as one of [`DatabaseFigures::PHASES`].
    pub phase: &'static str,
    /// Transactions decoded.
    pub transactions: u64,
    /// Changes decoded.
    pub changes: u64,
    /// Of these, changes that some subscription wants.
    pub matched: u64,
    /// Bytes of write-ahead log read.
    pub bytes: u64,
    /// Bytes of write-ahead log that are not decoded yet.
    pub decoder_lag_bytes: Option<f64>,
    /// How long ago all of it was decoded; 0 when it is.
    pub decoder_lag_seconds: Option<f64>,
    /// Bytes of write-ahead log that the slot is not confirmed for.
    pub slot_lag_bytes: Option<f64>,
    /// How long ago what the slot is confirmed for was decoded; 0 when that is all.
    pub slot_lag_seconds: Option<f64>,
    /// Bytes of write-ahead log that the slot keeps.
    pub retained_bytes: Option<f64>,
    /// Transactions since the slot's `catalog_xmin`.
    pub catalog_xmin_age: Option<f64>,
    /// Whether the slot is there and valid.
    pub slot_valid: bool,
    /// Transactions that decoding has written to disk because they exceeded `logical_decoding_work_mem`.
    pub spilled_transactions: Option<f64>,
    /// Bytes of them.
    pub spilled_bytes: Option<f64>,
    /// How often decoding has exceeded `logical_decoding_work_mem`; none before PostgreSQL 19.
    pub memory_exceeded: Option<f64>,
    /// Bytes of the journal.
    pub journal_bytes: Option<f64>,
    /// Bytes in the queue from decoder to dispatcher, and how many fit.
    pub queue: (u64, u64),
    /// Bytes that undelivered events take in memory, and how many they may.
    pub memory: (u64, u64),
    /// Requests under way, and how many may be.
    pub requests: (u64, u64),
    /// How often its workers were started again.
    pub restarts: u64,
    /// Gaps on record, and those of them that are still open.
    pub gaps: (u64, u64),
    /// Subscriptions known to the dispatcher, and those of them without series of their own.
    pub subscriptions: (u64, u64),
}

impl DatabaseFigures {
    /// What its workers may be doing.
    pub const PHASES: [&str; 13] = [
        "unknown",
        "starting",
        "no_free_worker",
        "wal_level_too_low",
        "no_free_slot",
        "creating_slot",
        "ready",
        "failed",
        "switched_off",
        "quiesced",
        "versions_differ",
        "slot_taken",
        "gave_way",
    ];
}

/// Figures of a worker process.
#[derive(Debug)]
pub struct WorkerFigures {
    /// `launcher`, `dispatcher` or `decoder`.
    pub worker: &'static str,
    /// Whether it runs.
    pub up: bool,
    /// Its memory that no file backs and nobody shares, in bytes.
    pub memory: Option<u64>,
    /// Its threads.
    pub threads: Option<u64>,
}

/// Figures of a subscription, or of all that have no series of their own together.
#[derive(Debug, Default)]
pub struct SubscriptionFigures {
    /// Its name; empty for the others together.
    pub name: String,
    /// What became of its deliveries since its workers started.
    pub totals: Totals,
    /// Events not delivered yet.
    pub pending: u64,
    /// Of these, events that failed.
    pub retrying: u64,
    /// Bytes of those pending.
    pub backlog_bytes: u64,
    /// Keys held back by an event that failed.
    pub blocked_keys: u64,
    /// Requests under way.
    pub in_flight: u64,
    /// Age of the oldest pending event, 0 when there is none.
    pub lag_seconds: f64,
    /// Seconds since 1970 when a request last succeeded; 0 if none did.
    pub last_success: f64,
    /// Whether its endpoint fails as a whole; none for the others together.
    pub breaker: Option<BreakerState>,
    /// Whether anything is sent to it; none for the others together.
    pub standing: Option<Standing>,
    /// Its state, as one of [`SubscriptionFigures::STATES`]; none for the others together.
    pub state: Option<String>,
}

impl SubscriptionFigures {
    /// The states of subscriptions in `pgwh.status`.
    pub const STATES: [&str; 6] = ["active", "retrying", "paused", "disabled", "held", "error"];
}

/// Whether an endpoint fails as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BreakerState {
    /// It doesn't.
    #[default]
    Closed,
    /// It does, and a probe is due or under way.
    HalfOpen,
    /// It does, and rests.
    Open,
}

impl BreakerState {
    /// All of them with the word for each.
    pub const ALL: [(BreakerState, &str); 3] = [
        (BreakerState::Closed, "closed"),
        (BreakerState::HalfOpen, "half_open"),
        (BreakerState::Open, "open"),
    ];
}

/// Why nothing may be sent to a subscription.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Changes are captured for it.
    pub enabled: bool,
    /// Somebody paused it.
    pub paused: bool,
    /// It was made in another database, of which this is a copy.
    pub held: bool,
}
