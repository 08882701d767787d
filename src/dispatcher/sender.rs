//! What the dispatcher knows of sending: the engine that decides, the event loop that sends, and the endpoints in between.

use std::collections::{HashMap, HashSet};
use std::ffi::CStr;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use slab::Slab;

use super::endpoint_config;
use super::endpoint_config::Destination;
use super::endpoint_config::Surroundings;
use super::journal_writer::Recording;
use super::payload::{Members, at_of, item_of, jitter, order_of};
use super::pings::Testing;
use super::privileges::Permission;
use super::renderers::{Rendering, Unrendered};
use super::replays::Replaying;
use super::stats_publisher::Showing;
use crate::delivery::Payload;
use crate::delivery::{
    DeliveryId, Effect, Engine, Failure, FailureClass, Keys, Load, Order, Page, Position, Read, ReadWhat,
    Settings, SubscriptionId, Success, Ticket,
};
use crate::event::Lsn;
use crate::event::format::Source;
use crate::http::{Endpoint, ErrorClass, FailureKind, Job, Outcome, Sender};
use crate::ipc::frame;
use crate::journal::packed::outcome_chunk::FILTER;
use crate::journal::read::shared_scan::Wanted;
use crate::journal::{CommandKind, Journal, Loaded, Replay, SubscriptionRow, Wishes};
use crate::pg::process::{clock, rlimit};
use crate::prefetch::prefetch;
use crate::shmem::delivery_counters::Tallies;
use crate::shmem::in_flight::UnderWay;
use crate::shmem::registry::Database;
use crate::shmem::subscription_stats::Publisher;
use crate::shmem::worker_counters::Dispatched;
use crate::{gucs, journal};

/// The share of `pgwh.max_memory` that events may take; connections, their buffers, the journal's and what the allocator
/// leaves unused take the rest.
const EVENTS_SHARE: f64 = 0.6;
/// How many pages of replays are read before outcomes are looked at again.
const PAGES_A_ROUND: usize = 4;
/// The bytes that a pass over the log reads at most before outcomes are looked at again.
const LARGEST_PASS: usize = 2 << 20;
/// The bytes that it reads at least.
const LEAST_PASS: usize = 16 << 10;
/// How long it waits for room when memory is full.
const SQUEEZE_AFTER: Duration = Duration::from_millis(50);

/// Events on their way to endpoints.
pub struct Sending {
    pub(crate) source: Arc<Source>,
    pub(crate) engine: Engine<Payload>,
    pub(crate) sender: Sender,
    pub(crate) rendering: Rendering,
    pub(crate) testing: Testing,
    pub(crate) endpoints: FxHashMap<i64, Destination>,
    /// How many of them name functions.
    with_functions: usize,
    /// Where subscriptions stood when the journal was opened, until their rows are read.
    loaded: HashMap<i64, Position>,
    /// By the number that the sender knows a request by.
    pub(crate) under_way: Slab<(Ticket, i64)>,
    pub(crate) shown: UnderWay,
    outcomes: Vec<Outcome>,
    /// Deliveries that were given to be sent.
    sent: u64,
    wishes: Wishes,
    /// When the log was last read for them.
    passed_at: Instant,
    replaying: Replaying,
    pub(crate) showing: Showing,
    tallies: Tallies,
    pub(crate) permission: Permission,
}

impl Sending {
    /// Nobody is subscribed yet.
    pub fn new(database: &'static Database, source: Source, loaded: Loaded) -> Sending {
        let settings = rlimit::sender_settings();
        let sender = match Sender::start(settings) {
            Ok(sender) => sender,
            Err(error) => pgrx::error!("pgstream_hooks: the sender thread cannot be started: {error}"),
        };
        Sending {
            source: Arc::new(source),
            engine: Engine::new(settings.max_requests, event_memory()),
            sender,
            rendering: Rendering::new(database),
            testing: Testing::default(),
            endpoints: FxHashMap::default(),
            with_functions: 0,
            loaded: loaded.positions,
            under_way: Slab::new(),
            shown: UnderWay::new(database, settings.max_requests),
            outcomes: Vec::new(),
            sent: 0,
            wishes: Wishes::default(),
            passed_at: Instant::now(),
            replaying: Replaying::default(),
            showing: Showing::new(),
            tallies: Tallies::new(database, gucs::metrics_max_subscriptions()),
            permission: Permission::new(),
        }
    }

