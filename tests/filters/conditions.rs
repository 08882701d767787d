//! A subscription gets those changes for which its filter is true, as Postgres itself would say, and no others; what
//! cannot be said is a dead letter, and what makes no sense is refused in words that help.

use std::collections::BTreeSet;

use harness::{Cluster, Event, Receiver, Reply, Request, Server};
use serde_json::json;

fn stage() -> (Cluster, Receiver) {
    let cluster = Cluster::with_extension();
    cluster.sql(
        "CREATE TABLE orders (id int PRIMARY KEY, total numeric, status text, user_id bigint, tags text[], doc jsonb)",
    );
    (cluster, Receiver::start().unwrap())
}

/// `action key` of each event, in the order of commit.
fn told(events: &[Event]) -> Vec<String> {
    let mut events: Vec<&Event> = events.iter().collect();
    events.sort_by_key(|event| event.place());
    events.iter().map(|event| format!("{} {}", event.text("action"), event["key"]["id"])).collect()
}

#[test]
fn a_bare_column_is_the_new_row_and_in_a_delete_the_old_one() {
    let (cluster, receiver) = stage();
    cluster.sql("ALTER TABLE orders REPLICA IDENTITY FULL");
    cluster.subscribe(&receiver, "bare", "tables => '{orders}', filter => 'total > 100'");
    cluster.subscribe(&receiver, "old", "tables => '{orders}', filter => 'OLD.total > 100'");
    cluster.subscribe(&receiver, "moved", "filter => 'new.total IS DISTINCT FROM old.total AND total > 1'");
    cluster.sql("INSERT INTO orders (id, total) VALUES (1, 50), (2, 150), (3, NULL)");
    cluster.sql("UPDATE orders SET total = 101 WHERE id = 1; UPDATE orders SET total = 99 WHERE id = 2");
    cluster.sql("UPDATE orders SET status = 'paid' WHERE id = 1");
    cluster.sql("DELETE FROM orders; TRUNCATE orders");
    assert_eq!(
        told(&cluster.delivered(&receiver, "bare")),
        ["insert 2", "update 1", "update 1", "delete 1", "truncate null"]
    );
    assert_eq!(
        told(&cluster.delivered(&receiver, "old")),
        ["update 2", "update 1", "delete 1", "truncate null"]
    );
    assert_eq!(
        told(&cluster.delivered(&receiver, "moved")),
        ["insert 1", "insert 2", "update 1", "update 2", "delete 2", "delete 1", "truncate null"]
    );
}

#[test]
fn filters_take_every_type_and_what_is_built_in() {
    let (cluster, receiver) = stage();
    cluster.sql(
        "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE DOMAIN positive AS int CHECK (value > 0);
         CREATE TABLE t (id int PRIMARY KEY, m mood, p positive, d date, z timestamptz, r int4range, j jsonb, a int[],
                         body text, v varchar(10), c char(5), u uuid, n numeric, f float8, b bool)",
    );
    let row = "1, 'ok', 5, '2026-01-31', '2026-01-31 12:00+00', '[1,10)', '{\"a\": {\"b\": [1, \"x\"]}}', '{1,2,3}',
               'The quick brown fox', 'Straße', 'ab', '6f9619ff-8b86-d011-b42d-00cf4fc964ff', 1.50, 0.1, true";
    let yes = [
        "m = 'ok'",
        "m > 'sad'",
        "m IN ('ok', 'sad')",
        "p = 5",
        "d = '2026-01-31'",
        "d + 1 > '2026-01-31'",
        "z > '2026-01-31 11:59:59+00'",
        "z < timestamptz '2026-01-31 12:00:01+00'",
        "(z AT TIME ZONE 'UTC')::date = '2026-01-31'",
        "r @> 5",
        "5 <@ r",
        "j -> 'a' -> 'b' ->> 1 = 'x'",
        "j @? '$.a.b[*] ? (@ == 1)'",
        "j #>> '{a,b,0}' = '1'",
        "j['a'] IS NOT NULL",
        "a @> '{2}'",
        "3 = ANY (a)",
        "a[1] = 1",
        "a = ARRAY[1, 2, 3]",
        "to_tsvector('english', body) @@ to_tsquery('english', 'fox & quick')",
        "lower(body) LIKE '%brown%'",
        "body ~* '^the'",
        "v = 'Straße'",
        "length(v) = 6",
        "c = 'ab'",
        "u = '6F9619FF-8B86-D011-B42D-00CF4FC964FF'",
        "n = 1.5",
        "n = 1.500 AND n IN (1.5, 2)",
        "n * 2 = 3",
        "f = 0.1",
        "b",
        "NOT (NOT b)",
        "CASE WHEN id = 1 THEN b ELSE false END",
        "coalesce(v, 'x') <> 'x'",
        "v IS NOT NULL AND (id = 1 OR id = 2)",
        "id BETWEEN 1 AND 3",
        "id = -1 + 2 AND id > -5",
        "id IN (1, 2, 3)",
        "1 = id",
        "id = 1 AND v = 'Straße' AND b IS TRUE",
        "id::text = '1'",
        "(id, p) = (1, 5)",
        "greatest(id, 0) = 1",
        "-- a comment\n id = 1",
        "v = E'Stra\\u00dfe'",
        "v = $$Straße$$",
    ];
    let no = [
        "id = 2",
        "m = 'sad'",
        "v = 'strasse'",
        "id = NULL",
        "NULL",
        "id IN (2, NULL)",
        "c = 'abc'",
        "b IS NULL",
    ];
    for (n, filter) in yes.iter().chain(&no).enumerate() {
        let filter = filter.replace('\'', "''");
        cluster.subscribe(
            &receiver,
            &format!("f{n}"),
            &format!("tables => '{{t}}', event_types => '{{insert}}', filter => '{filter}'"),
        );
    }
    cluster.sql(&format!("INSERT INTO t VALUES ({row})"));
    for (n, filter) in yes.iter().chain(&no).enumerate() {
        let came = cluster.delivered(&receiver, &format!("f{n}")).len();
        assert_eq!(came, usize::from(n < yes.len()), "{filter}");
    }
    assert_eq!(cluster.value("SELECT count(*) FROM pgwh.dead_letters"), "0");
}

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
fn what_can_not_be_a_filter_is_refused_with_its_position_and_what_to_do() {
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
fn without_an_old_row_its_key_is_that_of_the_new_one() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "tables => '{orders}', filter => 'OLD.id < 10 AND NEW.id IS NOT NULL'");
    cluster.subscribe(&receiver, "moved", "tables => '{orders}', filter => 'OLD.id <> NEW.id'");
    cluster.sql("INSERT INTO orders (id) VALUES (1), (20)");
    cluster.sql("UPDATE orders SET total = 1; UPDATE orders SET id = id + 10; DELETE FROM orders");
    assert_eq!(told(&cluster.delivered(&receiver, "s")), ["update 1", "update 11"]);
    assert_eq!(told(&cluster.delivered(&receiver, "moved")), ["update 11", "update 30"]);
}

