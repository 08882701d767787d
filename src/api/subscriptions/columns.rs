//! Which columns a subscription names: each must be one of a table that it may get changes of.

use pgrx::prelude::*;

use super::suggest::near;
use super::tables::tables_of;
use crate::error::Error;
use crate::pg::values::encoding;

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
    let matching: Vec<pg_sys::Oid> = tables_of(tables)?.into_iter().map(|(table, _)| table).collect();
    Ok(Spi::connect(|client| {
        let found = client.select(
            "SELECT pg_catalog.nameout(attname) FROM pg_catalog.pg_attribute
             WHERE attrelid OPERATOR(pg_catalog.=) ANY ($1) AND attnum OPERATOR(pg_catalog.>) 0 AND NOT attisdropped",
            None,
            &[matching.into()],
        )?;
        let mut columns = Vec::new();
        for row in found {
            columns.extend(encoding::column(&row, 1)?);
        }
        columns.sort();
        columns.dedup();
        Ok::<_, pgrx::spi::Error>(columns)
    })?)
}
