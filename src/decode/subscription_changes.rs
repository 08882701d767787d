//! Changes of `pgwh.subscriptions` as write-ahead log tells them: what routing learns from.

use pgrx::pg_sys;

use super::encode::column::Scratch;
use super::encode::relation::CapturedRelation;
use super::routing::router::{SPEC_COLUMNS, Spec};
use crate::event::{Cell, Cells, RowBuilder};

/// What a subscription asks for from a commit on; none when it is gone.
pub type Edit = (i64, Option<Spec>);

/// What a change of the table does.
///
/// # Safety
/// The tuples are null or whole rows of `table` as `desc` describes it.
pub unsafe fn read(
    table: &mut CapturedRelation,
    scratch: &mut Scratch,
    desc: pg_sys::TupleDesc,
    old: pg_sys::HeapTuple,
    new: pg_sys::HeapTuple,
) -> Vec<Edit> {
    let (mut old_row, mut new_row) = (Vec::new(), Vec::new());
    scratch.clear();
    // SAFETY: as the caller promises.
    unsafe {
        if !old.is_null() {
            table.encode_old(old, desc, scratch, &mut RowBuilder::new(&mut old_row));
        }
        if !new.is_null() {
            table.encode_new(new, desc, scratch, &mut RowBuilder::new(&mut new_row));
        }
    }
    let columns: Vec<&str> = table.model.columns.iter().map(|column| column.name.as_str()).collect();
    let new_id = id_in(&columns, &new_row);
    let gone = id_in(&columns, &old_row).filter(|id| new_id != Some(*id)).map(|id| (id, None));
    let stays = new_id.map(|id| (id, spec_in(&columns, &new_row, &old_row)));
    gone.into_iter().chain(stays).collect()
}

fn cell<'a>(columns: &[&str], row: &'a [u8], name: &str) -> Option<Cell<'a>> {
    Cells::built(row).nth(columns.iter().position(|column| *column == name)?)
}

fn id_in(columns: &[&str], row: &[u8]) -> Option<i64> {
    match cell(columns, row, "id")? {
        Cell::Json(text) => std::str::from_utf8(text).ok()?.parse().ok(),
        _ => None,
    }
}

/// The routing part of a subscription's row; large values that an update left alone are in the old row.
fn spec_in(columns: &[&str], new: &[u8], old: &[u8]) -> Option<Spec> {
    let mut object = String::from("{");
    for name in SPEC_COLUMNS {
        let value = match cell(columns, new, name)? {
            Cell::Unchanged => cell(columns, old, name)?,
            known => known,
        };
        let text = match value {
            Cell::Json(text) => text,
            Cell::Null => &b"null"[..],
            _ => return None,
        };
        let separator = if object.len() > 1 { "," } else { "" };
        object.push_str(&format!("{separator}\"{name}\":{}", String::from_utf8_lossy(text)));
    }
    object.push('}');
    serde_json::from_str(&object).ok()
}
