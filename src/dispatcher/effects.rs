//! What follows from what the engine found: a subscription that cannot go on is disabled, subscriptions to system events get
//! one, and who listens to `NOTIFY pgwh` hears of it.

use std::collections::BTreeMap;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgLogLevel, PgSqlErrorCode, pg_sys};

use super::notices::Notices;
use crate::delivery::{Disabled, Effect};
use crate::event::Lsn;
use crate::journal::{Gap, Locked, Notification, SystemEvent};
use crate::pg::values::encoding;
use crate::{gucs, journal};

/// Dead letters that are told of one by one by `NOTIFY`; of more at once the first ones stand for all.
const DEAD_LETTERS: usize = 100;

/// Disables subscriptions, and has notices sent. To be called before what led to this is journaled: a crash in between has
/// it happen again, rather than never. Whether rows say of all that are disabled that they are: not where other sessions hold locks.
pub fn carry_out(effects: &[Effect], notices: &mut Notices) -> bool {
    let disabled = |effect: &Effect| match effect {
        Effect::Disable(subscription, why) => Some((subscription.0, reason_of(why))),
        _ => None,
    };
    let disabled: Vec<(i64, String)> = effects.iter().filter_map(disabled).collect();
    let is_written = disabled.is_empty() || disable(&disabled);
    let mut dead_letters = 0;
    for event in effects.iter().filter_map(system_event) {
        dead_letters += usize::from(event.delivery.is_some());
        if event.delivery.is_none() || dead_letters <= DEAD_LETTERS {
            notices.add_notification(notification(&event));
        }
        notices.add_system_event(event);
    }
    is_written
}

fn disable(disabled: &[(i64, String)]) -> bool {
    let written = journal::as_news(|| {
        disabled.iter().filter(|(id, reason)| journal::disable(*id, reason)).count() == disabled.len()
    });
    if let Locked::Yes = written {
        // A restart must not send to those either. With that table locked, too, there is nothing to be done but in memory.
        journal::unless_locked(pg_sys::RowExclusiveLock, &[c"commands"], |_| {
            disabled.iter().for_each(|(id, reason)| journal::note_disabled(*id, reason));
        });
    }
    matches!(written, Locked::Done(true) | Locked::Gone)
}

/// What `NOTIFY pgwh` says of it.
pub fn notification(event: &SystemEvent) -> Notification {
    Notification {
        // The last word of it: disabled, dead_letter, failing, recovered, error, error_over.
        event: event.kind.rsplit('.').next().unwrap_or_default().to_owned(),
        subscription: event.subscription,
        delivery: event.delivery,
        backfill: None,
        reason: event.reason.clone(),
    }
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

/// Reports, after the settings were read again, that the file of trusted certificates cannot be used.
pub fn report_ca_file_problem() {
    if let Some((problem, cure)) = gucs::ca_file_problem() {
        let message = encoding::in_error(format!("pgstream_hooks: {problem}"));
        ErrorReport::new(PgSqlErrorCode::ERRCODE_CONFIG_FILE_ERROR, message, "pgstream_hooks")
            .set_detail("The certificates that were trusted before stay in use.")
            .set_hint(cure)
            .report(PgLogLevel::WARNING);
    }
}

/// Tells of changes up to `to` that subscriptions will never get.
pub fn tell_of_gaps(gaps: Vec<Gap>, to: Lsn, notices: &mut Notices) {
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
    notify_of_gaps(gaps, notices);
}

/// Reports gaps of tables that begin.
pub fn tell_of_table_gaps(gaps: Vec<Gap>, notices: &mut Notices) {
    if gaps.is_empty() {
        return;
    }
    let mut by_reason: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for gap in &gaps {
        *by_reason.entry((gap.table.as_deref().unwrap_or_default(), &gap.reason)).or_default() += 1;
    }
    for ((table, reason), count) in by_reason {
        let message =
            format!("pgstream_hooks: {count} subscriptions miss changes of table {table}: {reason}");
        ErrorReport::new(PgSqlErrorCode::ERRCODE_WARNING, encoding::in_error(message), "pgstream_hooks")
            .set_hint(
                "For the subscriptions and for what to type: SELECT name, next_step FROM pgwh.open_gaps;",
            )
            .report(PgLogLevel::WARNING);
    }
    notify_of_gaps(gaps, notices);
}

fn notify_of_gaps(gaps: Vec<Gap>, notices: &mut Notices) {
    for Gap { subscription, reason, .. } in gaps {
        notices.add_notification(Notification {
            event: "gap".to_owned(),
            subscription,
            delivery: None,
            backfill: None,
            reason: Some(reason),
        });
    }
    notices.look_for_gaps();
}

fn reason_of(why: &Disabled) -> String {
    match why {
        Disabled::Gone => "the endpoint answered 410 Gone".to_owned(),
        Disabled::TooMuchPending { bytes } => {
            format!("{bytes} bytes were pending, more than pgwh.max_pending_bytes allows")
        }
    }
}
