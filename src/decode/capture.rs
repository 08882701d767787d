//! The state of capture: what a transaction's changes are matched against, and how they get on the queue.
//!
//! A change is matched, encoded once and put on the queue. While the queue is full that waits, as a walsender waits on
//! its socket, so a transaction of any size passes through bounded memory.

mod ddl;
mod gap_state;
mod logical_messages;
mod table_gaps;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use pgrx::{PgSqlErrorCode, pg_sys};

pub use self::gap_state::KnownGaps;
use self::gap_state::TableGaps;
use super::encode::change::write_change;
use super::encode::column::Scratch;
use super::encode::relation::CapturedRelation;
use super::relcache_invalidation::Stale;
use super::routing::relation_matcher::{Change, Refused};
use super::routing::router::{Interest, Router};
use super::schema_versions::SchemaVersions;
use super::subscription_changes::Edit;
use super::wal::commit_records;
use super::{relcache_invalidation, subscription_changes};
use crate::decode::installation::Installation;
use crate::event::message_auth::Sealer;
use crate::event::{Action, Fingerprint, Lsn, Origin, Timestamp, Transaction};
use crate::ipc::frame::{
    ChangeHead, FailureHead, LaneKeys, Target, begin_change, write_annotations, write_begin, write_commit,
    write_failed, write_progress, write_refusal, write_relation, write_subscription,
};
use crate::pg::compat;
use crate::pg::process::bgworker;
use crate::pg::shm_mq::Sender;
use crate::pg::subtransaction::{Raised, in_subtransaction, sqlstate};
use crate::shmem::registry::Database;
use crate::shmem::worker_counters;

/// How much is gathered before it is put on the queue, while there is more to decode.
const BATCH_BYTES: usize = 32 * 1024;
/// How many relations that may have changed are kept, in case they have not.
const MOST_STALE: usize = 10_000;
/// How much room the buffer keeps after an event larger than that.
const KEPT_BYTES: usize = 256 * 1024;

/// What the commit record of a replicated transaction says of its original.
pub struct Replicated {
    /// The replication origin.
    pub origin: compat::Origin,
    /// Where it committed there, if that was said.
    pub lsn: Option<Lsn>,
    /// When it committed there, if that was said.
    pub committed_at: Option<Timestamp>,
}

/// The state of capture: one a decoder process, which the callbacks reach through the decoding context.
pub struct Capture {
    database: &'static Database,
    system_identifier: u64,
    /// The oid of `pgwh.subscriptions`, whose changes are routing's own.
    subscriptions: pg_sys::Oid,
    /// The oid of `pgwh_internal.schema_changes`, whose new rows are events of their own kind.
    schema_changes: pg_sys::Oid,
    sealer: Sealer,
    router: Router,
    versions: SchemaVersions,
    relations: HashMap<pg_sys::Oid, CapturedRelation>,
    /// Relations that may have changed since they were looked up.
    stale: HashMap<pg_sys::Oid, CapturedRelation>,
    /// Relations that are known, by the tables above them: what changes there (names, privileges) concerns them, too.
    below: HashMap<pg_sys::Oid, HashSet<pg_sys::Oid>>,
    /// By which number the dispatcher knows a table; a later version of its definition takes its predecessor's place.
    references: HashMap<pg_sys::Oid, u32>,
    scratch: Scratch,
    targets: Vec<Target>,
    refused: Vec<Refused>,
    queue: Sender,
    buffer: Vec<u8>,
    /// Holds what output functions allocate; emptied after each change.
    memory: pg_sys::MemoryContext,
    transaction: Transaction,
    /// The origin of a replicated transaction, until its name is looked up.
    unnamed_origin: Option<compat::Origin>,
    /// Whether the dispatcher knows of the transaction being decoded.
    begun: bool,
    /// Whether there was anything for anybody since that was last asked.
    told_something: bool,
    ordinal: u64,
    /// Where the record of the change being decoded stands.
    lsn: Lsn,
    /// Changes since they were last counted, and those of them that somebody wants.
    counted: (u64, u64),
    /// What the transaction does to subscriptions, to take effect at its commit.
    edits: Vec<Edit>,
    /// What the transaction has said of itself so far.
    annotations: Option<String>,
    /// Whether the dispatcher has still to be told of that.
    annotations_changed: bool,
    /// By which number the dispatcher knows what messages are told as rows of; none until it was told.
    messages: Option<u32>,
    /// Whether a message was seen that somebody forged.
    forgery_seen: bool,
    /// Tables and owners of subscriptions that get nothing of them, as far as the server's log has been told.
    denied: HashSet<(u32, String)>,
    table_gaps: TableGaps,
}

