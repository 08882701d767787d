//! As pgstream sends it: the change as wal2json's format 2 has it, with ids that survive renames.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::ids::Xid;
use super::rows::Sides;
use super::{RenderContext, json};
use crate::event::value::text::{sql_time, text, unquoted};
use crate::event::{Action, Cell, Column, Event, Kind};

/// Appends the body. Columns whose values are not known are left out.
pub(super) fn render(out: &mut Vec<u8>, event: &Event, level: usize, context: &RenderContext<'_>) {
    let relation = &*event.relation;
    let (name, installation) = (relation.name(level), context.source.installation);
    let is_topmost = level + 1 == relation.names.len();
    let table = Xid::of_table(installation, if is_topmost { relation.root_oid } else { relation.oid });
    let sides = Sides::of(event, context.columns);

    out.extend_from_slice(br#"{"Data":{"action":""#);
    out.push(match event.action {
        Action::Insert => b'I',
        Action::Update => b'U',
        Action::Delete => b'D',
        Action::Truncate => b'T',
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
        Action::Insert | Action::Update => columns(out, table, sides.row()),
        Action::Delete | Action::Truncate => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(br#","identity":"#);
    match event.action {
        Action::Update | Action::Delete => columns(out, table, sides.identity()),
        Action::Insert | Action::Truncate => out.extend_from_slice(b"null"),
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

/// The columns whose values are known; null when none is.
fn columns<'a>(out: &mut Vec<u8>, table: Xid, cells: impl Iterator<Item = (&'a Column, Cell<'a>)>) {
    list(out, cells.filter(|(_, cell)| cell.is_known()), |out, (column, cell)| {
        out.extend_from_slice(br#"{"id":"#);
        column_id(out, table, column);
        out.extend_from_slice(br#","name":"#);
        json::string(out, &column.name);
        out.extend_from_slice(br#","type":"#);
        // As with the search path that databases have by default.
        json::string(out, column.type_name.strip_prefix("public.").unwrap_or(&column.type_name));
        out.extend_from_slice(br#","value":"#);
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
        Kind::Timestamp | Kind::Timestamptz => {
            out.extend_from_slice(sql_time(&String::from_utf8_lossy(json)).as_bytes());
        }
        Kind::Bytea if let Some(bytes) = bytes_of(json) => json::string(out, &STANDARD.encode(bytes)),
        _ => {
            let mut own = Vec::with_capacity(json.len());
            text(&mut own, kind, json);
            json::string(out, &String::from_utf8_lossy(&own));
        }
    }
}

/// The bytes of a `bytea`, whose JSON is hexadecimal digits in `"\\x…"`.
fn bytes_of(json: &[u8]) -> Option<Vec<u8>> {
    let digits = json.strip_prefix(br#""\\x"#)?.strip_suffix(b"\"")?;
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    digits.chunks(2).map(|pair| Some(digit(*pair.first()?)? << 4 | digit(*pair.get(1)?)?)).collect()
}