    /// Begins anew with the settings and subscriptions of now; deliveries stay. Who is new begins behind `last`.
    pub fn reload(&mut self, rows: Vec<SubscriptionRow>, last: DeliveryId) {
        let limits = rlimit::sender_settings();
        self.engine.set_limits(limits.max_requests, event_memory());
        self.engine.set_host_limits(gucs::host_limits());
        self.sender.set_limits(limits);
        self.sender.trust_file(gucs::ca_file());
        let known: Vec<i64> = self.engine.subscriptions().map(|id| id.0).collect();
        self.edit(&known, rows, last);
    }

    /// Of the subscriptions `ids`, and those in `rows`, just those in `rows` may send, and as these say.
    pub fn edit(&mut self, ids: &[i64], mut rows: Vec<SubscriptionRow>, last: DeliveryId) {
        let staying: HashSet<i64> = rows.iter().map(|row| row.id).collect();
        let gone: HashSet<i64> = ids.iter().copied().filter(|id| !staying.contains(id)).collect();
        gone.iter().for_each(|id| self.remove(*id));
        if !gone.is_empty() {
            self.sender.abandon(gone);
        }
        // The same ones have metrics of their own after each start.
        rows.sort_unstable_by_key(|row| row.id);
        let surroundings = Surroundings::now();
        let mut one_before: Option<Arc<Endpoint>> = None;
        for row in rows {
            let endpoint =
                endpoint_config::endpoint_of(&self.source, &row, &surroundings).map(|mut endpoint| {
                    one_before.iter().for_each(|other| endpoint.share(other));
                    Arc::new(endpoint)
                });
            // What is stored has been checked, so somebody has gone round the checks. What is pending is kept.
            if let Err(problem) = &endpoint {
                pgrx::warning!("pgstream_hooks: subscription {} cannot be sent to: {problem}", row.id);
            }
            self.take_up(&row, endpoint.as_ref().ok().cloned(), last);
            one_before = endpoint.ok().or(one_before);
        }
        self.rendering.set_wanted(self.with_functions > 0);
    }

    fn take_up(&mut self, row: &SubscriptionRow, endpoint: Option<Arc<Endpoint>>, last: DeliveryId) {
        let (id, now) = (SubscriptionId(row.id), Instant::now());
        let settings = endpoint_config::settings_of(row, endpoint.as_deref());
        if self.engine.knows(id) {
            self.engine.change(id, settings, now);
        } else {
            let position = self.loaded.remove(&row.id).unwrap_or_else(|| Position::new(last));
            self.engine.subscribe(id, settings, position);
        }
        // Who is disabled by hand gets what was committed before; who failed has nobody to get it.
        if !row.enabled && row.disabled_reason.is_some() {
            self.engine.stop(id, now);
        } else if row.paused || row.held || endpoint.is_none() {
            self.engine.pause(id, now);
        } else {
            self.engine.resume(id);
        }
        if let Some(endpoint) = endpoint {
            let functions = endpoint_config::functions_of(row);
            let destination = Destination { endpoint, functions, grantee: endpoint_config::grantee_of(row) };
            // Who mends what failed wants to see it at once.
            if self.endpoints.get(&row.id).is_some_and(|before| !before.asks_the_same(&destination)) {
                self.engine.begin_anew(id, now);
            }
            self.with_functions += usize::from(destination.functions.is_some());
            let before = self.endpoints.insert(row.id, destination);
            before.iter().for_each(|before| before.endpoint.retire());
            self.with_functions -= usize::from(before.is_some_and(|before| before.functions.is_some()));
        } else {
            self.retire(row.id);
        }
        self.tallies.admit(row.id);
        self.showing.changed(row.id);
    }