impl Capture {
    /// Begins with the subscriptions that `router` knows, and schemas of these versions. Registers for what invalidates relations, so at most once a
    /// process.
    pub fn new(
        database: &'static Database,
        queue: Sender,
        router: Router,
        versions: SchemaVersions,
        known_gaps: KnownGaps,
        installation: &Installation,
    ) -> Capture {
        relcache_invalidation::register();
        // SAFETY: the context is made once and lives as long as the process.
        let (memory, system_identifier) = unsafe {
            let memory = pg_sys::AllocSetContextCreateExtended(
                pg_sys::TopMemoryContext,
                c"pgwh change".as_ptr(),
                pg_sys::ALLOCSET_DEFAULT_MINSIZE as _,
                pg_sys::ALLOCSET_DEFAULT_INITSIZE as _,
                pg_sys::ALLOCSET_DEFAULT_MAXSIZE as _,
            );
            (memory, pg_sys::GetSystemIdentifier())
        };
        let nothing = Timestamp::default();
        let table_gaps = TableGaps::new(known_gaps, &router);
        Capture {
            database,
            system_identifier,
            subscriptions: installation.subscriptions,
            schema_changes: installation.schema_changes,
            sealer: Sealer::new(installation.message_key.as_bytes()),
            router,
            versions,
            relations: HashMap::new(),
            stale: HashMap::new(),
            below: HashMap::new(),
            references: HashMap::new(),
            scratch: Scratch::default(),
            targets: Vec::new(),
            refused: Vec::new(),
            queue,
            buffer: Vec::new(),
            memory,
            transaction: Transaction {
                xid: 0,
                commit_lsn: Lsn(0),
                committed_at: nothing,
                fingerprint: Fingerprint::of(system_identifier, 0, nothing),
                origin: None,
            },
            unnamed_origin: None,
            begun: false,
            told_something: false,
            ordinal: 0,
            lsn: Lsn(0),
            counted: (0, 0),
            edits: Vec::new(),
            annotations: None,
            annotations_changed: false,
            messages: None,
            forgery_seen: false,
            denied: HashSet::new(),
            table_gaps,
        }
    }

    /// Whether there was a change that somebody wants since this was last asked.
    pub fn told_something(&mut self) -> bool {
        std::mem::take(&mut self.told_something)
    }

    /// Tells the dispatcher that everything that ended at or before `lsn` has been told.
    pub fn progress(&mut self, lsn: Lsn) {
        write_progress(&mut self.buffer, lsn);
    }

    /// Puts on the queue what is gathered. When the dispatcher is gone, so is this process' purpose.
    pub fn flush(&mut self) {
        self.count();
        if self.buffer.is_empty() {
            return;
        }
        worker_counters::add(&self.database.decoded.queued, self.buffer.len() as u64);
        if self.queue.send(&self.buffer).is_err() {
            pgrx::error!("the dispatcher has gone away");
        }
        self.buffer.clear();
        if self.buffer.capacity() > KEPT_BYTES {
            self.buffer.shrink_to(BATCH_BYTES);
        }
    }

    /// Shows how many changes there were. Not with each: the numbers are shared.
    fn count(&mut self) {
        let (changes, matched) = std::mem::take(&mut self.counted);
        worker_counters::add(&self.database.decoded.changes, changes);
        worker_counters::add(&self.database.decoded.matched, matched);
    }

    fn flush_when_full(&mut self) {
        if self.buffer.len() >= BATCH_BYTES {
            self.flush();
        }
    }

    /// A transaction is handed over.
    pub fn begin(
        &mut self,
        xid: u32,
        commit_lsn: Lsn,
        committed_at: Timestamp,
        replicated: Option<Replicated>,
    ) {
        let fingerprint = Fingerprint::of(self.system_identifier, xid, committed_at);
        let origin = replicated.as_ref().map(|Replicated { lsn, committed_at, .. }| {
            Arc::new(Origin { name: None, lsn: *lsn, committed_at: *committed_at })
        });
        self.unnamed_origin = replicated.map(|replicated| replicated.origin);
        self.transaction = Transaction { xid, commit_lsn, committed_at, fingerprint, origin };
        self.begun = false;
        self.ordinal = 0;
        self.edits.clear();
        self.annotations = None;
        self.annotations_changed = false;
    }

