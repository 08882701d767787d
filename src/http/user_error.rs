//! What is wrong with something a user typed, in words for that user.

use std::fmt;

/// A refusal in the three parts that a Postgres error has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// One sentence, lower case and without a full stop, as Postgres writes its messages.
    pub message: String,
    /// What the offending value was and which rule it breaks.
    pub detail: String,
    /// What to type instead.
    pub hint: String,
}

impl Problem {
    pub(super) fn new(
        message: impl Into<String>,
        detail: impl Into<String>,
        hint: impl Into<String>,
    ) -> Problem {
        Problem { message: message.into(), detail: detail.into(), hint: hint.into() }
    }

    /// What to type: the commands of the hint, where it has some, without the words before them.
    pub fn cure(&self) -> &str {
        self.hint.find("ALTER SYSTEM ").map_or(self.hint.as_str(), |start| &self.hint[start..])
    }
}

/// A text that a user typed, between quotes as SQL has them: as a literal with escapes if it has control characters.
pub fn quoted(text: &str) -> String {
    if !text.contains(char::is_control) {
        return format!("\"{text}\"");
    }
    let mut literal = "E'".to_owned();
    for char in text.chars() {
        match char {
            '\n' => literal.push_str("\\n"),
            '\r' => literal.push_str("\\r"),
            '\t' => literal.push_str("\\t"),
            '\'' => literal.push_str("''"),
            '\\' => literal.push_str("\\\\"),
            char if char.is_control() => literal.push_str(&format!("\\u{:04x}", u32::from(char))),
            char => literal.push(char),
        }
    }
    literal.push('\'');
    literal
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}. {} {}", self.message, self.detail, self.hint)
    }
}

impl std::error::Error for Problem {}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn a_text_is_quoted_as_sql_has_it() {
        assert_eq!(quoted("x-key"), "\"x-key\"");
        assert_eq!(quoted("it's \"ö\""), "\"it's \"ö\"\"");
        assert_eq!(quoted("it's\r\n\\\t\u{1}"), "E'it''s\\r\\n\\\\\\t\\u0001'");
    }
}
