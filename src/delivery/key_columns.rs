//! The keys of subscriptions that have columns of their own as key. Pure.
//!
//! They are made from the event, by the subscription's present columns, so that neither the queue nor the journal has to
//! carry a key for each subscription. Values are the same when their JSON is.

use std::collections::HashMap;

use xxhash_rust::xxh3::xxh3_64;

use crate::event::{Action, Cell, Event, KeyKind, Row};
use crate::ipc::frame::LaneKeys;

/// Which columns subscriptions have as key, if it is not the table's.
#[derive(Debug, Default)]
pub struct OwnKeys(HashMap<i64, Vec<String>>);

impl OwnKeys {
    /// Takes note of a subscription's columns; none: the table's key.
    pub fn set(&mut self, subscription: i64, columns: Option<&[String]>) {
        match columns {
            Some(columns) => self.0.insert(subscription, columns.to_vec()),
            None => self.0.remove(&subscription),
        };
    }

    /// The keys of an event for a subscription, and whether it holds back its whole table since they are not known.
    /// `keys` and `barrier` are those by the table's key.
    pub fn of(&self, subscription: i64, event: &Event, keys: LaneKeys, barrier: bool) -> (LaneKeys, bool) {
        match self.0.get(&subscription) {
            Some(columns) if is_of_a_row(event.action) => match keys_by(event, columns) {
                Some(keys) => (keys, false),
                None => (LaneKeys::default(), true),
            },
            _ => (keys, barrier),
        }
    }
}

fn is_of_a_row(action: Action) -> bool {
    matches!(action, Action::Read | Action::Insert | Action::Update | Action::Delete)
}

/// The keys by these columns; none when a value is not known.
fn keys_by(event: &Event, columns: &[String]) -> Option<LaneKeys> {
    let places: Option<Vec<usize>> = columns
        .iter()
        .map(|name| event.relation.columns.iter().position(|column| column.name == *name))
        .collect();
    let places = places?;
    let (new, old) = (event.new.as_ref(), event.old.as_ref());
    let after = new.map(|new| hash(&places, new, old));
    let before = old.map(|old| hash(&places, old, None));
    match (event.action, after, before) {
        (Action::Delete, _, before) => Some(LaneKeys { key: Some(before??), old: None }),
        (Action::Update, after, Some(before)) => {
            let (after, before) = (after??, before?);
            Some(LaneKeys { key: Some(after), old: (before != after).then_some(before) })
        }
        // Without an old row the table's key is what it was, where its change would be told, and nothing is known of other
        // columns.
        (Action::Update, after, None) => {
            let relation = &event.relation;
            let known =
                relation.key == KeyKind::Logged && places.iter().all(|place| relation.columns[*place].is_key);
            known.then_some(LaneKeys { key: Some(after??), old: None })
        }
        (_, after, _) => Some(LaneKeys { key: Some(after??), old: None }),
    }
}

/// The hash of a row's values, whatever its table; those that an update left as they were are the other row's.
fn hash(places: &[usize], row: &Row, unchanged: Option<&Row>) -> Option<u64> {
    let mut bytes = Vec::new();
    for place in places {
        let cell = match row.cells().nth(*place)? {
            Cell::Unchanged => unchanged?.cells().nth(*place)?,
            cell => cell,
        };
        match cell {
            Cell::Null => bytes.push(0),
            Cell::Json(text) => {
                let text = bare(text);
                bytes.push(1);
                bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
                bytes.extend_from_slice(text);
            }
            Cell::Absent | Cell::Unchanged | Cell::Omitted => return None,
        }
    }
    Some(xxh3_64(&bytes))
}

