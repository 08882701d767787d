//! Partitions and children whose changes are not in the log are refused when subscribing, and named from then on.

use harness::{Stage, what};

/// A table of two partitions, with primary keys of their own, since a foreign partition has none.
fn stage() -> Stage {
    let stage = Stage::set();
    stage.each(&[
        "CREATE TABLE p (id int, part int) PARTITION BY LIST (part)",
        "CREATE TABLE p1 PARTITION OF p (PRIMARY KEY (id, part)) FOR VALUES IN (1)",
        "CREATE TABLE p2 PARTITION OF p (PRIMARY KEY (id, part)) FOR VALUES IN (2)",
        "CREATE EXTENSION postgres_fdw; CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw",
    ]);
    stage
}

/// Subscribes to a table, which must be refused because of a part; then types the HINT's list of tables.
#[track_caller]
fn refused_for(stage: &Stage, table: &str, part: &str, what: &str) -> String {
    let url = stage.receiver.url("/refused");
    let subscribe =
        |tables: &str| format!("SELECT pgwh.subscribe('{url}', name => 'refused', tables => {tables})");
    let refusal = stage.refused(&subscribe(&format!("'{{{table}}}'")));
    assert_eq!(refusal.code, "42809", "{refusal:?}");
    assert_eq!(refusal.detail, format!("{part} is {what}."));
    let (_, tables) = refusal.hint.split_once("tables => ").unwrap();
    stage.sql(&subscribe(tables));
    stage.sql("SELECT pgwh.unsubscribe('refused')");
    refusal.hint
}

#[test]
fn a_table_with_parts_in_no_log_is_refused() {
    let stage = stage();
    stage.sql("CREATE UNLOGGED TABLE p3 PARTITION OF p FOR VALUES IN (3)");
    let hint = refused_for(&stage, "public.p", "public.p3", "an unlogged table");
    assert_eq!(
        hint,
        "ALTER TABLE public.p3 SET LOGGED; or name the other parts: tables => '{public.p1, public.p2}'"
    );
    stage.sql(hint.split_once(" or ").unwrap().0);
    stage.subscribe(&stage.receiver, "p", "tables => '{public.p}'");

    stage.sql(
        "CREATE TABLE f (id int, part int) PARTITION BY LIST (part);
         CREATE TABLE f1 PARTITION OF f FOR VALUES IN (1) PARTITION BY LIST (id);
         CREATE TABLE f11 PARTITION OF f1 FOR VALUES IN (1);
         CREATE FOREIGN TABLE f12 PARTITION OF f1 FOR VALUES IN (2) SERVER far",
    );
    refused_for(&stage, "public.f", "public.f12", "a foreign table");
    refused_for(&stage, "public.f1", "public.f12", "a foreign table");

    stage.sql("CREATE TABLE parent (id int); CREATE TABLE child () INHERITS (parent); CREATE UNLOGGED TABLE fast () INHERITS (parent)");
    let url = stage.receiver.url("/");
    let refusal = stage.refused(&format!("SELECT pgwh.subscribe('{url}', tables => '{{parent}}')"));
    assert_eq!(
        (refusal.code.as_str(), refusal.detail.as_str()),
        ("42809", "public.fast is an unlogged table.")
    );
    let insert =
        format!("INSERT INTO pgwh.subscriptions (url, tables) VALUES ('{url}', '{{public.parent}}')");
    assert_eq!(stage.refused(&insert).code, "42809");
}

