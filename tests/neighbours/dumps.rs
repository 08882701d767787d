//! `pg_dump` works with the extension for whoever it worked for without: the database's owner, members of
//! `pg_read_all_data`, roles that may read all tables of the users; each dump has what its role may see.

use std::process::Output;
use std::sync::{Arc, Mutex};

use harness::{Cluster, Database, Receiver, Server, Setup};

const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
/// The superuser, the owner of the database, who reads all by role and by grants, who subscribes, and one who sees all rows.
const ROLES: [&str; 6] = ["postgres", "dba", "reader", "backup", "app", "bypass"];

fn stage() -> (Cluster, Database, Receiver) {
    let cluster = Setup::new().set("pgwh.encryption_key_file = 'pgwh.key'").start();
    cluster.write_private("pgwh.key", &format!("{KEY}\n"));
    cluster.sql(
        "CREATE ROLE dba LOGIN; CREATE ROLE reader LOGIN IN ROLE pg_read_all_data; CREATE ROLE backup LOGIN;
         CREATE ROLE app LOGIN; CREATE ROLE bypass LOGIN BYPASSRLS IN ROLE pg_read_all_data",
    );
    cluster.sql("CREATE DATABASE shop OWNER dba");
    let shop = cluster.database("shop");
    shop.sql("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id serial PRIMARY KEY); INSERT INTO t VALUES (1)");
    shop.sql(
        "GRANT SELECT ON ALL TABLES IN SCHEMA public TO dba, backup, app;
         GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO dba, backup, app",
    );
    (cluster, shop, Receiver::start().unwrap())
}

fn subscribe(shop: &Database, receiver: &Receiver) {
    shop.sql("CREATE EXTENSION pgstream_hooks");
    shop.wait_true("SELECT ok FROM pgwh.health() WHERE check_name = 'slot present and valid'");
    shop.sql(
        "GRANT USAGE ON SCHEMA pgwh, pgwh_internal TO app; GRANT SELECT, INSERT, UPDATE, DELETE ON pgwh.subscriptions TO app;
         GRANT SELECT ON pgwh_internal.installation, pgwh.status TO app; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgwh, pgwh_internal TO app",
    );
    shop.subscribe(receiver, "supers", "tables => '{t}'");
    shop.as_role("app").subscribe(receiver, "apps", "tables => '{t}'");
}

fn pg_dump(shop: &Database, role: &str, options: &[&str]) -> Output {
    Server::get()
        .command("pg_dump")
        .args(["-U", role, "-d", shop.name(), "-h"])
        .arg(shop.host())
        .args(options)
        .output()
        .unwrap()
}

