//! Which subscriptions were in the state `error` when they were last looked at, so that its beginning and its end are told once.

use std::time::Duration;

use pgrx::Spi;
use pgrx::pg_sys;
use pgrx::spi::Result;

use super::transaction::{Locked, SESSION_TABLES, check, unless_locked};
use crate::pg::process::bgworker;
use crate::pg::subtransaction::Raised;
use crate::pg::values::encoding::Texts;

/// What has changed among the subscriptions that were looked at.
#[derive(Default)]
pub struct ErrorStates {
    /// Subscriptions that are in error now, with the reason.
    pub begun: Vec<(i64, Option<String>)>,
    /// Subscriptions that are not any more.
    pub over: Vec<i64>,
    /// The last subscription that was looked at; none when there are no more.
    pub last: Option<i64>,
}

/// Takes `$2` subscriptions with an id above `$1`. Writes only what has changed.
const LOOK: &str = "
    WITH seen AS MATERIALIZED (
        SELECT s.subscription_id, s.state = 'error' AS is_error, CASE WHEN s.state = 'error' THEN s.reason END AS reason
        FROM pgwh.status s WHERE s.subscription_id > $1 ORDER BY s.subscription_id LIMIT $2
    ), ended AS (
        DELETE FROM pgwh_internal.error_states e USING seen s WHERE e.subscription_id = s.subscription_id AND NOT s.is_error
        RETURNING e.subscription_id
    ), gone AS (
        DELETE FROM pgwh_internal.error_states e
        WHERE NOT EXISTS (SELECT FROM pgwh.subscriptions s WHERE s.id = e.subscription_id)
    ), begun AS (
        INSERT INTO pgwh_internal.error_states (subscription_id, reason)
        SELECT s.subscription_id, s.reason FROM seen s
        WHERE s.is_error AND NOT EXISTS (SELECT FROM pgwh_internal.error_states e WHERE e.subscription_id = s.subscription_id)
        ON CONFLICT DO NOTHING RETURNING subscription_id, reason
    )
    SELECT 'begun', subscription_id, reason FROM begun
    UNION ALL SELECT 'over', subscription_id, NULL FROM ended
    UNION ALL SELECT 'last', max(subscription_id), NULL FROM seen HAVING count(*) = $2";

/// Looks at so many subscriptions with an id above that one. None when another session holds a lock that is in the way.
///
/// # Errors
///
/// What was raised.
pub fn look_for_errors(
    lock_timeout: Duration,
    after: i64,
    most: i64,
) -> std::result::Result<Option<ErrorStates>, Raised> {
    let looked = bgworker::attempt(lock_timeout, || {
        unless_locked(pg_sys::AccessShareLock, &SESSION_TABLES, |_| {
            check("states of subscriptions cannot be read", look(after, most))
        })
    });
    looked.map(|looked| if let Locked::Done(states) = looked { Some(states) } else { None })
}

fn look(after: i64, most: i64) -> Result<ErrorStates> {
    Spi::connect_mut(|client| {
        let mut states = ErrorStates::default();
        for row in client.update(LOOK, None, &[after.into(), most.into()])? {
            let Some(id) = row.get::<i64>(2)? else { continue };
            match row.text(1)?.as_deref() {
                Some("begun") => states.begun.push((id, row.text(3)?)),
                Some("over") => states.over.push(id),
                _ => states.last = Some(id),
            }
        }
        Ok(states)
    })
}
