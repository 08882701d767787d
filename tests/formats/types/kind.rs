//! Types that a column may have, and random values of them in the text form that Postgres reads.

use fastrand::Rng;

use super::values::{self, Bound, Value};

/// A type.
pub(crate) enum Kind {
    /// One that exists, and its values.
    Plain(&'static str, Value),
    /// A range or multirange, and what it is a range of.
    Range {
        name: String,
        bound: Bound,
        multi: bool,
    },
    Array(Box<Kind>),
    Domain {
        name: String,
        base: Box<Kind>,
    },
    Enum {
        name: String,
        labels: Vec<String>,
    },
    Composite {
        name: String,
        fields: Vec<Kind>,
    },
}

impl Kind {
    /// Its name in SQL.
    pub(crate) fn sql(&self) -> String {
        match self {
            Kind::Plain(name, _) => (*name).to_owned(),
            Kind::Range { name, .. }
            | Kind::Domain { name, .. }
            | Kind::Enum { name, .. }
            | Kind::Composite { name, .. } => name.clone(),
            Kind::Array(element) => format!("{}[]", element.sql()),
        }
    }

    /// A random value, not null, as its input function reads it.
    pub(crate) fn value(&self, rng: &mut Rng) -> String {
        match self {
            Kind::Plain(_, value) => value(rng),
            Kind::Range { bound, multi: false, .. } => range(rng, *bound),
            Kind::Range { bound, multi: true, .. } => {
                let ranges: Vec<String> = (0..rng.usize(0..4)).map(|_| range(rng, *bound)).collect();
                format!("{{{}}}", ranges.join(","))
            }
            Kind::Array(element) => array(rng, element),
            Kind::Domain { base, .. } => base.value(rng),
            Kind::Enum { labels, .. } => rng.choice(labels).cloned().unwrap_or_default(),
            Kind::Composite { fields, .. } => {
                let fields: Vec<String> = fields
                    .iter()
                    .map(|field| match rng.u8(0..5) {
                        0 => String::new(),
                        _ => format!("\"{}\"", field.value(rng).replace('\\', "\\\\").replace('"', "\"\"")),
                    })
                    .collect();
                format!("({})", fields.join(","))
            }
        }
    }

    fn delimiter(&self) -> &'static str {
        match self {
            Kind::Plain("box", _) => ";",
            // An array type, and so a domain over one, has its element's (`TypeCreate`, pg_type.c).
            Kind::Domain { base: inner, .. } | Kind::Array(inner) => inner.delimiter(),
            _ => ",",
        }
    }
}

fn range(rng: &mut Rng, bound: Bound) -> String {
    if rng.u8(0..8) == 0 {
        return "empty".into();
    }
    let low = rng.i64(-1000..1000);
    let high = low + rng.i64(0..50);
    let mut side = |value: i64| match rng.u8(0..6) {
        0 => String::new(),
        _ => format!("\"{}\"", bound(value)),
    };
    let (low, high) = (side(low), side(high));
    format!("{}{low},{high}{}", ['[', '('][rng.usize(0..2)], [']', ')'][rng.usize(0..2)])
}

/// An array of up to four dimensions, some of which do not begin at 1.
fn array(rng: &mut Rng, element: &Kind) -> String {
    if rng.u8(0..6) == 0 {
        return "{}".into();
    }
    let lengths: Vec<usize> = if rng.bool() {
        vec![rng.usize(1..6)]
    } else {
        (0..rng.usize(2..5)).map(|_| rng.usize(1..3)).collect()
    };
    let bounds = if rng.u8(0..3) == 0 {
        let bound = |length: &usize| {
            let low = rng.i64(-3..4);
            format!("[{low}:{}]", low + *length as i64 - 1)
        };
        lengths.iter().map(bound).collect::<String>() + "="
    } else {
        String::new()
    };
    bounds + &dimension(rng, element, &lengths)
}

