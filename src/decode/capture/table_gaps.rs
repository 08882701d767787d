//! Changes that an enabled subscription misses: its owner may not read the table, the table is not in the write-ahead log,
//! or it has another name for a while. The dispatcher records a gap, from the first commit that is missed to the first that
//! is captured again; it hears of each once.
//!
//! A right that is missing for a named table is noticed at the first change that is missed. What a transaction takes away
//! otherwise is noticed at its commit, when the definitions from before it are compared.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use pgrx::pg_sys::{self, Oid};

use super::Capture;
use crate::decode::access;
use crate::decode::definitions::{self, Definition, Definitions, Invalidated, Reader};
use crate::decode::lineage;
use crate::decode::pattern::TablePattern;
use crate::decode::route::{Interest, Level};
use crate::decode::subtransaction::in_subtransaction;
use crate::event::{Action, Lsn, TableName};
use crate::link::frame::{TableGap, TableGapEnd, write_table_gap, write_table_gap_end};

/// How often gaps are judged without a sign that the catalogs have changed: a transaction that began before a GRANT may be
/// decoded after it, with the catalogs of its beginning.
const JUDGE_INTERVAL: Duration = Duration::from_secs(1);

/// The gaps that are open, and what is needed to see them begin and end.
pub struct TableGaps {
    /// By table and subscription; the table's name as the subscription knows it.
    open: BTreeMap<(u32, i64), String>,
    /// Those that began before any change was missed; if none is, there was no gap.
    unchanged: BTreeSet<(u32, i64)>,
    /// Definitions before the transaction that is being decoded.
    before: Definitions,
    /// Whether the catalogs may have changed since the gaps were judged.
    pub is_stale: bool,
    judged_at: Instant,
}

impl TableGaps {
    /// Begins with the gaps that the journal has: subscription, table, and its name.
    pub fn new(open: Vec<(i64, u32, String)>) -> TableGaps {
        TableGaps {
            open: open.into_iter().map(|(id, table, name)| ((table, id), name)).collect(),
            unchanged: BTreeSet::new(),
            before: Definitions::default(),
            is_stale: true,
            judged_at: Instant::now(),
        }
    }
}

/// A gap that begins.
struct Loss {
    table: Oid,
    subscription: i64,
    name: TableName,
    reason: String,
    is_changed: bool,
}

impl Capture {
    /// A transaction is handed over that changes this in the catalogs, which are still as before it.
    pub fn begin_catalog_changes(&mut self, changed: &Invalidated) {
        self.table_gaps.before = Definitions::default();
        if !changed.is_empty() && !self.router.is_empty() {
            let router = &self.router;
            // SAFETY: the begin callback runs in a transaction with the historic snapshot.
            let before = in_subtransaction(self.memory, || unsafe { Definitions::of(changed, router) });
            self.table_gaps.before = before.unwrap_or_default();
        }
        let is_due = self.table_gaps.judged_at.elapsed() >= JUDGE_INTERVAL;
        self.judge_table_gaps(self.transaction.commit_lsn, is_due);
    }

    /// The transaction is complete, and routing knows what it did to subscriptions.
    pub(super) fn end_catalog_changes(&mut self, end_lsn: Lsn, has_edits: bool) {
        let before = std::mem::take(&mut self.table_gaps.before);
        if !before.tables.is_empty() || !before.new.is_empty() {
            let router = &self.router;
            // SAFETY: the commit callback runs in a transaction with the historic snapshot.
            let losses = in_subtransaction(self.memory, || unsafe { losses(before, router) });
            losses.unwrap_or_default().into_iter().for_each(|loss| self.begin_table_gap(loss));
        }
        self.judge_table_gaps(end_lsn, has_edits);
    }

