//! What is true while a command runs, and need not be found out for each of its rows.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::Hash;

use pgrx::pg_sys;

/// A command of this session: while it runs, it sees no change of a table.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Moment {
    statement: i64,
    command: u32,
}

impl Moment {
    /// The one that runs.
    pub fn now() -> Moment {
        // SAFETY: globals of this process; a transaction is in progress.
        unsafe {
            Moment {
                statement: pg_sys::GetCurrentStatementStartTimestamp(),
                command: pg_sys::GetCurrentCommandId(false),
            }
        }
    }
}

/// As much is remembered.
const MOST: usize = 10_000;

/// What was found to be well in the command that runs.
pub struct Well<T> {
    moment: Moment,
    known: HashSet<T>,
}

impl<T> Default for Well<T> {
    fn default() -> Well<T> {
        Well { moment: Moment::default(), known: HashSet::new() }
    }
}

impl<T: Eq + Hash> Well<T> {
    /// Whether it was found to be well in this very command.
    pub fn is<Q: Eq + Hash + ?Sized>(&self, what: &Q) -> bool
    where
        T: Borrow<Q>,
    {
        self.moment == Moment::now() && self.known.contains(what)
    }

    /// It was found to be well.
    pub fn add(&mut self, what: T) {
        let now = Moment::now();
        if self.moment != now || self.known.len() >= MOST {
            self.moment = now;
            self.known.clear();
        }
        self.known.insert(what);
    }
}