#[test]
fn a_filter_that_fails_on_a_row_makes_that_event_a_dead_letter() {
    let (cluster, receiver) = stage();
    let only_inserts = "tables => '{orders}', event_types => '{insert}'";
    cluster.subscribe(&receiver, "fails", &format!("{only_inserts}, filter => '100 / id > 1'"));
    cluster.subscribe(&receiver, "same", &format!("{only_inserts}, filter => '100 / id > 90'"));
    cluster.subscribe(&receiver, "all", only_inserts);
    cluster.sql("INSERT INTO orders (id) VALUES (1), (0), (2)");
    assert_eq!(told(&cluster.delivered(&receiver, "fails")), ["insert 1", "insert 2"]);
    assert_eq!(told(&cluster.delivered(&receiver, "same")), ["insert 1"]);
    assert_eq!(told(&cluster.delivered(&receiver, "all")), ["insert 1", "insert 0", "insert 2"]);
    let dead = cluster.rows(
        "SELECT subscription, error_class, reason, data #>> '{record,id}' FROM pgwh.dead_letters ORDER BY 1",
    );
    let row = |name: &str| [name, "filter", "division by zero", "0"].map(str::to_owned).to_vec();
    let dead: Vec<Vec<String>> = dead.into_iter().map(|row| row.into_iter().flatten().collect()).collect();
    assert_eq!(dead, [row("fails"), row("same")]);

    cluster.sql("SELECT pgwh.redeliver(id) FROM pgwh.dead_letters WHERE subscription = 'fails'");
    cluster.wait_true("SELECT count(*) = 0 FROM pgwh.dead_letters WHERE subscription = 'fails'");
    assert_eq!(told(&cluster.delivered(&receiver, "fails")), ["insert 1", "insert 0", "insert 2"]);
}

#[test]
fn what_a_filter_could_not_judge_is_sent_where_it_is_asked_for_by_its_number_only() {
    let (cluster, receiver) = stage();
    cluster.sql("CREATE TABLE parts (id int PRIMARY KEY, n int)");
    cluster.subscribe(
        &receiver,
        "s",
        "tables => '{parts}', filter => '10 / n > 1', event_types => '{insert, update}'",
    );
    cluster.sql("INSERT INTO parts VALUES (1, 1), (2, 0), (3, 2); UPDATE parts SET n = 0 WHERE id = 1");
    assert_eq!(told(&cluster.delivered(&receiver, "s")), ["insert 1", "insert 3"]);
    let again = |what: &str| {
        receiver.clear();
        cluster.sql(what);
        cluster.wait_true("SELECT bool_and(state = 'done') FROM pgwh.replays");
        told(&cluster.delivered(&receiver, "s"))
    };
    assert_eq!(again("SELECT pgwh.replay('s', now() - interval '1 hour')"), ["insert 1", "insert 3"]);
    for only in ["dead", "undelivered"] {
        let replay = format!("SELECT pgwh.replay('s', now() - interval '1 hour', \"only\" => '{only}')");
        assert!(again(&replay).is_empty(), "{only}");
    }
    // What followed of the row comes along, but not what nobody has judged.
    let first =
        "SELECT pgwh.redeliver(min(id)) FROM pgwh.deliveries WHERE subscription = 's' AND replay IS NULL";
    assert_eq!(again(first), ["insert 1"]);
    let dead = "SELECT pgwh.redeliver(max(id)) FROM pgwh.dead_letters";
    assert_eq!(again(dead), ["update 1"]);
    assert_eq!(cluster.value("SELECT key ->> 'id' FROM pgwh.dead_letters"), "2");
}

