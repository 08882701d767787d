//! A table whose key, or whose order, changes while it is read: no row is left out.

use std::collections::BTreeSet;
use std::time::Duration;

use harness::{Cluster, Event, PATIENCE, Receiver, Reply, Request, Script, Stop, eventually};

use crate::{backfill, done, ended, stage};

/// More than are read ahead of an endpoint that answers slowly.
const ROWS: i64 = 6_000;

/// A table whose rows have a number that no command of these tests touches. Where ids have come to, no code and no word is left
/// to be read.
fn table(cluster: &Cluster, name: &str) {
    cluster.sql(&format!(
        "CREATE TABLE {name} (id int PRIMARY KEY, code int NOT NULL, word text NOT NULL, n int NOT NULL, v text);
         INSERT INTO {name} SELECT n, -n, '!' || lpad(n::text, 6, '0'), n, repeat('v', 900)
         FROM generate_series(1, {ROWS}) n;
         CREATE UNIQUE INDEX {name}_code ON {name} (code); CREATE UNIQUE INDEX {name}_word ON {name} (word)"
    ));
}

/// What happens between two chunks.
#[derive(Clone, Copy, PartialEq)]
enum Meanwhile {
    Running,
    Paused,
    Down,
}

/// Begins a backfill, runs the commands when some of the rows have come and others not, and returns its id.
fn altered(
    (cluster, receiver): (&Cluster, &Receiver),
    name: &str,
    arguments: &str,
    commands: &[&str],
    meanwhile: Meanwhile,
) -> String {
    receiver.clear();
    receiver.behave(|_: &Request| Reply::status(200).after(Duration::from_millis(200)));
    cluster.subscribe(
        receiver,
        name,
        &format!("tables => '{{public.{name}}}', batch_size => 20, max_in_flight => 4"),
    );
    let id = backfill(cluster, &format!("'{name}', 'public.{name}', chunk_size => 50{arguments}"));
    receiver.wait_for(2, PATIENCE).unwrap();
    if meanwhile != Meanwhile::Running {
        cluster.sql(&format!("SELECT pgwh.pause_backfill({id})"));
        cluster.wait_true(&format!("SELECT state = 'paused' FROM pgwh.backfills WHERE id = {id}"));
    }
    let read: i64 =
        cluster.value(&format!("SELECT rows_done FROM pgwh.backfills WHERE id = {id}")).parse().unwrap();
    assert!(read > 0 && read < ROWS, "{read} rows are read, neither none nor all");
    cluster.each(commands);
    if meanwhile == Meanwhile::Down {
        cluster.restart(Stop::Fast);
    }
    receiver.behave(Script::default());
    if meanwhile != Meanwhile::Running {
        cluster.sql(&format!("SELECT pgwh.resume_backfill({id})"));
    }
    id
}

/// The numbers of the rows that came.
fn numbers(events: &[Event]) -> BTreeSet<i64> {
    events.iter().filter_map(|event| event["record"]["n"].as_i64()).collect()
}

#[track_caller]
fn all_come(
    cluster: &Cluster,
    receiver: &Receiver,
    name: &str,
    arguments: &str,
    commands: &[&str],
    meanwhile: Meanwhile,
) {
    let id = altered((cluster, receiver), name, arguments, commands, meanwhile);
    done(cluster, &id);
    let numbers = numbers(&cluster.delivered(receiver, name));
    assert_eq!(numbers.len() as i64, ROWS, "rows of {name} after {commands:?}");
    cluster.sql(&format!("SELECT pgwh.unsubscribe('{name}')"));
}

#[test]
fn no_row_is_left_out_when_the_key_gets_another_type() {
    let (cluster, receiver) = stage();
    table(&cluster, "a");
    all_come(&cluster, &receiver, "a", "", &["ALTER TABLE a ALTER id TYPE text"], Meanwhile::Running);
    let back = "ALTER TABLE a ALTER id TYPE int USING id::int";
    all_come(&cluster, &receiver, "a", "", &[back], Meanwhile::Down);
}

