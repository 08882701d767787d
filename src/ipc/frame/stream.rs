//! The dispatcher's view of the stream: frames with their references resolved.

use std::collections::HashMap;
use std::sync::Arc;

use super::reader::{FrameReader, Members};
use super::{FrameError, LaneKeys, MAX_KIND_DEPTH, Target, action_of, tag};
use crate::event::{
    Action, Column, Event, EventId, Fingerprint, KeyKind, Lsn, Origin, Relation, Row, TableName, Timestamp,
    Transaction,
};

/// What the decoder told, in the order in which it told it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A transaction's changes follow.
    Begin(Arc<Transaction>),
    /// A change that someone gets.
    Change {
        /// The change.
        event: Arc<Event>,
        /// The keys it is ordered by.
        keys: LaneKeys,
        /// Whether it waits for all that is older in its table, and all that is newer for it.
        barrier: bool,
        /// Who gets it.
        targets: Vec<Target>,
    },
    /// A change that someone would get, had it been possible to encode it.
    Failed {
        /// The change and its error.
        failure: Arc<Failure>,
        /// The keys it is ordered by, where they are known.
        keys: LaneKeys,
        /// Whether it waits for all that is older in its table, and all that is newer for it.
        barrier: bool,
        /// Who would have got it.
        targets: Vec<Target>,
    },
    /// A target of the next change that doesn't get it, since nobody can say whether it should.
    Refusal {
        /// Who.
        subscription: i64,
        /// Why not.
        reason: String,
    },
    /// The transaction is complete.
    Commit {
        /// Where its commit record ends.
        end_lsn: Lsn,
    },
    /// Everything that ended at or before that position has been told.
    Progress {
        /// The position.
        lsn: Lsn,
    },
    /// What a subscription asks for, from its transaction on.
    Subscription {
        /// Its id.
        id: i64,
        /// Where that transaction committed.
        lsn: Lsn,
        /// The part of its row that routing looks at, as JSON text; none when it is gone.
        spec: Option<String>,
    },
    /// A subscription misses the changes of a table.
    TableGap(Box<TableGap>),
    /// A subscription gets the changes of a table again.
    TableGapEnd(TableGapEnd),
    /// The rows of a chunk of a backfill are complete.
    Chunk(Box<ChunkEnd>),
    /// There is no chunk of a backfill.
    NoChunk {
        /// Which.
        backfill: i64,
        /// Why.
        why: NoChunk,
    },
    /// The first image of routing follows as subscriptions, as of the slot's consistent point.
    ImageBegin {
        /// That point.
        lsn: Lsn,
    },
    /// The first image of routing is complete.
    ImageEnd {
        /// The slot's consistent point.
        lsn: Lsn,
    },
}

/// A change that could not be encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The transaction that committed it.
    pub transaction: Arc<Transaction>,
    /// Its place in the transaction.
    pub ordinal: u64,
    /// What happened.
    pub action: Action,
    /// Where it happened, if that much was found out.
    pub relation: Option<Arc<Relation>>,
    /// The error's SQLSTATE.
    pub sqlstate: String,
    /// The error's message.
    pub message: String,
}

impl Failure {
    /// The name of the event that the change would have become.
    pub fn id(&self) -> EventId {
        EventId {
            commit_lsn: self.transaction.commit_lsn,
            ordinal: self.ordinal,
            fingerprint: self.transaction.fingerprint,
        }
    }
}

/// A subscription misses the changes of a table, or will when it is enabled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableGap {
    /// The subscription.
    pub subscription: i64,
    /// The table's oid.
    pub table: u32,
    /// Its name as the subscription knows it, in the spelling of patterns.
    pub name: String,
    /// The first commit of which changes are missed.
    pub from: Lsn,
    /// Why.
    pub reason: String,
    /// Whether the subscription is enabled.
    pub is_enabled: bool,
}

