//! What `monitoring/` has for exporters, Prometheus and Grafana works, with the real programs.

mod daemon;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use harness::{Cluster, PATIENCE, Receiver, Script, eventually, run_with_input};
use serde_json::Value;

use daemon::{Daemon, install, root};

fn read(name: &str) -> String {
    let path = root().join("monitoring").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[track_caller]
fn promtool(arguments: &[&str]) {
    install();
    let output =
        Command::new("promtool").args(arguments).current_dir(root().join("monitoring")).output().unwrap();
    let told = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success(), "promtool {arguments:?}: {told:?}");
}

#[test]
fn every_alert_fires_when_it_should_and_only_then() {
    promtool(&["check", "rules", "alerts.yml"]);
    promtool(&["check", "config", "prometheus.yml"]);
    promtool(&["test", "rules", "alerts_test.yml"]);
    let (rules, tests) = (read("alerts.yml"), read("alerts_test.yml"));
    let alerts: Vec<_> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() > 8, "{alerts:?}");
    for alert in alerts {
        let quiet = format!("alertname: {alert}}}");
        let fires = format!("alertname: {alert}\n        exp_alerts:");
        assert!(tests.contains(&quiet) && tests.contains(&fires), "{alert} is tested both ways");
    }
}

/// A database with endpoints of every kind, and what each panel shows happening.
fn stage() -> (Cluster, Receiver) {
    let (cluster, receiver) = (Cluster::with_extension(), Receiver::start().unwrap());
    cluster.sql("CREATE ROLE watcher LOGIN IN ROLE pg_monitor; CREATE TABLE t (id int PRIMARY KEY)");
    cluster.subscribe(&receiver, "well", "");
    cluster.subscribe(&receiver, "refuses", "retry_schedule => '{10 ms}'");
    cluster.subscribe(&receiver, "paused", "");
    cluster.sql("SELECT pgwh.subscribe('http://127.0.0.1:1/', name => 'away'); SELECT pgwh.pause('paused')");
    receiver.behave_at("/refuses", Script::fail_key(serde_json::json!({"id": 1}), 404));
    cluster.sql("INSERT INTO t SELECT generate_series(1, 20)");
    cluster.delivered(&receiver, "well");
    cluster.wait_status("refuses", "dead = 1 AND pending = 0");
    cluster.sql("SELECT pgwh.replay('well', since => now() - interval '1 hour')");
    cluster.wait_true("SELECT done = 20 FROM pgwh.replays");
    cluster.wait_status("away", "mode = 'suspended'");
    (cluster, receiver)
}

fn postgres_exporter(cluster: &Cluster, directory: &Path) -> Daemon {
    let mut command = Command::new("prometheus-postgres-exporter");
    command
        .arg(format!("--extend.query-path={}", root().join("monitoring/postgres_exporter.yml").display()))
        .args(["--disable-default-metrics", "--disable-settings-metrics"])
        .env(
            "DATA_SOURCE_NAME",
            format!("host={} user=watcher dbname=postgres sslmode=disable", cluster.host().display()),
        );
    Daemon::start(directory, command)
}

fn sql_exporter(cluster: &Cluster, directory: &Path) -> Daemon {
    let config = read("sql_exporter.yml")
        .replace("postgres:///postgres?host=/var/run/postgresql&", "postgres://watcher@/postgres?host=HOST&")
        .replace("HOST", &cluster.host().display().to_string())
        .replace("interval: 15s", "interval: 1s");
    let path = directory.join("sql_exporter.yml");
    fs::write(&path, config).unwrap();
    let mut command = Command::new("prometheus-sql-exporter");
    command.arg(format!("--config.file={}", path.display()));
    Daemon::start(directory, command)
}

