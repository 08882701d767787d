//! Which tables a subscription means: patterns are brought into their stored spelling, and a name without wildcard
//! must be a table whose changes are in write-ahead log.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use pgrx::prelude::*;

use super::suggest::near;
use crate::api::authorization::as_owner;
use crate::decode::citus;
use crate::decode::routing::table_pattern::{NamePattern, ParsedPattern, TablePattern, array_literal};
use crate::error::{Error, UNLOGGED};
use crate::event::TableName;
use crate::pg::command::command_cache::Found;
use crate::pg::compat;
use crate::pg::lineage;
use crate::pg::values::encoding;

/// Schemas to whose tables no wildcard leads.
const SYSTEM_SCHEMAS: [&str; 3] = ["pg_catalog", "information_schema", "pg_toast"];

/// How many names are looked at for a HINT; more tables than that are not worth the time.
const MOST_CANDIDATES: i64 = 20_000;

thread_local! {
    /// The tables that can be subscribed to.
    static TABLES: RefCell<Found<(), Tables>> = RefCell::default();
}

type Tables = Arc<[(pg_sys::Oid, TableName)]>;

/// Brings patterns into their stored form: qualified, sorted, each once.
///
/// A name in `known` was accepted before and need not exist any more, so that a dropped table doesn't stand in the way
/// of changing something else.
pub fn normalise(typed: &[String], known: &[String]) -> Result<Vec<String>, Error> {
    let mut patterns = Vec::with_capacity(typed.len());
    for text in typed {
        let parsed =
            ParsedPattern::parse(text).map_err(|error| Error::Pattern(text.clone(), error.to_string()))?;
        let pattern = match parsed {
            ParsedPattern::Qualified(pattern) => pattern.to_string(),
            ParsedPattern::Bare(name) if text.trim() == "*" => format!("{name}.{name}"),
            ParsedPattern::Bare(name) => match name.literal() {
                Some(name) => in_search_path(name)?,
                None => {
                    let why = format!(
                        "there is a wildcard but no schema, as there is in 'public.{name}' or '*.{name}'"
                    );
                    return Err(Error::Pattern(text.clone(), why));
                }
            },
        };
        if !known.contains(&pattern) {
            check(&pattern)?;
        }
        patterns.push(pattern);
    }
    patterns.sort();
    patterns.dedup();
    Ok(patterns)
}

fn no_such_table(table: String, near: Vec<String>) -> Error {
    Error::NoSuchTable { argument: "tables", table, near }
}

/// Refuses a name that has a schema or a wildcard in it, unless the search path, or the schema, has a table of just that name.
pub fn require_plain(schema: Option<&str>, table: &str) -> Result<(), Error> {
    let is_there = match schema {
        Some(schema) => find(schema, table) != pg_sys::InvalidOid,
        None => {
            let table = encoding::in_server_encoding(table);
            // SAFETY: a look-up in a transaction; the name is terminated.
            unsafe { pg_sys::RelnameGetRelid(table.as_ptr()) != pg_sys::InvalidOid }
        }
    };
    let meant = match ParsedPattern::parse(table) {
        Ok(ParsedPattern::Qualified(meant)) if !is_there => meant,
        Ok(ParsedPattern::Bare(name)) if !is_there && name.literal().is_none() => {
            TablePattern { schema: NamePattern::exactly(schema.unwrap_or("public")), table: name }
        }
        _ => return Ok(()),
    };
    let quoted = |name: &str| format!("'{}'", name.replace('\'', "''"));
    let list = format!("tables => {}", array_literal(&[meant.to_string()]));
    let instead = match meant.literal() {
        Some((schema, table)) => {
            format!("schema => {}, table_name => {}; or {list}", quoted(schema), quoted(table))
        }
        None => list,
    };
    Err(Error::WholeName(table.to_owned(), instead))
}

/// The stored form of exactly one table.
pub fn of_table(schema: &str, table: &str) -> String {
    let (schema, table) = (NamePattern::exactly(schema), NamePattern::exactly(table));
    TablePattern { schema, table }.to_string()
}

/// The stored form of all tables of a schema.
pub fn of_schema(schema: &str) -> String {
    format!("{}.*", NamePattern::exactly(schema))
}