/// The end of such a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableGapEnd {
    /// The subscription.
    pub subscription: i64,
    /// The table's oid.
    pub table: u32,
    /// From here on changes are captured.
    pub to: Lsn,
    /// When that was committed.
    pub at: Timestamp,
    /// Whether there was no change that could have been missed.
    pub is_empty: bool,
}

/// What there is to say of a chunk of a backfill when its rows have been told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChunkEnd {
    /// The backfill.
    pub backfill: i64,
    /// The oid of the table that was read.
    pub table: u32,
    /// The oid of the topmost table above it, its own if there is none.
    pub root: u32,
    /// Whether it is a partition, so that rows may move between it and others.
    pub is_partition: bool,
    /// How many rows were read, also those that nobody gets.
    pub read: u64,
    /// Behind which row the next chunk begins, as JSON text; none when there are no more.
    pub position: Option<String>,
    /// What the order was made of that the position was taken in.
    pub definition: Vec<i64>,
    /// Whether it is not, or no longer, one of the tables that are read.
    pub is_absent: bool,
    /// Which transactions the rows show.
    pub seen: Visible,
    /// All that the rows show was committed before this.
    pub high: Lsn,
}

/// Which transactions a snapshot sees.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Visible {
    /// All before it had ended.
    pub xmin: u32,
    /// None from it on had.
    pub xmax: u32,
    /// Those in between that had not.
    pub running: Vec<u32>,
}

impl Visible {
    /// Whether it sees what this transaction did, which has committed by now (`snapmgr.c`, XidInMVCCSnapshot).
    pub fn sees(&self, xid: u32) -> bool {
        let is_before = |a: u32, b: u32| (a.wrapping_sub(b) as i32) < 0;
        is_before(xid, self.xmin) || (is_before(xid, self.xmax) && !self.running.contains(&xid))
    }
}

fn read_origin(members: &mut Members<'_>) -> Result<Origin, FrameError> {
    Ok(Origin {
        name: members.option(Members::text)?,
        lsn: members.option(Members::u64)?.map(Lsn),
        committed_at: members.option(Members::i64)?.map(Timestamp),
    })
}

/// Why there is no chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoChunk {
    /// All tables have been read.
    End,
    /// The table is locked.
    Later,
    /// It cannot be read.
    Failed(String),
}

/// One session of the decoder, read from its first byte.
#[derive(Debug, Default)]
pub struct Stream {
    reader: FrameReader,
    session: Session,
}

/// What later frames refer to.
#[derive(Debug, Default)]
struct Session {
    relations: HashMap<u32, Arc<Relation>>,
    transaction: Option<Arc<Transaction>>,
    /// What the transaction has said of itself so far.
    annotations: Option<Arc<str>>,
}

impl Stream {
    /// A session of which nothing has been read.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends the next piece of the stream, a message of the queue.
    pub fn push(&mut self, piece: &[u8]) {
        self.reader.push(piece);
    }

    /// The next item, none until more is pushed.
    ///
    /// # Errors
    ///
    /// When the stream is not what a decoder writes. It cannot be relied on from there: begin a new session.
    #[allow(
        clippy::should_implement_trait,
        reason = "no iterator: none means not yet, and an error is the end"
    )]
    pub fn next(&mut self) -> Result<Option<Item>, FrameError> {
        while let Some(body) = self.reader.next_frame()? {
            if let Some(item) = self.session.take(body)? {
                return Ok(Some(item));
            }
        }
        Ok(None)
    }

    /// Whether the stream ends well here: no frame and no transaction is half told.
    pub fn is_complete(&self) -> bool {
        self.reader.is_empty() && self.session.transaction.is_none()
    }

    /// The bytes of memory that the unread part of the stream holds.
    pub fn memory(&self) -> usize {
        self.reader.memory()
    }
}

impl Item {
    /// Who gets a change, or would have got it; nobody else gets anything.
    pub fn targets(&self) -> &[Target] {
        match self {
            Item::Change { targets, .. } | Item::Failed { targets, .. } => targets,
            _ => &[],
        }
    }

