//! `pgwh.replay` and `pgwh.redeliver`.

use std::fmt::Display;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::delivery_control::{delivery_of, is_pending, positions, time, unknown};
use crate::api::authorization::as_owner;
use crate::api::command_queue::refused;
use crate::api::command_queue::tell;
use crate::api::lookup::is_own;
use crate::api::lookup::owned;
use crate::api::preconditions;
use crate::api::subscriptions::suggest::near;
use crate::api::subscriptions::tables;
use crate::delivery::DeliveryId;
use crate::error::Error;
use crate::event::{Lsn, Timestamp};
use crate::gucs;
use crate::ipc::frame::Item;
use crate::journal::CommandKind;
use crate::journal::packed::outcome_chunk;
use crate::journal::read::lookup;
use crate::journal::read::lookup::Commit;
use crate::pg::values::encoding;
use crate::pg::values::encoding::Text;

const ONLY: [&str; 3] = ["all", "dead", "undelivered"];

/// Sends again what was committed between two times, or between two positions of the write-ahead log, which SQL passes as it
/// does a bigint.
#[pg_extern(sql = false)]
fn replay(
    name: Option<Text>,
    since: Option<TimestampWithTimeZone>,
    until: Option<TimestampWithTimeZone>,
    only: Option<Text>,
    tables: Option<Vec<Option<Text>>>,
    since_lsn: Option<i64>,
    until_lsn: Option<i64>,
) -> Result<i64, ErrorReport> {
    preconditions::changes()?;
    let subscription = owned(name)?;
    let what = (only, tables);
    match (since, until, since_lsn, until_lsn) {
        (Some(since), until, None, None) => Ok(replay_times(subscription, since, until, what)?),
        (None, None, Some(since), until) => {
            Ok(replay_lsns(subscription, Lsn(since as u64), until.map(|until| Lsn(until as u64)), what)?)
        }
        (None, _, None, None) => Err(Error::Missing("since").into()),
        (None, None, None, Some(_)) => Err(Error::Missing("since_lsn").into()),
        _ => Err(refused(
            "a replay is of times or of positions",
            "\"since\" and \"until\" are times, \"since_lsn\" and \"until_lsn\" positions in the write-ahead log.",
            "Give since and until, or since_lsn and until_lsn.",
        )
        .into()),
    }
}

/// Which events, and of which tables.
type What = (Option<Text>, Option<Vec<Option<Text>>>);

fn replay_times(
    subscription: i64,
    since: TimestampWithTimeZone,
    until: Option<TimestampWithTimeZone>,
    (only, tables): What,
) -> Result<i64, Error> {
    if until.is_some_and(|until| until < since) {
        return Err(backwards(&since.to_string(), until.map(|until| until.to_string())));
    }
    let (only, tables) = (word(only)?, patterns(tables)?);
    let floor = as_owner(|| Floor::of(subscription))?;
    floor.check(&since, i64::from(since), |commit| commit.at.0)?;
    store(
        "INSERT INTO pgwh.replays (subscription_id, subscription, \"only\", tables, since, until)
         SELECT id, name, $2, $3, $4, $5 FROM pgwh.subscriptions WHERE id OPERATOR(pg_catalog.=) $1
         RETURNING replays.id",
        &[
            subscription.into(),
            only.into(),
            encoding::optional_array(tables.as_deref()),
            since.into(),
            until.into(),
        ],
    )
}

fn replay_lsns(
    subscription: i64,
    since: Lsn,
    until: Option<Lsn>,
    (only, tables): What,
) -> Result<i64, Error> {
    if until.is_some_and(|until| until < since) {
        return Err(backwards(&since.to_string(), until.map(|until| until.to_string())));
    }
    let (only, tables) = (word(only)?, patterns(tables)?);
    let floor = as_owner(|| Floor::of(subscription))?;
    floor.check(&since, since, |commit| commit.lsn)?;
    store(
        "INSERT INTO pgwh.replays (subscription_id, subscription, \"only\", tables, since_lsn, until_lsn)
         SELECT id, name, $2, $3, $4::pg_catalog.pg_lsn, $5::pg_catalog.pg_lsn FROM pgwh.subscriptions
         WHERE id OPERATOR(pg_catalog.=) $1 RETURNING replays.id",
        &[
            subscription.into(),
            only.into(),
            encoding::optional_array(tables.as_deref()),
            since.to_string().into(),
            until.map(|until| until.to_string()).into(),
        ],
    )
}

