//! Whatever encoding a database has, what is sent is UTF-8 JSON.

use harness::{Answer, Cluster, Database, Event, Receiver, Script, Stage, Stop, compare_records, eventually};
use serde_json::json;

/// A database in that encoding with a subscription to all tables, named by the encoding.
fn database(cluster: &Cluster, receiver: &Receiver, encoding: &str) -> Database {
    let name = encoding.to_lowercase();
    cluster.sql(&format!("CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"));
    let database = cluster.database(&name);
    database.sql("CREATE EXTENSION pgstream_hooks");
    database.subscribe(receiver, &name, "");
    database
}

fn delivered(database: &Database, receiver: &Receiver) -> Vec<Event> {
    database.delivered(receiver, database.name())
}

/// Values, names and labels beyond ASCII of every kind that has them, in the letters of one language.
fn letters(letters: &str) -> String {
    format!(
        "
         CREATE TYPE \"enum {0}\" AS ENUM ('{0}');
         CREATE TYPE \"type {0}\" AS (\"a {0}\" text, b text[]);
         CREATE DOMAIN \"domain {0}\" AS \"type {0}\";
         CREATE SCHEMA \"schema {0}\";
         CREATE TABLE \"schema {0}\".\"{0} \"\"q\"\".t\" (id int PRIMARY KEY, \"{0}\" text, n name, v varchar(40), c char(40),
           j json, jb jsonb, e \"enum {0}\", es \"enum {0}\"[], t \"type {0}\", ts \"type {0}\"[], d \"domain {0}\", h hstore,
           ci citext, tv tsvector, long text, longs text[], \"char\" \"char\"[]);
         INSERT INTO \"schema {0}\".\"{0} \"\"q\"\".t\" VALUES (1, '{0}', '{0}', '{0}', '{0}', '{{\"{0}\": \"{0}\\n\"}}',
           '{{\"{0}\": [\"{0}\"]}}', '{0}', ARRAY['{0}']::\"enum {0}\"[], ('{0}', ARRAY['{0}', NULL]),
           ARRAY[('{0}', '{{}}')::\"type {0}\"], ('{0}', NULL), hstore('{0}', '{0}'), '{0}', to_tsvector('simple', '{0}'),
           repeat('{0}', 5000), ARRAY[repeat('{0}', 2000), '{0}'], '{{}}')",
        letters
    )
}

#[test]
fn values_of_every_type_are_equal_in_every_encoding() {
    let (cluster, receiver) = (Cluster::start(), Receiver::start().expect("a receiver"));
    let types = harness::types();
    for (encoding, beyond_ascii) in
        [("LATIN1", "crème ÿ"), ("EUC_JP", "日本語ｶﾅ丂"), ("KOI8R", "Ключ"), ("SQL_ASCII", "żółw 🐢")]
    {
        let database = database(&cluster, &receiver, encoding);
        database.psql(&types);
        database.sql(&letters(beyond_ascii));
        let events = delivered(&database, &receiver);
        let compared = compare_records(&database, &events);
        assert!(compared > 500, "{compared} values compared in {encoding}");
        let named = format!("schema {beyond_ascii}.{beyond_ascii} \"q\".t insert");
        let event = events.iter().find(|event| event.what() == named).expect("an event of that name");
        assert_eq!(event.whole["type"], named.replace(" insert", ".insert"));
        // What the journal keeps can be looked at as well.
        let shown = database.value("SELECT count(data) FROM pgwh.events");
        assert_eq!(shown, events.len().to_string(), "{encoding}");
    }
}