#[test]
fn no_row_is_left_out_when_the_values_of_the_key_change() {
    let (cluster, receiver) = stage();
    table(&cluster, "a");
    let command = "ALTER TABLE a ALTER id TYPE int USING -id";
    all_come(&cluster, &receiver, "a", "", &[command], Meanwhile::Paused);
}

#[test]
fn no_row_is_left_out_when_another_key_takes_the_place() {
    let (cluster, receiver) = stage();
    for (name, meanwhile, commands) in [
        (
            "a",
            Meanwhile::Running,
            &["ALTER TABLE a DROP CONSTRAINT a_pkey, ADD PRIMARY KEY USING INDEX a_code"][..],
        ),
        ("b", Meanwhile::Down, &["ALTER TABLE b REPLICA IDENTITY USING INDEX b_code"]),
        ("c", Meanwhile::Paused, &["ALTER TABLE c REPLICA IDENTITY USING INDEX c_word"]),
        (
            "d",
            Meanwhile::Paused,
            &[
                "ALTER TABLE d RENAME id TO other",
                "ALTER TABLE d RENAME code TO id",
                "ALTER TABLE d DROP CONSTRAINT d_pkey, ADD PRIMARY KEY (id)",
            ],
        ),
        (
            "e",
            Meanwhile::Paused,
            &[
                "ALTER TABLE e DROP CONSTRAINT e_pkey",
                "UPDATE e SET id = id - 10000",
                "ALTER TABLE e ADD PRIMARY KEY (id)",
            ],
        ),
    ] {
        table(&cluster, name);
        all_come(&cluster, &receiver, name, "", commands, meanwhile);
    }
}

#[test]
fn no_row_is_left_out_when_texts_sort_otherwise() {
    let (cluster, receiver) = stage();
    cluster.sql("CREATE TYPE mood AS ENUM ('bad', 'good'); CREATE COLLATION renewed (locale = 'C')");
    table(&cluster, "a");
    cluster.sql(
        "UPDATE a SET word = CASE WHEN n % 2 = 0 THEN 'B' ELSE 'a' END || lpad(n::text, 6, '0');
         ALTER TABLE a DROP CONSTRAINT a_pkey, ADD PRIMARY KEY USING INDEX a_word",
    );
    let has_icu = cluster.value("SELECT count(*) > 0 FROM pg_collation WHERE collname = 'en-x-icu'") == "t";
    let collation = if has_icu { "\"en-x-icu\"" } else { "renewed" };
    let command = format!("ALTER TABLE a ALTER word TYPE text COLLATE {collation}");
    all_come(&cluster, &receiver, "a", "", &[&command], Meanwhile::Down);

    table(&cluster, "b");
    cluster.sql(
        "ALTER TABLE b ADD mood mood; UPDATE b SET mood = CASE WHEN n < 3000 THEN 'bad' ELSE 'good' END::mood;
         ALTER TABLE b DROP CONSTRAINT b_pkey, ADD PRIMARY KEY (mood, id)",
    );
    // The label of the position comes to stand behind all rows.
    let commands =
        ["ALTER TYPE mood RENAME VALUE 'bad' TO 'worst'", "ALTER TYPE mood ADD VALUE 'bad' AFTER 'good'"];
    all_come(&cluster, &receiver, "b", "", &commands, Meanwhile::Paused);
}

