//! The command that is being executed.

pub(crate) mod command_cache;
pub(crate) mod current_statement;
pub(crate) mod dropped_index;
pub(crate) mod former_names;
pub(crate) mod notice;
pub(crate) mod parse_tree;
