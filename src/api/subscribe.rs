//! `pgwh.subscribe` and `pgwh.unsubscribe`.

use std::time::Duration;

use pgrx::JsonB;
use pgrx::datum::{DatumWithOid, Interval};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::functions;
use super::near::near;
use super::secrets;
use super::subscription::{Known, Subscription, Texts, Wish};
use super::tables;
use crate::decode::pattern::NamePattern;
use crate::error::Error;
use crate::send::Identity;
use crate::send::signature::SigningKey;
use crate::settings;
use crate::worker::ask;

/// How long to wait for capture to begin.
const PATIENCE: Duration = Duration::from_secs(30);

/// Makes or changes a subscription; returns its id.
#[pg_extern(sql = false)]
#[allow(clippy::too_many_arguments)]
fn subscribe(
    url: Option<String>,
    name: Option<String>,
    tables: Option<Texts>,
    schema: Option<String>,
    table_name: Option<String>,
    event_types: Option<Texts>,
    filter: Option<String>,
    changed: Option<Texts>,
    columns: Option<Texts>,
    exclude_columns: Option<Texts>,
    transform: Option<pg_sys::Oid>,
    route: Option<pg_sys::Oid>,
    format: Option<String>,
    headers: Option<JsonB>,
    secret: Option<String>,
    signature: Option<String>,
    client_certificate: Option<String>,
    batch_size: Option<i32>,
    batch_wait: Option<Interval>,
    ordering: Option<String>,
    key_columns: Option<Texts>,
    timeout: Option<Interval>,
    max_in_flight: Option<i32>,
    rate_limit: Option<i32>,
    retry_schedule: Option<Vec<Option<Interval>>>,
    retention: Option<Interval>,
    compress: Option<String>,
    enabled: Option<bool>,
    backfill: Option<bool>,
) -> Result<i64, ErrorReport> {
    let enabled = enabled.unwrap_or(true);
    let scheme = signature.map(|word| secrets::scheme_of(Some(&word))).transpose()?;
    if let Some(secret) = &secret {
        let key = SigningKey::parse(secret).map_err(Error::from)?;
        if scheme.is_some_and(|scheme| scheme != key.scheme()) {
            return Err(Error::SignatureKind.into());
        }
    }
    if let Some(pem) = client_certificate.as_deref().filter(|pem| !pem.is_empty()) {
        Identity::parse(pem).map_err(Error::from)?;
    }
    let tables = one_way(tables, schema, table_name)?;
    let nameless = name.is_none();
    let wish = Wish {
        name,
        url,
        tables,
        event_types,
        filter,
        changed,
        columns,
        exclude_columns,
        transform: functions::name_of(transform)?,
        route: functions::name_of(route)?,
        format,
        headers,
        batch_size,
        batch_wait,
        ordering,
        key_columns,
        timeout,
        max_in_flight,
        rate_limit,
        retry_schedule,
        retention,
        compress,
    };
    // Bad input is refused at once, not after waiting for capture.
    let mut wanted = wish.check(&Known::default())?;
    if enabled {
        require_capture()?;
    }
    if nameless && let Some(name) = name_of_the_same(&wanted)? {
        wanted.name = name;
    }
    let id = store(wanted, enabled)?;
    secrets::set_secret(id, secret, scheme)?;
    if let Some(pem) = client_certificate {
        secrets::set_client_certificate(id, &pem)?;
    }
    if backfill.unwrap_or_default() {
        super::backfill::begin_all(id)?;
    }
    Ok(id)
}

/// One spelling out of `tables`, or `schema` and `table_name`.
fn one_way(
    patterns: Option<Texts>,
    schema: Option<String>,
    table: Option<String>,
) -> Result<Option<Texts>, Error> {
    let stands = |pattern: String| Some(vec![Some(pattern)]);
    match (patterns, schema, table) {
        (patterns, None, None) => Ok(patterns),
        (None, Some(schema), Some(table)) => Ok(stands(tables::of_table(&schema, &table))),
        (None, Some(schema), None) => Ok(stands(tables::of_schema(&schema))),
        (None, None, Some(table)) => Ok(stands(NamePattern::exactly(&table).to_string())),
        (Some(_), ..) => Err(Error::TablesTwice),
    }
}

/// Waits until changes are captured, so that none that is committed after the subscription is missed.
///
/// Capture begins when the transactions that have an xid by now have ended; one of them can't wait for it.
pub fn require_capture() -> Result<(), Error> {
    // SAFETY: reads the state of the present transaction.
    let has_xid = unsafe { pg_sys::GetTopTransactionIdIfAny() != pg_sys::InvalidTransactionId };
    if !settings::preloaded() {
        return Err(Error::NotPreloaded);
    }
    match ask::await_capture(if has_xid { Duration::ZERO } else { PATIENCE }) {
        Ok(()) => Ok(()),
        Err(not_ready) if has_xid => Err(Error::NotReadyHere(not_ready.to_string())),
        Err(not_ready) => Err(Error::NotReady(not_ready.to_string())),
    }
}

