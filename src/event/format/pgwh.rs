//! The default format: a Standard Webhooks body with the event as its `data`.

use super::context::{RenderContext, Shown};
use super::json;
use super::json::List;
use super::rows::{Sides, Value, json_of, object};
use crate::event::{Action, Cell, Column, Event, Origin, SchemaChange};

/// Appends the body. For all changes of rows it has the same members, in the same order.
pub(super) fn render(out: &mut Vec<u8>, event: &Event, level: usize, context: &RenderContext<'_>) {
    let name = event.relation.name(level);
    out.extend_from_slice(br#"{"type":"#);
    match event.message() {
        Some(message) => out.extend_from_slice(message.kind),
        None => kind(out, [&name.schema, &name.table, event.action.word()]),
    }
    out.extend_from_slice(br#","timestamp":""#);
    event.transaction.committed_at.write_to(out);
    out.extend_from_slice(br#"","data":"#);
    data(out, event, level, context);
    out.push(b'}');
}

/// Appends what the body has as `data`.
pub(super) fn data(out: &mut Vec<u8>, event: &Event, level: usize, context: &RenderContext<'_>) {
    let name = event.relation.name(level);
    out.extend_from_slice(br#"{"id":""#);
    event.id().write_to(out);
    out.extend_from_slice(br#"","action":""#);
    out.extend_from_slice(event.action.word().as_bytes());
    out.extend_from_slice(br#"","schema":"#);
    string_or_null(out, &name.schema);
    out.extend_from_slice(br#","table":"#);
    string_or_null(out, &name.table);
    if let Some(message) = event.message() {
        members(out, [("key", message.key), ("prefix", message.prefix), ("payload", message.payload)]);
        omitted(out, event.omitted_members());
    } else if let Some(change) = event.schema_change() {
        let SchemaChange { command_tag, command, objects } = change;
        members(out, [("command_tag", command_tag), ("command", command), ("objects", objects)]);
        omitted(out, event.omitted_members());
    } else {
        rows(out, event, context.columns);
    }

    out.extend_from_slice(br#","commit":{"lsn":""#);
    event.transaction.commit_lsn.write_to(out);
    out.extend_from_slice(br#"","xid":"#);
    json::integer(out, event.transaction.xid.into());
    out.extend_from_slice(br#","index":"#);
    json::integer(out, event.ordinal);
    out.extend_from_slice(br#","timestamp":""#);
    event.transaction.committed_at.write_to(out);
    out.extend_from_slice(br#"","origin":"#);
    origin(out, event.transaction.origin.as_deref());
    out.extend_from_slice(br#"},"annotations":"#);
    out.extend_from_slice(event.annotations.as_deref().unwrap_or("null").as_bytes());
    out.extend_from_slice(br#","database":"#);
    json::string(out, &context.source.database);
    out.extend_from_slice(br#","subscription":"#);
    json::string(out, context.subscription);
    out.push(b'}');
}

/// What a replicated transaction says of its original; null for one that was committed here first.
fn origin(out: &mut Vec<u8>, origin: Option<&Origin>) {
    let Some(Origin { name, lsn, committed_at }) = origin else { return out.extend_from_slice(b"null") };
    let text = |out: &mut Vec<u8>, is_known: bool, write: &dyn Fn(&mut Vec<u8>)| {
        let quote: &[u8] = if is_known { b"\"" } else { b"" };
        out.extend_from_slice(quote);
        if is_known {
            write(out)
        } else {
            out.extend_from_slice(b"null")
        }
        out.extend_from_slice(quote);
    };
    out.extend_from_slice(br#"{"name":"#);
    match name {
        Some(name) => json::string(out, name),
        None => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(br#","lsn":"#);
    text(out, lsn.is_some(), &|out| lsn.unwrap_or_default().write_to(out));
    out.extend_from_slice(br#","timestamp":"#);
    text(out, committed_at.is_some(), &|out| committed_at.unwrap_or_default().write_to(out));
    out.push(b'}');
}

/// Names joined by dots; a schema change may be of no table.
fn kind(out: &mut Vec<u8>, names: [&str; 3]) {
    let mut separator = b'"';
    for name in names.into_iter().filter(|name| !name.is_empty()) {
        out.push(std::mem::replace(&mut separator, b'.'));
        json::within_string(out, name);
    }
    out.push(b'"');
}

fn string_or_null(out: &mut Vec<u8>, text: &str) {
    if text.is_empty() {
        out.extend_from_slice(b"null");
    } else {
        json::string(out, text);
    }
}

/// Members whose values are JSON text already.
fn members<const N: usize>(out: &mut Vec<u8>, members: [(&str, &[u8]); N]) {
    for (name, value) in members {
        out.push(b',');
        json::string(out, name);
        out.push(b':');
        out.extend_from_slice(value);
    }
}

/// The members that tell of the rows, from `key` to `unchanged`, and `omitted` when a column is.
fn rows(out: &mut Vec<u8>, event: &Event, columns: &Shown) {
    let sides = Sides::of(event, columns);
    let shown = sides.about(event.action);

    out.extend_from_slice(br#","key":"#);
    key(out, shown, shown.row());
    out.extend_from_slice(br#","record":"#);
    let is_whole = match event.action {
        Action::Truncate => {
            out.extend_from_slice(b"null");
            true
        }
        _ => object(out, shown.row()),
    };

    let changes = sides.changes(event.action);
    out.extend_from_slice(br#","changes":"#);
    if changes.are_known {
        let changed = sides.values().filter(Value::changed);
        object(out, changed.map(|value| (value.column, value.before)));
    } else {
        out.extend_from_slice(b"null");
    }
    out.extend_from_slice(br#","old_key":"#);
    if changes.of_key {
        key(out, sides, sides.values().map(|value| (value.column, value.before)));
    } else {
        out.extend_from_slice(b"null");
    }

    if is_whole && event.old.is_none() {
        return out.extend_from_slice(br#","unchanged":[]"#);
    }
    out.extend_from_slice(br#","unchanged":"#);
    let mut unchanged = List::array(out);
    for value in shown.values().filter(|value| value.now == Cell::Unchanged) {
        unchanged.string(out, &value.column.name);
    }
    unchanged.end(out);
    omitted(out, shown.values().filter(Value::is_omitted).map(|value| value.column.name.as_str()));
}

/// The member that names what was too large to be sent, if anything was.
fn omitted<'a>(out: &mut Vec<u8>, names: impl Iterator<Item = &'a str>) {
    let mut names = names.peekable();
    if names.peek().is_some() {
        out.extend_from_slice(br#","omitted":"#);
        let mut list = List::array(out);
        names.for_each(|name| list.string(out, name));
        list.end(out);
    }
}

/// An object of the key's columns; null when there is no key, or one of its values is not known. Of a row that is its key as a
/// whole it has what is shown.
fn key<'a>(out: &mut Vec<u8>, sides: Sides<'_>, cells: impl Iterator<Item = (&'a Column, Cell<'a>)>) {
    let start = out.len();
    let mut object = List::object(out);
    let mut complete = false;
    for (column, cell) in cells.filter(|(column, _)| sides.is_of_key(column)) {
        // A virtual generated column is nowhere.
        if cell == Cell::Absent && !column.is_key {
            continue;
        }
        complete = cell.is_known();
        let Some(value) = json_of(cell) else { break };
        object.column(out, column.member_head());
        out.extend_from_slice(value);
    }
    object.end(out);
    if !complete {
        out.truncate(start);
        out.extend_from_slice(b"null");
    }
}

#[cfg(test)]
mod tests;