#[test]
fn a_part_in_no_log_that_comes_later_is_named() {
    let stage = stage();
    stage.sql("SELECT pgwh.unsubscribe('all')");
    stage.subscribe(&stage.receiver, "p", "tables => '{public.p}'");
    let is_told = |part: &str| {
        let reason = stage.status("p", "reason");
        let health =
            stage.rows("SELECT ok, detail FROM pgwh.health() WHERE check_name = 'subscriptions valid'");
        let detail = health[0][1].clone().unwrap();
        assert_eq!(reason.contains(part), detail.contains(part), "{reason}\n{detail}");
        assert_eq!(reason.contains(part), health[0][0].as_deref() == Some("f"), "{health:?}");
        reason.contains(part)
    };
    assert!(!is_told("public.p"));
    for (comes, goes) in [
        ("CREATE UNLOGGED TABLE p3 PARTITION OF p FOR VALUES IN (3)", "DROP TABLE p3"),
        (
            "CREATE UNLOGGED TABLE p3 (id int NOT NULL, part int NOT NULL); ALTER TABLE p ATTACH PARTITION p3 FOR VALUES IN (3)",
            "ALTER TABLE p DETACH PARTITION p3; DROP TABLE p3",
        ),
        (
            "CREATE TABLE p3 PARTITION OF p FOR VALUES IN (3); ALTER TABLE p3 SET UNLOGGED",
            "ALTER TABLE p3 SET LOGGED; DROP TABLE p3",
        ),
    ] {
        stage.sql(comes);
        assert!(is_told("public.p3 (an unlogged table)"), "{comes}");
        assert_eq!(stage.status("p", "state"), "active");
        assert_eq!(stage.status("p", "next_step"), "ALTER TABLE public.p3 SET LOGGED;");
        // It stays what it was, and can be changed in other ways.
        stage.sql("UPDATE pgwh.subscriptions SET timeout = '5 s' WHERE name = 'p'");
        stage.sql(goes);
        // What was missed meanwhile is a gap, which a backfill closes.
        stage.sql("SELECT pgwh.backfill('p')");
        stage.wait_true("SELECT bool_and(state = 'done') FROM pgwh.backfills");
        stage.wait_status("p", "reason IS NULL");
        assert!(!is_told("public.p3"), "{goes}");
    }
    stage.sql("CREATE FOREIGN TABLE p3 PARTITION OF p FOR VALUES IN (3) SERVER far");
    assert!(is_told("public.p3 (a foreign table)"));
    let next = stage.status("p", "next_step");
    assert_eq!(next, "UPDATE pgwh.subscriptions SET tables = '{public.p1, public.p2}' WHERE name = 'p';");
    stage.sql(&next);
    assert!(!is_told("public.p3"));
}

#[test]
fn a_wildcard_names_the_part_in_no_log_and_fails_no_check() {
    let stage = stage();
    stage.sql("CREATE TABLE parent (id int); CREATE TABLE fast (id int); ALTER TABLE fast SET UNLOGGED");
    assert_eq!(stage.status("all", "reason"), "");
    stage.sql("ALTER TABLE fast INHERIT parent");
    assert!(stage.status("all", "reason").contains("public.fast (an unlogged table)"));
    let health = "SELECT ok AND detail LIKE '%public.fast (an unlogged table)%' FROM pgwh.health() WHERE check_name = 'subscriptions valid'";
    assert_eq!(stage.value(health), "t");
    stage.sql(&stage.status("all", "next_step"));
    assert_eq!(stage.status("all", "reason"), "");
}

#[test]
fn a_row_that_moves_to_an_unlogged_partition_is_a_delete() {
    let stage = stage();
    stage.subscribe(&stage.receiver, "p", "tables => '{public.p}'");
    stage.each(&[
        "INSERT INTO p VALUES (1, 1)",
        "CREATE UNLOGGED TABLE p3 PARTITION OF p FOR VALUES IN (3)",
        "UPDATE p SET part = 3 WHERE id = 1",
    ]);
    assert_eq!(what(&stage.got("p")), ["public.p insert", "public.p delete"]);
    let reason = stage.status("p", "reason");
    assert!(reason.contains("a row that moves there is a delete"), "{reason}");
}

#[test]
fn a_backfill_says_which_parts_it_left_out() {
    let stage = stage();
    stage.subscribe(&stage.receiver, "p", "tables => '{public.p}'");
    stage.each(&[
        "CREATE UNLOGGED TABLE p3 PARTITION OF p (PRIMARY KEY (id, part)) FOR VALUES IN (3)",
        "CREATE FOREIGN TABLE p4 PARTITION OF p FOR VALUES IN (4) SERVER far",
        "INSERT INTO p VALUES (1, 1), (2, 2), (3, 3)",
    ]);
    let reason = |name: &str| {
        let id = stage.value(&format!("SELECT pgwh.backfill('{name}')"));
        stage.wait_true(&format!("SELECT state = 'done' FROM pgwh.backfills WHERE id = {id}"));
        stage.value(&format!("SELECT reason FROM pgwh.backfills WHERE id = {id}"))
    };
    let left =
        "it left out what is not in the log: public.p3 (an unlogged table), public.p4 (a foreign table)";
    assert_eq!((reason("p").as_str(), reason("all").as_str()), (left, left));
    stage.each(&["ALTER TABLE p3 SET LOGGED", "DROP FOREIGN TABLE p4"]);
    assert_eq!(reason("p"), "");
}

