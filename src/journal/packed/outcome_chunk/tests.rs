use proptest::prelude::*;

use super::*;

fn any_end() -> impl Strategy<Value = End> {
    prop_oneof![
        any::<u16>().prop_map(|status| End::Delivered { status }),
        (prop::option::of(1u16..), "[a-z_]{0,8}", ".{0,20}").prop_map(|(status, class, reason)| End::Dead {
            status,
            class,
            reason
        }),
    ]
}

prop_compose! {
    fn any_event()(lsn in prop_oneof![Just(7), any::<u64>()], ordinal: u64, bits in 0..1u64 << 48) -> EventId {
        let fingerprint = Fingerprint::from_bits(if lsn == 7 { 7 } else { bits }).unwrap();
        EventId { commit_lsn: Lsn(lsn), ordinal, fingerprint }
    }
}

prop_compose! {
    fn any_outcome()(
        subscription in prop_oneof![0i64..3, any::<i64>()],
        id: u64,
        others in prop::collection::vec(any::<u64>().prop_map(DeliveryId), 0..4),
        event in any_event(),
        other_events in prop::collection::vec(any_event(), 0..4),
        times in prop_oneof![Just((5, 6)), any::<(i64, i64)>()],
        micros: u64,
        attempts in prop_oneof![Just(1), any::<u32>()],
        end in any_end(),
        replay: Option<i64>,
    ) -> Outcome {
        Outcome {
            subscription,
            id: DeliveryId(id),
            other_events: if replay.is_some() && !others.is_empty() { other_events } else { Vec::new() },
            others,
            event,
            committed_at: Timestamp(times.0),
            finished_at: Timestamp(times.1),
            duration: Duration::from_micros(micros),
            attempts,
            end,
            replay,
        }
    }
}

proptest! {
    #![proptest_config(crate::proptest_config::config(256))]

    #[test]
    fn outcomes_of_a_row_come_back_from_one_that_is_written_again(
        outcomes in prop::collection::vec(any_outcome(), 0..60)
    ) {
        prop_assert_eq!(unpack(&pack(&outcomes)).unwrap(), outcomes);
    }

    #[test]
    fn any_outcomes_come_back(outcomes in prop::collection::vec(any_outcome(), 0..60)) {
        let mut packer = OutcomePacker::default();
        let mut rows: Vec<_> = outcomes.iter().filter_map(|outcome| packer.add(outcome)).collect();
        rows.extend(packer.close());
        let mut found = Vec::new();
        for row in &rows {
            let outcomes = unpack(&row.body).unwrap();
            prop_assert_eq!(row.outcomes as usize, outcomes.len());
            let dead = outcomes.iter().filter(|outcome| matches!(outcome.end, End::Dead { .. }));
            prop_assert_eq!(row.dead as usize, dead.count());
            let replayed = outcomes.iter().filter(|outcome| outcome.replay.is_some());
            prop_assert_eq!(row.replayed as usize, replayed.count());
            for id in outcomes.iter().flat_map(Outcome::members) {
                prop_assert!(row.lowest <= id && id <= row.highest);
            }
            found.extend(outcomes);
        }
        prop_assert_eq!(found, outcomes);
    }

    #[test]
    fn any_bytes_are_read_or_refused(raw in prop::collection::vec(prop_oneof![0u8..8, any::<u8>()], 0..200)) {
        let _ = unpack(&numbers::seal(&raw));
        let _ = unpack(&raw);
    }
}

#[test]
fn a_first_success_takes_few_bytes() {
    let mut packer = OutcomePacker::default();
    for number in 0..200u64 {
        let event = EventId {
            commit_lsn: Lsn(0x16_B374_D848 + number * 800),
            ordinal: 0,
            fingerprint: Fingerprint::from_bits(number.wrapping_mul(0x9E37_79B9_7F4A) & 0xFFFF_FFFF_FFFF)
                .unwrap(),
        };
        let at = 848_484_047_000_000 + number as i64 * 25;
        packer.add(&Outcome {
            subscription: 17,
            id: DeliveryId(1_000_000 + number),
            others: Vec::new(),
            event,
            other_events: Vec::new(),
            committed_at: Timestamp(at),
            finished_at: Timestamp(at + 400),
            duration: Duration::from_micros(210),
            attempts: 1,
            end: End::Delivered { status: 200 },
            replay: None,
        });
    }
    let row = packer.close().unwrap();
    assert!(row.body.len() <= 200 * 18, "{} bytes", row.body.len());
}
