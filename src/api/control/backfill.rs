//! `pgwh.backfill`, and what may be done with a backfill under way.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::api::authorization::own_name;
use crate::api::authorization::{as_owner, with_plain_names};
use crate::api::command_queue::refused;
use crate::api::command_queue::tell;
use crate::api::inspect::unmatched;
use crate::api::lookup::is_own;
use crate::api::lookup::owned;
use crate::api::lookup::state_of_own;
use crate::api::preconditions;
use crate::api::subscriptions::filter_check::{Conditions, FilterSource, columns_of_table};
use crate::api::subscriptions::privileges::Claim;
use crate::api::subscriptions::suggest::near;
use crate::api::subscriptions::tables;
use crate::decode::read_order::Unreadable;
use crate::decode::routing::router::Grantee;
use crate::decode::{citus, read_order};
use crate::error::{Error, LEAVE_OUT, NotReadable};
use crate::journal;
use crate::journal::{BackfillTable, CommandKind};
use crate::pg::command::notice::Notice;
use crate::pg::values::encoding;
use crate::pg::values::encoding::{Text, Texts as _};

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

impl Wanted {
    /// Whether it is of one table, and its partitions, and not of all that match.
    fn names_one_table(&self) -> bool {
        self.tables.len() == 1 && !self.tables[0].contains('*')
    }
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
    preconditions::changes()?;
    let subscription = owned(name)?;
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
        Some(table) => tables::normalise(&[table.into()], &[]).map_err(|error| error.about("table_name"))?,
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
    let left_out = check(subscription, wanted)?;
    let stored = as_owner(|| {
        Ok(Spi::connect_mut(|client| {
            client
            .update(
                "INSERT INTO pgwh_internal.backfill_requests
                   (subscription_id, subscription, tables, filter, order_by, start, chunk_size)
                 SELECT id, name, $2, $3, $4, $5, $6 FROM pgwh.subscriptions WHERE id OPERATOR(pg_catalog.=) $1
                 RETURNING backfill_requests.id",
                None,
                &[
                    subscription.into(),
                    encoding::array(&wanted.tables),
                    encoding::optional(wanted.filter.as_deref()),
                    encoding::optional(wanted.order_by.as_deref()),
                    encoding::optional(wanted.start.as_deref()),
                    wanted.chunk_size.into(),
                ],
            )?
            .first()
            .get_one::<i64>()
        })?)
    })?;
    let backfill = stored.ok_or_else(|| Error::Internal("storing a backfill gave no id".to_owned()))?;
    note_left_out(backfill, &left_out)?;
    tell(CommandKind::Backfill { backfill })?;
    Ok(backfill)
}

fn tables_of_subscription(id: i64) -> Result<Vec<String>, Error> {
    const QUERY: &str = "SELECT tables FROM pgwh.subscriptions WHERE id OPERATOR(pg_catalog.=) $1";
    let tables = Spi::connect(|client| match client.select(QUERY, Some(1), &[id.into()])?.next() {
        Some(row) => row.texts(1),
        None => Ok(None),
    });
    Ok(tables?.unwrap_or_default())
}

/// A table that is left out of a backfill.
struct LeftOut {
    table: pg_sys::Oid,
    name: String,
    /// Why.
    reason: String,
    /// What to do about it.
    hint: String,
}

/// Notes which tables are not read, and says so.
fn note_left_out(backfill: i64, left_out: &[LeftOut]) -> Result<(), Error> {
    if left_out.is_empty() {
        return Ok(());
    }
    for LeftOut { table, name, reason, .. } in left_out {
        as_owner(|| {
            Ok(Spi::run_with_args(
                "INSERT INTO pgwh_internal.backfill_tables (backfill_id, relation, table_name, left_out, done)
                 VALUES ($1, $2, $3, $4, true)",
                &[
                    backfill.into(),
                    (*table).into(),
                    encoding::argument(name.as_str()),
                    encoding::argument(reason.as_str()),
                ],
            )?)
        })?;
    }
    let list = |part: fn(&LeftOut) -> &str| left_out.iter().map(part).collect::<Vec<_>>();
    Notice::new(format!(
        "backfill {backfill} leaves out tables that cannot be read: {}",
        list(|it| &it.name).join(", ")
    ))
    .detail(list(|it| &it.reason).join(" "))
    .hint(list(|it| &it.hint).join(" "))
    .report();
    Ok(())
}

