//! `pgwh.backfill`, and what may be done with a backfill under way.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::acting::{as_owner, owns, with_plain_names};
use super::again::{refused, state_of_own, tell};
use super::conditions::Conditions;
use super::gate;
use super::permission::Claim;
use super::subscribe::id_of;
use super::tables;
use crate::decode::citus;
use crate::decode::read_order::{self, Unreadable};
use crate::decode::route::Grantee;
use crate::decode::text::{self, Text, Texts as _};
use crate::error::Error;
use crate::journal::{self, BackfillTable, CommandKind};

/// Limits of `chunk_size`.
const CHUNK_SIZE: std::ops::RangeInclusive<i32> = 1..=100_000;

/// What somebody wants to be read.
struct Wanted {
    /// Patterns in their stored spelling.
    tables: Vec<String>,
    filter: Option<String>,
    order_by: Option<String>,
    start: Option<String>,
    chunk_size: Option<i32>,
}

/// Sends the rows that there are; returns the backfill's id.
#[pg_extern(sql = false)]
fn backfill(
    name: Option<Text>,
    table_name: Option<Text>,
    filter: Option<Text>,
    order_by: Option<Text>,
    start: Option<Text>,
    chunk_size: Option<i32>,
) -> Result<i64, ErrorReport> {
    gate::changes()?;
    let subscription = id_of(name)?;
    if let Some(size) = chunk_size.filter(|size| !CHUNK_SIZE.contains(size)) {
        return Err(Error::OutOfRange {
            what: "chunk_size",
            value: size.to_string(),
            range: "from 1 to 100000",
            example: "chunk_size => 1000",
        }
        .into());
    }
    if start.is_some() && order_by.is_none() {
        return Err(refused(
            "start needs order_by",
            "\"start\" is the least value of a column, and no column is named.",
            "For example: order_by => 'created_at', start => '2026-01-01'",
        )
        .into());
    }
    let tables = match table_name {
        Some(table) => tables::normalise(&[table.into()], &[])?,
        None => tables_of_subscription(subscription)?,
    };
    let [filter, order_by, start] = [filter, order_by, start].map(|text| text.map(String::from));
    let wanted = Wanted { tables, filter, order_by, start, chunk_size };
    Ok(begin(subscription, &wanted)?)
}

/// Sends all rows of a subscription's tables.
pub fn begin_all(subscription: i64) -> Result<i64, Error> {
    let tables = tables_of_subscription(subscription)?;
    begin(subscription, &Wanted { tables, filter: None, order_by: None, start: None, chunk_size: None })
}

fn begin(subscription: i64, wanted: &Wanted) -> Result<i64, Error> {
    check(subscription, wanted)?;
    let stored = as_owner(|| {
        Ok(Spi::connect_mut(|client| {
            client
            .update(
                "INSERT INTO pgwh.backfill_requests
                   (subscription_id, subscription, tables, filter, order_by, start, chunk_size)
                 SELECT id, name, $2, $3, $4, $5, $6 FROM pgwh.subscriptions WHERE id OPERATOR(pg_catalog.=) $1
                 RETURNING backfill_requests.id",
                None,
                &[
                    subscription.into(),
                    text::array(&wanted.tables),
                    text::optional(wanted.filter.as_deref()),
                    text::optional(wanted.order_by.as_deref()),
                    text::optional(wanted.start.as_deref()),
                    wanted.chunk_size.into(),
                ],
            )?
            .first()
            .get_one::<i64>()
        })?)
    })?;
    let backfill = stored.ok_or_else(|| Error::Internal("storing a backfill gave no id".to_owned()))?;
    tell(CommandKind::Backfill { backfill })?;
    Ok(backfill)
}

fn tables_of_subscription(id: i64) -> Result<Vec<String>, Error> {
    let tables = Spi::get_one_with_args::<Vec<Text>>(
        "SELECT tables FROM pgwh.subscriptions WHERE id OPERATOR(pg_catalog.=) $1",
        &[id.into()],
    )?;
    Ok(tables.map(text::strings).unwrap_or_default())
}