    /// Tells of the transaction, and of what it says of itself, before the first of its events that somebody wants, as soon
    /// as a reader can see its rows: its commit record is flushed before that, by a lot when a synchronous standby is
    /// missing.
    fn announce_transaction(&mut self) {
        if !self.begun {
            self.wait_until_visible();
            if let (Some(id), Some(origin)) = (self.unnamed_origin.take(), &mut self.transaction.origin) {
                Arc::make_mut(origin).name = commit_records::origin_name(id);
            }
            write_begin(&mut self.buffer, &self.transaction);
            self.begun = true;
            self.told_something = true;
        }
        if std::mem::take(&mut self.annotations_changed)
            && let Err(too_long) = write_annotations(&mut self.buffer, self.annotations.as_deref())
        {
            pgrx::warning!("pgstream_hooks: annotations are too long: {too_long}");
        }
    }

    /// Leaves out of the targets of a replicated change those who want only what was committed here first.
    fn leave_out_local(&mut self) {
        if self.transaction.origin.is_some() {
            let Capture { router, targets, refused, .. } = self;
            targets.retain(|target| !router.is_local(target.subscription));
            refused.retain(|refused| !router.is_local(refused.target.subscription));
        }
    }

    fn wait_until_visible(&mut self) {
        let xid = pg_sys::TransactionId::from(self.transaction.xid);
        // SAFETY: looks at the process array.
        let running = || unsafe { pg_sys::TransactionIdIsInProgress(xid) };
        let mut pause = Duration::from_millis(1);
        while running() {
            // What came before must not wait for it.
            self.flush();
            self.database.decoder_sleeps.store(true, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            if running() {
                bgworker::pause(pause);
                pause = (pause * 2).min(Duration::from_millis(100));
            }
            self.database.decoder_sleeps.store(false, Ordering::SeqCst);
        }
    }

    /// A change of the transaction.
    ///
    /// # Safety
    /// Called from a change callback with its arguments.
    pub unsafe fn change(&mut self, relation: pg_sys::Relation, change: *mut pg_sys::ReorderBufferChange) {
        let ordinal = self.next_ordinal();
        // SAFETY: as the caller promises.
        let (old, new) = unsafe { compat::tuples_of(change) };
        // SAFETY: as the caller promises.
        self.lsn = Lsn(unsafe { (*change).lsn });
        // SAFETY: as the caller promises.
        let action = match unsafe { (*change).action } {
            pg_sys::ReorderBufferChangeType::REORDER_BUFFER_CHANGE_INSERT => Action::Insert,
            pg_sys::ReorderBufferChangeType::REORDER_BUFFER_CHANGE_UPDATE => Action::Update,
            pg_sys::ReorderBufferChangeType::REORDER_BUFFER_CHANGE_DELETE => Action::Delete,
            _ => return,
        };
        // SAFETY: as the caller promises.
        unsafe {
            if (*relation).rd_id == self.subscriptions {
                // The table has REPLICA IDENTITY FULL, so both rows are whole.
                self.look_up(relation);
                if let Some(table) = self.relations.get_mut(&self.subscriptions) {
                    self.edits.extend(subscription_changes::read(
                        table,
                        &mut self.scratch,
                        (*relation).rd_att,
                        old,
                        new,
                    ));
                }
                return;
            }
            if (*relation).rd_id == self.schema_changes {
                if action == Action::Insert {
                    let objects = self.schema_change(relation, new, ordinal);
                    self.note_command(&objects);
                }
                return;
            }
            self.look_up(relation);
            self.capture(&Change { relation, action, old, new }, ordinal);
        }
        self.flush_when_full();
    }

    fn next_ordinal(&mut self) -> u64 {
        let ordinal = self.ordinal;
        self.ordinal += 1;
        self.counted.0 += 1;
        ordinal
    }

    /// Makes sure that the relation is known as of this change.
    ///
    /// # Safety
    /// Called from a callback with a relation that it was given.
    unsafe fn look_up(&mut self, relation: pg_sys::Relation) {
        self.forget_stale();
        // SAFETY: as the caller promises.
        unsafe {
            let oid = (*relation).rd_id;
            if !self.relations.contains_key(&oid) {
                let always = oid == self.subscriptions || oid == self.schema_changes;
                let before = self.stale.remove(&oid);
                let mut captured = CapturedRelation::build(relation, &self.router, before, always);
                captured.model.version = self.versions.of(&captured.model.names);
                self.tell_of_denied(&captured);
                for level in &captured.levels()[1..] {
                    self.below.entry(level.oid.into()).or_default().insert(oid);
                }
                self.relations.insert(oid, captured);
            }
        }
    }

    /// Says once of whom changes of a table are kept, and once more when that is over and begins again.
    fn tell_of_denied(&mut self, relation: &CapturedRelation) {
        let (oid, denied) = (relation.model.oid, relation.denied());
        if denied.is_empty() && self.denied.is_empty() {
            return;
        }
        self.denied.retain(|(table, owner)| *table != oid || denied.contains(owner));
        for owner in denied {
            if self.denied.insert((oid, owner.clone())) {
                let name = relation.model.name(0);
                pgrx::log!(
                    "pgstream_hooks: subscriptions of role \"{owner}\" get nothing of table {}.{}, which it may not read as they want",
                    name.schema,
                    name.table
                );
            }
        }
    }

    fn forget_stale(&mut self) {
        match relcache_invalidation::take() {
            Stale::Some(mut oids) => {
                self.table_gaps.is_stale |= !oids.is_empty();
                let below: Vec<_> = oids.iter().filter_map(|oid| self.below.remove(oid)).flatten().collect();
                oids.extend(below);
                self.stale.extend(oids.iter().filter_map(|oid| self.relations.remove_entry(oid)));
            }
            Stale::All => {
                self.table_gaps.is_stale = true;
                self.below.clear();
                self.stale.extend(self.relations.drain());
            }
        }
        // Some are never asked for again.
        if self.stale.len() > MOST_STALE {
            self.stale.clear();
        }
    }

    /// Encodes a change for those who want it. One that cannot be encoded is told as failed and stops nothing.
    ///
    /// # Safety
    /// The relation is open, and the tuples are null or rows of it.
    unsafe fn capture(&mut self, change: &Change, ordinal: u64) {
        let Change { relation, action, old, new } = *change;
        // SAFETY: as the caller promises.
        let (oid, desc) = unsafe { ((*relation).rd_id, (*relation).rd_att) };
        self.report_missed(oid, action);
        let Some(relation) = self.relations.get_mut(&oid) else { return };
        self.targets.clear();
        self.refused.clear();
        // SAFETY: as the caller promises.
        unsafe { relation.select(change, self.memory, &mut self.targets, &mut self.refused) };
        self.leave_out_local();
        if self.targets.is_empty() && self.refused.is_empty() {
            return;
        }
        self.counted.1 += 1;
        self.announce_transaction();
        let Some(reference) = self.announce_relation(oid) else { return };
        for Refused { target, why } in self.refused.drain(..) {
            write_refusal(&mut self.buffer, target.subscription, &why.message);
            self.targets.push(target);
        }
        let start = self.buffer.len();
        let head = ChangeHead { reference, action, ordinal, lsn: self.lsn, targets: &self.targets };
        let (relation, scratch, buffer) = (self.relations.get_mut(&oid), &mut self.scratch, &mut self.buffer);
        let Some(relation) = relation else { return };
        let encoded = in_subtransaction(self.memory, || {
            // SAFETY: as the caller promises.
            unsafe { write_change(buffer, &head, relation, scratch, desc, old, new) }
                .map_err(|too_long| too_long.to_string())
        });
        let raised = match encoded {
            Ok(Ok(())) => return,
            Ok(Err(message)) => Raised::new(PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED, message),
            Err(raised) => {
                let column = relation.model.columns.get(self.scratch.column);
                let name = column.map_or_else(String::new, |column| format!("column \"{}\": ", column.name));
                Raised { message: name + &raised.message, ..raised }
            }
        };
        self.buffer.truncate(start);
        self.fail(reference, action, ordinal, &raised);
    }

    /// Tells those who were to get an event that it could not be encoded, and why.
    fn fail(&mut self, reference: u32, action: Action, ordinal: u64, raised: &Raised) {
        let failure = FailureHead {
            reference: Some(reference),
            action,
            ordinal,
            targets: &self.targets,
            keys: LaneKeys::default(),
            barrier: action.is_of_rows(),
            sqlstate: &sqlstate(raised.code),
            message: &raised.message,
        };
        // Too many targets for one frame is the only way this can fail; the message says so.
        if let Err(too_long) = write_failed(&mut self.buffer, &failure) {
            pgrx::warning!(
                "pgstream_hooks: an event that cannot be encoded cannot be recorded either: {too_long}"
            );
        }
    }

    /// By which number the dispatcher knows the relation of this oid.
    fn reference_of(&mut self, oid: pg_sys::Oid) -> u32 {
        let next = self.references.len() as u32;
        *self.references.entry(oid).or_insert(next)
    }

    /// Tells of this version of a relation before its first event; returns the number it goes by.
    fn announce_relation(&mut self, oid: pg_sys::Oid) -> Option<u32> {
        let reference = self.reference_of(oid);
        let relation = self.relations.get_mut(&oid)?;
        if relation.reference.is_none() {
            if let Err(too_long) = write_relation(&mut self.buffer, reference, &relation.model) {
                pgrx::warning!("pgstream_hooks: a table's description is too long: {too_long}");
                return None;
            }
            relation.reference = Some(reference);
        }
        relation.reference
    }

    /// Tables truncated by one command of the transaction, whose record stands at `lsn`.
    ///
    /// # Safety
    /// Called from the truncate callback with its arguments.
    pub unsafe fn truncate(&mut self, relations: &[pg_sys::Relation], lsn: Lsn) {
        self.lsn = lsn;
        // SAFETY: as the caller promises.
        unsafe {
            let truncated: Vec<pg_sys::Oid> = relations.iter().map(|relation| (**relation).rd_id).collect();
            for relation in relations {
                let ordinal = self.next_ordinal();
                let oid = (**relation).rd_id;
                if oid == self.subscriptions {
                    self.edits.extend(self.router.ids().map(|id| (id, None)));
                    continue;
                }
                self.look_up(*relation);
                self.capture_truncate(*relation, &truncated, ordinal);
            }
        }
        self.flush_when_full();
    }

    /// A truncated table is shown under its own name: to say of a whole partitioned table that it is empty when one
    /// partition is would be wrong. When the whole was truncated, its own event says so, and the partitions' are left
    /// out for those who know them by that name.
    ///
    /// # Safety
    /// The relation is open, and known as of this change.
    unsafe fn capture_truncate(
        &mut self,
        relation: pg_sys::Relation,
        truncated: &[pg_sys::Oid],
        ordinal: u64,
    ) {
        // SAFETY: as the caller promises.
        let oid = unsafe { (*relation).rd_id };
        self.report_missed(oid, Action::Truncate);
        let Some(known) = self.relations.get_mut(&oid) else { return };
        // SAFETY: as the caller promises.
        let wanting = unsafe { known.truncating(relation, self.memory) };
        let levels = known.levels();
        let is_covered = |interest: &Interest| {
            let level = levels.get(usize::from(interest.level)).filter(|_| interest.level > 0);
            level.is_some_and(|level| truncated.contains(&level.oid.into()))
        };
        self.targets.clear();
        let wanting = wanting.into_iter().filter(|interest| !is_covered(interest));
        self.targets.extend(wanting.map(|interest| Target { subscription: interest.subscription, level: 0 }));
        self.leave_out_local();
        if self.targets.is_empty() {
            return;
        }
        self.counted.1 += 1;
        self.announce_transaction();
        let Some(reference) = self.announce_relation(oid) else { return };
        let (action, lsn) = (Action::Truncate, self.lsn);
        let head = ChangeHead { reference, action, ordinal, lsn, targets: &self.targets };
        if let Err(too_long) = begin_change(&mut self.buffer, &head).finish(LaneKeys::default(), true) {
            pgrx::warning!("pgstream_hooks: a truncate has too many subscribers for one event: {too_long}");
        }
    }

    /// The transaction is complete: what it did to subscriptions counts for every transaction behind it.
    pub fn commit(&mut self, end_lsn: Lsn) {
        let edits = std::mem::take(&mut self.edits);
        if !edits.is_empty() {
            self.announce_transaction();
        }
        if self.begun {
            write_commit(&mut self.buffer, end_lsn);
        }
        let mut were_enabled = BTreeMap::new();
        for (id, spec) in &edits {
            were_enabled.entry(*id).or_insert(self.router.is_enabled(*id));
            self.router.apply(*id, spec.as_ref());
            let text = spec.as_ref().and_then(|spec| serde_json::to_string(spec).ok());
            if let Err(too_long) = write_subscription(&mut self.buffer, *id, end_lsn, text.as_deref()) {
                pgrx::warning!("pgstream_hooks: subscription {id} is too long to be told: {too_long}");
            }
        }
        worker_counters::add(&self.database.decoded.transactions, 1);
        self.count();
        if !edits.is_empty() {
            for known in [&mut self.relations, &mut self.stale] {
                known.retain(|_, relation| edits.iter().all(|(id, _)| relation.reroute(*id, &self.router)));
            }
        }
        let is_switched = |(id, was_enabled): &(i64, bool)| *was_enabled != self.router.is_enabled(*id);
        let switched = were_enabled.into_iter().filter(is_switched).map(|(id, _)| id).collect();
        self.end_catalog_changes(end_lsn, !edits.is_empty(), &switched);
        self.flush_when_full();
    }
}
