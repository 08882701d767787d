//! A relation as the decoder knows it: who is interested, and how its rows are encoded.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CStr;

use pgrx::pg_sys;
use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_64;

use super::column::{CapturedColumn, Scratch};
use super::value::kind_of;
use crate::decode::filter::tuple_slots::Rows;
use crate::decode::routing::lineage;
use crate::decode::routing::privileges::Permits;
use crate::decode::routing::relation_matcher::{Change, Refused, Routes};
use crate::decode::routing::router::{Interest, Level, Router};
use crate::decode::row_key::{Identity, event_key, identity_of};
use crate::event::{Action, Column, KeyKind, Relation, RowBuilder};
use crate::ipc::frame::{LaneKeys, Target};
use crate::pg::compat;
use crate::pg::memory_context::Memory;

/// A relation as of one version of its definition.
pub struct CapturedRelation {
    /// What the dispatcher is told of it.
    pub model: Relation,
    /// The tables by whose names its rows may be sent.
    levels: Vec<Level>,
    /// Who may want its changes.
    pub routes: Routes,
    /// Whether anybody may want it at all: it is a table, and none of our own.
    routable: bool,
    /// By which number the dispatcher knows it; none until it was told.
    pub reference: Option<u32>,
    identity: Identity,
    columns: Vec<CapturedColumn>,
    /// Its rows as conditions look at them, made when the first is to be judged.
    rows: Option<Rows>,
    /// Who may get its rows at all.
    permits: Permits,
    /// Subscriptions that miss its changes because of what their owners may not read. A table that only a wildcard leads
    /// to is left out instead, unless the owner could read it before.
    denied: BTreeMap<i64, Interest>,
    /// Of these, the ones whose next missed change has to be reported.
    unreported: BTreeMap<i64, Interest>,
    memory: Memory,
}

impl CapturedRelation {
    /// Looks a relation up: its names as of the change being decoded, who wants it and, if anybody does (or `always`),
    /// how its values are encoded. `before` is the relation as it was when last known: if it is still the same, who wants
    /// it is not asked again.
    ///
    /// # Safety
    /// `relation` is open, and a transaction with the change's historic snapshot is in progress.
    pub unsafe fn build(
        relation: pg_sys::Relation,
        router: &Router,
        before: Option<CapturedRelation>,
        always: bool,
    ) -> CapturedRelation {
        // SAFETY: as the caller promises; the context is owned by the result.
        unsafe {
            let form = &*(*relation).rd_rel;
            let oid = (*relation).rd_id;
            let levels = lineage::of(oid);
            let ours = levels
                .first()
                .is_some_and(|level| matches!(level.name.schema.as_str(), "pgwh" | "pgwh_internal"));
            let is_table = form.relkind == pg_sys::RELKIND_RELATION as std::ffi::c_char
                || form.relkind == pg_sys::RELKIND_PARTITIONED_TABLE as std::ffi::c_char;
            let routable = is_table && !ours;
            let mut captured = CapturedRelation {
                model: Relation {
                    oid: oid.to_u32(),
                    root_oid: levels.last().map_or(oid.to_u32(), |level| level.oid),
                    names: levels.iter().map(|level| level.name.clone()).collect(),
                    columns: Vec::new(),
                    key: KeyKind::default(),
                    version: 0,
                },
                levels,
                routes: Routes::default(),
                routable,
                reference: None,
                identity: identity_of(relation).0,
                columns: Vec::new(),
                rows: None,
                permits: Permits::default(),
                denied: BTreeMap::new(),
                unreported: BTreeMap::new(),
                memory: Memory::new(c"pgwh relation"),
            };
            let levels = &captured.levels;
            match before {
                Some(before) if before.levels == *levels && before.is_now(relation) => {
                    (captured.routes, captured.rows) = (before.routes, before.rows);
                    (captured.permits, captured.denied) = (before.permits, before.denied);
                }
                before if routable => {
                    let (key, _) = event_key(relation);
                    for (interest, terms) in router.interests(levels) {
                        let id = interest.subscription;
                        if captured.permits.allow(relation, &key, &terms) {
                            captured.routes.add(interest, terms.condition);
                        } else if interest.is_named || before.as_ref().is_some_and(|before| before.has(id)) {
                            captured.denied.insert(id, interest);
                        }
                    }
                }
                _ => {}
            }
            captured.unreported = captured.denied.clone();
            if always || !captured.routes.is_empty() {
                captured.add_columns(relation);
            }
            captured
        }
    }

