//! The harness of the end-to-end tests: throw-away clusters, what runs in them, and helpers that wait for
//! conditions instead of sleeping.
//!
//! A failed expectation here is a panic with the story of what happened, since only tests and benchmarks use it.

mod cluster;
mod database;
mod disk;
mod event;
mod listener;
mod process;
mod records;
mod server;
mod setup;
mod stage;
mod tally;
mod template;
#[cfg(test)]
mod tests;
mod volume;
mod wait;

pub use cluster::{Cluster, Stop};
pub use database::{Database, Refusal};
pub use disk::SmallDisk;
pub use event::{Event, distinct, events, events_of, in_key_order, json, succeeded_in_key_order};
pub use listener::Listener;
pub use postgres::Client;
pub use process::{DECODER, DISPATCHER, LAUNCHER, Process, RENDERER, run_with_input};
pub use receiver::{Answer, Receiver, Reply, Request, Script, Which};
pub use records::{compare_records, types};
pub use server::Server;
pub use setup::Setup;
pub use stage::{Stage, what};
pub use tally::{Counts, Tally};
pub use volume::{Machine, Volume};
pub use wait::{PATIENCE, eventually, within};

/// The source of a file of end-to-end tests, which has that test.
#[track_caller]
pub fn source_with_test(file: &str, test: &str) -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let source = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(source.contains(&format!("#[test]\nfn {test}() {{\n")), "{file} has no test {test}");
    source
}
