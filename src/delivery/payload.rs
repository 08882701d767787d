//! What a delivery brings.

use std::sync::Arc;

use crate::event::Event;

/// What a delivery brings: the event, and which of its table's names that subscription knows it by.
pub type Payload = (Arc<Event>, u8);
