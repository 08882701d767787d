//! The one error type of what SQL calls. Inside it is an enum; at the boundary it becomes an `ErrorReport` with
//! SQLSTATE, message in plain words, the offending value as DETAIL and what to type as HINT.

use std::fmt;

use pgrx::PgSqlErrorCode as SqlState;
use pgrx::pg_sys::panic::ErrorReport;

use crate::decode::routing::table_pattern::{ParsedPattern, array_literal};
use crate::decode::wal::slot;
use crate::event::event_type::UnknownEventType;
use crate::event::format::Format;
use crate::http::{Problem, quoted};
use crate::pg::process::bgworker;
use crate::pg::values::encoding::in_error;
use crate::version::LIBRARY;
use crate::{gucs, version};

/// A table whose changes are in no log.
pub const UNLOGGED: &str = "an unlogged table";

/// Why a call was refused.
#[derive(Clone, Debug)]
pub enum Error {
    /// The library was not loaded at server start.
    NotPreloaded,
    /// A role that lacks privileges on our own tables and functions.
    MissingPrivileges {
        /// What they are needed for.
        purpose: &'static str,
        /// Its name.
        role: String,
        /// What it lacks.
        missing: String,
    },
    /// A role that is to be dropped and has privileges on objects of the extension.
    RoleHasPrivileges {
        /// Its name.
        role: String,
        /// On how many objects.
        objects: i64,
        /// How many subscriptions belong to it.
        subscriptions: i64,
    },
    /// A standby cannot be written to and captures nothing.
    OnStandby,
    /// The library is of another version than the SQL, which is of this one.
    Versions(String),
    /// An argument that must be given is null.
    Missing(&'static str),
    /// An array is empty or has a null in it.
    Hollow(&'static str),
    /// A url, header or signing key that the sending room refuses.
    Refused(Problem),
    /// A name that cannot be one.
    Name(String),
    /// Not a kind of change.
    EventType(UnknownEventType),
    /// A message's type that cannot be one.
    MessageType(String),
    /// What a message would say is too long.
    MessageTooLong {
        /// What of it.
        what: &'static str,
        /// How many bytes it has.
        length: usize,
        /// How many it may have.
        limit: usize,
        /// What to do about it.
        hint: &'static str,
    },
    /// A value that makes a segment of a URL of so many bytes.
    SegmentTooLong(usize),
    /// Text that is no table pattern, and why.
    Pattern(String, String),
    /// Both `tables` and `schema` or `table_name`.
    TablesTwice,
    /// A table that isn't there, and names that look like it.
    NoSuchTable {
        /// The argument that names it.
        argument: &'static str,
        /// Its name.
        table: String,
        /// Tables that may have been meant.
        near: Vec<String>,
    },
    /// A name of a table that has a schema or a wildcard in it, where it stands alone: the arguments that say the same.
    WholeName(String, String),
    /// A relation whose rows are no changes of a table: its name and what it is.
    NotATable(String, &'static str),
    /// A table of which a part is in no log.
    PartNotLogged {
        /// The table.
        table: String,
        /// The partitions and children.
        parts: Vec<PartNotLogged>,
        /// The tables without them, as an argument.
        tables: String,
    },
    /// Tables that cannot be read row by row, all those of a backfill of one table.
    NotReadable(Vec<NotReadable>),
    /// A table whose rows are on other nodes, and tables that the same pattern leads to and that are not.
    OnOtherNodes(String, Vec<String>),
    /// Not a format of payloads.
    Format(String),
    /// A format whose receivers know one event a request, and a batch size of more.
    Batches(Format, i32),
    /// A function that isn't there: what it is to be, names that look like it, and its own.
    NoSuchFunction(&'static str, Vec<String>, String),
    /// A function that doesn't take and return one `jsonb`: what it is to be, and its name.
    NoShaper(&'static str, String),
    /// A function that the user may not call: what it is to be, and its name.
    FunctionDenied(&'static str, String),
    /// A route although requests hold so many events.
    RouteOfBatch(i32),
    /// Not a way to compress.
    Compress(String),
    /// A format that has changes of rows only, and an event type that is something else.
    RowsOnly(Format, String),
    /// Headers that are no object of strings.
    Headers(String),
    /// A header given twice.
    HeaderTwice(String),
    /// A value out of its range.
    OutOfRange {
        /// The argument.
        what: &'static str,
        /// Its value.
        value: String,
        /// What it must be.
        range: &'static str,
        /// An argument that would do.
        example: &'static str,
    },
    /// Not a kind of order.
    Ordering(String),
    /// Not a word for where changes may come from.
    Origin(String),
    /// A column that no table of the subscription has, and names that look like it.
    NoSuchColumn(String, Vec<String>),
    /// A condition on rows that is refused.
    Unfit(Box<Unfit>),
    /// A column that an argument names and a table doesn't have.
    NoColumnHere {
        /// The argument.
        argument: &'static str,
        /// The column.
        column: String,
        /// The table.
        table: String,
        /// Names of its columns that look like it.
        near: Vec<String>,
    },
    /// A filter without a condition in it.
    EmptyFilter(String),
    /// A command takes from a table what a subscription needs.
    Needed {
        /// Whose need it is.
        subscription: String,
        /// The table.
        table: String,
        /// What is wrong after the command.
        why: String,
        /// The argument that needs it.
        argument: &'static str,
        /// What to type before the command, if that can do without changing the subscription.
        first: Option<String>,
    },
    /// An old value is needed that write-ahead log doesn't have.
    OldValueUnknown {
        /// The argument that needs it.
        argument: &'static str,
        /// The kind of change.
        event_type: &'static str,
        /// The column.
        column: String,
        /// The table.
        table: String,
    },
    /// A column that is none of a key: its name, whose it isn't, names that look like it, and what a key looks like.
    NoKeyColumn(String, String, Vec<String>, String),
    /// Both `columns` and `exclude_columns`.
    ColumnsTwice,
    /// A role that doesn't exist or that the user cannot act as.
    Owner(String),
    /// A subscription, and its owner, whom the user cannot act as.
    NotOwner(String, String),
    /// A secret that cannot be sealed or opened, and why.
    Sealed(String),
    /// A key of one kind, and signatures of another.
    SignatureKind,
    /// No subscription has this name; names that look like it.
    NoSuchSubscription(String, Vec<String>),
    /// Capture did not become ready in time, and why.
    NotReady(String),
    /// Capture is not ready, and this transaction would wait for itself.
    NotReadyHere(String),
    /// There are no worker processes for capture.
    TooFewWorkers,
    /// There is no replication slot for capture.
    TooFewSlots,
    /// Tables that a subscription's owner may not read as it is wanted.
    MayNotRead {
        /// Their names, one at least.
        tables: Vec<String>,
        /// What the owner lacks, as a sentence.
        why: String,
        /// What to type.
        cure: String,
    },
    /// A role that may not read other applications' messages.
    MayNotListen(String),
    /// A role that may not erase what the journal has.
    MayNotErase,
    /// A subscription's name that is another role's already.
    NameTaken(String),
    /// A subscription that is another role's, and that the user is not shown.
    NotYours(String),
    /// A table that holds what belongs to all roles, and a mode in which an ordinary role may not lock it.
    TableLock {
        /// Its name.
        table: String,
        /// The mode, as `LOCK TABLE` spells it.
        mode: String,
    },
    /// A database is to be moved while it has changes that are not journaled.
    Unjournaled,
    /// What should not happen: the server or pgrx refused what we asked.
    Internal(String),
}

/// A partition or child that is in no log.
#[derive(Clone, Debug)]
pub struct PartNotLogged {
    /// Its name.
    pub name: String,
    /// What it is.
    pub what: &'static str,
    /// The command that has it logged, if there is one.
    pub cure: Option<String>,
}

/// A table that cannot be read row by row.
#[derive(Clone, Debug)]
pub struct NotReadable {
    /// Its name.
    pub table: String,
    /// Why.
    pub reason: String,
    /// What to type, if that helps.
    pub remedy: Option<String>,
}

/// What else a backfill can do about a table that it cannot read.
pub const LEAVE_OUT: &str = "leave it out: table_name => 'schema.other_table'";

/// Why a condition on rows is refused, in Postgres' own words or ours.
#[derive(Clone, Debug)]
pub struct Unfit {
    /// The SQLSTATE.
    pub state: SqlState,
    /// What is wrong.
    pub message: String,
    /// Where.
    pub detail: String,
    /// What to do about it.
    pub hint: String,
}

/// How an error looks in SQL.
struct Words {
    state: SqlState,
    message: String,
    detail: String,
    hint: String,
}

impl Error {
    fn words(&self) -> Words {
        use SqlState::*;
        let (state, message, detail, hint): (_, String, String, String) = match self {
            Error::NotPreloaded => (
                ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "pgstream_hooks must be loaded when the server starts".into(),
                "shared_preload_libraries does not name it, or the server has not been restarted since.".into(),
                gucs::hint_to_preload(),
            ),
            Error::MissingPrivileges { purpose, role, missing } => (
                ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!("permission denied to {purpose}"),
                format!("Role \"{role}\" lacks {missing}."),
                format!("As a superuser: SELECT pgwh.grant_usage({});", literal(role)),
            ),
            Error::RoleHasPrivileges { role, objects, subscriptions } => (
                ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST,
                format!("role \"{role}\" cannot be dropped because some objects depend on it"),
                match subscriptions {
                    0 => format!("It has privileges on {objects} objects of the schemas pgwh and pgwh_internal."),
                    _ => format!(
                        "It has privileges on {objects} objects of the schemas pgwh and pgwh_internal, and owns {subscriptions} of pgwh.subscriptions, which send nothing without it."
                    ),
                },
                format!("{} Then drop the role.", revokes_from(role, *subscriptions > 0)),
            ),
            Error::OnStandby => (
                ERRCODE_READ_ONLY_SQL_TRANSACTION,
                "this server is a standby, which captures nothing".into(),
                "Changes are captured and sent by the primary.".into(),
                "Call this on the primary.".into(),
            ),
            Error::Versions(sql) => (
                ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "library and SQL of pgstream_hooks are of different versions".into(),
                format!("The server has loaded the library {LIBRARY}, and the extension in this database is {sql}."),
                match version::is_older_than(sql) {
                    true => format!("Install the library {sql} if it is not, and restart the server."),
                    false => "ALTER EXTENSION pgstream_hooks UPDATE;".into(),
                },
            ),
            Error::Unjournaled => (
                ERRCODE_OBJECT_IN_USE,
                "the database has changes that are not captured yet".into(),
                "Write-ahead log from before a move to another tablespace cannot be decoded after it.".into(),
                "Try again later; SELECT * FROM pgwh.health() in that database says what keeps them.".into(),
            ),
            Error::MayNotRead { tables, why, cure } => (
                ERRCODE_INSUFFICIENT_PRIVILEGE,
                match tables.as_slice() {
                    [table] => format!("permission denied for table {table}"),
                    tables => format!("permission denied for tables {}", tables.join(", ")),
                },
                why.clone(),
                cure.clone(),
            ),
            Error::TableLock { table, mode } => (
                ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!("permission denied to lock table {table} in {mode} mode"),
                "It holds rows of all roles, whose commands and deliveries would wait for the lock.".into(),
                match table.as_str() {
                    "pgwh.subscriptions" => "To keep your own subscriptions as they are: SELECT FROM pgwh.subscriptions FOR UPDATE; To exclude only sessions that do the same: LOCK TABLE pgwh.subscriptions IN SHARE UPDATE EXCLUSIVE MODE;".into(),
                    _ => "Only superusers and the owner of the extension may lock it.".into(),
                },
            ),
            Error::MayNotListen(owner) => (
                ERRCODE_INSUFFICIENT_PRIVILEGE,
                "permission denied for other applications' messages".into(),
                format!("They stand in write-ahead log, which the subscription's owner \"{owner}\" may not read."),
                format!("ALTER ROLE {} REPLICATION; or have them written by pgwh.emit, and give event_types => '{{message}}'", identifier(owner)),
            ),
            Error::MayNotErase => (
                ERRCODE_INSUFFICIENT_PRIVILEGE,
                "permission denied to erase events".into(),
                "Only superusers erase what the journal has of a row, since it is erased for all subscriptions.".into(),
                "Have a superuser call pgwh.forget().".into(),
            ),
            Error::NameTaken(name) => (
                ERRCODE_INSUFFICIENT_PRIVILEGE,
                "this name is taken".into(),
                format!("There is a subscription \"{name}\" already, and it is not yours."),
                "Choose another name, for example one that begins with your role's.".into(),
            ),
            Error::NotYours(name) => (
                ERRCODE_INSUFFICIENT_PRIVILEGE,
                "only its owner may do this to a subscription".into(),
                format!("Subscription \"{name}\" belongs to another role, and you are no member of that."),
                "SELECT name FROM pgwh.subscriptions; shows yours.".into(),
            ),
            Error::Missing(what) => (
                ERRCODE_NULL_VALUE_NOT_ALLOWED,
                format!("{what} must be given"),
                format!("\"{what}\" is null."),
                match *what {
                    "url" => "For example: SELECT pgwh.subscribe('https://example.com/hook');".into(),
                    "since" => "Give a time or a position, as in pgwh.replay('orders', now() - interval '1 hour')".into(),
                    _ => format!("Give {what} a value."),
                },
            ),
            Error::Hollow(what) => (
                ERRCODE_INVALID_PARAMETER_VALUE,
                format!("{what} is empty or has a null in it"),
                format!("\"{what}\" must be an array of at least one text, without nulls."),
                match *what {
                    "tables" => "Leave it out to mean all tables, or for example: tables => '{public.orders}'".into(),
                    "changed" => "Leave it out to mean every update, or for example: changed => '{status}'".into(),
                    "key_columns" => {
                        "Leave it out to mean the primary key, or for example: key_columns => '{customer_id}'".into()
                    }
                    "columns" => "Leave it out to mean all, or for example: columns => '{id, status}'".into(),
                    "exclude_columns" => {
                        "Leave it out to mean none, or for example: exclude_columns => '{password}'".into()
                    }
                    _ => "Leave it out to mean all changes of rows, or for example: event_types => '{insert,update}'".into(),
                },
            ),
            Error::Refused(problem) => (
                ERRCODE_INVALID_PARAMETER_VALUE,
                problem.message.clone(),
                problem.detail.clone(),
                problem.hint.clone(),
            ),
            Error::Name(name) => (
                ERRCODE_INVALID_NAME,
                "invalid subscription name".into(),
                format!("The name {} is empty, longer than 200 bytes, or has a control character in it.", quoted(name)),
                "Choose another, for example: name => 'orders-to-billing'".into(),
            ),
            Error::EventType(UnknownEventType { word, no_prefix: true }) => (
                ERRCODE_INVALID_PARAMETER_VALUE,
                "not a prefix of other applications' messages".into(),
                format!("event_types has \"{word}\"; what pgwh.emit writes goes to those who ask for message."),
                "For example: event_types => '{message}', or '{message:my-application}'".into(),
            ),
            Error::EventType(UnknownEventType { word, no_prefix: false }) => (
                ERRCODE_INVALID_PARAMETER_VALUE,
                "unknown event type".into(),
                format!(
                    "event_types has \"{word}\"; there are insert, update, delete and truncate, or I, U, D and T, and also \
                     ddl, message, message:<prefix>, system and read."
                ),
                "For example: event_types => '{insert,update}'".into(),
            ),
            Error::MessageType(kind) => (
                ERRCODE_INVALID_PARAMETER_VALUE,
                "invalid type of a message".into(),
                format!("The type {} is empty, longer than 200 bytes, or has a control character in it.", quoted(kind)),
                "For example: SELECT pgwh.emit('order.paid', '{\"id\": 7}');".into(),
            ),
            Error::MessageTooLong { what, length, limit, hint } => (
                ERRCODE_PROGRAM_LIMIT_EXCEEDED,
                "a message says too much".into(),
                format!("\"{what}\" has {length} bytes; {limit} are the most."),
                (*hint).into(),
            ),
            Error::SegmentTooLong(length) => (
                ERRCODE_PROGRAM_LIMIT_EXCEEDED,
                "value is too long for a URL".into(),
                format!("Percent-encoded, it has {length} bytes; a text has less than 1 GB."),
                "Encode what names the resource, such as event#>>'{data,key,id}'.".into(),
            ),
            Error::Pattern(pattern, why) => (
                ERRCODE_INVALID_PARAMETER_VALUE,
                "invalid table pattern".into(),
                format!("In '{pattern}', {why}."),
                pattern_hint(pattern),
            ),
            Error::TablesTwice => (
                ERRCODE_INVALID_PARAMETER_VALUE,
                "tables are given in two ways".into(),
                "\"tables\" cannot be combined with \"schema\" and \"table_name\".".into(),
                "Leave schema and table_name out, and name the table in tables.".into(),
            ),
            Error::NoSuchTable { argument, table, near } => (
                ERRCODE_UNDEFINED_TABLE,
                "table does not exist".into(),
                format!("There is no table {table}."),
                match near.first() {
                    Some(_) if *argument == "tables" => format!("Perhaps you meant tables => {}", one_of(near, |table| array_literal(&[table]))),
                    Some(_) => format!("Perhaps you meant {argument} => {}", one_of(near, |table| literal(&table))),
                    None if table.contains('%') => "The wildcard is *, for example: tables => '{public.*}'".into(),
                    None if *argument == "tables" => {
                        "Create the table first, or give a pattern with a wildcard, which may match nothing yet.".into()
                    }
                    None => "SELECT schemaname, tablename FROM pg_tables; shows those that there are.".into(),
                },
            ),
            Error::WholeName(name, instead) => (
                ERRCODE_UNDEFINED_TABLE,
                "table does not exist".into(),
                format!("There is no table \"{name}\"; table_name is the name alone, without schema and wildcards."),
                format!("For example: {instead}"),
            ),
            Error::NotATable(table, what) => (
                ERRCODE_WRONG_OBJECT_TYPE,
                format!("changes of {what} cannot be sent"),
                format!("{table} is {what}."),
                match *what == UNLOGGED {
                    true => set_logged(table),
                    false => "Name an ordinary or partitioned table of this database.".into(),
                },
            ),
            Error::PartNotLogged { table, parts, tables } => (
                ERRCODE_WRONG_OBJECT_TYPE,
                format!("changes of a part of table {table} are not in the log"),
                parts.iter().map(|part| format!("{} is {}.", part.name, part.what)).collect::<Vec<_>>().join(" "),
                match parts.iter().map(|part| part.cure.as_deref()).collect::<Option<Vec<_>>>() {
                    Some(cures) => format!("{} or name the other parts: tables => {tables}", cures.join(" ")),
                    None => format!("Name the other parts: tables => {tables}"),
                },
            ),
            Error::NotReadable(tables) => not_readable(tables),
            Error::OnOtherNodes(table, others) => (
                ERRCODE_FEATURE_NOT_SUPPORTED,
                format!("changes of table {table} are not in the log of this node"),
                format!("{table} is in the catalogs of Citus (pg_dist_partition), so its rows are on other nodes."),
                match others.is_empty() {
                    true => "Name a table that is not in pg_dist_partition.".into(),
                    false => format!("Name the tables that are not, for example: tables => '{{{}}}'", others.join(", ")),
                },
            ),
            Error::Format(word) => (
                ERRCODE_INVALID_PARAMETER_VALUE,
                "unknown payload format".into(),
                format!("The format is \"{word}\"."),
                format!("Give one of {}, for example: format => 'pgwh'", formats()),
            ),
            Error::Batches(format, batch_size) => (
                ERRCODE_INVALID_PARAMETER_VALUE,
                format!("the format {} has one event a request", format.word()),
                format!("\"batch_size\" is {batch_size}."),
                "Leave batch_size out or give batch_size => 1; formats with batches are pgwh, sequin and cloudevents.".into(),
            ),
            Error::NoSuchFunction(what, near, name) => (
                ERRCODE_UNDEFINED_FUNCTION,
                format!("{what} function does not exist"),
                format!("There is no function {name} that takes one jsonb."),
                match near.first() {
                    Some(_) => format!("Perhaps you meant {what} => {}", one_of(near, |function| literal(&function))),
                    None => format!("Create it first, for example: {}", a_function(name)),
                },
            ),
            Error::NoShaper(what, name) => (
                ERRCODE_WRONG_OBJECT_TYPE,
                format!("{what} must be a function of one jsonb that returns jsonb"),
                format!("{name} takes other arguments, returns something else or a set, or is no plain function."),
                format!("For example: {}", a_function("public.body_of_event")),
            ),
            Error::FunctionDenied(what, name) => (
                ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!("permission denied for {what} function"),
                format!("You may not execute {name}, or not use its schema."),
                format!("Its owner can let you: GRANT EXECUTE ON FUNCTION {name} TO PUBLIC;"),
            ),
            Error::RouteOfBatch(size) => (
                ERRCODE_INVALID_PARAMETER_VALUE,
                "a route cannot be combined with batches".into(),
                format!("\"batch_size\" is {size}, and events of one request cannot go to different places."),
                "Leave one of them out, or give batch_size => 1".into(),
            ),
            Error::Compress(word) => (
                ERRCODE_INVALID_PARAMETER_VALUE,
                "unknown compression".into(),
                format!("\"compress\" is \"{word}\"; there is gzip."),
                "For example: compress => 'gzip'; leave it out to compress nothing.".into(),
            ),
            Error::RowsOnly(format, word) => (
                ERRCODE_INVALID_PARAMETER_VALUE,
                format!("the format {} has changes of rows only", format.word()),
                format!("event_types has \"{word}\"."),
                "Leave it out; formats with schema changes and messages are pgwh, pgstream and cloudevents.".into(),
            ),
            Error::Headers(what) => (
                ERRCODE_INVALID_PARAMETER_VALUE,
                "headers must be an object of strings".into(),
                format!("{what}."),
                "For example: headers => '{\"x-api-key\": \"...\"}'".into(),
            ),
            Error::HeaderTwice(name) => (
                ERRCODE_INVALID_PARAMETER_VALUE,
                "a header is given twice".into(),
                format!("\"{name}\" differs from another header in upper and lower case only."),
                "Leave one of them out.".into(),
            ),
            Error::OutOfRange { what, value, range, example } => (
                ERRCODE_INVALID_PARAMETER_VALUE,
                format!("{what} is out of range"),
                format!("\"{what}\" is {value}; it must be {range}."),
                format!("For example: {example}"),
            ),
            Error::Origin(word) => (
                ERRCODE_INVALID_PARAMETER_VALUE,
                "unknown origin".into(),
                format!("The origin is \"{word}\"; there are any and local."),
                "For example: origin => 'local'".into(),
            ),
            Error::Ordering(word) => (
                ERRCODE_INVALID_PARAMETER_VALUE,
                "unknown ordering".into(),
                format!("The ordering is \"{word}\"; there are key, strict and none."),
                "For example: ordering => 'key'".into(),
            ),
            Error::NoSuchColumn(column, near) => (
                ERRCODE_UNDEFINED_COLUMN,
                "column does not exist".into(),
                format!("No table of this subscription has a column \"{column}\"."),
                did_you_mean(near, "Names of columns are spelled as they are, without quotes."),
            ),
            Error::Unfit(unfit) => {
                let Unfit { state, message, detail, hint } = unfit.as_ref().clone();
                (state, message, detail, hint)
            }
            Error::NoColumnHere { argument, column, table, near } => (
                ERRCODE_UNDEFINED_COLUMN,
                "column does not exist".into(),
                format!("{argument} names \"{column}\", which table {table} does not have."),
                did_you_mean(near, "Names of columns are spelled as they are, without quotes."),
            ),
            Error::EmptyFilter(filter) => (
                ERRCODE_INVALID_PARAMETER_VALUE,
                "the filter is empty".into(),
                format!("It is {}, which is no condition.", quoted(filter)),
                "Leave filter out, or give NULL, to get every change; or write a condition, for example: filter => 'total > 100'".into(),
            ),
            Error::Needed { subscription, table, why, argument, first } => {
                let name = subscription.replace('\'', "''");
                let subscription_first = format!(
                    "the subscription first, with UPDATE pgwh.subscriptions SET {} WHERE name = '{name}', or end it: SELECT pgwh.unsubscribe('{name}');",
                    assignment(argument)
                );
                (
                    ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST,
                    format!("subscription \"{subscription}\" needs table {table} as it is"),
                    format!("After this command it would no longer fit: {why}"),
                    match first {
                        Some(first) => format!("{first} makes it fit; or change {subscription_first}"),
                        None => format!("Change {subscription_first}"),
                    },
                )
            }
            Error::OldValueUnknown { argument, event_type, column, table } => (
                ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("{argument} needs old values that write-ahead log does not have"),
                format!("Of {event_type}s of {table}, the old value of column \"{column}\" is not in write-ahead log."),
                format!("{} makes it possible, or leave {event_type} out of event_types.", have_old_values(table)),
            ),
            Error::NoKeyColumn(column, whose, near, example) => (
                ERRCODE_UNDEFINED_COLUMN,
                "column is not one of the key's".into(),
                format!("{whose} has no column \"{column}\"."),
                did_you_mean(near, &format!("For example: key => '{example}'")),
            ),
            Error::ColumnsTwice => (
                ERRCODE_INVALID_PARAMETER_VALUE,
                "columns are given in two ways".into(),
                "\"columns\" cannot be combined with \"exclude_columns\".".into(),
                "Leave exclude_columns out: what columns does not name is left out.".into(),
            ),
            Error::Owner(role) => (
                ERRCODE_INSUFFICIENT_PRIVILEGE,
                "you cannot give a subscription to this role".into(),
                format!("The role \"{role}\" does not exist, or you are no member of it."),
                "Leave owner out to own the subscription yourself.".into(),
            ),
            Error::NotOwner(name, owner) => (
                ERRCODE_INSUFFICIENT_PRIVILEGE,
                "only its owner may do this to a subscription".into(),
                format!("Subscription \"{name}\" belongs to role \"{owner}\", and you are no member of it."),
                format!("Ask the owner, or: SET ROLE {};", identifier(owner)),
            ),
            Error::Sealed(why) => (
                ERRCODE_CONFIG_FILE_ERROR,
                "secrets cannot be encrypted or decrypted".into(),
                format!("{why}."),
                "Set pgwh.encryption_key_file to a file with one key a line (head -c 32 /dev/urandom | base64), and SELECT pg_reload_conf();".into(),
            ),
            Error::SignatureKind => (
                ERRCODE_INVALID_PARAMETER_VALUE,
                "the key and the kind of signature do not belong together".into(),
                "v1 signs by a secret whsec_..., v1a by a private key whsk_....".into(),
                "Give only one of \"secret\" and \"signature\".".into(),
            ),
            Error::NoSuchSubscription(name, near) => (
                ERRCODE_UNDEFINED_OBJECT,
                "subscription does not exist".into(),
                format!("There is no subscription named \"{name}\"."),
                did_you_mean(near, "SELECT name, url FROM pgwh.subscriptions; shows those that there are."),
            ),
            Error::NotReady(reason) => (
                ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "changes are not being captured yet".into(),
                format!("{reason}."),
                "SELECT check_name, detail, hint FROM pgwh.health() WHERE NOT ok; says what is missing.".into(),
            ),
            Error::TooFewWorkers => (
                ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
                "there are too few free worker processes to capture changes of this database".into(),
                format!(
                    "Each database with the extension takes two of max_worker_processes, which is {}.",
                    bgworker::max_workers()
                ),
                bgworker::hint_for_more_workers(),
            ),
            Error::TooFewSlots => (
                ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
                "all replication slots are in use, so that changes of this database cannot be captured".into(),
                "Each database with the extension takes one of max_replication_slots.".into(),
                slot::hint_for_more(),
            ),
            Error::NotReadyHere(reason) => (
                ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "changes are not being captured yet, and this transaction keeps capture from starting".into(),
                format!("{reason}. Capture begins when the transactions that write now have ended, this one included."),
                "Commit first (CREATE EXTENSION, too), then subscribe in a transaction of its own.".into(),
            ),
            Error::Internal(what) => (
                ERRCODE_INTERNAL_ERROR,
                "something went wrong inside pgstream_hooks".into(),
                format!("{what}."),
                "This should not happen: please report it with these words.".into(),
            ),
        };
        Words { state, message, detail, hint }
    }

    /// The same refusal of another argument.
    pub fn about(self, argument: &'static str) -> Error {
        match self {
            Error::NoSuchTable { table, near, .. } => Error::NoSuchTable { argument, table, near },
            other => other,
        }
    }

    /// The argument of a subscription that doesn't fit a table.
    pub fn argument(&self) -> &'static str {
        match self {
            Error::NoColumnHere { argument, .. } | Error::OldValueUnknown { argument, .. } => argument,
            _ => "filter",
        }
    }

    /// What to set of a subscription that doesn't fit a table.
    pub fn assignment(&self) -> String {
        assignment(self.argument())
    }

    /// What to type so that it fits the table, if that is done to the table.
    pub fn cure(&self) -> Option<String> {
        match self {
            Error::NotATable(table, what) if *what == UNLOGGED => Some(set_logged(table)),
            Error::OldValueUnknown { table, .. } => Some(have_old_values(table)),
            _ => None,
        }
    }

    /// Whether it is about columns that a table doesn't have, and nothing else.
    pub fn is_of_columns(&self) -> bool {
        match self {
            Error::NoColumnHere { .. } => true,
            Error::Unfit(unfit) => unfit.state == SqlState::ERRCODE_UNDEFINED_COLUMN,
            _ => false,
        }
    }

    /// Why conditions don't fit a table, where that is named beside it.
    pub fn in_few_words(&self) -> String {
        match self {
            Error::NoColumnHere { column, .. } => format!("column \"{column}\" does not exist"),
            other => other.words().message,
        }
    }

    /// Why, and what to do about it, in sentences.
    pub fn detail_and_hint(&self) -> (String, String) {
        let Words { detail, hint, .. } = self.words();
        (detail, hint)
    }

    /// Message and detail in one line.
    pub fn in_one_line(&self) -> String {
        let Words { message, detail, .. } = self.words();
        format!("{message}: {detail}")
    }
}

/// How it looks that tables cannot be read row by row.
fn not_readable(tables: &[NotReadable]) -> (SqlState, String, String, String) {
    let state = SqlState::ERRCODE_INVALID_PARAMETER_VALUE;
    let (message, detail) = match tables {
        [one] => (format!("table {} cannot be read row by row", one.table), format!("{}.", one.reason)),
        _ => {
            let names: Vec<&str> = tables.iter().map(|it| it.table.as_str()).collect();
            let reason = |it: &NotReadable| match it
                .reason
                .contains(it.table.rsplit('.').next().unwrap_or_default())
            {
                true => format!("{}.", it.reason),
                false => format!("{}: {}.", it.table, it.reason),
            };
            (
                format!("tables {} cannot be read row by row", names.join(", ")),
                tables.iter().map(reason).collect::<Vec<_>>().join(" "),
            )
        }
    };
    let mut remedies: Vec<&str> = tables.iter().filter_map(|it| it.remedy.as_deref()).collect();
    remedies.dedup();
    let hint = match remedies.is_empty() || remedies.len() < tables.len() && tables.len() > 1 {
        true => [remedies.join(" "), LEAVE_OUT.replacen('l', "L", 1)].join(" ").trim_start().to_owned(),
        false => format!("{} or {LEAVE_OUT}", remedies.join(" ")),
    };
    (state, message, detail, hint)
}

/// An example of a function of that name, which a subscription may have.
fn a_function(name: &str) -> String {
    let name = name.split('(').next().unwrap_or_default();
    format!("CREATE FUNCTION {name}(event jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE AS 'SELECT event';")
}

/// Has changes of an unlogged table written to the log.
fn set_logged(table: &str) -> String {
    format!("ALTER TABLE {table} SET LOGGED;")
}

/// Takes from a role all that it may do in the schema, and its subscriptions.
fn revokes_from(role: &str, has_subscriptions: bool) -> String {
    let role = literal(role);
    let subscriptions = match has_subscriptions {
        true => format!("DELETE FROM pgwh.subscriptions WHERE owner = {role}; "),
        false => String::new(),
    };
    format!("{subscriptions}SELECT pgwh.revoke_usage({role});")
}

/// A text as SQL writes it.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Names that may have been meant, as SQL writes each.
fn one_of(near: &[String], write: impl Fn(String) -> String) -> String {
    near.iter().cloned().map(write).collect::<Vec<_>>().join(" or ")
}

/// What to write instead of something that is no pattern.
fn pattern_hint(pattern: &str) -> String {
    let pieces: Vec<String> = pattern
        .split([' ', ',', '\t', '\n', '\r', ';'])
        .filter(|piece| !piece.is_empty())
        .map(str::to_owned)
        .collect();
    let is_list = pieces.len() > 1 && pieces.iter().all(|piece| ParsedPattern::parse(piece).is_ok());
    match is_list {
        true => format!("Each pattern is an element of its own: tables => {}", array_literal(&pieces)),
        false => "Write 'schema.table', with * for any characters; names that are not lower case go into double quotes, as in SQL.".into(),
    }
}

/// Has write-ahead log hold old rows of the table as a whole.
fn have_old_values(table: &str) -> String {
    format!("ALTER TABLE {table} REPLICA IDENTITY FULL;")
}

/// A name as an identifier in a command.
fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Another value for an argument, to be filled in.
fn assignment(argument: &str) -> String {
    let value = if argument == "filter" { "'...'" } else { "'{...}'" };
    format!("{argument} = {value}")
}

/// The words of all formats.
fn formats() -> String {
    let words = Format::ALL.map(Format::word);
    match words.as_slice() {
        [most @ .., last] => format!("{} or {last}", most.join(", ")),
        [] => String::new(),
    }
}

fn did_you_mean(near: &[String], otherwise: &str) -> String {
    match near {
        [] => otherwise.to_owned(),
        near => format!("Perhaps you meant {}.", near.join(" or ")),
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.in_one_line())
    }
}

impl std::error::Error for Error {}

impl From<Error> for ErrorReport {
    fn from(error: Error) -> ErrorReport {
        let Words { state, message, detail, hint } = error.words();
        ErrorReport::new(state, in_error(message), "pgstream_hooks")
            .set_detail(in_error(detail))
            .set_hint(in_error(hint))
    }
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Error {
        Error::Refused(problem)
    }
}

impl From<pgrx::spi::Error> for Error {
    fn from(error: pgrx::spi::Error) -> Error {
        Error::Internal(error.to_string())
    }
}

impl From<pgrx::datum::TryFromDatumError> for Error {
    fn from(error: pgrx::datum::TryFromDatumError) -> Error {
        Error::Internal(error.to_string())
    }
}
