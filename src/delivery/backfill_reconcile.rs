//! Keeping what a backfill reads in order with what happens meanwhile.
//!
//! From before the snapshot of a chunk is taken until all that it shows has arrived, the events that its subscription gets
//! are noted. A row of the chunk is sent behind them, so it must not be older than any of them: those that the snapshot
//! didn't see take its place. What had arrived before is seen by the snapshot, since a transaction is told only when it
//! is visible.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::event::{Action, Cell, Event, Relation, Row};
use crate::ipc::frame::{ChunkEnd, Item, LaneKeys};

/// The most events that are noted, and the most bytes of rows that have to be kept: with more, the chunk is read again.
const MOST_NOTED: usize = 200_000;
const MOST_BYTES: usize = 4 << 20;

/// The events that a subscription got since the watch began.
#[derive(Debug, Default)]
pub struct Watch {
    noted: Vec<Noted>,
    bytes: usize,
    too_much: bool,
}

#[derive(Debug)]
struct Noted {
    xid: u32,
    /// As of the change.
    relation: Arc<Relation>,
    change: Change,
}

#[derive(Debug)]
enum Change {
    /// Of the whole table, or of a row that is not named.
    Any,
    /// Of a row.
    Row {
        /// Its key before.
        before: u64,
        /// Its key after; none when it is gone.
        after: Option<u64>,
        /// The event, if it doesn't hold all of the row.
        partial: Option<Arc<Event>>,
    },
}

impl Watch {
    /// Takes note of a change that arrived and goes to the subscription.
    pub fn note(&mut self, item: &Item) {
        if self.too_much {
            return;
        }
        let noted = match item {
            Item::Change { event, keys, barrier, .. } => Noted {
                xid: event.transaction.xid,
                relation: Arc::clone(&event.relation),
                change: Change::of(event, *keys, *barrier),
            },
            // It has become a dead letter, so what was read is all there is.
            _ => return,
        };
        if let Change::Row { partial: Some(event), .. } = &noted.change {
            self.bytes += event.memory();
        }
        self.noted.push(noted);
        if self.noted.len() > MOST_NOTED || self.bytes > MOST_BYTES {
            *self = Watch { too_much: true, ..Watch::default() };
        }
    }

    /// Of the rows of a chunk, those that may be sent behind all that was noted. None when that cannot be said, and the
    /// chunk has to be read again.
    pub fn settle(self, chunk: &ChunkEnd, rows: Vec<Item>) -> Option<Vec<Item>> {
        if self.too_much {
            return None;
        }
        let newer: Vec<Noted> = self
            .noted
            .into_iter()
            .filter(|noted| noted.concerns(chunk) && !chunk.seen.sees(noted.xid))
            .collect();
        if is_keyed_otherwise(&newer, &rows) {
            return None;
        }
        let newer: Vec<Change> = newer.into_iter().map(|noted| noted.change).collect();
        if newer.iter().any(|change| matches!(change, Change::Any)) {
            return None;
        }
        if newer.is_empty() {
            return Some(rows);
        }
        let mut by_key: FxHashMap<u64, Vec<usize>> = FxHashMap::default();
        for (place, change) in newer.iter().enumerate() {
            if let Change::Row { before, .. } = change {
                by_key.entry(*before).or_default().push(place);
            }
        }
        let mut settled = Vec::with_capacity(rows.len());
        for row in rows {
            match fate(&row, &newer, &by_key)? {
                Fate::AsRead => settled.push(row),
                Fate::Superseded => {}
                Fate::Completed(row) => settled.push(*row),
            }
        }
        Some(settled)
    }
}

/// Whether a change was made when the table had another key than when the rows were read, or a key of other types: then the
/// rows that it is about cannot be found by its key.
fn is_keyed_otherwise(newer: &[Noted], rows: &[Item]) -> bool {
    let read = rows.iter().find_map(|row| match row {
        Item::Change { event, .. } => Some(&event.relation),
        _ => None,
    });
    let Some(read) = read else { return false };
    newer.iter().any(|noted| noted.relation.oid == read.oid && noted.relation.keying() != read.keying())
}

impl Noted {
    /// Whether it may be about rows of the chunk. A table and its children by INHERITS have rows of the same key that are not
    /// the same; partitions have not, and rows move between them.
    fn concerns(&self, chunk: &ChunkEnd) -> bool {
        let is_of_whole = matches!(self.change, Change::Any) || chunk.is_partition;
        self.relation.oid == chunk.table || is_of_whole && self.relation.root_oid == chunk.root
    }
}

