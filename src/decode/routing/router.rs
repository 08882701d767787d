//! Routing: which subscriptions want a change. Pure; the decoder keeps it as of each transaction's commit.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::message_router::Listeners;
use super::table_pattern::TablePattern;
use crate::event::{Action, TableName};
use crate::ipc::frame::Target;

/// What decides whether a subscription gets a change: the part of its row that routing needs, as of some commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Patterns of tables, in their stored spelling.
    pub tables: Vec<String>,
    /// Words of [`Action`].
    pub event_types: Vec<String>,
    /// A condition over NEW and OLD; none: all rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// Updates only when one of these columns changed; none: all updates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed: Option<Vec<String>>,
    /// Whether it gets anything at all.
    pub enabled: bool,
    /// `local`: only what was committed here first; else all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// Where it was armed, beginning with the installation; nothing is captured for those of another one.
    pub home: String,
    /// Who must be allowed to read what it gets.
    #[serde(flatten)]
    pub grantee: Grantee,
}

/// On whose behalf rows are read, and what of them that role must be allowed to read, beside what a [`Condition`] looks at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Grantee {
    /// The role that the subscription belongs to. An unknown one may read nothing.
    #[serde(default)]
    pub owner: String,
    /// The columns that payloads show besides the key; none: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub columns: Option<Vec<String>>,
    /// The columns that payloads leave out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exclude_columns: Option<Vec<String>>,
    /// The columns whose values are the key; none: the table's key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_columns: Option<Vec<String>>,
}

impl Grantee {
    /// Whether it is shown a column of a table.
    pub fn is_shown(&self, column: &str, is_key: bool) -> bool {
        let has =
            |names: &Option<Vec<String>>| names.as_ref().map(|names| names.iter().any(|it| it == column));
        is_key
            || has(&self.key_columns) == Some(true)
            || has(&self.columns).unwrap_or_else(|| has(&self.exclude_columns) != Some(true))
    }
}

/// The word of a subscription that wants only what was committed here first.
pub const LOCAL: &str = "local";

/// The columns of `pgwh.subscriptions` that make a [`Spec`].
pub const SPEC_COLUMNS: [&str; 11] = [
    "tables",
    "event_types",
    "filter",
    "changed",
    "enabled",
    "origin",
    "home",
    "owner",
    "columns",
    "exclude_columns",
    "key_columns",
];

/// A table by whose name the rows of a relation may be sent: the relation itself, or one above it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Level {
    /// Its oid.
    pub oid: u32,
    /// Its name.
    pub name: TableName,
    /// Whether patterns with wildcards match it: tables of the system's and of extensions must be named.
    pub is_user_table: bool,
}

/// Which actions of a table a subscription wants, and under which of the table's names it knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    /// The subscription.
    pub subscription: i64,
    /// Index into the relation's names: the topmost that a pattern matched.
    pub level: u8,
    /// Whether that pattern names the table, without a wildcard.
    pub is_named: bool,
    actions: Actions,
}

impl Interest {
    /// Whether it wants this action.
    pub fn wants(&self, action: Action) -> bool {
        self.actions.contains(action)
    }

    /// Whether it wants changes of rows at all.
    pub fn is_of_rows(&self) -> bool {
        self.actions != Actions(0)
    }

    /// It as one who gets a change.
    pub fn target(&self) -> Target {
        Target { subscription: self.subscription, level: self.level }
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

/// What a change must be like for a subscription to get it, beyond its table and action.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Condition {
    /// A condition over NEW and OLD.
    pub filter: Option<Arc<str>>,
    /// Columns of which one must have changed in an update.
    pub changed: Option<Vec<String>>,
}

struct Subscription {
    /// Key of its group.
    tables: Arc<[String]>,
    actions: Actions,
    condition: Option<Box<Condition>>,
    is_local: bool,
    is_enabled: bool,
    grantee: Arc<Grantee>,
}

/// What a subscription asks of the changes of a table that it is interested in.
#[derive(Clone, Copy)]
pub struct Terms<'a> {
    /// What they must be like; none: any.
    pub condition: Option<&'a Condition>,
    /// Who must be allowed to read them.
    pub grantee: &'a Arc<Grantee>,
}

/// Subscriptions to the same tables.
struct Group {
    patterns: Vec<TablePattern>,
    members: BTreeSet<i64>,
}

/// All subscriptions of this installation; those that are disabled get nothing.
pub struct Router {
    installed: String,
    subscriptions: HashMap<i64, Subscription>,
    groups: HashMap<Arc<[String]>, Group>,
    /// Groups of which no pattern has a wildcard, by the tables that they name.
    by_table: HashMap<TableName, BTreeSet<Arc<[String]>>>,
    /// The others.
    with_wildcards: BTreeSet<Arc<[String]>>,
    /// Those who want something else than rows.
    listeners: Listeners,
    /// Each once, since many subscriptions have the same; and how many have it.
    grantees: HashMap<Arc<Grantee>, usize>,
}

