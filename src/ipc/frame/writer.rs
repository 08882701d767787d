//! The decoder's end: frames appended to a buffer, each value written once and into its place.

use super::{
    ChunkEnd, LaneKeys, MAX_LENGTH, NoChunk, TableGap, TableGapEnd, Target, TooLong, action_code, flag,
    kind_tag, tag,
};
use crate::event::{Action, Cells, KeyKind, Kind, Lsn, Relation, Row, RowBuilder, Transaction};

const LENGTH_BYTES: usize = size_of::<u32>();
/// Flags and two keys, in a fixed place so that they may be known last.
const LANE_BYTES: usize = 1 + 2 * size_of::<u64>();

/// Texts of an error are cut off behind so many bytes.
const MAX_MESSAGE: usize = 64 * 1024;

/// What is known of a change before its rows are encoded.
#[derive(Clone, Copy, Debug)]
pub struct ChangeHead<'a> {
    /// The relation's, from the [`write_relation`] before.
    pub reference: u32,
    /// What happened.
    pub action: Action,
    /// The change's place in its transaction.
    pub ordinal: u64,
    /// Where the change's own record stands.
    pub lsn: Lsn,
    /// Who gets it.
    pub targets: &'a [Target],
}

/// Which of a change's two rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    /// The row after the change.
    New,
    /// What is known of the row before it.
    Old,
}

/// Begins the frame of a change at the end of `out`; its rows are encoded straight into it.
pub fn begin_change<'a>(out: &'a mut Vec<u8>, head: &ChangeHead<'_>) -> ChangeFrame<'a> {
    let start = begin(out, tag::CHANGE);
    put_u32(out, head.reference);
    out.push(action_code(head.action));
    put_u64(out, head.ordinal);
    put_u64(out, head.lsn.0);
    let lanes = out.len();
    put_lanes(out, LaneKeys::default(), false);
    put_targets(out, head.targets);
    ChangeFrame { out, start, lanes, rows: [None; 2], open: None, finished: false }
}

/// The frame of a change while its rows are being encoded. Dropped before [`finish`](Self::finish), it takes back all
/// that was written: an ERROR raised by a type's output function unwinds through here.
pub struct ChangeFrame<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
    lanes: usize,
    /// Where the cells of the new and the old row begin and end.
    rows: [Option<(usize, usize)>; 2],
    open: Option<Image>,
    finished: bool,
}

impl ChangeFrame<'_> {
    /// Begins one of the rows, each at most once; the builder's cells go straight into the frame.
    pub fn row(&mut self, image: Image) -> RowBuilder<'_> {
        self.open_row(image);
        RowBuilder::new(self.out)
    }

    /// Writes a row that exists already, in place of building it.
    pub fn whole_row(&mut self, image: Image, row: &Row) {
        self.open_row(image);
        self.out.extend_from_slice(row.as_bytes());
    }

    fn open_row(&mut self, image: Image) {
        self.close_row();
        self.out.push(match image {
            Image::New => tag::NEW_ROW,
            Image::Old => tag::OLD_ROW,
        });
        self.out.extend_from_slice(&[0; LENGTH_BYTES]);
        self.rows[image as usize] = Some((self.out.len(), self.out.len()));
        self.open = Some(image);
    }

    /// The cells of a row written so far, none if it was not begun.
    pub fn cells(&mut self, image: Image) -> Option<Cells<'_>> {
        self.close_row();
        let (start, end) = self.rows[image as usize]?;
        Some(Cells::built(&self.out[start..end]))
    }

    /// Ends the frame.
    ///
    /// # Errors
    ///
    /// When the frame is too long; it is taken back then.
    pub fn finish(mut self, keys: LaneKeys, barrier: bool) -> Result<(), TooLong> {
        self.close_row();
        let (flags, key, old) = lane_bytes(keys, barrier);
        self.out[self.lanes] = flags;
        self.out[self.lanes + 1..][..8].copy_from_slice(&key);
        self.out[self.lanes + 9..][..8].copy_from_slice(&old);
        finish(self.out, self.start)?;
        self.finished = true;
        Ok(())
    }

    fn close_row(&mut self) {
        let Some(image) = self.open.take() else { return };
        if let Some((start, end)) = &mut self.rows[image as usize] {
            *end = self.out.len();
            let length = (*end - *start) as u32;
            self.out[*start - LENGTH_BYTES..*start].copy_from_slice(&length.to_le_bytes());
        }
    }
}

