//! Table patterns: `schema.table` with `*` wildcards. Pure; routing matches by them, too.
//!
//! Spelled as in SQL: what stands in double quotes is literal, what doesn't is folded to lower case and `*` in it
//! stands for any characters, none included. The canonical form is what [`fmt::Display`] writes: quotes only where
//! they are needed, so that two spellings of one pattern are stored alike.

use std::fmt;

/// One pattern, with the schema named.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TablePattern {
    schema: NamePattern,
    table: NamePattern,
}

/// A pattern as a user typed it, perhaps without a schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Typed {
    /// A bare table name without wildcards, to be looked up in the search path.
    Bare(String),
    /// A pattern with its schema.
    Qualified(TablePattern),
}

/// Why a text is no pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatternError {
    /// A name has no characters.
    Empty,
    /// A double quote is not closed.
    OpenQuote,
    /// There are more parts than schema and table.
    TooManyParts,
    /// A space or control character outside quotes.
    Unquoted(char),
    /// Wildcards, but no schema.
    BareWildcard,
}

impl fmt::Display for PatternError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PatternError::Empty => f.write_str("has an empty name in it"),
            PatternError::OpenQuote => f.write_str("has a double quote that is not closed"),
            PatternError::TooManyParts => f.write_str("has more parts than schema and table"),
            PatternError::Unquoted(c) => write!(f, "has {c:?} outside double quotes"),
            PatternError::BareWildcard => f.write_str("has wildcards but names no schema"),
        }
    }
}

impl PatternError {
    /// What to type instead.
    pub fn hint(self) -> String {
        match self {
            PatternError::BareWildcard => {
                "Name the schema, which may be a wildcard, too: 'public.order*' or '*.order*'."
            }
            PatternError::TooManyParts => {
                "Write 'schema.table' without the database; a name with dots goes into double quotes: '\"My.Schema\".\"T\"'."
            }
            _ => "Write 'schema.table', with * for any characters; other names go into double quotes: '\"My.Schema\".\"T\"'.",
        }
        .to_owned()
    }
}

impl TablePattern {
    /// Reads a pattern in any spelling, the canonical one included. `*` alone means `*.*`.
    pub fn parse(text: &str) -> Result<Typed, PatternError> {
        let mut parts = split(text.trim())?;
        match (parts.pop(), parts.pop(), parts.pop()) {
            (Some(table), Some(schema), None) => Ok(Typed::Qualified(TablePattern { schema, table })),
            (Some(table), None, None) => match table.literal() {
                Some(name) => Ok(Typed::Bare(name)),
                None if table.0 == [Glyph::Any] => {
                    Ok(Typed::Qualified(TablePattern { schema: table.clone(), table }))
                }
                None => Err(PatternError::BareWildcard),
            },
            _ => Err(PatternError::TooManyParts),
        }
    }

    /// The pattern that stands for exactly one table.
    pub fn of_table(schema: &str, table: &str) -> TablePattern {
        TablePattern { schema: NamePattern::of_name(schema), table: NamePattern::of_name(table) }
    }

    /// The pattern that stands for all tables of a schema.
    pub fn of_schema(schema: &str) -> TablePattern {
        TablePattern { schema: NamePattern::of_name(schema), table: NamePattern(vec![Glyph::Any]) }
    }

    /// The schema, if it has no wildcard.
    pub fn literal_schema(&self) -> Option<String> {
        self.schema.literal()
    }

    /// The table's schema and name, if neither has a wildcard.
    pub fn literal(&self) -> Option<(String, String)> {
        Some((self.schema.literal()?, self.table.literal()?))
    }

    /// Whether a table of that name is meant.
    pub fn matches(&self, schema: &str, table: &str) -> bool {
        self.schema.matches(schema) && self.table.matches(table)
    }
}

impl fmt::Display for TablePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.table)
    }
}

/// A character of a name, or any characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Glyph {
    Is(char),
    Any,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct NamePattern(Vec<Glyph>);

impl NamePattern {
    fn of_name(name: &str) -> NamePattern {
        NamePattern(name.chars().map(Glyph::Is).collect())
    }

    fn literal(&self) -> Option<String> {
        let character = |glyph: &Glyph| match glyph {
            Glyph::Is(c) => Some(*c),
            Glyph::Any => None,
        };
        self.0.iter().map(character).collect()
    }