fn dimension(rng: &mut Rng, element: &Kind, lengths: &[usize]) -> String {
    let Some((length, inner)) = lengths.split_first() else {
        return match rng.u8(0..6) {
            0 => "NULL".into(),
            _ => format!("\"{}\"", element.value(rng).replace('\\', "\\\\").replace('"', "\\\"")),
        };
    };
    let items: Vec<String> = (0..*length).map(|_| dimension(rng, element, inner)).collect();
    format!("{{{}}}", items.join(element.delimiter()))
}

/// Makes types and the statements that create them.
pub(crate) struct Maker<'a> {
    rng: &'a mut Rng,
    plain: &'a [(&'static str, Value)],
    names: u32,
    /// Creates what was made, in order.
    pub(crate) statements: Vec<String>,
}

impl<'a> Maker<'a> {
    pub(crate) fn new(rng: &'a mut Rng, plain: &'a [(&'static str, Value)]) -> Self {
        Self { rng, plain, names: 0, statements: Vec::new() }
    }

    /// A name that has not been used yet, with any characters in it, quoted.
    pub(crate) fn name(&mut self) -> String {
        self.names += 1;
        let strange = values::short_text(self.rng);
        quoted_name(&format!("{} {strange}", self.names))
    }

    pub(crate) fn rng(&mut self) -> &mut Rng {
        self.rng
    }

    /// A random type, made of others up to that depth.
    pub(crate) fn kind(&mut self, depth: u32) -> Kind {
        let which = if depth == 0 { 0 } else { self.rng.u8(0..10) };
        match which {
            0..=3 => {
                let (name, value) = self.plain[self.rng.usize(0..self.plain.len())];
                Kind::Plain(name, value)
            }
            4 => self.range(),
            5 | 6 => match self.kind(depth - 1) {
                element @ Kind::Array(_) => element,
                element => Kind::Array(Box::new(element)),
            },
            7 => {
                let (name, base) = (self.name(), Box::new(self.kind(depth - 1)));
                self.statements.push(format!("CREATE DOMAIN {name} AS {}", base.sql()));
                Kind::Domain { name, base }
            }
            8 => {
                let name = self.name();
                let labels: Vec<String> = (0..self.rng.u32(1..5))
                    .map(|n| format!("{n}{}", values::short_text(self.rng)))
                    .map(|label| cut(&label, 63).to_owned())
                    .collect();
                let list: Vec<String> = labels.iter().map(|label| literal(label)).collect();
                self.statements.push(format!("CREATE TYPE {name} AS ENUM ({})", list.join(", ")));
                Kind::Enum { name, labels }
            }
            _ => {
                let name = self.name();
                let fields: Vec<Kind> = (0..self.rng.u32(1..5)).map(|_| self.kind(depth - 1)).collect();
                let list: Vec<String> =
                    fields.iter().map(|field| format!("{} {}", self.name(), field.sql())).collect();
                self.statements.push(format!("CREATE TYPE {name} AS ({})", list.join(", ")));
                Kind::Composite { name, fields }
            }
        }
    }

    fn range(&mut self) -> Kind {
        let multi = self.rng.bool();
        if self.rng.bool() {
            let (range, multirange, bound) = values::RANGES[self.rng.usize(0..values::RANGES.len())];
            return Kind::Range { name: if multi { multirange } else { range }.into(), bound, multi };
        }
        let (range, multirange) = (self.name(), self.name());
        let (subtype, bound) = values::SUBTYPES[self.rng.usize(0..values::SUBTYPES.len())];
        self.statements.push(format!(
            "CREATE TYPE {range} AS RANGE (subtype = {subtype}, multirange_type_name = {multirange})"
        ));
        Kind::Range { name: if multi { multirange } else { range }, bound, multi }
    }
}

/// An identifier, quoted, of the 63 bytes that Postgres keeps.
fn quoted_name(name: &str) -> String {
    format!("\"{}\"", cut(name, 63).replace('"', "\"\""))
}

/// A string constant.
pub(crate) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}
