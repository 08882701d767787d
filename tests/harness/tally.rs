//! Counting what comes, where keeping it would be too much.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use receiver::{Receiver, Request};

/// What came at one path.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Requests.
    pub requests: u64,
    /// When the last of them came.
    pub last: Option<Instant>,
}

/// Counts the requests at each path of a receiver that keeps none.
#[derive(Clone, Default)]
pub struct Tally(Arc<Mutex<HashMap<String, Counts>>>);

impl Tally {
    /// Begins to count; takes the place of another observer.
    pub fn of(receiver: &Receiver) -> Self {
        let tally = Self::default();
        let counts = Arc::clone(&tally.0);
        receiver.observe(move |request: &Request, _: &_| {
            let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
            // Most paths are there already, and need no copy.
            if !counts.contains_key(request.path()) {
                counts.insert(request.path().to_owned(), Counts::default());
            }
            if let Some(count) = counts.get_mut(request.path()) {
                count.requests += 1;
                count.last = Some(request.arrived());
            }
        });
        tally
    }

    /// What came at a path so far.
    pub fn at(&self, path: &str) -> Counts {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned().unwrap_or_default()
    }
}
