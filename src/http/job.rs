//! What the dispatcher asks the sender to do.

use std::sync::Arc;

use super::endpoint::Endpoint;
use super::route::Route;
use crate::event::Event;

/// One request to make.
pub struct Job {
    /// The dispatcher's number for it.
    pub ticket: u64,
    /// Where it goes.
    pub endpoint: Arc<Endpoint>,
    /// What it holds: events, each with how many levels of partitioned tables its name is to be taken from.
    pub events: Vec<(Arc<Event>, u8)>,
    /// Which attempt this is, counted from 1.
    pub attempt: u32,
    /// The replay that it belongs to, for the header `webhook-replay`.
    pub replay: Option<i64>,
    /// What has been made of it already; nothing for most.
    pub prepared: Option<Box<Prepared>>,
}

impl Job {
    /// Whether it is one of those of which its subscription may have only so many under way.
    pub(super) fn is_in_line(&self) -> bool {
        !self.prepared.as_ref().is_some_and(|prepared| prepared.is_fresh)
    }
}

/// What is decided about a request before the sender gets it.
#[derive(Debug, Default)]
pub struct Prepared {
    /// Its id, where that is not made of its events.
    pub id: Option<String>,
    /// The JSON text to send for each event, instead of the subscription's format.
    pub bodies: Option<Vec<Vec<u8>>>,
    /// Where it goes instead of the endpoint's own URL, and how.
    pub route: Option<Route>,
    /// Whether its name is resolved once more, and a connection made for it.
    pub is_fresh: bool,
}
