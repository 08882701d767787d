//! `jsonb` as it is, digit by digit.

use pgrx::prelude::*;
use pgrx::{AnyElement, fcinfo};

use crate::decode::text::utf8;
use crate::error::Error;

/// A jsonb as text: digits of a number are kept, however many they are.
pub fn text_of(jsonb: &AnyElement) -> Result<String, Error> {
    // SAFETY: SQL declares the argument as jsonb, and the output function takes that.
    let text =
        unsafe { fcinfo::direct_function_call::<&std::ffi::CStr>(pg_sys::jsonb_out, &[Some(jsonb.datum())]) };
    let text = text.ok_or_else(|| Error::Internal("a jsonb has no text".to_owned()))?;
    Ok(utf8(text.to_bytes()).into_owned())
}

/// JSON text that a database of any encoding can hold: what is not ASCII is escaped, unless the encoding is UTF-8.
pub fn storable(json: &[u8]) -> String {
    let json = String::from_utf8_lossy(json);
    // SAFETY: reads a static of the process.
    if unsafe { pg_sys::GetDatabaseEncoding() } as u32 == pg_sys::pg_enc::PG_UTF8 {
        return json.into_owned();
    }
    let mut out = String::with_capacity(json.len());
    for letter in json.chars() {
        if letter.is_ascii() {
            out.push(letter);
        } else {
            letter.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
        }
    }
    out
}
