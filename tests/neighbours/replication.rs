//! Beside Postgres' own logical replication: the tables of `pgwh` hold what this server wrote, and other readers of its log
//! get nothing of the journal.

use harness::{Cluster, Receiver, Script, Server, Setup, Stop, eventually};

/// Two servers with the extension, each with subscriptions of its own, and a table for both.
struct Pair {
    publisher: Cluster,
    subscriber: Cluster,
    receiver: Receiver,
}

const PENDING: usize = 100;

fn pair() -> Pair {
    let receiver = Receiver::start().unwrap();
    let publisher = Setup::new().set("pgwh.retention = '1s'").start();
    let subscriber = Cluster::start();
    for (cluster, side) in [(&publisher, "publisher"), (&subscriber, "subscriber")] {
        cluster.sql("CREATE EXTENSION pgstream_hooks");
        cluster.wait_true("SELECT ok FROM pgwh.health() WHERE check_name = 'slot present and valid'");
        cluster.sql("CREATE TABLE t (id int PRIMARY KEY, note text)");
        cluster.subscribe(&receiver, &format!("{side}-first"), "tables => '{public.t}'");
        cluster.subscribe(&receiver, &format!("{side}-second"), "tables => '{public.t}'");
    }
    // What the subscriber must not lose.
    subscriber.sql("CREATE TABLE own (id int PRIMARY KEY)");
    subscriber.subscribe(&receiver, "pending", "tables => '{public.own}'");
    subscriber.sql("SELECT pgwh.pause('pending')");
    subscriber.sql(&format!("INSERT INTO own SELECT n FROM generate_series(1, {PENDING}) n"));
    subscriber.sql("UPDATE pgwh.subscriptions SET enabled = false WHERE name = 'subscriber-second'");
    subscriber.wait_true("SELECT count(*) = 1 FROM pgwh.gaps");
    subscriber.wait_status("pending", &format!("pending = {PENDING}"));
    Pair { publisher, subscriber, receiver }
}

/// Has one server replicate what the other publishes.
fn subscribe(publisher: &Cluster, subscriber: &Cluster) {
    subscriber.sql(&format!(
        "CREATE SUBSCRIPTION s CONNECTION 'host={} user=postgres dbname=postgres' PUBLICATION p",
        publisher.host().display()
    ));
}

impl Pair {
    /// Has the subscriber replicate all that the publisher has.
    fn replicate(&self) {
        self.publisher.sql("CREATE PUBLICATION p FOR ALL TABLES");
        subscribe(&self.publisher, &self.subscriber);
        self.subscriber
            .wait_true("SELECT count(*) > 40 AND bool_and(srsubstate = 'r') FROM pg_subscription_rel");
    }

    /// Waits until the subscriber has what the publisher has committed so far.
    fn catch_up(&self) {
        let id = self.publisher.value("INSERT INTO t SELECT coalesce(max(id), 0) + 1 FROM t RETURNING id");
        self.subscriber.wait_true(&format!("SELECT count(*) = 1 FROM t WHERE id = {id}"));
    }

    /// All that the subscriber's tables say of what it is and whom it serves.
    fn state(&self) -> Vec<String> {
        [
            "pgwh_internal.installation",
            "pgwh.subscriptions",
            "pgwh.secrets",
            "pgwh_internal.message_key",
            "pgwh.gaps",
            "pgwh.replays",
            "pgwh_internal.backfill_requests",
        ]
        .into_iter()
        .map(|table| self.subscriber.value(&format!("SELECT json_agg(t ORDER BY t::text) FROM {table} t")))
        .collect()
    }
}

