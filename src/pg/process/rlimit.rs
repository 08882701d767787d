//! Sockets beside the server's own files.

use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use pgrx::pg_sys;

use crate::gucs;
use crate::http::SenderSettings;

/// More files than any setting of ours needs.
const ENOUGH: u64 = 65_536;
/// Files kept back for what is neither the server's nor a request's.
const SPARE: u64 = 64;
/// Where a limit cannot be read.
const USUAL: (u64, u64) = (1024, 1024);

static LIMIT_REQUESTS: AtomicBool = AtomicBool::new(false);

/// How many requests may be under way at once, and connections open: what the setting says, as far as this process may
/// open files.
///
/// The server opens its own files beside the sockets and cannot do without them: a process that cannot open the next WAL
/// file takes the whole server down. A third of the sockets are for idle connections, and for those to the further
/// addresses of a name.
pub fn sender_settings() -> SenderSettings {
    let limit = raise_limit();
    // SAFETY: reads a setting.
    let server = u64::try_from(unsafe { pg_sys::max_files_per_process }).unwrap_or_default();
    let sockets = limit.saturating_sub(server + SPARE).max(limit / 4);
    let (wanted, possible) = (gucs::max_connections(), (sockets / 3 * 2).max(1) as usize);
    let is_limited = possible < wanted;
    if is_limited && !LIMIT_REQUESTS.swap(is_limited, Ordering::Relaxed) {
        pgrx::warning!(
            "pgstream_hooks: of {wanted} requests at once (pgwh.max_connections), the limit on open files ({limit}) \
             allows {possible}"
        );
    }
    LIMIT_REQUESTS.store(is_limited, Ordering::Relaxed);
    SenderSettings { max_requests: wanted.min(possible), max_connections: sockets as usize }
}

/// Whether [`sender_settings`] allow fewer requests than the setting, since the process may open no more files.
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