/// Without the quotes: a number that becomes a text, as a column's type may, is the same key.
fn bare(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\"").and_then(|text| text.strip_suffix(b"\"")).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::event::{Column, Fingerprint, Lsn, Relation, TableName, Timestamp, Transaction};

    type Cells<'a> = Option<[Cell<'a>; 3]>;

    /// An event of a table whose first column is the key.
    fn event(action: Action, new: Cells<'_>, old: Cells<'_>) -> Event {
        let column = |number: i16| Column {
            name: format!("c{number}"),
            number,
            type_oid: 25,
            type_name: "text".into(),
            kind: crate::event::Kind::Text,
            is_key: number == 1,
            heads: Default::default(),
        };
        let name = TableName { schema: "public".into(), table: "t".into() };
        let relation = Relation {
            oid: 9,
            root_oid: 8,
            names: vec![name],
            columns: (1..=3).map(column).collect(),
            key: Default::default(),
            version: 0,
        };
        let transaction = Transaction {
            xid: 1,
            commit_lsn: Lsn(1),
            committed_at: Timestamp(1),
            fingerprint: Fingerprint::of(1, 1, Timestamp(1)),
            origin: None,
        };
        Event {
            transaction: Arc::new(transaction),
            ordinal: 0,
            lsn: Lsn(1),
            annotations: None,
            action,
            relation: Arc::new(relation),
            new: new.map(Row::from_iter),
            old: old.map(Row::from_iter),
        }
    }

    fn keys(columns: &[&str], event: &Event) -> (LaneKeys, bool) {
        let mut own = OwnKeys::default();
        let columns: Vec<String> = columns.iter().map(|name| (*name).to_owned()).collect();
        own.set(1, Some(&columns));
        own.of(1, event, LaneKeys { key: Some(1), old: None }, false)
    }

    const A: Cell<'_> = Cell::Json(b"1");
    const B: Cell<'_> = Cell::Json(b"2");
    const UNKNOWN: (LaneKeys, bool) = (LaneKeys { key: None, old: None }, true);

    #[test]
    fn rows_with_the_same_values_have_the_same_key() {
        let first = keys(&["c2"], &event(Action::Insert, Some([A, B, A]), None));
        assert_eq!(first, keys(&["c2"], &event(Action::Insert, Some([B, B, B]), None)));
        assert_ne!(first, keys(&["c2"], &event(Action::Insert, Some([B, A, B]), None)));
        assert_eq!(first, keys(&["c2"], &event(Action::Delete, None, Some([B, B, B]))));
        assert!(!first.1 && first.0.old.is_none());
    }

    #[test]
    fn a_read_has_the_key_of_its_row_and_tables_and_types_make_no_difference() {
        let first = keys(&["c2"], &event(Action::Insert, Some([A, B, A]), None));
        assert_eq!(first, keys(&["c2"], &event(Action::Read, Some([A, B, A]), None)));
        assert_eq!(first, keys(&["c2"], &event(Action::Insert, Some([A, Cell::Json(b"\"2\""), A]), None)));
        let mut other = event(Action::Insert, Some([A, B, A]), None);
        other.relation = Arc::new(Relation { oid: 19, root_oid: 18, ..Relation::clone(&other.relation) });
        assert_eq!(first, keys(&["c2"], &other));
    }

    #[test]
    fn an_update_that_changes_the_key_has_both() {
        let (key, barrier) = keys(&["c2"], &event(Action::Update, Some([A, A, A]), Some([A, B, A])));
        let was = keys(&["c2"], &event(Action::Insert, Some([A, B, A]), None)).0.key;
        assert!(!barrier && key.old == was && key.key != was);
        let stays = keys(&["c2"], &event(Action::Update, Some([A, Cell::Unchanged, A]), Some([A, B, A])));
        assert_eq!(stays.0, LaneKeys { key: was, old: None });
    }

    #[test]
    fn what_is_not_known_holds_back_the_table() {
        let absent = Cell::Absent;
        for event in [
            event(Action::Update, Some([A, B, A]), None),
            event(Action::Update, Some([A, B, A]), Some([A, absent, absent])),
            event(Action::Delete, None, Some([A, absent, absent])),
            event(Action::Delete, None, None),
            event(Action::Insert, Some([A, Cell::Omitted, A]), None),
        ] {
            assert_eq!(keys(&["c2"], &event), UNKNOWN);
        }
        assert_eq!(keys(&["gone"], &event(Action::Insert, Some([A, A, A]), None)), UNKNOWN);
        assert!(!keys(&["c1"], &event(Action::Update, Some([A, B, A]), None)).1);
    }

    #[test]
    fn others_have_the_key_of_the_table() {
        let (own, table) = (OwnKeys::default(), LaneKeys { key: Some(7), old: None });
        assert_eq!(own.of(1, &event(Action::Insert, Some([A, A, A]), None), table, false), (table, false));
        let truncate = event(Action::Truncate, None, None);
        assert_eq!(keys(&["c2"], &truncate), (LaneKeys { key: Some(1), old: None }, false));
    }
}
