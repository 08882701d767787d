//! What users are told by `NOTIFY pgwh`, and what disables a subscription by itself.

use pgrx::Spi;

use crate::dispatch::{Disabled, Effect};
use crate::journal;

/// Dead letters that are told of one by one; of more at once the first ones stand for all.
const DEAD_LETTERS: usize = 100;

/// Tells of what happened; a subscription that can't go on is disabled.
pub fn carry_out(effects: &[Effect]) {
    if effects.is_empty() {
        return;
    }
    for effect in effects {
        if let Effect::Disable(subscription, why) = effect {
            journal::disable(subscription.0, &reason_of(why));
        }
    }
    tell(effects);
}

fn reason_of(why: &Disabled) -> String {
    match why {
        Disabled::Gone => "the endpoint answered 410 Gone".to_owned(),
        Disabled::TooMuchPending { bytes } => {
            format!("{bytes} bytes were pending, more than pgwh.max_pending_bytes allows")
        }
    }
}

/// A JSON object for each says what happened to which subscription.
fn tell(effects: &[Effect]) {
    let (mut events, mut subscriptions) = (Vec::new(), Vec::new());
    let (mut deliveries, mut reasons): (Vec<Option<i64>>, Vec<Option<String>>) = (Vec::new(), Vec::new());
    let mut dead_letters = 0;
    for effect in effects {
        let (event, subscription, delivery, reason) = match effect {
            Effect::Disable(subscription, why) => ("disabled", subscription, None, Some(reason_of(why))),
            Effect::DeadLetter(..) if dead_letters == DEAD_LETTERS => continue,
            Effect::DeadLetter(subscription, delivery) => {
                dead_letters += 1;
                ("dead_letter", subscription, Some(delivery.0 as i64), None)
            }
            Effect::Opened(subscription) => ("failing", subscription, None, None),
            Effect::Recovered(subscription) => ("recovered", subscription, None, None),
            Effect::Replayed(..) => continue,
        };
        events.push(event);
        subscriptions.push(subscription.0);
        deliveries.push(delivery);
        reasons.push(reason);
    }
    journal::with_tables(|_| {
        let told = Spi::run_with_args(
            "SELECT pg_notify('pgwh', json_strip_nulls(json_build_object('event', e.event,
                 'subscription_id', e.subscription_id, 'subscription', s.name, 'delivery_id', e.delivery_id,
                 'reason', e.reason))::text)
             FROM unnest($1, $2, $3, $4) e (event, subscription_id, delivery_id, reason)
             LEFT JOIN pgwh.subscriptions s ON s.id = e.subscription_id",
            &[events.into(), subscriptions.into(), deliveries.into(), reasons.into()],
        );
        if let Err(error) = told {
            pgrx::warning!("pgstream_hooks: NOTIFY pgwh failed: {error}");
        }
    });
}
