//! What the dispatcher knows of sending: the engine that decides, the pool that sends, and the endpoints in between.

use std::collections::{HashMap, HashSet};
use std::ffi::CStr;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pgrx::pg_sys;
use slab::Slab;

use super::figures::{Figures, Publisher};
use super::recording::Recording;
use super::{clock, endpoints, files};
use crate::dispatch::{
    At, DeliveryId, Effect, Engine, Failure, FailureClass, Item, Keys, Order, Page, Position, Read, ReadWhat,
    Request, SubscriptionId, Success, Ticket,
};
use crate::event::{Event, Lsn};
use crate::journal::{self, Found, Loaded, SubscriptionRow, What};
use crate::link::frame;
use crate::send::{Endpoint, FailureKind, Job, Outcome, Pool, PoolSettings};
use crate::settings;

/// The share of `pgwh.max_memory` that events may take; threads, their buffers, the journal's and what the allocator
/// leaves unused take the rest.
const EVENTS_SHARE: f64 = 0.6;
/// How often figures are shown while there is work; a commit that waits for them is shown at once.
const PUBLISH_EVERY: Duration = Duration::from_millis(5);
/// How many pages are read back before outcomes are looked at again.
const PAGES_A_ROUND: usize = 4;

/// What a delivery brings: the event, and which of its table's names that subscription knows it by.
pub type Payload = (Arc<Event>, u8);
