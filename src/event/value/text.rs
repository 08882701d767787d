//! Postgres' own text of a value, made from its JSON: what the type's output function gives under UTC, ISO dates and
//! hexadecimal `bytea`.
//!
//! JSON says less than the text in two places: an array's bounds are taken to begin at 1, and an array of `json` to have
//! one dimension. What is not JSON of the kind that is told (it was damaged, or the type altered meanwhile) stays as it is.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::event::Kind;

/// Appends the text of a value that is not null.
pub fn text(out: &mut Vec<u8>, kind: &Kind, json: &[u8]) {
    match kind {
        Kind::Text | Kind::Number | Kind::Numeric | Kind::Oid | Kind::Bytea => {
            out.extend_from_slice(unquoted(json).as_bytes());
        }
        Kind::Boolean => out.extend(json.first()),
        Kind::Timestamp | Kind::Timestamptz => sql_time(out, unquoted(json).as_bytes()),
        Kind::Json => out.extend_from_slice(json),
        Kind::Hstore => match pairs(json) {
            Some(pairs) => hstore(out, &pairs),
            None => out.extend_from_slice(json),
        },
        Kind::Array { element, delimiter } => match elements(json) {
            Some(elements) => array(out, &elements, element, *delimiter),
            None => out.extend_from_slice(json),
        },
        Kind::Composite(fields) => match pairs(json) {
            Some(pairs) => composite(out, &pairs, fields),
            None => out.extend_from_slice(json),
        },
    }
}

/// The content of a JSON string, and of what is none the JSON itself.
pub fn unquoted(json: &[u8]) -> Cow<'_, str> {
    if let [b'"', plain @ .., b'"'] = json
        && !plain.contains(&b'\\')
    {
        return String::from_utf8_lossy(plain);
    }
    if json.first() == Some(&b'"')
        && let Ok(content) = serde_json::from_slice::<String>(json)
    {
        return Cow::Owned(content);
    }
    String::from_utf8_lossy(json)
}

/// Appends ISO 8601 as `timestamp_out` and `timestamptz_out` have it (`EncodeDateTime` in
/// src/backend/utils/adt/datetime.c): a blank for the `T`, and of the zone the hours.
pub fn sql_time(out: &mut Vec<u8>, iso: &[u8]) {
    const UTC: &[u8] = b"+00:00";
    let Some(date) = iso.iter().position(|byte| *byte == b'T') else { return out.extend_from_slice(iso) };
    let (date, time) = (&iso[..date], &iso[date + 1..]);
    out.extend_from_slice(date);
    out.push(b' ');
    match time.windows(UTC.len()).position(|zone| zone == UTC) {
        Some(zone) => {
            out.extend_from_slice(&time[..zone]);
            out.extend_from_slice(b"+00");
            out.extend_from_slice(&time[zone + UTC.len()..]);
        }
        None => out.extend_from_slice(time),
    }
}

/// The elements of a JSON array.
pub fn elements(json: &[u8]) -> Option<Vec<&RawValue>> {
    serde_json::from_slice(json).ok()
}

/// The members of a JSON object, in order.
pub fn pairs(json: &[u8]) -> Option<Vec<(Cow<'_, str>, &RawValue)>> {
    serde_json::Deserializer::from_slice(json).deserialize_map(Pairs).ok()
}

struct Pairs;

impl<'de> Visitor<'de> for Pairs {
    type Value = Vec<(Cow<'de, str>, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut pairs = Vec::new();
        while let Some((name, value)) = map.next_entry::<Name<'de>, _>()? {
            pairs.push((name.0, value));
        }
        Ok(pairs)
    }
}

/// A member's name, borrowed where it has no escapes.
#[derive(serde::Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

const NULL: &str = "null";

