//! The metrics there are: name, kind, meaning and where its value is from.

use super::counters::Totals;
use super::snapshot::{DatabaseFigures, SubscriptionFigures, WorkerFigures};

/// What kind of metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only rises, until its process starts anew.
    Counter,
    /// Rises and falls.
    Gauge,
    /// Counts of durations in buckets.
    Histogram,
    /// A label is all it has to say.
    Info,
}

impl Kind {
    /// As OpenMetrics has it.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
            Kind::Info => "info",
        }
    }
}

/// One metric.
pub struct Family {
    /// Its name, without the suffixes that its samples have.
    pub name: &'static str,
    /// What kind.
    pub kind: Kind,
    /// In words.
    pub help: &'static str,
    /// What it is taken from.
    pub of: Of,
}

/// What a metric has samples of.
pub enum Of {
    /// The library.
    Library,
    /// The database.
    Database(fn(&DatabaseFigures) -> Option<f64>),
    /// What its workers do.
    Phase,
    /// Each check of its health.
    Health,
    /// The state of each subscription.
    State,
    /// Each of its workers.
    Worker(fn(&WorkerFigures) -> Option<f64>),
    /// Each subscription.
    Subscription(fn(&SubscriptionFigures) -> Option<f64>),
    /// The breaker of each subscription.
    Breaker,
    /// The requests of each subscription, by outcome.
    Attempts,
    /// The events of each subscription, by outcome.
    Deliveries,
    /// The time of requests of each subscription.
    RequestTime,
    /// The time from commit to delivery of each subscription.
    DeliveryTime,
}

const fn counter(name: &'static str, help: &'static str, of: Of) -> Family {
    Family { name, kind: Kind::Counter, help, of }
}

const fn gauge(name: &'static str, help: &'static str, of: Of) -> Family {
    Family { name, kind: Kind::Gauge, help, of }
}

const fn histogram(name: &'static str, help: &'static str, of: Of) -> Family {
    Family { name, kind: Kind::Histogram, help, of }
}

