//! The checks that every subscription passes, whether a function or plain SQL writes its row.

use std::collections::HashSet;

use pgrx::datum::Interval;
use url::Url;

use super::filter_check::{Conditions, FilterSource};
use super::privileges::Claim;
use super::{columns, tables, transform_functions};
use crate::api::control::messages;
use crate::api::inspect::descendants;
use crate::decode::routing::router::LOCAL;
use crate::error::Error;
use crate::event::event_type;
use crate::event::format::Format;
use crate::gucs;
use crate::http::{check_header, check_url, quoted};
use crate::pg::values::jsonb::Jsonb;

/// The longest name, in bytes.
const MAX_NAME: usize = 200;
/// Limits of `timeout`, in microseconds.
const TIMEOUT: std::ops::RangeInclusive<i128> = 1_000..=3_600_000_000;
const DEFAULT_TIMEOUT: i64 = 15_000_000;
/// Limits of `max_in_flight`.
const MAX_IN_FLIGHT: std::ops::RangeInclusive<i32> = 1..=1000;
const DEFAULT_IN_FLIGHT: i32 = 16;
/// Limits of `rate_limit`.
const RATE_LIMIT: std::ops::RangeInclusive<i32> = 1..=100_000;
/// Limits of `batch_size`.
const BATCH_SIZE: std::ops::RangeInclusive<i32> = 1..=10_000;
/// Limits of `batch_wait`, in microseconds.
const BATCH_WAIT: std::ops::RangeInclusive<i128> = 0..=3_600_000_000;
/// Words of `ordering`, the default first.
const ORDERINGS: [&str; 3] = ["key", "strict", "none"];
/// Words of `origin`, the default first.
const ORIGINS: [&str; 2] = ["any", LOCAL];
/// The delays of `retry_schedule` when nothing is said, in seconds.
const DEFAULT_SCHEDULE: [i64; 9] = [5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400];
/// Limits of each delay, in microseconds.
const DELAY: std::ops::RangeInclusive<i128> = 1..=30 * DAY;
/// The most delays.
const MOST_DELAYS: usize = 100;
/// Limits of `retention`, in microseconds.
const RETENTION: std::ops::RangeInclusive<i128> = 1_000_000..=365 * DAY;
const DAY: i128 = 86_400_000_000;

/// Array elements as SQL has them.
pub type Texts = Vec<Option<String>>;

/// What a user wants of a subscription; what is absent takes its default.
pub struct Wish {
    pub name: Option<String>,
    pub url: Option<String>,
    pub tables: Option<Texts>,
    pub event_types: Option<Texts>,
    pub filter: Option<String>,
    pub changed: Option<Texts>,
    pub columns: Option<Texts>,
    pub exclude_columns: Option<Texts>,
    pub transform: Option<String>,
    pub route: Option<String>,
    pub format: Option<String>,
    pub headers: Option<Jsonb>,
    pub batch_size: Option<i32>,
    pub batch_wait: Option<Interval>,
    pub ordering: Option<String>,
    pub key_columns: Option<Texts>,
    pub timeout: Option<Interval>,
    pub max_in_flight: Option<i32>,
    pub rate_limit: Option<i32>,
    pub retry_schedule: Option<Vec<Option<Interval>>>,
    pub retention: Option<Interval>,
    pub compress: Option<String>,
    pub origin: Option<String>,
}

/// What was accepted before and need not be judged again.
#[derive(Default)]
pub struct Known {
    pub url: Option<String>,
    pub tables: Vec<String>,
    /// Columns to show or leave out, known of these tables.
    pub columns: Vec<String>,
    pub transform: Option<String>,
    pub route: Option<String>,
    /// The filter, accepted in a session with perhaps other settings.
    pub filter: Option<String>,
    /// What was found to fit its tables, and need not be asked again.
    pub conditions: Option<Conditions>,
}

/// A subscription as it is stored.
pub struct Subscription {
    pub name: String,
    pub url: String,
    pub tables: Vec<String>,
    pub event_types: Vec<String>,
    pub filter: Option<String>,
    pub changed: Option<Vec<String>>,
    pub columns: Option<Vec<String>>,
    pub exclude_columns: Option<Vec<String>>,
    pub transform: Option<String>,
    pub route: Option<String>,
    pub format: Format,
    pub headers: Jsonb,
    pub batch_size: i32,
    pub batch_wait: Interval,
    pub ordering: String,
    pub key_columns: Option<Vec<String>>,
    pub timeout: Interval,
    pub max_in_flight: i32,
    pub rate_limit: Option<i32>,
    pub retry_schedule: Vec<Interval>,
    pub retention: Option<Interval>,
    pub compress: Option<String>,
    pub origin: String,
}

