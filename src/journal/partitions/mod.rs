//! The partitions of the journal, and the order in which they are reused.

#[cfg(feature = "server")]
pub(crate) mod partition;
pub mod ring;
#[cfg(feature = "server")]
pub(crate) mod stored;
