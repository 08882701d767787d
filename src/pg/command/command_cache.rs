//! What is true while a command runs, and need not be found out for each of its rows.

use std::borrow::Borrow;
use std::collections::HashMap;
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

/// What was found out in the command that runs.
pub struct Found<K, V> {
    moment: Moment,
    known: HashMap<K, V>,
}

impl<K, V> Default for Found<K, V> {
    fn default() -> Found<K, V> {
        Found { moment: Moment::default(), known: HashMap::new() }
    }
}

impl<K: Eq + Hash, V: Clone> Found<K, V> {
    /// What was found of it in this very command.
    pub fn get<Q: Eq + Hash + ?Sized>(&self, of: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        if self.moment == Moment::now() { self.known.get(of).cloned() } else { None }
    }

    /// It was found of it.
    pub fn add(&mut self, of: K, what: V) {
        let now = Moment::now();
        if self.moment != now || self.known.len() >= MOST {
            self.moment = now;
            self.known.clear();
        }
        self.known.insert(of, what);
    }
}
