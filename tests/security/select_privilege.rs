//! A subscription sends only what its owner may read.

use harness::{Cluster, Database, Event, Receiver, Refusal, Reply, Request, events_of, eventually};

use crate::roles::{grant, stage_with_roles};

/// What a receiver got of a subscription, by the ids of the rows, in order.
fn ids(receiver: &Receiver, name: &str) -> Vec<i64> {
    let mut ids: Vec<i64> =
        events_of(receiver, name).iter().filter_map(|event| event["key"]["id"].as_i64()).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// Waits until the decoder has seen all that was committed, by a subscription that gets everything.
fn caught_up(cluster: &Cluster) {
    assert_eq!(cluster.value("SELECT pgwh.wait('everything', '60 s')"), "t");
}

fn subscribe(role: &Database, url: &str, name: &str, rest: &str) -> Result<(), Refusal> {
    let sql = format!("SELECT pgwh.subscribe('{url}', name => '{name}', {rest})");
    role.try_sql(&sql).map_err(|error| error.as_db_error().expect("refused").into())
}

#[test]
fn one_refusal_names_all_tables_that_may_not_be_read() {
    let (cluster, receiver) = stage_with_roles(&["ann"]);
    cluster.sql(
        "CREATE SCHEMA closed;
         CREATE TABLE closed.t (id int PRIMARY KEY);
         CREATE TABLE closed.u (id int PRIMARY KEY);
         GRANT SELECT ON closed.t, closed.u TO ann;
         CREATE TABLE open (id int PRIMARY KEY);
         GRANT SELECT ON open TO ann;
         CREATE TABLE a (id int PRIMARY KEY);
         CREATE TABLE b (id int PRIMARY KEY, hidden text);
         GRANT SELECT (id) ON b TO ann;
         CREATE TABLE parted (id int PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE TABLE part_1 PARTITION OF parted FOR VALUES FROM (0) TO (10);
         CREATE TABLE part_2 PARTITION OF parted FOR VALUES FROM (10) TO (20)",
    );
    let (ann, url) = (cluster.as_role("ann"), receiver.url("/refused"));
    for (wanted, message) in [
        ("tables => '{closed.t, closed.u}'", "permission denied for tables closed.t, closed.u"),
        (
            "tables => '{b, open, a, parted}'",
            "permission denied for tables public.a, public.b, public.parted",
        ),
    ] {
        let refused = subscribe(&ann, &url, "s", wanted).unwrap_err();
        assert_eq!((refused.code.as_str(), refused.message.as_str()), ("42501", message), "{refused:?}");
        assert!(
            refused.detail.starts_with("The subscription cannot have them: its owner ann "),
            "{refused:?}"
        );
        cluster.sql(&refused.hint);
        subscribe(&ann, &url, "s", wanted).unwrap_or_else(|refused| panic!("{wanted}: {refused:?}"));
    }
    // Of very many, the first: what is named comes before what a wildcard finds.
    cluster.sql(
        "DO $$ BEGIN FOR n IN 1..40 LOOP EXECUTE format('CREATE TABLE many_%s (id int PRIMARY KEY)', n); END LOOP; END $$;
         REVOKE ALL ON a FROM ann",
    );
    let refused = subscribe(&ann, &url, "many", "tables => '{public.many_*, a}'").unwrap_err();
    assert!(
        refused.message.starts_with("permission denied for tables public.a, public.many_1, "),
        "{refused:?}"
    );
    assert_eq!(refused.hint.matches("GRANT SELECT").count(), 10, "{refused:?}");
    cluster.sql(&refused.hint);
}

#[test]
fn subscribe_needs_select_and_its_hint_grants_it() {
    let (cluster, receiver) = stage_with_roles(&["ann"]);
    cluster.sql(
        "CREATE SCHEMA closed;
         CREATE TABLE closed.t (id int PRIMARY KEY);
         CREATE TABLE open (id int PRIMARY KEY, note text);
         GRANT SELECT ON open, closed.t TO ann;
         CREATE TABLE secret (id int PRIMARY KEY, note text);
         CREATE TABLE \"Odd 'name\" (id int PRIMARY KEY);
         CREATE TABLE parted (id int PRIMARY KEY, note text) PARTITION BY RANGE (id);
         CREATE TABLE part PARTITION OF parted FOR VALUES FROM (0) TO (10);
         CREATE TABLE columns (id int PRIMARY KEY, shown text, hidden text);
         ALTER TABLE columns REPLICA IDENTITY FULL;
         GRANT SELECT (id, shown) ON columns TO ann;
         CREATE TABLE guarded (id int PRIMARY KEY, whose text);
         GRANT SELECT ON guarded TO ann;
         ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
         CREATE POLICY own ON guarded USING (whose = current_user);
         CREATE VIEW seen AS SELECT * FROM secret;
         GRANT SELECT ON seen TO ann;",
    );
    let ann = cluster.as_role("ann");
    let url = receiver.url("/refused");
    let mut number = 0;
    for (wanted, grant) in [
        ("tables => '{secret}'", "GRANT SELECT ON public.secret TO ann;"),
        ("tables => '{open, secret}'", "GRANT SELECT ON public.secret TO ann;"),
        ("schema => 'public', table_name => 'secret'", "GRANT SELECT ON public.secret TO ann;"),
        ("tables => '{\"public.\\\"Odd ''name\\\"\"}'", "GRANT SELECT ON public.\"Odd 'name\" TO ann;"),
        ("tables => '{public.sec*}'", "GRANT SELECT ON public.secret TO ann;"),
        ("tables => '{parted}'", "GRANT SELECT ON public.parted TO ann;"),
        ("tables => '{part}'", "GRANT SELECT ON public.part TO ann;"),
        ("tables => '{closed.t}'", "GRANT USAGE ON SCHEMA closed TO ann;"),
        ("tables => '{columns}'", "GRANT SELECT (hidden) ON public.columns TO ann;"),
        ("tables => '{columns}', columns => '{hidden}'", "GRANT SELECT (hidden) ON public.columns TO ann;"),
        (
            "tables => '{columns}', exclude_columns => '{shown}'",
            "GRANT SELECT (hidden) ON public.columns TO ann;",
        ),
        (
            "tables => '{columns}', columns => '{shown}', filter => 'length(hidden) > 3'",
            "GRANT SELECT (hidden) ON public.columns TO ann;",
        ),
        (
            "tables => '{columns}', columns => '{shown}', filter => 'OLD.hidden IS NULL', event_types => '{update}'",
            "GRANT SELECT (hidden) ON public.columns TO ann;",
        ),
        (
            "tables => '{columns}', columns => '{shown}', changed => '{hidden}'",
            "GRANT SELECT (hidden) ON public.columns TO ann;",
        ),
        (
            "tables => '{columns}', columns => '{shown}', key_columns => '{hidden}'",
            "GRANT SELECT (hidden) ON public.columns TO ann;",
        ),
        ("tables => '{guarded}'", "ALTER ROLE ann BYPASSRLS;"),
    ] {
        number += 1;
        let name = format!("s{number}");
        let refused = subscribe(&ann, &url, &name, wanted).expect_err(wanted);
        assert_eq!(refused.code, "42501", "{wanted}: {refused:?}");
        assert!(refused.hint.ends_with(grant), "{wanted}: {refused:?}");
        // What the HINT says makes it possible.
        cluster.sql(grant);
        subscribe(&ann, &url, &name, wanted).unwrap_or_else(|refused| panic!("{wanted}: {refused:?}"));
        ann.sql(&format!("SELECT pgwh.unsubscribe('{name}')"));
        let take = match grant.strip_prefix("GRANT ").map(|rest| rest.replace(" TO ann", " FROM ann")) {
            Some(rest) => format!("REVOKE {rest}"),
            None => "ALTER ROLE ann NOBYPASSRLS".to_owned(),
        };
        cluster.sql(&take);
    }
    for allowed in [
        "tables => '{open}'",
        "tables => '{columns}', columns => '{shown}', filter => 'shown <> $$x$$', changed => '{shown}'",
        "tables => '{columns}', exclude_columns => '{hidden}'",
        "tables => '{nowhere.*}'",
        "event_types => '{ddl}'",
    ] {
        subscribe(&ann, &url, "allowed", allowed).unwrap_or_else(|refused| panic!("{allowed}: {refused:?}"));
        ann.sql("SELECT pgwh.unsubscribe('allowed')");
    }
    // Other applications' messages stand in the log, which is not for everybody to read.
    let refused = subscribe(&ann, &url, "messages", "event_types => '{message:outbox}'").unwrap_err();
    assert_eq!((refused.code.as_str(), refused.hint.contains("REPLICATION")), ("42501", true), "{refused:?}");
    cluster.sql("ALTER ROLE ann REPLICATION");
    ann.subscribe(&receiver, "messages", "event_types => '{message:outbox, message}'");
    cluster.sql("SELECT pg_logical_emit_message(true, 'outbox', '1')");
    cluster.sql("ALTER ROLE ann NOREPLICATION");
    cluster.sql("SELECT pg_logical_emit_message(true, 'outbox', '2'), pgwh.emit('mine', '3')");
    let mut told = cluster.delivered(&receiver, "messages");
    told.sort_by_key(Event::place);
    let told: Vec<String> = told.iter().map(|event| event["payload"].to_string()).collect();
    assert_eq!(told, ["1", "3"]);
    ann.sql("SELECT pgwh.unsubscribe('messages')");
    // By plain SQL, too; a change of something else is none of a right's business.
    subscribe(&ann, &url, "s", "tables => '{open}'").unwrap();
    for attempt in [
        "UPDATE pgwh.subscriptions SET tables = '{public.secret}'",
        "UPDATE pgwh.subscriptions SET tables = '{*.*}'",
        "INSERT INTO pgwh.subscriptions (name, url, tables, event_types, headers, timeout, max_in_flight)
         VALUES ('plain', 'http://127.0.0.1:1/', '{secret}', '{insert}', '{}', '1 s', 1)",
    ] {
        assert_eq!(ann.refused(attempt).code, "42501", "{attempt}");
    }
    // A view is no table, whoever may read it.
    assert_eq!(subscribe(&ann, &url, "view", "tables => '{seen}'").unwrap_err().code, "42809");
    cluster.sql("REVOKE SELECT ON open FROM ann");
    ann.sql("SELECT pgwh.pause('s')");
    ann.sql("SELECT pgwh.resume('s')");
    assert_eq!(ann.refused("UPDATE pgwh.subscriptions SET columns = '{note}'").code, "42501");
    // Judged is the owner, not who writes the row.
    cluster.sql("CREATE ROLE zoe; GRANT SELECT ON open TO zoe; GRANT zoe TO ann");
    ann.sql("UPDATE pgwh.subscriptions SET owner = 'zoe'");
    assert_eq!(
        cluster.refused("UPDATE pgwh.subscriptions SET owner = 'nobody'").code,
        "42501",
        "a role that is not there"
    );
}

#[test]
fn no_row_is_sent_that_its_owner_could_not_read_at_commit() {
    let (cluster, receiver) = stage_with_roles(&["ann"]);
    cluster.sql(
        "CREATE SCHEMA app; GRANT USAGE ON SCHEMA app TO ann;
         CREATE TABLE app.t (id int PRIMARY KEY, note text, extra text);
         ALTER TABLE app.t REPLICA IDENTITY FULL;
         CREATE ROLE readers; CREATE ROLE other",
    );
    cluster.subscribe(&receiver, "everything", "");
    let ann = cluster.as_role("ann");
    let mut next = 0;
    for (give, take, terms) in [
        ("GRANT SELECT ON app.t TO ann", "REVOKE SELECT ON app.t FROM ann", ""),
        ("GRANT SELECT ON app.t TO PUBLIC", "REVOKE SELECT ON app.t FROM PUBLIC", ""),
        ("GRANT SELECT ON app.t TO readers; GRANT readers TO ann", "REVOKE readers FROM ann", ""),
        ("GRANT readers TO ann; GRANT SELECT ON app.t TO readers", "REVOKE SELECT ON app.t FROM readers", ""),
        (
            "GRANT SELECT ON app.t TO ann; GRANT USAGE ON SCHEMA app TO ann",
            "REVOKE USAGE ON SCHEMA app FROM ann",
            "",
        ),
        ("GRANT SELECT ON app.t TO ann; GRANT USAGE ON SCHEMA app TO ann", "DROP OWNED BY ann", ""),
        ("ALTER TABLE app.t OWNER TO ann", "ALTER TABLE app.t OWNER TO other", ""),
        ("ALTER ROLE ann SUPERUSER", "ALTER ROLE ann NOSUPERUSER", ""),
        (
            "GRANT SELECT ON app.t TO ann; ALTER TABLE app.t DISABLE ROW LEVEL SECURITY",
            "ALTER TABLE app.t ENABLE ROW LEVEL SECURITY",
            "",
        ),
        (
            "GRANT SELECT ON app.t TO ann; ALTER TABLE app.t ENABLE ROW LEVEL SECURITY; ALTER ROLE ann BYPASSRLS",
            "ALTER ROLE ann NOBYPASSRLS",
            "",
        ),
        (
            "ALTER TABLE app.t DISABLE ROW LEVEL SECURITY; GRANT SELECT (id, note) ON app.t TO ann",
            "REVOKE SELECT (note) ON app.t FROM ann",
            ", columns => '{note}'",
        ),
        (
            "GRANT SELECT (id, note, extra) ON app.t TO ann",
            "REVOKE SELECT (extra) ON app.t FROM ann",
            ", columns => '{note}', filter => 'extra IS NULL'",
        ),
    ] {
        // Rights that earlier ones have left would do.
        cluster.sql("REVOKE ALL ON app.t FROM ann, readers, PUBLIC; GRANT USAGE ON SCHEMA app TO ann");
        grant(&cluster, "ann");
        cluster.sql(give);
        ann.subscribe(&receiver, "s", &format!("tables => '{{app.t}}'{terms}"));
        let row = |id: i64| cluster.sql(&format!("INSERT INTO app.t (id, note) VALUES ({id}, 'x')"));
        let (before, without, again) = (next + 1, next + 2, next + 3);
        next += 3;
        row(before);
        caught_up(&cluster);
        eventually(&format!("sent before: {take}"), || (ids(&receiver, "s") == [before]).then_some(()));
        cluster.sql(take);
        row(without);
        assert_eq!(cluster.status("s", "state"), "error", "{take}");
        let (reason, next_step) = (cluster.status("s", "reason"), cluster.status("s", "next_step"));
        assert!(reason.contains("app.t") && !next_step.is_empty(), "{take}: {reason}; {next_step}");
        assert!(
            cluster
                .value("SELECT detail FROM pgwh.health() WHERE check_name = 'subscriptions valid'")
                .contains("app.t"),
            "{take}"
        );
        cluster.sql(give);
        grant(&cluster, "ann");
        assert_eq!(cluster.status("s", "state"), "active", "{give}");
        row(again);
        caught_up(&cluster);
        eventually(&format!("sent again: {give}"), || ids(&receiver, "s").contains(&again).then_some(()));
        assert_eq!(ids(&receiver, "s"), [before, again], "{take}");
        cluster.sql("SELECT pgwh.unsubscribe('s'); ALTER TABLE app.t OWNER TO postgres; ALTER ROLE ann NOSUPERUSER NOBYPASSRLS");
        receiver.clear();
    }
}

#[test]
fn pending_events_are_withheld_once_the_owner_may_not_read() {
    let (cluster, receiver) = stage_with_roles(&["ann"]);
    cluster.sql(
        "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE other (id int PRIMARY KEY); GRANT SELECT ON t, other TO ann",
    );
    let ann = cluster.as_role("ann");
    receiver.behave_at("/s", |_: &Request| Reply::status(503));
    ann.subscribe(
        &receiver,
        "s",
        "tables => '{t, other}', retry_schedule => array_fill(interval '300 ms', '{100}')",
    );
    cluster.sql("INSERT INTO t VALUES (1)");
    cluster.wait_status("s", "retrying = 1");
    cluster.sql("REVOKE SELECT ON t FROM ann");
    receiver.clear();
    receiver.behave_at("/s", |_: &Request| Reply::status(200));
    cluster.wait_true(
        "SELECT count(*) > 0 FROM pgwh.attempts WHERE error_class = 'denied' AND error LIKE '%public.t%'",
    );
    cluster.sql("INSERT INTO other VALUES (7)");
    eventually("the other table's", || (ids(&receiver, "s") == [7]).then_some(()));
    // What waits in the journal of the paused and what is asked for again, no more than that.
    cluster.sql("GRANT SELECT ON t TO ann");
    ann.sql("SELECT pgwh.resume('s')");
    eventually("mended", || (ids(&receiver, "s") == [1, 7]).then_some(()));
    cluster.sql("REVOKE SELECT ON t FROM ann");
    receiver.clear();
    ann.sql("SELECT pgwh.replay('s', now() - interval '1 hour')");
    ann.sql("UPDATE pgwh.subscriptions SET retry_schedule = '{}'");
    eventually("the other table's again", || (ids(&receiver, "s") == [7]).then_some(()));
    cluster.wait_true("SELECT state = 'done' AND done = total FROM pgwh.replays");
    assert_eq!(ids(&receiver, "s"), [7]);
    assert_eq!(ann.refused("SELECT pgwh.backfill('s', 't')").code, "42501");
    assert_eq!(
        ann.value("SELECT count(*) FROM pgwh.events WHERE table_name = 't' AND (data IS NOT NULL OR key IS NOT NULL)"),
        "0"
    );
}

#[test]
fn a_wildcard_leaves_out_tables_its_owner_may_not_read() {
    let (cluster, receiver) = stage_with_roles(&["ann"]);
    cluster.sql("CREATE SCHEMA app; GRANT USAGE ON SCHEMA app TO ann; CREATE TABLE app.t (id int PRIMARY KEY); GRANT SELECT ON app.t TO ann");
    cluster.subscribe(&receiver, "everything", "");
    cluster.as_role("ann").subscribe(&receiver, "s", "tables => '{app.*}'");
    cluster.sql("CREATE TABLE app.later (id int PRIMARY KEY)");
    cluster.sql("INSERT INTO app.later VALUES (1)");
    cluster.sql("INSERT INTO app.t VALUES (2)");
    assert_eq!(cluster.status("s", "state"), "active");
    cluster.sql("INSERT INTO app.later VALUES (4)");
    caught_up(&cluster);
    assert_eq!(
        cluster.log().matches("subscriptions of role \"ann\" get nothing of table app.later").count(),
        1
    );
    assert!(cluster.status("s", "reason").contains("app.later"));
    assert_eq!(cluster.status("s", "next_step"), "GRANT SELECT ON app.later TO ann;");
    cluster.sql(&cluster.status("s", "next_step"));
    cluster.sql("INSERT INTO app.later VALUES (3)");
    caught_up(&cluster);
    eventually("what may be read", || (ids(&receiver, "s") == [2, 3]).then_some(()));
    assert_eq!(cluster.status("s", "reason"), "");
}