    /// Goes on after the last wildcard whenever the rest does not fit: linear but for patterns of many wildcards.
    fn matches(&self, name: &str) -> bool {
        let (mut pattern, mut rest) = (self.0.as_slice(), name.chars());
        let mut again = None;
        loop {
            match (pattern.split_first(), rest.clone().next()) {
                (Some((Glyph::Any, after)), _) => {
                    again = Some((after, rest.clone()));
                    pattern = after;
                    continue;
                }
                (Some((Glyph::Is(wanted), after)), Some(c)) if *wanted == c => {
                    pattern = after;
                    rest.next();
                    continue;
                }
                (None, None) => return true,
                _ => {}
            }
            let Some((after, mut skipped)) = again else { return false };
            if skipped.next().is_none() {
                return false;
            }
            again = Some((after, skipped.clone()));
            (pattern, rest) = (after, skipped);
        }
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for run in self.0.chunk_by(|a, b| (*a == Glyph::Any) == (*b == Glyph::Any)) {
            let text: String =
                run.iter().filter_map(|glyph| if let Glyph::Is(c) = glyph { Some(*c) } else { None }).collect();
            if run.first() == Some(&Glyph::Any) {
                f.write_str("*")?;
            } else if text.chars().all(needs_no_quotes) && !text.starts_with(|c: char| c.is_ascii_digit()) {
                f.write_str(&text)?;
            } else {
                write!(f, "\"{}\"", text.replace('"', "\"\""))?;
            }
        }
        Ok(())
    }
}

fn needs_no_quotes(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '$'
}

/// Splits at the dots outside quotes.
fn split(text: &str) -> Result<Vec<NamePattern>, PatternError> {
    let mut parts = vec![Vec::new()];
    let mut quoted = false;
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        let glyph = match c {
            '"' if quoted && characters.next_if_eq(&'"').is_some() => Glyph::Is('"'),
            '"' => {
                quoted = !quoted;
                continue;
            }
            _ if quoted => Glyph::Is(c),
            '.' => {
                parts.push(Vec::new());
                continue;
            }
            '*' => Glyph::Any,
            _ if c.is_whitespace() || c.is_control() => return Err(PatternError::Unquoted(c)),
            // As the server folds identifiers: ASCII for certain, other letters by locale in one-byte encodings only.
            _ => Glyph::Is(c.to_ascii_lowercase()),
        };
        if let Some(part) = parts.last_mut()
            && !(glyph == Glyph::Any && part.last() == Some(&Glyph::Any))
        {
            part.push(glyph);
        }
    }
    if quoted {
        return Err(PatternError::OpenQuote);
    }
    if parts.iter().any(Vec::is_empty) {
        return Err(PatternError::Empty);
    }
    Ok(parts.into_iter().map(NamePattern).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> TablePattern {
        match TablePattern::parse(text) {
            Ok(Typed::Qualified(pattern)) => pattern,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn every_spelling_has_one_canonical_form_that_reads_back() {
        for (typed, canonical) in [
            ("public.orders", "public.orders"),
            (" Public.ORDERS ", "public.orders"),
            (r#""public"."orders""#, "public.orders"),
            (r#""My.Schema"."T""#, r#""My.Schema"."T""#),
            (r#"s."a""b""#, r#"s."a""b""#),
            (r#"s."*""#, r#"s."*""#),
            (r#"s."Ord"*"#, r#"s."Ord"*"#),
            ("s.**", "s.*"),
            ("*", "*.*"),
            ("s.1a", r#"s."1a""#),
            ("s.köln", r#"s."köln""#),
        ] {
            assert_eq!(pattern(typed).to_string(), canonical);
            assert_eq!(pattern(canonical), pattern(typed), "{typed}");
        }
        assert_eq!(TablePattern::of_table("My.Schema", "T").to_string(), r#""My.Schema"."T""#);
        assert_eq!(TablePattern::of_schema("s"), pattern("s.*"));
    }

    #[test]
    fn wildcards_match_any_characters_and_quoted_stars_only_themselves() {
        for (text, schema, table, expected) in [
            ("*.*", "public", "orders", true),
            ("public.*", "public", "orders", true),
            ("public.*", "sales", "orders", false),
            ("public.ord*", "public", "ord", true),
            ("public.*s", "public", "orders", true),
            ("public.*er*s", "public", "orders", true),
            ("public.*r*r*", "public", "orders", true),
            ("public.*r*r*r*", "public", "orders", false),
            ("public.a*b*c", "public", "abxbxc", true),
            ("public.a*b*c", "public", "abxbxcd", false),
            ("public.orders", "public", "orders2", false),
            (r#"public."*""#, "public", "orders", false),
            (r#"public."*""#, "public", "*", true),
            (r#"public."Ord"*"#, "public", "Orders", true),
            (r#"public."Ord"*"#, "public", "orders", false),
        ] {
            assert_eq!(pattern(text).matches(schema, table), expected, "{text} {schema}.{table}");
        }
    }

    #[test]
    fn a_bare_name_is_left_to_the_search_path() {
        assert_eq!(TablePattern::parse("Orders"), Ok(Typed::Bare("orders".into())));
        assert_eq!(TablePattern::parse(r#""a.b""#), Ok(Typed::Bare("a.b".into())));
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for (text, error) in [
            ("", PatternError::Empty),
            ("public.", PatternError::Empty),
            (".t", PatternError::Empty),
            (r#""""#, PatternError::Empty),
            (r#"public."t"#, PatternError::OpenQuote),
            ("db.public.t", PatternError::TooManyParts),
            ("public.t t", PatternError::Unquoted(' ')),
            ("orders*", PatternError::BareWildcard),
        ] {
            assert_eq!(TablePattern::parse(text), Err(error), "{text}");
        }
    }
}
