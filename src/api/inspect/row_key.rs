//! A row that somebody asks about: its table, and the values of its key.

use std::collections::BTreeMap;

use pgrx::AnyElement;
use pgrx::prelude::*;
use pgrx::spi::quote_identifier;
use serde_json::value::RawValue;

use super::json_eq;
use crate::api::authorization::own_name;
use crate::api::authorization::{sees_everything, with_plain_names};
use crate::api::command_queue::refused;
use crate::api::subscriptions::suggest::near;
use crate::api::subscriptions::tables;
use crate::decode::routing::lineage;
use crate::decode::routing::table_pattern::{ParsedPattern, TablePattern};
use crate::error::Error;
use crate::event::{Cell, Event, Relation, Row, TableName};
use crate::ipc::frame::{Failure, Item};
use crate::journal::FORGOTTEN;
use crate::pg::acl;
use crate::pg::values::encoding;
use crate::pg::values::encoding::{Text, Texts};
use crate::pg::values::jsonb::text_of;

/// A row of a table, which may be there no more.
pub struct AskedRow {
    /// The table by its name, which has no wildcard.
    pub table: TablePattern,
    /// The table's oid, if it is there.
    oid: Option<u32>,
    values: Vec<Value>,
}

struct Value {
    column: String,
    /// The column's number in the table that is there.
    number: Option<i16>,
    json: String,
}

/// A column of the table.
struct Column {
    name: String,
    number: i16,
    is_key: bool,
}

impl AskedRow {
    /// The row that the arguments of `pgwh.why` and `pgwh.forget` mean: all columns of its key or, where the table has
    /// none, any columns.
    pub(crate) fn parse(table_name: Option<Text>, key: Option<AnyElement>) -> Result<AskedRow, Error> {
        let table_name = table_name.ok_or(Error::Missing("table_name"))?;
        let key = key.ok_or(Error::Missing("key"))?;
        let (table, oid) = find(&table_name.0)?;
        let columns = oid.map_or(Ok(Vec::new()), columns_of)?;
        let values = read(&table.to_string(), &columns, &text_of(&key).unwrap_or_default())?;
        Ok(AskedRow { table, oid, values })
    }

    /// Whether the change is one of the table.
    pub fn has_table_of(&self, relation: &Relation) -> bool {
        let by_oid = self.oid.is_some_and(|oid| relation.oid == oid || relation.root_oid == oid);
        by_oid || relation.names.iter().any(|name| self.table.matches(name))
    }

    /// Refuses whom the table's key, by which it is asked, is nothing to know. Of a table that is gone that is everybody but
    /// who sees everything.
    pub fn require_readable(&self) -> Result<(), Error> {
        // SAFETY: reads the state of this process.
        let role = unsafe { pg_sys::GetUserId() };
        let access = self.oid.map(|oid| acl::of(pg_sys::Oid::from(oid), role));
        let numbers = self.values.iter().map(|value| value.number.unwrap_or_default());
        if access.map_or_else(sees_everything, |access| access.covers(numbers)) {
            return Ok(());
        }
        let table = self.table.to_string();
        let cure = format!("GRANT SELECT ON {table} TO {};", quote_identifier(own_name()));
        Err(Error::MayNotRead { why: format!("You may not read {table}."), cure, tables: vec![table] })
    }

    /// Complains of a table that is not there, unless the journal has `seen` changes of it.
    pub fn check_exists(&self, seen: bool) -> Result<(), Error> {
        if self.oid.is_some() || seen {
            return Ok(());
        }
        tables::normalise(&[self.table.to_string()], &[]).map(drop).map_err(|error| error.about("table_name"))
    }

    /// The names by which subscriptions may know the table, as far as can be told without a change of it.
    pub fn names(&self) -> Vec<TableName> {
        if let Some(oid) = self.oid {
            return lineage::of(oid.into()).into_iter().map(|level| level.name).collect();
        }
        let name = self.table.literal();
        name.map(|(schema, table)| TableName { schema: schema.to_owned(), table: table.to_owned() })
            .into_iter()
            .collect()
    }

    /// Whether the change is one of the row: as it was, or as it is from then on.
    pub fn is_changed_by(&self, item: &Item) -> bool {
        match item {
            Item::Change { event, .. } => {
                event.action.is_of_rows()
                    && self.has_table_of(&event.relation)
                    && event.new.iter().chain(&event.old).any(|row| self.is(event, row))
            }
            _ => false,
        }
    }

    /// Whether a change that could not be encoded may be one of the row: of which row it was is not known, and why it
    /// failed may quote a value.
    pub fn may_be_quoted_by(&self, failure: &Failure) -> bool {
        failure.message != FORGOTTEN
            && failure.relation.as_ref().is_some_and(|relation| self.has_table_of(relation))
    }

    /// The table, if it is there.
    pub fn table_oid(&self) -> Option<pg_sys::Oid> {
        self.oid.map(pg_sys::Oid::from)
    }

    /// The values of its key as text.
    pub fn key_texts(&self) -> Vec<String> {
        let text = |json: &str| serde_json::from_str::<String>(json).unwrap_or_else(|_| json.to_owned());
        self.values.iter().map(|value| text(&value.json)).collect()
    }

