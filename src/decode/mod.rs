//! From write-ahead log to events: decode, route, encode.
//!
//! Routing and sealed messages are pure and tested without a server; the rest speaks to Postgres.

pub mod listeners;
pub mod pattern;
pub mod route;
pub mod sealed;
pub mod shape;
pub mod versions;

#[cfg(feature = "server")]
pub(crate) mod access;
#[cfg(feature = "server")]
pub(crate) mod capture;
#[cfg(feature = "server")]
mod change;
#[cfg(feature = "server")]
pub(crate) mod chunk;
#[cfg(feature = "server")]
pub(crate) mod citus;
#[cfg(feature = "server")]
mod column;
#[cfg(feature = "server")]
mod commits;
#[cfg(feature = "server")]
pub(crate) mod condition;
#[cfg(feature = "server")]
pub(crate) mod definitions;
#[cfg(feature = "server")]
mod edits;
#[cfg(feature = "server")]
mod equality;
#[cfg(feature = "server")]
pub(crate) mod filter;
#[cfg(feature = "server")]
mod fit;
#[cfg(feature = "server")]
mod invalidation;
#[cfg(feature = "server")]
pub(crate) mod lineage;
#[cfg(feature = "server")]
pub(crate) mod memory;
#[cfg(feature = "server")]
pub(crate) mod permits;
#[cfg(feature = "server")]
pub(crate) mod plugin;
#[cfg(feature = "server")]
pub(crate) mod raw;
#[cfg(feature = "server")]
pub(crate) mod read_order;
#[cfg(feature = "server")]
mod reader;
#[cfg(feature = "server")]
pub(crate) mod relation;
#[cfg(feature = "server")]
mod routes;
#[cfg(feature = "server")]
pub(crate) mod row_key;
#[cfg(feature = "server")]
mod rows;
#[cfg(feature = "server")]
pub(crate) mod session;
#[cfg(feature = "server")]
pub(crate) mod slot;
#[cfg(feature = "server")]
pub(crate) mod subtransaction;
#[cfg(feature = "server")]
pub(crate) mod text;
#[cfg(feature = "server")]
pub(crate) mod time_limit;
#[cfg(feature = "server")]
pub(crate) mod value;
