//! Tables stay as subscriptions need them: a command that takes from a table what a filter, or a list of columns, is
//! about is refused, and says whose.

use std::cell::RefCell;
use std::collections::HashSet;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::api::subscriptions::filter_check::{Conditions, FilterSource, Lock, columns_of_table, name_of};
use crate::api::subscriptions::table_keys::{HAS_CONDITIONS, keys_of};
use crate::api::subscriptions::tables::with_rows;
use crate::decode::filter::normalize::Shape;
use crate::decode::routing::lineage;
use crate::decode::routing::router::Level;
use crate::decode::routing::table_pattern::TablePattern;
use crate::error::Error;
use crate::pg::memory_context::Memory;
use crate::pg::subtransaction::in_subtransaction;
use crate::pg::values::encoding;
use crate::pg::values::encoding::Texts;
use crate::pg::{acl, compat};

/// What subscriptions need of a table that a command is about to change.
struct Needed {
    table: pg_sys::Oid,
    /// What held its rows before.
    parts: Vec<pg_sys::Oid>,
    needs: Vec<Need>,
}

/// What one subscription needs. Others whose filters differ in literals need the same.
#[derive(PartialEq, Eq, Hash)]
struct Need {
    subscription: String,
    conditions: Conditions,
    /// Columns that it shows or leaves out.
    columns: Vec<String>,
    /// Which of both.
    columns_argument: &'static str,
}

thread_local! {
    /// For each command that runs now, one inside of the other: tables that it changes.
    static NEEDED: RefCell<Vec<Vec<Needed>>> = const { RefCell::new(Vec::new()) };
}

/// A command is about to run that may change the definition of a table: of that one or, by what depends on what it drops,
/// of others. Returns within how many others it runs.
///
/// # Safety
/// `relation` is null or names a relation, and a transaction is in progress.
pub unsafe fn before(relation: *const pg_sys::RangeVar) -> usize {
    let depth = NEEDED.with_borrow_mut(|stack| {
        stack.push(Vec::new());
        stack.len() - 1
    });
    // SAFETY: as the caller promises.
    if let Some(table) = unsafe { table_of(relation) } {
        note(table);
    }
    depth
}

/// A column is about to be dropped, whatever the command is: what it depends on may go, and take it along.
///
/// # Safety
/// A transaction is in progress.
pub unsafe fn column_goes(table: pg_sys::Oid) {
    let known = NEEDED.with_borrow(|stack| {
        stack.last().is_none_or(|tables| tables.iter().any(|needed| needed.table == table))
    });
    // SAFETY: as the caller promises.
    if !known && unsafe { is_ours_to_keep(table) } {
        note(table);
    }
}

fn note(table: pg_sys::Oid) {
    let found = look(NEEDS, || Ok((with_rows(table), needs_of(table)?)));
    let (parts, needs) = found.unwrap_or_default();
    // Also when nothing is needed, so that it is not asked again.
    NEEDED.with_borrow_mut(|stack| {
        if let Some(tables) = stack.last_mut() {
            tables.push(Needed { table, parts, needs });
        }
    });
}

/// The command within so many others has run: refuses it, if it has taken away what a subscription needs.
pub fn after(depth: usize) {
    let changed = NEEDED.with_borrow_mut(|stack| {
        // Those that failed inside of it are there still.
        stack.truncate(depth + 1);
        stack.pop().unwrap_or_default()
    });
    if changed.iter().all(|needed| needed.needs.is_empty()) {
        return;
    }
    // SAFETY: what the command has done is to be seen.
    unsafe { pg_sys::CommandCounterIncrement() };
    // Who drops a table means to.
    let left = changed.iter().filter(|needed| acl::exists(needed.table));
    let mut checks = left.flat_map(|needed| needed.needs.iter().map(move |need| (need, needed)));
    let refusal =
        look(NEEDS, || Ok(checks.find_map(|(need, needed)| need.check(needed.table, &needed.parts).err())))
            .flatten();
    if let Some(refusal) = refusal {
        ErrorReport::from(refusal).report(PgLogLevel::ERROR);
    }
}

/// The transaction has ended: no command runs any more.
pub fn forget() {
    NEEDED.with_borrow_mut(Vec::clear);
}

/// The table of that name, if a subscription may be about it.
unsafe fn table_of(relation: *const pg_sys::RangeVar) -> Option<pg_sys::Oid> {
    // SAFETY: as the caller promises.
    unsafe {
        if relation.is_null() {
            return None;
        }
        let flags = pg_sys::RVROption::RVR_MISSING_OK;
        let table = pg_sys::RangeVarGetRelidExtended(
            relation,
            pg_sys::NoLock as _,
            flags,
            None,
            std::ptr::null_mut(),
        );
        is_ours_to_keep(table).then_some(table)
    }
}

/// Whether it is a permanent table, and the extension is here.
unsafe fn is_ours_to_keep(table: pg_sys::Oid) -> bool {
    // SAFETY: look-ups in a transaction.
    unsafe {
        let is_table = matches!(pg_sys::get_rel_relkind(table) as u8, b'r' | b'p');
        is_table
            && pg_sys::get_rel_persistence(table) as u8 == b'p'
            && !pg_sys::RecoveryInProgress()
            && !pg_sys::creating_extension
            && pg_sys::get_extension_oid(c"pgstream_hooks".as_ptr(), true) != pg_sys::InvalidOid
    }
}

