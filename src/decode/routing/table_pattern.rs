//! Patterns of tables: `schema.table`, with `*` for any run of characters, and quotes as in SQL.

use std::fmt;
use std::iter::Peekable;
use std::str::Chars;

use crate::event::TableName;

/// A pattern of qualified table names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TablePattern {
    /// The schema.
    pub schema: NamePattern,
    /// The table.
    pub table: NamePattern,
}

/// What a user wrote: qualified, or a bare table to be looked up in the search path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParsedPattern {
    /// `schema.table`
    Qualified(TablePattern),
    /// `table`
    Bare(NamePattern),
}

/// A pattern of one name: literal pieces with a wildcard between each two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePattern(Vec<String>);

/// Why a text is no pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatternError {
    /// A name is missing.
    Empty,
    /// A quote is not closed.
    OpenQuote,
    /// There are more than a schema and a table.
    TooManyParts,
    /// Something follows a closing quote that is neither a dot nor the end.
    AfterQuote,
    /// A quote stands within a name.
    QuoteInside,
    /// A blank or comma stands between or within names: several patterns in one, or a name that needs quotes.
    Separator,
    /// A name is longer than any table's.
    TooLong,
}

/// The longest name that a table or schema can have, in bytes.
const MAX_NAME_BYTES: usize = 63;

impl fmt::Display for PatternError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PatternError::Empty => "a name is missing",
            PatternError::OpenQuote => "a quote is not closed",
            PatternError::TooManyParts => "there are more than a schema and a table",
            PatternError::AfterQuote => "something follows a closing quote",
            PatternError::QuoteInside => "a double quote stands within a name",
            PatternError::Separator => "a blank or comma stands outside of double quotes",
            PatternError::TooLong => "a name is longer than 63 bytes, which no name in Postgres is",
        })
    }
}

impl std::error::Error for PatternError {}

impl TablePattern {
    /// Reads a qualified pattern, as it is stored.
    pub fn parse(text: &str) -> Result<TablePattern, PatternError> {
        match ParsedPattern::parse(text)? {
            ParsedPattern::Qualified(pattern) => Ok(pattern),
            ParsedPattern::Bare(_) => Err(PatternError::Empty),
        }
    }

    /// The pattern that only a table of this name matches.
    pub fn exactly(name: &TableName) -> TablePattern {
        TablePattern { schema: NamePattern::exactly(&name.schema), table: NamePattern::exactly(&name.table) }
    }

    /// Whether it matches a table of that name.
    pub fn matches(&self, name: &TableName) -> bool {
        self.schema.matches(&name.schema) && self.table.matches(&name.table)
    }

    /// Whether it leads to a table of that name: wildcards lead to users' tables only.
    pub fn leads_to(&self, name: &TableName, is_user_table: bool) -> bool {
        (is_user_table || self.literal().is_some()) && self.matches(name)
    }

    /// The one table it names, when it has no wildcard.
    pub fn literal(&self) -> Option<(&str, &str)> {
        Some((self.schema.literal()?, self.table.literal()?))
    }
}

impl fmt::Display for TablePattern {
    /// The stored spelling.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.table)
    }
}

impl ParsedPattern {
    /// Reads what a user wrote. Unquoted ASCII letters fold to lower case and `*` is a wildcard; between double quotes
    /// every character stands for itself, as in an SQL identifier.
    pub fn parse(text: &str) -> Result<ParsedPattern, PatternError> {
        let mut characters = text.trim().chars().peekable();
        let first = NamePattern::read(&mut characters)?;
        if characters.next().is_none() {
            return Ok(ParsedPattern::Bare(first));
        }
        let table = NamePattern::read(&mut characters)?;
        match characters.next() {
            None => Ok(ParsedPattern::Qualified(TablePattern { schema: first, table })),
            Some(_) => Err(PatternError::TooManyParts),
        }
    }
}

impl NamePattern {
    /// The pattern that only this name matches.
    pub fn exactly(name: &str) -> NamePattern {
        NamePattern(vec![name.to_owned()])
    }

    /// Reads one name, up to a dot or the end.
    fn read(characters: &mut Peekable<Chars<'_>>) -> Result<NamePattern, PatternError> {
        let mut pieces = vec![String::new()];
        let mut quoted = false;
        let mut anything = false;
        while let Some(character) = characters.next_if(|c| *c != '.') {
            let Some(piece) = pieces.last_mut() else { break };
            match character {
                '"' if !anything => {
                    quoted = true;
                    read_quoted(characters, piece)?;
                }
                _ if quoted => return Err(PatternError::AfterQuote),
                '"' => return Err(PatternError::QuoteInside),
                ',' => return Err(PatternError::Separator),
                blank if blank.is_whitespace() => return Err(PatternError::Separator),
                '*' => pieces.push(String::new()),
                // As Postgres folds identifiers in a database of multibyte encoding.
                _ => piece.push(character.to_ascii_lowercase()),
            }
            anything = true;
        }
        match anything {
            false => Err(PatternError::Empty),
            true if pieces.iter().map(String::len).sum::<usize>() > MAX_NAME_BYTES => {
                Err(PatternError::TooLong)
            }
            true => Ok(NamePattern(pieces)),
        }
    }

