//! The link from decoder to dispatcher.

pub mod frame;
#[cfg(feature = "server")]
pub(crate) mod mq;
