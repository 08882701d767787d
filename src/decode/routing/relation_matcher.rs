//! Who wants the changes of one relation: those who want all, and those with a condition, by the shape of their filters.
//!
//! A shape is compiled once, and its filters with an equality stand in an index, so that a change costs one look-up
//! however many they are. What cannot be judged for a subscription is refused for it alone, with the reason.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use pgrx::{PgSqlErrorCode, pg_sys};
use rustc_hash::FxHashMap;
use slab::Slab;
use smallvec::SmallVec;

use super::router::{Condition, Interest};
use crate::decode::filter::analyze::Bare;
use crate::decode::filter::compile::{Answer, Compiled, Values};
use crate::decode::filter::equality_index::RowKey;
use crate::decode::filter::normalize::Shape;
use crate::decode::filter::tuple_slots::Rows;
use crate::event::Action;
use crate::ipc::frame::Target;
use crate::pg::memory_context::Memory;
use crate::pg::statement_timeout::{TimeLimit, processor_time};
use crate::pg::subtransaction::{Raised, in_subtransaction};
use crate::pg::values::encoding::in_server_encoding;

/// Who may want changes of a relation.
#[derive(Default)]
pub struct Routes {
    /// Those without a condition.
    free: BTreeMap<i64, Interest>,
    /// Those with one, by its shape.
    shapes: Slab<Shaped>,
    by_key: HashMap<Key, usize>,
    places: FxHashMap<i64, usize>,
    /// Shapes whose literals cannot be told apart from the rest: each of their filters stands for itself.
    apart: HashSet<String>,
    /// Shapes with members that are not ready to be judged, for each meaning of bare columns.
    unprepared: [Vec<usize>; 2],
}

/// What conditions have in common that are judged together.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    shape: Option<String>,
    changed: Option<Vec<String>>,
}

/// The conditions of one shape.
struct Shaped {
    key: Key,
    members: FxHashMap<i64, Member>,
    variants: [Variant; 2],
    /// The numbers of the columns of which one must have changed; none until that was looked up.
    changed: Option<Result<Vec<i16>, Raised>>,
    memory: Memory,
}

struct Member {
    interest: Interest,
    filter: Option<Arc<str>>,
    /// Its literals, once they were read.
    values: Option<Values>,
}

/// A shape as compiled for one meaning of bare columns.
#[derive(Default)]
struct Variant {
    compiled: Option<Result<Compiled, Raised>>,
    /// Those who are not ready to be judged.
    fresh: Vec<i64>,
    /// Members by what their filters must equal, and others that were once members.
    index: FxHashMap<u64, SmallVec<[i64; 2]>>,
    /// How many members have gone since the index was made.
    gone: usize,
    /// Those whose literals are no values of the types that the relation asks for.
    broken: BTreeMap<i64, Raised>,
}

/// Somebody who would get a change, could it be judged.
pub struct Refused {
    /// Who.
    pub target: Target,
    /// Why not.
    pub why: Raised,
}

/// A change to be routed.
pub struct Change {
    /// Its relation, open.
    pub relation: pg_sys::Relation,
    /// What happened.
    pub action: Action,
    /// The row before, as far as write-ahead log has it.
    pub old: pg_sys::HeapTuple,
    /// The row after.
    pub new: pg_sys::HeapTuple,
}

/// How far the judging of a change has come, for the case that it raises.
#[derive(Default)]
struct Progress {
    shape: usize,
    /// Who is to be asked; none before they have been found.
    candidates: Option<Vec<i64>>,
    next: usize,
    /// How often the judging was cut off where it stands.
    cut_off: u32,
}

/// The processor time that a filter may take for one row: while it runs, nothing else of the database is decoded.
const LONGEST_JUDGEMENT: Duration = Duration::from_millis(100);

/// What preparing was about when it raised, and whose filter.
enum Stage {
    Compiling(i64),
    Reading(i64),
}

/// Whether a shape's filters can be judged together.
enum Prepared {
    Together,
    Apart,
}

