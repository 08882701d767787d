//! Tables of extensions and of the system: wildcards mean users' tables, and who names another gets that.

use harness::{Server, Stage, what};

/// A table that is a member of an extension, and one that is not.
fn stage() -> Stage {
    let stage = Stage::set();
    stage.each(&[
        "CREATE EXTENSION hstore",
        "CREATE SCHEMA cron",
        "CREATE TABLE cron.job (id int PRIMARY KEY, command text)",
        "CREATE TABLE cron.mine (id int PRIMARY KEY, command text)",
        "ALTER EXTENSION hstore ADD TABLE cron.job",
    ]);
    stage
}

/// What each of these subscriptions has got since it was last asked.
#[track_caller]
fn got(stage: &Stage, names: &[&str]) -> Vec<Vec<String>> {
    let got = names.iter().map(|name| what(&stage.got(name))).collect();
    stage.receiver.clear();
    got
}

#[test]
fn wildcards_match_no_table_of_an_extension() {
    let stage = stage();
    for (name, tables) in [("schema", "{cron.*}"), ("table", "{*.job}"), ("literal", "{cron.job}")] {
        stage.subscribe(&stage.receiver, name, &format!("tables => '{tables}'"));
    }
    let all = ["all", "schema", "table", "literal"];
    stage.each(&["INSERT INTO cron.job VALUES (1)", "INSERT INTO cron.mine VALUES (1)"]);
    let mine = vec!["cron.mine insert".to_owned()];
    let job = vec!["cron.job insert".to_owned()];
    assert_eq!(got(&stage, &all), [mine.clone(), mine, vec![], job.clone()]);

    // As of the change, whatever else has happened to the table since it was first seen.
    stage.sql("BEGIN; ALTER EXTENSION hstore DROP TABLE cron.job; INSERT INTO cron.job VALUES (2); COMMIT");
    assert_eq!(got(&stage, &all), [job.clone(), job.clone(), job.clone(), job.clone()]);
    stage.sql("INSERT INTO cron.job VALUES (3); ALTER EXTENSION hstore ADD TABLE cron.job; UPDATE cron.job SET command = 'x' WHERE id = 3; TRUNCATE cron.job");
    let rest: Vec<String> =
        ["insert", "update", "truncate"].map(|action| format!("cron.job {action}")).into();
    assert_eq!(got(&stage, &all), [job.clone(), job.clone(), job, rest]);
}

#[test]
fn wildcards_match_no_table_in_an_extensions_schema() {
    let stage = stage();
    stage.subscribe(&stage.receiver, "literal", "tables => '{cron.mine}'");
    let all = ["all", "literal"];
    let insert = vec!["cron.mine insert".to_owned()];
    stage.sql("INSERT INTO cron.mine VALUES (1)");
    assert_eq!(got(&stage, &all), [insert.clone(), insert.clone()]);
    stage.each(&["ALTER EXTENSION hstore ADD SCHEMA cron", "INSERT INTO cron.mine VALUES (2)"]);
    assert_eq!(got(&stage, &all), [vec![], insert.clone()]);
    stage.each(&["ALTER EXTENSION hstore DROP SCHEMA cron", "INSERT INTO cron.mine VALUES (3)"]);
    assert_eq!(got(&stage, &all), [insert.clone(), insert]);
}

#[test]
fn what_an_extension_brings_along_is_sent_to_who_names_it() {
    let directory = Server::get().extensions();
    let script = "CREATE SCHEMA brought; CREATE TABLE brought.jobs (id int PRIMARY KEY); INSERT INTO brought.jobs VALUES (1);";
    std::fs::write(directory.join("pgwh_brought.control"), "default_version = '1'\n").unwrap();
    std::fs::write(directory.join("pgwh_brought--1.sql"), script).unwrap();
    let stage = Stage::set();
    stage.subscribe(&stage.receiver, "schema", "tables => '{brought.*}', event_types => '{insert, ddl}'");
    stage.each(&["CREATE EXTENSION pgwh_brought", "INSERT INTO brought.jobs VALUES (2)"]);
    stage.subscribe(&stage.receiver, "literal", "tables => '{brought.jobs}'");
    stage.each(&[
        "CREATE TABLE mine (id int)",
        "INSERT INTO brought.jobs VALUES (3)",
        "INSERT INTO mine VALUES (1)",
    ]);
    let expected = [vec!["public.mine insert".to_owned()], vec![], vec!["brought.jobs insert".to_owned()]];
    assert_eq!(got(&stage, &["all", "schema", "literal"]), expected);
}

