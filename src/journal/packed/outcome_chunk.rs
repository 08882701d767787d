//! Outcomes in the journal: what became of deliveries, some hundreds packed into one row.
//!
//! A record tells its numbers as steps from the record before.

use std::time::Duration;

use super::event_chunk::Subscriptions;
use super::numbers;
use super::numbers::{PackError, Packer, Unpacker};
use crate::delivery::DeliveryId;
use crate::event::{EventId, Fingerprint, Lsn, Timestamp};

/// The bytes of records in a row at most, so that it stays on one page (8160 bytes).
const BODY: usize = 7000;

/// What became of a request, once it is decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Whose.
    pub subscription: i64,
    /// The delivery; of a batch, its first member's.
    pub id: DeliveryId,
    /// The other members of a batch.
    pub others: Vec<DeliveryId>,
    /// The first member's event.
    pub event: EventId,
    /// Of a replay: the events of the other members, whose numbers stand for nothing else.
    pub other_events: Vec<EventId>,
    /// When that event was committed.
    pub committed_at: Timestamp,
    /// When it was decided.
    pub finished_at: Timestamp,
    /// How long the last request took.
    pub duration: Duration,
    /// How many requests there were.
    pub attempts: u32,
    /// What became of it.
    pub end: End,
    /// The replay that it belongs to.
    pub replay: Option<i64>,
}

/// Stands for the status of what was not sent, since its subscription's transform dropped it.
pub const DROPPED: u16 = 0;

/// The word for deliveries of which their subscription's filter could not say whether they are to be made.
pub const FILTER: &str = "filter";

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The endpoint took it.
    Delivered {
        /// With which HTTP status; [`DROPPED`] if there was nothing to send.
        status: u16,
    },
    /// It was given up.
    Dead {
        /// The HTTP status of the last request, if there was one.
        status: Option<u16>,
        /// The word for the kind of error, empty when it was given up by hand.
        class: String,
        /// Why.
        reason: String,
    },
}

impl Outcome {
    /// All its deliveries.
    pub fn members(&self) -> impl Iterator<Item = DeliveryId> {
        std::iter::once(self.id).chain(self.others.iter().copied())
    }

    /// Whether it was given up since its subscription's filter could not say whether it is to be made.
    pub fn is_undecided(&self) -> bool {
        self.replay.is_none() && matches!(&self.end, End::Dead { class, .. } if class == FILTER)
    }

    /// Its events, as far as it tells them: of a replay all, else the first.
    pub fn events(&self) -> impl Iterator<Item = EventId> {
        std::iter::once(self.event).chain(self.other_events.iter().copied())
    }
}

/// Packed outcomes, as a row of `pgwh_internal.outcome_chunks` has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutcomeChunk {
    /// The lowest number of a delivery in it.
    pub lowest: DeliveryId,
    /// The highest.
    pub highest: DeliveryId,
    /// When the first was decided.
    pub first_at: Timestamp,
    /// When the last was decided.
    pub last_at: Timestamp,
    /// How many outcomes it holds.
    pub outcomes: u32,
    /// How many of them are of deliveries given up.
    pub dead: u32,
    /// How many of them belong to replays.
    pub replayed: u32,
    /// Whose they are, in order; none when these are more than 64.
    pub subscriptions: Option<Vec<i64>>,
    /// The outcomes.
    pub body: Vec<u8>,
}

mod flag {
    pub const DEAD: u8 = 1;
    pub const BATCH: u8 = 2;
    pub const REPLAY: u8 = 4;
    pub const RETRIED: u8 = 8;
    pub const SAME_TRANSACTION: u8 = 16;
    pub const SAME_SUBSCRIPTION: u8 = 32;
    pub const SAME_STATUS: u8 = 64;
}

/// What a record says by its difference to the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Before {
    subscription: i64,
    id: u64,
    commit_lsn: Lsn,
    fingerprint: Fingerprint,
    committed_at: Timestamp,
    finished_at: Timestamp,
    status: u16,
}

impl Before {
    /// Before the first record.
    fn nothing() -> Option<Before> {
        let fingerprint = Fingerprint::from_bits(0)?;
        let (commit_lsn, committed_at, finished_at) = (Lsn(0), Timestamp(0), Timestamp(0));
        Some(Before { subscription: 0, id: 0, commit_lsn, fingerprint, committed_at, finished_at, status: 0 })
    }

