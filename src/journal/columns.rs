//! Columns of the journal's rows, as they are read.

use pgrx::pg_sys;

use super::packed::event_chunk;
use super::packed::numbers::{PackError, Unpacker, unseal};
use super::parameters::number;
use crate::delivery::DeliveryId;
use crate::event::{Lsn, Timestamp};

/// The time of day.
pub(crate) fn now() -> Timestamp {
    // SAFETY: reads the clock.
    Timestamp(unsafe { pg_sys::GetCurrentTimestamp() })
}

/// What a delivery of the event is charged.
pub(crate) fn charge(entry: &event_chunk::Entry) -> usize {
    match &entry.item {
        crate::ipc::frame::Item::Change { event, .. } => event.memory(),
        _ => 0,
    }
}

/// The members of a batch behind its first.
pub(crate) fn unpack_members(
    first: DeliveryId,
    column: &[u8],
) -> std::result::Result<Vec<DeliveryId>, PackError> {
    let raw = unseal(column)?;
    let mut steps = Unpacker::of(&raw);
    let (mut members, mut from) = (Vec::new(), first);
    while !steps.is_empty() {
        from = DeliveryId(steps.step(from.0)?);
        members.push(from);
    }
    Ok(members)
}

/// What a packed column holds; an ERROR when it is damaged.
pub(crate) fn intact<T>(unpacked: std::result::Result<T, PackError>) -> T {
    match unpacked {
        Ok(value) => value,
        Err(error) => pgrx::error!("pgstream_hooks: the journal is damaged: {error}"),
    }
}

/// A bigint of a table as a number of ours.
pub(crate) fn id(column: Option<i64>) -> DeliveryId {
    DeliveryId(column.unwrap_or_default() as u64)
}

pub(crate) fn lsn(text: Option<String>) -> Lsn {
    text.and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// The parameter for a delivery's number.
pub(crate) fn parameter<'a>(id: DeliveryId) -> pgrx::datum::DatumWithOid<'a> {
    number(id.0)
}
