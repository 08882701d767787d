//! Routing: which subscriptions want a change. Pure; the decoder keeps it as of each transaction's commit.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::pattern::TablePattern;
use crate::api::event_types::MESSAGE_PREFIX;
use crate::event::{Action, TableName};

/// What decides whether a subscription gets a change: the part of its row that routing needs, as of some commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Patterns of tables, in their stored spelling.
    pub tables: Vec<String>,
    /// Words of [`Action`].
    pub event_types: Vec<String>,
    /// Whether it gets anything at all.
    pub enabled: bool,
    /// Where it was armed, beginning with the installation; nothing is captured for those of another one.
    pub home: String,
}

/// The columns of `pgwh.subscriptions` that make a [`Spec`].
pub const SPEC_COLUMNS: [&str; 4] = ["tables", "event_types", "enabled", "home"];

/// Which actions of a table a subscription wants, and under which of the table's names it knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    /// The subscription.
    pub subscription: i64,
    /// Index into the relation's names: the topmost that a pattern matched.
    pub level: u8,
    actions: Actions,
}

impl Interest {
    /// Whether it wants this action.
    pub fn wants(&self, action: Action) -> bool {
        self.actions.contains(action)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Actions(u8);

impl Actions {
    fn of(words: &[String]) -> Actions {
        Actions(words.iter().fold(0, |set, word| {
            set | match word.as_str() {
                "insert" => Self::bit(Action::Insert),
                "update" => Self::bit(Action::Update),
                "delete" => Self::bit(Action::Delete),
                "truncate" => Self::bit(Action::Truncate),
                "ddl" => Self::bit(Action::Ddl),
                "message" => Self::bit(Action::Message),
                _ => 0,
            }
        }))
    }

    fn bit(action: Action) -> u8 {
        1 << action as u8
    }

    fn contains(self, action: Action) -> bool {
        self.0 & Self::bit(action) != 0
    }

    /// Whether there is any that changes of rows are.
    fn any_of_rows(self) -> bool {
        self.0 & !(Self::bit(Action::Ddl) | Self::bit(Action::Message)) != 0
    }
}

struct Subscription {
    patterns: Vec<TablePattern>,
    actions: Actions,
    /// Prefixes of other applications' messages.
    prefixes: Vec<String>,
}

impl Subscription {
    fn wants_schema_change(&self, place: &Place) -> bool {
        self.patterns.iter().any(|pattern| match place {
            Place::Schema(schema) => pattern.schema.matches(schema),
            Place::Named(name) => pattern.matches(name),
        })
    }
}

/// What a schema change is about, for those who ask for it by patterns.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// A schema itself.
    Schema(String),
    /// Something in a schema: a table or what belongs to one, which goes by the table's name, or a type, a sequence or so.
    Named(TableName),
}

/// Who wrote a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer<'a> {
    /// `pgwh.emit`.
    Emit,
    /// Another application, under its prefix.
    Other(&'a str),
}

/// All subscriptions that may get something.
pub struct Router {
    installed: String,
    subscriptions: BTreeMap<i64, Subscription>,
}

impl Router {
    /// A router that knows nobody yet, of this installation. Where the cluster is another one since, what is sent waits
    /// for somebody to adopt it; capture goes on.
    pub fn new(installed: String) -> Router {
        Router { installed, subscriptions: BTreeMap::new() }
    }

    /// This installation.
    pub fn home(&self) -> &str {
        &self.home
    }

    /// Takes note of what a subscription asks for from here on, or that it is gone.
    pub fn apply(&mut self, subscription: i64, spec: Option<&Spec>) {
        let is_ours =
            |home: &str| home.strip_prefix(&*self.installed).is_some_and(|rest| rest.starts_with('/'));
        match spec.filter(|spec| spec.enabled && is_ours(&spec.home)) {
            Some(spec) => {
                // What is stored has been checked; a pattern that can't be read matches nothing.
                let patterns = spec.tables.iter().filter_map(|text| TablePattern::parse(text).ok()).collect();
                let actions = Actions::of(&spec.event_types);
                let prefixes = spec.event_types.iter().filter_map(|word| word.strip_prefix(MESSAGE_PREFIX));
                let prefixes = prefixes.map(str::to_owned).collect();
                self.subscriptions.insert(subscription, Subscription { patterns, actions, prefixes });
            }
            None => {
                self.subscriptions.remove(&subscription);
            }
        }
    }

