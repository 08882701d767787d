//! `pgwh.subscribe` and `pgwh.unsubscribe`.

use std::time::Duration;

use pgrx::datum::{DatumWithOid, Interval};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::resubscribe::Before;
use super::subscription::{Known, Subscription, Texts, Wish};
use super::{headers, name_wait, own_changes, required_grants, tables};
use crate::api::authorization::own_name;
use crate::api::authorization::{as_owner, sees_everything};
use crate::api::lookup::id_of;
use crate::api::lookup::is_anothers;
use crate::api::session;
use crate::api::session::{Lack, NotReady};
use crate::api::{preconditions, secrets};
use crate::decode::routing::table_pattern::NamePattern;
use crate::error::Error;
use crate::gucs;
use crate::http::Identity;
use crate::http::signature::SigningKey;
use crate::pg::command::notice::Notice;
use crate::pg::values::encoding;
use crate::pg::values::encoding::{Text, Texts as _};
use crate::pg::values::jsonb::Jsonb;

/// How long to wait for capture to begin.
const PATIENCE: Duration = Duration::from_secs(30);

/// Makes or changes a subscription; returns its id.
#[pg_extern(sql = false)]
#[allow(clippy::too_many_arguments)]
fn subscribe(
    url: Option<Text>,
    name: Option<Text>,
    tables: Option<Vec<Option<Text>>>,
    schema: Option<Text>,
    table_name: Option<Text>,
    event_types: Option<Vec<Option<Text>>>,
    filter: Option<Text>,
    changed: Option<Vec<Option<Text>>>,
    columns: Option<Vec<Option<Text>>>,
    exclude_columns: Option<Vec<Option<Text>>>,
    transform: Option<Text>,
    route: Option<Text>,
    format: Option<Text>,
    headers: Option<Jsonb>,
    secret: Option<Text>,
    signature: Option<Text>,
    client_certificate: Option<Text>,
    batch_size: Option<i32>,
    batch_wait: Option<Interval>,
    ordering: Option<Text>,
    key_columns: Option<Vec<Option<Text>>>,
    timeout: Option<Interval>,
    max_in_flight: Option<i32>,
    rate_limit: Option<i32>,
    retry_schedule: Option<Vec<Option<Interval>>>,
    retention: Option<Interval>,
    compress: Option<Text>,
    enabled: Option<bool>,
    backfill: Option<bool>,
    origin: Option<Text>,
) -> Result<i64, ErrorReport> {
    preconditions::changes()?;
    let xid = own_changes::writing_transaction();
    required_grants::require()?;
    let enabled = enabled.unwrap_or(true);
    let scheme = signature.map(|word| secrets::scheme_of(Some(&word.0))).transpose()?;
    let [secret, client_certificate] = [secret, client_certificate].map(string);
    if let Some(secret) = &secret {
        let key = SigningKey::parse(secret).map_err(Error::from)?;
        if scheme.is_some_and(|scheme| scheme != key.scheme()) {
            return Err(Error::SignatureKind.into());
        }
    }
    if let Some(pem) = client_certificate.as_deref().filter(|pem| !pem.is_empty()) {
        Identity::parse(pem).map_err(Error::from)?;
    }
    let tables = one_way(texts(tables), schema, table_name)?;
    let nameless = name.is_none();
    let wish = Wish {
        name: string(name),
        url: string(url),
        tables,
        event_types: texts(event_types),
        filter: string(filter),
        changed: texts(changed),
        columns: texts(columns),
        exclude_columns: texts(exclude_columns),
        transform: string(transform),
        route: string(route),
        format: string(format),
        headers,
        batch_size,
        batch_wait,
        ordering: string(ordering),
        key_columns: texts(key_columns),
        timeout,
        max_in_flight,
        rate_limit,
        retry_schedule,
        retention,
        compress: string(compress),
        origin: string(origin),
    };
    // Bad input is refused at once, not after waiting for capture.
    let mut wanted = wish.check(&Known::default())?;
    if enabled {
        require_capture()?;
    }
    if nameless {
        match name_of_the_same(&wanted)? {
            Some(name) => wanted.name = name,
            None if is_anothers(&wanted.name)? => wanted.name = format!("{}-{}", wanted.name, own_name()),
            None => {}
        }
    }
    let gives_headers = headers::any_in_clear(&wanted.headers);
    let name = wanted.name.clone();
    name_wait::notice_wait(&name)?;
    let before = Before::of(&name)?;
    let backfill = backfill.unwrap_or_default();
    let new_tables = (before.is_none() && !backfill).then(|| wanted.tables.clone());
    let id = store(wanted, enabled)?;
    before.report(&name)?;
    if let (Some(xid), Some(tables)) = (xid, new_tables) {
        own_changes::report(xid, &name, &tables)?;
    }
    // The trigger has said so when there are headers.
    if !gives_headers {
        let owner = owner_of(id)?;
        if !is_present_role(&owner) {
            notice_other_owner(&name, &owner);
        }
    }
    secrets::set_secret(id, &name, secret, scheme)?;
    if let Some(pem) = client_certificate {
        secrets::set_client_certificate(id, &pem)?;
    }
    if backfill {
        crate::api::control::backfill::begin_all(id)?;
    }
    Ok(id)
}

