//! Payload formats: what a request's body looks like. A format is a file.
//!
//! Bodies are made when they are sent, from the canonical event and the subscription's present settings.

mod json;
mod pgwh;

use super::Event;

/// The shape of a subscription's payloads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Format {
    /// Our own: a Standard Webhooks body.
    #[default]
    Pgwh,
}

/// What a body tells beside the event.
#[derive(Clone, Copy, Debug)]
pub struct RenderContext<'a> {
    /// The name of the database.
    pub database: &'a str,
    /// The name of the subscription.
    pub subscription: &'a str,
}

impl Format {
    /// The value of the header `content-type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::Pgwh => "application/json",
        }
    }

    /// Appends the body of a request that brings this one event. `level` is the name of the relation that the
    /// subscription knows it by: 0 the table's own, then those of the partitioned tables above it.
    pub fn render_one(self, out: &mut Vec<u8>, event: &Event, level: usize, context: &RenderContext<'_>) {
        match self {
            Format::Pgwh => pgwh::render(out, event, level, context),
        }
    }
}
