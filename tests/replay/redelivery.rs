//! One delivery again, or given up, or forgotten; and what became of a row.

use harness::{Event, PATIENCE, Reply, Request, Script, events_of, eventually};
use serde_json::json;

use crate::{finished, insert, now, stage};

#[test]
fn a_delivery_can_be_made_again_with_what_followed_it() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "");
    cluster.each(&["INSERT INTO t VALUES (1), (2)", "UPDATE t SET n = 1", "UPDATE t SET n = 2 WHERE id = 1"]);
    let first = cluster.delivered(&receiver, "s");
    assert_eq!(first.len(), 5);
    let event = first.iter().find(|event| event["key"]["id"] == 1 && event["record"]["n"] == 1).unwrap();
    cluster.wait_true("SELECT count(*) = 5 FROM pgwh.deliveries WHERE state = 'delivered'");
    let delivery =
        cluster.value(&format!("SELECT id FROM pgwh.deliveries WHERE event_id = '{}'", event.id()));
    receiver.clear();
    cluster.sql(&format!("SELECT pgwh.redeliver({delivery})"));
    receiver.wait_for(2, PATIENCE).unwrap();
    cluster.delivered(&receiver, "s");
    let again = events_of(&receiver, "s");
    let versions: Vec<_> = again.iter().map(|e| (e["key"]["id"].clone(), e["record"]["n"].clone())).collect();
    assert_eq!(versions, [(json!(1), json!(1)), (json!(1), json!(2))], "the receiver does not end stale");
    assert_eq!(again[0].id(), event.id());
    // And so can the delivery by which it came again.
    let last = "SELECT max(id) FROM pgwh.deliveries WHERE state = 'delivered'";
    let made = |count| {
        cluster
            .wait_true(&format!("SELECT count(*) = {count} FROM pgwh.deliveries WHERE state = 'delivered'"))
    };
    made(7);
    receiver.clear();
    cluster.sql(&format!("SELECT pgwh.redeliver(({last}))"));
    receiver.wait_for(1, PATIENCE).unwrap();
    made(8);
    let third = events_of(&receiver, "s");
    assert_eq!(third.iter().map(Event::id).collect::<Vec<_>>(), [again[1].id()]);
    let refusal = cluster.refused("SELECT pgwh.redeliver(999999999)");
    assert!(refusal.detail.contains("999999999") && !refusal.hint.is_empty(), "{refusal:?}");
}

#[test]
fn a_dead_letter_can_be_delivered_after_all() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "retry_schedule => '{50ms}'");
    receiver.behave(Script::always(Reply::status(400)));
    cluster.sql("INSERT INTO t VALUES (1)");
    cluster.wait_true("SELECT count(*) = 1 FROM pgwh.dead_letters");
    receiver.behave(Script::default());
    receiver.clear();
    cluster.sql("SELECT pgwh.redeliver(id) FROM pgwh.deliveries WHERE state = 'dead'");
    receiver.wait_for(1, PATIENCE).unwrap();
    cluster.wait_true("SELECT count(*) = 0 FROM pgwh.dead_letters");
    cluster.wait_true("SELECT bool_or(state = 'delivered') FROM pgwh.deliveries");
}

#[test]
fn dead_letters_delivered_in_a_batch_are_dead_no_more() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "batch_size => 10, max_in_flight => 1, retry_schedule => '{50ms}'");
    let since = now(&cluster);
    receiver.behave(|request: &Request| {
        let fails = request.events().iter().any(|event| event["data"]["key"]["id"] != 99);
        Reply::status(if fails { 400 } else { 200 })
    });
    insert(&cluster, "t", 1, 4);
    // The endpoint is not failing as a whole.
    insert(&cluster, "t", 99, 99);
    let letters = |count: u32| {
        cluster.wait_true(&format!(
            "SELECT count(DISTINCT event_id) = {count} AND count(*) = {count} FROM pgwh.dead_letters"
        ));
    };
    letters(4);
    let again = || {
        receiver.clear();
        let replay = format!("SELECT pgwh.replay('s', since => '{since}'::timestamptz, \"only\" => 'dead')");
        finished(&cluster, &cluster.value(&replay));
        receiver.requests().iter().map(|request| request.events().len()).max()
    };
    // Who dies again is one dead letter, not two.
    again();
    cluster.wait_true("SELECT count(*) = 8 FROM pgwh.deliveries WHERE state = 'dead'");
    letters(4);
    receiver.behave(Script::default());
    assert!(again() > Some(1));
    letters(0);
    assert_eq!(again(), None);
}