impl Change {
    fn bare(&self) -> Bare {
        if self.action == Action::Delete { Bare::Old } else { Bare::New }
    }
}

impl Routes {
    /// Those who want something on whatever terms.
    pub fn is_empty(&self) -> bool {
        self.free.is_empty() && self.shapes.is_empty()
    }

    /// Whether there is something that could not be compiled or read.
    pub fn has_broken(&self) -> bool {
        let mut variants = self.shapes.iter().flat_map(|(_, shaped)| &shaped.variants);
        variants.any(|variant| matches!(variant.compiled, Some(Err(_))) || !variant.broken.is_empty())
    }

    /// Everybody who may want something, in order.
    pub fn interests(&self) -> Vec<Interest> {
        let shaped = self.shapes.iter().flat_map(|(_, shaped)| shaped.members.values());
        let mut all: Vec<Interest> =
            self.free.values().chain(shaped.map(|member| &member.interest)).copied().collect();
        all.sort_unstable_by_key(|interest| interest.subscription);
        all
    }

    /// Whether a subscription is among those who may want something.
    pub fn has(&self, subscription: i64) -> bool {
        self.free.contains_key(&subscription) || self.places.contains_key(&subscription)
    }

    /// Adds somebody who is not there.
    pub fn add(&mut self, interest: Interest, condition: Option<&Condition>) {
        let Some(condition) = condition else {
            self.free.insert(interest.subscription, interest);
            return;
        };
        let filter = condition.filter.clone();
        let mut shape = filter.as_deref().map(|filter| Shape::of(filter).text);
        if shape.as_ref().is_some_and(|shape| self.apart.contains(shape)) {
            shape = filter.as_deref().map(str::to_owned);
        }
        let key = Key { shape, changed: condition.changed.clone() };
        self.join(key, interest.subscription, Member { interest, filter, values: None });
    }

    fn join(&mut self, key: Key, id: i64, member: Member) {
        let place = *self.by_key.entry(key.clone()).or_insert_with(|| {
            self.shapes.insert(Shaped {
                key,
                members: FxHashMap::default(),
                variants: Default::default(),
                changed: None,
                memory: Memory::new(c"pgwh filter"),
            })
        });
        self.places.insert(id, place);
        let Some(shaped) = self.shapes.get_mut(place) else { return };
        shaped.members.insert(id, member);
        for (variant, unprepared) in shaped.variants.iter_mut().zip(&mut self.unprepared) {
            if variant.fresh.is_empty() {
                unprepared.push(place);
            }
            variant.fresh.push(id);
        }
    }

    /// Takes somebody out.
    pub fn remove(&mut self, id: i64) {
        self.free.remove(&id);
        let Some(place) = self.places.remove(&id) else { return };
        let Some(shaped) = self.shapes.get_mut(place) else { return };
        shaped.members.remove(&id);
        if shaped.members.is_empty() {
            let shaped = self.shapes.remove(place);
            self.by_key.remove(&shaped.key);
            self.unprepared.iter_mut().for_each(|places| places.retain(|other| *other != place));
            return;
        }
        for (variant, unprepared) in shaped.variants.iter_mut().zip(&mut self.unprepared) {
            variant.broken.remove(&id);
            variant.gone += 1;
            if variant.gone > shaped.members.len() {
                variant.index.clear();
                variant.gone = 0;
                if variant.fresh.is_empty() {
                    unprepared.push(place);
                }
                variant.fresh = shaped.members.keys().copied().collect();
            }
        }
    }