    /// Those who may get something.
    pub fn ids(&self) -> impl Iterator<Item = i64> {
        self.subscriptions.keys().copied()
    }

    /// Who gets a message. Patterns of tables have no part in it.
    pub fn readers(&self, writer: Writer<'_>) -> impl Iterator<Item = i64> {
        let wants = move |subscription: &Subscription| match writer {
            Writer::Emit => subscription.actions.contains(Action::Message),
            Writer::Other(prefix) => subscription.prefixes.iter().any(|wanted| wanted == prefix),
        };
        self.subscriptions.iter().filter(move |(_, subscription)| wants(subscription)).map(|(id, _)| *id)
    }

    /// Whether anybody gets changes of the schema.
    pub fn has_observers(&self) -> bool {
        self.subscriptions.values().any(|subscription| subscription.actions.contains(Action::Ddl))
    }

    /// Who gets a change of the schema that is about these places.
    pub fn observers(&self, places: &[Place]) -> impl Iterator<Item = i64> {
        self.subscriptions
            .iter()
            .filter(|(_, subscription)| subscription.actions.contains(Action::Ddl))
            .filter(|(_, subscription)| places.iter().any(|place| subscription.wants_schema_change(place)))
            .map(|(id, _)| *id)
    }

    /// Who is interested in a relation of these names (its own first, then those of the tables above it).
    pub fn interests(&self, names: &[TableName]) -> Vec<Interest> {
        self.subscriptions
            .iter()
            .filter(|(_, subscription)| subscription.actions.any_of_rows())
            .filter_map(|(id, subscription)| {
                let level = names
                    .iter()
                    .rposition(|name| subscription.patterns.iter().any(|pattern| pattern.matches(name)))?;
                Some(Interest {
                    subscription: *id,
                    level: u8::try_from(level).unwrap_or(u8::MAX),
                    actions: subscription.actions,
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn router(subscriptions: &[(i64, &str, &[&str])]) -> Router {
        let mut router = Router::new("here".to_owned());
        for (id, tables, event_types) in subscriptions {
            let spec = Spec {
                tables: vec![(*tables).to_owned()],
                event_types: event_types.iter().map(|word| (*word).to_owned()).collect(),
                enabled: true,
                home: "here".to_owned(),
            };
            router.apply(*id, Some(&spec));
        }
        router
    }

    fn name(schema: &str, table: &str) -> TableName {
        TableName { schema: schema.to_owned(), table: table.to_owned() }
    }

    #[test]
    fn messages_reach_those_who_ask_for_them_whatever_their_tables() {
        let router = router(&[
            (1, "*.*", &["insert"]),
            (2, "public.t", &["message"]),
            (3, "*.*", &["message:app", "message:b"]),
        ]);
        assert_eq!(router.readers(Writer::Emit).collect::<Vec<_>>(), [2]);
        assert_eq!(router.readers(Writer::Other("app")).collect::<Vec<_>>(), [3]);
        assert_eq!(router.readers(Writer::Other("ap")).count(), 0);
        assert_eq!(router.readers(Writer::Other("message")).count(), 0);
    }

    #[test]
    fn schema_changes_reach_those_whose_patterns_match_what_they_are_about() {
        let router = router(&[
            (1, "public.*", &["ddl"]),
            (2, "public.orders", &["ddl", "insert"]),
            (3, "*.*", &["insert"]),
            (4, "sales.*", &["ddl"]),
        ]);
        let observers = |places: &[Place]| router.observers(places).collect::<Vec<_>>();
        assert_eq!(observers(&[Place::Named(name("public", "orders"))]), [1, 2]);
        assert_eq!(observers(&[Place::Named(name("public", "mood"))]), [1]);
        assert_eq!(observers(&[Place::Schema("public".to_owned())]), [1, 2]);
        assert_eq!(
            observers(&[Place::Schema("sales".to_owned()), Place::Named(name("public", "x"))]),
            [1, 4]
        );
        assert_eq!(observers(&[]), [0; 0]);
    }

    #[test]
    fn rows_are_of_no_interest_to_who_asks_for_none() {
        let router = router(&[(1, "*.*", &["ddl", "message", "message:app"]), (2, "*.*", &["delete"])]);
        let interested: Vec<i64> =
            router.interests(&[name("public", "t")]).iter().map(|interest| interest.subscription).collect();
        assert_eq!(interested, [2]);
    }
}
