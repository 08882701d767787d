//! Sending: HTTP, TLS, signatures and the network guard. Nothing in here knows Postgres.
//!
//! The dispatcher hands [`Job`]s to a [`Sender`] and collects an [`Outcome`] for each; what happens in between happens in
//! the thread of an event loop, which owns all it touches.

mod channel;
pub mod dns;
pub mod endpoint;
mod event_loop;
mod job;
mod outcome;
mod proxy;
mod request;
mod request_builder;
mod route;
mod sender;
mod server;
pub mod signature;
pub mod ssrf_guard;
#[cfg(test)]
mod tests;
mod tls;
mod tunnel;
mod user_error;

pub use self::channel::SenderSettings;
pub use self::endpoint::{Endpoint, EndpointSettings, check_header, check_url, deciding_part};
pub use self::job::{Job, Prepared};
pub use self::outcome::{ErrorClass, Failure, FailureKind, Outcome, Success};
pub use self::proxy::{Exempt, Proxy, ProxyServer};
pub use self::request_builder::{Composed, compose};
pub use self::route::Route;
pub use self::sender::Sender;
pub use self::ssrf_guard::Guard;
pub use self::tls::client_certificate::Identity;
pub use self::tls::validity::not_after;
pub use self::tls::{certificates, check_ca_file, file_certificates};
pub use self::user_error::{Problem, quoted};
