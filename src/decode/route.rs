//! Routing: which subscriptions want a change. Pure; the decoder keeps it as of each transaction's commit.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::pattern::TablePattern;
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
}

struct Subscription {
    patterns: Vec<TablePattern>,
    actions: Actions,
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

    /// Takes note of what a subscription asks for from here on, or that it is gone.
    pub fn apply(&mut self, subscription: i64, spec: Option<&Spec>) {
        let is_ours =
            |home: &str| home.strip_prefix(&*self.installed).is_some_and(|rest| rest.starts_with('/'));
        match spec.filter(|spec| spec.enabled && is_ours(&spec.home)) {
            Some(spec) => {
                // What is stored has been checked; a pattern that can't be read matches nothing.
                let patterns = spec.tables.iter().filter_map(|text| TablePattern::parse(text).ok()).collect();
                let actions = Actions::of(&spec.event_types);
                self.subscriptions.insert(subscription, Subscription { patterns, actions });
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

    /// Who is interested in a relation of these names (its own first, then those of the tables above it).
    pub fn interests(&self, names: &[TableName]) -> Vec<Interest> {
        self.subscriptions
            .iter()
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
