//! Random tables with random rows: whatever types they are made of, events say what the rows are.

use std::collections::HashMap;

use fastrand::Rng;
use harness::{Event, Stage, json};
use serde_json::{Map, Value as Json, json};

use super::kind::{Kind, Maker, literal};
use super::values;

/// How many tables, unless `PGWH_TABLES` says otherwise.
const TABLES: u64 = 40;
const ROWS: u32 = 6;

/// A table of random columns, behind `id`.
struct Table {
    name: String,
    /// Names as SQL writes them.
    columns: Vec<(String, Kind)>,
    identity: Identity,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Identity {
    /// The primary key, `id`.
    Key,
    /// All columns.
    Full,
    /// All columns, and no primary key.
    FullWithoutKey,
    /// Nothing.
    Nothing,
}

/// What `to_json` makes of a table's rows, by id.
type Rows = HashMap<u64, Map<String, Json>>;

#[test]
fn random_tables_have_events_equal_to_their_rows() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seed = number("PGWH_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
    let tables = number("PGWH_TABLES").unwrap_or(TABLES);
    println!("PGWH_SEED={seed} PGWH_TABLES={tables}");
    let stage = Stage::set();
    // How a database shows values to its users is no concern of those who receive them.
    stage.each(&[
        "ALTER DATABASE postgres SET IntervalStyle = 'iso_8601'",
        "ALTER DATABASE postgres SET DateStyle = 'German, DMY'",
        "ALTER DATABASE postgres SET TimeZone = 'Asia/Kathmandu'",
        "ALTER DATABASE postgres SET bytea_output = 'escape'",
        "ALTER DATABASE postgres SET extra_float_digits = -3",
        "ALTER DATABASE postgres SET xmlbinary = 'hex'",
    ]);
    let mut known = values::BUILT_IN.to_vec();
    known.extend_from_slice(values::CONTRIB);
    if stage.try_sql("SELECT '<a/>'::xml").is_ok() {
        known.push(values::XML);
    }
    stage.sql(
        "CREATE EXTENSION citext; CREATE EXTENSION hstore; CREATE EXTENSION ltree; CREATE EXTENSION cube;
         CREATE EXTENSION seg; CREATE EXTENSION isn; CREATE EXTENSION intarray; CREATE EXTENSION lo",
    );
    let mut rng = Rng::with_seed(seed);
    let mut maker = Maker::new(&mut rng, &known);
    for _ in 0..tables {
        try_one(&stage, &mut maker);
    }
}

/// Writes rows into a table, changes them and deletes them, and compares what came of it.
fn try_one(stage: &Stage, maker: &mut Maker<'_>) {
    let table = Table::make(maker);
    let mut statements = std::mem::take(&mut maker.statements);
    statements.extend(table.definition());
    stage.each(&statements.iter().map(String::as_str).collect::<Vec<_>>());
    stage.delivered(&stage.receiver, "all");
    stage.receiver.clear();

    let rng = maker.rng();
    stage.sql(&(1..=ROWS).map(|id| table.insert(id, rng)).collect::<String>());
    let first = table.rows(stage);
    stage.sql(&(1..=ROWS).map(|id| table.update(id, rng)).collect::<String>());
    let second = table.rows(stage);
    stage.sql(&format!("DELETE FROM {}; DROP TABLE {0}", table.name));

    let events = stage.delivered(&stage.receiver, "all");
    assert_eq!(events.len() as u32, 3 * ROWS, "{:?}", table.definition());
    for event in &events {
        match event.text("action").as_str() {
            "insert" => table.holds(event, &first[&id(event)], &[]),
            "update" => {
                table.holds(event, &second[&id(event)], &[&first]);
                table.tells_changes(event, &first[&id(event)], &second[&id(event)]);
            }
            _ => table.tells_deleted(event, &second),
        }
    }
}

impl Table {
    fn make(maker: &mut Maker<'_>) -> Self {
        let identities = [Identity::Key, Identity::Full, Identity::FullWithoutKey, Identity::Nothing];
        let identity = identities[maker.rng().usize(0..identities.len())];
        let columns = (0..maker.rng().u32(1..10)).map(|_| (maker.name(), maker.kind(3))).collect();
        Self { name: maker.name(), columns, identity }
    }

    /// Creates it, with a hole where a column was dropped.
    fn definition(&self) -> Vec<String> {
        let name = &self.name;
        let columns: String =
            self.columns.iter().map(|(name, kind)| format!(", {name} {}", kind.sql())).collect();
        let key = if self.identity == Identity::FullWithoutKey { "" } else { " PRIMARY KEY" };
        let identity = match self.identity {
            Identity::Key => "DEFAULT",
            Identity::Full | Identity::FullWithoutKey => "FULL",
            Identity::Nothing => "NOTHING",
        };
        vec![
            format!("CREATE TABLE {name} (gone text, id int{key}{columns})"),
            format!("ALTER TABLE {name} DROP COLUMN gone"),
            format!("ALTER TABLE {name} REPLICA IDENTITY {identity}"),
        ]
    }