#[test]
fn a_new_partition_without_the_others_identity_is_named() {
    let stage = stage();
    stage.sql("ALTER TABLE p1 REPLICA IDENTITY FULL; ALTER TABLE p2 REPLICA IDENTITY FULL");
    stage.subscribe(&stage.receiver, "p", "tables => '{public.p}'");
    stage.subscribe(&stage.receiver, "inserts", "tables => '{public.p}', event_types => '{insert}'");
    stage.sql("CREATE TABLE p3 PARTITION OF p FOR VALUES IN (3)");
    let alter = "ALTER TABLE public.p3 REPLICA IDENTITY FULL;";
    assert_eq!(stage.status("p", "next_step"), alter);
    assert_eq!(stage.status("inserts", "next_step"), "");
    let detail = stage.value("SELECT detail FROM pgwh.health() WHERE check_name = 'subscriptions valid'");
    assert!(detail.contains(alter), "{detail}");
    stage.sql(alter);
    assert_eq!(stage.status("p", "next_step") + &stage.status("p", "reason"), "");

    stage.sql(
        "CREATE TABLE q (id int NOT NULL, part int NOT NULL, UNIQUE (part, id)) PARTITION BY LIST (part);
         CREATE TABLE q1 PARTITION OF q FOR VALUES IN (1); ALTER TABLE q1 REPLICA IDENTITY USING INDEX q1_part_id_key",
    );
    stage.subscribe(&stage.receiver, "q", "tables => '{public.q}'");
    stage.sql("CREATE TABLE q2 PARTITION OF q FOR VALUES IN (2)");
    let next = stage.status("q", "next_step");
    assert_eq!(next, "ALTER TABLE public.q2 REPLICA IDENTITY USING INDEX q2_part_id_key;");
    stage.sql(&next);
    assert_eq!(stage.status("q", "next_step"), "");
}

#[test]
fn a_partitions_subscriber_learns_what_the_parents_commands_do() {
    let stage = stage();
    stage.sql("CREATE TABLE parent (id int); CREATE TABLE child () INHERITS (parent)");
    for (name, tables) in [("p1", "{public.p1}"), ("child", "{public.child}"), ("p", "{public.p}")] {
        stage.subscribe(
            &stage.receiver,
            name,
            &format!("tables => '{tables}', event_types => '{{insert, ddl}}'"),
        );
    }
    stage.each(&[
        "ALTER TABLE p ADD COLUMN note text",
        "INSERT INTO p VALUES (1, 1, 'x')",
        "ALTER TABLE p RENAME COLUMN note TO text",
        "CREATE INDEX p_text ON p (text)",
        "ALTER TABLE p2 SET (fillfactor = 50)",
        "ALTER TABLE parent ADD COLUMN note text",
        "DROP TABLE p",
        "DROP TABLE parent CASCADE",
    ]);
    let told = |name: &str| -> Vec<String> {
        let tag = |event: &harness::Event| event["command_tag"].as_str().unwrap_or("insert").to_owned();
        // In the order in which they came.
        stage.delivered(&stage.receiver, name).iter().map(tag).collect()
    };
    let p1 = ["ALTER TABLE", "insert", "ALTER TABLE", "CREATE INDEX", "DROP TABLE"];
    assert_eq!(told("p1"), p1);
    assert_eq!(told("child"), ["ALTER TABLE", "DROP TABLE"]);
    let p = ["ALTER TABLE", "insert", "ALTER TABLE", "CREATE INDEX", "ALTER TABLE", "DROP TABLE"];
    assert_eq!(told("p"), p);
}

