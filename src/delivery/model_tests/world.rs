//! A world for the engine: a stream of events, a journal that forgets what was not flushed, and endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::must_wait;
use crate::delivery::{
    At, DeliveryId, End, Engine, Failure, FailureClass, Item, KeyFilter, Mode, Order, Ordering, Page,
    PerSecond, Position, Read, ReadWhat, Record, Schedule, Settings, Sifted, SubscriptionId, Success, Ticket,
};

pub const CHARGE: usize = 100;
pub const POOL: usize = 6;

/// A subscription as the model sees it.
#[derive(Clone, Debug)]
pub struct Model {
    pub settings: Settings,
    /// All that has arrived: its order, and whether it is done.
    pub arrivals: BTreeMap<u64, Order>,
    pub done: BTreeSet<u64>,
    pub delivered: u64,
    pub dropped: u64,
    pub dead: u64,
    pub replay: Option<Again>,
}

/// A replay as the model sees it: what it sends again that it has not sent yet.
#[derive(Clone, Debug)]
pub struct Again {
    pub id: i64,
    pub left: BTreeSet<u64>,
    /// The number that each was given last.
    pub numbers: BTreeMap<u64, u64>,
    pub last: u64,
}

#[derive(Clone)]
struct Saved {
    position: Position,
    done: BTreeSet<u64>,
    delivered: u64,
    dropped: u64,
    dead: u64,
}

#[derive(Clone, Debug)]
pub struct UnderWay {
    pub ticket: Ticket,
    pub subscription: i64,
    pub members: Vec<u64>,
}

pub struct World {
    pub engine: Engine<u64>,
    pub models: BTreeMap<i64, Model>,
    saved: BTreeMap<i64, Saved>,
    /// The last number that is flushed; everything later arrives again after a crash.
    flushed: u64,
    pub last: u64,
    pub under_way: Vec<UnderWay>,
    /// What the engine has asked for, and has not been told yet.
    wishes: BTreeMap<i64, Read>,
    pub now: Instant,
    limit: usize,
    replays: i64,
}

pub fn settings(seed: u32) -> Settings {
    Settings {
        max_in_flight: seed % 4 + 1,
        max_ahead: [0, 0, 2][seed as usize / 1536 % 3],
        rate_limit: PerSecond::new(seed / 256 % 3),
        schedule: Schedule::new(&[3, 7, 20].map(Duration::from_secs)),
        batch_size: [1, 1, 3, 8][seed as usize / 4 % 4],
        batch_wait: Duration::from_secs(u64::from(seed / 16 % 2)),
        ordering: [Ordering::Key, Ordering::Key, Ordering::Strict, Ordering::None][seed as usize / 32 % 4],
        keyed_by: u64::from(seed / 768 % 2),
        host: u64::from(seed / 128 % 2),
        max_pending_bytes: u64::MAX,
    }
}

impl World {
    pub fn new(limit: usize, seeds: &[u32]) -> World {
        let mut world = World {
            engine: Engine::new(POOL, limit),
            models: BTreeMap::new(),
            saved: BTreeMap::new(),
            flushed: 0,
            last: 0,
            under_way: Vec::new(),
            wishes: BTreeMap::new(),
            now: Instant::now() + Duration::from_secs(1000),
            limit,
            replays: 0,
        };
        for (id, &seed) in seeds.iter().enumerate() {
            let settings = settings(seed);
            let model = Model {
                settings: settings.clone(),
                arrivals: BTreeMap::new(),
                done: BTreeSet::new(),
                delivered: 0,
                dropped: 0,
                dead: 0,
                replay: None,
            };
            world.models.insert(id as i64, model);
            world.engine.subscribe(SubscriptionId(id as i64), settings, Position::new(DeliveryId(0)));
        }
        world.flush();
        world
    }

    pub fn arrive(&mut self, order: Order, targets: u8) {
        for id in 0..self.models.len() as i64 {
            if targets & (1 << id) != 0 {
                self.last += 1;
                self.models.get_mut(&id).unwrap().arrivals.insert(self.last, order);
                self.tell(id, self.last, order);
            }
        }
    }

    fn tell(&mut self, id: i64, delivery: u64, order: Order) {
        assert!(self.engine.arrive(
            SubscriptionId(id),
            DeliveryId(delivery),
            order,
            At::default(),
            delivery,
            CHARGE
        ));
    }

