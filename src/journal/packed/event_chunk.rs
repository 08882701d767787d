//! Events in the journal: some dozens packed into one row, each with those who get it.
//!
//! A chunk is a stream of the link's own frames that stands for itself: relations and transactions come before the
//! first change that refers to them. The deliveries in it have consecutive numbers.

use std::sync::Arc;

use super::numbers;
use super::numbers::PackError;
use crate::delivery::DeliveryId;
use crate::event::{Lsn, Relation, Timestamp, Transaction};
use crate::ipc::frame::{
    ChangeHead, FailureHead, Image, Item, Stream, Target, TooLong, begin_change, write_annotations,
    write_begin, write_commit, write_failed, write_relation,
};

/// The events in a chunk at most.
const MAX_EVENTS: u32 = 128;
/// The bytes that a packed chunk aims at, so that its row stays on one page (8160 bytes).
const BODY: f64 = 7000.0;
/// What is packed at once at least and at most, in bytes.
const RAW: std::ops::RangeInclusive<usize> = 4 << 10..=512 << 10;
/// Of more subscriptions no list is kept.
const MAX_LISTED: usize = 64;

/// Where an event stands: its commit, and its place in the transaction.
pub type Place = (Lsn, u64);

/// Packed events, as a row of `pgwh_internal.event_chunks` has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The number of its first delivery.
    pub first: DeliveryId,
    /// The number of its last delivery.
    pub last: DeliveryId,
    /// Where its first event stands.
    pub first_place: Place,
    /// Where its last event stands.
    pub last_place: Place,
    /// When its first event was committed.
    pub first_at: Timestamp,
    /// When its last event was committed.
    pub last_at: Timestamp,
    /// How many events it holds.
    pub events: u32,
    /// Who gets any of them, in order; none when they are more than 64.
    pub subscriptions: Option<Vec<i64>>,
    /// The events.
    pub body: Vec<u8>,
}

/// An event of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The number of the delivery to the first of its targets.
    pub first: DeliveryId,
    /// [`Item::Change`] or [`Item::Failed`], nothing else.
    pub item: Item,
}

impl Entry {
    /// Its deliveries.
    pub fn deliveries(&self) -> impl Iterator<Item = (DeliveryId, Target)> {
        let numbered = self.item.targets().iter().enumerate();
        numbered.map(|(place, target)| (DeliveryId(self.first.0 + place as u64), *target))
    }

    /// The bytes of memory that it takes.
    pub fn memory(&self) -> usize {
        let event = match &self.item {
            Item::Change { event, .. } => event.memory(),
            Item::Failed { failure, .. } => failure.message.len() + size_of::<Item>(),
            _ => 0,
        };
        event + size_of::<Entry>() + size_of_val(self.item.targets())
    }
}

/// Packs events in the order of their numbers.
#[derive(Debug)]
pub struct ChunkPacker {
    raw: Vec<u8>,
    /// Known by their place in here.
    relations: Vec<Arc<Relation>>,
    transaction: Option<Arc<Transaction>>,
    /// What the open transaction has said of itself so far.
    annotations: Option<Arc<str>>,
    subscriptions: Subscriptions,
    /// Of the open chunk; its body is made at the end.
    open: Option<Chunk>,
    /// What is packed at once, so that bodies come out as long as they should.
    raw_target: usize,
}

impl Default for ChunkPacker {
    fn default() -> Self {
        ChunkPacker {
            raw: Vec::new(),
            relations: Vec::new(),
            transaction: None,
            annotations: None,
            subscriptions: Subscriptions::default(),
            open: None,
            raw_target: 3 * BODY as usize,
        }
    }
}

impl ChunkPacker {
    /// Adds a change, whose deliveries have the numbers from `first` on. Chunks that this completes go to `full`.
    /// Other items, and changes that nobody gets, are passed over.
    ///
    /// # Errors
    ///
    /// When the change is longer than any that came as a frame; it is not added then.
    pub fn add(&mut self, first: DeliveryId, item: &Item, full: &mut Vec<Chunk>) -> Result<(), TooLong> {
        let (Some(transaction), Some(id)) = (item.transaction(), item.event_id()) else { return Ok(()) };
        let targets = item.targets();
        if targets.is_empty() {
            return Ok(());
        }
        let contiguous = self.open.as_ref().is_some_and(|open| open.last.0 + 1 == first.0);
        if !contiguous || self.raw.len() + size_of_rows(item) > self.raw_target {
            full.extend(self.close());
        }
        self.tell(transaction);
        self.write(item)?;

        self.subscriptions.add(targets);
        let place = (id.commit_lsn, id.ordinal);
        let at = transaction.committed_at;
        let chunk = self.open.get_or_insert_with(|| Chunk {
            first,
            last: first,
            first_place: place,
            last_place: place,
            first_at: at,
            last_at: at,
            events: 0,
            subscriptions: None,
            body: Vec::new(),
        });
        chunk.last = DeliveryId(first.0 + targets.len() as u64 - 1);
        chunk.last_place = place;
        chunk.last_at = at;
        chunk.events += 1;
        if chunk.events >= MAX_EVENTS || self.raw.len() >= self.raw_target {
            full.extend(self.close());
        }
        Ok(())
    }

    /// Ends the open chunk, if there is one.
    pub fn close(&mut self) -> Option<Chunk> {
        if let Some(transaction) = self.transaction.take() {
            write_commit(&mut self.raw, transaction.commit_lsn);
        }
        self.relations.clear();
        let subscriptions = self.subscriptions.take();
        let chunk = self.open.take().map(|mut chunk| {
            chunk.subscriptions = subscriptions;
            chunk.body = numbers::seal(&self.raw);
            if chunk.events > 1 {
                self.learn(self.raw.len(), chunk.body.len());
            }
            chunk
        });
        self.raw.clear();
        self.raw.shrink_to(*RAW.end());
        chunk
    }

