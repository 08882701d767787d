//! The processes of a cluster, as the operating system sees them.

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::{Server, eventually};

/// `backend_type` of the process that starts the others.
pub const LAUNCHER: &str = "pgstream_hooks launcher";
/// `backend_type` of the process that sends.
pub const DISPATCHER: &str = "pgstream_hooks dispatcher";
/// `backend_type` of the processes that run users' functions.
pub const RENDERER: &str = "pgstream_hooks renderer";
/// `backend_type` of the process that decodes.
pub const DECODER: &str = "pgstream_hooks decoder";

/// A process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Process(pub i32);

impl Process {
    /// Ends it at once, as `kill -9` does, and waits until it is gone.
    #[track_caller]
    pub fn kill9(self) {
        self.signal(libc::SIGKILL);
        eventually("gone after kill -9", || (!self.is_alive()).then_some(()));
    }

    /// Stops it where it is, until [`Process::resume`]; returns when it stands still.
    #[track_caller]
    pub fn pause(self) {
        self.signal(libc::SIGSTOP);
        eventually("standing still", || {
            self.stat().is_none_or(|stat| ["T", "Z"].contains(&stat[0].as_str())).then_some(())
        });
    }

    /// Whether it is there and was stopped, by [`Process::pause`] for example.
    pub fn stands_still(self) -> bool {
        self.stat().is_some_and(|stat| stat[0] == "T")
    }

    /// Lets it go on.
    pub fn resume(self) {
        self.signal(libc::SIGCONT);
    }

    /// Tells it to end, as the postmaster and `pg_terminate_backend` do.
    pub fn terminate(self) {
        self.signal(libc::SIGTERM);
    }

    pub(crate) fn signal(self, signal: i32) {
        // SAFETY: kill(2) takes any numbers.
        unsafe { libc::kill(self.0, signal) };
    }

    /// Whether it is there, and no zombie. A zombie that has threads left has its memory still, the shared one too.
    pub fn is_alive(self) -> bool {
        // proc(5): the number of threads is field 20 of stat; the state, field 3, is our first.
        self.stat().is_some_and(|stat| stat[0] != "Z" || stat.get(17).is_some_and(|threads| threads != "1"))
    }

    /// The one that started it; none when it is gone.
    pub(crate) fn parent(self) -> Option<Process> {
        // proc(5): the parent is field 4 of stat; the state, field 3, is our first.
        self.stat()?.get(1)?.parse().ok().map(Process)
    }

    /// The processor time it used so far.
    pub fn cpu(self) -> Duration {
        let stat = self.stat().unwrap_or_default();
        // proc(5): utime and stime are fields 14 and 15 of stat; the state, field 3, is our first.
        let ticks: u64 = [11, 12].iter().filter_map(|at| stat.get(*at)?.parse::<u64>().ok()).sum();
        // SAFETY: no pointers.
        let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) }.max(1) as u64;
        Duration::from_millis(ticks * 1000 / per_second)
    }

    /// How often it went to sleep so far, all its threads together.
    pub fn sleeps(self) -> u64 {
        let Ok(threads) = std::fs::read_dir(format!("/proc/{}/task", self.0)) else { return 0 };
        threads
            .filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("status")).ok())
            .filter_map(|status| field(&status, "voluntary_ctxt_switches:"))
            .sum()
    }

    /// Its memory that no file backs and nobody shares (RssAnon), in bytes.
    pub fn memory(self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0)).unwrap_or_default();
        field(&status, "RssAnon:").unwrap_or(0) * 1024
    }

    /// Lets it take `more` bytes of address space than it has, no more (`RLIMIT_AS`).
    pub fn limit_memory(self, more: u64) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0)).unwrap_or_default();
        let size = field(&status, "VmSize:").expect("a running process") * 1024;
        // As its own user: root may lack the capability in a container.
        let limit = format!("--as={}:", size + more);
        let pid = format!("--pid={}", self.0);
        let done = Server::get().unprivileged("/usr/bin/prlimit").args([pid, limit]).status();
        assert!(done.as_ref().is_ok_and(|status| status.success()), "prlimit: {done:?}");
    }

    /// How many descriptors it has open.
    pub fn files(self) -> u64 {
        std::fs::read_dir(format!("/proc/{}/fd", self.0)).map_or(0, |files| files.count() as u64)
    }

    fn stat(self) -> Option<Vec<String>> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0)).ok()?;
        // The name, in parentheses, may hold anything.
        Some(stat.rsplit_once(") ")?.1.split_whitespace().map(str::to_owned).collect())
    }
}

fn field(status: &str, name: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

/// Runs a program with a text as its input.
#[track_caller]
pub fn run_with_input(mut command: Command, input: &str) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    // One that ends early has a reason, which is in its output.
    let _ = child.stdin.take().expect("a pipe").write_all(input.as_bytes());
    child.wait_with_output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}
