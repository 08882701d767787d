//! What is asked of the dispatcher: to pause, to go on, to give up, to send again.
//!
//! A function writes down what it wants in the caller's transaction; the dispatcher is told when that commits.

use std::collections::HashMap;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::api::authorization::as_owner;
use crate::api::command_queue::refused;
use crate::api::command_queue::tell;
use crate::api::lookup::is_own;
use crate::api::lookup::owned;
use crate::api::lookup::state_of_own;
use crate::api::preconditions;
use crate::api::session;
use crate::delivery::{DeliveryId, Position};
use crate::error::Error;
use crate::event::Timestamp;
use crate::journal;
use crate::journal::CommandKind;
use crate::pg::values::encoding::Text;

/// Keeps a subscription's changes instead of sending them; false if it did so already.
#[pg_extern(sql = false)]
fn pause(name: Option<Text>) -> Result<bool, ErrorReport> {
    preconditions::changes()?;
    Ok(set_paused(owned(name)?, true)?)
}

/// Sends what was kept, tries at once what failed, and goes on; false if there was nothing of either.
#[pg_extern(sql = false)]
fn resume(name: Option<Text>) -> Result<bool, ErrorReport> {
    preconditions::changes()?;
    let id = owned(name)?;
    if set_paused(id, false)? {
        return Ok(true);
    }
    let waits = session::standing(id, |figures, _| figures.retrying > 0 || figures.next_attempt_at != 0);
    tell(CommandKind::Retry { subscription: id })?;
    Ok(waits.unwrap_or_default())
}

fn set_paused(id: i64, paused: bool) -> Result<bool, Error> {
    let changed = Spi::connect_mut(|client| {
        let rows = client.update(
            "UPDATE pgwh.subscriptions SET paused = $2
             WHERE id OPERATOR(pg_catalog.=) $1 AND paused OPERATOR(pg_catalog.<>) $2 RETURNING id",
            None,
            &[id.into(), paused.into()],
        )?;
        Ok::<_, pgrx::spi::Error>(!rows.is_empty())
    })?;
    if changed {
        // The log tells of it, too, but the decoder may be far behind.
        tell(CommandKind::Reload { subscription: id })?;
    }
    Ok(changed)
}

/// Gives up a delivery that is not done.
#[pg_extern(sql = false)]
fn skip(delivery_id: Option<i64>) -> Result<(), ErrorReport> {
    preconditions::changes()?;
    let delivery = delivery_of(delivery_id)?;
    let found = as_owner(|| match journal::read::lookup::delivery(delivery)? {
        Some((_, target)) => {
            let pending = positions()?.get(&target.subscription).is_some_and(|it| is_pending(it, delivery));
            Ok(Some((target.subscription, pending)))
        }
        None => {
            Ok(journal::read::lookup::retried_in_replay(delivery)?.map(|subscription| (subscription, true)))
        }
    })?;
    match found {
        Some((subscription, _)) if !is_own(subscription)? => Err(unknown(delivery.0 as i64).into()),
        Some((subscription, true)) => Ok(tell(CommandKind::Skip { subscription, delivery })?),
        Some((_, false)) => Err(refused(
            "this delivery is done",
            format!("Delivery {} is not pending any more.", delivery.0),
            format!("SELECT * FROM pgwh.deliveries WHERE id = {}; shows what became of it.", delivery.0),
        )
        .into()),
        None => Err(unknown(delivery.0 as i64).into()),
    }
}

/// Ends a replay that is not over.
#[pg_extern(sql = false)]
fn cancel_replay(id: Option<i64>) -> Result<(), ErrorReport> {
    preconditions::changes()?;
    let id = id.ok_or(Error::Missing("id"))?;
    let state = state_of_own("pgwh.replays", id)?;
    match state.as_deref() {
        Some("waiting" | "running") => Ok(tell(CommandKind::CancelReplay { replay: id })?),
        Some(state) => Err(refused(
            "this replay is over",
            format!("Replay {id} is {state}."),
            "SELECT id, subscription FROM pgwh.replays WHERE state IN ('waiting', 'running'); shows those that are not.",
        )
        .into()),
        None => Err(refused(
            "there is no such replay",
            format!("There is no replay {id}."),
            "SELECT id, subscription, state FROM pgwh.replays; shows those that there are.",
        )
        .into()),
    }
}

pub(crate) fn delivery_of(delivery_id: Option<i64>) -> Result<DeliveryId, Error> {
    let number = delivery_id.ok_or(Error::Missing("delivery_id"))?;
    match u64::try_from(number) {
        Ok(number) if number > 0 => Ok(DeliveryId(number)),
        _ => Err(unknown(number)),
    }
}

pub(crate) fn unknown(number: i64) -> Error {
    refused(
        "there is no such delivery",
        format!("The journal has no delivery {number}."),
        "SELECT id, subscription, state FROM pgwh.deliveries WHERE state IN ('pending', 'sending', 'retrying', 'dead'); \
         shows those that may be meant. Very new ones are there in a moment.",
    )
}

/// Where all subscriptions stand, as the journal has it.
pub(crate) fn positions() -> Result<HashMap<i64, Position>, Error> {
    Ok(journal::load()?.positions)
}

/// Whether a delivery of the subscription that stands there is not done.
pub(crate) fn is_pending(position: &Position, id: DeliveryId) -> bool {
    let is_listed = position.pending.binary_search_by_key(&id, |pending| pending.id).is_ok();
    is_listed || (id > position.reach && position.done_ahead.binary_search(&id).is_err())
}

/// A time as SQL has it.
pub(crate) fn time(at: Timestamp) -> Result<TimestampWithTimeZone, Error> {
    TimestampWithTimeZone::try_from(at.0).map_err(|_| Error::Internal("a time is out of range".to_owned()))
}