    fn of(outcome: &Outcome) -> Before {
        Before {
            subscription: outcome.subscription,
            id: outcome.id.0,
            commit_lsn: outcome.event.commit_lsn,
            fingerprint: outcome.event.fingerprint,
            committed_at: outcome.committed_at,
            finished_at: outcome.finished_at,
            status: outcome.status(),
        }
    }

    fn transaction(&self) -> (Lsn, Fingerprint, Timestamp) {
        (self.commit_lsn, self.fingerprint, self.committed_at)
    }
}

impl Outcome {
    /// 0 stands for none.
    fn status(&self) -> u16 {
        match &self.end {
            End::Delivered { status } => *status,
            End::Dead { status, .. } => status.unwrap_or(0),
        }
    }
}

/// Packs outcomes.
#[derive(Debug, Default)]
pub struct OutcomePacker {
    records: Packer,
    before: Option<Before>,
    subscriptions: Subscriptions,
    open: Option<OutcomeChunk>,
}

impl OutcomePacker {
    /// Adds an outcome; returns the row that it completes.
    pub fn add(&mut self, outcome: &Outcome) -> Option<OutcomeChunk> {
        self.write(outcome);
        self.subscriptions.add_one(outcome.subscription);
        let chunk = self.open.get_or_insert_with(|| OutcomeChunk {
            lowest: outcome.id,
            highest: outcome.id,
            first_at: outcome.finished_at,
            last_at: outcome.finished_at,
            outcomes: 0,
            dead: 0,
            replayed: 0,
            subscriptions: None,
            body: Vec::new(),
        });
        for id in outcome.members() {
            chunk.lowest = chunk.lowest.min(id);
            chunk.highest = chunk.highest.max(id);
        }
        chunk.first_at = chunk.first_at.min(outcome.finished_at);
        chunk.last_at = chunk.last_at.max(outcome.finished_at);
        chunk.outcomes += 1;
        chunk.dead += u32::from(matches!(outcome.end, End::Dead { .. }));
        chunk.replayed += u32::from(outcome.replay.is_some());
        if self.records.len() >= BODY { self.close() } else { None }
    }

    /// Ends the open row, if there is one.
    pub fn close(&mut self) -> Option<OutcomeChunk> {
        let mut chunk = self.open.take()?;
        chunk.subscriptions = self.subscriptions.take();
        chunk.body = self.records.seal();
        self.before = None;
        Some(chunk)
    }

    /// The bytes that are not packed yet.
    pub fn buffered(&self) -> usize {
        self.records.len()
    }

    fn write(&mut self, outcome: &Outcome) {
        let Some(before) = self.before.or_else(Before::nothing) else { return };
        let now = Before::of(outcome);
        let mut flags = 0;
        let mut set = |flag, is: bool| flags |= if is { flag } else { 0 };
        set(flag::DEAD, matches!(outcome.end, End::Dead { .. }));
        set(flag::BATCH, !outcome.others.is_empty());
        set(flag::REPLAY, outcome.replay.is_some());
        set(flag::RETRIED, outcome.attempts != 1);
        set(flag::SAME_TRANSACTION, now.transaction() == before.transaction());
        set(flag::SAME_SUBSCRIPTION, now.subscription == before.subscription);
        set(flag::SAME_STATUS, now.status == before.status);

        let out = &mut self.records;
        out.byte(flags);
        out.step(before.id, now.id);
        if flags & flag::SAME_SUBSCRIPTION == 0 {
            out.signed(now.subscription);
        }
        if flags & flag::SAME_TRANSACTION == 0 {
            out.step(before.commit_lsn.0, now.commit_lsn.0);
            out.number(now.fingerprint.bits());
            out.step(before.committed_at.0 as u64, now.committed_at.0 as u64);
        }
        out.number(outcome.event.ordinal);
        out.step(before.finished_at.0 as u64, now.finished_at.0 as u64);
        out.number(outcome.duration.as_micros() as u64);
        if flags & flag::SAME_STATUS == 0 {
            out.number(now.status.into());
        }
        if flags & flag::RETRIED != 0 {
            out.number(outcome.attempts.into());
        }
        if let Some(replay) = outcome.replay {
            out.signed(replay);
        }
        if !outcome.others.is_empty() {
            out.number(outcome.others.len() as u64);
            let mut from = outcome.id;
            for id in &outcome.others {
                out.step(from.0, id.0);
                from = *id;
            }
            if outcome.replay.is_some() {
                write_events(out, outcome.event, &outcome.other_events);
            }
        }
        if let End::Dead { class, reason, .. } = &outcome.end {
            out.text(class);
            out.text(reason);
        }
        self.before = Some(now);
    }
}