    /// Finds who gets a change, in order, and for whom that cannot be said. What is allocated on the way is freed with
    /// `memory`.
    ///
    /// # Safety
    /// The tuples are null or rows of the relation that `rows` was made for, and a callback of the reorder buffer runs.
    pub unsafe fn select(
        &mut self,
        change: &Change,
        rows: &mut Rows,
        memory: pg_sys::MemoryContext,
        targets: &mut Vec<Target>,
        refused: &mut Vec<Refused>,
    ) {
        let wanting = self.free.values().filter(|interest| interest.wants(change.action));
        targets.extend(wanting.map(Interest::target));
        if self.shapes.is_empty() {
            return;
        }
        // SAFETY: as the caller promises.
        unsafe {
            rows.fill(change.action, change.old, change.new);
            self.prepare(change, rows, memory);
            let mut progress = Progress::default();
            loop {
                let begun = (progress.cut_off > 0).then(processor_time);
                let limit = TimeLimit::start(LONGEST_JUDGEMENT * (1 << progress.cut_off.min(10)));
                let judged =
                    in_subtransaction(memory, || self.judge(change, rows, &mut progress, targets, refused));
                let was_up = limit.stop();
                let Err(raised) = judged else { break };
                if !was_up {
                    self.get_over(&mut progress, raised, refused);
                } else if begun.is_some_and(|begun| processor_time() - begun >= LONGEST_JUDGEMENT) {
                    self.get_over(&mut progress, took_too_long(), refused);
                } else {
                    // Others before it may have taken the time, or others the processor: it gets more, for itself.
                    progress.cut_off += 1;
                }
            }
        }
        targets.sort_unstable_by_key(|target| target.subscription);
        refused.sort_unstable_by_key(|refused| refused.target.subscription);
    }

    /// Those who want to know that the relation was truncated. That has no rows, so conditions are not asked; but a table that
    /// a wildcard led to, and that the filter doesn't fit, is not meant.
    ///
    /// # Safety
    /// As [`Routes::select`].
    pub unsafe fn truncating(
        &mut self,
        relation: pg_sys::Relation,
        rows: &Rows,
        memory: pg_sys::MemoryContext,
    ) -> Vec<Interest> {
        let mut wanting = self.interests();
        wanting.retain(|interest| interest.wants(Action::Truncate));
        if wanting.iter().all(|interest| interest.is_named || self.free.contains_key(&interest.subscription))
        {
            return wanting;
        }
        let (old, new) = (std::ptr::null_mut(), std::ptr::null_mut());
        let change = Change { relation, action: Action::Truncate, old, new };
        // SAFETY: as the caller promises.
        unsafe { self.prepare(&change, rows, memory) };
        let is_misfit = |id: &i64| {
            let shaped = self.places.get(id).and_then(|place| self.shapes.get(*place));
            let variant = shaped.map(|shaped| &shaped.variants[change.bare() as usize]);
            variant.is_some_and(|it| matches!(it.compiled, Some(Err(_))) || it.broken.contains_key(id))
        };
        wanting.retain(|interest| interest.is_named || !is_misfit(&interest.subscription));
        wanting
    }

    /// Compiles what is not compiled, and reads what is not read.
    unsafe fn prepare(&mut self, change: &Change, rows: &Rows, memory: pg_sys::MemoryContext) {
        let bare = change.bare();
        while let Some(place) = self.unprepared[bare as usize].pop() {
            let Some(shaped) = self.shapes.get_mut(place) else { continue };
            loop {
                let mut stage = Stage::Compiling(0);
                // SAFETY: as `select`.
                let prepared = in_subtransaction(memory, || unsafe {
                    shaped.prepare(bare, change.relation, rows, &mut stage)
                });
                let variant = &mut shaped.variants[bare as usize];
                match (prepared.and_then(|inner| inner), stage) {
                    (Ok(Prepared::Together), _) => break,
                    (Ok(Prepared::Apart), _) => {
                        self.take_apart(place);
                        break;
                    }
                    // Those of others may be values: the next one is tried.
                    (Err(raised), Stage::Compiling(id)) if raised.is_of_a_value() => {
                        variant.fresh.pop();
                        variant.broken.insert(id, raised);
                    }
                    (Err(raised), Stage::Compiling(_)) => variant.compiled = Some(Err(raised)),
                    (Err(raised), Stage::Reading(id)) => {
                        variant.broken.insert(id, raised);
                    }
                }
            }
        }
    }

