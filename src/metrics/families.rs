//! The metrics there are: name, kind, meaning and value of each.

use super::figures::{BreakerState, DatabaseFigures, Scrape, SubscriptionFigures, WorkerFigures};
use super::histogram::Buckets;
use super::tally::{DELIVERY_BOUNDS, ERROR_CLASSES, REQUEST_BOUNDS, Totals};

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

/// One value, and what tells it from the others of its metric.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample<'a> {
    /// Behind the metric's name.
    pub suffix: &'static str,
    /// The database.
    pub database: Option<&'a str>,
    /// The subscription.
    pub subscription: Option<&'a str>,
    /// The worker.
    pub worker: Option<&'a str>,
    /// The state that this is the value of.
    pub state: Option<&'a str>,
    /// How requests or deliveries ended.
    pub outcome: Option<&'a str>,
    /// What went wrong.
    pub error_class: Option<&'a str>,
    /// The upper bound of the bucket.
    pub le: Option<&'a str>,
    /// The version.
    pub version: Option<&'a str>,
    /// The value.
    pub value: f64,
}

impl<'a> Sample<'a> {
    /// Labels with their values, where there are any.
    pub fn labels(&self) -> [(&'static str, Option<&'a str>); 8] {
        [
            ("database", self.database),
            ("subscription", self.subscription),
            ("worker", self.worker),
            ("state", self.state),
            ("outcome", self.outcome),
            ("error_class", self.error_class),
            ("le", self.le),
            ("version", self.version),
        ]
    }
}

/// Who takes metrics: of each the family, then its samples.
pub trait Sink {
    /// A metric begins.
    fn family(&mut self, family: &Family);
    /// A value of it.
    fn sample(&mut self, family: &Family, sample: &Sample<'_>);
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
    gauge("pgwh_worker_up", "Whether the process runs.", Of::Worker(|worker| Some(flag(worker.up)))),
    gauge(
        "pgwh_worker_memory_bytes",
        "Memory of the process that no file backs and nobody shares.",
        Of::Worker(|worker| worker.memory.map(float)),
    ),
    gauge(
        "pgwh_worker_threads",
        "Threads of the process; those of the dispatcher send.",
        Of::Worker(|worker| worker.threads.map(float)),
    ),
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

fn float(number: u64) -> f64 {
    number as f64
}

fn flag(is: bool) -> f64 {
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
        !matches!(self.of, Of::Library | Of::Database(_) | Of::Phase | Of::Worker(_))
    }
}

/// Tells of the metrics whose names begin so.
pub fn tell(scrape: &Scrape, prefix: &str, sink: &mut impl Sink) {
    for family in FAMILIES.iter().filter(|family| family.name.starts_with(prefix)) {
        sink.family(family);
        Telling { family, scrape, sink }.tell();
    }
}

struct Telling<'a, S> {
    family: &'a Family,
    scrape: &'a Scrape,
    sink: &'a mut S,
}

