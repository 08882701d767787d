//! What a newcomer types and reads, and the commands and arguments of hints, which are pasted.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex};

use harness::{Database, Refusal, Server};
use postgres::SimpleQueryMessage;

/// What subscriptions are sent to where nothing is sent.
pub const URL: &str = "https://example.com/hook";

/// What was answered, and the commands to paste.
pub struct Transcript {
    database: Database,
    pub text: String,
    notices: Arc<Mutex<Vec<Refusal>>>,
}

impl Transcript {
    pub fn of(database: &Database) -> Transcript {
        Transcript { database: database.clone(), text: String::new(), notices: Arc::default() }
    }

    pub fn title(&mut self, title: &str) {
        writeln!(self.text, "\n## {title}\n").unwrap();
    }

    /// Runs statements as somebody who types them, and writes down what is answered. What hints say is pasted.
    pub fn run(&mut self, statement: &str) {
        let database = self.database.clone();
        self.run_as(&database, statement);
    }

    pub fn run_as(&mut self, database: &Database, statement: &str) {
        writeln!(self.text, "{};", statement.trim_end_matches(';')).unwrap();
        let notices = Arc::clone(&self.notices);
        notices.lock().unwrap().clear();
        let heard = Arc::clone(&notices);
        let mut client =
            database.connect_noticing(move |notice| heard.lock().unwrap().push((&notice).into()));
        let answer = client.simple_query(statement);
        drop(client);
        let warnings = std::mem::take(&mut *notices.lock().unwrap());
        for warning in &warnings {
            self.tell(if warning.code == "00000" { "NOTICE" } else { "WARNING" }, warning);
            self.paste(statement, warning);
        }
        match answer {
            Ok(messages) => {
                // Ids of subscriptions are not what is judged here.
                let is_call = statement.contains("pgwh.subscribe(");
                if is_call {
                    writeln!(self.text, "    is taken").unwrap();
                }
                for message in messages.into_iter().filter(|_| !is_call) {
                    if let SimpleQueryMessage::Row(row) = message {
                        let cells: Vec<&str> =
                            (0..row.len()).map(|n| row.get(n).unwrap_or("(null)")).collect();
                        writeln!(self.text, "    {}", steady(&cells.join(" | "))).unwrap();
                    }
                }
            }
            Err(error) => {
                let refusal = Refusal::from(error.as_db_error().unwrap_or_else(|| panic!("{error}")));
                self.tell("ERROR", &refusal);
                self.paste(statement, &refusal);
            }
        }
    }

    fn tell(&mut self, severity: &str, refusal: &Refusal) {
        writeln!(self.text, "    {severity} {}: {}", refusal.code, steady(&refusal.message)).unwrap();
        for (label, text) in [("DETAIL", &refusal.detail), ("HINT", &refusal.hint)] {
            if !text.is_empty() {
                writeln!(self.text, "    {label}: {}", steady(text)).unwrap();
            }
        }
    }

    /// Every command of the hint runs, and every argument in it is taken by the function that was called.
    fn paste(&self, statement: &str, refusal: &Refusal) {
        paste_commands(&self.database, &refusal.hint);
        paste_arguments(&self.database, statement, refusal);
    }

    /// Waits until it is true, and writes down how a subscription fares.
    pub fn status(&mut self, name: &str, condition: &str, columns: &str) {
        self.database.wait_status(name, condition);
        let query = format!("SELECT {columns} FROM pgwh.status() WHERE name = '{name}'");
        self.run(&query);
        let next_step =
            self.database.rows(&format!("SELECT next_step FROM pgwh.status WHERE name = '{name}'"));
        paste_commands(&self.database, next_step[0][0].as_deref().unwrap_or_default());
    }

