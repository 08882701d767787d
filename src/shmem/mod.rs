//! Shared memory: the registry of processes, statistics, counters, requests in flight, commit signals.

pub(crate) mod commit_signal;
pub(crate) mod delivery_counters;
pub(crate) mod dynamic;
pub(crate) mod in_flight;
pub(crate) mod registry;
pub(crate) mod subscription_stats;
pub(crate) mod worker_counters;
