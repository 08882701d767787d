//! What a subscription says of rows and columns beyond their tables: `filter`, `changed` and `key_columns`. Each must fit
//! the tables of today, and need nothing that write-ahead log doesn't have.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ffi::CStr;

use pgrx::prelude::*;

use super::suggest::near;
use super::tables::tables_of;
use crate::decode::filter::analyze::{Bare, Uses};
use crate::decode::filter::compile::Kinds;
use crate::decode::filter::normalize::{Literal, LiteralValue, Shape};
use crate::decode::filter::{analyze, node};
use crate::decode::row_key::{Identity, identity_of};
use crate::error::{Error, Unfit};
use crate::pg::command::command_cache::Found;
use crate::pg::compat;
use crate::pg::memory_context::Memory;
use crate::pg::subtransaction::{Raised, in_subtransaction};
use crate::pg::values::detoasted_arg::Stored;
use crate::pg::values::encoding;

/// The parts of a subscription that are judged here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Conditions {
    /// Patterns of tables, in their stored spelling.
    pub tables: Vec<String>,
    /// Kinds of change, in their stored spelling.
    pub event_types: Vec<String>,
    pub filter: Option<String>,
    pub changed: Option<Vec<String>>,
    pub key_columns: Option<Vec<String>>,
}

thread_local! {
    /// What fits, but for numbers in filters.
    static FITTING: RefCell<Found<(FilterSource, Conditions), ()>> = RefCell::default();
}

/// Where a filter comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FilterSource {
    /// It is typed in this session, whose settings the author may have in mind.
    Session,
    /// It is of a subscription's row: what the settings of this session are makes no difference.
    Row,
}

/// How long a table that is looked at keeps its definition.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// While it is looked at; one that somebody else has locked is not looked at. Who asks how things are must not wait for it.
    IfFree,
    /// While it is looked at.
    Brief,
    /// Until the end of the transaction.
    Lasting,
}

impl Lock {
    /// Opens the table; null when it is gone, or locked and not to be waited for.
    ///
    /// # Safety
    /// A transaction is in progress, and what is opened is closed by [`Lock::close`].
    pub unsafe fn open(self, table: pg_sys::Oid) -> pg_sys::Relation {
        let share = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
        // SAFETY: as the caller promises; a table that has gone meanwhile raises nothing.
        unsafe {
            if self != Lock::IfFree {
                return pg_sys::try_relation_open(table, share);
            }
            if !pg_sys::ConditionalLockRelationOid(table, share) {
                return std::ptr::null_mut();
            }
            let relation = pg_sys::try_relation_open(table, pg_sys::NoLock as _);
            if relation.is_null() {
                pg_sys::UnlockRelationOid(table, share);
            }
            relation
        }
    }

    /// Closes what it has opened.
    ///
    /// # Safety
    /// The relation is of [`Lock::open`], and not null.
    pub unsafe fn close(self, relation: pg_sys::Relation) {
        let unlock = if self == Lock::Lasting { pg_sys::NoLock } else { pg_sys::AccessShareLock };
        // SAFETY: as the caller promises.
        unsafe { pg_sys::relation_close(relation, unlock as _) }
    }
}

/// Why conditions don't fit a table.
pub enum Problem {
    /// They are not about this table: it lacks a column, or the filter means nothing there.
    Misfit(Error),
    /// They are, but write-ahead log doesn't have what they need.
    Lacking(Error),
}

impl Problem {
    /// In words.
    pub fn into_error(self) -> Error {
        match self {
            Problem::Misfit(error) | Problem::Lacking(error) => error,
        }
    }
}

/// How they suit the tables of today.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Tables that they fit.
    pub fitting: Vec<pg_sys::Oid>,
    /// Tables that they don't fit, and to which a wildcard only leads: these are not meant, as long as there are others.
    pub misfits: Vec<Misfit>,
    /// What makes the subscription wrong.
    pub problem: Option<Error>,
    /// Whether there are tables that could not be looked at.
    is_partial: bool,
}

/// A table that is not meant.
#[derive(Clone, Debug)]
pub struct Misfit {
    table: pg_sys::Oid,
    why: Error,
}

/// As many tables are named.
const MOST_NAMED: usize = 10;

