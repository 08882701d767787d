//! The links between our processes: from decoder to dispatcher, and between dispatcher and renderers.

#[forbid(unsafe_code)]
pub mod frame;
pub mod render;
