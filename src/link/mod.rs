//! The links between our processes: from decoder to dispatcher, and between dispatcher and renderers.

pub mod frame;
#[cfg(feature = "server")]
pub(crate) mod mq;
pub mod shape;
