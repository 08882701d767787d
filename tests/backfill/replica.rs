//! A receiver's copy of a table, made of nothing but the events that came.

use std::collections::{BTreeMap, BTreeSet};

use harness::Event;
use serde_json::{Map, Value};

/// The rows by key, as the events of a table left them.
#[derive(Default)]
pub struct Replica {
    rows: BTreeMap<String, Map<String, Value>>,
    /// Keys whose last event took the row away.
    gone: BTreeSet<String>,
    /// Rows that came as reads.
    pub reads: usize,
    /// Of these, rows that something else had told of before.
    pub overtaken: usize,
}

impl Replica {
    /// Applies events in the order in which they came.
    pub fn of(events: &[Event]) -> Replica {
        let mut replica = Replica::default();
        events.iter().for_each(|event| replica.apply(event));
        replica
    }

    fn apply(&mut self, event: &Event) {
        let key = event["key"].to_string();
        match event.text("action").as_str() {
            "read" => {
                self.reads += 1;
                assert!(!self.gone.contains(&key), "a row came that is gone: {}", event.whole);
                if let Some(known) = self.rows.get(&key) {
                    self.overtaken += 1;
                    let version = |row: &Map<String, Value>| row.get("version").and_then(Value::as_i64);
                    let read = event["record"].as_object().unwrap();
                    assert!(version(known) <= version(read), "{known:?} was told before {}", event.whole);
                }
                assert_eq!(event["unchanged"], Value::Array(Vec::new()), "{}", event.whole);
                self.put(key, event, None);
            }
            "insert" => self.put(key, event, None),
            "update" => {
                let old = match &event["old_key"] {
                    Value::Null => key.clone(),
                    old => old.to_string(),
                };
                let before = self.take(&old);
                self.put(key, event, before);
            }
            "delete" => _ = self.take(&key),
            "truncate" => {
                self.gone.extend(std::mem::take(&mut self.rows).into_keys());
            }
            other => panic!("{other}"),
        }
    }

    fn take(&mut self, key: &str) -> Option<Map<String, Value>> {
        self.gone.insert(key.to_owned());
        self.rows.remove(key)
    }

    fn put(&mut self, key: String, event: &Event, before: Option<Map<String, Value>>) {
        let mut row = event["record"].as_object().unwrap().clone();
        for column in event["unchanged"].as_array().unwrap() {
            let column = column.as_str().unwrap();
            if let Some(value) = before.as_ref().and_then(|before| before.get(column)) {
                row.insert(column.to_owned(), value.clone());
            }
        }
        self.gone.remove(&key);
        self.rows.insert(key, row);
    }

    /// Panics unless the rows are those of the table (`key` and `row` as JSON), as far as columns are concerned that it
    /// has now; a column that a row never told of is null.
    #[track_caller]
    pub fn must_equal(&self, table: &[Vec<Option<String>>]) {
        let json = |text: &Option<String>| harness::json(text.as_deref().unwrap()).unwrap();
        let truth: BTreeMap<String, Value> =
            table.iter().map(|row| (json(&row[0]).to_string(), json(&row[1]))).collect();
        let ours: Vec<&String> = self.rows.keys().collect();
        let theirs: Vec<&String> = truth.keys().collect();
        assert_eq!(ours, theirs, "the keys");
        for (key, row) in &truth {
            for (column, value) in row.as_object().unwrap() {
                let known = self.rows[key].get(column).unwrap_or(&Value::Null);
                assert_eq!(known, value, "{column} of {key}");
            }
        }
    }
}