/// The tables that hold rows and that the patterns (in stored form) match today, partitions for a partitioned table; and
/// whether a pattern without wildcard leads to each.
pub fn tables_of(stored: &[String]) -> Result<Vec<(pg_sys::Oid, bool)>, Error> {
    let patterns: Vec<TablePattern> =
        stored.iter().filter_map(|stored| TablePattern::parse(stored).ok()).collect();
    let (named, wild): (Vec<_>, Vec<_>) = patterns.iter().partition(|pattern| pattern.literal().is_some());
    let mut roots: Vec<(pg_sys::Oid, bool)> = named
        .iter()
        .filter_map(|pattern| pattern.literal())
        .map(|(schema, table)| (find(schema, table), true))
        .filter(|(oid, _)| *oid != pg_sys::InvalidOid)
        .collect();
    if !wild.is_empty() {
        let matching = all_tables(None)?.into_iter();
        let matching = matching.filter(|(_, name)| wild.iter().any(|pattern| pattern.matches(name)));
        roots.extend(matching.filter(|(oid, _)| lineage::is_user_table(*oid)).map(|(oid, _)| (oid, false)));
    }
    let mut tables: BTreeMap<u32, bool> = BTreeMap::new();
    for (root, is_named) in roots {
        for table in with_rows(root) {
            *tables.entry(table.to_u32()).or_default() |= is_named;
        }
    }
    Ok(tables.into_iter().map(|(table, is_named)| (table.into(), is_named)).collect())
}

/// Of the table, its partitions and its children by INHERITS those that hold rows and whose changes are in the log. None of
/// them is locked, nor waited for.
pub fn with_rows(table: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    // SAFETY: syscache look-ups in a transaction.
    let state =
        |table| unsafe { (pg_sys::get_rel_relkind(table) as u8, pg_sys::get_rel_persistence(table) as u8) };
    if !matches!(state(table).0, b'r' | b'p') {
        return Vec::new();
    }
    // SAFETY: in a transaction.
    let mut parts = unsafe { compat::partition_tree(table) };
    parts.retain(|part| state(*part) == (b'r', b'p'));
    parts
}

/// The tables, partitioned ones too, to which the patterns (in stored form) lead today, in order of their names.
pub fn matching(stored: &[String]) -> Result<Vec<(pg_sys::Oid, TableName)>, Error> {
    let patterns: Vec<TablePattern> =
        stored.iter().filter_map(|stored| TablePattern::parse(stored).ok()).collect();
    let mut tables = all_tables(None)?;
    tables.retain(|(oid, name)| {
        let mut matching = patterns.iter().filter(|pattern| pattern.matches(name)).peekable();
        matching.peek().is_some()
            && (matching.any(|pattern| pattern.literal().is_some()) || lineage::is_user_table(*oid))
    });
    tables.sort_by(|(_, a), (_, b)| (&a.schema, &a.table).cmp(&(&b.schema, &b.table)));
    Ok(tables)
}

/// A pattern with a wildcard that no table matches today.
pub struct Unmatched {
    /// In its stored form.
    pub pattern: String,
    /// Which part of it nothing matches, as a sentence.
    pub why: String,
    /// The pattern that may have been meant.
    pub near: Option<String>,
}

/// Which of the patterns (in stored form) have a wildcard and no table that matches. `*.*` is no mistake in a database
/// without tables.
pub fn unmatched(stored: &[String]) -> Result<Vec<Unmatched>, Error> {
    let wild = stored.iter().filter_map(|stored| TablePattern::parse(stored).ok());
    let wild: Vec<TablePattern> =
        wild.filter(|pattern| pattern.literal().is_none() && pattern.to_string() != "*.*").collect();
    if wild.is_empty() {
        return Ok(Vec::new());
    }
    let tables = match TABLES.with_borrow(|tables| tables.get(&())) {
        Some(tables) => tables,
        None => {
            let tables: Tables = all_tables(None)?.into();
            TABLES.with_borrow_mut(|known| known.add((), Arc::clone(&tables)));
            tables
        }
    };
    let leads_to_one = |pattern: &TablePattern| {
        tables.iter().any(|(oid, name)| pattern.matches(name) && lineage::is_user_table(*oid))
    };
    Ok(wild
        .iter()
        .filter(|pattern| !leads_to_one(pattern))
        .map(|pattern| why_unmatched(pattern, &tables))
        .collect())
}

