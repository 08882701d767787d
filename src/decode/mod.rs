//! From write-ahead log to events: decode, route, encode.
//!
//! Routing and sealed messages are pure and tested without a server; the rest speaks to Postgres.

pub mod pattern;
pub mod route;
pub mod sealed;

#[cfg(feature = "server")]
pub(crate) mod capture;
#[cfg(feature = "server")]
mod change;
#[cfg(feature = "server")]
mod column;
#[cfg(feature = "server")]
mod edits;
#[cfg(feature = "server")]
mod invalidation;
#[cfg(feature = "server")]
pub(crate) mod plugin;
#[cfg(feature = "server")]
pub(crate) mod raw;
#[cfg(feature = "server")]
mod reader;
#[cfg(feature = "server")]
pub(crate) mod relation;
#[cfg(feature = "server")]
pub(crate) mod session;
#[cfg(feature = "server")]
pub(crate) mod slot;
#[cfg(feature = "server")]
mod subtransaction;
#[cfg(feature = "server")]
pub(crate) mod text;
#[cfg(feature = "server")]
pub(crate) mod value;
