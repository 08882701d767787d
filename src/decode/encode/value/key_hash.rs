//! A hash of a key column's value: equal for values that the type calls equal.

use pgrx::pg_sys::{self, Datum, FmgrInfo, MemoryContext, Oid};
use xxhash_rust::xxh3::xxh3_64;

use super::output_function::function_info;

/// Hashes the values of one key column. The same value has the same hash in every process, and for ever
/// unless the type's own hash function changes with a major version.
pub(crate) struct KeyHasher {
    /// The type's own hash function and the collation for it; without one the JSON text is hashed.
    function: Option<(Box<FmgrInfo>, Oid)>,
}

impl KeyHasher {
    /// Looks up how values of the type are hashed. `collation`: the column's. What Postgres allocates lives in
    /// `context`, so the hasher must not be used after that is reset or deleted. Must run in a transaction.
    ///
    /// Types whose equal values have the same JSON need no function; users' types have none that may run in
    /// decoding, so values of theirs that are equal but look different hash differently.
    pub(crate) fn new(type_oid: Oid, collation: Oid, context: MemoryContext) -> Self {
        // SAFETY: a catalog look-up.
        let type_oid = unsafe { pg_sys::getBaseType(type_oid) };
        let by_json = !is_builtin(type_oid)
            || match type_oid {
                pg_sys::BOOLOID
                | pg_sys::INT2OID
                | pg_sys::INT4OID
                | pg_sys::INT8OID
                | pg_sys::OIDOID
                | pg_sys::UUIDOID
                | pg_sys::BYTEAOID
                | pg_sys::DATEOID
                | pg_sys::TIMEOID
                | pg_sys::TIMESTAMPOID
                | pg_sys::TIMESTAMPTZOID
                | pg_sys::NAMEOID => true,
                pg_sys::TEXTOID | pg_sys::VARCHAROID => is_deterministic(collation),
                _ => false,
            };
        if by_json {
            return Self { function: None };
        }
        // SAFETY: a look-up in the type cache, whose entries live as long as the process.
        let function = unsafe {
            let flags = pg_sys::TYPECACHE_HASH_EXTENDED_PROC as i32;
            (*pg_sys::lookup_type_cache(type_oid, flags)).hash_extended_proc
        };
        let usable = function != Oid::INVALID && is_builtin(function);
        Self { function: usable.then(|| (function_info(function, context), collation)) }
    }

    /// The hash of a value that is not null. `json`: what [`super::ValueEncoder::encode`] made of it.
    ///
    /// Raises when the type's function does, as a Rust panic.
    ///
    /// # Safety
    /// As [`super::ValueEncoder::encode`].
    pub(crate) unsafe fn hash(&mut self, datum: Datum, json: &[u8]) -> u64 {
        match &mut self.function {
            // SAFETY: an extended hash function takes a value of its type and a seed.
            Some((function, collation)) => unsafe {
                pg_sys::FunctionCall2Coll(&mut **function, *collation, datum, Datum::from(0u64)).value()
                    as u64
            },
            None => xxh3_64(json),
        }
    }
}

fn is_builtin(oid: Oid) -> bool {
    oid.to_u32() < pg_sys::FirstNormalObjectId
}

/// Whether the collation calls only identical strings equal.
fn is_deterministic(collation: Oid) -> bool {
    // SAFETY: a catalog look-up; it raises if there is no such collation.
    collation == Oid::INVALID || unsafe { pg_sys::get_collation_isdeterministic(collation) }
}
