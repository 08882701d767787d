//! Subscribing again, as each deploy does it, says what it changes besides what was asked for; and subscribing that has to wait says
//! what it waits for.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use harness::{Cluster, Database, Receiver, Setup, eventually};

fn stage() -> (Cluster, Receiver) {
    let cluster = Cluster::with_extension();
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY, total int)");
    (cluster, Receiver::start().unwrap())
}

/// The notices of a statement: message, detail and hint.
type Notices = Arc<Mutex<Vec<[String; 3]>>>;

fn notices_of(database: &Database, sql: &str) -> Vec<[String; 3]> {
    let (mut client, heard) = noticing(database);
    client.batch_execute(sql).unwrap_or_else(|error| panic!("{error:?}\nin: {sql}"));
    drop(client);
    let heard = heard.lock().unwrap();
    heard.clone()
}

fn noticing(database: &Database) -> (postgres::Client, Notices) {
    let heard = Notices::default();
    let notices = Arc::clone(&heard);
    let client = database.connect_noticing(move |notice| {
        let text = |part: Option<&str>| part.unwrap_or_default().to_owned();
        let notice = [notice.message().to_owned(), text(notice.detail()), text(notice.hint())];
        notices.lock().unwrap().push(notice);
    });
    (client, heard)
}

fn subscribe(receiver: &Receiver, rest: &str) -> String {
    format!("SELECT pgwh.subscribe('{}', name => 's', tables => '{{public.t}}'{rest})", receiver.url("/s"))
}

#[test]
fn what_goes_back_to_its_default_is_listed() {
    let (cluster, receiver) = stage();
    let all = ", event_types => '{insert}', filter => 'total > 100', changed => '{total}', columns => '{total}', format => 'pgwh',
         headers => '{\"x-tenant\": \"7\", \"authorization\": \"Bearer secret-token\"}', batch_size => 10, batch_wait => '1 s',
         key_columns => '{id}', timeout => '3 s', max_in_flight => 2, rate_limit => 9, retry_schedule => '{1 s}',
         retention => '2 days', compress => 'gzip', origin => 'local'";
    assert_eq!(notices_of(&cluster, &subscribe(&receiver, all)), Vec::<[String; 3]>::new());
    // The same again changes nothing.
    assert_eq!(notices_of(&cluster, &subscribe(&receiver, all)), Vec::<[String; 3]>::new());
    let notices = notices_of(&cluster, &subscribe(&receiver, ", batch_size => 20"));
    assert_eq!(notices.len(), 1, "{notices:?}");
    assert_eq!(
        notices[0][0],
        "settings of subscription \"s\" go back to their defaults: batch_wait, changed, columns, compress, event_types, filter, \
         headers, key_columns, max_in_flight, origin, rate_limit, retention, retry_schedule, timeout"
    );
    assert!(
        notices[0][1].contains("filter was total > 100; headers was authorization, x-tenant;"),
        "{notices:?}"
    );
    assert!(!format!("{notices:?}").contains("secret-token"), "{notices:?}");
    assert!(notices[0][2].contains("an UPDATE of pgwh.subscriptions changes single settings"), "{notices:?}");
    let again = notices_of(&cluster, &subscribe(&receiver, ""));
    assert_eq!(again.len(), 1, "{again:?}");
    assert!(again[0][0].ends_with("defaults: batch_size"), "{again:?}");
    assert_eq!(notices_of(&cluster, &subscribe(&receiver, "")), Vec::<[String; 3]>::new());
}

#[test]
fn a_disabled_subscription_that_is_enabled_again_is_named() {
    let (cluster, receiver) = stage();
    cluster.sql(&subscribe(&receiver, ""));
    cluster.sql("UPDATE pgwh.subscriptions SET enabled = false");
    let notices = notices_of(&cluster, &subscribe(&receiver, ""));
    assert_eq!(notices.len(), 1, "{notices:?}");
    assert_eq!(notices[0][0], "subscription \"s\" was disabled and is enabled again");
    assert_eq!(notices[0][2], "To leave it disabled: enabled => false");
    cluster.sql("UPDATE pgwh.subscriptions SET enabled = false");
    assert_eq!(notices_of(&cluster, &subscribe(&receiver, ", enabled => false")), Vec::<[String; 3]>::new());
    cluster.sql("SELECT pgwh.pause('s')");
    let notices = notices_of(&cluster, &subscribe(&receiver, ", enabled => false"));
    assert_eq!(notices[0][0], "subscription \"s\" is still paused");
    assert!(notices[0][2].contains("SELECT pgwh.resume('s');"), "{notices:?}");
}

#[test]
fn a_transaction_that_holds_up_the_first_subscribe_is_named() {
    let cluster = Setup::new().start();
    cluster.sql("CREATE DATABASE elsewhere; ");
    let other = cluster.database("elsewhere");
    other.sql("CREATE TABLE u (id int)");
    let mut holder = other.connect();
    holder.batch_execute("BEGIN; INSERT INTO u VALUES (1)").unwrap();
    let pid: i32 = holder.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
    cluster.sql("CREATE EXTENSION pgstream_hooks; CREATE TABLE t (id int PRIMARY KEY)");
    let receiver = Receiver::start().unwrap();
    let (mut client, heard) = noticing(&cluster);
    let call = subscribe(&receiver, "");
    let waiting = std::thread::spawn(move || client.batch_execute(&call));
    // While the call waits, not after it.
    eventually("a notice", || (!heard.lock().unwrap().is_empty()).then_some(()));
    assert!(!waiting.is_finished());
    let notices = heard.lock().unwrap().clone();
    assert!(
        notices[0][1]
            .contains(&format!("process {pid} (postgres, idle in transaction) in database elsewhere")),
        "{notices:?}"
    );
    assert!(notices[0][2].contains(&format!("SELECT pg_terminate_backend({pid});")), "{notices:?}");
    holder.batch_execute("COMMIT").unwrap();
    waiting.join().unwrap().unwrap();
    assert_eq!(heard.lock().unwrap().len(), 1);
}

#[test]
fn a_prepared_transaction_that_holds_up_subscribe_is_named() {
    let cluster = Setup::new().set("max_prepared_transactions = 5").start();
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY)");
    cluster.sql("BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'xa-9'");
    cluster.sql("CREATE EXTENSION pgstream_hooks");
    let receiver = Receiver::start().unwrap();
    let (mut client, heard) = noticing(&cluster);
    let call = subscribe(&receiver, "");
    let waiting = std::thread::spawn(move || client.batch_execute(&call));
    eventually("a notice", || (!heard.lock().unwrap().is_empty()).then_some(()));
    let notices = heard.lock().unwrap().clone();
    assert!(notices[0][1].contains("prepared transaction 'xa-9' in database postgres"), "{notices:?}");
    assert!(notices[0][2].contains("ROLLBACK PREPARED 'xa-9'"), "{notices:?}");
    cluster.sql("COMMIT PREPARED 'xa-9'");
    waiting.join().unwrap().unwrap();
}

#[test]
fn subscribe_fails_soon_when_the_launcher_has_no_process() {
    let cluster = Setup::new().set("max_worker_processes = 0").set("max_parallel_workers = 0").start();
    cluster.sql("CREATE EXTENSION pgstream_hooks; CREATE TABLE t (id int PRIMARY KEY)");
    let receiver = Receiver::start().unwrap();
    let begin = Instant::now();
    let refusal = cluster.refused(&subscribe(&receiver, ""));
    assert_eq!(refusal.code, "53400");
    assert!(refusal.hint.contains("ALTER SYSTEM SET max_worker_processes"), "{refusal:?}");
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
}
