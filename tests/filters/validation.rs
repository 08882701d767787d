//! A filter that cannot work is refused with its position and a hint, by function and by plain SQL.

use harness::Server;

use crate::stage;

/// (filter, SQLSTATE, part of the message, character, part of the hint)
const REFUSED: [(&str, &str, &str, &str, &str); 32] = [
    ("colour = 1", "42703", "column \"colour\" does not exist", "character 1 ", ""),
    ("stat = 'x'", "42703", "does not exist", "character 1 ", "status"),
    ("total +", "42601", "syntax error", "", "total > 100"),
    ("total > 1 FROM orders", "42601", "not one condition", "", "WHERE"),
    ("total > 1, true", "42601", "not one condition", "", "WHERE"),
    ("total > 1; DROP TABLE orders", "42601", "syntax error", "character 10 ", ""),
    ("total", "42804", "must be type boolean", "character 1 ", ""),
    ("id = 'abc'", "22P02", "invalid input syntax for type integer", "character 6 ", ""),
    ("orders.total > 1", "42P01", "invalid reference", "character 1 ", "NEW.total or OLD.total"),
    ("total > random()", "0A000", "not immutable: random()", "character 9 ", "depend on the time"),
    (
        "id = 1 AND now() > '2026-01-01'",
        "0A000",
        "not immutable: now()",
        "character 12 ",
        "now() is the time of that change",
    ),
    ("concat(id, status) = '1x'", "0A000", "not immutable: concat()", "character 1 ", "||"),
    ("to_jsonb(id) = '1'", "0A000", "not immutable: to_jsonb()", "character 1 ", "depend on the time"),
    ("to_tsvector(status) @@ 'x'", "0A000", "not immutable: to_tsvector()", "character 1 ", "'english'"),
    ("mood::text = 'ok'", "0A000", "the cast from mood to text", "character 1 ", "Compare the enum itself"),
    (
        "made::date = '2026-01-01'",
        "0A000",
        "the cast from timestamp with time zone to date",
        "character 1 ",
        "AT TIME ZONE",
    ),
    (
        "made + '1 day' > '2026-01-01Z'",
        "0A000",
        "not immutable: the operator +",
        "character 1 ",
        "AT TIME ZONE",
    ),
    ("status = user", "0A000", "cannot have user in it", "character 10 ", "\"user\""),
    (
        "made > CURRENT_TIMESTAMP",
        "0A000",
        "cannot have CURRENT_TIMESTAMP in it",
        "character 8 ",
        "\"current_timestamp\"",
    ),
    ("(pair).a = 1", "0A000", "look into a composite value", "character 2 ", "other columns"),
    ("total > (SELECT 1)", "0A000", "subquery", "character 9 ", ""),
    ("count(*) > 1", "42803", "aggregate functions", "character 1 ", ""),
    ("rank() OVER () > 1", "42P20", "window functions", "character 1 ", ""),
    ("generate_series(1, 2) = 1", "0A000", "set-returning", "character 1 ", ""),
    ("mine(id)", "0A000", "user-defined functions or operators in it: mine()", "character 1 ", "built into"),
    ("mine2(id)", "42883", "does not exist", "character 1 ", ""),
    ("id = $1", "42P02", "parameter", "character 6 ", ""),
    ("xmin = '1'", "0A000", "system columns", "character 1 ", ""),
    ("new IS NULL", "0A000", "row as a whole", "", ""),
    ("1 / 0 = id", "22012", "division by zero", "", ""),
    ("total > 1 AND doc = 'today' AND '2026-01-01' < 'today'::date", "22P02", "json", "", ""),
    ("'2026-01-01'::date < 'today'::date", "0A000", "relative to now", "character 22 ", "Write the time out"),
];

#[test]
fn an_invalid_filter_is_refused_with_its_position_and_a_hint() {
    let (cluster, receiver) = stage();
    cluster.sql("CREATE FUNCTION mine(int) RETURNS bool IMMUTABLE LANGUAGE sql RETURN $1 > 1");
    cluster.sql("CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TYPE pair AS (a int, b int)");
    cluster.sql("ALTER TABLE orders ADD mood mood, ADD made timestamptz, ADD pair pair");
    let url = receiver.url("/s");
    for (filter, code, message, position, hint) in REFUSED {
        let quoted = filter.replace('\'', "''");
        let refused = cluster.refused(&format!(
            "SELECT pgwh.subscribe('{url}', tables => '{{orders}}', event_types => '{{insert}}', filter => '{quoted}')"
        ));
        assert_eq!(refused.code, code, "{filter}: {refused:?}");
        assert!(refused.message.contains(message), "{filter}: {refused:?}");
        assert!(
            refused.detail.contains(position) && refused.detail.contains(filter),
            "{filter}: {refused:?}"
        );
        assert!(!refused.hint.is_empty() && refused.hint.contains(hint), "{filter}: {refused:?}");
    }
    assert_eq!(cluster.value("SELECT count(*) FROM pgwh.subscriptions"), "0");
}

