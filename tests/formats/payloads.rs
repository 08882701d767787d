//! Payload formats as receivers of other systems get them: shape, values, headers, batches, and changing one's mind.

use std::sync::Arc;
use std::time::Duration;

use harness::{Cluster, PATIENCE, Receiver, Reply, Request, Stop, json};
use serde_json::{Value, json};

fn stage() -> (Cluster, Receiver) {
    let cluster = Cluster::with_extension();
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY, name text)");
    (cluster, Receiver::start().unwrap())
}

/// The bodies of what has come to a subscription made by [`harness::Database::subscribe`], in order.
fn bodies(cluster: &Cluster, receiver: &Receiver, name: &str) -> Vec<Value> {
    requests(cluster, receiver, name).iter().map(|request| body(request)).collect()
}

fn body(request: &Request) -> Value {
    // With every digit.
    json(std::str::from_utf8(request.body()).unwrap()).unwrap()
}

fn requests(cluster: &Cluster, receiver: &Receiver, name: &str) -> Vec<Arc<Request>> {
    let reached = cluster.value(&format!("SELECT pgwh.wait('{name}', '{} s')", PATIENCE.as_secs()));
    assert_eq!(reached, "t", "{name} was not reached");
    let path = format!("/{name}");
    receiver.requests().into_iter().filter(|request| request.path() == path).collect()
}

fn members(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

/// An insert, an update, a delete and a truncate, each in a transaction of its own.
fn live_through_it_all(cluster: &Cluster) {
    cluster.each(&[
        "INSERT INTO t VALUES (1, 'a')",
        "UPDATE t SET name = 'alice'",
        "UPDATE t SET id = 2",
        "DELETE FROM t",
        "TRUNCATE t",
    ]);
}

#[test]
fn pgstream_receivers_get_what_pgstream_sends() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "ordering => 'strict', format => 'pgstream'");
    live_through_it_all(&cluster);
    let bodies = bodies(&cluster, &receiver, "s");
    let data: Vec<&Value> = bodies.iter().map(|body| &body["Data"]).collect();
    let actions: Vec<&str> = data.iter().map(|data| data["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["I", "U", "U", "D", "T"]);

    let table = data[0]["metadata"]["table_pgstream_id"].as_str().unwrap();
    assert!(table.len() == 20 && table.chars().all(|c| c.is_digit(32) && !c.is_uppercase()), "{table}");
    let id =
        |value: i64| json!({"id": format!("{table}-1"), "name": "id", "type": "integer", "value": value});
    let name =
        |value: &str| json!({"id": format!("{table}-2"), "name": "name", "type": "text", "value": value});
    assert_eq!(data[0]["columns"], json!([id(1), name("a")]));
    assert_eq!(data[0]["identity"], Value::Null);
    assert_eq!(data[1]["columns"], json!([id(1), name("alice")]));
    assert_eq!(data[1]["identity"], json!([id(1)]));
    assert_eq!((&data[2]["columns"][0], &data[2]["identity"]), (&id(2), &json!([id(1)])));
    assert_eq!((&data[3]["columns"], &data[3]["identity"]), (&Value::Null, &json!([id(2)])));
    assert_eq!((&data[4]["columns"], &data[4]["identity"]), (&Value::Null, &Value::Null));
    for data in &data {
        assert_eq!((&data["schema"], &data["table"]), (&json!("public"), &json!("t")));
        assert_eq!(data["metadata"]["id_col_pgstream_id"], json!([format!("{table}-1")]));
        assert_eq!(data["metadata"]["version_col_pgstream_id"], "");
        assert_eq!(
            cluster.value(&format!(
                "SELECT timestamptz '{0}' > now() - interval '1 hour' AND '{0}' ~ '^....-..-.. ..:..:..[.0-9]*[+]00$'",
                data["timestamp"].as_str().unwrap()
            )),
            "t"
        );
    }
    for request in requests(&cluster, &receiver, "s") {
        assert_eq!(request.header("content-type"), Some("application/json"));
        assert_eq!(request.header("x-pgstream-lsn"), body(&request)["Data"]["lsn"].as_str());
    }
}

/// Receivers tell repetitions by it: pgstream has the position of the change, not of its transaction.
#[test]
fn each_row_has_its_own_position_and_idempotency_key() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "ordering => 'strict', format => 'pgstream', tables => '{public.t}'");
    let before = cluster.value("SELECT pg_current_wal_lsn()");
    cluster.sql("BEGIN; INSERT INTO t VALUES (1); INSERT INTO t VALUES (2); UPDATE t SET name = 'x' WHERE id = 1; COMMIT");
    let requests = requests(&cluster, &receiver, "s");
    let header = |name: &str| {
        let mut found: Vec<String> =
            requests.iter().map(|request| request.header(name).unwrap().to_owned()).collect();
        found.sort();
        found.dedup();
        found.len()
    };
    assert_eq!((header("x-pgstream-lsn"), header("idempotency-key")), (3, 3));
    for request in &requests {
        let lsn = request.header("x-pgstream-lsn").unwrap();
        assert_eq!(
            cluster.value(&format!("SELECT '{lsn}' BETWEEN '{before}'::pg_lsn AND pg_current_wal_lsn()")),
            "t"
        );
    }
}