/// Sends a delivery's events again, and behind them what has happened to their rows since.
#[pg_extern(sql = false)]
fn redeliver(delivery_id: Option<i64>) -> Result<i64, ErrorReport> {
    preconditions::changes()?;
    let delivery = delivery_of(delivery_id)?;
    let (subscription, members) = members_of(delivery)?;
    let members: Vec<i64> = members.iter().map(|member| member.0 as i64).collect();
    let replay = store(
        "INSERT INTO pgwh.replays (subscription_id, subscription, deliveries)
         SELECT id, name, $2 FROM pgwh.subscriptions WHERE id OPERATOR(pg_catalog.=) $1 RETURNING replays.id",
        &[subscription.into(), members.into()],
    )?;
    Ok(replay)
}

/// Whose a delivery is that is done, and the deliveries that were sent with it.
fn members_of(delivery: DeliveryId) -> Result<(i64, Vec<DeliveryId>), Error> {
    let Some((entry, target)) = as_owner(|| Ok(lookup::delivery(delivery)?))? else {
        return match as_owner(|| sent_again(delivery))? {
            Some((subscription, members)) if is_own(subscription)? => Ok((subscription, members)),
            Some(_) => Err(unknown(delivery.0 as i64)),
            None => Err(as_owner(|| gone(delivery))?),
        };
    };
    if !is_own(target.subscription)? {
        return Err(unknown(delivery.0 as i64));
    }
    if let Item::Failed { failure, .. } = &entry.item {
        return Err(refused(
            "this event cannot be sent",
            format!("Event {} could not be encoded or is forgotten: {}.", failure.id(), failure.message),
            "There is nothing to send.",
        ));
    }
    let positions = as_owner(positions)?;
    let Some(position) = positions.get(&target.subscription) else {
        return Err(refused(
            "the subscription of this delivery is gone",
            format!("Delivery {} was for subscription {}.", delivery.0, target.subscription),
            "Subscribe again; changes from before a subscription are not sent to it.",
        ));
    };
    if is_pending(position, delivery) {
        return Err(refused(
            "this delivery is not done",
            format!("Delivery {} is pending, and will be sent by itself.", delivery.0),
            format!(
                "SELECT * FROM pgwh.deliveries WHERE id = {0}; says when. SELECT pgwh.skip({0}); gives it up.",
                delivery.0
            ),
        ));
    }
    let outcomes = as_owner(|| Ok(lookup::outcomes(&[delivery])?))?;
    let batch = outcomes.iter().rev().find(|outcome| outcome.id == delivery && outcome.replay.is_none());
    let members =
        batch.map_or(vec![delivery], |outcome: &outcome_chunk::Outcome| outcome.members().collect());
    Ok((target.subscription, members))
}

/// Of a delivery that a replay made: whose, and the deliveries that brought its events first. None when it is none.
fn sent_again(delivery: DeliveryId) -> Result<Option<(i64, Vec<DeliveryId>)>, Error> {
    let outcomes = lookup::outcomes(&[delivery])?;
    let Some(outcome) = outcomes.iter().find(|outcome| outcome.replay.is_some() && outcome.id == delivery)
    else {
        return Ok(None);
    };
    let mut first = Vec::new();
    for event in outcome.events() {
        first.extend(lookup::first_delivery(&event, outcome.subscription)?);
    }
    first.sort_unstable();
    Ok((!first.is_empty()).then_some((outcome.subscription, first)))
}

/// Why the journal does not have a delivery.
fn gone(delivery: DeliveryId) -> Result<Error, Error> {
    Ok(match lookup::oldest(DeliveryId(0))? {
        Some(oldest) if delivery < oldest.first => refused(
            "this delivery is not in the journal any more",
            format!(
                "The oldest event that is there was committed at {} and has delivery {}; {} is older.",
                time(oldest.commit.at)?,
                oldest.first.0,
                delivery.0
            ),
            "Raise pgwh.retention, or the subscription's own, to keep events longer.",
        ),
        _ => unknown(delivery.0 as i64),
    })
}