fn prometheus(directory: &Path, targets: [(&str, &Daemon); 2]) -> Daemon {
    // One job is active; the other one is commented out, at the end.
    let (active, commented) = (read("prometheus.yml"), "\n  # ");
    assert_eq!(active.matches("\n  - job_name: ").count(), 1);
    assert_eq!(active.matches("\n  # - job_name: ").count(), 1);
    let mut config = active
        .replace(commented, "\n  ")
        .replace("scrape_interval: 15s", "scrape_interval: 3s\n  evaluation_interval: 1s");
    for (usual, daemon) in targets {
        assert!(config.contains(usual), "{usual}");
        config = config.replace(usual, &daemon.address);
    }
    let path = directory.join("prometheus.yml");
    fs::write(&path, config).unwrap();
    fs::write(directory.join("alerts.yml"), read("alerts.yml")).unwrap();
    let mut command = Command::new("prometheus");
    command
        .arg(format!("--config.file={}", path.display()))
        .arg(format!("--storage.tsdb.path={}", directory.join("prometheus").display()));
    Daemon::start(directory, command)
}

/// The series of our metrics in an exporter's text: `name{labels}` without labels that are empty or the exporter's own.
fn series(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| line.starts_with("pgwh_"));
    lines
        .filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            let mut labels: Vec<_> = labels.trim_end_matches('}').split(',').collect();
            labels.retain(|label| {
                !label.is_empty() && !label.ends_with("=\"\"") && !label.starts_with("server=")
            });
            labels.sort_unstable();
            Some((format!("{name}{{{}}}", labels.join(",")), value.parse().ok()?))
        })
        .filter(|(_, value): &(String, f64)| !value.is_nan())
        .collect()
}

/// Bounds of buckets as Go prints them.
fn as_go_has_it(series: &str) -> String {
    series.replace("le=\"86400.0\"", "le=\"86400\"").replace(".0\"", "\"")
}

/// What stands in a file of ours as the query of an exporter that is not in Debian: the lines of a block, below `query: |`.
fn query_in(name: &str) -> String {
    let text = read(name);
    let rest = text.split_once("query: |\n").expect("a query").1;
    let indent = rest.len() - rest.trim_start().len();
    let lines = rest.lines().take_while(|line| line.len() - line.trim_start().len() >= indent);
    lines.map(|line| format!("{line}\n")).collect()
}

#[test]
fn queries_of_other_exporters_have_every_sample() {
    let cluster = Cluster::with_extension();
    cluster.sql("CREATE ROLE watcher LOGIN IN ROLE pg_monitor");
    let watcher = cluster.as_role("watcher");
    for (file, labels) in [
        (
            "pgwh.collector.yml",
            "key_labels: [metric, in_database, subscription, worker, state, outcome, error_class, le, version, check_name]",
        ),
        ("cloudnativepg.yml", "- version: {usage: LABEL"),
    ] {
        let query = query_in(file);
        assert!(read(file).contains(labels), "{file}");
        // As CloudNativePG does it, in a transaction that only reads.
        watcher.sql(&format!("BEGIN READ ONLY; {query}; COMMIT"));
        let lacking = watcher.value(&format!(
            "SELECT count(*) FROM (SELECT metric, database, subscription, worker, state, outcome, error_class, le, version, check_name
                FROM pgwh.metric_samples()
              EXCEPT SELECT metric, nullif(in_database, ''), nullif(subscription, ''), nullif(worker, ''), nullif(state, ''),
                nullif(outcome, ''), nullif(error_class, ''), nullif(le, ''), nullif(version, ''), nullif(check_name, '') FROM ({query}) q) lacking"
        ));
        assert_eq!(lacking, "0", "{file}");
        // A label is a text, never null; the label for each column is there.
        let columns =
            watcher.column(&format!("SELECT jsonb_object_keys(to_jsonb(q)) FROM ({query}) q GROUP BY 1"));
        for column in columns.iter().filter(|column| *column != "value") {
            let text = read(file);
            let is_label =
                text.contains(&format!("- {column}: {{usage: LABEL")) || labels.contains(column.as_str());
            assert!(is_label, "{file}: {column}");
            let nulls = watcher.value(&format!("SELECT count(*) FROM ({query}) q WHERE {column} IS NULL"));
            assert_eq!(nulls, "0", "{file}: {column}");
        }
    }
}