/// Refuses a backfill of which nothing can be read, or not the one table that it names. Of several tables returns those that
/// cannot be read. Tables that come later are judged when they are come to.
fn check(subscription: i64, wanted: &Wanted) -> Result<Vec<LeftOut>, Error> {
    let (subscribed, grantee) = reader_of(subscription)?;
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
            "SELECT name, tables FROM pgwh.subscriptions; shows what each is about: backfill such a table, or subscribe to this one first.",
        ));
    }
    if tables.is_empty() {
        unmatched::warning(
            "there is no table to backfill",
            &format!("No table that the subscription is about matches {}.", wanted.tables.join(", ")),
            "The backfill fails and says so in SELECT id, state, reason FROM pgwh.backfills; resume it when there is a table.",
        );
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
    let (mut left_out, mut unreadable) = (Vec::new(), Vec::new());
    for table in &tables {
        let is_named = wanted.names_one_table();
        let judge = || {
            check_order(table, wanted)?;
            // Of several, one without rows needs no order.
            if is_named || !read_order::is_empty(table.oid) {
                check_table(table, wanted)?;
            }
            claim.check_table(table.oid)
        };
        // Of several, one that another session has locked is judged when it is come to.
        let judged = if is_named { judge() } else { if_free(table.oid, judge).unwrap_or(Ok(())) };
        match judged {
            Ok(()) => {}
            // Of the parts of a table all that cannot be read are named at once.
            Err(Error::NotReadable(more)) if wanted.names_one_table() => unreadable.extend(more),
            // The error of one that is named, or of the first when none can be read.
            Err(error) if wanted.names_one_table() || left_out.len() + 1 == tables.len() => {
                return Err(left_out.into_iter().next().map_or(error, |(first, _): (Error, LeftOut)| first));
            }
            Err(error) => {
                let (detail, hint) = error.detail_and_hint();
                let (table, name) = (table.oid, table.name.clone());
                left_out.push((error, LeftOut { table, name, reason: detail, hint }));
            }
        }
    }
    if !unreadable.is_empty() {
        return Err(Error::NotReadable(unreadable));
    }
    Conditions { key_columns: None, ..conditions }.check(FilterSource::Session)?;
    Ok(left_out.into_iter().map(|(_, left_out)| left_out).collect())
}

/// Why a backfill of a table, or of all tables of a subscription, would be refused; none when it would not. Waits for no lock.
#[pg_extern(sql = false)]
fn backfill_problem(
    subscription_id: Option<i64>,
    table_name: Option<Text>,
) -> Result<Option<Text>, ErrorReport> {
    let Some(subscription) = subscription_id else { return Ok(None) };
    Ok(problem(subscription, table_name.map(String::from))?.map(Text::from))
}

fn problem(subscription: i64, table_name: Option<String>) -> Result<Option<String>, Error> {
    let tables = match table_name {
        Some(table) => vec![table],
        None => tables_of_subscription(subscription)?,
    };
    let wanted = Wanted { tables, filter: None, order_by: None, start: None, chunk_size: None };
    let (subscribed, grantee) = reader_of(subscription)?;
    let tables = with_plain_names(|| {
        Ok(Spi::connect(|client| journal::tables_of(client, &wanted.tables, &subscribed))?)
    })?;
    let conditions = Conditions {
        tables: wanted.tables.clone(),
        event_types: vec!["insert".to_owned()],
        ..Conditions::default()
    };
    let claim = Claim::new(grantee.owner, conditions, grantee.columns, grantee.exclude_columns);
    let mut problem = tables
        .is_empty()
        .then(|| format!("the subscription is not about a table {}", wanted.tables.join(", ")))
        .filter(|_| !wanted.tables.iter().any(|table| table.contains('*')));
    for table in &tables {
        let judge = || check_table(table, &wanted).and_then(|()| claim.check_table(table.oid));
        let Some(judged) = if_free(table.oid, judge) else { return Ok(None) };
        match judged {
            Ok(()) if wanted.names_one_table() => {}
            Ok(()) => return Ok(None),
            Err(error) => problem = problem.or_else(|| Some(error.in_one_line())),
        }
    }
    Ok(problem)
}

/// Looks at a table under a brief lock; none when another session has locked it.
fn if_free<T>(table: pg_sys::Oid, look: impl FnOnce() -> T) -> Option<T> {
    let share = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
    // SAFETY: in a transaction; what is locked is unlocked, or by the end of the transaction.
    unsafe {
        if !pg_sys::ConditionalLockRelationOid(table, share) {
            return None;
        }
        let found = look();
        pg_sys::UnlockRelationOid(table, share);
        Some(found)
    }
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
        let Some(row) = rows.into_iter().next() else { return Ok(Default::default()) };
        let grantee = Grantee {
            owner: row.text(2)?.unwrap_or_default(),
            columns: row.texts(3)?,
            exclude_columns: row.texts(4)?,
            key_columns: row.texts(5)?,
        };
        Ok::<_, pgrx::spi::Error>((row.texts(1)?.unwrap_or_default(), grantee))
    })?)
}

