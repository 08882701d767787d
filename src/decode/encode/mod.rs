//! Rows to frames: relations, columns and values.

pub(crate) mod change;
pub(crate) mod column;
pub(crate) mod relation;
pub(crate) mod value;
