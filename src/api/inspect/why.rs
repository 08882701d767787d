//! `pgwh.why`: what became of a row's latest changes.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::ControlFlow;

use pgrx::AnyElement;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::row_key::AskedRow;
use crate::api::authorization::{Visible, as_owner, with_plain_names};
use crate::api::control::delivery_control::{is_pending, positions, time};
use crate::api::subscriptions::tables;
use crate::decode::routing::table_pattern::TablePattern;
use crate::delivery::{DeliveryId, Mode, Pending, Position};
use crate::error::Error;
use crate::event::{Action, EventId, Lsn, Relation, TableName, Timestamp};
use crate::ipc::frame::{Item, Target};
use crate::journal::packed::event_chunk::Entry;
use crate::journal::packed::outcome_chunk::{DROPPED, End, Outcome};
use crate::journal::read::lookup;
use crate::journal::read::lookup::LastAttempt;
use crate::pg::values::encoding::{Text, Texts};

/// How many of a row's changes are told of.
const EVENTS: usize = 20;

/// What became of a change for one subscription.
#[derive(Default)]
struct Told {
    event_id: Option<String>,
    committed_at: Option<TimestampWithTimeZone>,
    action: Option<&'static str>,
    subscription: Option<String>,
    fate: String,
    delivery_id: Option<i64>,
    attempts: Option<i32>,
    status_code: Option<i32>,
    error: Option<String>,
    at: Option<TimestampWithTimeZone>,
}

