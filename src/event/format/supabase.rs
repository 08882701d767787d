//! As Supabase's database webhooks send it (`supabase_functions.http_request`).

use super::context::RenderContext;
use super::json;
use super::rows::{Sides, object};
use crate::event::{Action, Event};

/// Appends the body.
pub(super) fn render(out: &mut Vec<u8>, event: &Event, level: usize, context: &RenderContext<'_>) {
    let name = event.relation.name(level);
    let sides = Sides::of(event, context.columns);
    out.extend_from_slice(br#"{"type":""#);
    out.extend_from_slice(match event.action {
        // It has no word for rows that were there.
        Action::Insert | Action::Read => b"INSERT",
        Action::Update => b"UPDATE",
        Action::Delete => b"DELETE",
        Action::Truncate => b"TRUNCATE",
        Action::Ddl => b"DDL",
        Action::Message => b"MESSAGE",
    });
    out.extend_from_slice(br#"","schema":"#);
    json::string(out, &name.schema);
    out.extend_from_slice(br#","table":"#);
    json::string(out, &name.table);
    out.extend_from_slice(br#","record":"#);
    match event.action {
        // A receiver of Supabase's knows nothing but rows: these are told as what they are told as rows of.
        Action::Insert | Action::Update | Action::Ddl | Action::Message | Action::Read => {
            object(out, sides.row());
        }
        Action::Delete | Action::Truncate => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(br#","old_record":"#);
    match event.action {
        Action::Update | Action::Delete => {
            object(out, sides.identity());
        }
        _ => out.extend_from_slice(b"null"),
    }
    out.push(b'}');
}