impl Verdict {
    /// Whether it is the same for any other literals that are values of the fitting tables' types.
    pub fn is_of_any_literals(&self) -> bool {
        let of_columns = |misfit: &Misfit| misfit.why.is_of_columns();
        self.problem.is_none() && !self.is_partial && self.misfits.iter().all(of_columns)
    }

    /// The tables that are not meant, each with its reason.
    pub fn note(&self) -> Option<String> {
        let name = |misfit: &Misfit| format!("{} ({})", name_of(misfit.table), misfit.why.in_few_words());
        let names: Vec<String> = self.misfits.iter().take(MOST_NAMED).map(name).collect();
        let more = match self.misfits.len().saturating_sub(MOST_NAMED) {
            0 => String::new(),
            more => format!(", and {more} more"),
        };
        (!names.is_empty()).then(|| {
            format!(
                "it leaves out tables that a wildcard leads to and that it does not fit: {}{more}",
                names.join(", ")
            )
        })
    }
}

impl Conditions {
    /// As a subscription's row has them.
    pub fn read(
        tables: &Option<Stored>,
        event_types: &Option<Stored>,
        filter: Option<Cow<str>>,
        changed: &Option<Stored>,
        key_columns: &Option<Stored>,
    ) -> Conditions {
        let texts = |stored: &Option<Stored>| stored.as_ref().map(Stored::texts);
        Conditions {
            tables: texts(tables).unwrap_or_default(),
            event_types: texts(event_types).unwrap_or_default(),
            filter: filter.map(Cow::into_owned),
            changed: texts(changed),
            key_columns: texts(key_columns),
        }
    }

    /// Refuses what does not suit the tables that there are.
    pub fn check(&self, source: FilterSource) -> Result<(), Error> {
        // Of many that are made in one command, most are the same but for numbers.
        let remembered = (source, self.without_numbers());
        if FITTING.with_borrow(|fitting| fitting.get(&remembered)).is_some() {
            return Ok(());
        }
        // One that another session has locked, and that a wildcard leads to, is judged when it changes.
        let judged = self.judge(source, |is_named| if is_named { Lock::Lasting } else { Lock::IfFree })?;
        if let Some(error) = judged.problem {
            return Err(error);
        }
        if judged.is_partial {
            return Ok(());
        }
        FITTING.with_borrow_mut(|fitting| fitting.add(remembered, ()));
        Ok(())
    }

    /// How they suit each table that there is today and can be looked at at once.
    pub fn look(&self) -> Result<Verdict, Error> {
        self.judge(FilterSource::Row, |_| Lock::IfFree)
    }

    /// A table that a wildcard leads to, and that they don't fit, is not meant, as long as they fit another. While there is
    /// no table, the filter is judged by itself.
    fn judge(&self, source: FilterSource, lock: impl Fn(bool) -> Lock) -> Result<Verdict, Error> {
        let mut verdict = Verdict::default();
        let tables = self.tables()?;
        if tables.is_empty() {
            verdict.problem = self.check_alone().err();
        }
        for (table, is_named) in tables {
            match self.fit(table, lock(is_named), source) {
                Ok(true) => verdict.fitting.push(table),
                Ok(false) => verdict.is_partial = true,
                Err(Problem::Misfit(why)) if !is_named => verdict.misfits.push(Misfit { table, why }),
                Err(problem) => {
                    verdict.problem = Some(problem.into_error());
                    return Ok(verdict);
                }
            }
        }
        if verdict.fitting.is_empty() && !verdict.is_partial {
            verdict.problem =
                verdict.problem.or_else(|| verdict.misfits.first().map(|misfit| misfit.why.clone()));
        }
        Ok(verdict)
    }

    /// The types of the filter's literals in each of these tables, which it fits; none when they cannot be told.
    pub fn kinds(&self, tables: &[pg_sys::Oid]) -> Option<Vec<Kinds>> {
        let Some(filter) = &self.filter else { return Some(Vec::new()) };
        let (text, shape) = (encoding::in_server_encoding(filter), Shape::of(filter));
        let memory = Memory::new(c"pgwh filter literals");
        let mut kinds = Vec::new();
        for table in tables {
            let found = in_subtransaction(memory.context(), || {
                // SAFETY: a table that has gone meanwhile raises nothing, and what is opened is closed.
                unsafe {
                    let relation = Lock::IfFree.open(*table);
                    if relation.is_null() {
                        return None;
                    }
                    let of =
                        |bare| Kinds::of(analyze::resolve(&text, relation, bare).ok()?.node, &shape.literals);
                    let found = compat::with_settings_of_filters(|| {
                        self.bares().into_iter().map(of).collect::<Option<Vec<Kinds>>>()
                    });
                    Lock::IfFree.close(relation);
                    found
                }
            });
            match found {
                Ok(Some(more)) => kinds.extend(more),
                _ => return None,
            }
        }
        Some(kinds)
    }