#[test]
fn a_filter_of_tables_to_come_must_be_a_condition_already() {
    let (cluster, receiver) = stage();
    let url = receiver.url("/s");
    for (filter, code, message, position) in [
        ("garbage(((", "42601", "syntax error", ""),
        ("total >> ; 1", "42601", "syntax error", "character 10 "),
        ("total > 1, true", "42601", "not one condition", ""),
        ("total > (SELECT 1)", "0A000", "subquery", "character 9 "),
        ("id IN (SELECT 1)", "0A000", "subquery", "character 1 "),
        ("lower(x) = 'x' AND count(*) > 1", "0A000", "aggregate", "character 20 "),
        ("CASE WHEN rank() OVER () > 1 THEN true END", "0A000", "window", "character 11 "),
    ] {
        let quoted = filter.replace('\'', "''");
        let refused = cluster.refused(&format!(
            "SELECT pgwh.subscribe('{url}', tables => '{{nope.*}}', filter => '{quoted}')"
        ));
        assert_eq!(refused.code, code, "{filter}: {refused:?}");
        assert!(refused.message.contains(message) && !refused.hint.is_empty(), "{filter}: {refused:?}");
        assert!(
            refused.detail.contains(position) && refused.detail.contains(filter),
            "{filter}: {refused:?}"
        );
    }
    cluster.subscribe(&receiver, "s", "tables => '{nope.*}', filter => 'lower(x) = ''x'' AND total > 100'");
    assert_eq!(cluster.refused("UPDATE pgwh.subscriptions SET filter = 'x = ('").code, "42601");
}

#[test]
fn an_empty_filter_is_not_taken_for_none() {
    let (cluster, receiver) = stage();
    let url = receiver.url("/s");
    for filter in ["", "  ", "\n"] {
        let subscribe =
            format!("SELECT pgwh.subscribe('{url}', tables => '{{orders}}', filter => '{filter}')");
        let refused = cluster.refused(&subscribe);
        assert_eq!(refused.code, "22023", "{refused:?}");
        assert!(refused.message.contains("empty") && refused.hint.contains("NULL"), "{refused:?}");
    }
    cluster.subscribe(&receiver, "s", "tables => '{orders}', filter => NULL");
    assert_eq!(cluster.refused("UPDATE pgwh.subscriptions SET filter = ' '").code, "22023");
}

#[test]
fn a_filter_that_a_session_reads_in_another_way_is_refused() {
    let (cluster, receiver) = stage();
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY, z timestamptz)");
    let subscribe = |filter: &str| {
        let url = receiver.url("/s");
        format!(
            "SELECT pgwh.subscribe('{url}', tables => '{{t}}', event_types => '{{insert}}', filter => '{filter}')"
        )
    };
    let there = format!("SET TimeZone = 'Europe/Berlin'; {}", subscribe("z > ''2026-01-31 12:00:00''"));
    let refused = cluster.refused(&there);
    assert!(refused.hint.contains("'2026-01-31 12:00:00+00'"), "{refused:?}");
    cluster.sql(&format!("SET TimeZone = 'Europe/Berlin'; {}", subscribe("z > ''2026-01-31 12:00:00+01''")));
}

#[test]
fn old_values_that_are_not_in_wal_are_asked_for() {
    let (cluster, receiver) = stage();
    let url = receiver.url("/s");
    let subscribe =
        |rest: &str| format!("SELECT pgwh.subscribe('{url}', name => 's', tables => '{{orders}}', {rest})");
    for (rest, event_type, column) in [
        ("filter => 'total > 100'", "delete", "total"),
        ("filter => 'OLD.total > 100', event_types => '{update}'", "update", "total"),
        ("changed => '{status}', event_types => '{update}'", "update", "status"),
        ("key_columns => '{user_id}', event_types => '{update}'", "update", "user_id"),
        ("key_columns => '{user_id}', event_types => '{delete}'", "delete", "user_id"),
    ] {
        let refused = cluster.refused(&subscribe(rest));
        assert_eq!(refused.code, "55000", "{refused:?}");
        assert!(refused.detail.contains(column) && refused.detail.contains(event_type), "{refused:?}");
        assert!(refused.hint.contains("ALTER TABLE public.orders REPLICA IDENTITY FULL;"), "{refused:?}");
    }
    // What is in WAL in any case is enough.
    cluster.sql(&subscribe("filter => 'total > 100', event_types => '{insert, update}'"));
    cluster.sql(&subscribe("filter => 'id > 100 AND OLD.id > 2'"));
    cluster.sql(&subscribe("changed => '{id}', key_columns => '{id}'"));
    cluster.sql("ALTER TABLE orders REPLICA IDENTITY FULL");
    cluster.sql(&subscribe("filter => 'OLD.total > 100', changed => '{status}', key_columns => '{user_id}'"));
}

