//! The link from decoder to dispatcher.

#[forbid(unsafe_code)]
pub mod frame;
#[cfg(feature = "server")]
pub(crate) mod mq;
