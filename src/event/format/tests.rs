//! What holds for every format. `docs/payloads.md` shows the golden files.

mod examples;
mod properties;
mod statements;

use std::sync::Arc;

use super::*;
use crate::event::{
    Action, Cell, Column, Fingerprint, Kind, Lsn, Relation, Row, TableName, Timestamp, Transaction,
};

/// A change, as golden files are named by it.
const CASES: [&str; 7] =
    ["insert", "update", "update_full", "update_of_key", "delete", "delete_full", "truncate"];

/// The body of a change in a format, as its golden file has it.
macro_rules! goldens {
    ($($format:ident: $folder:literal),*) => {
        [$((Format::$format, [
            include_str!(concat!("golden/", $folder, "/insert.json")),
            include_str!(concat!("golden/", $folder, "/update.json")),
            include_str!(concat!("golden/", $folder, "/update_full.json")),
            include_str!(concat!("golden/", $folder, "/update_of_key.json")),
            include_str!(concat!("golden/", $folder, "/delete.json")),
            include_str!(concat!("golden/", $folder, "/delete_full.json")),
            include_str!(concat!("golden/", $folder, "/truncate.json")),
        ])),*]
    };
}

const GOLDENS: [(Format, [&str; CASES.len()]); 5] = goldens!(
    Pgwh: "pgwh", Pgstream: "pgstream", Sequin: "sequin", Supabase: "supabase", Cloudevents: "cloudevents"
);

const INSTALLATION: u128 = 0xa0ee_bc99_9c0b_4ef8_bb6d_6bb9_bd38_0a11;

fn source() -> Source {
    Source { database: "shop".to_owned(), host: "db1".to_owned(), installation: INSTALLATION }
}

fn column(number: i16, name: &str, type_name: &str, kind: Kind) -> Column {
    let is_key = number == 1;
    Column {
        name: name.into(),
        number,
        type_oid: 0,
        type_name: type_name.into(),
        kind,
        is_key,
        heads: Heads::default(),
    }
}

/// A table whose large values are in `notes`.
fn orders() -> Relation {
    Relation {
        oid: 16_385,
        root_oid: 16_385,
        names: vec![TableName { schema: "public".into(), table: "orders".into() }],
        columns: vec![
            column(1, "id", "bigint", Kind::Number),
            column(2, "status", "text", Kind::Text),
            column(3, "total", "numeric(10,2)", Kind::Numeric),
            column(4, "paid", "boolean", Kind::Boolean),
            column(5, "created_at", "timestamp with time zone", Kind::Timestamptz),
            column(6, "tags", "text[]", Kind::array(Kind::Text)),
            column(7, "data", "jsonb", Kind::Json),
            column(8, "notes", "text", Kind::Text),
        ],
        key: Default::default(),
        version: 1,
    }
}

fn event_of(relation: Relation, action: Action, new: Option<Row>, old: Option<Row>) -> Event {
    let committed_at = Timestamp(848_484_047_406_957);
    let transaction = Transaction {
        xid: 745,
        commit_lsn: Lsn(0x15A_8F50),
        committed_at,
        fingerprint: Fingerprint::of(7_312_345_678_901_234_567, 745, committed_at),
        origin: None,
    };
    Event {
        transaction: Arc::new(transaction),
        ordinal: 3,
        lsn: Lsn(0x15A_8EA0),
        action,
        annotations: None,
        relation: Arc::new(relation),
        new,
        old,
    }
}

