//! Replays: which are open, how far they are, and what each of them sends again.
//!
//! A replay is read twice: once for the keys that have to wait for it, then page by page for what it sends.

use std::collections::{BTreeSet, HashSet};

use pgrx::Spi;
use pgrx::spi::Result;

use super::inspect;
use super::load::{id, intact, lsn, parameter};
use super::outcome::{self, End, Outcome};
use super::reader::{Found, What};
use super::tables::check;
use super::writer::Journal;
use crate::decode::pattern::TablePattern;
use crate::dispatch::{DeliveryId, Pending, Position};
use crate::event::{Event, Lsn, Timestamp};

/// Dead letters that are looked for at once.
const DEAD_AT_ONCE: usize = 1000;
/// How far times of commits may be out of order, in microseconds.
const SLACK: i64 = 60_000_000;

/// What somebody wants to be sent again.
#[derive(Clone, Debug)]
pub(crate) struct Replay {
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

/// Which events a replay is about.
#[derive(Clone, Debug)]
pub(crate) struct Selection {
    since: Bound,
    until: Bound,
    only: Only,
    /// None stands for all.
    tables: Option<Vec<TablePattern>>,
    /// Of a redelivery: its events, and those that changed their rows later.
    deliveries: Option<Vec<DeliveryId>>,
}

/// One end of what is replayed, itself included.
#[derive(Clone, Copy, Debug)]
enum Bound {
    None,
    Time(Timestamp),
    Lsn(Lsn),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Only {
    All,
    Dead,
    Undelivered,
}

/// The numbers of the deliveries that a replay looks at, first and last included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    /// The first.
    pub first: DeliveryId,
    /// The last.
    pub last: DeliveryId,
}

/// How a replay ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ReplayEnd {
    /// All has been sent, or given up.
    Done,
    /// Somebody wanted no more of it.
    Cancelled,
    /// It can't go on; why.
    Failed(String),
}

/// The replays that are not over, in the order in which they were asked for. Those of subscriptions that are gone are
/// ended. Inside a transaction.
pub(crate) fn open_replays() -> Vec<Replay> {
    check("replays can't be read", end_orphans().and_then(|()| read_open()))
}

fn end_orphans() -> Result<()> {
    Spi::run(
        "UPDATE pgwh.replays SET state = 'cancelled', finished_at = clock_timestamp(),
             reason = 'the subscription is gone'
         WHERE id IN (SELECT id FROM pgwh.replays r WHERE state IN ('waiting', 'running')
             AND NOT EXISTS (SELECT FROM pgwh.subscriptions s WHERE s.id = r.subscription_id)
             FOR UPDATE SKIP LOCKED)",
    )
}

