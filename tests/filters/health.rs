//! What health and status say of filters and their tables.

use harness::Cluster;

use crate::stage;

#[test]
fn status_judges_a_filter_by_tables_events_and_columns() {
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
fn health_names_tables_that_a_wildcard_filter_does_not_fit() {
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
fn a_partition_without_old_values_is_named_with_the_fix() {
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
fn needs_of_a_disabled_subscription_are_named() {
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