fn string(text: Option<Text>) -> Option<String> {
    text.map(String::from)
}

fn texts(texts: Option<Vec<Option<Text>>>) -> Option<Texts> {
    texts.map(|texts| texts.into_iter().map(string).collect())
}

/// One spelling out of `tables`, or `schema` and `table_name`.
fn one_way(
    patterns: Option<Texts>,
    schema: Option<Text>,
    table: Option<Text>,
) -> Result<Option<Texts>, Error> {
    let stands = |pattern: String| Some(vec![Some(pattern)]);
    if let (None, Some(table)) = (&patterns, &table) {
        tables::require_plain(schema.as_ref().map(|schema| schema.0.as_str()), &table.0)?;
    }
    match (patterns, schema, table) {
        (patterns, None, None) => Ok(patterns),
        (None, Some(schema), Some(table)) => Ok(stands(tables::of_table(&schema.0, &table.0))),
        (None, Some(schema), None) => Ok(stands(tables::of_schema(&schema.0))),
        (None, None, Some(table)) => Ok(stands(NamePattern::exactly(&table.0).to_string())),
        (Some(_), ..) => Err(Error::TablesTwice),
    }
}

/// Waits until changes are captured, so that none that is committed after the subscription is missed.
///
/// Capture begins when the transactions that have an xid by now have ended; one of them cannot wait for it.
pub fn require_capture() -> Result<(), Error> {
    // SAFETY: reads the state of the present transaction.
    let has_xid = unsafe { pg_sys::GetTopTransactionIdIfAny() != pg_sys::InvalidTransactionId };
    if !gucs::preloaded() {
        return Err(Error::NotPreloaded);
    }
    match session::await_capture(if has_xid { Duration::ZERO } else { PATIENCE }, notice_of_waiting) {
        Ok(()) => Ok(()),
        Err(not_ready) if let Some(lack) = not_ready.lack() => Err(match lack {
            Lack::Workers => Error::TooFewWorkers,
            Lack::Slots => Error::TooFewSlots,
        }),
        Err(not_ready) if has_xid => Err(Error::NotReadyHere(not_ready.to_string())),
        Err(not_ready) => {
            Err(Error::NotReady(match not_ready.is_of_transactions().then(oldest_transaction).flatten() {
                Some((who, _)) => format!("{not_ready}, such as {who}"),
                None => not_ready.to_string(),
            }))
        }
    }
}

/// Says what a session waits for, and what to do.
fn notice_of_waiting(not_ready: NotReady) {
    let notice = Notice::new("waiting until changes of this database are captured");
    let blocker = not_ready.is_of_transactions().then(oldest_transaction).flatten();
    match blocker {
        Some((who, cure)) => notice
            .detail(format!("{not_ready}. The oldest is {who}."))
            .hint(format!("End it in its application, or: {cure}")),
        None => notice
            .detail(format!("{not_ready}."))
            .hint("SELECT check_name, detail, hint FROM pgwh.health() WHERE NOT ok; says what is missing."),
    }
    .report();
}

/// The oldest transaction that a new slot waits for, and how to end it. Reads only: an xid of ours would keep the slot from being
/// made.
fn oldest_transaction() -> Option<(String, String)> {
    let found = as_owner(|| {
        Ok(Spi::connect(|client| {
            let rows = client.select("SELECT who, next_step FROM pgwh.oldest_transaction()", Some(1), &[])?;
            let Some(row) = rows.into_iter().next() else { return Ok(None) };
            Ok::<_, pgrx::spi::Error>(row.text(1)?.zip(row.text(2)?))
        })?)
    });
    found.unwrap_or_default()
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
                encoding::argument(wanted.url.as_str()),
                encoding::array(&wanted.tables),
                encoding::argument(wanted.filter.as_deref().unwrap_or_default()),
            ],
        )?;
        if rows.is_empty() { Ok(None) } else { rows.first().text(1) }
    })?)
}

