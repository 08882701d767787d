//! JSON text appended to a buffer, without a tree of values in between.

pub(super) use crate::event::value::string;

/// Appends an integer.
pub(super) fn integer(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// Appends a text to a string whose quotes the caller writes.
pub(super) fn within_string(out: &mut Vec<u8>, text: &str) {
    let start = out.len();
    string(out, text);
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

    /// The name of the next member, whose value the caller writes.
    pub(super) fn name(&mut self, out: &mut Vec<u8>, name: &str) {
        self.string(out, name);
        out.push(b':');
    }

    /// The next member, whose value is JSON text already.
    pub(super) fn member(&mut self, out: &mut Vec<u8>, name: &str, value: &[u8]) {
        self.name(out, name);
        out.extend_from_slice(value);
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
        #![proptest_config(crate::fuzz::config(256))]

        #[test]
        fn any_text_becomes_a_string(text in prop_oneof![".*", "[\"\\\\/\\x00-\\x1f\\x7f é]*"]) {
            let mut out = Vec::new();
            string(&mut out, &text);
            prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
        }
    }
}
