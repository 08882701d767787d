//! Backfills: which are open, how far each of their tables has been read, and what is to be read next.
//!
//! How far a table has been read is written in the commit that journals its rows, so no row is journaled twice.

use pgrx::spi::{Result, SpiClient};
use pgrx::{Spi, pg_sys};

use super::descendants::flawed_parts;
use super::parameters;
use super::transaction::{SUBSCRIPTION_GONE, check};
use super::write::rows::{BackfillStep, StepKind};
use crate::decode::definitions;
use crate::decode::routing::lineage;
use crate::decode::routing::router::Grantee;
use crate::decode::routing::table_pattern::TablePattern;
use crate::event::TableName;
use crate::pg::values::encoding::{Texts, argument};

/// What a row takes in a page besides its values: its header and its line pointer.
const ROW_OVERHEAD_BYTES: i32 = 28;

/// A backfill that is not over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenBackfill {
    /// Its id.
    pub id: i64,
    /// Whose.
    pub subscription: i64,
    /// Whether it is to be read.
    pub state: BackfillState,
}

/// What a backfill is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackfillState {
    /// It has not begun.
    Waiting,
    /// It is being read.
    Running,
    /// Somebody wants no more of it for now.
    Paused,
    /// All has been read.
    Done,
    /// Somebody wanted no more of it.
    Cancelled,
    /// It cannot go on by itself.
    Failed,
}

impl BackfillState {
    /// Whether nothing more is read of it, unless it has failed and somebody resumes it.
    pub fn is_over(self) -> bool {
        matches!(self, BackfillState::Done | BackfillState::Cancelled | BackfillState::Failed)
    }

    /// The word in the table.
    pub fn word(self) -> &'static str {
        match self {
            BackfillState::Waiting => "waiting",
            BackfillState::Running => "running",
            BackfillState::Paused => "paused",
            BackfillState::Done => "done",
            BackfillState::Cancelled => "cancelled",
            BackfillState::Failed => "failed",
        }
    }
}

/// A position, and the definition of the order that it was taken in.
pub type ReadPosition = (String, Vec<i64>);

/// What is read next of a backfill.
#[derive(Clone, Debug)]
pub struct BackfillTask {
    /// Whose.
    pub subscription: i64,
    /// That subscription's tables.
    pub tables: Vec<String>,
    /// Its condition.
    pub condition: Option<String>,
    /// The backfill's own.
    pub filter: Option<String>,
    /// Where it was armed.
    pub home: String,
    /// Who must be allowed to read the rows, and what of them.
    pub grantee: Grantee,
    /// The table, and after which row as JSON text, with the definition of the order; none when all known tables have been
    /// read.
    pub next: Option<(pg_sys::Oid, Option<ReadPosition>)>,
    /// The column that goes before the key.
    pub order_by: Option<String>,
    /// Its least value.
    pub start: Option<String>,
    /// The most rows of a chunk.
    pub chunk_size: Option<i32>,
}

/// The backfills that are not over. Those of subscriptions that are gone are ended. Inside a transaction.
pub fn open_backfills() -> Vec<OpenBackfill> {
    check("backfills cannot be read", end_orphans().and_then(|()| read_open()))
}

fn end_orphans() -> Result<()> {
    Spi::run_with_args(
        "UPDATE pgwh_internal.backfill_requests SET state = 'cancelled', finished_at = clock_timestamp(), reason = $1
         WHERE id IN (SELECT id FROM pgwh_internal.backfill_requests r WHERE state IN ('waiting', 'running', 'paused')
             AND NOT EXISTS (SELECT FROM pgwh.subscriptions s WHERE s.id = r.subscription_id)
             FOR UPDATE SKIP LOCKED)",
        &[SUBSCRIPTION_GONE.into()],
    )
}

/// Whether the subscription of a backfill is gone. Inside a transaction.
pub fn is_orphan(id: i64) -> bool {
    let gone = Spi::connect(|client| {
        let subscribed = "SELECT FROM pgwh_internal.backfill_requests r JOIN pgwh.subscriptions s ON s.id = r.subscription_id
             WHERE r.id = $1";
        Ok(client.select(subscribed, Some(1), &[id.into()])?.is_empty())
    });
    check("the subscription of a backfill cannot be read", gone)
}

