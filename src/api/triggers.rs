//! The triggers that make plain SQL on our tables as good as the functions.

use pgrx::datum::Interval;
use pgrx::datum::datetime_support::transaction_timestamp;
use pgrx::pg_sys::panic::{ErrorReport, ErrorReportable};
use pgrx::prelude::*;
use pgrx::{AllocatedByRust, JsonB};

use super::conditions::Conditions;
use super::subscribe::require_capture;
use super::subscription::{Known, Texts, Wish};
use crate::error::Error;
use crate::send::signature::SigningKey;

type Tuple<'a> = PgHeapTuple<'a, AllocatedByRust>;

/// BEFORE INSERT ON pgwh.subscriptions, once a statement: waits for capture while the transaction has no xid, which
/// the new row's identity will give it. What then still stands in the way is judged row by row.
#[pg_trigger(sql = false)]
fn await_capture<'a>(_trigger: &'a PgTrigger<'a>) -> Result<Option<Tuple<'a>>, Error> {
    let _ = require_capture();
    Ok(None)
}

/// AFTER UPDATE ON pgwh.secrets: touches the subscription, whose change is what the dispatcher hears of.
#[pg_trigger(sql = false)]
fn tell_of_secret<'a>(trigger: &'a PgTrigger<'a>) -> Result<Option<Tuple<'a>>, Error> {
    let id = trigger.new().map(|row| row.get_by_name::<i64>("subscription_id")).transpose()?.flatten();
    Spi::run_with_args(
        "UPDATE pgwh.subscriptions SET updated_at = pg_catalog.now() WHERE id OPERATOR(pg_catalog.=) $1",
        &[id.into()],
    )?;
    Ok(None)
}

/// BEFORE INSERT OR UPDATE ON pgwh.subscriptions: checks the row and stores it in one spelling.
#[pg_trigger(sql = false)]
fn check_subscription<'a>(trigger: &'a PgTrigger<'a>) -> Result<Option<Tuple<'a>>, Error> {
    let checked = checked_subscription(trigger).map_err(ErrorReport::from);
    Ok(Some(checked.unwrap_or_report()))
}

fn checked_subscription<'a>(trigger: &'a PgTrigger<'a>) -> Result<Tuple<'a>, Error> {
    // What a BEFORE trigger calls new is the row as it is to be written.
    let mut new =
        trigger.new().ok_or_else(|| Error::Internal("a trigger has no row".to_owned()))?.into_owned();
    let home = home()?;
    let is_copy = |row_home: Option<String>| row_home.is_some_and(|row_home| row_home != home);
    // A restored row stays as it is: its tables may be gone, its owner unknown, and it is held in any case.
    if is_copy(new.get_by_name::<String>("home")?) {
        return Ok(new);
    }
    let old = trigger.old();
    let mut known = Known::default();
    let mut old_owner = None;
    let mut was_live = false;
    if let Some(old) = &old {
        new.set_by_name("updated_at", transaction_timestamp())?;
        // What comes from a copy was not checked here.
        if !is_copy(old.get_by_name::<String>("home")?) {
            old_owner = old.get_by_name::<String>("owner")?;
            was_live = old.get_by_name::<bool>("enabled")?.unwrap_or_default();
            known.url = old.get_by_name::<String>("url")?;
            known.tables = texts(old, "tables")?.unwrap_or_default().into_iter().flatten().collect();
            for column in ["columns", "exclude_columns"] {
                known.columns.extend(texts(old, column)?.unwrap_or_default().into_iter().flatten());
            }
            known.conditions = was_live.then(|| conditions_of(old)).transpose()?;
        }
    }
    let wish = Wish {
        name: new.get_by_name::<String>("name")?,
        url: new.get_by_name::<String>("url")?,
        tables: texts(&new, "tables")?,
        event_types: texts(&new, "event_types")?,
        filter: new.get_by_name::<String>("filter")?,
        changed: texts(&new, "changed")?,
        columns: texts(&new, "columns")?,
        exclude_columns: texts(&new, "exclude_columns")?,
        format: new.get_by_name::<String>("format")?,
        headers: new.get_by_name::<JsonB>("headers")?,
        batch_size: new.get_by_name::<i32>("batch_size")?,
        batch_wait: new.get_by_name::<Interval>("batch_wait")?,
        ordering: new.get_by_name::<String>("ordering")?,
        key_columns: texts(&new, "key_columns")?,
        timeout: new.get_by_name::<Interval>("timeout")?,
        max_in_flight: new.get_by_name::<i32>("max_in_flight")?,
        rate_limit: new.get_by_name::<i32>("rate_limit")?,
        retry_schedule: new
            .get_by_name::<Array<'_, Interval>>("retry_schedule")?
            .map(|array| array.iter().collect()),
        retention: new.get_by_name::<Interval>("retention")?,
    };
    let subscription = wish.check(&known)?;
    let owner = new.get_by_name::<String>("owner")?;
    if owner != old_owner {
        check_owner(owner)?;
    }
    let enabled = new.get_by_name::<bool>("enabled")?.unwrap_or(true);
    if enabled && !was_live {
        require_capture()?;
    }
    if enabled {
        new.set_by_name("disabled_reason", None::<String>)?;
    }
    let paused = new.get_by_name::<bool>("paused")?.unwrap_or_default();
    new.set_by_name("enabled", enabled)?;
    new.set_by_name("paused", paused)?;
    new.set_by_name("name", subscription.name)?;
    new.set_by_name("url", subscription.url)?;
    new.set_by_name("tables", subscription.tables)?;
    new.set_by_name("event_types", subscription.event_types)?;
    new.set_by_name("filter", subscription.filter)?;
    new.set_by_name("changed", subscription.changed)?;
    new.set_by_name("columns", subscription.columns)?;
    new.set_by_name("exclude_columns", subscription.exclude_columns)?;
    new.set_by_name("format", subscription.format.word())?;
    new.set_by_name("headers", subscription.headers)?;
    new.set_by_name("batch_size", subscription.batch_size)?;
    new.set_by_name("batch_wait", subscription.batch_wait)?;
    new.set_by_name("ordering", subscription.ordering)?;
    new.set_by_name("key_columns", subscription.key_columns)?;
    new.set_by_name("timeout", subscription.timeout)?;
    new.set_by_name("max_in_flight", subscription.max_in_flight)?;
    new.set_by_name("rate_limit", subscription.rate_limit)?;
    new.set_by_name("retry_schedule", subscription.retry_schedule)?;
    new.set_by_name("retention", subscription.retention)?;
    Ok(new)
}

