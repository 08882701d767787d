//! `pgwh.url_encode`: a value as a segment of a URL's path, for routes.

use pgrx::prelude::*;

use crate::decode::text::Text;
use crate::event::path_segment;

/// The text, percent-encoded as UTF-8.
#[pg_extern(sql = false)]
fn url_encode(value: Text) -> Text {
    Text(path_segment(&value.0).to_string())
}
