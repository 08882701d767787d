//! The slices as they are in the database: opening the next, and clearing the oldest for use again.
//!
//! A slice is a partition of each of the journal's tables. Nothing is deleted row by row: a slice is truncated as a
//! whole, so that the journal needs no vacuum and leaves no bloat.

use pgrx::Spi;
use pgrx::spi::Result;

use super::ring::{Retention, Slice};
use super::stored::TABLES;
use crate::delivery::DeliveryId;
use crate::journal::columns::now;
use crate::journal::parameters::{lsn, number, time};
use crate::journal::transaction::check;
use crate::journal::write::heap;
use crate::journal::write::writer::Journal;

impl Journal {
    /// Sees to the ring: opens the next slice when it is time, and clears those whose deliveries are all done and old
    /// enough.
    ///
    /// Returns true when the positions of all subscriptions are wanted: then call [`Journal::checkpoint_all`] before
    /// anything else.
    pub fn retain(&mut self, oldest_pending: Option<DeliveryId>, retention: Retention) -> bool {
        let now = now().0;
        let done = self.slices.note_done(oldest_pending, now);
        if !done.is_empty() {
            self.with_tables(|| check("slices cannot be told of", tell_done(&done, now)));
        }
        // What makes older positions superfluous must be written before they go.
        while let Some(expired) = self.slices.expired(retention, oldest_pending, now)
            && self.flush().is_some()
            && self.clear(expired)
        {}
        // Behind that: until all positions are in the next slice, none may go.
        if let Some(next) = self.slices.next(retention, now) {
            self.rotate(next, now);
        }
        self.wants_all_positions()
    }

    /// The number of the oldest delivery that the journal still has.
    pub fn oldest_kept(&self) -> DeliveryId {
        self.slices.used.first().map_or(DeliveryId(1), |slice| slice.first)
    }

    /// Writes what belongs to the slice before and opens the next one.
    fn rotate(&mut self, next: i16, now: i64) {
        if self.flush().is_none() {
            return;
        }
        let slice = Slice {
            number: next,
            first: DeliveryId(self.last.0 + 1),
            before: self.high,
            opened_at: now,
            done_at: None,
            bytes: 0,
            used: false,
        };
        let generation = self.slices.generation + 1;
        let opened =
            self.with_tables(|| check("the next slice cannot be opened", tell_opened(&slice, generation)));
        if opened.is_some() {
            self.slices.generation = generation;
            self.slices.checkpointed = false;
            self.slices.used.push(slice);
        }
    }

    /// Empties a slice, unless somebody reads it just now: nobody waits for a lock then, nor behind one.
    /// Whether it was.
    fn clear(&mut self, number: i16) -> bool {
        let cleared = self.with_tables(|| check("a slice cannot be cleared", empty(number))) == Some(true);
        if cleared {
            self.slices.used.retain(|slice| slice.number != number);
            self.cache.forget_before(self.oldest_kept());
        }
        cleared
    }
}

fn tell_opened(slice: &Slice, generation: i64) -> Result<()> {
    let (place, ordinal) = match slice.before {
        Some((place, ordinal)) => (Some(place), Some(ordinal as i64)),
        None => (None, None),
    };
    Spi::run_with_args(
        "UPDATE pgwh_internal.slices SET generation = $2, opened_at = clock_timestamp(), done_at = NULL, first_id = $3,
             before_lsn = CASE WHEN $5 IS NOT NULL THEN $4 END, before_ordinal = $5,
             before_at = coalesce((SELECT max(last_at) FROM pgwh_internal.event_chunks), (SELECT max(before_at) FROM pgwh_internal.slices))
         WHERE slice = $1",
        &[
            slice.number.into(),
            generation.into(),
            number(slice.first.0),
            lsn(place.unwrap_or_default()),
            ordinal.into(),
        ],
    )
}

fn tell_done(slices: &[i16], at: i64) -> Result<()> {
    Spi::run_with_args(
        "UPDATE pgwh_internal.slices SET done_at = $2 WHERE slice = ANY ($1)",
        &[slices.to_vec().into(), time(crate::event::Timestamp(at))],
    )
}

/// False when somebody holds a lock on one of its tables.
fn empty(number: i16) -> Result<bool> {
    if !heap::empty(&TABLES.map(|table| format!("{table}_{number}"))) {
        return Ok(false);
    }
    Spi::run_with_args(
        "UPDATE pgwh_internal.slices SET generation = NULL, opened_at = NULL, done_at = NULL, first_id = NULL,
             before_lsn = NULL, before_ordinal = NULL, before_at = NULL WHERE slice = $1",
        &[number.into()],
    )?;
    Ok(true)
}
