//! `NOTIFY pgwh`: what sessions that listen are told of.

use pgrx::Spi;

use super::transaction::check;
use crate::pg::process::bgworker;
use crate::pg::values::encoding::Text;

/// One notification.
#[derive(Clone, Debug)]
pub struct Notification {
    /// What happened.
    pub event: String,
    /// To which subscription.
    pub subscription: i64,
    /// The delivery that it is about, if it is about one.
    pub delivery: Option<i64>,
    /// The backfill that it is about, if it is about one.
    pub backfill: Option<i64>,
    /// Why.
    pub reason: Option<String>,
}

/// Lets go of what all listeners of the cluster have read, which Postgres does only when a NOTIFY succeeds.
pub fn empty_notify_queue() {
    let empty =
        || check("the queue of NOTIFY cannot be read", Spi::run("SELECT pg_notification_queue_usage()"));
    bgworker::in_transaction(empty);
}

/// Sends each as a JSON object, without what makes it longer than Postgres takes. Inside a transaction, whose commit raises
/// an ERROR when the queue is full.
pub fn notify(notifications: &[Notification]) {
    let events: Vec<&str> = notifications.iter().map(|it| it.event.as_str()).collect();
    let subscriptions: Vec<i64> = notifications.iter().map(|it| it.subscription).collect();
    let deliveries: Vec<Option<i64>> = notifications.iter().map(|it| it.delivery).collect();
    let backfills: Vec<Option<i64>> = notifications.iter().map(|it| it.backfill).collect();
    let reasons: Vec<Option<Text>> =
        notifications.iter().map(|it| it.reason.clone().map(Text::from)).collect();
    let sent = Spi::run_with_args(
        "SELECT pg_notify('pgwh', CASE WHEN octet_length(p.whole) < 8000 THEN p.whole ELSE p.short END)
         FROM unnest($1, $2, $3, $4, $5) WITH ORDINALITY e (event, subscription_id, delivery_id, backfill_id, reason, n)
             LEFT JOIN pgwh.subscriptions s ON s.id = e.subscription_id
             LEFT JOIN pgwh.backfills b ON b.id = e.backfill_id,
             LATERAL (SELECT json_strip_nulls(json_build_object('event', e.event, 'backfill_id', e.backfill_id,
                     'subscription_id', e.subscription_id, 'subscription', coalesce(s.name, b.subscription),
                     'delivery_id', e.delivery_id, 'rows', b.rows_done, 'reason', e.reason))::text,
                 json_strip_nulls(json_build_object('event', e.event, 'backfill_id', e.backfill_id,
                     'subscription_id', e.subscription_id, 'delivery_id', e.delivery_id, 'rows', b.rows_done))::text
             ) p (whole, short)
         ORDER BY e.n",
        &[events.into(), subscriptions.into(), deliveries.into(), backfills.into(), reasons.into()],
    );
    check("NOTIFY pgwh failed", sent);
}
