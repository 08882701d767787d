//! `pgwh.metrics` and `pgwh.metric_samples`: what is gathered for them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::api::authorization::{Visible, as_owner};
use crate::api::session;
use crate::api::session::Figures;
use crate::error::Error;
use crate::event::{Lsn, Timestamp};
use crate::gucs;
use crate::metrics::{
    BreakerState, DatabaseFigures, FAMILIES, Family, Of, Sample, Scrape, Sink, Standing, SubscriptionFigures,
    Text, Totals, WorkerFigures, tell,
};
use crate::pg::values::encoding;
use crate::pg::values::encoding::{Text as SqlText, Texts};

/// All metrics of this database as OpenMetrics text.
#[pg_extern(sql = false)]
fn metrics() -> Result<SqlText, ErrorReport> {
    let mut text = Text::default();
    tell(&gather("")?, "", &mut text);
    Ok(text.finish().into())
}

/// The same, a row a sample, of the metrics whose names begin so.
#[pg_extern(sql = false)]
#[allow(clippy::type_complexity)]
fn metric_samples(
    prefix: Option<SqlText>,
) -> Result<
    TableIterator<
        'static,
        (
            name!(metric, String),
            name!(database, Option<SqlText>),
            name!(subscription, Option<SqlText>),
            name!(worker, Option<String>),
            name!(state, Option<String>),
            name!(outcome, Option<String>),
            name!(error_class, Option<String>),
            name!(le, Option<String>),
            name!(version, Option<String>),
            name!(check_name, Option<String>),
            name!(value, f64),
        ),
    >,
    ErrorReport,
> {
    let prefix = String::from(prefix.unwrap_or_default());
    let mut rows = Rows(Vec::new());
    tell(&gather(&prefix)?, &prefix, &mut rows);
    let rows = rows.0.into_iter().map(|(metric, labels, value)| {
        let [database, subscription, worker, state, outcome, error_class, le, version, check] = labels;
        let (database, subscription) = (database.map(SqlText::from), subscription.map(SqlText::from));
        (metric, database, subscription, worker, state, outcome, error_class, le, version, check, value)
    });
    Ok(TableIterator::new(rows))
}

struct Rows(Vec<(String, [Option<String>; 9], f64)>);

impl Sink for Rows {
    fn family(&mut self, _: &Family) {}

    fn sample(&mut self, family: &Family, sample: &Sample<'_>) {
        let labels = sample.labels().map(|(_, value)| value.map(str::to_owned));
        self.0.push((format!("{}{}", family.name, sample.suffix), labels, sample.value));
    }
}

/// What the metrics need whose names begin so, as far as the caller is shown it.
fn gather(prefix: &str) -> Result<Scrape, Error> {
    // SAFETY: a syscache look-up in a transaction.
    let monitors =
        unsafe { pg_sys::has_privs_of_role(pg_sys::GetUserId(), pg_sys::Oid::from(pg_sys::ROLE_PG_MONITOR)) };
    let visible = if monitors { Visible::All } else { Visible::now()? };
    as_owner(|| Ok(gather_visible(prefix, &visible)?))
}

fn gather_visible(prefix: &str, visible: &Visible) -> Result<Scrape, pgrx::spi::Error> {
    let wanted = || FAMILIES.iter().filter(|family| family.name.starts_with(prefix));
    let mut scrape = Scrape { name: super::journal::database(), ..Scrape::default() };
    let known = Known::now(visible);
    if wanted().any(|family| !family.is_of_subscriptions()) {
        scrape.workers = workers();
        scrape.database = database(&known)?;
    }
    if wanted().any(Family::is_of_subscriptions) {
        scrape.subscriptions = subscriptions(known, visible)?;
    }
    if wanted().any(|family| matches!(family.of, Of::State)) {
        add_states(&mut scrape.subscriptions)?;
    }
    // They tell of all subscriptions.
    if matches!(visible, Visible::All) && wanted().any(|family| matches!(family.of, Of::Health)) {
        scrape.checks = checks()?;
    }
    Ok(scrape)
}

fn workers() -> Vec<WorkerFigures> {
    session::processes().into_iter().map(|(worker, pid)| worker_figures(worker, pid)).collect()
}

/// What the operating system says of a process of ours; where it has no such files, only whether there is one.
fn worker_figures(worker: &'static str, pid: Option<i32>) -> WorkerFigures {
    let read = |pid| std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let status = pid.map(read).unwrap_or_default();
    let field = |name: &str| -> Option<u64> {
        status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
    };
    WorkerFigures {
        worker,
        up: pid.is_some(),
        memory: field("RssAnon:").map(|kilobytes| kilobytes * 1024),
        threads: field("Threads:"),
    }
}

// Each phase has its word.
const _: () = assert!(DatabaseFigures::PHASES.len() == session::Phase::ALL.len());

