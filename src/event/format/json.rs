//! JSON text appended to a buffer, without a tree of values in between.

/// Appends an integer.
pub(super) fn integer(out: &mut Vec<u8>, value: u64) {
    // Writing to memory does not fail.
    let _ = serde_json::to_writer(out, &value);
}

/// Appends a string in its quotes.
pub(super) fn string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    within_string(out, text);
    out.push(b'"');
}

/// Appends a text to a string whose quotes the caller writes.
pub(super) fn within_string(out: &mut Vec<u8>, text: &str) {
    if text.bytes().all(|byte| byte >= b' ' && byte != b'"' && byte != b'\\') {
        out.extend_from_slice(text.as_bytes());
        return;
    }
    let start = out.len();
    // Writing to memory does not fail.
    let _ = serde_json::to_writer(&mut *out, text);
    out.remove(start);
    out.pop();
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

    /// The next member, whose value is JSON text already.
    pub(super) fn member(&mut self, out: &mut Vec<u8>, name: &str, value: &[u8]) {
        self.string(out, name);
        out.push(b':');
        out.extend_from_slice(value);
    }

    pub(super) fn end(self, out: &mut Vec<u8>) {
        out.push(self.close);
    }

    fn separate(&mut self, out: &mut Vec<u8>) {
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
        #![proptest_config(crate::fuzz::config(256))]

        #[test]
        fn any_text_becomes_a_string(text in prop_oneof![".*", "[\"\\\\/\\x00-\\x1f\\x7f é]*"]) {
            let mut out = Vec::new();
            string(&mut out, &text);
            prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
        }
    }
}
