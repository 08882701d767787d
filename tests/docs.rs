//! What the documentation shows is true: every block of README.md, docs/ and benches/README.md is run, in order, on
//! one throw-away cluster a file.
//!
//! | fence    | what is done with it |
//! |----------|----------------------|
//! | `sql`    | run by `psql`; then everything it committed must reach its subscriptions |
//! | `output` | must be what the `sql` block before it printed |
//! | `json`   | must be the body of the webhook that came last, or members of its `data` |
//! | `json golden` | is a golden file of a payload format, and tested as such |
//! | `http`   | must be that webhook's method, path and headers |
//! | `python` | must define `verify(secret, headers, body)`, which accepts that webhook and no other body |
//! | `ini`    | goes into `postgresql.conf`, and the server is restarted |
//! | `sh`     | run by `bash` in the root of the repository, where `make` tells what it would do (`make -n`) |
//! | `text`   | is not run: it is no program, or one for another machine |
//!
//! Any other fence is refused, so that nothing goes unchecked by accident. A receiver stands for
//! `https://example.com` and for the one of `make receiver`; it refuses what comes to `/down`. In `output` and `json`, `…` stands for any text, and
//! widths of columns do not matter; in `json`, ids, oids, times and positions differ from run to run and need only be there.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use harness::{Cluster, PATIENCE, Receiver, Reply, Request, Server, Stop, json};
use receiver::Options;
use serde_json::Value;

const EXAMPLE: &str = "https://example.com";
/// Where the receiver of the repository listens by default; the same one stands for it.
const LOCAL: &str = "http://127.0.0.1:9000";

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
    }
}

