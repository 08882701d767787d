//! What the dispatcher asks a sender thread to do.

use std::sync::Arc;

use super::endpoint::Endpoint;
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
}
