//! Sockets beside the server's own files.

use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use pgrx::pg_sys;

use crate::settings;

/// More files than any setting of ours needs.
const ENOUGH: u64 = 65_536;
/// Files kept back for what is neither the server's nor a request's.
const SPARE: u64 = 64;
/// Where a limit cannot be read.
const USUAL: (u64, u64) = (1024, 1024);

static LIMIT_REQUESTS: AtomicBool = AtomicBool::new(false);

/// How many requests may be under way at once: what the setting says, as far as this process may open files.
///
/// The server opens its own files beside the sockets and cannot do without them: a process that cannot open the next WAL
/// file takes the whole server down. Each request may have an idle connection beside the one in use.
pub fn max_requests() -> usize {
    let limit = raise_limit();
    // SAFETY: reads a setting.
    let server = u64::try_from(unsafe { pg_sys::max_files_per_process }).unwrap_or_default();
    let sockets = limit.saturating_sub(server + SPARE).max(limit / 4);
    let (wanted, possible) = (settings::max_connections(), (sockets / 2).max(1) as usize);
    LIMIT_REQUESTS.store(possible < wanted, Ordering::Relaxed);
    wanted.min(possible)
}

/// Whether [`max_requests`] is less than the setting, since the process may open no more files.
pub fn limit_requests() -> bool {
    LIMIT_REQUESTS.load(Ordering::Relaxed)
}

/// Raises the soft limit of open files as far as is allowed and of use; returns what it is then.
fn raise_limit() -> u64 {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or(USUAL);
    // Fails only where it is forbidden, and then the limit that stands is counted with.
    let _ = setrlimit(Resource::RLIMIT_NOFILE, soft.max(hard.min(ENOUGH)), hard);
    getrlimit(Resource::RLIMIT_NOFILE).unwrap_or(USUAL).0
}