    /// The tables by whose names its rows may be sent, its own first and the topmost last.
    pub fn levels(&self) -> &[Level] {
        &self.levels
    }

    /// Whether what its conditions were compiled for is the same now.
    unsafe fn is_now(&self, relation: pg_sys::Relation) -> bool {
        // SAFETY: the relation is open.
        self.rows.as_ref().is_some_and(|rows| unsafe { rows.fit(relation) })
            && !self.routes.has_broken()
            && self.permits.still_hold(pg_sys::Oid::from(self.model.oid))
    }

    /// Whether a subscription gets its changes, or misses them.
    fn has(&self, subscription: i64) -> bool {
        self.routes.has(subscription) || self.denied.contains_key(&subscription)
    }

    /// Subscriptions that miss a change, of those that no miss was reported of yet.
    pub fn take_unreported(&mut self, action: Action) -> Vec<Interest> {
        self.unreported.extract_if(.., |_, interest| interest.wants(action)).map(|(_, it)| it).collect()
    }

    /// Has the next change reported that a subscription misses.
    pub fn report_again(&mut self, subscription: i64) {
        if let Some(interest) = self.denied.get(&subscription) {
            self.unreported.insert(subscription, *interest);
        }
    }

    /// Owners of subscriptions that get nothing of it, since they may not read what these want.
    pub fn denied(&self) -> &BTreeSet<String> {
        self.permits.denied()
    }

    /// # Safety
    /// As [`CapturedRelation::build`].
    unsafe fn add_columns(&mut self, relation: pg_sys::Relation) {
        // SAFETY: as the caller promises.
        unsafe {
            let (key, kind) = event_key(relation);
            self.model.key = kind;
            let whole_row_is_key = kind == KeyKind::WholeRow;
            let desc = (*relation).rd_att;
            for place in 0..(*desc).natts as usize {
                let attribute = compat::attribute(desc, place);
                if attribute.attisdropped {
                    continue;
                }
                let is_key = key.contains(&attribute.attnum);
                self.model.columns.push(Column {
                    name: crate::pg::values::encoding::name(&attribute.attname),
                    number: attribute.attnum,
                    type_oid: attribute.atttypid.to_u32(),
                    type_name: type_name(attribute.atttypid, attribute.atttypmod),
                    kind: kind_of(attribute.atttypid),
                    is_key,
                    heads: Default::default(),
                });
                self.columns.push(CapturedColumn {
                    place,
                    length: attribute.attlen,
                    stored: attribute.attgenerated as u8 != b'v',
                    is_key: is_key || whole_row_is_key,
                    is_hashed: is_key,
                    value_type: (attribute.atttypid, attribute.attcollation),
                    memory: self.memory.context(),
                    coder: None,
                });
            }
        }
    }

    /// Takes note of what a subscription wants from here on; false when the relation has to be built anew, since nobody
    /// wanted it before, or it takes a look at its columns. In a transaction, with the snapshot of that change.
    pub fn reroute(&mut self, subscription: i64, router: &Router) -> bool {
        let had = self.has(subscription);
        self.routes.remove(subscription);
        self.denied.remove(&subscription);
        self.unreported.remove(&subscription);
        if self.routable
            && let Some((interest, terms)) = router.interest(subscription, &self.levels)
        {
            match self.permits.allow_all(pg_sys::Oid::from(self.model.oid), &terms) {
                Some(true) => self.routes.add(interest, terms.condition),
                Some(false) if had || interest.is_named => {
                    self.denied.insert(subscription, interest);
                    self.unreported.insert(subscription, interest);
                }
                Some(false) => {}
                None => return false,
            }
        }
        self.routes.is_empty() || !self.columns.is_empty()
    }

