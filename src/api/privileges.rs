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

/// Refuses a role that cannot subscribe.
pub fn require() -> Result<(), Error> {
    // SAFETY: a syscache look-up in a transaction.
    if unsafe { pg_sys::superuser() } {
        return Ok(());
    }
    let missing = with_plain_names(|| {
        Ok(Spi::connect(|client| client.select(MISSING, Some(1), &[])?.first().text(1))?)
    })?;
    missing.map_or(Ok(()), |missing| Err(Error::MissingPrivileges(own_name(), missing)))
}
