//! What somebody sees who starts the program and sends it webhooks.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use receiver::Secret;

const KEY: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// The running program.
struct Program {
    child: Child,
    output: BufReader<ChildStdout>,
    address: String,
}

impl Program {
    fn start(arguments: &[&str]) -> Program {
        let mut child = Command::new(env!("CARGO_BIN_EXE_receiver"))
            .args(["--listen", "127.0.0.1:0"])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("receiver: listening at http://").unwrap();
        let address = address.trim_end_matches('/').to_owned();
        Program { child, output, address }
    }

    /// Sends a request; the status and body of the answer.
    fn send(&self, head: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let length = body.len();
        write!(stream, "{head}\r\nhost: x\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Sends a webhook that this key signs.
    fn post(&self, path: &str, key: &str, body: &str) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().to_string();
        let signature = Secret::parse(key).unwrap().sign("evt_1_1", &now, body.as_bytes());
        let head = format!(
            "POST {path} HTTP/1.1\r\nwebhook-id: evt_1_1\r\nwebhook-timestamp: {now}\r\nwebhook-signature: {signature}"
        );
        self.send(&head, body)
    }

    /// What it prints, up to a line that holds this.
    fn printed_to(&mut self, last: &str) -> String {
        let mut text = String::new();
        while !text.lines().last().unwrap_or_default().contains(last) {
            assert_ne!(self.output.read_line(&mut text).unwrap(), 0, "ended: {text}");
        }
        text
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A body that the extension's own tests hold it to.
fn golden(format: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(format!("../src/event/format/golden/{format}/insert.json"));
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn requests_of_every_format_are_shown_whole() {
    let mut program = Program::start(&["--secret", KEY]);
    for format in ["pgwh", "pgstream", "sequin", "supabase", "cloudevents"] {
        let body: serde_json::Value = serde_json::from_str(&golden(format)).unwrap();
        let answer = program.post(&format!("/{format}?x=1"), KEY, &body.to_string());
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let text = program.printed_to("signature ok");
        assert!(text.starts_with(&format!("POST /{format}?x=1  public.orders.insert")), "{text}");
        // The body is there as a whole, a member a line.
        let shown: String = text.lines().skip(1).filter(|line| !line.contains("signature ok")).collect();
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), body, "{text}");
        assert!(text.lines().count() > 8, "{text}");
        assert!(text.contains("evt_1_1"), "{text}");
    }
}

#[test]
fn bodies_of_transforms_and_texts_are_shown_too() {
    let mut program = Program::start(&[]);
    program.post("/chat", KEY, r#"{"text":"Order 7 is paid"}"#);
    let text = program.printed_to("signature not checked");
    assert!(text.contains("POST /chat\n    {\n      \"text\": \"Order 7 is paid\"\n    }\n"), "{text}");
    program.send("PUT /x HTTP/1.1", "plain");
    assert!(program.printed_to("signature not checked").contains("PUT /x\n    plain\n"));
}

#[test]
fn only_what_a_key_has_signed_is_taken() {
    let other = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let mut program =
        Program::start(&["--secret", KEY, "--secret", "whsec_BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB"]);
    let answer = program.post("/", other, "{}");
    assert!(answer.starts_with("HTTP/1.1 401 ") && answer.ends_with("wrong signature\n"), "{answer}");
    assert!(program.printed_to("SIGNATURE").contains("-> 401  WRONG SIGNATURE"));
    let answer = program.send("POST / HTTP/1.1", "{}");
    assert!(answer.starts_with("HTTP/1.1 401 ") && answer.ends_with("not signed\n"), "{answer}");
    // Whatever it is made to answer otherwise.
    program.send("POST /_control HTTP/1.1", r#"{"status": 503}"#);
    assert!(program.post("/", other, "{}").starts_with("HTTP/1.1 401 "));
    assert!(program.post("/", KEY, "{}").starts_with("HTTP/1.1 503 "));
    program.send("POST /_control HTTP/1.1", "{}");
    for key in [KEY, "whsec_BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB"] {
        assert!(program.post("/", key, "{}").starts_with("HTTP/1.1 200 "));
    }
    let events = program.send("GET /_events HTTP/1.1", "");
    let signatures: Vec<_> = events.split("\"signature\":\"").skip(1).collect();
    assert_eq!(signatures.len(), 6, "{events}");
    assert!(
        signatures[0].starts_with("wrong signature") && signatures[5].starts_with("signature ok"),
        "{events}"
    );
}

#[test]
fn options_say_what_to_answer() {
    let program = Program::start(&["--delay", "1", "--status", "503"]);
    assert!(program.post("/", KEY, "{}").starts_with("HTTP/1.1 503 "));
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_receiver")).args(arguments).output().unwrap();
        let texts = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        (output.status.code(), texts.concat())
    };
    let (code, help) = run(&["--help"]);
    assert_eq!(code, Some(0));
    for word in
        ["--listen", "--secret", "--status", "--fail", "--delay", "/_events", "/_control", "/_stats", "401"]
    {
        assert!(help.contains(word), "{word}");
    }
    for wrong in [["--status", "20"], ["--secret", "whsec_?"], ["--listen", "nowhere"], ["--fail", "x"]] {
        let (code, text) = run(&wrong);
        assert_eq!(code, Some(2), "{wrong:?}");
        assert!(text.contains(wrong[0]), "{text}");
    }
}
