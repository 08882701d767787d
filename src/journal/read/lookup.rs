//! What sessions look up in the journal: a delivery by its number, events from the newest back, outcomes.
//!
//! Everything runs in a transaction of the caller's, who has seen to the search path.

use std::collections::{HashMap, HashSet};

use pgrx::Spi;
use pgrx::datum::DatumWithOid;
use pgrx::spi::Result;

use crate::delivery::DeliveryId;
use crate::event::{EventId, Lsn, Timestamp};
use crate::ipc::frame::Target;
use crate::journal::columns::{id, intact, lsn, parameter};
use crate::journal::packed::event_chunk::Entry;
use crate::journal::packed::outcome_chunk::Outcome;
use crate::journal::packed::{event_chunk, outcome_chunk};
use crate::journal::parameters;
use crate::pg::values::encoding::Texts;

/// The chunks read in one query.
const CHUNKS: i64 = 32;
/// How many deliveries are looked up in one query.
const LOOKED_UP: usize = 500;

/// The delivery of that number: its event and its target. None when the journal doesn't have it.
pub fn delivery(wanted: DeliveryId) -> Result<Option<(Entry, Target)>> {
    Spi::connect(|client| {
        let rows = client.select(
            "SELECT first_id, body FROM pgwh_internal.event_chunks WHERE last_id >= $1 ORDER BY last_id LIMIT 1",
            Some(1),
            &[parameter(wanted)],
        )?;
        let mut found = None;
        for row in rows {
            let body: Vec<u8> = row.get(2)?.unwrap_or_default();
            found = intact(event_chunk::unpack(id(row.get(1)?), &body)).into_iter().find_map(|entry| {
                let target = entry.deliveries().find(|(id, _)| *id == wanted).map(|(_, target)| target);
                target.map(|target| (entry, target))
            });
        }
        Ok(found)
    })
}

/// The delivery that brought an event to a subscription when it was new. None when the journal doesn't have it.
pub fn first_delivery(event: &EventId, subscription: i64) -> Result<Option<DeliveryId>> {
    let found = Spi::connect(|client| {
        // Events are journaled in the order of their commits and places.
        let rows = client.select(
            "SELECT first_id, body FROM pgwh_internal.event_chunks WHERE (last_lsn, last_ordinal) >= ($1, $2)
             ORDER BY last_lsn, last_ordinal LIMIT 1",
            Some(1),
            &[parameters::lsn(event.commit_lsn), (event.ordinal as i64).into()],
        )?;
        let mut entries = Vec::new();
        for row in rows {
            let body: Vec<u8> = row.get(2)?.unwrap_or_default();
            entries = intact(event_chunk::unpack(id(row.get(1)?), &body));
        }
        Ok::<_, pgrx::spi::Error>(entries)
    })?;
    let entry = found.iter().find(|entry| entry.item.event_id() == Some(*event));
    let mut deliveries = entry.into_iter().flat_map(Entry::deliveries);
    Ok(deliveries.find(|(_, target)| target.subscription == subscription).map(|(id, _)| id))
}

/// The commit of an event.
#[derive(Clone, Copy, Debug)]
pub struct Commit {
    /// Where.
    pub lsn: Lsn,
    /// When.
    pub at: Timestamp,
}

/// The oldest event that the journal has.
#[derive(Clone, Copy, Debug)]
pub struct Oldest {
    /// The number of its first delivery.
    pub first: DeliveryId,
    /// Where and when it was committed.
    pub commit: Commit,
}

/// The oldest event of the first chunk whose last delivery is `from` or comes behind it. None behind the end.
pub fn oldest(from: DeliveryId) -> Result<Option<Oldest>> {
    Spi::connect(|client| {
        let rows = client.select(
            "SELECT first_id, first_lsn::text,
                 (extract(epoch FROM first_at - '2000-01-01 00:00:00+00') * 1000000)::bigint
             FROM pgwh_internal.event_chunks WHERE last_id >= $1 ORDER BY last_id LIMIT 1",
            Some(1),
            &[parameter(from)],
        )?;
        let mut oldest = None;
        for row in rows {
            let at = Timestamp(row.get(3)?.unwrap_or_default());
            oldest = Some(Oldest { first: id(row.get(1)?), commit: Commit { lsn: lsn(row.get(2)?), at } });
        }
        Ok(oldest)
    })
}