/// What subscriptions need of the table, and have.
fn needs_of(table: pg_sys::Oid) -> Result<Vec<Need>, Error> {
    let around = around(table);
    let wanted = needs(&keys_of(around.iter().map(|level| &level.name))?)?;
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let columns: HashSet<String> = columns_of_table(table).into_iter().collect();
    let mut seen = HashSet::new();
    let mut needs = Vec::new();
    for mut need in wanted {
        let mut patterns =
            need.conditions.tables.iter().filter_map(|stored| TablePattern::parse(stored).ok());
        let leads = |pattern: TablePattern| {
            around.iter().any(|level| pattern.leads_to(&level.name, level.is_user_table))
        };
        if !patterns.any(leads) {
            continue;
        }
        let shape = need.conditions.filter.as_deref().map(|filter| Shape::of(filter).text);
        let Conditions { event_types, changed, key_columns, .. } = &need.conditions;
        if !seen.insert((
            shape,
            event_types.clone(),
            changed.clone(),
            key_columns.clone(),
            need.columns.clone(),
        )) {
            continue;
        }
        need.columns.retain(|column| columns.contains(column));
        // What has not fitted before cannot be lost.
        if need.check(table, &[]).is_ok() {
            needs.push(need);
        }
    }
    Ok(needs)
}

/// What subscriptions need whose patterns have one of these keys.
fn needs(keys: &[i64]) -> Result<Vec<Need>, Error> {
    let query = format!(
        "SELECT name, tables, event_types, filter, changed, key_columns,
                coalesce(columns, exclude_columns, '{{}}'), columns IS NULL
         FROM pgwh.subscriptions
         WHERE pgwh_internal.table_keys(tables) OPERATOR(pg_catalog.&&) $1 AND {HAS_CONDITIONS}
           AND enabled AND pg_catalog.starts_with(home, pgwh_internal.installed() OPERATOR(pg_catalog.||) '/')
         ORDER BY id"
    );
    Ok(Spi::connect(|client| {
        let rows = client.select(query.as_str(), None, &[keys.to_vec().into()])?;
        let mut needs = Vec::new();
        for row in rows {
            needs.push(Need {
                subscription: row.text(1)?.unwrap_or_default(),
                conditions: Conditions {
                    tables: row.texts(2)?.unwrap_or_default(),
                    event_types: row.texts(3)?.unwrap_or_default(),
                    filter: row.text(4)?,
                    changed: row.texts(5)?,
                    key_columns: row.texts(6)?,
                },
                columns: row.texts(7)?.unwrap_or_default(),
                columns_argument: if row.get(8)? == Some(true) { "exclude_columns" } else { "columns" },
            });
        }
        Ok::<_, pgrx::spi::Error>(needs)
    })?)
}

/// The table, those that it is a part of and those that are parts of it.
fn around(table: pg_sys::Oid) -> Vec<Level> {
    // SAFETY: in a transaction.
    let tree = unsafe { compat::partition_tree(table) };
    // The first is the table itself.
    let below = tree.into_iter().skip(1).map(lineage::level);
    lineage::of(table).into_iter().chain(below).collect()
}

impl Need {
    /// Whether the table, as it is now, has what is needed. Of a part that was none of those before, something may be missing
    /// that can be mended there.
    fn check(&self, table: pg_sys::Oid, before: &[pg_sys::Oid]) -> Result<(), Error> {
        let refuse = |why: String, argument, first| Error::Needed {
            subscription: self.subscription.clone(),
            table: name_of(table),
            why,
            argument,
            first,
        };
        let columns = columns_of_table(table);
        if let Some(gone) = self.columns.iter().find(|column| !columns.contains(column)) {
            let argument = self.columns_argument;
            return Err(refuse(format!("its {argument} name \"{gone}\""), argument, None));
        }
        for part in with_rows(table) {
            self.conditions.fit(part, Lock::Brief, FilterSource::Row).map_err(|problem| {
                let error = problem.into_error();
                let first = error.cure().filter(|_| !before.contains(&part));
                refuse(error.in_one_line(), error.argument(), first)
            })?;
        }
        Ok(())
    }
}

/// What of a table is looked at.
const NEEDS: &str = "whether a subscription needs the table";

/// Looks at subscriptions and catalogs. Should that fail, users' commands go on without it.
pub(super) fn look<T>(what: &str, action: impl FnOnce() -> Result<T, Error>) -> Option<T> {
    let memory = Memory::new(c"pgwh command");
    let (code, message) = match in_subtransaction(memory.context(), || as_superuser(action)) {
        Ok(Ok(found)) => return Some(found),
        Ok(Err(error)) => (PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, error.in_one_line()),
        Err(raised) => (raised.code, raised.message),
    };
    ereport!(WARNING, code, encoding::in_error(format!("pgstream_hooks cannot see {what}: {message}")));
    None
}

/// Runs the action with the rights to read every subscription; whoever changes a table may not be one to see them.
pub fn as_superuser<T>(action: impl FnOnce() -> T) -> T {
    let (mut user, mut context) = (pg_sys::InvalidOid, 0);
    // SAFETY: globals of this process; an ERROR ends the subtransaction, which puts them back.
    unsafe {
        pg_sys::GetUserIdAndSecContext(&mut user, &mut context);
        let inside = context | pg_sys::SECURITY_LOCAL_USERID_CHANGE as i32;
        pg_sys::SetUserIdAndSecContext(compat::BOOTSTRAP_SUPERUSER, inside);
        let result = action();
        pg_sys::SetUserIdAndSecContext(user, context);
        result
    }
}
