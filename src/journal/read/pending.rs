//! Deliveries that are not done, shown to a backend.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use pgrx::Spi;
use pgrx::spi::Result;

use crate::delivery::{DeliveryId, Position};
use crate::event::{EventId, Timestamp};
use crate::journal::columns::{id, intact, now};
use crate::journal::packed::event_chunk;
use crate::journal::packed::event_chunk::Entry;
use crate::journal::parameters::number;
use crate::journal::recovery::load::load;

/// The chunks read at once.
const CHUNKS: i64 = 8;

/// A delivery that is not done.
#[derive(Clone, Copy, Debug)]
pub struct PendingDelivery {
    /// Which.
    pub id: DeliveryId,
    /// Whose.
    pub subscription: i64,
    /// Its event.
    pub event: EventId,
    /// Its failed attempts.
    pub failures: u32,
    /// When the next attempt is due, if it has to wait.
    pub due: Option<Timestamp>,
    /// When the event was committed.
    pub committed_at: Timestamp,
}

/// The deliveries that are not done, in order, read from the journal as they are asked for. A transaction of the
/// backend must be open meanwhile.
pub struct PendingDeliveries {
    standings: HashMap<i64, Standing>,
    now: Timestamp,
    /// All up to here have been read.
    read: DeliveryId,
    last: DeliveryId,
    found: VecDeque<PendingDelivery>,
}

/// A position whose lists are looked up by number.
struct Standing {
    reach: DeliveryId,
    listed: HashMap<DeliveryId, (u32, Option<Duration>)>,
    done_ahead: HashSet<DeliveryId>,
}

impl Standing {
    fn of(position: Position) -> Standing {
        let listed = position.pending.iter().map(|one| (one.id, (one.failures, one.due)));
        Standing {
            reach: position.reach,
            listed: listed.collect(),
            done_ahead: position.done_ahead.into_iter().collect(),
        }
    }

    /// Its failures and when it is due; none if it is done.
    fn pending(&self, id: DeliveryId) -> Option<(u32, Option<Duration>)> {
        if id <= self.reach {
            self.listed.get(&id).copied()
        } else {
            (!self.done_ahead.contains(&id)).then_some((0, None))
        }
    }
}

impl PendingDeliveries {
    /// Finds out where subscriptions stand, as a new start of the dispatcher would.
    ///
    /// # Errors
    ///
    /// When the journal cannot be read.
    pub fn read() -> Result<PendingDeliveries> {
        let loaded = load()?;
        let first = |position: &Position| {
            let listed = position.pending.first().map(|one| one.id);
            let logged = DeliveryId(position.reach.0.saturating_add(1));
            listed.map_or(logged, |listed| listed.min(logged))
        };
        let oldest = loaded.positions.values().map(first).min();
        let read = oldest.map_or(loaded.last, |oldest| DeliveryId(oldest.0.saturating_sub(1)));
        let standing = |(subscription, position)| (subscription, Standing::of(position));
        Ok(PendingDeliveries {
            standings: loaded.positions.into_iter().map(standing).collect(),
            now: now(),
            read,
            last: loaded.last,
            found: VecDeque::new(),
        })
    }

    /// Reads the next chunks; false at the end.
    fn read_more(&mut self) -> Result<bool> {
        if self.read >= self.last {
            return Ok(false);
        }
        let before = self.read;
        Spi::connect(|client| {
            let rows = client.select(
                "SELECT first_id, last_id, body FROM pgwh_internal.event_chunks WHERE last_id > $1 ORDER BY last_id LIMIT $2",
                None,
                &[number(before.0), CHUNKS.into()],
            )?;
            for row in rows {
                let body: Vec<u8> = row.get(3)?.unwrap_or_default();
                self.read = id(row.get(2)?);
                for entry in intact(event_chunk::unpack(id(row.get(1)?), &body)) {
                    self.take(&entry);
                }
            }
            Ok(self.read > before)
        })
    }

    fn take(&mut self, entry: &Entry) {
        let (Some(event), Some(transaction)) = (entry.item.event_id(), entry.item.transaction()) else {
            return;
        };
        for (id, target) in entry.deliveries().filter(|(id, _)| *id <= self.last) {
            let Some(standing) = self.standings.get(&target.subscription) else { continue };
            let Some((failures, due)) = standing.pending(id) else { continue };
            self.found.push_back(PendingDelivery {
                id,
                subscription: target.subscription,
                event,
                failures,
                due: due.map(|due| Timestamp(self.now.0.saturating_add(due.as_micros() as i64))),
                committed_at: transaction.committed_at,
            });
        }
    }
}

impl Iterator for PendingDeliveries {
    type Item = PendingDelivery;

    fn next(&mut self) -> Option<PendingDelivery> {
        loop {
            if let Some(found) = self.found.pop_front() {
                return Some(found);
            }
            match self.read_more() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => pgrx::error!("pgstream_hooks: the journal cannot be read: {error}"),
            }
        }
    }
}