fn write_events(out: &mut Packer, mut from: EventId, events: &[EventId]) {
    out.number(events.len() as u64);
    for event in events {
        out.step(from.commit_lsn.0, event.commit_lsn.0);
        out.step(from.fingerprint.bits(), event.fingerprint.bits());
        out.step(from.ordinal, event.ordinal);
        from = *event;
    }
}

/// The body of a row that holds these outcomes, however many they are.
pub fn pack(outcomes: &[Outcome]) -> Vec<u8> {
    let mut packer = OutcomePacker::default();
    outcomes.iter().for_each(|outcome| packer.write(outcome));
    packer.records.seal()
}

/// The outcomes of a row.
///
/// # Errors
///
/// When the body is none of a row of outcomes.
pub fn unpack(body: &[u8]) -> Result<Vec<Outcome>, PackError> {
    let raw = numbers::unseal(body)?;
    let mut records = Unpacker::of(&raw);
    let mut before = Before::nothing().ok_or(PackError::Invalid("fingerprint"))?;
    let mut outcomes = Vec::new();
    while !records.is_empty() {
        let outcome = read(&mut records, &before)?;
        before = Before::of(&outcome);
        outcomes.push(outcome);
    }
    Ok(outcomes)
}

fn read(records: &mut Unpacker<'_>, before: &Before) -> Result<Outcome, PackError> {
    let flags = records.byte()?;
    let has = |flag| flags & flag != 0;
    let id = DeliveryId(records.step(before.id)?);
    let subscription = if has(flag::SAME_SUBSCRIPTION) { before.subscription } else { records.signed()? };
    let (commit_lsn, fingerprint, committed_at) = if has(flag::SAME_TRANSACTION) {
        before.transaction()
    } else {
        (
            Lsn(records.step(before.commit_lsn.0)?),
            Fingerprint::from_bits(records.number()?).ok_or(PackError::Invalid("fingerprint"))?,
            Timestamp(records.step(before.committed_at.0 as u64)? as i64),
        )
    };
    let ordinal = records.number()?;
    let finished_at = Timestamp(records.step(before.finished_at.0 as u64)? as i64);
    let duration = Duration::from_micros(records.number()?);
    let status = if has(flag::SAME_STATUS) { before.status } else { records.small("status")? };
    let attempts = if has(flag::RETRIED) { records.small("number of attempts")? } else { 1 };
    let replay = if has(flag::REPLAY) { Some(records.signed()?) } else { None };
    let event = EventId { commit_lsn, ordinal, fingerprint };
    let (mut others, mut other_events) = (Vec::new(), Vec::new());
    if has(flag::BATCH) {
        let mut from = id;
        for _ in 0..records.count()? {
            from = DeliveryId(records.step(from.0)?);
            others.push(from);
        }
        if replay.is_some() {
            other_events = read_events(records, event)?;
        }
    }
    let end = if has(flag::DEAD) {
        End::Dead { status: (status != 0).then_some(status), class: records.text()?, reason: records.text()? }
    } else {
        End::Delivered { status }
    };
    Ok(Outcome {
        subscription,
        id,
        others,
        event,
        other_events,
        committed_at,
        finished_at,
        duration,
        attempts,
        end,
        replay,
    })
}

fn read_events(records: &mut Unpacker<'_>, mut from: EventId) -> Result<Vec<EventId>, PackError> {
    let mut events = Vec::new();
    for _ in 0..records.count()? {
        from.commit_lsn = Lsn(records.step(from.commit_lsn.0)?);
        let bits = records.step(from.fingerprint.bits())?;
        from.fingerprint = Fingerprint::from_bits(bits).ok_or(PackError::Invalid("fingerprint"))?;
        from.ordinal = records.step(from.ordinal)?;
        events.push(from);
    }
    Ok(events)
}

#[cfg(test)]
mod tests;
