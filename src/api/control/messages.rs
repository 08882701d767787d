//! `pgwh.emit` and `pgwh.annotate`: messages of our own in write-ahead log, which commit with their transaction.
//!
//! SQL declares both SECURITY DEFINER, so that whoever may call them needs no right to read the key that seals them.

use std::ffi::CStr;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use pgrx::{AnyElement, direct_function_call};

use crate::api::authorization::as_owner;
use crate::api::preconditions;
use crate::error::Error;
use crate::event::message_auth::Kind;
use crate::gucs;
use crate::journal::logical_messages::{with_sealer, write};
use crate::pg::values::encoding::utf8;

/// The longest type of a message, in bytes.
const MAX_TYPE: usize = 200;
/// The longest key of a message, in bytes.
const MAX_KEY: usize = 8 * 1024;
/// The longest annotations, in bytes: each event of the transaction carries them.
const MAX_ANNOTATIONS: usize = 16 * 1024;

/// Sends an event of the user's own when the present transaction commits.
#[pg_extern(sql = false)]
fn emit(
    kind: Option<AnyElement>,
    payload: Option<AnyElement>,
    key: Option<AnyElement>,
) -> Result<(), ErrorReport> {
    preconditions::changes()?;
    let kind = kind.map(text_of).ok_or(Error::Missing("type"))?;
    let spelled = utf8(kind.to_bytes());
    if spelled.trim().is_empty() || spelled.len() > MAX_TYPE || spelled.contains(char::is_control) {
        return Err(Error::MessageType(spelled.into_owned()).into());
    }
    let key = key.map(text_of);
    check_length(
        "key",
        key.map_or(0, CStr::count_bytes),
        MAX_KEY,
        "Choose a shorter key, for example a hash of it.",
    )?;
    let payload = payload.map(json_of).transpose()?.unwrap_or(c"null");
    let most = gucs::max_event_size();
    check_length(
        "payload",
        payload.count_bytes(),
        most,
        "Send less, or raise the setting pgwh.max_event_size.",
    )?;

    // Strings are escaped, and the whole is written, in the encoding of the database; all of them have ASCII in them.
    let mut content = b"{\"type\":".to_vec();
    content.extend_from_slice(escaped(kind).to_bytes());
    content.extend_from_slice(b",\"key\":");
    content.extend_from_slice(key.map_or(c"null", escaped).to_bytes());
    content.extend_from_slice(b",\"payload\":");
    content.extend_from_slice(payload.to_bytes());
    content.push(b'}');
    Ok(write(Kind::Emit, &content)?)
}

/// Attaches context to those events of the present transaction that follow; null takes back what was said before.
#[pg_extern(sql = false)]
fn annotate(annotations: Option<AnyElement>) -> Result<(), ErrorReport> {
    preconditions::changes()?;
    let annotations = annotations.map(json_of).transpose()?.unwrap_or_default();
    let hint = "Each event of the transaction carries them: name things by their ids.";
    check_length("annotations", annotations.count_bytes(), MAX_ANNOTATIONS, hint)?;
    Ok(write(Kind::Annotate, annotations.to_bytes())?)
}

fn check_length(what: &'static str, length: usize, limit: usize, hint: &'static str) -> Result<(), Error> {
    if length <= limit { Ok(()) } else { Err(Error::MessageTooLong { what, length, limit, hint }) }
}

/// A digest of texts that only this installation can compute.
pub fn name_digest(parts: &[&str]) -> Result<[u8; 32], Error> {
    as_owner(|| with_sealer(|sealer| sealer.name_digest(parts)))
}

/// A text, in the encoding of the database.
fn text_of(text: AnyElement) -> &'static CStr {
    // SAFETY: SQL declares the argument as text; the copy lives as long as the call.
    unsafe { CStr::from_ptr(pg_sys::text_to_cstring(text.datum().cast_mut_ptr())) }
}

/// A jsonb as text in the encoding of the database, with all digits of its numbers.
fn json_of(json: AnyElement) -> Result<&'static CStr, Error> {
    // SAFETY: SQL declares the argument as jsonb, and the output function takes that; the text lives as long as the call.
    let text = unsafe { direct_function_call::<&CStr>(pg_sys::jsonb_out, &[Some(json.datum())]) };
    text.ok_or_else(|| Error::Internal("a jsonb has no text".to_owned()))
}

/// A text as a string of JSON.
fn escaped(text: &CStr) -> &'static CStr {
    // SAFETY: the text ends in NUL, and so does what a StringInfo holds, which lives as long as the call.
    unsafe {
        let out = pg_sys::makeStringInfo();
        pg_sys::escape_json(out, text.as_ptr());
        CStr::from_ptr((*out).data)
    }
}
