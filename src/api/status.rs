//! What the dispatcher counts for each subscription, as SQL shows it.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::acting::Visible;
use crate::decode::text::Text;
use crate::error::Error;
use crate::worker::ask::{self, Standing};

/// The statistics of all subscriptions of this database, or of one.
#[pg_extern(sql = false)]
#[allow(clippy::type_complexity)]
fn delivery_stats(
    of_subscription: Option<i64>,
) -> Result<
    TableIterator<
        'static,
        (
            name!(subscription_id, i64),
            name!(mode, String),
            name!(bottleneck, Option<String>),
            name!(pending, i64),
            name!(retrying, i64),
            name!(in_flight, i64),
            name!(delivered, i64),
            name!(dropped, i64),
            name!(dead, i64),
            name!(blocked_keys, i64),
            name!(oldest_pending, Option<TimestampWithTimeZone>),
            name!(last_success_at, Option<TimestampWithTimeZone>),
            name!(last_failure_at, Option<TimestampWithTimeZone>),
            name!(last_status, Option<i32>),
            name!(last_error, Option<Text>),
            name!(next_attempt_at, Option<TimestampWithTimeZone>),
            name!(p50_ms, Option<f64>),
            name!(p99_ms, Option<f64>),
            name!(reached, Option<i64>),
        ),
    >,
    ErrorReport,
> {
    let mut rows = Vec::new();
    let visible = Visible::now_of(of_subscription)?;
    let standings = match of_subscription {
        Some(one) => ask::standing(one).into_iter().collect(),
        None => ask::all_standings(),
    };
    let shown = standings.into_iter().filter(|it| visible.has(it.figures.subscription_id));
    for Standing { figures, reached } in shown {
        rows.push((
            figures.subscription_id,
            figures.mode(),
            figures.bottleneck(),
            figures.pending as i64,
            figures.retrying as i64,
            figures.in_flight as i64,
            figures.delivered as i64,
            figures.dropped as i64,
            figures.dead as i64,
            figures.blocked_keys as i64,
            time(figures.oldest_pending)?,
            time(figures.last_success_at)?,
            time(figures.last_failure_at)?,
            (figures.last_status != 0).then_some(figures.last_status as i32),
            figures.error().map(Text::from),
            time(figures.next_attempt_at)?,
            milliseconds(figures.p50_us),
            milliseconds(figures.p99_us),
            Some(reached as i64),
        ));
    }
    Ok(TableIterator::new(rows))
}

/// Microseconds since 2000 as SQL has it; 0 stands for never.
fn time(at: i64) -> Result<Option<TimestampWithTimeZone>, Error> {
    let at = (at != 0).then_some(at);
    at.map(TimestampWithTimeZone::try_from)
        .transpose()
        .map_err(|_| Error::Internal("a time is out of range".to_owned()))
}

/// Microseconds as SQL has it; 0 stands for unknown.
fn milliseconds(us: u32) -> Option<f64> {
    (us != 0).then(|| f64::from(us) / 1000.0)
}
