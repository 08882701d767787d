//! Replays under way: each is read once for the keys that have to wait for it, then page by page for what it sends.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::recording::Recording;
use super::sending::{Payload, item_of};
use crate::dispatch::{DeliveryId, Engine, KeyFilter, Page, SubscriptionId};
use crate::journal::{self, Replay, ReplayEnd, ReplayReader, What};

/// How often a replay's progress is noted.
const NOTE_EVERY: Duration = Duration::from_secs(1);
/// How much is read at once for the keys.
const KEYS_BYTES: usize = 1 << 20;

/// The replays that are not over; those of one subscription come one after the other.
#[derive(Default)]
pub struct Replaying {
    waiting: VecDeque<Replay>,
    running: HashMap<i64, Running>,
}

struct Running {
    replay: Replay,
    reader: ReplayReader,
    /// The keys found so far; none once the engine has them.
    keys: Option<KeyFilter>,
    total: u64,
    /// What has been read and is not done, under its old number and its new one, and whether it is done.
    sent: VecDeque<(DeliveryId, DeliveryId, bool)>,
    read_to: DeliveryId,
    at_end: bool,
    cancelled: bool,
    noted: Instant,
}

impl Replaying {
    /// Takes the replays that are open and not known yet.
    pub fn take_up(&mut self, open: Vec<Replay>) {
        for replay in open {
            let known = self.waiting.iter().chain(self.running.values().map(|running| &running.replay));
            if known.into_iter().all(|other| other.id != replay.id) {
                self.waiting.push_back(replay);
            }
        }
    }
}
