//! A subscription gets those changes for which its filter is true, as PostgreSQL itself evaluates it, and no others.

use std::collections::BTreeSet;

use harness::{Event, Reply, Request};
use serde_json::json;

use crate::{stage, told};

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
fn a_table_that_the_filter_does_not_fit_sends_no_truncate() {
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
fn without_a_name_the_subscription_with_that_filter_is_meant() {
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

/// The rows of user 8 come while the first of user 7 waits for its second attempt, and the others of user 7 wait for it.
#[test]
fn key_columns_order_their_group_and_no_others() {
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
fn filters_that_differ_in_literals_only_are_told_apart() {
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