/// As `array_out` writes it (src/backend/utils/adt/arrayfuncs.c).
fn array(out: &mut Vec<u8>, elements: &[&RawValue], kind: &Kind, delimiter: u8) {
    let mut text_of_one = Vec::new();
    out.push(b'{');
    for (at, element) in elements.iter().map(|element| element.get()).enumerate() {
        if at > 0 {
            out.push(delimiter);
        }
        if element == NULL {
            out.extend_from_slice(b"NULL");
            continue;
        }
        // Of elements that are arrays themselves it cannot be told, so they are taken for elements.
        if !matches!(kind, Kind::Json | Kind::Array { .. })
            && let Some(inner) =
                element.starts_with('[').then(|| self::elements(element.as_bytes())).flatten()
        {
            array(out, &inner, kind, delimiter);
            continue;
        }
        text_of_one.clear();
        text(&mut text_of_one, kind, element.as_bytes());
        let special = |byte: &u8| *byte == delimiter || is_space(byte) || b"\"\\{}".contains(byte);
        if text_of_one.is_empty()
            || text_of_one.eq_ignore_ascii_case(b"null")
            || text_of_one.iter().any(special)
        {
            quoted(out, &text_of_one, |byte| (byte == b'"' || byte == b'\\').then_some(b'\\'));
        } else {
            out.extend_from_slice(&text_of_one);
        }
    }
    out.push(b'}');
}