#[test]
fn a_replica_of_all_tables_keeps_its_own_state_and_events() {
    let pair = pair();
    let (before, publishers_key) =
        (pair.state(), pair.publisher.value("SELECT pgwh.secret('publisher-first')"));
    pair.publisher.sql("INSERT INTO t VALUES (1, 'copied')");
    pair.publisher.delivered(&pair.receiver, "publisher-first");
    pair.replicate();
    assert_eq!(pair.state(), before, "table synchronization brought nothing");

    // Each kind of change of each table that has any.
    pair.publisher.each(&[
        "UPDATE pgwh.subscriptions SET url = url || '/changed', rate_limit = 7",
        "UPDATE pgwh_internal.installation SET home = 'elsewhere'",
        "UPDATE pgwh_internal.installation SET home = pgwh_internal.home()",
        "SELECT pgwh.rotate_secret('publisher-first', '0')",
        "DELETE FROM pgwh.secrets WHERE subscription_id = 2",
        "SELECT pgwh.unsubscribe('publisher-second')",
        "DELETE FROM pgwh_internal.message_key",
        "INSERT INTO pgwh_internal.message_key DEFAULT VALUES",
        "INSERT INTO pgwh.gaps (subscription_id, from_lsn, reason) VALUES (1, '0/1', 'made up')",
    ]);
    // Slices of the publisher's journal are emptied, a whole round of them.
    let generation =
        || pair.publisher.value("SELECT max(generation) FROM pgwh_internal.slices").parse::<u64>().unwrap();
    let (end, mut id) = (generation() + 9, 1000);
    eventually("the publisher's journal went round", || {
        id += 1;
        pair.publisher.sql(&format!("INSERT INTO t VALUES ({id})"));
        (generation() >= end).then_some(())
    });
    pair.catch_up();
    assert_eq!(pair.state(), before);
    pair.subscriber.wait_status("pending", &format!("pending = {PENDING}"));

    pair.subscriber.restart(Stop::Immediate);
    pair.catch_up();
    assert_eq!(pair.state(), before);
    pair.subscriber.wait_status("pending", &format!("pending = {PENDING} AND delivered = 0"));
    pair.subscriber.sql("SELECT pgwh.resume('pending')");
    assert_eq!(pair.subscriber.delivered(&pair.receiver, "pending").len(), PENDING);
    // What was replicated is sent, once for the server where it was committed and once for the one where it was applied.
    assert!(!pair.subscriber.delivered(&pair.receiver, "subscriber-first").is_empty());
    let log = pair.subscriber.log();
    assert!(!log.contains(&publishers_key) && !log.contains("COPY secrets"), "{log}");
    assert_eq!(pair.subscriber.value("SELECT subenabled FROM pg_subscription"), "t");
}

#[test]
fn what_a_users_trigger_does_with_a_replicated_row_counts() {
    let pair = pair();
    pair.subscriber.each(&[
        "CREATE FUNCTION react() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF NEW.note = 'pause' THEN PERFORM pgwh.pause('subscriber-first'); END IF; RETURN NULL; END $$",
        "CREATE TRIGGER react AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION react()",
        "ALTER TABLE t ENABLE ALWAYS TRIGGER react",
    ]);
    pair.replicate();
    pair.publisher.sql("INSERT INTO t VALUES (1, 'pause')");
    pair.subscriber.wait_status("subscriber-first", "state = 'paused'");
}

#[test]
fn a_session_that_replays_an_origin_changes_nothing_of_ours() {
    let pair = pair();
    let before = pair.state();
    pair.subscriber.sql(
        "SELECT pg_replication_origin_create('elsewhere');
         SELECT pg_replication_origin_session_setup('elsewhere');
         SET session_replication_role = replica;
         UPDATE pgwh.subscriptions SET url = 'https://example.com/stolen';
         DELETE FROM pgwh.secrets;
         DELETE FROM pgwh.subscriptions;
         INSERT INTO pgwh.gaps (subscription_id, from_lsn, reason) VALUES (1, '0/1', 'made up');",
    );
    assert_eq!(pair.state(), before);
    // A call is no replay.
    pair.subscriber.sql(
        "SELECT pg_replication_origin_session_setup('elsewhere');
         SET session_replication_role = replica;
         SELECT pgwh.unsubscribe('subscriber-first');",
    );
    assert_eq!(
        pair.subscriber.value("SELECT count(*) FROM pgwh.subscriptions WHERE name LIKE '%first'"),
        "0"
    );
}