    /// The name of a change's event, also of one that could not be encoded.
    pub fn event_id(&self) -> Option<EventId> {
        match self {
            Item::Change { event, .. } => Some(event.id()),
            Item::Failed { failure, .. } => Some(failure.id()),
            _ => None,
        }
    }

    /// The transaction that committed a change.
    pub fn transaction(&self) -> Option<&Arc<Transaction>> {
        match self {
            Item::Change { event, .. } => Some(&event.transaction),
            Item::Failed { failure, .. } => Some(&failure.transaction),
            _ => None,
        }
    }
}

impl Session {
    /// The item that a frame stands for, none if it only tells what later ones refer to.
    fn take(&mut self, body: &[u8]) -> Result<Option<Item>, FrameError> {
        let mut members = Members::of(body);
        let item = match members.u8()? {
            tag::RELATION => {
                let (reference, relation) = (members.u32()?, read_relation(&mut members)?);
                members.end()?;
                self.relations.insert(reference, Arc::new(relation));
                return Ok(None);
            }
            tag::ANNOTATIONS => {
                self.open_transaction()?;
                self.annotations = members.option(Members::text)?.map(Arc::from);
                members.end()?;
                return Ok(None);
            }
            tag::BEGIN => self.begin(&mut members)?,
            tag::CHANGE => self.change(&mut members)?,
            tag::FAILED => self.failed(&mut members)?,
            tag::COMMIT => {
                self.transaction.take().ok_or(FrameError::NoTransaction)?;
                Item::Commit { end_lsn: Lsn(members.u64()?) }
            }
            tag::REFUSAL => Item::Refusal { subscription: members.i64()?, reason: members.text()? },
            tag::CHUNK => {
                self.transaction.take().ok_or(FrameError::NoTransaction)?;
                Item::Chunk(Box::new(read_chunk(&mut members)?))
            }
            tag::NO_CHUNK => Item::NoChunk {
                backfill: members.i64()?,
                why: match members.u8()? {
                    0 => NoChunk::End,
                    1 => NoChunk::Later,
                    2 => NoChunk::Failed(members.text()?),
                    _ => return Err(FrameError::Invalid("reason")),
                },
            },
            tag::PROGRESS => Item::Progress { lsn: Lsn(members.u64()?) },
            tag::SUBSCRIPTION => Item::Subscription {
                id: members.i64()?,
                lsn: Lsn(members.u64()?),
                spec: members.option(Members::text)?,
            },
            tag::TABLE_GAP => Item::TableGap(Box::new(TableGap {
                subscription: members.i64()?,
                table: members.u32()?,
                name: members.text()?,
                from: Lsn(members.u64()?),
                reason: members.text()?,
                is_enabled: members.bool()?,
            })),
            tag::TABLE_GAP_END => Item::TableGapEnd(TableGapEnd {
                subscription: members.i64()?,
                table: members.u32()?,
                to: Lsn(members.u64()?),
                at: Timestamp(members.i64()?),
                is_empty: members.bool()?,
            }),
            tag::IMAGE_BEGIN => Item::ImageBegin { lsn: Lsn(members.u64()?) },
            tag::IMAGE_END => Item::ImageEnd { lsn: Lsn(members.u64()?) },
            other => return Err(FrameError::Tag(other)),
        };
        members.end()?;
        Ok(Some(item))
    }

    fn begin(&mut self, members: &mut Members<'_>) -> Result<Item, FrameError> {
        if self.transaction.is_some() {
            return Err(FrameError::OpenTransaction);
        }
        let transaction = Arc::new(Transaction {
            xid: members.u32()?,
            commit_lsn: Lsn(members.u64()?),
            committed_at: Timestamp(members.i64()?),
            fingerprint: Fingerprint::from_bits(members.u64()?).ok_or(FrameError::Invalid("fingerprint"))?,
            origin: members.option(read_origin)?.map(Arc::new),
        });
        self.transaction = Some(Arc::clone(&transaction));
        self.annotations = None;
        Ok(Item::Begin(transaction))
    }