/// Refuses what could not be read. Tables that come later are judged when they are come to.
fn check(subscription: i64, wanted: &Wanted) -> Result<(), Error> {
    let (subscribed, grantee) = reader_of(subscription)?;
    require_owner(&grantee.owner)?;
    let tables = with_plain_names(|| {
        Ok(Spi::connect(|client| journal::tables_of(client, &wanted.tables, &subscribed))?)
    })?;
    if tables.is_empty() && !wanted.tables.iter().any(|table| table.contains('*')) {
        return Err(refused(
            "the subscription is not about this table",
            format!(
                "It is about {}, and the backfill would be of {}.",
                subscribed.join(", "),
                wanted.tables.join(", ")
            ),
            "Backfill a table that it is about, or change its tables: UPDATE pgwh.subscriptions SET tables = '{…}' WHERE …",
        ));
    }
    // As one that gets what is inserted.
    let conditions = Conditions {
        tables: wanted.tables.clone(),
        event_types: vec!["insert".to_owned()],
        filter: wanted.filter.clone(),
        // How far it is shows values of the column that it is ordered by.
        key_columns: wanted
            .order_by
            .iter()
            .cloned()
            .chain(grantee.key_columns.into_iter().flatten())
            .map(Some)
            .collect(),
        ..Conditions::default()
    };
    let claim = Claim::new(grantee.owner, conditions.clone(), grantee.columns, grantee.exclude_columns);
    for table in &tables {
        check_table(table, wanted)?;
        claim.check_table(table.oid)?;
    }
    Conditions { key_columns: None, ..conditions }.check()
}

/// The tables of a subscription, and who must be allowed to read them.
fn reader_of(subscription: i64) -> Result<(Vec<String>, Grantee), Error> {
    Ok(Spi::connect(|client| {
        let rows = client.select(
            "SELECT tables, owner, columns, exclude_columns, key_columns FROM pgwh.subscriptions
             WHERE id OPERATOR(pg_catalog.=) $1",
            Some(1),
            &[subscription.into()],
        )?;
        let row = rows.first();
        let grantee = Grantee {
            owner: row.text(2)?.unwrap_or_default(),
            columns: row.texts(3)?,
            exclude_columns: row.texts(4)?,
            key_columns: row.texts(5)?,
        };
        Ok::<_, pgrx::spi::Error>((row.texts(1)?.unwrap_or_default(), grantee))
    })?)
}

/// Refuses a table that can't be read chunk by chunk.
fn check_table(table: &BackfillTable, wanted: &Wanted) -> Result<(), Error> {
    let leave_out = "leave it out: table_name => 'schema.other_table'";
    if as_owner(|| Ok(citus::has(table.oid)?))? {
        return Err(refused(
            format!("rows of table {} cannot be read from this node", table.name),
            format!("{}.", sentence(citus::ELSEWHERE)),
            sentence(leave_out),
        ));
    }
    match read_order::unreadable(table.oid, wanted.order_by.as_deref(), wanted.start.as_deref()) {
        Some(Unreadable { reason, remedy }) => Err(refused(
            format!("table {} cannot be read row by row", table.name),
            format!("{reason}."),
            remedy.map_or_else(|| sentence(leave_out), |remedy| format!("{remedy} or {leave_out}")),
        )),
        None => Ok(()),
    }
}

/// The text with a capital letter.
fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect()
}

/// Reads no more of a backfill for now.
#[pg_extern(sql = false)]
fn pause_backfill(id: Option<i64>) -> Result<(), ErrorReport> {
    gate::changes()?;
    let backfill = require(id, &["waiting", "running", "paused"])?;
    Ok(tell(CommandKind::PauseBackfill { backfill })?)
}

/// Goes on with a backfill that is paused or has failed.
#[pg_extern(sql = false)]
fn resume_backfill(id: Option<i64>) -> Result<(), ErrorReport> {
    gate::changes()?;
    let backfill = require(id, &["waiting", "running", "paused", "failed"])?;
    Ok(tell(CommandKind::ResumeBackfill { backfill })?)
}

/// Ends a backfill.
#[pg_extern(sql = false)]
fn cancel_backfill(id: Option<i64>) -> Result<(), ErrorReport> {
    gate::changes()?;
    let backfill = require(id, &["waiting", "running", "paused", "failed"])?;
    Ok(tell(CommandKind::CancelBackfill { backfill })?)
}

/// The id of a backfill that is in one of these states.
fn require(id: Option<i64>, states: &[&str]) -> Result<i64, Error> {
    let id = id.ok_or(Error::Missing("id"))?;
    let state = state_of_own("pgwh.backfill_requests", id)?;
    match state {
        Some(state) if states.contains(&state.as_str()) => Ok(id),
        Some(state) => Err(refused(
            "this backfill is over",
            format!("Backfill {id} is {state}."),
            "SELECT id, subscription, state FROM pgwh.backfills; shows those that are not.",
        )),
        None => Err(refused(
            "there is no such backfill",
            format!("There is no backfill {id}."),
            "SELECT id, subscription, state FROM pgwh.backfills; shows those that there are.",
        )),
    }
}

/// What is sent for a subscription is its owner's affair.
fn require_owner(owner: &str) -> Result<(), Error> {
    if owns(owner) { Ok(()) } else { Err(Error::Owner(owner.to_owned())) }
}