    fn is(&self, event: &Event, row: &Row) -> bool {
        let relation = &event.relation;
        self.values.iter().all(|value| {
            // Numbers survive renames, but partitions have their own.
            let place = match value.number.filter(|_| self.oid == Some(relation.oid)) {
                Some(number) => relation.columns.iter().position(|column| column.number == number),
                None => relation.columns.iter().position(|column| column.name == value.column),
            };
            match place.and_then(|place| row.cells().nth(place)) {
                Some(Cell::Json(text)) => {
                    std::str::from_utf8(text).is_ok_and(|text| json_eq::same(text, &value.json))
                }
                Some(Cell::Null) => value.json == "null",
                _ => false,
            }
        })
    }
}

/// The table of that name and its oid, if there is one. What is named with its schema may have been dropped.
fn find(name: &str) -> Result<(TablePattern, Option<u32>), Error> {
    let pattern = |stored: &str| {
        TablePattern::parse(stored).map_err(|error| Error::Pattern(stored.to_owned(), error.to_string()))
    };
    let stored = match tables::normalise(&[name.to_owned()], &[]) {
        Ok(stored) => stored.into_iter().next().unwrap_or_default(),
        Err(error @ Error::NoSuchTable { .. }) => match ParsedPattern::parse(name) {
            Ok(ParsedPattern::Qualified(table)) => return Ok((table, None)),
            _ => return Err(error.about("table_name")),
        },
        Err(error) => return Err(error),
    };
    let table = pattern(&stored)?;
    if table.literal().is_none() {
        return Err(refused(
            "a row is in one table",
            format!("The table_name \"{name}\" has a wildcard."),
            "Name the table, for example: 'public.orders'",
        ));
    }
    let oid = Spi::connect(|client| {
        client
            .select(
                "SELECT pg_catalog.to_regclass($1)::pg_catalog.oid",
                Some(1),
                &[encoding::argument(stored)],
            )?
            .first()
            .get_one::<pg_sys::Oid>()
    })?;
    Ok((table, oid.map(pg_sys::Oid::to_u32)))
}

/// The columns of a table, and which of them are its key: of the replica identity's index, or else the primary key's.
fn columns_of(oid: u32) -> Result<Vec<Column>, Error> {
    const QUERY: &str = "
        SELECT a.attname::text, a.attnum, coalesce(a.attnum = ANY (i.key), false)
        FROM pg_attribute a LEFT JOIN LATERAL (
            SELECT (i.indkey::int2[])[0:i.indnkeyatts - 1] AS key FROM pg_index i
            WHERE i.indrelid = a.attrelid AND (i.indisreplident OR i.indisprimary)
            ORDER BY i.indisreplident DESC LIMIT 1) i ON true
        WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";
    with_plain_names(|| {
        let columns = Spi::connect(|client| {
            let mut columns = Vec::new();
            for row in client.select(QUERY, None, &[pg_sys::Oid::from(oid).into()])? {
                columns.push(Column {
                    name: row.text(1)?.unwrap_or_default(),
                    number: row.get(2)?.unwrap_or_default(),
                    is_key: row.get(3)?.unwrap_or_default(),
                });
            }
            Ok::<_, pgrx::spi::Error>(columns)
        })?;
        Ok(columns)
    })
}

/// The values of the key, checked against the columns of the table, if that is there.
fn read(table: &str, columns: &[Column], key: &str) -> Result<Vec<Value>, Error> {
    let has_key = columns.iter().any(|column| column.is_key);
    let wanted: Vec<&Column> = columns.iter().filter(|column| column.is_key || !has_key).collect();
    let names: Vec<&str> = wanted.iter().map(|column| column.name.as_str()).collect();
    let given: BTreeMap<String, Box<RawValue>> = serde_json::from_str(key)
        .ok()
        .filter(|given: &BTreeMap<_, _>| !given.is_empty())
        .ok_or_else(|| {
            refused(
                "a key must be an object of its columns' values",
                format!("The key is {key}."),
                format!("For example: key => '{}'", example(&names)),
            )
        })?;
    if !columns.is_empty() {
        if let Some(wrong) = given.keys().find(|name| !names.contains(&name.as_str())) {
            let near = near(wrong, names.iter().map(|name| (*name).to_owned()));
            let whose = if has_key { format!("The key of {table}") } else { format!("The table {table}") };
            return Err(Error::NoKeyColumn(wrong.clone(), whose, near, example(&names)));
        }
        if let Some(missing) = names.iter().find(|name| has_key && !given.contains_key(**name)) {
            return Err(refused(
                "a key must have all its columns",
                format!("The key of {table} has a column \"{missing}\", which is not in {key}."),
                format!("For example: key => '{}'", example(&names)),
            ));
        }
    }
    let values = given.into_iter().map(|(column, json)| {
        let number = columns.iter().find(|known| known.name == column).map(|known| known.number);
        Value { column, number, json: json.get().to_owned() }
    });
    Ok(values.collect())
}

/// An object with these members.
fn example(names: &[&str]) -> String {
    let names = if names.is_empty() { &["id"] } else { names };
    let members: Vec<String> =
        names.iter().map(|name| format!("{}: ...", serde_json::Value::from(*name))).collect();
    format!("{{{}}}", members.join(", "))
}
