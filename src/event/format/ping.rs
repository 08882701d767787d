//! The body of a ping: a webhook in our own format that tells of no change.

use super::context::RenderContext;
use super::json;
use crate::event::Timestamp;

/// Appends the body of a ping of that id. It has every member that an event has, so that a receiver finds nothing missing.
pub fn render_ping(out: &mut Vec<u8>, id: &str, at: Timestamp, context: &RenderContext<'_>) {
    out.extend_from_slice(br#"{"type":"pgwh.ping","timestamp":""#);
    at.write_to(out);
    out.extend_from_slice(br#"","data":{"id":"#);
    json::string(out, id);
    out.extend_from_slice(
        br#","action":"ping","schema":null,"table":null,"key":null,"record":null,"changes":null,"old_key":null,"#,
    );
    out.extend_from_slice(br#""unchanged":[],"commit":null,"annotations":null,"database":"#);
    json::string(out, &context.source.database);
    out.extend_from_slice(br#","subscription":"#);
    json::string(out, context.subscription);
    out.extend_from_slice(b"}}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::format::{Shown, Source};

    #[test]
    fn a_ping_has_the_members_of_an_event() {
        let mut out = Vec::new();
        let source = Source { database: "shop".to_owned(), ..Source::default() };
        let context =
            RenderContext { source: &source, subscription_id: 1, subscription: "s\"1", columns: &Shown::All };
        render_ping(&mut out, "ping_1", Timestamp(848_484_848_484_848), &context);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            r#"{"type":"pgwh.ping","timestamp":"2026-11-20T10:14:08.484848Z","data":{"id":"ping_1","action":"ping","#
                .to_owned()
                + r#""schema":null,"table":null,"key":null,"record":null,"changes":null,"old_key":null,"unchanged":[],"#
                + r#""commit":null,"annotations":null,"database":"shop","subscription":"s\"1"}}"#
        );
    }
}
