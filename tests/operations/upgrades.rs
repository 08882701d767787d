//! Upgrades: of the extension, of the library, and of the server by `pg_upgrade`, each with a backlog.

use std::path::{Path, PathBuf};
use std::process::Command;

use harness::{
    Cluster, DISPATCHER, Database, Event, Receiver, Server, Setup, Stop, eventually, in_key_order,
};

const SCHEMA_VERSION: &str = "SELECT ok, detail, hint FROM pgwh.health() WHERE check_name = 'schema version'";

/// A table, one subscription whose endpoint takes events, and one that has 50 pending.
fn backlog(database: &Database) -> Receiver {
    database.sql("CREATE EXTENSION pgstream_hooks; CREATE TABLE t (id int PRIMARY KEY, version int)");
    let receiver = Receiver::start().unwrap();
    database.subscribe(&receiver, "up", "tables => '{t}'");
    database.subscribe(&receiver, "later", "tables => '{t}'");
    database.sql("SELECT pgwh.pause('later')");
    for version in 1..=5 {
        database.sql(&format!(
            "INSERT INTO t SELECT n, {version} FROM generate_series(1, 10) n
               ON CONFLICT (id) DO UPDATE SET version = EXCLUDED.version"
        ));
    }
    assert_eq!(database.delivered(&receiver, "up").len(), 50);
    database.wait_status("later", "pending = 50");
    receiver
}

/// All that the subscription got, which must be `count` events in order.
#[track_caller]
fn assert_delivered(database: &Database, receiver: &Receiver, name: &str, count: usize) -> Vec<Event> {
    let events = database.delivered(receiver, name);
    in_key_order(&events);
    assert_eq!(events.len(), count, "to {name}");
    events
}

/// As after the library or the SQL alone was replaced by one of another version.
fn pretend_version(cluster: &Cluster, version: &str) {
    cluster
        .sql(&format!("UPDATE pg_extension SET extversion = '{version}' WHERE extname = 'pgstream_hooks'"));
    cluster.restart(Stop::Fast);
}

/// A script that does what every script does, and makes changes of its own.
struct UpdateScript(PathBuf);

impl UpdateScript {
    fn install(from: &str, to: &str, changes: &str) -> UpdateScript {
        let path = Server::get().extensions().join(format!("pgstream_hooks--{from}--{to}.sql"));
        std::fs::write(&path, format!("SELECT pgwh_internal.extension_updated();\n{changes}\n"))
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        UpdateScript(path)
    }
}