#[test]
fn a_restore_without_triggers_leaves_those_of_ours() {
    let pair = pair();
    let run = |program: &str, arguments: &[&str]| {
        let mut command = Server::get().command(program);
        let output = command
            .args(["-U", "postgres", "-h"])
            .arg(pair.subscriber.host())
            .args(["-d", pair.subscriber.name()])
            .args(arguments)
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{program}: {told}");
    };
    let archive = pair.subscriber.make_directory("archive").join("dump");
    let archive = archive.to_str().unwrap();
    run("pg_dump", &["-Fc", "--table", "pgwh*.*", "-f", archive]);
    let triggers = "SELECT json_agg((tgrelid, tgname, tgenabled) ORDER BY tgrelid, tgname) FROM pg_trigger";
    let (before, armed) = (pair.state(), pair.subscriber.value(triggers));
    let row = "SELECT id FROM pgwh.subscriptions WHERE name = 'subscriber-first'";
    let id = pair.subscriber.value(row);
    pair.subscriber.sql("SELECT pgwh.unsubscribe(name) FROM pgwh.subscriptions");
    run("pg_restore", &["--verbose", "--data-only", "--disable-triggers", archive]);
    assert_eq!(pair.subscriber.value(row), id);
    for command in [
        "ALTER TABLE pgwh.secrets DISABLE TRIGGER USER",
        "SET search_path = pgwh; ALTER TABLE gaps ENABLE TRIGGER ALL",
        "ALTER TABLE pgwh_internal.installation ENABLE TRIGGER ALL",
        "DO $$ BEGIN ALTER TABLE pgwh.replays DISABLE TRIGGER ALL, ENABLE TRIGGER USER; END $$",
    ] {
        pair.subscriber.sql(command);
    }
    assert_eq!(pair.subscriber.value(triggers), armed);
    // Tables of others are switched as ever.
    pair.subscriber.sql("CREATE TRIGGER mine BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()");
    pair.subscriber.sql("ALTER TABLE t DISABLE TRIGGER ALL");
    assert_eq!(pair.subscriber.value("SELECT tgenabled FROM pg_trigger WHERE tgname = 'mine'"), "D");
    let restored = pair.state();
    assert_ne!(restored, before, "keys are in no dump");
    pair.replicate();
    pair.publisher.sql("UPDATE pgwh.subscriptions SET url = url || '/changed'");
    pair.catch_up();
    assert_eq!(pair.state(), restored);
}

#[test]
fn sessions_in_replica_role_subscribe_as_any_other() {
    let cluster = Cluster::with_extension();
    let receiver = Receiver::start().unwrap();
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let replica = cluster.with_options("-c session_replication_role=replica");
    replica.subscribe(
        &receiver,
        "s",
        "tables => '{public.t}', headers => '{\"authorization\": \"Bearer s3cret\"}'",
    );
    replica.sql("INSERT INTO t VALUES (1)");
    let events = cluster.delivered(&receiver, "s");
    assert_eq!(events.len(), 1);
    let verifier = receiver::Secret::parse(&cluster.value("SELECT pgwh.secret('s')")).unwrap();
    assert_eq!(verifier.verify(&events[0].request), receiver::Verdict::Valid);
    assert_eq!(events[0].request.header("authorization"), Some("Bearer s3cret"));
    assert!(!cluster.value("SELECT headers FROM pgwh.subscriptions").contains("s3cret"));
    let refusal = replica.refused("UPDATE pgwh.subscriptions SET url = 'no url'");
    assert_eq!(refusal.code, "22023", "{refusal:?}");
    replica.sql("DELETE FROM pgwh.subscriptions");
    assert_eq!(cluster.value("SELECT count(*) FROM pgwh.secrets"), "0");
}

/// All that a reader of the log is given of the tables of `pgwh`.
fn stream_of_ours(cluster: &Cluster) -> Vec<String> {
    cluster.column(
        "SELECT data FROM pg_logical_slot_get_changes('reader', NULL, NULL)
         WHERE data LIKE 'table pgwh%' OR data LIKE '%TRUNCATE%'",
    )
}