fn owner_of(id: i64) -> Result<String, Error> {
    let owner = Spi::connect(|client| {
        let rows = client.select(
            "SELECT owner FROM pgwh.subscriptions WHERE id OPERATOR(pg_catalog.=) $1",
            Some(1),
            &[id.into()],
        )?;
        if rows.is_empty() { Ok(None) } else { rows.first().text(1) }
    })?;
    Ok(owner.unwrap_or_default())
}

/// Whether the present role is the one of that name, and not just a member of it or a superuser.
pub fn is_present_role(owner: &str) -> bool {
    own_name() == owner
}

/// Tells whoever changes another role's subscription that its owner gets what is given to it.
pub fn notice_other_owner(name: &str, owner: &str) {
    Notice::new(format!("subscription \"{name}\" belongs to role \"{owner}\""))
        .detail(format!(
            "Role \"{owner}\" can read the signing key, send its headers to another URL, and change the subscription."
        ))
        .hint(format!(
            "To take it over: UPDATE pgwh.subscriptions SET owner = current_user WHERE name = '{}'; \
             Then change its key and headers, which that role may know.",
            name.replace('\'', "''")
        ))
        .report();
}

fn store(wanted: Subscription, enabled: bool) -> Result<i64, Error> {
    let row: Vec<(&str, DatumWithOid<'_>)> = vec![
        ("name", encoding::argument(wanted.name)),
        ("url", encoding::argument(wanted.url)),
        ("tables", encoding::array(&wanted.tables)),
        ("event_types", encoding::array(&wanted.event_types)),
        ("filter", encoding::optional(wanted.filter)),
        ("changed", encoding::optional_array(wanted.changed.as_deref())),
        ("columns", encoding::optional_array(wanted.columns.as_deref())),
        ("exclude_columns", encoding::optional_array(wanted.exclude_columns.as_deref())),
        ("transform", encoding::optional(wanted.transform)),
        ("route", encoding::optional(wanted.route)),
        ("format", wanted.format.word().into()),
        // The row has signs in the place of values that nobody is to see, and so has the statement that writes it.
        ("headers", headers::hide(wanted.headers)?.into()),
        ("batch_size", wanted.batch_size.into()),
        ("batch_wait", wanted.batch_wait.into()),
        ("ordering", encoding::argument(wanted.ordering)),
        ("key_columns", encoding::optional_array(wanted.key_columns.as_deref())),
        ("timeout", wanted.timeout.into()),
        ("max_in_flight", wanted.max_in_flight.into()),
        ("rate_limit", wanted.rate_limit.into()),
        ("retry_schedule", wanted.retry_schedule.into()),
        ("retention", wanted.retention.into()),
        ("compress", encoding::optional(wanted.compress)),
        ("origin", encoding::argument(wanted.origin)),
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
fn unsubscribe(name: Option<Text>) -> Result<i64, ErrorReport> {
    preconditions::changes()?;
    let id = id_of(name.clone())?;
    let pending = match session::standing(id, |figures, _| figures.pending as i64) {
        Some(pending) => pending,
        None => pending_in_journal(id)?,
    };
    Spi::run_with_args("DELETE FROM pgwh.subscriptions WHERE id OPERATOR(pg_catalog.=) $1", &[id.into()])
        .map_err(Error::from)?;
    let name = String::from(name.unwrap_or_default());
    if !sees_everything() {
        Notice::new(format!("deliveries of subscription \"{name}\" are no longer shown to role \"{}\"", own_name()))
            .detail("The views show a role the deliveries, attempts and dead letters of its subscriptions; those of a subscription that is gone are shown to superusers until pgwh.retention has passed.")
            .hint("To end deliveries and keep their history visible, disable a subscription instead: UPDATE pgwh.subscriptions SET enabled = false WHERE name = '...';")
            .report();
    }
    Ok(pending)
}

/// How many events of a subscription are pending, as the journal has it.
fn pending_in_journal(id: i64) -> Result<i64, Error> {
    let count = as_owner(|| {
        let query = "SELECT count(*) FROM pgwh_internal.pending_deliveries() WHERE subscription_id = $1";
        Ok(Spi::connect(|client| client.select(query, Some(1), &[id.into()])?.first().get_one::<i64>())?)
    })?;
    Ok(count.unwrap_or_default())
}
