//! `pgwh.forget`: erases a row from the journal, with every text that may quote it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use pgrx::AnyElement;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::delivery_control::{is_pending, positions};
use crate::api::authorization::with_plain_names;
use crate::api::command_queue::tell;
use crate::api::inspect::row_key::AskedRow;
use crate::api::preconditions;
use crate::delivery::{DeliveryId, Position};
use crate::error::Error;
use crate::event::EventId;
use crate::ipc::frame::{Failure, Item, LaneKeys};
use crate::journal::packed::event_chunk::Entry;
use crate::journal::read::lookup;
use crate::journal::{CommandKind, FORGOTTEN, erasure};
use crate::pg::values::encoding::Text;

/// What was erased.
#[derive(Default)]
struct Erased {
    /// Whether there was an event of the row, or one that may quote it.
    any: bool,
    events: u64,
    pending: u64,
    attempts: u64,
}

/// Erases the row's finished events, why their deliveries failed, and what endpoints answered.
#[pg_extern(sql = false)]
#[allow(clippy::type_complexity)]
fn forget(
    table_name: Option<Text>,
    key: Option<AnyElement>,
) -> Result<
    TableIterator<
        'static,
        (name!(events_forgotten, i64), name!(deliveries_pending, i64), name!(attempts_cleared, i64)),
    >,
    ErrorReport,
> {
    preconditions::changes()?;
    require_privilege()?;
    let row = AskedRow::parse(table_name, key)?;
    let erased = with_plain_names(|| erase(&row))?;
    if erased.pending > 0 {
        notice(
            "events of this row that are still to be delivered are not erased",
            format!("{} of their deliveries are pending, or may be replayed.", erased.pending),
            "SELECT * FROM pgwh.why(...); shows them. Wait, or give them up with pgwh.skip(delivery_id) or pgwh.cancel_replay(id); then do this again.",
        );
    } else if !erased.any {
        notice(
            "the journal has no event of this row, so nothing is erased",
            "The key is compared as it is spelled in webhooks.".to_owned(),
            "SELECT DISTINCT key FROM pgwh.events WHERE table_name = '...'; shows how keys of the table are spelled.",
        );
    }
    let counts = (erased.events as i64, erased.pending as i64, erased.attempts as i64);
    Ok(TableIterator::once(counts))
}

/// Refuses a role that may not rewrite the journal: nobody but superusers and the owner of the extension.
fn require_privilege() -> Result<(), Error> {
    let may = with_plain_names(|| {
        let query = "SELECT has_table_privilege('pgwh_internal.event_chunks', 'UPDATE')";
        Ok(Spi::connect(|client| client.select(query, Some(1), &[])?.first().get_one::<bool>())?)
    })?;
    if may == Some(true) { Ok(()) } else { Err(Error::MayNotErase) }
}

fn notice(message: &'static str, detail: String, hint: &str) {
    ErrorReport::new(PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION, message, "pgstream_hooks")
        .set_detail(detail)
        .set_hint(hint)
        .report(PgLogLevel::NOTICE);
}

fn erase(row: &AskedRow) -> Result<Erased, Error> {
    let mut seen = false;
    let mut events = Vec::new();
    lookup::from_the_newest(|entry| {
        match &entry.item {
            Item::Change { event, .. } => seen |= row.has_table_of(&event.relation),
            Item::Failed { failure, .. } if row.may_be_quoted_by(failure) => events.push(Found::of(&entry)),
            _ => {}
        }
        if row.is_changed_by(&entry.item) {
            events.push(Found::of(&entry));
        }
        ControlFlow::Continue(())
    })?;
    row.check_exists(seen)?;

    let needed = Needed { positions: positions()?, replaying: replaying()? };
    let mut erased = Erased::default();
    let mut ids: BTreeMap<DeliveryId, EventId> = BTreeMap::new();
    let mut deliveries = BTreeSet::new();
    for found in events {
        let pending =
            found.deliveries.iter().filter(|(id, subscription)| needed.is(*id, *subscription)).count();
        if pending > 0 && found.is_change {
            erased.pending += pending as u64;
        } else if let (Some((first, _)), Some(event)) = (found.deliveries.first(), found.event) {
            ids.insert(*first, event);
            deliveries.extend(found.deliveries.iter().map(|(id, _)| *id));
        }
    }
    let forgotten: HashSet<EventId> = ids.values().copied().collect();
    erased.any = !ids.is_empty();
    erased.events = rewrite_all(ids)?;
    let subscriptions = erase_texts(&mut erased, deliveries, &forgotten)?;
    if let Some(table) = row.table_oid() {
        erasure::erase_backfills(table, &row.key_texts())?;
    }
    if erased.any {
        tell(CommandKind::Forget { subscription: None })?;
    }
    for subscription in subscriptions {
        tell(CommandKind::Forget { subscription: Some(subscription) })?;
    }
    Ok(erased)
}