#[test]
fn readers_of_the_log_get_nothing_of_the_journal() {
    let cluster = Setup::new().set("pgwh.retention = '1s'").start();
    cluster.sql("CREATE EXTENSION pgstream_hooks");
    cluster.wait_true("SELECT ok FROM pgwh.health() WHERE check_name = 'slot present and valid'");
    let receiver = Receiver::start().unwrap();
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY, note text)");
    cluster.sql("SELECT pg_create_logical_replication_slot('reader', 'test_decoding')");
    cluster.subscribe(
        &receiver,
        "s",
        "tables => '{public.t}', headers => '{\"authorization\": \"Bearer s3cret\"}'",
    );
    cluster.sql("SELECT pgwh.rotate_secret('s'); SELECT pgwh.seal_secrets()");
    receiver.behave_at("/failing", Script::fail_first_of_each(1, 500));
    cluster.subscribe(&receiver, "failing", "tables => '{public.t}', retry_schedule => '{10 ms}'");
    // Values that are compressed, and such as are stored apart.
    cluster.sql("INSERT INTO t SELECT n, repeat(md5(n::text), 100) FROM generate_series(1, 500) n");
    assert_eq!(cluster.delivered(&receiver, "s").len(), 500);
    cluster.delivered(&receiver, "failing");
    cluster.sql("SELECT pgwh.forget('public.t', '{\"id\": 7}')");
    let generation =
        || cluster.value("SELECT max(generation) FROM pgwh_internal.slices").parse::<u64>().unwrap();
    let (end, mut id) = (generation() + 9, 1000);
    eventually("the journal went round", || {
        id += 1;
        cluster.sql(&format!("INSERT INTO t VALUES ({id})"));
        (generation() >= end).then_some(())
    });
    cluster.wait_confirmed();
    let seen = stream_of_ours(&cluster);
    // Of what is forgotten the log says that there was something.
    let is_journal = |line: &&String| {
        ["event_chunks", "outcome_chunks", "attempt_rows", "positions", "TRUNCATE"]
            .iter()
            .any(|name| line.contains(name))
            && !line.contains("DELETE: (no-tuple-data)")
    };
    let journal: Vec<&String> = seen.iter().filter(is_journal).collect();
    assert!(journal.is_empty(), "{} lines, the first: {}", journal.len(), journal[0]);
    assert!(seen.iter().any(|line| line.contains("table pgwh.subscriptions: INSERT")));
    assert!(seen.iter().all(|line| !line.contains("whsec_") && !line.contains("s3cret")), "keys");
}

/// Checks that each index of the journal has an entry for each row.
fn check_indexes(cluster: &Cluster) {
    cluster.sql("CREATE EXTENSION IF NOT EXISTS amcheck");
    cluster.sql(
        "SELECT bt_index_parent_check(i.indexrelid, heapallindexed => true) FROM pg_index i
             JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam
             JOIN pg_class t ON t.oid = i.indrelid
         WHERE a.amname = 'btree' AND c.relkind = 'i' AND t.relnamespace IN ('pgwh'::regnamespace, 'pgwh_internal'::regnamespace)",
    );
    let by_index = cluster.value(
        "SET enable_seqscan = off; SET enable_bitmapscan = off;
         SELECT count(*) FROM pgwh_internal.outcome_chunks WHERE int8range(lowest_id, highest_id, '[]') && '[0,]'",
    );
    assert_eq!(by_index, cluster.value("SELECT count(*) FROM pgwh_internal.outcome_chunks"));
}