    /// A change of a table that somebody may miss: reports who does, once.
    pub(super) fn report_missed(&mut self, table: Oid, action: Action) {
        if !self.table_gaps.unchanged.is_empty() {
            self.note_missed_change(table);
        }
        let Some(relation) = self.relations.get_mut(&table) else { return };
        let missed = relation.take_unreported(action);
        if missed.is_empty() {
            return;
        }
        let (levels, router) = (relation.levels().to_vec(), &self.router);
        // SAFETY: a callback runs in a transaction with the historic snapshot.
        let losses = in_subtransaction(self.memory, || unsafe {
            let reader = Reader::of(table);
            let denied = missed.iter().filter_map(|interest| {
                let (_, terms) = router.interest(interest.subscription, &levels)?;
                let reason = reader.why_not(&terms)?;
                Some(denial(interest, &levels, reason, true))
            });
            denied.collect::<Vec<_>>()
        });
        losses.unwrap_or_default().into_iter().for_each(|loss| self.begin_table_gap(loss));
        // The transaction may have begun before the right was given.
        self.table_gaps.is_stale = true;
    }

    /// A change of a table, and so of those above it.
    fn note_missed_change(&mut self, table: Oid) {
        let above = in_subtransaction(self.memory, || lineage::ancestors(table));
        for table in above.unwrap_or_default().into_iter().chain([table]).map(Oid::to_u32) {
            let unchanged = &mut self.table_gaps.unchanged;
            unchanged.extract_if((table, i64::MIN)..=(table, i64::MAX), |_| true).for_each(drop);
        }
    }

    fn begin_table_gap(&mut self, loss: Loss) {
        let (table, subscription) = (loss.table.to_u32(), loss.subscription);
        if self.table_gaps.open.contains_key(&(table, subscription)) {
            return;
        }
        let name = TablePattern::exactly(&loss.name).to_string();
        let gap = TableGap {
            subscription,
            table,
            name: name.clone(),
            from: self.transaction.commit_lsn,
            reason: loss.reason,
        };
        write_table_gap(&mut self.buffer, &gap);
        self.table_gaps.open.insert((table, subscription), name);
        if !loss.is_changed {
            self.table_gaps.unchanged.insert((table, subscription));
        }
    }

    /// Ends the gaps whose reason is gone, at `to`.
    fn judge_table_gaps(&mut self, to: Lsn, is_due: bool) {
        if self.table_gaps.open.is_empty() {
            return;
        }
        self.forget_stale();
        if !std::mem::take(&mut self.table_gaps.is_stale) && !is_due {
            return;
        }
        self.table_gaps.judged_at = Instant::now();
        let (open, router) = (&self.table_gaps.open, &self.router);
        let over = in_subtransaction(self.memory, || {
            let over = open.iter().filter(|((table, id), name)| {
                // SAFETY: callbacks run in a transaction with the historic snapshot.
                unsafe { !is_missed(Oid::from(*table), *id, name, router) }
            });
            over.map(|(key, _)| *key).collect::<Vec<_>>()
        });
        for (table, subscription) in over.unwrap_or_default() {
            self.table_gaps.open.remove(&(table, subscription));
            let is_empty = self.table_gaps.unchanged.remove(&(table, subscription));
            let at = self.transaction.committed_at;
            write_table_gap_end(&mut self.buffer, &TableGapEnd { subscription, table, to, at, is_empty });
            for known in [&mut self.relations, &mut self.stale] {
                known.values_mut().for_each(|relation| relation.report_again(subscription));
            }
        }
    }
}

/// A gap of a table that the owner may not read; of a partition, that of the table which the subscription knows it by.
fn denial(interest: &Interest, levels: &[Level], reason: String, is_changed: bool) -> Loss {
    let level = &levels[usize::from(interest.level)];
    Loss {
        table: Oid::from(level.oid),
        subscription: interest.subscription,
        name: level.name.clone(),
        reason,
        is_changed,
    }
}

