//! Headers whose values are secrets: the row of a subscription has signs in their place, `pgwh.secrets` has what these
//! stand for.
//!
//! The trigger before the row is written makes the signs, the one behind it stores what they stand for: between the two
//! the values are in this process only.

use std::cell::RefCell;

use pgrx::pg_sys;

use crate::error::Error;
use crate::pg::values::jsonb::Jsonb;
use crate::secret;
use crate::secret::Hidden;

thread_local! {
    /// When the transaction began, and the signs that it has made.
    static MADE: RefCell<(i64, Hidden)> = const { RefCell::new((0, Hidden::new())) };
}

/// Puts signs in the place of sensitive values.
pub fn hide(headers: Jsonb) -> Result<Jsonb, Error> {
    let Jsonb(serde_json::Value::Object(mut headers)) = headers else { return Ok(headers) };
    let mut made = Hidden::new();
    secret::hide(&mut headers, &mut made).map_err(|error| Error::Internal(error.to_string()))?;
    if !made.is_empty() {
        with_made(|signs| signs.append(&mut made));
    }
    Ok(Jsonb(serde_json::Value::Object(headers)))
}

/// What the signs in `headers` stand for, by what this transaction has made and by what is stored.
pub fn behind(headers: &Jsonb, stored: &Hidden) -> Hidden {
    let Jsonb(serde_json::Value::Object(headers)) = headers else { return Hidden::new() };
    with_made(|made| {
        let texts = headers.values().filter_map(serde_json::Value::as_str);
        texts
            .filter_map(|sign| Some((sign.to_owned(), made.get(sign).or(stored.get(sign))?.clone())))
            .collect()
    })
}

/// Whether there is a sensitive header.
pub fn any_hidden(headers: &Jsonb) -> bool {
    headers.0.as_object().is_some_and(|headers| headers.keys().any(|name| secret::is_sensitive(name)))
}

/// Whether a sensitive header has its value in the clear, and not the sign of one that was given before.
pub fn any_in_clear(headers: &Jsonb) -> bool {
    headers.0.as_object().is_some_and(|headers| {
        headers.iter().any(|(name, value)| {
            secret::is_sensitive(name) && value.as_str().is_some_and(|value| !secret::is_sign(value))
        })
    })
}

/// Whether there is a sensitive header whose value the row did not have before.
pub fn any_new(headers: &Jsonb, before: &Jsonb) -> bool {
    let known =
        |value| before.0.as_object().is_some_and(|before| before.values().any(|known| known == value));
    headers.0.as_object().is_some_and(|headers| {
        headers.iter().any(|(name, value)| secret::is_sensitive(name) && !known(value))
    })
}

fn with_made<T>(action: impl FnOnce(&mut Hidden) -> T) -> T {
    // SAFETY: reads a value of this process.
    let transaction = unsafe { pg_sys::GetCurrentTransactionStartTimestamp() };
    MADE.with_borrow_mut(|(of, made)| {
        if std::mem::replace(of, transaction) != transaction {
            made.clear();
        }
        action(made)
    })
}