#[test]
fn ids_survive_renames_and_the_schema_id_tells_of_them() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "format => 'pgstream', max_in_flight => 1");
    cluster.each(&[
        "INSERT INTO t VALUES (1, 'a')",
        "INSERT INTO t VALUES (2, 'b')",
        "ALTER TABLE t RENAME TO u",
        "ALTER TABLE u RENAME name TO title",
        "INSERT INTO u VALUES (3, 'c')",
    ]);
    let mut bodies = bodies(&cluster, &receiver, "s");
    bodies.sort_by_key(|body| body["Data"]["columns"][0]["value"].as_i64());
    let [one, two, three] = [&bodies[0]["Data"], &bodies[1]["Data"], &bodies[2]["Data"]];
    assert_eq!((&three["table"], &three["columns"][1]["name"]), (&json!("u"), &json!("title")));
    for path in ["/metadata/table_pgstream_id", "/columns/0/id", "/columns/1/id"] {
        assert_eq!(one.pointer(path), three.pointer(path), "{path}");
    }
    assert_eq!(one["metadata"]["schema_id"], two["metadata"]["schema_id"]);
    assert_ne!(one["metadata"]["schema_id"], three["metadata"]["schema_id"]);
}

/// A schema's id is that of its latest change: all of its tables have it, other schemas don't, and it is the same wherever
/// a row is told: live, after a restart, from a backfill.
#[test]
fn each_change_of_the_schema_changes_the_schema_id() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "format => 'pgstream', max_in_flight => 1");
    let schema_id = |statement: &str| {
        cluster.sql(statement);
        let bodies = bodies(&cluster, &receiver, "s");
        bodies.last().unwrap()["Data"]["metadata"]["schema_id"].as_str().unwrap().to_owned()
    };
    cluster.sql("CREATE SCHEMA other; CREATE TABLE other.t (id int PRIMARY KEY)");
    let (first, other) = (schema_id("INSERT INTO t VALUES (1)"), schema_id("INSERT INTO other.t VALUES (1)"));
    assert_ne!(first, other);
    assert_eq!(schema_id("INSERT INTO t VALUES (2)"), first);
    // Of another table of the schema, and in a transaction that was rolled back.
    cluster.sql("CREATE TABLE u (id int PRIMARY KEY)");
    let second = schema_id("INSERT INTO t VALUES (3)");
    assert_ne!(second, first);
    cluster.sql("BEGIN; ALTER TABLE u ADD COLUMN a int; ROLLBACK");
    assert_eq!(schema_id("INSERT INTO u VALUES (1)"), second);
    assert_eq!(schema_id("INSERT INTO other.t VALUES (2)"), other);
    let within = schema_id("BEGIN; ALTER TABLE u ADD COLUMN b int; INSERT INTO u VALUES (2); COMMIT");
    assert_ne!(within, second);

    cluster.wait_confirmed();
    cluster.restart(Stop::Fast);
    assert_eq!(schema_id("INSERT INTO t VALUES (4)"), within);
    cluster.value("SELECT pgwh.backfill('s', 'public.u')");
    cluster.wait_true("SELECT state = 'done' FROM pgwh.backfills");
    assert_eq!(schema_id("SELECT"), within);
    let previewed = "SELECT body -> 'Data' -> 'metadata' ->> 'schema_id' FROM pgwh.preview('s', '{\"id\": 1, \"name\": \"a\"}')";
    assert_eq!(cluster.value(previewed), within);
}

