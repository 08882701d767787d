//! The state of deliveries, as a restart finds it in the journal.

#[cfg(feature = "server")]
pub(crate) mod load;
pub mod positions;