impl<S: Sink> Telling<'_, S> {
    fn tell(&mut self) {
        let scrape = self.scrape;
        match self.family.of {
            Of::Library => {
                let version = Some(env!("CARGO_PKG_VERSION"));
                self.sink.sample(
                    self.family,
                    &Sample { suffix: "_info", version, value: 1.0, ..Sample::default() },
                );
            }
            Of::Database(value) => {
                if let Some(value) = value(&scrape.database) {
                    self.one(Sample { value, ..Sample::default() });
                }
            }
            Of::Phase => self.one_of(Sample::default(), &DatabaseFigures::PHASES, scrape.database.phase),
            Of::Worker(value) => {
                for worker in &scrape.workers {
                    if let Some(value) = value(worker) {
                        self.one(Sample { worker: Some(worker.worker), value, ..Sample::default() });
                    }
                }
            }
            _ => scrape.subscriptions.iter().for_each(|subscription| self.of_subscription(subscription)),
        }
    }

    fn of_subscription(&mut self, it: &SubscriptionFigures) {
        let sample = Sample { subscription: Some(&it.name), ..Sample::default() };
        match self.family.of {
            Of::Subscription(value) => {
                if let Some(value) = value(it) {
                    self.one(Sample { value, ..sample });
                }
            }
            Of::Breaker => {
                if let Some((_, word)) =
                    BreakerState::ALL.iter().find(|(state, _)| Some(*state) == it.breaker)
                {
                    self.one_of(sample, &BreakerState::ALL.map(|(_, word)| word), word);
                }
            }
            Of::Attempts => {
                self.outcome(sample, "success", it.totals.succeeded);
                self.classes(sample, "failure", &it.totals.failed);
            }
            Of::Deliveries => {
                self.outcome(sample, "delivered", it.totals.delivered);
                self.classes(sample, "dead", &it.totals.dead);
                for (outcome, count) in [("skipped", it.totals.skipped), ("dropped", it.totals.dropped)] {
                    if count > 0 {
                        self.outcome(sample, outcome, count);
                    }
                }
            }
            Of::RequestTime => self.buckets(sample, &REQUEST_BOUNDS, &it.totals.request_time),
            Of::DeliveryTime => self.buckets(sample, &DELIVERY_BOUNDS, &it.totals.delivery_time),
            Of::Library | Of::Database(_) | Of::Phase | Of::Worker(_) => {}
        }
    }

    fn outcome(&mut self, sample: Sample<'_>, outcome: &str, value: u64) {
        self.one(Sample { outcome: Some(outcome), value: float(value), ..sample });
    }

    /// What has never happened is left out: most classes never do.
    fn classes(&mut self, sample: Sample<'_>, outcome: &str, counts: &[u64; ERROR_CLASSES.len()]) {
        for (class, &count) in ERROR_CLASSES.iter().zip(counts).filter(|(_, count)| **count > 0) {
            let value = float(count);
            self.one(Sample { outcome: Some(outcome), error_class: Some(class), value, ..sample });
        }
    }

    /// One that has counted nothing is left out: it is the largest part of an idle subscription.
    fn buckets<const N: usize>(&mut self, sample: Sample<'_>, bounds: &[f64; N], buckets: &Buckets<N>) {
        let all = buckets.count();
        if all == 0 {
            return;
        }
        for (bound, count) in bounds.iter().zip(buckets.cumulative()) {
            // With a point, as OpenMetrics wants its numbers to look.
            let le = format!("{bound:?}");
            self.one(Sample { suffix: "_bucket", le: Some(&le), value: float(count), ..sample });
        }
        self.one(Sample { suffix: "_bucket", le: Some("+Inf"), value: float(all), ..sample });
        self.one(Sample { suffix: "_sum", value: buckets.sum(), ..sample });
        self.one(Sample { suffix: "_count", value: float(all), ..sample });
    }

    /// 1 for the state that it is, 0 for the others.
    fn one_of(&mut self, sample: Sample<'_>, states: &[&str], is: &str) {
        for state in states {
            self.one(Sample { state: Some(state), value: flag(*state == is), ..sample });
        }
    }

    fn one(&mut self, sample: Sample<'_>) {
        let suffix = if self.family.kind == Kind::Counter { "_total" } else { sample.suffix };
        self.sink.sample(self.family, &Sample { suffix, database: Some(&self.scrape.name), ..sample });
    }
}

#[cfg(test)]
mod tests {
    use super::super::text::Text;
    use super::*;

    fn text(scrape: &Scrape, prefix: &str) -> String {
        let mut text = Text::default();
        tell(scrape, prefix, &mut text);
        text.finish()
    }

    #[test]
    fn a_metric_is_told_with_its_kind_unit_and_labels() {
        let mut totals = Totals::default();
        totals.failed[8] = 3;
        let odd = SubscriptionFigures { name: "a\"b\\c\nd".into(), totals, ..SubscriptionFigures::default() };
        let scrape = Scrape { name: "shop".into(), subscriptions: vec![odd], ..Scrape::default() };
        let attempts = text(&scrape, "pgwh_attempts");
        let odd = r#"database="shop",subscription="a\"b\\c\nd""#;
        assert!(attempts.starts_with("# TYPE pgwh_attempts counter\n# HELP pgwh_attempts "), "{attempts}");
        assert!(attempts.contains(&format!("pgwh_attempts_total{{{odd},outcome=\"success\"}} 0\n")));
        let failed = format!("pgwh_attempts_total{{{odd},outcome=\"failure\",error_class=\"http_5xx\"}} 3\n");
        assert!(attempts.contains(&failed), "{attempts}");
        assert!(attempts.ends_with("# EOF\n"));
        assert!(
            text(&scrape, "pgwh_database_journal").contains("# UNIT pgwh_database_journal_bytes bytes\n")
        );
    }

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

    #[test]
    fn what_counts_nothing_takes_no_room() {
        let scrape = Scrape { subscriptions: vec![SubscriptionFigures::default()], ..Scrape::default() };
        assert!(!text(&scrape, "pgwh_request_seconds").contains("_bucket"));
        assert_eq!(text(&scrape, "pgwh_attempts").matches("pgwh_attempts_total").count(), 1);
    }
}
