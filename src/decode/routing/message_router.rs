//! Who listens to what is no change of rows: schema changes and messages. Pure; kept as of each transaction's commit.

use std::collections::{BTreeMap, BTreeSet};

use super::table_pattern::TablePattern;
use crate::event::TableName;
use crate::event::event_type::MESSAGE_PREFIX;

/// What a schema change is about, for those who ask for it by patterns.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// A schema itself.
    Schema {
        /// Its name.
        name: String,
        /// Whether it is a user's: that of an extension must be named.
        is_users: bool,
    },
    /// Something in a schema: a table or what belongs to one, which goes by the table's name, or a type, a sequence or so.
    Named {
        /// Its name.
        name: TableName,
        /// Whether it is a user's: what is of an extension must be named.
        is_users: bool,
    },
}

/// Who wrote a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer<'a> {
    /// `pgwh.emit`.
    Emit,
    /// Our workers, of a subscription.
    System,
    /// Another application, under its prefix.
    Other(&'a str),
}

/// Subscriptions to schema changes and to messages.
#[derive(Debug, Default)]
pub struct Listeners {
    /// Those to schema changes, with their patterns.
    observers: BTreeMap<i64, Vec<TablePattern>>,
    /// Those to what `pgwh.emit` writes.
    readers: BTreeSet<i64>,
    /// Those to what our workers have to say.
    watchers: BTreeSet<i64>,
    /// Those to other applications' messages, by prefix.
    by_prefix: BTreeMap<String, BTreeSet<i64>>,
}

impl Listeners {
    /// Takes note of what a subscription asks for, of which nothing was noted or [`Listeners::remove`] has forgotten it.
    pub fn add(&mut self, subscription: i64, tables: &[String], event_types: &[String]) {
        for word in event_types {
            if word == "ddl" {
                // What is stored has been checked; a pattern that cannot be read matches nothing.
                let patterns = tables.iter().filter_map(|text| TablePattern::parse(text).ok()).collect();
                self.observers.insert(subscription, patterns);
            } else if word == "message" {
                self.readers.insert(subscription);
            } else if word == "system" {
                self.watchers.insert(subscription);
            } else if let Some(prefix) = word.strip_prefix(MESSAGE_PREFIX) {
                self.by_prefix.entry(prefix.to_owned()).or_default().insert(subscription);
            }
        }
    }

    /// It is gone, or asks for something else from here on.
    pub fn remove(&mut self, subscription: i64) {
        self.observers.remove(&subscription);
        self.readers.remove(&subscription);
        self.watchers.remove(&subscription);
        self.by_prefix.retain(|_, readers| {
            readers.remove(&subscription);
            !readers.is_empty()
        });
    }

    /// Who gets a message. Patterns of tables have no part in it.
    pub fn readers(&self, writer: Writer<'_>) -> impl Iterator<Item = i64> {
        let readers = match writer {
            Writer::Emit => Some(&self.readers),
            Writer::System => Some(&self.watchers),
            Writer::Other(prefix) => self.by_prefix.get(prefix),
        };
        readers.into_iter().flatten().copied()
    }

    /// Whether anybody gets schema changes.
    pub fn has_observers(&self) -> bool {
        !self.observers.is_empty()
    }

    /// Who gets a schema change that is about these places.
    pub fn observers(&self, places: &[Place]) -> impl Iterator<Item = i64> {
        let matches = |patterns: &[TablePattern]| {
            places.iter().any(|place| {
                patterns.iter().any(|pattern| match place {
                    Place::Schema { name, is_users } => {
                        (*is_users || pattern.schema.literal().is_some()) && pattern.schema.matches(name)
                    }
                    Place::Named { name, is_users } => pattern.leads_to(name, *is_users),
                })
            })
        };
        self.observers.iter().filter(move |(_, patterns)| matches(patterns)).map(|(id, _)| *id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listeners(subscriptions: &[(i64, &str, &[&str])]) -> Listeners {
        let mut listeners = Listeners::default();
        for (id, tables, event_types) in subscriptions {
            let event_types: Vec<String> = event_types.iter().map(|word| (*word).to_owned()).collect();
            listeners.add(*id, &[(*tables).to_owned()], &event_types);
        }
        listeners
    }

    fn name(schema: &str, table: &str) -> TableName {
        TableName { schema: schema.to_owned(), table: table.to_owned() }
    }

    #[test]
    fn messages_reach_those_who_ask_for_them_whatever_their_tables() {
        let mut listeners = listeners(&[
            (1, "*.*", &["insert"]),
            (2, "public.t", &["message"]),
            (3, "*.*", &["message:app", "message:b"]),
            (4, "*.*", &["system"]),
        ]);
        assert_eq!(listeners.readers(Writer::Emit).collect::<Vec<_>>(), [2]);
        assert_eq!(listeners.readers(Writer::System).collect::<Vec<_>>(), [4]);
        assert_eq!(listeners.readers(Writer::Other("app")).collect::<Vec<_>>(), [3]);
        assert_eq!(listeners.readers(Writer::Other("ap")).count(), 0);
        assert_eq!(listeners.readers(Writer::Other("message")).count(), 0);
        listeners.remove(3);
        listeners.remove(4);
        assert_eq!(listeners.readers(Writer::System).count(), 0);
        assert_eq!(listeners.readers(Writer::Other("app")).count(), 0);
    }

    #[test]
    fn schema_changes_reach_those_whose_patterns_match_what_they_are_about() {
        let listeners = listeners(&[
            (1, "public.*", &["ddl"]),
            (2, "public.orders", &["ddl", "insert"]),
            (3, "*.*", &["insert"]),
            (4, "sales.*", &["ddl"]),
        ]);
        let observers = |places: &[Place]| listeners.observers(places).collect::<Vec<_>>();
        let named = |schema: &str, table: &str| Place::Named { name: name(schema, table), is_users: true };
        let schema = |name: &str| Place::Schema { name: name.to_owned(), is_users: true };
        assert_eq!(observers(&[named("public", "orders")]), [1, 2]);
        assert_eq!(observers(&[named("public", "mood")]), [1]);
        assert_eq!(observers(&[schema("public")]), [1, 2]);
        assert_eq!(observers(&[schema("sales"), named("public", "x")]), [1, 4]);
        assert_eq!(observers(&[]), [0; 0]);
    }

    #[test]
    fn schema_changes_of_extensions_reach_those_who_name_what_they_are_about() {
        let listeners = listeners(&[
            (1, "*.*", &["ddl"]),
            (2, "cron.*", &["ddl"]),
            (3, "cron.job", &["ddl"]),
            (4, "cr*.job", &["ddl"]),
        ]);
        let observers = |place: Place| listeners.observers(&[place]).collect::<Vec<_>>();
        assert_eq!(observers(Place::Named { name: name("cron", "job"), is_users: false }), [3]);
        assert_eq!(observers(Place::Schema { name: "cron".to_owned(), is_users: false }), [2, 3]);
    }
}