/// Each value as PostgreSQL's own text has it, except numbers, booleans and `bytea`.
#[test]
fn pgstream_values_are_as_the_types_print_them() {
    let (cluster, receiver) = stage();
    cluster.sql(
        "CREATE EXTENSION hstore;
         CREATE TYPE pair AS (n int, t text, at timestamptz[]);
         CREATE DOMAIN amount AS numeric CHECK (VALUE > 0);
         CREATE DOMAIN stamps AS timestamptz[];
         CREATE TYPE mood AS ENUM ('so so', 'well')",
    );
    // Of each: an expression, and whether pgstream has its text.
    let values = [
        ("7::smallint", false),
        ("9007199254740993::bigint", false),
        ("123456789012345678901234567890.1230::numeric", false),
        ("1.5::amount", false),
        ("1e20::float8", false),
        ("true", false),
        ("12::oid", false),
        ("'a \"b\" \\ c'::text", true),
        ("'x'::char(3)", true),
        ("'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid", true),
        ("'2026-11-20'::date", true),
        ("'10:00:47.5'::time", true),
        ("'10:00:47.5+02'::timetz", true),
        ("'2026-11-20 10:00:47.5'::timestamp", true),
        ("'2026-11-20 10:00:47.5+01'::timestamptz", true),
        ("'infinity'::timestamptz", true),
        ("'0044-03-15 BC'::timestamptz", true),
        ("'1 year 2 days 03:04:05'::interval", true),
        ("'{\"a\" : [1, 2.50], \"b\": null}'::json", true),
        ("'{\"a\" : [1, 2.50], \"b\": null}'::jsonb", true),
        ("'null'::jsonb", true),
        ("'{1,NULL,3}'::int[]", true),
        ("'{{1,2},{3,4}}'::int[]", true),
        ("'{a,\"\",NULL,\"NULL\",\"b c\",\"d,e\",\"f\\\"g\",\"{h}\"}'::text[]", true),
        ("'{t,f}'::bool[]", true),
        ("'{NaN,1.50}'::numeric[]", true),
        ("'{2026-11-20 10:00:47.5+01,infinity}'::timestamptz[]", true),
        ("'{2026-11-20 10:00:47.5+01}'::stamps", true),
        ("ARRAY['\\x00ff'::bytea]", true),
        ("ARRAY['{\"a\": [1]}'::jsonb, '[2]', '\"x\"']", true),
        ("'{(1,1),(0,0);(2,2),(1,1)}'::box[]", true),
        ("ROW(1, 'a \"b\"', '{2026-11-20 10:00:47+00}')::pair", true),
        ("ARRAY[ROW(NULL, '', NULL)::pair, NULL, ROW(2, 'x', '{}')::pair]", true),
        ("'a=>1, \"b c\"=>NULL, \"d\\\"e\"=>\"\"'::hstore", true),
        ("'so so'::mood", true),
        ("'[1,5)'::int4range", true),
        ("'10.0.0.1/8'::inet", true),
        ("'(1,2)'::point", true),
        ("'101'::bit(3)", true),
    ];
    // A server may be built without libxml.
    let xml = [("'<a>1</a>'::xml", true)];
    let has_xml = cluster.try_sql("SELECT '<a/>'::xml").is_ok();
    let values: Vec<_> = values.into_iter().chain(xml.into_iter().filter(|_| has_xml)).collect();
    let columns: Vec<String> = (0..values.len()).map(|n| format!("c{n}")).collect();
    let expressions: Vec<&str> = values.iter().map(|(value, _)| *value).collect();
    let select: Vec<String> =
        columns.iter().zip(&expressions).map(|(column, value)| format!("{value} AS {column}")).collect();
    let select = select.join(", ");
    cluster.sql(&format!("CREATE TABLE v AS SELECT {select} LIMIT 0"));
    cluster.subscribe(&receiver, "s", "ordering => 'strict', format => 'pgstream', tables => '{public.v}'");
    cluster.sql(&format!("INSERT INTO v SELECT {select}"));
    let bodies = bodies(&cluster, &receiver, "s");
    let sent = bodies[0]["Data"]["columns"].as_array().unwrap();
    for ((sent, (expression, is_text)), column) in sent.iter().zip(values).zip(&columns) {
        let own = cluster.value(&format!("SET timezone = 'UTC'; SELECT {column} FROM v"));
        let type_name = cluster.value(&format!(
            "SELECT format_type(atttypid, atttypmod) FROM pg_attribute
             WHERE attrelid = 'v'::regclass AND attname = '{column}'"
        ));
        assert_eq!((&sent["name"], &sent["type"]), (&json!(column), &json!(type_name)));
        if is_text {
            assert_eq!(sent["value"].as_str(), Some(own.as_str()), "{expression}");
        } else {
            let number = if own == "t" { "true" } else { &own };
            assert_eq!(sent["value"].to_string(), number, "{expression}");
        }
    }
}

