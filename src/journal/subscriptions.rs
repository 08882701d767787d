//! Subscriptions as they are now: how to send.

use std::cell::Cell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pgrx::spi::{Result, SpiHeapTupleData};
use pgrx::{FromDatum, IntoDatum, Spi, pg_sys};

use super::own_tables;
use super::transaction::check;
use crate::delivery::PerSecond;
use crate::event::format::Format;
use crate::pg::values::encoding::{Text, argument, strings};

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
    /// The function that makes the body, as it is stored.
    pub transform: Option<String>,
    /// The function that says where an event goes, as it is stored.
    pub route: Option<String>,
    /// The shape of its payloads.
    pub format: Format,
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
    /// Requests a second, if there is a limit.
    pub rate_limit: Option<PerSecond>,
    /// Delays between attempts; one attempt more than these.
    pub retry_schedule: Vec<Duration>,
    /// How long events stay for replay; none: as the setting says.
    pub retention: Option<Duration>,
    /// Whether bodies are compressed by gzip.
    pub compress: bool,
    /// Whether changes are captured for it.
    pub enabled: bool,
    /// Whether changes are kept for later instead of being sent.
    pub paused: bool,
    /// Why it was disabled, when that happened by itself.
    pub disabled_reason: Option<String>,
    /// The role whose rights its functions have.
    pub owner: String,
    /// Whether that is the role that the cluster was made with, which may read everything for ever.
    pub is_trusted: bool,
    /// Whether nothing may be sent before it is adopted: the cluster is a copy of the one that it was armed in.
    pub held: bool,
    /// What it keeps to itself, as it is stored.
    pub secrets: StoredSecrets,
}

/// What `pgwh.secrets` has of a subscription; each text may be sealed.
#[derive(Clone, Default)]
pub struct StoredSecrets {
    /// Its signing key; none when it was restored without.
    pub secret: Option<String>,
    /// The key before, and until when it signs, too.
    pub previous: Option<(String, SystemTime)>,
    /// Values of sensitive headers, as JSON.
    pub headers: Option<String>,
    /// Certificate and private key for mutual TLS, in PEM.
    pub client_certificate: Option<String>,
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

/// Where we are is asked once, and not for each of a hundred thousand.
const QUERY: &str = "
    SELECT s.id, s.name, s.url, s.columns, s.exclude_columns, s.format, s.headers::text, s.batch_size,
           extract(epoch FROM s.batch_wait)::float8 AS batch_wait, s.ordering, s.key_columns,
           extract(epoch FROM s.timeout)::float8 AS timeout, s.max_in_flight, s.rate_limit,
           ARRAY(SELECT extract(epoch FROM r.delay)::float8
                 FROM unnest(s.retry_schedule) WITH ORDINALITY r (delay, n) ORDER BY r.n) AS retry_schedule,
           extract(epoch FROM s.retention)::float8 AS retention, s.enabled AND d.id IS NULL AS enabled, s.paused,
           coalesce(s.disabled_reason, d.reason) AS disabled_reason,
           s.home <> here.home
               OR EXISTS (SELECT FROM pgwh_internal.commands c WHERE c.command = 'discard' AND c.subscription_id = s.id) AS held,
           k.secret, k.previous_secret, extract(epoch FROM k.previous_until)::float8 AS previous_until,
           k.headers AS hidden_headers, k.client_certificate,
           s.transform, s.route, s.compress IS NOT NULL AS compress, s.owner,
           s.owner = (SELECT r.rolname FROM pg_roles r WHERE r.oid = 10) AS is_trusted
    FROM (SELECT pgwh_internal.home() AS home, pgwh_internal.installed() || '/' AS installed OFFSET 0) here
        JOIN pgwh.subscriptions s ON starts_with(s.home, here.installed)
        LEFT JOIN pgwh.secrets k ON k.subscription_id = s.id
        LEFT JOIN pgwh_internal.commands d ON d.command = 'disable' AND d.subscription_id = s.id AND coalesce(d.url, s.url) = s.url
    WHERE true";

/// All subscriptions of this installation; a disabled one sends what was committed before, a held one nothing. Inside a transaction.
pub fn all_subscriptions() -> Vec<SubscriptionRow> {
    check("subscriptions cannot be read", read(QUERY, None))
}

/// Those of the given subscriptions that are of this installation. Inside a transaction.
pub fn subscriptions(ids: &[i64]) -> Vec<SubscriptionRow> {
    check("subscriptions cannot be read", read(&format!("{QUERY} AND s.id = ANY ($1)"), Some(ids)))
}

/// Whether all subscriptions were copied with their database, so that no change is captured for any. Inside a transaction.
pub fn are_all_copies() -> bool {
    let query =
        "SELECT NOT bool_or(starts_with(s.home, pgwh_internal.installed() || '/')) FROM pgwh.subscriptions s";
    let found = Spi::connect(|client| client.select(query, Some(1), &[])?.first().get_one::<bool>());
    check("subscriptions cannot be read", found).unwrap_or_default()
}

/// Keeps subscriptions as they are until the end of the transaction; false when somebody is changing them.
pub fn keep_subscriptions_as_they_are() -> bool {
    // SAFETY: catalog look-ups inside a transaction, which the lock is kept for.
    unsafe {
        let table = own_tables::oid_of(c"subscriptions");
        pg_sys::ConditionalLockRelationOid(table, pg_sys::ShareLock as _)
    }
}

/// Disables a subscription that cannot go on by itself, and says why. False when another session holds a lock on its row: then it is
/// noted, so that nothing is sent after a restart either, until [`write_disables`] can write it. Inside a transaction that is news to
/// the decoder.
pub fn disable(id: i64, reason: &str) -> bool {
    let done = Spi::run_with_args(
        "UPDATE pgwh.subscriptions SET enabled = false, disabled_reason = $2 WHERE id IN (
             SELECT id FROM pgwh.subscriptions WHERE id = $1 AND enabled FOR NO KEY UPDATE SKIP LOCKED)",
        &[id.into(), argument(reason)],
    );
    check("a subscription cannot be disabled", done);
    let noted = note_disable(
        "INSERT INTO pgwh_internal.commands (command, subscription_id, reason, url)
         SELECT 'disable', id, $2, url FROM pgwh.subscriptions WHERE id = $1 AND enabled",
        id,
        reason,
    );
    !noted
}