    /// The one name it stands for, when it has no wildcard.
    pub fn literal(&self) -> Option<&str> {
        match self.0.as_slice() {
            [name] => Some(name),
            _ => None,
        }
    }

    /// Whether it matches the name.
    pub fn matches(&self, name: &str) -> bool {
        let [first, middle @ .., last] = self.0.as_slice() else {
            return self.literal() == Some(name);
        };
        // The leftmost place for each piece leaves most room for those behind it.
        let Some(mut rest) = name.strip_prefix(first.as_str()) else { return false };
        for piece in middle {
            match rest.find(piece.as_str()) {
                Some(at) => rest = &rest[at + piece.len()..],
                None => return false,
            }
        }
        rest.ends_with(last.as_str())
    }
}

fn read_quoted(characters: &mut Peekable<Chars<'_>>, piece: &mut String) -> Result<(), PatternError> {
    loop {
        match characters.next() {
            None => return Err(PatternError::OpenQuote),
            Some('"') if characters.next_if_eq(&'"').is_none() => {
                return if piece.is_empty() { Err(PatternError::Empty) } else { Ok(()) };
            }
            Some(character) => piece.push(character),
        }
    }
}

/// A list of patterns as SQL writes the array that it is.
pub fn array_literal(tables: &[String]) -> String {
    let quoted = tables.iter().map(|table| match table.contains(['"', ',', '{', '}', '\\', ' ']) {
        true => format!("\"{}\"", table.replace('\\', "\\\\").replace('"', "\\\"")),
        false => table.clone(),
    });
    let list = quoted.collect::<Vec<_>>().join(", ");
    format!("'{{{}}}'", list.replace('\'', "''"))
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = self.literal() {
            let plain =
                name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '$');
            return if plain { f.write_str(name) } else { write!(f, "\"{}\"", name.replace('"', "\"\"")) };
        }
        f.write_str(&self.0.join("*"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(schema: &str, table: &str) -> TableName {
        TableName { schema: schema.into(), table: table.into() }
    }

    #[test]
    fn wildcards_stand_for_any_run_of_characters() {
        let matches = |pattern: &str, schema, table| {
            TablePattern::parse(pattern).unwrap().matches(&name(schema, table))
        };
        assert!(matches("*.*", "public", "orders"));
        assert!(matches("public.*", "public", "orders"));
        assert!(!matches("public.*", "sales", "orders"));
        assert!(matches("public.order*", "public", "order"));
        assert!(matches("public.*_2026_*", "public", "orders_2026_11"));
        assert!(!matches("public.a*a", "public", "a"));
        assert!(matches("public.a*b*b", "public", "abb"));
        assert!(!matches("public.orders", "public", "orders2"));
    }

    #[test]
    fn wildcards_lead_to_users_tables_only() {
        let leads = |pattern: &str, is_user_table| {
            TablePattern::parse(pattern).unwrap().leads_to(&name("public", "job"), is_user_table)
        };
        for pattern in ["*.*", "public.*", "*.job", "public.j*b"] {
            assert!(leads(pattern, true) && !leads(pattern, false), "{pattern}");
        }
        assert!(leads("public.job", true) && leads("public.job", false));
        assert!(!leads("public.jobs", true));
    }

    #[test]
    fn quotes_take_every_character_literally() {
        let pattern = TablePattern::parse(r#""My.Schema"."T*""""#).unwrap();
        assert_eq!(pattern.literal(), Some(("My.Schema", "T*\"")));
        assert_eq!(pattern.to_string(), r#""My.Schema"."T*""""#);
        assert!(TablePattern::parse("Public.Orders").unwrap().matches(&name("public", "orders")));
    }

    #[test]
    fn the_stored_spelling_reads_back_as_the_same_pattern() {
        for text in ["public.orders", "*.*", r#""A"."b c""#, "sales_*.x*y", r#"public."Ä""#] {
            let pattern = TablePattern::parse(text).unwrap();
            assert_eq!(TablePattern::parse(&pattern.to_string()).unwrap(), pattern);
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for text in ["", ".", "a.", ".b", "a.b.c", r#""a"#, r#""a"b.c"#, r#""".x"#] {
            assert!(ParsedPattern::parse(text).is_err(), "{text}");
        }
        for text in ["test_schema.* test", "a.b, c.d", "a.b\tc", "a .b", "a.b* c"] {
            assert_eq!(ParsedPattern::parse(text), Err(PatternError::Separator), "{text}");
        }
        assert_eq!(ParsedPattern::parse(r#"a.b"c"#), Err(PatternError::QuoteInside));
        let (longest, longer) = ("n".repeat(63), "n".repeat(64));
        assert!(ParsedPattern::parse(&format!("{longest}.{longest}*")).is_ok());
        assert_eq!(ParsedPattern::parse(&format!("a.{longer}")), Err(PatternError::TooLong));
    }
}
