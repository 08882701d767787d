//! The JSON text of single values, looking as Postgres' `to_json` writes them under `TimeZone = 'UTC'`.
//!
//! Only what needs no server is in here: each function takes a value's bytes or number as Postgres stores it
//! and appends JSON to a buffer. `decode::value` chooses among them by type.

pub mod hstore;
pub mod numeric;
pub mod text;
pub mod time;

/// Appends `text` as a JSON string, escaped as `escape_json` does (src/backend/utils/adt/json.c).
#[inline]
pub fn string(out: &mut Vec<u8>, text: &str) {
    string_of(out, text.as_bytes());
}

/// The same of a text that is known to be UTF-8.
#[inline]
pub fn string_of(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    escaped(out, text);
    out.push(b'"');
}

/// What stands between the quotes.
pub fn escaped(out: &mut Vec<u8>, text: &[u8]) {
    let mut rest = text;
    loop {
        let plain = plain_length(rest);
        out.extend_from_slice(&rest[..plain]);
        let Some(&byte) = rest.get(plain) else { break };
        escape(out, byte);
        rest = &rest[plain + 1..];
    }
}

/// Appends the text of a `bytea`: `"\x…"`, in hexadecimal.
pub fn bytea(out: &mut Vec<u8>, bytes: &[u8]) {
    out.reserve(bytes.len() * 2 + 5);
    out.extend_from_slice(b"\"\\\\x");
    hex(out, bytes);
    out.push(b'"');
}

/// Appends a `uuid` in groups of 8, 4, 4, 4 and 12 digits.
pub fn uuid(out: &mut Vec<u8>, bytes: &[u8; 16]) {
    let mut text = *b"\"00000000-0000-0000-0000-000000000000\"";
    let mut place = 1;
    for (at, &byte) in bytes.iter().enumerate() {
        place += usize::from(matches!(at, 4 | 6 | 8 | 10));
        text[place..place + 2].copy_from_slice(&hex_digits(byte));
        place += 2;
    }
    out.extend_from_slice(&text);
}

fn hex(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend(bytes.iter().flat_map(|&byte| hex_digits(byte)));
}

fn hex_digits(byte: u8) -> [u8; 2] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]
}

fn must_be_escaped(byte: u8) -> bool {
    (byte < b' ') | (byte == b'"') | (byte == b'\\')
}

/// Whether one of eight bytes must be escaped, looked at together.
fn any_must_be_escaped(bytes: [u8; 8]) -> bool {
    const fn each(byte: u8) -> u64 {
        u64::from_le_bytes([byte; 8])
    }
    // The highest bit of some byte is set if a byte is below `limit` (Bit Twiddling Hacks, "hasless").
    let below = |word: u64, limit: u8| word.wrapping_sub(each(limit)) & !word & each(0x80);
    let word = u64::from_le_bytes(bytes);
    below(word, b' ') | below(word ^ each(b'"'), 1) | below(word ^ each(b'\\'), 1) != 0
}

/// How many bytes stand before the first that must be escaped.
fn plain_length(bytes: &[u8]) -> usize {
    let (words, tail) = bytes.as_chunks();
    let whole = words.iter().take_while(|word| !any_must_be_escaped(**word)).count() * 8;
    // The last eight bytes overlap with those before, which costs less than to go through the tail.
    let is_plain = whole == bytes.len() - tail.len()
        && bytes.last_chunk().is_some_and(|last| !any_must_be_escaped(*last));
    if is_plain {
        return bytes.len();
    }
    let rest = &bytes[whole..];
    whole + rest.iter().position(|&byte| must_be_escaped(byte)).unwrap_or(rest.len())
}

fn escape(out: &mut Vec<u8>, byte: u8) {
    let short = match byte {
        0x08 => b'b',
        0x0c => b'f',
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        b'"' | b'\\' => byte,
        _ => {
            out.extend_from_slice(b"\\u00");
            return hex(out, &[byte]);
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_character_survives_at_every_place() {
        for length in 0..40 {
            for place in 0..length {
                for byte in 0..=0x7fu8 {
                    let mut text = vec![b'x'; length];
                    text[place] = byte;
                    let text = String::from_utf8(text).unwrap();
                    let json = written(|out| string(out, &text));
                    assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
                    assert_eq!(json, serde_json::to_string(&text).unwrap());
                }
            }
        }
    }

    #[test]
    fn text_beyond_ascii_is_left_as_it_is() {
        assert_eq!(written(|out| string(out, "żółw 🐢 \u{7f}\u{2028}")), "\"żółw 🐢 \u{7f}\u{2028}\"");
    }

    #[test]
    fn bytes_are_hexadecimal() {
        assert_eq!(written(|out| bytea(out, b"\x00\xff\x1a")), r#""\\x00ff1a""#);
        assert_eq!(written(|out| bytea(out, b"")), r#""\\x""#);
    }

    #[test]
    fn uuids_are_grouped() {
        let bytes = *b"\xa0\xee\xbc\x99\x9c\x0b\x4e\xf8\xbb\x6d\x6b\xb9\xbd\x38\x0a\x11";
        assert_eq!(written(|out| uuid(out, &bytes)), "\"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11\"");
    }

    proptest! {
        #![proptest_config(crate::proptest_config::config(256))]

        #[test]
        fn any_text_is_the_string_that_others_make_of_it(text in prop_oneof![".{0,60}", "[\"\\\\\\x00-\\x20\\x7fé🐢]{0,60}"]) {
            let json = written(|out| string(out, &text));
            prop_assert_eq!(&json, &serde_json::to_string(&text).unwrap());
            prop_assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        }

        #[test]
        fn any_bytes_come_back(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let text: String = serde_json::from_str(&written(|out| bytea(out, &bytes))).unwrap();
            let digits = text.strip_prefix("\\x").unwrap();
            let read: Vec<u8> =
                (0..digits.len() / 2).map(|at| u8::from_str_radix(&digits[at * 2..][..2], 16).unwrap()).collect();
            prop_assert_eq!(read, bytes);
        }

        #[test]
        fn any_uuid_comes_back(bytes: [u8; 16]) {
            let text: String = serde_json::from_str(&written(|out| uuid(out, &bytes))).unwrap();
            prop_assert_eq!(u128::from_str_radix(&text.replace('-', ""), 16).unwrap(), u128::from_be_bytes(bytes));
        }
    }
}
