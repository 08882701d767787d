//! Changes that an enabled subscription misses: its owner may not read the table, the table is not in the write-ahead log,
//! it has another name for a while, or the condition of a subscription does not fit it to which a wildcard gave it. The
//! dispatcher records a gap, from the first commit that is missed to the first that is captured again; it hears of each once.
//!
//! What a disabled subscription would miss is recorded in the same way, so that it is known when the subscription is enabled: the
//! gap begins at that commit, in place of the one that was open while the subscription was disabled.
//!
//! A right that is missing for a named table is noticed at the first change that is missed. What a transaction takes away
//! otherwise is noticed at its commit, when the definitions from before it are compared, and after each of its commands that
//! changes a table: a later one may undo it, but not for what was written in between.

use std::collections::{BTreeSet, HashSet};
use std::time::{Duration, Instant};

use pgrx::pg_sys::{self, Oid};

use super::Capture;
use super::gap_state::{Loss, Open};
use crate::decode::definitions;
use crate::decode::definitions::{Definition, Definitions, Invalidated, Reader};
use crate::decode::filter::fit::Fits;
use crate::decode::routing::lineage;
use crate::decode::routing::router::{Interest, Level, Router};
use crate::decode::routing::table_pattern::TablePattern;
use crate::event::{Action, Lsn, TableName};
use crate::ipc::frame::{TableGap, TableGapEnd, write_table_gap, write_table_gap_end};
use crate::pg::subtransaction::in_subtransaction;
use crate::pg::{acl, compat};

/// How often gaps are judged without a sign that the catalogs have changed: a transaction that began before a GRANT may be
/// decoded after it, with the catalogs of its beginning.
const JUDGE_INTERVAL: Duration = Duration::from_secs(1);

impl Capture {
    /// A transaction is handed over that changes this in the catalogs, which are still as before it.
    pub fn begin_catalog_changes(&mut self, changed: &Invalidated) {
        if let Some(logged) = self.table_gaps.logged_before.take() {
            self.report_unlogged(&logged);
            self.report_lost_with_log();
        }
        self.table_gaps.before = self.definitions(changed);
        self.table_gaps.passing.clear();
        let is_due = self.table_gaps.judged_at.elapsed() >= JUDGE_INTERVAL;
        self.judge_table_gaps(self.transaction.commit_lsn, is_due);
    }

    /// The transaction is complete, and routing knows what it did to subscriptions.
    ///
    /// `switched`: the subscriptions that it enabled or disabled.
    pub(super) fn end_catalog_changes(&mut self, end_lsn: Lsn, has_edits: bool, switched: &BTreeSet<i64>) {
        let before = std::mem::take(&mut self.table_gaps.before);
        self.table_gaps.passing.clear();
        self.renew_table_gaps(end_lsn, switched);
        self.report_losses(before, self.transaction.commit_lsn);
        self.note_unlogged();
        self.judge_table_gaps(end_lsn, has_edits);
    }

    /// Has the gaps of subscriptions that were enabled or disabled end at that commit, and begin again there where the reason
    /// lasts. A gap that was open while the subscription was disabled was none.
    fn renew_table_gaps(&mut self, at: Lsn, switched: &BTreeSet<i64>) {
        if switched.is_empty() {
            return;
        }
        let of_switched = |key: &(u32, i64), _: &mut Open| switched.contains(&key.1);
        let ended: Vec<_> = self.table_gaps.open.extract_if(.., of_switched).collect();
        for (key, open) in ended {
            let (table, subscription) = key;
            let is_enabled = self.router.is_enabled(subscription);
            let is_empty = self.table_gaps.unchanged.remove(&key) || is_enabled;
            self.end_table_gap(key, at, is_empty);
            let router = &self.router;
            // SAFETY: the commit callback runs in a transaction with the historic snapshot.
            let lasts = in_subtransaction(self.memory, || unsafe {
                is_missed(Oid::from(table), subscription, &open, router)
            });
            if lasts.unwrap_or(true) {
                let (name, reason) = (open.name.clone(), open.reason.clone());
                let gap = TableGap { subscription, table, name, from: at, reason, is_enabled };
                write_table_gap(&mut self.buffer, &gap);
                self.table_gaps.open.insert(key, open);
                self.table_gaps.unchanged.insert(key);
                self.forget_relations();
            }
        }
    }

