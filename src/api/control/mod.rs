//! Control of deliveries: pause and resume, replay, redelivery, backfills, messages, pings, waiting.

pub(crate) mod backfill;
pub(crate) mod delivery_control;
pub(crate) mod forget;
pub(crate) mod messages;
pub(crate) mod ping;
pub(crate) mod replay;
pub(crate) mod wait;