/// As `record_out` writes it (src/backend/utils/adt/rowtypes.c).
fn composite(out: &mut Vec<u8>, pairs: &[(Cow<'_, str>, &RawValue)], fields: &[(String, Kind)]) {
    let mut text_of_one = Vec::new();
    out.push(b'(');
    for (at, (name, value)) in pairs.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        if value.get() == NULL {
            continue;
        }
        text_of_one.clear();
        text(&mut text_of_one, Kind::field(fields, name), value.get().as_bytes());
        let special = |byte: &u8| is_space(byte) || b"\"\\(),".contains(byte);
        if text_of_one.is_empty() || text_of_one.iter().any(special) {
            quoted(out, &text_of_one, |byte| (byte == b'"' || byte == b'\\').then_some(byte));
        } else {
            out.extend_from_slice(&text_of_one);
        }
    }
    out.push(b')');
}

/// As `hstore_out` writes it (contrib/hstore/hstore_io.c).
fn hstore(out: &mut Vec<u8>, pairs: &[(Cow<'_, str>, &RawValue)]) {
    let escape = |byte| (byte == b'"' || byte == b'\\').then_some(b'\\');
    for (at, (key, value)) in pairs.iter().enumerate() {
        if at > 0 {
            out.extend_from_slice(b", ");
        }
        quoted(out, key.as_bytes(), escape);
        out.extend_from_slice(b"=>");
        match value.get() {
            NULL => out.extend_from_slice(b"NULL"),
            value => quoted(out, unquoted(value.as_bytes()).as_bytes(), escape),
        }
    }
}

/// Appends a text in double quotes; what must not stand bare in there has a byte put before it.
fn quoted(out: &mut Vec<u8>, text: &[u8], before: impl Fn(u8) -> Option<u8>) {
    out.push(b'"');
    for &byte in text {
        out.extend(before(byte));
        out.push(byte);
    }
    out.push(b'"');
}

/// What `array_isspace` and `isspace` of the C locale call so.
fn is_space(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ipc::frame::tests::any_kind;

    fn text_of(kind: &Kind, json: &str) -> String {
        let mut out = Vec::new();
        text(&mut out, kind, json.as_bytes());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn single_values_are_as_their_types_print_them() {
        for (kind, json, expected) in [
            (Kind::Text, r#""a \"b\"\n""#, "a \"b\"\n"),
            (Kind::Text, r#""""#, ""),
            (Kind::Boolean, "true", "t"),
            (Kind::Boolean, "false", "f"),
            (Kind::Number, "-1.5e+20", "-1.5e+20"),
            (Kind::Number, r#""NaN""#, "NaN"),
            (Kind::Numeric, "12.50", "12.50"),
            (Kind::Oid, r#""16385""#, "16385"),
            (Kind::Bytea, r#""\\x00ff""#, r"\x00ff"),
            (Kind::Timestamp, r#""2026-11-20T09:00:47.5""#, "2026-11-20 09:00:47.5"),
            (Kind::Timestamptz, r#""2026-11-20T09:00:47.5+00:00""#, "2026-11-20 09:00:47.5+00"),
            (Kind::Timestamptz, r#""0001-12-31T00:00:00+00:00 BC""#, "0001-12-31 00:00:00+00 BC"),
            (Kind::Timestamptz, r#""-infinity""#, "-infinity"),
            (Kind::Json, r#"{"a" : 1}"#, r#"{"a" : 1}"#),
            (Kind::Hstore, r#"{"a": "1", "b\"": null}"#, r#""a"=>"1", "b\""=>NULL"#),
            (Kind::Hstore, "{}", ""),
        ] {
            assert_eq!(text_of(&kind, json), expected, "{kind:?}");
        }
    }

    /// What `SELECT '…'::type[]` prints.
    #[test]
    fn arrays_are_as_array_out_prints_them() {
        let boxes = Kind::Array { element: Box::new(Kind::Text), delimiter: b';' };
        for (kind, json, expected) in [
            (Kind::array(Kind::Number), "[]", "{}"),
            (Kind::array(Kind::Number), "[1,null,-3]", "{1,NULL,-3}"),
            (Kind::array(Kind::Number), "[[1,2],[3,4]]", "{{1,2},{3,4}}"),
            (Kind::array(Kind::Boolean), "[true,false]", "{t,f}"),
            (
                Kind::array(Kind::Text),
                r#"["a","","null","Null","b c","d,e","f\"g","h\\i","{j}","k\u000bl"]"#,
                "{a,\"\",\"null\",\"Null\",\"b c\",\"d,e\",\"f\\\"g\",\"h\\\\i\",\"{j}\",\"k\u{b}l\"}",
            ),
            (Kind::array(Kind::Bytea), r#"["\\x00ff"]"#, r#"{"\\x00ff"}"#),
            (
                Kind::array(Kind::Timestamptz),
                r#"["2026-11-20T09:00:47+00:00"]"#,
                r#"{"2026-11-20 09:00:47+00"}"#,
            ),
            (Kind::array(Kind::Json), r#"[{"a": [1]},[2]]"#, r#"{"{\"a\": [1]}",[2]}"#),
            (boxes, r#"["(1,1),(0,0)","(2,2),(1,1)"]"#, "{(1,1),(0,0);(2,2),(1,1)}"),
        ] {
            assert_eq!(text_of(&kind, json), expected, "{kind:?}");
        }
    }

    #[test]
    fn composites_are_as_record_out_prints_them() {
        let kind = Kind::Composite(vec![
            ("a".into(), Kind::Number),
            ("b".into(), Kind::Text),
            ("c".into(), Kind::array(Kind::Number)),
            ("d".into(), Kind::Boolean),
        ]);
        for (json, expected) in [
            (r#"{"a":1,"b":"x","c":[1,2],"d":true}"#, r#"(1,x,"{1,2}",t)"#),
            (r#"{"a":null,"b":"","c":null,"d":null}"#, r#"(,"",,)"#),
            (r#"{"a":1,"b":"a \"b\" \\ (c)","c":[],"d":false}"#, r#"(1,"a ""b"" \\ (c)",{},f)"#),
            (r#"{"a":1,"later":2}"#, "(1,2)"),
        ] {
            assert_eq!(text_of(&kind, json), expected);
        }
        assert_eq!(text_of(&Kind::array(kind), r#"[{"a":1,"b":"x y"}]"#), r#"{"(1,\"x y\")"}"#);
    }

    proptest! {
        #[test]
        fn any_bytes_have_a_text(kind in any_kind(), json in "[\\[\\]{}\",:a1 \\\\]{0,40}") {
            text(&mut Vec::new(), &kind, json.as_bytes());
        }

        /// Reading the array back by the rules of `array_in` gives the texts it was made of.
        #[test]
        fn no_element_is_lost_in_an_array(texts in prop::collection::vec("[a{}\"\\\\, \tnul]{0,6}", 1..6)) {
            let json = serde_json::to_string(&texts).unwrap();
            let array = text_of(&Kind::array(Kind::Text), &json);
            prop_assert_eq!(read_array(&array), texts);
        }
    }

    fn read_array(array: &str) -> Vec<String> {
        let mut characters = array.strip_prefix('{').unwrap().strip_suffix('}').unwrap().chars();
        let (mut elements, mut element, mut is_quoted) = (Vec::new(), String::new(), false);
        while let Some(character) = characters.next() {
            match character {
                '"' => is_quoted = !is_quoted,
                '\\' => element.extend(characters.next()),
                ',' if !is_quoted => elements.push(std::mem::take(&mut element)),
                other => element.push(other),
            }
        }
        elements.push(element);
        elements
    }
}