impl Drop for ChangeFrame<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.out.truncate(self.start);
        }
    }
}

/// What is known of a change that could not be encoded.
#[derive(Clone, Copy, Debug)]
pub struct FailureHead<'a> {
    /// The relation's, if it was told.
    pub reference: Option<u32>,
    /// What happened.
    pub action: Action,
    /// The change's place in its transaction.
    pub ordinal: u64,
    /// Who would have got it.
    pub targets: &'a [Target],
    /// The keys, where they are known.
    pub keys: LaneKeys,
    /// Whether it holds back its whole table, as it must when the keys are not known.
    pub barrier: bool,
    /// The error's SQLSTATE.
    pub sqlstate: &'a str,
    /// The error's message; cut off behind 64 kB.
    pub message: &'a str,
}

/// A poison change, which becomes a dead letter.
///
/// # Errors
///
/// When the frame is too long; nothing is written then.
pub fn write_failed(out: &mut Vec<u8>, failure: &FailureHead<'_>) -> Result<(), TooLong> {
    let start = begin(out, tag::FAILED);
    put_option(out, failure.reference, put_u32);
    out.push(action_code(failure.action));
    put_u64(out, failure.ordinal);
    put_lanes(out, failure.keys, failure.barrier);
    put_targets(out, failure.targets);
    put_text(out, cut(failure.sqlstate));
    put_text(out, cut(failure.message));
    finish(out, start)
}

/// A target of the next change that doesn't get it, since nobody can say whether it should; cut off behind 64 kB.
pub fn write_refusal(out: &mut Vec<u8>, subscription: i64, reason: &str) {
    let start = begin(out, tag::REFUSAL);
    out.extend_from_slice(&subscription.to_le_bytes());
    put_text(out, cut(reason));
    finish_fixed(out, start);
}

/// A version of a relation, known by `reference` from here on.
///
/// # Errors
///
/// When the frame is too long; nothing is written then.
pub fn write_relation(out: &mut Vec<u8>, reference: u32, relation: &Relation) -> Result<(), TooLong> {
    let start = begin(out, tag::RELATION);
    put_u32(out, reference);
    put_u32(out, relation.oid);
    put_u32(out, relation.root_oid);
    put_u32(out, relation.names.len() as u32);
    for name in &relation.names {
        put_text(out, &name.schema);
        put_text(out, &name.table);
    }
    put_u32(out, relation.columns.len() as u32);
    for column in &relation.columns {
        put_text(out, &column.name);
        out.extend_from_slice(&column.number.to_le_bytes());
        put_u32(out, column.type_oid);
        put_text(out, &column.type_name);
        put_kind(out, &column.kind);
        out.push(column.is_key.into());
    }
    out.push(match relation.key {
        KeyKind::Logged => 0,
        KeyKind::Unlogged => 1,
        KeyKind::WholeRow => 2,
    });
    put_u64(out, relation.version);
    finish(out, start)
}

/// A transaction's changes follow.
pub fn write_begin(out: &mut Vec<u8>, transaction: &Transaction) {
    let start = begin(out, tag::BEGIN);
    put_u32(out, transaction.xid);
    put_u64(out, transaction.commit_lsn.0);
    out.extend_from_slice(&transaction.committed_at.0.to_le_bytes());
    put_u64(out, transaction.fingerprint.bits());
    // The server bounds the name's length.
    put_option(out, transaction.origin.as_deref(), |out, origin| {
        put_option(out, origin.name.as_deref(), put_text);
        put_option(out, origin.lsn, |out, lsn| put_u64(out, lsn.0));
        put_option(out, origin.committed_at, |out, at| out.extend_from_slice(&at.0.to_le_bytes()));
    });
    finish_fixed(out, start);
}

