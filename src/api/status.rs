//! What the dispatcher counts for each subscription, as SQL shows it.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::error::Error;
use crate::event::{Lsn, Timestamp};
use crate::worker::shmem;

/// How one subscription fares, as of now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SubscriptionStats {
    /// Its id.
    pub subscription_id: i64,
    /// Events captured and not delivered yet, those that wait for a retry included.
    pub pending: i64,
    /// Events that failed and wait for their next attempt.
    pub retrying: i64,
    /// Requests under way.
    pub in_flight: i64,
    /// Events delivered since the dispatcher started.
    pub delivered: i64,
    /// Events given up.
    pub dead: i64,
    /// Keys whose newer events wait behind a failed one.
    pub blocked_keys: i64,
    /// When the oldest pending event was committed.
    pub oldest_pending: Option<Timestamp>,
    /// When a request last succeeded.
    pub last_success_at: Option<Timestamp>,
    /// When a request last failed.
    pub last_failure_at: Option<Timestamp>,
    /// HTTP status of the last response.
    pub last_status: Option<i32>,
    /// What the last failure was.
    pub last_error: Option<String>,
    /// When the next retry is due.
    pub next_attempt_at: Option<Timestamp>,
    /// Median duration of recent requests, in milliseconds.
    pub p50_ms: Option<f64>,
    /// Duration that 99 of 100 recent requests stayed below, in milliseconds.
    pub p99_ms: Option<f64>,
    /// Everything that ended at or before this position has been delivered to it.
    pub reached_lsn: Option<Lsn>,
}

/// The statistics of all subscriptions of this database.
#[pg_extern(sql = false)]
#[allow(clippy::type_complexity)]
fn delivery_stats() -> Result<
    TableIterator<
        'static,
        (
            name!(subscription_id, i64),
            name!(pending, i64),
            name!(retrying, i64),
            name!(in_flight, i64),
            name!(delivered, i64),
            name!(dead, i64),
            name!(blocked_keys, i64),
            name!(oldest_pending, Option<TimestampWithTimeZone>),
            name!(last_success_at, Option<TimestampWithTimeZone>),
            name!(last_failure_at, Option<TimestampWithTimeZone>),
            name!(last_status, Option<i32>),
            name!(last_error, Option<String>),
            name!(next_attempt_at, Option<TimestampWithTimeZone>),
            name!(p50_ms, Option<f64>),
            name!(p99_ms, Option<f64>),
            name!(reached, Option<i64>),
        ),
    >,
    ErrorReport,
> {
    let mut rows = Vec::new();
    for stats in shmem::subscription_stats() {
        rows.push((
            stats.subscription_id,
            stats.pending,
            stats.retrying,
            stats.in_flight,
            stats.delivered,
            stats.dead,
            stats.blocked_keys,
            time(stats.oldest_pending)?,
            time(stats.last_success_at)?,
            time(stats.last_failure_at)?,
            stats.last_status,
            stats.last_error,
            time(stats.next_attempt_at)?,
            stats.p50_ms,
            stats.p99_ms,
            stats.reached_lsn.map(|lsn| lsn.0 as i64),
        ));
    }
    Ok(TableIterator::new(rows))
}

fn time(at: Option<Timestamp>) -> Result<Option<TimestampWithTimeZone>, Error> {
    at.map(|at| TimestampWithTimeZone::try_from(at.0))
        .transpose()
        .map_err(|_| Error::Internal("a time is out of range".to_owned()))
}
