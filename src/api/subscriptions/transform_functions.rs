//! Functions that a subscription names: its transform and its route.

use pgrx::prelude::*;

use super::suggest::near;
use crate::error::Error;
use crate::pg::values::encoding;
use crate::pg::values::encoding::{Text, Texts};

/// Checks that a subscription may name this function, and gives it in the one spelling in which it is stored.
///
/// `typed` is its name, with or without its schema and the type of its argument. What is stored as `known` was accepted
/// before and need not exist any more, so that a dropped function doesn't stand in the way of changing something else.
pub fn check(
    what: &'static str,
    typed: Option<String>,
    known: Option<&String>,
) -> Result<Option<String>, Error> {
    match typed {
        Some(typed) if Some(&typed) != known => resolve(what, typed).map(Some),
        typed => Ok(typed),
    }
}

fn resolve(what: &'static str, typed: String) -> Result<String, Error> {
    let signature = if typed.contains('(') { typed.clone() } else { format!("{typed}(jsonb)") };
    let found = Spi::connect(|client| {
        let rows = client.select(
            "SELECT pg_catalog.format('%I.%I(jsonb)', n.nspname, p.proname),
               p.prokind OPERATOR(pg_catalog.=) 'f' AND NOT p.proretset
                 AND p.prorettype OPERATOR(pg_catalog.=) 'pg_catalog.jsonb'::pg_catalog.regtype
                 AND p.pronargs OPERATOR(pg_catalog.=) 1
                 AND p.proargtypes[0] OPERATOR(pg_catalog.=) 'pg_catalog.jsonb'::pg_catalog.regtype,
               pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND pg_catalog.has_function_privilege(p.oid, 'EXECUTE')
             FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) p.pronamespace
             WHERE p.oid OPERATOR(pg_catalog.=) pg_catalog.to_regprocedure($1)::pg_catalog.oid",
            Some(1),
            &[encoding::argument(signature)],
        )?;
        if rows.is_empty() {
            return Ok(None);
        }
        let (name, fits, may) = rows.first().get_three::<Text, bool, bool>()?;
        Ok::<_, pgrx::spi::Error>(
            name.map(|name| (name.0, fits.unwrap_or_default(), may.unwrap_or_default())),
        )
    })?;
    match found {
        None => Err(Error::NoSuchFunction(what, alike(&typed)?, typed)),
        Some((_, false, _)) => Err(Error::NoShaper(what, typed)),
        Some((name, _, false)) => Err(Error::FunctionDenied(what, name)),
        Some((name, ..)) => Ok(name),
    }
}

/// Functions whose names, without schema and arguments, look like this one.
fn alike(typed: &str) -> Result<Vec<String>, Error> {
    let name_of = |function: &str| {
        let name = function.split('(').next().unwrap_or_default();
        name.rsplit('.').next().unwrap_or_default().to_owned()
    };
    let candidates = candidates()?;
    let names = near(&name_of(typed), candidates.iter().map(|function| name_of(function)));
    Ok(candidates
        .into_iter()
        .filter(|function| names.contains(&name_of(function)))
        .take(names.len())
        .collect())
}

/// Functions that a user may have meant.
fn candidates() -> Result<Vec<String>, Error> {
    Ok(Spi::connect(|client| {
        let rows = client.select(
            "SELECT p.oid::pg_catalog.regprocedure::text FROM pg_catalog.pg_proc p
             WHERE p.prokind OPERATOR(pg_catalog.=) 'f' AND NOT p.proretset
               AND p.prorettype OPERATOR(pg_catalog.=) 'pg_catalog.jsonb'::pg_catalog.regtype
               AND p.pronargs OPERATOR(pg_catalog.=) 1
               AND p.proargtypes[0] OPERATOR(pg_catalog.=) 'pg_catalog.jsonb'::pg_catalog.regtype
               AND p.pronamespace OPERATOR(pg_catalog.<>) ALL ('{pg_catalog,pgwh,pgwh_internal}'::pg_catalog.regnamespace[])",
            None,
            &[],
        )?;
        let mut names = Vec::new();
        for row in rows {
            names.extend(row.text(1)?);
        }
        Ok::<_, pgrx::spi::Error>(names)
    })?)
}
