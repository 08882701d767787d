//! Glue to PostgreSQL that knows nothing of webhooks.

#[cfg(feature = "server")]
pub(crate) mod acl;
#[cfg(feature = "server")]
pub mod command;
#[cfg(feature = "server")]
pub(crate) mod compat;
#[cfg(feature = "server")]
pub(crate) mod memory_context;
pub mod message_auth;
#[cfg(feature = "server")]
pub mod process;
#[cfg(feature = "server")]
pub(crate) mod shm_mq;
#[cfg(feature = "server")]
pub(crate) mod statement_timeout;
#[cfg(feature = "server")]
pub(crate) mod subtransaction;
#[cfg(feature = "server")]
pub mod values;
