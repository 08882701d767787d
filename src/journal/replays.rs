//! Replays: which are open, how far they are, and what each of them sends again.
//!
//! A replay is read twice: once for the keys that have to wait for it, then page by page for what it sends.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use pgrx::datum::TimestampWithTimeZone;
use pgrx::spi::Result;
use pgrx::{Spi, pg_sys};

use super::columns::{id, lsn, parameter};
use super::packed::outcome_chunk::End;
use super::read::lookup;
use super::read::reader::{Found, What};
use super::replay_selection::{Bound, Only, Range, Selection, Sieve, Standing};
use super::transaction::{Locked, SUBSCRIPTION_GONE, check, unless_locked};
use super::write::writer::Journal;
use crate::decode::routing::table_pattern::TablePattern;
use crate::delivery::DeliveryId;
use crate::event::{EventId, Timestamp};
use crate::pg::values::encoding::{Texts, optional};

/// Deliveries that are looked for at once, where not all are wanted.
const LISTED_AT_ONCE: usize = 100_000;
/// Of these, how many are read at once.
const FETCHED_AT_ONCE: usize = 16;
/// How far times of commits may be out of order, in microseconds.
const SLACK: i64 = 60_000_000;

/// What somebody wants to be sent again.
#[derive(Clone, Debug)]
pub struct Replay {
    /// Its id, for the header `webhook-replay`.
    pub id: i64,
    /// Whose.
    pub subscription: i64,
    /// What is in it.
    pub selection: Selection,
    /// The deliveries that it looks at, once it has begun.
    pub range: Option<Range>,
    /// The delivery up to which all has been done.
    pub cursor: DeliveryId,
    /// How many events have been done.
    pub done: u64,
}

/// How a replay ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplayEnd {
    /// All has been sent, or given up.
    Done,
    /// Somebody wanted no more of it.
    Cancelled,
    /// It cannot go on; why.
    Failed(String),
}

/// The replays that are not over, in the order in which they were asked for. Those of subscriptions that are gone are
/// ended. Inside a transaction.
pub fn open_replays() -> Vec<Replay> {
    check("replays cannot be read", end_orphans().and_then(|()| read_open()))
}

fn end_orphans() -> Result<()> {
    Spi::run_with_args(
        "UPDATE pgwh.replays SET state = 'cancelled', finished_at = clock_timestamp(), reason = $1
         WHERE id IN (SELECT id FROM pgwh.replays r WHERE state IN ('waiting', 'running')
             AND NOT EXISTS (SELECT FROM pgwh.subscriptions s WHERE s.id = r.subscription_id)
             FOR UPDATE SKIP LOCKED)",
        &[SUBSCRIPTION_GONE.into()],
    )
}

fn read_open() -> Result<Vec<Replay>> {
    Spi::connect(|client| {
        let rows = client.select(
            r#"SELECT id, subscription_id, "only", tables, deliveries, first_id, last_id, cursor_id, done,
                   since, until,
                   since_lsn::text, until_lsn::text
               FROM pgwh.replays WHERE state IN ('waiting', 'running') ORDER BY id"#,
            None,
            &[],
        )?;
        let mut replays = Vec::new();
        for row in rows {
            let bound = |time, position| {
                let time = row.get::<TimestampWithTimeZone>(time)?;
                Ok::<_, pgrx::spi::Error>(match (time, row.get::<String>(position)?) {
                    // Which may be infinite, and is the lowest or the highest number then.
                    (Some(time), _) => Bound::Time(Timestamp(time.into())),
                    (None, Some(position)) => Bound::Lsn(lsn(Some(position))),
                    (None, None) => Bound::None,
                })
            };
            let patterns = |texts: Vec<String>| {
                texts.iter().filter_map(|text| TablePattern::parse(text).ok()).collect::<Vec<_>>()
            };
            let selection = Selection {
                since: bound(10, 12)?,
                until: bound(11, 13)?,
                only: match row.get::<String>(3)?.as_deref() {
                    Some("dead") => Only::Dead,
                    Some("undelivered") => Only::Undelivered,
                    _ => Only::All,
                },
                tables: row.texts(4)?.map(patterns),
                deliveries: row.get::<Vec<i64>>(5)?.map(sorted),
            };
            let (first, last) = (row.get::<i64>(6)?, row.get::<i64>(7)?);
            replays.push(Replay {
                id: row.get(1)?.unwrap_or_default(),
                subscription: row.get(2)?.unwrap_or_default(),
                selection,
                range: first
                    .zip(last)
                    .map(|(first, last)| Range { first: id(Some(first)), last: id(Some(last)) }),
                cursor: id(row.get(8)?),
                done: row.get::<i64>(9)?.unwrap_or_default() as u64,
            });
        }
        Ok(replays)
    })
}