    /// Everything told so far is safe, and where each stands.
    pub fn flush(&mut self) {
        self.flushed = self.last;
        for id in self.engine.touched_since_checkpoint() {
            let model = &self.models[&id.0];
            let position = self.engine.position(id, self.now).unwrap();
            let Model { done, delivered, dropped, dead, .. } = model.clone();
            self.saved.insert(id.0, Saved { position, done, delivered, dropped, dead });
        }
    }

    /// The process is killed and begins anew with what was flushed; the stream comes again from there.
    pub fn crash(&mut self) {
        self.engine = Engine::new(POOL, self.limit);
        self.under_way.clear();
        self.wishes.clear();
        for (&id, model) in &mut self.models {
            let saved = self.saved[&id].clone();
            (model.done, model.delivered) = (saved.done, saved.delivered);
            (model.dropped, model.dead) = (saved.dropped, saved.dead);
            model.replay = None;
            self.engine.subscribe(SubscriptionId(id), model.settings.clone(), saved.position);
        }
        let mut again: Vec<(u64, i64, Order)> = Vec::new();
        for (&id, model) in &self.models {
            again.extend(
                model.arrivals.range(self.flushed + 1..).map(|(&delivery, &order)| (delivery, id, order)),
            );
        }
        again.sort_unstable_by_key(|(delivery, ..)| *delivery);
        for (delivery, id, order) in again {
            self.tell(id, delivery, order);
        }
    }

    pub fn read(&mut self, most: usize) -> bool {
        let mut now = None;
        while now.is_none()
            && let Some(read) = self.engine.next_read()
        {
            match read.what {
                ReadWhat::Replay { .. } => now = Some(read),
                _ => _ = self.wishes.insert(read.subscription.0, read),
            }
        }
        let Some(Read { subscription, what, max_bytes }) = now.or_else(|| Some(self.wishes.pop_first()?.1))
        else {
            return false;
        };
        self.flush();
        let each = CHARGE + Engine::<u64>::DELIVERY_BYTES;
        let room = (max_bytes / each).clamp(1, most);
        let model = self.models.get_mut(&subscription.0).unwrap();
        let item = |id: u64, source: u64, order: Order| Item {
            id: DeliveryId(id),
            order,
            at: At::default(),
            payload: source,
            charge: CHARGE,
        };
        let page = match what {
            ReadWhat::Listed(ids) => {
                let ids = &ids[..ids.len().min(most)];
                let items = ids.iter().filter_map(|id| Some(item(id.0, id.0, *model.arrivals.get(&id.0)?)));
                Page { items: items.collect(), upto: *ids.last().unwrap(), at_tail: false }
            }
            ReadWhat::Log { after } => {
                let rest = model.arrivals.range(after.0 + 1..).map(|(&id, &order)| item(id, id, order));
                let mut items: Vec<_> = rest.take(room + 1).collect();
                let at_tail = items.len() <= room;
                items.truncate(room);
                let upto = if at_tail { DeliveryId(self.last) } else { items[items.len() - 1].id };
                Page { items, upto, at_tail }
            }
            ReadWhat::Replay { replay, after } => {
                let again = model.replay.as_mut().unwrap();
                assert_eq!(again.id, replay);
                let rest = model.arrivals.range(after.0 + 1..).filter(|(id, _)| **id <= again.last);
                let mut sources: Vec<_> = rest.take(room + 1).map(|(&id, &order)| (id, order)).collect();
                let at_tail = sources.len() <= room;
                sources.truncate(room);
                let upto = DeliveryId(if at_tail { again.last } else { sources[sources.len() - 1].0 });
                let mut items = Vec::new();
                for (source, order) in sources {
                    self.last += 1;
                    again.numbers.insert(source, self.last);
                    items.push(item(self.last, source, order));
                }
                Page { items, upto, at_tail }
            }
        };
        self.engine.page(subscription, page);
        self.take_records();
        true
    }

    pub fn replay(&mut self, id: i64, from: u64, to: u64) {
        let model = self.models.get_mut(&id).unwrap();
        let (after, last) = (from.min(to).min(self.last), from.max(to).min(self.last));
        let left: BTreeSet<u64> =
            model.arrivals.range(after + 1..).map(|(&id, _)| id).filter(|id| *id <= last).collect();
        let mut filter = KeyFilter::with_capacity(left.len());
        left.iter().for_each(|id| filter.add(&model.arrivals[id]));
        let number = self.replays + 1;
        if self.engine.replay_begin(SubscriptionId(id), number, DeliveryId(after), filter, self.now) {
            self.replays += 1;
            model.replay = Some(Again { id: number, left, numbers: BTreeMap::new(), last });
        }
    }

