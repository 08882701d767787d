//! The examples of the systems that formats stand for: what their receivers were written against.
//!
//! Values that cannot be the same (ids, positions, names of machines) are compared by their shape.

use serde_json::{Value, json};

use super::*;

/// `tutorial_test (id serial PRIMARY KEY, name text)` with REPLICA IDENTITY FULL.
fn tutorial() -> Event {
    let relation = Relation {
        oid: 16_471,
        root_oid: 16_471,
        names: vec![TableName { schema: "public".into(), table: "tutorial_test".into() }],
        columns: vec![column(1, "id", "integer", Kind::Number), column(2, "name", "text", Kind::Text)],
        key: Default::default(),
        version: 1,
    };
    let row = |name: &str| Some(Row::from_iter([Cell::Json(b"1"), Cell::Json(name.as_bytes())]));
    let mut event = event_of(relation, Action::Update, row(r#""a""#), row(r#""alice""#));
    let transaction = Transaction { committed_at: at(1_741_861_109_264_688), ..(*event.transaction).clone() };
    event.transaction = Arc::new(transaction);
    event.lsn = Lsn(0x15C_1CC0);
    event
}

/// So many microseconds after 1970.
fn at(unix: i64) -> Timestamp {
    Timestamp::from_unix_micros(unix)
}

/// The event of pgstream's tutorial "PostgreSQL replication to webhooks", section "Populate event metadata".
#[test]
fn pgstream_sends_what_its_tutorial_shows() {
    let mut example: Value = serde_json::from_str(
        r#"{
  "Data": {
    "action": "U",
    "timestamp": "2025-03-13 10:18:29.264688+00",
    "lsn": "0/15C1CC0",
    "schema": "public",
    "table": "tutorial_test",
    "columns": [
      {"id": "cv9al8qhi0j00i9chq8g-1", "name": "id", "type": "integer", "value": 1},
      {"id": "cv9al8qhi0j00i9chq8g-2", "name": "name", "type": "text", "value": "a"}
    ],
    "identity": [
      {"id": "cv9al8qhi0j00i9chq8g-1", "name": "id", "type": "integer", "value": 1},
      {"id": "cv9al8qhi0j00i9chq8g-2", "name": "name", "type": "text", "value": "alice"}
    ],
    "metadata": {
      "schema_id": "cv9b12qhi0j00i9chqag",
      "table_pgstream_id": "cv9al8qhi0j00i9chq8g",
      "id_col_pgstream_id": ["cv9al8qhi0j00i9chq8g-1"],
      "version_col_pgstream_id": ""
    }
  }
}"#,
    )
    .unwrap();
    let sent = body(Format::Pgstream, &tutorial());
    let table = std::str::from_utf8(ids::Xid::of_table(INSTALLATION, 16_471).as_bytes()).unwrap().to_owned();
    let ours = serde_json::from_str::<Value>(&sent).unwrap();
    let schema_id = ours["Data"]["metadata"]["schema_id"].clone();
    assert_eq!(schema_id.as_str().unwrap().len(), 20);
    example["Data"]["metadata"]["schema_id"] = schema_id;
    let example = example.to_string().replace("cv9al8qhi0j00i9chq8g", &table);
    assert_eq!(ours, serde_json::from_str::<Value>(&example).unwrap());
}

/// An insert of the same tutorial: no identity.
#[test]
fn pgstream_has_no_identity_in_an_insert_and_no_columns_in_a_delete() {
    let mut insert = tutorial();
    (insert.action, insert.old) = (Action::Insert, None);
    let data = parsed(Format::Pgstream, &insert)["Data"].take();
    assert_eq!((&data["action"], &data["identity"]), (&json!("I"), &NULL));
    let mut delete = tutorial();
    (delete.action, delete.new) = (Action::Delete, None);
    let data = parsed(Format::Pgstream, &delete)["Data"].take();
    assert_eq!((&data["action"], &data["columns"]), (&json!("D"), &NULL));
    assert_eq!(data["identity"][1]["value"], "alice");
}

/// The message that Sequin's tutorial "User webhooks" shows. Its later versions have more members of `metadata`.
#[test]
fn sequin_sends_what_its_tutorial_shows() {
    let example: Value = serde_json::from_str(
        r#"{
    "data": [
        {
        "record": {
            "created_at": "2025-04-22T00:26:11.975318Z",
            "id": 1,
            "message": "Hello from Sequin",
            "user_id": 1
        },
        "metadata": {
            "consumer": {
            "id": "4538acb2-8fb2-485f-885f-b0a0a8ad8e29",
            "name": "user-1-notifications"
            },
            "table_name": "notifications",
            "commit_timestamp": "2025-04-22T00:26:11.975318Z",
            "transaction_annotations": null,
            "table_schema": "public",
            "database_name": "local",
            "commit_lsn": 46346904
        },
        "action": "insert",
        "changes": null
        }
    ]
}"#,
    )
    .unwrap();
    let relation = Relation {
        oid: 16_500,
        root_oid: 16_500,
        names: vec![TableName { schema: "public".into(), table: "notifications".into() }],
        columns: vec![
            column(1, "id", "integer", Kind::Number),
            column(2, "user_id", "integer", Kind::Number),
            column(3, "message", "text", Kind::Text),
            column(4, "created_at", "timestamp with time zone", Kind::Timestamptz),
        ],
        key: Default::default(),
        version: 1,
    };
    let values = ["1", "1", r#""Hello from Sequin""#, r#""2025-04-22T00:26:11.975318+00:00""#];
    let row = values.iter().map(|value| Cell::Json(value.as_bytes())).collect();
    let mut event = event_of(relation, Action::Insert, Some(row), None);
    event.ordinal = 0;
    let committed_at = at(1_745_281_571_975_318);
    let commit_lsn = Lsn(46_346_904);
    event.transaction = Arc::new(Transaction { committed_at, commit_lsn, ..(*event.transaction).clone() });
    let source = Source { database: "local".to_owned(), ..source() };
    let context = RenderContext {
        source: &source,
        subscription_id: 1,
        subscription: "user-1-notifications",
        columns: &Shown::All,
    };
    let mut out = Vec::new();
    Format::Sequin.render_one(&mut out, &event, 0, &context);
    let mut ours: Value = serde_json::from_slice(&out).unwrap();

    let (theirs, ours) = (&example["data"][0], &mut ours["data"][0]);
    for member in ["record", "action", "changes"] {
        assert_eq!(ours[member], theirs[member]);
    }
    let uuid = ours["metadata"]["consumer"]["id"].as_str().unwrap().to_owned();
    assert_eq!(shape(&uuid), shape(theirs["metadata"]["consumer"]["id"].as_str().unwrap()));
    let metadata = theirs["metadata"].as_object().unwrap();
    for (member, value) in metadata.iter().filter(|(member, _)| *member != "consumer") {
        assert_eq!(&ours["metadata"][member], value, "{member}");
    }
    assert_eq!(ours["metadata"]["consumer"]["name"], theirs["metadata"]["consumer"]["name"]);
    assert_eq!(ours["metadata"]["idempotency_key"], "NDYzNDY5MDQ6MA==");
    assert_eq!(ours["metadata"]["record_pks"], json!(["1"]));
}

/// Where a text has hexadecimal digits, and where something else.
fn shape(text: &str) -> String {
    text.chars().map(|character| if character.is_ascii_hexdigit() { 'x' } else { character }).collect()
}

/// The three payloads of Supabase's documentation, "Database Webhooks", section "Payload".
#[test]
fn supabase_sends_what_its_documentation_shows() {
    for (case, kind, has_record, has_old) in [
        ("insert", "INSERT", true, false),
        ("update_full", "UPDATE", true, true),
        ("delete_full", "DELETE", false, true),
    ] {
        let body = parsed(Format::Supabase, &event(case));
        let members: Vec<&str> = body.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(members, ["old_record", "record", "schema", "table", "type"]);
        assert_eq!(
            (&body["type"], &body["schema"], &body["table"]),
            (&json!(kind), &json!("public"), &json!("orders"))
        );
        assert_eq!((body["record"].is_object(), body["old_record"].is_object()), (has_record, has_old));
        assert_eq!((body["record"].is_null(), body["old_record"].is_null()), (!has_record, !has_old));
    }
}

/// The members of the examples in section 3.2 of the JSON event format; extensions, which they have, are none of ours.
#[test]
fn cloudevents_sends_what_its_specification_shows() {
    let example = json!({
        "specversion": "1.0",
        "type": "com.example.someevent",
        "source": "/mycontext",
        "subject": "larger-context",
        "id": "C234-1234-1234",
        "time": "2018-04-05T17:31:00Z",
        "datacontenttype": "application/json",
        "data": {"appinfoA": "abc", "appinfoB": 123, "appinfoC": true}
    });
    let sent = parsed(Format::Cloudevents, &tutorial());
    let (mut ours, mut theirs): (Vec<_>, Vec<_>) =
        (sent.as_object().unwrap().keys().collect(), example.as_object().unwrap().keys().collect());
    ours.sort();
    theirs.sort();
    assert_eq!(ours, theirs);
    for member in ["specversion", "datacontenttype"] {
        assert_eq!(sent[member], example[member]);
    }
    for (member, value) in sent.as_object().unwrap() {
        assert_eq!(value.is_string(), example[member].is_string(), "{member}");
    }
    assert_eq!(
        shape(sent["time"].as_str().unwrap().split('.').next().unwrap()),
        shape("2018-04-05T17:31:00")
    );
}
