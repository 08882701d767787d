//! A database, and talking to it as a user would.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use postgres::error::{DbError, SqlState};
use postgres::{Client, Config, NoTls, SimpleQueryMessage};

use crate::event::{Event, distinct, events_of};
use crate::{Listener, PATIENCE, Receiver, Server, eventually};

/// One database of a cluster. Each call has a connection of its own, so a crash in between costs nothing.
#[derive(Clone)]
pub struct Database {
    socket: PathBuf,
    name: String,
    user: String,
    options: String,
}

/// A statement that was refused, and what was said.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The SQLSTATE.
    pub code: String,
    /// The message.
    pub message: String,
    /// The detail, or nothing.
    pub detail: String,
    /// The hint, or nothing.
    pub hint: String,
}

impl From<&DbError> for Refusal {
    fn from(error: &DbError) -> Self {
        let text = |part: Option<&str>| part.unwrap_or_default().to_owned();
        Self {
            code: error.code().code().to_owned(),
            message: error.message().to_owned(),
            detail: text(error.detail()),
            hint: text(error.hint()),
        }
    }
}

impl Database {
    pub(crate) fn new(socket: &Path, name: &str) -> Self {
        Self {
            socket: socket.to_owned(),
            name: name.to_owned(),
            user: "postgres".into(),
            options: String::new(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directory of the server's socket: what `psql -h` wants.
    pub fn host(&self) -> &Path {
        &self.socket
    }

    /// The same database, seen by another role.
    pub fn as_role(&self, role: &str) -> Self {
        Self { user: role.to_owned(), ..self.clone() }
    }

    /// The same database, its sessions begun with options such as `-c statement_timeout=0`.
    pub fn with_options(&self, options: &str) -> Self {
        Self { options: options.to_owned(), ..self.clone() }
    }

    /// A connection; waits while the server is starting up or recovering.
    #[track_caller]
    pub fn connect(&self) -> Client {
        let mut last = None;
        let client = eventually_connected(|| match self.try_connect() {
            Ok(client) => Some(Ok(client)),
            Err(error) if is_passing(&error) => {
                last = Some(error.to_string());
                None
            }
            Err(error) => Some(Err(error)),
        });
        client.unwrap_or_else(|error| panic!("cannot connect to {}: {}", self.name, story(&error)))
    }

    /// A connection, or why there is none.
    pub fn try_connect(&self) -> Result<Client, postgres::Error> {
        self.config().connect(NoTls)
    }

    /// A connection that hands notices and warnings to `notice`.
    #[track_caller]
    pub fn connect_noticing(&self, notice: impl Fn(DbError) + Send + Sync + 'static) -> Client {
        self.config()
            .notice_callback(notice)
            .connect(NoTls)
            .unwrap_or_else(|error| panic!("{}", story(&error)))
    }

    fn config(&self) -> Config {
        let mut config = Config::new();
        config
            .host_path(&self.socket)
            .port(PORT)
            .dbname(&self.name)
            .user(&self.user)
            .options(&self.options)
            .application_name("test");
        config
    }

    /// Runs statements, in one transaction if they are many and begin none.
    #[track_caller]
    pub fn sql(&self, sql: &str) {
        if let Err(error) = self.connect().batch_execute(sql) {
            panic!("{}\nin: {sql}", story(&error));
        }
    }

    /// Runs each statement in a transaction of its own.
    #[track_caller]
    pub fn each(&self, statements: &[&str]) {
        let mut client = self.connect();
        for sql in statements {
            if let Err(error) = client.batch_execute(sql) {
                panic!("{}\nin: {sql}", story(&error));
            }
        }
    }

    /// Runs a statement that must be refused.
    #[track_caller]
    pub fn refused(&self, sql: &str) -> Refusal {
        match self.connect().batch_execute(sql) {
            Ok(()) => panic!("not refused: {sql}"),
            Err(error) => match error.as_db_error() {
                Some(refusal) => refusal.into(),
                None => panic!("{}\nin: {sql}", story(&error)),
            },
        }
    }

    /// Runs statements that may be refused, or that the server may not live to answer.
    pub fn try_sql(&self, sql: &str) -> Result<(), postgres::Error> {
        self.connect().batch_execute(sql)
    }

    /// Listens to a channel of NOTIFY.
    #[track_caller]
    pub fn listen(&self, channel: &str) -> Listener {
        Listener::new(self, channel)
    }

    /// A figure of a subscription, such as `pending`, as [`Database::value`] gives it.
    #[track_caller]
    pub fn status(&self, name: &str, column: &str) -> String {
        self.value(&format!("SELECT {column} FROM pgwh.status WHERE name = '{name}'"))
    }

    /// Waits until a condition over the columns of `pgwh.status` holds for a subscription.
    #[track_caller]
    pub fn wait_status(&self, name: &str, condition: &str) {
        self.wait_true(&format!("SELECT {condition} FROM pgwh.status WHERE name = '{name}'"));
    }

    /// Waits until the slot is confirmed up to all that was committed before: nothing of it would be decoded again.
    #[track_caller]
    pub fn wait_confirmed(&self) {
        let end = self.value("SELECT pg_current_wal_lsn()");
        self.wait_true(&format!(
            "SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots WHERE slot_name = pgwh.slot_name()"
        ));
    }

    /// As [`Database::try_sql`], and that the server is not there is an error, too.
    pub fn try_connected(&self, sql: &str) -> Result<(), postgres::Error> {
        self.try_connect()?.batch_execute(sql)
    }

    /// The rows of a query, as text.
    #[track_caller]
    pub fn rows(&self, sql: &str) -> Vec<Vec<Option<String>>> {
        match self.try_rows(sql) {
            Ok(rows) => rows,
            Err(error) => panic!("{}\nin: {sql}", story(&error)),
        }
    }

    /// The rows of a query, as text, or its error.
    pub fn try_rows(&self, sql: &str) -> Result<Vec<Vec<Option<String>>>, postgres::Error> {
        let messages = self.connect().simple_query(sql)?;
        Ok(messages
            .iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => {
                    Some((0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect())
                }
                _ => None,
            })
            .collect())
    }

    /// The first column of a query's rows; NULL is the empty text.
    #[track_caller]
    pub fn column(&self, sql: &str) -> Vec<String> {
        self.rows(sql).into_iter().map(|mut row| row.swap_remove(0).unwrap_or_default()).collect()
    }

    /// The one value of a query; NULL and no row are the empty text.
    #[track_caller]
    pub fn value(&self, sql: &str) -> String {
        self.column(sql).into_iter().next().unwrap_or_default()
    }

    /// Waits until a query's one value is `t`. All looks are in one session, for as long as it lives: a backend for each would
    /// take most of the machine's time from what the test waits for.
    #[track_caller]
    pub fn wait_true(&self, sql: &str) {
        let mut session = None;
        eventually(&format!("true: {sql}"), || {
            let client = session.get_or_insert_with(|| self.connect());
            match client.simple_query(sql) {
                Ok(messages) => (first_value(&messages) == Some("t")).then_some(()),
                Err(error) if error.code() == Some(&SqlState::SYNTAX_ERROR) => panic!("{}", story(&error)),
                Err(_) => {
                    session = None;
                    None
                }
            }
        });
    }

    /// Subscribes a receiver under a name, at the path of that name. `rest` are more arguments, such as
    /// `tables => '{public.t}'`.
    #[track_caller]
    pub fn subscribe(&self, receiver: &Receiver, name: &str, rest: &str) {
        let url = receiver.url(&format!("/{name}"));
        let rest = if rest.is_empty() { String::new() } else { format!(", {rest}") };
        self.sql(&format!("SELECT pgwh.subscribe('{url}', name => '{name}'{rest})"));
    }

    /// Waits until all that was committed before has reached a subscription made by [`Database::subscribe`], and
    /// returns what it got, each event once.
    #[track_caller]
    pub fn delivered(&self, receiver: &Receiver, name: &str) -> Vec<Event> {
        let seconds = PATIENCE.as_secs();
        let reached = self.value(&format!("SELECT pgwh.wait('{name}', '{seconds} s')"));
        if reached != "t" {
            let state = self.rows(&format!("SELECT to_jsonb(s) FROM pgwh.status s WHERE name = '{name}'"));
            panic!("{name} was not reached within {seconds} s: {state:?}");
        }
        distinct(events_of(receiver, name))
    }

    /// Runs a script by `psql`, which must succeed, and returns what it printed.
    #[track_caller]
    pub fn psql(&self, script: &str) -> String {
        let mut psql = Server::get()
            .command("psql")
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-U", &self.user, "-d", &self.name, "-h"])
            .arg(&self.socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("psql runs");
        psql.stdin.take().expect("a pipe").write_all(script.as_bytes()).expect("psql reads");
        let output = psql.wait_with_output().expect("psql ends");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}\nin: {script}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

/// The port in the name of the socket; nobody listens on TCP.
pub(crate) const PORT: u16 = 5432;

/// The first column of the first row.
fn first_value(messages: &[SimpleQueryMessage]) -> Option<&str> {
    messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0)),
        _ => None,
    })?
}

#[track_caller]
fn eventually_connected<T>(look: impl FnMut() -> Option<T>) -> T {
    eventually("connected", look)
}

/// Whether the server may let us in a moment later: it starts, stops or recovers, or isn't there yet.
fn is_passing(error: &postgres::Error) -> bool {
    match error.code() {
        Some(code) => {
            [SqlState::CANNOT_CONNECT_NOW, SqlState::CRASH_SHUTDOWN, SqlState::ADMIN_SHUTDOWN].contains(code)
        }
        None => true,
    }
}

/// An error with all that the server said.
fn story(error: &postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => {
            let mut text = format!("{} {}: {}", db.severity(), db.code().code(), db.message());
            for (label, part) in [("DETAIL", db.detail()), ("HINT", db.hint()), ("CONTEXT", db.where_())] {
                if let Some(part) = part {
                    text.push_str(&format!("\n{label}: {part}"));
                }
            }
            text
        }
        None => error.to_string(),
    }
}
