//! pgstream_hooks: webhooks out of PostgreSQL.
//!
//! The write-ahead log is decoded inside the server and each committed change is POSTed to the endpoints
//! subscribed to it. `docs/architecture.md` tells how the rooms below work together.

pub mod event;
pub mod link;
pub mod send;

pub mod dispatch;