impl Wish {
    /// Checks everything and fills in what is absent.
    pub fn check(self, known: &Known) -> Result<Subscription, Error> {
        let url = self.url.ok_or(Error::Missing("url"))?;
        if known.url.as_ref() != Some(&url) {
            check_url(&url, &gucs::guard())?;
        }
        let tables = match self.tables {
            Some(typed) => {
                let tables = tables::normalise(&whole("tables", typed)?, &known.tables)?;
                descendants::check(&tables, &known.tables)?;
                tables
            }
            None => vec!["*.*".to_owned()],
        };
        let event_types = match self.event_types {
            Some(typed) => event_type::normalise(&whole("event_types", typed)?).map_err(Error::EventType)?,
            None => event_type::all(),
        };
        if self.columns.is_some() && self.exclude_columns.is_some() {
            return Err(Error::ColumnsTwice);
        }
        let columns = self.columns.map(|typed| whole("columns", typed)).transpose()?;
        let exclude_columns =
            self.exclude_columns.map(|typed| whole("exclude_columns", typed)).transpose()?;
        // Columns of other tables are others, whatever they are called.
        let known_columns: &[String] = if known.tables == tables { &known.columns } else { &[] };
        columns::check(columns.iter().chain(&exclude_columns).flatten(), &tables, known_columns)?;
        let transform = transform_functions::check("transform", self.transform, known.transform.as_ref())?;
        let route = transform_functions::check("route", self.route, known.route.as_ref())?;
        let format = self.format.map_or(Ok(Format::default()), |word| {
            Format::of_word(&word.trim().to_lowercase()).ok_or(Error::Format(word))
        })?;
        let headers = self.headers.unwrap_or_else(|| Jsonb(serde_json::json!({})));
        check_headers(&headers.0)?;
        let timeout = self.timeout.unwrap_or_else(|| Interval::from_micros(DEFAULT_TIMEOUT));
        within("timeout", &timeout, TIMEOUT, "from 1 ms to 1 hour", "timeout => '15 s'")?;
        let max_in_flight = self.max_in_flight.unwrap_or(DEFAULT_IN_FLIGHT);
        if !MAX_IN_FLIGHT.contains(&max_in_flight) {
            let range = "from 1 to 1000";
            return Err(out_of_range(
                "max_in_flight",
                max_in_flight.to_string(),
                range,
                "max_in_flight => 16",
            ));
        }
        if let Some(rate_limit) = self.rate_limit.filter(|limit| !RATE_LIMIT.contains(limit)) {
            let range = "from 1 to 100000 requests a second";
            return Err(out_of_range("rate_limit", rate_limit.to_string(), range, "rate_limit => 100"));
        }
        let batch_size = self.batch_size.unwrap_or(1);
        if !BATCH_SIZE.contains(&batch_size) {
            return Err(out_of_range(
                "batch_size",
                batch_size.to_string(),
                "from 1 to 10000",
                "batch_size => 100",
            ));
        }
        if let Some(word) = event_types.iter().find(|word| event_type::is_more_than_rows(word))
            && !format.tells_more_than_rows()
        {
            return Err(Error::RowsOnly(format, word.clone()));
        }
        if batch_size > 1 && !format.takes_batches() {
            return Err(Error::Batches(format, batch_size));
        }
        if batch_size > 1 && route.is_some() {
            return Err(Error::RouteOfBatch(batch_size));
        }
        let batch_wait = self.batch_wait.unwrap_or_else(|| Interval::from_micros(0));
        within("batch_wait", &batch_wait, BATCH_WAIT, "from 0 to 1 hour", "batch_wait => '100 ms'")?;
        let ordering = self.ordering.unwrap_or_else(|| ORDERINGS[0].to_owned()).trim().to_lowercase();
        if !ORDERINGS.contains(&ordering.as_str()) {
            return Err(Error::Ordering(ordering));
        }
        let conditions = Conditions {
            tables,
            event_types,
            filter: self.filter.map(some_condition).transpose()?,
            changed: self.changed.map(|typed| whole("changed", typed)).transpose()?,
            key_columns: self.key_columns.map(|typed| whole("key_columns", typed)).transpose()?,
        };
        if known.conditions.as_ref() != Some(&conditions) {
            let is_known = conditions.filter == known.filter;
            conditions.check(if is_known { FilterSource::Row } else { FilterSource::Session })?;
        }
        let Conditions { tables, event_types, filter, changed, key_columns } = conditions;
        let retry_schedule = schedule(self.retry_schedule)?;
        if let Some(retention) = &self.retention {
            within("retention", retention, RETENTION, "from 1 second to 365 days", "retention => '7 days'")?;
        }
        let compress = self.compress.map(|word| word.trim().to_lowercase());
        if let Some(other) = compress.as_ref().filter(|word| *word != "gzip") {
            return Err(Error::Compress(other.clone()));
        }
        let origin = self.origin.unwrap_or_else(|| ORIGINS[0].to_owned()).trim().to_lowercase();
        if !ORIGINS.contains(&origin.as_str()) {
            return Err(Error::Origin(origin));
        }
        let name = match self.name {
            Some(name) => name,
            None => generate_name(&url, &tables, filter.as_deref())?,
        };
        if name.trim().is_empty() || name.len() > MAX_NAME || name.contains(char::is_control) {
            return Err(Error::Name(name));
        }
        Ok(Subscription {
            name,
            url,
            tables,
            event_types,
            filter,
            changed,
            columns,
            exclude_columns,
            transform,
            route,
            format,
            headers,
            batch_size,
            batch_wait,
            ordering,
            key_columns,
            timeout,
            max_in_flight,
            rate_limit: self.rate_limit,
            retry_schedule,
            retention: self.retention,
            compress,
            origin,
        })
    }
}