impl Change {
    fn of(event: &Arc<Event>, keys: LaneKeys, barrier: bool) -> Change {
        let Some(key) = keys.key.filter(|_| !barrier) else {
            // An insert without a key is no news of a row that there was.
            return Change::Any;
        };
        let is_gone = event.action == Action::Delete;
        let holds_all = |row: &Row| row.cells().all(|cell| cell != Cell::Unchanged);
        let partial = event.new.as_ref().is_some_and(|row| !holds_all(row));
        Change::Row {
            before: keys.old.unwrap_or(key),
            after: (!is_gone).then_some(key),
            partial: partial.then(|| Arc::clone(event)),
        }
    }
}

/// What becomes of a row that was read.
enum Fate {
    AsRead,
    /// A newer event tells all of it.
    Superseded,
    /// Newer events tell of it, but not of all its values: it is sent as it is by now.
    Completed(Box<Item>),
}

/// Follows a row through what happened to it since it was read. None when its table has changed meanwhile.
fn fate(row: &Item, newer: &[Change], by_key: &FxHashMap<u64, Vec<usize>>) -> Option<Fate> {
    let Item::Change { event, keys, targets, .. } = row else { return Some(Fate::AsRead) };
    let (Some(first_key), Some(read)) = (keys.key, &event.new) else { return Some(Fate::AsRead) };
    let (mut key, mut place, mut is_newer) = (first_key, 0, false);
    // What it is by now, as long as not all of it has been told.
    let mut untold = Some(read.clone());
    while let Some(next) = by_key
        .get(&key)
        .and_then(|places| places.get(places.partition_point(|&other| other < place)).copied())
    {
        let Change::Row { after, partial, .. } = &newer[next] else { break };
        is_newer = true;
        place = next + 1;
        untold = match (partial, untold) {
            (Some(change), Some(row)) => {
                if change.relation.columns != event.relation.columns {
                    return None;
                }
                change.new.as_ref().map(|new| overlay(&row, new))
            }
            _ => None,
        };
        match after {
            Some(after) => key = *after,
            None => break,
        }
    }
    Some(match untold {
        _ if !is_newer => Fate::AsRead,
        None => Fate::Superseded,
        Some(row) => Fate::Completed(Box::new(Item::Change {
            event: Arc::new(Event { new: Some(row), ..Event::clone(event) }),
            keys: LaneKeys { key: Some(key), old: None },
            barrier: false,
            targets: targets.clone(),
        })),
    })
}

