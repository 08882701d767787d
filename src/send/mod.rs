//! Sending: threads, HTTP, signatures and the network guard. Nothing in here knows Postgres.
//!
//! The dispatcher hands [`Job`]s to a [`Pool`] and collects an [`Outcome`] for each; what happens in between happens
//! on the pool's threads, which own all they touch.

mod buffers;
mod client;
mod compose;
mod connection;
pub mod endpoint;
mod exchange;
pub mod guard;
mod identity;
mod idle;
mod job;
mod network;
mod outcome;
mod pool;
mod problem;
mod resolver;
mod route;
pub mod signature;
#[cfg(test)]
mod tests;
mod threads;
mod transport;

pub use compose::{Composed, compose};
pub use endpoint::{Endpoint, EndpointSettings, check_header, check_url, deciding_part};
pub use guard::Guard;
pub use identity::Identity;
pub use job::{Job, Prepared};
pub use outcome::{ErrorClass, Failure, FailureKind, Outcome, Success};
pub use pool::{Pool, PoolSettings};
pub use problem::Problem;
pub use route::Route;