    pub fn health(&mut self, check: &str) {
        let query = format!("SELECT ok, detail, hint FROM pgwh.health() WHERE check_name = '{check}'");
        self.run(&query);
        let hint =
            self.database.rows(&format!("SELECT hint FROM pgwh.health() WHERE check_name = '{check}'"));
        paste_commands(&self.database, hint[0][0].as_deref().unwrap_or_default());
    }

    /// Compares what was written with a part of what is recorded, or records it. A server with other words of its own than those
    /// of 15 has a record of its own.
    pub fn compare(self, part: &str) {
        let recorded_as = |name: String| {
            Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/mistakes").join(format!("{name}.txt"))
        };
        let (path, of_major) =
            (recorded_as(part.to_owned()), recorded_as(format!("{part}_{}", Server::get().major())));
        if std::env::var_os("PGWH_ACCEPT").is_some() {
            let is_common = Server::get().major() == 15;
            if is_common || std::fs::read_to_string(&path).is_ok_and(|common| common != self.text) {
                std::fs::write(if is_common { &path } else { &of_major }, &self.text).unwrap();
            }
            return;
        }
        let path = if of_major.exists() { of_major } else { path };
        let recorded = std::fs::read_to_string(&path).unwrap_or_default();
        for (line, (is, was)) in self.text.lines().zip(recorded.lines()).enumerate() {
            assert_eq!(is, was, "line {} of {}", line + 1, path.display());
        }
        assert_eq!(self.text.lines().count(), recorded.lines().count(), "{}", path.display());
    }
}

/// What differs from run to run: ports, process ids, identities.
fn steady(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("127.0.0.1:") {
        let end = at + "127.0.0.1:".len();
        out.push_str(&rest[..end]);
        out.push_str("PORT");
        rest = rest[end..].trim_start_matches(|c: char| c.is_ascii_digit());
    }
    out.push_str(rest);
    // Ids of events.
    while let Some(at) = out.find("evt_0") {
        let end = out[at + 4..]
            .find(|c: char| !c.is_ascii_hexdigit() && c != '_')
            .map_or(out.len(), |end| at + 4 + end);
        out.replace_range(at..end, "evt_...");
    }
    out
}

/// The words by which commands begin.
const COMMANDS: [&str; 14] = [
    "ALTER ",
    "SELECT ",
    "UPDATE ",
    "GRANT ",
    "CREATE ",
    "DROP ",
    "DELETE ",
    "INSERT ",
    "REVOKE ",
    "SET ",
    "TABLE ",
    "BEGIN;",
    "COMMIT;",
    "ROLLBACK ",
];

