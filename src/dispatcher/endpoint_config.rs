//! Subscriptions' rows as sending and deciding take them.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use pgrx::pg_sys;

use super::renderers::Functions;
use crate::decode::routing::router::Grantee;
use crate::delivery::{Ordering, Schedule, Settings};
use crate::event::format::{Shown, Source};
use crate::gucs;
use crate::http::{Endpoint, EndpointSettings, Guard, Proxy};
use crate::journal::{RowOrdering, StoredSecrets, SubscriptionRow};
use crate::secret::{Hidden, Keys, reveal, stored_secret};

/// What payloads tell of where events come from: the database, this machine, and the installation's id as text. Inside a
/// transaction.
pub fn source_of(database: pg_sys::Oid, installation: &str) -> Source {
    // SAFETY: a syscache look-up in a transaction; the name is copied.
    let database = unsafe {
        let name = pg_sys::get_database_name(database);
        if name.is_null() { String::new() } else { CStr::from_ptr(name).to_string_lossy().into_owned() }
    };
    let host = nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned();
    let installation = u128::from_str_radix(&installation.replace('-', ""), 16).unwrap_or_default();
    Source { database, host, installation }
}

/// Requests of one event each that are handed to the sender ahead, so that it need not wait for the dispatcher.
const MAX_AHEAD: u32 = 32;

/// How the engine treats a subscription, whose endpoint is this one if it can be sent to.
pub fn settings_of(row: &SubscriptionRow, endpoint: Option<&Endpoint>) -> Settings {
    // What is known when a request is due has to count: how many events there are, what functions make of them, the rate.
    let goes_ahead = row.batch_size == 1 && row.rate_limit.is_none() && functions_of(row).is_none();
    Settings {
        max_in_flight: row.max_in_flight,
        max_ahead: if goes_ahead { MAX_AHEAD } else { 0 },
        rate_limit: row.rate_limit,
        schedule: Schedule::new(&row.retry_schedule),
        batch_size: row.batch_size,
        batch_wait: row.batch_wait,
        ordering: match row.ordering {
            RowOrdering::Key => Ordering::Key,
            RowOrdering::Strict => Ordering::Strict,
            RowOrdering::None => Ordering::None,
        },
        keyed_by: hash_of(&row.key_columns),
        host: endpoint.map_or(0, |endpoint| hash_of(&endpoint.server())),
        max_pending_bytes: gucs::max_pending_bytes(),
    }
}

fn hash_of(what: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

/// What endpoints are made by, besides their subscriptions' rows.
pub struct Surroundings {
    /// Where requests may go.
    pub guard: Arc<Guard>,
    /// The proxy that they go through, if any.
    pub proxy: Option<Arc<Proxy>>,
    /// The keys that open what is sealed, or why there are none.
    pub keys: Result<Option<Keys>, String>,
}

impl Surroundings {
    /// Those of now.
    pub fn now() -> Surroundings {
        Surroundings { guard: gucs::guard(), proxy: gucs::proxy(), keys: gucs::encryption_keys() }
    }
}

/// Where and how to send.
pub fn endpoint_of(
    source: &Arc<Source>,
    row: &SubscriptionRow,
    Surroundings { guard, proxy, keys }: &Surroundings,
) -> Result<Endpoint, String> {
    let keys = keys.as_ref().map_err(Clone::clone)?.as_ref();
    let StoredSecrets { secret, previous, headers: hidden, client_certificate } = &row.secrets;
    let open = |column, text: &String| stored_secret::open(keys, row.id, column, text);
    let secret = secret.as_ref().map(|text| open("secret", text)).ok_or("its signing key is missing")??;
    // A key before that cannot be opened is no reason not to sign by the present one.
    let previous =
        previous.as_ref().and_then(|(text, until)| Some((open("previous_secret", text).ok()?, *until)));
    let client_certificate =
        client_certificate.as_ref().map(|text| open("client_certificate", text)).transpose()?;
    let hidden = hidden.as_ref().map(|text| open("headers", text)).transpose()?;
    let hidden: Hidden = hidden
        .map_or_else(|| Ok(Hidden::new()), |text| serde_json::from_str(&text))
        .map_err(|error| error.to_string())?;
    let mut headers: BTreeMap<String, String> =
        serde_json::from_str(&row.headers).map_err(|error| error.to_string())?;
    reveal(&mut headers, &hidden).map_err(|name| format!("the value of its header \"{name}\" is missing"))?;
    Endpoint::new(EndpointSettings {
        subscription_id: row.id,
        subscription: row.name.clone(),
        source: source.clone(),
        url: row.url.clone(),
        headers: headers.into_iter().collect(),
        timeout: row.timeout,
        secrets: vec![secret],
        previous_secret: previous,
        client_certificate,
        max_in_flight: row.max_in_flight,
        format: row.format,
        columns: match (&row.columns, &row.exclude_columns) {
            (Some(only), _) => Shown::Only(only.clone()),
            (None, Some(except)) => Shown::Except(except.clone()),
            (None, None) => Shown::All,
        },
        batched: row.batch_size > 1,
        compress: row.compress,
        max_response_size: gucs::max_response_size(),
        guard: guard.clone(),
        proxy: proxy.clone(),
    })
    .map_err(|problem| problem.to_string())
}

/// Who must be allowed to read its events; none when that is for ever.
pub fn grantee_of(row: &SubscriptionRow) -> Option<Arc<Grantee>> {
    (!row.is_trusted).then(|| {
        Arc::new(Grantee {
            owner: row.owner.clone(),
            columns: row.columns.clone(),
            exclude_columns: row.exclude_columns.clone(),
            key_columns: row.key_columns.clone(),
        })
    })
}

/// What its events go through; none if nothing.
pub fn functions_of(row: &SubscriptionRow) -> Option<Arc<Functions>> {
    let (owner, transform, route) = (row.owner.clone(), row.transform.clone(), row.route.clone());
    let any = transform.is_some() || route.is_some();
    any.then(|| Arc::new(Functions { owner, transform, route }))
}

/// Where a subscription's events go, and what they go through before.
pub(crate) struct Destination {
    pub endpoint: Arc<Endpoint>,
    pub functions: Option<Arc<Functions>>,
    /// Who must be allowed to read them; none when that is for ever.
    pub grantee: Option<Arc<Grantee>>,
}

impl Destination {
    /// Whether requests are made in the same way, so that what failed there would fail here.
    pub fn asks_the_same(&self, other: &Destination) -> bool {
        self.endpoint.asks_the_same(&other.endpoint)
            && self.functions == other.functions
            && self.grantee == other.grantee
    }
}