    /// What is about to change, as it is now. In a transaction with the historic snapshot.
    pub fn definitions(&mut self, changed: &Invalidated) -> Definitions {
        if changed.is_empty() || self.router.is_empty() {
            return Definitions::default();
        }
        let router = &self.router;
        // SAFETY: as the caller promises.
        let before = in_subtransaction(self.memory, || unsafe { Definitions::of(changed, router) });
        before.unwrap_or_default()
    }

    /// Begins gaps for what was so before a transaction that committed at `from`, and is lost by it. In a transaction with the
    /// historic snapshot from after that.
    pub fn report_losses(&mut self, before: Definitions, from: Lsn) {
        if before.is_empty() {
            return;
        }
        let router = &self.router;
        // SAFETY: as the caller promises.
        let losses = in_subtransaction(self.memory, || unsafe { losses(&before, router) });
        losses.unwrap_or_default().into_iter().for_each(|loss| self.begin_table_gap(loss, from));
        self.flush_when_full();
    }

    /// A command of the transaction has changed these objects, as the catalogs have them now.
    pub(super) fn note_command(&mut self, objects: &[Oid]) {
        self.note_unlogged();
        let (before, router) = (&self.table_gaps.before, &self.router);
        if before.is_empty() {
            return;
        }
        // SAFETY: a callback runs in a transaction with the historic snapshot.
        let losses = in_subtransaction(self.memory, || unsafe { losses_of(objects, before, router) });
        for loss in losses.unwrap_or_default() {
            if loss.is_misfit {
                self.forget_relations();
            }
            if loss.is_changed {
                self.begin_table_gap(loss, self.transaction.commit_lsn);
            } else {
                self.table_gaps.passing.push(loss);
            }
        }
    }

    /// Of a table that is in no log no change is seen: what it is away for otherwise is a gap, whether one is seen or not.
    fn note_unlogged(&mut self) {
        let (unchanged, passing) = (&self.table_gaps.unchanged, &self.table_gaps.passing);
        if unchanged.is_empty() && passing.is_empty() {
            return;
        }
        let away =
            unchanged.iter().map(|(table, _)| *table).chain(passing.iter().map(|loss| loss.table.to_u32()));
        let away: BTreeSet<u32> = away.collect();
        // Callbacks run in a transaction with the historic snapshot.
        let unlogged = in_subtransaction(self.memory, || {
            // SAFETY: as said; of a table that is gone there are no parts.
            let parts = |table| unsafe { compat::partition_tree(table) };
            let is_unlogged = |table: Oid| {
                acl::exists(table) && parts(table).into_iter().any(|part| !definitions::is_logged(part))
            };
            away.into_iter().map(Oid::from).filter(|table| is_unlogged(*table)).collect::<Vec<_>>()
        });
        for table in unlogged.unwrap_or_default() {
            self.note_missed_change(table);
        }
    }

    /// Begins gaps for tables that left the log where this process does not see it.
    fn report_unlogged(&mut self, logged_before: &HashSet<u32>) {
        let router = &self.router;
        // SAFETY: the begin callback runs in a transaction with the historic snapshot.
        let losses = in_subtransaction(self.memory, || unsafe {
            let mut losses = Vec::new();
            for table in definitions::unlogged_tables() {
                let was_logged = logged_before.contains(&table.to_u32());
                unlogged(table, was_logged, None, &lineage::of(table), router, &mut losses);
            }
            losses
        });
        let from = self.transaction.commit_lsn;
        losses.unwrap_or_default().into_iter().for_each(|loss| self.begin_table_gap(loss, from));
    }

    /// Begins gaps for tables that subscriptions have lost, by a right or a name, in log that no process saw.
    fn report_lost_with_log(&mut self) {
        let (captured, router) = (std::mem::take(&mut self.table_gaps.captured_before), &self.router);
        if captured.is_empty() {
            return;
        }
        // SAFETY: the begin callback runs in a transaction with the historic snapshot.
        let losses = in_subtransaction(self.memory, || unsafe { lost_with_log(captured, router) });
        let from = self.transaction.commit_lsn;
        losses.unwrap_or_default().into_iter().for_each(|loss| self.begin_table_gap(loss, from));
    }

