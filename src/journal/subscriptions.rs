//! Subscriptions as they are now: how to send.

use pgrx::Spi;
use pgrx::spi::Result;

use super::tables::check;

/// What sending needs of a subscription's row and secrets.
pub struct SubscriptionRow {
    /// Its id.
    pub id: i64,
    /// Its name.
    pub name: String,
    /// Where to POST.
    pub url: String,
    /// Extra headers, a JSON object of strings.
    pub headers: String,
    /// Limit of a request, in milliseconds.
    pub timeout_ms: f64,
    /// Requests at once.
    pub max_in_flight: i32,
    /// Signing keys, the present one first.
    pub secrets: Vec<String>,
}

const QUERY: &str = "
    SELECT s.id, s.name, s.url, s.headers::text, extract(epoch FROM s.timeout)::float8 * 1000, s.max_in_flight,
           array_remove(ARRAY[k.secret, CASE WHEN k.previous_until > now() THEN k.previous_secret END], NULL)
    FROM pgwh.subscriptions s LEFT JOIN pgwh.secrets k ON k.subscription_id = s.id
    WHERE s.home = pgwh.home()";

/// All subscriptions that may send; a disabled one sends what was committed before. Inside a transaction.
pub fn all_subscriptions() -> Vec<SubscriptionRow> {
    check("subscriptions can't be read", read(QUERY, None))
}

/// Those of the given subscriptions that may send. Inside a transaction.
pub fn subscriptions(ids: &[i64]) -> Vec<SubscriptionRow> {
    check("subscriptions can't be read", read(&format!("{QUERY} AND s.id = ANY ($1)"), Some(ids)))
}

fn read(query: &str, ids: Option<&[i64]>) -> Result<Vec<SubscriptionRow>> {
    Spi::connect(|client| {
        let arguments: Vec<pgrx::datum::DatumWithOid<'_>> =
            ids.map(|ids| ids.to_vec().into()).into_iter().collect();
        let mut found = Vec::new();
        for row in client.select(query, None, &arguments)? {
            found.push(SubscriptionRow {
                id: row.get(1)?.unwrap_or_default(),
                name: row.get(2)?.unwrap_or_default(),
                url: row.get(3)?.unwrap_or_default(),
                headers: row.get(4)?.unwrap_or_default(),
                timeout_ms: row.get(5)?.unwrap_or_default(),
                max_in_flight: row.get(6)?.unwrap_or(1),
                secrets: row.get(7)?.unwrap_or_default(),
            });
        }
        Ok(found)
    })
}