/// What subscriptions lose by a change of definitions.
///
/// # Safety
/// A transaction is in progress, with a historic snapshot from after the changes.
unsafe fn losses(mut before: Definitions, router: &super::Router) -> Vec<Loss> {
    let mut losses = Vec::new();
    // SAFETY: as the caller promises.
    unsafe {
        before.add_moved();
        let known = before.tables.iter().map(|definition| (definition.table, Some(definition)));
        for (table, before) in known.chain(before.new.iter().map(|table| (*table, None))) {
            if !access::exists(table) {
                continue;
            }
            let levels = lineage::of(table);
            if let Some(before) = before {
                renamed(before, &levels, router, &mut losses);
                no_longer_readable(before, &levels, router, &mut losses);
            }
            if pg_sys::get_rel_relkind(table) as u8 == pg_sys::RELKIND_RELATION
                && pg_sys::get_rel_persistence(table) as u8 == pg_sys::RELPERSISTENCE_UNLOGGED
            {
                unlogged(table, before, &levels, router, &mut losses);
            }
        }
    }
    losses
}

fn renamed(before: &Definition, levels: &[Level], router: &super::Router, losses: &mut Vec<Loss>) {
    let (old, new) = (&before.levels[0].name, &levels[0].name);
    if old == new || definitions::table_of(old) != pg_sys::InvalidOid {
        return;
    }
    for (interest, _) in router.interests(&before.levels[..1]) {
        let id = interest.subscription;
        if interest.is_of_rows() && router.interest(id, levels).is_none() {
            let [from, to] = [old, new].map(|name| TablePattern::exactly(name).to_string());
            losses.push(Loss {
                table: before.table,
                subscription: id,
                name: old.clone(),
                reason: format!("table {from} was renamed to {to}"),
                is_changed: false,
            });
        }
    }
}

/// # Safety
/// As [`losses`].
unsafe fn no_longer_readable(
    before: &Definition,
    levels: &[Level],
    router: &super::Router,
    losses: &mut Vec<Loss>,
) {
    if before.readers.is_empty() {
        return;
    }
    // SAFETY: as the caller promises.
    let reader = unsafe { Reader::of(before.table) };
    for id in &before.readers {
        let Some((interest, terms)) = router.interest(*id, levels) else { continue };
        if let Some(reason) = reader.why_not(&terms) {
            losses.push(denial(&interest, levels, reason, false));
        }
    }
}

/// A table that was never in the log is not meant by a wildcard.
fn unlogged(
    table: Oid,
    before: Option<&Definition>,
    levels: &[Level],
    router: &super::Router,
    losses: &mut Vec<Loss>,
) {
    let was_logged = before.is_some_and(|before| before.is_logged);
    for (interest, _) in router.interests(levels) {
        let id = interest.subscription;
        let is_news = was_logged || before.is_none_or(|before| router.interest(id, &before.levels).is_none());
        if interest.is_of_rows() && is_news && (was_logged || interest.is_named) {
            losses.push(Loss {
                table,
                subscription: id,
                name: levels[usize::from(interest.level)].name.clone(),
                reason: format!(
                    "table {} is UNLOGGED: its changes are not in the write-ahead log",
                    TablePattern::exactly(&levels[0].name)
                ),
                is_changed: true,
            });
        }
    }
}

/// Whether a subscription still misses the changes of a table that it knew by that name.
///
/// # Safety
/// A transaction is in progress, with a historic snapshot.
unsafe fn is_missed(table: Oid, subscription: i64, name: &str, router: &super::Router) -> bool {
    // SAFETY: as the caller promises.
    unsafe {
        if !access::exists(table) {
            return false;
        }
        let levels = lineage::of(table);
        if let Some((interest, terms)) = router.interest(subscription, &levels) {
            return interest.is_of_rows()
                && (!definitions::is_logged(table) || Reader::of(table).why_not(&terms).is_some());
        }
        // It has another name.
        let known = TablePattern::parse(name).ok();
        let Some((schema, name)) = known.as_ref().and_then(TablePattern::literal) else { return false };
        let name = TableName { schema: schema.to_owned(), table: name.to_owned() };
        definitions::table_of(&name) == pg_sys::InvalidOid
            && router.interest(subscription, &[Level { name, ..levels[0].clone() }]).is_some()
    }
}
