//! The receivers of `examples/receivers` do what `docs/guides/receivers.md` says of them, each in its language as far as this
//! machine has that: they keep a copy of the tables, take nothing twice, and refuse what is forged or old.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use harness::{Cluster, PATIENCE, eventually, json};
use receiver::Secret;
use serde_json::Value;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// A language, the program that this takes, and how to get from the receiver's source to a command.
type Language = (&'static str, &'static str, fn(&Path) -> Command);

const LANGUAGES: [Language; 5] = [
    ("python", "python3", |_| interpreted("python3", "receiver.py")),
    ("javascript", "node", |_| interpreted("node", "receiver.mjs")),
    ("ruby", "ruby", |_| interpreted("ruby", "receiver.rb")),
    ("go", "go", |directory| {
        let program = directory.join("receiver-go");
        let mut go = Command::new("go");
        go.arg("build").arg("-o").arg(&program).arg(source("receiver.go")).env("GOFLAGS", "-mod=mod");
        built(go, &program)
    }),
    ("rust", "cargo", |_| {
        let target = root().join("target");
        let mut cargo = Command::new("cargo");
        cargo.args(["build", "--quiet", "--package", "receiver", "--example", "minimal", "--target-dir"]);
        cargo.arg(&target).current_dir(root());
        built(cargo, &target.join("debug/examples/minimal"))
    }),
];

#[test]
fn receivers_keep_a_copy_and_refuse_repeats_and_forgeries() {
    let cluster = Cluster::with_extension();
    let directory = cluster.make_directory("receivers");
    let (here, missing): (Vec<_>, Vec<_>) = LANGUAGES.into_iter().partition(|(_, program, _)| has(program));
    let names =
        |languages: &[Language]| languages.iter().map(|(name, ..)| *name).collect::<Vec<_>>().join(", ");
    // Past the capture of output, so that it is seen what was not tested.
    let told = format!("receivers: run in {}; not on this machine: {}\n", names(&here), names(&missing));
    std::io::stderr().write_all(told.as_bytes()).unwrap();
    assert!(here.iter().any(|(name, ..)| *name == "rust"), "who runs this has Rust");

    cluster.sql(
        "CREATE TABLE things (id bigint PRIMARY KEY, name text, content text);
         ALTER TABLE things ALTER content SET STORAGE EXTERNAL;
         CREATE TABLE others (id int PRIMARY KEY);
         INSERT INTO things VALUES (-1, 'from before', NULL), (-2, 'from before', NULL)",
    );
    let receivers: Vec<_> = here
        .into_iter()
        .map(|(name, _, command)| Program::start(name, &directory, command(&directory)))
        .collect();
    for receiver in &receivers {
        cluster.sql(&format!(
            "SELECT pgwh.subscribe('http://{}/hook', name => '{}', secret => '{SECRET}', backfill => true)",
            receiver.address, receiver.name
        ));
    }

    cluster.wait_true("SELECT bool_and(state = 'done') FROM pgwh.backfills");
    // One event a request, then many: a large value that is left alone, a key that changes, a row and a table that go.
    cluster.each(&[
        "INSERT INTO things SELECT n, 'thing ' || n, repeat('x', 4000) FROM generate_series(1, 20) n",
        "UPDATE things SET name = 'renamed' WHERE id = 1",
        "UPDATE things SET id = 200 WHERE id = 2",
    ]);
    arrived(&cluster, &receivers);
    cluster.each(&[
        "UPDATE pgwh.subscriptions SET batch_size = 10",
        "UPDATE things SET name = 'again' WHERE id IN (1, 200)",
        "DELETE FROM things WHERE id = 3",
        "INSERT INTO things VALUES (2, 'another', NULL)",
        "INSERT INTO others VALUES (1), (2), (3)",
        "TRUNCATE others",
        "INSERT INTO others VALUES (2)",
    ]);
    arrived(&cluster, &receivers);
    let truth = sorted(cluster.value(
        "SELECT json_agg(r) FROM (SELECT to_json(t) r FROM things t UNION ALL SELECT to_json(o) FROM others o) _",
    ));
    let applied: Vec<usize> = receivers.iter().map(Program::applied).collect();
    for (receiver, applied) in receivers.iter().zip(&applied) {
        assert_eq!(sorted(receiver.get()), truth, "{}: its copy", receiver.name);
        assert_eq!(*applied, 33, "{}: how many events it took", receiver.name);
    }

    cluster.sql("SELECT pgwh.replay(name, since => now() - interval '1 hour') FROM pgwh.subscriptions");
    cluster.wait_true("SELECT bool_and(state = 'done' AND done = total AND total > 0) FROM pgwh.replays");
    for (receiver, applied) in receivers.iter().zip(applied) {
        assert_eq!(sorted(receiver.get()), truth, "{}: its copy after a replay", receiver.name);
        assert_eq!(receiver.applied(), applied, "{}: something was taken twice", receiver.name);
    }

    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let other = Secret::parse("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA").unwrap();
    let secret = Secret::parse(SECRET).unwrap();
    let body =
        br#"{"data": {"action": "ping", "id": "", "key": null, "schema": null, "table": null, "record": null,
        "old_key": null, "unchanged": []}}"#;
    for receiver in &receivers {
        let says = |secret: &Secret, then: u64, body: &[u8], signed: &[u8]| {
            let signature = secret.sign("evt_1", &then.to_string(), signed);
            receiver.post(then, &signature, body)
        };
        assert_eq!(says(&secret, now, body, body), 204, "{}: what is genuine", receiver.name);
        assert_eq!(says(&other, now, body, body), 401, "{}: another key", receiver.name);
        assert_eq!(says(&secret, now, body, b"{}"), 401, "{}: another body", receiver.name);
        assert_eq!(says(&secret, now - 3600, body, body), 401, "{}: an old request", receiver.name);
        let both = format!(
            "{} {}",
            other.sign("evt_1", &now.to_string(), body),
            secret.sign("evt_1", &now.to_string(), body)
        );
        assert_eq!(receiver.post(now, &both, body), 204, "{}: two signatures", receiver.name);
        assert_eq!(receiver.post(now, "", body), 401, "{}: no signature", receiver.name);
    }
}

