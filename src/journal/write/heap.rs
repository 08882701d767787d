//! Rows of our tables, read and written without a statement.
//!
//! Hooks of the executor, such as those of extensions that audit statements, see neither the rows nor their values, and
//! logical decoding gets nothing of a row that is inserted here (`HEAP_INSERT_NO_LOGICAL`), nor of a table that is emptied.
//! No trigger fires, and nothing checks constraints but unique indexes: the callers see to that.
//!
//! Nothing is released when an ERROR passes through: the end of the transaction does that.

use std::ffi::CString;

use pgrx::pg_sys::{self, Datum};
use pgrx::{FromDatum, IntoDatum};

use crate::journal::own_tables;
use crate::pg::compat;

/// A value of a column; none for NULL.
pub type Value = Option<Datum>;

/// One of the extension's tables that is open for rows to be read and written. Inside a transaction.
pub struct Table {
    relation: pg_sys::Relation,
    /// What maintains the indexes; made for the first row that is inserted.
    indexes: Option<Indexes>,
    has_changed: bool,
}

/// What the executor needs to maintain the indexes of a table.
struct Indexes {
    estate: *mut pg_sys::EState,
    result: *mut pg_sys::ResultRelInfo,
    slot: *mut pg_sys::TupleTableSlot,
    /// Holds what a row is made of, until the next one.
    memory: pg_sys::MemoryContext,
}

/// A row of a table.
pub struct StoredRow {
    place: pg_sys::ItemPointerData,
    /// Its values, each as a copy that is stored nowhere else.
    values: Vec<Value>,
}

impl StoredRow {
    /// The value of the column with this number; none for NULL.
    pub fn get<T: FromDatum>(&self, column: i16) -> Option<T> {
        let value = self.values.get(column as usize - 1).copied().flatten()?;
        // SAFETY: the callers know the columns' types, and the value was copied.
        unsafe { T::from_datum(value, false) }
    }

    /// Has the column with this number hold another value.
    pub fn set(&mut self, column: i16, value: impl IntoDatum) {
        if let Some(place) = self.values.get_mut(column as usize - 1) {
            *place = value.into_datum();
        }
    }
}

impl Table {
    /// Opens a table to be written.
    pub fn open(name: &str) -> Table {
        Table::open_with(name, pg_sys::RowExclusiveLock)
    }

    /// Opens a table to be read.
    pub fn open_to_read(name: &str) -> Table {
        Table::open_with(name, pg_sys::AccessShareLock)
    }

    fn open_with(name: &str, lock: u32) -> Table {
        // SAFETY: inside a transaction, which holds the lock until its end.
        let relation = unsafe { pg_sys::table_open(table_oid(name), lock as _) };
        Table { relation, indexes: None, has_changed: false }
    }