/// The commands in a hint, each with the semicolon that ends it.
pub fn commands(hint: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut place = 0;
    while place < hint.len() {
        let is_start = |at: &usize| {
            let is_word = *at == 0 || !hint[..*at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
            is_word && COMMANDS.iter().any(|command| hint[*at..].starts_with(command))
        };
        let Some(start) = (place..hint.len()).filter(|at| hint.is_char_boundary(*at)).find(is_start) else {
            break;
        };
        let mut quoted = false;
        let end = hint[start..].char_indices().find(|(_, c)| {
            quoted ^= *c == '\'';
            *c == ';' && !quoted
        });
        let Some((length, _)) = end else {
            panic!("a command without its semicolon: {}\nin the hint: {hint}", &hint[start..])
        };
        found.push(&hint[start..=start + length]);
        place = start + length + 1;
    }
    found
}

#[test]
fn commands_of_a_hint_are_found() {
    let hint = "To allow it: ALTER SYSTEM SET a = 'x;y'; SELECT pg_reload_conf(); or leave it.";
    assert_eq!(commands(hint), ["ALTER SYSTEM SET a = 'x;y';", "SELECT pg_reload_conf();"]);
    assert_eq!(commands("Use https."), [] as [&str; 0]);
}

pub fn paste_commands(database: &Database, hint: &str) {
    let commands = commands(hint);
    let is_for_server = commands.iter().any(|command| command.starts_with("ALTER SYSTEM"));
    // What is tried leaves all as it was; what cannot run in a transaction is taken back.
    for command in &commands {
        let alone = is_for_server || command.starts_with("ALTER SYSTEM");
        let statement = if alone { (*command).to_owned() } else { format!("BEGIN; {command} ROLLBACK") };
        if let Err(error) = database.try_sql(&statement) {
            panic!("{error:?}\nof: {command}\nin the hint: {hint}");
        }
    }
    if is_for_server {
        database.each(&["ALTER SYSTEM RESET ALL", "SELECT pg_reload_conf()"]);
    }
}

/// An argument of a call, as in `tables => '{orders}'`.
fn arguments(hint: &str) -> Vec<(&str, &str)> {
    let mut found = Vec::new();
    for (at, _) in hint.match_indices(" => ") {
        // A word of SQL goes into double quotes, also as the name of an argument.
        let is_of_name = |c: char| c.is_ascii_lowercase() || c == '_' || c == '"';
        let name = hint[..at].rsplit(|c: char| !is_of_name(c)).next().unwrap_or_default();
        let value = &hint[at + 4..];
        let mut quoted = false;
        let end = value.char_indices().find(|(_, c)| {
            quoted ^= *c == '\'';
            !quoted && matches!(c, ' ' | ',' | ';' | ')') || !quoted && *c == '.' && value.starts_with('\'')
        });
        found.push((name, &value[..end.map_or(value.len(), |(end, _)| end)]));
    }
    found
}

#[test]
fn arguments_of_a_hint_are_found() {
    let hint = "Give schema => 'public', table_name => 'it''s'; or tables => '{a, b}'.";
    assert_eq!(arguments(hint), [("schema", "'public'"), ("table_name", "'it''s'"), ("tables", "'{a, b}'")]);
    assert_eq!(arguments("give batch_size => 1; formats"), [("batch_size", "1")]);
}

/// Each argument is one of the function that was called, of a value that it takes; where it takes the place of the one that
/// was typed, the call does not fail as before.
fn paste_arguments(database: &Database, statement: &str, refusal: &Refusal) {
    let hinted = arguments(&refusal.hint);
    let typed = arguments(statement);
    assert!(
        hinted.is_empty() || hinted.iter().any(|hinted| !typed.contains(hinted)),
        "it was typed so: {}",
        refusal.hint
    );
    for (name, value) in hinted {
        // The values of a key are the user's own.
        if name == "key" {
            continue;
        }
        let Some(function) = statement.split("pgwh.").nth(1).and_then(|call| call.split('(').next()) else {
            continue;
        };
        let first = match function {
            "subscribe" if name == "url" => String::new(),
            "subscribe" => format!("'{URL}', "),
            "why" | "forget" if name == "table_name" => "key => '{}', ".to_owned(),
            "why" | "forget" => "table_name => 'orders', ".to_owned(),
            "preview" if name == "record" => "'s', ".to_owned(),
            "preview" => "'s', '{}', ".to_owned(),
            "adopt" | "generate_secret" => String::new(),
            "replay" => "'s', now(), ".to_owned(),
            _ => "'s', ".to_owned(),
        };
        let call = format!("PREPARE p AS SELECT pgwh.{function}({first}{name} => {value})");
        if let Err(error) = database.try_sql(&call) {
            panic!("{error:?}\nof: {call}\nin the hint: {}", refusal.hint);
        }
        let typed = typed.iter().find(|(typed, _)| *typed == name);
        if let Some((_, typed)) = typed.filter(|(_, typed)| *typed != value) {
            let corrected = statement.replace(&format!("{name} => {typed}"), &format!("{name} => {value}"));
            let answer = database.try_sql(&format!("BEGIN; {corrected}; ROLLBACK"));
            let message = answer.err().and_then(|error| Some(error.as_db_error()?.message().to_owned()));
            assert_ne!(message.as_ref(), Some(&refusal.message), "{corrected}");
        }
    }
}
