use super::*;

const SECOND: i64 = 1_000_000;
const HOUR: Retention = Retention { longest: Duration::from_secs(3600), max_bytes: None };

/// A ring whose slices began with those numbers, a quarter of an hour apart.
fn ring(firsts: &[u64]) -> Slices {
    let slice = |(number, first): (usize, &u64)| Slice {
        number: number as i16,
        first: DeliveryId(*first),
        before: None,
        opened_at: number as i64 * 900 * SECOND,
        done_at: None,
        bytes: 1000,
        used: true,
    };
    let used = firsts.iter().enumerate().map(slice).collect();
    Slices { used, generation: firsts.len() as i64, checkpointed: true }
}

#[test]
fn the_next_slice_is_opened_when_the_current_one_is_old_or_large() {
    let mut slices = ring(&[1]);
    assert_eq!(slices.next(HOUR, 599 * SECOND), None);
    assert_eq!(slices.next(HOUR, 600 * SECOND), Some(1));
    slices.used[0].used = false;
    assert_eq!(slices.next(HOUR, 600 * SECOND), None, "an idle database does not go round");
    slices.grown(LARGE, true);
    assert_eq!(slices.next(HOUR, 0), Some(1));
    let small = Retention { max_bytes: Some(60 << 20), ..HOUR };
    slices.used[0].bytes = 11 << 20;
    assert_eq!(slices.next(small, 0), Some(1));
}

#[test]
fn the_next_slice_waits_until_it_is_free() {
    let mut slices = ring(&[1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(slices.next(HOUR, i64::MAX), None);
    slices.used.remove(0);
    assert_eq!(slices.next(HOUR, i64::MAX), Some(0));
}

#[test]
fn what_is_pending_is_never_cleared() {
    let mut slices = ring(&[1, 100, 200]);
    let full = Retention { longest: Duration::ZERO, max_bytes: Some(1) };
    assert_eq!(slices.note_done(Some(DeliveryId(99)), 0), [] as [i16; 0]);
    assert_eq!(slices.expired(full, Some(DeliveryId(99)), i64::MAX), None);
    assert_eq!(slices.note_done(Some(DeliveryId(100)), 0), [0]);
    assert_eq!(slices.expired(full, Some(DeliveryId(100)), 1), Some(0));
    // As a replay would make it.
    assert_eq!(slices.expired(full, Some(DeliveryId(5)), 1), None);
    assert_eq!(slices.note_done(None, 0), [1], "the slice that is written is never done");
}

#[test]
fn what_is_done_stays_for_the_retention_unless_there_is_too_much_of_it() {
    let mut slices = ring(&[1, 100]);
    let done = 7200 * SECOND;
    slices.note_done(None, done);
    assert_eq!(slices.expired(HOUR, None, done + 3599 * SECOND), None);
    assert_eq!(slices.expired(HOUR, None, done + 3600 * SECOND), Some(0));
    let small = Retention { max_bytes: Some(1999), ..HOUR };
    assert_eq!(slices.expired(small, None, done), Some(0));
    slices.checkpointed = false;
    assert_eq!(slices.expired(small, None, done), None, "the newest positions are in it");
}

#[test]
fn a_clock_put_back_keeps_nothing_for_ever() {
    let mut slices = ring(&[1, 100]);
    slices.note_done(None, 90_000 * SECOND);
    assert_eq!(slices.expired(HOUR, None, 3600 * SECOND), Some(0));
}

#[test]
fn a_clock_put_back_does_not_stop_the_ring() {
    let mut slices = ring(&[1]);
    slices.used[0].opened_at = 90_000 * SECOND;
    assert_eq!(slices.next(HOUR, 3600 * SECOND), Some(1));
}

#[test]
fn a_short_retention_has_short_slices() {
    let slices = ring(&[1]);
    let short = Retention { longest: Duration::from_secs(2), max_bytes: None };
    assert_eq!(slices.next(short, SECOND - 1), None);
    assert_eq!(slices.next(short, SECOND), Some(1));
}

#[test]
fn a_delivery_is_looked_for_in_its_slice_and_those_behind() {
    let slices = ring(&[1, 100, 200]);
    let from = |id| slices.from(DeliveryId(id)).collect::<Vec<_>>();
    assert_eq!(from(1), [0, 1, 2]);
    assert_eq!(from(99), [0, 1, 2]);
    assert_eq!(from(100), [1, 2]);
    assert_eq!(from(500), [2]);
    assert_eq!(Slices::default().from(DeliveryId(1)).count(), 0);
}

#[test]
fn the_longest_retention_counts_whichever_subscription_was_edited_last() {
    let (day, hour, minute) =
        (Duration::from_secs(86_400), Duration::from_secs(3_600), Duration::from_secs(60));
    let mut retentions = Retentions::default();
    assert_eq!(retentions.longest(hour), hour);
    retentions.set(1, Some(day));
    retentions.set(2, Some(minute));
    retentions.set(3, None);
    assert_eq!(retentions.longest(hour), day);
    retentions.set(1, None);
    assert_eq!(retentions.longest(hour), hour);
}
