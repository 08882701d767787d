//! Who may read and change a subscription, and what its owner must be able to read.

use harness::{Cluster, Receiver};

use crate::roles::{create_roles, grant, stage};

#[test]
fn a_subscription_and_its_keys_are_its_owners() {
    let (cluster, receiver) = stage();
    create_roles(&cluster, &["ann", "bob"]);
    let (ann, bob) = (cluster.as_role("ann"), cluster.as_role("bob"));
    ann.subscribe(&receiver, "s", "tables => '{t}', headers => '{\"authorization\": \"Bearer s3cret\"}'");
    let secret = ann.value("SELECT pgwh.secret('s')");
    assert!(secret.starts_with("whsec_"));
    for attempt in [
        "INSERT INTO pgwh.subscriptions (name, url, owner) VALUES ('mine', 'http://127.0.0.1:1/', 'ann')",
        "SELECT pgwh.subscribe('http://127.0.0.1:1/evil', name => 's')",
        "SELECT pgwh.subscribe('http://127.0.0.1:1/evil', name => 's', secret => 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw')",
        "SELECT * FROM pgwh.secrets",
        "UPDATE pgwh.secrets SET secret = NULL",
        "SELECT pgwh.seal_secrets()",
        "INSERT INTO pgwh_internal.commands (command) VALUES ('forget')",
        "SELECT * FROM pgwh_internal.event_chunks",
        "SELECT pgwh.forget('t', '{\"id\": 1}')",
    ] {
        let refusal = bob.refused(attempt);
        assert_eq!(refusal.code, "42501", "{attempt}: {refusal:?}");
        assert!(!format!("{refusal:?}").contains("s3cret"));
    }
    // Nor does who is shown everything.
    cluster.sql("CREATE ROLE auditor LOGIN BYPASSRLS; GRANT SELECT ON t TO auditor");
    grant(&cluster, "auditor");
    for attempt in [
        "SELECT pgwh.secret('s')",
        "SELECT pgwh.public_key('s')",
        "SELECT pgwh.rotate_secret('s')",
        "SELECT pgwh.unsubscribe('s')",
        "SELECT pgwh.pause('s')",
        "UPDATE pgwh.subscriptions SET url = 'http://127.0.0.1:1/evil' WHERE name = 's'",
        "UPDATE pgwh.subscriptions SET owner = 'auditor' WHERE name = 's'",
        "DELETE FROM pgwh.subscriptions WHERE name = 's'",
    ] {
        assert_eq!(cluster.as_role("auditor").refused(attempt).code, "42501", "{attempt}");
        match bob.try_sql(attempt) {
            Err(error) => assert_eq!(error.code().unwrap().code(), "42501", "{attempt}: {error:?}"),
            // There is nothing to update or delete.
            Ok(()) => assert!(!attempt.starts_with("SELECT"), "{attempt}"),
        }
    }
    assert_eq!(cluster.value("SELECT owner FROM pgwh.subscriptions WHERE name = 's'"), "ann");
    assert_eq!(ann.value("SELECT pgwh.secret('s')"), secret);
    // A member may what the owner may.
    cluster.sql("GRANT ann TO bob");
    assert_eq!(bob.value("SELECT pgwh.secret('s')"), secret);
    cluster.sql("INSERT INTO t VALUES (1)");
    assert_eq!(cluster.delivered(&receiver, "s").len(), 1);
    ann.sql("SELECT pgwh.pause('s')");
    ann.sql("SELECT pgwh.resume('s')");
    ann.sql("SELECT pgwh.unsubscribe('s')");
}

#[test]
fn status_judges_privileges_by_owner_and_columns() {
    let (cluster, receiver) = stage();
    cluster.sql("CREATE TABLE other (id int PRIMARY KEY)");
    create_roles(&cluster, &["ann", "bob", "cid"]);
    cluster.sql("GRANT SELECT ON other TO ann, bob, cid");
    let subscriptions = [
        ("ann", "tables => '{t}'", ""),
        ("bob", "tables => '{t}'", "its owner bob may not read note of public.t"),
        ("bob", "tables => '{t}', exclude_columns => '{note}'", ""),
        ("bob", "tables => '{t}', columns => '{id}'", ""),
        (
            "bob",
            "tables => '{t}', columns => '{id}', event_types => '{insert}', filter => 'note = ''x'''",
            "its owner bob may not read note of public.t",
        ),
        ("bob", "tables => '{t}', columns => '{id}', event_types => '{insert}', filter => 'id = 1'", ""),
        ("bob", "tables => '{t}', columns => '{id,note}'", "its owner bob may not read note of public.t"),
        ("cid", "tables => '{t}'", "its owner cid may not read public.t"),
        ("cid", "tables => '{other}'", ""),
        ("cid", "tables => '{t}', event_types => '{ddl}'", ""),
        ("ann", "tables => '{other,t}'", ""),
    ];
    for (place, (owner, arguments, _)) in subscriptions.iter().enumerate() {
        cluster.as_role(owner).subscribe(&receiver, &format!("s{place:02}"), arguments);
    }
    cluster.sql("REVOKE SELECT ON t FROM bob, cid; GRANT SELECT (id) ON t TO bob");
    // Asked of all in one command, and of each alone.
    let told = |query: &str| cluster.column(&format!("SELECT coalesce(reason, '') FROM {query}"));
    let expected: Vec<&str> = subscriptions.iter().map(|(_, _, reason)| *reason).collect();
    assert_eq!(told("pgwh.status ORDER BY name"), expected);
    for (place, reason) in expected.iter().enumerate() {
        assert_eq!(told(&format!("pgwh.status WHERE name = 's{place:02}'")), [*reason], "s{place:02}");
    }
}