    /// Has each filter of a shape stand for itself.
    fn take_apart(&mut self, place: usize) {
        let Some(shaped) = self.shapes.try_remove(place) else { return };
        self.by_key.remove(&shaped.key);
        self.unprepared.iter_mut().for_each(|places| places.retain(|other| *other != place));
        self.apart.extend(shaped.key.shape);
        for (id, member) in shaped.members {
            let shape = member.filter.as_deref().map(str::to_owned);
            let key = Key { shape, changed: shaped.key.changed.clone() };
            self.join(key, id, Member { values: None, ..member });
        }
    }

    /// Goes on judging where it stands.
    unsafe fn judge(
        &mut self,
        change: &Change,
        rows: &Rows,
        progress: &mut Progress,
        targets: &mut Vec<Target>,
        refused: &mut Vec<Refused>,
    ) {
        while progress.shape < self.shapes.capacity() {
            if let Some(shaped) = self.shapes.get_mut(progress.shape) {
                // SAFETY: as `select`.
                let candidates = progress
                    .candidates
                    .get_or_insert_with(|| unsafe { shaped.candidates(change.bare(), rows) });
                while let Some(id) = candidates.get(progress.next) {
                    // SAFETY: as `select`.
                    match unsafe { shaped.judge(*id, change, rows) } {
                        Some(Ok(target)) => targets.push(target),
                        Some(Err(why)) => refused.push(why),
                        None => {}
                    }
                    progress.next += 1;
                    progress.cut_off = 0;
                }
            }
            *progress = Progress { shape: progress.shape + 1, ..Progress::default() };
        }
    }

    /// Goes on behind what has raised.
    fn get_over(&self, progress: &mut Progress, why: Raised, refused: &mut Vec<Refused>) {
        progress.cut_off = 0;
        let Some(shaped) = self.shapes.get(progress.shape) else { return };
        match &progress.candidates {
            // What the index looks at cannot be had, so everybody has to be asked.
            None => progress.candidates = Some(shaped.members.keys().copied().collect()),
            Some(candidates) => {
                let member = candidates.get(progress.next).and_then(|id| shaped.members.get(id));
                refused.extend(member.map(|member| Refused { target: member.interest.target(), why }));
                progress.next += 1;
            }
        }
    }
}

impl Shaped {
    /// Makes all members ready to be judged. Raises what the filters raise.
    unsafe fn prepare(
        &mut self,
        bare: Bare,
        relation: pg_sys::Relation,
        rows: &Rows,
        stage: &mut Stage,
    ) -> Result<Prepared, Raised> {
        let Shaped { key, members, variants, memory, .. } = self;
        let variant = &mut variants[bare as usize];
        let shape_of = |filter: &str| {
            if key.shape.as_deref() == Some(filter) { Shape::whole(filter) } else { Shape::of(filter) }
        };
        while variant.compiled.is_none() && key.shape.is_some() {
            let Some(id) = variant.fresh.last().copied() else { break };
            let Some(filter) = members.get(&id).and_then(|member| member.filter.clone()) else {
                variant.fresh.pop();
                continue;
            };
            *stage = Stage::Compiling(id);
            let literals = shape_of(&filter).literals;
            // SAFETY: as `Routes::select`; the memory goes with the shape.
            let compiled = memory
                .within(|| unsafe { Compiled::new(&in_server_encoding(&filter), &literals, relation, bare) });
            match compiled? {
                Some(compiled) => variant.compiled = Some(Ok(compiled)),
                None => return Ok(Prepared::Apart),
            }
        }
        let Some(Ok(compiled)) = &mut variant.compiled else {
            variant.fresh.clear();
            return Ok(Prepared::Together);
        };
        while let Some(id) = variant.fresh.pop() {
            *stage = Stage::Reading(id);
            let Some(member) = members.get_mut(&id) else { continue };
            // SAFETY: as `Routes::select`.
            unsafe {
                if member.values.is_none() {
                    let literals = member.filter.as_deref().map(|filter| shape_of(filter).literals);
                    member.values = Some(compiled.values(&literals.unwrap_or_default()));
                }
                compiled.set(member.values.as_deref().unwrap_or_default(), rows);
                if let Some(equality) = &mut compiled.equality {
                    for hash in equality.of_values(rows) {
                        variant.index.entry(hash).or_default().push(id);
                    }
                }
            }
        }
        Ok(Prepared::Together)
    }

