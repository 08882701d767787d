//! What most tests of events begin with: a cluster, a receiver, and a subscription to all tables.

use std::ops::Deref;

use serde_json::Value;

use crate::{Cluster, Database, Event, Receiver, Setup, in_key_order, json};

/// A cluster with a subscription to all tables, named `all`. Behind it is its database `postgres`.
pub struct Stage {
    /// The cluster.
    pub cluster: Cluster,
    /// Who receives the events.
    pub receiver: Receiver,
}

impl Deref for Stage {
    type Target = Database;

    fn deref(&self) -> &Database {
        &self.cluster
    }
}

impl Stage {
    /// On a cluster as every test has it.
    #[track_caller]
    pub fn set() -> Self {
        Self::on(Setup::new())
    }

    /// On a cluster set up otherwise.
    #[track_caller]
    pub fn on(setup: Setup) -> Self {
        let cluster = setup.start();
        cluster.sql("CREATE EXTENSION pgstream_hooks");
        let receiver = Receiver::start().expect("a receiver");
        cluster.subscribe(&receiver, "all", "");
        Self { cluster, receiver }
    }

    /// What a subscription has got so far, in the order of commits.
    #[track_caller]
    pub fn got(&self, subscription: &str) -> Vec<Event> {
        let mut events = self.delivered(&self.receiver, subscription);
        events.sort_by_key(Event::place);
        events
    }

    /// Runs each statement in a transaction of its own, and returns the events that came of them, in the order of
    /// commits.
    #[track_caller]
    pub fn events_of(&self, statements: &[&str]) -> Vec<Event> {
        self.delivered(&self.receiver, "all");
        self.receiver.clear();
        self.each(statements);
        let mut events = self.delivered(&self.receiver, "all");
        in_key_order(&events);
        events.sort_by_key(Event::place);
        events
    }

    /// The one event of a statement.
    #[track_caller]
    pub fn event_of(&self, statement: &str) -> Event {
        let mut events = self.events_of(&[statement]);
        assert_eq!(events.len(), 1, "{events:?}");
        events.remove(0)
    }

    /// What `to_json` makes of the one row of a table that meets the condition.
    #[track_caller]
    pub fn row(&self, table: &str, condition: &str) -> Value {
        let sql = format!("SET TimeZone = 'UTC'; SELECT to_json(r) FROM {table} r WHERE {condition}");
        json(&self.value(&sql)).expect("JSON")
    }
}

/// What happened, in short.
pub fn what(events: &[Event]) -> Vec<String> {
    events.iter().map(Event::what).collect()
}