impl Router {
    /// A router that knows nobody yet, of this installation. Where the cluster is another one since, what is sent waits
    /// for somebody to adopt it; capture goes on.
    pub fn new(installed: String) -> Router {
        Router {
            installed,
            subscriptions: HashMap::new(),
            groups: HashMap::new(),
            by_table: HashMap::new(),
            with_wildcards: BTreeSet::new(),
            listeners: Listeners::default(),
            grantees: HashMap::new(),
        }
    }

    /// This installation.
    pub fn installed(&self) -> &str {
        &self.installed
    }

    /// Whether that is the home of something of this installation, wherever its cluster was then.
    pub fn is_ours(&self, home: &str) -> bool {
        home.strip_prefix(&*self.installed).is_some_and(|rest| rest.starts_with('/'))
    }

    /// Takes note of what a subscription asks for from here on, or that it is gone.
    pub fn apply(&mut self, subscription: i64, spec: Option<&Spec>) {
        self.remove(subscription);
        let Some(spec) = spec.filter(|spec| self.is_ours(&spec.home)) else { return };
        let tables = self.join_group(subscription, &spec.tables);
        let condition =
            Condition { filter: spec.filter.as_deref().map(Arc::from), changed: spec.changed.clone() };
        let has_condition = condition.filter.is_some() || condition.changed.is_some();
        let actions = Actions::of(&spec.event_types);
        let condition = has_condition.then(|| Box::new(condition));
        if spec.enabled {
            self.listeners.add(subscription, &spec.tables, &spec.event_types);
        }
        let grantee = self.grantee(&spec.grantee);
        let (is_local, is_enabled) = (spec.origin.as_deref() == Some(LOCAL), spec.enabled);
        self.subscriptions
            .insert(subscription, Subscription { tables, actions, condition, is_local, is_enabled, grantee });
    }

    fn grantee(&mut self, wanted: &Grantee) -> Arc<Grantee> {
        let known = self.grantees.get_key_value(wanted).map(|(known, _)| Arc::clone(known));
        let grantee = known.unwrap_or_else(|| Arc::new(wanted.clone()));
        *self.grantees.entry(Arc::clone(&grantee)).or_default() += 1;
        grantee
    }

    fn join_group(&mut self, subscription: i64, tables: &[String]) -> Arc<[String]> {
        if let Some((known, _)) = self.groups.get_key_value(tables) {
            let known = Arc::clone(known);
            self.groups.entry(Arc::clone(&known)).and_modify(|group| {
                group.members.insert(subscription);
            });
            return known;
        }
        let tables: Arc<[String]> = tables.into();
        // What is stored has been checked; a pattern that cannot be read matches nothing.
        let patterns: Vec<_> = tables.iter().filter_map(|text| TablePattern::parse(text).ok()).collect();
        match names_of(&patterns) {
            Some(names) => names.into_iter().for_each(|name| {
                self.by_table.entry(name).or_default().insert(Arc::clone(&tables));
            }),
            None => {
                self.with_wildcards.insert(Arc::clone(&tables));
            }
        }
        let members = BTreeSet::from([subscription]);
        self.groups.insert(Arc::clone(&tables), Group { patterns, members });
        tables
    }

    fn remove(&mut self, subscription: i64) {
        let Some(Subscription { tables, grantee, .. }) = self.subscriptions.remove(&subscription) else {
            return;
        };
        self.listeners.remove(subscription);
        if let Some(count) = self.grantees.get_mut(&grantee) {
            *count -= 1;
            if *count == 0 {
                self.grantees.remove(&grantee);
            }
        }
        let Some(group) = self.groups.get_mut(&tables) else { return };
        group.members.remove(&subscription);
        if !group.members.is_empty() {
            return;
        }
        for name in names_of(&group.patterns).unwrap_or_default() {
            if let Some(groups) = self.by_table.get_mut(&name) {
                groups.remove(&tables);
                if groups.is_empty() {
                    self.by_table.remove(&name);
                }
            }
        }
        self.with_wildcards.remove(&tables);
        self.groups.remove(&tables);
    }

    /// All of them.
    pub fn ids(&self) -> impl Iterator<Item = i64> {
        self.subscriptions.keys().copied()
    }

    /// Whether there is nobody.
    pub fn is_empty(&self) -> bool {
        self.subscriptions.is_empty()
    }

