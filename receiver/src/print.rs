//! A webhook as people like to see it.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};

use receiver::{Answer, Reply, Request, Secret, Verdict};
use serde_json::Value;

/// Longer values are cut here, in characters.
const WIDTH: usize = 400;

/// Prints requests to standard output, in colour if that is a terminal, or if `CLICOLOR_FORCE` is set.
pub(crate) struct Printer {
    secret: Option<Secret>,
    colour: bool,
}

impl Printer {
    pub(crate) fn new(secret: Option<Secret>) -> Self {
        let forced = std::env::var_os("CLICOLOR_FORCE").is_some();
        Self { secret, colour: forced || std::io::stdout().is_terminal() }
    }

    pub(crate) fn print(&self, request: &Request, reply: &Reply) {
        // Who reads this may have gone; the receiver goes on.
        let _ = std::io::stdout().write_all(self.lines(request, reply).as_bytes());
    }

    fn lines(&self, request: &Request, reply: &Reply) -> String {
        let mut text = String::new();
        let events = request.events();
        if events.is_empty() {
            let body = cut(&String::from_utf8_lossy(request.body()));
            let _ = writeln!(text, "{} {} {body}", request.method(), request.path());
        }
        for event in &events {
            let data = &event["data"];
            let kind = event["type"].as_str().unwrap_or("(no type)");
            let _ = write!(text, "{}", self.paint(colour_of(data), kind));
            if !data["key"].is_null() {
                let _ = write!(text, " {}", data["key"]);
            }
            text.push('\n');
            for (name, label) in [
                ("record", "record "),
                ("changes", "was    "),
                ("old_key", "old key"),
                ("unchanged", "unchanged"),
            ] {
                let value = &data[name];
                let is_empty = value.is_null() || value.as_array().is_some_and(Vec::is_empty);
                if !is_empty {
                    let _ = writeln!(text, "    {} {}", self.paint(DIM, label), cut(&value.to_string()));
                }
            }
        }
        let mut foot = vec![request.webhook_id().to_owned(), format!("attempt {}", request.attempt())];
        foot.retain(|word| !word.is_empty() && word != "attempt 0");
        foot.push(format!("-> {}", outcome(reply)));
        let foot = self.paint(if reply.is_success() { DIM } else { RED }, &foot.join("  "));
        let _ = writeln!(text, "    {foot}{}", self.verdict(request));
        text
    }

    fn verdict(&self, request: &Request) -> String {
        let Some(secret) = &self.secret else { return String::new() };
        let (colour, word) = match secret.verify(request) {
            Verdict::Valid => (GREEN, "signature ok"),
            Verdict::Unsigned => (RED, "NOT SIGNED"),
            Verdict::Invalid => (RED, "SIGNATURE WRONG"),
            Verdict::Stale => (RED, "SIGNATURE TOO OLD"),
        };
        format!("  {}", self.paint(colour, word))
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

const DIM: &str = "2";
const RED: &str = "1;31";
const GREEN: &str = "1;32";
const YELLOW: &str = "1;33";
const BLUE: &str = "1;34";

fn colour_of(data: &Value) -> &'static str {
    match data["action"].as_str() {
        Some("insert") => GREEN,
        Some("update") => YELLOW,
        Some("delete" | "truncate") => RED,
        _ => BLUE,
    }
}

fn outcome(reply: &Reply) -> String {
    let answer = match &reply.answer {
        Answer::Respond { status, .. } => status.to_string(),
        Answer::Trickle { status, .. } => format!("{status}, a byte at a time"),
        Answer::Cut => "half a response".into(),
        Answer::Garbage => "garbage".into(),
        Answer::Hang => "no answer".into(),
        Answer::Close => "closed".into(),
        Answer::Reset => "reset".into(),
    };
    if reply.delay.is_zero() { answer } else { format!("{answer} after {:?}", reply.delay) }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(WIDTH) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}
