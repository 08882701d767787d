//! What schema changes and messages look like in the formats that have a shape for them.

use super::*;
use crate::event::{Message, SchemaChange};

fn message() -> Event {
    let message = Message {
        kind: br#""order.paid""#,
        prefix: b"null",
        key: br#""7""#,
        payload: br#"{"id":7,"total":1.50}"#,
    };
    let mut event =
        event_of(Message::relation(), Action::Message, Some(Row::from_iter(message.cells())), None);
    event.annotations = Some(Arc::from(r#"{"user":42}"#));
    event
}

fn schema_change() -> Event {
    let change = SchemaChange {
        command_tag: br#""CREATE TABLE""#,
        command: br#""CREATE TABLE orders (id bigint PRIMARY KEY)""#,
        objects: br#"[{"type":"table","identity":"public.orders","schema":"public","table":"orders","oid":16385,"columns":[{"attnum":1,"name":"id","type":"bigint","nullable":false,"default":null,"generated":false,"identity":null,"unique":true}],"primary_key_columns":["id"]},{"type":"index","identity":"public.orders_pkey","schema":"public","table":"orders","oid":16388}]"#,
    };
    let name = TableName { schema: "public".into(), table: "orders".into() };
    let relation = SchemaChange::relation(name, 16_385);
    event_of(relation, Action::Ddl, Some(Row::from_iter(change.cells())), None)
}

#[test]
fn schema_changes_and_messages_are_byte_for_byte_as_documented() {
    for (format, ddl, told) in [
        (Format::Pgwh, include_str!("../golden/pgwh/ddl.json"), include_str!("../golden/pgwh/message.json")),
        (
            Format::Pgstream,
            include_str!("../golden/pgstream/ddl.json"),
            include_str!("../golden/pgstream/message.json"),
        ),
        (
            Format::Cloudevents,
            include_str!("../golden/cloudevents/ddl.json"),
            include_str!("../golden/cloudevents/message.json"),
        ),
    ] {
        assert_eq!(body(format, &schema_change()), compact(ddl), "{format:?}");
        assert_eq!(body(format, &message()), compact(told), "{format:?}");
    }
}

#[test]
fn pgstream_has_the_same_id_for_a_table_and_for_its_rows() {
    let told = parsed(Format::Pgstream, &schema_change());
    let content: serde_json::Value = serde_json::from_str(told["Data"]["content"].as_str().unwrap()).unwrap();
    let of_row = parsed(Format::Pgstream, &event("insert"));
    assert_eq!(content["objects"][0]["pgstream_id"], of_row["Data"]["metadata"]["table_pgstream_id"]);
    assert_eq!(content["objects"][1]["pgstream_id"], serde_json::Value::Null);
}

#[test]
fn formats_of_rows_still_tell_what_came_before_they_were_chosen() {
    for format in Format::ALL.into_iter().filter(|format| !format.tells_more_than_rows()) {
        assert!(body(format, &message()).contains(r#""payload":{"id":7,"total":1.50}"#), "{format:?}");
        assert!(body(format, &schema_change()).contains(r#""command_tag":"CREATE TABLE""#), "{format:?}");
    }
}
