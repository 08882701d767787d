//! Text as a segment of a URI's path (RFC 3986).

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, PercentEncode, percent_encode};

/// Unreserved characters (section 2.3), which need no encoding.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The text, percent-encoded: one segment, whatever characters the text has.
pub fn path_segment(text: &[u8]) -> PercentEncode<'_> {
    percent_encode(text, UNRESERVED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_but_unreserved_characters_are_encoded() {
        for (text, segment) in [
            ("", ""),
            ("AZaz09-._~", "AZaz09-._~"),
            ("A/B?x#y", "A%2FB%3Fx%23y"),
            ("100% ü 🙂\n", "100%25%20%C3%BC%20%F0%9F%99%82%0A"),
            (":@!$&'()*+,;=", "%3A%40%21%24%26%27%28%29%2A%2B%2C%3B%3D"),
            ("a\\b\"[]", "a%5Cb%22%5B%5D"),
        ] {
            assert_eq!(path_segment(text.as_bytes()).to_string(), segment);
        }
    }
}