#[test]
fn emptied_slices_are_whole_after_a_crash_and_on_standbys() {
    let cluster = Setup::new().set("pgwh.retention = '1s'").start();
    cluster.sql("CREATE EXTENSION pgstream_hooks");
    cluster.wait_true("SELECT ok FROM pgwh.health() WHERE check_name = 'slot present and valid'");
    let receiver = Receiver::start().unwrap();
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY, note text)");
    cluster.subscribe(&receiver, "s", "tables => '{public.t}'");
    let standby = cluster.standby();
    standby.begin();
    let generation =
        || cluster.value("SELECT max(generation) FROM pgwh_internal.slices").parse::<u64>().unwrap();
    let mut id = 0;
    for _ in 0..3 {
        let end = generation() + 5;
        eventually("slices were emptied", || {
            id += 1;
            // Bodies that are stored apart, so that the TOAST table is used, too.
            cluster.sql(&format!(
                "INSERT INTO t SELECT {id} * 100 + n, (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 300))
                 FROM generate_series(1, 20) n"
            ));
            (generation() >= end).then_some(())
        });
        cluster.delivered(&receiver, "s");
        check_indexes(&cluster);
        cluster.restart(Stop::Kill);
        cluster.delivered(&receiver, "s");
        check_indexes(&cluster);
    }
    cluster.wait_status("s", "pending = 0 AND dead = 0");
    assert_eq!(cluster.delivered(&receiver, "s").len(), id * 20);
    // What a view makes of rows, indexes and TOAST is the same there.
    let look = "SELECT count(*) || ' ' || coalesce(md5(string_agg(id || data::text, ',' ORDER BY id)), '') FROM pgwh.events";
    eventually("the standby has the same events", || {
        (standby.value(look) == cluster.value(look)).then_some(())
    });
}

#[test]
fn tables_of_the_extension_are_not_truncated() {
    let cluster = Cluster::with_extension();
    for table in [
        "pgwh.subscriptions, pgwh.secrets",
        "pgwh_internal.event_chunks",
        "pgwh_internal.event_chunks_0",
        "pgwh.gaps",
    ] {
        for role in ["origin", "replica"] {
            let session = cluster.with_options(&format!("-c session_replication_role={role}"));
            let refusal = session.refused(&format!("TRUNCATE {table}"));
            assert_eq!(refusal.code, "0A000");
            assert!(refusal.message.starts_with("cannot truncate table \"pgwh"), "{refusal:?}");
        }
    }
    cluster.sql("DELETE FROM pgwh.subscriptions");
}

/// The statements of a hint that begin with one text and end before another.
fn typed(hint: &str, begin: &str, end: &str) -> String {
    let from = hint.find(begin).unwrap_or_else(|| panic!("{begin} in {hint}"));
    hint[from..].split(end).next().unwrap_or_default().to_owned()
}

const INSTEAD: (&str, &str) = ("BEGIN;", " then on each");
const PERMIT: (&str, &str) = ("ALTER SYSTEM", " SELECT pg_reload");

/// Permits publications of all tables as the hint says.
fn permit(cluster: &Cluster, hint: &str) {
    cluster.sql(&typed(hint, PERMIT.0, PERMIT.1));
    cluster.reload();
    cluster.wait_true("SELECT current_setting('pgwh.allow_all_tables_publications')::bool");
}

#[test]
fn create_extension_does_not_stop_replication_of_all_tables() {
    let (publisher, subscriber) = (Cluster::start(), Setup::new().not_preloaded().start());
    for cluster in [&publisher, &subscriber] {
        cluster.sql("CREATE TABLE t (id int PRIMARY KEY); CREATE SCHEMA \"other One\"");
        cluster.sql("CREATE TABLE \"other One\".u (id int PRIMARY KEY)");
    }
    publisher.sql("CREATE PUBLICATION p FOR ALL TABLES");
    subscribe(&publisher, &subscriber);
    let arrives = |id: u32| {
        publisher.sql(&format!("INSERT INTO t VALUES ({id}); INSERT INTO \"other One\".u VALUES ({id})"));
        subscriber.wait_true(&format!(
            "SELECT count(*) = 2 FROM (SELECT * FROM t UNION ALL SELECT * FROM \"other One\".u) a WHERE id = {id}"
        ));
    };
    arrives(1);
    let refusal = publisher.refused("CREATE EXTENSION pgstream_hooks");
    assert_eq!(refusal.code, "55000");
    assert!(refusal.detail.contains("publication p is of all tables"), "{refusal:?}");
    arrives(2);
    publisher.sql(&typed(&refusal.hint, INSTEAD.0, INSTEAD.1));
    publisher.sql("CREATE EXTENSION pgstream_hooks");
    subscriber.sql("ALTER SUBSCRIPTION s REFRESH PUBLICATION");
    arrives(3);
    publisher.sql("SELECT pgwh.subscribe('http://127.0.0.1:1/', name => 's')");
    arrives(4);
    publisher.wait_true("SELECT ok FROM pgwh.health() WHERE check_name = 'publications'");
    // One that publishes nothing is in nobody's way.
    publisher.sql("CREATE PUBLICATION nothing FOR ALL TABLES WITH (publish = '')");
    assert_eq!(publisher.value("SELECT ok FROM pgwh.health() WHERE check_name = 'publications'"), "t");
}