    /// What columns mean in the changes that are wanted. Whoever wants truncates only still has to write a filter that means
    /// something.
    fn bares(&self) -> Vec<Bare> {
        let is_old = self.wants("delete") && !self.wants("insert") && !self.wants("update");
        let is_both = self.wants("delete") && !is_old;
        if is_old {
            vec![Bare::Old]
        } else if is_both {
            vec![Bare::New, Bare::Old]
        } else {
            vec![Bare::New]
        }
    }

    /// The same but for numbers in the filter.
    pub fn without_numbers(&self) -> Conditions {
        Conditions { filter: self.filter.as_deref().map(without_numbers), ..self.clone() }
    }

    /// The tables that they are about, and whether each is named without a wildcard; none when there are no conditions.
    fn tables(&self) -> Result<Vec<(pg_sys::Oid, bool)>, Error> {
        if self.filter.is_none() && self.changed.is_none() && self.key_columns.is_none() {
            return Ok(Vec::new());
        }
        tables_of(&self.tables)
    }

    fn wants(&self, event_type: &str) -> bool {
        self.event_types.iter().any(|word| word == event_type)
    }

    /// Judges the filter by its text.
    fn check_alone(&self) -> Result<(), Error> {
        let Some(filter) = &self.filter else { return Ok(()) };
        let memory = Memory::new(c"pgwh filter check");
        let text = encoding::in_server_encoding(filter);
        let judged = in_subtransaction(memory.context(), || {
            // SAFETY: in a transaction.
            compat::with_settings_of_filters(|| unsafe { analyze::check_alone(&text) })
        });
        judged.and_then(|inner| inner).map_err(|raised| self.filter_error(raised, None))
    }

    /// Whether they fit a table that holds rows. False when that cannot be said, since it is gone or cannot be opened.
    pub fn fit(&self, table: pg_sys::Oid, lock: Lock, source: FilterSource) -> Result<bool, Problem> {
        let memory = Memory::new(c"pgwh filter check");
        let judged = in_subtransaction(memory.context(), || {
            // SAFETY: what is opened is closed.
            unsafe {
                let relation = lock.open(table);
                if relation.is_null() {
                    return Ok(false);
                }
                let judged = self.fit_relation(relation, source);
                lock.close(relation);
                judged.map(|()| true)
            }
        });
        judged.unwrap_or_else(|raised| Err(Problem::Misfit(self.filter_error(raised, Some(table)))))
    }

    /// # Safety
    /// The relation is open.
    unsafe fn fit_relation(&self, relation: pg_sys::Relation, source: FilterSource) -> Result<(), Problem> {
        // SAFETY: as the caller promises.
        let table = unsafe { Table::of(relation) };
        if let Some(filter) = &self.filter {
            // SAFETY: as the caller promises.
            unsafe { self.fit_filter(filter, relation, &table, source)? };
        }
        if let Some(changed) = &self.changed {
            let numbers = table.numbers_of("changed", changed)?;
            if self.wants("update") {
                table.require_old("changed", "update", &numbers)?;
            }
        }
        if let Some(key_columns) = &self.key_columns {
            let numbers = table.numbers_of("key_columns", key_columns)?;
            for event_type in ["update", "delete"] {
                if self.wants(event_type) {
                    table.require_old("key_columns", event_type, &numbers)?;
                }
            }
        }
        Ok(())
    }

    /// # Safety
    /// The relation is open, and is `table`.
    unsafe fn fit_filter(
        &self,
        filter: &str,
        relation: pg_sys::Relation,
        table: &Table,
        source: FilterSource,
    ) -> Result<(), Problem> {
        let text = encoding::in_server_encoding(filter);
        for bare in self.bares() {
            let misfit = |raised| Problem::Misfit(self.filter_error(raised, Some(table.oid)));
            // SAFETY: as the caller promises.
            let uses = unsafe { compile(&text, relation, bare, source).map_err(misfit)? };
            let old: Vec<i16> = uses.old.into_iter().collect();
            match bare {
                Bare::New if self.wants("update") => table.require_old("filter", "update", &old)?,
                Bare::Old => table.require_old("filter", "delete", &old)?,
                Bare::New => {}
            }
        }
        Ok(())
    }

