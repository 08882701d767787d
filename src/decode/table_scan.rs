//! A chunk of a table, read in the order of its key and encoded as the decoder encodes changes.

use std::ffi::{CStr, CString};
use std::time::{Duration, Instant};

use pgrx::PgSqlErrorCode;
use pgrx::pg_sys::{self, Datum, Oid};

use super::citus;
use super::encode::change::write_change;
use super::encode::column::Scratch;
use super::encode::relation::CapturedRelation;
use super::read_order::{OrderColumn, ReadOrder, Unreadable, has_no_rows, input};
use super::routing::relation_matcher::{Change, Refused};
use super::routing::router::Router;
use super::schema_versions::SchemaVersions;
use crate::event::{Action, Fingerprint, Lsn, Timestamp, Transaction};
use crate::ipc::frame::{
    ChangeHead, ChunkEnd, FailureHead, LaneKeys, NoChunk, Target, TooLong, Visible, write_begin, write_chunk,
    write_failed, write_relation,
};
use crate::pg::compat;
use crate::pg::memory_context::Memory;
use crate::pg::subtransaction::{in_subtransaction, sqlstate};
use crate::pg::values::encoding;

/// How long reading a chunk may take: for so long its snapshot holds up vacuum, and its lock a schema change.
const LONGEST: Duration = Duration::from_millis(5);
/// How many rows are fetched at once.
const ROWS_AT_ONCE: i64 = 100;

/// Which rows are wanted.
pub struct Reading<'a> {
    /// The backfill.
    pub backfill: i64,
    /// The table.
    pub table: Oid,
    /// The position after which the chunk begins, and the definition of the order that it was taken in; none at the start of
    /// the table.
    pub position: Option<(&'a str, &'a [i64])>,
    /// A column to read in the order of, before the key.
    pub order_by: Option<&'a str>,
    /// The least value of that column.
    pub start: Option<&'a str>,
    /// The most rows.
    pub rows: i64,
    /// When to stop, by the bytes of what has been read; one row may always be read.
    pub bytes: usize,
    /// Knows the subscription that the rows are for; and under other names, who else must want a row for it to be sent.
    pub router: &'a Router,
    /// The versions of schemas.
    pub versions: &'a SchemaVersions,
    /// That subscription.
    pub subscription: i64,
}

/// Reads a chunk and appends it to `out` as the queue takes it. Outside of any snapshot but in a transaction, which should
/// end soon.
///
/// # Errors
///
/// Why there is no chunk; nothing is appended then. A table that is gone is read to its end.
pub fn read(reading: &Reading<'_>, out: &mut Vec<u8>) -> Result<Lsn, NotRead> {
    let start = out.len();
    let lock = pg_sys::AccessShareLock as i32;
    // Before the snapshot: rows that a rewrite has moved would not be seen by an older one.
    // SAFETY: a transaction is in progress, whose end releases the lock.
    let locked = unsafe { pg_sys::ConditionalLockRelationOid(reading.table, lock) };
    if !locked {
        return Err(NotRead { why: NoChunk::Later, unreadable: None });
    }
    let memory = Memory::new(c"pgwh chunk");
    let read = in_subtransaction(memory.context(), || {
        // SAFETY: the lock is held; null when the table is gone.
        let relation = unsafe { pg_sys::try_relation_open(reading.table, pg_sys::NoLock as _) };
        if relation.is_null() {
            return absent(reading, out);
        }
        // SAFETY: the relation is open until the end, or until an ERROR closes it.
        unsafe {
            let mut read = read_open(reading, relation, out);
            // What has no rows needs no order.
            if read.is_err() && has_no_rows(relation) {
                out.truncate(start);
                read = write_end(reading, false, out);
            }
            pg_sys::relation_close(relation, pg_sys::NoLock as _);
            read
        }
    });
    let read = read.unwrap_or_else(|raised| Err(Stopped::Now(raised.message)));
    read.map_err(|stopped| {
        out.truncate(start);
        let unreadable = match &stopped {
            Stopped::Unreadable(Unreadable { reason, .. }) => Some(format!("{reason}.")),
            _ => None,
        };
        NotRead { why: NoChunk::Failed(stopped.reason(reading.backfill)), unreadable }
    })
}

/// Why there is no chunk.
pub struct NotRead {
    /// As the dispatcher is told.
    pub why: NoChunk,
    /// For a table that cannot be read at all: the reason, with which a backfill of several tables leaves it out.
    pub unreadable: Option<String>,
}