fn row(id: &str, status: &str, paid: &str, notes: Cell<'_>) -> Row {
    let values =
        [id, status, "99.90", paid, "\"2026-11-20T10:00:47.406957+00:00\"", r#"["new","gift wrap"]"#];
    let data = r#"{"n": 1.50}"#;
    let values = values.into_iter().chain([data]).map(|value| Cell::Json(value.as_bytes()));
    values.chain([notes]).collect()
}

fn key_alone(id: &str) -> Row {
    [Cell::Json(id.as_bytes())].into_iter().chain([Cell::Absent; 7]).collect()
}

/// The event of the case.
fn event(case: &str) -> Event {
    let notes = Cell::Json(br#""a \"gift\" \\ \u00e9""#);
    let (open, paid) = (r#""open""#, r#""paid""#);
    let before = || Some(row("1", open, "false", notes));
    let after = |id| Some(row(id, paid, "true", Cell::Unchanged));
    let (action, new, old) = match case {
        "insert" => (Action::Insert, Some(row("1", open, "false", Cell::Null)), None),
        "update" => (Action::Update, after("1"), None),
        "update_full" => (Action::Update, after("1"), before()),
        "update_of_key" => (Action::Update, after("2"), Some(key_alone("1"))),
        "delete" => (Action::Delete, None, Some(key_alone("1"))),
        "delete_full" => (Action::Delete, None, before()),
        "truncate" => (Action::Truncate, None, None),
        other => panic!("no case {other}"),
    };
    event_of(orders(), action, new, old)
}

fn rendered(format: Format, event: &Event, columns: &Shown) -> String {
    let context =
        RenderContext { source: &source(), subscription_id: 7, subscription: "orders-to-billing", columns };
    let mut out = Vec::new();
    format.render_one(&mut out, event, 0, &context);
    String::from_utf8(out).unwrap()
}

fn body(format: Format, event: &Event) -> String {
    rendered(format, event, &Shown::All)
}

fn parsed(format: Format, event: &Event) -> serde_json::Value {
    serde_json::from_str(&body(format, event)).unwrap()
}

/// The text without the white space between members.
fn compact(pretty: &str) -> String {
    let mut in_string = false;
    let mut escaped = false;
    pretty
        .chars()
        .filter(|character| {
            match character {
                '"' if !escaped => in_string = !in_string,
                _ => {}
            }
            escaped = in_string && *character == '\\' && !escaped;
            in_string || !character.is_whitespace()
        })
        .collect()
}

#[test]
fn bodies_are_byte_for_byte_as_documented() {
    for (format, goldens) in GOLDENS {
        for (case, golden) in CASES.into_iter().zip(goldens) {
            assert_eq!(body(format, &event(case)), compact_values(golden), "{format:?} {case}");
        }
    }
}

/// [`compact`], but that a column's own JSON stays as the event has it.
fn compact_values(golden: &str) -> String {
    compact(golden).replace(r#"{"n":1.50}"#, r#"{"n": 1.50}"#)
}

/// Each `json` block of the reference is a golden file, and each golden file is in there.
#[test]
fn the_payload_reference_shows_the_golden_files() {
    let reference = include_str!("../../../docs/payloads.md");
    let blocks: Vec<&str> = reference
        .split("```")
        .skip(1)
        .step_by(2)
        .filter_map(|block| block.split_once('\n'))
        .filter(|(fence, _)| fence.split_whitespace().eq(["json", "golden"]))
        .map(|(_, text)| text.trim())
        .collect();
    let goldens: Vec<&str> =
        GOLDENS.iter().flat_map(|(_, goldens)| goldens).map(|golden| golden.trim()).collect();
    for block in &blocks {
        assert!(goldens.contains(block), "not in a golden file: {block}");
    }
    for golden in goldens {
        assert!(blocks.contains(&golden), "not in docs/payloads.md: {golden}");
    }
}

#[test]
fn words_name_formats() {
    for format in Format::ALL {
        assert_eq!(Format::of_word(format.word()), Some(format));
    }
    assert_eq!(Format::of_word("PGWH"), None);
    assert_eq!(Format::ALL[0], Format::default());
}

#[test]
fn batches_are_as_their_receivers_read_them() {
    let event = event("insert");
    for format in Format::ALL.into_iter().filter(|format| format.takes_batches()) {
        let one = body(format, &event);
        let context = RenderContext {
            source: &source(),
            subscription_id: 7,
            subscription: "orders-to-billing",
            columns: &Shown::All,
        };
        let batch = |count: usize| {
            let mut out = Vec::new();
            format.render_batch(&mut out, vec![(&event, 0); count], &context);
            String::from_utf8(out).unwrap()
        };
        if format == Format::Sequin {
            assert_eq!(batch(1), one);
            let message = one.strip_prefix(r#"{"data":["#).unwrap().strip_suffix("]}").unwrap();
            assert_eq!(batch(2), format!(r#"{{"data":[{message},{message}]}}"#));
        } else {
            assert_eq!(batch(1), format!("[{one}]"));
            assert_eq!(batch(2), format!("[{one},{one}]"));
        }
    }
}

#[test]
fn requests_say_what_they_bring() {
    assert_eq!(Format::Pgwh.content_type(true), "application/json");
    assert_eq!(Format::Cloudevents.content_type(false), "application/cloudevents+json");
    assert_eq!(Format::Cloudevents.content_type(true), "application/cloudevents-batch+json");
    let header = Format::Pgstream.extra_header(&event("insert"));
    assert_eq!(header, Some(("x-pgstream-lsn", "0/15A8EA0".to_owned())));
}

/// Columns that are not shown are in no format, and the key is in each.
#[test]
fn only_columns_that_are_shown_are_told() {
    for format in Format::ALL {
        for case in ["insert", "update_full", "delete_full"] {
            let text = rendered(format, &event(case), &Shown::Only(vec!["status".to_owned()]));
            assert!(!text.contains("total") && !text.contains("gift"), "{text}");
            assert!(text.contains("status") && text.contains(r#""id""#), "{text}");
        }
    }
}

/// A value that is not known is not made up: no format has a member for it.
#[test]
fn what_is_unchanged_or_too_large_is_left_out() {
    let mut unchanged = event("update");
    for notes in [Cell::Unchanged, Cell::Omitted] {
        unchanged.new = Some(row("1", r#""paid""#, "true", notes));
        for format in [Format::Supabase, Format::Sequin] {
            let body = parsed(format, &unchanged);
            let record = if format == Format::Sequin { &body["data"][0]["record"] } else { &body["record"] };
            assert_eq!(record["status"], "paid");
            assert!(record.get("notes").is_none(), "{body}");
        }
        let columns = &parsed(Format::Pgstream, &unchanged)["Data"]["columns"];
        assert_eq!(columns.as_array().unwrap().len(), 7);
    }
    let mut deleted = event("delete_full");
    deleted.old = Some(row("1", r#""paid""#, "true", Cell::Omitted));
    assert!(parsed(Format::Sequin, &deleted)["data"][0]["record"].get("notes").is_none());
    assert!(parsed(Format::Supabase, &deleted)["old_record"].get("notes").is_none());
}

/// An update or delete of which write-ahead log does not say which row it was.
#[test]
fn an_anonymous_change_is_sent_with_what_is_known() {
    let mut relation = orders();
    relation.columns[0].is_key = false;
    let new = event("update").new;
    let update = event_of(relation.clone(), Action::Update, new, None);
    let delete = event_of(relation, Action::Delete, None, None);

    let data = parsed(Format::Pgstream, &update)["Data"].take();
    assert_eq!((&data["identity"], &data["metadata"]["id_col_pgstream_id"]), (&NULL, &NULL));
    assert_eq!(parsed(Format::Pgstream, &delete)["Data"]["identity"], NULL);
    assert_eq!(parsed(Format::Supabase, &update)["old_record"], serde_json::json!({}));
    assert_eq!(parsed(Format::Supabase, &delete)["old_record"], serde_json::json!({}));
    let message = parsed(Format::Sequin, &update)["data"][0].take();
    assert_eq!(message["changes"], serde_json::json!({}));
    assert_eq!(message["metadata"]["record_pks"], serde_json::json!([]));
    let record = parsed(Format::Sequin, &delete)["data"][0]["record"].take();
    assert!(record.as_object().unwrap().values().all(|value| *value == NULL));
    assert_eq!(record.as_object().unwrap().len(), 8);
    assert!(parsed(Format::Cloudevents, &delete).get("subject").is_none());
}

const NULL: serde_json::Value = serde_json::Value::Null;

/// Names of the table that a partition belongs to, and its id.
#[test]
fn a_partition_goes_by_the_name_the_subscription_knows() {
    let mut event = event("insert");
    let mut relation = orders();
    relation.names.push(TableName { schema: "sales".into(), table: "all_orders".into() });
    relation.root_oid = 16_380;
    event.relation = Arc::new(relation);
    let context =
        RenderContext { source: &source(), subscription_id: 7, subscription: "s", columns: &Shown::All };
    for format in Format::ALL {
        let mut out = Vec::new();
        format.render_one(&mut out, &event, 1, &context);
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("all_orders") && text.contains("sales") && !text.contains("public"), "{text}");
    }
    let id = |event: &Event, level| {
        let mut out = Vec::new();
        Format::Pgstream.render_one(&mut out, event, level, &context);
        let body: serde_json::Value = serde_json::from_slice(&out).unwrap();
        body["Data"]["metadata"]["table_pgstream_id"].clone()
    };
    assert_ne!(id(&event, 0), id(&event, 1));
}

/// CloudEvents 1.0.2, sections "source" and "subject".
#[test]
fn cloudevents_attributes_are_valid_whatever_names_and_keys_are() {
    let mut event = event("insert");
    let mut relation = orders();
    relation.names[0] = TableName { schema: "a/b".into(), table: "c é?".into() };
    relation.columns[1].is_key = true;
    event.relation = Arc::new(relation);
    let body = parsed(Format::Cloudevents, &event);
    assert_eq!(body["source"], "/shop/a%2Fb/c%20%C3%A9%3F");
    assert_eq!(body["subject"], "1,open");
}
