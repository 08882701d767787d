//! Subscriptions as they are now: how to send.

use std::time::Duration;

use pgrx::spi::{Result, SpiHeapTupleData};
use pgrx::{Spi, pg_sys};

use super::tables::{check, with_tables, write_as_our_own};

/// What sending needs of a subscription's row and secrets.
pub struct SubscriptionRow {
    /// Its id.
    pub id: i64,
    /// Its name.
    pub name: String,
    /// Where to POST.
    pub url: String,
    /// Columns that payloads hold besides the key; none: all.
    pub columns: Option<Vec<String>>,
    /// Columns that payloads leave out; only when `columns` is none.
    pub exclude_columns: Option<Vec<String>>,
    /// Extra headers, a JSON object of strings.
    pub headers: String,
    /// Most events in a request, 1 at least; a larger one makes every body an array.
    pub batch_size: u32,
    /// How long an event waits for others to share its request.
    pub batch_wait: Duration,
    /// What order its events keep.
    pub ordering: RowOrdering,
    /// Columns whose values are the key; none: the table's key.
    pub key_columns: Option<Vec<String>>,
    /// Limit of a request.
    pub timeout: Duration,
    /// Requests at once, 1 at least.
    pub max_in_flight: u32,
    /// Delays between attempts; one attempt more than these.
    pub retry_schedule: Vec<Duration>,
    /// How long events stay for replay; none: as the setting says.
    pub retention: Option<Duration>,
    /// Whether changes are captured for it.
    pub enabled: bool,
    /// Whether changes are kept for later instead of being sent.
    pub paused: bool,
    /// Why it was disabled, when that happened by itself.
    pub disabled_reason: Option<String>,
    /// Signing keys, the present one first.
    pub secrets: Vec<String>,
}

/// The words of the column `ordering`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowOrdering {
    /// Events of one key in commit order.
    Key,
    /// All events in commit order, one request at a time.
    Strict,
    /// No order.
    None,
}

const QUERY: &str = "
    SELECT s.id, s.name, s.url, s.columns, s.exclude_columns, s.headers::text, s.batch_size,
           extract(epoch FROM s.batch_wait)::float8, s.ordering, extract(epoch FROM s.timeout)::float8, s.max_in_flight,
           ARRAY(SELECT extract(epoch FROM r.delay)::float8
                 FROM unnest(s.retry_schedule) WITH ORDINALITY r (delay, n) ORDER BY r.n),
           extract(epoch FROM s.retention)::float8, s.enabled, s.paused, s.disabled_reason,
           array_remove(ARRAY[k.secret, CASE WHEN k.previous_until > now() THEN k.previous_secret END], NULL), s.key_columns
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

/// Disables a subscription that can't go on by itself, and says why. Outside of any transaction: it takes one of its own,
/// without the mark that hides what the dispatcher writes, since this is news to the decoder.
pub fn disable(id: i64, reason: &str) {
    // SAFETY: a global of this process. It counts in the commit, too, so it is set again only behind that.
    unsafe { pg_sys::replorigin_session_origin = pg_sys::InvalidRepOriginId as _ };
    with_tables(|_| {
        let done = Spi::run_with_args(
            "UPDATE pgwh.subscriptions SET enabled = false, disabled_reason = $2 WHERE id = $1 AND enabled",
            &[id.into(), reason.into()],
        );
        check("a subscription can't be disabled", done);
    });
    write_as_our_own();
}

fn read(query: &str, ids: Option<&[i64]>) -> Result<Vec<SubscriptionRow>> {
    Spi::connect(|client| {
        let arguments: Vec<pgrx::datum::DatumWithOid<'_>> =
            ids.map(|ids| ids.to_vec().into()).into_iter().collect();
        client.select(query, None, &arguments)?.map(|row| row_of(&row)).collect()
    })
}

fn row_of(row: &SpiHeapTupleData<'_>) -> Result<SubscriptionRow> {
    let positive = |number: Option<i32>| number.and_then(|number| number.try_into().ok()).unwrap_or(1).max(1);
    Ok(SubscriptionRow {
        id: row.get(1)?.unwrap_or_default(),
        name: row.get(2)?.unwrap_or_default(),
        url: row.get(3)?.unwrap_or_default(),
        columns: row.get(4)?,
        exclude_columns: row.get(5)?,
        headers: row.get(6)?.unwrap_or_default(),
        batch_size: positive(row.get(7)?),
        batch_wait: duration(row.get(8)?.unwrap_or_default()),
        ordering: match row.get::<&str>(9)? {
            Some("strict") => RowOrdering::Strict,
            Some("none") => RowOrdering::None,
            _ => RowOrdering::Key,
        },
        timeout: duration(row.get(10)?.unwrap_or_default()),
        max_in_flight: positive(row.get(11)?),
        retry_schedule: row.get::<Vec<f64>>(12)?.unwrap_or_default().into_iter().map(duration).collect(),
        retention: row.get(13)?.map(duration),
        enabled: row.get(14)?.unwrap_or_default(),
        paused: row.get(15)?.unwrap_or_default(),
        disabled_reason: row.get(16)?,
        secrets: row.get(17)?.unwrap_or_default(),
        key_columns: row.get(18)?,
    })
}

fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}