/// All metrics, in the order in which they are shown.
pub const FAMILIES: &[Family] = &[
    Family {
        name: "pgwh_library",
        kind: Kind::Info,
        help: "Version of the library that the server has loaded.",
        of: Of::Library,
    },
    gauge("pgwh_capture_phase", "1 for what the workers of the database do or wait for.", Of::Phase),
    gauge("pgwh_health_ok", "Whether the check of pgwh.health() finds all well.", Of::Health),
    gauge("pgwh_worker_up", "Whether the process runs.", Of::Worker(|worker| Some(flag(worker.up)))),
    gauge(
        "pgwh_worker_memory_bytes",
        "Memory of the process that no file backs and nobody shares.",
        Of::Worker(|worker| worker.memory.map(float)),
    ),
    gauge("pgwh_worker_threads", "Threads of the process.", Of::Worker(|worker| worker.threads.map(float))),
    counter(
        "pgwh_database_restarts",
        "How often dispatcher and decoder were started again.",
        Of::Database(|it| count(it.restarts)),
    ),
    counter(
        "pgwh_database_decoded_transactions",
        "Transactions decoded.",
        Of::Database(|it| count(it.transactions)),
    ),
    counter(
        "pgwh_database_decoded_changes",
        "Changes decoded, of rows and of truncated tables, and messages.",
        Of::Database(|it| count(it.changes)),
    ),
    counter("pgwh_database_decoded_bytes", "Write-ahead log read.", Of::Database(|it| count(it.bytes))),
    counter(
        "pgwh_database_matched_changes",
        "Decoded changes that some subscription wanted.",
        Of::Database(|it| count(it.matched)),
    ),
    counter(
        "pgwh_database_skipped_changes",
        "Decoded changes that no subscription wanted.",
        Of::Database(|it| count(it.changes.saturating_sub(it.matched))),
    ),
    gauge(
        "pgwh_database_decoder_lag_bytes",
        "Write-ahead log that is not decoded yet.",
        Of::Database(|it| it.decoder_lag_bytes),
    ),
    gauge(
        "pgwh_database_decoder_lag_seconds",
        "How long ago everything was decoded; 0 when it is.",
        Of::Database(|it| it.decoder_lag_seconds),
    ),
    gauge(
        "pgwh_database_slot_lag_bytes",
        "Write-ahead log behind the position that the slot is confirmed for.",
        Of::Database(|it| it.slot_lag_bytes),
    ),
    gauge(
        "pgwh_database_slot_lag_seconds",
        "How long ago that position was decoded; 0 when nothing is decoded behind it.",
        Of::Database(|it| it.slot_lag_seconds),
    ),
    gauge(
        "pgwh_database_retained_wal_bytes",
        "Write-ahead log that the slot keeps.",
        Of::Database(|it| it.retained_bytes),
    ),
    gauge(
        "pgwh_database_catalog_xmin_age",
        "Transactions since the oldest one whose catalog rows the slot keeps from vacuum.",
        Of::Database(|it| it.catalog_xmin_age),
    ),
    gauge(
        "pgwh_database_slot_valid",
        "Whether the replication slot is there and valid.",
        Of::Database(|it| Some(flag(it.slot_valid))),
    ),
    counter(
        "pgwh_database_decoder_spilled_transactions",
        "Transactions that decoding wrote to disk because they exceeded logical_decoding_work_mem.",
        Of::Database(|it| it.spilled_transactions),
    ),
    counter(
        "pgwh_database_decoder_spilled_bytes",
        "Size of these transactions.",
        Of::Database(|it| it.spilled_bytes),
    ),
    counter(
        "pgwh_database_decoder_memory_exceeded",
        "How often decoding exceeded logical_decoding_work_mem; from PostgreSQL 19 on.",
        Of::Database(|it| it.memory_exceeded),
    ),
    gauge(
        "pgwh_database_journal_bytes",
        "Size of the journal with its indexes.",
        Of::Database(|it| it.journal_bytes),
    ),
    gauge(
        "pgwh_database_queue_bytes",
        "What waits in the queue from decoder to dispatcher.",
        Of::Database(|it| count(it.queue.0)),
    ),
    gauge(
        "pgwh_database_queue_limit_bytes",
        "What fits into it: pgwh.queue_size.",
        Of::Database(|it| count(it.queue.1)),
    ),
    gauge(
        "pgwh_database_memory_bytes",
        "Memory that undelivered events take.",
        Of::Database(|it| count(it.memory.0)),
    ),
    gauge(
        "pgwh_database_memory_limit_bytes",
        "Memory that the dispatcher may take: pgwh.max_memory.",
        Of::Database(|it| count(it.memory.1)),
    ),
    gauge("pgwh_database_in_flight", "Requests under way.", Of::Database(|it| count(it.requests.0))),
    gauge(
        "pgwh_database_in_flight_limit",
        "Requests that may be under way: pgwh.max_connections.",
        Of::Database(|it| count(it.requests.1)),
    ),
    gauge(
        "pgwh_database_gaps",
        "Rows of pgwh.gaps: what subscriptions will never get.",
        Of::Database(|it| count(it.gaps.0)),
    ),
    gauge("pgwh_database_open_gaps", "Of these, gaps that still grow.", Of::Database(|it| count(it.gaps.1))),
    gauge("pgwh_database_subscriptions", "Subscriptions.", Of::Database(|it| count(it.subscriptions.0))),
    gauge(
        "pgwh_database_subscriptions_together",
        "Of these, subscriptions that share one series: see pgwh.metrics_max_subscriptions.",
        Of::Database(|it| count(it.subscriptions.1)),
    ),
    gauge(
        "pgwh_breaker_state",
        "1 for closed, half_open (the endpoint fails as a whole and is probed) or open (it rests until the next probe).",
        Of::Breaker,
    ),
    counter(
        "pgwh_attempts",
        "Requests that ended, by outcome (success, failure) and error_class.",
        Of::Attempts,
    ),
    counter(
        "pgwh_deliveries",
        "Events that are done, by outcome (delivered, dead, skipped, dropped by a transform) and error_class. Replays don't count.",
        Of::Deliveries,
    ),
    gauge(
        "pgwh_subscription_state",
        "1 for its state in pgwh.status: active, retrying, paused, disabled, held or error.",
        Of::State,
    ),
    gauge(
        "pgwh_subscription_enabled",
        "Whether changes are captured for it.",
        Of::Subscription(|it| it.standing.map(|its| flag(its.enabled))),
    ),
    gauge(
        "pgwh_subscription_paused",
        "Whether it is paused, its changes being kept.",
        Of::Subscription(|it| it.standing.map(|its| flag(its.paused))),
    ),
    gauge(
        "pgwh_subscription_held",
        "Whether it is held, having been made in another database.",
        Of::Subscription(|it| it.standing.map(|its| flag(its.held))),
    ),
    counter(
        "pgwh_subscription_retries",
        "Requests that were not the first ones of their events.",
        Of::Subscription(|it| count(it.totals.retries)),
    ),
    counter(
        "pgwh_subscription_dead_letters",
        "Events given up, or skipped by somebody.",
        Of::Subscription(|it| count(dead(&it.totals))),
    ),
    counter(
        "pgwh_subscription_replayed",
        "Events delivered again by replays.",
        Of::Subscription(|it| count(it.totals.replayed)),
    ),
    gauge(
        "pgwh_subscription_rate",
        "Events delivered a second, averaged over the last 10 seconds or so.",
        Of::Subscription(|it| Some(it.totals.rate)),
    ),
    gauge(
        "pgwh_subscription_pending",
        "Events captured and not delivered yet.",
        Of::Subscription(|it| count(it.pending)),
    ),
    gauge(
        "pgwh_subscription_retrying",
        "Of these, events that failed and wait for their next attempt.",
        Of::Subscription(|it| count(it.retrying)),
    ),
    gauge(
        "pgwh_subscription_backlog_bytes",
        "Size of the pending events.",
        Of::Subscription(|it| count(it.backlog_bytes)),
    ),
    gauge(
        "pgwh_subscription_blocked_keys",
        "Keys whose newer events wait behind a failed one.",
        Of::Subscription(|it| count(it.blocked_keys)),
    ),
    gauge("pgwh_subscription_in_flight", "Requests under way.", Of::Subscription(|it| count(it.in_flight))),
    gauge(
        "pgwh_subscription_lag_seconds",
        "Age of the oldest pending event, 0 when there is none.",
        Of::Subscription(|it| Some(it.lag_seconds)),
    ),
    gauge(
        "pgwh_subscription_last_success_timestamp_seconds",
        "When a request last succeeded, 0 when none did.",
        Of::Subscription(|it| Some(it.last_success)),
    ),
    histogram(
        "pgwh_request_seconds",
        "How long requests took, from resolving the name to the last byte of the answer.",
        Of::RequestTime,
    ),
    histogram(
        "pgwh_delivery_seconds",
        "How long it took from an event's commit until its endpoint had taken it.",
        Of::DeliveryTime,
    ),
];

pub(super) fn float(number: u64) -> f64 {
    number as f64
}

pub(super) fn flag(is: bool) -> f64 {
    f64::from(u8::from(is))
}

fn count(number: u64) -> Option<f64> {
    Some(float(number))
}

fn dead(totals: &Totals) -> u64 {
    totals.dead.iter().sum::<u64>() + totals.skipped
}

impl Family {
    /// The unit that its name ends in.
    pub fn unit(&self) -> Option<&'static str> {
        ["seconds", "bytes"].into_iter().find(|unit| self.name.ends_with(unit))
    }

    /// Whether its samples are of subscriptions.
    pub fn is_of_subscriptions(&self) -> bool {
        !matches!(self.of, Of::Library | Of::Database(_) | Of::Phase | Of::Worker(_) | Of::Health)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rules_and_none_is_there_twice() {
        for (place, family) in FAMILIES.iter().enumerate() {
            let Family { name, help, .. } = family;
            assert!(name.starts_with("pgwh_") && !name.ends_with("_total"), "{name}");
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
            assert!(help.ends_with('.') && !help.contains(['\n', '\\', '"']), "{name}");
            assert!(FAMILIES[..place].iter().all(|other| other.name != *name), "{name}");
        }
    }
}