#[test]
fn bytes_that_are_no_text_are_sent_as_replacement_characters() {
    let (cluster, receiver) = (Cluster::start(), Receiver::start().expect("a receiver"));
    let database = database(&cluster, &receiver, "SQL_ASCII");
    database.psql(
        "\\encoding SQL_ASCII
         SET standard_conforming_strings = on;
         DO $$ BEGIN
           EXECUTE format('CREATE TYPE mood AS ENUM (%L)', E'ok\\xe9');
           EXECUTE format('CREATE TYPE pair AS (%I text)', E'x\\xff');
           EXECUTE format('CREATE TABLE %I (id int PRIMARY KEY, %I text, v varchar, n name, j json, e mood, p pair, a text[], c \"char\")',
             E'table\\xe9', E'column\\xc3');
           EXECUTE format('INSERT INTO %I VALUES (1, $1, $1, $1, to_json($1), $2::mood, ROW($1), ARRAY[$1, NULL], E''\\\\377'')', E'table\\xe9')
             USING E'a\\xe9\"\\xc3\\xa9\\xff', E'ok\\xe9';
         END $$;",
    );
    let events = delivered(&database, &receiver);
    let text = "a\u{fffd}\"é\u{fffd}";
    assert_eq!(events[0].what(), "public.table\u{fffd} insert");
    assert_eq!(
        events[0]["record"],
        json!({
            "id": 1, "column\u{fffd}": text, "v": text, "n": text, "j": text, "e": "ok\u{fffd}", "p": {"x\u{fffd}": text},
            "a": [text, null], "c": "\\377"
        })
    );
    assert_eq!(database.value("SELECT data ->> 'table' FROM pgwh.events"), "table\u{fffd}");
    // In a path, two values that differ stay two.
    database.wait_true(
        r"SELECT (pgwh.url_encode(E'a\xe9'), pgwh.url_encode(E'a\xff'), pgwh.url_encode(E'\xc3\xa9')) = ('a%E9', 'a%FF', '%C3%A9')",
    );
}

#[test]
fn text_outside_of_the_encoding_is_shown_as_far_as_it_fits() {
    let (cluster, receiver) = (Cluster::start(), Receiver::start().expect("a receiver"));
    let body = "désolé 🐢".as_bytes().to_vec();
    receiver.behave(Script::always(Answer::Respond { status: 400, headers: Vec::new(), body }));
    for (encoding, shown) in [("LATIN1", "désolé ?"), ("EUC_JP", "désolé ?"), ("SQL_ASCII", "désolé 🐢")]
    {
        let database = database(&cluster, &receiver, encoding);
        database.sql("UPDATE pgwh.subscriptions SET retry_schedule = '{}'");
        // Escapes of characters that the database does not have, and a name that is none of what is asked for.
        database.each(&[
            "CREATE TABLE \"ó\" (id int PRIMARY KEY, \"ó\" json)",
            "INSERT INTO \"ó\" VALUES (1, '[\"\\u00f3\\u017c\\u0000\", 1e999999]')",
        ]);
        let event = delivered(&database, &receiver).remove(0);
        assert_eq!(event["record"]["ó"][0], "óż\0", "escapes are sent as they are");
        let dead =
            database.rows("SELECT response, data -> 'record' -> 'ó' FROM pgwh.attempts, pgwh.dead_letters");
        let replaced = match encoding {
            "LATIN1" => "[\"ó??\", \"1e999999\"]",
            "EUC_JP" => "[\"óż?\", \"1e999999\"]",
            _ => "[\"óż\u{fffd}\", \"1e999999\"]",
        };
        assert_eq!(dead, [[Some(shown.to_owned()), Some(replaced.to_owned())]], "{encoding}");
        let refusal = database.refused("SELECT pgwh.subscribe('http://127.0.0.1/', tables => '{public.o}')");
        assert_eq!(refusal.code, "42P01", "{refusal:?}");
        let columns = "SELECT pgwh.subscribe('http://127.0.0.1/', tables => '{public.*}', columns => '{x}')";
        assert_eq!(database.refused(columns).code, "42703");
    }
}

#[test]
fn a_transform_is_given_what_jsonb_can_hold() {
    let (cluster, receiver) = (Cluster::start(), Receiver::start().expect("a receiver"));
    for encoding in ["UTF8", "LATIN1"] {
        let database = database(&cluster, &receiver, encoding);
        database.each(&[
            "CREATE FUNCTION record(event jsonb) RETURNS jsonb IMMUTABLE LANGUAGE sql RETURN event -> 'data' -> 'record'",
            "CREATE TABLE t (id int PRIMARY KEY, j json)",
        ]);
        database.subscribe(&receiver, "shaped", "transform => 'public.record(jsonb)'");
        database.sql("INSERT INTO t VALUES (1, '[\"\\u00e9\\u0000\", \"\\ud800\", 1e999999]')");
        assert_eq!(database.value("SELECT pgwh.wait('shaped', '60 s')"), "t");
        let body = receiver
            .requests()
            .iter()
            .rfind(|request| request.path() == "/shaped")
            .expect("a request")
            .body()
            .to_vec();
        let none = if encoding == "UTF8" { "\u{fffd}" } else { "?" };
        let body: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(body, json!({"id": 1, "j": [format!("é{none}"), none, "1e999999"]}));
    }
}