#[test]
fn a_filter_that_takes_too_long_makes_a_dead_letter_and_holds_up_nobody() {
    let (cluster, receiver) = stage();
    cluster.sql("CREATE TABLE texts (id int PRIMARY KEY, t text)");
    // Backtracks for hours over many x.
    let slow = r"t ~ '^(x*)(x*)(x*)\1\2\3$'";
    cluster.subscribe(
        &receiver,
        "slow",
        &format!("tables => '{{texts}}', filter => $${slow}$$, event_types => '{{insert}}'"),
    );
    cluster.subscribe(&receiver, "all", "tables => '{texts}'");
    cluster.sql("INSERT INTO texts VALUES (1, 'xx'), (2, repeat('x', 4001)), (3, 'xxxx')");
    assert_eq!(told(&cluster.delivered(&receiver, "all")), ["insert 1", "insert 2", "insert 3"]);
    assert_eq!(told(&cluster.delivered(&receiver, "slow")), ["insert 1", "insert 3"]);
    let dead = cluster.rows("SELECT key ->> 'id', error_class, reason FROM pgwh.dead_letters");
    let dead: Vec<&str> = dead.iter().flatten().flatten().map(String::as_str).collect();
    assert_eq!(dead, ["2", "filter", "the filter took longer than a filter may take for one row, 100 ms"]);
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
fn a_large_value_that_wal_leaves_out_is_taken_from_the_old_row_or_makes_a_dead_letter() {
    let (cluster, receiver) = stage();
    cluster.sql(
        "CREATE TABLE whole (id int PRIMARY KEY, n int, body text); CREATE TABLE part (LIKE whole INCLUDING ALL);
         ALTER TABLE whole REPLICA IDENTITY FULL;
         ALTER TABLE whole ALTER body SET STORAGE EXTERNAL; ALTER TABLE part ALTER body SET STORAGE EXTERNAL;",
    );
    let updates = "event_types => '{update}'";
    for table in ["whole", "part"] {
        let filter = "filter => 'body LIKE ''needle%'' AND n > 1'";
        cluster.subscribe(&receiver, table, &format!("tables => '{{{table}}}', {updates}, {filter}"));
        cluster.sql(&format!(
            "INSERT INTO {table} SELECT i, 0, CASE i WHEN 1 THEN 'needle' ELSE 'hay' END || repeat('x', 9000)
             FROM generate_series(1, 2) i"
        ));
        // Where another part of the filter is false, nobody has to know the rest.
        cluster.sql(&format!("UPDATE {table} SET n = 1; UPDATE {table} SET n = 2"));
        cluster.sql(&format!("UPDATE {table} SET n = 3, body = 'needle' || repeat('y', 9000) WHERE id = 2"));
    }
    assert_eq!(told(&cluster.delivered(&receiver, "whole")), ["update 1", "update 2"]);
    assert_eq!(told(&cluster.delivered(&receiver, "part")), ["update 2"]);
    let dead = cluster
        .rows("SELECT subscription, error_class, reason, key ->> 'id' FROM pgwh.dead_letters ORDER BY 4");
    assert_eq!(dead.len(), 2, "{dead:?}");
    for (row, id) in dead.iter().zip(["1", "2"]) {
        let row: Vec<&str> = row.iter().flatten().map(String::as_str).collect();
        assert_eq!((row[0], row[1], row[3]), ("part", "filter", id));
        assert!(row[2].contains("NEW.body") && row[2].contains("REPLICA IDENTITY FULL"), "{row:?}");
    }
}

#[test]
fn updates_are_sent_only_when_a_column_changed() {
    let (cluster, receiver) = stage();
    cluster
        .sql("ALTER TABLE orders REPLICA IDENTITY FULL; ALTER TABLE orders ALTER doc SET STORAGE EXTERNAL");
    cluster.subscribe(&receiver, "s", "tables => '{orders}', changed => '{status, doc}'");
    let big = "json_build_object('a', repeat('x', 9000))::jsonb";
    cluster.sql(&format!("INSERT INTO orders (id, total, doc) VALUES (1, 1, {big})"));
    cluster.sql(
        "UPDATE orders SET total = 2; UPDATE orders SET status = 'paid'; UPDATE orders SET status = 'paid'",
    );
    cluster.sql("UPDATE orders SET total = 3, status = NULL; UPDATE orders SET total = 4, status = NULL");
    cluster
        .sql(&format!("UPDATE orders SET doc = {big}; UPDATE orders SET doc = '{{}}'; DELETE FROM orders"));
    let events = cluster.delivered(&receiver, "s");
    assert_eq!(told(&events), ["insert 1", "update 1", "update 1", "update 1", "delete 1"]);
    assert_eq!(events[1]["changes"], json!({"status": null}));
    assert_eq!(events[3]["record"]["doc"], json!({}));
}

#[test]
fn a_wildcard_means_the_tables_that_the_filter_fits() {
    let (cluster, receiver) = stage();
    cluster.sql("CREATE TABLE other (id int PRIMARY KEY); CREATE TABLE parts (id int, user_id int) PARTITION BY LIST (id);
                 CREATE TABLE parts_1 (user_id int, x text, id int); ALTER TABLE parts_1 DROP x;
                 ALTER TABLE parts ATTACH PARTITION parts_1 FOR VALUES IN (1)");
    let filter = "event_types => '{insert}', filter => 'user_id = 7'";
    cluster.subscribe(&receiver, "s", &format!("tables => '{{public.*}}', {filter}"));
    cluster.sql(
        "CREATE TABLE later (id int PRIMARY KEY, user_id bigint); CREATE TABLE unfit (id int PRIMARY KEY)",
    );
    cluster.sql("INSERT INTO orders (id, user_id) VALUES (1, 7), (2, 8); INSERT INTO other VALUES (3)");
    cluster.sql("INSERT INTO later VALUES (4, 7), (5, 8); INSERT INTO unfit VALUES (6); INSERT INTO parts VALUES (1, 7), (1, 8)");
    let what: BTreeSet<String> = cluster.delivered(&receiver, "s").iter().map(Event::what).collect();
    let expected = ["public.later insert", "public.orders insert", "public.parts insert"];
    assert_eq!(what, BTreeSet::from(expected.map(str::to_owned)));
    let url = receiver.url("/s");
    for tables in ["{orders, other}", "{public.oth*}"] {
        let refused =
            cluster.refused(&format!("SELECT pgwh.subscribe('{url}', tables => '{tables}', {filter})"));
        assert!(refused.code == "42703" && refused.detail.contains("public.other"), "{refused:?}");
    }
}

#[test]
fn of_a_table_that_a_wildcard_s_filter_does_not_fit_truncate_is_not_sent_either() {
    let (cluster, receiver) = stage();
    cluster.sql("CREATE TABLE other (id int PRIMARY KEY)");
    let all = "event_types => '{insert, truncate}'";
    cluster.subscribe(
        &receiver,
        "wild",
        &format!("tables => '{{public.*}}', filter => 'user_id = 7', {all}"),
    );
    cluster.subscribe(&receiver, "free", &format!("tables => '{{public.*}}', {all}"));
    cluster.subscribe(&receiver, "inserts", "filter => 'user_id = 7', event_types => '{insert}'");
    cluster.sql("TRUNCATE orders, other; INSERT INTO orders (id, user_id) VALUES (1, 7); TRUNCATE other; TRUNCATE orders");
    let what = |name: &str| {
        let mut events = cluster.delivered(&receiver, name);
        events.sort_by_key(Event::place);
        events.iter().map(Event::what).collect::<Vec<_>>()
    };
    assert_eq!(what("wild"), ["public.orders truncate", "public.orders insert", "public.orders truncate"]);
    assert_eq!(what("free").len(), 5);
    assert_eq!(what("inserts"), ["public.orders insert"]);

    // Where the table is named, and was replaced by one that the filter doesn't fit, it is meant.
    cluster.subscribe(&receiver, "named", &format!("tables => '{{orders}}', filter => 'user_id = 7', {all}"));
    cluster.sql("DROP TABLE orders; CREATE TABLE orders (id int PRIMARY KEY)");
    cluster.sql("TRUNCATE orders");
    assert_eq!(what("named"), ["public.orders truncate"]);
    assert_eq!(what("wild").len(), 3);
}

#[test]
fn who_gives_no_name_means_the_subscription_with_the_same_filter() {
    let (cluster, receiver) = stage();
    let url = receiver.url("/s");
    let subscribe = |rest: &str| {
        cluster.value(&format!(
            "SELECT pgwh.subscribe('{url}', tables => '{{orders}}', event_types => '{{insert}}' {rest})"
        ))
    };
    let (one, other, none) =
        (subscribe(", filter => 'id = 1'"), subscribe(", filter => 'id = 2'"), subscribe(""));
    assert!(one != other && one != none && other != none);
    assert_eq!(subscribe(", filter => 'id = 1'"), one);
    assert_eq!(subscribe(""), none);
}

#[test]
fn plain_sql_is_checked_as_the_function_is_and_takes_effect_at_its_commit() {
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

/// The rows of user 8 come while the first of user 7 waits for its second attempt, and the others of user 7 wait for it.
#[test]
fn changes_with_the_same_key_columns_arrive_in_order_and_hold_back_no_others() {
    let (cluster, receiver) = stage();
    cluster.sql("ALTER TABLE orders REPLICA IDENTITY FULL");
    cluster.subscribe(
        &receiver,
        "s",
        "tables => '{orders}', key_columns => '{user_id}', retry_schedule => '{10 s}'",
    );
    receiver.behave(|request: &Request| {
        let fails = request.events()[0]["data"]["record"]["id"] == 1 && request.attempt() == 1;
        Reply::status(if fails { 500 } else { 200 })
    });
    cluster.sql("INSERT INTO orders (id, user_id) SELECT n, 7 + (n + 1) % 2 FROM generate_series(1, 20) n");
    cluster.sql("UPDATE orders SET user_id = 9 WHERE id = 20; UPDATE orders SET user_id = 9 WHERE id = 1");
    cluster.sql("DELETE FROM orders WHERE id = 20");
    let came: Vec<(i64, String)> = cluster
        .delivered(&receiver, "s")
        .iter()
        .map(|event| (event["record"]["id"].as_i64().unwrap(), event.text("action")))
        .collect();
    let place = |id, action: &str| came.iter().position(|came| *came == (id, action.to_owned())).unwrap();
    assert_eq!(came.len(), 23);
    for user in [1, 2] {
        let ids: Vec<i64> = came
            .iter()
            .filter(|(id, action)| id % 2 == user % 2 && action == "insert")
            .map(|(id, _)| *id)
            .collect();
        assert!(ids.is_sorted(), "{ids:?}");
    }
    // The first attempt of the first is among what came.
    assert!((2..=20).step_by(2).all(|id| place(id, "insert") < place(3, "insert")), "{came:?}");
    // Two rows come to have one key: from there on they are in order, too.
    assert!(place(20, "update") < place(1, "update") && place(1, "update") < place(20, "delete"), "{came:?}");
}

#[test]
fn a_table_keeps_what_a_subscription_needs_of_it() {
    let (cluster, receiver) = stage();
    cluster.sql(
        "ALTER TABLE orders REPLICA IDENTITY FULL; CREATE TABLE other (id int PRIMARY KEY, note text);
         CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE SCHEMA types; CREATE DOMAIN types.short AS text;
         CREATE TABLE typed (id int PRIMARY KEY, m mood, s types.short, t types.short);
         CREATE TABLE parts (id int, note text) PARTITION BY LIST (id);
         CREATE TABLE parts_1 PARTITION OF parts FOR VALUES IN (1)",
    );
    cluster.subscribe(&receiver, "totals", "tables => '{orders}', filter => 'total > 100'");
    cluster.subscribe(
        &receiver,
        "moved",
        "tables => '{public.ord*}', changed => '{status}', key_columns => '{user_id}'",
    );
    cluster.subscribe(&receiver, "shown", "tables => '{orders}', exclude_columns => '{doc}'");
    cluster.subscribe(
        &receiver,
        "parts",
        "tables => '{public.parts*}', event_types => '{insert}', filter => 'note = ''x'''",
    );
    cluster.subscribe(
        &receiver,
        "moods",
        "tables => '{typed}', event_types => '{insert}', filter => 'm = ''ok'''",
    );
    cluster.subscribe(&receiver, "shorts", "tables => '{typed}', columns => '{s}'");
    for (command, subscription) in [
        ("DROP TYPE mood CASCADE", "moods"),
        (
            "DO 'BEGIN BEGIN DROP TYPE nothing; EXCEPTION WHEN undefined_object THEN END; DROP TYPE mood CASCADE; END'",
            "moods",
        ),
        ("DROP DOMAIN types.short CASCADE", "shorts"),
        ("DROP SCHEMA types CASCADE", "shorts"),
        ("ALTER TABLE orders DROP COLUMN total", "totals"),
        ("ALTER TABLE orders ADD extra int, ALTER COLUMN total TYPE text", "totals"),
        ("ALTER TABLE orders RENAME total TO sum", "totals"),
        ("ALTER TABLE orders REPLICA IDENTITY DEFAULT", "totals"),
        ("ALTER TABLE orders DROP COLUMN status", "moved"),
        ("DO 'BEGIN ALTER TABLE orders RENAME user_id TO customer; END'", "moved"),
        ("ALTER TABLE orders RENAME doc TO document", "shown"),
        ("ALTER TABLE parts DROP COLUMN note", "parts"),
        ("ALTER TABLE parts RENAME note TO notes", "parts"),
    ] {
        let refused = cluster.refused(command);
        assert_eq!(refused.code, "2BP01", "{command}: {refused:?}");
        assert!(refused.message.contains(subscription), "{command}: {refused:?}");
        assert!(refused.hint.contains(subscription), "{command}: {refused:?}");
        let set = match subscription {
            "totals" | "parts" | "moods" => "SET filter = '...'",
            "moved" if command.contains("user_id") => "SET key_columns = '{...}'",
            "moved" => "SET changed = '{...}'",
            "shown" => "SET exclude_columns = '{...}'",
            _ => "SET columns = '{...}'",
        };
        assert!(refused.hint.starts_with("Change") && refused.hint.contains(set), "{command}: {refused:?}");
    }
    // What nobody needs may change, and so may what is needed as long as it still fits.
    cluster.each(&[
        "ALTER TABLE orders ALTER COLUMN total TYPE float8",
        "ALTER TABLE orders DROP COLUMN tags",
        "ALTER TABLE orders ADD extra int DEFAULT 7",
        "ALTER TABLE other DROP COLUMN note",
        "ALTER TABLE IF EXISTS nothing DROP COLUMN note",
    ]);
    cluster.sql("CREATE ROLE someone LOGIN; CREATE SCHEMA s AUTHORIZATION someone; ALTER TABLE other OWNER TO someone");
    cluster.as_role("someone").sql("ALTER TABLE other ADD note text; ALTER TABLE other DROP COLUMN note");
    cluster.sql("INSERT INTO orders (id, total) VALUES (1, 50), (2, 150)");
    assert_eq!(told(&cluster.delivered(&receiver, "totals")), ["insert 2"]);
    for name in ["totals", "moved", "shown"] {
        cluster.sql(&format!("SELECT pgwh.unsubscribe('{name}')"));
    }
    cluster.sql("ALTER TABLE orders DROP COLUMN total, DROP COLUMN status, DROP COLUMN doc");
    // Who drops a table means to, and may drop what it is made of with it.
    cluster.sql("DROP TABLE typed; DROP SCHEMA types CASCADE; DROP TYPE mood CASCADE");
}

/// Nobody guards what a type is made of, nor a catalog that is written by hand.
/// Rows of `pgwh.subscriptions` that a command reads.
fn subscriptions_read(cluster: &Cluster, command: &str) -> u64 {
    let mut client = cluster.connect();
    client.batch_execute(&format!("BEGIN; {command}")).unwrap();
    let read = "SELECT coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0) FROM pg_stat_xact_all_tables
                WHERE relid = 'pgwh.subscriptions'::regclass";
    let count: i64 = client.query_one(read, &[]).unwrap().get(0);
    client.batch_execute("ROLLBACK").unwrap();
    count.try_into().unwrap()
}

#[test]
fn a_command_on_a_table_reads_its_own_subscriptions_only() {
    let (cluster, _) = stage();
    let make = "CREATE TABLE t0 (id int PRIMARY KEY, user_id int, a int); CREATE TABLE other (id int, a int);
                CREATE TABLE \"o*d.d\" (id int PRIMARY KEY, user_id int, a int);
                CREATE TABLE parted (id int PRIMARY KEY, user_id int, a int) PARTITION BY RANGE (id);
                CREATE TABLE part PARTITION OF parted FOR VALUES FROM (0) TO (10);
                SELECT format('CREATE TABLE t%s (LIKE t0 INCLUDING ALL)', n) FROM generate_series(1, 9) n";
    for statement in cluster.column(make) {
        cluster.sql(&statement);
    }
    cluster.sql(
        "INSERT INTO pgwh.subscriptions (name, url, tables, event_types, filter, headers, timeout, max_in_flight)
           SELECT 'user-' || n, 'http://127.0.0.1:9/', ARRAY['public.t' || n % 10], '{insert}', 'user_id = ' || n, '{}', '15 s', 16
           FROM generate_series(1, 1000) n",
    );
    for (name, table) in [("odd", "public.\"o*d.d\""), ("wild", "public.*rted"), ("part", "public.part")] {
        cluster.sql(&format!(
            "SELECT pgwh.subscribe('http://127.0.0.1:9/', name => '{name}', tables => '{{{}}}', event_types => '{{insert}}',
                filter => 'user_id = 1')",
            table.replace('"', "\\\"")
        ));
    }
    for statistics in ["", "ANALYZE pgwh.subscriptions"] {
        cluster.sql(statistics);
        // The one with a wildcard is read for its pattern.
        for command in
            ["ALTER TABLE other DROP COLUMN a", "ALTER TABLE other RENAME TO t0000", "DROP TABLE other"]
        {
            let read = subscriptions_read(&cluster, command);
            assert!(read <= 3, "{command} reads {read} {statistics}");
        }
        let read = subscriptions_read(&cluster, "ALTER TABLE t1 ADD COLUMN b int");
        assert!((100..110).contains(&read), "{read} {statistics}");
    }
    // By its own name, by one with quotes, by a wildcard, by the name of a partition.
    for (table, name) in [("t2", "user-2"), ("\"o*d.d\"", "odd"), ("parted", "wild"), ("parted", "part")] {
        let refused = cluster.refused(&format!("ALTER TABLE {table} RENAME COLUMN user_id TO b"));
        assert_eq!(refused.code, "2BP01", "{table}: {refused:?}");
        assert!(refused.message.contains(&format!("\"{name}\"")), "{table}: {refused:?}");
        cluster.sql(&format!("SELECT pgwh.unsubscribe('{name}')"));
    }
}

#[test]
fn what_no_longer_fits_makes_dead_letters_until_it_is_mended() {
    let (cluster, receiver) = stage();
    cluster.sql("CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TABLE t (id int PRIMARY KEY, m mood)");
    cluster.subscribe(&receiver, "s", "tables => '{t}', event_types => '{insert}', filter => 'm = ''ok'''");
    cluster.sql("INSERT INTO t VALUES (1, 'ok'), (2, 'sad')");
    cluster.sql("ALTER TYPE mood RENAME VALUE 'ok' TO 'fine'; ALTER TABLE t ADD extra int");
    cluster.sql("INSERT INTO t VALUES (3, 'fine'), (4, 'sad')");
    assert_eq!(told(&cluster.delivered(&receiver, "s")), ["insert 1"]);
    assert_eq!(
        cluster.column("SELECT key ->> 'id' FROM pgwh.dead_letters WHERE error_class = 'filter' ORDER BY 1"),
        ["3", "4"]
    );
    let health = "SELECT detail FROM pgwh.health() WHERE check_name = 'subscriptions valid' AND NOT ok";
    assert!(
        cluster.value(health).contains("invalid input value for enum public.mood"),
        "{}",
        cluster.value(health)
    );
    let reason = cluster.status("s", "reason");
    assert!(reason.contains("invalid input value for enum public.mood"), "{reason}");

    cluster.sql("UPDATE pgwh.subscriptions SET filter = 'm = ''fine'''");
    cluster.sql("INSERT INTO t VALUES (5, 'fine')");
    assert_eq!(told(&cluster.delivered(&receiver, "s")), ["insert 1", "insert 5"]);
    assert_eq!(cluster.value(&health.replace("AND NOT ok", "AND ok")), "1 subscriptions");
}

#[test]
fn of_filters_that_differ_in_literals_only_each_is_judged_by_its_own() {
    let (cluster, receiver) = stage();
    cluster.sql("CREATE TYPE mood AS ENUM ('x', 'y'); CREATE TABLE t (id int PRIMARY KEY, v text)");
    let literals = [
        "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
        "{a0eebc999c0b4ef8bb6d6bb9bd380a11}",
        "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1g",
        "7",
        "x",
        "2026-01-31",
        "y",
        "8",
    ];
    for (place, literal) in literals.iter().enumerate() {
        cluster.subscribe(
            &receiver,
            &format!("s{place}"),
            &format!("tables => '{{t}}', event_types => '{{insert}}', filter => 'v = ''{literal}'''"),
        );
    }
    for kind in ["text", "varchar", "varchar(2)", "char(2)", "uuid", "integer", "date", "mood"] {
        cluster.sql(&format!("DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, v {kind})"));
        let is_unfit = |place: &usize| {
            cluster.try_sql(&format!("SELECT FROM t WHERE v = '{}'", literals[*place])).is_err()
        };
        let expected: Vec<String> =
            (0..literals.len()).filter(is_unfit).map(|place| format!("s{place}")).collect();
        let told = "SELECT name FROM pgwh.status WHERE reason IS NOT NULL ORDER BY name";
        assert_eq!(cluster.column(told), expected, "{kind}");
    }
}

#[test]
fn status_judges_the_same_filter_by_its_tables_its_events_and_its_columns() {
    let (cluster, receiver) = stage();
    let table = "(id int PRIMARY KEY, v int, w int); ALTER TABLE";
    cluster.sql(&format!(
        "CREATE TABLE a {table} a REPLICA IDENTITY FULL; CREATE TABLE b {table} b REPLICA IDENTITY FULL"
    ));
    let subscriptions = [
        ("tables => '{a}', filter => 'w = 1', event_types => '{insert}'", false),
        ("tables => '{b}', filter => 'w = 1', event_types => '{insert}'", true),
        ("tables => '{a,b}', filter => 'w = 1', event_types => '{insert}'", false),
        ("tables => '{a}', filter => 'v = 1', event_types => '{insert}'", true),
        ("tables => '{a}', filter => 'v = 1', event_types => '{delete}'", false),
        ("tables => '{a}', filter => 'v = 1', event_types => '{insert}', changed => '{w}'", false),
        ("tables => '{a}', filter => 'v = 1', event_types => '{insert}', changed => '{v}'", true),
        ("tables => '{a}', filter => 'v = 1', event_types => '{insert}', key_columns => '{w}'", false),
        ("tables => '{a}', filter => 'v = 1', event_types => '{insert}', key_columns => '{v}'", true),
        ("tables => '{a}'", true),
    ];
    for (place, (arguments, _)) in subscriptions.iter().enumerate() {
        cluster.subscribe(&receiver, &format!("s{place}"), arguments);
    }
    cluster.sql("DROP TABLE a; CREATE TABLE a (id int PRIMARY KEY, v int)");
    let fits: Vec<String> = subscriptions.iter().map(|(_, fits)| fits.to_string()).collect();
    assert_eq!(cluster.column("SELECT (reason IS NULL)::text FROM pgwh.status ORDER BY name"), fits);
}

/// What the check of subscriptions in `pgwh.health()` says.
fn check(cluster: &Cluster, what: &str) -> String {
    cluster.value(&format!("SELECT {what} FROM pgwh.health() WHERE check_name = 'subscriptions valid'"))
}

#[test]
fn health_names_the_tables_that_a_wildcard_s_filter_does_not_fit_and_takes_no_harm() {
    let (cluster, receiver) = stage();
    let wild = "tables => '{public.*}', event_types => '{insert}'";
    cluster.subscribe(&receiver, "s", &format!("{wild}, filter => 'user_id = 7'"));
    cluster.subscribe(&receiver, "text", &format!("{wild}, filter => '''7'' = user_id::text'"));
    let health = |what: &str| check(&cluster, what);
    assert_eq!(health("ok AND detail = '2 subscriptions'"), "t");
    cluster.sql("CREATE TABLE unfit (id int PRIMARY KEY); CREATE TABLE unlike (id int, user_id text)");
    assert_eq!(health("ok AND hint IS NULL"), "t");
    let detail = health("detail");
    assert!(detail.starts_with("2 subscriptions; s: "), "{detail}");
    assert!(detail.contains("public.unfit (column \"user_id\" does not exist)"), "{detail}");
    assert!(detail.contains("public.unlike (operator does not exist"), "{detail}");
    assert!(detail.contains("; text: "), "{detail}");
    let reason = cluster.status("s", "reason");
    assert!(reason.contains("public.unfit (") && reason.contains("public.unlike ("), "{reason}");
    assert_eq!(cluster.status("s", "state = 'active' AND next_step IS NULL"), "t");
    assert!(!cluster.status("text", "reason").contains("public.unlike"));

    cluster.sql("SELECT pgwh.unsubscribe('text')");
    cluster.sql("DO $$ BEGIN FOR n IN 10..30 LOOP EXECUTE format('CREATE TABLE more%s (id int)', n); END LOOP; END $$");
    let detail = health("detail");
    assert_eq!(detail.matches("public.").count(), 10, "{detail}");
    assert!(detail.ends_with("and 13 more"), "{detail}");

    // Nobody is left whom it fits: that is wrong.
    cluster.sql("DROP TABLE orders");
    assert_eq!(health("NOT ok AND hint IS NOT NULL"), "t");
    assert!(health("detail").contains("user_id"));
    assert_eq!(
        cluster.status("s", "next_step"),
        "UPDATE pgwh.subscriptions SET filter = '...' WHERE name = 's';"
    );
}

#[test]
fn health_and_status_of_many_name_the_same_tables_for_each() {
    let (cluster, receiver) = stage();
    cluster.sql(&format!(
        "SELECT pgwh.subscribe('{}', name => format('s%s', n), tables => '{{public.*}}', event_types => '{{insert}}',
                filter => format('user_id = %s', n)) FROM generate_series(1, 30) n",
        receiver.url("/s")
    ));
    cluster.sql("CREATE TABLE unfit (id int PRIMARY KEY)");
    assert_eq!(
        cluster.value("SELECT count(*) FROM pgwh.status WHERE reason LIKE '%public.unfit (column%'"),
        "30"
    );
    assert!(check(&cluster, "detail").ends_with("; and 20 subscriptions more"));
    // One of them names the table: for that it is wrong.
    cluster.sql("ALTER TABLE unfit ADD user_id int; UPDATE pgwh.subscriptions SET tables = '{public.*, unfit}' WHERE name = 's7'");
    cluster.sql("DROP TABLE unfit; CREATE TABLE unfit (id int PRIMARY KEY)");
    assert_eq!(cluster.column("SELECT name FROM pgwh.status WHERE next_step IS NOT NULL"), ["s7"]);
    assert_eq!(check(&cluster, "ok"), "f");
}

#[test]
fn a_partition_without_old_values_is_named_with_what_gives_it_them() {
    let (cluster, receiver) = stage();
    cluster.sql(
        "CREATE TABLE p (id int, n int) PARTITION BY LIST (id); CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1);
         ALTER TABLE p REPLICA IDENTITY FULL; ALTER TABLE p1 REPLICA IDENTITY FULL; CREATE TABLE p3 (id int, n int)",
    );
    cluster.subscribe(&receiver, "s", "tables => '{p}', filter => 'OLD.n > 1'");
    let refused = cluster.refused("ALTER TABLE p ATTACH PARTITION p3 FOR VALUES IN (3)");
    assert_eq!(refused.code, "2BP01");
    assert!(refused.hint.starts_with("ALTER TABLE public.p3 REPLICA IDENTITY FULL;"), "{refused:?}");
    assert!(refused.hint.contains("SET filter = '...'"), "{refused:?}");
    cluster.sql("CREATE TABLE p2 PARTITION OF p FOR VALUES IN (2)");
    assert_eq!(check(&cluster, "ok"), "f");
    let next_step = cluster.status("s", "next_step");
    assert_eq!(next_step, "ALTER TABLE public.p2 REPLICA IDENTITY FULL;");
    cluster.sql(&next_step);
    cluster.sql("ALTER TABLE p3 REPLICA IDENTITY FULL; ALTER TABLE p ATTACH PARTITION p3 FOR VALUES IN (3)");
    assert_eq!(check(&cluster, "ok"), "t");
    assert_eq!(cluster.status("s", "reason IS NULL AND next_step IS NULL"), "t");
}

#[test]
fn what_a_disabled_subscription_needs_before_it_is_enabled_is_named() {
    let (cluster, receiver) = stage();
    cluster.subscribe(
        &receiver,
        "s",
        "tables => '{orders}', event_types => '{insert}', filter => 'total > 1'",
    );
    cluster.subscribe(
        &receiver,
        "c",
        "tables => '{orders}', event_types => '{insert}', key_columns => '{total}'",
    );
    cluster.sql("UPDATE pgwh.subscriptions SET enabled = false; ALTER TABLE orders DROP total");
    assert_eq!(check(&cluster, "ok"), "t");
    let reason = cluster.status("s", "reason");
    assert!(reason.starts_with("it is not enabled; ") && reason.contains("\"total\""), "{reason}");
    assert_eq!(
        cluster.status("s", "next_step"),
        "UPDATE pgwh.subscriptions SET filter = '...', enabled = true WHERE name = 's';"
    );
    assert_eq!(
        cluster.status("c", "next_step"),
        "UPDATE pgwh.subscriptions SET key_columns = '{...}', enabled = true WHERE name = 'c';"
    );
    cluster.sql(&cluster.status("s", "next_step").replace("'...'", "'user_id = 1'"));
    assert_eq!(cluster.status("s", "state"), "active");

    cluster.sql("CREATE TABLE old (id int PRIMARY KEY, n int); ALTER TABLE old REPLICA IDENTITY FULL");
    cluster.subscribe(&receiver, "old", "tables => '{old}', filter => 'OLD.n > 1'");
    cluster.sql("UPDATE pgwh.subscriptions SET enabled = false WHERE name = 'old'; ALTER TABLE old REPLICA IDENTITY DEFAULT");
    for _ in 0..2 {
        let next_step = cluster.status("old", "next_step");
        cluster.sql(&next_step);
    }
    assert_eq!(cluster.status("old", "state"), "active");
}

/// An ALTER TABLE of hours must not stop who asks how things are.
#[test]
fn health_and_status_do_not_wait_for_locks_on_tables() {
    let (cluster, receiver) = stage();
    cluster.sql(
        "CREATE TABLE p (id int, user_id int) PARTITION BY LIST (id); CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1);
         CREATE TABLE unfit (id int PRIMARY KEY); CREATE ROLE app LOGIN; GRANT SELECT (id, user_id) ON orders, p, p1 TO app",
    );
    let columns = "event_types => '{insert}', columns => '{user_id}', filter => 'user_id = 7'";
    cluster.subscribe(&receiver, "s", &format!("tables => '{{orders, p}}', {columns}"));
    cluster.sql("UPDATE pgwh.subscriptions SET owner = 'app'");
    cluster.subscribe(&receiver, "wild", "event_types => '{insert}', filter => 'user_id = 7'");
    let mut busy = cluster.connect();
    busy.batch_execute("BEGIN; LOCK TABLE orders, p, unfit IN ACCESS EXCLUSIVE MODE").unwrap();
    let patient = "SET statement_timeout = '3 s'; SELECT";
    cluster.sql(&format!("{patient} * FROM pgwh.health()"));
    cluster.sql(&format!("{patient} * FROM pgwh.status"));
    assert_eq!(check(&cluster, "ok AND detail = '2 subscriptions'"), "t");
    assert_eq!(cluster.value("SELECT count(reason) FROM pgwh.status"), "0");
    busy.batch_execute("COMMIT").unwrap();
    assert!(check(&cluster, "detail").contains("public.unfit"));
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
