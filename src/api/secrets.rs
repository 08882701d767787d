//! Signing keys and what else a subscription keeps to itself: `pgwh.secret`, `pgwh.rotate_secret` and the triggers on
//! `pgwh.secrets`, which nobody but the extension's owner may read.

use std::cell::RefCell;
use std::collections::BTreeMap;

use pgrx::AllocatedByRust;
use pgrx::datum::Interval;
use pgrx::pg_sys::panic::{ErrorReport, ErrorReportable};
use pgrx::prelude::*;

use super::authorization::{Visible, as_owner};
use super::subscriptions::headers;
use super::{preconditions, secret_rows};
use crate::api::command_queue::tell;
use crate::api::lookup::owned;
use crate::error::Error;
use crate::gucs;
use crate::http::signature;
use crate::http::signature::{Scheme, SigningKey};
use crate::journal::CommandKind;
use crate::pg::command::command_cache::Moment;
use crate::pg::command::notice::Notice;
use crate::pg::values::encoding::{Text, Texts};
use crate::pg::values::jsonb::Jsonb;
use crate::secret::{Hidden, Keys, is_sealed, reveal, stored_secret};

type Tuple<'a> = PgHeapTuple<'a, AllocatedByRust>;

/// The columns of `pgwh.secrets` that are sealed.
const SEALED: [&str; 4] = ["secret", "previous_secret", "headers", "client_certificate"];
/// The longest overlap of two keys, in microseconds.
const LONGEST_OVERLAP: i128 = 365 * 86_400_000_000;

/// The key that signs a subscription's requests, for its owner.
#[pg_extern(sql = false)]
fn secret(name: Option<Text>) -> Result<Option<String>, ErrorReport> {
    let id = owned(name)?;
    Ok(Opened::read(id, &keys()?)?.secret)
}

/// What receivers verify by, when requests are signed by v1a.
#[pg_extern(sql = false)]
fn public_key(name: Option<Text>) -> Result<Option<String>, ErrorReport> {
    let id = owned(name)?;
    let secret = Opened::read(id, &keys()?)?.secret;
    Ok(secret
        .map(|secret| SigningKey::parse(&secret))
        .transpose()
        .map_err(Error::from)?
        .and_then(|key| key.public_key()))
}

/// Gives a subscription a new key; the present one signs, too, for some time.
#[pg_extern(sql = false)]
fn rotate_secret(name: Option<Text>, overlap: Option<Interval>) -> Result<String, ErrorReport> {
    preconditions::changes()?;
    let overlap = overlap.ok_or(Error::Missing("overlap"))?;
    if !(0..=LONGEST_OVERLAP).contains(&overlap.as_micros()) {
        return Err(Error::OutOfRange {
            what: "overlap",
            value: format!("{} s", overlap.as_micros() as f64 / 1e6),
            range: "from 0 to 365 days",
            example: "overlap => '24 hours'",
        }
        .into());
    }
    let id = owned(name)?;
    let mut fresh = String::new();
    secret_rows::change(id, |row| {
        // A key that cannot be read cannot sign either; the new one ends that.
        let keys = keys().unwrap_or_default();
        let present = Opened::of(id, &keys, row.secret.take(), None, None).unwrap_or_default().secret;
        let scheme = present.as_deref().and_then(|secret| SigningKey::parse(secret).ok());
        fresh = generate(scheme.map_or(Scheme::V1, |key| key.scheme()))?;
        row.secret = Some(fresh.clone());
        row.previous_secret = present.filter(|_| overlap.as_micros() > 0);
        row.previous_until = row.previous_secret.as_ref().and_then(|_| from_now(overlap));
        Ok(())
    })?;
    Ok(fresh)
}

/// The end of a time that begins now, in microseconds since 2000.
fn from_now(time: Interval) -> Option<i64> {
    // SAFETY: adds to when the transaction began; neither is null.
    unsafe {
        let now = pg_sys::Datum::from(pg_sys::GetCurrentTransactionStartTimestamp());
        pgrx::direct_function_call(pg_sys::timestamptz_pl_interval, &[Some(now), time.into_datum()])
    }
}