    /// The row whose primary key's first column, the one with this number, has this value, as of the latest commits.
    pub fn find(&self, column: i16, key: i64) -> Option<StoredRow> {
        let equal = pg_sys::BTEqualStrategyNumber as pg_sys::StrategyNumber;
        let mut condition = pg_sys::ScanKeyData::default();
        // SAFETY: the relation is open, and the primary key's index begins with a bigint; what is opened is closed.
        unsafe {
            pg_sys::ScanKeyInit(
                &mut condition,
                column,
                equal,
                pg_sys::Oid::from(pg_sys::F_INT8EQ),
                Datum::from(key),
            );
            let snapshot = pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot());
            let index = compat::primary_key_index(self.relation);
            let scan = pg_sys::systable_beginscan(self.relation, index, true, snapshot, 1, &mut condition);
            let tuple = pg_sys::systable_getnext(scan);
            let found = (!tuple.is_null()).then(|| self.take_apart(tuple));
            pg_sys::systable_endscan(scan);
            pg_sys::UnregisterSnapshot(snapshot);
            found
        }
    }

    /// # Safety
    /// The tuple is one of the relation, in a page that stays.
    unsafe fn take_apart(&self, tuple: pg_sys::HeapTuple) -> StoredRow {
        // SAFETY: as the caller promises; the arrays have a place for each column.
        unsafe {
            let desc = (*self.relation).rd_att;
            let columns = (*desc).natts as usize;
            let (mut values, mut nulls) = (vec![Datum::null(); columns], vec![true; columns]);
            pg_sys::heap_deform_tuple(tuple, desc, values.as_mut_ptr(), nulls.as_mut_ptr());
            let copy = |n: usize| {
                let attribute = compat::attribute(desc, n);
                match (nulls[n], attribute.attlen) {
                    (true, _) => None,
                    (false, -1) => Some(Datum::from(pg_sys::pg_detoast_datum_copy(values[n].cast_mut_ptr()))),
                    (false, length) => Some(pg_sys::datumCopy(values[n], attribute.attbyval, length.into())),
                }
            };
            StoredRow { place: (*tuple).t_self, values: (0..columns).map(copy).collect() }
        }
    }

    /// Inserts a row. `row` makes the values of all columns, in their order; what it allocates is gone with the next one.
    pub fn insert<const N: usize>(&mut self, row: impl FnOnce() -> [Value; N]) {
        self.insert_values(row);
    }

    /// Puts a row in the place of the one that was found.
    ///
    /// Who might change the same row must have been locked out before it was found: else one of the two fails.
    pub fn replace(&mut self, row: StoredRow) {
        let StoredRow { mut place, values } = row;
        // SAFETY: the row is one of this relation.
        unsafe { pg_sys::simple_heap_delete(self.relation, &mut place) };
        self.insert_values(|| values);
    }

    fn insert_values<V: AsRef<[Value]>>(&mut self, row: impl FnOnce() -> V) {
        let relation = self.relation;
        // SAFETY: the relation is open, and its row is complete; what is allocated is released with the context.
        unsafe {
            let desc = (*relation).rd_att;
            let indexes = self.indexes.get_or_insert_with(|| Indexes::open(relation));
            pg_sys::MemoryContextReset(indexes.memory);
            let before = pg_sys::MemoryContextSwitchTo(indexes.memory);
            let row = row();
            let row = row.as_ref();
            if row.len() != (*desc).natts as usize {
                pgrx::error!("pgstream_hooks: a table of the extension has another number of columns");
            }
            let mut values: Vec<Datum> = row.iter().map(|value| value.unwrap_or_else(Datum::null)).collect();
            let mut nulls: Vec<bool> = row.iter().map(Option::is_none).collect();
            let tuple = pg_sys::heap_form_tuple(desc, values.as_mut_ptr(), nulls.as_mut_ptr());
            let (command, options) = (pg_sys::GetCurrentCommandId(true), pg_sys::HEAP_INSERT_NO_LOGICAL);
            pg_sys::heap_insert(relation, tuple, command, options as _, std::ptr::null_mut());
            // A slot for heap tuples takes their place along, which the entries of indexes need.
            pg_sys::ExecStoreHeapTuple(tuple, indexes.slot, false);
            (*indexes.slot).tts_tableOid = (*relation).rd_id;
            compat::insert_index_entries(indexes.result, indexes.slot, indexes.estate);
            pg_sys::MemoryContextSwitchTo(before);
        }
        self.has_changed = true;
    }

    /// Closes the table. What was written is visible to the next statement of the transaction.
    pub fn close(self) {
        // SAFETY: each was opened by this; the lock stays until the end of the transaction.
        unsafe {
            if let Some(indexes) = self.indexes {
                indexes.close();
            }
            pg_sys::table_close(self.relation, pg_sys::NoLock as _);
            if self.has_changed {
                pg_sys::CommandCounterIncrement();
            }
        }
    }
}