#[test]
fn no_row_is_left_out_when_the_column_of_order_by_changes() {
    let (cluster, receiver) = stage();
    for (name, command) in [
        ("a", "ALTER TABLE a ALTER code TYPE text"),
        ("b", "ALTER TABLE b ALTER code TYPE int USING -code"),
        ("c", "ALTER TABLE c DROP CONSTRAINT c_pkey, ADD PRIMARY KEY (word)"),
    ] {
        table(&cluster, name);
        all_come(&cluster, &receiver, name, ", order_by => 'code'", &[command], Meanwhile::Paused);
    }
    // Whose rows were named by a value is not read on by another meaning of that value.
    table(&cluster, "d");
    let arguments = ", order_by => 'code', start => '-5000'";
    let command = "ALTER TABLE d ALTER code TYPE text";
    let id = altered((&cluster, &receiver), "d", arguments, &[command], Meanwhile::Paused);
    ended(&cluster, &id);
    let failed = cluster.rows(&format!("SELECT state, reason FROM pgwh.backfills WHERE id = {id}"));
    assert_eq!(failed[0][0].as_deref(), Some("failed"));
    let reason = failed[0][1].as_deref().unwrap();
    assert!(reason.contains("code") && reason.contains(&format!("pgwh.cancel_backfill({id})")), "{reason}");
    cluster.sql(&format!("SELECT pgwh.resume_backfill({id})"));
    cluster.wait_true(&format!(
        "SELECT state = 'failed' AND finished_at > started_at FROM pgwh.backfills WHERE id = {id}"
    ));
    cluster.sql(&format!("SELECT pgwh.cancel_backfill({id})"));
    eventually("it is cancelled", || {
        let state = cluster.value(&format!("SELECT state FROM pgwh.backfills WHERE id = {id}"));
        (state == "cancelled").then_some(())
    });
}

#[test]
fn a_failed_backfill_says_how_it_goes_on_and_then_does() {
    let (cluster, receiver) = stage();
    table(&cluster, "a");
    let command = "ALTER TABLE a DROP CONSTRAINT a_pkey";
    let id = altered((&cluster, &receiver), "a", "", &[command], Meanwhile::Running);
    ended(&cluster, &id);
    let reason =
        cluster.value(&format!("SELECT reason FROM pgwh.backfills WHERE id = {id} AND state = 'failed'"));
    for command in [
        "ALTER TABLE public.a REPLICA IDENTITY USING INDEX a_code;",
        "pgwh.resume_backfill(",
        "pgwh.cancel_backfill(",
    ] {
        assert!(reason.contains(command), "{reason}");
    }
    cluster.each(&["ALTER TABLE a ADD PRIMARY KEY (n)", &format!("SELECT pgwh.resume_backfill({id})")]);
    cluster.wait_true(&format!("SELECT state <> 'failed' FROM pgwh.backfills WHERE id = {id}"));
    done(&cluster, &id);
    assert_eq!(numbers(&cluster.delivered(&receiver, "a")).len() as i64, ROWS);
    // What was read before is not counted twice.
    assert_eq!(
        cluster.value("SELECT (rows_done, rows_total, percent) FROM pgwh.backfills"),
        format!("({ROWS},{ROWS},100)")
    );
}

#[test]
fn a_table_that_takes_the_name_of_another_is_read() {
    let (cluster, receiver) = stage();
    table(&cluster, "a");
    cluster.sql(
        "CREATE TABLE fresh (LIKE a INCLUDING ALL);
         INSERT INTO fresh SELECT id + 10000, code, word, n + 10000, v FROM a",
    );
    let swapped = ["BEGIN", "ALTER TABLE a RENAME TO a_old", "ALTER TABLE fresh RENAME TO a", "COMMIT"];
    let id = altered((&cluster, &receiver), "a", "", &swapped, Meanwhile::Running);
    done(&cluster, &id);
    let came = numbers(&cluster.delivered(&receiver, "a"));
    assert_eq!(came.range(10_001..).count() as i64, ROWS);
    // Dropped and made again.
    table(&cluster, "b");
    let again = "CREATE TABLE b (id text PRIMARY KEY, n int)";
    let filled = "INSERT INTO b SELECT 'again ' || n, n + 20000 FROM generate_series(1, 6000) n";
    let id = altered((&cluster, &receiver), "b", "", &["DROP TABLE b", again, filled], Meanwhile::Paused);
    done(&cluster, &id);
    let events = cluster.delivered(&receiver, "b");
    let reads: Vec<Event> = events.into_iter().filter(|event| event.text("action") == "read").collect();
    assert_eq!(numbers(&reads).range(20_001..).count() as i64, ROWS);
}

