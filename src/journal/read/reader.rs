//! Reading deliveries back: page by page from the log, or one by one from a list.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use pgrx::spi::{OwnedPreparedStatement, Result};
use pgrx::{PgOid, Spi, pg_sys};

use super::shared_scan;
use crate::delivery::DeliveryId;
use crate::event::Event;
use crate::ipc::frame;
use crate::ipc::frame::{Item, LaneKeys, Target};
use crate::journal::columns::{charge, id, intact, parameter};
use crate::journal::packed::event_chunk;
use crate::journal::packed::event_chunk::Entry;
use crate::journal::transaction::check;
use crate::journal::write::writer::Journal;

/// The chunks read in one query.
const CHUNKS: i64 = 8;
/// The rows passed over in one call because nothing in them is for the subscription.
const PASSED_OVER: usize = 512;
/// The bytes of events that stay unpacked, since several subscriptions drain at the same place.
const CACHE: usize = 4 << 20;
/// Of so many subscriptions a row is asked whether it has something for them; for more it is read in any case.
const FEW: usize = 64;

/// What was read for a subscription.
pub type Page = shared_scan::Page<Found>;
/// Who wants to read what.
pub type Wishes = shared_scan::Wishes<Found>;

/// A delivery read back.
#[derive(Clone, Debug)]
pub struct Found {
    /// Which.
    pub id: DeliveryId,
    /// Which of the relation's names the subscription knows it by.
    pub level: u8,
    /// The bytes it is charged.
    pub charge: usize,
    /// What is delivered.
    pub what: What,
}

/// What a delivery brings.
#[derive(Clone, Debug)]
pub enum What {
    /// An event.
    Event {
        /// The event.
        event: Arc<Event>,
        /// The keys it is ordered by.
        keys: LaneKeys,
        /// Whether it waits for all that is older in its table, and all that is newer for it.
        barrier: bool,
    },
    /// A change that could not be encoded: it can only be recorded as dead.
    Failed(Arc<frame::Failure>),
}

/// Unpacked events with consecutive numbers.
pub(super) struct Unpacked {
    first: DeliveryId,
    last: DeliveryId,
    entries: Vec<Entry>,
    memory: usize,
}

/// Chunks that stay unpacked for a while, by the last number.
#[derive(Default)]
pub struct Cache {
    chunks: BTreeMap<DeliveryId, (u64, Arc<Unpacked>)>,
    memory: usize,
    clock: u64,
}

/// A row of the log: a chunk, unpacked or not yet, or the last number of one that has nothing for who asks.
enum Row {
    Chunk(Arc<Unpacked>),
    Packed(DeliveryId, DeliveryId, Vec<u8>),
    Other(DeliveryId),
}

impl Journal {
    /// The subscription's deliveries beyond `after`, about `max_bytes` of them but at least one, if there are any. A
    /// page may be empty and not at the tail: much of the log is not for this subscription, and passing over it takes
    /// several calls. None when our tables are not here any more.
    pub fn read(&mut self, subscription: i64, after: DeliveryId, max_bytes: usize) -> Option<Page> {
        let mut page = Page { found: Vec::new(), upto: after, at_tail: false };
        let (mut bytes, mut passed) = (0, 0);
        while bytes < max_bytes && passed < PASSED_OVER {
            if page.upto >= self.written {
                if self.written < self.last {
                    self.flush()?;
                    continue;
                }
                page.at_tail = true;
                break;
            }
            let rows = self.rows_after(Some(&[subscription]), page.upto, CHUNKS)?;
            if rows.is_empty() {
                // What was numbered and is not in the journal any more.
                page.upto = self.written;
            }
            for row in rows {
                match self.unpacked(row) {
                    Err(last) => {
                        page.upto = last;
                        passed += 1;
                    }
                    Ok(chunk) => {
                        let (first_bytes, limit) = (bytes, max_bytes);
                        bytes += chunk.take(subscription, limit.saturating_sub(first_bytes), &mut page);
                        if page.upto < chunk.last {
                            self.tell_own_keys(subscription, &mut page.found);
                            return Some(page);
                        }
                        passed += 1;
                    }
                }
                if bytes >= max_bytes {
                    break;
                }
            }
        }
        page.at_tail = page.upto >= self.last;
        self.tell_own_keys(subscription, &mut page.found);
        Some(page)
    }