fn read_open() -> Result<Vec<OpenBackfill>> {
    Spi::connect(|client| {
        let rows = client.select(
            "SELECT r.id, r.subscription_id, r.state FROM pgwh_internal.backfill_requests r
             JOIN pgwh.subscriptions s ON s.id = r.subscription_id AND s.home = pgwh_internal.home()
             WHERE r.state IN ('waiting', 'running', 'paused') ORDER BY r.id",
            None,
            &[],
        )?;
        rows.map(|row| {
            Ok(OpenBackfill {
                id: row.get(1)?.unwrap_or_default(),
                subscription: row.get(2)?.unwrap_or_default(),
                state: match row.get::<String>(3)?.as_deref() {
                    Some("paused") => BackfillState::Paused,
                    Some("running") => BackfillState::Running,
                    _ => BackfillState::Waiting,
                },
            })
        })
        .collect()
    })
}

/// What became of a backfill's new state.
pub enum StateNoted {
    /// It is noted; whose backfill that is.
    Of(i64),
    /// Another session holds a lock on its row.
    Locked,
    /// The backfill is over, and stays as it is.
    Over,
}

/// Notes what a backfill does from here on. Inside a transaction.
pub fn set_backfill_state(id: i64, state: BackfillState, reason: Option<&str>) -> StateNoted {
    let noted = Spi::connect_mut(|client| {
        let rows = client.update(
            "UPDATE pgwh_internal.backfill_requests SET state = $2, reason = $3,
                 started_at = CASE WHEN $2 = 'running' THEN coalesce(started_at, clock_timestamp()) ELSE started_at END,
                 finished_at = CASE WHEN $2 IN ('done', 'cancelled', 'failed') THEN clock_timestamp() END
             WHERE id IN (SELECT id FROM pgwh_internal.backfill_requests WHERE id = $1 AND state NOT IN ('done', 'cancelled')
                 FOR UPDATE SKIP LOCKED) RETURNING subscription_id",
            None,
            &[id.into(), state.word().into(), parameters::text(reason)],
        )?;
        if let Some(subscription) = if rows.is_empty() { None } else { rows.first().get_one::<i64>()? } {
            return Ok(StateNoted::Of(subscription));
        }
        let open = "SELECT FROM pgwh_internal.backfill_requests WHERE id = $1 AND state NOT IN ('done', 'cancelled')";
        let is_over = client.select(open, Some(1), &[id.into()])?.is_empty();
        Ok(if is_over { StateNoted::Over } else { StateNoted::Locked })
    });
    check("a backfill's state cannot be noted", noted)
}

/// Which parts of the tables that a backfill was about could not be read, since none of their changes are in the log; none
/// when it has read all. Inside a transaction.
pub fn left_out(id: i64) -> Option<String> {
    let parts = flawed_parts().and_then(|parts| {
        let Some((wanted, subscribed)) = Spi::connect(|client| patterns(client, id))? else {
            return Ok(Vec::new());
        };
        let left = parts
            .into_iter()
            .filter(|part| part.led_by(&wanted).is_some() && part.led_by(&subscribed).is_some());
        Ok(left.filter_map(|part| Some(format!("{} ({})", part.name, part.not_logged()?))).collect())
    });
    let parts = check("partitions cannot be read", parts);
    (!parts.is_empty()).then(|| format!("it left out what is not in the log: {}", parts.join(", ")))
}

