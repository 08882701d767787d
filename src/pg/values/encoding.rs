//! Text of this database as UTF-8, and the other way round, whatever encoding the database has.

use std::borrow::Cow;
use std::ffi::CString;
use std::sync::OnceLock;

use pgrx::pg_sys::{self, pg_enc};

pub(crate) use super::text::{
    Text, Texts, argument, array, list, optional, optional_array, present, strings,
};

/// `bytes`, in the encoding of the database that this process is connected to, as UTF-8.
///
/// Bytes that are no text at all, as an SQL_ASCII database may hold, become U+FFFD. Must run in a transaction.
/// Raises, as a Rust panic that carries the Postgres ERROR, when a character has no counterpart in Unicode.
pub(crate) fn utf8(bytes: &[u8]) -> Cow<'_, str> {
    if must_be_converted() && !bytes.is_ascii() {
        let length = bytes.len() as i32;
        // SAFETY: reads `length` bytes and returns a palloc'd string that ends in NUL, or the same pointer.
        let converted = unsafe {
            let converted = pg_sys::pg_server_to_any(bytes.as_ptr().cast(), length, pg_enc::PG_UTF8 as i32);
            if converted.cast_const().cast() == bytes.as_ptr() {
                bytes
            } else {
                std::ffi::CStr::from_ptr(converted).to_bytes()
            }
        };
        return Cow::Owned(String::from_utf8_lossy(converted).into_owned());
    }
    String::from_utf8_lossy(bytes)
}

/// The text as the database writes it, for C. Text of SQL has no NUL in it; what would follow one is cut off.
///
/// Must run in a transaction. Raises when the database's encoding lacks a character.
pub(crate) fn in_server_encoding(text: &str) -> CString {
    let text = text.split('\0').next().unwrap_or_default();
    let bytes = if must_be_converted() && !text.is_ascii() {
        let length = text.len() as i32;
        // SAFETY: reads `length` bytes and returns a palloc'd string that ends in NUL, or the same pointer.
        unsafe {
            let converted = pg_sys::pg_any_to_server(text.as_ptr().cast(), length, pg_enc::PG_UTF8 as i32);
            if converted.cast_const().cast() == text.as_ptr() {
                text.as_bytes()
            } else {
                std::ffi::CStr::from_ptr(converted).to_bytes()
            }
        }
    } else {
        text.as_bytes()
    };
    CString::new(bytes).unwrap_or_default()
}

/// A text that came from outside in the encoding of this database, as a value of type `text` holds it: `?` stands for what
/// that encoding does not have, and for NUL. Must run in a transaction.
pub(crate) fn encoded(text: &str) -> Vec<u8> {
    let text: String =
        text.chars().map(|letter| if letter != '\0' && fits(letter) { letter } else { '?' }).collect();
    if !must_be_converted() || text.is_ascii() {
        return text.into_bytes();
    }
    // SAFETY: reads as many bytes as it is told and returns a palloc'd string that ends in NUL, or the same pointer.
    unsafe {
        let length = text.len() as i32;
        let converted = pg_sys::pg_any_to_server(text.as_ptr().cast(), length, pg_enc::PG_UTF8 as i32);
        if converted.cast_const().cast() == text.as_ptr() {
            return text.into_bytes();
        }
        std::ffi::CStr::from_ptr(converted).to_bytes().to_vec()
    }
}

/// A text as an error of Postgres may hold it, where nothing converts what Rust says: in a database whose encoding is not
/// UTF-8, ASCII only.
pub(crate) fn in_error(text: String) -> String {
    if !must_be_converted() || text.is_ascii() {
        return text;
    }
    text.chars().map(|letter| if letter.is_ascii() { letter } else { '?' }).collect()
}

/// The text of a column of type `cstring`, as `nameout` gives it of a name. pgrx refuses to read text that is not UTF-8.
pub(crate) fn column(
    row: &pgrx::spi::SpiHeapTupleData<'_>,
    column: usize,
) -> pgrx::spi::Result<Option<String>> {
    Ok(row.get::<&std::ffi::CStr>(column)?.map(|text| utf8(text.to_bytes()).into_owned()))
}

/// Whether this database's encoding has the character. Must run in a transaction.
pub(crate) fn fits(letter: char) -> bool {
    if letter.is_ascii() || !must_be_converted() {
        return true;
    }
    let mut source = [0; 4];
    let length = letter.encode_utf8(&mut source).len();
    // Four times as long it may become at most, and a NUL follows (`MAX_CONVERSION_GROWTH`).
    let mut target = [0; 4 * 4 + 1];
    // SAFETY: the conversion reads and writes no more than it is told; with `noError` it stops at what it cannot convert,
    // and tells how much of the source it has used.
    unsafe {
        let encoding = pg_sys::GetDatabaseEncoding();
        let conversion = pg_sys::FindDefaultConversionProc(pg_enc::PG_UTF8 as i32, encoding);
        let used = pg_sys::pg_do_encoding_conversion_buf(
            conversion,
            pg_enc::PG_UTF8 as i32,
            encoding,
            source.as_mut_ptr(),
            length as i32,
            target.as_mut_ptr(),
            target.len() as i32,
            true,
        );
        used == length as i32
    }
}

/// A name out of a catalog.
pub(crate) fn name(name: &pg_sys::NameData) -> String {
    // SAFETY: a name is a C string within its 64 bytes.
    unsafe { utf8(std::ffi::CStr::from_ptr(name.data.as_ptr()).to_bytes()).into_owned() }
}

/// Whether the database's encoding has other bytes than UTF-8 for what is not ASCII, and a conversion to it.
pub(crate) fn must_be_converted() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        // SAFETY: only reads a static of the process, which is connected to one database for life.
        let encoding = unsafe { pg_sys::GetDatabaseEncoding() } as u32;
        encoding != pg_enc::PG_UTF8 && encoding != pg_enc::PG_SQL_ASCII
    })
}