/// The last event that was committed before then, of those that the journal has.
pub fn last_before_time(before: Timestamp) -> Result<Option<Commit>> {
    commit(
        "last_lsn",
        "last_at",
        "pgwh_internal.event_chunks WHERE last_at < $1 ORDER BY last_at DESC, last_id DESC",
        &[parameters::time(before)],
    )
}

/// The last event that went with a slice that was cleared. None when none was.
pub fn last_recycled() -> Result<Option<Commit>> {
    commit(
        "before_lsn",
        "before_at",
        "pgwh_internal.slices WHERE generation IS NOT NULL ORDER BY generation",
        &[],
    )
}

fn commit(lsn: &str, at: &str, from: &str, values: &[DatumWithOid<'_>]) -> Result<Option<Commit>> {
    let query = format!(
        "SELECT {lsn}::text, (extract(epoch FROM {at} - '2000-01-01 00:00:00+00') * 1000000)::bigint
         FROM {from} LIMIT 1"
    );
    Spi::connect(|client| {
        let mut found = None;
        for row in client.select(query.as_str(), Some(1), values)? {
            let at: Option<i64> = row.get(2)?;
            let lsn = self::lsn(row.get(1)?);
            found = at.map(|at| Commit { lsn, at: Timestamp(at) });
        }
        Ok(found)
    })
}

/// A delivery before which nothing was committed then or later, as far as commits come in the order of their times.
/// None when nothing was.
pub fn first_since_time(since: Timestamp) -> Result<Option<DeliveryId>> {
    edge("first_id", "last_at >= $1 ORDER BY last_at", parameters::time(since))
}

/// A delivery before which nothing was committed at that position or behind it. None when nothing was.
pub fn first_since_lsn(since: Lsn) -> Result<Option<DeliveryId>> {
    edge("first_id", "last_lsn >= $1 ORDER BY last_lsn, last_ordinal", parameters::lsn(since))
}

/// A delivery behind which nothing was committed then or before, as far as commits come in the order of their times. None
/// when that is not known, since nothing was committed later.
pub fn last_until_time(until: Timestamp) -> Result<Option<DeliveryId>> {
    edge("last_id", "last_at > $1 ORDER BY last_at", parameters::time(until))
}

/// A delivery behind which nothing was committed at that position or before it. None when nothing was committed later.
pub fn last_until_lsn(until: Lsn) -> Result<Option<DeliveryId>> {
    edge("last_id", "last_lsn > $1 ORDER BY last_lsn, last_ordinal", parameters::lsn(until))
}

fn edge(column: &str, condition: &str, bound: DatumWithOid<'_>) -> Result<Option<DeliveryId>> {
    let query = format!("SELECT {column} FROM pgwh_internal.event_chunks WHERE {condition}, last_id LIMIT 1");
    Spi::connect(|client| {
        let mut found = None;
        for row in client.select(query.as_str(), Some(1), &[bound])? {
            found = Some(id(row.get(1)?));
        }
        Ok(found)
    })
}

/// Hands out events from the newest back, until `take` has had enough.
pub fn from_the_newest(mut take: impl FnMut(Entry) -> std::ops::ControlFlow<()>) -> Result<()> {
    let mut before = i64::MAX;
    loop {
        let chunks = Spi::connect(|client| {
            let rows = client.select(
                "SELECT first_id, last_id, body FROM pgwh_internal.event_chunks
                 WHERE last_id < $1 ORDER BY last_id DESC LIMIT $2",
                None,
                &[before.into(), CHUNKS.into()],
            )?;
            let mut chunks = Vec::new();
            for row in rows {
                let body: Vec<u8> = row.get(3)?.unwrap_or_default();
                chunks.push((id(row.get(1)?), row.get::<i64>(2)?.unwrap_or_default(), body));
            }
            Ok::<_, pgrx::spi::Error>(chunks)
        })?;
        if chunks.is_empty() {
            return Ok(());
        }
        for (first, last, body) in chunks {
            pgrx::check_for_interrupts!();
            before = last;
            for entry in intact(event_chunk::unpack(first, &body)).into_iter().rev() {
                if take(entry).is_break() {
                    return Ok(());
                }
            }
        }
    }
}

/// The outcomes of any of these deliveries (rising numbers).
pub fn outcomes(ids: &[DeliveryId]) -> Result<Vec<Outcome>> {
    let mut found = Vec::new();
    for some in ids.chunks(LOOKED_UP) {
        let numbers: Vec<i64> = some.iter().map(|id| id.0 as i64).collect();
        Spi::connect(|client| {
            let rows = client.select(
                "SELECT DISTINCT ON (c.seq) c.body FROM unnest($1) AS wanted (id)
                     JOIN pgwh_internal.outcome_chunks c ON int8range(c.lowest_id, c.highest_id, '[]') @> wanted.id
                 ORDER BY c.seq",
                None,
                &[numbers.into()],
            )?;
            for row in rows {
                let body: Vec<u8> = row.get(1)?.unwrap_or_default();
                let outcomes = intact(outcome_chunk::unpack(&body)).into_iter();
                found.extend(outcomes.filter(|one| one.members().any(|id| some.binary_search(&id).is_ok())));
            }
            Ok::<_, pgrx::spi::Error>(())
        })?;
        pgrx::check_for_interrupts!();
    }
    Ok(found)
}

/// Hands out the outcomes in rows that meet the condition, which is SQL, in the order of the rows.
pub fn each_outcome(condition: &str, mut take: impl FnMut(&Outcome)) -> Result<()> {
    let query = format!(
        "SELECT seq, body FROM pgwh_internal.outcome_chunks WHERE seq > $1 AND {condition} ORDER BY seq LIMIT $2"
    );
    let mut since = 0;
    loop {
        let mut rows = 0;
        Spi::connect(|client| {
            for row in client.select(query.as_str(), None, &[since.into(), CHUNKS.into()])? {
                rows += 1;
                since = row.get(1)?.unwrap_or(i64::MAX);
                let body: Vec<u8> = row.get(2)?.unwrap_or_default();
                intact(outcome_chunk::unpack(&body)).iter().for_each(&mut take);
            }
            Ok::<_, pgrx::spi::Error>(())
        })?;
        if rows < CHUNKS {
            return Ok(());
        }
        pgrx::check_for_interrupts!();
    }
}

/// The deliveries by which replays brought any of these events; of a batch, its first.
pub fn replayed(events: &HashSet<EventId>) -> Result<Vec<DeliveryId>> {
    let mut found = Vec::new();
    each_outcome("replayed > 0", |outcome| {
        if outcome.replay.is_some() && outcome.events().any(|event| events.contains(&event)) {
            found.push(outcome.id);
        }
    })?;
    Ok(found)
}

/// The subscription of a delivery that a replay has made and that is being retried.
pub fn retried_in_replay(id: DeliveryId) -> Result<Option<i64>> {
    if !outcomes(&[id])?.is_empty() {
        return Ok(None);
    }
    Spi::connect(|client| {
        let rows = client.select(
            "SELECT subscription_id FROM pgwh_internal.attempt_rows
             WHERE delivery_id = $1 AND replay IS NOT NULL LIMIT 1",
            Some(1),
            &[parameter(id)],
        )?;
        let mut found = None;
        for row in rows {
            found = row.get(1)?;
        }
        Ok(found)
    })
}

/// What the last failed request of a delivery came to.
#[derive(Clone, Debug)]
pub struct LastAttempt {
    /// The HTTP status, if there was one.
    pub status: Option<i32>,
    /// What went wrong.
    pub error: Option<String>,
}

/// The last failed requests of these deliveries, by the first members of batches.
pub fn last_attempts(ids: &[DeliveryId]) -> Result<HashMap<DeliveryId, LastAttempt>> {
    let numbers: Vec<i64> = ids.iter().map(|id| id.0 as i64).collect();
    Spi::connect(|client| {
        let rows = client.select(
            "SELECT DISTINCT ON (delivery_id) delivery_id, status_code, error FROM pgwh_internal.attempt_rows
             WHERE delivery_id = ANY ($1) ORDER BY delivery_id, seq DESC",
            None,
            &[numbers.into()],
        )?;
        let mut found = HashMap::new();
        for row in rows {
            found.insert(id(row.get(1)?), LastAttempt { status: row.get(2)?, error: row.text(3)? });
        }
        Ok(found)
    })
}
