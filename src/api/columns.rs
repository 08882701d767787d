//! Which columns a subscription names: each must be one of a table that it may get changes of.

use pgrx::prelude::*;

use super::near::near;
use crate::decode::pattern::TablePattern;
use crate::decode::text;
use crate::error::Error;
use crate::event::TableName;

/// Checks names of columns, spelled as they are, of tables given by patterns in their stored form.
///
/// A name in `known` was accepted before and need not exist any more, so that a dropped column doesn't stand in the way
/// of changing something else.
pub fn check<'a>(
    names: impl Iterator<Item = &'a String>,
    tables: &[String],
    known: &[String],
) -> Result<(), Error> {
    let new: Vec<&String> = names.filter(|name| !known.contains(name)).collect();
    if new.is_empty() {
        return Ok(());
    }
    let columns = columns_of(tables)?;
    match new.into_iter().find(|name| !columns.contains(name)) {
        Some(unknown) => Err(Error::NoSuchColumn(unknown.clone(), near(unknown, columns))),
        None => Ok(()),
    }
}

/// The names of all columns of the tables that the patterns match today.
fn columns_of(tables: &[String]) -> Result<Vec<String>, Error> {
    let matching: Vec<pg_sys::Oid> = tables_of(tables)?.into_iter().map(|(oid, _)| oid).collect();
    Ok(Spi::connect(|client| {
        let found = client.select(
            "SELECT pg_catalog.nameout(attname) FROM pg_catalog.pg_attribute
             WHERE attrelid OPERATOR(pg_catalog.=) ANY ($1) AND attnum OPERATOR(pg_catalog.>) 0 AND NOT attisdropped",
            None,
            &[matching.into()],
        )?;
        let mut columns = Vec::new();
        for row in found {
            columns.extend(text::column(&row, 1)?);
        }
        columns.sort();
        columns.dedup();
        Ok::<_, pgrx::spi::Error>(columns)
    })?)
}

/// The tables that the patterns, in their stored form, match today, in order of their names.
pub fn tables_of(tables: &[String]) -> Result<Vec<(pg_sys::Oid, TableName)>, Error> {
    let patterns: Vec<TablePattern> =
        tables.iter().filter_map(|stored| TablePattern::parse(stored).ok()).collect();
    Ok(Spi::connect(|client| {
        let all = client.select(
            "SELECT c.oid, pg_catalog.nameout(n.nspname), pg_catalog.nameout(c.relname)
             FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
             WHERE c.relkind OPERATOR(pg_catalog.=) ANY ('{r,p}') AND c.relpersistence OPERATOR(pg_catalog.=) 'p'
               AND n.nspname OPERATOR(pg_catalog.<>) ALL ('{pgwh,pg_catalog,information_schema,pg_toast}')
             ORDER BY n.nspname, c.relname",
            None,
            &[],
        )?;
        let mut matching = Vec::new();
        for row in all {
            let (Some(oid), Some(schema), Some(table)) =
                (row.get::<pg_sys::Oid>(1)?, text::column(&row, 2)?, text::column(&row, 3)?)
            else {
                continue;
            };
            let name = TableName { schema, table };
            if patterns.iter().any(|pattern| pattern.matches(&name)) {
                matching.push((oid, name));
            }
        }
        Ok::<_, pgrx::spi::Error>(matching)
    })?)
}