/// Has a table leave a backfill that goes on with another one, and come back before that one is read.
fn leaves_and_comes_back(name: &str, tables: &str, other: &str, leave: &str, come_back: &str) {
    let (cluster, receiver) = stage();
    cluster.sql(tables);
    receiver.behave(|_: &Request| Reply::status(200).after(Duration::from_millis(200)));
    cluster.subscribe(
        &receiver,
        "s",
        &format!("tables => '{{{name}}}', batch_size => 20, max_in_flight => 4"),
    );
    // Nothing is read before the other table is locked.
    cluster.sql("SELECT pgwh.pause('s')");
    let id = backfill(&cluster, "'s', chunk_size => 50");
    let mut holder = cluster.connect();
    holder.batch_execute(&format!("BEGIN; LOCK TABLE {other}")).unwrap();
    cluster.sql("SELECT pgwh.resume('s')");
    receiver.wait_for(2, PATIENCE).unwrap();
    cluster.sql(leave);
    receiver.behave(Script::default());
    cluster.wait_true(&format!(
        "SELECT bool_or(absent) FROM pgwh_internal.backfill_tables WHERE backfill_id = {id}"
    ));
    cluster.sql(come_back);
    holder.batch_execute("ROLLBACK").unwrap();
    done(&cluster, &id);
    assert_eq!(numbers(&cluster.delivered(&receiver, "s")).len() as i64, ROWS + 10);
}

#[test]
fn a_table_that_is_renamed_there_and_back_is_read_to_its_end() {
    leaves_and_comes_back(
        "shop.*",
        &format!(
            "CREATE SCHEMA shop; CREATE SCHEMA other; CREATE TABLE shop.a (id int PRIMARY KEY, n int, v text);
             CREATE TABLE shop.b (id int PRIMARY KEY, n int);
             INSERT INTO shop.a SELECT n, n, repeat('v', 900) FROM generate_series(1, {ROWS}) n;
             INSERT INTO shop.b SELECT n, -n FROM generate_series(1, 10) n"
        ),
        "shop.b",
        "ALTER TABLE shop.a SET SCHEMA other",
        "ALTER TABLE other.a SET SCHEMA shop",
    );
}

/// How a backfill that is over ended, and why.
fn end(cluster: &Cluster, id: &str) -> (String, String) {
    ended(cluster, id);
    let query = format!("SELECT state, coalesce(reason, '') FROM pgwh.backfills WHERE id = {id}");
    let row: Vec<String> = cluster.rows(&query).remove(0).into_iter().map(Option::unwrap).collect();
    (row[0].clone(), row[1].clone())
}

#[test]
fn a_table_that_is_renamed_for_longer_fails_and_can_go_on() {
    let (cluster, receiver) = stage();
    table(&cluster, "a");
    let at = (&cluster, &receiver);
    for (leave, now, come_back) in [
        ("ALTER TABLE a RENAME TO b", "public.b", "ALTER TABLE b RENAME TO a"),
        ("ALTER TABLE a SET SCHEMA other", "other.a", "ALTER TABLE other.a SET SCHEMA public"),
    ] {
        cluster.sql("CREATE SCHEMA IF NOT EXISTS other");
        let id = altered(at, "a", "", &[leave], Meanwhile::Running);
        let failed = (
            "failed".to_owned(),
            format!(
                "renamed or moved before they were read to their end: public.a (now {now}). To go on once they are back: \
                 SELECT pgwh.resume_backfill({id}); To give it up: SELECT pgwh.cancel_backfill({id});"
            ),
        );
        assert_eq!(end(&cluster, &id), failed);
        cluster.sql(&format!("SELECT pgwh.resume_backfill({id})"));
        cluster.wait_true(&format!(
            "SELECT state = 'failed' AND finished_at > started_at FROM pgwh.backfills WHERE id = {id}"
        ));
        cluster.each(&[come_back, &format!("SELECT pgwh.resume_backfill({id})")]);
        cluster.wait_true(&format!("SELECT state <> 'failed' FROM pgwh.backfills WHERE id = {id}"));
        done(&cluster, &id);
        assert_eq!(numbers(&cluster.delivered(&receiver, "a")).len() as i64, ROWS, "{leave}");
        cluster.sql("SELECT pgwh.unsubscribe('a')");
    }
    // Another table under its name is what is to be read.
    let swapped =
        ["BEGIN", "ALTER TABLE a RENAME TO b", "CREATE TABLE a (id int PRIMARY KEY, n int)", "COMMIT"];
    let id = altered(at, "a", "", &swapped, Meanwhile::Running);
    let reason = "it left out tables that the subscription is no longer about: public.a (now public.b)";
    assert_eq!(end(&cluster, &id), ("done".to_owned(), reason.to_owned()));
}

