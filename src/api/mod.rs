//! What SQL calls. `sql/` declares each function by hand; what a pure function can decide is decided in one.

// pgrx raises an `ErrorReport`, which is large, and takes it by value only.
#![allow(clippy::result_large_err)]

pub mod event_types;

#[cfg(feature = "server")]
mod acting;
#[cfg(feature = "server")]
mod again;
#[cfg(feature = "server")]
mod applied;
#[cfg(feature = "server")]
mod backfill;
#[cfg(feature = "server")]
mod certificates;
#[cfg(feature = "server")]
mod columns;
#[cfg(feature = "server")]
mod conditions;
#[cfg(feature = "server")]
mod copies;
#[cfg(feature = "server")]
pub mod drop_role;
#[cfg(feature = "server")]
pub mod dump;
#[cfg(feature = "server")]
mod functions;
#[cfg(feature = "server")]
mod gate;
#[cfg(feature = "server")]
mod headers;
#[cfg(feature = "server")]
mod installed;
#[cfg(feature = "server")]
mod journal;
#[cfg(feature = "server")]
mod jsonb;
#[cfg(feature = "server")]
pub mod keeping;
#[cfg(feature = "server")]
mod looking;
#[cfg(feature = "server")]
pub mod messages;
#[cfg(feature = "server")]
mod metrics;
#[cfg(feature = "server")]
mod moment;
#[cfg(feature = "server")]
mod name_wait;
#[cfg(feature = "server")]
mod near;
#[cfg(feature = "server")]
mod notice;
#[cfg(feature = "server")]
mod own_changes;
#[cfg(feature = "server")]
mod parts;
#[cfg(feature = "server")]
mod permission;
#[cfg(feature = "server")]
mod preview;
#[cfg(feature = "server")]
mod privileges;
#[cfg(feature = "server")]
mod problems;
#[cfg(feature = "server")]
mod resubscribe;
#[cfg(feature = "server")]
mod row;
#[cfg(feature = "server")]
mod schema_changes;
#[cfg(feature = "server")]
mod secret_rows;
#[cfg(feature = "server")]
mod secrets;
#[cfg(feature = "server")]
pub mod status;
#[cfg(feature = "server")]
mod stored;
#[cfg(feature = "server")]
mod subscribe;
#[cfg(feature = "server")]
mod subscription;
#[cfg(feature = "server")]
mod table_keys;
#[cfg(feature = "server")]
pub mod table_lock;
#[cfg(feature = "server")]
pub mod table_triggers;
#[cfg(feature = "server")]
mod tables;
#[cfg(feature = "server")]
mod test;
#[cfg(feature = "server")]
pub mod triggers;
#[cfg(feature = "server")]
mod unmatched;
#[cfg(feature = "server")]
mod url_segment;
#[cfg(feature = "server")]
mod wait;
