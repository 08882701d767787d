//! Changes of the schema: new rows of `pgwh_internal.schema_changes`, in which event triggers note what commands did.

use pgrx::pg_sys;
use serde::Deserialize;

use super::Capture;
use crate::decode::routing::message_router::Place;
use crate::event::{Action, Cell, Cells, RowBuilder, SchemaChange, TableName};
use crate::gucs;
use crate::ipc::frame::{ChangeHead, Image, LaneKeys, Target, begin_change, write_relation};
use crate::pg::subtransaction::in_subtransaction;

/// Something that a command was about, as the column `places` has it.
#[derive(Deserialize)]
struct Noted {
    schema: String,
    /// Null: the schema itself.
    name: Option<String>,
    /// Whether it is a table, or belongs to one.
    is_table: bool,
    /// Whether it is a user's, and none of an extension's.
    is_users: bool,
    /// The oid of the topmost partitioned table, its own if it is no partition.
    root: u32,
}

/// What a command changed, as the column `objects` has it.
#[derive(Deserialize)]
struct Object {
    oid: u32,
}

impl From<&Noted> for Place {
    fn from(noted: &Noted) -> Place {
        let (schema, is_users) = (noted.schema.clone(), noted.is_users);
        match &noted.name {
            Some(name) => Place::Named { name: TableName { schema, table: name.clone() }, is_users },
            None => Place::Schema { name: schema, is_users },
        }
    }
}

impl Capture {
    /// A row of `pgwh_internal.schema_changes`; returns the objects that it is about. Only the extension writes any, so it needs no seal.
    ///
    /// # Safety
    /// Called from a change callback with its relation and the new tuple.
    pub(super) unsafe fn schema_change(
        &mut self,
        relation: pg_sys::Relation,
        new: pg_sys::HeapTuple,
        ordinal: u64,
    ) -> Vec<pg_sys::Oid> {
        if new.is_null() {
            return Vec::new();
        }
        // SAFETY: as the caller promises.
        unsafe { self.look_up(relation) };
        let Some(table) = self.relations.get_mut(&self.schema_changes) else { return Vec::new() };
        let mut row = Vec::new();
        let (memory, scratch) = (self.memory, &mut self.scratch);
        scratch.clear();
        let encoded = in_subtransaction(memory, || {
            // SAFETY: as the caller promises.
            unsafe { table.encode_new(new, (*relation).rd_att, scratch, &mut RowBuilder::new(&mut row)) }
        });
        if let Err(raised) = encoded {
            pgrx::warning!("pgstream_hooks: a schema change cannot be told: {}", raised.message);
            return Vec::new();
        }
        let cell = |name: &str| {
            let place = table.model.columns.iter().position(|column| column.name == name)?;
            match Cells::built(&row).nth(place)? {
                Cell::Json(text) => Some(text),
                _ => None,
            }
        };
        let command = cell("command").unwrap_or(b"null");
        let (Some(id), Some(command_tag), Some(objects), Some(places), Some(installed)) =
            (cell("id"), cell("command_tag"), cell("objects"), cell("places"), cell("installed"))
        else {
            return Vec::new();
        };
        // Replication brings rows, but no change of the schema.
        if serde_json::from_slice::<String>(installed).ok().as_deref() != Some(self.router.installed()) {
            return Vec::new();
        }
        let Ok(places) = serde_json::from_slice::<Vec<Noted>>(places) else { return Vec::new() };
        if let Ok(id) = serde_json::from_slice::<&str>(id) {
            places.iter().for_each(|place| self.versions.note(&place.schema, id));
        }
        for relation in self.relations.values_mut() {
            let version = self.versions.of(&relation.model.names);
            if std::mem::replace(&mut relation.model.version, version) != version {
                relation.reference = None;
            }
        }
        if self.router.listeners().has_observers() {
            let objects = &compact(objects);
            self.tell_schema_change(&SchemaChange { command_tag, command, objects }, &places, ordinal);
        }
        let objects = serde_json::from_slice::<Vec<Object>>(objects).unwrap_or_default();
        objects.into_iter().map(|object| object.oid.into()).collect()
    }

    /// It waits for all that is older of its table, and all that is newer waits for it.
    fn tell_schema_change(&mut self, change: &SchemaChange<'_>, noted: &[Noted], ordinal: u64) {
        let places: Vec<Place> = noted.iter().map(Place::from).collect();
        self.targets.clear();
        let observers = self.router.listeners().observers(&places);
        self.targets.extend(observers.map(|subscription| Target { subscription, level: 0 }));
        self.leave_out_local();
        let Some(first) = noted.first().filter(|_| !self.targets.is_empty()) else { return };

        self.counted.1 += 1;
        self.announce_transaction();
        let table = noted.iter().find(|noted| noted.is_table).unwrap_or(first);
        let name = table.name.clone().filter(|_| table.is_table).unwrap_or_default();
        let name = TableName { schema: table.schema.clone(), table: name };
        let model = SchemaChange::relation(name, table.root);
        let reference = self.reference_of(self.schema_changes);
        let head =
            ChangeHead { reference, action: Action::Ddl, ordinal, lsn: self.lsn, targets: &self.targets };
        let written = write_relation(&mut self.buffer, reference, &model).and_then(|()| {
            let mut frame = begin_change(&mut self.buffer, &head);
            let mut row = frame.row(Image::New);
            change.cells_within(gucs::max_event_size()).into_iter().for_each(|cell| row.cell(cell));
            frame.finish(LaneKeys::default(), true)
        });
        if let Err(too_long) = written {
            pgrx::warning!("pgstream_hooks: a schema change is too long to be told: {too_long}");
        }
        self.flush_when_full();
    }
}

/// JSON text without the white space between its members.
fn compact(json: &[u8]) -> Vec<u8> {
    let (mut in_string, mut escaped) = (false, false);
    let mut out = Vec::with_capacity(json.len());
    for byte in json {
        if !in_string && byte.is_ascii_whitespace() {
            continue;
        }
        in_string ^= *byte == b'"' && !escaped;
        escaped = in_string && *byte == b'\\' && !escaped;
        out.push(*byte);
    }
    out
}