#[test]
fn a_partition_that_stays_detached_is_named() {
    let (cluster, receiver) = stage();
    cluster.sql(&format!(
        "CREATE TABLE p (id int PRIMARY KEY, n int, v text) PARTITION BY RANGE (id);
         CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (1) TO (10000);
         INSERT INTO p SELECT n, n, repeat('v', 900) FROM generate_series(1, {ROWS}) n"
    ));
    let detach = "ALTER TABLE p DETACH PARTITION p1";
    let id = altered((&cluster, &receiver), "p", "", &[detach], Meanwhile::Running);
    let reason = "it left out tables that the subscription is no longer about: public.p1";
    assert_eq!(end(&cluster, &id), ("done".to_owned(), reason.to_owned()));
    // What is gone for good needs no mention.
    cluster.sql(
        "ALTER TABLE p ATTACH PARTITION p1 FOR VALUES FROM (1) TO (10000); SELECT pgwh.unsubscribe('p')",
    );
    let id = altered((&cluster, &receiver), "p", "", &["DROP TABLE p1"], Meanwhile::Running);
    assert_eq!(end(&cluster, &id), ("done".to_owned(), String::new()));
}

#[test]
fn a_partition_detached_and_attached_is_read_to_its_end() {
    leaves_and_comes_back(
        "public.p",
        &format!(
            "CREATE TABLE p (id int PRIMARY KEY, n int, v text) PARTITION BY RANGE (id);
             CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (1) TO (10000);
             CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10000) TO (20000);
             INSERT INTO p SELECT n, n, repeat('v', 900) FROM generate_series(1, {ROWS}) n;
             INSERT INTO p SELECT n, n FROM generate_series(10001, 10010) n"
        ),
        "p2",
        "ALTER TABLE p DETACH PARTITION p1",
        "ALTER TABLE p ATTACH PARTITION p1 FOR VALUES FROM (1) TO (10000)",
    );
}

#[test]
fn rows_told_apart_by_their_index_only_all_come() {
    let (cluster, receiver) = stage();
    if cluster.value("SELECT count(*) > 0 FROM pg_collation WHERE collname = 'en-x-icu'") != "t" {
        return;
    }
    cluster.sql(
        "CREATE COLLATION any_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
         CREATE TABLE words (w text COLLATE any_case NOT NULL);
         CREATE UNIQUE INDEX by_bytes ON words (w COLLATE \"C\");
         ALTER TABLE words REPLICA IDENTITY USING INDEX by_bytes;
         INSERT INTO words SELECT CASE n % 2 WHEN 0 THEN 'w' ELSE 'W' END || n / 2 FROM generate_series(0, 99) n",
    );
    cluster.subscribe(&receiver, "words", "tables => '{public.words}'");
    let id = backfill(&cluster, "'words', chunk_size => 3");
    done(&cluster, &id);
    assert_eq!(cluster.delivered(&receiver, "words").len(), 100);
}

#[test]
fn keys_that_are_no_text_in_any_encoding_all_come() {
    let (cluster, receiver) = stage();
    cluster.sql("CREATE DATABASE bytes ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0");
    let bytes = cluster.database("bytes");
    bytes.sql("CREATE EXTENSION pgstream_hooks; CREATE TABLE t (id text PRIMARY KEY, n int)");
    bytes.sql("INSERT INTO t SELECT convert_from('\\xe9'::bytea || n::text::bytea, 'SQL_ASCII'), n FROM generate_series(1, 100) n");
    bytes.subscribe(&receiver, "s", "tables => '{public.t}'");
    let id = backfill(&bytes, "'s', chunk_size => 7");
    done(&bytes, &id);
    assert_eq!(numbers(&bytes.delivered(&receiver, "s")).len(), 100);
}