#[test]
fn pgstream_format_has_base64_bytea_and_null_for_nan() {
    let (cluster, receiver) = stage();
    cluster.sql("CREATE TABLE v (a bytea, b float8, c numeric, d real, e text)");
    cluster.subscribe(&receiver, "s", "ordering => 'strict', format => 'pgstream', tables => '{public.v}'");
    cluster.sql("INSERT INTO v VALUES ('\\x00ff10', 'NaN', 'NaN', '-Infinity', NULL)");
    let bodies = bodies(&cluster, &receiver, "s");
    let sent = bodies[0]["Data"]["columns"].as_array().unwrap();
    let values: Vec<&Value> = sent.iter().map(|column| &column["value"]).collect();
    assert_eq!(values, [&json!("AP8Q"), &Value::Null, &Value::Null, &Value::Null, &Value::Null]);
}

#[test]
fn sequin_receivers_get_what_sequin_sends() {
    let (cluster, receiver) = stage();
    cluster.sql(
        "CREATE TABLE n (id int PRIMARY KEY, price numeric, prices numeric[], at timestamptz, note text)",
    );
    cluster.subscribe(&receiver, "s", "ordering => 'strict', format => 'sequin', tables => '{public.n}'");
    cluster.each(&[
        "INSERT INTO n VALUES (1, 1.50, '{1.50,NULL}', '2025-04-22 00:26:11.975318+00')",
        "UPDATE n SET note = 'x'",
        "DELETE FROM n",
        "ALTER TABLE n REPLICA IDENTITY FULL",
        "INSERT INTO n VALUES (2, 2.0)",
        "UPDATE n SET price = 3.0",
        "DELETE FROM n",
    ]);
    let bodies = bodies(&cluster, &receiver, "s");
    assert!(bodies.iter().all(|body| body["data"].as_array().unwrap().len() == 1), "wrapped, one each");
    let messages: Vec<&Value> = bodies.iter().map(|body| &body["data"][0]).collect();
    let of = |message: usize| {
        let message = &messages[message];
        (message["action"].as_str().unwrap(), &message["record"], &message["changes"])
    };
    let first = json!({"id": 1, "price": "1.50", "prices": ["1.50", null], "at": "2025-04-22T00:26:11.975318Z", "note": null});
    assert_eq!(of(0), ("insert", &first, &Value::Null));
    assert_eq!((of(1).0, of(1).2), ("update", &json!({})));
    let gone = json!({"id": 1, "price": null, "prices": null, "at": null, "note": null});
    assert_eq!(of(2), ("delete", &gone, &Value::Null));
    assert_eq!((of(4).0, of(4).2), ("update", &json!({"price": "2.0"})));
    assert_eq!(of(5).1["price"], "3.0");

    let installation = cluster.value("SELECT id FROM pgwh_internal.installation");
    for message in &messages {
        let metadata = &message["metadata"];
        assert_eq!((&metadata["table_schema"], &metadata["table_name"]), (&json!("public"), &json!("n")));
        let (lsn, index) =
            (metadata["commit_lsn"].as_u64().unwrap(), metadata["commit_idx"].as_u64().unwrap());
        let key = cluster.value(&format!("SELECT encode('{lsn}:{index}', 'base64')"));
        assert_eq!(metadata["idempotency_key"], json!(key));
        assert_eq!(metadata["record_pks"], json!([message["record"]["id"].to_string()]));
        assert_eq!(metadata["database"]["id"], json!(installation));
        assert_eq!(
            (&metadata["database_name"], &metadata["database"]["database"]),
            (&json!("postgres"), &json!("postgres"))
        );
        assert!(!metadata["database"]["hostname"].as_str().unwrap().is_empty());
        assert_eq!(metadata["consumer"]["id"], messages[0]["metadata"]["consumer"]["id"]);
        assert_eq!(metadata["consumer"]["name"], "s");
    }
    let uuid = messages[0]["metadata"]["consumer"]["id"].as_str().unwrap();
    assert_eq!(cluster.value(&format!("SELECT '{uuid}'::uuid")), uuid);
}

