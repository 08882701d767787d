//! The triggers that make plain SQL on our tables as good as the functions.

use pgrx::AllocatedByRust;
use pgrx::datum::Interval;
use pgrx::datum::datetime_support::transaction_timestamp;
use pgrx::pg_sys::panic::{ErrorReport, ErrorReportable};
use pgrx::prelude::*;

use super::filter_check::Conditions;
use super::headers;
use super::privileges::Claim;
use super::subscribe::{is_present_role, notice_other_owner, require_capture};
use super::subscription::{Known, Texts, Wish};
use crate::api::authorization::{as_owner, may_act_as, owns};
use crate::api::install::applied::is_applied;
use crate::api::lookup::is_anothers;
use crate::api::preconditions;
use crate::error::Error;
use crate::journal;
use crate::pg::values::encoding;
use crate::pg::values::encoding::{Text, Texts as _};
use crate::pg::values::jsonb::Jsonb;

type Tuple<'a> = PgHeapTuple<'a, AllocatedByRust>;

/// BEFORE INSERT ON pgwh.subscriptions, once a statement: waits for capture while the transaction has no xid, which
/// the new row's identity will give it. What then still stands in the way is judged row by row.
#[pg_trigger(sql = false)]
fn await_capture<'a>(_trigger: &'a PgTrigger<'a>) -> Result<Option<Tuple<'a>>, Error> {
    if !is_applied() {
        let _ = require_capture();
    }
    Ok(None)
}

/// BEFORE INSERT, UPDATE OR DELETE ON pgwh.subscriptions: checks the row and stores it in one spelling. Only its owner
/// changes or deletes it: who could give it another url would be sent what its headers keep secret.
#[pg_trigger(sql = false)]
fn check_subscription<'a>(trigger: &'a PgTrigger<'a>) -> Result<Option<Tuple<'a>>, Error> {
    let checked = checked_subscription(trigger).map_err(ErrorReport::from);
    Ok(Some(checked.unwrap_or_report()))
}

