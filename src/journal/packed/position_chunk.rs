//! Positions in the journal: where a subscription stood at a checkpoint.

use std::time::Duration;

use super::numbers;
use super::numbers::{PackError, Packer, Unpacker};
use crate::delivery::{Counts, DeliveryId, Mode, Pending, Position};

/// The bytes of positions in a row at which it is complete, so that it stays on one page (8160 bytes).
const BODY: usize = 7000;

/// Positions of several subscriptions, as a row of `pgwh_internal.positions` has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PositionChunk {
    /// How many.
    pub positions: u32,
    /// The positions.
    pub body: Vec<u8>,
}

/// Packs positions: some hundreds into a row.
#[derive(Debug, Default)]
pub struct PositionPacker {
    out: Packer,
    positions: u32,
}

impl PositionPacker {
    /// Adds where a subscription stands; returns the row that it completes.
    pub fn add(&mut self, subscription: i64, position: &Position) -> Option<PositionChunk> {
        self.out.signed(subscription);
        write(&mut self.out, position);
        self.positions += 1;
        if self.out.len() >= BODY { self.close() } else { None }
    }

    /// Ends the open row, if there is one.
    pub fn close(&mut self) -> Option<PositionChunk> {
        let positions = std::mem::take(&mut self.positions);
        (positions > 0).then(|| PositionChunk { positions, body: self.out.seal() })
    }
}

/// The positions of such a row, as they were then: `due` counts from the moment when it was packed.
///
/// # Errors
///
/// When the bytes are none.
pub fn unpack(column: &[u8]) -> Result<Vec<(i64, Position)>, PackError> {
    let raw = numbers::unseal(column)?;
    let mut from = Unpacker::of(&raw);
    let mut positions = Vec::new();
    while !from.is_empty() {
        let subscription = from.signed()?;
        positions.push((subscription, read(&mut from)?));
    }
    Ok(positions)
}

fn write(out: &mut Packer, position: &Position) {
    out.byte(mode_code(position.mode));
    out.number(position.reach.0);
    let Counts { pending, pending_bytes, delivered, dropped, dead } = position.counts;
    [pending, pending_bytes, delivered, dropped, dead].into_iter().for_each(|count| out.number(count));

    pack_ids(out, position.pending.iter().map(|pending| pending.id));
    // Most have never been tried.
    let tried =
        || position.pending.iter().enumerate().filter(|(_, one)| one.failures > 0 || one.due.is_some());
    out.number(tried().count() as u64);
    let mut next = 0;
    for (place, one) in tried() {
        out.number((place - next) as u64);
        out.number(one.failures.into());
        out.number(one.due.map_or(0, |due| micros(due).saturating_add(1)));
        next = place + 1;
    }
    pack_ids(out, position.done_ahead.iter().copied());
}

fn read(from: &mut Unpacker<'_>) -> Result<Position, PackError> {
    let mode = mode_of(from.byte()?)?;
    let reach = DeliveryId(from.number()?);
    let counts = Counts {
        pending: from.number()?,
        pending_bytes: from.number()?,
        delivered: from.number()?,
        dropped: from.number()?,
        dead: from.number()?,
    };
    let mut pending: Vec<Pending> = unpack_ids(from)?.into_iter().map(Pending::fresh).collect();
    let mut rest = pending.iter_mut();
    for _ in 0..from.count()? {
        let one = rest.nth(from.small("place")?).ok_or(PackError::Invalid("place"))?;
        one.failures = from.small("number of failures")?;
        one.due = from.number()?.checked_sub(1).map(Duration::from_micros);
    }
    let done_ahead = unpack_ids(from)?;
    Ok(Position { mode, reach, pending, done_ahead, counts })
}

/// Rising numbers, by what lies between them.
fn pack_ids(out: &mut Packer, ids: impl ExactSizeIterator<Item = DeliveryId>) {
    out.number(ids.len() as u64);
    let mut before = 0;
    for id in ids {
        out.number(id.0.wrapping_sub(before));
        before = id.0;
    }
}