/// What a row that was checked before says of rows and columns.
fn conditions_of<A: WhoAllocated>(row: &PgHeapTuple<'_, A>) -> Result<Conditions, Error> {
    let stored =
        |column| Ok::<_, Error>(texts(row, column)?.map(|texts| texts.into_iter().flatten().collect()));
    Ok(Conditions {
        tables: stored("tables")?.unwrap_or_default(),
        event_types: stored("event_types")?.unwrap_or_default(),
        filter: row.get_by_name::<String>("filter")?,
        changed: stored("changed")?,
        key_columns: stored("key_columns")?,
    })
}

fn texts<A: WhoAllocated>(row: &PgHeapTuple<'_, A>, column: &str) -> Result<Option<Texts>, Error> {
    let array = row.get_by_name::<Array<'_, &str>>(column)?;
    Ok(array.map(|array| array.iter().map(|text| text.map(str::to_owned)).collect()))
}

/// AFTER INSERT OR UPDATE OF home ON pgwh.subscriptions: a signing key for a subscription that has none.
#[pg_trigger(sql = false)]
fn provide_secret<'a>(trigger: &'a PgTrigger<'a>) -> Result<Option<Tuple<'a>>, Error> {
    provided_secret(trigger).map_err(ErrorReport::from).unwrap_or_report();
    Ok(None)
}

fn provided_secret(trigger: &PgTrigger<'_>) -> Result<(), Error> {
    let id = trigger.new().map(|row| row.get_by_name::<i64>("id")).transpose()?.flatten();
    Ok(Spi::run_with_args(
        "INSERT INTO pgwh.secrets (subscription_id) VALUES ($1) ON CONFLICT DO NOTHING",
        &[id.into()],
    )?)
}

/// BEFORE INSERT OR UPDATE ON pgwh.secrets: refuses what can't sign.
#[pg_trigger(sql = false)]
fn check_secret<'a>(trigger: &'a PgTrigger<'a>) -> Result<Option<Tuple<'a>>, Error> {
    let checked = checked_secret(trigger).map_err(ErrorReport::from);
    Ok(Some(checked.unwrap_or_report()))
}

fn checked_secret<'a>(trigger: &'a PgTrigger<'a>) -> Result<Tuple<'a>, Error> {
    let new = trigger.new().ok_or_else(|| Error::Internal("a trigger has no row".to_owned()))?.into_owned();
    for column in ["secret", "previous_secret"] {
        if let Some(secret) = new.get_by_name::<String>(column)? {
            SigningKey::parse(&secret)?;
        }
    }
    Ok(new)
}

/// Where we are, see `pgwh.home()`.
fn home() -> Result<String, Error> {
    Spi::connect(|client| client.select("SELECT pgwh.home()", Some(1), &[])?.first().get_one::<String>())?
        .ok_or_else(|| Error::Internal("pgwh.installation has no row".to_owned()))
}

/// A subscription is given to nobody whom the user can't act as.
fn check_owner(owner: Option<String>) -> Result<(), Error> {
    let owner = owner.ok_or(Error::Missing("owner"))?;
    let Ok(name) = std::ffi::CString::new(owner.as_str()) else { return Err(Error::Owner(owner)) };
    // SAFETY: syscache look-ups in a transaction.
    let may = unsafe {
        let role = pg_sys::get_role_oid(name.as_ptr(), true);
        role != pg_sys::InvalidOid && pg_sys::is_member_of_role(pg_sys::GetUserId(), role)
    };
    if may { Ok(()) } else { Err(Error::Owner(owner)) }
}
