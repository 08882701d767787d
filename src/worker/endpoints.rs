//! Subscriptions' rows as sending and deciding take them.

use std::collections::HashMap;
use std::ffi::CStr;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use pgrx::pg_sys;

use crate::dispatch::{Ordering, Schedule, Settings};
use crate::event::format::{Shown, Source};
use crate::journal::{RowOrdering, SubscriptionRow};
use crate::send::{Endpoint, EndpointSettings, Guard};
use crate::settings;

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

/// How the engine treats a subscription, whose endpoint is this one if it can be sent to.
pub fn settings_of(row: &SubscriptionRow, endpoint: Option<&Endpoint>) -> Settings {
    Settings {
        max_in_flight: row.max_in_flight,
        rate_limit: row.rate_limit,
        schedule: Schedule::new(&row.retry_schedule),
        batch_size: row.batch_size,
        batch_wait: row.batch_wait,
        ordering: match row.ordering {
            RowOrdering::Key => Ordering::Key,
            RowOrdering::Strict => Ordering::Strict,
            RowOrdering::None => Ordering::None,
        },
        host: endpoint.map_or(0, host_of),
        max_pending_bytes: settings::max_pending_bytes(),
    }
}

fn host_of(endpoint: &Endpoint) -> u64 {
    let mut hasher = DefaultHasher::new();
    endpoint.server().hash(&mut hasher);
    hasher.finish()
}

/// Where and how to send.
pub fn endpoint_of(
    source: &Arc<Source>,
    row: &SubscriptionRow,
    guard: &Arc<Guard>,
) -> Result<Endpoint, String> {
    let headers: HashMap<String, String> =
        serde_json::from_str(&row.headers).map_err(|error| error.to_string())?;
    Endpoint::new(EndpointSettings {
        subscription_id: row.id,
        subscription: row.name.clone(),
        source: source.clone(),
        url: row.url.clone(),
        headers: headers.into_iter().collect(),
        timeout: row.timeout,
        secrets: row.secrets.clone(),
        format: row.format,
        columns: match (&row.columns, &row.exclude_columns) {
            (Some(only), _) => Shown::Only(only.clone()),
            (None, Some(except)) => Shown::Except(except.clone()),
            (None, None) => Shown::All,
        },
        batched: row.batch_size > 1,
        max_response_size: settings::max_response_size(),
        guard: guard.clone(),
    })
    .map_err(|problem| problem.to_string())
}