fn sorted(numbers: Vec<i64>) -> Vec<DeliveryId> {
    let mut ids: Vec<DeliveryId> = numbers.into_iter().map(|number| id(Some(number))).collect();
    ids.sort_unstable();
    ids
}

/// Notes how far a replay is; `total` is how many events it is about, once that is known. Not to be called for each
/// event: it updates a row. Inside a transaction.
pub fn replay_progress(replay: i64, cursor: DeliveryId, done: u64, total: Option<u64>) {
    let noted = Spi::run_with_args(
        "UPDATE pgwh.replays SET cursor_id = $2, done = $3, total = coalesce($4, total)
         WHERE id IN (SELECT id FROM pgwh.replays WHERE id = $1 FOR UPDATE SKIP LOCKED)",
        &[replay.into(), parameter(cursor), (done as i64).into(), total.map(|total| total as i64).into()],
    );
    check("a replay's progress cannot be noted", noted);
}

/// Notes that a replay is over. False when another session holds a lock on its row: then try again later. Inside a
/// transaction.
pub fn replay_ended(replay: i64, done: u64, end: &ReplayEnd) -> bool {
    let (state, reason) = match end {
        ReplayEnd::Done => ("done", None),
        ReplayEnd::Cancelled => ("cancelled", None),
        ReplayEnd::Failed(reason) => ("failed", Some(reason.as_str())),
    };
    let noted = Spi::connect_mut(|client| {
        let rows = client.update(
            "UPDATE pgwh.replays SET state = $2, reason = $3, done = $4, finished_at = clock_timestamp(),
                 total = CASE WHEN $2 = 'done' THEN $4 ELSE total END,
                 started_at = coalesce(started_at, clock_timestamp())
             WHERE id IN (SELECT id FROM pgwh.replays WHERE id = $1 FOR UPDATE SKIP LOCKED) RETURNING id",
            None,
            &[replay.into(), state.into(), optional(reason), (done as i64).into()],
        )?;
        let is_noted = !rows.is_empty();
        let is_gone = || {
            let query = "SELECT FROM pgwh.replays WHERE id = $1";
            Ok::<_, pgrx::spi::Error>(client.select(query, Some(1), &[replay.into()])?.is_empty())
        };
        Ok(is_noted || is_gone()?)
    });
    check("the end of a replay cannot be noted", noted)
}

impl Journal {
    /// Begins a replay that has no range yet: it looks at what has arrived by now. None when our tables are not here
    /// any more, or another session has locked replays.
    pub fn begin_replay(&mut self, replay: &mut Replay) -> Option<Range> {
        // Outcomes decide what is dead.
        self.flush()?;
        let last = self.last;
        let oldest = self.oldest_kept();
        let selection = &replay.selection;
        let ours = self.extension;
        let begun = unless_locked(pg_sys::RowExclusiveLock, &[c"replays"], |extension| {
            if extension != ours {
                return None;
            }
            let first = check("the beginning of a replay cannot be found", first_of(selection));
            let end = check("the end of a replay cannot be found", last_of(selection));
            let range = Range {
                first: first.map_or(DeliveryId(last.0 + 1), |first| first.max(oldest)),
                last: end.map_or(last, |end| end.min(last)),
            };
            let noted = Spi::run_with_args(
                "UPDATE pgwh.replays SET state = 'running', started_at = clock_timestamp(), first_id = $2,
                     last_id = $3, cursor_id = $4
                 WHERE id IN (SELECT id FROM pgwh.replays WHERE id = $1 FOR UPDATE SKIP LOCKED)",
                &[
                    replay.id.into(),
                    parameter(range.first),
                    parameter(range.last),
                    parameter(before(range.first)),
                ],
            );
            check("the beginning of a replay cannot be noted", noted);
            Some(range)
        });
        let Locked::Done(Some(range)) = begun else { return None };
        replay.range = Some(range);
        replay.cursor = before(range.first);
        Some(range)
    }
}

fn before(id: DeliveryId) -> DeliveryId {
    DeliveryId(id.0.saturating_sub(1))
}

/// A delivery before which there is none of the selection; none when there is nothing. Inside a transaction.
fn first_of(selection: &Selection) -> Result<Option<DeliveryId>> {
    if let Some(first) = selection.deliveries.as_ref().and_then(|ids| ids.first()) {
        return Ok(Some(*first));
    }
    match selection.since {
        Bound::None => Ok(Some(DeliveryId(1))),
        // Commits that come close together may have their times the other way round.
        Bound::Time(time) => lookup::first_since_time(Timestamp(time.0.saturating_sub(SLACK))),
        Bound::Lsn(lsn) => lookup::first_since_lsn(lsn),
    }
}