/// The newer row, its untouched values taken from the older one.
fn overlay(older: &Row, newer: &Row) -> Row {
    let cells = older.cells().zip(newer.cells());
    Row::from_iter(cells.map(|(older, newer)| if newer == Cell::Unchanged { older } else { newer }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Column, Fingerprint, Kind, Lsn, TableName, Timestamp, Transaction};
    use crate::ipc::frame::Visible;

    fn relation() -> Arc<Relation> {
        let column = |name: &str, number, is_key| Column {
            name: name.into(),
            number,
            type_oid: 25,
            type_name: "text".into(),
            kind: Kind::Text,
            is_key,
            heads: Default::default(),
        };
        Arc::new(Relation {
            oid: 1,
            root_oid: 1,
            names: vec![TableName { schema: "public".into(), table: "t".into() }],
            columns: vec![column("id", 1, true), column("large", 2, false)],
            key: Default::default(),
            version: 0,
        })
    }

    fn change(xid: u32, action: Action, key: u64, old: Option<u64>, cells: Option<[Cell<'_>; 2]>) -> Item {
        let fingerprint = Fingerprint::of(1, xid, Timestamp(0));
        let transaction = Arc::new(Transaction {
            xid,
            commit_lsn: Lsn(8),
            committed_at: Timestamp(0),
            fingerprint,
            origin: None,
        });
        let new = cells.map(Row::from_iter);
        Item::Change {
            event: Arc::new(Event {
                transaction,
                ordinal: 0,
                lsn: Lsn(8),
                action,
                relation: relation(),
                new,
                old: None,
                annotations: None,
            }),
            keys: LaneKeys { key: Some(key), old },
            barrier: action == Action::Truncate,
            targets: Vec::new(),
        }
    }

    fn read(key: u64) -> Item {
        change(0, Action::Read, key, None, Some([Cell::Json(b"1"), Cell::Json(b"\"old\"")]))
    }

    /// What becomes of a row of key 1 when these were noted and the snapshot saw transactions below 100.
    fn settle(noted: &[Item]) -> Option<Vec<Item>> {
        let mut watch = Watch::default();
        noted.iter().for_each(|item| watch.note(item));
        let seen = Visible { xmin: 100, xmax: 100, running: Vec::new() };
        watch.settle(&ChunkEnd { table: 1, root: 1, seen, ..ChunkEnd::default() }, vec![read(1)])
    }

    #[test]
    fn a_row_is_sent_as_read_when_all_that_was_noted_is_seen_in_it_or_of_others() {
        assert_eq!(settle(&[]), Some(vec![read(1)]));
        let whole = Some([Cell::Json(b"1"), Cell::Null]);
        assert_eq!(settle(&[change(99, Action::Update, 1, None, whole)]), Some(vec![read(1)]));
        assert_eq!(settle(&[change(100, Action::Update, 2, None, whole)]), Some(vec![read(1)]));
    }

    #[test]
    fn a_newer_event_takes_the_place_of_a_row() {
        let whole = Some([Cell::Json(b"1"), Cell::Null]);
        assert_eq!(settle(&[change(100, Action::Update, 1, None, whole)]), Some(vec![]));
        assert_eq!(settle(&[change(100, Action::Delete, 1, None, None)]), Some(vec![]));
        assert_eq!(settle(&[change(100, Action::Update, 2, Some(1), whole)]), Some(vec![]));
    }

    #[test]
    fn a_row_whose_large_value_was_left_alone_is_completed_by_what_was_read() {
        let partial = Some([Cell::Json(b"2"), Cell::Unchanged]);
        let settled = settle(&[
            change(100, Action::Update, 1, None, Some([Cell::Json(b"1"), Cell::Unchanged])),
            change(101, Action::Update, 2, Some(1), partial),
        ]);
        let [Item::Change { event, keys, .. }] = &settled.unwrap()[..] else { panic!("one row") };
        let cells: Vec<_> = event.new.as_ref().unwrap().cells().collect();
        assert_eq!(cells, [Cell::Json(b"2"), Cell::Json(b"\"old\"")]);
        assert_eq!(keys.key, Some(2));
        // What follows tells all of it, or that it is gone.
        let whole = change(101, Action::Update, 1, None, Some([Cell::Json(b"1"), Cell::Null]));
        let first = change(100, Action::Update, 1, None, Some([Cell::Json(b"1"), Cell::Unchanged]));
        assert_eq!(settle(&[first.clone(), whole]), Some(vec![]));
        assert_eq!(settle(&[first, change(101, Action::Delete, 1, None, None)]), Some(vec![]));
    }

    #[test]
    fn a_chunk_is_read_again_when_its_whole_table_may_have_changed() {
        assert_eq!(settle(&[change(100, Action::Truncate, 1, None, None)]), None);
        assert_eq!(settle(&[change(99, Action::Truncate, 1, None, None)]), Some(vec![read(1)]));
    }

    #[test]
    fn a_chunk_is_read_again_when_a_newer_change_has_a_key_of_another_type() {
        let text_key = |xid| {
            let Item::Change { event, keys, barrier, targets } =
                change(xid, Action::Update, 7, None, Some([Cell::Json(b"\"1\""), Cell::Null]))
            else {
                panic!("a change")
            };
            let mut columns = relation().columns.clone();
            columns[0].type_oid = 23;
            let relation = Arc::new(Relation { columns, ..Relation::clone(&event.relation) });
            let event = Arc::new(Event { relation, ..Event::clone(&event) });
            Item::Change { event, keys, barrier, targets }
        };
        assert_eq!(settle(&[text_key(100)]), None);
        assert_eq!(settle(&[text_key(99)]), Some(vec![read(1)]));
    }

    #[test]
    fn transactions_are_compared_around_the_wrap() {
        let seen = Visible { xmin: u32::MAX - 1, xmax: 10, running: vec![5] };
        assert!(seen.sees(u32::MAX - 2) && seen.sees(u32::MAX) && seen.sees(9));
        assert!(!seen.sees(5) && !seen.sees(10) && !seen.sees(11));
    }
}