fn checked_subscription<'a>(trigger: &'a PgTrigger<'a>) -> Result<Tuple<'a>, Error> {
    preconditions::fitting()?;
    if journal::is_unchecked()
        && let Some(row) = trigger.new()
    {
        return Ok(row.into_owned());
    }
    let old = trigger.old();
    if let Some(old) = &old {
        let owner = old.get_by_name::<Text>("owner")?.map(String::from).unwrap_or_default();
        if !owns(&owner) {
            return Err(Error::NotOwner(
                old.get_by_name::<Text>("name")?.map(String::from).unwrap_or_default(),
                owner,
            ));
        }
    }
    // What a BEFORE trigger calls new is the row as it is to be written; one that is deleted has none.
    let Some(new) = trigger.new() else {
        let gone = old.ok_or_else(|| Error::Internal("a trigger has no row".to_owned()))?;
        return Ok(gone.into_owned());
    };
    let mut new = new.into_owned();
    let installed = installed()?;
    // Where only the place is another one, the subscription is held, and otherwise as any.
    let is_copy = |row_home: Option<String>| {
        let is_ours = |home: &str| home.strip_prefix(&*installed).is_some_and(|rest| rest.starts_with('/'));
        row_home.is_some_and(|home| !is_ours(&home))
    };
    // A restored row stays as it is: its tables may be gone, its owner unknown, and it is held in any case.
    if is_copy(new.get_by_name::<Text>("home")?.map(String::from)) {
        if old.is_none() {
            pass_over_id(new.get_by_name::<i64>("id")?.unwrap_or_default())?;
        }
        return Ok(new);
    }
    let mut known = Known::default();
    let mut old_owner = None;
    let mut was_live = false;
    let mut was_claimed = None;
    if let Some(old) = &old {
        new.set_by_name("updated_at", transaction_timestamp())?;
        // What comes from a copy was not checked here.
        if !is_copy(old.get_by_name::<Text>("home")?.map(String::from)) {
            old_owner = old.get_by_name::<Text>("owner")?.map(String::from);
            was_live = old.get_by_name::<bool>("enabled")?.unwrap_or_default();
            known.url = old.get_by_name::<Text>("url")?.map(String::from);
            known.tables = texts(old, "tables")?.unwrap_or_default().into_iter().flatten().collect();
            known.transform = old.get_by_name::<Text>("transform")?.map(String::from);
            known.route = old.get_by_name::<Text>("route")?.map(String::from);
            known.filter = old.get_by_name::<Text>("filter")?.map(String::from);
            for column in ["columns", "exclude_columns"] {
                known.columns.extend(texts(old, column)?.unwrap_or_default().into_iter().flatten());
            }
            known.conditions = was_live.then(|| conditions_of(old)).transpose()?;
            was_claimed = was_live.then(|| claim_of(old)).transpose()?;
        }
    }
    let wish = Wish {
        name: new.get_by_name::<Text>("name")?.map(String::from),
        url: new.get_by_name::<Text>("url")?.map(String::from),
        tables: texts(&new, "tables")?,
        event_types: texts(&new, "event_types")?,
        filter: new.get_by_name::<Text>("filter")?.map(String::from),
        changed: texts(&new, "changed")?,
        columns: texts(&new, "columns")?,
        exclude_columns: texts(&new, "exclude_columns")?,
        transform: new.get_by_name::<Text>("transform")?.map(String::from),
        route: new.get_by_name::<Text>("route")?.map(String::from),
        format: new.get_by_name::<Text>("format")?.map(String::from),
        headers: new.get_by_name::<Jsonb>("headers")?,
        batch_size: new.get_by_name::<i32>("batch_size")?,
        batch_wait: new.get_by_name::<Interval>("batch_wait")?,
        ordering: new.get_by_name::<Text>("ordering")?.map(String::from),
        key_columns: texts(&new, "key_columns")?,
        timeout: new.get_by_name::<Interval>("timeout")?,
        max_in_flight: new.get_by_name::<i32>("max_in_flight")?,
        rate_limit: new.get_by_name::<i32>("rate_limit")?,
        retry_schedule: new
            .get_by_name::<Array<'_, Interval>>("retry_schedule")?
            .map(|array| array.iter().collect()),
        retention: new.get_by_name::<Interval>("retention")?,
        compress: new.get_by_name::<Text>("compress")?.map(String::from),
        origin: new.get_by_name::<Text>("origin")?.map(String::from),
    };
    let subscription = wish.check(&known)?;
    if old.is_none() && is_anothers(&subscription.name)? {
        return Err(Error::NameTaken(subscription.name));
    }
    let owner = new.get_by_name::<Text>("owner")?.map(String::from);
    if let (Some(old), Some(owner)) = (&old, &owner)
        && old.get_by_name::<Text>("owner")?.is_some_and(|before| before.0 == *owner)
        && !is_present_role(owner)
        && old
            .get_by_name::<Jsonb>("headers")?
            .is_none_or(|old| headers::any_new(&subscription.headers, &old))
    {
        notice_other_owner(&subscription.name, owner);
    }
    // A function runs as the owner, whom only who can act as that role may have it run as.
    let new_function = |function: &Option<String>, known| function.is_some() && *function != known;
    let has_new_function = new_function(&subscription.transform, known.transform)
        || new_function(&subscription.route, known.route);
    if owner != old_owner || has_new_function {
        check_owner(owner.clone())?;
    }
    let enabled = new.get_by_name::<bool>("enabled")?.unwrap_or(true);
    if enabled && !was_live {
        require_capture()?;
    }
    let claim = subscription.claim(owner.unwrap_or_default());
    // What a REVOKE has taken away does not stand in the way of changing something else.
    if enabled && was_claimed.as_ref() != Some(&claim) {
        claim.check()?;
    }
    if enabled {
        new.set_by_name("disabled_reason", None::<String>)?;
    }
    let paused = new.get_by_name::<bool>("paused")?.unwrap_or_default();
    new.set_by_name("enabled", enabled)?;
    new.set_by_name("paused", paused)?;
    new.set_by_name("name", Text::from(subscription.name))?;
    new.set_by_name("url", Text::from(subscription.url))?;
    new.set_by_name("tables", encoding::list(&subscription.tables))?;
    new.set_by_name("event_types", encoding::list(&subscription.event_types))?;
    new.set_by_name("filter", subscription.filter.map(Text::from))?;
    new.set_by_name("changed", subscription.changed.as_deref().map(encoding::list))?;
    new.set_by_name("columns", subscription.columns.as_deref().map(encoding::list))?;
    new.set_by_name("exclude_columns", subscription.exclude_columns.as_deref().map(encoding::list))?;
    new.set_by_name("transform", subscription.transform.map(Text::from))?;
    new.set_by_name("route", subscription.route.map(Text::from))?;
    new.set_by_name("format", subscription.format.word())?;
    new.set_by_name("headers", headers::hide(subscription.headers)?)?;
    new.set_by_name("batch_size", subscription.batch_size)?;
    new.set_by_name("batch_wait", subscription.batch_wait)?;
    new.set_by_name("ordering", Text::from(subscription.ordering))?;
    new.set_by_name("key_columns", subscription.key_columns.as_deref().map(encoding::list))?;
    new.set_by_name("timeout", subscription.timeout)?;
    new.set_by_name("max_in_flight", subscription.max_in_flight)?;
    new.set_by_name("rate_limit", subscription.rate_limit)?;
    new.set_by_name("retry_schedule", subscription.retry_schedule)?;
    new.set_by_name("retention", subscription.retention)?;
    new.set_by_name("origin", Text::from(subscription.origin))?;
    new.set_by_name("compress", subscription.compress.map(Text::from))?;
    Ok(new)
}

