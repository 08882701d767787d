//! The promises of the dispatcher, tried on random histories against a plain model that looks at every item.

use proptest::prelude::*;

use super::{Keyed, Keys, Order};

mod engine;
mod lanes;
mod world;

fn orders() -> impl Strategy<Value = Order> {
    let keys = prop_oneof![
        2 => Just(Keys::NONE),
        6 => (0..5u64).prop_map(Keys::one),
        2 => (0..5u64, 0..5u64).prop_map(|(old, new)| Keys::two(old, new)),
    ];
    (keys, 0..3u32, prop::bool::weighted(0.1)).prop_map(|(keys, table, barrier)| Order {
        keys,
        table,
        barrier,
        keyed: Keyed::default(),
    })
}

/// The rule of order: whether `newer` has to wait until `older` is done.
fn must_wait(newer: &Order, older: &Order) -> bool {
    let share_key = newer.keys.as_slice().iter().any(|key| older.keys.as_slice().contains(key));
    share_key || newer.table == older.table && (newer.barrier || older.barrier)
}