    /// A change of a table that somebody may miss: reports who does, once.
    pub(super) fn report_missed(&mut self, table: Oid, action: Action) {
        if !self.table_gaps.unchanged.is_empty() || !self.table_gaps.passing.is_empty() {
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
        let from = self.transaction.commit_lsn;
        losses.unwrap_or_default().into_iter().for_each(|loss| self.begin_table_gap(loss, from));
        // The transaction may have begun before the right was given.
        self.table_gaps.is_stale = true;
    }

    /// A change of a table, and so of those above it. Disabled subscriptions do not miss it.
    fn note_missed_change(&mut self, table: Oid) {
        let above = in_subtransaction(self.memory, || crate::pg::lineage::ancestors(table));
        for table in above.unwrap_or_default().into_iter().chain([table]).map(Oid::to_u32) {
            let (router, unchanged) = (&self.router, &mut self.table_gaps.unchanged);
            let is_enabled = |(_, subscription): &(u32, i64)| router.is_enabled(*subscription);
            unchanged.extract_if((table, i64::MIN)..=(table, i64::MAX), is_enabled).for_each(drop);
            let passing = self
                .table_gaps
                .passing
                .extract_if(.., |loss| loss.table.to_u32() == table && router.is_enabled(loss.subscription));
            for loss in passing.collect::<Vec<_>>() {
                // Relations were forgotten when it was found, and this one is being used.
                let loss = Loss { is_changed: true, is_misfit: false, ..loss };
                self.begin_table_gap(loss, self.transaction.commit_lsn);
            }
        }
    }

    fn begin_table_gap(&mut self, loss: Loss, from: Lsn) {
        let (table, subscription) = (loss.table.to_u32(), loss.subscription);
        let is_enabled = self.router.is_enabled(subscription);
        let is_changed = loss.is_changed && is_enabled;
        if self.table_gaps.open.contains_key(&(table, subscription)) {
            if is_changed {
                self.table_gaps.unchanged.remove(&(table, subscription));
            }
            return;
        }
        let (name, reason) = (TablePattern::exactly(&loss.name).to_string(), loss.reason);
        let open = Open {
            name: name.clone(),
            reason: reason.clone(),
            condition: self.router.condition(subscription).cloned(),
        };
        write_table_gap(&mut self.buffer, &TableGap { subscription, table, name, from, reason, is_enabled });
        self.table_gaps.open.insert((table, subscription), open);
        if loss.is_misfit {
            self.forget_relations();
        }
        if !is_changed {
            self.table_gaps.unchanged.insert((table, subscription));
        }
    }

    /// What was compiled before may fit still, where a label of an enum has another name.
    fn forget_relations(&mut self) {
        self.relations.clear();
        self.stale.clear();
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
            let over = open.iter().filter(|((table, id), open)| {
                // SAFETY: callbacks run in a transaction with the historic snapshot.
                unsafe { !is_missed(Oid::from(*table), *id, open, router) }
            });
            over.map(|(key, _)| *key).collect::<Vec<_>>()
        });
        for key in over.unwrap_or_default() {
            self.table_gaps.open.remove(&key);
            let subscription = key.1;
            let is_empty = self.table_gaps.unchanged.remove(&key) || !self.router.is_enabled(subscription);
            self.end_table_gap(key, to, is_empty);
            for known in [&mut self.relations, &mut self.stale] {
                known.values_mut().for_each(|relation| relation.report_again(subscription));
            }
        }
    }

    fn end_table_gap(&mut self, (table, subscription): (u32, i64), to: Lsn, is_empty: bool) {
        let at = self.transaction.committed_at;
        write_table_gap_end(&mut self.buffer, &TableGapEnd { subscription, table, to, at, is_empty });
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
        is_misfit: false,
    }
}

