//! One column of a relation: how the values of a row become cells.

use pgrx::pg_sys;
use xxhash_rust::xxh3::xxh3_64;

use super::value::{KeyHasher, ValueEncoder, is_unchanged_toast, raw_size};
use crate::event::RowBuilder;

/// A column, and how its values are encoded.
pub struct CapturedColumn {
    /// Index into the tuple.
    pub place: usize,
    /// The type's length; -1 for values that may be stored elsewhere.
    pub length: i16,
    /// Whether write-ahead log carries it: virtual generated columns are nowhere.
    pub stored: bool,
    /// Whether it is part of what tells rows apart.
    pub is_key: bool,
    /// Whether its values are hashed as their type says; false where it is no key, or a key only as part of the whole row.
    pub is_hashed: bool,
    /// Its type, and the collation of its values.
    pub value_type: (pg_sys::Oid, pg_sys::Oid),
    /// Where what is looked up about them lives, as long as the column.
    pub memory: pg_sys::MemoryContext,
    /// Made for the first value that is encoded: a type that cannot be looked up fails the changes that have values of it, and
    /// no others.
    pub coder: Option<Coder>,
}

/// How a column's values are encoded.
pub struct Coder {
    /// Makes JSON of them.
    encoder: ValueEncoder,
    /// Hashes them, where that is wanted.
    hasher: Option<KeyHasher>,
}

/// Room to take tuples apart, reused from row to row.
#[derive(Default)]
pub struct Scratch {
    values: Vec<pg_sys::Datum>,
    nulls: Vec<bool>,
    /// Hashes of the key's values, as far as the row was encoded.
    pub new_hashes: Vec<u64>,
    /// The same of the row before the change.
    pub old_hashes: Vec<u64>,
    /// Which columns are left out of the change as too large; empty when none is.
    omitted: Vec<bool>,
    /// The column whose value is being encoded, or was last: which one it is when that fails.
    pub column: usize,
}

/// A value larger than this, in bytes as stored, tells no rows apart where the whole row is the key: all such values count
/// as one, so that a hash of them is never needed where they are left out.
const LARGEST_HASHED: usize = 64 * 1024;

impl CapturedColumn {
    /// The least that a value takes as JSON, in bytes, without looking at it. Raises when its type cannot be looked up.
    ///
    /// # Safety
    /// As [`CapturedColumn::encode`].
    pub unsafe fn least_size(&mut self, scratch: &Scratch) -> usize {
        let datum = scratch.values[self.place];
        // SAFETY: as the caller promises.
        unsafe {
            if !self.stored || scratch.nulls[self.place] || is_unchanged_toast(self.length, datum) {
                return 0;
            }
            let raw = raw_size(self.length, datum);
            self.coder().encoder.least_size(raw)
        }
    }

    fn coder(&mut self) -> &mut Coder {
        let (type_oid, collation) = self.value_type;
        self.coder.get_or_insert_with(|| Coder {
            encoder: ValueEncoder::new(type_oid, self.memory),
            hasher: self.is_hashed.then(|| KeyHasher::new(type_oid, collation, self.memory)),
        })
    }

    /// Writes the column's cell, the `index`th of the row; for a key column returns the value's hash, if the value is known.
    ///
    /// # Safety
    /// `scratch` holds the values of a tuple of this column's relation.
    pub unsafe fn encode(
        &mut self,
        index: usize,
        scratch: &Scratch,
        row: &mut RowBuilder<'_>,
    ) -> Option<u64> {
        if !self.stored {
            row.absent();
            return None;
        }
        if scratch.nulls[self.place] {
            row.null();
            return Some(0);
        }
        let datum = scratch.values[self.place];
        // SAFETY: the datum is of the column's type, as the caller promises.
        unsafe {
            if is_unchanged_toast(self.length, datum) {
                row.unchanged();
                return None;
            }
            let omitted = scratch.omitted.get(index).copied().unwrap_or_default();
            let whole_row_is_key = self.is_key && !self.is_hashed;
            let hashed = self.is_key && !(whole_row_is_key && raw_size(self.length, datum) > LARGEST_HASHED);
            if omitted && !hashed {
                row.omitted();
                return self.is_key.then_some(0);
            }
            let is_key = self.is_key;
            let Coder { encoder, hasher } = self.coder();
            let out = row.begin_json();
            let start = out.len();
            encoder.encode(datum, out);
            let hash = match hasher {
                Some(hasher) => Some(hasher.hash(datum, &out[start..])),
                None if hashed => Some(xxh3_64(&out[start..])),
                None => is_key.then_some(0),
            };
            if omitted {
                row.omit_json();
            } else {
                row.end_json();
            }
            hash
        }
    }
}

impl Scratch {
    /// Forgets the change before.
    pub fn clear(&mut self) {
        self.new_hashes.clear();
        self.old_hashes.clear();
        self.omitted.clear();
    }

    /// Leaves a column out of the change, from here on.
    pub fn omit(&mut self, index: usize) {
        if self.omitted.len() <= index {
            self.omitted.resize(index + 1, false);
        }
        self.omitted[index] = true;
    }

    /// Takes a row apart.
    ///
    /// # Safety
    /// `tuple` is a row as `desc` describes it.
    pub unsafe fn deform(&mut self, tuple: pg_sys::HeapTuple, desc: pg_sys::TupleDesc) {
        // SAFETY: as the caller promises; both arrays have room for every attribute.
        unsafe {
            let width = (*desc).natts as usize;
            self.values.resize(width, pg_sys::Datum::null());
            self.nulls.resize(width, true);
            pg_sys::heap_deform_tuple(tuple, desc, self.values.as_mut_ptr(), self.nulls.as_mut_ptr());
        }
    }
}
