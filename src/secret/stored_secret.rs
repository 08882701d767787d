//! Secrets as a table has them: sealed when there is a key, each for its place alone.

use super::encryption::{Keys, is_sealed};

/// What a column of a subscription's secrets says.
///
/// # Errors
///
/// In words for the user, when it is sealed and there is no key that opens it.
pub fn open(keys: Option<&Keys>, subscription: i64, column: &str, text: &str) -> Result<String, String> {
    if !is_sealed(text) {
        return Ok(text.to_owned());
    }
    let what = what_it_is(column);
    let Some(keys) = keys else {
        return Err(format!("{what} is encrypted, and pgwh.encryption_key_file names no key"));
    };
    keys.open(&place(subscription, column), text).map_err(|why| format!("{what} cannot be decrypted: {why}"))
}

/// What a column of a subscription's secrets is to hold.
///
/// # Errors
///
/// In words for the user, when it cannot be sealed.
pub fn seal(keys: Option<&Keys>, subscription: i64, column: &str, text: String) -> Result<String, String> {
    let Some(keys) = keys else { return Ok(text) };
    keys.seal(&place(subscription, column), &text)
        .map_err(|why| format!("{} cannot be encrypted: {why}", what_it_is(column)))
}

fn place(subscription: i64, column: &str) -> String {
    format!("{subscription}/{column}")
}

fn what_it_is(column: &str) -> &'static str {
    match column {
        "headers" => "the value of a header",
        "client_certificate" => "its client certificate",
        _ => "its signing key",
    }
}
