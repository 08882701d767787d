//! What is wrong with a subscription today, as `pgwh.status` and `pgwh.health` ask of each. What many say in the same words
//! is judged once in a command.

use std::cell::RefCell;
use std::sync::Arc;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::conditions::Conditions;
use super::moment::Found;
use super::stored::{Key, Stored};
use super::tables;
use crate::decode::condition::Kinds;
use crate::decode::shape::Shape;
use crate::decode::text::Text;
use crate::error::Error;
use crate::send::{check_url, deciding_part};
use crate::settings;

thread_local! {
    /// What decides of URLs that they pass.
    static PASSING: RefCell<Found<String, ()>> = RefCell::default();
    /// What is wrong with lists of tables.
    static UNFIT_TABLES: RefCell<Found<Key, Option<String>>> = RefCell::default();
    /// Tables, and conditions that fit them, but for literals; with the types that these have.
    static FITTING: RefCell<Found<Key, Arc<[Kinds]>>> = RefCell::default();
    /// The same with literals.
    static FITTING_AS_THEY_ARE: RefCell<Found<Key, ()>> = RefCell::default();
}

/// Why a URL that was once accepted would be refused today.
#[pg_extern(sql = false)]
fn url_problem(url: Stored) -> Option<Text> {
    let url = url.text();
    let deciding = deciding_part(&url);
    if deciding.is_some_and(|part| PASSING.with_borrow(|passing| passing.get(part)).is_some()) {
        return None;
    }
    let problem = in_one_line(check_url(&url, &settings::guard()));
    if let (Some(part), None) = (deciding, &problem) {
        PASSING.with_borrow_mut(|passing| passing.add(part.to_owned(), ()));
    }
    problem.map(Text::from)
}

/// Why tables that were once accepted would be refused today.
#[pg_extern(sql = false)]
fn tables_problem(tables: Stored) -> Option<Text> {
    let key = Key::new().and(Some(tables.bytes()));
    let known = UNFIT_TABLES.with_borrow(|known| known.get(&key));
    let problem = known.unwrap_or_else(|| {
        let problem = in_one_line(tables.texts().iter().try_for_each(|table| tables::check(table)));
        UNFIT_TABLES.with_borrow_mut(|known| known.add(key, problem.clone()));
        problem
    });
    problem.map(Text::from)
}

/// What of a subscription's filter and columns doesn't fit its tables today.
#[pg_extern(sql = false)]
fn condition_problem(
    tables: Option<Stored>,
    event_types: Option<Stored>,
    filter: Option<Stored>,
    changed: Option<Stored>,
    key_columns: Option<Stored>,
) -> Result<Option<Text>, ErrorReport> {
    let filter = filter.as_ref().map(Stored::text);
    let shape = filter.as_deref().map(Shape::of);
    let literals = shape.as_ref().map_or(&[][..], |shape| &shape.literals);
    let terms = [&tables, &event_types, &changed, &key_columns].into_iter().fold(Key::new(), Key::and_stored);
    let alike = terms.clone().and(shape.as_ref().map(|shape| shape.text.as_bytes()));
    let known = FITTING.with_borrow(|fitting| fitting.get(&alike));
    let is_sure = |kinds: &[Kinds]| kinds.iter().all(|kinds| kinds.surely_take(literals));
    if known.as_deref().is_some_and(is_sure) {
        return Ok(None);
    }
    let same = terms.and(filter.as_deref().map(str::as_bytes));
    if FITTING_AS_THEY_ARE.with_borrow(|fitting| fitting.get(&same)).is_some() {
        return Ok(None);
    }
    let conditions = Conditions::read(&tables, &event_types, filter, &changed, &key_columns);
    let problem = conditions.problem()?;
    if problem.is_none() {
        FITTING_AS_THEY_ARE.with_borrow_mut(|fitting| fitting.add(same, ()));
        if known.is_none()
            && let Some(kinds) = conditions.kinds()?
        {
            FITTING.with_borrow_mut(|fitting| fitting.add(alike, kinds.into()));
        }
    }
    Ok(problem.map(Text::from))
}

fn in_one_line<T>(judged: Result<T, impl Into<Error>>) -> Option<String> {
    judged.err().map(|error| error.into().in_one_line())
}
