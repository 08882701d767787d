//! Work that waits for locks which other sessions hold on our tables and their rows. The dispatcher waits for no such lock: it
//! defers what needs it, goes on with all else, and tries again now and then.

use std::collections::HashSet;
use std::time::{Duration, Instant};

/// How long until a table is tried again that was locked, and what subscriptions wait for.
const TABLES_INTERVAL: Duration = Duration::from_millis(100);
/// How long until rows are tried again that were locked.
const ROWS_INTERVAL: Duration = Duration::from_secs(1);

/// What is deferred.
pub struct DeferredWork {
    /// Until then no table is tried again.
    locked_until: Option<Instant>,
    /// All subscriptions are to be read.
    pub reload: bool,
    /// Subscriptions whose rows are to be read. Nothing is sent to them before.
    pub unread: HashSet<i64>,
    /// How many versions of subscriptions wait to be stored. Nothing is sent to these subscriptions before.
    versions: usize,
    /// When they are tried again.
    versions_due: Option<Instant>,
    /// Subscriptions may be disabled whose rows do not say so; when they are tried again.
    disables_due: Option<Instant>,
    /// Subscriptions are held that are to be armed; when they are tried again.
    arming_due: Option<Instant>,
}

impl DeferredWork {
    /// What a process before may have left.
    pub fn new() -> DeferredWork {
        DeferredWork {
            locked_until: None,
            reload: false,
            unread: HashSet::new(),
            versions: 0,
            versions_due: None,
            disables_due: Some(Instant::now()),
            arming_due: None,
        }
    }

    /// A table was locked: for a moment none is worth trying.
    pub fn tables_are_locked(&mut self) {
        self.locked_until = Some(Instant::now() + TABLES_INTERVAL);
    }

    /// Whether a table was locked a moment ago.
    pub fn rests(&mut self) -> bool {
        self.locked_until.take_if(|until| *until <= Instant::now());
        self.locked_until.is_some()
    }

    /// So many versions could not be stored.
    pub fn versions_are_left(&mut self, count: usize) {
        self.versions = count;
        self.versions_due = (count > 0).then(|| Instant::now() + TABLES_INTERVAL);
    }

    /// Whether to look at versions, of which there are so many: some are new, or it is time to try the others again.
    pub fn takes_versions(&mut self, count: usize) -> bool {
        self.versions_due.take_if(|due| *due <= Instant::now()).is_some() || count > self.versions
    }

    /// Subscriptions are disabled, and their rows do not say so.
    pub fn disables_are_left(&mut self) {
        self.disables_due = Some(Instant::now() + ROWS_INTERVAL);
    }

    /// The rows of these subscriptions have changed, and so who had them locked may have let them go.
    pub fn rows_have_changed(&mut self) {
        self.disables_due = self.disables_due.map(|_| Instant::now());
    }

    /// Whether disabled subscriptions are to be written now.
    pub fn takes_disables(&mut self) -> bool {
        self.disables_due.take_if(|due| *due <= Instant::now()).is_some()
    }

    /// Subscriptions are held that are to be armed.
    pub fn arming_is_left(&mut self) {
        self.arming_due = Some(Instant::now() + ROWS_INTERVAL);
    }

    /// Whether they are to be armed now.
    pub fn takes_arming(&mut self) -> bool {
        self.arming_due.take_if(|due| *due <= Instant::now()).is_some()
    }

    /// When something is to be tried again.
    pub fn next_wakeup(&self) -> Option<Instant> {
        self.locked_until
            .into_iter()
            .chain(self.versions_due)
            .chain(self.disables_due)
            .chain(self.arming_due)
            .min()
    }
}