#[test]
fn names_and_values_in_any_letters_arrive_as_they_are() {
    let stage = Stage::set();
    stage.sql("CREATE SCHEMA \"Ünï\"; CREATE TABLE \"Ünï\".\"a \"\"b\"\".c\" (\"Ключ\" int PRIMARY KEY, \"名\" text)");
    let event = stage
        .event_of("INSERT INTO \"Ünï\".\"a \"\"b\"\".c\" VALUES (1, E'日本 \\u0001 \"quoted\" \\\\ 🎉')");
    assert_eq!(event.what(), "Ünï.a \"b\".c insert");
    assert_eq!(event["key"], json!({"Ключ": 1}));
    assert_eq!(event["record"]["名"], "日本 \u{1} \"quoted\" \\ 🎉");
}

/// Whatever a function is told, and whatever it tells, is in the letters of its caller.
#[test]
fn functions_and_workers_convert_text_of_every_encoding() {
    let (cluster, receiver) = (Cluster::start(), Receiver::start().expect("a receiver"));
    for (encoding, word) in [("LATIN1", "café"), ("EUC_JP", "日本語"), ("SQL_ASCII", "żółw")] {
        let lower = encoding.to_lowercase();
        cluster.sql(&format!("CREATE DATABASE {lower} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"));
        let database = cluster.database(&lower);
        let (table, name) = (format!("\"{word}\""), format!("to {word}"));
        database.each(&[
            "CREATE EXTENSION pgstream_hooks",
            &format!("CREATE TABLE {table} (\"{word}\" text PRIMARY KEY, note text, other text)"),
            &format!("INSERT INTO {table} VALUES ('{word} 0', '{word}', 'from before')"),
            &format!("ALTER TABLE {table} REPLICA IDENTITY FULL"),
            &format!("CREATE FUNCTION public.\"{word}\"(event jsonb) RETURNS jsonb IMMUTABLE LANGUAGE sql RETURN event"),
        ]);
        let id = database.value(&format!(
            "SELECT pgwh.subscribe('{}', name => '{name}', tables => '{{\"public.\\\"{word}\\\"\"}}',
               filter => 'note = ''{word}''', columns => '{{{word},note}}', changed => '{{{word},note}}',
               key_columns => '{{{word}}}', transform => 'public.\"{word}\"(jsonb)', headers => '{{\"x-of\": \"us\"}}')",
            receiver.url(&format!("/{lower}"))
        ));
        database.each(&[
            &format!("INSERT INTO {table} VALUES ('{word} 1', '{word}', 'unseen')"),
            &format!("INSERT INTO {table} VALUES ('{word} 9', 'not {word}')"),
        ]);
        let wait = format!("SELECT pgwh.wait('{name}', '60 s')");
        assert_eq!(database.value(&wait), "t");
        let bodies = || -> Vec<serde_json::Value> {
            let requests = receiver.requests();
            let ours = requests.iter().filter(|request| request.path() == format!("/{lower}"));
            ours.map(|request| serde_json::from_slice(request.body()).expect("JSON")).collect()
        };
        let sent = bodies();
        assert_eq!(sent.len(), 1, "{encoding}: one row fits the filter");
        assert_eq!(sent[0]["data"]["table"], word);
        assert_eq!(sent[0]["data"]["record"], json!({word: format!("{word} 1"), "note": word}));
        assert_eq!(sent[0]["data"]["subscription"], name);

        // As UTF-8, whatever the encoding of the database is.
        let segment: String = word
            .bytes()
            .map(|byte| match byte {
                b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => char::from(byte).to_string(),
                _ => format!("%{byte:02X}"),
            })
            .collect();

        // Looking.
        for (sql, expected) in [
            (format!("SELECT pgwh.url_encode('{word}')"), &*segment),
            (format!("SELECT state FROM pgwh.status() WHERE name = '{name}'"), "active"),
            (format!("SELECT state FROM pgwh.deliveries WHERE subscription = '{name}'"), "delivered"),
            (format!("SELECT subscription FROM pgwh.why('{table}', '{{\"{word}\": \"{word} 1\"}}')"), &name),
            (
                format!("SELECT body ->> 'type' FROM pgwh.preview('{name}', '{{\"{word}\": \"x\"}}')"),
                &format!("public.{word}.insert"),
            ),
            (format!("SELECT status FROM pgwh.test('{name}')"), "200"),
            (format!("SELECT pgwh.metrics() LIKE '%subscription=\"{name}\"%'"), "t"),
            (format!("SELECT count(*) > 0 FROM pgwh.metric_samples() WHERE subscription = '{name}'"), "t"),
            ("SELECT count(*) FROM pgwh.health() WHERE NOT ok".to_owned(), "0"),
            (format!("SELECT pgwh.secret('{name}') = pgwh.rotate_secret('{name}')"), "f"),
            (
                format!("SELECT filter FROM pgwh.subscriptions WHERE name = '{name}'"),
                &format!("note = '{word}'"),
            ),
            // Subscribing again by the name means the same one, and so does plain SQL.
            (
                format!(
                    "SELECT pgwh.subscribe(url, name => '{name}', tables => tables, filter => filter) FROM pgwh.subscriptions"
                ),
                &id,
            ),
            (format!("SELECT pgwh.pause('{name}')"), "t"),
            (format!("SELECT pgwh.resume('{name}')"), "t"),
        ] {
            assert_eq!(database.value(&sql), expected, "{encoding}: {sql}");
        }
        let refusal = database.refused(&format!("SELECT pgwh.pause('{word}')"));
        assert_eq!(
            (refusal.code.as_str(), refusal.message.as_str()),
            ("42704", "subscription does not exist")
        );
        let refusal = database.refused(&format!(
            "SELECT pgwh.subscribe('https://example.com', headers => '{{\"x\": \"{word}\"}}')"
        ));
        assert_eq!(refusal.code, "22023");

        // Again: replayed by name, from the beginning, and after a restart; the owner's name has such letters, too.
        let before = bodies().len();
        database.value(&format!("SELECT pgwh.replay('{name}', now() - interval '1 hour', tables => '{{\"public.\\\"{word}\\\"\"}}')"));
        database.value(&format!("SELECT pgwh.backfill('{name}', '{table}', filter => 'other = ''from before'' AND \"{word}\" <> ''{word}''', order_by => '{word}')"));
        database.wait_true("SELECT bool_and(state = 'done') FROM pgwh.replays");
        database.wait_true("SELECT bool_and(state = 'done') FROM pgwh.backfills");
        eventually("the row comes again, and the one from before", || {
            (bodies().len() == before + 2).then_some(())
        });
        if encoding == "LATIN1" {
            // Names of roles are in the encoding of the database where they were made.
            database.each(&["CREATE ROLE \"zoé\" SUPERUSER", "UPDATE pgwh.subscriptions SET owner = 'zoé'"]);
        }
    }
    cluster.restart(Stop::Immediate);
    for (lower, word) in [("latin1", "café"), ("euc_jp", "日本語"), ("sql_ascii", "żółw")] {
        let database = cluster.database(lower);
        database.sql(&format!("INSERT INTO \"{word}\" VALUES ('{word} 2', '{word}')"));
        assert_eq!(database.value(&format!("SELECT pgwh.wait('to {word}', '60 s')")), "t");
        // Others may have been sent again, since they were under way at the restart.
        let requests =
            receiver.requests().into_iter().filter(|request| request.path() == format!("/{lower}"));
        let keys: Vec<_> = requests.map(|request| request.json()["data"]["key"].clone()).collect();
        assert!(keys.contains(&json!({word: format!("{word} 2")})), "{keys:?}");
        let forgotten =
            format!("SELECT events_forgotten FROM pgwh.forget('\"{word}\"', '{{\"{word}\": \"{word} 1\"}}')");
        assert_eq!(database.value(&forgotten), "1");
        database.value(&format!("SELECT pgwh.unsubscribe('to {word}')"));
    }
}