/// A dump that must succeed.
#[track_caller]
fn dump(shop: &Database, role: &str, options: &[&str]) -> String {
    let output = pg_dump(shop, role, options);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{role} {options:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn who_could_dump_before_the_extension_dumps_with_it() {
    let (_cluster, shop, receiver) = stage();
    let ways: [&[&str]; 8] = [
        &[],
        &["--schema-only"],
        &["--data-only"],
        &["--inserts"],
        &["--column-inserts"],
        &["--rows-per-insert=2"],
        &["--enable-row-security"],
        &["--serializable-deferrable"],
    ];
    for role in ROLES {
        for way in ways {
            dump(&shop, role, way);
        }
    }
    subscribe(&shop, &receiver);
    for role in ROLES {
        for way in ways {
            let text = dump(&shop, role, way);
            let has = |what: &str| text.contains(what);
            assert_eq!(has("TABLE public.t"), !way.contains(&"--data-only"), "{role} {way:?}");
            let rows = way != ["--schema-only"];
            let all = ["postgres", "bypass"].contains(&role);
            assert_eq!(has("/supers"), rows && all, "{role} {way:?}");
            assert_eq!(has("/apps"), rows && (all || role == "app"), "{role} {way:?}");
            assert_eq!(has("sealed:1:"), rows && all, "{role} {way:?}");
            assert!(!has("whsec_") && !has("pgwh_internal.event_chunks"), "{role} {way:?}");
        }
    }
    // Several sessions at once, which lock table by table.
    let directory = std::env::temp_dir().join(format!("pgwh-dump-{}", std::process::id()));
    for role in ROLES {
        let path = directory.display().to_string();
        dump(&shop, role, &["-Fd", "-j2", "-f", &path]);
        std::fs::remove_dir_all(&directory).unwrap();
    }
}

#[test]
fn dumps_give_nobody_more_rights_than_before() {
    let (cluster, shop, receiver) = stage();
    subscribe(&shop, &receiver);
    cluster.sql("CREATE ROLE nobody LOGIN");
    for role in ["nobody", "backup"] {
        for sql in [
            "SELECT * FROM pgwh.subscriptions",
            "COPY pgwh.subscriptions TO STDOUT",
            "LOCK TABLE pgwh.subscriptions IN EXCLUSIVE MODE",
            "LOCK TABLE t, pgwh.subscriptions IN SHARE MODE",
        ] {
            assert_eq!(shop.as_role(role).refused(&format!("BEGIN; {sql}")).code, "42501", "{role}: {sql}");
        }
    }
    for role in ["dba", "reader"] {
        for table in ["subscriptions", "secrets"] {
            assert_eq!(shop.as_role(role).value(&format!("SELECT count(*) FROM pgwh.{table}")), "0");
        }
        assert_eq!(shop.as_role(role).refused("SELECT pgwh.secret('apps')").code, "42501");
    }
    // Who asks for an error instead of fewer rows gets it where rows of others' tables are concerned.
    shop.sql("ALTER TABLE t ENABLE ROW LEVEL SECURITY");
    let strict = shop.as_role("backup").with_options("-c row_security=off");
    assert_eq!(strict.refused("COPY t TO STDOUT").code, "42501");
    // A lock of a dump holds a table of ours where the role may read it.
    let mut session = shop.as_role("app").connect();
    session.batch_execute("BEGIN; LOCK TABLE t, pgwh.subscriptions, pgwh.gaps IN ACCESS SHARE MODE").unwrap();
    let held = "SELECT string_agg(relation::regclass::text, ' ' ORDER BY relation::regclass::text) FROM pg_locks
         WHERE relation IN ('t'::regclass, 'pgwh.subscriptions'::regclass, 'pgwh.gaps'::regclass) AND mode = 'AccessShareLock'";
    assert_eq!(shop.value(held), "pgwh.subscriptions t");
}

#[test]
fn a_restored_dump_gives_new_subscriptions_ids_of_their_own() {
    let (cluster, shop, receiver) = stage();
    subscribe(&shop, &receiver);
    shop.sql("UPDATE pgwh.subscriptions SET batch_size = 2");
    for (name, way) in [("copy", &[][..]), ("inserts", &["--inserts"])] {
        let copy = cluster.create_database(name);
        copy.psql(&dump(&shop, "postgres", way));
        assert_eq!(copy.column("SELECT name FROM pgwh.subscriptions ORDER BY id"), ["supers", "apps"]);
        assert_eq!(copy.value("SELECT count(*) FROM pgwh.secrets"), "2");
        copy.wait_true("SELECT ok FROM pgwh.health() WHERE check_name = 'slot present and valid'");
        copy.subscribe(&receiver, "new", "tables => '{t}'");
        assert_eq!(copy.column("SELECT id FROM pgwh.subscriptions ORDER BY id"), ["1", "2", "3"]);
    }
}

#[test]
fn subscribing_after_a_restore_warns_of_another_key() {
    let cluster = Cluster::start();
    let shop = cluster.create_database("shop");
    let receiver = Receiver::start().unwrap();
    shop.each(&["CREATE EXTENSION pgstream_hooks", "CREATE TABLE t (id int PRIMARY KEY)"]);
    for name in ["it''s", "given"] {
        shop.sql(&format!(
            "SELECT pgwh.subscribe('{}', name => '{name}', tables => '{{t}}')",
            receiver.url("/s")
        ));
    }
    let key = shop.value("SELECT pgwh.secret('given')");
    let copy = cluster.create_database("copy");
    copy.psql(&dump(&shop, "postgres", &[]));
    let heard = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&heard);
    let mut client = copy.connect_noticing(move |notice| {
        if notice.severity() == "WARNING" {
            let hint = notice.hint().unwrap_or_default().to_owned();
            noted.lock().unwrap().push((notice.message().to_owned(), hint));
        }
    });
    let mut warnings = |name: &str, rest: &str| {
        let url = receiver.url("/s");
        let call = format!("SELECT pgwh.subscribe('{url}', name => '{name}', tables => '{{t}}'{rest})");
        client.batch_execute(&call).unwrap();
        std::mem::take(&mut *heard.lock().unwrap())
    };
    let warned = warnings("it''s", "");
    assert_eq!(warned.len(), 1, "{warned:?}");
    assert_eq!(warned[0].0, "subscription \"it's\" has another signing key than before");
    let query = warned[0].1.split(": ").nth(1).unwrap().split(';').next().unwrap();
    let new = copy.value("SELECT secret FROM pgwh.secrets JOIN pgwh.subscriptions s ON s.id = subscription_id WHERE name = 'it''s'");
    assert_eq!(copy.value(query), new);
    assert!(warned[0].1.contains("pgwh.rotate_secret('it''s')"), "{warned:?}");
    copy.wait_status("it''s", "state = 'active'");
    // Who has a key, or gives the old one, is not warned.
    assert_eq!(warnings("it''s", ""), []);
    assert_eq!(warnings("given", &format!(", secret => '{key}'")), []);
    assert_eq!(copy.value("SELECT pgwh.secret('given')"), key);
    assert_eq!(warnings("fresh", ""), []);
}
