//! CloudEvents 1.0 in the JSON format, structured mode
//! (<https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md>).

use super::context::RenderContext;
use super::rows::{Sides, json_of};
use super::{json, pgwh};
use crate::event::{Event, TableName, path_segment};

/// Appends the body.
pub(super) fn render(out: &mut Vec<u8>, event: &Event, level: usize, context: &RenderContext<'_>) {
    out.extend_from_slice(br#"{"specversion":"1.0","id":""#);
    event.id().write_to(out);
    out.extend_from_slice(br#"","source":""#);
    source(out, &context.source.database, event.relation.name(level));
    out.extend_from_slice(br#"","type":"pgwh."#);
    out.extend_from_slice(event.action.word().as_bytes());
    subject(out, event, context);
    out.extend_from_slice(br#"","time":""#);
    event.transaction.committed_at.write_to(out);
    out.extend_from_slice(br#"","datacontenttype":"application/json","data":"#);
    pgwh::data(out, event, level, context);
    out.push(b'}');
}

/// A reference that names the table: `/database/schema/table`.
fn source(out: &mut Vec<u8>, database: &str, name: &TableName) {
    // What is of no table, or of no schema, has no name for it.
    for segment in [database, &name.schema, &name.table].into_iter().filter(|segment| !segment.is_empty()) {
        out.push(b'/');
        // Most names need no escapes.
        if segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            out.extend_from_slice(segment.as_bytes());
            continue;
        }
        for piece in path_segment(segment.as_bytes()) {
            out.extend_from_slice(piece.as_bytes());
        }
    }
}

/// Appends the member, up to the end of its text, behind the text of another: the text of the key's values, commas between
/// them; the key of a message. Nothing when the key is not known, or has no text: the attribute must not be empty.
fn subject(out: &mut Vec<u8>, event: &Event, context: &RenderContext<'_>) {
    let before = out.len();
    out.extend_from_slice(br#"","subject":""#);
    let start = out.len();
    let is_known = match event.message() {
        Some(message) if message.key == b"null" => false,
        Some(message) => {
            json::value_within_string(out, message.key);
            true
        }
        None => {
            let row = Sides::of(event, context.columns).about(event.action).row();
            let mut cells =
                row.filter(|(column, _)| column.is_key).map(|(_, cell)| json_of(cell)).enumerate();
            cells.all(|(at, json)| {
                out.extend((at > 0).then_some(b','));
                json.is_some_and(|json| {
                    json::value_within_string(out, json);
                    true
                })
            })
        }
    };
    if !is_known || out.len() == start {
        out.truncate(before);
    }
}
