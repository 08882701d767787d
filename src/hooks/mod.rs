//! Utility hooks: commands of users that the workers give way to, and commands that subscriptions must survive.

pub(crate) mod drop_role;
pub(crate) mod dump;
pub(crate) mod prepared_transactions;
pub(crate) mod table_guard;
pub(crate) mod table_lock;
pub(crate) mod table_triggers;
pub(crate) mod undelivered;
pub(crate) mod utility;
