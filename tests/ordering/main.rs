//! The order in which the events of a key arrive, and the commits that make them.

mod commits;
mod keys;