/// Commands on a table, and who of the subscribers to schema changes of `p`, its partition `p1` with the partition `p11`, `parent`
/// and its child `child` is told of each.
const TOLD: [(&str, &[&str]); 15] = [
    ("ALTER TABLE p DETACH PARTITION p1", &["p", "p1", "p11"]),
    ("ALTER TABLE p ATTACH PARTITION p1 FOR VALUES IN (1)", &["p", "p1", "p11"]),
    ("ALTER TABLE p DETACH PARTITION p1 CONCURRENTLY", &["p", "p1", "p11"]),
    ("ALTER TABLE p ATTACH PARTITION p1 FOR VALUES IN (1)", &["p", "p1", "p11"]),
    ("CREATE INDEX p_id ON p (id)", &["p", "p1", "p11"]),
    ("DROP INDEX p_id", &["p", "p1", "p11"]),
    ("CREATE INDEX p11_id ON p11 (id)", &["p", "p1", "p11"]),
    ("DROP INDEX p11_id", &["p", "p1", "p11"]),
    ("ALTER TABLE p SET SCHEMA away", &["p", "p1", "p11"]),
    ("ALTER TABLE away.p SET SCHEMA public", &["p", "p1", "p11"]),
    ("ALTER TABLE child NO INHERIT parent", &["child", "parent"]),
    ("ALTER TABLE child INHERIT parent", &["child", "parent"]),
    ("DROP TABLE child", &["child", "parent"]),
    ("DROP TABLE p11", &["p", "p1", "p11"]),
    ("DROP TABLE p", &["p", "p1"]),
];

#[test]
fn parts_and_parents_learn_of_what_parts_and_renames_them() {
    let stage = Stage::set();
    stage.sql(
        "CREATE SCHEMA away; CREATE TABLE p (id int, part int) PARTITION BY LIST (part);
         CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1) PARTITION BY LIST (id); CREATE TABLE p11 PARTITION OF p1 FOR VALUES IN (1);
         CREATE TABLE parent (id int); CREATE TABLE child () INHERITS (parent)",
    );
    let names = ["p", "p1", "p11", "parent", "child"];
    for name in names {
        let options = format!("tables => '{{public.{name}}}', event_types => '{{ddl}}'");
        stage.subscribe(&stage.receiver, name, &options);
    }
    TOLD.iter().for_each(|(command, _)| stage.sql(command));
    for name in names {
        let got = stage.delivered(&stage.receiver, name);
        let told: Vec<&str> = got.iter().filter_map(|event| event["command"].as_str()).collect();
        let expected = TOLD.iter().filter(|(_, who)| who.contains(&name));
        assert_eq!(told, expected.map(|(command, _)| *command).collect::<Vec<_>>(), "{name}");
    }
}

#[test]
fn a_rename_is_told_by_both_names() {
    let stage = Stage::set();
    stage.sql("CREATE SCHEMA sales; CREATE TABLE sales.t (id int); CREATE VIEW sales.v AS SELECT 1 AS one");
    let patterns = [
        ("old", "sales.t"),
        ("new", "sales.u*"),
        ("both", "sales.*"),
        ("view", "sales.v*"),
        ("moved", "shop.*"),
    ];
    for (name, pattern) in patterns {
        let options = format!("tables => '{{{pattern}}}', event_types => '{{ddl}}'");
        stage.subscribe(&stage.receiver, name, &options);
    }
    let commands = [
        "ALTER TABLE sales.t RENAME TO u",
        "ALTER VIEW sales.v RENAME TO w",
        "ALTER SCHEMA sales RENAME TO shop",
        "ALTER TABLE shop.u SET SCHEMA public",
    ];
    stage.each(&commands);
    let told = |name: &str| -> Vec<String> {
        stage.delivered(&stage.receiver, name).iter().map(|event| event.text("command")).collect()
    };
    assert_eq!(told("old"), [commands[0], commands[2]]);
    assert_eq!(told("new"), [commands[0], commands[2]]);
    assert_eq!(told("both"), commands[..3]);
    assert_eq!(told("view"), commands[1..3]);
    assert_eq!(told("moved"), commands[2..]);
}

