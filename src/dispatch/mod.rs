//! Events to requests: which delivery goes out next, when it is tried again, and what is done.
//!
//! Pure logic: no Postgres, no I/O, no clock (the time is passed in). [`Engine`] is the way in; the main loop of
//! the dispatcher feeds it with what the decoder sends, with pages of the journal that it asks for, and with the
//! outcomes that the sender threads report. What it decides comes out as requests, records and effects.

mod breaker;
mod engine;
mod hosts;
mod lanes;
mod latency;
mod listed;
mod order;
mod outcome;
pub mod pacing;
mod position;
mod rate;
mod replay;
mod requests;
mod retry;
mod subscription;
mod timers;
mod turns;
mod watch;
mod window;

#[cfg(test)]
mod properties;

pub use engine::{Bottleneck, Counters, Engine, Item, Load, Page, Read, ReadWhat, Request, Ticket};
pub use hosts::HostLimits;
pub use order::{Keyed, Keys, Order, Ordering};
pub use outcome::{
    Disabled, Effect, End, Failure, FailureClass, Members, Record, Sifted, Skipped, SubscriptionId, Success,
};
pub use pacing::{Pacing, ProcessorTime};
pub use position::{Counts, DeliveryId, Mode, Pending, Position};
pub use rate::PerSecond;
pub use replay::{KeyFilter, ReplayProgress};
pub use retry::Schedule;
pub use subscription::{At, Settings};
pub use watch::Watch;
