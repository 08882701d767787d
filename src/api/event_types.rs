//! The kinds of change that a subscription asks for. Pure.

/// The words as they are stored, in the order in which they are stored.
const WORDS: [&str; 4] = ["insert", "update", "delete", "truncate"];

/// Kinds of event that exist by name only.
const LATER: [&str; 3] = ["ddl", "message", "read"];

/// A word that names no kind of change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownEventType {
    /// The word as it was typed.
    pub word: String,
    /// Whether a later version will know it.
    pub later: bool,
}

/// All of them, which is the default.
pub fn all() -> Vec<String> {
    WORDS.map(str::to_owned).to_vec()
}

/// Brings words and letters (`I U D T`), in any case and order, into the stored form: each word once.
pub fn normalise<S: AsRef<str>>(typed: &[S]) -> Result<Vec<String>, UnknownEventType> {
    let mut wanted = [false; WORDS.len()];
    for word in typed {
        let lower = word.as_ref().trim().to_ascii_lowercase();
        // Each word begins with its letter.
        let found = WORDS.iter().position(|known| *known == lower || known[..1] == lower);
        match found {
            Some(index) => wanted[index] = true,
            None => {
                let later = LATER.contains(&lower.as_str());
                return Err(UnknownEventType { word: word.as_ref().to_owned(), later });
            }
        }
    }
    Ok(WORDS.iter().zip(wanted).filter(|(_, wanted)| *wanted).map(|(word, _)| (*word).to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_letters_are_stored_as_words_in_one_order() {
        assert_eq!(normalise(&["D", "Update", "i", "INSERT", "t"]).unwrap(), WORDS);
        assert_eq!(normalise(&["u"]).unwrap(), ["update"]);
    }

    #[test]
    fn an_unknown_word_is_named() {
        for word in ["upsert", "", "x", "ins"] {
            assert_eq!(normalise(&["I", word]), Err(UnknownEventType { word: word.into(), later: false }));
        }
        assert!(normalise(&["DDL"]).unwrap_err().later);
    }
}