impl Drop for UpdateScript {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn a_newer_library_waits_for_the_update_of_its_sql() {
    let cluster = Cluster::start();
    let receiver = backlog(&cluster);
    let version = cluster.value("SELECT pgwh.version()");
    cluster.sql("CREATE ROLE app LOGIN; CREATE ROLE stranger LOGIN; GRANT USAGE ON SCHEMA pgwh TO stranger; SELECT pgwh.grant_usage('app')");
    pretend_version(&cluster, "0.0.9");
    cluster.wait_true(&format!(
        "SELECT query LIKE 'waiting for ALTER EXTENSION%' FROM pg_stat_activity WHERE backend_type = '{}'",
        DISPATCHER
    ));
    let update = "ALTER EXTENSION pgstream_hooks UPDATE;";
    let row = cluster.rows(SCHEMA_VERSION).remove(0);
    assert_eq!((row[0].as_deref(), row[2].as_deref()), (Some("f"), Some(update)));
    assert_eq!(
        (cluster.status("up", "state"), cluster.status("up", "next_step")),
        ("error".into(), update.into())
    );
    assert!(
        cluster.status("up", "reason").contains("different versions"),
        "{}",
        cluster.status("up", "reason")
    );
    for call in [
        "SELECT pgwh.subscribe('https://example.com/')",
        "SELECT pgwh.emit('a', '{}')",
        "SELECT pgwh.resume('later')",
        "SELECT pgwh.replay('up', now())",
        "UPDATE pgwh.subscriptions SET paused = false",
    ] {
        let refusal = cluster.refused(call);
        assert_eq!((refusal.code.as_str(), refusal.hint.as_str()), ("55000", update), "{call}");
        assert!(refusal.detail.contains("0.0.9") && refusal.detail.contains(&version), "{}", refusal.detail);
    }
    assert_eq!(cluster.log().matches("are of different versions").count() - 5, 1, "it is logged once");
    cluster.sql("UPDATE t SET version = version + 1");
    let script = UpdateScript::install(
        "0.0.9",
        &version,
        "CREATE FUNCTION pgwh.newer() RETURNS text LANGUAGE sql RETURN 'newer'; REVOKE ALL ON FUNCTION pgwh.newer FROM PUBLIC;",
    );
    cluster.sql(update);
    drop(script);
    assert_delivered(&cluster, &receiver, "up", 60);
    cluster.sql("SELECT pgwh.resume('later')");
    assert_delivered(&cluster, &receiver, "later", 60);
    assert_eq!(
        cluster.as_role("app").value("SELECT pgwh.newer()"),
        "newer",
        "what an update adds is granted"
    );
    assert_eq!(cluster.as_role("stranger").refused("SELECT pgwh.newer()").code, "42501");
    assert_eq!(
        cluster.value("SELECT bool_and(ok) FROM pgwh.health() WHERE check_name <> 'subscriptions valid'"),
        "t"
    );
}

#[test]
fn an_older_library_says_that_it_has_to_be_replaced() {
    let cluster = Cluster::start();
    let receiver = backlog(&cluster);
    let version = cluster.value("SELECT pgwh.version()");
    let script = UpdateScript::install(&version, "999.0.0", "");
    let refusal = cluster.refused("ALTER EXTENSION pgstream_hooks UPDATE TO '999.0.0'");
    drop(script);
    let replace = "Install the library 999.0.0 if it is not, and restart the server.";
    assert_eq!((refusal.code.as_str(), refusal.hint.as_str()), ("55000", replace));
    pretend_version(&cluster, "999.0.0");
    let row = cluster.rows(SCHEMA_VERSION).remove(0);
    assert_eq!(row[0].as_deref(), Some("f"));
    assert!(row[2].as_deref().unwrap().contains("restart the server"), "{row:?}");
    assert_eq!(cluster.refused("SELECT pgwh.resume('later')").hint, replace);
    cluster.sql("UPDATE t SET version = version + 1");
    pretend_version(&cluster, &version);
    assert_delivered(&cluster, &receiver, "up", 60);
}

/// What `CHANGELOG.md` says has been released: version and date stand in the title.
fn releases() -> Vec<String> {
    let text = std::fs::read_to_string(checkout().join("CHANGELOG.md")).unwrap();
    let titles = text.lines().filter_map(|line| line.strip_prefix("## [")?.split_once("] - "));
    titles.filter(|(_, date)| date.starts_with("20")).map(|(version, _)| version.to_owned()).collect()
}

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The sources of a release, by its tag.
fn sources_of(tag: &str) -> PathBuf {
    let path = checkout().join("target/releases").join(tag);
    if !path.exists() {
        std::fs::create_dir_all(&path).unwrap();
        let script = format!("git archive {tag} | tar -C {} -xf -", path.display());
        let done =
            Command::new("bash").args(["-o", "pipefail", "-c", &script]).current_dir(checkout()).status();
        assert!(done.is_ok_and(|status| status.success()), "tag {tag} cannot be had: git fetch --tags");
    }
    path
}

/// The sources of this checkout as the version that follows it, which changes nothing else.
fn sources_of_the_next_version() -> PathBuf {
    let path = checkout().join("target/releases/next");
    // What it needs of other crates is compiled already.
    let target = format!("target/pg{}", Server::get().major());
    let (version, next) = (env!("CARGO_PKG_VERSION"), "999.0.0");
    let script = format!(
        "rm -rf {to} && mkdir -p {to} &&
         git ls-files -z --cached --others --exclude-standard | tar -cf - --null --ignore-failed-read -T - | tar -C {to} -xf - &&
         mkdir -p {to}/{target} && cp -al {target}/debug {to}/{target}/ && find {to}/target -name '*pgstream_hooks*' -prune -exec rm -rf {{}} + &&
         cd {to} && sed -i 's/^version = \"{version}\"/version = \"{next}\"/' Cargo.toml &&
         mv sql/pgstream_hooks--{version}.sql sql/pgstream_hooks--{next}.sql &&
         echo 'SELECT pgwh_internal.extension_updated();' >sql/pgstream_hooks--{version}--{next}.sql",
        to = path.display()
    );
    let done = Command::new("bash").args(["-o", "pipefail", "-c", &script]).current_dir(checkout()).status();
    assert!(done.is_ok_and(|status| status.success()), "this checkout cannot be copied");
    path
}

#[test]
fn updates_from_and_to_each_version_keep_the_backlog() {
    for version in releases() {
        assert_updates(Server::from(&sources_of(&format!("v{version}"))), Server::get());
    }
    let sources = sources_of_the_next_version();
    let next = Server::from(&sources);
    std::fs::remove_dir_all(sources.join("target")).unwrap();
    assert_updates(Server::get(), next);
}

fn assert_updates(old: &'static Server, new: &'static Server) {
    let mut cluster = Setup::new().of(old).start();
    let receiver = backlog(&cluster);
    // Also of what arrives while the server is down for its new library.
    cluster.sql("SELECT pgwh.pause('up'); UPDATE t SET version = version + 1");
    cluster.stop(Stop::Fast);
    cluster.install(new);
    cluster.begin();
    cluster.sql("UPDATE t SET version = version + 1; ALTER EXTENSION pgstream_hooks UPDATE");
    cluster.sql("SELECT pgwh.resume('up'), pgwh.resume('later')");
    for name in ["up", "later"] {
        assert_delivered(&cluster, &receiver, name, 70);
    }
    assert_eq!(
        cluster
            .value("SELECT pgwh.version() = extversion FROM pg_extension WHERE extname = 'pgstream_hooks'"),
        "t"
    );
    assert_eq!(cluster.value("SELECT count(*) FROM pgwh.health() WHERE NOT ok"), "0");
}

/// Minor releases of 2026 note a version with each column, which `pg_dump` of older ones writes down and their servers
/// don't know: `pg_upgrade` from 15.20 to 18.6 refuses every table there is, whatever extensions it has.
const FORGET_COLUMN_VERSIONS: &str =
    "UPDATE pg_attribute SET attoptions = NULL WHERE attoptions::text LIKE '{pg_attver=%'";

/// Upgrades the cluster, which must not run, to another server.
fn pg_upgrade(old: &Cluster, to: &'static Server) -> Cluster {
    let new = Setup::new().of(to).without_checksums().prepare();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let arguments = [
        "--old-bindir",
        &text(old.installed().bindir()),
        "--new-bindir",
        &text(to.bindir()),
        "--old-datadir",
        &text(&old.data()),
        "--new-datadir",
        &text(&new.data()),
        "--username",
        "postgres",
        "--no-sync",
    ];
    if let Err(error) = new.run("pg_upgrade", &arguments) {
        let mut tail = Command::new("bash");
        let logs = tail
            .args(["-c", "tail -n 20 pg_upgrade_output.d/*/log/*.log"])
            .current_dir(new.data())
            .output()
            .unwrap();
        panic!("{error}\n{}", String::from_utf8_lossy(&logs.stdout));
    }
    new.begin();
    new
}

/// The major versions to upgrade from and to: with the tested one as the old one up to 17, as the new one from 18 on.
fn majors() -> Vec<(u32, u32)> {
    match Server::get().major() {
        19 => vec![(15, 19), (18, 19)],
        18 => vec![(17, 18)],
        old => vec![(old, 18)],
    }
}

#[test]
fn pg_upgrade_brings_the_backlog_along() {
    for (from, to) in majors() {
        assert_backlog_comes_along(from, to);
    }
}

fn assert_backlog_comes_along(from: u32, to: u32) {
    let old = Setup::new().of(Server::of(from)).without_checksums().start();
    let receiver = backlog(&old);
    let pending = old.column("SELECT id FROM pgwh.events ORDER BY id");
    assert_eq!(pending.len(), 50);
    old.sql(FORGET_COLUMN_VERSIONS);
    // What is committed in the last moment is captured as well.
    std::thread::scope(|scope| {
        scope.spawn(|| while old.try_connected("UPDATE t SET version = version + 1").is_ok() {});
        eventually("some of it", || (receiver.count() > 100).then_some(()));
        // What is left to capture is what is committed from now on: a stop waits some seconds for it, no longer.
        old.wait_confirmed();
        old.stop(Stop::Fast);
    });
    receiver.clear();
    let new = pg_upgrade(&old, Server::of(to));
    assert_eq!(receiver.count(), 0, "a copy sends nothing by surprise");
    new.wait_true("SELECT ok FROM pgwh.health() WHERE check_name = 'slot present and valid'");
    let committed = 10 * new.value("SELECT max(version) FROM t").parse::<usize>().unwrap();
    new.wait_status("later", &format!("state = 'held' AND pending = {committed}"));
    assert!(new.status("later", "reason").contains("pg_upgrade"), "{}", new.status("later", "reason"));
    assert_eq!(new.status("later", "next_step"), "SELECT pgwh.adopt();");
    new.sql("UPDATE t SET version = version + 1");
    new.sql("SELECT pgwh.adopt(); SELECT pgwh.resume('later')");
    let ids: Vec<String> =
        assert_delivered(&new, &receiver, "later", committed + 10).iter().map(Event::id).collect();
    assert!(pending.iter().all(|id| ids.contains(id)), "the same ids as before");
    let newest: Vec<String> = new.delivered(&receiver, "up").iter().map(Event::id).collect();
    assert!(newest.iter().all(|id| pending.iter().all(|old| id > old)), "they sort behind those from before");
    let gap = new.status("up", "gap");
    if from >= 17 {
        assert_eq!(gap, "", "the slot came along");
    } else {
        assert!(gap.ends_with("pg_upgrade did not bring the replication slot along"), "{gap}");
        assert_eq!(new.status("up", "next_step"), "SELECT pgwh.backfill('up');");
    }
    assert_eq!(new.value("SELECT count(*) FROM pgwh.health() WHERE NOT ok AND check_name <> 'gaps'"), "0");
}