fn arrived(cluster: &Cluster, receivers: &[Program]) {
    for receiver in receivers {
        let name = &receiver.name;
        let arrived = cluster.value(&format!("SELECT pgwh.wait('{name}', '{} s')", PATIENCE.as_secs()));
        assert_eq!(arrived, "t", "{name}: {:?}", cluster.rows("SELECT * FROM pgwh.attempts"));
    }
}

/// Rows in an order of their own.
fn sorted(rows: String) -> Vec<String> {
    let Ok(Value::Array(rows)) = json(&rows) else { panic!("no rows: {rows}") };
    let mut rows: Vec<String> = rows
        .into_iter()
        .map(|row| {
            let mut members: Vec<_> =
                row.as_object().unwrap().iter().map(|member| format!("{member:?}")).collect();
            members.sort();
            members.join(" ")
        })
        .collect();
    rows.sort();
    rows
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn source(name: &str) -> PathBuf {
    root().join("examples/receivers").join(name)
}

fn has(program: &str) -> bool {
    let version = if program == "go" { "version" } else { "--version" };
    let output = Command::new(program).arg(version).stdin(Stdio::null()).output();
    output.is_ok_and(|output| output.status.success())
}

fn interpreted(program: &str, name: &str) -> Command {
    let mut command = Command::new(program);
    command.arg(source(name));
    command
}

fn built(mut compiler: Command, program: &Path) -> Command {
    // cargo sets these for tests, and they are not meant for another cargo.
    let output = compiler.env_remove("CARGO_TARGET_DIR").stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{compiler:?}: {}", String::from_utf8_lossy(&output.stderr));
    Command::new(program)
}

/// A running receiver.
struct Program {
    name: String,
    address: String,
    child: Child,
    log: PathBuf,
}

impl Program {
    fn start(name: &str, directory: &Path, mut command: Command) -> Program {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let log = directory.join(name);
        let file = File::create(&log).unwrap();
        command.arg(port.to_string()).env("WEBHOOK_SECRET", SECRET).stdin(Stdio::null());
        command.stdout(file.try_clone().unwrap()).stderr(file);
        // SAFETY: between fork and exec, one system call: a test that is killed takes the program with it.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let mut program = Program { name: name.to_owned(), address: format!("127.0.0.1:{port}"), child, log };
        eventually(&format!("the receiver in {name}"), || {
            if let Some(status) = program.child.try_wait().unwrap() {
                panic!("{name} ended: {status}\n{}", program.said());
            }
            TcpStream::connect(&program.address).ok()
        });
        program
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// How many events it says that it applied.
    fn applied(&self) -> usize {
        let actions = ["read ", "insert ", "update ", "delete ", "truncate "];
        self.said().lines().filter(|line| actions.iter().any(|action| line.starts_with(action))).count()
    }

    fn get(&self) -> String {
        let (status, body) = self.ask("GET / HTTP/1.1\r\nhost: here\r\n\r\n".as_bytes());
        assert_eq!(status, 200, "{}", self.name);
        body
    }

    /// The status of its answer to a webhook.
    fn post(&self, timestamp: u64, signature: &str, body: &[u8]) -> u16 {
        let head = format!(
            "POST /hook HTTP/1.1\r\nhost: here\r\nwebhook-id: evt_1\r\nwebhook-timestamp: {timestamp}\r\n\
             webhook-signature: {signature}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        self.ask(&[head.as_bytes(), body].concat()).0
    }

    fn ask(&self, request: &[u8]) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(request).unwrap();
        let mut reader = BufReader::new(stream);
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            if line.trim().is_empty() {
                break;
            }
            head.push(line.to_ascii_lowercase());
        }
        let status = head[0].split(' ').nth(1).unwrap().parse().unwrap();
        let header =
            |name: &str| Some(head.iter().find(|line| line.starts_with(name))?.split_once(':')?.1.trim());
        let mut body = Vec::new();
        if let Some(length) = header("content-length") {
            body.resize(length.parse().unwrap(), 0);
            reader.read_exact(&mut body).unwrap();
        } else if header("transfer-encoding").is_some() {
            chunks(&mut reader, &mut body);
        }
        (status, String::from_utf8(body).unwrap())
    }
}

/// Reads a body that comes in chunks.
fn chunks(reader: &mut impl BufRead, body: &mut Vec<u8>) {
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let length = usize::from_str_radix(line.trim(), 16).unwrap();
        let mut chunk = vec![0; length + 2];
        reader.read_exact(&mut chunk).unwrap();
        if length == 0 {
            return;
        }
        body.extend_from_slice(&chunk[..length]);
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{} said:\n{}", self.name, self.said());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