    /// Has requests come back that were handed over ahead.
    fn retire(&self, id: i64) {
        self.endpoints.get(&id).into_iter().for_each(|destination| destination.endpoint.retire());
    }

    /// Sends nothing to these subscriptions before their rows can be read. Those that are not known begin behind `last`.
    pub fn suspend(&mut self, ids: &[i64], last: DeliveryId) {
        let now = Instant::now();
        for id in ids {
            let subscription = SubscriptionId(*id);
            if !self.engine.knows(subscription) {
                let position = self.loaded.remove(id).unwrap_or_else(|| Position::new(last));
                self.engine.subscribe(subscription, Settings::default(), position);
            }
            self.engine.pause(subscription, now);
            self.retire(*id);
            self.showing.changed(*id);
        }
    }

    /// Forgets what a subscription has pending up to a delivery; whoever it is has to be taken up again.
    pub fn discard(&mut self, id: i64, upto: DeliveryId, last: DeliveryId) {
        let Some(mut position) = self.engine.position(SubscriptionId(id), Instant::now()) else { return };
        position.discard(upto, last);
        self.engine.remove(SubscriptionId(id));
        self.loaded.insert(id, position);
    }

    fn remove(&mut self, id: i64) {
        let dropped = self.engine.remove(SubscriptionId(id)).unwrap_or_default();
        if dropped > 0 {
            pgrx::log!("pgstream_hooks: subscription {id} is gone, {dropped} undelivered events with it");
        }
        self.retire(id);
        let gone = self.endpoints.remove(&id);
        self.with_functions -= usize::from(gone.is_some_and(|gone| gone.functions.is_some()));
        for request in self.rendering.remove(id).collect::<Vec<_>>() {
            self.sift(request.number, Vec::new(), Duration::ZERO);
        }
        self.replaying.forget(id);
        self.tallies.dismiss(id);
        self.showing.gone(id);
    }

    /// Takes a change that has just been journaled, for each of its targets; for those in `refusals` it is dead as it
    /// arrives. Who is not known any more gets nothing.
    pub fn arrive(
        &mut self,
        first: DeliveryId,
        item: frame::Item,
        refusals: &HashMap<i64, String>,
        recording: &mut Recording,
    ) {
        let numbers = (first.0..).map(DeliveryId);
        match item {
            frame::Item::Change { event, keys, barrier, targets } => {
                let at = at_of(&event);
                // Shared by all targets, but charged to each: memory is then never more than what is charged.
                let charge = event.memory();
                let order = order_of(keys, &event, barrier);
                for (id, target) in numbers.zip(&targets) {
                    if let Some(reason) = refusals.get(&target.subscription) {
                        self.arrive_dead(id, target.subscription, FILTER);
                        recording.record_refused(id, target.subscription, &event, reason);
                        continue;
                    }
                    let own_keys = &recording.journal().own_keys;
                    let (keys, barrier) = own_keys.of(target.subscription, &event, keys, barrier);
                    let order = Order { keys: Keys::of(keys.key, keys.old), barrier, ..order };
                    let payload = (event.clone(), target.level);
                    if self.engine.arrive(SubscriptionId(target.subscription), id, order, at, payload, charge)
                    {
                        self.showing.changed(target.subscription);
                    }
                }
            }
            frame::Item::Failed { failure, targets, .. } => {
                // Not the message: it may hold the value, which is for pgwh.dead_letters and not for the server's log.
                pgrx::warning!(
                    "pgstream_hooks: event {} cannot be encoded for {} subscriptions (SQLSTATE {})",
                    failure.id(),
                    targets.len(),
                    failure.sqlstate
                );
                for (id, target) in numbers.zip(&targets) {
                    self.arrive_dead(id, target.subscription, "encode");
                    recording.record_failed(id, target.subscription, &failure);
                }
            }
            _ => {}
        }
    }

