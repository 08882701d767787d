//! What other roles learn of a subscription: neither its URL's path nor what is made from it, and no keys by mistake.

use std::sync::{Arc, Mutex};

use harness::{Cluster, Database, Receiver, Reply, Script};

fn stage() -> (Cluster, Receiver) {
    let cluster = Cluster::with_extension();
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY, note text)");
    (cluster, Receiver::start().unwrap())
}

/// Roles that may subscribe, by the grants of docs/security.md.
fn create_role(cluster: &Cluster, name: &str, options: &str) -> Database {
    cluster.sql(&format!(
        "CREATE ROLE {name} LOGIN {options}; GRANT SELECT ON t TO {name}; GRANT USAGE ON SCHEMA pgwh, pgwh_internal TO {name};
         GRANT SELECT, INSERT, UPDATE, DELETE ON pgwh.subscriptions TO {name};
         GRANT SELECT ON pgwh_internal.installation, pgwh.status TO {name};
         GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgwh, pgwh_internal TO {name}"
    ));
    cluster.as_role(name)
}

/// The notices of a statement, with their hints.
fn notices_of(database: &Database, statement: &str) -> Vec<(String, String)> {
    let notices = Arc::new(Mutex::new(Vec::new()));
    let heard = notices.clone();
    let hear = move |notice: postgres::error::DbError| {
        let hint = notice.hint().unwrap_or_default().to_owned();
        heard.lock().unwrap().push((notice.message().to_owned(), hint));
    };
    database.connect_noticing(hear).batch_execute(statement).unwrap();
    notices.lock().unwrap().clone()
}

#[test]
fn a_url_s_path_is_in_no_name_that_is_made_from_it() {
    let (cluster, receiver) = stage();
    let ann = create_role(&cluster, "ann", "");
    let url = receiver.url("/services/T0K3N/B42?key=s3cret");
    let subscribe = format!("SELECT pgwh.subscribe('{url}', tables => '{{t}}')");
    let id = ann.value(&subscribe);
    let name = ann.value("SELECT name FROM pgwh.subscriptions");
    let server = url.split("://").nth(1).and_then(|rest| rest.split('/').next()).unwrap().replace(':', "-");
    assert!(name.starts_with(&format!("{server}-public.t-")), "{name}");
    // Whoever guesses the path cannot compute the digest.
    for guess in ["url", "url || chr(1) || 'public.t' || chr(1)"] {
        let guess = format!(
            "SELECT encode(sha256(replace(encode(convert_to({guess}, 'UTF8'), 'hex'), '01', '00')::bytea), 'hex') || ' ' ||
                encode(sha256(decode(replace(encode(convert_to({guess}, 'UTF8'), 'hex'), '01', '00'), 'hex')), 'hex')
             FROM pgwh.subscriptions"
        );
        let tail = name.rsplit('-').next().unwrap();
        assert!(ann.value(&guess).split(' ').all(|digest| !digest.starts_with(tail)), "{guess}");
    }
    // The same url, tables and filter are the same subscription; another path is another one.
    assert_eq!(ann.value(&subscribe), id);
    assert_ne!(ann.value(&subscribe.replace("T0K3N", "T0K3M")), id);
    ann.sql(&format!(
        "INSERT INTO pgwh.subscriptions (url, tables) VALUES ('{}', '{{t}}')",
        url.replace("T0K3N", "T0K3X")
    ));
    let made = format!(
        "SELECT count(DISTINCT name) FROM pgwh.subscriptions WHERE name LIKE '{server}-public.t-________'"
    );
    assert_eq!(ann.value(&made), "3");
    // Nor is a path in other spellings of a URL.
    for url in [
        "https:example.com/T0K3N",
        "https:///example.com\\\\T0K3N",
        "HTTPS://EXAMPLE.com/T0K3N#b42",
        "https://[2606:4700::1111]:8443/T0K3N",
    ] {
        let id = ann.value(&format!("SELECT pgwh.subscribe('{url}', tables => '{{t}}', enabled => false)"));
        let name = ann.value(&format!("SELECT name FROM pgwh.subscriptions WHERE id = {id}"));
        assert!(!name.to_uppercase().contains("T0K3N") && !name.is_empty(), "{name}");
    }
}

#[test]
fn a_url_s_path_is_shown_to_nobody_but_its_owner() {
    let (cluster, receiver) = stage();
    let ann = create_role(&cluster, "ann", "");
    let bob = create_role(&cluster, "bob", "IN ROLE ann");
    let auditor = create_role(&cluster, "auditor", "BYPASSRLS");
    let other = create_role(&cluster, "other", "");
    cluster.sql("CREATE ROLE monitor LOGIN IN ROLE pg_monitor");
    let url = receiver.url("/services/T0K3N/B42?key=s3cret");
    ann.sql(&format!("SELECT pgwh.subscribe('{url}', tables => '{{t}}')"));
    let server = url.split("/services").next().unwrap();
    let mut listener = other.listen("pgwh");
    receiver.behave(Script::always(Reply::status(410)));
    cluster.sql("INSERT INTO t VALUES (1)");
    let heard = listener.wait_for(&["disabled"]);
    // A member of the owner's role is shown all of it; a role that only sees everything, the server.
    assert_eq!(bob.column("SELECT url FROM pgwh.status"), [url.as_str()]);
    assert_eq!(auditor.column("SELECT url FROM pgwh.status"), [server]);
    assert!(other.column("SELECT url FROM pgwh.status").is_empty());
    let bodies: String = receiver
        .requests()
        .iter()
        .map(|request| String::from_utf8_lossy(request.body()).into_owned())
        .collect();
    let shown = [
        heard,
        bodies,
        cluster.as_role("monitor").value("SELECT pgwh.metrics()"),
        auditor.column("SELECT to_jsonb(s) FROM pgwh.status s").concat(),
        auditor.column("SELECT to_jsonb(h) FROM pgwh.health() h").concat(),
        other.refused("SELECT pgwh.test((SELECT name FROM pgwh.subscriptions))").message,
    ];
    for text in shown {
        assert!(!text.is_empty());
        for secret in ["T0K3N", "t0k3n", "B42", "b42", "s3cret", "services"] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }
}