/// Why a backfill does not go on.
enum Stopped {
    /// Until the cause is gone.
    Now(String),
    /// Until the table can be read.
    Unreadable(Unreadable),
    /// For good.
    Always(String),
}

impl Stopped {
    /// The reason, and what to type.
    fn reason(self, id: i64) -> String {
        let cancel = format!("SELECT pgwh.cancel_backfill({id});");
        let resume = format!("SELECT pgwh.resume_backfill({id});");
        match self {
            Stopped::Now(reason) | Stopped::Unreadable(Unreadable { reason, remedy: None }) => {
                format!("{reason}. To go on once that is fixed: {resume} To give it up: {cancel}")
            }
            Stopped::Unreadable(Unreadable { reason, remedy: Some(remedy) }) => {
                format!("{reason}. To go on: {remedy} {resume} To give it up: {cancel}")
            }
            Stopped::Always(reason) => format!("{reason}. It cannot go on: {cancel}"),
        }
    }
}

impl From<String> for Stopped {
    fn from(reason: String) -> Stopped {
        Stopped::Now(reason)
    }
}

impl From<TooLong> for Stopped {
    fn from(too_long: TooLong) -> Stopped {
        Stopped::Now(too_long.to_string())
    }
}

impl From<Unreadable> for Stopped {
    fn from(unreadable: Unreadable) -> Stopped {
        Stopped::Unreadable(unreadable)
    }
}

/// The end of a table that is not, or no longer, one of those that are read.
fn absent(reading: &Reading<'_>, out: &mut Vec<u8>) -> Result<Lsn, Stopped> {
    write_end(reading, true, out)
}

/// A chunk without rows, which is the last one of its table.
fn write_end(reading: &Reading<'_>, is_absent: bool, out: &mut Vec<u8>) -> Result<Lsn, Stopped> {
    let end = ChunkEnd {
        backfill: reading.backfill,
        table: reading.table.to_u32(),
        is_absent,
        ..ChunkEnd::default()
    };
    write_begin(out, &NO_TRANSACTION);
    write_chunk(out, &end)?;
    Ok(Lsn(0))
}

/// What stands for the transaction of rows until they are given one.
const NO_TRANSACTION: Transaction = Transaction {
    xid: 0,
    commit_lsn: Lsn(0),
    committed_at: Timestamp(0),
    fingerprint: Fingerprint::NONE,
    origin: None,
};

/// # Safety
/// The relation is open and locked.
unsafe fn read_open(
    reading: &Reading<'_>,
    relation: pg_sys::Relation,
    out: &mut Vec<u8>,
) -> Result<Lsn, Stopped> {
    // SAFETY: as the caller promises.
    let mut captured = unsafe { CapturedRelation::build(relation, reading.router, None, true) };
    captured.model.version = reading.versions.of(&captured.model.names);
    let interests = captured.routes.interests();
    // The backfill's own filter, too, looks at rows on the owner's behalf.
    if interests.len() < reading.router.interests(captured.levels()).count() {
        // SAFETY: as the caller promises.
        let name = encoding::name(unsafe { &(*(*relation).rd_rel).relname });
        let reason = format!(
            "the subscription's owner may not read table {name}: it needs SELECT, and no row-level security in its way"
        );
        return Err(Stopped::Unreadable(Unreadable { reason, remedy: None }));
    }
    let interest = interests.iter().find(|interest| interest.subscription == reading.subscription);
    let Some(target) = interest.map(|interest| interest.target()) else { return absent(reading, out) };
    let judges = interests.len();
    // SAFETY: as the caller promises.
    let (owner, order) = unsafe {
        ((*(*relation).rd_rel).relowner, ReadOrder::of(relation, reading.order_by, reading.start)?)
    };
    write_begin(out, &NO_TRANSACTION);
    write_relation(out, 0, &captured.model)?;
    // SAFETY: what is pushed is popped, and the user set back, or both by the end of the subtransaction.
    unsafe {
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        let seen = visible(pg_sys::GetActiveSnapshot());
        let high = Lsn(compat::wal_insert_end());
        if citus::has(reading.table).map_err(|error| error.to_string())? {
            return Err(Unreadable { reason: citus::ELSEWHERE.to_owned(), remedy: None }.into());
        }
        // Before the rows: what changes the order without a lock on the table is noticed by the next chunk then.
        let definition = order.definition(reading.table).map_err(|error| Stopped::Now(error.to_string()))?;
        let position = position_in(reading, &order, &definition)?;
        let (mut user, mut context) = (Oid::INVALID, 0);
        pg_sys::GetUserIdAndSecContext(&mut user, &mut context);
        let restricted = pg_sys::SECURITY_RESTRICTED_OPERATION | pg_sys::SECURITY_LOCAL_USERID_CHANGE;
        // As maintenance does it: whatever runs for a table runs as its owner.
        pg_sys::SetUserIdAndSecContext(owner, context | restricted as i32);
        let mut rows = Rows { relation, captured, target, judges, scratch: Scratch::default(), read: 0, out };
        let position = scan(reading, relation, (&order, position), &mut rows);
        pg_sys::SetUserIdAndSecContext(user, context);
        pg_sys::PopActiveSnapshot();
        let end = ChunkEnd {
            backfill: reading.backfill,
            table: reading.table.to_u32(),
            root: rows.captured.model.root_oid,
            is_partition: (*(*relation).rd_rel).relispartition,
            read: rows.read,
            position: position?,
            definition,
            is_absent: false,
            seen,
            high,
        };
        write_chunk(rows.out, &end)?;
        Ok(high)
    }
}