fn database(known: &Known) -> Result<DatabaseFigures, pgrx::spi::Error> {
    let mut figures = DatabaseFigures::default();
    let mut decoded = 0;
    if let Some((_, database)) = session::about_workers() {
        let it = &database.decoded;
        let decoding = database.decoder_pid.load(Relaxed) != 0;
        decoded = it.position.load(Relaxed);
        let confirmed = database.confirmed.load(Relaxed);
        let queued = it.queued.load(Relaxed).saturating_sub(database.dispatched.unqueued.load(Relaxed));
        let queue_size = gucs::queue_size() as u64;
        figures.phase = DatabaseFigures::PHASES[database.phase() as usize];
        figures.transactions = it.transactions.load(Relaxed);
        figures.changes = it.changes.load(Relaxed);
        figures.matched = it.matched.load(Relaxed);
        figures.bytes = it.bytes.load(Relaxed);
        figures.decoder_lag_seconds = age(&it.all_at, decoding && it.all.load(Relaxed));
        figures.slot_lag_seconds = age(&it.confirmed_at, decoding && confirmed >= decoded);
        figures.queue = (queued.min(queue_size), queue_size);
        figures.memory = (database.dispatched.memory.load(Relaxed), gucs::max_memory() as u64);
        figures.requests = (database.dispatched.in_flight.load(Relaxed), gucs::max_connections() as u64);
        figures.restarts = database.dispatched.starts.load(Relaxed).saturating_sub(1);
    }
    if figures.phase.is_empty() {
        figures.phase = DatabaseFigures::PHASES[0];
    }
    figures.subscriptions = (known.own.len() as u64 + known.others, known.others);
    Spi::connect(|client| {
        let row = client.select(DATABASE, Some(1), &[Lsn(decoded).to_string().into()])?.first();
        let count = |number: Option<i64>| number.unwrap_or_default() as u64;
        figures.decoder_lag_bytes = row.get::<f64>(1)?.filter(|_| decoded > 0);
        figures.slot_lag_bytes = row.get(2)?;
        figures.retained_bytes = row.get(3)?;
        figures.catalog_xmin_age = row.get(4)?;
        figures.slot_valid = row.get(5)?.unwrap_or_default();
        figures.gaps = (count(row.get(6)?), count(row.get(7)?));
        figures.journal_bytes = row.get(8)?;
        figures.spilled_transactions = row.get(9)?;
        figures.spilled_bytes = row.get(10)?;
        figures.memory_exceeded = row.get(11)?;
        Ok(figures)
    })
}

/// What catalogs and small tables say of a database; `$1` is up to where it is decoded.
const DATABASE: &str = "
    SELECT greatest(pg_wal_lsn_diff(w.lsn, $1::pg_lsn), 0)::float8,
        greatest(pg_wal_lsn_diff(w.lsn, s.confirmed_flush_lsn), 0)::float8,
        greatest(pg_wal_lsn_diff(w.lsn, s.restart_lsn), 0)::float8,
        age(s.catalog_xmin)::float8,
        s.confirmed_flush_lsn IS NOT NULL AND s.wal_status <> 'lost',
        (SELECT count(*) FROM pgwh.gaps), (SELECT count(*) FROM pgwh.gaps g WHERE g.to_lsn IS NULL),
        (SELECT sum(pg_total_relation_size(i.inhrelid)) FROM pg_inherits i WHERE i.inhparent = ANY (
            '{pgwh_internal.event_chunks,pgwh_internal.outcome_chunks,pgwh_internal.attempt_rows,pgwh_internal.positions}'::regclass[]))::float8,
        t.spill_txns::float8, t.spill_bytes::float8, (to_jsonb(t) ->> 'mem_exceeded_count')::float8
    FROM (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END AS lsn) w
        LEFT JOIN pg_replication_slots s ON s.slot_name = pgwh.slot_name()
        LEFT JOIN pg_stat_replication_slots t ON t.slot_name = s.slot_name";

/// Seconds since then; 0 when that is still so, none when it never was.
fn age(at: &AtomicI64, still: bool) -> Option<f64> {
    let at = at.load(Relaxed);
    if still {
        return Some(0.0);
    }
    (at != 0).then(|| seconds_between(at, now()))
}

fn seconds_between(from: i64, to: i64) -> f64 {
    to.saturating_sub(from).max(0) as f64 / 1e6
}

fn now() -> i64 {
    // SAFETY: reads the clock.
    unsafe { pg_sys::GetCurrentTimestamp() }
}

/// How subscriptions fare.
#[derive(Default)]
struct Known {
    /// Those with metrics of their own.
    own: HashMap<i64, SubscriptionFigures>,
    /// How many others there are.
    others: u64,
    /// These together, and what was counted for others that are gone.
    together: SubscriptionFigures,
}