    /// Reads for the one that has waited longest and, on the way, for all others that want what is passed: about `room`
    /// bytes, each delivery counted with `overhead` bytes on top. Returns what is to be told to whom; None when our
    /// tables are not here any more.
    pub fn serve(&mut self, wishes: &mut Wishes, room: usize, overhead: usize) -> Option<Vec<(i64, Page)>> {
        let Some(pass) = wishes.begin(FEW) else { return Some(Vec::new()) };
        let few = wishes.few(FEW);
        let (mut end, mut bytes, mut passed) = (DeliveryId(0), 0, 0);
        'pass: while bytes < room && passed < PASSED_OVER {
            let Some(next) = pass.next(DeliveryId(end.0 + 1)) else { break };
            end = DeliveryId(next.0 - 1);
            if end >= self.written {
                if self.written == self.last {
                    break;
                }
                self.flush()?;
                continue;
            }
            let rows = self.rows_after(few.as_deref(), end, if pass.is_whole() { CHUNKS } else { 1 })?;
            if rows.is_empty() {
                // What was numbered and is not in the journal any more.
                end = self.written;
            }
            for row in rows {
                passed += 1;
                let chunk = match self.unpacked(row) {
                    Ok(chunk) => chunk,
                    Err(last) => {
                        end = last;
                        continue;
                    }
                };
                for (id, target, entry) in chunk.behind(end) {
                    if !wishes.want(&pass, target.subscription, id) {
                        continue;
                    }
                    if bytes >= room && bytes > 0 {
                        end = DeliveryId(id.0 - 1);
                        break 'pass;
                    }
                    let Some(found) = found(id, target.level, entry) else { continue };
                    let size = found.charge + overhead;
                    if wishes.take(target.subscription, id, size, found) {
                        bytes += size;
                    }
                }
                end = chunk.last;
            }
        }
        let mut pages = wishes.end(&pass, end, self.last);
        for (subscription, page) in &mut pages {
            self.tell_own_keys(*subscription, &mut page.found);
        }
        Some(pages)
    }

    /// Those deliveries of the subscription (rising numbers) that the journal has. None when our tables are not here
    /// any more.
    pub fn fetch(&mut self, subscription: i64, ids: &[DeliveryId]) -> Option<Vec<Found>> {
        if ids.last().is_some_and(|last| *last > self.written) {
            self.flush()?;
        }
        let mut found = Vec::with_capacity(ids.len());
        let mut rest = ids;
        while let Some(id) = rest.first() {
            let chunk = match self.cache.holding(*id) {
                Some(chunk) => chunk,
                None => match self.load_holding(subscription, *id)? {
                    Some(chunk) => chunk,
                    None => {
                        rest = &rest[1..];
                        continue;
                    }
                },
            };
            let here = rest.partition_point(|id| *id <= chunk.last);
            let (wanted, behind) = rest.split_at(here.max(1));
            chunk.pick(subscription, wanted, &mut found);
            rest = behind;
        }
        self.tell_own_keys(subscription, &mut found);
        Some(found)
    }

    /// Puts the subscription's own keys in place of the tables'.
    fn tell_own_keys(&self, subscription: i64, found: &mut [Found]) {
        for found in found {
            if let What::Event { event, keys, barrier } = &mut found.what {
                (*keys, *barrier) = self.own_keys.of(subscription, event, *keys, *barrier);
            }
        }
    }

    /// The next rows of the log behind `after`, none at its end; some of those that have something for these
    /// subscriptions, or of all.
    fn rows_after(&mut self, few: Option<&[i64]>, after: DeliveryId, limit: i64) -> Option<Vec<Row>> {
        if let Some(chunk) = self.cache.holding(DeliveryId(after.0 + 1)) {
            return Some(vec![Row::Chunk(chunk)]);
        }
        for slice in self.slices.from(DeliveryId(after.0 + 1)) {
            let rows = self.query(slice, after, few, limit)?;
            if rows.is_empty() {
                continue;
            }
            let rows = rows.into_iter().map(|(first, last, body)| match body {
                Some(body) => Row::Packed(first, last, body),
                None => Row::Other(last),
            });
            return Some(rows.collect());
        }
        Some(Vec::new())
    }

    /// The chunk of a row, or where the next one begins behind.
    fn unpacked(&mut self, row: Row) -> std::result::Result<Arc<Unpacked>, DeliveryId> {
        match row {
            Row::Chunk(chunk) => Ok(chunk),
            Row::Packed(first, last, body) => Ok(self.cache.keep(Unpacked::from_body(first, last, &body))),
            Row::Other(last) => Err(last),
        }
    }

    /// The chunk with the delivery in it; none inside, when the journal does not have it, or it is not for the
    /// subscription.
    fn load_holding(&mut self, subscription: i64, id: DeliveryId) -> Option<Option<Arc<Unpacked>>> {
        let Some(slice) = self.slices.from(id).next() else { return Some(None) };
        let mut rows = self.query(slice, DeliveryId(id.0.saturating_sub(1)), Some(&[subscription]), 1)?;
        let chunk = rows.pop().filter(|(first, ..)| *first <= id);
        let unpacked = |(first, last, body): ChunkRow| {
            body.map(|body| self.cache.keep(Unpacked::from_body(first, last, &body)))
        };
        Some(chunk.and_then(unpacked))
    }

    /// First and last numbers of the next chunks of a slice behind `after`, and the bodies of those with something for
    /// these subscriptions, or of all.
    fn query(
        &mut self,
        slice: i16,
        after: DeliveryId,
        few: Option<&[i64]>,
        limit: i64,
    ) -> Option<Vec<ChunkRow>> {
        let mut plan = self.reads.remove(&slice);
        let rows = self.with_tables(|| {
            check("the journal cannot be read", read_rows(&mut plan, slice, after, few, limit))
        });
        self.reads.extend(plan.map(|plan| (slice, plan)));
        rows
    }
}

