//! Payload formats: what a request's body looks like. A format is a file.
//!
//! Bodies are made when they are sent, from the canonical event and the subscription's present settings.

mod json;
mod pgwh;
mod ping;

pub use ping::render_ping;

use super::{Column, Event};

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
    /// The columns it shows.
    pub columns: &'a Shown,
}

/// Which columns a payload shows. Those of the key it always does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Shown {
    /// All.
    #[default]
    All,
    /// Those of these names.
    Only(Vec<String>),
    /// All but those of these names.
    Except(Vec<String>),
}

impl Shown {
    /// Whether the column is shown.
    pub fn shows(&self, column: &Column) -> bool {
        column.is_key
            || match self {
                Shown::All => true,
                Shown::Only(names) => names.contains(&column.name),
                Shown::Except(names) => !names.contains(&column.name),
            }
    }
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

    /// Appends the body of a request of a subscription that takes batches: a list of its events' bodies, also when there
    /// is only one. Each event comes with its level, as in [`Format::render_one`].
    pub fn render_batch<'a>(
        self,
        out: &mut Vec<u8>,
        events: impl IntoIterator<Item = (&'a Event, usize)>,
        context: &RenderContext<'_>,
    ) {
        let mut separator = b'[';
        for (event, level) in events {
            out.push(std::mem::replace(&mut separator, b','));
            self.render_one(out, event, level, context);
        }
        if separator == b'[' {
            out.push(b'[');
        }
        out.push(b']');
    }
}
