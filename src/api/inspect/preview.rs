//! `pgwh.preview`: the request that would be made, and is not.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use pgrx::{AnyElement, JsonB};
use serde_json::value::RawValue;

use crate::api::authorization::{as_owner, with_plain_names};
use crate::api::command_queue::refused;
use crate::api::lookup::owned;
use crate::api::session;
use crate::api::subscriptions::suggest::near;
use crate::api::subscriptions::tables;
use crate::bgworkers::renderer;
use crate::decode::encode::value::kind_of;
use crate::dispatcher::endpoint_config;
use crate::dispatcher::endpoint_config::Surroundings;
use crate::error::Error;
use crate::event::{
    Action, Cell, Column, Event, Fingerprint, KeyKind, Lsn, Relation, Row, TableName, Transaction,
};
use crate::http::{Endpoint, Job, Prepared, compose};
use crate::ipc::render::{Ask, Shaped};
use crate::pg::process::clock;
use crate::pg::values::encoding;
use crate::pg::values::encoding::{Text, Texts};
use crate::pg::values::jsonb::{storable, text_of};
use crate::{gucs, journal};

/// The values of a row by their columns, as JSON text.
type Values = BTreeMap<String, Box<RawValue>>;

/// The request that a change of such a row would make; none if the transform drops it.
#[pg_extern(sql = false)]
#[allow(clippy::type_complexity)]
fn preview(
    name: Option<Text>,
    record: Option<AnyElement>,
    action: Option<Text>,
    table_name: Option<Text>,
    changes: Option<AnyElement>,
) -> Result<
    TableIterator<
        'static,
        (name!(method, String), name!(url, Text), name!(headers, JsonB), name!(body, String)),
    >,
    ErrorReport,
> {
    // It shows keys and what runs as the owner.
    let id = owned(name)?;
    let action = action_of(action)?;
    let record = values("record", record)?;
    let changes = values("changes", changes)?;
    let table = Table::find(id, table_name, record.as_ref())?;
    let event = table.event(action, record.unwrap_or_default(), changes)?;
    let composed =
        request(id, event)?.map(|job| compose(&job, SystemTime::now()).map_err(Error::from)).transpose()?;
    let rows = composed.map(|composed| {
        let headers = composed.headers.into_iter().map(|(name, value)| (name, value.into())).collect();
        // SQL has it as json, which is stored as text.
        let body = storable(&composed.body);
        (composed.method, composed.url.into(), JsonB(serde_json::Value::Object(headers)), body)
    });
    Ok(TableIterator::new(rows))
}

fn action_of(word: Option<Text>) -> Result<Action, Error> {
    match word.as_ref().map(|word| word.0.as_str()) {
        None | Some("insert") => Ok(Action::Insert),
        Some("update") => Ok(Action::Update),
        Some("delete") => Ok(Action::Delete),
        Some("truncate") => Ok(Action::Truncate),
        Some(other) => Err(refused(
            "unknown action",
            format!("The action is \"{other}\"; there are insert, update, delete and truncate."),
            "For example: action => 'update'",
        )),
    }
}

fn values(what: &str, jsonb: Option<AnyElement>) -> Result<Option<Values>, Error> {
    let Some(jsonb) = jsonb else { return Ok(None) };
    let text = text_of(&jsonb).unwrap_or_default();
    serde_json::from_str(&text).map(Some).map_err(|_| {
        refused(
            "a row must be an object of its columns' values",
            format!("The {what} is {text}."),
            format!("For example: {what} => '{{\"id\": 1}}'"),
        )
    })
}

/// The table whose row it is to be.
struct Table {
    oid: pg_sys::Oid,
    name: TableName,
    columns: Vec<Column>,
}