/// First and last number of a chunk, and its body if it was wanted.
type ChunkRow = (DeliveryId, DeliveryId, Option<Vec<u8>>);

/// Prepared queries, by slice.
pub(crate) type Reads = HashMap<i16, OwnedPreparedStatement>;

fn read_rows(
    plan: &mut Option<OwnedPreparedStatement>,
    slice: i16,
    after: DeliveryId,
    few: Option<&[i64]>,
    limit: i64,
) -> Result<Vec<ChunkRow>> {
    Spi::connect(|client| {
        let plan = match plan {
            Some(plan) => plan,
            None => {
                let query = format!(
                    "SELECT first_id, last_id,
                         CASE WHEN subscriptions IS NULL OR $2 IS NULL OR subscriptions && $2 THEN body END
                     FROM pgwh_internal.event_chunks_{slice} WHERE last_id > $1 ORDER BY last_id LIMIT $3"
                );
                let types = [pg_sys::INT8OID, pg_sys::INT8ARRAYOID, pg_sys::INT8OID].map(PgOid::from);
                plan.insert(client.prepare(query.as_str(), &types)?.keep())
            }
        };
        let mut chunks = Vec::new();
        for row in
            client.select(&*plan, None, &[parameter(after), few.map(<[i64]>::to_vec).into(), limit.into()])?
        {
            chunks.push((id(row.get(1)?), id(row.get(2)?), row.get(3)?));
        }
        Ok(chunks)
    })
}

