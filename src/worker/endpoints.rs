//! Subscriptions' rows as sending and deciding take them.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::rendering::{Context, Functions};
use crate::dispatch::{Ordering, Schedule, Settings};
use crate::event::format::{Format, Shown};
use crate::journal::{RowOrdering, SubscriptionRow};
use crate::send::{Endpoint, EndpointSettings, Guard};
use crate::settings;

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
pub fn endpoint_of(database: &str, row: &SubscriptionRow, guard: &Arc<Guard>) -> Result<Endpoint, String> {
    let headers: HashMap<String, String> =
        serde_json::from_str(&row.headers).map_err(|error| error.to_string())?;
    Endpoint::new(EndpointSettings {
        subscription_id: row.id,
        subscription: row.name.clone(),
        database: database.to_owned(),
        url: row.url.clone(),
        headers: headers.into_iter().collect(),
        timeout: row.timeout,
        secrets: row.secrets.clone(),
        format: Format::Pgwh,
        columns: shown_of(row),
        batched: row.batch_size > 1,
        compress: row.compress,
        max_response_size: settings::max_response_size(),
        guard: guard.clone(),
    })
    .map_err(|problem| problem.to_string())
}

/// The columns that its payloads show.
pub fn shown_of(row: &SubscriptionRow) -> Shown {
    match (&row.columns, &row.exclude_columns) {
        (Some(only), _) => Shown::Only(only.clone()),
        (None, Some(except)) => Shown::Except(except.clone()),
        (None, None) => Shown::All,
    }
}

/// What its events go through, and what that is told beside them; none if nothing.
pub fn functions_of(database: &str, row: &SubscriptionRow) -> Option<(Arc<Functions>, Arc<Context>)> {
    let (owner, transform, route) = (row.owner.clone(), row.transform.clone(), row.route.clone());
    let any = transform.is_some() || route.is_some();
    let (database, subscription) = (database.to_owned(), row.name.clone());
    any.then(|| {
        let context = Context { database, subscription, columns: shown_of(row) };
        (Arc::new(Functions { owner, transform, route }), Arc::new(context))
    })
}
