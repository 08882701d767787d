//! Whether two JSON texts mean the same value of a key. Pure.

/// Whether they do: numbers by their value, whatever their length; all else as JSON compares.
pub fn same(one: &str, other: &str) -> bool {
    match (Decimal::parse(one), Decimal::parse(other)) {
        (Some(one), Some(other)) => one == other,
        (None, None) => {
            let parse = |text| serde_json::from_str::<serde_json::Value>(text).ok();
            one == other || parse(one).is_some_and(|one| parse(other) == Some(one))
        }
        _ => false,
    }
}

/// A number in the one way in which it has neither leading nor trailing zeros.
#[derive(PartialEq, Eq)]
struct Decimal {
    negative: bool,
    digits: String,
    exponent: i64,
}

impl Decimal {
    fn parse(text: &str) -> Option<Decimal> {
        let (negative, unsigned) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse().ok()?),
            None => (unsigned, 0i64),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let all = [whole, fraction].concat();
        if all.is_empty() || !all.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let significant = all.trim_end_matches('0');
        let exponent = exponent - fraction.len() as i64 + (all.len() - significant.len()) as i64;
        let digits = significant.trim_start_matches('0').to_owned();
        let zero = digits.is_empty();
        Some(Decimal { negative: negative && !zero, digits, exponent: if zero { 0 } else { exponent } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_same_by_value() {
        for (one, other) in [
            ("1", "1.0"),
            ("1.50", "1.5"),
            ("0", "-0.00"),
            ("100", "1e2"),
            ("0.001", "1E-3"),
            ("123456789012345678901234567890", "123456789012345678901234567890.0"),
        ] {
            assert!(same(one, other), "{one} {other}");
        }
        for (one, other) in [
            ("1", "10"),
            ("1", "-1"),
            ("0.1", "0.01"),
            ("123456789012345678901234567890", "123456789012345678901234567891"),
            ("1", "\"1\""),
        ] {
            assert!(!same(one, other), "{one} {other}");
        }
    }

    #[test]
    fn texts_are_the_same_however_they_are_written() {
        assert!(same(r#""é""#, r#""\u00e9""#));
        assert!(same(r#"{"a": 1, "b": [true, null]}"#, r#"{"b":[true,null],"a":1}"#));
        assert!(!same(r#""a""#, r#""A""#));
        assert!(!same("true", "\"true\""));
        assert!(!same("null", "false"));
    }
}
