//! Tables of all kinds, and commands that change them.

mod definitions;
mod inheritance;
mod partitions;
mod replica_identity;
mod rewrites;
mod schema_changes;
mod unlogged_parts;