/// What subscriptions lose by a change of definitions.
///
/// # Safety
/// A transaction is in progress, with a historic snapshot from after the changes.
unsafe fn losses(before: &Definitions, router: &Router) -> Vec<Loss> {
    let mut losses = Vec::new();
    // SAFETY: as the caller promises.
    let moved = unsafe { before.moved() };
    let known = before.tables.iter().chain(&moved).map(|definition| (definition.table, Some(definition)));
    for (table, definition) in known.chain(before.new.iter().map(|table| (*table, None))) {
        // SAFETY: as the caller promises.
        unsafe { lost(table, definition, before.has_enums, router, &mut losses) };
    }
    losses
}

/// What subscriptions lose by a change of these objects, which are tables or schemas if they matter, and of what is below them.
///
/// # Safety
/// As [`losses`].
unsafe fn losses_of(objects: &[Oid], before: &Definitions, router: &Router) -> Vec<Loss> {
    let mut losses = Vec::new();
    // SAFETY: as the caller promises.
    unsafe {
        let moved = match objects.iter().any(|object| before.has_schema(*object)) {
            true => before.moved(),
            false => Vec::new(),
        };
        let tables = objects.iter().filter(|object| acl::exists(**object));
        let changed =
            tables.flat_map(|table| compat::partition_tree(*table)).filter_map(|table| {
                match before.table(table) {
                    None if before.new.contains(&table) => Some((table, None)),
                    definition => definition.map(|definition| (table, Some(definition))),
                }
            });
        // Those that a wildcard gives somebody are among the definitions, whether their schema or they are changed.
        let in_schema = before.tables.iter().filter(|known| {
            acl::exists(known.table) && objects.contains(&pg_sys::get_rel_namespace(known.table))
        });
        let moved = in_schema.chain(&moved).map(|definition| (definition.table, Some(definition)));
        for (table, definition) in changed.chain(moved) {
            lost(table, definition, before.has_enums, router, &mut losses);
        }
    }
    losses
}

/// What subscriptions lose of a table; `before` is its definition, none if it is new.
///
/// # Safety
/// As [`losses`].
unsafe fn lost(
    table: Oid,
    before: Option<&Definition>,
    has_enums: bool,
    router: &Router,
    losses: &mut Vec<Loss>,
) {
    // SAFETY: as the caller promises.
    unsafe {
        if !acl::exists(table) {
            return;
        }
        let levels = lineage::of(table);
        if let Some(before) = before {
            renamed(before.table, &before.levels, &levels, router, |_| true, losses);
            no_longer_readable(before, &levels, router, losses);
            no_longer_fitting(before, &levels, has_enums, router, losses);
        }
        if pg_sys::get_rel_relkind(table) as u8 == pg_sys::RELKIND_RELATION
            && pg_sys::get_rel_persistence(table) as u8 == pg_sys::RELPERSISTENCE_UNLOGGED
        {
            let was_logged = before.is_some_and(|before| before.is_logged);
            unlogged(table, was_logged, before, &levels, router, losses);
        }
    }
}

/// What subscriptions have lost of tables that were captured for them, which a missing right for a table that they name does not say
/// by itself at the next change.
///
/// # Safety
/// As [`losses`].
unsafe fn lost_with_log(captured: Vec<(i64, u32, TableName)>, router: &Router) -> Vec<Loss> {
    let mut losses = Vec::new();
    for (subscription, table, name) in captured {
        let table = Oid::from(table);
        if !acl::exists(table) {
            continue;
        }
        let levels = lineage::of(table);
        let Some((interest, terms)) = router.declared_interest(subscription, &levels) else {
            let before = [Level { name, ..levels[0].clone() }];
            let of_it = |interest: &Interest| interest.subscription == subscription;
            renamed(table, &before, &levels, router, of_it, &mut losses);
            continue;
        };
        // SAFETY: as the caller promises.
        let reason = if interest.is_named { None } else { unsafe { Reader::of(table).why_not(&terms) } };
        losses.extend(reason.map(|reason| denial(&interest, &levels, reason, false)));
    }
    losses
}

