//! How a throw-away cluster is set up.

use crate::{Cluster, Server};

/// What every cluster is configured with: what the extension wants, and what makes a small server start fast.
pub(crate) const SETTINGS: &[&str] = &[
    "listen_addresses = ''",
    "shared_preload_libraries = 'pgstream_hooks'",
    "max_worker_processes = 40",
    "max_replication_slots = 20",
    "max_wal_senders = 20",
    "shared_buffers = 32MB",
    "pgwh.allowed_networks = '127.0.0.0/8'",
    "log_line_prefix = '%m [%p] %b %d: '",
    // Nobody pulls the plug in a test; what is killed is a process, and files outlive it.
    "fsync = off",
];

/// How a cluster is set up.
#[derive(Default)]
pub struct Setup {
    pub(crate) server: Option<&'static Server>,
    pub(crate) settings: Vec<String>,
    pub(crate) files: Option<u64>,
    pub(crate) clock: bool,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) initdb: Vec<&'static str>,
    pub(crate) arguments: Vec<String>,
}

impl Setup {
    /// As every cluster.
    pub fn new() -> Self {
        Self::default()
    }

    /// With one more line of `postgresql.conf`, which wins over those before it.
    pub fn set(mut self, line: &str) -> Self {
        self.settings.push(line.to_owned());
        self
    }

    /// Of another server than the one that is tested.
    pub fn of(mut self, server: &'static Server) -> Self {
        self.server = Some(server);
        self
    }

    /// Without the extension preloaded.
    pub fn not_preloaded(self) -> Self {
        self.set("shared_preload_libraries = ''")
    }

    /// With data pages as 17 and older make them: without checksums.
    pub fn without_checksums(mut self) -> Self {
        let server = self.server.unwrap_or_else(Server::get);
        if server.major() >= 18 {
            self.initdb.push("--no-data-checksums");
        }
        self
    }

    /// Where each process may have so many files open, as after `ulimit -n`.
    pub fn limit_files(mut self, count: u64) -> Self {
        self.files = Some(count);
        self
    }

    /// With a clock of its own, which [`Cluster::shift_clock`] moves.
    pub fn own_clock(mut self) -> Self {
        self.clock = true;
        self
    }

    /// With a variable in the server's environment, until it is stopped.
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With one more argument of each server that is started, such as `-cmax_connections=300`.
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Starts the cluster.
    #[track_caller]
    pub fn start(self) -> Cluster {
        let environment = self.environment.clone();
        let cluster = self.prepare();
        cluster.begin_with(&environment);
        cluster
    }

    /// Makes the cluster, which doesn't run yet.
    #[track_caller]
    pub fn prepare(self) -> Cluster {
        Cluster::with(self)
    }
}