/// The oldest subscription to the same url, tables and filter: who gives no name means that one.
fn name_of_the_same(wanted: &Subscription) -> Result<Option<String>, Error> {
    Ok(Spi::connect(|client| {
        let rows = client.select(
            "SELECT name FROM pgwh.subscriptions
             WHERE url OPERATOR(pg_catalog.=) $1 AND tables OPERATOR(pg_catalog.=) $2
               AND coalesce(filter, '') OPERATOR(pg_catalog.=) $3 ORDER BY id LIMIT 1",
            Some(1),
            &[
                wanted.url.clone().into(),
                wanted.tables.clone().into(),
                wanted.filter.clone().unwrap_or_default().into(),
            ],
        )?;
        if rows.is_empty() { Ok(None) } else { rows.first().get_one::<String>() }
    })?)
}

fn store(wanted: Subscription, enabled: bool) -> Result<i64, Error> {
    let row: Vec<(&str, DatumWithOid<'_>)> = vec![
        ("name", wanted.name.into()),
        ("url", wanted.url.into()),
        ("tables", wanted.tables.into()),
        ("event_types", wanted.event_types.into()),
        ("filter", wanted.filter.into()),
        ("changed", wanted.changed.into()),
        ("columns", wanted.columns.into()),
        ("exclude_columns", wanted.exclude_columns.into()),
        ("transform", wanted.transform.into()),
        ("route", wanted.route.into()),
        ("format", wanted.format.word().into()),
        ("headers", wanted.headers.into()),
        ("batch_size", wanted.batch_size.into()),
        ("batch_wait", wanted.batch_wait.into()),
        ("ordering", wanted.ordering.into()),
        ("key_columns", wanted.key_columns.into()),
        ("timeout", wanted.timeout.into()),
        ("max_in_flight", wanted.max_in_flight.into()),
        ("rate_limit", wanted.rate_limit.into()),
        ("retry_schedule", wanted.retry_schedule.into()),
        ("retention", wanted.retention.into()),
        ("compress", wanted.compress.into()),
        ("enabled", enabled.into()),
    ];
    let (columns, values): (Vec<_>, Vec<_>) = row.into_iter().unzip();
    let places: Vec<_> = (1..=columns.len()).map(|place| format!("${place}")).collect();
    // All that can change, and what was copied with its database is armed again.
    let changes = columns[1..].iter().chain(&["home"]).map(|column| format!("{column} = EXCLUDED.{column}"));
    let query = format!(
        "INSERT INTO pgwh.subscriptions AS s ({}) VALUES ({}) ON CONFLICT (name) DO UPDATE SET {} RETURNING s.id",
        columns.join(", "),
        places.join(", "),
        changes.collect::<Vec<_>>().join(", "),
    );
    Spi::connect_mut(|client| {
        let id = client
            .update(query.as_str(), None, &values)?
            .first()
            .get_one::<i64>()?
            .ok_or_else(|| Error::Internal("storing a subscription gave no id".to_owned()))?;
        Ok(id)
    })
}

/// Ends a subscription; returns how many undelivered events go with it.
#[pg_extern(sql = false)]
fn unsubscribe(name: Option<String>) -> Result<i64, ErrorReport> {
    let id = id_of(name.clone())?;
    let pending = ask::standing(id).map_or(0, |standing| standing.figures.pending as i64);
    Spi::run_with_args("DELETE FROM pgwh.subscriptions WHERE id OPERATOR(pg_catalog.=) $1", &[id.into()])
        .map_err(Error::from)?;
    if pending > 0 {
        notice!("{pending} undelivered events of subscription \"{}\" are dropped", name.unwrap_or_default());
    }
    Ok(pending)
}

/// The id of the subscription of that name.
pub fn id_of(name: Option<String>) -> Result<i64, Error> {
    let name = name.ok_or(Error::Missing("name"))?;
    Spi::connect(|client| {
        let found = client.select(
            "SELECT id FROM pgwh.subscriptions WHERE name OPERATOR(pg_catalog.=) $1",
            Some(1),
            &[name.clone().into()],
        )?;
        if !found.is_empty()
            && let Some(id) = found.first().get_one::<i64>()?
        {
            return Ok(id);
        }
        let mut names = Vec::new();
        for row in client.select("SELECT name FROM pgwh.subscriptions", None, &[])? {
            names.extend(row.get::<String>(1)?);
        }
        let near = near(&name, names).into_iter().map(|name| format!("\"{name}\"")).collect();
        Err(Error::NoSuchSubscription(name, near))
    })
}
