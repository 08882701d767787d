//! pgstream_hooks: webhooks out of PostgreSQL.
//!
//! The write-ahead log is decoded inside the server and each committed change is POSTed to the endpoints
//! subscribed to it. `docs/architecture.md` tells how the rooms below work together.

pub mod api;
#[cfg(feature = "server")]
mod bgworkers;
pub mod decode;
#[forbid(unsafe_code)]
pub mod delivery;
#[cfg(feature = "server")]
pub mod dispatcher;
#[cfg(feature = "server")]
mod error;
#[forbid(unsafe_code)]
pub mod event;
#[cfg(feature = "server")]
mod gucs;
#[cfg(feature = "server")]
pub mod hooks;
#[forbid(unsafe_code)]
pub mod http;
pub mod ipc;
pub mod journal;
#[forbid(unsafe_code)]
pub mod metrics;
#[cfg(feature = "server")]
pub(crate) mod pg;
mod prefetch;
#[cfg(feature = "server")]
mod preload;
#[cfg(test)]
mod proptest_config;
#[forbid(unsafe_code)]
pub mod secret;
#[cfg(feature = "server")]
pub mod shmem;
#[cfg(any(feature = "server", test))]
mod version;

#[cfg(feature = "server")]
pgrx::pg_module_magic!();

/// What is started when the server preloads the library, or a session loads it for a function.
#[cfg(feature = "server")]
#[pgrx::pg_guard]
pub extern "C-unwind" fn _PG_init() {
    without_backtraces();
    gucs::init();
    if gucs::preloaded() {
        preload::init();
    }
}

/// pgrx would add a backtrace to the DETAIL of each ERROR of ours where the server was started with `RUST_BACKTRACE`, which
/// is no news to who sees it, and takes time also where the ERROR is caught. Who wants them sets `RUST_LIB_BACKTRACE`.
#[cfg(feature = "server")]
fn without_backtraces() {
    const SWITCH: &str = "RUST_LIB_BACKTRACE";
    if std::env::var_os(SWITCH).is_none() {
        // SAFETY: while the library is being loaded, nothing of it runs yet, and a server's process has one thread.
        unsafe { std::env::set_var(SWITCH, "0") };
    }
}
