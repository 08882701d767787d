use std::sync::Arc;

use serde_json::{Value as Json, json};

use super::*;
use crate::event::format::{Format, Source};
use crate::event::{Fingerprint, Kind, Lsn, Relation, Row, TableName, Timestamp, Transaction};

const SHOP: &Source = &Source { database: String::new(), host: String::new(), installation: 0 };
const CONTEXT: RenderContext<'_> = RenderContext {
    source: SHOP,
    subscription_id: 7,
    subscription: "orders-to-billing",
    columns: &Shown::All,
};

/// `orders (id integer primary key, status text, notes text)`, a partition of `sales.all_orders`.
fn orders() -> Relation {
    let name = |schema: &str, table: &str| TableName { schema: schema.into(), table: table.into() };
    let column = |number, name: &str, type_oid, type_name: &str| Column {
        name: name.into(),
        number,
        type_oid,
        type_name: type_name.into(),
        kind: Kind::Text,
        is_key: number == 1,
        heads: Default::default(),
    };
    Relation {
        oid: 16_385,
        root_oid: 16_380,
        names: vec![name("public", "orders"), name("sales", "all_orders")],
        columns: vec![
            column(1, "id", 23, "integer"),
            column(2, "status", 25, "text"),
            column(3, "notes", 25, "text"),
        ],
        key: Default::default(),
        version: 1,
    }
}

fn event(action: Action, new: Option<[Cell<'_>; 3]>, old: Option<[Cell<'_>; 3]>) -> Event {
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
        lsn: Lsn(0x15A_8F00),
        action,
        annotations: None,
        relation: Arc::new(orders()),
        new: new.map(Row::from_iter),
        old: old.map(Row::from_iter),
    }
}

fn rendered(event: &Event, level: usize) -> String {
    let mut out = Vec::new();
    Format::Pgwh.render_one(&mut out, event, level, &CONTEXT);
    String::from_utf8(out).unwrap()
}

/// The `data` of an event's body that shows only some columns.
fn data_with(event: &Event, columns: &Shown) -> Json {
    let mut out = Vec::new();
    Format::Pgwh.render_one(&mut out, event, 0, &RenderContext { columns, ..CONTEXT });
    serde_json::from_slice::<Json>(&out).unwrap()["data"].take()
}

/// The `data` of an event's body.
fn data(event: &Event) -> Json {
    serde_json::from_str::<Json>(&rendered(event, 0)).unwrap()["data"].take()
}

const ID: Cell<'_> = Cell::Json(b"1");
const OPEN: Cell<'_> = Cell::Json(br#""open""#);
const PAID: Cell<'_> = Cell::Json(br#""paid""#);
const NOTES: Cell<'_> = Cell::Json(br#""a \"gift\" \\ \u00e9""#);
use Cell::{Absent, Null, Unchanged};