fn read_open() -> Result<Vec<Replay>> {
    Spi::connect(|client| {
        let rows = client.select(
            r#"SELECT id, subscription_id, "only", tables, deliveries, first_id, last_id, cursor_id, done,
                   (extract(epoch FROM since - '2000-01-01 00:00:00+00') * 1000000)::bigint,
                   (extract(epoch FROM until - '2000-01-01 00:00:00+00') * 1000000)::bigint,
                   since_lsn::text, until_lsn::text
               FROM pgwh.replays WHERE state IN ('waiting', 'running') ORDER BY id"#,
            None,
            &[],
        )?;
        let mut replays = Vec::new();
        for row in rows {
            let bound = |time, position| {
                Ok::<_, pgrx::spi::Error>(match (row.get::<i64>(time)?, row.get::<String>(position)?) {
                    (Some(time), _) => Bound::Time(Timestamp(time)),
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
                tables: row.get::<Vec<String>>(4)?.map(patterns),
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
pub(crate) fn replay_progress(replay: i64, cursor: DeliveryId, done: u64, total: Option<u64>) {
    let noted = Spi::run_with_args(
        "UPDATE pgwh.replays SET cursor_id = $2, done = $3, total = coalesce($4, total)
         WHERE id IN (SELECT id FROM pgwh.replays WHERE id = $1 FOR UPDATE SKIP LOCKED)",
        &[replay.into(), parameter(cursor), (done as i64).into(), total.map(|total| total as i64).into()],
    );
    check("a replay's progress can't be noted", noted);
}

/// Notes that a replay is over. False when somebody holds a lock on its row: then try again later. Inside a
/// transaction.
pub(crate) fn replay_ended(replay: i64, done: u64, end: &ReplayEnd) -> bool {
    let (state, reason) = match end {
        ReplayEnd::Done => ("done", None),
        ReplayEnd::Cancelled => ("cancelled", None),
        ReplayEnd::Failed(reason) => ("failed", Some(reason.replace('\0', "\u{FFFD}"))),
    };
    let noted = Spi::connect_mut(|client| {
        let rows = client.update(
            "UPDATE pgwh.replays SET state = $2, reason = $3, done = $4, finished_at = clock_timestamp(),
                 started_at = coalesce(started_at, clock_timestamp())
             WHERE id IN (SELECT id FROM pgwh.replays WHERE id = $1 FOR UPDATE SKIP LOCKED) RETURNING id",
            None,
            &[replay.into(), state.into(), reason.into(), (done as i64).into()],
        )?;
        Ok(!rows.is_empty())
    });
    check("the end of a replay can't be noted", noted)
}

impl Journal {
    /// Begins a replay that has no range yet: it looks at what has arrived by now. None when our tables are not here
    /// any more.
    pub(crate) fn begin_replay(&mut self, replay: &mut Replay) -> Option<Range> {
        // Outcomes decide what is dead.
        self.flush()?;
        let last = self.last;
        let oldest = self.oldest_kept();
        let selection = &replay.selection;
        let range = self.with_tables(|| {
            let first = check("the beginning of a replay can't be found", selection.first());
            let range =
                Range { first: first.map_or(DeliveryId(last.0 + 1), |first| first.max(oldest)), last };
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
            check("the beginning of a replay can't be noted", noted);
            range
        })?;
        replay.range = Some(range);
        replay.cursor = before(range.first);
        Some(range)
    }
}

fn before(id: DeliveryId) -> DeliveryId {
    DeliveryId(id.0.saturating_sub(1))
}

impl Selection {
    /// A delivery before which there is none of it; none when there is nothing. Inside a transaction.
    fn first(&self) -> Result<Option<DeliveryId>> {
        if let Some(first) = self.deliveries.as_ref().and_then(|ids| ids.first()) {
            return Ok(Some(*first));
        }
        match self.since {
            Bound::None => Ok(Some(DeliveryId(1))),
            // Commits that come close together may have their times the other way round.
            Bound::Time(time) => inspect::first_since_time(Timestamp(time.0.saturating_sub(SLACK))),
            Bound::Lsn(lsn) => inspect::first_since_lsn(lsn),
        }
    }

    /// Whether the event's commit and table are wanted.
    fn wants(&self, event: &Event) -> bool {
        let transaction = &event.transaction;
        let late_enough = match self.since {
            Bound::None => true,
            Bound::Time(since) => transaction.committed_at >= since,
            Bound::Lsn(since) => transaction.commit_lsn >= since,
        };
        let early_enough = match self.until {
            Bound::None => true,
            Bound::Time(until) => transaction.committed_at <= until,
            Bound::Lsn(until) => transaction.commit_lsn <= until,
        };
        let is_of = |patterns: &Vec<TablePattern>| {
            patterns.iter().any(|pattern| event.relation.names.iter().any(|name| pattern.matches(name)))
        };
        late_enough && early_enough && self.tables.as_ref().is_none_or(is_of)
    }
}

/// What a replay sends next.
#[derive(Debug)]
pub(crate) struct ReplayPage {
    /// Events under the numbers that they were first sent by, in order. There may be none although more follow.
    pub found: Vec<Found>,
    /// All of the replay up to this delivery has been read.
    pub upto: DeliveryId,
    /// All of it has been read.
    pub at_end: bool,
}

/// Reads what a replay sends, in order.
///
/// What has never been sent is left out, as it comes behind the replay in any case. What is being sent or retried is
/// not: should that succeed before the replay gets to it, older events would come last.
pub(crate) struct ReplayReader {
    subscription: i64,
    selection: Selection,
    range: Range,
    at: DeliveryId,
    standing: Standing,
    /// What a redelivery has come across so far.
    rows: Rows,
}

/// Where the subscription stood when the replay began, or went on.
struct Standing {
    reach: DeliveryId,
    pending: Vec<Pending>,
    done_ahead: Vec<DeliveryId>,
}

impl Standing {
    /// Whether it may have been sent.
    fn may_be_out(&self, id: DeliveryId) -> bool {
        id <= self.reach || self.done_ahead.binary_search(&id).is_ok()
    }
}

/// The rows that a redelivery is about.
#[derive(Default)]
struct Rows {
    keys: HashSet<u64>,
    /// Root tables of which all that follows belongs to it: what came next is not about one row.
    tables: HashSet<u32>,
    /// Root tables of the rows.
    roots: HashSet<u32>,
}

impl Rows {
    /// Whether something is about these rows, or one of the deliveries they come from; then its rows count, too.
    fn concern(&mut self, is_asked_for: bool, found: &Found) -> bool {
        let What::Event { event, keys, barrier } = &found.what else { return false };
        let root = event.relation.root_oid;
        let concerned = is_asked_for
            || self.tables.contains(&root)
            || keys.iter().any(|key| self.keys.contains(&key))
            || (*barrier && self.roots.contains(&root));
        if concerned {
            self.keys.extend(keys.iter());
            self.roots.insert(root);
            if *barrier {
                self.tables.insert(root);
            }
        }
        concerned
    }
}

impl ReplayReader {
    /// Reads a replay that has begun, from its first event on. `position`: where the subscription stands now.
    pub(crate) fn new(replay: &Replay, range: Range, position: Position) -> ReplayReader {
        let Position { reach, pending, done_ahead, .. } = position;
        ReplayReader {
            subscription: replay.subscription,
            selection: replay.selection.clone(),
            range,
            at: before(range.first),
            standing: Standing { reach, pending, done_ahead },
            rows: Rows::default(),
        }
    }

    /// Goes back, to what follows `cursor`: for the second reading, and after a restart.
    ///
    /// What a redelivery is about shows only from its beginning on, so that begins there.
    pub(crate) fn rewind(&mut self, cursor: DeliveryId) {
        let begin = before(self.range.first);
        self.at = if self.selection.deliveries.is_some() { begin } else { cursor.max(begin) };
        self.rows = Rows::default();
    }

    /// Up to where it has read.
    pub(crate) fn at(&self) -> DeliveryId {
        self.at
    }

    /// The next page, of about `max_bytes`. None when our tables are not here any more.
    pub(crate) fn page(&mut self, journal: &mut Journal, max_bytes: usize) -> Option<ReplayPage> {
        if self.at >= self.range.last {
            return Some(ReplayPage { found: Vec::new(), upto: self.at, at_end: true });
        }
        let mut page = match self.selection.only {
            Only::All => self.all(journal, max_bytes)?,
            Only::Dead | Only::Undelivered => self.some(journal)?,
        };
        page.found.retain(|found| self.belongs(found));
        self.at = page.upto;
        Some(page)
    }

    fn belongs(&mut self, found: &Found) -> bool {
        let What::Event { event, .. } = &found.what else { return false };
        let in_range = self.range.first <= found.id && found.id <= self.range.last;
        if !in_range || !self.standing.may_be_out(found.id) {
            return false;
        }
        match &self.selection.deliveries {
            Some(deliveries) => self.rows.concern(deliveries.binary_search(&found.id).is_ok(), found),
            None => self.selection.wants(event),
        }
    }

    /// Whatever is in the log.
    fn all(&self, journal: &mut Journal, max_bytes: usize) -> Option<ReplayPage> {
        let page = journal.read(self.subscription, self.at, max_bytes)?;
        let at_end = page.at_tail || page.upto >= self.range.last;
        Some(ReplayPage { found: page.found, upto: page.upto.min(self.range.last), at_end })
    }

    /// Dead letters and, if they are wanted, too, deliveries that have not succeeded yet.
    fn some(&self, journal: &mut Journal) -> Option<ReplayPage> {
        let range = Range { first: DeliveryId(self.at.0 + 1), last: self.range.last };
        let mut ids =
            journal.with_tables(|| check("dead letters can't be read", dead(self.subscription, range)))?;
        if self.selection.only == Only::Undelivered {
            let behind = self.standing.pending.partition_point(|pending| pending.id < range.first);
            let pending = self.standing.pending[behind..].iter().map(|pending| pending.id);
            ids.extend(pending.take_while(|id| *id <= range.last).take(DEAD_AT_ONCE));
            keep_first(&mut ids);
        }
        let at_end = ids.len() < DEAD_AT_ONCE;
        let upto = if at_end { range.last } else { ids.last().copied().unwrap_or(range.last) };
        let ids: Vec<DeliveryId> = ids.into_iter().collect();
        Some(ReplayPage { found: journal.fetch(self.subscription, &ids)?, upto, at_end })
    }
}

/// The first dead letters of the subscription in the range, by their own numbers. Inside a transaction.
fn dead(subscription: i64, range: Range) -> Result<BTreeSet<DeliveryId>> {
    let mut ids = BTreeSet::new();
    Spi::connect(|client| {
        let rows = client.select(
            "SELECT body FROM pgwh.outcome_chunks WHERE dead > 0 AND highest_id >= $1 AND lowest_id <= $2
                 AND (subscriptions IS NULL OR $3 = ANY (subscriptions))",
            None,
            &[parameter(range.first), parameter(range.last), subscription.into()],
        )?;
        for row in rows {
            let body: Vec<u8> = row.get(1)?.unwrap_or_default();
            let outcomes = intact(outcome::unpack(&body));
            let dead = outcomes.iter().filter(|outcome| {
                outcome.subscription == subscription
                    && outcome.replay.is_none()
                    && matches!(outcome.end, End::Dead { .. })
            });
            ids.extend(dead.flat_map(Outcome::members).filter(|id| range.first <= *id && *id <= range.last));
            keep_first(&mut ids);
        }
        Ok(ids)
    })
}

fn keep_first(ids: &mut BTreeSet<DeliveryId>) {
    while ids.len() > DEAD_AT_ONCE {
        ids.pop_last();
    }
}
