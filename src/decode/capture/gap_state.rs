//! The gaps of tables that are open, and what is needed to see them begin and end.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Instant;

use pgrx::pg_sys::Oid;

use crate::decode::definitions::Definitions;
use crate::decode::routing::router::{Condition, Router};
use crate::event::TableName;

/// The gaps that are open, and what is needed to see them begin and end.
pub struct TableGaps {
    /// By table and subscription.
    pub open: BTreeMap<(u32, i64), Open>,
    /// Those that began before any change was missed; if none is, there was no gap.
    pub unchanged: BTreeSet<(u32, i64)>,
    /// Definitions before the transaction that is being decoded.
    pub before: Definitions,
    /// What commands of that transaction took away, and later ones may give back; a gap if a change is missed meanwhile.
    pub passing: Vec<Loss>,
    /// Tables that were in the log before this process began, as far as the journal says, if what happened since is not all
    /// in the log; none once they were looked at.
    pub logged_before: Option<HashSet<u32>>,
    /// What was captured before that, by subscription, table and name.
    pub captured_before: Vec<(i64, u32, TableName)>,
    /// Whether the catalogs may have changed since the gaps were judged.
    pub is_stale: bool,
    pub judged_at: Instant,
}

/// A gap that is open.
pub struct Open {
    /// The table's name as the subscription knows it.
    pub name: String,
    /// What the subscription misses its changes for.
    pub reason: String,
    /// The subscription's condition when it began.
    pub condition: Option<Condition>,
}

/// What the journal knows when a decoder begins.
#[derive(Default)]
pub struct KnownGaps {
    /// Gaps of tables that are open: subscription, table, its name, and the reason.
    pub open: Vec<(i64, u32, String, String)>,
    /// UNLOGGED tables of which it has events, if the slot was lost since.
    pub logged_before: Vec<u32>,
    /// Tables of which it has events of a subscription, with their names then, if the slot was lost since.
    pub captured_before: Vec<(i64, u32, TableName)>,
}

impl TableGaps {
    /// Begins with what the journal knows.
    pub fn new(known: KnownGaps, router: &Router) -> TableGaps {
        let open = known.open.into_iter().map(|(id, table, name, reason)| {
            let condition = router.condition(id).cloned();
            ((table, id), Open { name, reason, condition })
        });
        TableGaps {
            open: open.collect(),
            unchanged: BTreeSet::new(),
            before: Definitions::default(),
            passing: Vec::new(),
            logged_before: Some(known.logged_before.into_iter().collect()),
            captured_before: known.captured_before,
            is_stale: true,
            judged_at: Instant::now(),
        }
    }
}

/// A gap that begins.
pub struct Loss {
    pub table: Oid,
    pub subscription: i64,
    pub name: TableName,
    pub reason: String,
    pub is_changed: bool,
    pub is_misfit: bool,
}
