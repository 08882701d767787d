//! Where each subscription stands at a new start: its last checkpoint, and what was journaled after that.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use crate::delivery::{DeliveryId, Mode, Pending, Position};
use crate::journal::packed::event_chunk::Entry;
use crate::journal::packed::outcome_chunk::{DROPPED, End, Outcome};

/// Positions while what came after the last checkpoint is being applied: arrivals first, then attempts and outcomes in
/// the order in which they were journaled.
///
/// A checkpoint has the positions of all subscriptions that anything happened to since the one before. So nothing
/// happened to the others in between, and all go on from `since`, the last number given before the last checkpoint.
/// Applying something that a position knows already changes nothing.
#[derive(Debug)]
pub struct Restart {
    since: DeliveryId,
    standings: HashMap<i64, Standing>,
}

#[derive(Debug)]
struct Standing {
    /// Its lists are empty while they stand beside it.
    position: Position,
    pending: BTreeMap<DeliveryId, Pending>,
    done_ahead: BTreeSet<DeliveryId>,
}

impl Restart {
    /// From the last checkpoint, before which `since` was the last number given. A subscription without a position is
    /// newer than that.
    pub fn new(since: DeliveryId, checkpoint: impl IntoIterator<Item = (i64, Option<Position>)>) -> Restart {
        let standings = checkpoint.into_iter().map(|(subscription, position)| {
            let mut position = position.unwrap_or_else(|| Position::new(since));
            let pending =
                std::mem::take(&mut position.pending).into_iter().map(|one| (one.id, one)).collect();
            let done_ahead = std::mem::take(&mut position.done_ahead).into_iter().collect();
            (subscription, Standing { position, pending, done_ahead })
        });
        Restart { since, standings: standings.collect() }
    }

    /// An event that arrived. Who was live has it in memory, and so listed; for the others it is in the log.
    pub fn arrived(&mut self, entry: &Entry, charge: u64) {
        for (id, target) in entry.deliveries().filter(|(id, _)| *id > self.since) {
            let Some(standing) = self.standings.get_mut(&target.subscription) else { continue };
            let counts = &mut standing.position.counts;
            counts.pending += 1;
            counts.pending_bytes += charge;
            if standing.position.mode == Mode::Live {
                standing.pending.insert(id, Pending::fresh(id));
            }
        }
    }

    /// A request that failed and is to be made again, in `due` from now if it must wait. That the log's are tried anew
    /// is forgotten.
    pub fn attempted(
        &mut self,
        subscription: i64,
        members: impl Iterator<Item = DeliveryId>,
        attempt: u32,
        due: Option<Duration>,
    ) {
        let Some(standing) = self.standings.get_mut(&subscription) else { return };
        for id in members {
            if let Some(one) = standing.pending.get_mut(&id)
                && one.failures <= attempt
            {
                *one = Pending { id, failures: attempt, due };
            }
        }
    }

    /// A request that is decided. What is replayed was counted when it was first sent.
    pub fn finished(&mut self, outcome: &Outcome) {
        let Some(standing) = self.standings.get_mut(&outcome.subscription) else { return };
        if outcome.replay.is_some() {
            return;
        }
        for id in outcome.members() {
            let logged = standing.position.mode != Mode::Live && id > standing.position.reach;
            let news =
                if logged { standing.done_ahead.insert(id) } else { standing.pending.remove(&id).is_some() };
            if news {
                standing.count(&outcome.end);
            }
        }
    }

    /// The positions, when `last` is the last number given.
    pub fn positions(self, last: DeliveryId) -> HashMap<i64, Position> {
        let done = |(subscription, standing): (i64, Standing)| (subscription, standing.done(last));
        self.standings.into_iter().map(done).collect()
    }
}

impl Standing {
    /// What one was charged when it arrived is not journaled: each takes its share.
    fn count(&mut self, end: &End) {
        let counts = &mut self.position.counts;
        counts.pending_bytes -= counts.pending_bytes.checked_div(counts.pending).unwrap_or(0);
        counts.pending = counts.pending.saturating_sub(1);
        if counts.pending == 0 {
            counts.pending_bytes = 0;
        }
        match end {
            End::Delivered { status: DROPPED } => counts.dropped += 1,
            End::Delivered { .. } => counts.delivered += 1,
            End::Dead { .. } => counts.dead += 1,
        }
    }

    fn done(mut self, last: DeliveryId) -> Position {
        if self.position.mode == Mode::Live {
            self.position.reach = self.position.reach.max(last);
        }
        let reach = self.position.reach;
        Position {
            pending: self.pending.into_values().collect(),
            done_ahead: self.done_ahead.into_iter().filter(|id| *id > reach).collect(),
            ..self.position
        }
    }
}

/// What is left of a wait that began at `from` (microseconds of the wall clock), when it is `now`. A clock that was put
/// back makes it no longer than it was, one that was put forward ends it.
pub fn remaining(wait: Duration, from: i64, now: i64) -> Duration {
    let passed = u64::try_from(now.saturating_sub(from)).unwrap_or(0);
    wait.saturating_sub(Duration::from_micros(passed))
}

#[cfg(test)]
mod tests;
