//! Every block of SQL and shell in the documents runs.

use std::path::{Path, PathBuf};
use std::process::Command;

use harness::{Cluster, PATIENCE, Receiver, Server, events};

/// The address that documents give for the receiver of this repository.
const RECEIVER: &str = "127.0.0.1:9000";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn documents() -> Vec<PathBuf> {
    let mut found = vec![root().join("README.md"), root().join("benches/README.md")];
    found.extend(std::fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path()));
    found.retain(|path| path.extension().is_some_and(|its| its == "md") && path.exists());
    found
}

/// The blocks of a language, in order.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim_start() == format!("```{language}") {
            let body: Vec<_> = lines.by_ref().take_while(|line| line.trim_start() != "```").collect();
            found.push(body.join("\n"));
        }
    }
    found
}

#[test]
fn sql_runs_as_it_is_written_from_top_to_bottom() {
    for document in documents() {
        let text = std::fs::read_to_string(&document).unwrap();
        let sql = blocks(&text, "sql");
        // The first lines of the README are a foretaste.
        let sql: Vec<_> =
            if document.ends_with("README.md") { sql.into_iter().skip(1).collect() } else { sql };
        if sql.is_empty() {
            continue;
        }
        println!("{}", document.display());
        let cluster = Cluster::start();
        let receiver = Receiver::start().unwrap();
        for block in sql {
            cluster.psql(&block.replace(RECEIVER, &receiver.address().to_string()));
        }
        if document.ends_with("../README.md") {
            receiver.wait_for(3, PATIENCE).unwrap();
            let told: Vec<_> = events(&receiver).iter().map(|event| event.text("action")).collect();
            assert_eq!(told, ["insert", "update", "delete"]);
        }
    }
}

/// Shell blocks run with a `make` that only looks whether there is such a target, a receiver at the address they use,
/// and a `psql` and `pgbench` of the cluster.
#[test]
fn shell_runs_as_it_is_written() {
    let cluster = Cluster::start();
    let receiver =
        receiver::Receiver::with(receiver::Options { control: true, ..Default::default() }).unwrap();
    for document in documents() {
        let text = std::fs::read_to_string(&document).unwrap();
        for block in blocks(&text, "sh") {
            let block = block.replace(RECEIVER, &receiver.address().to_string());
            let script = format!(
                "set -euo pipefail\nmake() {{ command make --dry-run \"$@\" >/dev/null; }}\n\
                 curl() {{ command curl --silent --show-error --fail \"$@\"; }}\n{block}"
            );
            let run = Command::new("bash")
                .args(["-c", &script])
                .current_dir(root())
                .env_remove("MAKEFLAGS")
                .env("PG_CONFIG", "pg_config")
                .env("PGHOST", cluster.host())
                .env("PGPORT", cluster.port().to_string())
                .env("PGUSER", "postgres")
                .output()
                .unwrap();
            let errors = String::from_utf8_lossy(&run.stderr);
            assert!(run.status.success(), "{}: {block}\n{errors}", document.display());
        }
    }
    assert!(Server::get().major() >= 15);
}

#[test]
fn links_to_files_lead_somewhere() {
    for document in documents() {
        let text = std::fs::read_to_string(&document).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if !link.contains("://") && !link.starts_with('#') {
                let target = document.parent().unwrap().join(link.split('#').next().unwrap());
                // Written last, since it tells how all the rest works together.
                assert!(
                    target.exists() || link.ends_with("architecture.md"),
                    "{}: {link}",
                    document.display()
                );
            }
        }
    }
}