/// What the transaction says of itself from here on, as JSON text; none when it says nothing any more.
///
/// # Errors
///
/// When the frame is too long; nothing is written then.
pub fn write_annotations(out: &mut Vec<u8>, annotations: Option<&str>) -> Result<(), TooLong> {
    let start = begin(out, tag::ANNOTATIONS);
    put_option(out, annotations, put_text);
    finish(out, start)
}

/// The transaction is complete, and its commit record ends there.
pub fn write_commit(out: &mut Vec<u8>, end_lsn: Lsn) {
    write_position(out, tag::COMMIT, end_lsn);
}

/// Everything that ended at or before `lsn` has been told.
pub fn write_progress(out: &mut Vec<u8>, lsn: Lsn) {
    write_position(out, tag::PROGRESS, lsn);
}

/// The first image of routing follows, as of `lsn`, where the slot became consistent.
pub fn write_image_begin(out: &mut Vec<u8>, lsn: Lsn) {
    write_position(out, tag::IMAGE_BEGIN, lsn);
}

/// The first image of routing is complete.
pub fn write_image_end(out: &mut Vec<u8>, lsn: Lsn) {
    write_position(out, tag::IMAGE_END, lsn);
}

/// What a subscription asks for from `lsn` on, as JSON text; none when it is gone.
///
/// # Errors
///
/// When the frame is too long; nothing is written then.
pub fn write_subscription(out: &mut Vec<u8>, id: i64, lsn: Lsn, spec: Option<&str>) -> Result<(), TooLong> {
    let start = begin(out, tag::SUBSCRIPTION);
    out.extend_from_slice(&id.to_le_bytes());
    put_u64(out, lsn.0);
    put_option(out, spec, put_text);
    finish(out, start)
}

/// A subscription misses the changes of a table from here on; texts are cut off behind 64 kB.
pub fn write_table_gap(out: &mut Vec<u8>, gap: &TableGap) {
    let start = begin(out, tag::TABLE_GAP);
    out.extend_from_slice(&gap.subscription.to_le_bytes());
    put_u32(out, gap.table);
    put_text(out, cut(&gap.name));
    put_u64(out, gap.from.0);
    put_text(out, cut(&gap.reason));
    out.push(gap.is_enabled.into());
    finish_fixed(out, start);
}

/// A subscription gets the changes of a table again.
pub fn write_table_gap_end(out: &mut Vec<u8>, end: &TableGapEnd) {
    let start = begin(out, tag::TABLE_GAP_END);
    out.extend_from_slice(&end.subscription.to_le_bytes());
    put_u32(out, end.table);
    put_u64(out, end.to.0);
    out.extend_from_slice(&end.at.0.to_le_bytes());
    out.push(end.is_empty.into());
    finish_fixed(out, start);
}

/// The rows of a chunk of a backfill are complete, those since [`write_begin`].
///
/// # Errors
///
/// When the frame is too long; nothing is written then.
pub fn write_chunk(out: &mut Vec<u8>, chunk: &ChunkEnd) -> Result<(), TooLong> {
    let start = begin(out, tag::CHUNK);
    out.extend_from_slice(&chunk.backfill.to_le_bytes());
    put_u32(out, chunk.table);
    put_u32(out, chunk.root);
    out.push(chunk.is_partition.into());
    put_u64(out, chunk.read);
    put_option(out, chunk.position.as_deref(), put_text);
    put_u32(out, chunk.definition.len() as u32);
    chunk.definition.iter().for_each(|part| out.extend_from_slice(&part.to_le_bytes()));
    out.push(chunk.is_absent.into());
    put_u32(out, chunk.seen.xmin);
    put_u32(out, chunk.seen.xmax);
    put_u32(out, chunk.seen.running.len() as u32);
    chunk.seen.running.iter().for_each(|xid| put_u32(out, *xid));
    put_u64(out, chunk.high.0);
    finish(out, start)
}

