//! The default format: a Standard Webhooks body with the event as its `data`.

use std::io::Write;

use super::json::{self, List};
use super::{RenderContext, Shown};
use crate::event::{Action, Cell, Cells, Column, Event, Row};

/// Appends the body. Every member is there for every action, in the same order.
pub(super) fn render(out: &mut Vec<u8>, event: &Event, level: usize, context: &RenderContext<'_>) {
    let names = &event.relation.names;
    let (schema, table) = names
        .get(level)
        .or(names.last())
        .map_or(("", ""), |name| (name.schema.as_str(), name.table.as_str()));
    let action = word(event.action);

    out.extend_from_slice(br#"{"type":""#);
    json::within_string(out, schema);
    out.push(b'.');
    json::within_string(out, table);
    out.push(b'.');
    out.extend_from_slice(action.as_bytes());
    out.extend_from_slice(br#"","timestamp":""#);
    let timestamp = out.len();
    event.transaction.committed_at.write_to(out);
    let timestamp = timestamp..out.len();

    out.extend_from_slice(br#"","data":{"id":""#);
    event.id().write_to(out);
    out.extend_from_slice(br#"","action":""#);
    out.extend_from_slice(action.as_bytes());
    out.extend_from_slice(br#"","schema":"#);
    json::string(out, schema);
    out.extend_from_slice(br#","table":"#);
    json::string(out, table);
    rows(out, event, context.columns);

    // Writing to memory does not fail.
    let _ = write!(out, r#","commit":{{"lsn":"{}","xid":"#, event.transaction.commit_lsn);
    json::integer(out, event.transaction.xid.into());
    out.extend_from_slice(br#","index":"#);
    json::integer(out, event.ordinal);
    out.extend_from_slice(br#","timestamp":""#);
    out.extend_from_within(timestamp);
    out.extend_from_slice(br#""},"annotations":null,"database":"#);
    json::string(out, context.database);
    out.extend_from_slice(br#","subscription":"#);
    json::string(out, context.subscription);
    out.extend_from_slice(b"}}");
}

fn word(action: Action) -> &'static str {
    match action {
        Action::Insert => "insert",
        Action::Update => "update",
        Action::Delete => "delete",
        Action::Truncate => "truncate",
    }
}

/// The members that tell of the rows, from `key` to `unchanged`, and `omitted` when a column is.
fn rows(out: &mut Vec<u8>, event: &Event, columns: &Shown) {
    let sides = Sides {
        columns: &event.relation.columns,
        shown: columns,
        now: event.new.as_ref(),
        before: event.old.as_ref(),
    };
    // A deleted row is shown as it was.
    let shown = match event.action {
        Action::Delete => Sides { now: sides.before, ..sides },
        _ => sides,
    };

    out.extend_from_slice(br#","key":"#);
    key(out, shown.values().map(|value| (value.column, value.now)));
    out.extend_from_slice(br#","record":"#);
    match event.action {
        Action::Truncate => out.extend_from_slice(b"null"),
        _ => object(out, shown.values().map(|value| (value.column, value.now))),
    }

    let (mut changes, mut old_key) = (false, false);
    if event.action == Action::Update && event.old.is_some() {
        old_key = sides.values().any(|value| value.column.is_key && value.changed());
        // An old row may hold the key alone although the key is the same; then nothing is known of the others.
        changes = old_key || sides.values().all(|value| value.is_comparable());
    }
    out.extend_from_slice(br#","changes":"#);
    if changes {
        let changed = sides.values().filter(Value::changed);
        object(out, changed.map(|value| (value.column, value.before)));
    } else {
        out.extend_from_slice(b"null");
    }
    out.extend_from_slice(br#","old_key":"#);
    if old_key {
        key(out, sides.values().map(|value| (value.column, value.before)));
    } else {
        out.extend_from_slice(b"null");
    }

    out.extend_from_slice(br#","unchanged":"#);
    let mut unchanged = List::array(out);
    for value in shown.values().filter(|value| value.now == Cell::Unchanged) {
        unchanged.string(out, &value.column.name);
    }
    unchanged.end(out);
    let mut omitted = shown.values().filter(Value::is_omitted).peekable();
    if omitted.peek().is_some() {
        out.extend_from_slice(br#","omitted":"#);
        let mut list = List::array(out);
        omitted.for_each(|value| list.string(out, &value.column.name));
        list.end(out);
    }
}

/// An object of the columns whose values are known.
fn object<'a>(out: &mut Vec<u8>, cells: impl Iterator<Item = (&'a Column, Cell<'a>)>) {
    let mut object = List::object(out);
    for (column, cell) in cells {
        if let Some(value) = json_of(cell) {
            object.member(out, &column.name, value);
        }
    }
    object.end(out);
}

/// An object of the key's columns; null when there is no key, or one of its values is not known.
fn key<'a>(out: &mut Vec<u8>, cells: impl Iterator<Item = (&'a Column, Cell<'a>)>) {
    let start = out.len();
    let mut object = List::object(out);
    let mut complete = false;
    for (column, cell) in cells.filter(|(column, _)| column.is_key) {
        complete = cell.is_known();
        let Some(value) = json_of(cell) else { break };
        object.member(out, &column.name, value);
    }
    object.end(out);
    if !complete {
        out.truncate(start);
        out.extend_from_slice(b"null");
    }
}

fn json_of(cell: Cell<'_>) -> Option<&[u8]> {
    match cell {
        Cell::Json(text) => Some(text),
        Cell::Null => Some(b"null"),
        Cell::Absent | Cell::Unchanged | Cell::Omitted => None,
    }
}

/// The rows before and after, column by column, as far as they are shown.
#[derive(Clone, Copy)]
struct Sides<'a> {
    columns: &'a [Column],
    shown: &'a Shown,
    now: Option<&'a Row>,
    before: Option<&'a Row>,
}

/// What is known of one column.
struct Value<'a> {
    column: &'a Column,
    now: Cell<'a>,
    before: Cell<'a>,
}

impl<'a> Sides<'a> {
    fn values(self) -> impl Iterator<Item = Value<'a>> {
        let (mut now, mut before) = (self.now.map(Row::cells), self.before.map(Row::cells));
        let cells = self.columns.iter().map(move |column| {
            let (now, before) = (next(&mut now), next(&mut before));
            // A large value that stayed as it was is known when the old row has it.
            let now = if now == Cell::Unchanged && before.is_known() { before } else { now };
            Value { column, now, before }
        });
        cells.filter(move |value| self.shown.shows(value.column))
    }
}

/// Of a row that WAL does not have, every cell is absent.
fn next<'a>(cells: &mut Option<Cells<'a>>) -> Cell<'a> {
    cells.as_mut().and_then(Iterator::next).unwrap_or(Cell::Absent)
}

impl Value<'_> {
    /// Whether either side was too large. A value left as it was is told as unchanged, however large it is.
    fn is_omitted(&self) -> bool {
        self.now != Cell::Unchanged && (self.now == Cell::Omitted || self.before == Cell::Omitted)
    }

    /// Whether the old value is there, so that it says something about the others that it is not told as changed.
    fn is_comparable(&self) -> bool {
        self.before.is_known() || self.before == Cell::Omitted || self.now == Cell::Absent
    }

    /// Whether the old value is known and the new one is another.
    fn changed(&self) -> bool {
        self.before.is_known() && self.now != self.before
    }
}

#[cfg(test)]
mod tests;