/// Who owns the table already is not told to let it belong to its owner.
#[test]
fn an_owner_on_whom_row_security_is_forced_is_told_what_helps() {
    let (cluster, receiver) = stage();
    create_roles(&cluster, &["ann"]);
    cluster.sql("ALTER TABLE t OWNER TO ann; ALTER TABLE t ENABLE ROW LEVEL SECURITY");
    let ann = cluster.as_role("ann");
    ann.subscribe(&receiver, "s", "tables => '{t}'");
    ann.sql("ALTER TABLE t FORCE ROW LEVEL SECURITY");
    let again = format!("SELECT pgwh.subscribe('{}', tables => '{{t}}')", receiver.url("/s"));
    let refused = ann.refused(&again);
    assert!(refused.detail.contains("forced on ann") && refused.hint.contains("NO FORCE"), "{refused:?}");
    let next_step = ann.status("s", "next_step");
    assert!(next_step.starts_with("ALTER TABLE public.t NO FORCE ROW LEVEL SECURITY;"), "{next_step}");
    ann.sql("ALTER TABLE public.t NO FORCE ROW LEVEL SECURITY");
    assert_eq!(ann.status("s", "state = 'active' AND next_step IS NULL"), "t");
}

#[test]
fn an_owner_who_is_no_superuser_any_more_stops_nothing() {
    // Postgres 16 and later leave the role that the cluster was made with its attribute.
    let owners = if harness::Server::get().major() < 16 { &["admin", "postgres"][..] } else { &["admin"] };
    for owner in owners {
        let cluster = Cluster::start();
        cluster.sql("CREATE ROLE admin SUPERUSER LOGIN; CREATE ROLE boss SUPERUSER LOGIN");
        let (as_owner, as_boss) = (cluster.as_role(owner), cluster.as_role("boss"));
        as_owner.sql("CREATE EXTENSION pgstream_hooks");
        as_owner.wait_true("SELECT ok FROM pgwh.health() WHERE check_name = 'slot present and valid'");
        as_owner.sql("CREATE TABLE t (id int PRIMARY KEY, note text)");
        let receiver = Receiver::start().unwrap();
        as_owner.subscribe(
            &receiver,
            "s",
            "tables => '{public.t}', headers => '{\"authorization\": \"Bearer x\"}'",
        );
        as_boss.sql(&format!("ALTER ROLE {owner} NOSUPERUSER"));
        let views = as_boss.column(
            "SELECT oid::regclass FROM pg_class WHERE relnamespace IN ('pgwh'::regnamespace, 'pgwh_internal'::regnamespace) AND relkind = 'v'",
        );
        let mut count = 0;
        for round in 0..2 {
            for who in [&as_owner, &as_boss] {
                count += 1;
                as_owner.sql(&format!("INSERT INTO t VALUES ({count})"));
                assert_eq!(as_owner.delivered(&receiver, "s").len(), count, "{owner}, round {round}");
                assert_eq!(who.status("s", "state"), "active");
                let wrong = who.column("SELECT check_name FROM pgwh.health() WHERE NOT ok");
                assert_eq!(wrong, ["owner"], "{owner}");
                assert_ne!(who.value("SELECT pgwh.metrics()"), "");
                for view in &views {
                    who.sql(&format!("TABLE {view}"));
                }
                let body = "SELECT body->'data'->'record'->>'note' FROM pgwh.preview('s', '{\"id\": 1, \"note\": \"x\"}')";
                assert_eq!(who.value(body), "x");
                who.each(&[
                    "SELECT pgwh.why('t', '{\"id\": 1}')",
                    "SELECT pgwh.rotate_secret('s')",
                    "SELECT pgwh.forget('t', '{\"id\": 0}')",
                    "SELECT pgwh.adopt()",
                ]);
            }
            as_boss.sql("SELECT pgwh.pause('s'); SELECT pgwh.resume('s')");
            // What is done once, when workers start and when a command is noted, is done as before.
            as_boss.sql(&format!("ALTER TABLE t ADD COLUMN more{round} int"));
            cluster.restart(harness::Stop::Fast);
        }
        let hint = as_boss.value("SELECT hint FROM pgwh.health() WHERE check_name = 'owner'");
        let grants = hint.split_once(" or ").unwrap().1;
        as_boss.sql(grants);
        assert_eq!(as_owner.value("SELECT count(*) FROM pgwh.health() WHERE NOT ok"), "0");
    }
}
