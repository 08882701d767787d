//! A change that a filter fails on is a dead letter, and delays no other.

use crate::{stage, told};

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
fn an_unjudged_change_is_sent_if_asked_for_by_its_number() {
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
fn a_slow_filter_makes_a_dead_letter_and_delays_no_other() {
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
fn a_value_left_out_of_wal_comes_from_the_old_row_or_is_dead() {
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
