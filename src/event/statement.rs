//! What is told beside changes of rows: changes of the schema, and messages.
//!
//! They travel as rows do, as those of a relation of their own kind, so that everything that carries rows carries them.

use super::{Action, Cell, Column, Event, KeyKind, Kind, Relation, Row, TableName};

/// The oid that stands for messages where a table's would stand; no table has it.
const MESSAGES: u32 = 1;

const MESSAGE_COLUMNS: [&str; 4] = ["type", "prefix", "key", "payload"];
const SCHEMA_CHANGE_COLUMNS: [&str; 3] = ["command_tag", "command", "objects"];

/// A message. All members are JSON text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// What its writer called it, a string; its prefix, when another application wrote it.
    pub kind: &'a [u8],
    /// The prefix of a message of another application, a string; null of `pgwh.emit`'s.
    pub prefix: &'a [u8],
    /// What its writer wants it ordered by, a string or null.
    pub key: &'a [u8],
    /// What it says.
    pub payload: &'a [u8],
}

/// A change of the schema. All members are JSON text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SchemaChange<'a> {
    /// The command's tag, a string, such as `"ALTER TABLE"`.
    pub command_tag: &'a [u8],
    /// The statement as its client sent it, a string.
    pub command: &'a [u8],
    /// What it created, altered or dropped: an array of objects.
    pub objects: &'a [u8],
}

impl<'a> Message<'a> {
    /// The relation that messages are told as rows of.
    pub fn relation() -> Relation {
        relation(MESSAGES, TableName { schema: String::new(), table: String::new() }, &MESSAGE_COLUMNS)
    }

    /// The row that tells of it.
    pub fn cells(&self) -> [Cell<'a>; MESSAGE_COLUMNS.len()] {
        [self.kind, self.prefix, self.key, self.payload].map(Cell::Json)
    }

    /// The same, without the payload if that is longer than `limit`.
    pub fn cells_within(&self, limit: usize) -> [Cell<'a>; MESSAGE_COLUMNS.len()] {
        let mut cells = self.cells();
        if self.payload.len() > limit {
            cells[3] = Cell::Omitted;
        }
        cells
    }
}

impl<'a> SchemaChange<'a> {
    /// The relation that a schema change is told as a row of. `name` is the table that it is about (empty: none, but the
    /// schema), `root` the oid of that table's topmost partitioned table, its own if it is no partition, 0 without one:
    /// what orders the change among the table's rows.
    pub fn relation(name: TableName, root: u32) -> Relation {
        Relation { root_oid: root, ..relation(0, name, &SCHEMA_CHANGE_COLUMNS) }
    }

    /// The row that tells of it.
    pub fn cells(&self) -> [Cell<'a>; SCHEMA_CHANGE_COLUMNS.len()] {
        [self.command_tag, self.command, self.objects].map(Cell::Json)
    }

    /// The same. If command and objects together are longer than `limit`, the longer one is left out; both, if the other one
    /// is too long as well.
    pub fn cells_within(&self, limit: usize) -> [Cell<'a>; SCHEMA_CHANGE_COLUMNS.len()] {
        let mut cells = self.cells();
        let (command, objects) = (self.command.len(), self.objects.len());
        if command + objects > limit {
            let (longer, shorter) = if command > objects { (1, 2) } else { (2, 1) };
            cells[longer] = Cell::Omitted;
            if command.min(objects) > limit {
                cells[shorter] = Cell::Omitted;
            }
        }
        cells
    }
}

impl Event {
    /// The message that it is, if it is one.
    pub fn message(&self) -> Option<Message<'_>> {
        let [kind, prefix, key, payload] = self.members(Action::Message)?;
        Some(Message { kind, prefix, key, payload })
    }

    /// The schema change that it is, if it is one.
    pub fn schema_change(&self) -> Option<SchemaChange<'_>> {
        let [command_tag, command, objects] = self.members(Action::Ddl)?;
        Some(SchemaChange { command_tag, command, objects })
    }

    /// The members of a message or schema change that were too large to be sent.
    pub fn omitted_members(&self) -> impl Iterator<Item = &str> {
        let cells = self.new.as_ref().into_iter().flat_map(Row::cells);
        let columns = self.relation.columns.iter().zip(cells);
        columns.filter(|(_, cell)| *cell == Cell::Omitted).map(|(column, _)| column.name.as_str())
    }

    /// The cells of the row that tells of it.
    fn members<const N: usize>(&self, action: Action) -> Option<[&[u8]; N]> {
        let mut cells = self.new.as_ref().filter(|_| self.action == action)?.cells();
        let mut members = [b"null".as_slice(); N];
        for member in &mut members {
            if let Cell::Json(text) = cells.next()? {
                *member = text;
            }
        }
        Some(members)
    }
}

/// A relation whose columns are no table's: their numbers are those of no column.
fn relation(oid: u32, name: TableName, columns: &[&str]) -> Relation {
    let column = |name: &&str| Column {
        name: (*name).to_owned(),
        number: 0,
        type_oid: 0,
        type_name: "json".to_owned(),
        kind: Kind::Json,
        is_key: false,
        heads: Default::default(),
    };
    let columns = columns.iter().map(column).collect();
    Relation { oid, root_oid: oid, names: vec![name], columns, key: KeyKind::default(), version: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_member_of_a_schema_change_is_left_out_first() {
        let change = SchemaChange { command_tag: b"\"x\"", command: b"\"123456\"", objects: b"[1]" };
        let omitted = |limit| change.cells_within(limit).map(|cell| cell == Cell::Omitted);
        assert_eq!(omitted(11), [false, false, false]);
        assert_eq!(omitted(10), [false, true, false]);
        assert_eq!(omitted(3), [false, true, false]);
        assert_eq!(omitted(2), [false, true, true]);
        let change = SchemaChange { objects: b"[1,2,3,4,5]", ..change };
        assert_eq!(change.cells_within(18).map(|cell| cell == Cell::Omitted), [false, false, true]);
    }

    #[test]
    fn a_message_keeps_what_names_it() {
        let message = Message { kind: b"\"a long type\"", prefix: b"null", key: b"null", payload: b"123" };
        assert_eq!(message.cells_within(3), message.cells());
        assert_eq!(message.cells_within(2)[..3], message.cells()[..3]);
        assert_eq!(message.cells_within(2)[3], Cell::Omitted);
    }
}
