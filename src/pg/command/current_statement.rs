//! The text of the command that runs: a client may send many in one string, and a function runs commands of its own.

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int};
use std::ptr;

use pgrx::pg_sys;

thread_local! {
    static RUNNING: Cell<Statement> = const { Cell::new(Statement::NONE) };
}

/// Where a utility command's text stands.
#[derive(Clone, Copy)]
pub struct Statement {
    /// The string that it is in; null when that is not known.
    query: *const c_char,
    /// Where it begins in there, in bytes; -1 when that is not known.
    location: c_int,
    /// Its length in bytes; 0: up to the end.
    length: c_int,
}

impl Statement {
    const NONE: Statement = Statement { query: ptr::null(), location: -1, length: 0 };

    /// The command that a hook of utility commands was given.
    ///
    /// # Safety
    /// The arguments are what the server passed to the hook.
    pub unsafe fn of(statement: *const pg_sys::PlannedStmt, query: *const c_char) -> Statement {
        // SAFETY: as the caller promises.
        unsafe { Statement { query, location: (*statement).stmt_location, length: (*statement).stmt_len } }
    }

    /// Says that it runs from here on; returns what ran until now, and does so again when it is done.
    pub fn replace(self) -> Statement {
        RUNNING.replace(self)
    }
}

/// A command has failed, and with it its text may go.
pub fn forget() {
    RUNNING.set(Statement::NONE);
}

/// The text of the command that runs, in the encoding of the database.
pub fn running() -> Option<Vec<u8>> {
    let Statement { query, location, length } = RUNNING.get();
    if query.is_null() {
        return None;
    }
    // SAFETY: the server keeps the string while the command runs, and what fails is forgotten.
    let text = unsafe { CStr::from_ptr(query) }.to_bytes();
    let text = text.get(usize::try_from(location).unwrap_or(0)..)?;
    let text = match usize::try_from(length) {
        Ok(length) if length > 0 => text.get(..length)?,
        _ => text,
    };
    Some(text.trim_ascii().to_vec())
}