#[test]
fn the_level_picks_the_name_the_subscription_knows() {
    let event = event(Action::Insert, Some([ID, Null, Null]), None);
    assert!(rendered(&event, 0).starts_with(r#"{"type":"public.orders.insert","#));
    assert!(rendered(&event, 1).starts_with(r#"{"type":"sales.all_orders.insert","#));
}

#[test]
fn changes_are_not_known_without_the_old_row() {
    let data = data(&event(Action::Update, Some([ID, PAID, Null]), None));
    assert_eq!(data["changes"], Json::Null);
    assert_eq!(data["old_key"], Json::Null);
    assert_eq!(data["key"], serde_json::json!({"id": 1}));
}

#[test]
fn an_update_that_changes_nothing_has_no_changes() {
    let data = data(&event(Action::Update, Some([ID, OPEN, Unchanged]), Some([ID, OPEN, NOTES])));
    assert_eq!(data["changes"], serde_json::json!({}));
}

/// WAL carries the old key also when it is stored out of line.
#[test]
fn an_old_key_that_is_the_same_says_nothing_of_other_columns() {
    let data = data(&event(Action::Update, Some([ID, PAID, Null]), Some([ID, Absent, Absent])));
    assert_eq!(data["changes"], Json::Null);
    assert_eq!(data["old_key"], Json::Null);
}

#[test]
fn a_virtual_column_hides_no_changes() {
    let data = data(&event(Action::Update, Some([ID, PAID, Absent]), Some([ID, Null, Absent])));
    assert_eq!(data["changes"], serde_json::json!({"status": null}));
    assert_eq!(data["record"], serde_json::json!({"id": 1, "status": "paid"}));
    assert_eq!(data["unchanged"], serde_json::json!([]));
}

#[test]
fn a_delete_shows_what_is_known_of_the_row() {
    let full = data(&event(Action::Delete, None, Some([ID, OPEN, Null])));
    assert_eq!(full["record"], serde_json::json!({"id": 1, "status": "open", "notes": null}));
    assert_eq!(full["key"], serde_json::json!({"id": 1}));

    let nothing = data(&event(Action::Delete, None, None));
    assert_eq!(nothing["record"], serde_json::json!({}));
    assert_eq!(nothing["key"], Json::Null);
}

#[test]
fn a_key_is_whole_or_null() {
    let mut event = event(Action::Insert, Some([ID, Unchanged, Null]), None);
    let mut keyed = |numbers: &[i16]| {
        let mut relation = orders();
        for column in &mut relation.columns {
            column.is_key = numbers.contains(&column.number);
        }
        event.relation = Arc::new(relation);
        data(&event)["key"].take()
    };
    assert_eq!(keyed(&[]), Json::Null);
    assert_eq!(keyed(&[1, 3]), serde_json::json!({"id": 1, "notes": null}));
    assert_eq!(keyed(&[1, 2]), Json::Null);
    assert_eq!(keyed(&[2, 3]), Json::Null);
}

#[test]
fn names_of_any_characters_stay_what_they_are() {
    let mut event = event(Action::Insert, Some([ID, Null, Unchanged]), None);
    let mut relation = orders();
    relation.names[0] = TableName { schema: "a\"b".into(), table: "c\\\n.é".into() };
    for column in &mut relation.columns {
        column.name.push_str("\"\t");
    }
    event.relation = Arc::new(relation);

    let mut out = Vec::new();
    let source = Source { database: "d\"\u{1}".into(), ..Source::default() };
    let context = RenderContext { source: &source, subscription: "s\\", ..CONTEXT };
    render(&mut out, &event, 0, &context);
    let body: Json = serde_json::from_slice(&out).unwrap();
    assert_eq!(body["type"], "a\"b.c\\\n.é.insert");
    assert_eq!(body["data"]["schema"], "a\"b");
    assert_eq!(body["data"]["table"], "c\\\n.é");
    assert_eq!(body["data"]["key"]["id\"\t"], 1);
    assert_eq!(body["data"]["unchanged"][0], "notes\"\t");
    assert_eq!(body["data"]["database"], "d\"\u{1}");
    assert_eq!(body["data"]["subscription"], "s\\");
}

#[test]
fn a_body_is_appended_to_what_is_there() {
    let event = event(Action::Truncate, None, None);
    let mut out = b"[".to_vec();
    render(&mut out, &event, 0, &CONTEXT);
    assert_eq!(out[1..], *rendered(&event, 0).as_bytes());
}

#[test]
fn only_columns_that_are_shown_are_told_and_the_key_always_is() {
    let new = [Cell::Json(b"1"), Cell::Json(b"\"paid\""), Cell::Unchanged];
    let old = [Cell::Json(b"1"), Cell::Json(b"\"open\""), Cell::Json(b"\"long\"")];
    let event = event(Action::Update, Some(new), Some(old));
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<String>>();
    for columns in [Shown::Only(names(&["notes"])), Shown::Except(names(&["id", "status"]))] {
        let data = data_with(&event, &columns);
        assert_eq!(data["key"], json!({"id": 1}));
        assert_eq!(data["record"], json!({"id": 1, "notes": "long"}));
        assert_eq!(data["changes"], json!({}));
    }
    let data = data_with(&event, &Shown::Only(names(&["status"])));
    assert_eq!(data["record"], json!({"id": 1, "status": "paid"}));
    assert_eq!(data["changes"], json!({"status": "open"}));
}

#[test]
fn what_is_omitted_is_named_and_nothing_is_where_nothing_is() {
    let id = Cell::Json(b"1");
    let inserted = data(&event(Action::Insert, Some([id, Cell::Omitted, Cell::Null]), None));
    assert_eq!(inserted["record"], json!({"id": 1, "notes": null}));
    assert_eq!(inserted["omitted"], json!(["status"]));
    assert!(data(&event(Action::Insert, Some([id, Cell::Null, Cell::Null]), None)).get("omitted").is_none());

    // Of the other columns is told what changed.
    let (new, old) = ([id, Cell::Omitted, Cell::Null], [id, Cell::Omitted, Cell::Json(b"\"n\"")]);
    let updated = data(&event(Action::Update, Some(new), Some(old)));
    assert_eq!((&updated["changes"], &updated["omitted"]), (&json!({"notes": "n"}), &json!(["status"])));
    // One side of a change may be small.
    let (new, old) = ([id, Cell::Omitted, Cell::Null], [id, Cell::Null, Cell::Null]);
    let updated = data(&event(Action::Update, Some(new), Some(old)));
    assert_eq!((&updated["changes"], &updated["omitted"]), (&json!({"status": null}), &json!(["status"])));
    // What stayed as it was is unchanged, however large.
    let (new, old) = ([id, Cell::Unchanged, Cell::Null], [id, Cell::Omitted, Cell::Null]);
    let updated = data(&event(Action::Update, Some(new), Some(old)));
    assert_eq!((&updated["unchanged"], updated.get("omitted")), (&json!(["status"]), None));

    let shown = Shown::Only(vec!["notes".to_owned()]);
    let hidden = data_with(&event(Action::Insert, Some([id, Cell::Omitted, Cell::Null]), None), &shown);
    assert!(hidden.get("omitted").is_none());
}

#[test]
fn a_replicated_change_says_where_it_came_from() {
    let mut event = event(Action::Truncate, None, None);
    let with = |event: &mut Event, origin: Origin| {
        let transaction = (*event.transaction).clone();
        event.transaction = Arc::new(Transaction { origin: Some(Arc::new(origin)), ..transaction });
        rendered(event, 0)
    };
    let known = Origin {
        name: Some("f\"ar".to_owned()),
        lsn: Some(Lsn(0xA_00BC_DEF0)),
        committed_at: Some(Timestamp(848_484_047_406_957)),
    };
    let told = r#""origin":{"name":"f\"ar","lsn":"A/BCDEF0","timestamp":"2026-11-20T10:00:47.406957Z"}},"annotations""#;
    let body = with(&mut event, known);
    assert!(body.contains(told), "{body}");
    let body = with(&mut event, Origin::default());
    assert!(body.contains(r#""origin":{"name":null,"lsn":null,"timestamp":null}},"annotations""#), "{body}");
}
