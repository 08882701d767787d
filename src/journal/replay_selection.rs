//! Which events a replay sends again. Pure.

use std::collections::HashSet;

use crate::decode::routing::table_pattern::TablePattern;
use crate::delivery::{DeliveryId, Position};
use crate::event::{Event, Lsn, Timestamp};
use crate::ipc::frame::LaneKeys;

/// What somebody asked for.
#[derive(Clone, Debug)]
pub struct Selection {
    /// Where it begins, itself included.
    pub since: Bound,
    /// Where it ends, itself included.
    pub until: Bound,
    /// What must have become of an event.
    pub only: Only,
    /// Its tables; none stands for all.
    pub tables: Option<Vec<TablePattern>>,
    /// Of a redelivery: its deliveries in order. What changed their rows later belongs to it.
    pub deliveries: Option<Vec<DeliveryId>>,
}

/// One end of what is replayed.
#[derive(Clone, Copy, Debug)]
pub enum Bound {
    /// As far as there is anything.
    None,
    /// When the event was committed.
    Time(Timestamp),
    /// Where it was committed.
    Lsn(Lsn),
}

/// What must have become of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Only {
    /// Anything.
    All,
    /// It was given up.
    Dead,
    /// It was given up, or has not succeeded yet.
    Undelivered,
}

/// The numbers of the deliveries that a replay looks at, first and last included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first.
    pub first: DeliveryId,
    /// The last.
    pub last: DeliveryId,
}

impl Range {
    /// Whether the delivery is one of them.
    pub fn contains(&self, id: DeliveryId) -> bool {
        self.first <= id && id <= self.last
    }
}

impl Selection {
    /// Whether the event's commit and table are asked for.
    fn wants(&self, event: &Event) -> bool {
        let transaction = &event.transaction;
        let late_enough = match self.since {
            Bound::None => true,
            Bound::Time(since) => transaction.committed_at >= since,
            Bound::Lsn(since) => transaction.commit_lsn >= since,
        };
        let early_enough = match self.until {
            Bound::None => true,
            Bound::Time(until) => transaction.committed_at <= until,
            Bound::Lsn(until) => transaction.commit_lsn <= until,
        };
        let is_of = |patterns: &Vec<TablePattern>| {
            patterns.iter().any(|pattern| event.relation.names.iter().any(|name| pattern.matches(name)))
        };
        late_enough && early_enough && self.tables.as_ref().is_none_or(is_of)
    }
}

/// Says of one delivery after the other, in order, whether a replay has it.
///
/// What has never been sent is left out: it comes behind the replay in any case, and what it waits for may be older
/// than the replay's range. What is being sent or retried is not: should that succeed before the replay gets to it,
/// older events of its rows would come last.
#[derive(Debug)]
pub struct Sieve {
    selection: Selection,
    range: Range,
    /// Where the subscription stands; none before it is known.
    standing: Option<Standing>,
    /// What a redelivery has come across so far.
    rows: Rows,
}

/// What of a subscription's deliveries may have been sent.
#[derive(Debug)]
pub struct Standing {
    /// Where it stands.
    pub position: Position,
    /// What is pending up to its reach and has never been sent, in order.
    pub never_sent: Vec<DeliveryId>,
}

impl Standing {
    fn may_be_out(&self, id: DeliveryId) -> bool {
        if id > self.position.reach {
            return self.position.done_ahead.binary_search(&id).is_ok();
        }
        self.never_sent.binary_search(&id).is_err()
    }
}

/// The rows that a redelivery is about.
#[derive(Debug, Default)]
struct Rows {
    keys: HashSet<u64>,
    /// Root tables of the rows.
    roots: HashSet<u32>,
    /// Root tables of which all that follows belongs to it, since something in it was about more than a row.
    whole: HashSet<u32>,
}

impl Sieve {
    /// Lets all pass that may belong to a replay, whatever has become of it.
    pub fn new(selection: Selection, range: Range) -> Sieve {
        Sieve { selection, range, standing: None, rows: Rows::default() }
    }

