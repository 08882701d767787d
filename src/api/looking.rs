//! `pgwh.wait` and what `pgwh.health` asks.

use std::borrow::Cow;
use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pgrx::datum::Interval;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::conditions::Conditions;
use super::gate;
use super::moment::Found;
use super::stored::{Key, Stored};
use super::subscribe::id_of;
use super::tables;
use crate::decode::condition::Kinds;
use crate::decode::shape::Shape;
use crate::decode::slot;
use crate::decode::text::Text;
use crate::error::Error;
use crate::send::{check_url, deciding_part};
use crate::settings;
use crate::worker::{ask, process};

/// The first and the longest pause between two looks at what the dispatcher says.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LAST_PAUSE: Duration = Duration::from_millis(20);

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

/// Version of this library.
#[pg_extern(sql = false)]
fn version() -> &'static str {
    crate::version::LIBRARY
}

/// Whether the library was loaded at server start.
#[pg_extern(sql = false)]
fn preloaded() -> bool {
    settings::preloaded()
}

/// Whether a replication slot is being made.
#[pg_extern(sql = false)]
fn slot_is_ephemeral(slot: &std::ffi::CStr) -> bool {
    slot::is_ephemeral(slot)
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

fn in_one_line<T>(judged: Result<T, impl Into<Error>>) -> Option<String> {
    judged.err().map(|error| error.into().in_one_line())
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
    let texts = |stored: Option<Stored>| stored.map(|stored| stored.texts());
    let conditions = Conditions {
        tables: texts(tables).unwrap_or_default(),
        event_types: texts(event_types).unwrap_or_default(),
        filter: filter.map(Cow::into_owned),
        changed: texts(changed),
        key_columns: texts(key_columns),
    };
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

/// Why this database's workers failed when they last tried.
#[pg_extern(sql = false)]
fn capture_problem() -> Option<Text> {
    ask::problem().map(Text::from)
}

/// Waits until everything committed before the call has reached the subscription.
#[pg_extern(sql = false)]
fn wait(name: Option<Text>, timeout: Option<Interval>) -> Result<bool, ErrorReport> {
    gate::changes()?;
    let timeout = timeout.ok_or(Error::Missing("timeout"))?;
    let patience = Duration::from_micros(u64::try_from(timeout.as_micros()).unwrap_or_default());
    let id = id_of(name)?;
    if !is_live(id).map_err(Error::from)? {
        notice!("the subscription is disabled, paused or held, so nothing is sent to it");
        return Ok(false);
    }
    let end = ask::wal_insert_end();
    // What a commit left in memory (synchronous_commit = off) would be decoded only after the next flush.
    // SAFETY: the position is one that has been inserted.
    unsafe { pg_sys::XLogFlush(end) };
    let deadline = Instant::now().checked_add(patience);
    let mut pause = FIRST_PAUSE;
    while ask::standing(id, |_, reached| reached).is_none_or(|reached| reached < end) {
        let left = deadline.map_or(LAST_PAUSE, |deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            return Ok(false);
        }
        ask::wake_decoder();
        process::pause(pause.min(left));
        pause = (pause * 2).min(LAST_PAUSE);
    }
    Ok(true)
}

/// Whether anything is sent to the subscription at all.
fn is_live(id: i64) -> Result<bool, pgrx::spi::Error> {
    Spi::connect(|client| {
        let live = client.select(
            "SELECT enabled AND NOT paused AND home OPERATOR(pg_catalog.=) pgwh.home() FROM pgwh.subscriptions
             WHERE id OPERATOR(pg_catalog.=) $1",
            Some(1),
            &[id.into()],
        )?;
        Ok(live.first().get_one::<bool>()?.unwrap_or_default())
    })
}