fn unpack_ids(from: &mut Unpacker<'_>) -> Result<Vec<DeliveryId>, PackError> {
    let count = from.count()?;
    let mut ids = Vec::with_capacity(count);
    let mut before = 0u64;
    for _ in 0..count {
        let gap = from.number()?;
        before = before.checked_add(gap).filter(|_| gap > 0).ok_or(PackError::Invalid("number"))?;
        ids.push(DeliveryId(before));
    }
    Ok(ids)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn mode_code(mode: Mode) -> u8 {
    match mode {
        Mode::Live => 0,
        Mode::Draining => 1,
        Mode::Open => 2,
        Mode::Paused => 3,
        Mode::Stopped => 4,
    }
}

fn mode_of(code: u8) -> Result<Mode, PackError> {
    match code {
        0 => Ok(Mode::Live),
        1 => Ok(Mode::Draining),
        2 => Ok(Mode::Open),
        3 => Ok(Mode::Paused),
        4 => Ok(Mode::Stopped),
        _ => Err(PackError::Invalid("mode")),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn any_ids() -> impl Strategy<Value = Vec<DeliveryId>> {
        let id = prop_oneof![1u64..200, 1u64..];
        prop::collection::vec(id, 0..60)
            .prop_map(|ids| BTreeSet::from_iter(ids).into_iter().map(DeliveryId).collect())
    }

    prop_compose! {
        fn any_position()(
            mode in 0u8..5,
            reach: u64,
            listed in any_ids(),
            tried in prop::collection::vec(
                prop::option::of((any::<u32>(), prop::option::of(0u64..1 << 50))), 60),
            done_ahead in any_ids(),
            counts: [u64; 5],
        ) -> Position {
            let pending = listed.into_iter().zip(tried).map(|(id, tried)| match tried {
                None => Pending::fresh(id),
                Some((failures, due)) => Pending { id, failures, due: due.map(Duration::from_micros) },
            });
            Position {
                mode: mode_of(mode).unwrap(),
                reach: DeliveryId(reach),
                pending: pending.collect(),
                done_ahead,
                counts: Counts {
                    pending: counts[0],
                    pending_bytes: counts[1],
                    delivered: counts[2],
                    dropped: counts[3],
                    dead: counts[4],
                },
            }
        }
    }

    proptest! {
        #![proptest_config(crate::proptest_config::config(256))]

        #[test]
        fn any_positions_come_back(positions in prop::collection::vec((any::<i64>(), any_position()), 0..20)) {
            let mut packer = PositionPacker::default();
            let mut rows: Vec<_> =
                positions.iter().filter_map(|(subscription, position)| packer.add(*subscription, position)).collect();
            rows.extend(packer.close());
            let unpacked = rows.iter().flat_map(|row| unpack(&row.body).unwrap());
            prop_assert_eq!(unpacked.collect::<Vec<_>>(), positions.clone());
            prop_assert_eq!(rows.iter().map(|row| row.positions as usize).sum::<usize>(), positions.len());
        }

        #[test]
        fn any_bytes_are_read_or_refused(raw in prop::collection::vec(prop_oneof![0u8..4, any::<u8>()], 0..60)) {
            let _ = unpack(&numbers::seal(&raw));
            let _ = unpack(&raw);
        }
    }

    #[test]
    fn a_long_run_takes_little() {
        let pending = (1_000_000..1_200_000).map(|id| Pending::fresh(DeliveryId(id))).collect();
        let position = Position { pending, ..Position::new(DeliveryId(1_200_000)) };
        let mut packer = PositionPacker::default();
        let row = packer.add(1, &position).or_else(|| packer.close());
        assert!(row.unwrap().body.len() < 2_000);
    }

    #[test]
    fn a_hundred_thousand_that_have_nothing_pending_take_few_rows() {
        let mut packer = PositionPacker::default();
        let rows =
            (0..100_000).filter_map(|id| packer.add(id, &Position::new(DeliveryId(1_000_000)))).count();
        assert!(rows < 300, "{rows}");
    }
}
