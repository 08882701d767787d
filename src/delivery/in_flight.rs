//! The requests of one subscription: under way, waiting to be tried again, or ready for it.
//!
//! A request keeps its members from its first attempt on, until it succeeds, is halved, or the subscription stands
//! still.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Instant;

use slab::Slab;

use super::lanes::Members;

/// Where a request stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Its outcome is not known yet.
    UnderWay {
        /// When it was sent.
        sent_at: Instant,
    },
    /// It has ended, and it is not decided yet what becomes of it.
    Ended,
    /// To be tried again then.
    Waiting {
        /// When.
        due: Instant,
    },
    /// To be tried again as soon as there is room.
    Ready,
    /// A probe that failed: its turn comes again behind the others.
    Probed,
}

/// Deliveries that go together.
pub(super) struct Request {
    /// What it holds, in order; empty only between two steps.
    pub members: Members,
    /// Its failed attempts with these members.
    pub failures: u32,
    /// Whether it is a part of one that failed, which goes on being halved at once.
    pub part: bool,
    /// Where it stands.
    pub state: State,
    /// The replay that its members belong to.
    pub replay: Option<i64>,
    serial: u64,
    /// The keys it holds back since it has failed; 0 if it has not.
    blocks: usize,
}

/// All of a subscription's requests.
#[derive(Default)]
pub(super) struct Requests {
    slab: Slab<Request>,
    ready: BinaryHeap<Reverse<(u64, u32)>>,
    waiting: BinaryHeap<Reverse<(Instant, u32, u64)>>,
    probed: VecDeque<u32>,
    under_way: usize,
    /// When those under way were sent, the oldest first, and some that have ended since.
    sent: VecDeque<(Instant, u32, u64)>,
    failed_members: usize,
    blocked_keys: usize,
}

impl Requests {
    /// Bytes that one takes for a single delivery.
    pub const BYTES: usize = 2 * size_of::<Request>() + size_of::<(Instant, u32, u64)>();

    /// Adds one that is under way.
    pub fn start(&mut self, members: Members, replay: Option<i64>, serial: u64, sent_at: Instant) -> u32 {
        self.under_way += 1;
        let state = State::UnderWay { sent_at };
        let request = Request { members, failures: 0, part: false, state, replay, serial, blocks: 0 };
        if self.slab.capacity() == 0 {
            self.slab.reserve_exact(1);
            self.sent.reserve_exact(1);
        }
        let index = self.slab.insert(request) as u32;
        self.sent.push_back((sent_at, index, serial));
        index
    }

    /// Sends one again that is not under way.
    pub fn start_again(&mut self, index: u32, serial: u64, sent_at: Instant) {
        self.under_way += 1;
        let request = &mut self.slab[index as usize];
        request.state = State::UnderWay { sent_at };
        request.serial = serial;
        self.sent.push_back((sent_at, index, serial));
    }

    /// The outcome of one is known. None when it is not under way under this number.
    pub fn ended(&mut self, index: u32, serial: u64) -> Option<Instant> {
        let request = self.slab.get_mut(index as usize).filter(|request| request.serial == serial)?;
        let State::UnderWay { sent_at } = request.state else { return None };
        request.state = State::Ended;
        self.under_way -= 1;
        let mut sent = std::mem::take(&mut self.sent);
        let is_under_way = |&(_, index, serial): &(Instant, u32, u64)| self.is_under_way(index, serial);
        while sent.front().is_some_and(|sent| !is_under_way(sent)) {
            sent.pop_front();
        }
        if sent.len() > 2 * self.under_way + 16 {
            sent.retain(is_under_way);
        }
        self.sent = sent;
        Some(sent_at)
    }

    /// Whether its outcome is not known yet, and is to be told under this number.
    pub fn is_under_way(&self, index: u32, serial: u64) -> bool {
        let request = self.slab.get(index as usize);
        request.is_some_and(|request| request.serial == serial && request.is_under_way())
    }

    /// One that is there.
    pub fn get(&self, index: u32) -> &Request {
        &self.slab[index as usize]
    }

    /// One that is there.
    pub fn get_mut(&mut self, index: u32) -> &mut Request {
        &mut self.slab[index as usize]
    }

    /// Forgets one that is not under way.
    pub fn remove(&mut self, index: u32) -> Request {
        let request = self.slab.remove(index as usize);
        if request.blocks > 0 {
            self.failed_members -= request.members.len();
            self.blocked_keys -= request.blocks;
        }
        request
    }

    /// Of one that is there, only these members stay, which keep so many keys busy.
    pub fn keep(&mut self, index: u32, members: Members, keys: usize) {
        let request = &mut self.slab[index as usize];
        if request.blocks > 0 {
            self.failed_members -= request.members.len() - members.len();
            self.blocked_keys -= request.blocks - keys;
            request.blocks = keys;
        }
        request.members = members;
    }