#[test]
fn everything_that_a_user_sees_is_documented() {
    let cluster = Cluster::start();
    cluster.sql("CREATE EXTENSION pgstream_hooks");
    let names = cluster.column(
        "SELECT 'pgwh.' || proname || '(' FROM pg_proc
           WHERE pronamespace = 'pgwh'::regnamespace AND prorettype NOT IN ('trigger'::regtype, 'event_trigger'::regtype)
         UNION SELECT 'pgwh.' || relname FROM pg_class
           WHERE relnamespace = 'pgwh'::regnamespace AND relkind IN ('r', 'p', 'v') AND NOT relispartition
         UNION SELECT format('`%s`', attname) FROM pg_attribute
           WHERE attrelid = ANY ('{pgwh.status, pgwh.subscriptions, pgwh.events, pgwh.deliveries, pgwh.attempts,
                                 pgwh.dead_letters, pgwh.gaps, pgwh.replays, pgwh.backfills, pgwh.schema_history}'::regclass[]) AND attnum > 0
         UNION SELECT format('`%s ', unnest(proargnames)) FROM pg_proc WHERE oid::regproc::text = 'pgwh.subscribe'
         UNION SELECT format('`%s`', check_name) FROM pgwh.health()
         UNION SELECT format('`%s`', name) FROM pg_settings WHERE name LIKE 'pgwh.%'",
    );
    assert!(names.len() > 50, "{names:?}");
    let text: String =
        documents().iter().map(|path| fs::read_to_string(path).unwrap()).collect::<Vec<_>>().join("\n");
    let missing: Vec<_> = names.iter().filter(|name| !text.contains(*name)).collect();
    assert!(missing.is_empty(), "not in the documentation: {missing:?}");
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

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// A fenced block of a document.
struct Block {
    /// The line of its fence, counted from 1.
    line: usize,
    fence: String,
    text: String,
}

fn blocks(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<(Block, &str)> = None;
    for (number, line) in text.lines().enumerate() {
        let indent = &line[..line.len() - line.trim_start().len()];
        open = match (open.take(), line.trim_start().strip_prefix("```")) {
            (Some((block, _)), Some(_)) => {
                blocks.push(block);
                None
            }
            (Some((mut block, indent)), None) => {
                block.text += line.strip_prefix(indent).unwrap_or(line);
                block.text.push('\n');
                Some((block, indent))
            }
            (None, Some(fence)) => {
                let block = Block { line: number + 1, fence: fence.trim().into(), text: String::new() };
                Some((block, indent))
            }
            (None, None) => None,
        };
    }
    assert!(open.is_none(), "a block is not closed");
    blocks
}

/// What the blocks of one document run on.
struct Stage {
    cluster: Cluster,
    receiver: Receiver,
    /// What the last `sql` block printed.
    printed: String,
    /// Keys of subscriptions, also of those that are gone.
    secrets: HashMap<String, String>,
}

impl Stage {
    fn new() -> Stage {
        let receiver = Receiver::with(Options { control: true, ..Options::default() }).unwrap();
        receiver.behave(|request: &Request| {
            Reply::status(if request.path().starts_with("/down") { 503 } else { 200 })
        });
        Stage { cluster: Cluster::start(), receiver, printed: String::new(), secrets: HashMap::new() }
    }

    fn run(&mut self, block: &Block) -> Result<(), String> {
        match block.fence.as_str() {
            "sql" => self.sql(&block.text),
            "output" => like(&normal(&block.text), &normal(&self.printed)),
            "json" => self.json(&block.text),
            "http" => self.http(&block.text),
            "python" => self.python(&block.text),
            "ini" => {
                self.cluster.set(&block.text);
                self.cluster.restart(Stop::Fast);
                Ok(())
            }
            "sh" | "shell" => sh(&block.text.replace(LOCAL, &self.receiver.url(""))),
            // Held against the golden files by the unit tests of formats.
            "json golden" => Ok(()),
            "text" | "mermaid" => Ok(()),
            other => Err(format!("there is nothing to do with {other:?}; what can't be run is \"text\"")),
        }
    }

    fn sql(&mut self, script: &str) -> Result<(), String> {
        let url = self.receiver.url("");
        let script = script.replace(EXAMPLE, &url).replace(LOCAL, &url);
        let mut psql = Server::get()
            .command("psql")
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-h"])
            .arg(self.cluster.host())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        psql.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        let output = psql.wait_with_output().unwrap();
        self.printed = String::from_utf8_lossy(&output.stdout).replace(&url, EXAMPLE);
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        self.arrived()
    }

    /// Waits until what was committed has arrived, if there is somebody for it.
    fn arrived(&mut self) -> Result<(), String> {
        if self.cluster.value("SELECT to_regclass('pgwh.subscriptions')").is_empty() {
            return Ok(());
        }
        for row in self.cluster.rows("SELECT name, pgwh.secret(name) FROM pgwh.subscriptions") {
            if let [Some(name), Some(secret)] = &row[..] {
                self.secrets.insert(name.clone(), secret.clone());
            }
        }
        let late = self.cluster.column(&format!(
            "SELECT name FROM pgwh.subscriptions
             WHERE enabled AND NOT paused AND current_setting('pgwh.enabled')::bool AND home = pgwh.home() AND url NOT LIKE '%/down%'
               AND NOT pgwh.wait(name, '{} s')",
            PATIENCE.as_secs()
        ));
        if late.is_empty() { Ok(()) } else { Err(format!("nothing reached {late:?}")) }
    }

    fn last(&self) -> Result<Arc<Request>, String> {
        self.receiver.requests().last().cloned().ok_or_else(|| "no webhook came".into())
    }

    fn json(&self, text: &str) -> Result<(), String> {
        let shown = json(text).map_err(|error| error.to_string())?;
        let request = self.last()?;
        let body = std::str::from_utf8(request.body()).unwrap();
        let sent = json(body).unwrap();
        let names =
            |value: &Value| value.as_object().map(|members| members.keys().cloned().collect::<Vec<_>>());
        // A transform makes other bodies.
        let is_whole =
            shown.get("type").is_some() || sent.get("data").is_none() || names(&shown) == names(&sent);
        let same = if is_whole {
            same(&shown, &sent)
        } else {
            let members = shown.as_object().ok_or("neither a webhook nor members of its data")?;
            members.iter().all(|(name, value)| same(value, &sent["data"][name]))
        };
        if same { Ok(()) } else { Err(format!("what came is {body}")) }
    }

    fn http(&self, text: &str) -> Result<(), String> {
        let request = self.last()?;
        let (first, rest) = text.split_once('\n').ok_or("no request line")?;
        let line = format!("{} {} HTTP/1.1", request.method(), request.path());
        if first != line {
            return Err(format!("what came is {line}"));
        }
        let mut shown: Vec<_> =
            rest.lines().filter_map(|line| Some(line.split_once(':')?.0.to_owned())).collect();
        let mut sent: Vec<_> = request.headers().map(|(name, _)| name.to_ascii_lowercase()).collect();
        shown.sort();
        sent.sort();
        if shown == sent { Ok(()) } else { Err(format!("what came has {sent:?}")) }
    }

    fn python(&self, script: &str) -> Result<(), String> {
        let request = self.last()?;
        let name = request.events()[0]["data"]["subscription"].as_str().unwrap_or_default().to_owned();
        let secret = self.secrets.get(&name).ok_or_else(|| format!("no key of {name}"))?;
        let headers: HashMap<_, _> =
            request.headers().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect();
        let driver = format!(
            "{script}\nimport json, sys\nheaders = json.load(sys.stdin)\n\
             body = {:?}.encode()\n\
             verify({secret:?}, headers, body)\n\
             try:\n    verify({secret:?}, headers, body + b' ')\n\
             except Exception:\n    sys.exit(0)\n\
             sys.exit('another body is accepted')\n",
            String::from_utf8_lossy(request.body()),
        );
        let packages = root().join("scripts/packages");
        let mut command = Command::new("bash");
        command.args([
            "-euc",
            "command -v python3 >/dev/null || \"$0\" python3-minimal; exec python3 -c \"$1\"",
        ]);
        command.arg(packages).arg(driver);
        succeeds(command, &serde_json::to_string(&headers).unwrap())
    }
}

/// Runs a script; its `make` only tells what it would do.
fn sh(script: &str) -> Result<(), String> {
    let script = format!("make() {{ command make --silent --dry-run \"$@\"; }}\n{script}");
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", &script]).current_dir(root());
    // cargo sets these for tests, and they are not meant for what a user types.
    for name in ["MAKEFLAGS", "MAKELEVEL", "CARGO_TARGET_DIR"] {
        command.env_remove(name);
    }
    succeeds(command, "")
}

fn succeeds(mut command: Command, input: &str) -> Result<(), String> {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Who reads no input may be gone before it is written.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    ))
}

