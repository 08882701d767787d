//! System events: what the workers have to say of subscriptions, as messages in the log for those who ask for it.
//!
//! SQL decides who gets one (`pgwh_internal.system_event`), so that a role hears of no subscription that it may not see.

use pgrx::Spi;
use pgrx::spi::{Error, Result};

use super::logical_messages;
use super::transaction::check;
use crate::event::message_auth::Kind;
use crate::pg::values::encoding::Text;

/// Something that happened to a subscription.
pub struct SystemEvent {
    /// Its type, as receivers see it.
    pub kind: &'static str,
    /// The subscription.
    pub subscription: i64,
    /// The delivery that it is about, if it is about one.
    pub delivery: Option<i64>,
    /// The word for the kind of error.
    pub class: Option<&'static str>,
    /// Why.
    pub reason: Option<String>,
}

/// Writes what happened into the log. Inside a transaction that is news to the decoder.
pub fn tell_of(events: &[SystemEvent]) {
    let kinds: Vec<&str> = events.iter().map(|event| event.kind).collect();
    let subscriptions: Vec<i64> = events.iter().map(|event| event.subscription).collect();
    let deliveries: Vec<Option<i64>> = events.iter().map(|event| event.delivery).collect();
    let classes: Vec<Option<&str>> = events.iter().map(|event| event.class).collect();
    let reasons: Vec<Option<Text>> =
        events.iter().map(|event| event.reason.clone().map(Text::from)).collect();
    let told = write(
        "SELECT pgwh_internal.system_event(e.kind, e.subscription_id, pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
             'delivery_id', e.delivery_id, 'error_class', e.error_class, 'reason', e.reason)))
         FROM unnest($1, $2, $3, $4, $5) WITH ORDINALITY e (kind, subscription_id, delivery_id, error_class, reason, n)
         ORDER BY e.n",
        &[kinds.into(), subscriptions.into(), deliveries.into(), classes.into(), reasons.into()],
    );
    check("system events cannot be told", told);
}

/// Writes those gaps into the log that nobody has been told of. Inside a transaction that is news to the decoder.
pub fn tell_of_gaps() {
    let told = write(
        "WITH untold AS (UPDATE pgwh.gaps SET told = true WHERE NOT told RETURNING *)
         SELECT pgwh_internal.system_event('pgwh.gap', u.subscription_id, pg_catalog.jsonb_build_object(
             'from_lsn', u.from_lsn, 'to_lsn', u.to_lsn, 'reason', u.reason)
             OPERATOR(pg_catalog.||) pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object('table', u.table_name)))
         FROM untold u ORDER BY u.subscription_id, u.from_lsn",
        &[],
    );
    check("gaps cannot be told", told);
}

/// Writes the messages that the statement selects, without those that are null since nobody gets them.
fn write(query: &str, arguments: &[pgrx::datum::DatumWithOid<'_>]) -> Result<()> {
    let messages: Vec<Vec<u8>> = Spi::connect_mut(|client| {
        let rows = client.update(query, None, arguments)?;
        rows.filter_map(|row| row.get::<Vec<u8>>(1).transpose()).collect::<Result<_>>()
    })?;
    for content in messages {
        // Workers run on no standby, and there is a key as long as there are our tables.
        logical_messages::write(Kind::System, &content).map_err(|_| Error::NoTupleTable)?;
    }
    Ok(())
}
