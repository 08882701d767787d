//! Who wants to read what of the log. One pass over it serves all whose wishes lie ahead of where it begins, so that a
//! hundred thousand subscriptions that are behind read it together and not each by itself.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use crate::delivery::DeliveryId;

/// What a subscription wants to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// These, in order.
    Listed(Vec<DeliveryId>),
    /// All that follows this, about as many bytes, but one at least if there is one.
    Log {
        /// The last one that is known.
        after: DeliveryId,
        /// How many bytes.
        max_bytes: usize,
    },
}

/// What was read for a subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<F> {
    /// Its deliveries, in order.
    pub found: Vec<F>,
    /// All that it wants up to this one and the journal has is in it.
    pub upto: DeliveryId,
    /// There is nothing beyond, not even unwritten.
    pub at_tail: bool,
}

/// Of so many passes of laps one goes to the one that has waited longest.
const TURNS: u32 = 8;
/// So many passes are noted before all wishes take note of them.
const PASSES: usize = 64;

/// Who wants what, in the order in which they asked.
#[derive(Debug)]
pub struct Wishes<F> {
    wishes: FxHashMap<i64, Wish<F>>,
    /// By when they asked.
    order: BTreeMap<u64, i64>,
    asked: u64,
    /// What passes have read, from where to where; a wish takes note of it when it is looked at.
    passes: Vec<(DeliveryId, DeliveryId)>,
    /// For whom the pass under way has found something.
    served: Vec<i64>,
    /// When many want something, passes follow each other in laps from where the first wants to read to the end.
    lap: Lap,
    /// How many passes there have been.
    turns: u32,
}

/// A lap: it goes on at `at`, and so many wishes are ahead of there. Of each lap a wish is ahead once.
#[derive(Debug, Default)]
struct Lap {
    number: u64,
    at: DeliveryId,
    ahead: usize,
}

/// A pass over the log.
#[derive(Debug)]
pub struct Pass {
    /// The first number that it reads.
    begin: DeliveryId,
    /// Who has waited longest, if it begins there; none when it goes on with a lap.
    head: Option<i64>,
    /// All that it reads, for the head alone; none: whatever follows, for all.
    only: Option<Vec<DeliveryId>>,
}

impl Pass {
    /// Whether it reads whatever follows.
    pub fn is_whole(&self) -> bool {
        self.only.is_none()
    }

    /// The first number from `from` on that is to be read, if there is one.
    pub fn next(&self, from: DeliveryId) -> Option<DeliveryId> {
        match &self.only {
            None => Some(from.max(self.begin)),
            Some(ids) => ids.get(ids.partition_point(|id| *id < from)).copied(),
        }
    }
}

#[derive(Debug)]
struct Wish<F> {
    wanted: Wanted,
    asked: u64,
    /// The lap that it is ahead in.
    lap: Option<u64>,
    /// How many of the noted passes it has taken note of.
    passes: usize,
    found: Vec<F>,
    bytes: usize,
    /// There was more than it has room for.
    full: bool,
}

impl<F> Default for Wishes<F> {
    fn default() -> Self {
        Wishes {
            wishes: FxHashMap::default(),
            order: BTreeMap::new(),
            asked: 0,
            passes: Vec::new(),
            served: Vec::new(),
            lap: Lap::default(),
            turns: 0,
        }
    }
}

impl<F> Wishes<F> {
    /// Adds what a subscription wants, instead of what it wanted before.
    pub fn add(&mut self, subscription: i64, wanted: Wanted) {
        self.remove(subscription);
        self.asked += 1;
        let (asked, passes) = (self.asked, self.passes.len());
        let mut wish = Wish { wanted, asked, lap: None, passes, found: Vec::new(), bytes: 0, full: false };
        if wish.position() >= self.lap.at {
            wish.lap = Some(self.lap.number);
            self.lap.ahead += 1;
        }
        self.order.insert(asked, subscription);
        self.wishes.insert(subscription, wish);
    }

    fn remove(&mut self, subscription: i64) -> Option<Wish<F>> {
        let wish = self.wishes.remove(&subscription)?;
        self.order.remove(&wish.asked);
        self.lap.ahead -= usize::from(wish.lap == Some(self.lap.number));
        Some(wish)
    }

    /// How many want something.
    pub fn len(&self) -> usize {
        self.wishes.len()
    }

    /// Whether nobody wants anything.
    pub fn is_empty(&self) -> bool {
        self.wishes.is_empty()
    }

    /// The subscriptions that want something, if there are no more than `most`.
    pub fn few(&self, most: usize) -> Option<Vec<i64>> {
        (self.len() <= most).then(|| self.wishes.keys().copied().collect())
    }

