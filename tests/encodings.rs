//! Whatever encoding a database has, what is sent is UTF-8 JSON.

use harness::Stage;
use serde_json::json;

#[test]
fn names_values_and_databases_in_any_letters_arrive_as_utf8() {
    let stage = Stage::set();
    stage.sql("CREATE SCHEMA \"Ünï\"; CREATE TABLE \"Ünï\".\"a \"\"b\"\".c\" (\"Ключ\" int PRIMARY KEY, \"名\" text)");
    let event = stage
        .event_of("INSERT INTO \"Ünï\".\"a \"\"b\"\".c\" VALUES (1, E'日本 \\u0001 \"quoted\" \\\\ 🎉')");
    assert_eq!(event.what(), "Ünï.a \"b\".c insert");
    assert_eq!(event["key"], json!({"Ключ": 1}));
    assert_eq!(event["record"]["名"], "日本 \u{1} \"quoted\" \\ 🎉");

    stage.sql("CREATE DATABASE old ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0");
    let old = stage.cluster.database("old");
    old.each(&["CREATE EXTENSION pgstream_hooks", "CREATE TABLE \"naïve\" (id int PRIMARY KEY, note text)"]);
    old.subscribe(&stage.receiver, "latin", "");
    old.sql("INSERT INTO \"naïve\" VALUES (1, 'crème brûlée')");
    let events = old.delivered(&stage.receiver, "latin");
    assert_eq!(
        (events[0].what(), &events[0]["record"]["note"]),
        ("public.naïve insert".into(), &json!("crème brûlée"))
    );
    assert_eq!(events[0]["database"], "old");
}