#[test]
fn supabase_receivers_get_what_supabase_sends() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "ordering => 'strict', format => 'supabase'");
    live_through_it_all(&cluster);
    cluster.each(&[
        "ALTER TABLE t REPLICA IDENTITY FULL",
        "INSERT INTO t VALUES (3, 'c')",
        "UPDATE t SET name = 'd'",
        "DELETE FROM t",
    ]);
    let bodies = bodies(&cluster, &receiver, "s");
    let event = |kind: &str, record: Value, old_record: Value| json!({"type": kind, "schema": "public", "table": "t", "record": record, "old_record": old_record});
    let row = |id: i64, name: &str| json!({"id": id, "name": name});
    let expected = [
        event("INSERT", row(1, "a"), Value::Null),
        event("UPDATE", row(1, "alice"), json!({"id": 1})),
        event("UPDATE", row(2, "alice"), json!({"id": 1})),
        event("DELETE", Value::Null, json!({"id": 2})),
        event("TRUNCATE", Value::Null, Value::Null),
        event("INSERT", row(3, "c"), Value::Null),
        event("UPDATE", row(3, "d"), row(3, "c")),
        event("DELETE", Value::Null, row(3, "d")),
    ];
    assert_eq!(bodies, expected);
}

#[test]
fn cloudevents_are_the_same_events_in_an_envelope() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "plain", "ordering => 'strict'");
    cluster.subscribe(&receiver, "s", "ordering => 'strict', format => 'cloudevents'");
    live_through_it_all(&cluster);
    let plain = bodies(&cluster, &receiver, "plain");
    let events = bodies(&cluster, &receiver, "s");
    assert_eq!(events.len(), 5);
    for (event, plain) in events.iter().zip(plain) {
        let mut data = plain["data"].clone();
        data["subscription"] = json!("s");
        assert_eq!(event["data"], data);
        assert_eq!(event["specversion"], "1.0");
        assert_eq!((&event["id"], &event["time"]), (&plain["data"]["id"], &plain["timestamp"]));
        assert_eq!(event["source"], "/postgres/public/t");
        assert_eq!(event["type"], json!(format!("pgwh.{}", plain["data"]["action"].as_str().unwrap())));
        assert_eq!(event["datacontenttype"], "application/json");
        match data["action"].as_str() {
            Some("truncate") => assert!(event.get("subject").is_none()),
            _ => assert_eq!(event["subject"], json!(data["key"]["id"].to_string())),
        }
    }
    for request in requests(&cluster, &receiver, "s") {
        assert_eq!(request.header("content-type"), Some("application/cloudevents+json"));
    }
}

