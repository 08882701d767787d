//! An event: one committed change of one row (or one table), a schema change or a message, as write-ahead log tells it.
//!
//! This is the canonical form that everything after decoding works with. It holds enough to render every
//! payload format later, and nothing that depends on who subscribed. Nothing in here knows Postgres.

pub mod event_type;
pub mod format;
mod id;
pub mod jsonb;
mod kind;
mod lsn;
pub mod message_auth;
mod row;
mod segment;
mod statement;
mod time;
pub mod value;

use std::hash::Hasher;
use std::sync::Arc;

use rustc_hash::FxHasher;

pub use self::id::{EventId, Fingerprint, InvalidEventId};
pub use self::kind::Kind;
pub use self::lsn::InvalidLsn;
pub use self::row::{Cell, Cells, Row, RowBuilder, RowError};
pub use self::segment::path_segment;
pub use self::statement::{Message, SchemaChange};

/// A position in write-ahead log, in bytes since its beginning (`XLogRecPtr`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

/// A point in time: microseconds since 2000-01-01 00:00 UTC, as Postgres counts (`TimestampTz`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

/// What all events of one transaction share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// The top-level transaction id; 0 for what a backfill has read.
    pub xid: u32,
    /// Where the commit record begins: what orders transactions.
    pub commit_lsn: Lsn,
    /// The time of the commit here, as its record has it.
    pub committed_at: Timestamp,
    /// Tells this transaction from another that reused its place on a diverged timeline.
    pub fingerprint: Fingerprint,
    /// Where it was replicated from; none for one that was committed here first.
    pub origin: Option<Arc<Origin>>,
}

/// What a replicated transaction says of its original.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The name of the replication origin; none when it was dropped.
    pub name: Option<String>,
    /// Where it committed there; none when that was not said.
    pub lsn: Option<Lsn>,
    /// When it committed there; none when that was not said.
    pub committed_at: Option<Timestamp>,
}

/// What happened to the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// A row was inserted.
    Insert,
    /// A row was updated.
    Update,
    /// A row was deleted.
    Delete,
    /// A table was truncated.
    Truncate,
    /// A table or something else of a schema was created, altered or dropped.
    Ddl,
    /// A message was written, by `pgwh.emit` or by another application.
    Message,
    /// A row was there when a backfill came to it.
    Read = 6,
}

impl Action {
    /// The word that users and receivers know it by.
    pub fn word(self) -> &'static str {
        match self {
            Action::Insert => "insert",
            Action::Update => "update",
            Action::Delete => "delete",
            Action::Truncate => "truncate",
            Action::Ddl => "ddl",
            Action::Message => "message",
            Action::Read => "read",
        }
    }

    /// Whether it is a change of a table's rows.
    pub fn is_of_rows(self) -> bool {
        !matches!(self, Action::Ddl | Action::Message)
    }
}

/// A table's name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TableName {
    /// The schema.
    pub schema: String,
    /// The table.
    pub table: String,
}

/// A column of a relation, dropped ones left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its `attnum`, counted from 1; survives renames.
    pub number: i16,
    /// Its type's oid.
    pub type_oid: u32,
    /// Its type as `format_type` prints it.
    pub type_name: String,
    /// What that type is beneath.
    pub kind: Kind,
    /// Whether it belongs to the key: of the replica identity index, or of the primary key.
    pub is_key: bool,
    /// What bodies say of it before its value.
    pub heads: format::Heads,
}

/// What tells the rows of a relation apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyKind {
    /// The columns that are marked, if any; write-ahead log has their old values when they change.
    #[default]
    Logged,
    /// The columns that are marked; write-ahead log never has their old values.
    Unlogged,
    /// All columns.
    WholeRow,
}

/// A relation as a stretch of write-ahead log knew it; a new one for each change of its definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    /// The oid of the table that holds the row.
    pub oid: u32,
    /// The oid of the topmost table above it, its own if there is none.
    pub root_oid: u32,
    /// Its name, then those of the tables above it, the topmost last. Never empty.
    pub names: Vec<TableName>,
    /// Its columns, in the order of the table.
    pub columns: Vec<Column>,
    /// What its key is.
    pub key: KeyKind,
    /// Tells versions of its schema apart: another number after each change of that.
    pub version: u64,
}

impl Relation {
    /// Tells apart how its rows' keys are made: of which columns, of which types, and of which table's.
    pub fn keying(&self) -> u32 {
        let mut hasher = FxHasher::default();
        hasher.write_u32(self.root_oid);
        for column in self.columns.iter().filter(|column| column.is_key) {
            hasher.write_i16(column.number);
            hasher.write_u32(column.type_oid);
        }
        (hasher.finish() >> 32) as u32
    }

    /// The name by which a subscription knows it, see [`Relation::names`]: the topmost for a level beyond.
    pub fn name(&self, level: usize) -> &TableName {
        const NAMELESS: &TableName = &TableName { schema: String::new(), table: String::new() };
        self.names.get(level).or(self.names.last()).unwrap_or(NAMELESS)
    }
}

/// One committed change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The transaction that committed it.
    pub transaction: Arc<Transaction>,
    /// Its place in the transaction, counted from 0 over all changes, wanted or not.
    pub ordinal: u64,
    /// Where its own record stands in write-ahead log. Rows of one COPY or multi-row INSERT may share it.
    pub lsn: Lsn,
    /// What happened.
    pub action: Action,
    /// What the transaction said of itself before (`pgwh.annotate`), as JSON text.
    pub annotations: Option<Arc<str>>,
    /// Where it happened; of a schema change and of a message see [`Event::schema_change`] and [`Event::message`].
    pub relation: Arc<Relation>,
    /// The row after the change: inserts and updates; or as it was read.
    pub new: Option<Row>,
    /// What WAL has of the row before the change: the key (other columns absent), or all under REPLICA IDENTITY
    /// FULL; none when WAL has nothing.
    pub old: Option<Row>,
}

impl Event {
    /// The bytes of memory it takes, itself and its rows.
    pub fn memory(&self) -> usize {
        let rows = self.new.iter().chain(&self.old).map(|row| row.as_bytes().len());
        let annotations = self.annotations.as_ref().map_or(0, |text| text.len());
        size_of::<Event>() + rows.sum::<usize>() + annotations
    }
}
