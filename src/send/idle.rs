//! Connections kept for the next request to the same server.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::connection::Connection;
use super::endpoint::Server;

/// How long a connection is kept without use. Common servers close theirs after 60 to 75 seconds.
const MAX_IDLE: Duration = Duration::from_secs(50);

/// Idle connections, bounded in number, the one used last taken first.
pub(super) struct IdleConnections {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    limit: usize,
    by_server: HashMap<Arc<Server>, Vec<Idle>>,
    count: usize,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

impl IdleConnections {
    /// Keeps at most `limit` connections.
    pub fn new(limit: usize) -> IdleConnections {
        IdleConnections { kept: Mutex::new(Kept { limit, ..Kept::default() }) }
    }

    /// Keeps more or fewer from now on.
    pub fn set_limit(&self, limit: usize) {
        self.lock().limit = limit;
    }

    /// Takes a connection to `server` that still looks open, with the time since it was used.
    pub fn take(&self, server: &Arc<Server>) -> Option<(Connection, Duration)> {
        let mut kept = self.lock();
        let Kept { by_server, count, .. } = &mut *kept;
        let idle = by_server.get_mut(server)?.pop()?;
        *count -= 1;
        let age = idle.since.elapsed();
        (age < MAX_IDLE).then_some((idle.connection, age))
    }

    /// Keeps a connection, and lets go of those that are too old or too many.
    pub fn keep(&self, server: &Arc<Server>, connection: Connection) {
        let mut dropped = Vec::new();
        let mut kept = self.lock();
        if kept.count >= kept.limit {
            kept.make_room(&mut dropped);
        }
        let idle = Idle { connection, since: Instant::now() };
        match kept.by_server.get_mut(server) {
            Some(others) => others.push(idle),
            None => drop(kept.by_server.insert(server.clone(), vec![idle])),
        }
        kept.count += 1;
        // Sockets are closed with the lock released.
        drop(kept);
    }

    /// Lets go of all connections that are too old.
    pub fn sweep(&self) {
        let mut dropped = Vec::new();
        self.lock().drop_older_than(MAX_IDLE, &mut dropped);
    }

    /// Lets go of all connections.
    pub fn clear(&self) {
        let mut dropped = Vec::new();
        self.lock().drop_older_than(Duration::ZERO, &mut dropped);
    }

    /// How many are kept.
    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.lock().count
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// Lets go of the older part, so that making room is rare.
    fn make_room(&mut self, dropped: &mut Vec<Idle>) {
        self.drop_older_than(MAX_IDLE, dropped);
        let mut ages: Vec<_> = self.by_server.values().flatten().map(|idle| idle.since.elapsed()).collect();
        if ages.len() < self.limit {
            return;
        }
        let (_, median, _) = ages.select_nth_unstable(self.limit / 2);
        let median = *median;
        self.drop_older_than(median, dropped);
    }

    fn drop_older_than(&mut self, age: Duration, dropped: &mut Vec<Idle>) {
        self.by_server.retain(|_, idle| {
            // Those of one server stand in the order of their last use.
            let old = idle.partition_point(|idle| idle.since.elapsed() >= age);
            dropped.extend(idle.drain(..old));
            !idle.is_empty()
        });
        self.count -= dropped.len();
    }
}
