//! A throw-away cluster.

use std::fs;
use std::io;
use std::ops::Deref;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, Once, PoisonError};

use crate::database::PORT;
use crate::setup::SETTINGS;
use crate::template::{copy, template};
use crate::{Database, Machine, Process, Server, Setup, eventually};

/// How to stop a server.
#[derive(Clone, Copy, Debug)]
pub enum Stop {
    /// Ends sessions, writes a checkpoint.
    Fast,
    /// As in a crash: recovery follows.
    Immediate,
    /// `kill -9` of the postmaster and all its children: nobody has time to do anything.
    Kill,
}

/// A running cluster in a temporary directory. Behind it is its database `postgres`. When dropped, it is stopped and
/// removed; if a test fails, the end of its log is shown.
pub struct Cluster {
    directory: PathBuf,
    postgres: Database,
    installed: &'static Server,
    server: Mutex<Option<Child>>,
    files: Option<u64>,
    clock: bool,
    arguments: Vec<String>,
}

impl Deref for Cluster {
    type Target = Database;

    fn deref(&self) -> &Database {
        &self.postgres
    }
}

impl Cluster {
    /// A cluster where the extension is preloaded and not created.
    #[track_caller]
    pub fn start() -> Self {
        Setup::new().start()
    }

    /// A cluster whose database `postgres` has the extension, and captures changes.
    #[track_caller]
    pub fn with_extension() -> Self {
        let cluster = Self::start();
        cluster.sql("CREATE EXTENSION pgstream_hooks");
        cluster.wait_true("SELECT ok FROM pgwh.health() WHERE check_name = 'slot present and valid'");
        cluster
    }

    #[track_caller]
    pub(crate) fn with(setup: Setup) -> Self {
        let server = setup.server.unwrap_or_else(Server::get);
        let mut cluster =
            Self::made(server, setup.files, setup.clock, |data| copy(&template(server, &setup.initdb), data));
        cluster.arguments = setup.arguments;
        // From 19 on the first logical slot switches logical decoding on.
        let level = (server.major() < 19).then_some("wal_level = logical");
        let lines: Vec<&str> =
            SETTINGS.iter().copied().chain(level).chain(setup.settings.iter().map(String::as_str)).collect();
        cluster.set(&lines.join("\n"));
        cluster
    }

    /// A cluster that doesn't run, in a directory of its own, whose data directory `make` makes.
    #[track_caller]
    fn made(server: &'static Server, files: Option<u64>, clock: bool, make: impl FnOnce(&Path)) -> Self {
        static SWEEP: Once = Once::new();
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        SWEEP.call_once(sweep);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        // A socket's path may have some hundred characters only, so this one is short.
        let directory = std::env::temp_dir().join(format!("{PREFIX}{}-{number}", std::process::id()));
        fs::create_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
        server.own(&directory);
        make(&directory.join("data"));
        let cluster = Self {
            postgres: Database::new(&directory, "postgres"),
            directory,
            installed: server,
            server: Mutex::default(),
            files,
            clock,
            arguments: Vec::new(),
        };
        if clock {
            cluster.shift_clock("+0");
        }
        cluster.set(&format!("unix_socket_directories = '{}'", cluster.directory.display()));
        cluster
    }

    /// A copy of its data directory as it is, which doesn't run; the original should not, either.
    #[track_caller]
    pub fn copied(&self) -> Self {
        Self::made(self.installed, self.files, self.clock, |data| {
            copy(&self.data(), data);
            let _ = fs::remove_file(data.join("postmaster.pid"));
        })
    }

    /// The cluster in another directory, which doesn't run; this one has no data directory any more.
    #[track_caller]
    pub fn moved(&self) -> Self {
        Self::made(self.installed, self.files, self.clock, |data| {
            fs::rename(self.data(), data).unwrap_or_else(|error| panic!("{}: {error}", data.display()));
        })
    }

    /// A backup by `pg_basebackup`, which doesn't run.
    #[track_caller]
    pub fn backed_up(&self) -> Self {
        Self::made(self.installed, self.files, self.clock, |data| {
            let output = self
                .installed
                .unprivileged("pg_basebackup")
                .arg("-D")
                .arg(data)
                .args(["-U", "postgres", "--checkpoint=fast", "--no-sync", "-h"])
                .arg(self.host())
                .output()
                .unwrap_or_else(|error| panic!("pg_basebackup: {error}"));
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        })
    }

    /// A backup that becomes a standby of this cluster when it is started.
    #[track_caller]
    pub fn standby(&self) -> Self {
        let standby = self.backed_up();
        standby.set(&format!("primary_conninfo = 'host={} user=postgres'", self.host().display()));
        standby.signal("standby.signal");
        standby
    }