/// A delivery behind which there is none of the selection; none when there may be, up to the newest. Inside a transaction.
fn last_of(selection: &Selection) -> Result<Option<DeliveryId>> {
    match selection.until {
        Bound::None => Ok(None),
        Bound::Time(time) => lookup::last_until_time(Timestamp(time.0.saturating_add(SLACK))),
        Bound::Lsn(lsn) => lookup::last_until_lsn(lsn),
    }
}

/// What a replay sends next.
#[derive(Debug)]
pub struct ReplayPage {
    /// Events under the numbers that they were first sent by, in order. There may be none although more follow.
    pub found: Vec<Found>,
    /// All of the replay up to this delivery has been read.
    pub upto: DeliveryId,
    /// All of it has been read.
    pub at_end: bool,
}

/// Reads what a replay sends, in order.
pub struct ReplayReader {
    subscription: i64,
    sieve: Sieve,
    range: Range,
    /// All up to here has been read.
    at: DeliveryId,
    /// Of a replay that is not of all: what comes next.
    listed: VecDeque<DeliveryId>,
    /// The list is complete up to here.
    listed_upto: DeliveryId,
}

impl ReplayReader {
    /// Reads all that may belong to a replay that has begun, from its first event on.
    pub fn new(replay: &Replay, range: Range) -> ReplayReader {
        let begin = before(range.first);
        ReplayReader {
            subscription: replay.subscription,
            sieve: Sieve::new(replay.selection.clone(), range),
            range,
            at: begin,
            listed: VecDeque::new(),
            listed_upto: begin,
        }
    }

    /// Reads on to what has arrived since, if that may belong to the replay; whether there was anything.
    pub fn extend(&mut self, last: DeliveryId) -> bool {
        if self.sieve.has_end() {
            return false;
        }
        let longer = self.range.last < last;
        self.range.last = self.range.last.max(last);
        self.sieve.extend(self.range.last);
        longer
    }

    /// From here on reads just what the replay sends, by where the subscription stands now.
    pub fn stand(&mut self, standing: Standing) {
        self.sieve.stand(standing);
    }

    /// Goes back, to what follows `cursor`: for the second reading, and after a restart.
    ///
    /// What a redelivery is about shows only from its beginning on, so that begins there.
    pub fn rewind(&mut self, cursor: DeliveryId) {
        let begin = before(self.range.first);
        self.at = if self.sieve.has_memory() { begin } else { cursor.max(begin) };
        self.listed.clear();
        self.listed_upto = self.at;
        self.sieve.restart();
    }

    /// Up to where it has read.
    pub(crate) fn at(&self) -> DeliveryId {
        self.at
    }

    /// The next page, of about `max_bytes`. None when our tables are not here any more.
    pub fn page(&mut self, journal: &mut Journal, max_bytes: usize) -> Option<ReplayPage> {
        let mut found = match self.sieve.only() {
            _ if self.at >= self.range.last => Vec::new(),
            Only::All => self.all(journal, max_bytes)?,
            Only::Dead | Only::Undelivered => self.some(journal, max_bytes)?,
        };
        let undecided = self.undecided(journal, &found)?;
        found.retain(|found| match &found.what {
            What::Event { event, keys, barrier } => {
                self.sieve.passes(found.id, event, *keys, *barrier)
                    && (!undecided.contains(&found.id) || self.sieve.names(found.id))
            }
            What::Failed(_) => false,
        });
        Some(ReplayPage { found, upto: self.at, at_end: self.at >= self.range.last })
    }

    /// What the subscription's filter could not judge: it may be for somebody else's eyes, so it is sent only where it is
    /// asked for by its own number.
    fn undecided(&self, journal: &Journal, found: &[Found]) -> Option<HashSet<DeliveryId>> {
        let Some((first, last)) = found.first().zip(found.last()) else { return Some(HashSet::new()) };
        let range = Range { first: first.id, last: last.id };
        journal.with_tables(|| check("dead letters cannot be read", undecided(self.subscription, range)))
    }

    /// Whatever is in the log.
    fn all(&mut self, journal: &mut Journal, max_bytes: usize) -> Option<Vec<Found>> {
        let page = journal.read(self.subscription, self.at, max_bytes)?;
        self.at = if page.at_tail { self.range.last } else { page.upto.min(self.range.last) };
        Some(page.found)
    }

