use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::delivery::Counts;
use crate::event::{Action, Event, Fingerprint, Lsn, Relation, TableName, Timestamp, Transaction};
use crate::ipc::frame::{Item, LaneKeys, Target};

/// What may happen, to one of three subscriptions.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// An event arrives for the subscriptions of these bits.
    Arrive(u8),
    /// The oldest but some of what is pending is delivered, or given up.
    Finish {
        subscription: i64,
        place: usize,
        dead: bool,
    },
    /// It fails, and waits.
    Fail {
        subscription: i64,
        place: usize,
    },
    /// Its lanes are flipped to the log: what is pending is listed, what arrives only counted.
    Flip(i64),
    /// Its reader moves on by so many numbers.
    ReadOn(i64, u64),
    /// It has come to the tail.
    GoLive(i64),
    Checkpoint,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1u8..8).prop_map(Step::Arrive),
        4 => (0i64..3, 0usize..4, any::<bool>())
            .prop_map(|(subscription, place, dead)| Step::Finish { subscription, place, dead }),
        2 => (0i64..3, 0usize..4).prop_map(|(subscription, place)| Step::Fail { subscription, place }),
        1 => (0i64..3).prop_map(Step::Flip),
        1 => (0i64..3, 1u64..6).prop_map(|(subscription, by)| Step::ReadOn(subscription, by)),
        1 => (0i64..3).prop_map(Step::GoLive),
        1 => Just(Step::Checkpoint),
    ]
}

/// A subscription as an engine would know it.
#[derive(Clone, Default)]
struct Known {
    live: bool,
    reach: u64,
    /// Failures by number.
    pending: BTreeMap<u64, u32>,
    done: BTreeSet<u64>,
    counts: Counts,
    touched: bool,
}

impl Known {
    fn position(&self, last: u64) -> Position {
        let reach = if self.live { last } else { self.reach };
        let listed = self.pending.range(..=reach);
        let due = |failures: u32| (failures > 0).then_some(Duration::from_secs(1));
        Position {
            mode: if self.live { Mode::Live } else { Mode::Draining },
            reach: DeliveryId(reach),
            pending: listed
                .map(|(id, failures)| Pending {
                    id: DeliveryId(*id),
                    failures: *failures,
                    due: due(*failures),
                })
                .collect(),
            done_ahead: self.done.range(reach + 1..).map(|id| DeliveryId(*id)).collect(),
            counts: self.counts,
        }
    }

    fn nth(&self, place: usize) -> Option<u64> {
        self.pending.keys().nth(place).copied()
    }
}

enum Journaled {
    Entry(Entry),
    Outcome(Outcome),
    Attempt(i64, u64, u32),
    Checkpoint(DeliveryId, Vec<(i64, Position)>),
}

fn entry(first: u64, bits: u8) -> Entry {
    let transaction = Transaction {
        xid: 1,
        commit_lsn: Lsn(first),
        committed_at: Timestamp(0),
        fingerprint: Fingerprint::from_bits(1).unwrap(),
        origin: None,
    };
    let name = TableName { schema: String::new(), table: String::new() };
    let relation = Relation {
        oid: 1,
        root_oid: 1,
        names: vec![name],
        columns: Vec::new(),
        key: Default::default(),
        version: 1,
    };
    let event = Event {
        transaction: Arc::new(transaction),
        ordinal: 0,
        lsn: Lsn(0x15A_8F00),
        action: Action::Insert,
        annotations: None,
        relation: Arc::new(relation),
        new: None,
        old: None,
    };
    let wanted = (0i64..3).filter(|subscription| bits & 1 << subscription != 0);
    let targets = wanted.map(|subscription| Target { subscription, level: 0 }).collect();
    let item = Item::Change { event: Arc::new(event), keys: LaneKeys::default(), barrier: false, targets };
    Entry { first: DeliveryId(first), item }
}

fn outcome(subscription: i64, id: u64, dead: bool) -> Outcome {
    let end = if dead {
        End::Dead { status: None, class: String::new(), reason: String::new() }
    } else {
        End::Delivered { status: 200 }
    };
    Outcome {
        subscription,
        id: DeliveryId(id),
        others: Vec::new(),
        event: entry(id, 1).item.event_id().unwrap(),
        other_events: Vec::new(),
        committed_at: Timestamp(0),
        finished_at: Timestamp(0),
        duration: Duration::ZERO,
        attempts: 1,
        end,
        replay: None,
    }
}