    fn insert(&self, id: u32, rng: &mut Rng) -> String {
        let values: String =
            self.columns.iter().map(|(_, kind)| format!(", {}", constant(kind, rng))).collect();
        format!("INSERT INTO {} VALUES ({id}{values});\n", self.name)
    }

    /// Changes some columns of a row.
    fn update(&self, id: u32, rng: &mut Rng) -> String {
        let mut set = vec!["id = id".to_owned()];
        for (name, kind) in &self.columns {
            if rng.bool() {
                set.push(format!("{name} = {}", constant(kind, rng)));
            }
        }
        format!("UPDATE {} SET {} WHERE id = {id};\n", self.name, set.join(", "))
    }

    fn rows(&self, stage: &Stage) -> Rows {
        let sql = format!(
            "SET TimeZone = 'UTC'; SET IntervalStyle = 'postgres'; SET DateStyle = 'ISO'; SET bytea_output = 'hex';
             SET extra_float_digits = 1; SET xmlbinary = 'base64'; SELECT to_json(t) FROM {} t",
            self.name
        );
        let rows = stage.column(&sql).into_iter().map(|row| match json(&row) {
            Ok(Json::Object(row)) => row,
            other => panic!("{other:?} in {row}"),
        });
        rows.map(|row| (row["id"].as_u64().expect("an id"), row)).collect()
    }

    /// Whether the event's record is that row, but for what it says is unchanged.
    fn holds(&self, event: &Event, row: &Map<String, Json>, before: &[&Rows]) {
        let record = event["record"].as_object().expect("a record");
        let unchanged = event["unchanged"].as_array().expect("a list");
        for (column, value) in row {
            if unchanged.contains(&json!(column)) {
                assert_eq!(record.get(column), None, "{column} in {}", event.whole);
                assert!(
                    before.iter().all(|rows| &rows[&id(event)][column] == value),
                    "{column} changed: {}",
                    event.whole
                );
            } else {
                assert_eq!(record.get(column), Some(value), "{column} in {}", event.whole);
            }
        }
        assert_eq!(record.len() + unchanged.len(), row.len(), "{}", event.whole);
        let whole = matches!(self.identity, Identity::Full | Identity::FullWithoutKey);
        assert!(unchanged.is_empty() || !whole, "known from the old row: {}", event.whole);
        // Where there is no other key, the whole row is.
        let key = match self.identity {
            Identity::FullWithoutKey => event["record"].clone(),
            _ => json!({"id": id(event)}),
        };
        assert_eq!(event["key"], key, "{}", event.whole);
    }

    /// Whether the event tells the old values of all that changed, where the old row is known.
    fn tells_changes(&self, event: &Event, old: &Map<String, Json>, new: &Map<String, Json>) {
        // Values may differ that have one text.
        let may_change = self.identity == Identity::FullWithoutKey;
        assert!(event["old_key"] != Json::Null || !may_change || old == new, "{}", event.whole);
        if event["old_key"] != Json::Null {
            assert!(may_change, "{}", event.whole);
            assert_eq!(event["old_key"], Json::Object(old.clone()), "{}", event.whole);
        }
        let Some(changes) = event["changes"].as_object() else {
            return assert!(
                !matches!(self.identity, Identity::Full | Identity::FullWithoutKey),
                "{}",
                event.whole
            );
        };
        for (column, value) in changes {
            assert_eq!(value, &old[column], "{column} in {}", event.whole);
        }
        for column in old.keys().filter(|column| old[*column] != new[*column]) {
            assert!(changes.contains_key(column), "{column} in {}", event.whole);
        }
    }

    /// Whether the event has all of the row that is gone, or its key.
    fn tells_deleted(&self, event: &Event, rows: &Rows) {
        match self.identity {
            Identity::Key => {
                assert_eq!((&event["record"], &event["key"]), (&json!({"id": id(event)}), &event["record"]));
            }
            Identity::Full | Identity::FullWithoutKey => {
                assert_eq!(event["record"].as_object(), Some(&rows[&id(event)]), "{}", event.whole);
            }
            Identity::Nothing => {
                assert_eq!((&event["record"], &event["key"]), (&json!({}), &Json::Null), "{}", event.whole);
            }
        }
    }
}

fn id(event: &Event) -> u64 {
    event["record"]["id"].as_u64().unwrap_or_else(|| panic!("no id in {}", event.whole))
}

/// A value as SQL writes it, sometimes NULL.
fn constant(kind: &Kind, rng: &mut Rng) -> String {
    match rng.u8(0..8) {
        0 => "NULL".into(),
        _ => format!("{}::{}", literal(&kind.value(rng)), kind.sql()),
    }
}