    /// Looks up to a later delivery than before.
    pub fn extend(&mut self, last: DeliveryId) {
        self.range.last = last;
    }

    /// Where the subscription stands when the replay begins or, after a restart, goes on.
    pub fn stand(&mut self, standing: Standing) {
        self.standing = Some(standing);
    }

    /// Begins with the first delivery again.
    pub fn restart(&mut self) {
        self.rows = Rows::default();
    }

    /// Whether what is committed from now on cannot belong to it.
    pub fn has_end(&self) -> bool {
        !matches!(self.selection.until, Bound::None)
    }

    /// Whether what a delivery belongs to depends on those before it.
    pub fn has_memory(&self) -> bool {
        self.selection.deliveries.is_some()
    }

    /// What must have become of an event.
    pub fn only(&self) -> Only {
        self.selection.only
    }

    /// The deliveries in the range that may have been sent and are not done.
    pub fn unfinished(&self, range: Range) -> impl Iterator<Item = DeliveryId> {
        let pending = self.standing.iter().flat_map(|standing| &standing.position.pending);
        let ids = pending.map(|pending| pending.id).filter(|id| self.may_be_out(*id));
        ids.skip_while(move |id| *id < range.first).take_while(move |id| *id <= range.last)
    }

    fn may_be_out(&self, id: DeliveryId) -> bool {
        self.standing.as_ref().is_none_or(|standing| standing.may_be_out(id))
    }

    /// Whether the delivery was asked for by its own number.
    pub fn names(&self, id: DeliveryId) -> bool {
        self.selection.deliveries.as_ref().is_some_and(|deliveries| deliveries.binary_search(&id).is_ok())
    }

    /// Whether the replay has the delivery of this event.
    pub fn passes(&mut self, id: DeliveryId, event: &Event, keys: LaneKeys, barrier: bool) -> bool {
        if !self.range.contains(id) || !self.may_be_out(id) {
            return false;
        }
        if self.has_memory() {
            return self.rows.concern(self.names(id), event.relation.root_oid, keys, barrier);
        }
        self.selection.wants(event)
    }
}

