//! Processor time of the processes that capture and deliver.

use std::time::Duration;

use harness::{Cluster, DECODER, DISPATCHER, Process};

/// What each process had used when the measurement began.
pub(crate) struct ProcessorTime([(&'static str, Process, Duration); 2]);

impl ProcessorTime {
    /// Begins to measure the processes of the cluster.
    pub(crate) fn start(cluster: &Cluster) -> Self {
        Self([("dispatcher", DISPATCHER), ("decoder", DECODER)].map(|(name, kind)| {
            let process = cluster.process(kind);
            (name, process, process.cpu())
        }))
    }

    /// What each has used since, in microseconds an event.
    pub(crate) fn per_event(&self, events: u64) -> String {
        let each = self.0.iter().map(|(name, process, before)| {
            format!("{name} {:.1} µs", (process.cpu() - *before).as_secs_f64() * 1e6 / events as f64)
        });
        format!("processor time per event: {}", each.collect::<Vec<_>>().join(", "))
    }
}
