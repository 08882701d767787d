//! The checks that every subscription passes, whether a function or plain SQL writes its row.

use std::collections::HashSet;

use pgrx::JsonB;
use pgrx::datum::Interval;
use sha2::{Digest, Sha256};

use super::{event_types, tables};
use crate::error::Error;
use crate::send::{check_header, check_url};
use crate::settings;

/// The longest name, in bytes.
const MAX_NAME: usize = 200;
/// Limits of `timeout`, in microseconds.
const TIMEOUT: std::ops::RangeInclusive<i128> = 1_000..=3_600_000_000;
const DEFAULT_TIMEOUT: i64 = 15_000_000;
/// Limits of `max_in_flight`.
const MAX_IN_FLIGHT: std::ops::RangeInclusive<i32> = 1..=1000;
const DEFAULT_IN_FLIGHT: i32 = 16;

/// Array elements as SQL has them.
pub type Texts = Vec<Option<String>>;

/// What a user wants of a subscription; what is absent takes its default.
pub struct Wish {
    pub name: Option<String>,
    pub url: Option<String>,
    pub tables: Option<Texts>,
    pub event_types: Option<Texts>,
    pub headers: Option<JsonB>,
    pub timeout: Option<Interval>,
    pub max_in_flight: Option<i32>,
}

/// What was accepted before and need not be judged again.
#[derive(Default)]
pub struct Known {
    pub url: Option<String>,
    pub tables: Vec<String>,
}

/// A subscription as it is stored.
pub struct Subscription {
    pub name: String,
    pub url: String,
    pub tables: Vec<String>,
    pub event_types: Vec<String>,
    pub headers: JsonB,
    pub timeout: Interval,
    pub max_in_flight: i32,
}

impl Wish {
    /// Checks everything and fills in what is absent.
    pub fn check(self, known: &Known) -> Result<Subscription, Error> {
        let url = self.url.ok_or(Error::Missing("url"))?;
        if known.url.as_ref() != Some(&url) {
            check_url(&url, &settings::guard())?;
        }
        let tables = match self.tables {
            Some(typed) => tables::normalise(&whole("tables", typed)?, &known.tables)?,
            None => vec!["*.*".to_owned()],
        };
        let event_types = match self.event_types {
            Some(typed) => event_types::normalise(&whole("event_types", typed)?).map_err(Error::EventType)?,
            None => event_types::all(),
        };
        let headers = self.headers.unwrap_or_else(|| JsonB(serde_json::json!({})));
        check_headers(&headers.0)?;
        let timeout = self.timeout.unwrap_or_else(|| Interval::from_micros(DEFAULT_TIMEOUT));
        if !TIMEOUT.contains(&timeout.as_micros()) {
            return Err(Error::Timeout(seconds(&timeout)));
        }
        let max_in_flight = self.max_in_flight.unwrap_or(DEFAULT_IN_FLIGHT);
        if !MAX_IN_FLIGHT.contains(&max_in_flight) {
            return Err(Error::MaxInFlight(max_in_flight));
        }
        let name = self.name.unwrap_or_else(|| make_name(&url, &tables));
        if name.trim().is_empty() || name.len() > MAX_NAME || name.contains(char::is_control) {
            return Err(Error::Name(name));
        }
        Ok(Subscription { name, url, tables, event_types, headers, timeout, max_in_flight })
    }
}

/// The elements of an array that must have some, none of them null.
fn whole(what: &'static str, texts: Texts) -> Result<Vec<String>, Error> {
    let texts: Option<Vec<String>> = texts.into_iter().collect();
    texts.filter(|texts| !texts.is_empty()).ok_or(Error::Hollow(what))
}

fn check_headers(headers: &serde_json::Value) -> Result<(), Error> {
    let headers = headers.as_object().ok_or_else(|| Error::Headers("They are no JSON object".to_owned()))?;
    let mut seen = HashSet::new();
    for (name, value) in headers {
        // A value may be a secret, so no error repeats it.
        let value =
            value.as_str().ok_or_else(|| Error::Headers(format!("The value of {name:?} is no string")))?;
        check_header(name, value)?;
        if !seen.insert(name.to_ascii_lowercase()) {
            return Err(Error::HeaderTwice(name.clone()));
        }
    }
    Ok(())
}

fn seconds(timeout: &Interval) -> String {
    format!("{} s", timeout.as_micros() as f64 / 1e6)
}

/// A name for who gives none: readable, the same for the same url and tables, and another for others.
fn make_name(url: &str, tables: &[String]) -> String {
    let place = url.split_once("://").map_or(url, |(_, rest)| rest);
    let place = place.split(['?', '#']).next().unwrap_or_default();
    let tables_text = tables.join("-").replace("*.*", "all").replace(".*", "");
    let mut readable = String::new();
    for c in format!("{place}-{tables_text}").chars() {
        let c = if c.is_ascii_alphanumeric() || c == '.' || c == '_' { c.to_ascii_lowercase() } else { '-' };
        if !(c == '-' && readable.ends_with('-')) {
            readable.push(c);
        }
    }
    readable.truncate(80);
    let mut digest = Sha256::new();
    for part in std::iter::once(url).chain(tables.iter().map(String::as_str)) {
        digest.update(part.as_bytes());
        digest.update([0]);
    }
    let tail: String = digest.finalize().iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{tail}", readable.trim_end_matches('-'))
}