impl Unpacked {
    fn from_body(first: DeliveryId, last: DeliveryId, body: &[u8]) -> Unpacked {
        let entries = intact(event_chunk::unpack(first, body));
        let memory = entries.iter().map(Entry::memory).sum();
        Unpacked { first, last, entries, memory }
    }

    /// The deliveries in it behind `after`.
    fn behind(&self, after: DeliveryId) -> impl Iterator<Item = (DeliveryId, Target, &Entry)> {
        let begin = self
            .entries
            .partition_point(|entry| entry.first.0 + entry.item.targets().len() as u64 <= after.0 + 1);
        let deliveries = self.entries[begin..]
            .iter()
            .flat_map(|entry| entry.deliveries().map(move |(id, target)| (id, target, entry)));
        deliveries.skip_while(move |(id, ..)| *id <= after)
    }

    /// Adds the subscription's deliveries behind `page.upto`, until there are `room` bytes; returns the bytes added.
    fn take(&self, subscription: i64, room: usize, page: &mut Page) -> usize {
        let mut bytes = 0;
        for (id, target, entry) in self.behind(page.upto) {
            if target.subscription != subscription {
                continue;
            }
            if bytes >= room && bytes > 0 {
                return bytes;
            }
            let Some(found) = found(id, target.level, entry) else { continue };
            bytes += found.charge.max(1);
            page.found.push(found);
            page.upto = id;
        }
        page.upto = self.last;
        bytes
    }

    /// Adds those of the wanted deliveries (rising numbers) that are the subscription's.
    fn pick(&self, subscription: i64, wanted: &[DeliveryId], to: &mut Vec<Found>) {
        for id in wanted {
            let behind = self.entries.partition_point(|entry| entry.first <= *id);
            let Some(entry) = behind.checked_sub(1).and_then(|place| self.entries.get(place)) else {
                continue;
            };
            let target = entry.deliveries().find(|(other, _)| other == id);
            let target = target.filter(|(_, target)| target.subscription == subscription);
            to.extend(target.and_then(|(id, target)| found(id, target.level, entry)));
        }
    }
}

fn found(id: DeliveryId, level: u8, entry: &Entry) -> Option<Found> {
    let what = match &entry.item {
        Item::Change { event, keys, barrier, .. } => {
            What::Event { event: Arc::clone(event), keys: *keys, barrier: *barrier }
        }
        Item::Failed { failure, .. } => What::Failed(Arc::clone(failure)),
        _ => return None,
    };
    Some(Found { id, level, charge: charge(entry), what })
}

impl Cache {
    /// The chunk with that delivery in it.
    fn holding(&mut self, id: DeliveryId) -> Option<Arc<Unpacked>> {
        let (_, (used, chunk)) = self.chunks.range_mut(id..).next()?;
        if chunk.first > id {
            return None;
        }
        self.clock += 1;
        *used = self.clock;
        Some(Arc::clone(chunk))
    }

    /// Keeps a chunk, in place of those not used for the longest time.
    fn keep(&mut self, chunk: Unpacked) -> Arc<Unpacked> {
        let chunk = Arc::new(chunk);
        if chunk.memory > CACHE / 4 {
            return chunk;
        }
        self.clock += 1;
        self.memory += chunk.memory;
        if let Some((_, before)) = self.chunks.insert(chunk.last, (self.clock, Arc::clone(&chunk))) {
            self.memory -= before.memory;
        }
        while self.memory > CACHE {
            let oldest = self.chunks.iter().min_by_key(|(_, (used, _))| *used).map(|(last, _)| *last);
            let Some((_, gone)) = oldest.and_then(|last| self.chunks.remove(&last)) else { break };
            self.memory -= gone.memory;
        }
        chunk
    }

    /// Drops chunks that are not in the journal any more.
    pub(crate) fn forget_before(&mut self, first: DeliveryId) {
        let kept = self.chunks.split_off(&first);
        let gone = std::mem::replace(&mut self.chunks, kept);
        self.memory -= gone.values().map(|(_, chunk)| chunk.memory).sum::<usize>();
    }
}
