//! Glue to PostgreSQL that knows nothing of webhooks.

pub(crate) mod acl;
pub mod command;
pub(crate) mod compat;
pub(crate) mod lineage;
pub(crate) mod memory_context;
pub mod process;
pub(crate) mod shm_mq;
pub(crate) mod statement_timeout;
pub(crate) mod subtransaction;
pub mod values;