/// Lets it all happen; returns what was journaled, where the subscriptions stand, and the last number.
fn happen(steps: &[Step]) -> (Vec<Journaled>, Vec<Known>, u64) {
    let mut known = vec![Known { live: true, ..Known::default() }; 3];
    let (mut journal, mut last) = (Vec::new(), 0);
    for step in steps {
        match *step {
            Step::Arrive(bits) => {
                let entry = entry(last + 1, bits);
                for (id, target) in entry.deliveries() {
                    let one = &mut known[target.subscription as usize];
                    one.pending.insert(id.0, 0);
                    one.counts.pending += 1;
                    one.touched = true;
                    last = id.0;
                }
                journal.push(Journaled::Entry(entry));
            }
            Step::Finish { subscription, place, dead } => {
                let one = &mut known[subscription as usize];
                let Some(id) = one.nth(place) else { continue };
                one.pending.remove(&id);
                one.done.insert(id);
                one.counts.pending -= 1;
                *if dead { &mut one.counts.dead } else { &mut one.counts.delivered } += 1;
                one.touched = true;
                journal.push(Journaled::Outcome(outcome(subscription, id, dead)));
            }
            Step::Fail { subscription, place } => {
                let one = &mut known[subscription as usize];
                let Some(id) = one.nth(place) else { continue };
                let failures = one.pending.entry(id).or_default();
                *failures += 1;
                one.touched = true;
                journal.push(Journaled::Attempt(subscription, id, *failures));
            }
            Step::Flip(subscription) => {
                let one = &mut known[subscription as usize];
                if one.live {
                    (one.live, one.reach, one.touched) = (false, last, true);
                }
            }
            Step::ReadOn(subscription, by) => {
                let one = &mut known[subscription as usize];
                (one.reach, one.touched) = ((one.reach + by).min(last), true);
            }
            Step::GoLive(subscription) => {
                let one = &mut known[subscription as usize];
                (one.live, one.touched) = (true, true);
            }
            Step::Checkpoint => {
                let touched = known.iter_mut().zip(0..).filter(|(one, _)| one.touched);
                let positions = touched.map(|(one, id)| {
                    one.touched = false;
                    (id, one.position(last))
                });
                journal.push(Journaled::Checkpoint(DeliveryId(last), positions.collect()));
            }
        }
    }
    (journal, known, last)
}

/// Where a new start finds the subscriptions.
fn restarted(journal: &[Journaled], last: u64) -> HashMap<i64, Position> {
    let (mut since, mut begin) = (DeliveryId(0), 0);
    let mut positions: HashMap<i64, Position> = HashMap::new();
    for (place, record) in journal.iter().enumerate() {
        // What nothing happened to leaves no row.
        if let Journaled::Checkpoint(at, touched) = record
            && !touched.is_empty()
        {
            (since, begin) = (*at, place);
            positions.extend(touched.iter().cloned());
        }
    }
    let mut restart = Restart::new(since, (0..3).map(|id| (id, positions.remove(&id))));
    for record in journal {
        if let Journaled::Entry(entry) = record {
            restart.arrived(entry, 0);
        }
    }
    for record in &journal[begin..] {
        if let Journaled::Attempt(subscription, id, attempt) = record {
            let due = Some(Duration::from_secs(1));
            restart.attempted(*subscription, std::iter::once(DeliveryId(*id)), *attempt, due);
        }
    }
    // Those before the checkpoint change nothing.
    for record in journal {
        if let Journaled::Outcome(outcome) = record {
            restart.finished(outcome);
        }
    }
    restart.positions(DeliveryId(last))
}

proptest! {
    #![proptest_config(crate::proptest_config::config(500))]

    #[test]
    fn a_new_start_finds_all_that_is_pending_and_nothing_else(steps in prop::collection::vec(any_step(), 0..80)) {
        let (journal, known, last) = happen(&steps);
        let positions = restarted(&journal, last);
        for (one, id) in known.iter().zip(0..) {
            let position = &positions[&id];
            let logged = journal.iter().filter_map(|record| match record {
                Journaled::Entry(entry) => Some(entry),
                _ => None,
            });
            let logged = logged.flat_map(Entry::deliveries).filter(|(number, target)| {
                target.subscription == id && *number > position.reach && !position.done_ahead.contains(number)
            });
            let listed = position.pending.iter().map(|one| one.id);
            let found: Vec<u64> = listed.chain(logged.map(|(number, _)| number)).map(|id| id.0).collect();
            let pending: Vec<u64> = one.pending.keys().copied().collect();
            prop_assert_eq!(found, pending);
            prop_assert_eq!(position.counts, one.counts);
            for listed in &position.pending {
                prop_assert!(listed.id <= position.reach);
                prop_assert_eq!(listed.failures, one.pending[&listed.id.0]);
            }
        }
    }
}

#[test]
fn a_wait_ends_when_it_should_whatever_the_clock_does() {
    let minute = Duration::from_secs(60);
    assert_eq!(remaining(minute, 1_000_000, 11_000_000), Duration::from_secs(50));
    assert_eq!(remaining(minute, 86_400_000_000, 0), minute, "the clock was put back");
    assert_eq!(remaining(minute, 0, 86_400_000_000), Duration::ZERO, "the clock was put forward");
    assert_eq!(remaining(minute, i64::MIN, i64::MAX), Duration::ZERO);
}