impl Known {
    fn now(visible: &Visible) -> Known {
        let (mut known, now) = (Known::default(), now());
        let others = session::each_figures(|figures, totals| match totals {
            _ if !visible.has(figures.subscription_id) => {}
            Some(totals) => {
                known.own.insert(figures.subscription_id, own_figures(figures, totals, now));
            }
            None => {
                known.others += 1;
                add(&mut known.together, figures, now);
            }
        });
        // Of those that share their counts nobody can say whose they are.
        if matches!(visible, Visible::All) {
            known.together.totals = others;
        }
        known
    }
}

/// Those with metrics of their own, and the others together, if there are any.
fn subscriptions(mut known: Known, visible: &Visible) -> Result<Vec<SubscriptionFigures>, pgrx::spi::Error> {
    let named = named(known.own.keys().copied().collect())?.into_iter();
    let named = named.filter(|(id, ..)| visible.has(*id));
    let mut shown: Vec<_> = named
        .map(|(id, name, standing)| {
            let figures = known.own.remove(&id).unwrap_or_default();
            SubscriptionFigures { name, standing: Some(standing), ..figures }
        })
        .collect();
    if known.others > 0 || known.together.totals != Totals::default() {
        shown.push(known.together);
    }
    Ok(shown)
}

/// Adds the states of those that have metrics of their own.
fn add_states(subscriptions: &mut [SubscriptionFigures]) -> Result<(), pgrx::spi::Error> {
    let names: Vec<String> = subscriptions.iter().map(|it| it.name.clone()).collect();
    let states: HashMap<String, String> = Spi::connect(|client| {
        let query = "SELECT name, state FROM pgwh.status WHERE name = ANY ($1)";
        client
            .select(query, None, &[encoding::array(&names)])?
            .map(|row| Ok((row.text(1)?.unwrap_or_default(), row.text(2)?.unwrap_or_default())))
            .collect::<Result<_, pgrx::spi::Error>>()
    })?;
    for it in subscriptions.iter_mut().filter(|it| it.standing.is_some()) {
        it.state = states.get(&it.name).cloned();
    }
    Ok(())
}

/// The checks of `pgwh.health`, and whether each finds all well.
fn checks() -> Result<Vec<(String, bool)>, pgrx::spi::Error> {
    Spi::connect(|client| {
        let rows = client.select("SELECT check_name, ok FROM pgwh.health()", None, &[])?;
        rows.map(|row| Ok((row.text(1)?.unwrap_or_default(), row.get(2)?.unwrap_or_default()))).collect()
    })
}

fn own_figures(figures: &Figures, totals: Totals, now: i64) -> SubscriptionFigures {
    let mut own = SubscriptionFigures { totals, ..SubscriptionFigures::default() };
    add(&mut own, figures, now);
    if figures.last_success_at != 0 {
        let micros = figures.last_success_at.rem_euclid(1_000_000) as f64;
        own.last_success = Timestamp(figures.last_success_at).unix_seconds() as f64 + micros / 1e6;
    }
    own.breaker = Some(match (figures.is_open(), figures.probing) {
        (false, _) => BreakerState::Closed,
        (true, 0) => BreakerState::Open,
        (true, _) => BreakerState::HalfOpen,
    });
    own
}

fn add(sum: &mut SubscriptionFigures, figures: &Figures, now: i64) {
    sum.pending += figures.pending;
    sum.retrying += figures.retrying;
    sum.backlog_bytes += figures.pending_bytes;
    sum.blocked_keys += figures.blocked_keys;
    sum.in_flight += figures.in_flight;
    if figures.oldest_pending != 0 {
        sum.lag_seconds = sum.lag_seconds.max(seconds_between(figures.oldest_pending, now));
    }
}

/// Names of these subscriptions, and of those that no dispatcher knows since they are held, and how each stands.
fn named(ids: Vec<i64>) -> Result<Vec<(i64, String, Standing)>, pgrx::spi::Error> {
    let most = gucs::metrics_max_subscriptions().max(ids.len()) as i64;
    Spi::connect(|client| {
        client
            .select(
                // Materialized, so that it is asked for once and not for each row.
                "WITH h AS MATERIALIZED (SELECT pgwh_internal.home() AS home)
                 SELECT s.id, s.name, s.enabled, s.paused, s.home <> h.home
                 FROM pgwh.subscriptions s, h
                 WHERE s.id = ANY ($1) OR s.home <> h.home
                 ORDER BY s.home <> h.home, s.id LIMIT $2",
                None,
                &[ids.into(), most.into()],
            )?
            .map(|row| {
                let standing = Standing {
                    enabled: row.get(3)?.unwrap_or_default(),
                    paused: row.get(4)?.unwrap_or_default(),
                    held: row.get(5)?.unwrap_or_default(),
                };
                Ok((row.get(1)?.unwrap_or_default(), row.text(2)?.unwrap_or_default(), standing))
            })
            .collect()
    })
}