/// Has new subscriptions get later ids than a restored one: a dump does not have the sequence, which not everybody who dumps
/// may read.
fn pass_over_id(id: i64) -> Result<(), Error> {
    as_owner(|| {
        Ok(Spi::run_with_args(
            "SELECT setval('pgwh.subscriptions_id_seq', $1) FROM pgwh.subscriptions_id_seq s
             WHERE s.last_value < $1 OR s.last_value = $1 AND NOT s.is_called",
            &[id.into()],
        )?)
    })
}

/// What a row that was checked before says of rows and columns.
fn conditions_of<A: WhoAllocated>(row: &PgHeapTuple<'_, A>) -> Result<Conditions, Error> {
    let stored =
        |column| Ok::<_, Error>(texts(row, column)?.map(|texts| texts.into_iter().flatten().collect()));
    Ok(Conditions {
        tables: stored("tables")?.unwrap_or_default(),
        event_types: stored("event_types")?.unwrap_or_default(),
        filter: row.get_by_name::<Text>("filter")?.map(String::from),
        changed: stored("changed")?,
        key_columns: stored("key_columns")?,
    })
}

/// What a row that was checked before reads, and on whose behalf.
fn claim_of<A: WhoAllocated>(row: &PgHeapTuple<'_, A>) -> Result<Claim, Error> {
    let stored =
        |column| Ok::<_, Error>(texts(row, column)?.map(|texts| texts.into_iter().flatten().collect()));
    let owner = String::from(row.get_by_name::<Text>("owner")?.unwrap_or_default());
    Ok(Claim::new(owner, conditions_of(row)?, stored("columns")?, stored("exclude_columns")?))
}

fn texts<A: WhoAllocated>(row: &PgHeapTuple<'_, A>, column: &str) -> Result<Option<Texts>, Error> {
    let array = row.get_by_name::<Array<'_, Text>>(column)?;
    Ok(array.map(|array| array.iter().map(|text| text.map(String::from)).collect()))
}

/// The installation that this is, see `pgwh_internal.installed()`.
fn installed() -> Result<String, Error> {
    Spi::connect(|client| client.select("SELECT pgwh_internal.installed()", Some(1), &[])?.first().text(1))?
        .ok_or_else(|| Error::Internal("pgwh_internal.installation has no row".to_owned()))
}

/// A subscription is given to nobody whom the user cannot act as.
pub fn check_owner(owner: Option<String>) -> Result<(), Error> {
    let owner = owner.ok_or(Error::Missing("owner"))?;
    if may_act_as(&owner) { Ok(()) } else { Err(Error::Owner(owner)) }
}
