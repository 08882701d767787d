//! Processes: background workers, waiting, shutdown, time, identity of machine and cluster.

pub(crate) mod bgworker;
pub(crate) mod clock;
pub(crate) mod cluster_fingerprint;
pub(crate) mod machine;
pub(crate) mod rlimit;
pub(crate) mod shutdown;
pub(crate) mod wait_event_set;
