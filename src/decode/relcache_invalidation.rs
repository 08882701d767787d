//! Which relations may have changed since they were looked up, as the server's caches tell.
//!
//! Apart from what is invalidated, since the caches may call back in the middle of a look-up.

use std::cell::RefCell;

use pgrx::pg_sys;

thread_local! {
    static STALE: RefCell<Stale> = const { RefCell::new(Stale::Some(Vec::new())) };
}

/// Relations that have to be looked up again.
pub enum Stale {
    /// These.
    Some(Vec<pg_sys::Oid>),
    /// Every one.
    All,
}

/// Registers with the caches; at most once a process, since there is no way back.
pub fn register() {
    // SAFETY: both callbacks are functions of this library, which is never unloaded.
    unsafe {
        pg_sys::CacheRegisterRelcacheCallback(Some(relation_changed), pg_sys::Datum::null());
        use pg_sys::SysCacheIdentifier::{
            AUTHMEMROLEMEM, AUTHOID, DATABASEOID, ENUMOID, NAMESPACEOID, TYPEOID,
        };
        // Names and types; and who may what, where that is not said with the table.
        for cache in [NAMESPACEOID, TYPEOID, ENUMOID, AUTHMEMROLEMEM, AUTHOID, DATABASEOID] {
            pg_sys::CacheRegisterSyscacheCallback(cache as _, Some(anything_changed), pg_sys::Datum::null());
        }
    }
}

/// What has become stale since the last call.
pub fn take() -> Stale {
    STALE.replace(Stale::Some(Vec::new()))
}

unsafe extern "C-unwind" fn relation_changed(_: pg_sys::Datum, oid: pg_sys::Oid) {
    STALE.with_borrow_mut(|stale| match stale {
        _ if oid == pg_sys::InvalidOid => *stale = Stale::All,
        Stale::Some(oids) => oids.push(oid),
        Stale::All => {}
    });
}

unsafe extern "C-unwind" fn anything_changed(_: pg_sys::Datum, _: i32, _: u32) {
    STALE.set(Stale::All);
}