#[test]
fn a_session_whose_filter_check_is_cut_short_goes_on() {
    let (cluster, receiver) = stage();
    let url = receiver.url("/s");
    let subscribe = |filter: &str| {
        format!(
            "SELECT pgwh.subscribe('{url}', tables => '{{orders}}', event_types => '{{insert}}', filter => '{filter}')"
        )
    };
    let mut locking = cluster.connect();
    locking.batch_execute("BEGIN; LOCK TABLE orders IN ACCESS EXCLUSIVE MODE").unwrap();
    let mut session = cluster.connect();
    session.batch_execute("SET statement_timeout = '200ms'").unwrap();
    let deep = format!("{}(total > 1)", "not ".repeat(5000));
    for (filter, code) in [("total > 1", "57014"), (deep.as_str(), "54001")] {
        let error = session.batch_execute(&subscribe(filter)).unwrap_err();
        assert_eq!(error.code().map(|code| code.code()), Some(code), "{error}");
        session.batch_execute("SELECT 1; ROLLBACK; SELECT 1").unwrap();
        locking.batch_execute("ROLLBACK").unwrap();
        session.batch_execute("RESET statement_timeout").unwrap();
    }
    session.batch_execute(&subscribe("total > 1")).unwrap();
}

#[test]
fn plain_sql_is_checked_like_the_function() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "tables => '{orders}', event_types => '{insert}', filter => 'id < 10'");
    assert_eq!(cluster.refused("UPDATE pgwh.subscriptions SET filter = 'nothing > 1'").code, "42703");
    assert_eq!(cluster.refused("UPDATE pgwh.subscriptions SET changed = '{nothing}'").code, "42703");
    cluster.sql("INSERT INTO orders (id) VALUES (1), (11)");
    cluster.sql("BEGIN; INSERT INTO orders (id) VALUES (2), (12); UPDATE pgwh.subscriptions SET filter = 'id > 10'; COMMIT");
    cluster.sql("INSERT INTO orders (id) VALUES (3), (13)");
    cluster.sql("UPDATE pgwh.subscriptions SET filter = NULL");
    cluster.sql("INSERT INTO orders (id) VALUES (4), (14)");
    let mut keys: Vec<i64> =
        cluster.delivered(&receiver, "s").iter().filter_map(|event| event["key"]["id"].as_i64()).collect();
    // Other rows may overtake each other.
    keys.sort_unstable();
    assert_eq!(keys, [1, 2, 4, 13, 14]);
}

/// Each gives at least one of the filter's literals or operators another meaning.
const SESSIONS: [&str; 6] = [
    "timezone=Asia/Tokyo",
    "datestyle=SQL,DMY",
    "intervalstyle=sql_standard",
    "transform_null_equals=on",
    "array_nulls=off",
    "standard_conforming_strings=off",
];
const AS_DECODER: &str = "SET TimeZone = 'UTC'; SET DateStyle = 'ISO, YMD'; SET IntervalStyle = 'postgres'; ";

#[test]
fn who_looks_with_other_settings_sees_the_same_verdict() {
    let (cluster, receiver) = stage();
    cluster
        .sql("CREATE TABLE u (id int PRIMARY KEY, z timestamptz, d date, i interval, note text, a text[])");
    let filter = "(z < '2026-03-05' AND d > '01-02-03' AND i > '-1 2:00:00' AND a <> '{NULL}' AND note <> 'a\\b') \
                  OR note = NULL";
    let subscribe = |name: &str| {
        format!(
            "SELECT pgwh.subscribe('{}', name => '{name}', tables => '{{u}}', event_types => '{{insert}}', filter => $f${filter}$f$)",
            receiver.url("/s")
        )
    };
    cluster.sql(&format!("{AS_DECODER}{}", subscribe("s")));
    // Since 19 no session can have that one.
    let has = |session: &str| !session.starts_with("standard_conforming") || Server::get().major() < 19;
    for session in SESSIONS.into_iter().filter(|session| has(session)) {
        let other = cluster.with_options(&format!("-c {session}"));
        assert_eq!(other.value("SELECT coalesce(reason, 'well') FROM pgwh.status"), "well", "{session}");
        let check = "SELECT ok FROM pgwh.health() WHERE check_name = 'subscriptions valid'";
        assert_eq!(other.value(check), "t", "{session}");
        // Nor does it stop what does not change the filter.
        other.sql(
            "UPDATE pgwh.subscriptions SET enabled = false; UPDATE pgwh.subscriptions SET enabled = true",
        );
        other.sql("ALTER TABLE u ADD more int; ALTER TABLE u DROP more");
        // Typed in that session it could mean something else.
        let (setting, value) = session.split_once('=').unwrap();
        let refused =
            cluster.refused(&format!("{AS_DECODER}SET {setting} = '{value}'; {}", subscribe("other")));
        assert!(refused.message.contains("depends on a setting"), "{session}: {refused:?}");
    }
    cluster.sql("INSERT INTO u VALUES (1, '2026-03-04 23:00Z', '2026-01-01', '1 day', 'x', '{y}')");
    assert_eq!(cluster.delivered(&receiver, "s").len(), 1);
}