    /// Takes a delivery that cannot be made.
    fn arrive_dead(&mut self, id: DeliveryId, subscription: i64, class: &'static str) {
        if self.engine.arrive_dead(SubscriptionId(subscription), id, class) {
            self.tallies.count_dead(subscription, class);
            self.showing.changed(subscription);
        }
    }

    /// What a subscription has to do; none when it is not known.
    pub fn load(&self, subscription: SubscriptionId) -> Option<Load> {
        self.engine.load(subscription)
    }

    /// How much of the memory for events is taken, of 1.
    pub fn memory_share(&self) -> f64 {
        self.engine.memory_used() as f64 / event_memory() as f64
    }

    /// Reads back from the journal what the engine has room for. Returns whether there was anything.
    pub fn read_back(&mut self, recording: &mut Recording) -> bool {
        let mut any = self.replaying.go_on(&mut self.engine, recording.journal());
        let mut replayed = 0;
        while replayed < PAGES_A_ROUND
            && let Some(Read { subscription, what, max_bytes }) = self.engine.next_read()
        {
            match what {
                ReadWhat::Listed(ids) => self.wishes.add(subscription.0, Wanted::Listed(ids)),
                ReadWhat::Log { after } => self.wishes.add(subscription.0, Wanted::Log { after, max_bytes }),
                ReadWhat::Replay { after, .. } => {
                    replayed += 1;
                    let page = self.replaying.page(recording.journal(), subscription, after, max_bytes);
                    // Without our tables there is nothing to go on with.
                    let Some(page) = page else { break };
                    self.engine.page(subscription, page);
                    self.showing.changed(subscription.0);
                    any = true;
                }
            }
        }
        any | self.serve_wishes(recording.journal())
    }

    /// One pass over the log. While memory is full it waits for what is sent to make room, but not for long: that may be
    /// held by endpoints that hang, and others have to go on.
    fn serve_wishes(&mut self, journal: &mut Journal) -> bool {
        const OVERHEAD: usize = Engine::<Payload>::DELIVERY_BYTES + Engine::<Payload>::SUBSCRIPTION_BYTES;
        let room = self.engine.room_to_read();
        let is_full = room < event_memory() / 64 && self.engine.in_flight() > 0;
        if self.wishes.is_empty() || is_full && self.passed_at.elapsed() < SQUEEZE_AFTER {
            return false;
        }
        self.passed_at = Instant::now();
        let room = room.clamp(LEAST_PASS, LARGEST_PASS);
        let Some(pages) = journal.serve(&mut self.wishes, room, OVERHEAD) else { return false };
        for (subscription, journal::Page { found, upto, at_tail }) in pages {
            let items = found.into_iter().filter_map(item_of).collect();
            self.engine.page(SubscriptionId(subscription), Page { items, upto, at_tail });
            self.showing.changed(subscription);
        }
        true
    }

    /// Has the processor bring what these subscriptions will be sent by into its caches, of all at once: with a hundred
    /// thousand of them, it would wait for the memory of each.
    pub fn prefetch(&self, subscriptions: impl Iterator<Item = i64>) {
        let ids: Vec<i64> = subscriptions.collect();
        self.engine.prefetch(&ids);
        let destinations: Vec<&Destination> = ids.iter().filter_map(|id| self.endpoints.get(id)).collect();
        destinations.iter().for_each(|destination| prefetch(&*destination.endpoint));
        destinations.iter().for_each(|destination| destination.endpoint.prefetch());
    }

    /// How many subscriptions have something to send and wait for their turn.
    pub fn waiting(&self) -> usize {
        self.engine.waiting()
    }

