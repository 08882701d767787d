//! The background workers besides the dispatcher: launcher, decoder, backfiller and renderers.

pub(crate) mod backfiller;
pub mod decoder;
pub(crate) mod launcher;
pub mod renderer;
pub mod user_function;
