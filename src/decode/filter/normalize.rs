//! The shape of a condition: its text with the literals taken out.
//!
//! Conditions that differ only in literals, such as `user_id = 7` and `user_id = 8`, have one shape, so they are compiled
//! once. Where the lexer below isn't sure to cut as Postgres does, a condition is a shape of its own, without literals.

/// A condition's text in two parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The tokens, one space between each two, a placeholder for each literal.
    pub text: String,
    /// The literals, in order.
    pub literals: Vec<Literal>,
}

/// A literal taken out of a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Literal {
    /// Where it begins in the text, in bytes; a sign is part of it.
    pub offset: usize,
    /// Its value.
    pub value: LiteralValue,
}

/// What a literal says. Its kind is part of the shape, since it decides which operator is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LiteralValue {
    /// A number that Postgres takes for an `integer`.
    Integer(i32),
    /// A number that Postgres takes for a `bigint`.
    Bigint(i64),
    /// A string, whose type the place where it stands decides.
    Text(String),
}

impl LiteralValue {
    fn placeholder(&self) -> &'static str {
        match self {
            LiteralValue::Integer(_) => "\u{1}4",
            LiteralValue::Bigint(_) => "\u{1}8",
            LiteralValue::Text(_) => "\u{1}s",
        }
    }
}

/// Something that Postgres' lexer and this one may cut in different ways.
struct Unsure;

impl Shape {
    /// The shape of a condition.
    pub fn of(text: &str) -> Shape {
        let mut lexer = Lexer { text, at: 0, tokens: Vec::new(), literals: Vec::new() };
        match lexer.run() {
            Ok(()) => Shape { text: lexer.tokens.join(" "), literals: lexer.literals },
            Err(Unsure) => Shape::whole(text),
        }
    }

    /// The condition as a shape of its own, without literals.
    pub fn whole(text: &str) -> Shape {
        Shape { text: text.to_owned(), literals: Vec::new() }
    }
}

struct Lexer<'a> {
    text: &'a str,
    at: usize,
    tokens: Vec<&'a str>,
    literals: Vec<Literal>,
}

/// Characters that operators are made of (`scan.l`, `op_chars`), and the colon of `::`.
const OPERATOR: &str = "~!@#^&|`?+-*/%<>=:";

impl<'a> Lexer<'a> {
    fn run(&mut self) -> Result<(), Unsure> {
        while let Some(next) = self.peek() {
            match next {
                ' ' | '\t' | '\n' | '\r' => self.at += 1,
                '\'' => self.string()?,
                '"' => self.quoted_name()?,
                '0'..='9' => self.number()?,
                '(' | ')' | '[' | ']' | ',' => {
                    let token = self.take(|c| c == next, 1);
                    self.tokens.push(token);
                }
                // A fraction begins with it, too.
                '.' if self.text[self.at + 1..].starts_with(|c: char| c.is_ascii_digit()) => {
                    return Err(Unsure);
                }
                '.' => {
                    let token = self.take(|c| c == '.', 1);
                    self.tokens.push(token);
                }
                c if OPERATOR.contains(c) => self.operator()?,
                c if is_name(c) => {
                    let name = self.take(is_name, usize::MAX);
                    // A prefix of a string: E'…', B'…', U&'…'.
                    if self.peek() == Some('\'')
                        || (name.eq_ignore_ascii_case("u") && self.peek() == Some('&'))
                    {
                        return Err(Unsure);
                    }
                    self.tokens.push(name);
                }
                _ => return Err(Unsure),
            }
        }
        Ok(())
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn take(&mut self, belongs: impl Fn(char) -> bool, most: usize) -> &'a str {
        let rest = &self.text[self.at..];
        let end = rest
            .char_indices()
            .take(most)
            .find(|(_, c)| !belongs(*c))
            .map_or_else(|| rest.char_indices().nth(most).map_or(rest.len(), |(end, _)| end), |(end, _)| end);
        self.at += end;
        &rest[..end]
    }

    fn literal(&mut self, offset: usize, value: LiteralValue) {
        self.tokens.push(value.placeholder());
        self.literals.push(Literal { offset, value });
    }

