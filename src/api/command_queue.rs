//! Commands to the dispatcher, which reads them when the transaction has committed.

use pgrx::prelude::*;

use super::authorization::as_owner;
use crate::error::Error;
use crate::http::Problem;
use crate::journal::CommandKind;
use crate::shmem::commit_signal;

/// Writes down what the dispatcher is to do when this transaction has committed.
pub fn tell(what: CommandKind) -> Result<(), Error> {
    let (command, subscription, delivery, other) = match what {
        CommandKind::Reload { subscription } => ("reload", Some(subscription), None, None),
        CommandKind::Retry { subscription } => ("retry", Some(subscription), None, None),
        CommandKind::Skip { subscription, delivery } => {
            ("skip", Some(subscription), Some(delivery.0 as i64), None)
        }
        CommandKind::Replay { replay } => ("replay", None, None, Some(replay)),
        CommandKind::CancelReplay { replay } => ("cancel_replay", None, None, Some(replay)),
        CommandKind::Backfill { backfill } => ("backfill", None, None, Some(backfill)),
        CommandKind::PauseBackfill { backfill } => ("pause_backfill", None, None, Some(backfill)),
        CommandKind::ResumeBackfill { backfill } => ("resume_backfill", None, None, Some(backfill)),
        CommandKind::CancelBackfill { backfill } => ("cancel_backfill", None, None, Some(backfill)),
        CommandKind::Forget { subscription } => ("forget", subscription, None, None),
        CommandKind::Discard { subscription, .. } => ("discard", Some(subscription), None, None),
    };
    let (replay, backfill) = if command.contains("backfill") { (None, other) } else { (other, None) };
    // The caller has been judged, and may not write there.
    as_owner(|| {
        Ok(Spi::run_with_args(
            "INSERT INTO pgwh_internal.commands (command, subscription_id, delivery_id, replay_id, backfill_id)
             VALUES ($1, $2, $3, $4, $5)",
            &[command.into(), subscription.into(), delivery.into(), replay.into(), backfill.into()],
        )?)
    })?;
    commit_signal::tell_dispatcher_at_commit();
    Ok(())
}

/// 22023 in words for the user.
pub fn refused(message: impl Into<String>, detail: impl Into<String>, hint: impl Into<String>) -> Error {
    Error::Refused(Problem { message: message.into(), detail: detail.into(), hint: hint.into() })
}
