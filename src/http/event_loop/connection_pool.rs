//! Connections kept for the next request to the same server.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use crate::http::server::Server;

/// How long a connection is kept without use. Common servers close theirs after 60 to 75 seconds.
const MAX_IDLE: Duration = Duration::from_secs(50);

/// The numbers of idle connections, the one used last taken first.
#[derive(Default)]
pub(super) struct IdleConnections {
    by_server: FxHashMap<Arc<Server>, Vec<Idle>>,
    count: usize,
}

struct Idle {
    connection: usize,
    since: Instant,
}

impl IdleConnections {
    /// Takes a connection to `server`, with the time since it was used.
    pub fn take(&mut self, server: &Arc<Server>, now: Instant) -> Option<(usize, Duration)> {
        let idle = self.by_server.get_mut(server)?.pop()?;
        self.count -= 1;
        Some((idle.connection, now.saturating_duration_since(idle.since)))
    }

    /// Keeps a connection; returns those that have to be closed so that there are `limit` at most.
    pub fn keep(
        &mut self,
        server: &Arc<Server>,
        connection: usize,
        now: Instant,
        limit: usize,
    ) -> Vec<usize> {
        let closed = if self.count >= limit { self.make_room(now, limit) } else { Vec::new() };
        let idle = Idle { connection, since: now };
        match self.by_server.get_mut(server) {
            Some(others) => others.push(idle),
            None => drop(self.by_server.insert(server.clone(), vec![idle])),
        }
        self.count += 1;
        closed
    }

    /// Forgets a connection.
    pub fn remove(&mut self, server: &Arc<Server>, connection: usize) {
        let Some(idle) = self.by_server.get_mut(server) else { return };
        let before = idle.len();
        idle.retain(|idle| idle.connection != connection);
        self.count -= before - idle.len();
        if idle.is_empty() {
            self.by_server.remove(server);
        }
    }

    /// Takes out all that lead to `server`.
    pub fn take_all(&mut self, server: &Arc<Server>) -> Vec<usize> {
        let idle = self.by_server.remove(server).unwrap_or_default();
        self.count -= idle.len();
        idle.into_iter().map(|idle| idle.connection).collect()
    }

    /// Takes out all that are too old.
    pub fn expired(&mut self, now: Instant) -> Vec<usize> {
        self.drop_since(now.checked_sub(MAX_IDLE))
    }

    /// Takes out all.
    pub fn clear(&mut self) -> Vec<usize> {
        self.count = 0;
        self.by_server.drain().flat_map(|(_, idle)| idle).map(|idle| idle.connection).collect()
    }

    /// How many are kept.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Lets go of those that are too old and, if as many as `limit` are left, of the older half, so that making room is
    /// rare.
    pub fn make_room(&mut self, now: Instant, limit: usize) -> Vec<usize> {
        let mut closed = self.expired(now);
        let mut since: Vec<_> = self.by_server.values().flatten().map(|idle| idle.since).collect();
        if !since.is_empty() && since.len() >= limit {
            let middle = since.len() / 2;
            let (_, median, _) = since.select_nth_unstable(middle);
            let median = *median;
            closed.extend(self.drop_since(Some(median)));
        }
        closed
    }

    /// Takes out those not used after then.
    fn drop_since(&mut self, then: Option<Instant>) -> Vec<usize> {
        let Some(then) = then else { return Vec::new() };
        let mut closed = Vec::new();
        self.by_server.retain(|_, idle| {
            // Those of one server stand in the order of their last use.
            let old = idle.partition_point(|idle| idle.since <= then);
            closed.extend(idle.drain(..old).map(|idle| idle.connection));
            !idle.is_empty()
        });
        self.count -= closed.len();
        closed
    }
}