    /// Finds who gets a change, and for whom that cannot be said.
    ///
    /// # Safety
    /// As [`Routes::select`]; the change is of this relation.
    pub unsafe fn select(
        &mut self,
        change: &Change,
        memory: pg_sys::MemoryContext,
        targets: &mut Vec<Target>,
        refused: &mut Vec<Refused>,
    ) {
        // SAFETY: as the caller promises.
        let rows = self.rows.get_or_insert_with(|| unsafe { Rows::new(change.relation) });
        // SAFETY: as the caller promises.
        unsafe { self.routes.select(change, rows, memory, targets, refused) };
    }

    /// Those who want to know that it was truncated.
    ///
    /// # Safety
    /// As [`Routes::select`]; `relation` is this one.
    pub unsafe fn truncating(
        &mut self,
        relation: pg_sys::Relation,
        memory: pg_sys::MemoryContext,
    ) -> Vec<Interest> {
        if self.routes.is_empty() {
            return Vec::new();
        }
        // SAFETY: as the caller promises.
        let rows = self.rows.get_or_insert_with(|| unsafe { Rows::new(relation) });
        // SAFETY: as the caller promises.
        unsafe { self.routes.truncating(relation, rows, memory) }
    }

    /// Encodes the row after the change.
    ///
    /// # Safety
    /// `tuple` is a row of this version of the relation, whose descriptor is `desc`.
    pub unsafe fn encode_new(
        &mut self,
        tuple: pg_sys::HeapTuple,
        desc: pg_sys::TupleDesc,
        scratch: &mut Scratch,
        row: &mut RowBuilder<'_>,
    ) {
        // SAFETY: as the caller promises.
        unsafe { scratch.deform(tuple, desc) };
        scratch.new_hashes.clear();
        for (index, column) in self.columns.iter_mut().enumerate() {
            scratch.column = index;
            // SAFETY: the values were taken from the tuple just now.
            let hash = unsafe { column.encode(index, scratch, row) };
            if column.is_key {
                // An unchanged large value is the old row's, if that was encoded.
                let unchanged = scratch.old_hashes.get(scratch.new_hashes.len()).copied();
                scratch.new_hashes.push(hash.or(unchanged).unwrap_or(0));
            }
        }
    }

    /// Encodes what is known of the row before the change. Must come before [`CapturedRelation::encode_new`].
    ///
    /// # Safety
    /// As [`CapturedRelation::encode_new`].
    pub unsafe fn encode_old(
        &mut self,
        tuple: pg_sys::HeapTuple,
        desc: pg_sys::TupleDesc,
        scratch: &mut Scratch,
        row: &mut RowBuilder<'_>,
    ) {
        // SAFETY: as the caller promises.
        unsafe { scratch.deform(tuple, desc) };
        scratch.old_hashes.clear();
        for (index, column) in self.columns.iter_mut().enumerate() {
            // Under any identity but FULL the other columns stand in the tuple as NULL.
            if self.identity != Identity::Full && !column.is_key {
                row.absent();
                continue;
            }
            scratch.column = index;
            // SAFETY: the values were taken from the tuple just now.
            let hash = unsafe { column.encode(index, scratch, row) };
            if column.is_key {
                scratch.old_hashes.push(hash.unwrap_or(0));
            }
        }
    }

    /// Has columns left out that make the rows larger than `limit` bytes, as far as that can be told without encoding them.
    ///
    /// # Safety
    /// As [`CapturedRelation::encode_new`]; a tuple may be null.
    pub unsafe fn omit_by_stored_size(
        &mut self,
        tuples: [pg_sys::HeapTuple; 2],
        desc: pg_sys::TupleDesc,
        scratch: &mut Scratch,
        limit: usize,
    ) {
        let mut sizes = Vec::new();
        for tuple in tuples {
            // SAFETY: as the caller promises; the values are those of the tuple taken apart.
            unsafe {
                if tuple.is_null() || is_small(tuple) {
                    continue;
                }
                scratch.deform(tuple, desc);
                sizes.resize(self.columns.len(), 0);
                for (column, size) in self.columns.iter_mut().zip(&mut sizes) {
                    *size += column.least_size(scratch);
                }
            }
        }
        self.omit_largest(sizes, scratch, limit);
    }