#[test]
fn a_preview_shows_no_sensitive_header_in_clear() {
    let (cluster, receiver) = stage();
    cluster.sql(
        "CREATE FUNCTION path(event jsonb) RETURNS jsonb LANGUAGE sql AS
             $$SELECT '{\"headers\": {\"x-routed-token\": \"r0ut3d\", \"x-region\": \"eu\"}}'::jsonb$$",
    );
    cluster.subscribe(
        &receiver,
        "s",
        "route => 'path(jsonb)', headers => '{\"Authorization\": \"Bearer s3cret\", \"x-api-key\": \"k3y-which-no-signature-has\", \"x-tenant\": \"7\"}'",
    );
    let shown = cluster.value("SELECT headers FROM pgwh.preview('s', '{\"id\": 1}')");
    for hidden in ["s3cret", "k3y-which-no-signature-has", "r0ut3d"] {
        assert!(!shown.contains(hidden), "{shown}");
    }
    let shown = harness::json(&shown).unwrap();
    for name in ["authorization", "x-api-key", "x-routed-token"] {
        assert_eq!(shown[name], "hidden", "{shown}");
    }
    assert_eq!((&shown["x-tenant"], &shown["x-region"]), (&"7".into(), &"eu".into()));
    assert!(shown["webhook-signature"].as_str().unwrap().starts_with("v1,"), "{shown}");
    // They are sent as they are.
    cluster.sql("INSERT INTO t VALUES (1)");
    let request = &cluster.delivered(&receiver, "s")[0].request;
    let sent =
        ["authorization", "x-api-key", "x-routed-token"].map(|name| request.header(name).unwrap_or_default());
    assert_eq!(sent, ["Bearer s3cret", "k3y-which-no-signature-has", "r0ut3d"]);
}

#[test]
fn a_deploy_onto_another_role_s_subscription_is_told_so() {
    let (cluster, receiver) = stage();
    let bob = create_role(&cluster, "bob", "");
    let name = "deploy''s";
    let url = receiver.url("/deploy");
    let subscribe =
        |rest: &str| format!("SELECT pgwh.subscribe('{url}', name => '{name}', tables => '{{t}}'{rest})");
    bob.sql(&subscribe(""));
    let superuser = cluster.as_role("postgres");
    let insert = format!(
        "INSERT INTO pgwh.subscriptions (name, url, tables, headers) VALUES ('{name}', '{url}', '{{t}}', '{{\"x-token\": \"a\"}}')
         ON CONFLICT (name) DO UPDATE SET headers = EXCLUDED.headers"
    );
    for statement in [
        subscribe(""),
        subscribe(", secret => 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw'"),
        subscribe(", headers => '{\"authorization\": \"Bearer s3cret\"}'"),
        insert.clone(),
        format!("UPDATE pgwh.subscriptions SET headers = '{{\"cookie\": \"a\"}}' WHERE name = '{name}'"),
    ] {
        let notices = notices_of(&superuser, &statement);
        let [(message, hint)] = &notices[..] else { panic!("{statement}: {notices:?}") };
        assert_eq!(message, "subscription \"deploy's\" belongs to role \"bob\"", "{statement}");
        assert!(hint.contains("UPDATE pgwh.subscriptions SET owner = current_user"), "{hint}");
    }
    // Nothing is given away by what has no secret in it.
    for statement in [
        format!("UPDATE pgwh.subscriptions SET headers = headers, timeout = timeout WHERE name = '{name}'"),
        format!("SELECT pgwh.pause('{name}'), pgwh.resume('{name}')"),
    ] {
        assert_eq!(notices_of(&superuser, &statement), [], "{statement}");
    }
    assert_eq!(notices_of(&bob, &subscribe(", headers => '{\"cookie\": \"b\"}'")), []);
    // As the hint has it, from then on it is the deploy's own.
    let notices = notices_of(&superuser, &subscribe(""));
    let (_, hint) = notices.iter().find(|(message, _)| message.contains("belongs to")).unwrap();
    let take_over = hint.split_once(": ").unwrap().1.split_inclusive(';').next().unwrap().to_owned();
    superuser.sql(&take_over);
    assert_eq!(cluster.value("SELECT owner FROM pgwh.subscriptions"), "postgres");
    assert_eq!(
        notices_of(&superuser, &subscribe(", headers => '{\"authorization\": \"Bearer s3cret\"}'")),
        []
    );
    assert_eq!(bob.refused(&format!("SELECT pgwh.secret('{name}')")).code, "42501");
}