#[test]
fn a_skipped_delivery_is_given_up_now_and_its_row_goes_on() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "retry_schedule => '{1h,1h}'");
    receiver.behave(|request: &Request| {
        Reply::status(if request.events()[0]["data"]["action"] == "insert" { 500 } else { 200 })
    });
    cluster.each(&["INSERT INTO t VALUES (1)", "UPDATE t SET n = 1"]);
    cluster.wait_status("s", "(pending, retrying) = (2, 1)");
    let delivery = eventually("a retrying delivery", || {
        Some(cluster.value("SELECT id FROM pgwh.deliveries WHERE state = 'retrying'"))
            .filter(|id| !id.is_empty())
    });
    cluster.sql(&format!("SELECT pgwh.skip({delivery})"));
    cluster.wait_status("s", "(delivered, dead, pending) = (1, 1, 0)");
    let last = events_of(&receiver, "s").last().unwrap().text("action");
    assert_eq!(last, "update");
    cluster.wait_true(&format!("SELECT state = 'dead' FROM pgwh.deliveries WHERE id = {delivery}"));
    cluster.wait_true("SELECT to_jsonb(l)::text LIKE '%skip%' FROM pgwh.dead_letters l");
    let refusal = cluster.refused("SELECT pgwh.skip(999999999)");
    assert!(!refusal.hint.is_empty(), "{refusal:?}");
}

#[test]
fn why_tells_what_became_of_a_rows_changes() {
    let (cluster, receiver) = stage();
    receiver.behave(Script::fail_key(json!({"id": 2}), 500));
    cluster.subscribe(
        &receiver,
        "s",
        "tables => '{public.t}', event_types => '{insert,update}', retry_schedule => '{1h}'",
    );
    cluster.each(&["INSERT INTO t VALUES (1), (2)", "UPDATE t SET n = 1"]);
    cluster.wait_status("s", "(delivered, pending) = (2, 2)");
    let why = |table: &str, id: u32| {
        let rows =
            cluster.rows(&format!("SELECT to_jsonb(w) FROM pgwh.why('{table}', '{{\"id\": {id}}}') w"));
        rows.into_iter().flatten().flatten().collect::<Vec<_>>().join("\n")
    };
    eventually("delivered", || why("public.t", 1).contains("delivered").then_some(()));
    eventually("blocked by a failure", || {
        let told = why("public.t", 2);
        (told.contains("retrying") || told.contains("blocked") || told.contains("behind")).then_some(())
    });
    cluster.subscribe(&receiver, "f", "tables => '{public.t}', event_types => '{insert}', filter => 'n > 5'");
    cluster.sql("INSERT INTO t VALUES (3, 4)");
    eventually("filtered", || why("public.t", 3).contains("not wanted: filter n > 5").then_some(()));
}

#[test]
fn why_reports_redeliveries_and_misses() {
    let (cluster, receiver) = stage();
    cluster.subscribe(&receiver, "s", "tables => '{public.t}', retry_schedule => '{}'");
    cluster.subscribe(&receiver, "other", "tables => '{public.t}'");
    let why = |id: u32| {
        cluster.value(&format!(
            "SELECT string_agg(fate, ' ') FROM pgwh.why('t', '{{\"id\": {id}}}') WHERE subscription = 's'"
        ))
    };
    let told = |id, fate: &str| eventually(fate, || (why(id) == fate).then_some(()));
    receiver.behave_at("/s", Script::fail_key(json!({"id": 1}), 500));
    cluster.sql("INSERT INTO t VALUES (1)");
    told(1, "dead");
    receiver.behave_at("/s", Script::default());
    let replay = cluster.value("SELECT pgwh.redeliver(id) FROM pgwh.dead_letters");
    told(1, &format!("delivered by replay {replay}"));
    let disabled =
        "UPDATE pgwh.subscriptions SET enabled = false, disabled_reason = 'for a while' WHERE name = 's'";
    cluster.each(&[disabled, "INSERT INTO t VALUES (2)"]);
    cluster.wait_status("other", "delivered = 2");
    cluster.sql("UPDATE pgwh.subscriptions SET enabled = true WHERE name = 's'");
    told(2, "missed: for a while");
}

#[test]
fn what_is_forgotten_is_nowhere_in_the_journal() {
    let (cluster, receiver) = stage();
    cluster.sql("CREATE TABLE people (id int PRIMARY KEY, name text)");
    cluster.subscribe(&receiver, "s", "");
    cluster.sql("INSERT INTO people VALUES (1, 'Ada Lovelace'), (2, 'Grace Hopper')");
    cluster.delivered(&receiver, "s");
    cluster.wait_status("s", "delivered = 2");
    cluster.wait_true("SELECT count(*) = 2 FROM pgwh.deliveries WHERE state = 'delivered'");
    cluster.sql("SELECT pgwh.forget('public.people', '{\"id\": 1}')");
    cluster.wait_true(
        "SELECT count(*) = 0 FROM pgwh.events WHERE data::text LIKE '%Ada%' OR key = '{\"id\": 1}'",
    );
    cluster.wait_true("SELECT count(*) = 1 FROM pgwh.events WHERE data::text LIKE '%Grace%'");
    // A replay does not bring it back.
    receiver.clear();
    let id = cluster.value("SELECT pgwh.replay('s', since => now() - interval '1 minute')");
    finished(&cluster, &id);
    assert!(events_of(&receiver, "s").iter().all(|event| event["key"]["id"] != 1));
}
