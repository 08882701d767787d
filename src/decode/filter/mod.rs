//! Filters and conditions: analysis, normalization, compilation, and the index of equalities.

#[cfg(feature = "server")]
pub(crate) mod analyze;
#[cfg(feature = "server")]
pub(crate) mod compile;
#[cfg(feature = "server")]
pub(crate) mod equality_index;
#[cfg(feature = "server")]
pub(crate) mod fit;
#[cfg(feature = "server")]
pub(crate) mod function_call;
#[cfg(feature = "server")]
pub(crate) mod node;
pub mod normalize;
#[cfg(feature = "server")]
pub(crate) mod tuple_slots;
