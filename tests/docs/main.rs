//! What the documentation shows is true: every block of README.md, docs/ and benches/README.md is run, in order, on
//! one throw-away cluster a file.
//!
//! | fence    | what is done with it |
//! |----------|----------------------|
//! | `sql`    | run by `psql`; everything it committed must reach its subscriptions before anything but a look at tables |
//! | `sql refused` | run by `psql`, which must fail |
//! | `output` | must be what the `sql` block before it printed, or prints a moment later if it only looks at tables |
//! | `json`   | must be the body of the webhook that came last, or members of its `data` |
//! | `json golden` | is a golden file of a payload format, and tested as such |
//! | `http`   | must be that webhook's method, path and headers |
//! | `python` | must define `verify(secret, headers, body)`, which accepts that webhook and no other body |
//! | `ini`    | goes into `postgresql.conf`, and the server is restarted |
//! | `sh`     | run by `bash` in the root of the repository, where `make` tells what it would do (`make -n`); a directory stands for `/etc/postgresql` |
//! | `text`   | is not run: it is no program, or one for another machine |
//!
//! Any other fence is refused, so that nothing goes unchecked by accident. A receiver stands for
//! `https://example.com` and for those at `http://127.0.0.1:9000` and `http://localhost:9910`; it refuses what comes to `/down`. In `output` and `json`, `…` stands for any text, and
//! widths of columns do not matter; in `json`, ids, oids, times and positions differ from run to run and need only be there.

mod block;
mod compare;
mod mistakes;
mod receivers;
mod reference;
mod regress;
mod release;
mod stage;

use std::fs;
use std::path::{Path, PathBuf};

use harness::Cluster;

use block::blocks;
use stage::Stage;

#[test]
fn every_block_of_the_documentation_works() {
    for path in documents() {
        let text = fs::read_to_string(&path).unwrap();
        let blocks = blocks(&text);
        let mut stage = None;
        for block in blocks {
            let place = format!("{}:{}", path.display(), block.line);
            let stage = stage.get_or_insert_with(Stage::new);
            if let Err(problem) = stage.run(&block) {
                panic!("{place}: {problem}\nin:\n{}", block.text);
            }
        }
        if let Some(Err(problem)) = stage.as_mut().map(Stage::arrived) {
            panic!("{}: {problem} at its end", path.display());
        }
    }
}

/// Besides what the reference lists: that is made, and says no more than the COMMENTs do.
#[test]
fn what_a_user_sets_and_looks_at_is_explained() {
    let cluster = Cluster::start();
    cluster.sql("CREATE EXTENSION pgstream_hooks");
    let names = cluster.column(
        "SELECT format('`%s ', unnest(proargnames)) FROM pg_proc WHERE oid::regproc::text = 'pgwh.subscribe'
         UNION SELECT format('`%s`', check_name) FROM pgwh.health()
         UNION SELECT name FROM pg_settings WHERE name LIKE 'pgwh.%'
         UNION SELECT 'pgwh.' || relname FROM pg_class
           WHERE relnamespace = 'pgwh'::regnamespace AND relkind = 'v' AND relname <> 'status'",
    );
    assert!(names.len() > 50, "{names:?}");
    let text: String = documents()
        .iter()
        .filter(|path| !path.ends_with("docs/reference.md"))
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    let missing: Vec<_> = names.iter().filter(|name| !text.contains(*name)).collect();
    assert!(missing.is_empty(), "not explained outside of docs/reference.md: {missing:?}");
}

#[test]
fn links_lead_to_files_and_headings_that_are_there() {
    for path in documents() {
        let text = fs::read_to_string(&path).unwrap();
        for named in text.split('`').filter(|code| code.starts_with("tests/")) {
            assert!(root().join(named).exists(), "{}: there is no {named}", path.display());
        }
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { path.clone() } else { path.with_file_name(file) };
            assert!(target.exists(), "{}: there is no {}", path.display(), target.display());
            if !heading.is_empty() {
                let text = fs::read_to_string(&target).unwrap();
                assert!(
                    text.lines().any(|line| anchor(line) == heading),
                    "{}: there is no {link}",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn the_comparison_has_the_rate_that_was_measured() {
    let read = |path: &str| fs::read_to_string(root().join(path)).unwrap();
    let (comparison, benchmarks) = (read("docs/comparison.md"), read("benches/README.md"));
    let before = comparison.split(" requests a second](../benches/README.md)").next().unwrap();
    let rate = before.rsplit('[').next().unwrap();
    let burst = benchmarks.lines().find(|line| line.starts_with("| `burst` |")).unwrap();
    assert!(
        burst.contains(&format!("{rate}/s")),
        "docs/comparison.md says {rate}, benches/README.md: {burst}"
    );
}

/// What these pages say to type, in the middle of a sentence or a table, has no result to look at; that the server understands
/// it is what can be tried.
#[test]
fn commands_within_sentences_are_understood() {
    let cluster = Cluster::with_extension();
    cluster.sql("CREATE TABLE orders (id int PRIMARY KEY, note text)");
    let (mut tried, mut wrong) = (0, Vec::new());
    for path in documents() {
        let text = fs::read_to_string(&path).unwrap();
        let prose = text.split("```").step_by(2).collect::<String>();
        for command in prose.split('`').skip(1).step_by(2).filter(|code| is_command(code)) {
            // Outside of quotes an ellipsis stands for a value.
            let parts = command.split('\'').enumerate();
            let parts: Vec<_> = parts
                .map(|(at, part)| if at % 2 == 0 { part.replace('…', "NULL") } else { part.into() })
                .collect();
            tried += 1;
            if let Err(error) = cluster.try_sql(&format!("EXPLAIN {}", parts.join("'"))) {
                let why = error.as_db_error().map(ToString::to_string).unwrap_or_default();
                wrong.push(format!("{}: {command}: {why}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(tried > 20, "{tried}");
}

/// Whether it is more than the name of a command, and one whose plan can be shown.
fn is_command(code: &str) -> bool {
    let (first, rest) = code.split_once(char::is_whitespace).unwrap_or((code, ""));
    ["SELECT", "UPDATE", "DELETE", "INSERT"].contains(&first) && !rest.is_empty()
}

/// What a heading is linked by.
fn anchor(line: &str) -> String {
    let heading = line.trim_start_matches('#').trim().to_lowercase();
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// README.md, docs/**/*.md and benches/README.md.
fn documents() -> Vec<PathBuf> {
    let mut found = vec![root().join("README.md"), root().join("benches/README.md")];
    let mut directories = vec![root().join("docs")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    found.retain(|path| path.exists());
    found.sort();
    found
}

/// The root of the repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}
