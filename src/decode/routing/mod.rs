//! Routing: which subscriptions get a change, a schema change or a message.

#[cfg(feature = "server")]
pub(crate) mod lineage;
pub mod message_router;
#[cfg(feature = "server")]
pub(crate) mod privileges;
#[cfg(feature = "server")]
pub(crate) mod relation_matcher;
pub mod router;
pub mod table_pattern;