    /// Sends one request and holds it against the rules of order.
    pub fn send(&mut self) -> bool {
        let Some(request) = self.engine.next_to_send(self.now) else { return false };
        let members: Vec<(u64, u64)> = request.members.iter().map(|(id, source)| (id.0, **source)).collect();
        let (ticket, id, replay) = (request.ticket, request.subscription.0, request.replay);
        let model = &self.models[&id];
        // As many as any setting allows, since a batch that failed stays as it is when the setting changes.
        assert!(!members.is_empty() && members.len() <= 8);
        assert!(self.under_way.len() < POOL);
        let ours = self.under_way.iter().filter(|under_way| under_way.subscription == id);
        assert!(ours.clone().count() < (model.settings.max_in_flight + model.settings.max_ahead) as usize);
        let busy: Vec<u64> = ours.flat_map(|under_way| under_way.members.iter().copied()).collect();
        for (at, &(number, source)) in members.iter().enumerate() {
            assert!(!busy.contains(&number), "{number} is under way already");
            let order = model.arrivals[&source];
            let waits = |older: &u64| match model.settings.ordering {
                Ordering::Key => must_wait(&order, &model.arrivals[older]),
                Ordering::Strict => true,
                Ordering::None => false,
            };
            let before: Vec<u64> = members[..at].iter().map(|(_, source)| *source).collect();
            if replay.is_none() {
                assert!(!model.done.contains(&number), "{number} is done");
                let mut older = model.arrivals.range(..number).map(|(older, _)| older);
                let ahead = older
                    .find(|older| !model.done.contains(older) && !before.contains(older) && waits(older));
                assert_eq!(ahead, None, "{number} overtakes");
            }
            if let Some(again) = &model.replay {
                let ahead = again.left.iter().find(|older| {
                    (replay.is_none() || **older < source) && !before.contains(older) && waits(older)
                });
                assert!(
                    ahead.is_none() || replay.is_some_and(|replay| replay != again.id),
                    "a replay is overtaken"
                );
            }
        }
        let members = members.into_iter().map(|(number, _)| number).collect();
        self.under_way.push(UnderWay { ticket, subscription: id, members });
        true
    }

    pub fn succeed(&mut self, at: usize) {
        let UnderWay { ticket, .. } = self.under_way.swap_remove(at);
        let success = Success { status: 200, flaw: None, duration: Duration::from_millis(5) };
        self.engine.succeeded(ticket, success, self.now);
        self.take_records();
    }

    pub fn hand_back(&mut self, at: usize) {
        let UnderWay { ticket, .. } = self.under_way.swap_remove(at);
        self.engine.handed_back(ticket, self.now);
        self.take_records();
    }

    pub fn fail(&mut self, at: usize, class: FailureClass, jitter: u32) {
        let UnderWay { ticket, .. } = self.under_way.swap_remove(at);
        let failure = Failure { class, ..Failure::default() };
        self.engine.failed(ticket, failure, Duration::from_millis(5), self.now, jitter);
        self.take_records();
    }

    /// Two bits of `which` say what is found out about each member before the request is sent.
    pub fn sift(&mut self, at: usize, which: u32, jitter: u32) {
        let UnderWay { ticket, members, .. } = &self.under_way[at];
        let judged = members.iter().enumerate().filter_map(|(place, &id)| {
            let sifted = match which >> (2 * place) & 3 {
                0 => Sifted::Dropped,
                1 => Sifted::Failed(Failure::default()),
                _ => return None,
            };
            Some((DeliveryId(id), sifted))
        });
        let judged = judged.collect();
        let left = self.engine.sift(*ticket, judged, Duration::from_millis(5), self.now, jitter);
        let left: Vec<u64> = left.iter().map(|id| id.0).collect();
        assert!(left.iter().all(|id| self.under_way[at].members.contains(id)));
        if left.is_empty() {
            self.under_way.swap_remove(at);
        } else {
            self.under_way[at].members = left;
        }
        self.take_records();
    }