/// Refuses a column to read in the order of that the table does not have, whatever else is wrong with the table.
fn check_order(table: &BackfillTable, wanted: &Wanted) -> Result<(), Error> {
    let Some(column) = &wanted.order_by else { return Ok(()) };
    let columns = columns_of_table(table.oid);
    match columns.contains(column) {
        true => Ok(()),
        false => Err(Error::NoColumnHere {
            argument: "order_by",
            column: column.clone(),
            table: table.name.clone(),
            near: near(column, columns),
        }),
    }
}

/// Refuses a table that cannot be read chunk by chunk.
fn check_table(table: &BackfillTable, wanted: &Wanted) -> Result<(), Error> {
    if as_owner(|| Ok(citus::has(table.oid)?))? {
        return Err(refused(
            format!("rows of table {} cannot be read from this node", table.name),
            format!("{}.", sentence(citus::ELSEWHERE)),
            sentence(LEAVE_OUT),
        ));
    }
    match read_order::unreadable(table.oid, wanted.order_by.as_deref(), wanted.start.as_deref()) {
        Some(Unreadable { reason, remedy }) => {
            Err(Error::NotReadable(vec![NotReadable { table: table.name.clone(), reason, remedy }]))
        }
        None => Ok(()),
    }
}

/// The text with a capital letter.
fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect()
}

/// Closes a gap whose rows no backfill can send, or need not.
#[pg_extern(sql = false)]
fn acknowledge_gap(id: Option<i64>) -> Result<(), ErrorReport> {
    preconditions::changes()?;
    let id = id.ok_or(Error::Missing("id"))?;
    let found = as_owner(|| {
        Ok(Spi::connect(|client| {
            let query = "SELECT subscription_id, to_lsn IS NULL FROM pgwh.gaps WHERE id = $1";
            let rows = client.select(query, Some(1), &[id.into()])?;
            if rows.is_empty() { Ok(None) } else { rows.first().get_two::<i64, bool>().map(Some) }
        })?)
    })?;
    match found {
        Some((Some(subscription), Some(is_open))) if is_own(subscription)? => {
            if is_open {
                return Err(refused(
                    "this gap is not over",
                    format!("Changes are still missed in gap {id}."),
                    format!("SELECT next_step FROM pgwh.open_gaps WHERE id = {id}; says what ends it."),
                )
                .into());
            }
        }
        _ => {
            return Err(refused(
                "there is no such gap",
                format!("There is no gap {id}."),
                "SELECT id, name, table_name, reason FROM pgwh.open_gaps; shows those that there are.",
            )
            .into());
        }
    }
    let role = own_name();
    as_owner(|| {
        Ok(Spi::run_with_args(
            "UPDATE pgwh.gaps SET acknowledged_at = clock_timestamp(), acknowledged_by = $2
             WHERE id = $1 AND acknowledged_at IS NULL",
            &[id.into(), encoding::argument(role)],
        )?)
    })?;
    Ok(())
}

/// Reads no more of a backfill for now.
#[pg_extern(sql = false)]
fn pause_backfill(id: Option<i64>) -> Result<(), ErrorReport> {
    preconditions::changes()?;
    let backfill = require(id, &["waiting", "running", "paused"])?;
    Ok(tell(CommandKind::PauseBackfill { backfill })?)
}

/// Goes on with a backfill that is paused or has failed.
#[pg_extern(sql = false)]
fn resume_backfill(id: Option<i64>) -> Result<(), ErrorReport> {
    preconditions::changes()?;
    let backfill = require(id, &["waiting", "running", "paused", "failed"])?;
    Ok(tell(CommandKind::ResumeBackfill { backfill })?)
}

/// Ends a backfill.
#[pg_extern(sql = false)]
fn cancel_backfill(id: Option<i64>) -> Result<(), ErrorReport> {
    preconditions::changes()?;
    let backfill = require(id, &["waiting", "running", "paused", "failed"])?;
    Ok(tell(CommandKind::CancelBackfill { backfill })?)
}

/// The id of a backfill that is in one of these states.
fn require(id: Option<i64>, states: &[&str]) -> Result<i64, Error> {
    let id = id.ok_or(Error::Missing("id"))?;
    let state = state_of_own("pgwh_internal.backfill_requests", id)?;
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
