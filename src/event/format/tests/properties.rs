//! Properties of all formats over any event.

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::event::value::text::text;
use crate::ipc::frame::tests::any_kind;

/// JSON as the decoder makes it of a value of that kind.
fn any_json(kind: &Kind) -> BoxedStrategy<String> {
    let string =
        |pattern: &'static str| pattern.prop_map(|text| serde_json::to_string(&text).unwrap()).boxed();
    match kind {
        Kind::Text => string("[a-z \"\\\\{}(),é\n]{0,8}"),
        Kind::Boolean => any::<bool>().prop_map(|value| value.to_string()).boxed(),
        Kind::Number => prop_oneof![
            any::<i64>().prop_map(|number| number.to_string()),
            Just("\"NaN\"".to_owned()),
            Just("\"-Infinity\"".to_owned())
        ]
        .boxed(),
        Kind::Numeric => {
            prop_oneof!["-?[1-9][0-9]{0,30}(\\.[0-9]{1,30})?", Just("\"NaN\"".to_owned())].boxed()
        }
        Kind::Oid => any::<u32>().prop_map(|oid| format!("\"{oid}\"")).boxed(),
        Kind::Bytea => string(r"\\x([0-9a-f]{2}){0,4}"),
        Kind::Timestamp => string("20[0-9]{2}-11-20T10:00:4[0-9](\\.5)?"),
        Kind::Timestamptz => string("20[0-9]{2}-11-20T10:00:4[0-9](\\.5)?\\+00:00"),
        Kind::Json => prop_oneof![
            Just(r#"{"a" : [1, 2.50]}"#.to_owned()),
            Just("[[1],\"x\"]".to_owned()),
            Just("null".to_owned()),
            Just("\"s\"".to_owned())
        ]
        .boxed(),
        Kind::Hstore => prop::collection::vec(("[a-z\"\\\\]{0,3}", "[a-z\" ]{0,3}"), 0..3)
            .prop_map(|pairs| {
                let members: Vec<String> = pairs
                    .iter()
                    .map(|(key, value)| {
                        let text = |text| serde_json::to_string(text).unwrap();
                        format!("{}: {}", text(key), text(value))
                    })
                    .collect();
                format!("{{{}}}", members.join(", "))
            })
            .boxed(),
        Kind::Array { element, .. } => {
            let element = prop_oneof![4 => any_json(element), 1 => Just("null".to_owned())];
            prop::collection::vec(element, 0..4).prop_map(|items| format!("[{}]", items.join(","))).boxed()
        }
        Kind::Composite(fields) => {
            let names: Vec<String> =
                fields.iter().map(|(name, _)| serde_json::to_string(name).unwrap()).collect();
            let values: Vec<_> = fields.iter().map(|(_, kind)| any_json(kind)).collect();
            values
                .prop_map(move |values| {
                    let members = names.iter().zip(values).map(|(name, value)| format!("{name}:{value}"));
                    format!("{{{}}}", members.collect::<Vec<_>>().join(","))
                })
                .boxed()
        }
    }
}

/// A column with a value that write-ahead log has, lacks, or left out, before and after.
fn any_column() -> impl Strategy<Value = (String, Kind, bool, [Option<String>; 2])> {
    (".{0,6}", any_kind(), any::<bool>()).prop_flat_map(|(name, kind, is_key)| {
        let known = any_json(&kind).prop_map(Some);
        let cell = prop_oneof![3 => known, 1 => Just(None)];
        (Just(name), Just(kind), Just(is_key), [cell.clone(), cell])
    })
}

/// Any event, and whether absent values are NULL, unchanged, or too large.
fn any_event() -> impl Strategy<Value = Event> {
    let action = prop::sample::select(&[
        Action::Insert,
        Action::Update,
        Action::Delete,
        Action::Truncate,
        Action::Read,
    ]);
    let lack = prop::sample::select(&[0usize, 1, 2, 3]);
    (action, prop::collection::vec(any_column(), 0..6), any::<bool>(), lack).prop_map(
        |(action, columns, has_old, lack)| {
            let lacking = [Cell::Null, Cell::Absent, Cell::Unchanged, Cell::Omitted][lack];
            let row = |side: usize| -> Row {
                let cells = columns.iter().map(|(.., values)| values[side].as_ref());
                cells.map(|value| value.map_or(lacking, |json| Cell::Json(json.as_bytes()))).collect()
            };
            let (new, old) = match action {
                Action::Insert | Action::Read => (Some(row(0)), None),
                Action::Update => (Some(row(0)), has_old.then(|| row(1))),
                Action::Delete => (None, has_old.then(|| row(1))),
                _ => (None, None),
            };
            let mut relation = orders();
            relation.columns = columns
                .iter()
                .enumerate()
                .map(|(at, (name, kind, is_key, _))| Column {
                    // Names of columns are unique.
                    name: format!("{at}{name}"),
                    number: at as i16 + 1,
                    type_oid: 0,
                    type_name: "a type".to_owned(),
                    kind: kind.clone(),
                    is_key: *is_key,
                    heads: Heads::default(),
                })
                .collect();
            event_of(relation, action, new, old)
        },
    )
}

/// The values of the new row that are known, with the columns they are of. What is unchanged is as it was.
fn known(event: &Event) -> Vec<(&Column, Option<&[u8]>)> {
    let Some(row) = &event.new else { return Vec::new() };
    let before = event.old.iter().flat_map(Row::cells).chain(std::iter::repeat(Cell::Absent));
    let cells =
        row.cells().zip(before).map(|(now, before)| if now == Cell::Unchanged { before } else { now });
    let cells = event.relation.columns.iter().zip(cells);
    cells
        .filter_map(|(column, cell)| match cell {
            Cell::Json(json) => Some((column, Some(json))),
            Cell::Null => Some((column, None)),
            _ => None,
        })
        .collect()
}

fn json_of(json: Option<&[u8]>) -> Value {
    json.map_or(Value::Null, |json| serde_json::from_slice(json).unwrap())
}

proptest! {
    #[test]
    fn any_event_is_valid_json_in_every_format(event in any_event()) {
        for format in Format::ALL {
            let text = body(format, &event);
            let _: Value = serde_json::from_str(&text).unwrap();
        }
    }

    #[test]
    fn records_have_the_values_of_the_row(event in any_event()) {
        let (pgwh, supabase) = (parsed(Format::Pgwh, &event), parsed(Format::Supabase, &event));
        let cloudevents = parsed(Format::Cloudevents, &event);
        prop_assert_eq!(&cloudevents["data"], &pgwh["data"]);
        for (column, json) in known(&event) {
            prop_assert_eq!(&pgwh["data"]["record"][&column.name], &json_of(json));
            prop_assert_eq!(&supabase["record"][&column.name], &json_of(json));
        }
    }

    #[test]
    fn sequin_changes_nothing_but_how_numerics_and_utc_look(event in any_event()) {
        let message = parsed(Format::Sequin, &event)["data"][0].take();
        for (column, json) in known(&event) {
            let sent = &message["record"][&column.name];
            match (&column.kind, json) {
                (Kind::Numeric, Some(json)) => {
                    let digits = String::from_utf8_lossy(json).replace('"', "");
                    prop_assert_eq!(sent.as_str(), Some(digits.as_str()));
                }
                (Kind::Timestamptz, Some(_)) => {
                    let utc = sent.as_str().unwrap().replace('Z', "+00:00");
                    prop_assert_eq!(utc, json_of(json));
                }
                // What is within is tested above.
                (Kind::Array { .. } | Kind::Composite(_), Some(_)) => {
                    prop_assert_eq!(sent.is_array(), json_of(json).is_array());
                }
                _ => prop_assert_eq!(sent, &json_of(json)),
            }
        }
    }

    #[test]
    fn pgstream_has_numbers_booleans_null_and_texts(event in any_event()) {
        let columns = parsed(Format::Pgstream, &event)["Data"]["columns"].take();
        let expected = known(&event);
        prop_assert_eq!(columns.as_array().map_or(0, Vec::len), expected.len());
        for ((column, json), sent) in expected.into_iter().zip(columns.as_array().into_iter().flatten()) {
            prop_assert_eq!(sent["name"].as_str(), Some(column.name.as_str()));
            let value = &sent["value"];
            let Some(json) = json else {
                prop_assert!(value.is_null());
                continue;
            };
            match &column.kind {
                Kind::Number | Kind::Numeric if json[0] == b'"' => prop_assert!(value.is_null()),
                Kind::Number | Kind::Numeric | Kind::Boolean => prop_assert_eq!(value, &json_of(Some(json))),
                Kind::Oid => prop_assert!(value.is_u64()),
                Kind::Bytea => prop_assert!(value.is_string()),
                kind => {
                    let mut own = Vec::new();
                    text(&mut own, kind, json);
                    prop_assert_eq!(value.as_str(), Some(&*String::from_utf8_lossy(&own)));
                }
            }
        }
    }
}
