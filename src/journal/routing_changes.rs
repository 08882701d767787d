//! What the dispatcher stores of changes of routing: versions of subscriptions, gaps, old schema changes.

use std::collections::HashSet;

use super::gaps::{Gap, TableGapChange};
use super::routing_versions::Version;
use super::transaction::check;
use super::{gaps, routing_versions, schema_changes};
use crate::event::Lsn;

/// Stores versions of subscriptions' routing part. Inside a transaction.
pub fn store_image(versions: &[Version]) {
    check("the image of subscriptions cannot be stored", routing_versions::store(versions));
}

/// Forgets all versions: a new slot begins from a new image. Inside a transaction.
pub fn forget_image() {
    check("the image of subscriptions cannot be cleared", routing_versions::forget());
}

/// Forgets versions that nobody will begin from: those older than the one in force at `confirmed`, which must be the
/// slot's position on disk. Inside a transaction.
pub fn prune_image(confirmed: Lsn) {
    check("the image of subscriptions cannot be pruned", routing_versions::prune(confirmed));
}

/// Those of the subscriptions whose versions cannot be stored now, since another session has locked a row that would change with
/// that. Inside a transaction.
pub fn locked_subscriptions(ids: &[i64]) -> HashSet<i64> {
    check("locks cannot be taken", gaps::locked(ids))
}

/// Notes which gaps these versions begin and end, once they are stored; whether any may have begun. Inside a transaction.
pub fn note_gaps(versions: &[Version]) -> bool {
    check("gaps cannot be noted", gaps::note(versions))
}

/// Records which gaps of tables begin and end; returns those that begin. Inside a transaction.
pub fn store_table_gaps(changes: &[TableGapChange]) -> Vec<Gap> {
    check("gaps of tables cannot be recorded", gaps::store_table_gaps(changes))
}

/// Notes that what was committed behind the journal's last event and up to `to` is lost to all subscriptions, when the
/// image that is there belongs to a slot that is gone, or that the server has given up. Returns what was noted. Inside a
/// transaction.
pub fn note_loss(high: Lsn, to: Lsn, given_up: bool) -> Vec<Gap> {
    check("gaps cannot be noted", gaps::lost(high, to, given_up))
}

/// Forgets what is noted of old schema changes. Inside a transaction.
pub fn forget_old_schema_changes() {
    check("old schema changes cannot be forgotten", schema_changes::forget_old());
}
