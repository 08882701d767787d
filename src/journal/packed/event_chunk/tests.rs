use proptest::prelude::*;

use super::*;
use crate::ipc::frame::tests::{any_change, any_transaction};

/// Changes of some transactions, in order; seldom so many that they fill a chunk by their number.
fn any_changes() -> impl Strategy<Value = Vec<Item>> {
    let changes = |most| {
        any_transaction()
            .prop_flat_map(move |transaction| prop::collection::vec(any_change(transaction), 0..most))
    };
    prop_oneof![9 => prop::collection::vec(changes(8), 0..4), 1 => prop::collection::vec(changes(30), 0..6)]
        .prop_map(|changes| changes.concat())
}

/// Packs them, numbered from `first` on.
fn packed(items: &[Item], first: DeliveryId) -> (Vec<Entry>, Vec<Chunk>) {
    let (mut packer, mut chunks, mut entries, mut next) =
        (ChunkPacker::default(), Vec::new(), Vec::new(), first);
    for item in items {
        packer.add(next, item, &mut chunks).unwrap();
        if !item.targets().is_empty() {
            entries.push(Entry { first: next, item: item.clone() });
        }
        next = DeliveryId(next.0 + item.targets().len() as u64);
    }
    chunks.extend(packer.close());
    (entries, chunks)
}

proptest! {
    #![proptest_config(crate::proptest_config::config(100))]

    #[test]
    fn any_changes_come_back(items in any_changes(), first in 1u64..1 << 60) {
        let (entries, chunks) = packed(&items, DeliveryId(first));
        let mut found = Vec::new();
        for chunk in &chunks {
            let entries = unpack(chunk.first, &chunk.body).unwrap();
            prop_assert_eq!(entries.len(), chunk.events as usize);
            let ids: Vec<_> = entries.iter().flat_map(Entry::deliveries).collect();
            prop_assert_eq!(ids.first().unwrap().0, chunk.first);
            prop_assert_eq!(ids.last().unwrap().0, chunk.last);
            if let Some(listed) = &chunk.subscriptions {
                prop_assert!(ids.iter().all(|(_, target)| listed.contains(&target.subscription)));
            }
            let place = |entry: &Entry| entry.item.event_id().map(|id| (id.commit_lsn, id.ordinal));
            prop_assert_eq!(place(&entries[0]), Some(chunk.first_place));
            prop_assert_eq!(place(&entries[entries.len() - 1]), Some(chunk.last_place));
            found.extend(entries);
        }
        prop_assert_eq!(found, entries);
    }

    #[test]
    fn a_damaged_chunk_is_read_or_refused(
        items in any_changes(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        for mut chunk in packed(&items, DeliveryId(1)).1 {
            let mut raw = numbers::unseal(&chunk.body).unwrap().into_owned();
            for (place, value) in &damage {
                let place = place.index(raw.len());
                raw[place] = *value;
                let place = *value as usize % chunk.body.len();
                chunk.body[place] ^= *value;
            }
            let _ = unpack(chunk.first, &numbers::seal(&raw));
            let _ = unpack(chunk.first, &chunk.body);
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(first: u64, raw in prop::collection::vec(0u8..90, 0..200)) {
        let _ = unpack(DeliveryId(first), &numbers::seal(&raw));
    }
}

#[test]
fn a_chunk_that_is_cut_off_is_refused() {
    let mut raw = Vec::new();
    let transaction = Transaction {
        xid: 7,
        commit_lsn: Lsn(1),
        committed_at: Timestamp(1),
        fingerprint: crate::event::Fingerprint::from_bits(1).unwrap(),
        origin: None,
    };
    write_begin(&mut raw, &transaction);
    assert_eq!(unpack(DeliveryId(1), &numbers::seal(&raw)), Err(PackError::Truncated));
    write_commit(&mut raw, Lsn(1));
    assert_eq!(unpack(DeliveryId(1), &numbers::seal(&raw)), Ok(Vec::new()));
    raw.pop();
    assert_eq!(unpack(DeliveryId(1), &numbers::seal(&raw)), Err(PackError::Truncated));
}

#[test]
fn of_many_subscriptions_no_list_is_kept() {
    let mut subscriptions = Subscriptions::default();
    (0..64).rev().for_each(|id| subscriptions.add_one(id));
    subscriptions.add_one(5);
    assert_eq!(subscriptions.take(), Some((0..64).collect()));
    (0..65).for_each(|id| subscriptions.add_one(id));
    assert_eq!(subscriptions.take(), None);
    assert_eq!(subscriptions.take(), Some(Vec::new()));
}