/// What a file of YAML holds, document by document, as JSON.
fn parse_yaml(text: &str) -> Vec<Value> {
    install();
    // Debian's own, which has the package.
    let mut parser = Command::new("/usr/bin/python3");
    parser.args(["-c", "import json, sys, yaml; json.dump(list(yaml.safe_load_all(sys.stdin)), sys.stdout)"]);
    let output = run_with_input(parser, text);
    assert!(output.status.success(), "{}\nin:\n{text}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The names of metrics in a text; the extension has a schema of such a name, too.
fn metrics_in(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("pgwh_") && !["pgwh_", "pgwh_internal"].contains(word)).collect()
}

/// `postgres_exporter.yml` composes its names; what it exports is compared below.
#[test]
fn files_parse_and_name_only_metrics_that_are_exposed() {
    let files = fs::read_dir(root().join("monitoring")).unwrap();
    let files: Vec<String> =
        files.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    assert!(files.len() >= 10, "{files:?}");
    for file in files.iter().filter(|file| file.ends_with(".yml")) {
        assert!(parse_yaml(&read(file)).iter().all(Value::is_object), "{file}");
    }
    // What a job that is commented out would be.
    let both = parse_yaml(&read("prometheus.yml").replace("\n  # ", "\n  ")).remove(0);
    assert_eq!(both["scrape_configs"].as_array().unwrap().len(), 2);
    let cloudnativepg = parse_yaml(&read("cloudnativepg.yml"));
    assert_eq!(
        (&cloudnativepg[0]["kind"], &cloudnativepg[1]["kind"]),
        (&"ConfigMap".into(), &"PodMonitor".into())
    );
    let queries = parse_yaml(cloudnativepg[0]["data"]["queries"].as_str().unwrap()).remove(0);
    let columns = queries["pgwh"]["metrics"].as_array().unwrap();
    assert!(columns.iter().any(|column| column["value"]["usage"] == "GAUGE"), "{columns:?}");
    let provider = &parse_yaml(&read("grafana_dashboards.yml"))[0]["providers"][0];
    assert!(provider["type"] == "file" && provider["options"]["path"].is_string(), "{provider}");
    let source = &parse_yaml(&read("grafana_datasource.yml"))[0]["datasources"][0];
    assert!(source["type"] == "prometheus" && source["url"].is_string(), "{source}");

    let (cluster, _receiver) = stage();
    let exposed = cluster.value("SELECT pgwh.metrics()");
    // Families in the lines that describe them, samples in others.
    let exposed = metrics_in(&exposed);
    let guides =
        ["README.md", "docs/monitoring.md", "docs/operations.md", "docs/troubleshooting.md", "docs/sql.md"];
    let texts =
        files.iter().filter(|file| *file != "postgres_exporter.yml").map(|file| format!("monitoring/{file}"));
    for path in texts.chain(guides.map(str::to_owned)) {
        let text = fs::read_to_string(root().join(&path)).unwrap();
        let of_all_versions: String = text
            .lines()
            .filter(|line| !line.contains("from PostgreSQL 19 on"))
            .map(|line| format!("{line}\n"))
            .collect();
        let unknown: Vec<_> = metrics_in(&of_all_versions).difference(&exposed).copied().collect();
        assert!(unknown.is_empty(), "{path}: {unknown:?}");
    }
}

/// Debian's steps name files of ours, and Grafana loads the dashboard that they install.
#[test]
fn the_files_that_the_guide_installs_are_there() {
    let guide = fs::read_to_string(root().join("docs/monitoring.md")).unwrap();
    let installs =
        guide.lines().map(str::trim).filter(|line| line.starts_with("install ")).collect::<Vec<_>>();
    assert!(installs.len() >= 6, "{installs:?}");
    for file in
        installs.iter().flat_map(|line| line.split(' ')).filter(|word| word.starts_with("monitoring/"))
    {
        assert!(root().join(file).exists(), "{file}");
    }
    let folder = read("grafana_dashboards.yml");
    let folder = folder.lines().find_map(|line| line.trim().strip_prefix("path: ")).unwrap();
    assert!(installs.iter().any(|line| line.ends_with(&format!("{folder}/grafana.json"))), "{folder}");
    assert!(read("grafana_datasource.yml").contains("url: http://127.0.0.1:9090"));
}

#[test]
fn exporters_dashboard_and_rules_agree_with_the_metrics() {
    install();
    let (cluster, receiver) = stage();
    let directory = cluster.make_directory("monitoring");
    let mut exporter = postgres_exporter(&cluster, &directory);

    // Names, with the values of what stands still while nothing is committed.
    let still =
        ["pgwh_deliveries", "pgwh_subscription_retries", "pgwh_subscription_replayed", "pgwh_subscription_p"];
    let comparable = |text: &str| -> BTreeMap<String, Option<f64>> {
        let values = series(text).into_iter();
        values
            .map(|(series, value)| {
                let value = still.iter().any(|name| series.starts_with(name)).then_some(value);
                (as_go_has_it(&series), value)
            })
            .collect()
    };
    // Where nobody listens is looked now and then, which counts: perhaps after one was read and before the other.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let told = comparable(&cluster.value("SELECT pgwh.metrics()"));
        let exported = comparable(&exporter.get("/metrics"));
        if exported.len() > 80 && told == exported {
            break;
        }
        if Instant::now() > deadline {
            assert_eq!(told, exported, "{}", exporter.log());
            panic!("{} series only", exported.len());
        }
        std::thread::sleep(Duration::from_millis(100));
    }

    let mut other = sql_exporter(&cluster, &directory);
    let targets = [("127.0.0.1:9187", &exporter), ("127.0.0.1:9237", &other)];
    let mut prometheus = prometheus(&directory, targets);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = cluster.connect();
            for id in (100..).take_while(|_| !over.load(Ordering::Relaxed)) {
                client.batch_execute(&format!("INSERT INTO t VALUES ({id})")).unwrap();
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let _over = Over(&over);
        for job in ["postgres_exporter", "sql_exporter"] {
            for (panel, expression) in panels() {
                let expression = expression
                    .replace("$__rate_interval", "10s")
                    .replace("database=~\"$database\"", &format!("job=\"{job}\", database=~\".*\""))
                    .replace("$subscription", ".*");
                assert!(!expression.contains('$'), "{expression}");
                eventually(&format!("series of {panel}: {expression}"), || {
                    let shown = prometheus.query(&expression);
                    shown.iter().any(|series| series["value"][1] != "NaN").then_some(())
                });
            }
        }
        eventually("the alert of dead letters", || {
            let rules: Value = serde_json::from_str(&prometheus.get("/api/v1/rules")).unwrap();
            let rules = rules["data"]["groups"][0]["rules"].as_array().unwrap().clone();
            for rule in &rules {
                assert_ne!(rule["health"], "err", "{rule}");
            }
            cluster.sql("DELETE FROM t WHERE id = 1; INSERT INTO t VALUES (1)");
            let fires = |rule: &Value| rule["name"] == "PgwhDeadLetters" && rule["state"] == "firing";
            rules.iter().any(fires).then_some(())
        });
    });
    assert!(other.get("/metrics").contains("sql_pgwh{"));
    drop(receiver);
}

/// Ends the traffic, also when an expectation fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The title of each panel of the dashboard, with each of its queries.
fn panels() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(&read("grafana.json")).unwrap();
    let mut found = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        let targets = panel["targets"].as_array();
        assert!(panel["type"] == "row" || targets.is_some_and(|targets| !targets.is_empty()), "{title}");
        for target in targets.into_iter().flatten() {
            found.push((title.to_owned(), target["expr"].as_str().unwrap().to_owned()));
        }
    }
    assert!(found.len() > 40, "{found:?}");
    found
}
