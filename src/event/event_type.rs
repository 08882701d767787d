//! The kinds of change that a subscription asks for. Pure.

use std::collections::BTreeSet;

use super::message_auth;

/// The words as they are stored, in the order in which they are stored. The first are those of changes of rows.
const WORDS: [&str; 8] = ["insert", "update", "delete", "truncate", "ddl", "message", "read", "system"];
const OF_ROWS: usize = 4;

/// What stands before the prefix of other applications' messages.
pub const MESSAGE_PREFIX: &str = "message:";

/// A word that names no kind of change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownEventType {
    /// The word as it was typed.
    pub word: String,
    /// Whether it asks for messages of a prefix that is none.
    pub no_prefix: bool,
}

/// Those of changes of rows, which are the default.
pub fn all() -> Vec<String> {
    WORDS[..OF_ROWS].iter().map(|word| (*word).to_owned()).collect()
}

/// Brings words and letters (`I U D T`), in any case and order, into the stored form: each word once, and behind them
/// the prefixes of messages (`message:<prefix>`), spelled as they are.
pub fn normalise<S: AsRef<str>>(typed: &[S]) -> Result<Vec<String>, UnknownEventType> {
    let mut wanted = [false; WORDS.len()];
    let mut prefixes = BTreeSet::new();
    for word in typed {
        let word = word.as_ref().trim();
        let unknown = |no_prefix| UnknownEventType { word: word.to_owned(), no_prefix };
        if let Some(prefix) = prefix_of(word) {
            // What we write ourselves goes to those who ask for what it says.
            if prefix.is_empty() || message_auth::Kind::of_prefix(prefix).is_some() {
                return Err(unknown(true));
            }
            prefixes.insert(format!("{MESSAGE_PREFIX}{prefix}"));
            continue;
        }
        let lower = word.to_ascii_lowercase();
        // Each of the first begins with its letter.
        let is_known =
            |(index, known): (usize, &&str)| **known == lower || (index < OF_ROWS && known[..1] == lower);
        let index = WORDS.iter().enumerate().position(is_known).ok_or_else(|| unknown(false))?;
        wanted[index] = true;
    }
    let words = WORDS.iter().zip(wanted).filter(|(_, wanted)| *wanted).map(|(word, _)| (*word).to_owned());
    Ok(words.chain(prefixes).collect())
}

/// Whether a word in its stored form asks for something else than rows.
pub fn is_more_than_rows(stored: &str) -> bool {
    ["ddl", "message", "system"].contains(&stored) || stored.starts_with(MESSAGE_PREFIX)
}

fn prefix_of(word: &str) -> Option<&str> {
    let (head, prefix) = word.split_at_checked(MESSAGE_PREFIX.len())?;
    head.eq_ignore_ascii_case(MESSAGE_PREFIX).then_some(prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_letters_are_stored_as_words_in_one_order() {
        assert_eq!(normalise(&["D", "Update", "i", "INSERT", "t"]).unwrap(), all());
        assert_eq!(
            normalise(&["System", "read", "DDL", "message", "t"]).unwrap(),
            ["truncate", "ddl", "message", "read", "system"]
        );
        assert_eq!(normalise(&["u"]).unwrap(), ["update"]);
    }

    #[test]
    fn an_unknown_word_is_named() {
        for word in ["upsert", "", "x", "ins", "m", "r"] {
            assert_eq!(
                normalise(&["I", word]),
                Err(UnknownEventType { word: word.into(), no_prefix: false })
            );
        }
    }

    #[test]
    fn prefixes_of_messages_are_stored_as_they_are_spelled() {
        let stored = normalise(&["Message:wal2json.Go", "message:a:b", "I", "message:a:b"]).unwrap();
        assert_eq!(stored, ["insert", "message:a:b", "message:wal2json.Go"]);
        for word in ["message:", "message:pgwh.emit", "message:pgwh.annotate", "message:pgwh.system"] {
            assert_eq!(normalise(&[word]), Err(UnknownEventType { word: word.into(), no_prefix: true }));
        }
    }
}