    /// Begins a pass: where the one that has waited longest wants to read, who waits longest no more, or, when more than
    /// `few` want something, mostly where the last one ended. None when nobody wants anything.
    pub fn begin(&mut self, few: usize) -> Option<Pass> {
        let is_few = self.len() <= few;
        self.turns = self.turns.wrapping_add(1);
        if !is_few && !self.turns.is_multiple_of(TURNS) {
            if self.lap.ahead == 0 {
                self.begin_lap();
            }
            return Some(Pass { begin: self.lap.at, head: None, only: None });
        }
        let (_, head) = self.order.pop_first()?;
        self.asked += 1;
        self.order.insert(self.asked, head);
        let wish = self.wishes.get_mut(&head)?;
        wish.asked = self.asked;
        wish.take_note(&self.passes);
        let begin = wish.position();
        let only = match &wish.wanted {
            Wanted::Listed(ids) if is_few => Some(ids.clone()),
            _ => None,
        };
        Some(Pass { begin, head: Some(head), only })
    }

    fn begin_lap(&mut self) {
        self.take_note();
        let number = self.lap.number + 1;
        self.wishes.values_mut().for_each(|wish| wish.lap = Some(number));
        let at = self.wishes.values().map(Wish::position).min().unwrap_or_default();
        self.lap = Lap { number, at, ahead: self.wishes.len() };
    }

    /// All take note of the passes there have been.
    fn take_note(&mut self) {
        for wish in self.wishes.values_mut() {
            wish.take_note(&self.passes);
            wish.passes = 0;
        }
        self.passes.clear();
    }

    /// Whether somebody wants this delivery, whom the pass serves.
    pub fn want(&mut self, pass: &Pass, subscription: i64, id: DeliveryId) -> bool {
        let Some(wish) = self.wishes.get_mut(&subscription) else { return false };
        wish.take_note(&self.passes);
        let serves = pass.is_whole() || pass.head == Some(subscription);
        serves
            && wish.position() >= pass.begin
            && match &wish.wanted {
                Wanted::Log { after, .. } => id > *after && !wish.full,
                Wanted::Listed(ids) => ids.binary_search(&id).is_ok(),
            }
    }

    /// Takes a delivery that is wanted, of so many bytes; they come in the order of the log. False when there is no room
    /// for it.
    pub fn take(&mut self, subscription: i64, id: DeliveryId, bytes: usize, found: F) -> bool {
        let Some(wish) = self.wishes.get_mut(&subscription) else { return false };
        if let Wanted::Log { after, max_bytes } = &mut wish.wanted {
            if !wish.found.is_empty() && wish.bytes >= *max_bytes {
                wish.full = true;
                return false;
            }
            *after = id;
        }
        if wish.found.is_empty() {
            self.served.push(subscription);
        }
        wish.bytes += bytes;
        wish.found.push(found);
        true
    }

    /// The pass has read all up to `end`; `last` is the last number that was given. What is to be told to whom: those
    /// for whom there was nothing, and who are not at the tail, go on waiting.
    pub fn end(&mut self, pass: &Pass, end: DeliveryId, last: DeliveryId) -> Vec<(i64, Page<F>)> {
        let mut told = std::mem::take(&mut self.served);
        if pass.is_whole() {
            self.passes.push((pass.begin, end));
        }
        let is_at_tail = pass.is_whole() && end >= last;
        if is_at_tail || self.passes.len() >= PASSES {
            told = self.wishes.keys().copied().collect();
        } else {
            told.extend(pass.head.filter(|head| !told.contains(head)));
        }
        let mut pages = Vec::new();
        for subscription in told {
            let Some(wish) = self.wishes.get_mut(&subscription) else { continue };
            wish.take_note(&self.passes);
            if let Some(upto) = wish.served_upto(pass, end, last)
                && let Some(wish) = self.remove(subscription)
            {
                let at_tail = upto >= last && matches!(wish.wanted, Wanted::Log { .. });
                pages.push((subscription, Page { found: wish.found, upto, at_tail }));
            }
        }
        if self.passes.len() >= PASSES {
            self.take_note();
        }
        if pass.head.is_none() {
            self.lap.at = DeliveryId(end.0 + 1);
            if is_at_tail {
                self.lap.ahead = 0;
                self.lap.number += 1;
            }
        }
        pages
    }
}

impl<F> Wish<F> {
    /// The first number that it may want.
    fn position(&self) -> DeliveryId {
        match &self.wanted {
            Wanted::Listed(ids) => ids.first().copied().unwrap_or_default(),
            Wanted::Log { after, .. } => DeliveryId(after.0 + 1),
        }
    }

    /// What passes have gone through it needn't read again; one that is full has not been served to their ends.
    fn take_note(&mut self, passes: &[(DeliveryId, DeliveryId)]) {
        if let Wanted::Log { after, .. } = &mut self.wanted
            && !self.full
        {
            for (begin, end) in &passes[self.passes..] {
                if after.0 + 1 >= begin.0 {
                    *after = (*after).max(*end);
                }
            }
        }
        self.passes = passes.len();
    }

