//! Events to requests: which delivery goes out next, when it is tried again, and what is done.
//!
//! Pure logic: no Postgres, no I/O, no clock (the time is passed in). [`Engine`] is the way in; the main loop of
//! the dispatcher feeds it with what the decoder sends and with the outcomes that the sender threads report.

mod engine;
mod lanes;
mod latency;
mod position;
mod progress;
mod retry;
mod timers;
mod turns;

#[cfg(test)]
mod properties;

pub use engine::{Attempt, Counters, Engine, Failure, Settings, SubscriptionId, Ticket};
pub use lanes::{Keys, Order};
pub use position::{Counts, DeliveryId, Mode, Pending, Position};
pub use retry::Schedule;