/// Seals all secrets by the first key; returns how many subscriptions have some.
#[pg_extern(sql = false)]
fn seal_secrets() -> Result<i64, ErrorReport> {
    preconditions::changes()?;
    // The lock of the rows is for the caller's rights: who may not update must not get here.
    let ids = Spi::connect_mut(|client| {
        let rows =
            client.update("SELECT subscription_id FROM pgwh.secrets ORDER BY 1 FOR UPDATE", None, &[])?;
        rows.map(|row| Ok(row.get::<i64>(1)?.unwrap_or_default())).collect::<spi::Result<Vec<_>>>()
    })
    .map_err(Error::from)?;
    for id in &ids {
        secret_rows::change(*id, |_| Ok(()))?;
    }
    Ok(ids.len() as i64)
}

/// A new random signing key.
#[pg_extern(sql = false)]
fn generate_secret(signature: Option<Text>) -> Result<String, ErrorReport> {
    Ok(generate(scheme_of(signature.as_ref().map(|word| word.0.as_str()))?)?)
}

/// Whose key is in the clear and whose headers are no secrets has no problem, and is not read.
const DOUBTFUL: &str = "
    SELECT s.id, s.headers::text, k.secret, k.headers, k.client_certificate
    FROM pgwh.subscriptions s LEFT JOIN pgwh.secrets k ON k.subscription_id OPERATOR(pg_catalog.=) s.id
    WHERE (k.secret IS NULL OR k.secret LIKE 'sealed:%' OR k.client_certificate LIKE 'sealed:%'
        OR s.headers::text LIKE '%hidden:%')";

/// Subscriptions whose requests cannot be signed or made, and why.
#[pg_extern(sql = false)]
fn secret_problems()
-> Result<TableIterator<'static, (name!(subscription_id, i64), name!(problem, Text))>, ErrorReport> {
    let visible = Visible::now()?;
    let problems = as_owner(|| {
        let mut problems = Vec::new();
        Spi::connect(|client| {
            for row in client.select(DOUBTFUL, None, &[])? {
                let id = row.get::<i64>(1)?.unwrap_or_default();
                if visible.has(id) {
                    let headers = row.text(2)?.unwrap_or_default();
                    let opened = Opened::now(id, row.text(3)?, row.text(4)?, row.text(5)?);
                    problems.extend(problem_of(opened, &headers).map(|problem| (id, problem.into())));
                }
            }
            Ok::<_, pgrx::spi::Error>(())
        })?;
        Ok(problems)
    })?;
    Ok(TableIterator::new(problems))
}

/// The same of one subscription, of which the caller has read what there is.
#[pg_extern(sql = false)]
fn secret_problem(
    subscription: Option<i64>,
    headers: Option<Jsonb>,
    secret: Option<Text>,
    hidden: Option<Text>,
    client_certificate: Option<Text>,
) -> Option<Text> {
    let [secret, hidden, certificate] =
        [secret, hidden, client_certificate].map(|text| text.map(String::from));
    let headers = headers.map_or_else(String::new, |headers| headers.0.to_string());
    problem_of(Opened::now(subscription?, secret, hidden, certificate), &headers).map(Text::from)
}

/// The keys as a command has found them, which may open thousands of secrets with them.
struct Found {
    moment: Moment,
    keys: Result<Option<Keys>, Error>,
}

thread_local! {
    static FOUND: RefCell<Option<Found>> = const { RefCell::new(None) };
}

fn problem_of(opened: Result<Opened, Error>, headers: &str) -> Option<String> {
    let opened = match opened {
        Ok(opened) => opened,
        Err(Error::Sealed(why)) => return Some(why),
        Err(error) => return Some(error.in_one_line()),
    };
    if opened.secret.is_none() {
        return Some(
            "its signing key is missing: pg_dump carries keys only when they are encrypted".to_owned(),
        );
    }
    let mut headers: BTreeMap<String, String> = serde_json::from_str(headers).unwrap_or_default();
    let missing = reveal(&mut headers, &opened.headers).err()?;
    Some(format!(
        "the value of its header \"{missing}\" is missing: pg_dump carries such values only when they are encrypted"
    ))
}