    fn string(&mut self) -> Result<(), Unsure> {
        let offset = self.at;
        let mut value = String::new();
        self.at += 1;
        loop {
            value.push_str(self.take(|c| c != '\'' && c != '\\', usize::MAX));
            match self.peek() {
                Some('\'') if self.text[self.at + 1..].starts_with('\'') => {
                    value.push('\'');
                    self.at += 2;
                }
                Some('\'') => break,
                _ => return Err(Unsure),
            }
        }
        self.at += 1;
        // Strings one behind the other may be one.
        if self.tokens.last() == Some(&LiteralValue::Text(String::new()).placeholder()) {
            return Err(Unsure);
        }
        self.literal(offset, LiteralValue::Text(value));
        Ok(())
    }

    fn quoted_name(&mut self) -> Result<(), Unsure> {
        let rest = &self.text[self.at..];
        let end = rest[1..].find('"').ok_or(Unsure)? + 2;
        if rest[end..].starts_with('"') {
            return Err(Unsure);
        }
        self.at += end;
        self.tokens.push(&rest[..end]);
        Ok(())
    }

    fn number(&mut self) -> Result<(), Unsure> {
        let mut offset = self.at;
        let digits = self.take(|c| c.is_ascii_digit(), usize::MAX);
        if self.peek().is_some_and(|c| c == '.' || is_name(c)) {
            return Err(Unsure);
        }
        let Ok(mut number) = digits.parse::<i64>() else {
            self.tokens.push(digits);
            return Ok(());
        };
        if self.is_signed() {
            let sign = self.tokens.pop().unwrap_or_default();
            offset = sign.as_ptr() as usize - self.text.as_ptr() as usize;
            number = -number;
        }
        // As `make_const` judges (`parse_node.c`), the sign included.
        let value = i32::try_from(number).map_or(LiteralValue::Bigint(number), LiteralValue::Integer);
        self.literal(offset, value);
        Ok(())
    }

    /// Whether a minus sign before a number belongs to it.
    fn is_signed(&self) -> bool {
        match self.tokens.as_slice() {
            ["-"] => true,
            [.., before, "-"] => {
                before.starts_with(|c| OPERATOR.contains(c))
                    || *before == "("
                    || *before == ","
                    || *before == "["
            }
            _ => false,
        }
    }

    fn operator(&mut self) -> Result<(), Unsure> {
        let token = self.take(|c| OPERATOR.contains(c), usize::MAX);
        if token.contains("--") || token.contains("/*") {
            return Err(Unsure);
        }
        self.tokens.push(token);
        Ok(())
    }
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || !c.is_ascii()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(text: &str) -> Vec<LiteralValue> {
        Shape::of(text).literals.into_iter().map(|literal| literal.value).collect()
    }

    #[test]
    fn conditions_that_differ_in_literals_have_one_shape() {
        let shape = |text| Shape::of(text).text;
        assert_eq!(shape("user_id = 7"), shape("user_id =   123456"));
        assert_eq!(shape("a = 'x' AND b IN (1, 2)"), shape("a = 'it''s' AND b IN (-3,4)"));
        for (one, other) in [
            ("user_id = 7", "user_id = 12345678901"),
            ("user_id = 7", "user_id = '7'"),
            ("user_id = 7", "user_id > 7"),
            ("a <= 7", "a < = 7"),
            ("a = 7", "\"a\" = 7"),
            ("a = 1.5", "a = 2.5"),
        ] {
            assert_ne!(shape(one), shape(other), "{one} / {other}");
        }
    }

    #[test]
    fn literals_are_told_with_their_place() {
        use LiteralValue::*;
        let shape = Shape::of("x = -5 AND y = 'it''s'");
        assert_eq!(shape.literals[0], Literal { offset: 4, value: Integer(-5) });
        assert_eq!(shape.literals[1], Literal { offset: 15, value: Text("it's".into()) });
        assert_eq!(values("a - 5 = 2147483648"), [Integer(5), Bigint(2_147_483_648)]);
        assert_eq!(values("a = -2147483648"), [Integer(i32::MIN)]);
        assert_eq!(values("a = 99999999999999999999"), []);
    }

    #[test]
    fn what_may_be_cut_in_another_way_is_a_shape_of_its_own() {
        for text in [
            "a = E'x'",
            "a = U&'x'",
            "a = $$x$$",
            "a = 'x\\'",
            "a = 1 -- b",
            "a = 1 /* b */",
            "a = 'x' 'y'",
            "a = 1e5",
            "a = .5",
            "a = 0x1F",
            "a = 'open",
            "a = \"open",
            "a = \"b\"\"c\"",
            "a = 1; DROP",
        ] {
            assert_eq!(Shape::of(text), Shape::whole(text));
        }
    }
}