/// Notes that a subscription is disabled while its table cannot even be read. Inside a transaction.
pub fn note_disabled(id: i64, reason: &str) {
    note_disable(
        "INSERT INTO pgwh_internal.commands (command, subscription_id, reason) VALUES ('disable', $1, $2)",
        id,
        reason,
    );
}

/// Whether there was anything to note.
fn note_disable(insert: &str, id: i64, reason: &str) -> bool {
    let query = format!(
        "{insert} ON CONFLICT (subscription_id) WHERE command = 'disable'
             DO UPDATE SET reason = EXCLUDED.reason, url = EXCLUDED.url RETURNING id"
    );
    let noted = Spi::connect_mut(|client| {
        Ok(!client.update(&query, None, &[id.into(), argument(reason)])?.is_empty())
    });
    check("a subscription cannot be disabled", noted)
}

/// Disables what [`disable`] could not, as far as nobody holds a lock on it by now. One whose url was changed meanwhile stays
/// enabled, since that is not what failed. Returns the subscriptions of which nothing is left to be written, and whether there are
/// others. Inside a transaction that is news to the decoder.
pub fn write_disables() -> (Vec<i64>, bool) {
    check("a subscription cannot be disabled", try_disables())
}

fn try_disables() -> Result<(Vec<i64>, bool)> {
    Spi::connect_mut(|client| {
        client.update(
            "UPDATE pgwh.subscriptions s SET enabled = false, disabled_reason = c.reason FROM pgwh_internal.commands c
             WHERE c.command = 'disable' AND s.id = c.subscription_id AND coalesce(c.url, s.url) = s.url AND s.id IN (
                 SELECT l.id FROM pgwh.subscriptions l WHERE l.enabled AND l.id IN (
                     SELECT d.subscription_id FROM pgwh_internal.commands d WHERE d.command = 'disable')
                 FOR NO KEY UPDATE SKIP LOCKED)",
            None,
            &[],
        )?;
        let rows = client.update(
            "DELETE FROM pgwh_internal.commands WHERE id IN (SELECT c.id FROM pgwh_internal.commands c
                 WHERE c.command = 'disable' AND NOT EXISTS (SELECT FROM pgwh.subscriptions s
                     WHERE s.id = c.subscription_id AND s.enabled AND coalesce(c.url, s.url) = s.url)
                 FOR UPDATE SKIP LOCKED) RETURNING subscription_id",
            None,
            &[],
        )?;
        let done = rows.map(|row| Ok(row.get::<i64>(1)?.unwrap_or_default())).collect::<Result<_>>()?;
        let rows = client.select(
            "SELECT EXISTS (SELECT FROM pgwh_internal.commands WHERE command = 'disable')",
            Some(1),
            &[],
        )?;
        Ok((done, rows.first().get_one::<bool>()?.unwrap_or_default()))
    })
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
        id: of(row, "id")?.unwrap_or_default(),
        name: text(row, "name")?.unwrap_or_default(),
        url: text(row, "url")?.unwrap_or_default(),
        columns: texts(row, "columns")?,
        exclude_columns: texts(row, "exclude_columns")?,
        format: text(row, "format")?.as_deref().and_then(Format::of_word).unwrap_or_default(),
        headers: text(row, "headers")?.unwrap_or_default(),
        batch_size: positive(of(row, "batch_size")?),
        batch_wait: duration(of(row, "batch_wait")?.unwrap_or_default()),
        ordering: match text(row, "ordering")?.as_deref() {
            Some("strict") => RowOrdering::Strict,
            Some("none") => RowOrdering::None,
            _ => RowOrdering::Key,
        },
        key_columns: texts(row, "key_columns")?,
        timeout: duration(of(row, "timeout")?.unwrap_or_default()),
        max_in_flight: positive(of(row, "max_in_flight")?),
        rate_limit: of::<i32>(row, "rate_limit")?.and_then(|number| PerSecond::new(number.try_into().ok()?)),
        retry_schedule: of::<Vec<f64>>(row, "retry_schedule")?
            .unwrap_or_default()
            .into_iter()
            .map(duration)
            .collect(),
        retention: of(row, "retention")?.map(duration),
        enabled: of(row, "enabled")?.unwrap_or_default(),
        paused: of(row, "paused")?.unwrap_or_default(),
        disabled_reason: text(row, "disabled_reason")?,
        transform: text(row, "transform")?,
        route: text(row, "route")?,
        compress: of(row, "compress")?.unwrap_or_default(),
        owner: text(row, "owner")?.unwrap_or_default(),
        is_trusted: of(row, "is_trusted")?.unwrap_or_default(),
        held: of(row, "held")?.unwrap_or(true),
        secrets: StoredSecrets {
            secret: text(row, "secret")?,
            previous: text(row, "previous_secret")?
                .zip(of::<f64>(row, "previous_until")?.map(|until| UNIX_EPOCH + duration(until))),
            headers: text(row, "hidden_headers")?,
            client_certificate: text(row, "client_certificate")?,
        },
    })
}

fn of<T: IntoDatum + FromDatum>(row: &SpiHeapTupleData<'_>, column: &str) -> Result<Option<T>> {
    row.get_by_name(column)
}

fn text(row: &SpiHeapTupleData<'_>, column: &str) -> Result<Option<String>> {
    Ok(of::<Text>(row, column)?.map(String::from))
}

fn texts(row: &SpiHeapTupleData<'_>, column: &str) -> Result<Option<Vec<String>>> {
    Ok(of::<Vec<Text>>(row, column)?.map(strings))
}

fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

thread_local! {
    /// Whether what is changed was checked when it was stored, and goes on as it is.
    static UNCHECKED: Cell<bool> = const { Cell::new(false) };
}

/// Runs the action, whose changes of subscriptions are not checked. An ERROR inside ends the process.
pub fn unchecked<T>(action: impl FnOnce() -> T) -> T {
    UNCHECKED.set(true);
    let done = action();
    UNCHECKED.set(false);
    done
}

/// Whether changes of subscriptions are to be stored as they are.
pub fn is_unchecked() -> bool {
    UNCHECKED.get()
}