#[test]
fn batches_are_in_the_format_too() {
    let (cluster, receiver) = stage();
    for format in ["sequin", "cloudevents"] {
        cluster.subscribe(
            &receiver,
            format,
            &format!("format => '{format}', batch_size => 10, max_in_flight => 1"),
        );
    }
    receiver.behave(|_: &Request| Reply::default().after(Duration::from_millis(20)));
    cluster.sql("INSERT INTO t SELECT n, 'x' FROM generate_series(1, 40) n");

    let sequin = bodies(&cluster, &receiver, "sequin");
    let sizes: Vec<usize> = sequin.iter().map(|body| body["data"].as_array().unwrap().len()).collect();
    assert!(sizes.iter().sum::<usize>() == 40 && sizes.contains(&10), "{sizes:?}");

    let cloudevents = requests(&cluster, &receiver, "cloudevents");
    let sizes: Vec<usize> =
        cloudevents.iter().map(|request| body(request).as_array().unwrap().len()).collect();
    assert!(sizes.iter().sum::<usize>() == 40 && sizes.contains(&10), "{sizes:?}");
    let content_type = Some("application/cloudevents-batch+json");
    assert!(cloudevents.iter().all(|request| request.header("content-type") == content_type));
}

/// Each receiver takes every change of the same table at the same time, and signatures hold in all formats.
#[test]
fn one_change_goes_out_in_every_format_at_once() {
    let (cluster, receiver) = stage();
    let formats = ["pgwh", "pgstream", "sequin", "supabase", "cloudevents"];
    for format in formats {
        cluster.subscribe(&receiver, format, &format!("format => '{format}'"));
    }
    cluster.sql("INSERT INTO t VALUES (1, 'a')");
    for (format, first) in formats.into_iter().zip(["type", "Data", "data", "type", "specversion"]) {
        let requests = requests(&cluster, &receiver, format);
        let text = std::str::from_utf8(requests[0].body()).unwrap();
        assert!(text.starts_with(&format!("{{\"{first}\":")), "{format}: {text}");
        let secret = cluster.value(&format!("SELECT pgwh.secret('{format}')"));
        let secret = receiver::Secret::parse(&secret).unwrap();
        assert!(secret.verify(&requests[0]) == receiver::Verdict::Valid, "{format}");
        assert_eq!(requests[0].header("idempotency-key"), requests[0].header("webhook-id"));
    }
}

#[test]
fn a_changed_format_counts_for_what_is_sent_from_then_on() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "");
    cluster.sql("INSERT INTO t VALUES (1, 'a')");
    bodies(&cluster, &receiver, "s");
    cluster.sql("UPDATE pgwh.subscriptions SET paused = true");
    cluster.sql("INSERT INTO t VALUES (2, 'b')");
    cluster.sql("UPDATE pgwh.subscriptions SET format = 'supabase', paused = false");
    cluster.sql("INSERT INTO t VALUES (3, 'c')");
    let bodies = bodies(&cluster, &receiver, "s");
    assert_eq!(bodies[0]["data"]["record"], json!({"id": 1, "name": "a"}));
    let mut later: Vec<&Value> = bodies[1..].iter().map(|body| &body["record"]["id"]).collect();
    later.sort_by_key(|id| id.as_i64());
    assert_eq!(later, [&json!(2), &json!(3)]);
    assert!(bodies[1..].iter().all(|body| members(body).len() == 5));
}

