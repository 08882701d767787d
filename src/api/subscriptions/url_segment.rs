//! `pgwh.url_encode`: a value as a segment of a URL's path, for routes.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::error::Error;
use crate::event::path_segment;
use crate::pg::values::detoasted_arg::Stored;
use crate::pg::values::encoding::{Text, must_be_converted};

/// Bytes that a value of type `text` may have (`MaxAllocSize`, less its header).
const MAX_TEXT_BYTES: usize = 0x3fff_ffff - pg_sys::VARHDRSZ;

/// The text, percent-encoded as UTF-8; the bytes as they are where the database has no encoding, so that no two values make
/// the same segment.
#[pg_extern(sql = false)]
fn url_encode(value: Stored) -> Result<Text, ErrorReport> {
    let converted = must_be_converted().then(|| value.text());
    let segment = path_segment(converted.as_deref().map_or(value.bytes(), str::as_bytes));
    let length = segment.clone().map(str::len).sum();
    if length > MAX_TEXT_BYTES {
        return Err(Error::SegmentTooLong(length).into());
    }
    let mut text = String::with_capacity(length);
    text.extend(segment);
    Ok(Text(text))
}
