//! Sending: HTTP, TLS, signatures and the network guard. Nothing in here knows Postgres.
//!
//! The dispatcher hands [`Job`]s to a [`Sender`] and collects an [`Outcome`] for each; what happens in between happens in
//! the thread of an event loop, which owns all it touches.

mod addresses;
mod answer;
mod compose;
mod connection;
mod deadlines;
pub mod endpoint;
mod event_loop;
mod exchange;
pub mod guard;
mod identity;
mod idle;
mod job;
mod lines;
mod outcome;
mod problem;
mod proxy;
mod request;
mod resolver;
mod route;
mod sender;
pub mod signature;
#[cfg(test)]
mod tests;
mod threads;
mod tls;
mod tls_faults;
mod validity;
mod verifier;

pub use compose::{Composed, compose};
pub use endpoint::{Endpoint, EndpointSettings, check_header, check_url, deciding_part};
pub use guard::Guard;
pub use identity::Identity;
pub use job::{Job, Prepared};
pub use outcome::{ErrorClass, Failure, FailureKind, Outcome, Success};
pub use problem::Problem;
pub use proxy::{Exempt, Proxy, ProxyServer};
pub use route::Route;
pub use sender::{Sender, SenderSettings};
pub use tls::{certificates, check_ca_file, file_certificates};
pub use validity::not_after;
