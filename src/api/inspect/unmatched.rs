//! Tables that a subscription names and gets nothing of: one that is gone or not in the log, and patterns that no table
//! matches. A pattern may come before its tables, so it is accepted with a warning, and reported until there is one.

use pgrx::AllocatedByRust;
use pgrx::pg_sys::panic::{ErrorReport, ErrorReportable};
use pgrx::prelude::*;

use crate::api::install::applied::is_applied;
use crate::api::subscriptions::tables;
use crate::api::subscriptions::tables::Unmatched;
use crate::decode::routing::table_pattern::array_literal;
use crate::error::Error;
use crate::pg::values::composite::Row;
use crate::pg::values::encoding;
use crate::pg::values::encoding::Text;

/// The query that shows which tables a pattern can match.
const SHOW_TABLES: &str = "SELECT schemaname, tablename FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema', 'pgwh');";

/// What is to be said of a subscription's tables.
pub struct Judgement {
    problem: String,
    /// Whether one of its tables is missing, or no table matches any of its patterns.
    is_failure: bool,
    /// Whether all that it names is missing.
    is_all: bool,
    /// What to set in the subscription.
    change: Option<String>,
    /// What to type otherwise.
    cure: Option<String>,
}

/// Judges the tables (in stored form) of a subscription that was accepted.
pub fn judge(stored: &[String]) -> Result<Option<Judgement>, Error> {
    let (fitting, refused): (Vec<&String>, Vec<&String>) =
        stored.iter().partition(|table| tables::check(table).is_ok());
    if let Some(Err(error)) = refused.first().map(|table| tables::check(table)) {
        let rest: Vec<String> = fitting.into_iter().cloned().collect();
        return Ok(Some(Judgement {
            problem: error.in_one_line(),
            is_failure: true,
            is_all: stored
                .iter()
                .all(|table| refused.contains(&table) || tables::is_in_missing_schema(table)),
            change: (!rest.is_empty()).then(|| format!("tables = {}", array_literal(&rest))),
            cure: error.cure(),
        }));
    }
    let unmatched = tables::unmatched(stored)?;
    if unmatched.is_empty() {
        return Ok(None);
    }
    let is_failure = unmatched.len() == stored.len();
    let is_all = stored.iter().all(|table| tables::is_in_missing_schema(table));
    let change = instead(stored, &unmatched);
    Ok(Some(Judgement {
        problem: words(&unmatched),
        is_failure,
        is_all,
        cure: (change.is_none() && !is_all).then(|| SHOW_TABLES.to_owned()),
        change: change.map(|tables| format!("tables = {tables}")),
    }))
}

/// The patterns in words.
fn words(unmatched: &[Unmatched]) -> String {
    let each =
        unmatched.iter().map(|one| format!("no table matches the pattern {}: {}", one.pattern, one.why));
    each.map(|sentence| sentence.trim_end_matches('.').to_owned()).collect::<Vec<_>>().join("; ")
}

/// The list of tables with the patterns that may have been meant, as SQL writes it.
fn instead(stored: &[String], unmatched: &[Unmatched]) -> Option<String> {
    unmatched.iter().any(|one| one.near.is_some()).then(|| {
        let meant = |pattern: &String| {
            let near = unmatched.iter().find(|one| one.pattern == *pattern).and_then(|one| one.near.clone());
            near.unwrap_or_else(|| pattern.clone())
        };
        array_literal(&stored.iter().map(meant).collect::<Vec<_>>())
    })
}

impl Judgement {
    /// As a row of `pgwh_internal.tables_problem`.
    pub fn row(&self) -> Row {
        Row::with_capacity(5)
            .and(Text::from(self.problem.as_str()))
            .and(self.is_failure)
            .and(self.is_all)
            .and(self.change.as_deref().map(Text::from))
            .and(self.cure.as_deref().map(Text::from))
    }
}

/// AFTER INSERT OR UPDATE OF tables ON pgwh.subscriptions: warns of patterns that no table matches.
#[pg_trigger(sql = false)]
fn warn_of_tables<'a>(trigger: &'a PgTrigger<'a>) -> Result<Option<PgHeapTuple<'a, AllocatedByRust>>, Error> {
    let warn = || {
        let Some(row) = trigger.new().filter(|_| !is_applied()) else { return Ok(()) };
        let name = row.get_by_name::<Text>("name")?.map(String::from).unwrap_or_default();
        let stored: Vec<String> = row
            .get_by_name::<Array<'_, Text>>("tables")?
            .map_or_else(Vec::new, |tables| tables.iter().flatten().map(String::from).collect());
        let unmatched = tables::unmatched(&stored)?;
        for one in &unmatched {
            let hint = match instead(&stored, &unmatched).filter(|_| one.near.is_some()) {
                Some(tables) => format!(
                    "Perhaps you meant {}: UPDATE pgwh.subscriptions SET tables = {tables} WHERE name = '{}';",
                    one.near.as_deref().unwrap_or_default(),
                    name.replace('\'', "''")
                ),
                None => format!(
                    "Nothing has to be done if such a table is created later. To see those that there are: {SHOW_TABLES}"
                ),
            };
            let detail = format!("{} Nothing is sent by this pattern until there is such a table.", one.why);
            warning(&format!("no table matches the pattern {}", one.pattern), &detail, &hint);
        }
        Ok::<_, Error>(())
    };
    warn().map_err(ErrorReport::from).unwrap_or_report();
    Ok(None)
}

/// Warns of tables that are not there.
pub fn warning(message: &str, detail: &str, hint: &str) {
    ErrorReport::new(
        PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE,
        encoding::in_error(message.to_owned()),
        "pgstream_hooks",
    )
    .set_detail(encoding::in_error(detail.to_owned()))
    .set_hint(encoding::in_error(hint.to_owned()))
    .report(PgLogLevel::WARNING);
}