#[test]
fn all_parts_in_the_way_are_named_at_once() {
    let stage = stage();
    let url = stage.receiver.url("/");
    stage.sql(
        "CREATE UNLOGGED TABLE p3 PARTITION OF p FOR VALUES IN (3);
         CREATE UNLOGGED TABLE p4 PARTITION OF p FOR VALUES IN (4)",
    );
    let subscribe = format!("SELECT pgwh.subscribe('{url}', name => 'p', tables => '{{public.p}}')");
    let refusal = stage.refused(&subscribe);
    assert_eq!(refusal.detail, "public.p3 is an unlogged table. public.p4 is an unlogged table.");
    stage.sql(refusal.hint.split_once(" or ").unwrap().0);
    stage.sql(&subscribe);
    // The same of partitions, and of children, that cannot be read row by row.
    stage.sql("CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE one () INHERITS (parent); CREATE TABLE two () INHERITS (parent)");
    stage.sql(
        "CREATE TABLE \"Bare\" (n int) PARTITION BY LIST (n);
         CREATE TABLE b1 PARTITION OF \"Bare\" FOR VALUES IN (1); CREATE TABLE b2 PARTITION OF \"Bare\" FOR VALUES IN (2);
         INSERT INTO \"Bare\" VALUES (1), (2);
         CREATE TABLE base (n int); CREATE TABLE heir () INHERITS (base); INSERT INTO base VALUES (1); INSERT INTO heir VALUES (2)",
    );
    stage.sql("UPDATE pgwh.subscriptions SET tables = ARRAY['public.p', 'public.parent', 'public.\"Bare\"', 'public.base'] WHERE name = 'p'");
    for (table, parts) in [
        ("p", ["public.p3", "public.p4"]),
        ("parent", ["public.one", "public.two"]),
        // Columns are added at the top.
        ("\"Bare\"", ["public.b1", "public.b2"]),
        ("base", ["public.base", "public.heir"]),
    ] {
        let backfill = format!("SELECT pgwh.backfill('p', 'public.{table}')");
        let refusal = stage.refused(&backfill);
        assert_eq!(refusal.code, "22023", "{refusal:?}");
        assert_eq!(refusal.message, format!("tables {} cannot be read row by row", parts.join(", ")));
        let (commands, _) = refusal.hint.split_once(" or leave it out").unwrap();
        for part in parts {
            assert!(commands.contains(&format!("ALTER TABLE {part} ADD")), "{refusal:?}");
        }
        stage.sql(commands);
        stage.sql(&backfill);
    }
    stage.wait_true("SELECT bool_and(state = 'done') FROM pgwh.backfills");
}

#[test]
fn a_temporary_child_is_named_while_it_lasts() {
    let stage = Stage::set();
    stage.sql("CREATE TABLE parent (id int PRIMARY KEY)");
    let mut session = stage.connect();
    session.batch_execute("CREATE TEMP TABLE passing () INHERITS (parent)").unwrap();
    // Who subscribes need not wait for that session.
    stage.subscribe(&stage.receiver, "s", "tables => '{public.parent}'");
    session.batch_execute("INSERT INTO passing VALUES (1)").unwrap();
    for name in ["s", "all"] {
        let reason = stage.status(name, "reason");
        assert!(reason.contains(".passing (a temporary table)"), "{name}: {reason}");
        assert_eq!(stage.status(name, "state"), "active");
        assert_eq!(stage.status(name, "next_step"), "");
    }
    let detail = stage.value("SELECT detail FROM pgwh.health() WHERE check_name = 'subscriptions valid'");
    assert!(detail.contains(".passing (a temporary table)"), "{detail}");
    stage.sql("INSERT INTO parent VALUES (2)");
    stage.sql("SELECT pgwh.backfill('s')");
    stage.wait_true(
        "SELECT state = 'done' AND reason LIKE '%.passing (a temporary table)' FROM pgwh.backfills",
    );
    drop(session);
    stage.wait_status("s", "reason IS NULL");
    assert_eq!(what(&stage.got("s")), ["public.parent insert", "public.parent read"]);
    // Neither a temporary table of its own, nor one below another, is of anybody's concern.
    let mut session = stage.connect();
    session
        .batch_execute("CREATE TEMP TABLE above (id int); CREATE TEMP TABLE below () INHERITS (above)")
        .unwrap();
    assert_eq!(stage.status("all", "reason"), "");
}
