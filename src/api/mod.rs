//! What SQL calls. `sql/` declares each function by hand; what a pure function can decide is decided in one.

// pgrx raises an `ErrorReport`, which is large, and takes it by value only.
#![allow(clippy::result_large_err)]

#[cfg(feature = "server")]
pub(crate) mod authorization;
#[cfg(feature = "server")]
mod command_queue;
#[cfg(feature = "server")]
pub mod control;
#[cfg(feature = "server")]
pub mod inspect;
#[cfg(feature = "server")]
pub mod install;
#[cfg(feature = "server")]
mod lookup;
#[cfg(feature = "server")]
mod preconditions;
#[cfg(feature = "server")]
mod secret_rows;
#[cfg(feature = "server")]
mod secrets;
#[cfg(feature = "server")]
mod session;
#[cfg(feature = "server")]
pub mod subscriptions;