impl Rows {
    /// Whether an event is asked for or is about one of these rows; then its rows are of these, too.
    fn concern(&mut self, is_asked_for: bool, root: u32, keys: LaneKeys, barrier: bool) -> bool {
        let concerned = is_asked_for
            || self.whole.contains(&root)
            || keys.iter().any(|key| self.keys.contains(&key))
            || (barrier && self.roots.contains(&root));
        if concerned {
            self.keys.extend(keys.iter());
            self.roots.insert(root);
            if barrier {
                self.whole.insert(root);
            }
        }
        concerned
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::delivery::Pending;
    use crate::event::{Action, Fingerprint, Relation, TableName, Transaction};

    fn event(table: &str, lsn: u64, at: i64) -> Event {
        let transaction = Transaction {
            xid: 7,
            commit_lsn: Lsn(lsn),
            committed_at: Timestamp(at),
            fingerprint: Fingerprint::from_bits(1).unwrap(),
            origin: None,
        };
        let relation = Relation {
            oid: 1,
            root_oid: table.len() as u32,
            names: vec![TableName { schema: "public".into(), table: table.into() }],
            columns: Vec::new(),
            key: Default::default(),
            version: 1,
        };
        Event {
            transaction: Arc::new(transaction),
            ordinal: 0,
            lsn: Lsn(0x15A_8F00),
            action: Action::Update,
            annotations: None,
            relation: Arc::new(relation),
            new: None,
            old: None,
        }
    }

    fn everything() -> Selection {
        Selection { since: Bound::None, until: Bound::None, only: Only::All, tables: None, deliveries: None }
    }

    fn ids(numbers: &[u64]) -> Vec<DeliveryId> {
        numbers.iter().copied().map(DeliveryId).collect()
    }

    const ALL: Range = Range { first: DeliveryId(1), last: DeliveryId(100) };

    fn sieve(selection: Selection, position: Position, never_sent: &[u64]) -> Sieve {
        let mut sieve = Sieve::new(selection, ALL);
        sieve.stand(Standing { position, never_sent: ids(never_sent) });
        sieve
    }

    fn done() -> Position {
        Position::new(DeliveryId(100))
    }

    fn key(key: u64) -> LaneKeys {
        LaneKeys { key: Some(key), old: None }
    }

    #[test]
    fn both_ends_are_included() {
        let by_time =
            Selection { since: Bound::Time(Timestamp(5)), until: Bound::Time(Timestamp(6)), ..everything() };
        let by_lsn = Selection { since: Bound::Lsn(Lsn(5)), until: Bound::Lsn(Lsn(6)), ..everything() };
        for place in 4..8 {
            let wanted = (5..=6).contains(&place);
            assert_eq!(by_time.wants(&event("t", 9, place)), wanted);
            assert_eq!(by_lsn.wants(&event("t", place as u64, 9)), wanted);
        }
    }

    #[test]
    fn tables_are_patterns() {
        let tables = Some(vec![TablePattern::parse("public.order*").unwrap()]);
        let selection = Selection { tables, ..everything() };
        assert!(selection.wants(&event("orders", 1, 1)));
        assert!(!selection.wants(&event("leads", 1, 1)));
    }

    #[test]
    fn what_was_never_sent_is_left_out_and_what_is_retried_is_not() {
        let position = Position {
            pending: vec![
                Pending::fresh(DeliveryId(3)),
                Pending { failures: 3, ..Pending::fresh(DeliveryId(4)) },
            ],
            done_ahead: ids(&[8]),
            ..Position::new(DeliveryId(5))
        };
        let mut sieve = sieve(everything(), position, &[3]);
        let passing: Vec<u64> =
            (1..10).filter(|id| sieve.passes(DeliveryId(*id), &event("t", 1, 1), key(*id), false)).collect();
        assert_eq!(passing, [1, 2, 4, 5, 8]);
        assert_eq!(sieve.unfinished(ALL).collect::<Vec<_>>(), ids(&[4]));
    }

    #[test]
    fn a_redelivery_has_what_changed_its_rows_later_whatever_key_they_took() {
        let selection = Selection { deliveries: Some(ids(&[2])), ..everything() };
        let mut sieve = sieve(selection, done(), &[]);
        let history = [
            (1, key(70), false),                                   // the same row, before
            (2, key(70), false),                                   // what is asked for
            (3, key(80), false),                                   // another row
            (4, LaneKeys { key: Some(71), old: Some(70) }, false), // takes another key
            (5, key(71), false),
            (6, key(70), false), // a new row under the old key
            (7, key(80), false),
        ];
        let mut send = || -> Vec<u64> {
            sieve.restart();
            let pass = history.iter().filter(|(id, keys, barrier)| {
                sieve.passes(DeliveryId(*id), &event("t", 1, 1), *keys, *barrier)
            });
            pass.map(|(id, ..)| *id).collect()
        };
        assert_eq!(send(), [2, 4, 5, 6]);
        assert_eq!(send(), [2, 4, 5, 6]);
    }

    #[test]
    fn behind_a_truncate_a_redelivery_has_the_whole_table() {
        let selection = Selection { deliveries: Some(ids(&[1])), ..everything() };
        let mut sieve = sieve(selection, done(), &[]);
        let mut passes =
            |id, table, keys, barrier| sieve.passes(DeliveryId(id), &event(table, 1, 1), keys, barrier);
        assert!(passes(1, "t", key(70), false));
        assert!(!passes(2, "other", LaneKeys::default(), true));
        assert!(!passes(3, "t", key(80), false));
        assert!(passes(4, "t", LaneKeys::default(), true));
        assert!(passes(5, "t", key(80), false));
        assert!(!passes(6, "other", key(90), false));
    }
}
