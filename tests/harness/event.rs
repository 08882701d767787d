//! Events as a receiver gets them.

use std::collections::{HashMap, HashSet};
use std::ops::Deref;
use std::sync::Arc;
use std::time::Instant;

use serde::Deserialize;
use serde_json::Value;

use crate::{Receiver, Request};

/// An event that was received; behind it is its `data`.
#[derive(Clone, Debug)]
pub struct Event {
    /// The whole of the webhook.
    pub whole: Value,
    /// The request that brought it.
    pub request: Arc<Request>,
}

impl Event {
    /// `schema.table action`, the shortest way to say what happened.
    pub fn what(&self) -> String {
        format!("{}.{} {}", self.text("schema"), self.text("table"), self.text("action"))
    }

    /// When it came.
    pub fn arrived(&self) -> Instant {
        self.request.arrived()
    }

    /// The event's id.
    pub fn id(&self) -> String {
        self.text("id")
    }

    /// A field of `data` that is text.
    #[track_caller]
    pub fn text(&self, field: &str) -> String {
        self[field].as_str().unwrap_or_else(|| panic!("no {field} in {}", self.whole)).to_owned()
    }

    /// What tells its row from others: table and key.
    pub fn row(&self) -> String {
        format!("{}.{} {}", self.text("schema"), self.text("table"), self["key"])
    }

    /// Its place in the order of commits, and of changes within one: (lsn, index).
    pub fn place(&self) -> (u64, u64) {
        let commit = &self["commit"];
        let lsn = commit["lsn"].as_str().and_then(|lsn| lsn.split_once('/')).unwrap_or_default();
        let half = |text| u64::from_str_radix(text, 16).unwrap_or_default();
        (half(lsn.0) << 32 | half(lsn.1), commit["index"].as_u64().unwrap_or_default())
    }
}

impl Deref for Event {
    type Target = Value;

    fn deref(&self) -> &Value {
        &self.whole["data"]
    }
}

/// All events of the requests a receiver kept, in order of arrival, repetitions included.
pub fn events(receiver: &Receiver) -> Vec<Event> {
    receiver.requests().iter().flat_map(of).collect()
}

/// Those that came at one path; [`crate::Database::subscribe`] gives each subscription its own.
pub fn events_of(receiver: &Receiver, subscription: &str) -> Vec<Event> {
    let path = format!("/{subscription}");
    receiver.requests().iter().filter(|request| request.path() == path).flat_map(of).collect()
}

fn of(request: &Arc<Request>) -> Vec<Event> {
    // Not by the receiver's own reading, which may round numbers.
    let text = std::str::from_utf8(request.body())
        .unwrap_or_else(|error| panic!("no UTF-8: {error} in {request:?}"));
    let whole = json(text).unwrap_or_else(|error| panic!("no JSON: {error} in {request:?}"));
    let members = match whole {
        Value::Array(members) => members,
        one => vec![one],
    };
    members.into_iter().map(|whole| Event { whole, request: Arc::clone(request) }).collect()
}

/// Reads JSON with every digit and to any depth. Half a surrogate pair, which Postgres' `json` lets through as JSON itself
/// does, and which no string of Rust's can hold, is read as U+FFFD.
pub fn json(text: &str) -> serde_json::Result<Value> {
    let read = |text: &str| {
        let mut reader = serde_json::Deserializer::from_str(text);
        reader.disable_recursion_limit();
        Value::deserialize(&mut reader)
    };
    let halves = |text: &str| text.replace("\\ud800", "\\ufffd").replace("\\ud83d\"", "\\ufffd\"");
    read(text).or_else(|_| read(&halves(text)))
}

/// The events without those that came before, told by id: what a careful receiver acts on.
pub fn distinct(events: Vec<Event>) -> Vec<Event> {
    let mut seen = HashSet::new();
    events.into_iter().filter(|event| seen.insert(event.id())).collect()
}

/// Panics if the events of one row came in another order than they were committed in.
#[track_caller]
pub fn in_key_order(events: &[Event]) {
    let mut last: HashMap<String, &Event> = HashMap::new();
    for event in events {
        if let Some(before) = last.insert(event.row(), event) {
            assert!(before.place() < event.place(), "{} came before {}", before.whole, event.whole);
        }
    }
}

/// Panics if an event of a row came before each earlier one of that row had been answered 2xx, or stood before it in the
/// same request: whom the receiver refused must not be overtaken. `succeeded` tells of a request whether it was.
#[track_caller]
pub fn succeeded_in_key_order(receiver: &Receiver, succeeded: impl Fn(&Request) -> bool) {
    let mut refused: HashMap<String, Event> = HashMap::new();
    for event in events(receiver) {
        if succeeded(&event.request) {
            let overtaken = refused.remove(&event.row()).filter(|before| before.place() < event.place());
            if let Some(before) = overtaken {
                panic!("{} had not succeeded when {} came", before.whole, event.whole);
            }
            continue;
        }
        let before = refused.entry(event.row()).or_insert_with(|| event.clone());
        let together = Arc::ptr_eq(&before.request, &event.request);
        assert!(
            together || before.place() >= event.place(),
            "{} had not succeeded when {} came",
            before.whole,
            event.whole
        );
        if before.place() >= event.place() {
            *before = event;
        }
    }
}