/// What became of the row's latest changes, the newest first.
#[pg_extern(sql = false)]
#[allow(clippy::type_complexity)]
fn why(
    table_name: Option<Text>,
    key: Option<AnyElement>,
) -> Result<
    TableIterator<
        'static,
        (
            name!(event_id, Option<String>),
            name!(committed_at, Option<TimestampWithTimeZone>),
            name!(action, Option<&'static str>),
            name!(subscription, Option<Text>),
            name!(fate, Text),
            name!(delivery_id, Option<i64>),
            name!(attempts, Option<i32>),
            name!(status_code, Option<i32>),
            name!(error, Option<Text>),
            name!(at, Option<TimestampWithTimeZone>),
        ),
    >,
    ErrorReport,
> {
    let row = AskedRow::parse(table_name, key)?;
    row.require_readable()?;
    // Whom the caller is not shown nothing is told of.
    let subscriptions = with_plain_names(Asked::all)?;
    let visible = Visible::now()?;
    let told = as_owner(|| tell_all(&row, &subscriptions, &visible))?;
    Ok(TableIterator::new(told.into_iter().map(|told| {
        (
            told.event_id,
            told.committed_at,
            told.action,
            told.subscription.map(Text::from),
            Text::from(told.fate),
            told.delivery_id,
            told.attempts,
            told.status_code,
            told.error.map(Text::from),
            told.at,
        )
    })))
}

fn tell_all(row: &AskedRow, subscriptions: &[Asked], visible: &Visible) -> Result<Vec<Told>, Error> {
    let positions = positions()?;
    let found = latest(row, &positions)?;
    row.check_exists(found.seen)?;
    if found.entries.is_empty() {
        return Ok(subscriptions.iter().map(|subscription| subscription.of_nothing(row)).collect());
    }
    let ids: Vec<DeliveryId> =
        found.entries.iter().rev().flat_map(|entry| entry.deliveries().map(|(id, _)| id)).collect();
    let outcomes = lookup::outcomes(&ids)?;
    let fates = Fates {
        again: delivered_again(&outcomes)?,
        outcomes,
        attempts: lookup::last_attempts(&ids)?,
        positions,
        pending: found.pending,
        names: subscriptions.iter().map(|it| (it.id, it.name.clone())).collect(),
    };
    let mut told = Vec::new();
    for entry in &found.entries {
        let targets: Vec<(DeliveryId, Target)> = entry.deliveries().collect();
        for (id, target) in targets.iter().filter(|(_, target)| visible.has(target.subscription)) {
            told.push(about(entry, fates.of(*id, target.subscription)?)?);
        }
        let others =
            subscriptions.iter().filter(|it| targets.iter().all(|(_, target)| target.subscription != it.id));
        for subscription in others {
            let fate = subscription.why_not(entry);
            told.push(about(
                entry,
                Told { subscription: Some(subscription.name.clone()), fate, ..Told::default() },
            )?);
        }
    }
    Ok(told)
}

/// Fills in which event it is about.
fn about(entry: &Entry, told: Told) -> Result<Told, Error> {
    let transaction = entry.item.transaction();
    Ok(Told {
        event_id: entry.item.event_id().map(|id| id.to_string()),
        committed_at: transaction.map(|transaction| time(transaction.committed_at)).transpose()?,
        action: action(&entry.item).map(Action::word),
        ..told
    })
}

/// The row's latest changes.
struct Latest {
    /// The newest first.
    entries: Vec<Entry>,
    /// Deliveries of changes of the row that are not done, by subscription; older ones, too.
    pending: HashMap<i64, BTreeSet<DeliveryId>>,
    /// Whether there was any change of the table.
    seen: bool,
}

fn latest(row: &AskedRow, positions: &HashMap<i64, Position>) -> Result<Latest, Error> {
    let oldest_pending = positions.values().filter_map(Position::oldest_pending).min();
    let mut latest = Latest { entries: Vec::new(), pending: HashMap::new(), seen: false };
    lookup::from_the_newest(|entry| {
        let enough = latest.entries.len() >= EVENTS;
        // What holds a change back may be older than the changes that are told of.
        if enough && oldest_pending.is_none_or(|oldest| entry.first < oldest) {
            return ControlFlow::Break(());
        }
        if let Item::Change { event, .. } = &entry.item {
            latest.seen |= row.has_table_of(&event.relation);
        }
        if row.is_changed_by(&entry.item) {
            for (id, target) in entry.deliveries() {
                if positions.get(&target.subscription).is_some_and(|position| is_pending(position, id)) {
                    latest.pending.entry(target.subscription).or_default().insert(id);
                }
            }
            if !enough {
                latest.entries.push(entry);
            }
        }
        ControlFlow::Continue(())
    })?;
    Ok(latest)
}

/// The outcomes by which replays delivered what had been given up, by subscription and event.
fn delivered_again(outcomes: &[Outcome]) -> Result<HashMap<(i64, EventId), Outcome>, Error> {
    let given_up = outcomes.iter().filter(|outcome| matches!(outcome.end, End::Dead { .. }));
    let given_up: HashSet<(i64, EventId)> =
        given_up.map(|outcome| (outcome.subscription, outcome.event)).collect();
    let mut again = HashMap::new();
    if given_up.is_empty() {
        return Ok(again);
    }
    lookup::each_outcome("replayed > 0", |outcome| {
        if outcome.replay.is_some() && matches!(outcome.end, End::Delivered { .. }) {
            let brought = outcome.events().map(|event| (outcome.subscription, event));
            again.extend(brought.filter(|key| given_up.contains(key)).map(|key| (key, outcome.clone())));
        }
    })?;
    Ok(again)
}

/// What is known of deliveries.
struct Fates {
    outcomes: Vec<Outcome>,
    /// Of those given up, by which replays deliver them since.
    again: HashMap<(i64, EventId), Outcome>,
    attempts: HashMap<DeliveryId, LastAttempt>,
    positions: HashMap<i64, Position>,
    pending: HashMap<i64, BTreeSet<DeliveryId>>,
    names: HashMap<i64, String>,
}

impl Fates {
    fn of(&self, id: DeliveryId, subscription: i64) -> Result<Told, Error> {
        let told = Told {
            subscription: self.names.get(&subscription).cloned(),
            delivery_id: Some(id.0 as i64),
            ..Told::default()
        };
        let outcome = self.outcomes.iter().rev().find(|one| one.members().any(|member| member == id));
        if let Some(outcome) = outcome {
            let again = self.again.get(&(subscription, outcome.event));
            return finished(told, again.unwrap_or(outcome));
        }
        match self.positions.get(&subscription) {
            None => Ok(Told { fate: "unsubscribed".to_owned(), ..told }),
            Some(position) if is_pending(position, id) => self.unfinished(told, id, subscription, position),
            // Its outcome is in a slice that has been cleared, or in one that is being written.
            Some(_) => Ok(Told { fate: "done".to_owned(), ..told }),
        }
    }

    fn unfinished(
        &self,
        told: Told,
        id: DeliveryId,
        subscription: i64,
        position: &Position,
    ) -> Result<Told, Error> {
        let listed = position.pending.binary_search_by_key(&id, |pending| pending.id).ok();
        let tried = listed.and_then(|place| position.pending.get(place)).filter(|it| it.failures > 0);
        if let Some(Pending { failures, due, .. }) = tried {
            let last = self.attempts.get(&id);
            let due = due.map_or(0, |due| i64::try_from(due.as_micros()).unwrap_or(i64::MAX));
            return Ok(Told {
                fate: "retrying".to_owned(),
                attempts: Some(i32::try_from(*failures).unwrap_or(i32::MAX)),
                status_code: last.and_then(|last| last.status),
                error: last.and_then(|last| last.error.clone()),
                at: Some(time(Timestamp(now().saturating_add(due)))?),
                ..told
            });
        }
        let first = self.pending.get(&subscription).and_then(BTreeSet::first).filter(|first| **first < id);
        let fate = match (first, position.mode) {
            (_, Mode::Paused) => "pending: the subscription is paused".to_owned(),
            (_, Mode::Stopped) => "pending: the subscription is disabled".to_owned(),
            (Some(first), _) => format!("blocked behind delivery {}", first.0),
            (None, Mode::Open) => "pending: the endpoint fails as a whole".to_owned(),
            (None, Mode::Live | Mode::Draining) => "pending".to_owned(),
        };
        Ok(Told { fate, ..told })
    }
}

fn finished(told: Told, outcome: &Outcome) -> Result<Told, Error> {
    let (fate, status, error) = match &outcome.end {
        End::Delivered { status: DROPPED } => ("dropped", None, None),
        End::Delivered { status } => ("delivered", Some(*status), None),
        End::Dead { status, reason, .. } => ("dead", *status, Some(reason.clone())),
    };
    let by = outcome.replay.map_or_else(String::new, |replay| format!(" by replay {replay}"));
    Ok(Told {
        fate: format!("{fate}{by}"),
        attempts: Some(i32::try_from(outcome.attempts).unwrap_or(i32::MAX)),
        status_code: status.map(i32::from),
        error,
        at: Some(time(outcome.finished_at)?),
        ..told
    })
}

/// A subscription as it is now.
struct Asked {
    id: i64,
    name: String,
    patterns: Vec<TablePattern>,
    tables: String,
    event_types: Vec<String>,
    filter: Option<String>,
    changed: Option<Vec<String>>,
    /// Whether it wants only what was committed here first.
    is_local: bool,
    enabled: bool,
    is_here: bool,
    created_at: i64,
    updated_at: i64,
    gaps: Vec<Gap>,
}

/// What a subscription missed: from the one position up to the other, or to now.
struct Gap {
    from: Lsn,
    to: Option<Lsn>,
    /// The table that it is about; none: all.
    table: Option<(u32, TablePattern)>,
    reason: String,
}

/// The gaps that are noted, by subscription.
fn gaps() -> Result<HashMap<i64, Vec<Gap>>, pgrx::spi::Error> {
    Spi::connect(|client| {
        let query =
            "SELECT subscription_id, from_lsn - '0/0', to_lsn - '0/0', reason, relation::bigint, table_name
                     FROM pgwh.gaps ORDER BY from_lsn";
        let mut gaps: HashMap<i64, Vec<Gap>> = HashMap::new();
        for row in client.select(query, None, &[])? {
            let position =
                |number: Option<AnyNumeric>| number.and_then(|number| u64::try_from(number).ok()).map(Lsn);
            let relation = row.get::<i64>(5)?.and_then(|relation| u32::try_from(relation).ok());
            let table = row.text(6)?.and_then(|name| TablePattern::parse(&name).ok());
            gaps.entry(row.get(1)?.unwrap_or_default()).or_default().push(Gap {
                from: position(row.get(2)?).unwrap_or(Lsn(0)),
                to: position(row.get(3)?),
                table: relation.zip(table),
                reason: row.text(4)?.unwrap_or_default(),
            });
        }
        Ok(gaps)
    })
}

impl Asked {
    fn all() -> Result<Vec<Asked>, Error> {
        let mut gaps = gaps()?;
        Ok(Spi::connect(|client| {
            let rows = client.select(
                "SELECT id, name, tables, event_types, enabled, home = pgwh_internal.home(),
                     (extract(epoch FROM created_at - '2000-01-01 00:00:00+00') * 1000000)::bigint,
                     (extract(epoch FROM updated_at - '2000-01-01 00:00:00+00') * 1000000)::bigint, filter, changed, origin = 'local'
                 FROM pgwh.subscriptions ORDER BY id",
                None,
                &[],
            )?;
            let mut all = Vec::new();
            for row in rows {
                let tables = row.texts(3)?.unwrap_or_default();
                let id = row.get(1)?.unwrap_or_default();
                all.push(Asked {
                    id,
                    gaps: gaps.remove(&id).unwrap_or_default(),
                    name: row.text(2)?.unwrap_or_default(),
                    patterns: tables.iter().filter_map(|text| TablePattern::parse(text).ok()).collect(),
                    tables: tables.join(", "),
                    event_types: row.texts(4)?.unwrap_or_default(),
                    enabled: row.get(5)?.unwrap_or_default(),
                    is_here: row.get(6)?.unwrap_or_default(),
                    created_at: row.get(7)?.unwrap_or_default(),
                    updated_at: row.get(8)?.unwrap_or_default(),
                    filter: row.text(9)?,
                    changed: row.texts(10)?,
                    is_local: row.get(11)?.unwrap_or_default(),
                });
            }
            Ok::<_, pgrx::spi::Error>(all)
        })?)
    }

    /// Why it didn't get an event.
    fn why_not(&self, entry: &Entry) -> String {
        let (relation, action) = match &entry.item {
            Item::Change { event, .. } => (&event.relation, event.action),
            _ => return "not wanted".to_owned(),
        };
        let transaction = entry.item.transaction();
        let committed_at = transaction.map_or(0, |transaction| transaction.committed_at.0);
        let is_replicated = transaction.is_some_and(|transaction| transaction.origin.is_some());
        let names = &relation.names[..];
        if let Some(why) = self.why_never(names) {
            why
        } else if !self.event_types.iter().any(|known| known == action.word()) {
            format!("not wanted: event type {}", action.word())
        } else if let Some(gap) = self.gap_at(entry, relation) {
            format!("missed: {}", gap.reason)
        } else if self.created_at >= committed_at {
            "subscribed later".to_owned()
        } else if self.updated_at >= committed_at {
            "not wanted then: the subscription was changed later".to_owned()
        } else if self.is_local && is_replicated {
            "not wanted: it was replicated from another server, and origin is local".to_owned()
        } else if let Some(filter) = &self.filter {
            format!("not wanted: filter {filter}")
        } else if let Some(changed) = self.changed.as_ref().filter(|_| action == Action::Update) {
            format!("not wanted: none of {} changed", changed.join(", "))
        } else {
            // It was made before, but its transaction committed after.
            "subscribed later".to_owned()
        }
    }

    /// The gap that a change of the relation lies in.
    fn gap_at(&self, entry: &Entry, relation: &Relation) -> Option<&Gap> {
        let at = entry.item.transaction()?.commit_lsn;
        let is_at = |gap: &&Gap| gap.from <= at && gap.to.is_none_or(|to| at < to);
        let oids = [relation.oid, relation.root_oid];
        self.gaps.iter().filter(is_at).find(|gap| match &gap.table {
            None => true,
            Some((oid, name)) => oids.contains(oid) || relation.names.iter().any(|table| name.matches(table)),
        })
    }

    /// Why it gets nothing of a table of these names at present.
    fn why_never(&self, names: &[TableName]) -> Option<String> {
        let leads = |name: &TableName| {
            let is_user_table = tables::is_user_table(name);
            self.patterns.iter().any(|pattern| pattern.leads_to(name, is_user_table))
        };
        let matches = names.iter().any(leads);
        if !matches {
            Some(format!("not wanted: table pattern {}", self.tables))
        } else if !self.is_here {
            Some("held".to_owned())
        } else if !self.enabled {
            Some("disabled".to_owned())
        } else {
            None
        }
    }

    /// Of a row without a change in the journal. It may have been changed in a gap of its table.
    fn of_nothing(&self, row: &AskedRow) -> Told {
        let names = row.names();
        // One without a table is of all.
        let is_about = |gap: &&Gap| {
            gap.table.as_ref().is_none_or(|(_, name)| names.iter().any(|table| name.matches(table)))
        };
        let missed = |gap: &Gap| {
            let to = gap.to.map_or("now".to_owned(), |to| to.to_string());
            format!("missed, if it was committed from {} to {to}: {}", gap.from, gap.reason)
        };
        let fate = self
            .why_never(&names)
            .or_else(|| self.gaps.iter().rev().find(is_about).map(missed))
            .unwrap_or_else(|| "no change of this row is in the journal".to_owned());
        Told { subscription: Some(self.name.clone()), fate, ..Told::default() }
    }
}

fn action(item: &Item) -> Option<Action> {
    match item {
        Item::Change { event, .. } => Some(event.action),
        _ => None,
    }
}

fn now() -> i64 {
    // SAFETY: reads the clock.
    unsafe { pg_sys::GetCurrentTimestamp() }
}