    /// The bytes that are not packed yet.
    pub fn buffered(&self) -> usize {
        self.raw.len()
    }

    /// Only now and then does the next chunk compress quite differently from the last.
    fn learn(&mut self, raw: usize, body: usize) {
        let target = raw as f64 / body.max(1) as f64 * BODY;
        let target = (3 * self.raw_target + target as usize) / 4;
        self.raw_target = target.clamp(*RAW.start(), *RAW.end());
    }

    /// Begins the transaction, unless it is the one that is open.
    fn tell(&mut self, transaction: &Arc<Transaction>) {
        if self.transaction.as_ref().is_some_and(|open| open == transaction) {
            return;
        }
        if let Some(before) = self.transaction.replace(Arc::clone(transaction)) {
            write_commit(&mut self.raw, before.commit_lsn);
        }
        write_begin(&mut self.raw, transaction);
        self.annotations = None;
    }

    fn write(&mut self, item: &Item) -> Result<(), TooLong> {
        match item {
            Item::Change { event, keys, barrier, targets } => {
                let reference = self.reference(&event.relation)?;
                if self.annotations != event.annotations {
                    write_annotations(&mut self.raw, event.annotations.as_deref())?;
                    self.annotations = event.annotations.clone();
                }
                let (action, ordinal, lsn) = (event.action, event.ordinal, event.lsn);
                let head = ChangeHead { reference, action, ordinal, lsn, targets };
                let mut frame = begin_change(&mut self.raw, &head);
                for (image, row) in [(Image::New, &event.new), (Image::Old, &event.old)] {
                    if let Some(row) = row {
                        frame.whole_row(image, row);
                    }
                }
                frame.finish(*keys, *barrier)
            }
            Item::Failed { failure, keys, barrier, targets } => {
                let reference =
                    failure.relation.as_ref().map(|relation| self.reference(relation)).transpose()?;
                let head = FailureHead {
                    reference,
                    action: failure.action,
                    ordinal: failure.ordinal,
                    targets,
                    keys: *keys,
                    barrier: *barrier,
                    sqlstate: &failure.sqlstate,
                    message: &failure.message,
                };
                write_failed(&mut self.raw, &head)
            }
            _ => Ok(()),
        }
    }

    /// The number that the relation goes by in this chunk; tells of it when it is new.
    fn reference(&mut self, relation: &Arc<Relation>) -> Result<u32, TooLong> {
        if let Some(known) = self.relations.iter().rposition(|known| Arc::ptr_eq(known, relation)) {
            return Ok(known as u32);
        }
        let reference = self.relations.len() as u32;
        write_relation(&mut self.raw, reference, relation)?;
        self.relations.push(Arc::clone(relation));
        Ok(reference)
    }
}

/// The body of the chunk with just these events.
///
/// # Errors
///
/// As [`ChunkPacker::add`].
pub fn pack(entries: &[Entry]) -> Result<Vec<u8>, TooLong> {
    let mut packer = ChunkPacker::default();
    for entry in entries {
        entry.item.transaction().into_iter().for_each(|transaction| packer.tell(transaction));
        packer.write(&entry.item)?;
    }
    if let Some(transaction) = packer.transaction.take() {
        write_commit(&mut packer.raw, transaction.commit_lsn);
    }
    Ok(numbers::seal(&packer.raw))
}

/// About the bytes that a change takes in a chunk.
fn size_of_rows(item: &Item) -> usize {
    match item {
        Item::Change { event, .. } => {
            event.new.iter().chain(&event.old).map(|row| row.as_bytes().len()).sum()
        }
        _ => 0,
    }
}

/// The events of a chunk whose first delivery has that number.
///
/// # Errors
///
/// When the body is no chunk's.
pub fn unpack(first: DeliveryId, body: &[u8]) -> Result<Vec<Entry>, PackError> {
    let mut stream = Stream::new();
    stream.push(&numbers::unseal(body)?);
    let mut entries = Vec::new();
    let mut next = first;
    while let Some(item) = stream.next()? {
        match item {
            Item::Change { .. } | Item::Failed { .. } => {
                let first = next;
                let targets = item.targets().len() as u64;
                next = DeliveryId(next.0.checked_add(targets).ok_or(PackError::Invalid("number"))?);
                entries.push(Entry { first, item });
            }
            Item::Begin(_) | Item::Commit { .. } => {}
            _ => return Err(PackError::Invalid("frame")),
        }
    }
    if stream.is_complete() { Ok(entries) } else { Err(PackError::Truncated) }
}

/// The distinct subscriptions of a row.
#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    /// In order.
    ids: Vec<i64>,
    too_many: bool,
}

impl Subscriptions {
    pub(super) fn add(&mut self, targets: &[Target]) {
        targets.iter().for_each(|target| self.add_one(target.subscription));
    }

    pub(super) fn add_one(&mut self, id: i64) {
        if self.too_many {
            return;
        }
        if let Err(place) = self.ids.binary_search(&id) {
            self.ids.insert(place, id);
            self.too_many = self.ids.len() > MAX_LISTED;
        }
    }

    /// Those added since the last time; none when they are too many to be listed.
    pub(super) fn take(&mut self) -> Option<Vec<i64>> {
        let Subscriptions { ids, too_many } = std::mem::take(self);
        (!too_many).then_some(ids)
    }
}

#[cfg(test)]
mod tests;