/// Where the chunk begins; none: at the start of the table, also when the position was taken in another order.
fn position_in<'a>(
    reading: &Reading<'a>,
    order: &ReadOrder,
    definition: &[i64],
) -> Result<Option<&'a str>, Stopped> {
    let Some((position, before)) = reading.position else { return Ok(None) };
    if before == definition {
        return Ok(Some(position));
    }
    // The first element stands for the key, the second for the first column.
    if let (Some(start), Some(column)) = (reading.start, reading.order_by)
        && (before.get(1) != definition.get(1))
    {
        return Err(Stopped::Always(format!(
            "column {column} got other values or another order, so rows from \"{start}\" on are not the same rows as before"
        )));
    }
    pgrx::log!(
        "pgstream_hooks: backfill {} reads table {} from its start again: its key, or the order of a column, has changed",
        reading.backfill,
        order.table
    );
    Ok(None)
}

/// # Safety
/// The snapshot is an MVCC snapshot.
unsafe fn visible(snapshot: pg_sys::Snapshot) -> Visible {
    // SAFETY: as the caller promises; the array has so many members.
    unsafe {
        let snapshot = &*snapshot;
        let running = (0..snapshot.xcnt as usize).map(|place| u32::from(*snapshot.xip.add(place)));
        Visible { xmin: u32::from(snapshot.xmin), xmax: u32::from(snapshot.xmax), running: running.collect() }
    }
}

/// Where rows go.
struct Rows<'a> {
    relation: pg_sys::Relation,
    captured: CapturedRelation,
    target: Target,
    /// How many must want a row for it to be sent.
    judges: usize,
    scratch: Scratch,
    read: u64,
    out: &'a mut Vec<u8>,
}

/// Reads rows until the chunk is full; returns behind which row the next one begins.
///
/// # Safety
/// The relation is open, and a snapshot is active.
unsafe fn scan(
    reading: &Reading<'_>,
    relation: pg_sys::Relation,
    (order, from): (&ReadOrder, Option<&str>),
    rows: &mut Rows<'_>,
) -> Result<Option<String>, String> {
    let (memory, large) = (Memory::new(c"pgwh row"), Memory::new(c"pgwh large values"));
    let deadline = Instant::now() + LONGEST;
    let begin = rows.out.len();
    // SAFETY: SPI is left as it was entered, or by the end of the subtransaction.
    unsafe {
        pg_sys::SPI_connect();
        let (query, mut types, mut values) = query(reading, relation, order, from)?;
        let nulls: Vec<std::ffi::c_char> = vec![b' ' as _; values.len()];
        let options = pg_sys::CURSOR_OPT_FAST_PLAN | pg_sys::CURSOR_OPT_NO_SCROLL;
        let plan =
            pg_sys::SPI_prepare_cursor(query.as_ptr(), types.len() as _, types.as_mut_ptr(), options as _);
        let portal =
            pg_sys::SPI_cursor_open(std::ptr::null(), plan, values.as_mut_ptr(), nulls.as_ptr(), true);
        let mut position = Ok(None);
        'chunk: while (rows.read as i64) < reading.rows {
            let wanted = ROWS_AT_ONCE.min(reading.rows - rows.read as i64);
            pg_sys::SPI_cursor_fetch(portal, true, wanted as _);
            let found = pg_sys::SPI_processed as usize;
            let table = pg_sys::SPI_tuptable;
            position = Ok(None);
            for place in 0..found {
                let (tuple, desc) = (*(*table).vals.add(place), (*table).tupdesc);
                if let Err(reason) = rows.take(tuple, desc, memory.context(), large.context()) {
                    position = Err(reason);
                    break 'chunk;
                }
                let is_last = place + 1 == found;
                let is_full = rows.out.len() - begin >= reading.bytes;
                let is_over = is_last && (Instant::now() >= deadline || rows.read as i64 >= reading.rows);
                if is_full || is_over {
                    position = Ok(Some(order.position_of(tuple, desc)));
                    break 'chunk;
                }
            }
            pg_sys::SPI_freetuptable(table);
            pgrx::check_for_interrupts!();
            if (found as i64) < wanted {
                break;
            }
        }
        pg_sys::SPI_cursor_close(portal);
        pg_sys::SPI_finish();
        position
    }
}

