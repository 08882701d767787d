//! Values: encodings, `jsonb`, composites, detoasted arguments.

pub(crate) mod composite;
pub(crate) mod detoasted_arg;
pub(crate) mod encoding;
pub(crate) mod jsonb;
pub(crate) mod text;
