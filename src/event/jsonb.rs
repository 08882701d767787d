//! JSON that `jsonb` takes. It refuses some that `json` holds and receivers get: characters that the database has no bytes
//! for, half surrogate pairs, and numbers that `numeric` cannot hold (src/backend/utils/adt/jsonb.c).

use std::borrow::Cow;

/// The most digits before the point of a `numeric` and behind it (`NUMERIC_WEIGHT_MAX`, `NUMERIC_DSCALE_MAX`).
const MOST_DIGITS: (i64, i64) = (131_072, 16_383);

/// The JSON text with replacements for what `jsonb` refuses: U+FFFD, or `?`, for characters that are none or do not fit
/// into the database, a string for a number too large. `fits` tells of a character whether the database's encoding has it.
pub fn acceptable(json: &[u8], fits: impl Fn(char) -> bool) -> Cow<'_, [u8]> {
    let mut out = Vec::new();
    // All before it is in `out`, or nothing is yet.
    let mut copied = 0;
    let mut at = 0;
    let mut in_string = false;
    while let Some(&byte) = json.get(at) {
        let start = at;
        match byte {
            b'"' => {
                in_string = !in_string;
                at += 1;
                continue;
            }
            b'\\' if json.get(at + 1) != Some(&b'u') => {
                at += 2;
                continue;
            }
            b'\\' => {
                let (letter, length) = escaped(&json[at..]);
                at += length;
                if letter.is_some_and(|letter| letter.is_ascii() && letter != '\0') {
                    continue;
                }
                out.extend_from_slice(&json[copied..start]);
                let wanted = letter.filter(|letter| *letter != '\0' && fits(*letter));
                let replacement =
                    if fits(char::REPLACEMENT_CHARACTER) { char::REPLACEMENT_CHARACTER } else { '?' };
                let letter = wanted.unwrap_or(replacement);
                out.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
            }
            b'-' | b'0'..=b'9' if !in_string => {
                let rest = &json[at..];
                let end =
                    rest.iter().position(|byte| !b"+-.eE0123456789".contains(byte)).unwrap_or(rest.len());
                at += end;
                if is_numeric(&rest[..end]) {
                    continue;
                }
                out.extend_from_slice(&json[copied..start]);
                out.push(b'"');
                out.extend_from_slice(&rest[..end]);
                out.push(b'"');
            }
            _ => {
                at += 1;
                continue;
            }
        }
        copied = at;
    }
    if copied == 0 {
        return Cow::Borrowed(json);
    }
    out.extend_from_slice(&json[copied..]);
    Cow::Owned(out)
}

/// The character that an escape at the beginning stands for, none for half a pair, and how many bytes that takes.
fn escaped(json: &[u8]) -> (Option<char>, usize) {
    let unit = |json: &[u8]| {
        let digits = json.strip_prefix(b"\\u")?.get(..4)?;
        u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    let Some(first) = unit(json) else { return (None, 2) };
    let units = [first, unit(json.get(6..).unwrap_or_default()).unwrap_or(0)];
    match char::decode_utf16(units).next() {
        Some(Ok(letter)) => (Some(letter), 6 * letter.len_utf16()),
        _ => (None, 6),
    }
}

/// Whether `numeric` holds a JSON number with all its digits.
fn is_numeric(number: &[u8]) -> bool {
    if number.len() < 100 && !number.iter().any(|byte| matches!(byte, b'e' | b'E')) {
        return true;
    }
    let text = String::from_utf8_lossy(number);
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((&text, "0"));
    let Ok(exponent) = exponent.parse::<i64>() else { return false };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let (before, behind) = (whole.len() as i64, fraction.len() as i64);
    before.saturating_add(exponent) <= MOST_DIGITS.0 && behind.saturating_sub(exponent) <= MOST_DIGITS.1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn accepted(json: &str, fits: impl Fn(char) -> bool) -> String {
        String::from_utf8(acceptable(json.as_bytes(), fits).into_owned()).unwrap()
    }

    #[test]
    fn what_jsonb_takes_is_left_as_it_is() {
        let json =
            r#" {"a\\u0000\"\n": [1, -2.50, 1e5, 1E-400, "\u0041\\ud800", "12345e99999999"], "ż": null} "#;
        assert!(
            matches!(acceptable(json.as_bytes(), |_| true), Cow::Borrowed(same) if same == json.as_bytes())
        );
    }

    #[test]
    fn characters_that_no_text_has_are_replaced() {
        let all = |_| true;
        assert_eq!(accepted(r#""a\u0000\\\u0000""#, all), "\"a\u{fffd}\\\\\u{fffd}\"");
        assert_eq!(
            accepted(r#"["\ud800","\ud83d\ude00\udc00","\ud83dx"]"#, all),
            "[\"\u{fffd}\",\"😀\u{fffd}\",\"\u{fffd}x\"]"
        );
        assert_eq!(accepted(r#""\u00e9\u0105\u0000""#, |letter| letter <= 'ÿ'), "\"é??\"");
    }

    #[test]
    fn numbers_that_numeric_cannot_hold_become_strings() {
        let all = |_| true;
        assert_eq!(accepted("[1e131071, 1e131072]", all), "[1e131071, \"1e131072\"]");
        assert_eq!(accepted("-1E-16384", all), "\"-1E-16384\"");
        assert_eq!(accepted("{\"a\":1e99999999999999999999}", all), "{\"a\":\"1e99999999999999999999\"}");
        let long = format!("0.{}", "1".repeat(16_384));
        assert_eq!(accepted(&long, all), format!("\"{long}\""));
        assert_eq!(accepted(&long[..16_385], all), long[..16_385]);
    }

    proptest! {
        #![proptest_config(crate::proptest_config::config(256))]

        #[test]
        fn any_bytes_are_taken(json in prop::collection::vec(prop::sample::select(&b"\\u\"dD8c0e1-.,[ n"[..]), 0..40)) {
            let _ = acceptable(&json, |letter| letter.is_ascii());
        }
    }
}
