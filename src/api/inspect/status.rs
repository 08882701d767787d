//! What the dispatcher counts for each subscription, as SQL shows it.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::api::authorization::is_visible;
use crate::api::session;
use crate::api::session::Figures;
use crate::error::Error;
use crate::pg::values::composite::Row;
use crate::pg::values::encoding::Text;

/// The statistics of a subscription of this database.
#[pg_extern(sql = false)]
fn delivery_stats(subscription: Option<i64>) -> Result<Option<Row>, ErrorReport> {
    let Some(id) = subscription else { return Ok(None) };
    if !is_visible(id)? {
        return Ok(None);
    }
    Ok(session::standing(id, row_of).transpose()?)
}

/// What has always the same width comes first, so that a column of it is found without looking at those before it.
fn row_of(figures: &Figures, reached: u64) -> Result<Row, Error> {
    let row = Row::with_capacity(19)
        .and(figures.retrying > 0 || figures.is_open())
        .and(figures.pending as i64)
        .and(figures.retrying as i64)
        .and(figures.in_flight as i64)
        .and(figures.delivered as i64)
        .and(figures.dropped as i64)
        .and(figures.dead as i64)
        .and(figures.blocked_keys as i64)
        .and(reached as i64)
        .and(time(figures.oldest_pending)?)
        .and(time(figures.last_success_at)?)
        .and(time(figures.last_failure_at)?)
        .and(time(figures.next_attempt_at)?)
        .and((figures.last_status != 0).then_some(figures.last_status as i32))
        .and(milliseconds(figures.p50_us))
        .and(milliseconds(figures.p99_us))
        .and(figures.mode().map(Text::from))
        .and(figures.bottleneck().map(Text::from))
        .and(figures.error().map(Text::from));
    Ok(row)
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
