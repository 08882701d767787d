//! What a role needs of our own tables and functions to subscribe: all that it lacks is named at once, and not one denial
//! after the other.

use pgrx::prelude::*;

use crate::api::authorization::own_name;
use crate::api::authorization::with_plain_names;
use crate::error::Error;
use crate::pg::values::encoding::Texts as _;

/// What the present role lacks of what subscribing reads and writes. Tables and functions are looked up by oid, because a name in a
/// schema without USAGE raises an error.
const MISSING: &str = "SELECT string_agg(what, ', ') FROM (
    SELECT format('USAGE on schema %I', s.nspname) AS what FROM pg_namespace s
    WHERE s.nspname IN ('pgwh', 'pgwh_internal') AND NOT has_schema_privilege(s.oid, 'USAGE')
    UNION ALL
    SELECT format('%s on table %I.%I', n.privilege, s.nspname, c.relname)
    FROM (VALUES ('SELECT', 'pgwh', 'subscriptions'), ('INSERT', 'pgwh', 'subscriptions'), ('UPDATE', 'pgwh', 'subscriptions'),
        ('SELECT', 'pgwh_internal', 'installation')) n (privilege, schema, name)
        JOIN pg_namespace s ON s.nspname = n.schema JOIN pg_class c ON c.relnamespace = s.oid AND c.relname = n.name
    WHERE NOT has_any_column_privilege(c.oid, n.privilege)
    UNION ALL
    SELECT 'EXECUTE on function ' || p.oid::regprocedure FROM pg_proc p
    WHERE p.pronamespace = 'pgwh_internal'::regnamespace AND p.proname IN ('home', 'installed', 'place', 'sees', 'table_keys')
        AND NOT has_function_privilege(p.oid, 'EXECUTE')) m";

/// What the present role needs besides EXECUTE on a function that takes the name of a subscription.
const MISSING_TO_READ: &str = "SELECT string_agg(what, ', ') FROM (
    SELECT format('USAGE on schema %I', s.nspname) AS what FROM pg_namespace s
    WHERE s.nspname = 'pgwh_internal' AND NOT has_schema_privilege(s.oid, 'USAGE')
    UNION ALL
    SELECT 'SELECT on table pgwh.subscriptions' WHERE NOT has_any_column_privilege('pgwh.subscriptions', 'SELECT')
    UNION ALL
    SELECT 'EXECUTE on function ' || p.oid::regprocedure FROM pg_proc p
    WHERE p.pronamespace = 'pgwh_internal'::regnamespace AND p.proname = 'sees' AND NOT has_function_privilege(p.oid, 'EXECUTE')) m";

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