impl Subscription {
    /// What it reads, when it belongs to that role.
    pub fn claim(&self, owner: String) -> Claim {
        let conditions = Conditions {
            tables: self.tables.clone(),
            event_types: self.event_types.clone(),
            filter: self.filter.clone(),
            changed: self.changed.clone(),
            key_columns: self.key_columns.clone(),
        };
        Claim::new(owner, conditions, self.columns.clone(), self.exclude_columns.clone())
    }
}

/// The elements of an array that must have some, none of them null.
fn whole(what: &'static str, texts: Texts) -> Result<Vec<String>, Error> {
    let texts: Option<Vec<String>> = texts.into_iter().collect();
    texts.filter(|texts| !texts.is_empty()).ok_or(Error::Hollow(what))
}

/// The filter without blanks around it. One that is empty may be a template that something went wrong with, and is not taken for
/// the wish to get everything.
fn some_condition(filter: String) -> Result<String, Error> {
    match filter.trim() {
        "" => Err(Error::EmptyFilter(filter)),
        condition => Ok(condition.to_owned()),
    }
}

fn check_headers(headers: &serde_json::Value) -> Result<(), Error> {
    let headers = headers.as_object().ok_or_else(|| Error::Headers("They are no JSON object".to_owned()))?;
    let mut seen = HashSet::new();
    for (name, value) in headers {
        // A value may be a secret, so no error repeats it.
        let is_none = || Error::Headers(format!("The value of {} is no string", quoted(name)));
        let value = value.as_str().ok_or_else(is_none)?;
        check_header(name, value)?;
        if !seen.insert(name.to_ascii_lowercase()) {
            return Err(Error::HeaderTwice(name.clone()));
        }
    }
    Ok(())
}

/// The delays between attempts, none of them null.
fn schedule(typed: Option<Vec<Option<Interval>>>) -> Result<Vec<Interval>, Error> {
    let Some(typed) = typed else {
        return Ok(DEFAULT_SCHEDULE.map(|delay| Interval::from_micros(delay * 1_000_000)).into());
    };
    let refuse = |value: String| {
        let range = "an array of at most 100 delays, each more than 0 and at most 30 days";
        out_of_range("retry_schedule", value, range, "retry_schedule => '{5 s, 5 min, 1 h}'")
    };
    if typed.len() > MOST_DELAYS {
        return Err(refuse(format!("an array of {} delays", typed.len())));
    }
    let delays: Option<Vec<Interval>> = typed.into_iter().collect();
    let delays = delays.ok_or_else(|| refuse("an array with a null in it".to_owned()))?;
    if let Some(delay) = delays.iter().find(|delay| !DELAY.contains(&delay.as_micros())) {
        return Err(refuse(format!("an array with a delay of {}", seconds(delay))));
    }
    Ok(delays)
}

fn within(
    what: &'static str,
    interval: &Interval,
    limits: std::ops::RangeInclusive<i128>,
    range: &'static str,
    example: &'static str,
) -> Result<(), Error> {
    if limits.contains(&interval.as_micros()) {
        return Ok(());
    }
    Err(out_of_range(what, seconds(interval), range, example))
}

fn seconds(interval: &Interval) -> String {
    format!("{} s", interval.as_micros() as f64 / 1e6)
}

fn out_of_range(what: &'static str, value: String, range: &'static str, example: &'static str) -> Error {
    Error::OutOfRange { what, value, range, example }
}

/// The name of a subscription that is given none: the same for the same url, tables and filter. Names are in notifications,
/// metrics and bodies, and the path of a URL is often its secret: of the URL it has the host and port, and a digest that only
/// this installation can compute, so that nobody can try guesses of the path against it.
fn generate_name(url: &str, tables: &[String], filter: Option<&str>) -> Result<String, Error> {
    let server = Url::parse(url).ok().map(|url| {
        let host = url.host_str().unwrap_or_default().to_owned();
        url.port().map_or(host.clone(), |port| format!("{host}-{port}"))
    });
    let tables_text = tables.join("-").replace("*.*", "all").replace(".*", "");
    let mut readable = String::new();
    for c in format!("{}-{tables_text}", server.unwrap_or_default()).chars() {
        let c = if c.is_ascii_alphanumeric() || c == '.' || c == '_' { c.to_ascii_lowercase() } else { '-' };
        if !(c == '-' && readable.ends_with('-')) {
            readable.push(c);
        }
    }
    readable.truncate(80);
    let parts: Vec<&str> =
        std::iter::once(url).chain(tables.iter().map(String::as_str)).chain(filter).collect();
    let digest: String =
        messages::name_digest(&parts)?.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{}-{digest}", readable.trim_matches('-')))
}
