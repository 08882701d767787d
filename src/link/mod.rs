//! The link from decoder to dispatcher.

pub mod frame;