impl Rows<'_> {
    /// Encodes a row that is wanted. One that cannot be encoded becomes a dead letter and stops nothing. What is allocated
    /// on the way is freed with `memory` and `large`.
    ///
    /// # Errors
    ///
    /// When nobody can say whether it is wanted.
    ///
    /// # Safety
    /// The tuple is a row of the relation as `desc` describes it.
    unsafe fn take(
        &mut self,
        tuple: pg_sys::HeapTuple,
        desc: pg_sys::TupleDesc,
        memory: pg_sys::MemoryContext,
        large: pg_sys::MemoryContext,
    ) -> Result<(), String> {
        let mut whole = pg_sys::HeapTupleData::default();
        // SAFETY: as the caller promises; nothing of the row before is in use.
        let tuple = unsafe {
            pg_sys::MemoryContextReset(large);
            let context = pg_sys::MemoryContextSwitchTo(large);
            let tuple = with_large_values(tuple, desc, &mut whole);
            pg_sys::MemoryContextSwitchTo(context);
            tuple
        };
        // SAFETY: as the caller promises.
        let is_wanted = unsafe { self.is_wanted(tuple, memory)? };
        if is_wanted {
            // SAFETY: as the caller promises.
            unsafe { self.encode(tuple, desc, memory) };
        }
        self.read += 1;
        Ok(())
    }

    /// # Safety
    /// The tuple is a row of the relation.
    unsafe fn is_wanted(
        &mut self,
        tuple: pg_sys::HeapTuple,
        memory: pg_sys::MemoryContext,
    ) -> Result<bool, String> {
        // What is read is matched as what is inserted.
        let (action, old) = (Action::Insert, std::ptr::null_mut());
        let change = Change { relation: self.relation, action, old, new: tuple };
        let (mut targets, mut refused) = (Vec::new(), Vec::new());
        // SAFETY: as the caller promises.
        unsafe { self.captured.select(&change, memory, &mut targets, &mut refused) };
        match refused.pop() {
            Some(Refused { why, .. }) => Err(why.message),
            None => Ok(targets.len() == self.judges),
        }
    }

    /// # Safety
    /// The tuple is a row of the relation as `desc` describes it, and holds all of itself.
    unsafe fn encode(
        &mut self,
        tuple: pg_sys::HeapTuple,
        desc: pg_sys::TupleDesc,
        memory: pg_sys::MemoryContext,
    ) {
        let ordinal = self.read;
        let start = self.out.len();
        let targets = [self.target];
        let head = ChangeHead { reference: 0, action: Action::Read, ordinal, lsn: Lsn(0), targets: &targets };
        let (captured, scratch, out) = (&mut self.captured, &mut self.scratch, &mut *self.out);
        let encoded = in_subtransaction(memory, || {
            // SAFETY: as the caller promises.
            unsafe { write_change(out, &head, captured, scratch, desc, std::ptr::null_mut(), tuple) }
                .map_err(|too_long| too_long.to_string())
        });
        let (sqlstate, message) = match encoded {
            Ok(Ok(())) => return,
            Ok(Err(message)) => (sqlstate(PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED), message),
            Err(raised) => (sqlstate(raised.code), raised.message),
        };
        self.out.truncate(start);
        let failure = FailureHead {
            reference: Some(0),
            action: Action::Read,
            ordinal,
            targets: &targets,
            keys: LaneKeys::default(),
            barrier: true,
            sqlstate: &sqlstate,
            message: &message,
        };
        if let Err(too_long) = write_failed(self.out, &failure) {
            pgrx::warning!(
                "pgstream_hooks: a row that cannot be encoded cannot be recorded either: {too_long}"
            );
        }
    }
}

