//! The rows of an event, column by column, as far as a subscription shows them.

use super::context::Shown;
use super::json::List;
use crate::event::{Action, Cell, Cells, Column, Event, KeyKind, Row};

impl Column {
    /// The name as that of a member behind others: `,"name":`.
    pub(super) fn member_head(&self) -> &[u8] {
        &self.heads.texts(&self.name, self.number, &self.type_name).member
    }

    /// What pgstream has between the table's id and the value, from the column's number on.
    pub(super) fn pgstream_head(&self) -> &[u8] {
        &self.heads.texts(&self.name, self.number, &self.type_name).pgstream
    }
}

/// The rows before and after.
#[derive(Clone, Copy)]
pub(super) struct Sides<'a> {
    columns: &'a [Column],
    key: KeyKind,
    shown: &'a Shown,
    now: Option<&'a Row>,
    before: Option<&'a Row>,
}

/// What is known of one column.
pub(super) struct Value<'a> {
    pub column: &'a Column,
    pub now: Cell<'a>,
    pub before: Cell<'a>,
}

/// What an update tells of the row that it found.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Changes {
    /// Whether the old values of the columns that changed are known.
    pub are_known: bool,
    /// Whether the key is among them.
    pub of_key: bool,
}

impl<'a> Sides<'a> {
    /// Those of the event.
    pub fn of(event: &'a Event, shown: &'a Shown) -> Self {
        let (columns, key) = (event.relation.columns.as_slice(), event.relation.key);
        Sides { columns, key, shown, now: event.new.as_ref(), before: event.old.as_ref() }
    }

    /// The same with the row that the event is about as the one of now: a deleted row is shown as it was.
    pub fn about(self, action: Action) -> Self {
        match action {
            Action::Delete => Sides { now: self.before, ..self },
            _ => self,
        }
    }

    /// The columns that are shown.
    pub fn values(self) -> impl Iterator<Item = Value<'a>> {
        let (mut now, mut before) = (self.now.map(Row::cells), self.before.map(Row::cells));
        let cells = self.columns.iter().map(move |column| {
            let (now, before) = (next(&mut now), next(&mut before));
            // A large value that stayed as it was is known when the old row has it.
            let now = if now == Cell::Unchanged && before.is_known() { before } else { now };
            Value { column, now, before }
        });
        cells.filter(move |value| self.shown.shows(value.column))
    }

    /// The columns that are shown, with their values of now.
    pub fn row(self) -> impl Iterator<Item = (&'a Column, Cell<'a>)> {
        self.values().map(|value| (value.column, value.now))
    }

    /// What is known of the row from before: the old row as far as write-ahead log has it, or else the key of the new
    /// one, which is the old one's too, unless write-ahead log would not have said that it changed.
    pub fn identity(self) -> impl Iterator<Item = (&'a Column, Cell<'a>)> {
        let has_old = self.before.is_some();
        self.values().map(move |value| {
            let cell = match has_old {
                true => value.before,
                false if value.column.is_key && self.key == KeyKind::Logged => value.now,
                false => Cell::Absent,
            };
            (value.column, cell)
        })
    }

    /// Whether a column belongs to the key.
    pub fn is_of_key(self, column: &Column) -> bool {
        column.is_key || self.key == KeyKind::WholeRow
    }

    /// What an event of this action tells of changes.
    pub fn changes(self, action: Action) -> Changes {
        if action != Action::Update || self.before.is_none() {
            return Changes { are_known: false, of_key: false };
        }
        let of_key = self.values().any(|value| self.is_of_key(value.column) && value.changed());
        // An old row may hold the key alone although the key is the same; then nothing is known of the others.
        Changes { are_known: of_key || self.values().all(|value| value.is_comparable()), of_key }
    }
}

/// Of a row that WAL does not have, every cell is absent.
fn next<'a>(cells: &mut Option<Cells<'a>>) -> Cell<'a> {
    cells.as_mut().and_then(Iterator::next).unwrap_or(Cell::Absent)
}

impl Value<'_> {
    /// Whether either side was too large. A value left as it was is told as unchanged, however large it is.
    pub fn is_omitted(&self) -> bool {
        self.now != Cell::Unchanged && (self.now == Cell::Omitted || self.before == Cell::Omitted)
    }

    /// Whether the old value is there, so that it says something about the others that it is not told as changed.
    fn is_comparable(&self) -> bool {
        self.before.is_known() || self.before == Cell::Omitted || self.now == Cell::Absent
    }

    /// Whether the old value is known and the new one is another.
    pub fn changed(&self) -> bool {
        self.before.is_known() && self.now != self.before
    }
}

/// The JSON of a value that is known.
pub(super) fn json_of(cell: Cell<'_>) -> Option<&[u8]> {
    match cell {
        Cell::Json(text) => Some(text),
        Cell::Null => Some(b"null"),
        Cell::Absent | Cell::Unchanged | Cell::Omitted => None,
    }
}

/// Appends an object of the columns whose values are known. Returns whether that is all of them.
pub(super) fn object<'a>(out: &mut Vec<u8>, cells: impl Iterator<Item = (&'a Column, Cell<'a>)>) -> bool {
    let mut is_whole = true;
    let mut object = List::object(out);
    for (column, cell) in cells {
        if let Some(value) = json_of(cell) {
            object.column(out, column.member_head());
            out.extend_from_slice(value);
        } else {
            is_whole = false;
        }
    }
    object.end(out);
    is_whole
}