    /// Whether there are patterns with wildcards.
    pub fn has_wildcards(&self) -> bool {
        !self.with_wildcards.is_empty()
    }

    /// What changes must be like for a subscription to get them.
    pub fn condition(&self, id: i64) -> Option<&Condition> {
        self.subscriptions.get(&id)?.condition.as_deref()
    }

    /// Whose a subscription is.
    pub fn owner(&self, id: i64) -> Option<&str> {
        self.subscriptions.get(&id).map(|subscription| subscription.grantee.owner.as_str())
    }

    /// Whether a subscription gets anything.
    pub fn is_enabled(&self, id: i64) -> bool {
        self.subscriptions.get(&id).is_some_and(|subscription| subscription.is_enabled)
    }

    /// Whether a subscription wants only what was committed here first.
    pub fn is_local(&self, id: i64) -> bool {
        self.subscriptions.get(&id).is_some_and(|subscription| subscription.is_local)
    }

    /// Those who want something else than rows.
    pub fn listeners(&self) -> &Listeners {
        &self.listeners
    }

    /// Who is interested in a relation of these levels (its own first, then those of the tables above it), and on which
    /// terms.
    pub fn interests(&self, levels: &[Level]) -> impl Iterator<Item = (Interest, Terms<'_>)> {
        self.declared_interests(levels).filter(|(interest, _)| self.is_enabled(interest.subscription))
    }

    /// The same, with subscriptions that are disabled.
    pub fn declared_interests(&self, levels: &[Level]) -> impl Iterator<Item = (Interest, Terms<'_>)> {
        let named = levels.iter().filter_map(|level| self.by_table.get(&level.name)).flatten();
        let tables: BTreeSet<_> = named.chain(&self.with_wildcards).collect();
        let groups = tables.into_iter().filter_map(|tables| self.groups.get(tables));
        let matching = groups.filter_map(|group| Some((group, matched(&group.patterns, levels)?)));
        let interests = matching.flat_map(move |(group, place)| {
            let members = group.members.iter().filter_map(|id| Some((*id, self.subscriptions.get(id)?)));
            let of_rows = members.filter(|(_, subscription)| subscription.actions != Actions(0));
            of_rows.map(move |(id, subscription)| (id, place, subscription))
        });
        interests.map(|(id, place, subscription)| (place.interest(id, subscription), subscription.terms()))
    }

    /// What one subscription wants of such a relation.
    pub fn interest(&self, id: i64, levels: &[Level]) -> Option<(Interest, Terms<'_>)> {
        self.declared_interest(id, levels).filter(|_| self.is_enabled(id))
    }

    /// What one subscription wants of such a relation, or would if it were enabled.
    pub fn declared_interest(&self, id: i64, levels: &[Level]) -> Option<(Interest, Terms<'_>)> {
        let subscription = self.subscriptions.get(&id)?;
        let place = matched(&self.groups.get(&subscription.tables)?.patterns, levels)?;
        Some((place.interest(id, subscription), subscription.terms()))
    }
}

impl Subscription {
    fn terms(&self) -> Terms<'_> {
        Terms { condition: self.condition.as_deref(), grantee: &self.grantee }
    }
}

/// Where a relation was found among the tables of a group.
#[derive(Clone, Copy)]
struct Place {
    level: u8,
    is_named: bool,
}

impl Place {
    fn interest(self, id: i64, subscription: &Subscription) -> Interest {
        Interest {
            subscription: id,
            level: self.level,
            is_named: self.is_named,
            actions: subscription.actions,
        }
    }
}

/// The topmost level of a relation that one of the patterns leads to.
fn matched(patterns: &[TablePattern], levels: &[Level]) -> Option<Place> {
    let leading = |level: &Level| {
        let leads = |pattern: &&TablePattern| pattern.leads_to(&level.name, level.is_user_table);
        patterns.iter().filter(leads).collect::<Vec<_>>()
    };
    let (level, patterns) = levels
        .iter()
        .enumerate()
        .rev()
        .map(|(place, level)| (place, leading(level)))
        .find(|(_, found)| !found.is_empty())?;
    let is_named = patterns.iter().any(|pattern| pattern.literal().is_some());
    Some(Place { level: u8::try_from(level).unwrap_or(u8::MAX), is_named })
}

/// The tables that the patterns name, if none has a wildcard.
fn names_of(patterns: &[TablePattern]) -> Option<Vec<TableName>> {
    let literals = patterns.iter().map(|pattern| pattern.literal());
    literals
        .map(|literal| {
            literal.map(|(schema, table)| TableName { schema: schema.into(), table: table.into() })
        })
        .collect()
}

#[cfg(test)]
mod tests;
