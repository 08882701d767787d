//! As Sequin sends it with "batch messages" enabled; what is around the messages is [`Format::render_batch`]'s.
//!
//! [`Format::render_batch`]: super::Format::render_batch

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::context::RenderContext;
use super::json::List;
use super::rows::{Sides, Value, json_of};
use super::{ids, json};
use crate::event::value::text::{elements, pairs, unquoted};
use crate::event::value::uuid;
use crate::event::{Action, Cell, Column, Event, Kind};

/// Appends one message.
pub(super) fn render(out: &mut Vec<u8>, event: &Event, level: usize, context: &RenderContext<'_>) {
    let sides = Sides::of(event, context.columns);
    out.extend_from_slice(br#"{"record":"#);
    match event.action {
        // A receiver of Sequin's knows nothing but rows: these are told as what they are told as rows of.
        Action::Insert | Action::Update | Action::Ddl | Action::Message | Action::Read => {
            object(out, sides.row());
        }
        // What is not known of a deleted row is null.
        Action::Delete => object(
            out,
            sides.about(event.action).row().map(|(column, cell)| match cell {
                Cell::Absent => (column, Cell::Null),
                _ => (column, cell),
            }),
        ),
        Action::Truncate => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(br#","changes":"#);
    match event.action {
        Action::Update => {
            let are_known = sides.changes(event.action).are_known;
            let changed = sides.values().filter(|value| are_known && Value::changed(value));
            object(out, changed.map(|value| (value.column, value.before)));
        }
        _ => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(br#","action":""#);
    out.extend_from_slice(event.action.word().as_bytes());
    out.extend_from_slice(br#"","metadata":"#);
    metadata(out, event, level, context);
    out.push(b'}');
}

fn metadata(out: &mut Vec<u8>, event: &Event, level: usize, context: &RenderContext<'_>) {
    let (name, source) = (event.relation.name(level), context.source);
    let lsn = event.transaction.commit_lsn.0;
    out.extend_from_slice(br#"{"table_schema":"#);
    json::string(out, &name.schema);
    out.extend_from_slice(br#","table_name":"#);
    json::string(out, &name.table);
    out.extend_from_slice(br#","commit_timestamp":""#);
    event.transaction.committed_at.write_to(out);
    out.extend_from_slice(br#"","commit_lsn":"#);
    json::integer(out, lsn);
    out.extend_from_slice(br#","commit_idx":"#);
    json::integer(out, event.ordinal);
    out.extend_from_slice(br#","idempotency_key":""#);
    position(out, lsn, event.ordinal);
    out.extend_from_slice(br#"","transaction_annotations":"#);
    out.extend_from_slice(event.annotations.as_deref().unwrap_or("null").as_bytes());
    out.extend_from_slice(br#","record_pks":"#);
    primary_key(out, Sides::of(event, context.columns).about(event.action));
    out.extend_from_slice(br#","enrichment":null,"database_name":"#);
    let start = out.len();
    json::string(out, &source.database);
    let database = start..out.len();
    out.extend_from_slice(br#","database":{"id":"#);
    uuid(out, &source.installation.to_be_bytes());
    for member in [r#","name":"#, r#","database":"#] {
        out.extend_from_slice(member.as_bytes());
        out.extend_from_within(database.clone());
    }
    out.extend_from_slice(br#","hostname":"#);
    json::string(out, &source.host);
    out.extend_from_slice(br#"},"consumer":{"id":"#);
    uuid(out, &ids::uuid_of_subscription(source.installation, context.subscription_id));
    out.extend_from_slice(br#","name":"#);
    json::string(out, context.subscription);
    out.extend_from_slice(br#","annotations":{}}}"#);
}

/// Appends `lsn:ordinal` in base64.
fn position(out: &mut Vec<u8>, lsn: u64, ordinal: u64) {
    let start = out.len();
    json::integer(out, lsn);
    out.push(b':');
    json::integer(out, ordinal);
    let (mut plain, mut encoded) = ([0; 41], [0; 56]);
    let text = &out[start..];
    plain[..text.len()].copy_from_slice(text);
    let plain = &plain[..text.len()];
    out.truncate(start);
    // Two numbers of twenty digits and what is between them fit.
    let length = STANDARD.encode_slice(plain, &mut encoded).unwrap_or_default();
    out.extend_from_slice(&encoded[..length]);
}

/// An object of the columns whose values are known.
fn object<'a>(out: &mut Vec<u8>, cells: impl Iterator<Item = (&'a Column, Cell<'a>)>) {
    let mut object = List::object(out);
    for (column, cell) in cells {
        if let Some(json) = json_of(cell) {
            object.column(out, column.member_head());
            value(out, &column.kind, json);
        }
    }
    object.end(out);
}

/// A list of the key's values as texts; empty when one is not known.
fn primary_key(out: &mut Vec<u8>, sides: Sides<'_>) {
    let start = out.len();
    let mut list = List::array(out);
    for (column, cell) in sides.row().filter(|(column, _)| column.is_key) {
        let Some(json) = json_of(cell) else {
            out.truncate(start + 1);
            break;
        };
        list.separate(out);
        let (first, kind) = (json.first(), &column.kind);
        match is_as_it_is(kind) {
            true if first == Some(&b'"') => out.extend_from_slice(json),
            true => json::string_of(out, json),
            false => {
                let mut one = Vec::new();
                value(&mut one, kind, json);
                json::string(out, &unquoted(&one));
            }
        }
    }
    list.end(out);
}

/// Values are JSON as they are, but that a `numeric` is a string and that UTC is `Z`.
fn value(out: &mut Vec<u8>, kind: &Kind, json: &[u8]) {
    match kind {
        _ if is_as_it_is(kind) || json == b"null" => out.extend_from_slice(json),
        Kind::Numeric if json.first() != Some(&b'"') => {
            out.push(b'"');
            out.extend_from_slice(json);
            out.push(b'"');
        }
        Kind::Timestamptz if let Some(local) = json.strip_suffix(b"+00:00\"") => {
            out.extend_from_slice(local);
            out.extend_from_slice(b"Z\"");
        }
        // Of an array that has more dimensions, the inner arrays are as the whole.
        Kind::Array { element, .. } if let Some(elements) = elements(json) => {
            let mut list = List::array(out);
            for one in elements {
                let is_inner = one.get().starts_with('[') && !matches!(**element, Kind::Array { .. });
                list.separate(out);
                value(out, if is_inner { kind } else { element }, one.get().as_bytes());
            }
            list.end(out);
        }
        Kind::Composite(fields) if let Some(pairs) = pairs(json) => {
            let mut object = List::object(out);
            for (name, one) in pairs {
                object.name(out, &name);
                value(out, Kind::field(fields, &name), one.get().as_bytes());
            }
            object.end(out);
        }
        _ => out.extend_from_slice(json),
    }
}

/// Whether nothing within values of this kind looks otherwise here.
fn is_as_it_is(kind: &Kind) -> bool {
    match kind {
        Kind::Numeric | Kind::Timestamptz => false,
        Kind::Array { element, .. } => is_as_it_is(element),
        Kind::Composite(fields) => fields.iter().all(|(_, kind)| is_as_it_is(kind)),
        _ => true,
    }
}
