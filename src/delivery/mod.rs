//! Events to requests: which delivery goes out next, when it is tried again, and what is done.
//!
//! Pure logic: no Postgres, no I/O, no clock (the time is passed in). [`Engine`] is the way in; the main loop of
//! the dispatcher feeds it with what the decoder sends, with pages of the journal that it asks for, and with the
//! outcomes that the sender threads report. What it decides comes out as requests, records and effects.

mod backfill_reconcile;
pub mod backfill_throttle;
mod engine;
mod fair_scheduler;
mod in_flight;
pub mod key_columns;
mod lanes;
pub mod limits;
#[cfg(test)]
mod model_tests;
mod ordering;
mod outcome;
mod payload;
mod position;
mod replay;
mod spilled;
mod subscription;
mod timer_heap;

pub use self::backfill_reconcile::Watch;
pub use self::backfill_throttle::{Pacing, ProcessorTime};
pub use self::engine::{Bottleneck, Counters, Engine, Item, Load, Page, Read, ReadWhat, Request, Ticket};
pub use self::limits::host_limits::HostLimits;
pub use self::limits::rate_limiter::PerSecond;
pub use self::limits::retry_schedule::Schedule;
pub use self::ordering::{Keyed, Keys, Order, Ordering};
pub use self::outcome::{
    Disabled, Effect, End, Failure, FailureClass, Members, Record, Sifted, Skipped, SubscriptionId, Success,
};
pub use self::payload::Payload;
pub use self::position::{Counts, DeliveryId, Mode, Pending, Position};
pub use self::replay::{KeyFilter, ReplayProgress};
pub use self::subscription::{At, Settings};