/// What subscriptions that are meant lose by another name of a table; `before` is what it was.
fn renamed(
    table: Oid,
    before: &[Level],
    levels: &[Level],
    router: &Router,
    is_meant: impl Fn(&Interest) -> bool,
    losses: &mut Vec<Loss>,
) {
    let (old, new) = (&before[0].name, &levels[0].name);
    if old == new || definitions::table_of(old) != pg_sys::InvalidOid {
        return;
    }
    for (interest, _) in router.declared_interests(&before[..1]).filter(|(interest, _)| is_meant(interest)) {
        let id = interest.subscription;
        if interest.is_of_rows() && router.declared_interest(id, levels).is_none() {
            let [from, to] = [old, new].map(|name| TablePattern::exactly(name).to_string());
            losses.push(Loss {
                table,
                subscription: id,
                name: old.clone(),
                reason: format!("table {from} was renamed to {to}"),
                is_changed: false,
                is_misfit: false,
            });
        }
    }
}

/// # Safety
/// As [`losses`].
unsafe fn no_longer_readable(before: &Definition, levels: &[Level], router: &Router, losses: &mut Vec<Loss>) {
    if before.readers.is_empty() {
        return;
    }
    // SAFETY: as the caller promises.
    let reader = unsafe { Reader::of(before.table) };
    for id in &before.readers {
        let Some((interest, terms)) = router.declared_interest(*id, levels) else { continue };
        if let Some(reason) = reader.why_not(&terms) {
            losses.push(denial(&interest, levels, reason, false));
        }
    }
}

/// Another table that takes the place of one is not meant by a wildcard where the condition does not fit it.
///
/// # Safety
/// As [`losses`].
unsafe fn no_longer_fitting(
    before: &Definition,
    levels: &[Level],
    has_enums: bool,
    router: &Router,
    losses: &mut Vec<Loss>,
) {
    if before.fitting.is_empty() {
        return;
    }
    // SAFETY: as the caller promises.
    let reader = unsafe { Reader::of(before.table) };
    if !has_enums && before.columns == reader.columns() {
        return;
    }
    let mut fits = Fits::new(has_enums);
    for (id, condition) in &before.fitting {
        let Some((interest, terms)) = router.declared_interest(*id, levels) else { continue };
        if interest.is_named || interest.level > 0 || terms.condition != Some(condition) {
            continue;
        }
        if let Some(reason) = reader.misfit(&mut fits, &interest, condition) {
            losses.push(Loss { is_misfit: true, ..denial(&interest, levels, reason, false) });
        }
    }
}

/// A table that was never in the log is not meant by a wildcard.
fn unlogged(
    table: Oid,
    was_logged: bool,
    before: Option<&Definition>,
    levels: &[Level],
    router: &Router,
    losses: &mut Vec<Loss>,
) {
    for (interest, _) in router.declared_interests(levels) {
        let id = interest.subscription;
        let is_news =
            was_logged || before.is_none_or(|before| router.declared_interest(id, &before.levels).is_none());
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
                is_misfit: false,
            });
        }
    }
}

/// Whether a subscription still misses the changes of a table that it knew by that name.
///
/// # Safety
/// A transaction is in progress, with a historic snapshot.
unsafe fn is_missed(table: Oid, subscription: i64, open: &Open, router: &Router) -> bool {
    // SAFETY: as the caller promises.
    unsafe {
        if !acl::exists(table) {
            return false;
        }
        let levels = lineage::of(table);
        if let Some((interest, terms)) = router.declared_interest(subscription, &levels) {
            if !interest.is_of_rows() || !definitions::is_logged(table) {
                return interest.is_of_rows();
            }
            let reader = Reader::of(table);
            // Who has changed it since has been told what it fits.
            let condition =
                terms.condition.filter(|now| !interest.is_named && open.condition.as_ref() == Some(now));
            let misfit = |condition| reader.misfit(&mut Fits::new(true), &interest, condition);
            return reader.why_not(&terms).is_some() || condition.and_then(misfit).is_some();
        }
        // It has another name.
        let known = TablePattern::parse(&open.name).ok();
        let Some((schema, name)) = known.as_ref().and_then(TablePattern::literal) else { return false };
        let name = TableName { schema: schema.to_owned(), table: name.to_owned() };
        definitions::table_of(&name) == pg_sys::InvalidOid
            && router.declared_interest(subscription, &[Level { name, ..levels[0].clone() }]).is_some()
    }
}