/// A change of the row.
struct Found {
    event: Option<EventId>,
    /// Whether it has the row, and is not just an error that may quote it.
    is_change: bool,
    /// Its deliveries and whose they are.
    deliveries: Vec<(DeliveryId, i64)>,
}

impl Found {
    fn of(entry: &Entry) -> Found {
        let deliveries = entry.deliveries().map(|(id, target)| (id, target.subscription)).collect();
        let is_change = matches!(entry.item, Item::Change { .. });
        Found { event: entry.item.event_id(), is_change, deliveries }
    }
}

/// Who still needs events.
struct Needed {
    positions: HashMap<i64, Position>,
    /// Subscriptions with a replay that is not over, which may come to any of their events.
    replaying: HashSet<i64>,
}

impl Needed {
    fn is(&self, id: DeliveryId, subscription: i64) -> bool {
        self.replaying.contains(&subscription)
            || self.positions.get(&subscription).is_some_and(|position| is_pending(position, id))
    }
}

fn replaying() -> Result<HashSet<i64>, Error> {
    Ok(Spi::connect(|client| {
        let rows = client.select(
            "SELECT DISTINCT subscription_id FROM pgwh.replays WHERE state IN ('waiting', 'running')",
            None,
            &[],
        )?;
        let mut found = HashSet::new();
        for row in rows {
            found.extend(row.get::<i64>(1)?);
        }
        Ok::<_, pgrx::spi::Error>(found)
    })?)
}

/// Rewrites the chunks that hold the events, each once; returns how many changes were erased.
fn rewrite_all(mut ids: BTreeMap<DeliveryId, EventId>) -> Result<u64, Error> {
    let mut erased = 0;
    while let Some((first, _)) = ids.first_key_value().map(|(first, event)| (*first, *event)) {
        erasure::rewrite(first, |entry| {
            let wanted = ids.get(&entry.first) == entry.item.event_id().as_ref();
            if !wanted || ids.remove(&entry.first).is_none() {
                return false;
            }
            erased += u64::from(matches!(entry.item, Item::Change { .. }));
            make_forgotten(&mut entry.item)
        })?;
        // It may have left the journal meanwhile.
        ids.remove(&first);
    }
    Ok(erased)
}

/// Leaves of a change what it was one of, and who got it; of one that could not be encoded not why.
fn make_forgotten(item: &mut Item) -> bool {
    let (failure, targets) = match item {
        Item::Change { event, targets, .. } => {
            let failure = Failure {
                transaction: Arc::clone(&event.transaction),
                ordinal: event.ordinal,
                action: event.action,
                relation: Some(Arc::clone(&event.relation)),
                sqlstate: "00000".to_owned(),
                message: FORGOTTEN.to_owned(),
            };
            (failure, std::mem::take(targets))
        }
        Item::Failed { failure, targets, .. } => {
            (Failure { message: FORGOTTEN.to_owned(), ..(**failure).clone() }, std::mem::take(targets))
        }
        _ => return false,
    };
    *item = Item::Failed { failure: Arc::new(failure), keys: LaneKeys::default(), barrier: false, targets };
    true
}

/// Erases what was said of the deliveries, those of batches and of replays of the events included: why they failed or were
/// given up, and what endpoints answered. Returns of whose there was any: the last error of these may be one of them.
fn erase_texts(
    erased: &mut Erased,
    mut deliveries: BTreeSet<DeliveryId>,
    events: &HashSet<EventId>,
) -> Result<BTreeSet<i64>, Error> {
    let ids: Vec<DeliveryId> = deliveries.iter().copied().collect();
    deliveries.extend(lookup::outcomes(&ids)?.iter().map(|outcome| outcome.id));
    deliveries.extend(lookup::replayed(events)?);
    let mut subscriptions = erasure::erase_reasons(&deliveries)?;
    let (attempts, attempted) = erasure::erase_attempts(&deliveries)?;
    erased.attempts = attempts;
    subscriptions.extend(attempted);
    Ok(subscriptions)
}