    pub fn take_records(&mut self) {
        for record in self.engine.take_records() {
            let Record::Finished { subscription, members, end, replay, .. } = record else { continue };
            let model = self.models.get_mut(&subscription.0).unwrap();
            for (id, source) in members {
                if let Some(replay) = replay {
                    let again = model.replay.as_mut().filter(|again| again.id == replay);
                    _ = again.is_some_and(|again| again.left.remove(&source));
                    continue;
                }
                assert!(model.arrivals.contains_key(&id.0));
                assert!(model.done.insert(id.0), "{} ends twice", id.0);
                match end {
                    End::Delivered { .. } => model.delivered += 1,
                    End::Dropped => model.dropped += 1,
                    End::Dead { .. } => model.dead += 1,
                }
            }
        }
        for effect in self.engine.take_effects() {
            if let crate::delivery::Effect::Replayed(id, _) = effect {
                let again = self.models.get_mut(&id.0).unwrap().replay.take().unwrap();
                assert_eq!(again.left, BTreeSet::new(), "a replay is over when all of it is sent");
            }
        }
    }

    /// Whether the engine's books are those of the model.
    pub fn check(&mut self) {
        self.take_records();
        let each = CHARGE + Engine::<u64>::DELIVERY_BYTES + Engine::<u64>::SUBSCRIPTION_BYTES;
        let listed: usize = self.models.values().map(|model| model.arrivals.len() * 100 + 200).sum();
        let used = self.engine.memory_used();
        assert!(used <= self.limit + 3 * self.models.len() * each + listed, "{used} of {}", self.limit);
        assert_eq!(self.engine.in_flight(), self.under_way.len());
        let mut oldest = None;
        for (&id, model) in &self.models {
            let id = SubscriptionId(id);
            let pending: BTreeSet<u64> =
                model.arrivals.keys().filter(|id| !model.done.contains(id)).copied().collect();
            let position = self.engine.position(id, self.now).unwrap();
            let reach = position.reach.0;
            let listed = position.pending.iter().map(|pending| pending.id.0).filter(|id| *id <= reach);
            let beyond = model.arrivals.range(reach + 1..).map(|(&id, _)| id);
            let beyond = beyond.filter(|id| !position.done_ahead.contains(&DeliveryId(*id)));
            let found: Vec<u64> = listed.chain(beyond).collect();
            assert!(found.is_sorted());
            assert_eq!(found, pending.iter().copied().collect::<Vec<_>>(), "what is pending");
            let counters = self.engine.counters(id).unwrap();
            assert_eq!(counters.pending, pending.len() as u64);
            assert_eq!(counters.pending_bytes, (pending.len() * CHARGE) as u64);
            let counted = (counters.delivered, counters.dropped, counters.dead);
            assert_eq!(counted, (model.delivered, model.dropped, model.dead));
            if let Some(&first) = pending.first() {
                oldest = Some(oldest.map_or(first, |oldest: u64| oldest.min(first)));
            }
        }
        let bound = self.engine.oldest_pending();
        assert_eq!(bound.is_some(), oldest.is_some());
        assert!(bound.is_none_or(|bound| Some(bound.0) <= oldest), "the journal keeps what is pending");
    }

    /// All endpoints are well from now on: everything must get through.
    pub fn calm(&mut self) {
        for &id in self.models.keys() {
            self.engine.resume(SubscriptionId(id));
        }
        for _ in 0..20_000 {
            let mut busy = self.send();
            busy |= self.read(5);
            if let Some(at) = self.under_way.len().checked_sub(1) {
                self.succeed(at);
                busy = true;
            }
            if !busy {
                match self.engine.next_wakeup() {
                    Some(at) => {
                        assert!(at > self.now, "no wake-up without work");
                        self.now = at;
                    }
                    None => break,
                }
            }
        }
        self.check();
        for (&id, model) in &self.models {
            let counters = self.engine.counters(SubscriptionId(id)).unwrap();
            assert_eq!(counters.pending, 0, "{id} stalls: {counters:?} {model:?}");
            assert_eq!(counters.mode, Mode::Live);
            assert_eq!((counters.retrying, counters.blocked_keys, counters.in_flight), (0, 0, 0));
            assert!(model.replay.is_none());
        }
        assert_eq!(self.engine.memory_used(), 0);
    }
}
