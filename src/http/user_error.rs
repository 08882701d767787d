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

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}. {} {}", self.message, self.detail, self.hint)
    }
}

impl std::error::Error for Problem {}