    /// What may have been meant by a column that is not there. Between double quotes it was perhaps a text; a name may be
    /// mistyped.
    fn column_hint(&self, table: Option<pg_sys::Oid>) -> Option<String> {
        let filter = self.filter.as_deref().unwrap_or_default();
        let start = usize::try_from(analyze::position()?).ok()?.checked_sub(1)?;
        let rest: String = filter.chars().skip(start).collect();
        if let Some((quoted, _)) = rest.strip_prefix('"').and_then(|rest| rest.split_once('"')) {
            let before: String = filter.chars().take(start).collect();
            let after = &rest[quoted.len() + 2..];
            let meant = format!("{before}'{}'{after}", quoted.replace('\'', "''"));
            return Some(format!(
                "A text goes into single quotes, names of columns into double quotes: filter => '{}'",
                meant.replace('\'', "''")
            ));
        }
        let word: String =
            rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_' || *c == '.').collect();
        let word = word.rsplit('.').next()?.to_owned();
        let near = near(&word, columns_of_table(table?));
        Some(match near.as_slice() {
            [] => format!("If it is a text, it goes into single quotes: '{word}'"),
            near => format!("Perhaps you meant {}.", near.join(" or ")),
        })
    }

    fn filter_error(&self, raised: Raised, table: Option<pg_sys::Oid>) -> Error {
        let filter = self.filter.as_deref().unwrap_or_default();
        let place = match analyze::position() {
            Some(position) => format!("At character {position} of the filter: {filter}"),
            None => format!("The filter is: {filter}"),
        };
        let of_table = table.map_or_else(String::new, |table| format!(" (of table {})", name_of(table)));
        let hint = match raised.code {
            // Postgres says that NEW and OLD are the names of tables here, which is no help to who wrote the table's own.
            PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE => Some(
                "Write columns without the table's name, or as NEW and OLD have them: total, NEW.total or OLD.total".to_owned(),
            ),
            PgSqlErrorCode::ERRCODE_UNDEFINED_COLUMN => self.column_hint(table).or(raised.hint),
            PgSqlErrorCode::ERRCODE_UNDEFINED_FUNCTION => operator_hint(&raised.message).or(raised.hint),
            _ => raised.hint,
        };
        Error::Unfit(Box::new(Unfit {
            state: raised.code,
            message: raised.message,
            detail: format!("{place}{of_table}."),
            hint: hint.unwrap_or_else(|| {
                "A filter is a condition over the table's columns, NEW and OLD, for example: filter => 'total > 100'".to_owned()
            }),
        }))
    }
}

/// What may have been meant by an operator that is not there, as the server's message names it with its operands.
fn operator_hint(message: &str) -> Option<String> {
    let operands = message.strip_prefix("operator does not exist: ")?;
    if operands.contains(" == ") {
        return Some("Equality is written =, for example: filter => 'total = 100'".to_owned());
    }
    let is_json = operands.split(' ').any(|operand| operand == "json");
    is_json.then(|| "A json has no such operators: write column::jsonb, or column::text.".to_owned())
}

/// Compiles a filter as the decoder does. What is typed in this session must mean the same to both.
unsafe fn compile(
    text: &CStr,
    relation: pg_sys::Relation,
    bare: Bare,
    source: FilterSource,
) -> Result<Uses, Raised> {
    // SAFETY: the relation is open.
    let resolve = || unsafe { analyze::resolve(text, relation, bare) };
    let here = (source == FilterSource::Session).then(resolve).transpose()?;
    let there = compat::with_settings_of_filters(|| {
        let there = resolve()?;
        // What is constant is computed now, so that what fails in it fails here.
        // SAFETY: resolved just now.
        unsafe { node::prepare(there.node) };
        Ok::<_, Raised>(there)
    })?;
    // SAFETY: both are trees of nodes.
    if here.is_none_or(|here| unsafe { pg_sys::equal(here.node.cast(), there.node.cast()) }) {
        return Ok(there.uses);
    }
    let mut raised = Raised::new(
        PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
        "the filter depends on a setting of this session",
    );
    raised.hint = Some(
        "It is read with TimeZone = 'UTC', DateStyle = 'ISO, YMD', transform_null_equals = off and search_path = pg_catalog: write times like '2026-01-31 12:00:00+00', IS NULL, and types with their schema.".to_owned(),
    );
    Err(raised)
}