    /// Writes a file into the data directory that only the server may read; returns its path.
    #[track_caller]
    pub fn write_private(&self, name: &str, text: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let (path, new) = (self.data().join(name), self.data().join(format!("{name}.new")));
        fs::write(&new, text).unwrap_or_else(|error| panic!("{}: {error}", new.display()));
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).expect("a mode");
        self.installed.own(&new);
        // Nobody reads half of it.
        fs::rename(&new, &path).expect("a rename");
        path
    }

    /// Puts an empty file into the data directory, by which a server that starts knows what it is to be.
    #[track_caller]
    pub fn signal(&self, name: &str) {
        self.write_private(name, "");
    }

    /// A database of it, there or not.
    pub fn database(&self, name: &str) -> Database {
        Database::new(&self.directory, name)
    }

    /// Creates a database.
    #[track_caller]
    pub fn create_database(&self, name: &str) -> Database {
        self.sql(&format!("CREATE DATABASE {name}"));
        self.database(name)
    }

    /// Adds to `postgresql.conf`; takes effect by [`Cluster::reload`] or [`Cluster::restart`].
    pub fn set(&self, lines: &str) {
        let path = self.directory.join("data/postgresql.conf");
        let text = fs::read_to_string(&path).unwrap_or_default() + lines + "\n";
        fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// Makes the server read its settings again.
    #[track_caller]
    pub fn reload(&self) {
        self.sql("SELECT pg_reload_conf()");
    }

    /// Moves the server's clock by so much from the true time: `+1d`, `-1d`, `+0`. What counts time since some event is
    /// not moved, as on a machine whose clock is set.
    pub fn shift_clock(&self, by: &str) {
        // A server that reads it meanwhile finds the old or the new one.
        let (path, new) = (self.clock_path(), self.directory.join("clock.new"));
        fs::write(&new, by).and_then(|()| fs::rename(&new, &path)).expect("a file for the clock");
    }

    fn clock_path(&self) -> PathBuf {
        self.directory.join("clock")
    }

    /// Starts a server that was stopped.
    #[track_caller]
    pub fn begin(&self) {
        self.begin_with(&[]);
    }

    /// Starts a server that was stopped on a machine of its own, with more arguments.
    #[track_caller]
    pub fn begin_on(&self, machine: &Machine, arguments: &[&str]) {
        let mut postgres = self.installed.command("postgres");
        postgres.arg("-D").arg(self.data()).args(&self.arguments).args(arguments);
        let mut postgres = machine.running(&postgres, &self.data());
        postgres.stdin(Stdio::null());
        self.spawn(postgres);
    }

    /// Has `pg_ctl` start a server that was stopped on a machine of its own, or restart it, which takes the options of the server
    /// before.
    #[track_caller]
    pub fn begin_by_pg_ctl(&self, machine: &Machine, arguments: &[&str]) {
        // As the server's parent, it ends with it.
        const SCRIPT: &str = r#"
            data=$1
            shift
            trap '"$0" -D "$data" -m immediate stop' INT QUIT
            "$0" -D "$data" -w "$@"
            while [ -e "$data/postmaster.pid" ]; do sleep 0.05; done"#;
        let pg_ctl = self.installed.command("pg_ctl");
        // A job in the background has these signals ignored, and then no shell traps them.
        let mut shell = Command::new("env");
        shell
            .args(["--default-signal=INT,QUIT", "sh", "-c", SCRIPT])
            .arg(pg_ctl.get_program())
            .arg(self.data())
            .args(arguments);
        shell.envs(pg_ctl.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let mut shell = machine.running(&shell, &self.data());
        shell.stdin(Stdio::null());
        self.spawn(shell);
    }

    #[track_caller]
    pub(crate) fn begin_with(&self, environment: &[(String, String)]) {
        let mut postgres = self.installed.unprivileged("postgres");
        postgres.arg("-D").arg(self.directory.join("data")).args(&self.arguments);
        postgres.envs(environment.iter().map(|(name, value)| (name, value)));
        if let Some(count) = self.files {
            limit_files(&mut postgres, count);
        }
        if self.clock {
            postgres
                .env("LD_PRELOAD", faketime())
                .env("FAKETIME_TIMESTAMP_FILE", self.clock_path())
                .env("FAKETIME_NO_CACHE", "1")
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        self.spawn(postgres);
    }

    #[track_caller]
    fn spawn(&self, mut postgres: Command) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_path()).expect("a log file");
        let child = postgres
            .stdout(log.try_clone().expect("a log file"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start the server: {error}"));
        *self.server() = Some(child);
        eventually("ready for connections", || {
            let ended = self.server().as_mut().and_then(|child| child.try_wait().ok().flatten());
            if let Some(status) = ended {
                panic!("the server ended: {status}\n{}", self.log());
            }
            self.postgres.try_connect().ok()
        });
    }

    /// Stops the server, and waits until it has ended.
    #[track_caller]
    pub fn stop(&self, how: Stop) {
        let Some(mut child) = self.server().take() else { return };
        let postmaster = Process(child.id() as i32);
        match how {
            Stop::Fast => postmaster.signal(libc::SIGINT),
            Stop::Immediate => postmaster.signal(libc::SIGQUIT),
            Stop::Kill => {
                // Stopped first, it sees no child die, and does nothing about it.
                postmaster.pause();
                let children = children(postmaster);
                children.iter().chain([&postmaster]).for_each(|process| process.signal(libc::SIGKILL));
                for process in children {
                    eventually("gone after kill -9", || (!process.is_alive()).then_some(()));
                }
            }
        }
        eventually("the server ended", || child.try_wait().ok().flatten());
    }

    /// From now on it is a cluster of that server, which must be of the same major version.
    pub fn install(&mut self, server: &'static Server) {
        self.installed = server;
    }

    /// The server that it is a cluster of.
    pub fn installed(&self) -> &'static Server {
        self.installed
    }

    /// Runs one of its server's programs with a directory of the cluster's as the working directory, as the user whom the
    /// server runs as; what it printed if it succeeded, and else as an error.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String, String> {
        let output = self
            .installed
            .unprivileged(program)
            .current_dir(&self.directory)
            .args(arguments)
            .output()
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        if output.status.success() { Ok(text.into_owned()) } else { Err(text.into_owned()) }
    }

    /// Stops and starts it.
    #[track_caller]
    pub fn restart(&self, how: Stop) {
        self.stop(how);
        self.begin();
    }

    /// The processes of a kind (`backend_type`), over all databases but `template1`, where one is now and then to see whether
    /// the extension is there.
    #[track_caller]
    pub fn processes(&self, kind: &str) -> Vec<Process> {
        self.processes_where(&format!("backend_type = '{kind}' AND datname IS DISTINCT FROM 'template1'"))
    }

    /// The one process of a kind in a database; waits until it is there.
    #[track_caller]
    pub fn process_of(&self, kind: &str, database: &str) -> Process {
        eventually(&format!("a {kind} in {database}"), || {
            let found = self.processes_where(&format!("backend_type = '{kind}' AND datname = '{database}'"));
            found.first().copied()
        })
    }

    /// The one process of a kind; waits until it is there.
    #[track_caller]
    pub fn process(&self, kind: &str) -> Process {
        eventually(&format!("a {kind}"), || self.processes(kind).first().copied())
    }

    /// Kills the one process of a kind as `kill -9` does. The server then ends all sessions and recovers; returns when
    /// it has.
    #[track_caller]
    pub fn kill9(&self, kind: &str) {
        let mut witness = self.connect();
        // One that ends by itself before it is killed ends nobody's session: it has to stand still first.
        let process = eventually(&format!("a {kind} that stands still"), || {
            self.processes(kind).into_iter().find(|process| {
                process.pause();
                process.stands_still()
            })
        });
        process.kill9();
        eventually("all sessions ended", || witness.batch_execute("").err());
        drop(self.connect());
    }

    #[track_caller]
    fn processes_where(&self, condition: &str) -> Vec<Process> {
        // A server in recovery has none.
        let rows = self.try_rows(&format!("SELECT pid FROM pg_stat_activity WHERE {condition} ORDER BY pid"));
        let pids = rows.unwrap_or_default().into_iter().flatten().flatten();
        pids.filter_map(|pid| pid.parse().ok()).map(Process).collect()
    }

    /// What the server logged.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    /// A new directory that the server may write to, and that goes with the cluster.
    pub fn make_directory(&self, name: &str) -> PathBuf {
        let path = self.directory.join(name);
        fs::create_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        self.installed.own(&path);
        path
    }

    /// Where the data is.
    pub fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// The port of its socket.
    pub fn port(&self) -> u16 {
        PORT
    }

    fn log_path(&self) -> PathBuf {
        self.directory.join("log")
    }

    fn server(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            eprintln!("the end of the server's log:\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
        }
        if let Some(mut child) = self.server().take() {
            Process(child.id() as i32).signal(libc::SIGQUIT);
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

const PREFIX: &str = "pgwh-";

/// Ends and removes what tests that were killed have left.
fn sweep() {
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')?.0.parse().ok());
        let Some(owner) = owner.map(Process) else { continue };
        if owner.is_alive() {
            continue;
        }
        let pid_file = fs::read_to_string(entry.path().join("data/postmaster.pid")).unwrap_or_default();
        if let Some(postmaster) = pid_file.lines().next().and_then(|pid| pid.parse().ok()).map(Process)
            && fs::read_link(format!("/proc/{}/cwd", postmaster.0))
                .is_ok_and(|cwd| cwd.starts_with(entry.path()))
        {
            postmaster.signal(libc::SIGQUIT);
            eventually("a forgotten server ended", || (!postmaster.is_alive()).then_some(()));
        }
        let _ = fs::remove_dir_all(entry.path());
    }
}

/// Lets a program begin with so many open files at most.
fn limit_files(command: &mut Command, count: u64) {
    let limit = move || {
        let limit = libc::rlimit { rlim_cur: count, rlim_max: count };
        // SAFETY: reads the limit, which lives as long as the call.
        match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: setrlimit(2) is all that is called between fork and exec; it takes no lock and allocates nothing.
    unsafe { command.pre_exec(limit) };
}

/// The processes that one has started. What the kernel lists as its children would lack some when others of them exit
/// meanwhile (proc(5)).
fn children(of: Process) -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Process));
    processes.filter(|process| process.parent() == Some(of)).collect()
}

/// The library of Debian's package `faketime`.
fn faketime() -> PathBuf {
    let folders = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let mut found = folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"));
    found.find(|path| path.exists()).expect("the package faketime is installed")
}
