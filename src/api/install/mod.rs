//! `CREATE EXTENSION`, copies of a database, and triggers of the extension's own tables.

pub(crate) mod adopt;
pub(crate) mod applied;
pub(crate) mod create_extension;
pub(crate) mod schema_changes;
