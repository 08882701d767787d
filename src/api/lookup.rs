//! Subscriptions by name, as the caller is shown them.

use pgrx::prelude::*;

use super::authorization::{as_owner, owns, sees_everything};
use super::subscriptions::required_grants;
use super::subscriptions::suggest::near;
use crate::error::Error;
use crate::pg::values::encoding;
use crate::pg::values::encoding::{Text, Texts as _};

/// The id of the subscription of that name.
pub(crate) fn id_of(name: Option<Text>) -> Result<i64, Error> {
    let name = String::from(name.ok_or(Error::Missing("name"))?);
    required_grants::require_to_read()?;
    let found = find(&name)?;
    // The one and the other are told apart by name only, which whoever wants the name for itself finds out, too.
    if found.is_err() && is_anothers(&name)? {
        return Err(Error::NotYours(name));
    }
    found
}

/// The id of a subscription that the caller is shown, or that there is none.
fn find(name: &str) -> Result<Result<i64, Error>, Error> {
    Ok(Spi::connect(|client| {
        let found = client.select(
            "SELECT id FROM pgwh.subscriptions WHERE name OPERATOR(pg_catalog.=) $1",
            Some(1),
            &[encoding::argument(name)],
        )?;
        if !found.is_empty()
            && let Some(id) = found.first().get_one::<i64>()?
        {
            return Ok(Ok(id));
        }
        let mut names = Vec::new();
        for row in client.select("SELECT name FROM pgwh.subscriptions", None, &[])? {
            names.extend(row.text(1)?);
        }
        let near = near(name, names).into_iter().map(|name| format!("\"{name}\"")).collect();
        Ok::<_, pgrx::spi::Error>(Err(Error::NoSuchSubscription(name.to_owned(), near)))
    })?)
}

/// Whether a subscription of that name is there that the caller may not touch, and perhaps not see.
pub fn is_anothers(name: &str) -> Result<bool, Error> {
    // Whom nothing is hidden from meets the other checks.
    if sees_everything() {
        return Ok(false);
    }
    let owner = as_owner(|| {
        Ok(Spi::connect(|client| {
            let rows = client.select(
                "SELECT owner FROM pgwh.subscriptions WHERE name = $1",
                Some(1),
                &[encoding::argument(name)],
            )?;
            if rows.is_empty() { Ok(None) } else { rows.first().get_one::<Text>() }
        })?)
    })?;
    Ok(owner.is_some_and(|owner| !owns(&owner.0)))
}

/// The subscription of that name, if the caller may act as its owner.
pub fn owned(name: Option<Text>) -> Result<i64, Error> {
    let id = id_of(name)?;
    let owner = Spi::connect(|client| {
        let rows = client.select(
            "SELECT owner, name FROM pgwh.subscriptions WHERE id OPERATOR(pg_catalog.=) $1",
            Some(1),
            &[id.into()],
        )?;
        rows.first().get_two::<Text, Text>()
    })?;
    match owner {
        (Some(owner), _) if owns(&owner.0) => Ok(id),
        (owner, name) => {
            Err(Error::NotOwner(name.unwrap_or_default().into(), owner.unwrap_or_default().into()))
        }
    }
}

/// Whether what is sent for a subscription is the caller's affair. One that is gone is nobody's but who sees everything.
pub fn is_own(subscription: i64) -> Result<bool, Error> {
    let owner = Spi::connect(|client| {
        let rows = client.select(
            "SELECT owner FROM pgwh.subscriptions WHERE id OPERATOR(pg_catalog.=) $1",
            Some(1),
            &[subscription.into()],
        )?;
        if rows.is_empty() { Ok(None) } else { rows.first().get_one::<Text>() }
    });
    Ok(owner?.map_or_else(sees_everything, |owner| owns(&owner.0)))
}

/// The state of a replay or a backfill, by the table that has it, when there is one and it is of a subscription of the
/// present role's.
pub fn state_of_own(table: &str, id: i64) -> Result<Option<String>, Error> {
    let known = as_owner(|| {
        Ok(Spi::connect(|client| {
            let query = format!("SELECT state, subscription_id FROM {table} WHERE id = $1");
            let rows = client.select(&query, Some(1), &[id.into()])?;
            if rows.is_empty() { Ok(None) } else { rows.first().get_two::<String, i64>().map(Some) }
        })?)
    })?;
    match known {
        Some((state, Some(subscription))) if is_own(subscription)? => Ok(state),
        _ => Ok(None),
    }
}