fn why_unmatched(pattern: &TablePattern, tables: &[(pg_sys::Oid, TableName)]) -> Unmatched {
    let matches = |pattern: &TablePattern| tables.iter().any(|(_, name)| pattern.matches(name));
    let has_schema = |name: &str| namespace(name) != pg_sys::InvalidOid;
    let (why, near) = match pattern.schema.literal().filter(|schema| !has_schema(schema)) {
        Some(schema) => {
            let mut schemas: Vec<String> = tables.iter().map(|(_, name)| name.schema.clone()).collect();
            schemas.sort();
            schemas.dedup();
            let alike = near(schema, schemas).into_iter();
            let instead = alike.map(|schema| TablePattern {
                schema: NamePattern::exactly(&schema),
                table: pattern.table.clone(),
            });
            let meant = instead.filter(matches).map(|pattern| pattern.to_string()).next();
            (format!("There is no schema {}.", pattern.schema), meant)
        }
        None => {
            let inside: Vec<&TableName> = tables
                .iter()
                .map(|(_, name)| name)
                .filter(|name| pattern.schema.matches(&name.schema))
                .collect();
            let wanted = pattern.table.to_string().replace('*', "");
            let alike = match wanted.is_empty() {
                true => Vec::new(),
                false => near(&wanted, inside.iter().map(|name| name.table.clone())),
            };
            let meant = alike.first().and_then(|table| inside.iter().find(|name| name.table == *table));
            let meant = meant.map(|name| of_table(&name.schema, &name.table));
            (
                format!("No table of this database whose changes are in the log has a name like {pattern}."),
                meant,
            )
        }
    };
    Unmatched { pattern: pattern.to_string(), why, near }
}

/// The tables that can be subscribed to; no more than `most`, if that is given.
fn all_tables(most: Option<i64>) -> Result<Vec<(pg_sys::Oid, TableName)>, Error> {
    Ok(Spi::connect(|client| {
        let rows = client.select(
            "SELECT c.oid, pg_catalog.nameout(n.nspname), pg_catalog.nameout(c.relname)
             FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
             WHERE c.relkind OPERATOR(pg_catalog.=) ANY ('{r,p}') AND c.relpersistence OPERATOR(pg_catalog.=) 'p'
               AND c.oid OPERATOR(pg_catalog.>=) 16384::pg_catalog.oid AND n.nspname OPERATOR(pg_catalog.<>) ALL ('{pgwh,pgwh_internal}')
             LIMIT $1",
            None,
            &[most.into()],
        )?;
        let mut tables = Vec::new();
        for row in rows {
            if let (Some(oid), Some(schema), Some(table)) =
                (row.get(1)?, encoding::column(&row, 2)?, encoding::column(&row, 3)?)
            {
                tables.push((oid, TableName { schema, table }));
            }
        }
        Ok::<_, pgrx::spi::Error>(tables)
    })?)
}

/// Checks that a pattern in stored form may be subscribed to now.
pub fn check(stored: &str) -> Result<(), Error> {
    let pattern =
        TablePattern::parse(stored).map_err(|error| Error::Pattern(stored.to_owned(), error.to_string()))?;
    match pattern.schema.literal() {
        Some("pgwh" | "pgwh_internal") => {
            return Err(Error::NotATable(stored.to_owned(), "a table of pgstream_hooks itself"));
        }
        Some(schema) if SYSTEM_SCHEMAS.contains(&schema) && pattern.literal().is_none() => {
            return Err(Error::NotATable(stored.to_owned(), "a system catalog"));
        }
        _ => {}
    }
    match pattern.literal() {
        Some((schema, table)) => check_table(stored, find(schema, table)),
        None => check_nodes(&pattern),
    }
}

/// The most tables that a HINT names.
const MAX_NAMED: usize = 10;

/// Refuses a wildcard that leads to tables whose rows are on other nodes: of them nothing would be sent.
fn check_nodes(pattern: &TablePattern) -> Result<(), Error> {
    let elsewhere = as_owner(|| Ok(citus::tables()?))?;
    let leads_to =
        |oid: &pg_sys::Oid| pattern.leads_to(&lineage::name_of(*oid), lineage::is_user_table(*oid));
    let Some(first) = elsewhere.iter().copied().find(leads_to) else { return Ok(()) };
    let mut others = matching(&[pattern.to_string()])?;
    others.retain(|(oid, _)| !elsewhere.contains(oid));
    let others = others.iter().take(MAX_NAMED).map(|(_, name)| of_table(&name.schema, &name.table));
    let TableName { schema, table } = lineage::name_of(first);
    Err(Error::OnOtherNodes(of_table(&schema, &table), others.collect()))
}