    /// How many deliveries were given to be sent so far, each time that they were.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Hands to the sender what may be sent now. Returns whether there was anything.
    pub fn submit(&mut self) -> bool {
        let now = Instant::now();
        let mut any = false;
        let mut is_fresh = false;
        loop {
            let Some(request) = self.engine.next_to_send(now) else { break };
            let id = request.subscription.0;
            // The engine knows the subscriptions that have an endpoint.
            let Some(Destination { endpoint, functions, grantee }) = self.endpoints.get(&id) else {
                continue;
            };
            let number = self.under_way.insert((request.ticket, id));
            self.sent += request.members.len() as u64;
            if let Some((first, _)) = request.members.first() {
                self.shown.begin(number, *first);
            }
            let (endpoint, functions, grantee) = (endpoint.clone(), functions.clone(), grantee.clone());
            let (attempt, replay) = (request.attempt, request.replay);
            let mut members: Members =
                request.members.iter().map(|(id, payload)| (*id, (*payload).clone())).collect();
            drop(request);
            if let Some(grantee) = grantee {
                if !std::mem::replace(&mut is_fresh, true) {
                    self.permission.refresh();
                }
                self.keep_permitted(number, &grantee, &mut members, replay);
            }
            if !members.is_empty() {
                if let Some(functions) = functions {
                    self.rendering.take(Unrendered {
                        number,
                        subscription: id,
                        endpoint,
                        functions,
                        members: members.into_vec(),
                        attempt,
                        replay,
                    });
                } else {
                    let events = members.into_iter().map(|(_, payload)| payload).collect();
                    let ticket = number as u64;
                    self.sender.submit(Job { ticket, endpoint, events, attempt, replay, prepared: None });
                }
            }
            self.showing.changed(id);
            any = true;
        }
        any
    }

    /// Takes the outcomes of requests. Returns whether there were any.
    pub fn collect_outcomes(&mut self) -> bool {
        let mut outcomes = std::mem::take(&mut self.outcomes);
        self.sender.outcomes(&mut outcomes);
        if self.sender.has_ended() {
            pgrx::error!("pgstream_hooks: the sender thread has ended; the dispatcher starts again");
        }
        let any = !outcomes.is_empty();
        let now = Instant::now();
        for outcome in outcomes.drain(..) {
            if self.testing.answered(&outcome) {
                continue;
            }
            let Some((ticket, id)) = self.under_way.try_remove(outcome.ticket as usize) else { continue };
            self.shown.end(outcome.ticket as usize);
            let duration = outcome.duration;
            match outcome.result {
                Ok(success) => {
                    let success = Success { status: success.status, flaw: success.flaw, duration };
                    self.engine.succeeded(ticket, success, now);
                }
                Err(failure) if failure.class == ErrorClass::HandedBack => {
                    self.engine.handed_back(ticket, now)
                }
                Err(failure) => {
                    self.engine.failed(ticket, failure_of(failure), duration, now, jitter(outcome.ticket));
                }
            }
            self.showing.changed(id);
        }
        self.outcomes = outcomes;
        any
    }

    /// Whether answers to requests are waited for.
    pub fn is_any_under_way(&self) -> bool {
        !self.under_way.is_empty()
    }

    /// Gives what became of requests to the journal.
    pub fn hand_over_records(&mut self, recording: &mut Recording) {
        let records = self.engine.take_records();
        if records.is_empty() {
            return;
        }
        let now = clock::now();
        for record in records {
            self.tallies.count(&record, now);
            recording.record(record);
        }
    }

    /// Where subscriptions stand: all of them, or those that something happened to since this was last asked.
    pub fn positions(&mut self, all: bool) -> Vec<(i64, Position)> {
        let mut ids = self.engine.touched_since_checkpoint();
        if all {
            ids = self.engine.subscriptions().collect();
        }
        let now = Instant::now();
        ids.into_iter().filter_map(|id| Some((id.0, self.engine.position(id, now)?))).collect()
    }

    /// The oldest delivery that the journal has to keep: one that may be pending, or is to be sent again.
    pub fn oldest_pending(&self) -> Option<DeliveryId> {
        self.engine.oldest_pending().into_iter().chain(self.replaying.oldest()).min()
    }

    /// Takes up replays that are open.
    pub fn replay(&mut self, open: Vec<Replay>) {
        self.replaying.take_up(open, &mut self.engine);
    }

