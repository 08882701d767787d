//! What sessions ask of the dispatcher: rows of `pgwh_internal.commands`, of which it is told when they are committed.
//!
//! A command is deleted when what it asks for is done and journaled, so a restart in between does it again: each may
//! come twice, and the second time changes nothing.

use pgrx::Spi;
use pgrx::spi::Result;

use super::read::reader::Cache;
use super::transaction::check;
use super::write::writer::Journal;
use crate::delivery::DeliveryId;

/// Something that a session asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    /// Its number in the table, to be named when it is done.
    pub id: i64,
    /// What to do.
    pub kind: CommandKind,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandKind {
    /// Read a subscription's row again, without waiting until the log tells of its change.
    Reload {
        /// Which.
        subscription: i64,
    },
    /// Try at once what failed and waits.
    Retry {
        /// Whose.
        subscription: i64,
    },
    /// Give a delivery up, if it is not done.
    Skip {
        /// Whose.
        subscription: i64,
        /// Which; of a batch, its first member's.
        delivery: DeliveryId,
    },
    /// Look at the open replays.
    Replay {
        /// The new one.
        replay: i64,
    },
    /// End a replay, if it is not done.
    CancelReplay {
        /// Which.
        replay: i64,
    },
    /// Forget what a subscription has pending, up to a number that is set when the log tells that it was adopted.
    Discard {
        /// Which.
        subscription: i64,
        /// The last delivery to forget.
        upto: Option<DeliveryId>,
    },
    /// Look at the open backfills.
    Backfill {
        /// The new one.
        backfill: i64,
    },
    /// Read no more of a backfill for now.
    PauseBackfill {
        /// Which.
        backfill: i64,
    },
    /// Go on with a backfill that is paused or has failed.
    ResumeBackfill {
        /// Which.
        backfill: i64,
    },
    /// End a backfill.
    CancelBackfill {
        /// Which.
        backfill: i64,
    },
    /// Chunks of events have been rewritten: nothing that was read of them before may be used any more, nor the last error
    /// of a subscription be shown, which may quote them.
    Forget {
        /// Whose last error; none: of nobody.
        subscription: Option<i64>,
    },
}

/// All that was committed, in order. Inside a transaction.
pub fn commands() -> Vec<Command> {
    check("commands cannot be read", read())
}

fn read() -> Result<Vec<Command>> {
    Spi::connect(|client| {
        let rows = client.select(
            "SELECT id, command, subscription_id, delivery_id, replay_id, backfill_id FROM pgwh_internal.commands
             WHERE command <> 'disable' ORDER BY id",
            None,
            &[],
        )?;
        let mut commands = Vec::new();
        for row in rows {
            let number = |column| Ok::<_, pgrx::spi::Error>(row.get::<i64>(column)?.unwrap_or_default());
            let kind = match row.get::<String>(2)?.as_deref() {
                Some("reload") => CommandKind::Reload { subscription: number(3)? },
                Some("retry") => CommandKind::Retry { subscription: number(3)? },
                Some("skip") => {
                    CommandKind::Skip { subscription: number(3)?, delivery: DeliveryId(number(4)? as u64) }
                }
                Some("replay") => CommandKind::Replay { replay: number(5)? },
                Some("discard") => CommandKind::Discard {
                    subscription: number(3)?,
                    upto: row.get::<i64>(4)?.map(|upto| DeliveryId(upto as u64)),
                },
                Some("cancel_replay") => CommandKind::CancelReplay { replay: number(5)? },
                Some("backfill") => CommandKind::Backfill { backfill: number(6)? },
                Some("pause_backfill") => CommandKind::PauseBackfill { backfill: number(6)? },
                Some("resume_backfill") => CommandKind::ResumeBackfill { backfill: number(6)? },
                Some("cancel_backfill") => CommandKind::CancelBackfill { backfill: number(6)? },
                _ => CommandKind::Forget { subscription: row.get(3)? },
            };
            commands.push(Command { id: number(1)?, kind });
        }
        Ok(commands)
    })
}

/// Sets for the subscriptions `ids` what those of them that are to forget what they have pending forget: all up to `last`.
/// Done again after a restart, it is the same. Inside a transaction.
pub fn begin_discards(ids: &[i64], last: DeliveryId) {
    check(
        "commands cannot be written",
        Spi::run_with_args(
            "UPDATE pgwh_internal.commands SET delivery_id = $2
             WHERE command = 'discard' AND delivery_id IS NULL AND subscription_id = ANY ($1)",
            &[ids.to_vec().into(), number_of(last).into()],
        ),
    );
}

fn number_of(id: DeliveryId) -> i64 {
    i64::try_from(id.0).unwrap_or(i64::MAX)
}

/// Deletes commands that are done, all but those that somebody holds a lock on: these are done again. Inside a
/// transaction.
pub fn commands_done(commands: &[Command]) {
    let ids: Vec<i64> = commands.iter().map(|command| command.id).collect();
    check(
        "commands cannot be deleted",
        Spi::run_with_args(
            "DELETE FROM pgwh_internal.commands WHERE id IN
             (SELECT id FROM pgwh_internal.commands WHERE id = ANY ($1) FOR UPDATE SKIP LOCKED)",
            &[ids.into()],
        ),
    );
}

impl Journal {
    /// Forgets all that was read, since the rows may have been rewritten meanwhile.
    pub fn forget_read(&mut self) {
        self.cache = Cache::default();
    }
}