impl Indexes {
    /// # Safety
    /// The relation is open and locked for writing.
    unsafe fn open(relation: pg_sys::Relation) -> Indexes {
        // SAFETY: as the caller promises; all is allocated in the executor's own context.
        unsafe {
            let estate = pg_sys::CreateExecutorState();
            let before = pg_sys::MemoryContextSwitchTo((*estate).es_query_cxt);
            let result = pg_sys::palloc0(size_of::<pg_sys::ResultRelInfo>()).cast::<pg_sys::ResultRelInfo>();
            pg_sys::InitResultRelInfo(result, relation, 1, std::ptr::null_mut(), 0);
            pg_sys::ExecOpenIndices(result, false);
            let slot = pg_sys::MakeSingleTupleTableSlot((*relation).rd_att, &pg_sys::TTSOpsHeapTuple);
            let context = pg_sys::MakePerTupleExprContext(estate);
            pg_sys::MemoryContextSwitchTo(before);
            Indexes { estate, result, slot, memory: (*context).ecxt_per_tuple_memory }
        }
    }

    /// # Safety
    /// To be called once.
    unsafe fn close(self) {
        // SAFETY: opened by `open`.
        unsafe {
            pg_sys::ExecDropSingleTupleTableSlot(self.slot);
            pg_sys::ExecCloseIndices(self.result);
            pg_sys::FreeExecutorState(self.estate);
        }
    }
}

/// Waits for others who change rows of the table, and keeps them waiting until the end of the transaction.
pub fn lock_out_others(table: &str) {
    // SAFETY: a lock of the lock manager's, in a transaction; it is of no object, so of no use to anybody else.
    unsafe {
        pg_sys::LockDatabaseObject(table_oid(table), pg_sys::InvalidOid, 0, pg_sys::ExclusiveLock as _);
    }
}

/// Empties tables as TRUNCATE does (`ExecuteTruncateGuts`, commands/tablecmds.c), but for the record by which logical
/// decoding is informed. False, and nothing is done, when somebody holds a lock on one of them.
///
/// Each gets a new file, which takes the place of the old one when the transaction commits, on standbys, too.
pub fn empty(tables: &[String]) -> bool {
    let oids: Vec<pg_sys::Oid> = tables.iter().map(|name| table_oid(name)).collect();
    if !oids.iter().all(|oid| try_to_lock(*oid)) {
        return false;
    }
    let toasts: Vec<pg_sys::Oid> = oids.iter().filter_map(|oid| toast_of(*oid)).collect();
    if !toasts.iter().all(|oid| try_to_lock(*oid)) {
        return false;
    }
    for oid in toasts {
        // SAFETY: it is locked.
        unsafe { with_relation(oid, |toast| compat::set_new_file(toast)) };
    }
    for oid in oids {
        // SAFETY: it is locked, and so is its TOAST table.
        unsafe {
            with_relation(oid, |table| {
                pg_sys::CheckTableNotInUse(table, c"TRUNCATE".as_ptr());
                compat::set_new_file(table);
                compat::rebuild_indexes(oid);
                pg_sys::pgstat_count_truncate(table);
            });
        }
    }
    true
}

/// Locks a relation against everybody else until the end of the transaction, unless somebody has a lock on it.
fn try_to_lock(oid: pg_sys::Oid) -> bool {
    // SAFETY: the transaction's end releases the lock.
    unsafe { pg_sys::ConditionalLockRelationOid(oid, pg_sys::AccessExclusiveLock as _) }
}

fn toast_of(table: pg_sys::Oid) -> Option<pg_sys::Oid> {
    // SAFETY: the table is locked.
    let toast = unsafe { with_relation(table, |table| (*(*table).rd_rel).reltoastrelid) };
    (toast != pg_sys::InvalidOid).then_some(toast)
}

/// # Safety
/// The relation is there, and locked by this transaction.
unsafe fn with_relation<T>(oid: pg_sys::Oid, action: impl FnOnce(pg_sys::Relation) -> T) -> T {
    // SAFETY: as the caller promises.
    unsafe {
        let relation = pg_sys::relation_open(oid, pg_sys::NoLock as _);
        let result = action(relation);
        pg_sys::relation_close(relation, pg_sys::NoLock as _);
        result
    }
}

/// The oid of one of the extension's tables, which has to exist.
fn table_oid(name: &str) -> pg_sys::Oid {
    let oid = own_tables::oid_of(&CString::new(name).unwrap_or_default());
    if oid == pg_sys::InvalidOid {
        pgrx::error!("pgstream_hooks: table {name} does not exist");
    }
    oid
}
