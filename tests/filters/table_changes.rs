//! Commands on a table whose columns a filter uses.

use harness::Cluster;

use crate::{stage, told};

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
