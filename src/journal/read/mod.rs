//! Reading of the journal.

#[cfg(feature = "server")]
pub(crate) mod lookup;
#[cfg(feature = "server")]
pub(crate) mod pending;
#[cfg(feature = "server")]
pub(crate) mod reader;
pub mod shared_scan;