/// The stored form of a name that the search path leads to.
fn in_search_path(name: &str) -> Result<String, Error> {
    let spelled = pgrx::spi::quote_identifier(name);
    let c_name = encoding::in_server_encoding(name);
    // SAFETY: look-ups in a transaction; the name is terminated. `get_namespace_name` returns a copy or null.
    let schema = unsafe {
        let oid = pg_sys::RelnameGetRelid(c_name.as_ptr());
        if oid == pg_sys::InvalidOid {
            return Err(no_such_table(spelled, near_tables(name)?));
        }
        // Before the schema is named: that of a temporary table says nothing to anybody.
        check_table(&spelled, oid)?;
        let schema = pg_sys::get_namespace_name(pg_sys::get_rel_namespace(oid));
        if schema.is_null() {
            return Err(no_such_table(spelled, Vec::new()));
        }
        encoding::utf8(std::ffi::CStr::from_ptr(schema).to_bytes()).into_owned()
    };
    Ok(of_table(&schema, name))
}

/// Whether wildcards lead to a table of that name, as far as that is known: one that is gone may have been a user's.
pub fn is_user_table(name: &TableName) -> bool {
    let table = find(&name.schema, &name.table);
    table == pg_sys::InvalidOid || lineage::is_user_table(table)
}

/// Whether a pattern in stored form has a wildcard for tables of a schema that does not exist.
pub fn is_in_missing_schema(stored: &str) -> bool {
    let Ok(pattern) = TablePattern::parse(stored) else { return false };
    pattern.schema.literal().is_some_and(|schema| namespace(schema) == pg_sys::InvalidOid)
}

/// The relation of that name, or the invalid oid.
fn find(schema: &str, table: &str) -> pg_sys::Oid {
    let table = encoding::in_server_encoding(table);
    match namespace(schema) {
        pg_sys::InvalidOid => pg_sys::InvalidOid,
        // SAFETY: a syscache look-up in a transaction; the name is terminated.
        namespace => unsafe { pg_sys::get_relname_relid(table.as_ptr(), namespace) },
    }
}

/// The schema of that name, or the invalid oid.
fn namespace(schema: &str) -> pg_sys::Oid {
    let schema = encoding::in_server_encoding(schema);
    // SAFETY: a syscache look-up in a transaction; the name is terminated.
    unsafe { pg_sys::get_namespace_oid(schema.as_ptr(), true) }
}

/// As publications judge it (`is_publishable_class` in `pg_publication.c`), in words.
fn check_table(name: &str, oid: pg_sys::Oid) -> Result<(), Error> {
    if oid == pg_sys::InvalidOid {
        return Err(no_such_table(name.to_owned(), near_tables(name)?));
    }
    // SAFETY: syscache look-ups in a transaction; a relation that has gone meanwhile yields zeros.
    let (kind, persistence) =
        unsafe { (pg_sys::get_rel_relkind(oid) as u8, pg_sys::get_rel_persistence(oid) as u8) };
    let what = match (kind, persistence) {
        (b'r' | b'p', b'p') if oid.to_u32() < pg_sys::FirstNormalObjectId => "a system catalog",
        (b'r' | b'p', b'p') if as_owner(|| Ok(citus::has(oid)?))? => {
            return Err(Error::OnOtherNodes(name.to_owned(), Vec::new()));
        }
        (b'r' | b'p', b'p') => return Ok(()),
        (b'r' | b'p', b't') => "a temporary table",
        (b'r' | b'p', b'u') => UNLOGGED,
        (b'v', _) => "a view",
        (b'm', _) => "a materialized view",
        (b'f', _) => "a foreign table",
        (b'S', _) => "a sequence",
        (b'i' | b'I', _) => "an index",
        (b'c', _) => "a composite type",
        _ => "no table",
    };
    Err(Error::NotATable(name.to_owned(), what))
}

/// Tables that could be subscribed to and whose name, with or without the schema, looks like this one.
fn near_tables(name: &str) -> Result<Vec<String>, Error> {
    let table = name.rsplit('.').next().unwrap_or(name).trim_matches('"');
    let names = all_tables(Some(MOST_CANDIDATES))?;
    let alike = near(table, names.iter().map(|(_, name)| name.table.clone()));
    let mut found: Vec<(usize, String)> = names
        .iter()
        .filter_map(|(_, name)| {
            let rank = alike.iter().position(|alike| *alike == name.table)?;
            Some((rank, of_table(&name.schema, &name.table)))
        })
        .collect();
    found.sort();
    found.truncate(alike.len());
    Ok(found.into_iter().map(|(_, table)| table).collect())
}
