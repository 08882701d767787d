//! What follows from what the engine found: a subscription that can't go on is disabled, subscriptions to system events get
//! one, and who listens to `NOTIFY pgwh` hears of it.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgLogLevel, PgSqlErrorCode, Spi};

use crate::dispatch::{Disabled, Effect};
use crate::event::Lsn;
use crate::journal::{self, Gap, SystemEvent};

/// Dead letters that are told of one by one by `NOTIFY`; of more at once the first ones stand for all.
const DEAD_LETTERS: usize = 100;

/// Disables, and makes system events. To be called before what led to this is written: a crash in between has it happen
/// again, rather than never.
pub fn carry_out(effects: &[Effect]) {
    let events: Vec<SystemEvent> = effects.iter().filter_map(system_event).collect();
    if events.is_empty() {
        return;
    }
    journal::as_news(|| {
        for effect in effects {
            if let Effect::Disable(subscription, why) = effect {
                journal::disable(subscription.0, &reason_of(why));
            }
        }
        journal::tell_of(&events);
    });
}

fn system_event(effect: &Effect) -> Option<SystemEvent> {
    let (kind, subscription) = match effect {
        Effect::Disable(subscription, _) => ("pgwh.subscription.disabled", subscription),
        Effect::DeadLetter(subscription, ..) => ("pgwh.dead_letter", subscription),
        Effect::Opened(subscription) => ("pgwh.failing", subscription),
        Effect::Recovered(subscription) => ("pgwh.recovered", subscription),
        Effect::Replayed(..) => return None,
    };
    let (delivery, class) = match effect {
        Effect::DeadLetter(_, delivery, class) => (Some(delivery.0 as i64), Some(*class)),
        _ => (None, None),
    };
    let reason = if let Effect::Disable(_, why) = effect { Some(reason_of(why)) } else { None };
    Some(SystemEvent { kind, subscription: subscription.0, delivery, class, reason })
}

/// Tells of changes up to `to` that subscriptions will never get. Inside the transaction that notes so.
pub fn tell_of_gaps(gaps: &[Gap], to: Lsn) {
    let Some(Gap { reason, .. }) = gaps.first() else { return };
    ErrorReport::new(
        PgSqlErrorCode::ERRCODE_WARNING,
        format!("pgstream_hooks: {} subscriptions miss changes committed before {to}: {reason}", gaps.len()),
        "pgstream_hooks",
    )
    .set_detail("pgwh.gaps says which.")
    .set_hint(
        "To send the rows that there are: SELECT pgwh.backfill(name) FROM pgwh.subscriptions WHERE enabled;",
    )
    .report(PgLogLevel::WARNING);
    let told = Spi::run_with_args(
        "SELECT pg_notify('pgwh', json_build_object('event', 'gap', 'subscription_id', g.subscription_id,
             'subscription', s.name, 'reason', g.reason)::text)
         FROM unnest($1, $2) g (subscription_id, reason) JOIN pgwh.subscriptions s ON s.id = g.subscription_id",
        &[
            gaps.iter().map(|gap| gap.subscription).collect::<Vec<_>>().into(),
            gaps.iter().map(|gap| gap.reason.clone()).collect::<Vec<_>>().into(),
        ],
    );
    if let Err(error) = told {
        pgrx::warning!("pgstream_hooks: NOTIFY pgwh failed: {error}");
    }
}

fn reason_of(why: &Disabled) -> String {
    match why {
        Disabled::Gone => "the endpoint answered 410 Gone".to_owned(),
        Disabled::TooMuchPending { bytes } => {
            format!("{bytes} bytes were pending, more than pgwh.max_pending_bytes allows")
        }
    }
}

/// A JSON object for each says what happened to which subscription. To be called behind what led to this is written, so
/// that who hears of it finds it.
pub fn notify(effects: &[Effect]) {
    let (mut events, mut subscriptions) = (Vec::new(), Vec::new());
    let (mut deliveries, mut reasons): (Vec<Option<i64>>, Vec<Option<String>>) = (Vec::new(), Vec::new());
    let mut dead_letters = 0;
    for SystemEvent { kind, subscription, delivery, reason, .. } in effects.iter().filter_map(system_event) {
        dead_letters += usize::from(delivery.is_some());
        if delivery.is_some() && dead_letters > DEAD_LETTERS {
            continue;
        }
        // The last word of it: disabled, dead_letter, failing, recovered.
        events.push(kind.rsplit('.').next());
        subscriptions.push(subscription);
        deliveries.push(delivery);
        reasons.push(reason);
    }
    if events.is_empty() {
        return;
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