/// The patterns of a backfill for which there was no table to read, not even a partitioned one without partitions; none when
/// there was one. Inside a transaction.
pub fn without_tables(id: i64) -> Option<String> {
    let found = Spi::connect(|client| {
        let read = "SELECT FROM pgwh_internal.backfill_tables WHERE backfill_id = $1";
        if !client.select(read, Some(1), &[id.into()])?.is_empty() {
            return Ok(None);
        }
        let Some((wanted, subscribed)) = patterns(client, id)? else { return Ok(None) };
        let partitioned = client.select(
            "SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.relkind = 'p' AND c.relpersistence = 'p'",
            None,
            &[],
        )?;
        for row in partitioned {
            let (Some(schema), Some(table)) = (row.text(1)?, row.text(2)?) else { continue };
            let name = TableName { schema, table };
            let leads = |patterns: &[TablePattern]| patterns.iter().any(|pattern| pattern.matches(&name));
            if leads(&wanted) && leads(&subscribed) {
                return Ok(None);
            }
        }
        Ok(Some(wanted.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")))
    });
    check("the tables of a backfill cannot be read", found)
}

/// Tables that a backfill has not read to their end because they were renamed, moved or detached meanwhile.
pub enum Strayed {
    /// There is none.
    None,
    /// They belong to the backfill no more: what it is about has been read.
    Elsewhere(String),
    /// A table that it names is among them, and no other has taken its name.
    Named(String),
}

/// What a backfill that has nothing left to read has not read. Inside a transaction.
pub fn strayed(id: i64) -> Strayed {
    let found = Spi::connect(|client| {
        let rows = client.select(
            "SELECT t.table_name, format('%I.%I', n.nspname, c.relname)
             FROM pgwh_internal.backfill_tables t JOIN pg_class c ON c.oid = t.relation AND c.relpersistence = 'p'
                 JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE t.backfill_id = $1 AND t.absent ORDER BY t.relation",
            None,
            &[id.into()],
        )?;
        let mut strayed = Vec::new();
        for row in rows {
            let (name, now) = (row.text(1)?.unwrap_or_default(), row.text(2)?.unwrap_or_default());
            strayed.push(if name == now { name } else { format!("{name} (now {now})") });
        }
        if strayed.is_empty() {
            return Ok(Strayed::None);
        }
        let tables = strayed.join(", ");
        let wanted = patterns(client, id)?.map(|(wanted, _)| wanted).unwrap_or_default();
        let is_gone = |(schema, table): (&str, &str)| {
            let name = TableName { schema: schema.to_owned(), table: table.to_owned() };
            definitions::table_of(&name) == pg_sys::InvalidOid
        };
        let is_named = wanted.iter().filter_map(TablePattern::literal).any(is_gone);
        Ok(if is_named { Strayed::Named(tables) } else { Strayed::Elsewhere(tables) })
    });
    check("the tables of a backfill cannot be read", found)
}

/// What a backfill is to read, and what its subscription is about.
fn patterns(client: &SpiClient<'_>, id: i64) -> Result<Option<(Vec<TablePattern>, Vec<TablePattern>)>> {
    let rows = client.select(
        "SELECT r.tables, s.tables FROM pgwh_internal.backfill_requests r
         JOIN pgwh.subscriptions s ON s.id = r.subscription_id WHERE r.id = $1",
        Some(1),
        &[id.into()],
    )?;
    let Some(row) = rows.into_iter().next() else { return Ok(None) };
    Ok(Some((parse(&row.texts(1)?.unwrap_or_default()), parse(&row.texts(2)?.unwrap_or_default()))))
}

fn parse(texts: &[String]) -> Vec<TablePattern> {
    texts.iter().filter_map(|text| TablePattern::parse(text).ok()).collect()
}

/// What is read next of a backfill; none when it or its subscription is gone. Inside a transaction.
pub fn backfill_task(id: i64) -> Option<BackfillTask> {
    let read = Spi::connect(|client| {
        let rows = client.select(
            "SELECT r.subscription_id, s.tables, s.owner, t.relation, t.position, r.order_by,
                 r.start, r.chunk_size, s.home,
                 s.filter, r.filter, s.columns, s.exclude_columns,
                 CASE WHEN r.order_by IS NULL THEN s.key_columns ELSE s.key_columns || r.order_by END,
                 t.definition
             FROM pgwh_internal.backfill_requests r
             JOIN pgwh.subscriptions s ON s.id = r.subscription_id
             LEFT JOIN LATERAL (SELECT t.relation, t.position, t.definition FROM pgwh_internal.backfill_tables t
                 WHERE t.backfill_id = r.id AND NOT t.done ORDER BY t.relation LIMIT 1) t ON true
             WHERE r.id = $1",
            Some(1),
            &[id.into()],
        )?;
        let Some(row) = rows.into_iter().next() else { return Ok(None) };
        let definition = row.get::<Vec<i64>>(15)?.unwrap_or_default();
        let position = row.get::<Vec<u8>>(5)?;
        let position = position.map(|json| (String::from_utf8_lossy(&json).into_owned(), definition));
        Ok(Some(BackfillTask {
            subscription: row.get(1)?.unwrap_or_default(),
            tables: row.texts(2)?.unwrap_or_default(),
            grantee: Grantee {
                owner: row.text(3)?.unwrap_or_default(),
                columns: row.texts(12)?,
                exclude_columns: row.texts(13)?,
                // How far it is shows values of the column that it is ordered by.
                key_columns: row.texts(14)?,
            },
            next: row.get::<pg_sys::Oid>(4)?.map(|table| (table, position)),
            order_by: row.text(6)?,
            start: row.text(7)?,
            chunk_size: row.get(8)?,
            home: row.text(9)?.unwrap_or_default(),
            condition: row.text(10)?,
            filter: row.text(11)?,
        }))
    });
    check("a backfill cannot be read", read)
}

/// Adds the tables that a backfill is about by now and was not when they were last looked at; whether there were any. Inside
/// a transaction.
pub fn add_backfill_tables(id: i64) -> bool {
    check("a backfill's tables cannot be noted", try_add_tables(id))
}

/// Leaves a table out that cannot be read and of which nothing has been read, as those are that could not be read when the
/// backfill was requested; false where it is not one of several tables. Inside a transaction.
pub fn leave_out_of_backfill(id: i64, table: pg_sys::Oid, reason: &str) -> bool {
    let noted = Spi::connect_mut(|client| {
        let rows = client.update(
            "UPDATE pgwh_internal.backfill_tables t SET left_out = $3, done = true FROM pgwh_internal.backfill_requests r
             WHERE t.backfill_id = $1 AND t.relation = $2 AND r.id = t.backfill_id AND t.rows_read = 0 AND NOT t.again
                 AND (cardinality(r.tables) > 1 OR strpos(r.tables[1], '*') > 0)
                 AND EXISTS (SELECT FROM pgwh_internal.backfill_tables o WHERE o.backfill_id = $1 AND o.relation <> $2
                     AND o.left_out IS NULL AND NOT o.absent)
             RETURNING t.relation",
            None,
            &[id.into(), table.into(), argument(reason)],
        )?;
        Ok(!rows.is_empty())
    });
    check("a table that is left out of a backfill cannot be noted", noted)
}

fn try_add_tables(id: i64) -> Result<bool> {
    Spi::connect_mut(|client| {
        let rows = client.select(
            "SELECT r.tables, s.tables, ARRAY(SELECT relation FROM pgwh_internal.backfill_tables WHERE backfill_id = $1 AND NOT absent)
             FROM pgwh_internal.backfill_requests r JOIN pgwh.subscriptions s ON s.id = r.subscription_id WHERE r.id = $1",
            Some(1),
            &[id.into()],
        )?;
        let Some(row) = rows.into_iter().next() else { return Ok(false) };
        let wanted = row.texts(1)?.unwrap_or_default();
        let subscribed = row.texts(2)?.unwrap_or_default();
        let known: Vec<pg_sys::Oid> = row.get(3)?.unwrap_or_default();
        let mut any = false;
        for table in tables_of(client, &wanted, &subscribed)? {
            if !known.contains(&table.oid) {
                any = true;
                client.update(
                    "INSERT INTO pgwh_internal.backfill_tables (backfill_id, relation, table_name, estimate)
                     SELECT $1, c.oid, format('%I.%I', n.nspname, c.relname), $3
                     FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $2
                     ON CONFLICT (backfill_id, relation) DO UPDATE SET done = false, absent = false",
                    None,
                    &[id.into(), table.oid.into(), estimated_rows(table.oid).into()],
                )?;
            }
        }
        Ok(any)
    })
}

/// About how many rows a table has: its pages by the rows in a page, which are known since the last ANALYZE or follow from the
/// width of a row. None when the table is gone, or another session has locked it. Inside a transaction.
fn estimated_rows(table: pg_sys::Oid) -> Option<i64> {
    let share = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
    // SAFETY: in a transaction; the lock is held while the relation is open, and what is opened is closed.
    unsafe {
        if !pg_sys::ConditionalLockRelationOid(table, share) {
            return None;
        }
        let relation = pg_sys::try_relation_open(table, pg_sys::NoLock as _);
        if relation.is_null() {
            pg_sys::UnlockRelationOid(table, share);
            return None;
        }
        let pages = pg_sys::RelationGetNumberOfBlocksInFork(relation, pg_sys::ForkNumber::MAIN_FORKNUM);
        let (counted, counted_pages) = ((*(*relation).rd_rel).reltuples, (*(*relation).rd_rel).relpages);
        let rows_in_page = if counted >= 0.0 && counted_pages > 0 {
            f64::from(counted) / f64::from(counted_pages)
        } else {
            let width = pg_sys::get_relation_data_width(table, std::ptr::null_mut());
            f64::from(pg_sys::BLCKSZ) / f64::from(width.saturating_add(ROW_OVERHEAD_BYTES).max(1))
        };
        pg_sys::relation_close(relation, share);
        Some((f64::from(pages) * rows_in_page).round() as i64)
    }
}

/// A table that holds rows.
pub struct BackfillTable {
    /// Its oid.
    pub oid: pg_sys::Oid,
    /// Its name, as SQL spells it.
    pub name: String,
}

/// The tables and partitions that match one of the patterns in each list, under their own name or that of a table
/// above them. Inside a transaction.
///
/// # Errors
///
/// When the catalogs cannot be read.
pub fn tables_of(
    client: &SpiClient<'_>,
    wanted: &[String],
    subscribed: &[String],
) -> Result<Vec<BackfillTable>> {
    let (wanted, subscribed) = (parse(wanted), parse(subscribed));
    let rows = client.select(
        "SELECT c.oid, format('%I.%I', n.nspname, c.relname)
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND c.oid >= 16384 AND n.nspname NOT IN ('pgwh', 'pgwh_internal')
         ORDER BY c.oid",
        None,
        &[],
    )?;
    let mut tables = Vec::new();
    for row in rows {
        let oid = row.get(1)?.unwrap_or(pg_sys::Oid::INVALID);
        let levels = lineage::of(oid);
        let leads = |pattern: &TablePattern| {
            levels.iter().any(|level| pattern.leads_to(&level.name, level.is_user_table))
        };
        if wanted.iter().any(leads) && subscribed.iter().any(leads) {
            tables.push(BackfillTable { oid, name: row.text(2)?.unwrap_or_default() });
        }
    }
    Ok(tables)
}

/// Writes what is to be noted of a table.
pub(super) fn write_step(client: &mut SpiClient<'_>, step: &BackfillStep) -> Result<()> {
    let (backfill, table) = (step.backfill.into(), pg_sys::Oid::from(step.table).into());
    match &step.kind {
        // In another order the table is read from its start, and counted so.
        StepKind::Read { position, definition, read, sent, seconds } => client.update(
            "UPDATE pgwh_internal.backfill_tables SET done = $3 IS NULL AND NOT again, again = again AND $3 IS NOT NULL,
                 position = $3, definition = $7,
                 rows_read = $4 + CASE WHEN definition IS DISTINCT FROM $7 THEN 0 ELSE rows_read END,
                 rows_sent = $5 + CASE WHEN definition IS DISTINCT FROM $7 THEN 0 ELSE rows_sent END,
                 seconds = $6 + CASE WHEN definition IS DISTINCT FROM $7 THEN 0 ELSE seconds END
             WHERE backfill_id = $1 AND relation = $2",
            None,
            &[
                backfill,
                table,
                position.as_ref().map(|position| position.as_bytes().to_vec()).into(),
                (*read as i64).into(),
                (*sent as i64).into(),
                (*seconds).into(),
                definition.clone().into(),
            ],
        ),
        StepKind::Absent => client.update(
            "UPDATE pgwh_internal.backfill_tables SET done = true, again = false, absent = true, position = NULL
             WHERE backfill_id = $1 AND relation = $2",
            None,
            &[backfill, table],
        ),
        StepKind::Again => client.update(
            "UPDATE pgwh_internal.backfill_tables SET again = NOT done, done = false
             WHERE backfill_id = $1 AND relation = $2 AND left_out IS NULL",
            None,
            &[backfill, table],
        ),
    }
    .map(drop)
}