#[test]
fn tables_in_system_schemas_are_sent_to_who_names_them() {
    let stage = Stage::set();
    stage.sql("SET allow_system_table_mods = on; CREATE TABLE pg_catalog.pg_dist_node (id int PRIMARY KEY)");
    stage.subscribe(&stage.receiver, "wild", "tables => '{*.pg_dist*}'");
    stage.subscribe(&stage.receiver, "literal", "tables => '{pg_catalog.pg_dist_node}'");
    stage.sql("INSERT INTO pg_catalog.pg_dist_node VALUES (1)");
    let insert = vec!["pg_catalog.pg_dist_node insert".to_owned()];
    assert_eq!(got(&stage, &["all", "wild", "literal"]), [vec![], vec![], insert]);
    for tables in ["{pg_catalog.*}", "{pg_catalog.pg_class}", "{information_schema.sql_features}"] {
        let url = stage.receiver.url("/");
        let refusal = stage.refused(&format!("SELECT pgwh.subscribe('{url}', tables => '{tables}')"));
        assert_eq!(refusal.code, "42809", "{tables}: {refusal:?}");
    }
}

#[test]
fn a_backfill_of_a_wildcard_reads_no_table_of_an_extension() {
    let stage = stage();
    stage.sql("INSERT INTO cron.job VALUES (1); INSERT INTO cron.mine VALUES (1)");
    stage.subscribe(&stage.receiver, "literal", "tables => '{cron.job}'");
    let backfilled = |name: &str| {
        let id = stage.value(&format!("SELECT pgwh.backfill('{name}')"));
        stage.wait_true(&format!("SELECT state = 'done' FROM pgwh.backfills WHERE id = {id}"));
        stage.value(&format!("SELECT tables_total FROM pgwh.backfills WHERE id = {id}"))
    };
    // A table that cannot be read row by row is in nobody's way when it is not meant.
    stage.sql("CREATE TABLE cron.keyless (id int); ALTER EXTENSION hstore ADD TABLE cron.keyless");
    assert_eq!((backfilled("all"), backfilled("literal")), ("1".to_owned(), "1".to_owned()));
    stage.each(&["INSERT INTO cron.job VALUES (2)", "INSERT INTO cron.mine VALUES (2)"]);
    let expected = [
        vec!["cron.mine insert", "cron.mine read", "cron.mine insert"],
        vec!["cron.job read", "cron.job insert"],
    ];
    assert_eq!(got(&stage, &["all", "literal"]), expected);
}

#[test]
fn schema_changes_of_an_extensions_table_go_to_who_names_it() {
    let stage = stage();
    for (name, tables) in [("wild", "{*.*}"), ("schema", "{cron.*}"), ("literal", "{cron.job}")] {
        let arguments = format!("tables => '{tables}', event_types => '{{ddl}}'");
        stage.subscribe(&stage.receiver, name, &arguments);
    }
    stage.each(&[
        "ALTER TABLE cron.job ADD COLUMN a int",
        "CREATE INDEX job_a ON cron.job (a)",
        "DROP INDEX cron.job_a",
        "ALTER EXTENSION hstore ADD SCHEMA cron",
        "CREATE TABLE cron.made (id int)",
        "DROP TABLE cron.made",
        "CREATE TABLE mine (id int)",
    ]);
    let tags = |name: &str| -> Vec<String> {
        stage.got(name).iter().map(|event| event.text("command_tag")).collect()
    };
    assert_eq!(tags("wild"), ["CREATE TABLE"]);
    assert_eq!(tags("schema"), Vec::<String>::new());
    assert_eq!(tags("literal"), ["ALTER TABLE", "CREATE INDEX", "DROP INDEX"]);
}

#[test]
fn status_and_preview_of_a_wildcard_speak_of_users_tables() {
    let stage = stage();
    stage.sql("CREATE TABLE cron.other (id int); ALTER EXTENSION hstore ADD TABLE cron.other; CREATE TABLE cron.also (id int)");
    stage.subscribe(
        &stage.receiver,
        "schema",
        "tables => '{cron.*}', filter => 'command <> ''''', event_types => '{insert}'",
    );
    let reason = stage.status("schema", "reason");
    assert!(reason.contains("cron.also") && !reason.contains("cron.other"), "{reason}");
    let detail = stage.value("SELECT detail FROM pgwh.health() WHERE check_name = 'subscriptions valid'");
    assert!(detail.contains("cron.also") && !detail.contains("cron.other"), "{detail}");
    let body = stage.value("SELECT body FROM pgwh.preview('schema', '{\"id\": 1, \"command\": \"x\"}')");
    assert!(body.contains("\"mine\"") && !body.contains("\"job\""), "{body}");
    stage.sql("INSERT INTO cron.job VALUES (1)");
    stage.got("schema");
    let fate =
        stage.value("SELECT fate FROM pgwh.why('cron.job', '{\"id\": 1}') WHERE subscription = 'schema'");
    assert!(fate.starts_with("not wanted: table pattern"), "{fate}");
}