/// A batch that has failed is split up when its subscription takes a format that knows none: what waits, and what was
/// under way when that was changed.
#[test]
fn a_format_of_single_events_splits_a_pending_batch() {
    for under_way in [false, true] {
        let (cluster, receiver) = stage();
        let retries = "retry_schedule => '{1h,1h}'";
        cluster.subscribe(
            &receiver,
            "s",
            &format!("batch_size => 10, max_in_flight => 1, batch_wait => '5 s', {retries}"),
        );
        let pause = Duration::from_secs(if under_way { 1 } else { 0 });
        receiver.behave(move |request: &Request| match body(request) {
            Value::Array(_) => Reply::status(500).after(pause),
            _ => Reply::default(),
        });
        cluster.sql("INSERT INTO t SELECT n, 'x' FROM generate_series(1, 10) n");
        if under_way {
            receiver.wait_for(1, PATIENCE).unwrap();
        } else {
            cluster.wait_status("s", "retrying = 10");
        }
        cluster.sql("UPDATE pgwh.subscriptions SET format = 'pgstream', batch_size = 1, batch_wait = '0 s'");
        let bodies = bodies(&cluster, &receiver, "s");
        assert_eq!(bodies[0].as_array().unwrap().len(), 10);
        let mut ids: Vec<i64> =
            bodies[1..].iter().map(|body| body["Data"]["columns"][0]["value"].as_i64().unwrap()).collect();
        ids.sort_unstable();
        assert_eq!(ids, (1..=10).collect::<Vec<_>>(), "under way: {under_way}");
    }
}

#[test]
fn options_unknown_to_a_format_are_refused() {
    let (cluster, receiver) = stage();
    let url = receiver.url("/");
    let unknown = cluster.refused(&format!("SELECT pgwh.subscribe('{url}', format => 'debezium')"));
    assert_eq!((unknown.code.as_str(), unknown.detail.contains("debezium")), ("22023", true));
    for word in ["pgwh", "pgstream", "sequin", "supabase", "cloudevents"] {
        assert!(unknown.hint.contains(word), "{}", unknown.hint);
    }
    for format in ["pgstream", "supabase"] {
        let batches = cluster
            .refused(&format!("SELECT pgwh.subscribe('{url}', format => '{format}', batch_size => 2)"));
        assert_eq!((batches.code.as_str(), batches.hint.contains("batch_size => 1")), ("22023", true));
    }
    cluster.sql(&format!(
        "INSERT INTO pgwh.subscriptions (name, url, format) VALUES ('s', '{url}', 'Supabase')"
    ));
    assert_eq!(cluster.value("SELECT format FROM pgwh.subscriptions"), "supabase");
    assert_eq!(cluster.refused("UPDATE pgwh.subscriptions SET batch_size = 2").code, "22023");
    assert_eq!(cluster.refused("UPDATE pgwh.subscriptions SET format = 'xml'").code, "22023");
    cluster.sql("UPDATE pgwh.subscriptions SET format = 'sequin', batch_size = 2");
    assert_eq!(cluster.refused("UPDATE pgwh.subscriptions SET format = 'pgstream'").code, "22023");
    cluster.sql("UPDATE pgwh.subscriptions SET format = NULL");
    assert_eq!(cluster.value("SELECT format FROM pgwh.subscriptions"), "pgwh");
}

/// A large value that an update leaves alone is in no record: none of the other systems would have it right.
#[test]
fn unchanged_large_values_are_left_out_in_every_format() {
    let (cluster, receiver) = stage();
    cluster.sql("ALTER TABLE t ADD COLUMN large text; ALTER TABLE t ALTER COLUMN large SET STORAGE EXTERNAL");
    cluster.sql("INSERT INTO t VALUES (1, 'a', repeat('x', 10000))");
    for format in ["pgstream", "sequin", "supabase"] {
        cluster.subscribe(&receiver, format, &format!("format => '{format}'"));
    }
    cluster.sql("UPDATE t SET name = 'b'");
    let pgstream = bodies(&cluster, &receiver, "pgstream");
    let names: Vec<&Value> =
        pgstream[0]["Data"]["columns"].as_array().unwrap().iter().map(|column| &column["name"]).collect();
    assert_eq!(names, [&json!("id"), &json!("name")]);
    let row = json!({"id": 1, "name": "b"});
    assert_eq!(bodies(&cluster, &receiver, "sequin")[0]["data"][0]["record"], row);
    assert_eq!(bodies(&cluster, &receiver, "supabase")[0]["record"], row);
}
