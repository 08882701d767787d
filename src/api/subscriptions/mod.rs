//! Subscriptions: `pgwh.subscribe`, and the checks and triggers that every row of `pgwh.subscriptions` passes.

pub(crate) mod columns;
pub(crate) mod filter_check;
pub(crate) mod headers;
pub(crate) mod name_wait;
pub(crate) mod own_changes;
pub(crate) mod privileges;
pub(crate) mod required_grants;
pub(crate) mod resubscribe;
pub(crate) mod subscribe;
pub(crate) mod subscription;
pub(crate) mod suggest;
pub(crate) mod table_keys;
pub(crate) mod tables;
pub(crate) mod transform_functions;
pub(crate) mod triggers;
pub(crate) mod url_segment;