    /// It has failed and holds back so many keys.
    pub fn block(&mut self, index: u32, keys: usize) {
        let request = &mut self.slab[index as usize];
        if request.blocks == 0 {
            request.blocks = keys;
            self.failed_members += request.members.len();
            self.blocked_keys += keys;
        }
    }

    /// Tries it again then.
    pub fn wait(&mut self, index: u32, due: Instant) {
        let request = &mut self.slab[index as usize];
        request.state = State::Waiting { due };
        self.waiting.push(Reverse((due, index, request.serial)));
    }

    /// Tries it again as soon as there is room; the oldest, by `first`, goes first.
    pub fn again(&mut self, index: u32, first: u64) {
        self.slab[index as usize].state = State::Ready;
        self.ready.push(Reverse((first, index)));
    }

    /// Adds one that is ready.
    pub fn add_ready(&mut self, members: Members, replay: Option<i64>, part: bool, first: u64) -> u32 {
        let request =
            Request { members, failures: 0, part, state: State::Ready, replay, serial: 0, blocks: 0 };
        let index = self.slab.insert(request) as u32;
        self.ready.push(Reverse((first, index)));
        index
    }

    /// Adds one that waits; `serial` is its own.
    pub fn add_waiting(&mut self, members: Members, replay: Option<i64>, serial: u64, due: Instant) -> u32 {
        let state = State::Waiting { due };
        let request = Request { members, failures: 0, part: false, state, replay, serial, blocks: 0 };
        if self.slab.capacity() == 0 {
            self.slab.reserve_exact(1);
            self.sent.reserve_exact(1);
        }
        let index = self.slab.insert(request) as u32;
        self.waiting.push(Reverse((due, index, serial)));
        index
    }

    /// Puts a failed probe behind the others.
    pub fn probed(&mut self, index: u32) {
        self.slab[index as usize].state = State::Probed;
        self.probed.push_back(index);
    }

    /// The probe whose turn it is.
    pub fn next_probe(&mut self) -> Option<u32> {
        while let Some(index) = self.probed.pop_front() {
            if self.is(index, State::Probed) {
                return Some(index);
            }
        }
        None
    }

    /// The oldest that is ready.
    pub fn next_ready(&mut self) -> Option<u32> {
        while let Some(Reverse((_, index))) = self.ready.pop() {
            if self.is(index, State::Ready) {
                return Some(index);
            }
        }
        None
    }

    /// Whether there may be one that is ready.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Whether there may be a failed probe to try again.
    pub fn has_probed(&self) -> bool {
        !self.probed.is_empty()
    }

    /// One whose time has come.
    pub fn due(&mut self, now: Instant) -> Option<u32> {
        if self.next_due()? > now {
            return None;
        }
        self.waiting.pop().map(|Reverse((_, index, _))| index)
    }

    /// When the first is to be tried again.
    pub fn next_due(&mut self) -> Option<Instant> {
        loop {
            let &Reverse((due, index, serial)) = self.waiting.peek()?;
            if self.is_waiting(index, serial, due) {
                return Some(due);
            }
            self.waiting.pop();
        }
    }

    /// As [`Requests::next_due`], without tidying up.
    pub fn first_due(&self) -> Option<Instant> {
        let Reverse((due, index, serial)) = *self.waiting.peek()?;
        if self.is_waiting(index, serial, due) {
            return Some(due);
        }
        let waiting = self.waiting.iter().map(|Reverse(waiting)| *waiting);
        waiting.filter(|&(due, index, serial)| self.is_waiting(index, serial, due)).map(|(due, ..)| due).min()
    }

    fn is_waiting(&self, index: u32, serial: u64, due: Instant) -> bool {
        self.slab
            .get(index as usize)
            .is_some_and(|request| request.serial == serial && request.state == State::Waiting { due })
    }

    fn is(&self, index: u32, state: State) -> bool {
        self.slab.get(index as usize).is_some_and(|request| request.state == state)
    }

    /// Forgets all that are not under way.
    pub fn dissolve(&mut self) -> Vec<Request> {
        self.ready.clear();
        self.waiting.clear();
        self.probed.clear();
        let still: Vec<u32> =
            self.iter().filter(|(_, request)| !request.is_under_way()).map(|(i, _)| i).collect();
        still.into_iter().map(|index| self.remove(index)).collect()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Request)> {
        self.slab.iter().map(|(index, request)| (index as u32, request))
    }

    /// How many are under way.
    pub fn under_way(&self) -> usize {
        self.under_way
    }

    /// How many deliveries are in requests that have failed.
    pub fn failed_members(&self) -> usize {
        self.failed_members
    }

    /// How many keys requests that have failed hold back.
    pub fn blocked_keys(&self) -> usize {
        self.blocked_keys
    }

    /// Whether one under way was sent before this.
    pub fn any_sent_before(&self, time: Instant) -> bool {
        self.sent.front().is_some_and(|&(sent_at, ..)| sent_at <= time)
    }
}

impl Request {
    /// Whether its outcome is not known yet.
    pub fn is_under_way(&self) -> bool {
        matches!(self.state, State::UnderWay { .. })
    }
}
