//! The events of a body, by name, whatever format it has.

use serde_json::Value;

/// An event in one line.
pub(crate) struct Label {
    /// `schema.table.action`, or the type of a message.
    pub(crate) name: String,
    /// Such as `insert`; empty when it is not known.
    pub(crate) action: String,
    /// The key, as the format has it; null when it has none.
    pub(crate) key: Value,
}

/// The events of a body: of a single event one, of a batch its members; none when it is no format of pgstream_hooks, as the
/// results of transforms are.
pub(crate) fn labels(body: &Value) -> Vec<Label> {
    let members = match (body, &body["data"]) {
        (Value::Array(events), _) | (_, Value::Array(events)) => events.iter().collect(),
        _ => vec![body],
    };
    members.into_iter().filter_map(label).collect()
}

fn label(event: &Value) -> Option<Label> {
    pgstream(&event["Data"]).or_else(|| sequin(event)).or_else(|| supabase(event)).or_else(|| pgwh(event))
}

fn pgstream(data: &Value) -> Option<Label> {
    let action = match data["action"].as_str()? {
        "I" => "insert",
        "U" => "update",
        "D" => "delete",
        "T" => "truncate",
        "M" => "message",
        other => other,
    };
    let key = Value::Null;
    Some(of_table(&data["schema"], &data["table"], action, key).unwrap_or_else(|| Label {
        name: data["prefix"].as_str().unwrap_or("message").to_owned(),
        action: action.to_owned(),
        key: Value::Null,
    }))
}

fn sequin(event: &Value) -> Option<Label> {
    let metadata = &event["metadata"];
    let action = event["action"].as_str()?;
    of_table(&metadata["table_schema"], &metadata["table_name"], action, metadata["record_pks"].clone())
}

fn supabase(event: &Value) -> Option<Label> {
    let action = event["type"].as_str()?.to_ascii_lowercase();
    of_table(&event["schema"], &event["table"], &action, Value::Null)
}

/// The format `pgwh`, whose data CloudEvents have, too.
fn pgwh(event: &Value) -> Option<Label> {
    let (name, data) = (event["type"].as_str()?, &event["data"]);
    let action = data["action"].as_str().unwrap_or_default();
    let key = data["key"].clone();
    if event["specversion"].is_string() {
        return of_table(&data["schema"], &data["table"], action, key.clone())
            .or_else(|| Some(Label { name: name.to_owned(), action: action.to_owned(), key }));
    }
    Some(Label { name: name.to_owned(), action: action.to_owned(), key })
}

fn of_table(schema: &Value, table: &Value, action: &str, key: Value) -> Option<Label> {
    let (schema, table) = (schema.as_str()?, table.as_str().filter(|table| !table.is_empty())?);
    Some(Label { name: format!("{schema}.{table}.{action}"), action: action.to_owned(), key })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The bodies that the extension's own tests hold it to.
    fn golden(format: &str, event: &str) -> Value {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join(format!("../src/event/format/golden/{format}/{event}.json"));
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    #[test]
    fn every_format_names_table_and_action() {
        for format in ["pgwh", "pgstream", "sequin", "supabase", "cloudevents"] {
            for action in ["insert", "update", "delete", "truncate"] {
                let body = golden(format, action);
                let labels = labels(&body);
                assert_eq!(labels.len(), 1, "{format}");
                assert_eq!(labels[0].name, format!("public.orders.{action}"), "{format}");
                assert_eq!(labels[0].action, action, "{format}");
            }
        }
        assert_eq!(labels(&golden("pgwh", "insert"))[0].key, serde_json::json!({"id": 1}));
        assert_eq!(labels(&golden("sequin", "insert"))[0].key, serde_json::json!(["1"]));
    }

    #[test]
    fn a_batch_names_each_of_its_events() {
        let batch = Value::Array(vec![golden("pgwh", "insert"), golden("pgwh", "delete")]);
        let names: Vec<_> = labels(&batch).into_iter().map(|label| label.name).collect();
        assert_eq!(names, ["public.orders.insert", "public.orders.delete"]);
        let mut batch = golden("sequin", "insert");
        batch["data"].as_array_mut().unwrap().push(golden("sequin", "update")["data"][0].clone());
        assert_eq!(labels(&batch).len(), 2);
    }

    #[test]
    fn messages_have_their_type_and_other_bodies_none() {
        assert_eq!(labels(&golden("pgwh", "message"))[0].name, "order.paid");
        assert_eq!(labels(&golden("pgstream", "message"))[0].action, "message");
        assert!(labels(&serde_json::json!({"text": "Order 7 is paid"})).is_empty());
        assert!(labels(&Value::Null).is_empty());
        assert!(labels(&serde_json::json!([1, null, "x"])).is_empty());
    }
}