impl Table {
    /// The table of that name; or else the first of the subscription's that has all of the row's columns.
    fn find(subscription: i64, name: Option<Text>, record: Option<&Values>) -> Result<Table, Error> {
        let patterns = match name {
            Some(name) => {
                tables::normalise(&[name.into()], &[]).map_err(|error| error.about("table_name"))?
            }
            None => patterns_of(subscription)?,
        };
        let found = tables::matching(&patterns)?;
        let single = found.len() == 1;
        for (oid, name) in found {
            let columns = columns_of(oid)?;
            let names = || columns.iter().map(|column| column.name.clone());
            let unknown =
                record.and_then(|record| record.keys().find(|key| !names().any(|name| name == **key)));
            match unknown {
                None => return Ok(Table { oid, name, columns }),
                Some(unknown) if single => {
                    return Err(Error::NoSuchColumn(unknown.clone(), near(unknown, names())));
                }
                Some(_) => {}
            }
        }
        Err(refused(
            "no table has such rows",
            format!("None of {} has all the columns that the record has.", patterns.join(", ")),
            "Name a table, for example: table_name => 'public.orders'",
        ))
    }

    /// The row of these values, some of which were others.
    fn row(&self, values: &Values, others: Option<&Values>) -> Row {
        let cells = self.columns.iter().map(|column| {
            let other = others.and_then(|others| others.get(&column.name));
            match other.or_else(|| values.get(&column.name)).map(|value| value.get()) {
                None => Cell::Absent,
                Some("null") => Cell::Null,
                Some(json) => Cell::Json(json.as_bytes()),
            }
        });
        cells.collect()
    }

    fn event(self, action: Action, record: Values, changes: Option<Values>) -> Result<Event, Error> {
        let now = || self.row(&record, None);
        let (new, old) = match action {
            Action::Insert => (Some(now()), None),
            Action::Update => (Some(now()), changes.map(|changes| self.row(&record, Some(&changes)))),
            Action::Delete => (None, Some(now())),
            _ => (None, None),
        };
        let committed_at = clock::now();
        let transaction = Transaction {
            xid: 0,
            commit_lsn: Lsn(session::wal_insert_end()),
            committed_at,
            fingerprint: Fingerprint::of(0, 0, committed_at),
            origin: None,
        };
        let key = key_kind(self.oid, &self.columns)?;
        let oid = self.oid.to_u32();
        let names = vec![self.name];
        let version = as_owner(|| Ok(journal::schema_versions(Lsn(u64::MAX)).of(&names)))?;
        let relation = Relation { oid, root_oid: oid, names, columns: self.columns, key, version };
        Ok(Event {
            transaction: Arc::new(transaction),
            ordinal: 0,
            lsn: Lsn(session::wal_insert_end()),
            action,
            relation: Arc::new(relation),
            new,
            old,
            annotations: None,
        })
    }
}

fn patterns_of(subscription: i64) -> Result<Vec<String>, Error> {
    let patterns = Spi::connect(|client| {
        client
            .select(
                "SELECT tables FROM pgwh.subscriptions WHERE id OPERATOR(pg_catalog.=) $1",
                Some(1),
                &[subscription.into()],
            )?
            .first()
            .get_one::<Vec<Text>>()
    })?;
    Ok(patterns.map(encoding::strings).unwrap_or_default())
}

/// What the key of a table is that has these columns.
fn key_kind(oid: pg_sys::Oid, columns: &[Column]) -> Result<KeyKind, Error> {
    const QUERY: &str = "SELECT c.relreplident OPERATOR(pg_catalog.=) 'f' FROM pg_catalog.pg_class c
        WHERE c.oid OPERATOR(pg_catalog.=) $1";
    let has_key = columns.iter().any(|column| column.is_key);
    let is_full =
        Spi::connect(|client| client.select(QUERY, Some(1), &[oid.into()])?.first().get_one::<bool>())?
            .unwrap_or_default();
    Ok(if is_full && !has_key { KeyKind::WholeRow } else { KeyKind::Logged })
}

