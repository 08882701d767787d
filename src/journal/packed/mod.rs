//! Packed columns: codecs of events, outcomes and positions. Pure.

pub mod event_chunk;
pub mod numbers;
pub mod outcome_chunk;
pub mod position_chunk;
