//! A request in lines for people.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};

use receiver::{Answer, Reply, Request, Verdict};
use serde_json::Value;

use crate::label;

/// Bodies of more lines are cut here.
const MAX_LINES: usize = 200;
/// Longer lines are cut here, in characters.
const MAX_COLUMNS: usize = 400;

/// Prints requests to standard output, in colour if that is a terminal, or if `CLICOLOR_FORCE` is set.
pub(crate) struct Printer {
    colour: bool,
}

impl Printer {
    pub(crate) fn new() -> Self {
        let forced = std::env::var_os("CLICOLOR_FORCE").is_some();
        Self { colour: forced || std::io::stdout().is_terminal() }
    }

    pub(crate) fn print(&self, request: &Request, reply: &Reply) {
        // The reader of this output may have gone; the receiver goes on.
        let _ = std::io::stdout().write_all(self.lines(request, reply).as_bytes());
    }

    fn lines(&self, request: &Request, reply: &Reply) -> String {
        let mut text = format!("{} {}", request.method(), request.path());
        let body = request.json();
        let labels = label::labels(&body);
        match &labels[..] {
            [] => text.push('\n'),
            [label] => {
                let _ = writeln!(text, "  {}", self.painted(label));
            }
            labels => {
                let _ = writeln!(text, "  {} events", labels.len());
                for label in labels.iter().take(MAX_LINES) {
                    let _ = writeln!(text, "    {}", self.painted(label));
                }
            }
        }
        let pretty = match &body {
            Value::Null => String::from_utf8_lossy(request.body()).into_owned(),
            body => serde_json::to_string_pretty(body).unwrap_or_default(),
        };
        for line in pretty.lines().take(MAX_LINES) {
            let _ = writeln!(text, "    {}", self.paint(DIM, &cut(line)));
        }
        let more = pretty.lines().count().saturating_sub(MAX_LINES);
        if more > 0 {
            let _ = writeln!(text, "    … {more} more lines: GET /_events has them");
        }
        let mut foot = vec![request.webhook_id().to_owned(), format!("attempt {}", request.attempt())];
        foot.retain(|word| !word.is_empty() && word != "attempt 0");
        foot.push(format!("-> {}", outcome(reply)));
        let foot = self.paint(if reply.is_success() { DIM } else { RED }, &foot.join("  "));
        let _ = writeln!(text, "    {foot}  {}", self.verdict(request.verdict()));
        text
    }

    fn painted(&self, label: &label::Label) -> String {
        let colour = match label.action.as_str() {
            "insert" | "read" => GREEN,
            "update" => YELLOW,
            "delete" | "truncate" => RED,
            _ => BLUE,
        };
        let name = self.paint(colour, &label.name);
        if label.key.is_null() { name } else { format!("{name} {}", cut(&label.key.to_string())) }
    }

    fn verdict(&self, verdict: Option<Verdict>) -> String {
        match verdict {
            None => self.paint(DIM, "signature not checked"),
            Some(Verdict::Valid) => self.paint(GREEN, Verdict::Valid.words()),
            Some(wrong) => self.paint(RED, &wrong.words().to_uppercase()),
        }
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

fn outcome(reply: &Reply) -> String {
    let answer = match &reply.answer {
        Answer::Respond { status, .. } => status.to_string(),
        Answer::Trickle { status, .. } => format!("{status}, a byte at a time"),
        Answer::Cut => "half a response".into(),
        Answer::CutBody => "200, half a body".into(),
        Answer::Garbage => "garbage".into(),
        Answer::Hang => "no answer".into(),
        Answer::Close => "closed".into(),
        Answer::Reset => "reset".into(),
    };
    if reply.delay.is_zero() { answer } else { format!("{answer} after {} ms", reply.delay.as_millis()) }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(MAX_COLUMNS) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}
