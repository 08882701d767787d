//! For tests only: the encoder as an SQL function, to be held against `to_json`.
//!
//!     CREATE FUNCTION pgwh_encode(anyelement) RETURNS bytea LANGUAGE c STRICT
//!         AS '/path/to/libpgstream_hooks.so', 'pgwh_encode_wrapper';

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::{KeyHasher, ValueEncoder};

#[pg_extern(sql = false)]
fn pgwh_encode(value: pgrx::AnyElement) -> Vec<u8> {
    let mut out = Vec::new();
    // SAFETY: the current context lives for the call, and the value is what SQL passed.
    unsafe { ValueEncoder::new(value.oid(), pg_sys::CurrentMemoryContext).encode(value.datum(), &mut out) };
    out
}

/// Encodes one value so many times and returns nanoseconds per value.
#[pg_extern(sql = false)]
fn pgwh_encode_timed(value: pgrx::AnyElement, times: i32) -> f64 {
    let mut out = Vec::new();
    // SAFETY: as above; the context for what output functions allocate is reset by nobody else.
    unsafe {
        let mut encoder = ValueEncoder::new(value.oid(), pg_sys::CurrentMemoryContext);
        let mut change = pgrx::PgMemoryContexts::new("change");
        let started = std::time::Instant::now();
        change.switch_to(|change| {
            for at in 0..times {
                out.clear();
                encoder.encode(value.datum(), &mut out);
                if at % 8 == 0 {
                    change.reset();
                }
            }
        });
        started.elapsed().as_nanos() as f64 / f64::from(times)
    }
}

#[pg_extern(sql = false)]
fn pgwh_hash(value: pgrx::AnyElement, collation: pg_sys::Oid) -> i64 {
    let json = pgwh_encode(value);
    // SAFETY: as above.
    unsafe {
        KeyHasher::new(value.oid(), collation, pg_sys::CurrentMemoryContext).hash(value.datum(), &json) as i64
    }
}