/// The columns of a table; its key is that of the replica identity's index, or else the primary key.
fn columns_of(oid: pg_sys::Oid) -> Result<Vec<Column>, Error> {
    const QUERY: &str = "
        SELECT nameout(a.attname), a.attnum, a.atttypid, format_type(a.atttypid, a.atttypmod), coalesce(a.attnum = ANY (i.key), false)
        FROM pg_attribute a LEFT JOIN LATERAL (
            SELECT (i.indkey::int2[])[0:i.indnkeyatts - 1] AS key FROM pg_index i
            WHERE i.indrelid = a.attrelid AND (i.indisreplident OR i.indisprimary)
            ORDER BY i.indisreplident DESC LIMIT 1) i ON true
        WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";
    with_plain_names(|| {
        Ok(Spi::connect(|client| {
            let mut columns = Vec::new();
            for row in client.select(QUERY, None, &[oid.into()])? {
                let type_oid = row.get::<pg_sys::Oid>(3)?.unwrap_or(pg_sys::TEXTOID);
                columns.push(Column {
                    name: encoding::column(&row, 1)?.unwrap_or_default(),
                    number: row.get(2)?.unwrap_or_default(),
                    type_oid: type_oid.to_u32(),
                    kind: kind_of(type_oid),
                    type_name: row.text(4)?.unwrap_or_default(),
                    is_key: row.get(5)?.unwrap_or_default(),
                    heads: Default::default(),
                });
            }
            Ok::<_, pgrx::spi::Error>(columns)
        })?)
    })
}

/// The request that the event would make; none if there is nothing to send.
fn request(subscription: i64, event: Event) -> Result<Option<Job>, Error> {
    let (row, source) = as_owner(|| {
        let row = journal::subscriptions(&[subscription]).into_iter().next();
        let query = "SELECT id::text FROM pgwh_internal.installation";
        let installation =
            Spi::connect(|client| client.select(query, Some(1), &[])?.first().get_one::<String>())?
                .unwrap_or_default();
        // SAFETY: reads a global of this process.
        Ok((row, endpoint_config::source_of(unsafe { pg_sys::MyDatabaseId }, &installation)))
    })?;
    let unsendable = |problem: String| {
        let detail = format!("{}.", problem.trim_end_matches('.'));
        let hint = "SELECT check_name, detail, hint FROM pgwh.health() WHERE NOT ok; says what to type.";
        refused("nothing can be sent to this subscription", detail, hint)
    };
    let row = row.ok_or_else(|| unsendable("It is gone.".to_owned()))?;
    let endpoint =
        endpoint_config::endpoint_of(&Arc::new(source), &row, &Surroundings::now()).map_err(unsendable)?;
    let mut prepared = None;
    if let Some(functions) = endpoint_config::functions_of(&row) {
        let ask = Ask {
            owner: functions.owner.clone(),
            transform: functions.transform.clone(),
            route: functions.route.clone(),
            limit: gucs::transform_timeout(),
            events: Vec::new(),
        };
        match shaped(&ask, &endpoint.show(&event, 0), &endpoint)? {
            Some(shaped) => prepared = Some(Box::new(shaped)),
            None => return Ok(None),
        }
    }
    let events = vec![(Arc::new(event), 0)];
    Ok(Some(Job { ticket: 0, endpoint: Arc::new(endpoint), events, attempt: 1, replay: None, prepared }))
}

fn shaped(ask: &Ask, event: &[u8], endpoint: &Endpoint) -> Result<Option<Prepared>, Error> {
    match renderer::shape(ask, event) {
        Shaped::Ready { body, route } => {
            let route = route.map(|route| endpoint.route(&route)).transpose()?;
            Ok(Some(Prepared { id: None, bodies: body.map(|body| vec![body]), route, is_fresh: false }))
        }
        Shaped::Dropped => {
            notice!("nothing would be sent: the transform returns NULL");
            Ok(None)
        }
        Shaped::Failed { by, message } => Err(refused(
            format!("the {} fails", by.as_str()),
            format!("{message}."),
            "Functions run read-only, as the subscription's owner and with search_path = pg_catalog: name other \
             schemas, as in public.customers, or create the function with SET search_path.",
        )),
    }
}