/// Lines without what the width of a column makes of them.
fn normal(text: &str) -> Vec<String> {
    let squeezed = text.lines().map(|line| {
        let mut line = line.split_whitespace().collect::<Vec<_>>().join(" ");
        while line.contains("--") {
            line = line.replace("--", "-");
        }
        line
    });
    squeezed.filter(|line| !line.is_empty()).collect()
}

fn like(shown: &[String], printed: &[String]) -> Result<(), String> {
    let same = shown.len() == printed.len()
        && shown.iter().zip(printed).all(|(shown, printed)| matches(shown, printed));
    if same { Ok(()) } else { Err(format!("what was printed is\n{}", printed.join("\n"))) }
}

/// Whether a text is as shown, where `…` stands for anything.
fn matches(shown: &str, text: &str) -> bool {
    let mut parts = shown.split('…');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
    let parts: Vec<_> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

fn same(shown: &Value, sent: &Value) -> bool {
    match (shown, sent) {
        (Value::Object(shown), Value::Object(sent)) => {
            shown.len() == sent.len()
                && shown.iter().all(|(name, shown)| match sent.get(name) {
                    Some(sent) if differs_from_run_to_run(name, shown) => {
                        std::mem::discriminant(shown) == std::mem::discriminant(sent)
                    }
                    Some(sent) => same(shown, sent),
                    None => false,
                })
        }
        (Value::Array(shown), Value::Array(sent)) => {
            shown.len() == sent.len() && shown.iter().zip(sent).all(|(shown, sent)| same(shown, sent))
        }
        (Value::String(shown), Value::String(sent)) => matches(shown, sent),
        _ => shown == sent,
    }
}

fn differs_from_run_to_run(name: &str, shown: &Value) -> bool {
    let is_event_id = shown.as_str().is_some_and(|text| text.starts_with("evt_"));
    is_event_id || ["timestamp", "lsn", "xid", "commit_lsn", "oid"].contains(&name)
}