    /// Up to where a pass has served it, if that is to be told.
    fn served_upto(&self, pass: &Pass, end: DeliveryId, last: DeliveryId) -> Option<DeliveryId> {
        match &self.wanted {
            Wanted::Listed(ids) => {
                let (first, newest) = (self.position(), ids.last().copied().unwrap_or_default());
                (first >= pass.begin && first <= end).then(|| newest.min(end))
            }
            Wanted::Log { after, .. } => {
                (self.full || !self.found.is_empty() || *after >= last).then_some(*after)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Reads the log as a journal does: `log` says whose each delivery is, from number 1 on.
    fn pass(wishes: &mut Wishes<u64>, log: &[i64], few: usize, room: usize) -> Vec<(i64, Page<u64>)> {
        let Some(pass) = wishes.begin(few) else { return Vec::new() };
        let (mut end, mut read) = (0, 0);
        while let Some(next) = pass.next(DeliveryId(end + 1))
            && next.0 <= log.len() as u64
            && read < room
        {
            end = next.0;
            let subscription = log[end as usize - 1];
            if wishes.want(&pass, subscription, next) && wishes.take(subscription, next, 1, end) {
                read += 1;
            }
        }
        wishes.end(&pass, DeliveryId(end), DeliveryId(log.len() as u64))
    }

    #[derive(Clone, Debug)]
    enum Ask {
        Listed(Vec<u64>),
        Log(u64, usize),
    }

    fn asks() -> impl Strategy<Value = (Vec<i64>, Vec<Ask>)> {
        let ask = prop_oneof![
            prop::collection::btree_set(1u64..200, 1..8)
                .prop_map(|ids| Ask::Listed(ids.into_iter().collect())),
            (0u64..200, 1usize..6).prop_map(|(after, room)| Ask::Log(after, room)),
        ];
        (prop::collection::vec(0i64..12, 1..200), prop::collection::vec(ask, 12))
    }

    proptest! {
        #![proptest_config(crate::proptest_config::config(512))]

        #[test]
        fn whoever_asks_is_told_all_that_it_wants_and_nothing_else(
            (log, asks) in asks(),
            few in 0usize..14,
            room in 1usize..40,
        ) {
            let last = log.len() as u64;
            let of = |subscription: i64| {
                (1..=last).filter(|id| log[*id as usize - 1] == subscription).collect::<Vec<_>>()
            };
            let mut wishes = Wishes::default();
            // What is listed has been numbered.
            let known = |ask| match ask {
                Ask::Listed(ids) => Ask::Listed(ids.into_iter().map(|id| 1 + id % last).collect::<BTreeSet<_>>().into_iter().collect()),
                log => log,
            };
            let mut left: Vec<Option<Ask>> = asks.into_iter().map(|ask| Some(known(ask))).collect();
            let add = |wishes: &mut Wishes<u64>, subscription: usize, ask: &Ask| {
                let wanted = match ask {
                    Ask::Listed(ids) => Wanted::Listed(ids.iter().copied().map(DeliveryId).collect()),
                    Ask::Log(after, room) => Wanted::Log { after: DeliveryId(*after), max_bytes: *room },
                };
                wishes.add(subscription as i64, wanted);
            };
            for (subscription, ask) in left.iter().enumerate() {
                add(&mut wishes, subscription, ask.as_ref().unwrap());
            }
            for _ in 0..10_000 {
                if wishes.is_empty() {
                    break;
                }
                for (subscription, page) in pass(&mut wishes, &log, few, room) {
                    let place = subscription as usize;
                    let upto = page.upto.0;
                    left[place] = match left[place].take().unwrap() {
                        Ask::Listed(ids) => {
                            let mine = of(subscription);
                            let (now, later): (Vec<_>, Vec<_>) = ids.into_iter().partition(|id| *id <= upto);
                            let there: Vec<u64> = now.into_iter().filter(|id| mine.contains(id)).collect();
                            prop_assert_eq!(page.found, there);
                            (!later.is_empty()).then_some(Ask::Listed(later))
                        }
                        Ask::Log(after, room) => {
                            let there: Vec<u64> =
                                of(subscription).into_iter().filter(|id| *id > after && *id <= upto).collect();
                            prop_assert!(there.len() <= room);
                            prop_assert_eq!(page.found, there);
                            prop_assert_eq!(page.at_tail, upto >= last);
                            (!page.at_tail).then_some(Ask::Log(upto, room))
                        }
                    };
                    if let Some(ask) = &left[place] {
                        add(&mut wishes, place, ask);
                    }
                }
            }
            prop_assert!(wishes.is_empty(), "{:?}", left);
        }
    }

    #[test]
    fn a_hundred_thousand_that_want_the_same_part_of_the_log_read_it_once() {
        const MANY: i64 = 100_000;
        let log: Vec<i64> = (0..2 * MANY).map(|n| n % MANY).collect();
        let mut wishes = Wishes::default();
        (0..MANY).for_each(|who| wishes.add(who, Wanted::Log { after: DeliveryId(0), max_bytes: 10 }));
        let (mut passes, mut found) = (0, 0);
        while !wishes.is_empty() {
            passes += 1;
            for (who, page) in pass(&mut wishes, &log, 64, 10_000) {
                found += page.found.len();
                if !page.at_tail {
                    wishes.add(who, Wanted::Log { after: page.upto, max_bytes: 10 });
                }
            }
        }
        assert_eq!((found, passes <= 40), (log.len(), true), "{passes} passes");
    }
}
