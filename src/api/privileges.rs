//! What a role needs of our own tables and functions to subscribe: all that it lacks is named at once, and not one denial
//! after the other.

use pgrx::prelude::*;

use super::acting::with_plain_names;
use super::subscribe::own_name;
use crate::decode::text::Texts as _;
use crate::error::Error;

/// What the present role lacks of what subscribing looks at and writes.
const MISSING: &str = "SELECT string_agg(what, ', ') FROM (
    SELECT format('%s on table %s', privilege, name) AS what
    FROM (VALUES ('SELECT', 'pgwh.subscriptions'), ('INSERT', 'pgwh.subscriptions'), ('UPDATE', 'pgwh.subscriptions'),
        ('SELECT', 'pgwh.installation')) n (privilege, name)
    WHERE NOT has_any_column_privilege(name, privilege)
    UNION ALL
    SELECT 'EXECUTE on function ' || p.oid::regprocedure FROM pg_proc p
    WHERE p.pronamespace = 'pgwh'::regnamespace AND p.proname IN ('home', 'installed', 'place', 'sees', 'table_keys')
        AND NOT has_function_privilege(p.oid, 'EXECUTE')) m";

/// What the present role needs besides EXECUTE on a function that takes the name of a subscription.
const MISSING_TO_READ: &str = "SELECT string_agg(what, ', ') FROM (
    SELECT 'SELECT on table pgwh.subscriptions' AS what WHERE NOT has_any_column_privilege('pgwh.subscriptions', 'SELECT')
    UNION ALL
    SELECT 'EXECUTE on function pgwh.sees(text)' WHERE NOT has_function_privilege('pgwh.sees(text)', 'EXECUTE')) m";

/// Refuses a role that cannot subscribe.
pub fn require() -> Result<(), Error> {
    refuse_missing("subscribe", MISSING)
}

/// Refuses a role that cannot look for a subscription.
pub fn require_to_read() -> Result<(), Error> {
    refuse_missing("read subscriptions", MISSING_TO_READ)
}

fn refuse_missing(purpose: &'static str, query: &str) -> Result<(), Error> {
    // SAFETY: a syscache look-up in a transaction.
    if unsafe { pg_sys::superuser() } {
        return Ok(());
    }
    let missing =
        with_plain_names(|| Ok(Spi::connect(|client| client.select(query, Some(1), &[])?.first().text(1))?))?;
    let role = own_name();
    missing.map_or(Ok(()), |missing| Err(Error::MissingPrivileges { purpose, role, missing }))
}