/// There is no chunk of that backfill, and why.
pub fn write_no_chunk(out: &mut Vec<u8>, backfill: i64, why: &NoChunk) {
    let start = begin(out, tag::NO_CHUNK);
    out.extend_from_slice(&backfill.to_le_bytes());
    match why {
        NoChunk::End => out.push(0),
        NoChunk::Later => out.push(1),
        NoChunk::Failed(reason) => {
            out.push(2);
            put_text(out, cut(reason));
        }
    }
    finish_fixed(out, start);
}

fn write_position(out: &mut Vec<u8>, tag: u8, lsn: Lsn) {
    let start = begin(out, tag);
    put_u64(out, lsn.0);
    finish_fixed(out, start);
}

/// Leaves room for the length; returns where the frame begins.
pub(in crate::ipc) fn begin(out: &mut Vec<u8>, tag: u8) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; LENGTH_BYTES]);
    out.push(tag);
    start
}

pub(in crate::ipc) fn finish(out: &mut Vec<u8>, start: usize) -> Result<(), TooLong> {
    let length = out.len() - start - LENGTH_BYTES;
    if length > MAX_LENGTH {
        out.truncate(start);
        return Err(TooLong { length });
    }
    finish_fixed(out, start);
    Ok(())
}

fn finish_fixed(out: &mut [u8], start: usize) {
    let length = (out.len() - start - LENGTH_BYTES) as u32;
    out[start..][..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
}

pub(in crate::ipc) fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

pub(in crate::ipc) fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

pub(in crate::ipc) fn put_text(out: &mut Vec<u8>, text: &str) {
    put_u32(out, text.len() as u32);
    out.extend_from_slice(text.as_bytes());
}

pub(in crate::ipc) fn put_option<T>(out: &mut Vec<u8>, value: Option<T>, put: impl FnOnce(&mut Vec<u8>, T)) {
    out.push(value.is_some().into());
    if let Some(value) = value {
        put(out, value);
    }
}

fn put_kind(out: &mut Vec<u8>, kind: &Kind) {
    out.push(match kind {
        Kind::Text => kind_tag::TEXT,
        Kind::Boolean => kind_tag::BOOLEAN,
        Kind::Number => kind_tag::NUMBER,
        Kind::Numeric => kind_tag::NUMERIC,
        Kind::Oid => kind_tag::OID,
        Kind::Bytea => kind_tag::BYTEA,
        Kind::Timestamp => kind_tag::TIMESTAMP,
        Kind::Timestamptz => kind_tag::TIMESTAMPTZ,
        Kind::Json => kind_tag::JSON,
        Kind::Hstore => kind_tag::HSTORE,
        Kind::Array { .. } => kind_tag::ARRAY,
        Kind::Composite(_) => kind_tag::COMPOSITE,
    });
    match kind {
        Kind::Array { element, delimiter } => {
            out.push(*delimiter);
            put_kind(out, element);
        }
        Kind::Composite(fields) => {
            put_u32(out, fields.len() as u32);
            for (name, kind) in fields {
                put_text(out, name);
                put_kind(out, kind);
            }
        }
        _ => {}
    }
}

fn put_targets(out: &mut Vec<u8>, targets: &[Target]) {
    put_u32(out, targets.len() as u32);
    for target in targets {
        out.extend_from_slice(&target.subscription.to_le_bytes());
        out.push(target.level);
    }
}

fn put_lanes(out: &mut Vec<u8>, keys: LaneKeys, barrier: bool) {
    let (flags, key, old) = lane_bytes(keys, barrier);
    out.reserve(LANE_BYTES);
    out.push(flags);
    out.extend_from_slice(&key);
    out.extend_from_slice(&old);
}

fn lane_bytes(keys: LaneKeys, barrier: bool) -> (u8, [u8; 8], [u8; 8]) {
    let mut flags = 0;
    if keys.key.is_some() {
        flags |= flag::KEY;
    }
    if keys.old.is_some() {
        flags |= flag::OLD_KEY;
    }
    if barrier {
        flags |= flag::BARRIER;
    }
    (flags, keys.key.unwrap_or(0).to_le_bytes(), keys.old.unwrap_or(0).to_le_bytes())
}

/// As much of a text as an error message may have.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_MESSAGE)]
}