/// Reads `v1` or `v1a`; v1 when nothing is said.
pub fn scheme_of(signature: Option<&str>) -> Result<Scheme, Error> {
    Ok(signature.map(Scheme::parse).transpose()?.unwrap_or_default())
}

/// Stores the key that somebody gave, or one of the kind that somebody wants, or one where there is none.
pub fn set_secret(id: i64, name: &str, secret: Option<String>, scheme: Option<Scheme>) -> Result<(), Error> {
    let present = match (&secret, scheme) {
        (None, _) => Opened::read(id, &keys()?)?.secret,
        _ => None,
    };
    let present = present.map(|present| SigningKey::parse(&present)).transpose()?;
    // A new subscription has been given a key by now.
    let is_missing = secret.is_none() && present.is_none();
    let wanted = match (secret, present) {
        (Some(given), _) => given,
        (None, Some(present)) if scheme.is_none_or(|scheme| scheme == present.scheme()) => return Ok(()),
        (None, _) => generate(scheme.unwrap_or_default())?,
    };
    secret_rows::change(id, |row| {
        row.secret = Some(wanted);
        Ok(())
    })?;
    if is_missing {
        warn_of_another_key(name);
    }
    Ok(())
}

/// Warns whoever subscribes again that the receiver has a key by which no request is signed any more.
fn warn_of_another_key(name: &str) {
    let quoted = name.replace('\'', "''");
    Notice::new(format!("subscription \"{name}\" has another signing key than before"))
        .detail(
            "Its key was missing: dumps carry keys only when they are encrypted. A receiver that has the old one refuses the requests.",
        )
        .hint(format!(
            "The new key, for the receiver: SELECT pgwh.secret('{quoted}'); To keep the old one: call pgwh.subscribe with the same \
             arguments and secret => 'whsec_...'. To replace a key later: SELECT pgwh.rotate_secret('{quoted}');"
        ))
        .warn();
}

/// Stores who we are to the endpoint; an empty text is nobody.
pub fn set_client_certificate(id: i64, pem: &str) -> Result<(), Error> {
    secret_rows::change(id, |row| {
        row.client_certificate = Some(pem.to_owned()).filter(|pem| !pem.is_empty());
        Ok(())
    })
}

fn generate(scheme: Scheme) -> Result<String, Error> {
    signature::generate_secret(scheme).map_err(|error| Error::Internal(error.to_string()))
}

fn keys() -> Result<Option<Keys>, Error> {
    gucs::encryption_keys().map_err(Error::Sealed)
}

/// What a subscription keeps to itself, in the clear.
#[derive(Default)]
struct Opened {
    secret: Option<String>,
    headers: Hidden,
}

impl Opened {
    /// Reads and opens it.
    fn read(id: i64, keys: &Option<Keys>) -> Result<Opened, Error> {
        let row = secret_rows::read(id);
        Opened::of(id, keys, row.secret, row.headers, row.client_certificate)
    }

    /// Opens what is stored by the keys as they are in the command that runs.
    fn now(
        id: i64,
        secret: Option<String>,
        headers: Option<String>,
        certificate: Option<String>,
    ) -> Result<Opened, Error> {
        if ![&secret, &headers, &certificate].into_iter().flatten().any(|text| is_sealed(text)) {
            return Opened::of(id, &None, secret, headers, certificate);
        }
        let moment = Moment::now();
        FOUND.with_borrow_mut(|found| {
            if found.as_ref().is_none_or(|found| found.moment != moment) {
                *found = Some(Found { moment, keys: keys() });
            }
            let keys = found.as_ref().map_or(&Ok(None), |found| &found.keys);
            Opened::of(id, keys.as_ref().map_err(Clone::clone)?, secret, headers, certificate)
        })
    }

    /// Opens what is stored.
    fn of(
        id: i64,
        keys: &Option<Keys>,
        secret: Option<String>,
        headers: Option<String>,
        certificate: Option<String>,
    ) -> Result<Opened, Error> {
        let open = |column, text: Option<String>| {
            text.map(|text| stored_secret::open(keys.as_ref(), id, column, &text))
                .transpose()
                .map_err(Error::Sealed)
        };
        open("client_certificate", certificate)?;
        let headers = open("headers", headers)?;
        Ok(Opened {
            secret: open("secret", secret)?,
            headers: headers.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default(),
        })
    }
}

