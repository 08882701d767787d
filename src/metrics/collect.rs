//! How samples are made of figures, metric by metric.

use super::counters::{DELIVERY_BOUNDS, ERROR_CLASSES, REQUEST_BOUNDS};
use super::families::{FAMILIES, Family, Kind, Of, flag, float};
use super::histogram::Buckets;
use super::snapshot::{BreakerState, DatabaseFigures, Scrape, SubscriptionFigures};

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
    /// The check of `pgwh.health()`.
    pub check: Option<&'a str>,
    /// The value.
    pub value: f64,
}

impl<'a> Sample<'a> {
    /// Labels with their values, where there are any.
    pub fn labels(&self) -> [(&'static str, Option<&'a str>); 9] {
        [
            ("database", self.database),
            ("subscription", self.subscription),
            ("worker", self.worker),
            ("state", self.state),
            ("outcome", self.outcome),
            ("error_class", self.error_class),
            ("le", self.le),
            ("version", self.version),
            ("check", self.check),
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
            Of::Health => {
                for (check, ok) in &scrape.checks {
                    self.one(Sample { check: Some(check), value: flag(*ok), ..Sample::default() });
                }
            }
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
            Of::State => {
                if let Some(state) = &it.state {
                    self.one_of(sample, &SubscriptionFigures::STATES, state);
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
            Of::Library | Of::Database(_) | Of::Phase | Of::Worker(_) | Of::Health => {}
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
    use super::*;
    use crate::metrics::counters::Totals;
    use crate::metrics::openmetrics::Text;

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
    fn what_counts_nothing_takes_no_room() {
        let scrape = Scrape { subscriptions: vec![SubscriptionFigures::default()], ..Scrape::default() };
        assert!(!text(&scrape, "pgwh_request_seconds").contains("_bucket"));
        assert_eq!(text(&scrape, "pgwh_attempts").matches("pgwh_attempts_total").count(), 1);
    }
}
