//! pgstream_hooks: webhooks out of PostgreSQL.
//!
//! The write-ahead log is decoded inside the server and each committed change is POSTed to the endpoints
//! subscribed to it. `docs/architecture.md` tells how the rooms below work together.

pub mod api;
pub mod decode;
#[forbid(unsafe_code)]
pub mod dispatch;
#[forbid(unsafe_code)]
pub mod event;
pub mod journal;
pub mod link;
#[forbid(unsafe_code)]
pub mod metrics;
mod prefetch;
#[forbid(unsafe_code)]
pub mod secret;
#[forbid(unsafe_code)]
pub mod send;

#[cfg(test)]
mod fuzz;

#[cfg(feature = "server")]
mod error;
#[cfg(feature = "server")]
mod settings;
#[cfg(any(feature = "server", test))]
mod version;
#[cfg(feature = "server")]
mod worker;

#[cfg(feature = "server")]
pgrx::pg_module_magic!();

/// What is started when the server preloads the library, or a session loads it for a function.
#[cfg(feature = "server")]
#[pgrx::pg_guard]
pub extern "C-unwind" fn _PG_init() {
    settings::init();
    if settings::preloaded() {
        worker::init();
    }
}