    /// Dead letters and, if they are wanted, too, deliveries that have not succeeded yet.
    fn some(&mut self, journal: &mut Journal, max_bytes: usize) -> Option<Vec<Found>> {
        if self.listed.is_empty() {
            self.list(journal)?;
        }
        let (mut found, mut bytes) = (Vec::new(), 0);
        while bytes < max_bytes && !self.listed.is_empty() {
            let some: Vec<DeliveryId> = self.listed.drain(..self.listed.len().min(FETCHED_AT_ONCE)).collect();
            self.at = some.last().copied().unwrap_or(self.at);
            let more = journal.fetch(self.subscription, &some)?;
            bytes += more.iter().map(|found| found.charge).sum::<usize>();
            found.extend(more);
        }
        if self.listed.is_empty() {
            self.at = self.listed_upto;
        }
        Some(found)
    }

    fn list(&mut self, journal: &Journal) -> Option<()> {
        let range = Range { first: DeliveryId(self.listed_upto.0 + 1), last: self.range.last };
        let mut ids =
            journal.with_tables(|| check("dead letters cannot be read", dead(self.subscription, range)))?;
        if self.sieve.only() == Only::Undelivered {
            ids.extend(self.sieve.unfinished(range).take(LISTED_AT_ONCE));
            keep_first(&mut ids);
        }
        let more = if ids.len() < LISTED_AT_ONCE { None } else { ids.last().copied() };
        self.listed_upto = more.unwrap_or(range.last);
        self.listed = ids.into_iter().collect();
        Some(())
    }
}

/// The first dead letters of the subscription in the range, by their own numbers. Inside a transaction.
fn dead(subscription: i64, mut range: Range) -> Result<BTreeSet<DeliveryId>> {
    let mut dead = BTreeSet::new();
    loop {
        let given_up = given_up(subscription, range)?;
        let more = given_up.last_key_value().filter(|_| given_up.len() == LISTED_AT_ONCE).map(|(id, _)| *id);
        dead.extend(not_replayed(subscription, given_up)?);
        match more {
            Some(last) if dead.len() < LISTED_AT_ONCE => range.first = DeliveryId(last.0 + 1),
            _ => break,
        }
    }
    keep_first(&mut dead);
    Ok(dead)
}

/// The first deliveries of the range that were given up, with their events: a batch is taken apart before.
fn given_up(subscription: i64, range: Range) -> Result<BTreeMap<DeliveryId, EventId>> {
    let mut found = BTreeMap::new();
    lookup::each_outcome(&of("dead", subscription), |outcome| {
        let is_dead = matches!(outcome.end, End::Dead { .. }) && outcome.replay.is_none();
        if is_dead && outcome.subscription == subscription && range.contains(outcome.id) {
            found.insert(outcome.id, outcome.event);
            if found.len() > LISTED_AT_ONCE {
                found.pop_last();
            }
        }
    })?;
    Ok(found)
}

/// The deliveries of the range that the subscription's filter could not judge. Inside a transaction.
fn undecided(subscription: i64, range: Range) -> Result<HashSet<DeliveryId>> {
    let mut found = HashSet::new();
    let among = format!(
        "{} AND int8range(lowest_id, highest_id, '[]') && int8range({}, {}, '[]')",
        of("dead", subscription),
        range.first.0,
        range.last.0
    );
    lookup::each_outcome(&among, |outcome| {
        if outcome.is_undecided() && outcome.subscription == subscription {
            found.insert(outcome.id);
        }
    })?;
    Ok(found)
}

/// Those whose events no replay has brought since.
fn not_replayed(
    subscription: i64,
    given_up: BTreeMap<DeliveryId, EventId>,
) -> Result<impl Iterator<Item = DeliveryId>> {
    let mut left: HashMap<EventId, DeliveryId> =
        given_up.into_iter().map(|(id, event)| (event, id)).collect();
    if !left.is_empty() {
        lookup::each_outcome(&of("replayed", subscription), |outcome| {
            let is_brought = matches!(outcome.end, End::Delivered { .. }) && outcome.replay.is_some();
            if is_brought && outcome.subscription == subscription {
                for event in outcome.events() {
                    left.remove(&event);
                }
            }
        })?;
    }
    Ok(left.into_values())
}

/// The condition of rows that may have such outcomes of the subscription.
fn of(count: &str, subscription: i64) -> String {
    format!("{count} > 0 AND coalesce({subscription} = ANY (subscriptions), true)")
}

fn keep_first(ids: &mut BTreeSet<DeliveryId>) {
    while ids.len() > LISTED_AT_ONCE {
        ids.pop_last();
    }
}