#[test]
fn a_stopped_subscriber_goes_on_with_the_extension_there() {
    let (publisher, subscriber) = (Cluster::start(), Cluster::start());
    for cluster in [&publisher, &subscriber] {
        cluster.sql("CREATE TABLE t (id int PRIMARY KEY)");
    }
    publisher.sql("CREATE PUBLICATION p FOR ALL TABLES");
    subscribe(&publisher, &subscriber);
    subscriber.wait_true("SELECT bool_and(srsubstate = 'r') FROM pg_subscription_rel");
    // Who reads only some tables may permit it, which this subscriber does not.
    permit(&publisher, &publisher.refused("CREATE EXTENSION pgstream_hooks").hint);
    publisher.sql("CREATE EXTENSION pgstream_hooks");
    publisher.wait_true("SELECT ok FROM pgwh.health() WHERE check_name = 'publications'");
    publisher.sql("INSERT INTO t VALUES (1)");
    let message = "logical replication target relation \"pgwh_internal.installation\" does not exist";
    eventually("the subscriber stops", || subscriber.log().contains(message).then_some(()));
    publisher.sql("ALTER SYSTEM RESET pgwh.allow_all_tables_publications");
    publisher.reload();
    publisher.wait_true("SELECT NOT ok FROM pgwh.health() WHERE check_name = 'publications'");

    subscriber.sql("CREATE EXTENSION pgstream_hooks");
    subscriber.wait_true("SELECT count(*) = 1 FROM t");
    let hint = publisher.value("SELECT hint FROM pgwh.health() WHERE check_name = 'publications'");
    publisher.sql(&typed(&hint, INSTEAD.0, INSTEAD.1));
    publisher.wait_true("SELECT ok FROM pgwh.health() WHERE check_name = 'publications'");
    subscriber.sql("ALTER SUBSCRIPTION s REFRESH PUBLICATION");
    publisher.sql("INSERT INTO t VALUES (2)");
    subscriber.wait_true("SELECT count(*) = 2 FROM t");
    subscriber.sql("DROP EXTENSION pgstream_hooks");
    publisher.each(&[
        "SELECT pgwh.subscribe('http://127.0.0.1:1/', name => 's')",
        "SELECT pgwh.unsubscribe('s')",
        "INSERT INTO t VALUES (3)",
    ]);
    subscriber.wait_true("SELECT count(*) = 3 FROM t");
}

