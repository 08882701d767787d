//! JSON text appended to a buffer, without a tree of values in between.

use crate::event::value::text::unquoted;
pub(super) use crate::event::value::{escaped, string, string_of};

/// Appends an integer.
pub(super) fn integer(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// Appends a text to a string whose quotes the caller writes.
pub(super) fn within_string(out: &mut Vec<u8>, text: &str) {
    escaped(out, text.as_bytes());
}

/// Appends a value to a string whose quotes the caller writes: the content of a string, and of what is none the JSON.
pub(super) fn value_within_string(out: &mut Vec<u8>, json: &[u8]) {
    match json {
        [b'"', content @ .., b'"'] if !content.contains(&b'\\') => out.extend_from_slice(content),
        _ => escaped(out, unquoted(json).as_bytes()),
    }
}

/// The members of an object or array, separated by commas: opened at the first, closed by [`List::end`].
pub(super) struct List {
    first: bool,
    close: u8,
}

impl List {
    pub(super) fn object(out: &mut Vec<u8>) -> Self {
        out.push(b'{');
        List { first: true, close: b'}' }
    }

    pub(super) fn array(out: &mut Vec<u8>) -> Self {
        out.push(b'[');
        List { first: true, close: b']' }
    }

    /// A string as the next element.
    pub(super) fn string(&mut self, out: &mut Vec<u8>, text: &str) {
        self.separate(out);
        string(out, text);
    }

    /// The name of the next member, whose value the caller writes.
    pub(super) fn name(&mut self, out: &mut Vec<u8>, name: &str) {
        self.string(out, name);
        out.push(b':');
    }

    /// The name of a column as that of the next member, whose value the caller writes: the column's head of a member.
    pub(super) fn column(&mut self, out: &mut Vec<u8>, head: &[u8]) {
        out.extend_from_slice(if std::mem::take(&mut self.first) {
            head.get(1..).unwrap_or_default()
        } else {
            head
        });
    }

    pub(super) fn end(self, out: &mut Vec<u8>) {
        out.push(self.close);
    }

    /// Before the next element, which the caller writes.
    pub(super) fn separate(&mut self, out: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.first, false) {
            out.push(b',');
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(crate::proptest_config::config(256))]

        #[test]
        fn any_text_becomes_a_string(text in prop_oneof![".*", "[\"\\\\/\\x00-\\x1f\\x7f é]*"]) {
            let mut out = Vec::new();
            string(&mut out, &text);
            prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
        }
    }
}
