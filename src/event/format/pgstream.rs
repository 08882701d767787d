//! As pgstream sends it: the change as wal2json's format 2 has it, with ids that survive renames.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::context::RenderContext;
use super::ids::Xid;
use super::json;
use super::json::List;
use super::rows::Sides;
use crate::event::value::text::{sql_time, text, unquoted};
use crate::event::{Action, Cell, Column, Event, Kind, SchemaChange};

/// Appends the body. Columns whose values are not known are left out.
pub(super) fn render(out: &mut Vec<u8>, event: &Event, level: usize, context: &RenderContext<'_>) {
    if let Some(message) = event.message() {
        return told(out, event, message.kind, &String::from_utf8_lossy(message.payload));
    }
    if let Some(change) = event.schema_change() {
        let name = event.relation.name(level);
        let content = schema_change(&change, &name.schema, context.source.installation);
        return told(out, event, br#""pgstream.ddl""#, &content);
    }
    let relation = &*event.relation;
    let (name, installation) = (relation.name(level), context.source.installation);
    let is_topmost = level + 1 == relation.names.len();
    let table = Xid::of_table(installation, if is_topmost { relation.root_oid } else { relation.oid });
    let sides = Sides::of(event, context.columns);

    out.extend_from_slice(br#"{"Data":{"action":""#);
    out.push(match event.action {
        // Rows of its snapshots come as inserts.
        Action::Insert | Action::Read => b'I',
        Action::Update => b'U',
        Action::Delete => b'D',
        Action::Truncate => b'T',
        Action::Ddl | Action::Message => b'M',
    });
    out.extend_from_slice(br#"","timestamp":""#);
    event.transaction.committed_at.write_sql(out);
    out.extend_from_slice(br#"","lsn":""#);
    event.lsn.write_to(out);
    out.extend_from_slice(br#"","schema":"#);
    json::string(out, &name.schema);
    out.extend_from_slice(br#","table":"#);
    json::string(out, &name.table);
    out.extend_from_slice(br#","columns":"#);
    match event.action {
        Action::Insert | Action::Update | Action::Read => columns(out, table, sides.row()),
        _ => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(br#","identity":"#);
    match event.action {
        Action::Update | Action::Delete => columns(out, table, sides.identity()),
        _ => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(br#","metadata":{"schema_id":""#);
    out.extend_from_slice(Xid::of_version(installation, relation.version).as_bytes());
    out.extend_from_slice(br#"","table_pgstream_id":""#);
    out.extend_from_slice(table.as_bytes());
    out.extend_from_slice(br#"","id_col_pgstream_id":"#);
    list(out, relation.columns.iter().filter(|column| column.is_key), |out, column| {
        column_id(out, table, column);
    });
    out.extend_from_slice(br#","version_col_pgstream_id":""}}}"#);
}

/// What is no change of a row: a message, and a schema change, which pgstream has as a message of its own.
fn told(out: &mut Vec<u8>, event: &Event, prefix: &[u8], content: &str) {
    out.extend_from_slice(br#"{"Data":{"action":"M","timestamp":""#);
    event.transaction.committed_at.write_sql(out);
    out.extend_from_slice(br#"","lsn":""#);
    event.lsn.write_to(out);
    out.extend_from_slice(
        br#"","schema":"","table":"","columns":null,"identity":null,"metadata":{"schema_id":null,"#,
    );
    out.extend_from_slice(
        br#""table_pgstream_id":"","id_col_pgstream_id":null,"version_col_pgstream_id":""},"prefix":"#,
    );
    out.extend_from_slice(prefix);
    out.extend_from_slice(br#","content":"#);
    json::string(out, content);
    out.extend_from_slice(b"}}");
}

/// Something that a command created, altered or dropped.
#[derive(Deserialize)]
struct Object<'a> {
    #[serde(borrow, rename = "type")]
    kind: &'a RawValue,
    #[serde(borrow)]
    identity: &'a RawValue,
    #[serde(borrow)]
    schema: &'a RawValue,
    oid: u32,
    #[serde(borrow)]
    columns: Option<&'a RawValue>,
    #[serde(borrow)]
    primary_key_columns: Option<&'a RawValue>,
}

/// The content of the message that tells of a schema change.
fn schema_change(change: &SchemaChange<'_>, schema: &str, installation: u128) -> String {
    let mut out = br#"{"ddl":"#.to_vec();
    out.extend_from_slice(change.command);
    out.extend_from_slice(br#","schema_name":"#);
    json::string(&mut out, schema);
    out.extend_from_slice(br#","command_tag":"#);
    out.extend_from_slice(change.command_tag);
    out.extend_from_slice(br#","objects":"#);
    // What is not as the decoder writes it has no objects.
    let objects: Vec<Object<'_>> = serde_json::from_slice(change.objects).unwrap_or_default();
    let mut list = List::array(&mut out);
    for object in objects {
        list.separate(&mut out);
        write_object(&mut out, &object, installation);
    }
    list.end(&mut out);
    out.push(b'}');
    String::from_utf8_lossy(&out).into_owned()
}

fn write_object(out: &mut Vec<u8>, object: &Object<'_>, installation: u128) {
    for (name, value) in
        [(r#"{"type":"#, object.kind), (r#","identity":"#, object.identity), (r#","schema":"#, object.schema)]
    {
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(value.get().as_bytes());
    }
    out.extend_from_slice(br#","oid":"#);
    json::integer(out, object.oid.into());
    out.extend_from_slice(br#","pgstream_id":"#);
    if matches!(object.kind.get(), r#""table""# | r#""table column""#) {
        json::string(out, &String::from_utf8_lossy(Xid::of_table(installation, object.oid).as_bytes()));
    } else {
        out.extend_from_slice(b"null");
    }
    if let Some(columns) = object.columns {
        out.extend_from_slice(br#","columns":"#);
        out.extend_from_slice(columns.get().as_bytes());
        out.extend_from_slice(br#","primary_key_columns":"#);
        out.extend_from_slice(object.primary_key_columns.map_or("null", RawValue::get).as_bytes());
    }
    out.push(b'}');
}

/// The columns whose values are known; null when none is.
fn columns<'a>(out: &mut Vec<u8>, table: Xid, cells: impl Iterator<Item = (&'a Column, Cell<'a>)>) {
    let mut open = *br#"{"id":"....................-"#;
    open[7..27].copy_from_slice(table.as_bytes());
    list(out, cells.filter(|(_, cell)| cell.is_known()), |out, (column, cell)| {
        out.extend_from_slice(&open);
        out.extend_from_slice(column.pgstream_head());
        match cell {
            Cell::Json(json) => value(out, &column.kind, json),
            _ => out.extend_from_slice(b"null"),
        }
        out.push(b'}');
    });
}

/// A list of what there is; null when there is nothing.
fn list<T>(out: &mut Vec<u8>, items: impl Iterator<Item = T>, mut write: impl FnMut(&mut Vec<u8>, T)) {
    let mut separator = b'[';
    for item in items {
        out.push(std::mem::replace(&mut separator, b','));
        write(out, item);
    }
    out.extend_from_slice(if separator == b'[' { b"null" } else { b"]" });
}

fn column_id(out: &mut Vec<u8>, table: Xid, column: &Column) {
    out.push(b'"');
    out.extend_from_slice(table.as_bytes());
    out.push(b'-');
    // An attribute's number is positive.
    json::integer(out, column.number.unsigned_abs().into());
    out.push(b'"');
}

/// Numbers and booleans as they are, `bytea` in base64, everything else as the text of its type.
fn value(out: &mut Vec<u8>, kind: &Kind, json: &[u8]) {
    let is_string = json.first() == Some(&b'"');
    match kind {
        // Not a number, or infinite.
        Kind::Number | Kind::Numeric if is_string => out.extend_from_slice(b"null"),
        Kind::Boolean | Kind::Number | Kind::Numeric => out.extend_from_slice(json),
        Kind::Oid => out.extend_from_slice(unquoted(json).as_bytes()),
        Kind::Text if is_string => out.extend_from_slice(json),
        Kind::Timestamp | Kind::Timestamptz => sql_time(out, json),
        Kind::Json => json::string_of(out, json),
        Kind::Bytea if let Some(bytes) = bytes_of(json) => json::string(out, &STANDARD.encode(bytes)),
        _ => {
            let mut own = Vec::with_capacity(json.len());
            text(&mut own, kind, json);
            json::string_of(out, &own);
        }
    }
}

/// The bytes of a `bytea`, whose JSON is hexadecimal digits in `"\\x…"`.
fn bytes_of(json: &[u8]) -> Option<Vec<u8>> {
    let digits = json.strip_prefix(br#""\\x"#)?.strip_suffix(b"\"")?;
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    digits.chunks(2).map(|pair| Some(digit(*pair.first()?)? << 4 | digit(*pair.get(1)?)?)).collect()
}
