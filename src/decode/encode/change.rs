//! The frame of one change: its rows as far as they may be sent, and the keys that order it.

use pgrx::pg_sys;

use super::column::Scratch;
use super::relation::CapturedRelation;
use crate::event::{Action, Cell};
use crate::gucs;
use crate::ipc::frame::{ChangeFrame, ChangeHead, Image, LaneKeys, TooLong, begin_change};

/// Appends a change of `relation`. Rows larger than `pgwh.max_event_size` go without their largest columns: those whose
/// size can be told from how they are stored are never encoded, others are taken back.
///
/// # Errors
///
/// When there are too many targets for one frame; nothing is written then.
///
/// # Safety
/// The tuples are null or rows of the relation as `desc` describes it.
pub unsafe fn write_change(
    out: &mut Vec<u8>,
    head: &ChangeHead<'_>,
    relation: &mut CapturedRelation,
    scratch: &mut Scratch,
    desc: pg_sys::TupleDesc,
    old: pg_sys::HeapTuple,
    new: pg_sys::HeapTuple,
) -> Result<(), TooLong> {
    let limit = gucs::max_event_size();
    scratch.clear();
    // SAFETY: as the caller promises.
    unsafe { relation.omit_by_stored_size([old, new], desc, scratch, limit) };
    let mut frame = begin_change(out, head);
    // SAFETY: as the caller promises.
    unsafe { encode_rows(relation, desc, old, new, scratch, &mut frame) };
    if rows_size(&mut frame) > limit {
        let sizes = cell_sizes(&mut frame, relation.model.columns.len());
        drop(frame);
        relation.omit_largest(sizes, scratch, limit);
        frame = begin_change(out, head);
        // SAFETY: as the caller promises.
        unsafe { encode_rows(relation, desc, old, new, scratch, &mut frame) };
    }
    let (keys, barrier) = lane(relation, scratch, head.action, !old.is_null(), !new.is_null());
    frame.finish(keys, barrier)
}

/// # Safety
/// The tuples are null or rows of the relation as `desc` describes it.
unsafe fn encode_rows(
    relation: &mut CapturedRelation,
    desc: pg_sys::TupleDesc,
    old: pg_sys::HeapTuple,
    new: pg_sys::HeapTuple,
    scratch: &mut Scratch,
    frame: &mut ChangeFrame<'_>,
) {
    // SAFETY: as the caller promises.
    unsafe {
        if !old.is_null() {
            relation.encode_old(old, desc, scratch, &mut frame.row(Image::Old));
        }
        if !new.is_null() {
            relation.encode_new(new, desc, scratch, &mut frame.row(Image::New));
        }
    }
}

/// The bytes of both rows.
fn rows_size(frame: &mut ChangeFrame<'_>) -> usize {
    [Image::Old, Image::New].into_iter().filter_map(|image| Some(frame.cells(image)?.size())).sum()
}

/// The bytes of each column's values in both rows.
fn cell_sizes(frame: &mut ChangeFrame<'_>, columns: usize) -> Vec<usize> {
    let mut sizes = vec![0; columns];
    for image in [Image::Old, Image::New] {
        for (cell, size) in frame.cells(image).into_iter().flatten().zip(&mut sizes) {
            if let Cell::Json(text) = cell {
                *size += text.len();
            }
        }
    }
    sizes
}

fn lane(
    relation: &CapturedRelation,
    scratch: &Scratch,
    action: Action,
    has_old: bool,
    has_new: bool,
) -> (LaneKeys, bool) {
    let is_whole = matches!(action, Action::Insert | Action::Read);
    let anonymous = !is_whole && relation.is_anonymous(has_old, action == Action::Update);
    if anonymous {
        return (LaneKeys::default(), true);
    }
    relation.lane(scratch, has_new, has_old)
}