/// The row with what is stored beside it.
///
/// # Safety
/// The tuple is a row as `desc` describes it. The result lives in the current memory context, or is the tuple itself.
unsafe fn with_large_values(
    tuple: pg_sys::HeapTuple,
    desc: pg_sys::TupleDesc,
    whole: &mut pg_sys::HeapTupleData,
) -> pg_sys::HeapTuple {
    // SAFETY: as the caller promises; a composite value holds all of itself (`heaptuple.c`, heap_copy_tuple_as_datum).
    unsafe {
        if u32::from((*(*tuple).t_data).t_infomask) & pg_sys::HEAP_HASEXTERNAL == 0 {
            return tuple;
        }
        let datum = pg_sys::heap_copy_tuple_as_datum(tuple, desc);
        whole.t_data = datum.cast_mut_ptr();
        whole.t_len = pgrx::varsize(whole.t_data.cast_const().cast()) as u32;
        whole
    }
}

/// The query with its parameters' types and values. Its columns stand where the relation's do.
///
/// # Safety
/// The relation is open.
unsafe fn query(
    reading: &Reading<'_>,
    relation: pg_sys::Relation,
    order: &ReadOrder,
    from: Option<&str>,
) -> Result<(CString, Vec<Oid>, Vec<Datum>), String> {
    let (mut types, mut values) = (Vec::new(), Vec::new());
    // SAFETY: as the caller promises; names are C strings in the database's encoding.
    unsafe {
        let desc = (*relation).rd_att;
        let mut sql = Vec::from(b"SELECT ");
        for place in 0..(*desc).natts as usize {
            let attribute = compat::attribute(desc, place);
            if place > 0 {
                sql.extend_from_slice(b", ");
            }
            if attribute.attisdropped || attribute.attgenerated as u8 == b'v' {
                sql.extend_from_slice(b"NULL");
            } else {
                put_name(&mut sql, attribute.attname.data.as_ptr());
            }
        }
        sql.extend_from_slice(b" FROM ONLY ");
        let form = &*(*relation).rd_rel;
        put_name(&mut sql, pg_sys::get_namespace_name(form.relnamespace));
        sql.push(b'.');
        put_name(&mut sql, form.relname.data.as_ptr());
        let mut parameter = |column: &OrderColumn, value: Datum| {
            types.push(column.type_oid);
            values.push(value);
            format!("${}", types.len())
        };
        let names = |text: &mut Vec<u8>, columns: &[OrderColumn]| {
            for (place, column) in columns.iter().enumerate() {
                if place > 0 {
                    text.extend_from_slice(b", ");
                }
                put_name(text, compat::attribute(desc, column.number as usize - 1).attname.data.as_ptr());
                if let Some(collation) = column.collation {
                    text.extend_from_slice(b" COLLATE ");
                    let name = pg_sys::generate_collation_name(collation);
                    text.extend_from_slice(CStr::from_ptr(name).to_bytes());
                }
            }
        };
        let compare =
            |text: &mut Vec<u8>, columns: &[OrderColumn], operator: &str, parameters: Vec<String>| {
                text.extend_from_slice(b" WHERE (");
                names(text, columns);
                text.extend_from_slice(b") OPERATOR(");
                match &order.operator_schema {
                    Some(schema) => put_name(text, schema.as_ptr()),
                    None => text.extend_from_slice(b"pg_catalog"),
                }
                text.extend_from_slice(format!(".{operator}) ({})", parameters.join(", ")).as_bytes());
            };
        if let Some(position) = from {
            let values = order.values_at(position)?;
            let parameters = order.columns.iter().zip(values).map(|(column, value)| parameter(column, value));
            compare(&mut sql, &order.columns, ">", parameters.collect());
        } else if let (Some(start), [first, ..]) = (reading.start, order.columns.as_slice()) {
            let value = input(first.type_oid, &encoding::in_server_encoding(start));
            compare(&mut sql, &order.columns[..1], ">=", vec![parameter(first, value)]);
        }
        sql.extend_from_slice(b" ORDER BY ");
        names(&mut sql, &order.columns);
        sql.extend_from_slice(format!(" LIMIT {}", reading.rows).as_bytes());
        // No name has a NUL in it.
        Ok((CString::new(sql).unwrap_or_default(), types, values))
    }
}

/// # Safety
/// `name` is a C string.
unsafe fn put_name(out: &mut Vec<u8>, name: *const std::ffi::c_char) {
    // SAFETY: as the caller promises.
    unsafe { out.extend_from_slice(CStr::from_ptr(pg_sys::quote_identifier(name)).to_bytes()) }
}
