//! From write-ahead log to events: decode, route, encode.
//!
//! Routing and sealed messages are pure and tested without a server; the rest speaks to Postgres.

#[cfg(feature = "server")]
pub(crate) mod capture;
#[cfg(feature = "server")]
pub(crate) mod citus;
#[cfg(feature = "server")]
pub(crate) mod definitions;
#[cfg(feature = "server")]
pub mod encode;
pub mod filter;
#[cfg(feature = "server")]
pub(crate) mod installation;
#[cfg(feature = "server")]
pub(crate) mod read_order;
#[cfg(feature = "server")]
mod relcache_invalidation;
pub mod routing;
#[cfg(feature = "server")]
pub(crate) mod row_key;
pub mod schema_versions;
#[cfg(feature = "server")]
mod subscription_changes;
#[cfg(feature = "server")]
pub(crate) mod table_scan;
#[cfg(feature = "server")]
pub mod wal;
