//! A cluster and a receiver that the blocks of one document run on.

use std::collections::HashMap;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use harness::{Cluster, PATIENCE, Receiver, Reply, Request, Server, Stop, json, run_with_input};
use receiver::Options;
use serde_json::Value;

use crate::block::Block;
use crate::compare::{like, normal, same};
use crate::root;

/// Where pages put files for the server; a directory of the cluster stands for it.
const ETC: &str = "/etc/postgresql";
const EXAMPLE: &str = "https://example.com";
/// Where the receiver of the repository listens by default, and the webhook server of pgstream's tutorial; the same one stands
/// for them.
const LOCAL: [&str; 2] = ["http://127.0.0.1:9000", "http://localhost:9910"];

/// What the blocks of one document run on.
pub struct Stage {
    cluster: Cluster,
    receiver: Receiver,
    etc: String,
    /// The last `sql` block.
    asked: String,
    /// What it printed.
    printed: String,
    /// The `content-length` of the `http` block before, which the `json` block that follows has without its white space.
    length: Option<usize>,
    /// Keys of subscriptions, also of those that are gone.
    secrets: HashMap<String, String>,
}

impl Stage {
    /// A new cluster without the extension.
    pub fn new() -> Stage {
        let receiver = Receiver::with(Options { control: true, ..Options::default() }).unwrap();
        receiver.behave(|request: &Request| {
            Reply::status(if request.path().starts_with("/down") { 503 } else { 200 })
        });
        let cluster = Cluster::start();
        let etc = cluster.make_directory("etc").display().to_string();
        Stage {
            cluster,
            receiver,
            etc,
            asked: String::new(),
            printed: String::new(),
            length: None,
            secrets: HashMap::new(),
        }
    }

    /// Does with a block what its fence asks for.
    pub fn run(&mut self, block: &Block) -> Result<(), String> {
        // Who only looks may want to see what is under way still.
        if !(block.fence == "output" || block.fence == "sql" && only_looks(&block.text)) {
            self.arrived()?;
        }
        let length = self.length.take();
        match block.fence.as_str() {
            "sql" => {
                self.asked = block.text.clone();
                self.psql(&block.text)
            }
            "sql refused" => match self.psql(&block.text) {
                Ok(()) => Err("it is not refused".into()),
                Err(error) => {
                    self.printed = error;
                    Ok(())
                }
            },
            "output" => self.output(&block.text),
            "json" => {
                self.json(&block.text)?;
                let shown = json(&block.text).map_err(|error| error.to_string())?.to_string().len();
                match length {
                    Some(length) if length != shown => Err(format!("the content-length of this is {shown}")),
                    _ => Ok(()),
                }
            }
            "http" => {
                let length = block.text.lines().find_map(|line| line.strip_prefix("content-length: "));
                self.length = length.and_then(|length| length.parse().ok());
                self.http(&block.text)
            }
            "python" => self.python(&block.text),
            "ini" => {
                self.cluster.set(&block.text);
                self.cluster.restart(Stop::Fast);
                Ok(())
            }
            "sh" | "shell" => sh(&self.here(&block.text), &self.etc),
            // Held against the golden files by the unit tests of formats.
            "json golden" => Ok(()),
            "text" | "mermaid" => Ok(()),
            other => Err(format!("there is nothing to do with {other:?}; what cannot be run is \"text\"")),
        }
    }

    /// A script with the receiver and the directory of this stage in the places of those that a page names.
    fn here(&self, script: &str) -> String {
        let url = self.receiver.url("");
        let script =
            LOCAL.iter().fold(script.replace(EXAMPLE, &url), |script, local| script.replace(local, &url));
        script.replace(ETC, &self.etc)
    }

    /// Runs a script, and keeps what it prints.
    fn psql(&mut self, script: &str) -> Result<(), String> {
        let script = self.here(script);
        let mut psql = Server::get().command("psql");
        psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-h"]).arg(self.cluster.host());
        let output = run_with_input(psql, &script);
        self.printed = String::from_utf8_lossy(&output.stdout).replace(&self.receiver.url(""), EXAMPLE);
        if output.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// Waits until what was committed has arrived, if there is somebody for it.
    pub fn arrived(&mut self) -> Result<(), String> {
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
             WHERE enabled AND NOT paused AND current_setting('pgwh.enabled')::bool AND home = pgwh_internal.home() AND url NOT LIKE '%/down%'
               AND NOT pgwh.wait(name, '{} s')",
            PATIENCE.as_secs()
        ));
        if late.is_empty() { Ok(()) } else { Err(format!("nothing reached {late:?}")) }
    }

    /// Holds what was printed against what is shown. What workers have still to do shows a moment later, so who only looks
    /// looks again.
    fn output(&mut self, shown: &str) -> Result<(), String> {
        // All are printed as one address.
        let shown = LOCAL.iter().fold(shown.to_owned(), |shown, local| shown.replace(local, EXAMPLE));
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = like(&normal(&shown), &normal(&self.printed));
            if found.is_ok() || !only_looks(&self.asked) || Instant::now() > deadline {
                return found;
            }
            std::thread::sleep(Duration::from_millis(100));
            let asked = self.asked.clone();
            self.psql(&asked)?;
        }
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

/// Whether all of its statements look at tables, and none calls a function that might do something.
fn only_looks(script: &str) -> bool {
    let mut statements = script.split(';').map(str::trim).filter(|statement| !statement.is_empty());
    !script.contains("SELECT pgwh.")
        && statements.all(|statement| ["SELECT ", "TABLE "].iter().any(|it| statement.starts_with(it)))
}

/// Runs a script; its `make` only tells what it would do, and its `chown` gives to the server's user, whoever that is here.
fn sh(script: &str, etc: &str) -> Result<(), String> {
    let script = format!(
        "make() {{ command make --silent --dry-run \"$@\"; }}
         chown() {{ command chown --reference='{etc}' \"${{@: -1}}\"; }}
         {script}"
    );
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", &script]).current_dir(root());
    // cargo sets these for tests, and they are not meant for what a user types.
    for name in ["MAKEFLAGS", "MAKELEVEL", "CARGO_TARGET_DIR"] {
        command.env_remove(name);
    }
    succeeds(command, "")
}

fn succeeds(command: Command, input: &str) -> Result<(), String> {
    let output = run_with_input(command, input);
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
