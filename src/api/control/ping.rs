//! `pgwh.test`: a ping, sent as everything is sent.

use pgrx::datum::Interval;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::api::command_queue::refused;
use crate::api::lookup::owned;
use crate::api::preconditions;
use crate::dispatcher::pings;
use crate::error::Error;
use crate::pg::values::encoding::Text;

/// Sends a ping by a subscription's settings, and waits for what comes of it.
#[pg_extern(sql = false)]
#[allow(clippy::type_complexity)]
fn test(
    name: Option<Text>,
) -> Result<
    TableIterator<
        'static,
        (
            name!(status, Option<i32>),
            name!(latency, Interval),
            name!(latency_ms, f64),
            name!(error_class, Option<String>),
            name!(error, Option<Text>),
        ),
    >,
    ErrorReport,
> {
    preconditions::changes()?;
    let id = owned(name)?;
    let told = pings::ping(id, timeout_of(id)?).map_err(|why| {
        let hint = "Commit the subscription first; SELECT * FROM pgwh.health() WHERE NOT ok; says what else is missing.";
        refused("the test cannot be made", format!("{why}."), hint)
    })?;
    let micros = i64::try_from(told.duration_us).unwrap_or(i64::MAX);
    let status = i32::try_from(told.status).ok().filter(|status| *status != 0);
    let latency_ms = micros as f64 / 1000.0;
    Ok(TableIterator::once((
        status,
        Interval::from_micros(micros),
        latency_ms,
        told.class(),
        told.error().map(Text::from),
    )))
}

fn timeout_of(id: i64) -> Result<std::time::Duration, Error> {
    let timeout = Spi::connect(|client| {
        client
            .select(
                "SELECT timeout FROM pgwh.subscriptions WHERE id OPERATOR(pg_catalog.=) $1",
                Some(1),
                &[id.into()],
            )?
            .first()
            .get_one::<Interval>()
    })?;
    let micros = timeout.map_or(0, |timeout| timeout.as_micros());
    Ok(std::time::Duration::from_micros(u64::try_from(micros).unwrap_or_default()))
}
