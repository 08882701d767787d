//! The two rows of a change as conditions look at them, and which of their values write-ahead log doesn't tell.

use pgrx::pg_sys::{self, Datum};

use super::analyze::Uses;
use crate::decode::encode::value::is_unchanged_toast;
use crate::decode::row_key::{Identity, identity_of};
use crate::event::Action;
use crate::pg::compat;
use crate::pg::memory_context::Memory;

/// One attribute of the relation.
struct Attribute {
    number: i16,
    /// The type's length; -1 for values that may be stored elsewhere.
    length: i16,
    by_value: bool,
    /// Whether it belongs to the replica identity.
    is_key: bool,
}

/// The rows, taken apart.
pub struct Rows {
    /// The context of expressions: the new row is its outer tuple, the old one its inner tuple.
    pub context: *mut pg_sys::ExprContext,
    new: *mut pg_sys::TupleTableSlot,
    old: *mut pg_sys::TupleTableSlot,
    desc: pg_sys::TupleDesc,
    identity: Identity,
    attributes: Vec<Attribute>,
    /// Which values of the new row are not known, by place.
    new_unknown: Vec<bool>,
    /// Which values of the old row are not known.
    old_unknown: Vec<bool>,
    /// Which large values an update left as they were.
    untouched: Vec<bool>,
    /// Holds the slots, the context and the descriptor.
    _memory: Memory,
}

impl Rows {
    /// Room for rows of a relation.
    ///
    /// # Safety
    /// `relation` is open.
    pub unsafe fn new(relation: pg_sys::Relation) -> Rows {
        let memory = Memory::new(c"pgwh rows");
        // SAFETY: as the caller promises. A virtual row that is once stored stays so, whatever its values become.
        unsafe {
            let (identity, key) = identity_of(relation);
            let (desc, new, old, context) = memory.within(|| {
                let desc = pg_sys::CreateTupleDescCopyConstr((*relation).rd_att);
                let slot = || pg_sys::MakeSingleTupleTableSlot(desc, &pg_sys::TTSOpsVirtual);
                let (new, old) =
                    (pg_sys::ExecStoreVirtualTuple(slot()), pg_sys::ExecStoreVirtualTuple(slot()));
                let context = pg_sys::CreateStandaloneExprContext();
                (*context).ecxt_outertuple = new;
                (*context).ecxt_innertuple = old;
                (desc, new, old, context)
            });
            let natts = (*desc).natts as usize;
            let attributes = (0..natts).map(|place| {
                let attribute = compat::attribute(desc, place);
                Attribute {
                    number: attribute.attnum,
                    length: attribute.attlen,
                    by_value: attribute.attbyval,
                    is_key: key.contains(&attribute.attnum),
                }
            });
            let unknown = vec![false; natts];
            Rows {
                context,
                new,
                old,
                desc,
                identity,
                attributes: attributes.collect(),
                new_unknown: unknown.clone(),
                old_unknown: unknown.clone(),
                untouched: unknown,
                _memory: memory,
            }
        }
    }

    /// Whether rows of the relation, as it is now, are the same as when this was made.
    ///
    /// # Safety
    /// `relation` is open.
    pub unsafe fn fit(&self, relation: pg_sys::Relation) -> bool {
        // SAFETY: as the caller promises.
        unsafe {
            let (identity, key) = identity_of(relation);
            let same_key = |attribute: &Attribute| attribute.is_key == key.contains(&attribute.number);
            identity == self.identity
                && self.attributes.iter().all(same_key)
                && pg_sys::equalTupleDescs(self.desc, (*relation).rd_att)
        }
    }

    /// Takes the rows of a change apart. The row that an action doesn't have is all NULL, as in a trigger.
    ///
    /// # Safety
    /// The tuples are null or rows of the relation, and outlive the use of these rows.
    pub unsafe fn fill(&mut self, action: Action, old: pg_sys::HeapTuple, new: pg_sys::HeapTuple) {
        // SAFETY: as the caller promises; the arrays of a slot have room for every attribute.
        unsafe {
            for (tuple, slot) in [(new, self.new), (old, self.old)] {
                if tuple.is_null() {
                    self.nulls_mut(slot).fill(true);
                } else {
                    pg_sys::heap_deform_tuple(tuple, self.desc, (*slot).tts_values, (*slot).tts_isnull);
                }
            }
            self.new_unknown.fill(false);
            self.untouched.fill(false);
            self.old_unknown.fill(action != Action::Insert && old.is_null());
            if !old.is_null() && self.identity != Identity::Full {
                // The others stand in the tuple as NULL.
                for (unknown, attribute) in self.old_unknown.iter_mut().zip(&self.attributes) {
                    *unknown = !attribute.is_key;
                }
            }
            if action == Action::Update {
                self.complete_update(old.is_null());
            }
        }
    }