    /// Does what sessions asked for.
    pub fn obey(&mut self, kind: CommandKind, journal: &mut Journal) {
        match kind {
            CommandKind::Skip { subscription, delivery } => {
                self.engine.skip(SubscriptionId(subscription), delivery);
                self.showing.changed(subscription);
            }
            CommandKind::Retry { subscription } => {
                self.engine.begin_anew(SubscriptionId(subscription), Instant::now());
                self.showing.changed(subscription);
            }
            CommandKind::CancelReplay { replay } => self.replaying.cancel(&mut self.engine, replay),
            CommandKind::Forget { subscription } => {
                journal.forget_read();
                if let Some(subscription) = subscription {
                    self.engine.forget_error(SubscriptionId(subscription), journal::FORGOTTEN);
                    self.showing.changed(subscription);
                }
            }
            CommandKind::Reload { .. }
            | CommandKind::Discard { .. }
            | CommandKind::Replay { .. }
            | CommandKind::Backfill { .. }
            | CommandKind::PauseBackfill { .. }
            | CommandKind::ResumeBackfill { .. }
            | CommandKind::CancelBackfill { .. } => {}
        }
    }

    /// What users are to hear of.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        let effects = self.engine.take_effects();
        for effect in &effects {
            if let Effect::Replayed(subscription, _) = effect {
                self.replaying.ended(subscription.0);
            }
        }
        effects
    }

    /// Shows how subscriptions fare, when everything up to the frontier has arrived: what all that is shown has reached,
    /// when it is something else.
    pub fn publish(&mut self, publisher: &mut Publisher, frontier: Lsn) -> Option<Lsn> {
        self.showing.publish(&self.engine, publisher, frontier)
    }

    /// Tells how much is in memory and under way.
    pub fn tell(&self, counts: &Dispatched) {
        counts.memory.store(self.engine.memory_used() as u64, Relaxed);
        counts.in_flight.store(self.engine.in_flight() as u64, Relaxed);
    }

    /// What [`Sending::arm`] makes readable.
    pub fn wake_fd(&self) -> RawFd {
        self.sender.wake_fd().as_raw_fd()
    }

    /// Asks to be woken by the next outcome; true if there are some already, or figures still to be shown.
    pub fn arm(&self) -> bool {
        self.sender.arm()
    }

    /// Ends what [`Sending::arm`] began.
    pub fn disarm(&self) {
        self.sender.disarm();
    }

    /// When there is something to do though nothing arrives: a retry, or figures that were not shown yet, if they may be.
    pub fn next_wakeup(&mut self, may_show: bool) -> Option<Instant> {
        let showing = self.showing.next_wakeup().filter(|_| may_show);
        let rendering = self.rendering.next_wakeup();
        let reading = (!self.wishes.is_empty()).then(|| self.passed_at + SQUEEZE_AFTER);
        let replaying = self.replaying.next_wakeup();
        self.engine
            .next_wakeup()
            .into_iter()
            .chain(showing)
            .chain(rendering)
            .chain(reading)
            .chain(replaying)
            .min()
    }

    /// For `pg_stat_activity`.
    pub fn what_it_waits_for(&self) -> &'static CStr {
        if self.engine.in_flight() > 0 {
            c"waiting for endpoints"
        } else if self.engine.memory_used() > 0 {
            c"waiting to try again"
        } else {
            c"waiting for events"
        }
    }
}

fn failure_of(failure: crate::http::Failure) -> Failure {
    Failure {
        class: match failure.kind() {
            FailureKind::Connection => FailureClass::Connection,
            FailureKind::Content => FailureClass::Content,
            FailureKind::Busy => FailureClass::Busy,
            FailureKind::Gone => FailureClass::Gone,
            FailureKind::Other => FailureClass::Other,
        },
        kind: failure.class.as_str(),
        status: failure.status,
        error: failure.message,
        response: failure.response,
        retry_after: failure.retry_after,
    }
}

/// How much memory events may take, in bytes.
fn event_memory() -> usize {
    (gucs::max_memory() as f64 * EVENTS_SHARE) as usize
}
