//! Dynamic shared memory, which may be full. What needs more of it is put off, with a reason that `pgwh.health()` shows; nothing
//! else waits.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use pgrx::PgLogLevel;
use pgrx::pg_sys::panic::ErrorReport;

use super::registry::Database;
use crate::pg::process::bgworker;

thread_local! {
    /// Why there is none, by what it is for.
    static PROBLEMS: RefCell<BTreeMap<&'static str, String>> = const { RefCell::new(BTreeMap::new()) };
}

/// Makes something in it; none when there is no room. `purpose` completes "there is no shared memory". Outside of any
/// transaction.
pub fn make<T>(database: &Database, purpose: &'static str, make: impl FnOnce() -> T) -> Option<T> {
    let made = bgworker::attempt(Duration::ZERO, make);
    let problem = made.as_ref().err().map(|raised| (raised.code, raised.message.clone()));
    let is_known = PROBLEMS.with_borrow(|problems| problems.contains_key(purpose));
    match problem {
        None if is_known => PROBLEMS.with_borrow_mut(|problems| {
            problems.remove(purpose);
        }),
        None => return made.ok(),
        Some((code, message)) => {
            PROBLEMS.with_borrow_mut(|problems| problems.insert(purpose, message.clone()));
            if !is_known {
                let what = format!("pgstream_hooks: there is no shared memory {purpose}");
                ErrorReport::new(code, what, "pgstream_hooks")
                    .set_detail(message)
                    .set_hint("It is tried again. Make /dev/shm larger, in a container by --shm-size.")
                    .report(PgLogLevel::WARNING);
            }
        }
    }
    let told = PROBLEMS.with_borrow(|problems| {
        let told = problems.iter().map(|(purpose, message)| format!("there is none {purpose}: {message}"));
        told.collect::<Vec<_>>().join("; ")
    });
    database.memory_problem.set(&told);
    made.ok()
}
