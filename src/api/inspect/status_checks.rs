//! What is wrong with a subscription today, as `pgwh.status` and `pgwh.health` ask of each. What many say in the same words
//! is judged once in a command.

use std::cell::RefCell;
use std::sync::Arc;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::unmatched;
use crate::api::subscriptions::filter_check::Conditions;
use crate::decode::filter::compile::Kinds;
use crate::decode::filter::normalize::Shape;
use crate::error::Error;
use crate::gucs;
use crate::http::{check_url, deciding_part};
use crate::pg::command::command_cache::Found;
use crate::pg::values::composite::Row;
use crate::pg::values::detoasted_arg::{Key, Stored};
use crate::pg::values::encoding::Text;

/// What is to be said of tables that are left out.
type Note = Option<Arc<str>>;

/// The types of the literals in the tables that conditions fit.
type Types = Arc<[Kinds]>;

thread_local! {
    /// What decides of URLs that they pass.
    static PASSING: RefCell<Found<String, ()>> = RefCell::default();
    /// What is wrong with lists of tables.
    static UNFIT_TABLES: RefCell<Found<Key, Option<Arc<unmatched::Judgement>>>> = RefCell::default();
    /// Tables, and conditions that fit them, but for literals; with the types that these have, and what is to be said of the
    /// tables all the same.
    static FITTING: RefCell<Found<Key, (Types, Note)>> = RefCell::default();
    /// The same with literals.
    static FITTING_AS_THEY_ARE: RefCell<Found<Key, Note>> = RefCell::default();
}

/// Why a URL that was once accepted would be refused today, and what to type.
#[pg_extern(sql = false)]
fn url_problem(url: Option<Stored>) -> Option<Row> {
    let url = url.unwrap_or_default();
    let url = url.text();
    let deciding = deciding_part(&url);
    if deciding.is_some_and(|part| PASSING.with_borrow(|passing| passing.get(part)).is_some()) {
        return None;
    }
    match check_url(&url, &gucs::guard()) {
        Ok(_) => {
            if let Some(part) = deciding {
                PASSING.with_borrow_mut(|passing| passing.add(part.to_owned(), ()));
            }
            None
        }
        Err(problem) => {
            let cure = Text::from(problem.cure());
            Some(Row::with_capacity(2).and(Text::from(Error::from(problem).in_one_line())).and(cure))
        }
    }
}

/// Why tables that were once accepted would be refused today, or that no table matches; whether the subscription is wrong by
/// that; and what to set, or to type otherwise.
#[pg_extern(sql = false)]
fn tables_problem(tables: Option<Stored>) -> Result<Option<Row>, ErrorReport> {
    let Some(tables) = tables else { return Ok(None) };
    let key = Key::new().and(Some(tables.bytes()));
    if let Some(known) = UNFIT_TABLES.with_borrow(|known| known.get(&key)) {
        return Ok(known.as_deref().map(unmatched::Judgement::row));
    }
    let judgement = unmatched::judge(&tables.texts())?.map(Arc::new);
    UNFIT_TABLES.with_borrow_mut(|known| known.add(key, judgement.clone()));
    Ok(judgement.as_deref().map(unmatched::Judgement::row))
}

/// Which settings name a file that cannot be used, and what to do about it.
#[pg_extern(sql = false)]
fn file_problems() -> TableIterator<'static, (name!(problem, Text), name!(cure, Text))> {
    let problems = gucs::file_problems().into_iter();
    TableIterator::new(
        problems.map(|(problem, cure)| (Text::from(problem), Text::from(cure))).collect::<Vec<_>>(),
    )
}

/// What of a subscription's filter and columns doesn't fit its tables today; whether it is wrong by that, or only doesn't mean
/// some of the tables that its wildcards lead to; and what to set, or to type otherwise.
#[pg_extern(sql = false)]
fn condition_problem(
    tables: Option<Stored>,
    event_types: Option<Stored>,
    filter: Option<Stored>,
    changed: Option<Stored>,
    key_columns: Option<Stored>,
) -> Result<Option<Row>, ErrorReport> {
    let filter = filter.as_ref().map(Stored::text);
    let shape = filter.as_deref().map(Shape::of);
    let literals = shape.as_ref().map_or(&[][..], |shape| &shape.literals);
    let terms = [&tables, &event_types, &changed, &key_columns].into_iter().fold(Key::new(), Key::and_stored);
    let alike = terms.clone().and(shape.as_ref().map(|shape| shape.text.as_bytes()));
    let known = FITTING.with_borrow(|fitting| fitting.get(&alike));
    let is_sure = |kinds: &[Kinds]| kinds.iter().all(|kinds| kinds.surely_take(literals));
    if let Some((_, note)) = known.as_ref().filter(|(kinds, _)| is_sure(kinds)) {
        return Ok(note.as_deref().map(noted));
    }
    let same = terms.and(filter.as_deref().map(str::as_bytes));
    if let Some(note) = FITTING_AS_THEY_ARE.with_borrow(|fitting| fitting.get(&same)) {
        return Ok(note.as_deref().map(noted));
    }
    let conditions = Conditions::read(&tables, &event_types, filter, &changed, &key_columns);
    let verdict = conditions.look()?;
    if let Some(problem) = &verdict.problem {
        return Ok(Some(wrong(problem)));
    }
    let note: Note = verdict.note().map(Arc::from);
    FITTING_AS_THEY_ARE.with_borrow_mut(|fitting| fitting.add(same, note.clone()));
    if known.is_none()
        && verdict.is_of_any_literals()
        && let Some(kinds) = conditions.kinds(&verdict.fitting)
    {
        FITTING.with_borrow_mut(|fitting| fitting.add(alike, (kinds.into(), note.clone())));
    }
    Ok(note.as_deref().map(noted))
}

/// The row of what makes a subscription wrong.
fn wrong(problem: &Error) -> Row {
    Row::with_capacity(4)
        .and(Text::from(problem.in_one_line()))
        .and(true)
        .and(problem.cure().is_none().then(|| Text::from(problem.assignment())))
        .and(problem.cure().map(Text::from))
}

/// The row of what has only to be known.
fn noted(note: &str) -> Row {
    Row::with_capacity(4).and(Text::from(note)).and(false).and(None::<Text>).and(None::<Text>)
}
