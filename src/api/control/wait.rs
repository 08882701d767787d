//! `pgwh.wait`.

use std::time::{Duration, Instant};

use pgrx::datum::Interval;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::api::authorization::as_owner;
use crate::api::command_queue::refused;
use crate::api::lookup::id_of;
use crate::api::preconditions;
use crate::api::session;
use crate::error::Error;
use crate::pg::command::notice::Notice;
use crate::pg::process::bgworker;
use crate::pg::values::encoding::{Text, Texts};

/// The first and the longest pause between two looks at the figures of the dispatcher.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LAST_PAUSE: Duration = Duration::from_millis(20);

/// Waits until everything committed before the call has reached the subscription, with the backfills and replays that were
/// requested before it; or until one of these is done and its events have reached the subscription.
#[pg_extern(sql = false)]
fn wait(
    name: Option<Text>,
    timeout: Option<Interval>,
    backfill: Option<i64>,
    replay: Option<i64>,
) -> Result<bool, ErrorReport> {
    preconditions::changes()?;
    let timeout = timeout.ok_or(Error::Missing("timeout"))?;
    let patience = Duration::from_micros(u64::try_from(timeout.as_micros()).unwrap_or_default());
    let id = id_of(name)?;
    if !is_live(id).map_err(Error::from)? {
        notice!("the subscription is disabled, paused or held, so nothing is sent to it");
        return Ok(false);
    }
    // SAFETY: reads the state of the present transaction.
    if unsafe { pg_sys::GetTopTransactionIdIfAny() != pg_sys::InvalidTransactionId } {
        Notice::new("changes of a transaction cannot be sent before it commits")
            .detail("This transaction has written, and waits for itself.")
            .hint("COMMIT first, then call pgwh.wait() in a transaction of its own.")
            .report();
        return Ok(false);
    }
    let mut patience = Patience::new(patience);
    let jobs = Jobs::of(id, backfill, replay)?;
    while let Some(open) = jobs.look()? {
        if let Some(notice) = open.hopeless() {
            notice.report();
            return Ok(false);
        }
        if !patience.pause() {
            Notice::new(format!("{} {} is still {}", open.kind, open.id, open.state)).report();
            return Ok(false);
        }
    }
    let end = session::wal_insert_end();
    // What a commit left in memory (synchronous_commit = off) would be decoded only after the next flush.
    // SAFETY: the position is one that has been inserted.
    unsafe { pg_sys::XLogFlush(end) };
    patience.begin_short();
    while session::standing(id, |_, reached| reached).is_none_or(|reached| reached < end) {
        session::wake_decoder();
        if !patience.pause() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Pauses that become longer, up to a deadline.
struct Patience {
    deadline: Option<Instant>,
    pause: Duration,
}

impl Patience {
    fn new(patience: Duration) -> Patience {
        Patience { deadline: Instant::now().checked_add(patience), pause: FIRST_PAUSE }
    }

    /// Begins with the shortest pause again.
    fn begin_short(&mut self) {
        self.pause = FIRST_PAUSE;
    }

    /// Pauses; false, and at once, when the time is up.
    fn pause(&mut self) -> bool {
        let left =
            self.deadline.map_or(LAST_PAUSE, |deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            return false;
        }
        bgworker::pause(self.pause.min(left));
        self.pause = (self.pause * 2).min(LAST_PAUSE);
        true
    }
}

/// Backfills and replays that are waited for.
struct Jobs {
    backfills: Vec<i64>,
    replays: Vec<i64>,
    /// Whether the caller named them: a cancelled one is no success then.
    are_named: bool,
}

/// A backfill or replay that is not done.
struct Job {
    kind: String,
    id: i64,
    state: String,
    reason: Option<String>,
}

/// Of the subscription `$1`: what is open and not paused, and the backfills that have failed and that no later one has replaced.
const OPEN: &str = "
    SELECT 'backfill', r.id FROM pgwh_internal.backfill_requests r
    WHERE r.subscription_id = $1 AND (r.state IN ('waiting', 'running') OR r.state = 'failed' AND NOT EXISTS (
        SELECT FROM pgwh_internal.backfill_requests l
        WHERE l.subscription_id = $1 AND l.id > r.id AND l.tables @> r.tables
            AND (l.filter IS NULL OR l.filter = r.filter) AND l.start IS NULL AND l.state NOT IN ('failed', 'cancelled')))
    UNION ALL
    SELECT 'replay', p.id FROM pgwh.replays p WHERE p.subscription_id = $1 AND p.state IN ('waiting', 'running')";

/// Of these, the first that is not done; `$3`: nor cancelled.
const NOT_DONE: &str = "
    SELECT j.kind, j.id, j.state, j.reason FROM (
        SELECT 'backfill', r.id, r.state, r.reason FROM pgwh_internal.backfill_requests r WHERE r.id = ANY ($1)
        UNION ALL
        SELECT 'replay', p.id, p.state, p.reason FROM pgwh.replays p WHERE p.id = ANY ($2)) j (kind, id, state, reason)
    WHERE j.state <> 'done' AND (j.state <> 'cancelled' OR $3)
    ORDER BY j.state IN ('cancelled', 'failed', 'paused') DESC, j.kind, j.id LIMIT 1";

impl Jobs {
    fn of(subscription: i64, backfill: Option<i64>, replay: Option<i64>) -> Result<Jobs, Error> {
        let mut jobs = Jobs {
            backfills: backfill.into_iter().collect(),
            replays: replay.into_iter().collect(),
            are_named: backfill.is_some() || replay.is_some(),
        };
        for (kind, table, id) in
            [("backfill", "pgwh_internal.backfill_requests", backfill), ("replay", "pgwh.replays", replay)]
        {
            if let Some(id) = id
                && !belongs(table, id, subscription)?
            {
                return Err(refused(
                    format!("there is no such {kind}"),
                    format!("This subscription has no {kind} {id}."),
                    format!("SELECT id, subscription, state FROM pgwh.{kind}s; shows those that there are."),
                ));
            }
        }
        if !jobs.are_named {
            let open = with_latest_snapshot(|| {
                Ok(Spi::connect(|client| {
                    let rows = client.select(OPEN, None, &[subscription.into()])?;
                    rows.map(|row| Ok((row.text(1)?, row.get::<i64>(2)?)))
                        .collect::<Result<Vec<_>, pgrx::spi::Error>>()
                })?)
            })?;
            for (kind, id) in open {
                let of_kind =
                    if kind.as_deref() == Some("replay") { &mut jobs.replays } else { &mut jobs.backfills };
                of_kind.extend(id);
            }
        }
        Ok(jobs)
    }

    /// The first that is not done.
    fn look(&self) -> Result<Option<Job>, Error> {
        if self.backfills.is_empty() && self.replays.is_empty() {
            return Ok(None);
        }
        let arguments = [self.backfills.clone().into(), self.replays.clone().into(), self.are_named.into()];
        with_latest_snapshot(|| {
            Ok(Spi::connect(|client| {
                let rows = client.select(NOT_DONE, Some(1), &arguments)?;
                let Some(row) = rows.into_iter().next() else { return Ok(None) };
                Ok::<_, pgrx::spi::Error>(Some(Job {
                    kind: row.text(1)?.unwrap_or_default(),
                    id: row.get(2)?.unwrap_or_default(),
                    state: row.text(3)?.unwrap_or_default(),
                    reason: row.text(4)?,
                }))
            })?)
        })
    }
}

impl Job {
    /// Why it will not be done however long one waits.
    fn hopeless(&self) -> Option<Notice> {
        let Job { kind, id, state, reason } = self;
        let notice = match state.as_str() {
            "paused" => Notice::new(format!("{kind} {id} is paused"))
                .hint(format!("To go on: SELECT pgwh.resume_backfill({id});")),
            "failed" => Notice::new(format!("{kind} {id} has failed")).hint(format!(
                "To go on: SELECT pgwh.resume_backfill({id}); To give it up: SELECT pgwh.cancel_backfill({id});"
            )),
            "cancelled" => Notice::new(format!("{kind} {id} was cancelled")),
            _ => return None,
        };
        Some(match reason {
            Some(reason) => notice.detail(format!("{reason}.")),
            None => notice,
        })
    }
}

/// Whether a backfill or replay, by the table that has it, is one of the subscription.
fn belongs(table: &str, id: i64, subscription: i64) -> Result<bool, Error> {
    with_latest_snapshot(|| {
        Ok(Spi::connect(|client| {
            let query = format!("SELECT FROM {table} WHERE id = $1 AND subscription_id = $2");
            Ok::<_, pgrx::spi::Error>(
                !client.select(query.as_str(), Some(1), &[id.into(), subscription.into()])?.is_empty(),
            )
        })?)
    })
}

/// Reads as the extension's owner what is committed by now, also after the snapshot of the statement.
fn with_latest_snapshot<T>(action: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    as_owner(|| {
        // SAFETY: in a transaction; the snapshot is popped, or released with the (sub)transaction that an ERROR ends.
        unsafe {
            pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot());
            let done = action();
            pg_sys::PopActiveSnapshot();
            done
        }
    })
}

/// Whether anything is sent to the subscription at all.
fn is_live(id: i64) -> Result<bool, pgrx::spi::Error> {
    Spi::connect(|client| {
        let live = client.select(
            "SELECT enabled AND NOT paused AND home OPERATOR(pg_catalog.=) pgwh_internal.home() FROM pgwh.subscriptions
             WHERE id OPERATOR(pg_catalog.=) $1",
            Some(1),
            &[id.into()],
        )?;
        Ok(live.first().get_one::<bool>()?.unwrap_or_default())
    })
}