/// AFTER INSERT ON pgwh.subscriptions: a signing key for a subscription that has none.
#[pg_trigger(sql = false)]
fn provide_secret<'a>(trigger: &'a PgTrigger<'a>) -> Result<Option<Tuple<'a>>, Error> {
    let provide = || {
        let id = trigger.new().map(|row| row.get_by_name::<i64>("id")).transpose()?.flatten();
        let id = id.unwrap_or_default();
        match secret_rows::read(id).secret {
            Some(_) => Ok(()),
            None => secret_rows::change(id, |row| {
                row.secret = Some(generate(Scheme::V1)?);
                Ok(())
            }),
        }
    };
    provide().map_err(ErrorReport::from).unwrap_or_report();
    Ok(None)
}

/// AFTER INSERT OR UPDATE ON pgwh.subscriptions: keeps what the signs in its headers stand for, and nothing else.
#[pg_trigger(sql = false)]
fn store_headers<'a>(trigger: &'a PgTrigger<'a>) -> Result<Option<Tuple<'a>>, Error> {
    stored_headers(trigger).map_err(ErrorReport::from).unwrap_or_report();
    Ok(None)
}

fn stored_headers(trigger: &PgTrigger<'_>) -> Result<(), Error> {
    let Some(new) = trigger.new() else { return Ok(()) };
    let headers_of = |row: Option<Jsonb>| row.unwrap_or_else(|| Jsonb(serde_json::json!({})));
    let new_headers = headers_of(new.get_by_name::<Jsonb>("headers")?);
    let old_headers = match trigger.old() {
        Some(old) => headers_of(old.get_by_name::<Jsonb>("headers")?),
        None => headers_of(None),
    };
    if !headers::any_hidden(&new_headers) && !headers::any_hidden(&old_headers) {
        return Ok(());
    }
    let id = new.get_by_name::<i64>("id")?.unwrap_or_default();
    let stored = Opened::read(id, &keys()?)?.headers;
    let wanted = headers::behind(&new_headers, &stored);
    if wanted == stored {
        return Ok(());
    }
    let text = serde_json::to_string(&wanted).map_err(|error| Error::Internal(error.to_string()))?;
    secret_rows::change(id, |row| {
        row.headers = Some(text).filter(|_| !wanted.is_empty());
        Ok(())
    })
}

/// BEFORE INSERT OR UPDATE ON pgwh.secrets: refuses what cannot sign, and seals.
#[pg_trigger(sql = false)]
fn check_secret<'a>(trigger: &'a PgTrigger<'a>) -> Result<Option<Tuple<'a>>, Error> {
    let checked = checked_secret(trigger).map_err(ErrorReport::from);
    Ok(Some(checked.unwrap_or_report()))
}

fn checked_secret<'a>(trigger: &'a PgTrigger<'a>) -> Result<Tuple<'a>, Error> {
    let mut new =
        trigger.new().ok_or_else(|| Error::Internal("a trigger has no row".to_owned()))?.into_owned();
    let id = new.get_by_name::<i64>("subscription_id")?.unwrap_or_default();
    let keys = keys()?;
    for column in SEALED {
        let Some(text) = new.get_by_name::<Text>(column)?.map(String::from) else { continue };
        let text = secret_rows::sealed(&keys, id, column, text)?;
        new.set_by_name(column, Text::from(text))?;
    }
    Ok(new)
}

/// AFTER UPDATE ON pgwh.secrets: has the dispatcher read it again.
#[pg_trigger(sql = false)]
fn tell_of_secret<'a>(trigger: &'a PgTrigger<'a>) -> Result<Option<Tuple<'a>>, Error> {
    let tell_of = || {
        let id = trigger.new().map(|row| row.get_by_name::<i64>("subscription_id")).transpose()?.flatten();
        as_owner(|| tell(CommandKind::Reload { subscription: id.unwrap_or_default() }))
    };
    tell_of().map_err(ErrorReport::from).unwrap_or_report();
    Ok(None)
}
