//! What the journal's packed rows hold, as SQL shows it.

use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::api::authorization::{Visible, as_owner};
use crate::api::session;
use crate::delivery::DeliveryId;
use crate::error::Error;
use crate::event::format::{Format, RenderContext, Shown, Source};
use crate::event::jsonb::acceptable;
use crate::event::{Action, Timestamp};
use crate::ipc::frame::Item;
use crate::journal::packed::event_chunk::Entry;
use crate::journal::packed::numbers::PackError;
use crate::journal::packed::outcome_chunk::{DROPPED, End, Outcome};
use crate::journal::packed::{event_chunk, outcome_chunk};
use crate::journal::{PendingDeliveries, PendingDelivery};
use crate::pg::values::encoding::{encoded, fits};

/// The events of a chunk.
#[pg_extern(sql = false)]
#[allow(clippy::type_complexity)]
fn unpack_events(
    first_id: i64,
    body: &[u8],
) -> Result<
    TableIterator<
        'static,
        (
            name!(id, String),
            name!(commit_lsn, i64),
            name!(xid, i64),
            name!(ordinal, i64),
            name!(committed_at, TimestampWithTimeZone),
            name!(schema_name, Option<Vec<u8>>),
            name!(table_name, Option<Vec<u8>>),
            name!(action, &'static str),
            name!(payload, Option<Vec<u8>>),
            name!(delivery_ids, Vec<i64>),
            name!(subscription_ids, Vec<i64>),
            name!(error, Option<Vec<u8>>),
            name!(relation, Option<pg_sys::Oid>),
        ),
    >,
    ErrorReport,
> {
    let source = Source { database: database(), ..Source::default() };
    let entries = event_chunk::unpack(DeliveryId(first_id as u64), body).map_err(damaged)?;
    let rows = entries.into_iter().filter_map(move |entry| {
        let (id, transaction) = (entry.item.event_id()?, entry.item.transaction()?);
        let (ids, subscriptions) =
            entry.deliveries().map(|(id, target)| (id.0 as i64, target.subscription)).unzip();
        let about = About::of(&entry, &source)?;
        Some((
            id.to_string(),
            id.commit_lsn.0 as i64,
            i64::from(transaction.xid),
            id.ordinal as i64,
            time(transaction.committed_at)?,
            about.schema,
            about.table,
            about.action.word(),
            about.payload,
            ids,
            subscriptions,
            about.error,
            about.relation,
        ))
    });
    Ok(TableIterator::new(rows))
}

/// What an event is about, in UTF-8; the payload as `jsonb` takes it.
struct About {
    schema: Option<Vec<u8>>,
    table: Option<Vec<u8>>,
    action: Action,
    payload: Option<Vec<u8>>,
    /// In the database's encoding.
    error: Option<Vec<u8>>,
    /// The table's oid.
    relation: Option<pg_sys::Oid>,
}

impl About {
    fn of(entry: &Entry, source: &Source) -> Option<About> {
        let (relation, action, payload, error) = match &entry.item {
            Item::Change { event, .. } => {
                let mut payload = Vec::new();
                let context =
                    RenderContext { source, subscription_id: 0, subscription: "", columns: &Shown::All };
                Format::Pgwh.render_one(&mut payload, event, 0, &context);
                let payload = acceptable(&payload, fits).into_owned();
                (Some(&event.relation), event.action, Some(payload), None)
            }
            Item::Failed { failure, .. } => {
                let error = match failure.sqlstate.as_str() {
                    // Of what is forgotten, which is no error.
                    "00000" => failure.message.clone(),
                    state => format!("{} (SQLSTATE {state})", failure.message),
                };
                (failure.relation.as_ref(), failure.action, None, Some(encoded(&error)))
            }
            _ => return None,
        };
        let name = relation.and_then(|relation| relation.names.first());
        // What is of no schema or of no table has an empty name there.
        let known = |name: &String| (!name.is_empty()).then(|| name.clone().into_bytes());
        Some(About {
            schema: name.and_then(|name| known(&name.schema)),
            table: name.and_then(|name| known(&name.table)),
            action,
            payload,
            error,
            relation: relation.map(|relation| pg_sys::Oid::from(relation.oid)),
        })
    }
}

/// The outcomes of a row.
#[pg_extern(sql = false)]
#[allow(clippy::type_complexity)]
fn unpack_outcomes(
    body: &[u8],
) -> Result<
    TableIterator<
        'static,
        (
            name!(id, i64),
            name!(members, Vec<i64>),
            name!(subscription_id, i64),
            name!(dead, bool),
            name!(event_id, String),
            name!(attempts, i32),
            name!(status_code, Option<i32>),
            name!(error_class, Option<String>),
            name!(error, Option<Vec<u8>>),
            name!(duration_ms, f64),
            name!(committed_at, TimestampWithTimeZone),
            name!(finished_at, TimestampWithTimeZone),
            name!(replay, Option<i64>),
            name!(events, Option<Vec<String>>),
        ),
    >,
    ErrorReport,
> {
    let outcomes = outcome_chunk::unpack(body).map_err(damaged)?;
    let rows = outcomes.into_iter().filter_map(|outcome: Outcome| {
        let members = outcome.members().map(|id| id.0 as i64).collect();
        let events = outcome.replay.map(|_| outcome.events().map(|id| id.to_string()).collect());
        let (dead, status, class, error) = match outcome.end {
            End::Delivered { status } => {
                (false, Some(status).filter(|status| *status != DROPPED), None, None)
            }
            End::Dead { status, class, reason } => {
                (true, status, Some(class).filter(|class| !class.is_empty()), Some(encoded(&reason)))
            }
        };
        Some((
            outcome.id.0 as i64,
            members,
            outcome.subscription,
            dead,
            outcome.event.to_string(),
            outcome.attempts as i32,
            status.map(i32::from),
            class,
            error,
            outcome.duration.as_micros() as f64 / 1000.0,
            time(outcome.committed_at)?,
            time(outcome.finished_at)?,
            outcome.replay,
            events,
        ))
    });
    Ok(TableIterator::new(rows))
}

/// The deliveries that are not done, as a new start would find them.
#[pg_extern(sql = false)]
#[allow(clippy::type_complexity)]
fn pending_deliveries() -> Result<
    TableIterator<
        'static,
        (
            name!(id, i64),
            name!(subscription_id, i64),
            name!(event_id, String),
            name!(attempts, i32),
            name!(next_attempt_at, Option<TimestampWithTimeZone>),
            name!(committed_at, TimestampWithTimeZone),
        ),
    >,
    ErrorReport,
> {
    let visible = Visible::now()?;
    let own = || {
        let pending = PendingDeliveries::read()?.filter(|pending| visible.has(pending.subscription));
        Ok(pending.collect::<Vec<_>>())
    };
    // One by one, where nothing has to be judged.
    let pending: Box<dyn Iterator<Item = PendingDelivery>> = match &visible {
        Visible::All => Box::new(PendingDeliveries::read().map_err(Error::from)?),
        Visible::Only(_) => Box::new(as_owner(own)?.into_iter()),
    };
    let rows =
        pending.filter_map(|PendingDelivery { id, subscription, event, failures, due, committed_at }| {
            Some((
                id.0 as i64,
                subscription,
                event.to_string(),
                failures as i32,
                due.and_then(time),
                time(committed_at)?,
            ))
        });
    Ok(TableIterator::new(rows))
}

/// The deliveries that are being sent, of batches the first.
#[pg_extern(sql = false)]
fn deliveries_under_way() -> SetOfIterator<'static, i64> {
    SetOfIterator::new(session::under_way().into_iter().map(|id| id.0 as i64))
}

/// None when it is out of the range that SQL shows.
fn time(at: Timestamp) -> Option<TimestampWithTimeZone> {
    TimestampWithTimeZone::try_from(at.0).ok()
}

fn damaged(error: PackError) -> Error {
    Error::Internal(format!("the journal is damaged: {error}"))
}

/// The name of this database.
pub fn database() -> String {
    // SAFETY: a syscache look-up in a transaction; the name is copied.
    unsafe {
        let name = pg_sys::get_database_name(pg_sys::MyDatabaseId);
        if name.is_null() {
            return String::new();
        }
        crate::pg::values::encoding::utf8(std::ffi::CStr::from_ptr(name).to_bytes()).into_owned()
    }
}
