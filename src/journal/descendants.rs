//! Partitions and children by INHERITS of which a subscription to a table above them gets less than of the others: those
//! whose changes are not in the log, and those that lack the others' REPLICA IDENTITY.

use pgrx::spi::{Result, SpiClient};
use pgrx::{Spi, pg_sys};

use crate::decode::routing::lineage;
use crate::decode::routing::router::Level;
use crate::decode::routing::table_pattern::TablePattern;
use crate::pg::values::encoding::Texts;

/// Such a partition or child.
#[derive(Clone, Debug)]
pub struct Part {
    /// Its name, as SQL spells it.
    pub name: String,
    /// The tables above it, each with its oid.
    above: Vec<Level>,
    flaw: Flaw,
}

/// What is wrong with it.
#[derive(Clone, Debug)]
enum Flaw {
    /// It is an unlogged table.
    Unlogged,
    /// It is a foreign table.
    Foreign,
    /// It is a temporary table, which lasts as long as a session.
    Temporary,
    /// Its old rows are known by less than those of its siblings; and what to type.
    Identity(String),
}

/// Where a list of patterns leads to a part from.
#[derive(Clone, Copy, Debug)]
pub struct Led {
    /// Whether a pattern without a wildcard leads to it.
    pub is_named: bool,
    /// The table above it that is meant.
    pub above: pg_sys::Oid,
}

impl Part {
    /// Whether one of the patterns leads to it, by the name of a table above it: the topmost.
    pub fn led_by(&self, patterns: &[TablePattern]) -> Option<Led> {
        self.above.iter().rev().find_map(|level| {
            let leading = |pattern: &&TablePattern| pattern.leads_to(&level.name, level.is_user_table);
            let mut leading = patterns.iter().filter(leading).peekable();
            leading.peek()?;
            let is_named = leading.any(|pattern| pattern.literal().is_some());
            Some(Led { is_named, above: level.oid.into() })
        })
    }

    /// What it is, if none of its changes are in the log.
    pub fn not_logged(&self) -> Option<&'static str> {
        match self.flaw {
            Flaw::Unlogged => Some("an unlogged table"),
            Flaw::Foreign => Some("a foreign table"),
            Flaw::Temporary => Some("a temporary table"),
            Flaw::Identity(_) => None,
        }
    }

    /// Whether it goes with its session, so that it is named, and nothing is refused for it.
    pub fn is_temporary(&self) -> bool {
        matches!(self.flaw, Flaw::Temporary)
    }

    /// The command that makes it as the others are, if there is one.
    pub fn cure(&self) -> Option<String> {
        match &self.flaw {
            Flaw::Unlogged => Some(format!("ALTER TABLE {} SET LOGGED;", self.name)),
            Flaw::Foreign | Flaw::Temporary => None,
            Flaw::Identity(cure) => Some(cure.clone()),
        }
    }
}

/// All that there are. Inside a transaction, with no names but the catalogs' in the search path.
///
/// # Errors
///
/// When the catalogs cannot be read.
pub fn flawed_parts() -> Result<Vec<Part>> {
    Spi::connect(read)
}

fn read(client: &SpiClient<'_>) -> Result<Vec<Part>> {
    let rows = client.select(
        "WITH part AS MATERIALIZED (
             SELECT i.inhparent, c.oid, c.relkind, c.relpersistence, c.relreplident
             FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_class a ON a.oid = i.inhparent
             WHERE c.relkind IN ('r', 'f') AND a.relpersistence <> 't'
         ), family AS (
             SELECT p.inhparent, bool_or(p.relreplident = 'f') OR c.relreplident = 'f' AS is_full,
                 min(p.oid::bigint) FILTER (WHERE p.relreplident = 'i') AS indexed
             FROM part p JOIN pg_class c ON c.oid = p.inhparent
             WHERE p.relkind = 'r' AND p.relpersistence = 'p' GROUP BY p.inhparent, c.relreplident
         ), flawed AS (
             SELECT p.oid, CASE WHEN p.relpersistence = 't' THEN 'temporary' WHEN p.relkind = 'f' THEN 'foreign'
                     WHEN p.relpersistence = 'u' THEN 'unlogged'
                 ELSE 'identity' END AS flaw, bool_or(f.is_full) AS is_full, min(f.indexed)::oid AS indexed
             FROM part p LEFT JOIN family f ON f.inhparent = p.inhparent
             WHERE p.relkind = 'f' OR p.relpersistence <> 'p'
                 OR p.relreplident IN ('d', 'n') AND (f.is_full OR f.indexed IS NOT NULL)
             GROUP BY p.oid, p.relkind, p.relpersistence
         )
         SELECT p.oid, format('%I.%I', n.nspname, c.relname), p.flaw,
             coalesce('USING INDEX ' || CASE WHEN NOT p.is_full THEN (
                 SELECT quote_ident(x.relname) FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
                 WHERE i.indrelid = p.oid AND i.indisunique AND i.indisvalid AND i.indimmediate
                     AND i.indpred IS NULL AND i.indexprs IS NULL
                     AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = p.oid
                         AND a.attnum = ANY (i.indkey::int2[]) AND NOT a.attnotnull)
                     AND ARRAY(SELECT a.attname FROM pg_attribute a WHERE a.attrelid = p.oid
                         AND a.attnum = ANY (i.indkey::int2[]) ORDER BY a.attname)
                       = ARRAY(SELECT a.attname FROM pg_index o JOIN pg_attribute a ON a.attrelid = o.indrelid
                         AND a.attnum = ANY (o.indkey::int2[])
                         WHERE o.indrelid = p.indexed AND o.indisreplident ORDER BY a.attname)
                 ORDER BY i.indexrelid LIMIT 1) END, 'FULL')
         FROM flawed p JOIN pg_class c ON c.oid = p.oid JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname NOT IN ('pgwh', 'pgwh_internal') ORDER BY p.oid",
        None,
        &[],
    )?;
    let mut parts = Vec::new();
    for row in rows {
        let oid = row.get(1)?.unwrap_or(pg_sys::Oid::INVALID);
        let name = row.text(2)?.unwrap_or_default();
        let identity = row.text(4)?.unwrap_or_default();
        let flaw = match row.text(3)?.as_deref() {
            Some("foreign") => Flaw::Foreign,
            Some("temporary") => Flaw::Temporary,
            Some("unlogged") => Flaw::Unlogged,
            _ => Flaw::Identity(format!("ALTER TABLE {name} REPLICA IDENTITY {identity};")),
        };
        let above = crate::pg::lineage::ancestors(oid).into_iter().map(lineage::level).collect();
        parts.push(Part { name, above, flaw });
    }
    Ok(parts)
}
