//! What the tests of backfills share.

use harness::{Database, PATIENCE, within};

/// The process that reads rows.
pub const BACKFILLER: &str = "pgstream_hooks backfiller";

/// Begins a backfill; its id.
#[track_caller]
pub fn backfill(database: &Database, arguments: &str) -> String {
    let id = database.value(&format!("SELECT pgwh.backfill({arguments})"));
    assert!(!id.is_empty());
    id
}

/// Waits until a backfill is done.
#[track_caller]
pub fn done(database: &Database, id: &str) {
    ended(database, id);
    let state = database.rows(&format!("SELECT state, reason FROM pgwh.backfills WHERE id = {id}"));
    assert_eq!(state[0][0].as_deref(), Some("done"), "{state:?}");
}

/// Waits until a backfill is over: longer than for anything else, since it rests while processors are scarce.
#[track_caller]
pub fn ended(database: &Database, id: &str) {
    within(5 * PATIENCE, "the end of the backfill", || {
        let over = format!("SELECT finished_at IS NOT NULL FROM pgwh.backfills WHERE id = {id}");
        (database.value(&over) == "t").then_some(())
    });
}
