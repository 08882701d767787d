//! Partitions and children of a subscription's tables of which it gets nothing, or less than of the others: refused when
//! somebody subscribes to a table above them by name, and named from then on.

use std::cell::RefCell;
use std::sync::Arc;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::api::authorization::with_plain_names;
use crate::api::subscriptions::filter_check::name_of;
use crate::api::subscriptions::tables::with_rows;
use crate::decode::routing::table_pattern::{TablePattern, array_literal};
use crate::error::{Error, PartNotLogged};
use crate::journal;
use crate::journal::{Led, Part};
use crate::pg::command::command_cache::Found;
use crate::pg::values::composite::Row;
use crate::pg::values::detoasted_arg::{Key, Stored};
use crate::pg::values::encoding::Text;

/// So many tables are named.
const MAX_NAMED: usize = 10;
/// So many tables are proposed instead of the one above them.
const MAX_PROPOSED: usize = 20;

thread_local! {
    /// All such parts of the database.
    static PARTS: RefCell<Found<(), Arc<[Part]>>> = RefCell::default();
    /// What was found of lists of tables and event types.
    static JUDGED: RefCell<Found<Key, Option<Arc<Judgement>>>> = RefCell::default();
}

/// What is to be said of a subscription's tables.
struct Judgement {
    problem: String,
    /// Whether a pattern without a wildcard leads to a part that is not in the log.
    is_failure: bool,
    /// What to set in the subscription.
    change: Option<String>,
    /// What to type otherwise.
    cure: Option<String>,
}

fn parts() -> Result<Arc<[Part]>, Error> {
    if let Some(known) = PARTS.with_borrow(|parts| parts.get(&())) {
        return Ok(known);
    }
    let parts: Arc<[Part]> = with_plain_names(|| Ok(journal::flawed_parts()?))?.into();
    PARTS.with_borrow_mut(|known| known.add((), Arc::clone(&parts)));
    Ok(parts)
}

/// Refuses patterns (in stored form) that name a table of which a part is not in the log. One in `known` was accepted
/// before.
pub fn check(stored: &[String], known: &[String]) -> Result<(), Error> {
    let new = stored.iter().filter(|pattern| !known.contains(pattern));
    let new: Vec<TablePattern> = new.filter_map(|pattern| TablePattern::parse(pattern).ok()).collect();
    if new.iter().all(|pattern| pattern.literal().is_none()) {
        return Ok(());
    }
    let all = parts()?;
    let led = all.iter().filter_map(|part| Some((part, part.not_logged()?, part.led_by(&new)?)));
    let named: Vec<_> = led.filter(|(part, _, led)| led.is_named && !part.is_temporary()).collect();
    let Some((_, _, first)) = named.first() else { return Ok(()) };
    let of_table = named.iter().filter(|(_, _, led)| led.above == first.above);
    Err(Error::PartNotLogged {
        table: name_of(first.above),
        parts: of_table
            .map(|(part, what, _)| PartNotLogged { name: part.name.clone(), what, cure: part.cure() })
            .collect(),
        tables: instead(stored, *first).unwrap_or_else(|| "'{...}'".to_owned()),
    })
}

/// The list of tables with the parts that are in the log in the place of the table above them, as SQL writes it; none when
/// there are too many.
fn instead(stored: &[String], led: Led) -> Option<String> {
    let above = name_of(led.above);
    let parts = with_rows(led.above);
    if parts.is_empty() || parts.len() > MAX_PROPOSED {
        return None;
    }
    let others = stored.iter().filter(|pattern| **pattern != above).cloned();
    let mut tables: Vec<String> =
        others.chain(parts.into_iter().filter(|part| *part != led.above).map(name_of)).collect();
    tables.sort();
    tables.dedup();
    (!tables.is_empty()).then(|| array_literal(&tables))
}

/// What of a subscription's tables does not come, or only in part, although a table above comes; whether it is wrong by
/// that, what to set, and what to type otherwise.
#[pg_extern(sql = false)]
fn parts_problem(tables: Option<Stored>, event_types: Option<Stored>) -> Result<Option<Row>, ErrorReport> {
    let key = [&tables, &event_types].into_iter().fold(Key::new(), Key::and_stored);
    if let Some(known) = JUDGED.with_borrow(|judged| judged.get(&key)) {
        return Ok(known.as_deref().map(Judgement::row));
    }
    let texts = |stored: &Option<Stored>| stored.as_ref().map(Stored::texts).unwrap_or_default();
    let judgement = judge(&texts(&tables), &texts(&event_types))?.map(Arc::new);
    JUDGED.with_borrow_mut(|judged| judged.add(key, judgement.clone()));
    Ok(judgement.as_deref().map(Judgement::row))
}

fn judge(tables: &[String], event_types: &[String]) -> Result<Option<Judgement>, Error> {
    let wants = |word: &str| event_types.iter().any(|known| known == word);
    let has_rows = ["insert", "update", "delete"].into_iter().any(wants);
    let has_old_rows = wants("update") || wants("delete");
    let patterns: Vec<TablePattern> =
        tables.iter().filter_map(|stored| TablePattern::parse(stored).ok()).collect();
    let parts = parts()?;
    let concerns = |part: &Part| if part.not_logged().is_some() { has_rows } else { has_old_rows };
    let led = parts.iter().filter(|part| concerns(part));
    let mut led: Vec<(&Part, Led)> = led.filter_map(|part| Some((part, part.led_by(&patterns)?))).collect();
    let is_failure =
        |(part, led): &(&Part, Led)| part.not_logged().is_some() && led.is_named && !part.is_temporary();
    led.sort_by_key(|found| !is_failure(found));
    let Some(first) = led.first() else { return Ok(None) };
    let cures: Vec<String> = led.iter().filter_map(|(part, _)| part.cure()).take(MAX_NAMED).collect();
    let cure = first.0.cure().map(|_| cures.join(" "));
    let change = instead(tables, first.1).filter(|_| cure.is_none() && is_failure(first));
    Ok(Some(Judgement {
        problem: words(&led),
        is_failure: is_failure(first),
        change: change.map(|tables| format!("tables = {tables}")),
        cure,
    }))
}

/// The parts in words.
fn words(led: &[(&Part, Led)]) -> String {
    let list = |parts: Vec<String>| {
        let more = match parts.len().saturating_sub(MAX_NAMED) {
            0 => String::new(),
            more => format!(", and {more} more"),
        };
        parts[..parts.len().min(MAX_NAMED)].join(", ") + &more
    };
    let mut sentences = Vec::new();
    let missing = led.iter().filter_map(|(part, _)| Some(format!("{} ({})", part.name, part.not_logged()?)));
    let missing: Vec<String> = missing.collect();
    if !missing.is_empty() {
        sentences.push(format!(
            "changes of parts of its tables are not in the log, and a row that moves there is a delete: {}",
            list(missing)
        ));
    }
    let weak = led.iter().filter(|(part, _)| part.not_logged().is_none());
    let weak: Vec<String> = weak.filter_map(|(part, _)| part.cure()).collect();
    if !weak.is_empty() {
        sentences.push(format!("parts of its tables lack the others' REPLICA IDENTITY: {}", list(weak)));
    }
    sentences.join("; ")
}

impl Judgement {
    fn row(&self) -> Row {
        Row::with_capacity(4)
            .and(Text::from(self.problem.as_str()))
            .and(self.is_failure)
            .and(self.change.as_deref().map(Text::from))
            .and(self.cure.as_deref().map(Text::from))
    }
}