    fn change(&self, members: &mut Members<'_>) -> Result<Item, FrameError> {
        let transaction = self.open_transaction()?;
        let relation = self.relation(members.u32()?)?;
        let action = action_of(members.u8()?)?;
        let ordinal = members.u64()?;
        let lsn = Lsn(members.u64()?);
        let (keys, barrier) = members.lanes()?;
        let targets = members.targets()?;
        check_levels(&targets, &relation)?;

        let (mut new, mut old) = (None, None);
        while !members.is_empty() {
            let row = match members.u8()? {
                tag::NEW_ROW => &mut new,
                tag::OLD_ROW => &mut old,
                _ => return Err(FrameError::Invalid("row")),
            };
            let cells = Row::parse(members.bytes()?, relation.columns.len())?;
            if row.replace(cells).is_some() {
                return Err(FrameError::Invalid("row"));
            }
        }
        let annotations = self.annotations.clone();
        let event = Arc::new(Event { transaction, ordinal, lsn, action, annotations, relation, new, old });
        Ok(Item::Change { event, keys, barrier, targets })
    }

    fn failed(&self, members: &mut Members<'_>) -> Result<Item, FrameError> {
        let transaction = self.open_transaction()?;
        let relation = members.option(Members::u32)?.map(|reference| self.relation(reference)).transpose()?;
        let action = action_of(members.u8()?)?;
        let ordinal = members.u64()?;
        let (keys, barrier) = members.lanes()?;
        let targets = members.targets()?;
        if let Some(relation) = &relation {
            check_levels(&targets, relation)?;
        }
        let (sqlstate, message) = (members.text()?, members.text()?);
        let failure = Arc::new(Failure { transaction, ordinal, action, relation, sqlstate, message });
        Ok(Item::Failed { failure, keys, barrier, targets })
    }

    fn open_transaction(&self) -> Result<Arc<Transaction>, FrameError> {
        self.transaction.clone().ok_or(FrameError::NoTransaction)
    }

    fn relation(&self, reference: u32) -> Result<Arc<Relation>, FrameError> {
        self.relations.get(&reference).cloned().ok_or(FrameError::UnknownReference(reference))
    }
}

/// A target names one of the relation's names.
fn check_levels(targets: &[Target], relation: &Relation) -> Result<(), FrameError> {
    if targets.iter().all(|target| usize::from(target.level) < relation.names.len()) {
        Ok(())
    } else {
        Err(FrameError::Invalid("level"))
    }
}

fn read_chunk(members: &mut Members<'_>) -> Result<ChunkEnd, FrameError> {
    Ok(ChunkEnd {
        backfill: members.i64()?,
        table: members.u32()?,
        root: members.u32()?,
        is_partition: members.bool()?,
        read: members.u64()?,
        position: members.option(Members::text)?,
        definition: members.list(8, Members::i64)?,
        is_absent: members.bool()?,
        seen: Visible { xmin: members.u32()?, xmax: members.u32()?, running: members.list(4, Members::u32)? },
        high: Lsn(members.u64()?),
    })
}

fn read_relation(members: &mut Members<'_>) -> Result<Relation, FrameError> {
    let relation = Relation {
        oid: members.u32()?,
        root_oid: members.u32()?,
        names: members
            .list(8, |members| Ok(TableName { schema: members.text()?, table: members.text()? }))?,
        columns: members.list(16, |members| {
            Ok(Column {
                name: members.text()?,
                number: members.i16()?,
                type_oid: members.u32()?,
                type_name: members.text()?,
                kind: members.kind(MAX_KIND_DEPTH)?,
                is_key: members.bool()?,
                heads: Default::default(),
            })
        })?,
        key: match members.u8()? {
            0 => KeyKind::Logged,
            1 => KeyKind::Unlogged,
            2 => KeyKind::WholeRow,
            _ => return Err(FrameError::Invalid("key")),
        },
        version: members.u64()?,
    };
    if relation.names.is_empty() { Err(FrameError::Invalid("name")) } else { Ok(relation) }
}
