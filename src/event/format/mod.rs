//! Payload formats: what a request's body looks like. A format is a file.
//!
//! Bodies are made when they are sent, from the canonical event and the subscription's present settings.

mod cloudevents;
mod column_prefix;
mod context;
pub mod ids;
mod json;
mod pgstream;
mod pgwh;
mod ping;
mod rows;
mod sequin;
mod supabase;
#[cfg(test)]
mod tests;

pub use self::column_prefix::Heads;
pub use self::context::{RenderContext, Shown, Source};
pub use self::ping::render_ping;

use super::Event;

/// The shape of a subscription's payloads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Format {
    /// Our own: a Standard Webhooks body.
    #[default]
    Pgwh,
    /// As pgstream sends it, one event a request.
    Pgstream,
    /// As Sequin sends it with "batch messages" enabled.
    Sequin,
    /// As Supabase's database webhooks send it, one event a request.
    Supabase,
    /// CloudEvents 1.0 in structured mode.
    Cloudevents,
}

impl Format {
    /// All there are, the default first.
    pub const ALL: [Format; 5] =
        [Format::Pgwh, Format::Pgstream, Format::Sequin, Format::Supabase, Format::Cloudevents];

    /// The word for it in `pgwh.subscriptions`.
    pub fn word(self) -> &'static str {
        match self {
            Format::Pgwh => "pgwh",
            Format::Pgstream => "pgstream",
            Format::Sequin => "sequin",
            Format::Supabase => "supabase",
            Format::Cloudevents => "cloudevents",
        }
    }

    /// The format of that word.
    pub fn of_word(word: &str) -> Option<Format> {
        Format::ALL.into_iter().find(|format| format.word() == word)
    }

    /// Whether a request may bring several events: receivers of the others know one at a time.
    pub fn takes_batches(self) -> bool {
        !matches!(self, Format::Pgstream | Format::Supabase)
    }

    /// Whether it has a shape for what is no change of rows: schema changes and messages.
    pub fn tells_more_than_rows(self) -> bool {
        !matches!(self, Format::Sequin | Format::Supabase)
    }

    /// The value of the header `content-type`, of a subscription that takes batches or doesn't.
    pub fn content_type(self, batched: bool) -> &'static str {
        match self {
            Format::Cloudevents if batched => "application/cloudevents-batch+json",
            Format::Cloudevents => "application/cloudevents+json",
            Format::Pgwh | Format::Pgstream | Format::Sequin | Format::Supabase => "application/json",
        }
    }

    /// The header that the format has beside those of all requests, in a request that brings this one event.
    pub fn extra_header(self, event: &Event) -> Option<(&'static str, String)> {
        match self {
            Format::Pgstream => Some(("x-pgstream-lsn", event.lsn.to_string())),
            Format::Pgwh | Format::Sequin | Format::Supabase | Format::Cloudevents => None,
        }
    }

    /// Appends the body of a request that brings this one event. `level` is the name of the relation that the
    /// subscription knows it by: 0 the table's own, then those of the partitioned tables above it.
    pub fn render_one(self, out: &mut Vec<u8>, event: &Event, level: usize, context: &RenderContext<'_>) {
        match self {
            Format::Sequin => self.render_batch(out, [(event, level)], context),
            _ => self.render_member(out, event, level, context),
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
        let (open, close): (&[u8], &[u8]) = match self {
            Format::Sequin => (br#"{"data":["#, b"]}"),
            _ => (b"[", b"]"),
        };
        out.extend_from_slice(open);
        for (at, (event, level)) in events.into_iter().enumerate() {
            if at > 0 {
                out.push(b',');
            }
            self.render_member(out, event, level, context);
        }
        out.extend_from_slice(close);
    }

    /// Appends what stands for one event, whatever is around it.
    fn render_member(self, out: &mut Vec<u8>, event: &Event, level: usize, context: &RenderContext<'_>) {
        match self {
            Format::Pgwh => pgwh::render(out, event, level, context),
            Format::Pgstream => pgstream::render(out, event, level, context),
            Format::Sequin => sequin::render(out, event, level, context),
            Format::Supabase => supabase::render(out, event, level, context),
            Format::Cloudevents => cloudevents::render(out, event, level, context),
        }
    }
}