    /// Has the largest columns left out, those of the key excepted, until the others' sizes are `limit` bytes at most. False
    /// when that is none.
    pub fn omit_largest(&self, mut sizes: Vec<usize>, scratch: &mut Scratch, limit: usize) -> bool {
        let mut total: usize = sizes.iter().sum();
        let mut any = false;
        while total > limit {
            let may_go = |index: &usize| sizes[*index] > 0 && !self.model.columns[*index].is_key;
            let Some(largest) = (0..sizes.len()).filter(may_go).max_by_key(|index| sizes[*index]) else {
                break;
            };
            total -= std::mem::take(&mut sizes[largest]);
            scratch.omit(largest);
            any = true;
        }
        any
    }

    /// The keys that order a change, and whether it must hold back its whole table since its keys are not known.
    pub fn lane(&self, scratch: &Scratch, has_new: bool, has_old: bool) -> (LaneKeys, bool) {
        let has_key = self.columns.iter().any(|column| column.is_key);
        let new = (has_key && has_new).then(|| self.combine(&scratch.new_hashes));
        let old = (has_key && has_old).then(|| self.combine(&scratch.old_hashes));
        match (new, old) {
            (Some(key), Some(old)) => (LaneKeys { key: Some(key), old: (old != key).then_some(old) }, false),
            (None, Some(old)) => (LaneKeys { key: Some(old), old: None }, false),
            // An update without an old row kept its key, unless nothing is ever told of old rows.
            (Some(key), None) => (LaneKeys { key: Some(key), old: None }, false),
            (None, None) => (LaneKeys::default(), false),
        }
    }

    /// Whether an update or delete says nothing of which row it was.
    pub fn is_anonymous(&self, has_old: bool, is_update: bool) -> bool {
        let has_key = self.columns.iter().any(|column| column.is_key);
        !has_key || (!has_old && (!is_update || self.model.key == KeyKind::Unlogged))
    }

    /// One hash of all, whatever order the columns stand in, since a row may move to a partition where that is another. (Rows
    /// whose columns have each other's values then count as one, which only makes them wait for each other.)
    fn combine(&self, hashes: &[u64]) -> u64 {
        let mut hashes: SmallVec<[u64; 8]> = SmallVec::from_slice(hashes);
        hashes.sort_unstable();
        let mut bytes = Vec::with_capacity(8 * (hashes.len() + 1));
        bytes.extend_from_slice(&u64::from(self.model.root_oid).to_le_bytes());
        hashes.iter().for_each(|hash| bytes.extend_from_slice(&hash.to_le_bytes()));
        xxh3_64(&bytes)
    }
}

/// Whether the row is no larger than those that tables hold, and nothing is stored beside it. An old row under REPLICA
/// IDENTITY FULL has in it what the table stores beside its row (`ExtractReplicaIdentity`, heapam.c).
///
/// # Safety
/// `tuple` is a row.
unsafe fn is_small(tuple: pg_sys::HeapTuple) -> bool {
    // SAFETY: as the caller promises.
    let (length, flags) = unsafe { ((*tuple).t_len, (*(*tuple).t_data).t_infomask) };
    length <= pg_sys::BLCKSZ && u32::from(flags) & pg_sys::HEAP_HASEXTERNAL == 0
}

/// # Safety
/// A transaction is in progress.
unsafe fn type_name(oid: pg_sys::Oid, typmod: i32) -> String {
    // SAFETY: as the caller promises; a type that is gone is shown as ???.
    unsafe {
        let flags = (pg_sys::FORMAT_TYPE_TYPEMOD_GIVEN | pg_sys::FORMAT_TYPE_ALLOW_INVALID) as u16;
        text(pg_sys::format_type_extended(oid, typmod, flags))
    }
}

/// # Safety
/// `name` is null or a C string in the database's encoding.
unsafe fn text(name: *const std::ffi::c_char) -> String {
    if name.is_null() {
        return String::new();
    }
    // SAFETY: as the caller promises.
    unsafe { crate::pg::values::encoding::utf8(CStr::from_ptr(name).to_bytes()).into_owned() }
}