/// A filter but for its numbers, which make no difference to what fits.
pub fn without_numbers(filter: &str) -> String {
    let shape = Shape::of(filter);
    let is_number = |literal: &Literal| !matches!(literal.value, LiteralValue::Text(_));
    if shape.literals.iter().all(is_number) { shape.text } else { filter.to_owned() }
}

/// The table's qualified name.
pub fn name_of(table: pg_sys::Oid) -> String {
    // SAFETY: look-ups in the system cache; names are null or end in NUL.
    let name = |name: *mut std::ffi::c_char| unsafe {
        if name.is_null() {
            String::new()
        } else {
            encoding::utf8(CStr::from_ptr(name).to_bytes()).into_owned()
        }
    };
    // SAFETY: as above.
    unsafe {
        let schema = name(pg_sys::get_namespace_name(pg_sys::get_rel_namespace(table)));
        super::tables::of_table(&schema, &name(pg_sys::get_rel_name(table)))
    }
}

/// The names of a table's columns.
pub fn columns_of_table(table: pg_sys::Oid) -> Vec<String> {
    // SAFETY: a table that has gone meanwhile has none; what is opened is closed.
    unsafe {
        let relation = pg_sys::try_relation_open(table, pg_sys::AccessShareLock as _);
        if relation.is_null() {
            return Vec::new();
        }
        let columns = Table::of(relation).columns;
        pg_sys::relation_close(relation, pg_sys::AccessShareLock as _);
        columns.into_iter().map(|(name, _)| name).collect()
    }
}

/// What has to be known of a table.
struct Table {
    oid: pg_sys::Oid,
    /// Qualified.
    name: String,
    /// Its columns, by name.
    columns: Vec<(String, i16)>,
    identity: Identity,
    /// The numbers of the columns that write-ahead log always has of an old row.
    key: BTreeSet<i16>,
}

impl Table {
    unsafe fn of(relation: pg_sys::Relation) -> Table {
        // SAFETY: the relation is open.
        unsafe {
            let desc = (*relation).rd_att;
            let attributes = (0..(*desc).natts as usize).map(|place| compat::attribute(desc, place));
            let (identity, key) = identity_of(relation);
            Table {
                oid: (*relation).rd_id,
                name: name_of((*relation).rd_id),
                columns: attributes
                    .filter(|attribute| !attribute.attisdropped)
                    .map(|attribute| (encoding::name(&attribute.attname), attribute.attnum))
                    .collect(),
                identity,
                key: key.into_iter().collect(),
            }
        }
    }

    /// The numbers of columns that an argument names.
    fn numbers_of(&self, argument: &'static str, names: &[String]) -> Result<Vec<i16>, Problem> {
        let find = |wanted: &String| {
            let found = self.columns.iter().find(|(name, _)| name == wanted);
            found.map(|(_, number)| *number).ok_or_else(|| {
                let near = near(wanted, self.columns.iter().map(|(name, _)| name.clone()));
                Problem::Misfit(Error::NoColumnHere {
                    argument,
                    column: wanted.clone(),
                    table: self.name.clone(),
                    near,
                })
            })
        };
        names.iter().map(find).collect()
    }

    /// Refuses columns whose old value write-ahead log doesn't have.
    fn require_old(
        &self,
        argument: &'static str,
        event_type: &'static str,
        columns: &[i16],
    ) -> Result<(), Problem> {
        let is_known = |number: &i16| match self.identity {
            Identity::Full => true,
            Identity::Key => self.key.contains(number),
            Identity::Nothing => false,
        };
        let Some(number) = columns.iter().find(|number| !is_known(number)) else { return Ok(()) };
        let column = self.columns.iter().find(|(_, other)| other == number);
        Err(Problem::Lacking(Error::OldValueUnknown {
            argument,
            event_type,
            column: column.map(|(name, _)| name.clone()).unwrap_or_default(),
            table: self.name.clone(),
        }))
    }
}