/// Stores a replay, and has it begun when this transaction has committed.
fn store(query: &str, values: &[pgrx::datum::DatumWithOid<'_>]) -> Result<i64, Error> {
    let replay = as_owner(|| {
        Ok(Spi::connect_mut(|client| client.update(query, None, values)?.first().get_one::<i64>())?)
    })?;
    let replay = replay.ok_or_else(|| Error::Internal("storing a replay gave no id".to_owned()))?;
    tell(CommandKind::Replay { replay })?;
    Ok(replay)
}

fn word(only: Option<Text>) -> Result<String, Error> {
    let only = only.map(String::from);
    let only = only.ok_or(Error::Missing("only"))?;
    if ONLY.contains(&only.as_str()) {
        return Ok(only);
    }
    let hint = match near(&only, ONLY.map(str::to_owned)).as_slice() {
        [] => "For example: \"only\" => 'dead'".to_owned(),
        near => format!("Perhaps you meant {}.", near.join(" or ")),
    };
    Err(refused(
        "unknown choice of what to replay",
        format!("\"only\" is \"{only}\"; there are all, dead and undelivered."),
        hint,
    ))
}

fn patterns(tables: Option<Vec<Option<Text>>>) -> Result<Option<Vec<String>>, Error> {
    let Some(typed) = tables else { return Ok(None) };
    let typed: Option<Vec<String>> = typed.into_iter().map(|text| text.map(String::from)).collect();
    let typed = typed.filter(|typed| !typed.is_empty()).ok_or(Error::Hollow("tables"))?;
    tables::normalise(&typed, &[]).map(Some)
}

fn backwards(since: &str, until: Option<String>) -> Error {
    refused(
        "until is before since",
        format!("since is {since}, until is {}.", until.unwrap_or_default()),
        "Leave until out to mean now.",
    )
}

/// What cannot be sent to a subscription again: it was journaled, and is gone or counts as gone.
struct Floor {
    /// None when nothing that was sent to the subscription is gone.
    gone: Option<Commit>,
    /// The oldest that is there. None when nothing is.
    oldest: Option<Commit>,
}

impl Floor {
    fn of(subscription: i64) -> Result<Floor, Error> {
        let default = gucs::retention().as_micros() as i64;
        let (created, kept_since) = Spi::connect(|client| {
            client
                .select(
                    "SELECT (extract(epoch FROM created_at - '2000-01-01 00:00:00+00') * 1000000)::bigint,
                         (extract(epoch FROM clock_timestamp() - coalesce(retention, $2 * interval '1 us')
                             - '2000-01-01 00:00:00+00') * 1000000)::bigint
                     FROM pgwh.subscriptions WHERE id = $1",
                    Some(1),
                    &[subscription.into(), (default as f64).into()],
                )?
                .first()
                .get_two::<i64, i64>()
        })?;
        let created = Timestamp(created.unwrap_or_default());
        let kept_since = Timestamp(kept_since.unwrap_or_default());
        let gone = match lookup::last_before_time(kept_since)? {
            None => lookup::last_recycled()?,
            expired => expired,
        };
        let oldest = match lookup::first_since_time(kept_since)? {
            Some(first) => lookup::oldest(first)?.map(|oldest| oldest.commit),
            None => None,
        };
        Ok(Floor { gone: gone.filter(|gone| created <= gone.at), oldest })
    }

    /// Refuses what begins with something that is gone. When nothing was committed for a long time before the oldest that
    /// is there, a replay may begin in that time, too. Where of one transaction, or of two at the same time, a part is gone,
    /// the rest can be had.
    fn check<T: PartialOrd>(
        &self,
        typed: &impl Display,
        since: T,
        part: impl Fn(&Commit) -> T,
    ) -> Result<(), Error> {
        let Some(gone) = self.gone.filter(|gone| since <= part(gone)) else { return Ok(()) };
        if self.oldest.is_some_and(|oldest| since >= part(&oldest)) {
            return Ok(());
        }
        let (detail, from) = match self.oldest {
            Some(Commit { lsn, at }) => {
                (format!("the oldest event that is there was committed at {} ({lsn})", time(at)?), at)
            }
            None => (
                format!("the last event that is gone was committed at {} ({})", time(gone.at)?, gone.lsn),
                Timestamp(gone.at.0 + 1),
            ),
        };
        Err(refused(
            "events of that time are not kept any more",
            format!("since is {typed}; {detail}."),
            format!(
                "Replay from there: since => '{}'. Raise pgwh.retention, or the subscription's own, to keep events longer.",
                time(from)?
            ),
        ))
    }
}
