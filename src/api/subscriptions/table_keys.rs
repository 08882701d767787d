//! The keys by which an index finds the subscriptions to a table among a hundred thousand.

use std::collections::HashSet;

use pgrx::prelude::*;

use super::tables;
use crate::decode::routing::table_pattern::TablePattern;
use crate::event::TableName;
use crate::pg::values::detoasted_arg::Stored;
use crate::pg::values::encoding::Texts;

/// The key of lists with a wildcard.
const WILDCARD: i64 = 0;

/// Subscriptions with conditions on columns: the predicate of the index `subscriptions_by_table`.
pub const HAS_CONDITIONS: &str = "(filter IS NOT NULL OR changed IS NOT NULL OR key_columns IS NOT NULL
    OR columns IS NOT NULL OR exclude_columns IS NOT NULL)";

/// The keys of a list of patterns (in stored form): one for each, and one more when there is a wildcard in it. They are
/// stored in an index, so they must not change.
#[pg_extern(sql = false)]
fn table_keys(tables: Stored) -> Vec<i64> {
    let tables = tables.texts();
    let mut keys: Vec<i64> = tables.iter().map(|pattern| key(pattern)).collect();
    if tables.iter().any(|pattern| !is_literal(pattern)) {
        keys.push(WILDCARD);
    }
    keys
}

/// The keys of all patterns of subscriptions with conditions that match one of these tables.
pub fn keys_of<'a>(names: impl Iterator<Item = &'a TableName> + Clone) -> Result<Vec<i64>, pgrx::spi::Error> {
    let literals = names.clone().map(|name| key(&tables::of_table(&name.schema, &name.table)));
    let mut keys: HashSet<i64> = literals.collect();
    let query = format!(
        "SELECT DISTINCT t.pattern FROM pgwh.subscriptions, pg_catalog.unnest(tables) t (pattern)
         WHERE pgwh_internal.table_keys(tables) OPERATOR(pg_catalog.&&) '{{{WILDCARD}}}' AND {HAS_CONDITIONS}
           AND pg_catalog.strpos(t.pattern, '*') OPERATOR(pg_catalog.>) 0"
    );
    Spi::connect(|client| {
        for row in client.select(query.as_str(), None, &[])? {
            let pattern = row.text(1)?.unwrap_or_default();
            if TablePattern::parse(&pattern)
                .is_ok_and(|parsed| names.clone().any(|name| parsed.matches(name)))
            {
                keys.insert(key(&pattern));
            }
        }
        Ok(keys.into_iter().collect())
    })
}

fn is_literal(pattern: &str) -> bool {
    TablePattern::parse(pattern).is_ok_and(|parsed| parsed.literal().is_some())
}

/// FNV-1a of the pattern. Two that share a key cost a comparison.
fn key(pattern: &str) -> i64 {
    let hash = pattern.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    match hash as i64 {
        WILDCARD => 1,
        key => key,
    }
}