#[test]
fn a_publication_that_gets_our_tables_is_warned_of() {
    let cluster = Cluster::with_extension();
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let warned = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let heard = std::sync::Arc::clone(&warned);
    let mut client = cluster.connect_noticing(move |notice| {
        let hint = notice.hint().unwrap_or_default().to_owned();
        heard.lock().unwrap().push((notice.message().to_owned(), hint));
    });
    let mut warnings = |sql: &str| {
        client.batch_execute(sql).unwrap();
        std::mem::take(&mut *warned.lock().unwrap())
    };
    let is_well = || cluster.value("SELECT ok FROM pgwh.health() WHERE check_name = 'publications'") == "t";
    assert!(warnings("CREATE PUBLICATION well FOR TABLE t").is_empty() && is_well());
    for (sql, begin) in [
        ("CREATE PUBLICATION p FOR ALL TABLES", "BEGIN;"),
        ("CREATE PUBLICATION p FOR TABLES IN SCHEMA public, pgwh", "ALTER PUBLICATION p"),
        ("CREATE PUBLICATION p FOR TABLE t, pgwh.subscriptions", "ALTER PUBLICATION p"),
        ("CREATE PUBLICATION p; ALTER PUBLICATION p ADD TABLES IN SCHEMA pgwh", "ALTER PUBLICATION p"),
        ("CREATE PUBLICATION p; ALTER PUBLICATION p ADD TABLE pgwh.gaps", "ALTER PUBLICATION p"),
        ("CREATE PUBLICATION p FOR TABLES IN SCHEMA pgwh_internal, pgwh", "ALTER PUBLICATION p"),
        (
            "CREATE PUBLICATION p FOR TABLE t, pgwh.gaps, TABLES IN SCHEMA pgwh_internal",
            "ALTER PUBLICATION p",
        ),
        ("CREATE PUBLICATION p FOR TABLE pgwh_internal.installation, pgwh.gaps", "ALTER PUBLICATION p"),
    ] {
        let found = warnings(sql);
        assert_eq!(found.len(), 1, "{sql}: {found:?}");
        assert!(found[0].0.starts_with("publication p ") && !is_well(), "{found:?}");
        let cure = typed(&found[0].1, begin, if begin == INSTEAD.0 { INSTEAD.1 } else { " Or" });
        assert!(warnings(&cure).is_empty() && is_well(), "{cure}");
        cluster.sql("DROP PUBLICATION p");
    }
    // Others have nothing to do with it, and a role that may not look at pgwh is warned, too.
    cluster.sql("CREATE PUBLICATION p FOR ALL TABLES");
    assert!(warnings("CREATE PUBLICATION other FOR TABLE t").is_empty());
    cluster.sql("CREATE ROLE app LOGIN; GRANT CREATE ON DATABASE postgres TO app; GRANT CREATE ON SCHEMA public TO app");
    cluster
        .as_role("app")
        .sql("CREATE TABLE own (id int PRIMARY KEY); CREATE PUBLICATION owns FOR TABLE own");
    permit(&cluster, &cluster.value("SELECT hint FROM pgwh.health() WHERE check_name = 'publications'"));
    assert!(is_well());
    cluster.sql("DROP PUBLICATION p");
    assert!(warnings("CREATE PUBLICATION p FOR ALL TABLES").is_empty());
}

#[test]
fn a_publication_made_as_the_hint_says_keeps_its_options() {
    let cluster = Cluster::with_extension();
    cluster.sql(
        "CREATE TABLE t (id int PRIMARY KEY); CREATE SCHEMA \"App\"; CREATE TABLE \"App\".t (id int PRIMARY KEY);
         CREATE SCHEMA later; CREATE ROLE pubs SUPERUSER",
    );
    let has_generated = cluster.value("SELECT current_setting('server_version_num')::int >= 180000") == "t";
    let generated = if has_generated { ", publish_generated_columns = stored" } else { "" };
    cluster.sql(&format!(
        "CREATE PUBLICATION arch FOR ALL TABLES WITH (publish = 'insert, update', publish_via_partition_root = true{generated});
         ALTER PUBLICATION arch OWNER TO pubs; COMMENT ON PUBLICATION arch IS 'to the archive''s'"
    ));
    let kept = "SELECT to_jsonb(p) - 'oid' - 'puballtables' || jsonb_build_object('comment', obj_description(p.oid, 'pg_publication'))
                FROM pg_publication p WHERE pubname = 'arch'";
    let before = cluster.value(kept);
    let hint = cluster.value("SELECT hint FROM pgwh.health() WHERE check_name = 'publications'");
    cluster.sql(&typed(&hint, INSTEAD.0, INSTEAD.1));
    assert_eq!(cluster.value(kept), before);
    let schemas = "SELECT string_agg(pnnspid::regnamespace::text, ' ' ORDER BY pnnspid::regnamespace::text COLLATE \"C\")
                   FROM pg_publication_namespace";
    assert_eq!(cluster.value(schemas), "\"App\" later public");
    assert_eq!(cluster.value("SELECT ok FROM pgwh.health() WHERE check_name = 'publications'"), "t");
    // What is as by default is not said.
    cluster.sql("DROP PUBLICATION arch; CREATE PUBLICATION plain FOR ALL TABLES");
    let hint = cluster.value("SELECT hint FROM pgwh.health() WHERE check_name = 'publications'");
    assert!(!hint.contains("WITH") && !hint.contains("OWNER") && !hint.contains("COMMENT"), "{hint}");
}
