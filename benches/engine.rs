//! How fast deliveries pass the engine that decides: `cargo bench --bench engine`.

use std::time::{Duration, Instant};

use pgstream_hooks::delivery::{
    At, DeliveryId, Engine, Keyed, Keys, Order, Position, Settings, SubscriptionId, Success,
};

const EVENTS: u64 = 3_000_000;
const SUBSCRIPTION: SubscriptionId = SubscriptionId(1);

fn main() {
    for batch_size in [1, 100] {
        let mut engine: Engine<u64> = Engine::new(128, 64 << 20);
        let settings = Settings { batch_size, max_in_flight: 64, ..Settings::default() };
        engine.subscribe(SUBSCRIPTION, settings, Position::default());
        let begin = Instant::now();
        let (mut arrived, mut done) = (0, 0);
        while done < EVENTS {
            for _ in 0..400 {
                arrived += 1;
                let order = Order {
                    keys: Keys::one(arrived * 7919 % 100_000),
                    table: 1,
                    barrier: false,
                    keyed: Keyed { relation: 1, way: 1 },
                };
                engine.arrive(SUBSCRIPTION, DeliveryId(arrived), order, At::default(), arrived, 100);
            }
            while let Some((ticket, members)) =
                engine.next_to_send(begin).map(|request| (request.ticket, request.members.len()))
            {
                done += members as u64;
                let success = Success { status: 200, flaw: None, duration: Duration::from_millis(1) };
                engine.succeeded(ticket, success, begin);
            }
            engine.take_records();
        }
        let rate = done as f64 / begin.elapsed().as_secs_f64();
        println!("batches of {batch_size}: {rate:.0} events/s");
    }
}