    /// What an update's rows tell of each other.
    unsafe fn complete_update(&mut self, no_old: bool) {
        // SAFETY: both slots hold values of the relation.
        unsafe {
            for place in 0..self.attributes.len() {
                let attribute = &self.attributes[place];
                let (new, old) = ((*self.new).tts_values.add(place), (*self.old).tts_values.add(place));
                let (new_null, old_null) =
                    ((*self.new).tts_isnull.add(place), (*self.old).tts_isnull.add(place));
                if !*new_null && is_unchanged_toast(attribute.length, *new) {
                    self.untouched[place] = true;
                    let is_there = !self.old_unknown[place] && !*old_null;
                    (*new, *new_null) = if is_there { (*old, false) } else { (Datum::null(), true) };
                    self.new_unknown[place] = !is_there;
                }
                // Without an old row the key is what it was.
                if no_old && self.identity == Identity::Key && attribute.is_key {
                    (*old, *old_null) = (*new, *new_null);
                    self.old_unknown[place] = self.new_unknown[place];
                }
            }
        }
    }

    unsafe fn nulls_mut<'a>(&self, slot: *mut pg_sys::TupleTableSlot) -> &'a mut [bool] {
        // SAFETY: the array has as many members as the relation attributes.
        unsafe { std::slice::from_raw_parts_mut((*slot).tts_isnull, self.attributes.len()) }
    }

    /// The name of a column that is used and whose value isn't known, if there is one.
    pub fn unknown_of(&self, uses: &Uses) -> Option<String> {
        let is_unknown = |unknown: &[bool], number: &i16| {
            usize::try_from(*number - 1)
                .ok()
                .and_then(|place| unknown.get(place))
                .copied()
                .unwrap_or_default()
        };
        let new = uses.new.iter().find(|number| is_unknown(&self.new_unknown, number));
        let old = uses.old.iter().find(|number| is_unknown(&self.old_unknown, number));
        let (number, row) = new.map(|number| (*number, "NEW")).or(old.map(|number| (*number, "OLD")))?;
        // SAFETY: the descriptor is the relation's, and has attributes of these numbers.
        let name = unsafe {
            crate::pg::values::encoding::name(&compat::attribute(self.desc, number as usize - 1).attname)
        };
        Some(format!("{row}.{name}"))
    }

    /// Whether all values are known that are used.
    pub fn knows(&self, uses: &Uses) -> bool {
        let known = |unknown: &[bool], number: &i16| {
            !usize::try_from(*number - 1)
                .ok()
                .and_then(|place| unknown.get(place))
                .copied()
                .unwrap_or_default()
        };
        uses.new.iter().all(|number| known(&self.new_unknown, number))
            && uses.old.iter().all(|number| known(&self.old_unknown, number))
    }

    /// Whether one of the columns has another value after an update than before it, byte by byte. A column whose old
    /// value isn't known counts as changed.
    ///
    /// # Safety
    /// The rows of an update have been taken apart. Must run in a transaction.
    pub unsafe fn changed(&self, columns: &[i16]) -> bool {
        columns
            .iter()
            .filter_map(|number| self.attributes.iter().position(|attribute| attribute.number == *number))
            .any(|place| {
                if self.untouched[place] {
                    return false;
                }
                if self.old_unknown[place] {
                    return true;
                }
                let attribute = &self.attributes[place];
                // SAFETY: both slots hold values of the relation, and of both rows the value is there.
                unsafe {
                    let (new, old) = (*(*self.new).tts_values.add(place), *(*self.old).tts_values.add(place));
                    match (*(*self.new).tts_isnull.add(place), *(*self.old).tts_isnull.add(place)) {
                        (true, true) => false,
                        (false, false) => {
                            !compat::datum_image_eq(new, old, attribute.by_value, attribute.length)
                        }
                        _ => true,
                    }
                }
            })
    }

    /// The numbers of columns by their names; none for a name that there isn't.
    pub fn numbers_of(&self, names: &[String]) -> Vec<Option<i16>> {
        let named = |name: &String| {
            (0..self.attributes.len())
                // SAFETY: the descriptor has as many attributes.
                .map(|place| unsafe { compat::attribute(self.desc, place) })
                .find(|attribute| {
                    !attribute.attisdropped && crate::pg::values::encoding::name(&attribute.attname) == *name
                })
                .map(|attribute| attribute.attnum)
        };
        names.iter().map(named).collect()
    }
}