    /// Who may get the change. Raises what the filters raise.
    unsafe fn candidates(&mut self, bare: Bare, rows: &Rows) -> Vec<i64> {
        let variant = &mut self.variants[bare as usize];
        let everybody = || self.members.keys().copied().collect();
        let Some(Ok(Compiled { equality: Some(equality), .. })) = &mut variant.compiled else {
            return everybody();
        };
        // SAFETY: as `Routes::select`.
        let mut found: Vec<i64> = match unsafe { equality.of_rows(rows) } {
            RowKey::Everywhere => return everybody(),
            RowKey::Nowhere => Vec::new(),
            RowKey::Hash(hash) => variant.index.get(&hash).map(|ids| ids.to_vec()).unwrap_or_default(),
        };
        if !variant.broken.is_empty() {
            found.extend(variant.broken.keys());
        }
        if found.len() > 1 {
            found.sort_unstable();
            found.dedup();
        }
        found
    }

    /// Whether a member gets the change, or why that cannot be said. Raises what its filter raises.
    unsafe fn judge(&mut self, id: i64, change: &Change, rows: &Rows) -> Option<Result<Target, Refused>> {
        let Member { interest, values, .. } = self.members.get(&id)?;
        if !interest.wants(change.action) {
            return None;
        }
        let target = interest.target();
        let refuse = |why: &Raised| Some(Err(Refused { target, why: why.clone() }));
        // A table that a wildcard led to is not meant when the condition doesn't fit it.
        let misfit = |why: &Raised| if interest.is_named { refuse(why) } else { None };
        if let (Action::Update, Some(names)) = (change.action, &self.key.changed) {
            match self.changed.get_or_insert_with(|| numbers(rows, names)) {
                // SAFETY: as `Routes::select`.
                Ok(columns) if unsafe { rows.changed(columns) } => {}
                Ok(_) => return None,
                Err(why) => return misfit(why),
            }
        }
        let variant = &self.variants[change.bare() as usize];
        let answer = match &variant.compiled {
            _ if variant.broken.contains_key(&id) => return misfit(variant.broken.get(&id)?),
            None => Answer::Yes,
            Some(Err(why)) => return misfit(why),
            // SAFETY: as `Routes::select`; the values belong to a member.
            Some(Ok(compiled)) => unsafe {
                compiled.set(values.as_deref().unwrap_or_default(), rows);
                compiled.ask(rows)
            },
        };
        match answer {
            Answer::Yes => Some(Ok(target)),
            Answer::No => None,
            Answer::Unknown(column) => refuse(&Raised::new(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!(
                    "the filter needs {column}, which write-ahead log doesn't have for this change: ALTER TABLE ... REPLICA IDENTITY FULL"
                ),
            )),
        }
    }
}

/// Why a filter is not asked any further.
fn took_too_long() -> Raised {
    let limit = LONGEST_JUDGEMENT.as_millis();
    let message = format!("the filter took longer than a filter may take for one row, {limit} ms");
    Raised::new(PgSqlErrorCode::ERRCODE_QUERY_CANCELED, message)
}

/// The numbers of columns that `changed` names.
fn numbers(rows: &Rows, names: &[String]) -> Result<Vec<i16>, Raised> {
    let numbers = rows.numbers_of(names);
    let missing = numbers.iter().zip(names).find(|(number, _)| number.is_none());
    if let Some((_, name)) = missing {
        let message = format!("column \"{name}\" does not exist, which changed names");
        return Err(Raised::new(PgSqlErrorCode::ERRCODE_UNDEFINED_COLUMN, message));
    }
    Ok(numbers.into_iter().flatten().collect())
}
