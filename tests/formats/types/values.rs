//! Random values of the types that exist, as text.

use fastrand::Rng;

/// Makes a value.
pub(crate) type Value = fn(&mut Rng) -> String;

/// Writes the bound of a range, the greater the number the greater.
pub(crate) type Bound = fn(i64) -> String;

/// Types that every server has.
pub(crate) const BUILT_IN: &[(&str, Value)] = &[
    ("bool", |rng| rng.bool().to_string()),
    ("int2", |rng| edge(rng, i16::MIN.into(), i16::MAX.into())),
    ("int4", |rng| edge(rng, i32::MIN.into(), i32::MAX.into())),
    ("int8", |rng| edge(rng, i64::MIN, i64::MAX)),
    ("float4", float4),
    ("float8", float8),
    ("numeric", numeric),
    ("numeric(12,3)", |rng| format!("{}.{}", rng.i64(-99_999_999..99_999_999), rng.u32(0..99_999))),
    ("text", text),
    ("varchar(40)", |rng| short_text(rng)),
    ("char(40)", |rng| short_text(rng)),
    ("name", |rng| short_text(rng)),
    ("\"char\"", |rng| char::from(rng.u8(1..127)).to_string()),
    ("bytea", bytea),
    ("uuid", |rng| format!("{:032x}", rng.u128(..))),
    ("date", |rng| day(rng, 5_874_897)),
    ("time(3)", time),
    ("time", time),
    ("timetz", |rng| time(rng) + &zone(rng)),
    ("timestamp", |rng| moment(rng)),
    ("timestamptz", |rng| moment(rng)),
    ("timestamptz(2)", |rng| moment(rng)),
    ("interval", interval),
    ("json", |rng| json(rng, 3)),
    ("jsonb", |rng| json(rng, 3)),
    ("jsonpath", |rng| format!("$.a[{}] ? (@.b > {})", rng.u8(..), rng.i16(..))),
    ("tsvector", |rng| format!("{}:{}A,2B 'quoted ''word''':3", word(rng), rng.u8(1..200))),
    ("tsquery", |rng| format!("{} & !{} | '{} x' <-> e:*A", word(rng), word(rng), word(rng))),
    ("inet", |rng| format!("{}/{}", address(rng), rng.u8(0..=32))),
    ("inet", |rng| format!("2001:db8::{:x}/{}", rng.u16(..), rng.u8(0..=128))),
    ("cidr", |rng| format!("{}.0.0.0/8", rng.u8(..))),
    ("macaddr", |rng| format!("{:012x}", rng.u64(0..1 << 48))),
    ("macaddr8", |rng| format!("{:016x}", rng.u64(..))),
    ("money", |rng| format!("{}.{:02}", rng.i64(-99_999_999_999..99_999_999_999), rng.u8(0..100))),
    ("bit(9)", |rng| format!("{:09b}", rng.u16(0..512))),
    ("varbit", |rng| format!("{:b}", rng.u64(..))),
    ("point", |rng| point(rng)),
    ("lseg", |rng| format!("[{},{}]", point(rng), point(rng))),
    ("box", |rng| format!("{},{}", point(rng), point(rng))),
    ("path", |rng| format!("[{},{},{}]", point(rng), point(rng), point(rng))),
    ("polygon", |rng| format!("({},{},{})", point(rng), point(rng), point(rng))),
    ("circle", |rng| format!("<{},{}>", point(rng), rng.u16(..))),
    ("line", |rng| format!("{{{},{},{}}}", rng.i8(1..), rng.i16(..), rng.i16(..))),
    ("pg_lsn", |rng| format!("{:X}/{:X}", rng.u32(..), rng.u32(..))),
    ("oid", |rng| rng.u32(..).to_string()),
    ("xid", |rng| rng.u32(..).to_string()),
    ("xid8", |rng| rng.u64(..).to_string()),
    ("cid", |rng| rng.u32(..).to_string()),
    ("tid", |rng| format!("({},{})", rng.u32(..), rng.u16(..))),
    ("pg_snapshot", |rng| format!("10:{}:12", rng.u32(20..))),
    ("int2vector", |rng| format!("{} {}", rng.i16(..), rng.i16(..))),
    ("oidvector", |rng| format!("{} {}", rng.u32(..), rng.u32(..))),
    ("regtype", |rng| ["int4", "text[]", "pg_catalog.pg_class", "0"][rng.usize(0..4)].into()),
    ("refcursor", |rng| text(rng)),
];

/// Types of extensions that every distribution ships with the server.
pub(crate) const CONTRIB: &[(&str, Value)] = &[
    ("citext", text),
    ("hstore", |rng| {
        let pair = |rng: &mut Rng| match rng.u8(0..4) {
            0 => format!("{}=>NULL", quoted(&short_text(rng))),
            _ => format!("{}=>{}", quoted(&short_text(rng)), quoted(&text(rng))),
        };
        (0..rng.usize(0..4)).map(|_| pair(rng)).collect::<Vec<_>>().join(", ")
    }),
    ("ltree", |rng| (0..rng.usize(1..5)).map(|_| word(rng)).collect::<Vec<_>>().join(".")),
    ("lquery", |rng| format!("{}.*{{1,2}}.{}|y", word(rng), word(rng))),
    ("ltxtquery", |rng| format!("{} & !{}*", word(rng), word(rng))),
    ("cube", |rng| format!("{},{}", point(rng), point(rng))),
    ("seg", |rng| format!("{}.50 .. {}.250", rng.i16(-99..0), rng.i16(0..99))),
    ("ean13", |_| "4006381333931".into()),
    ("query_int", |rng| format!("{}&({}|!3)", rng.u16(..), rng.u16(..))),
    ("lo", |rng| rng.u32(1..).to_string()),
];

/// Only where the server was built with libxml.
pub(crate) const XML: (&str, Value) =
    ("xml", |rng| format!("<a b=\"{}\">{} &amp; é</a>", word(rng), word(rng)));

/// Ranges that exist, and what bounds of theirs look like.
pub(crate) const RANGES: &[(&str, &str, Bound)] = &[
    ("int4range", "int4multirange", |n| n.to_string()),
    ("int8range", "int8multirange", |n| (n * 1_000_000_007).to_string()),
    ("numrange", "nummultirange", |n| format!("{n}.50")),
    ("daterange", "datemultirange", |n| format!("{}-02-03", n + 2001)),
    ("tsrange", "tsmultirange", |n| format!("{}-02-03 04:05:06.7", n + 2001)),
    ("tstzrange", "tstzmultirange", |n| format!("{}-02-03 04:05:06.7+05", n + 2001)),
];

/// What ranges of one's own are of.
pub(crate) const SUBTYPES: &[(&str, Bound)] = &[
    ("numeric", |n| format!("{n}.125")),
    ("float8", |n| format!("{n}.5")),
    ("text", |n| format!("\\\\ {:08} \"\"", n + 5000)),
    ("inet", |n| format!("10.0.{}.0", (n + 1000) / 10)),
    ("time", |n| format!("{:02}:00", (n + 1000) / 100)),
];

/// A number, often one at the end of what the type holds or next to zero.
fn edge(rng: &mut Rng, low: i64, high: i64) -> String {
    let edges = [low, low + 1, -1, 0, 1, high - 1, high];
    if rng.u8(0..3) == 0 {
        edges[rng.usize(0..edges.len())].to_string()
    } else {
        rng.i64(low..=high).to_string()
    }
}

const SPECIAL: [&str; 3] = ["NaN", "Infinity", "-Infinity"];

fn float4(rng: &mut Rng) -> String {
    let number = f32::from_bits(rng.u32(..));
    if number.is_finite() { format!("{number:e}") } else { SPECIAL[rng.usize(0..3)].into() }
}

fn float8(rng: &mut Rng) -> String {
    let number = f64::from_bits(rng.u64(..));
    match rng.u8(0..8) {
        0 => SPECIAL[rng.usize(0..3)].into(),
        1 => rng.i32(-1000..1000).to_string(),
        _ if number.is_finite() => format!("{number:e}"),
        _ => "-0".into(),
    }
}

fn numeric(rng: &mut Rng) -> String {
    let digits = |rng: &mut Rng, most: usize| -> String {
        let length = rng.usize(1..=most);
        (0..length).map(|_| if rng.u8(0..3) == 0 { '0' } else { rng.digit(10) }).collect()
    };
    match rng.u8(0..12) {
        0 => SPECIAL[rng.usize(0..3)].into(),
        1 => format!("{}e{}", rng.i32(..), rng.i32(-16_000..130_000)),
        2 => format!("{}.{}", digits(rng, 20_000), digits(rng, 9_000)),
        3 => format!("0.{}{}", "0".repeat(rng.usize(0..60)), digits(rng, 40)),
        _ => format!("{}{}.{}", ["", "-"][rng.usize(0..2)], digits(rng, 60), digits(rng, 60)),
    }
}

/// Text that may be anything, and long.
fn text(rng: &mut Rng) -> String {
    match rng.u8(0..16) {
        0 => short_text(rng).repeat(rng.usize(1..2000)),
        // Does not compress, so it is stored out of line.
        1 => (0..rng.usize(3000..9000)).map(|_| rng.alphanumeric()).collect(),
        _ => short_text(rng),
    }
}

/// A few characters, of those above all that are written in some special way somewhere.
pub(crate) fn short_text(rng: &mut Rng) -> String {
    const STRANGE: &[char] = &[
        '"',
        '\\',
        '\'',
        '.',
        ',',
        '{',
        '}',
        '(',
        ')',
        '[',
        ']',
        ':',
        '=',
        '>',
        '/',
        '\n',
        '\r',
        '\t',
        '\u{1}',
        '\u{1f}',
        '\u{7f}',
        ' ',
        '%',
        '$',
        'é',
        'ż',
        'Я',
        '日',
        '\u{a0}',
        '\u{2028}',
        '\u{feff}',
        '🐢',
        '🎉',
        '\u{10ffff}',
    ];
    let length = rng.usize(0..14);
    let character = |_| if rng.bool() { STRANGE[rng.usize(0..STRANGE.len())] } else { rng.alphanumeric() };
    (0..length).map(character).collect()
}

fn word(rng: &mut Rng) -> String {
    (0..rng.usize(1..8)).map(|_| rng.lowercase()).collect()
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn bytea(rng: &mut Rng) -> String {
    let most = [4, 40, 4000][rng.usize(0..3)];
    let digits: String = (0..rng.usize(0..most)).map(|_| format!("{:02x}", rng.u8(..))).collect();
    format!("\\x{digits}")
}

/// A date from 4713 BC up to that year.
fn day(rng: &mut Rng, last: u32) -> String {
    let of = |rng: &mut Rng, year: u32| format!("{year:04}-{:02}-{:02}", rng.u8(1..=12), rng.u8(1..=28));
    match rng.u8(0..8) {
        0 => "infinity".into(),
        1 => "-infinity".into(),
        2 => {
            let year = rng.u32(1..4713);
            of(rng, year) + " BC"
        }
        3 => {
            let year = rng.u32(10_000..last);
            of(rng, year)
        }
        _ => {
            let year = rng.u32(1..10_000);
            of(rng, year)
        }
    }
}

fn time(rng: &mut Rng) -> String {
    match rng.u8(0..10) {
        0 => "24:00:00".into(),
        _ => format!(
            "{:02}:{:02}:{:02}.{}",
            rng.u8(0..24),
            rng.u8(0..60),
            rng.u8(0..60),
            rng.u32(0..1_000_000)
        ),
    }
}

fn zone(rng: &mut Rng) -> String {
    format!("{}{:02}:{:02}", ['+', '-'][rng.usize(0..2)], rng.u8(0..15), rng.u8(0..60))
}

fn moment(rng: &mut Rng) -> String {
    let day = day(rng, 294_276);
    if day.ends_with("infinity") {
        return day;
    }
    let (day, era) = day.split_once(' ').unwrap_or((&day, ""));
    format!("{day} {}{} {era}", time(rng), zone(rng))
}

/// An interval in one of the styles that Postgres writes.
fn interval(rng: &mut Rng) -> String {
    let sign = |rng: &mut Rng| ["", "-"][rng.usize(0..2)];
    let (years, months, days) = (rng.u32(0..100_000), rng.u32(0..12), rng.u32(0..1000));
    let clock = format!(
        "{:02}:{:02}:{:02}.{}",
        rng.u32(0..1000),
        rng.u8(0..60),
        rng.u8(0..60),
        rng.u32(0..1_000_000)
    );
    match rng.u8(0..4) {
        0 => format!(
            "{0}{years} years {0}{months} mons {1}{days} days {2}{clock}",
            sign(rng),
            sign(rng),
            sign(rng)
        ),
        1 => format!(
            "P{0}{years}Y{0}{months}M{1}{days}DT{2}{3}H{2}4M5.678S",
            sign(rng),
            sign(rng),
            sign(rng),
            rng.u8(..)
        ),
        2 => format!(
            "{}{years}-{months} {}{days} {}{clock}",
            sign(rng),
            ["+", "-"][rng.usize(0..2)],
            ["+", "-"][rng.usize(0..2)]
        ),
        _ => format!("@ {years} years {months} mons {days} days 1 hour ago"),
    }
}

fn point(rng: &mut Rng) -> String {
    format!("({},{})", rng.i16(..), f64::from(rng.i16(..)) / 8.0)
}

fn address(rng: &mut Rng) -> String {
    format!("{}.{}.{}.{}", rng.u8(..), rng.u8(..), rng.u8(..), rng.u8(..))
}

/// JSON as people write it: with space around, and numbers that no float holds.
fn json(rng: &mut Rng, depth: u32) -> String {
    let space = [" ", "", "\n\t"][rng.usize(0..3)];
    match rng.u8(0..if depth == 0 { 4 } else { 6 }) {
        0 => ["null", "true", "false"][rng.usize(0..3)].into(),
        1 => format!("{}.{:05}{}", rng.i64(..), rng.u16(..), ["", "e5", "E-3"][rng.usize(0..3)]),
        2 => format!("\"{}\\u00e9\\n\"", word(rng)),
        3 => serde_json::Value::from(short_text(rng)).to_string(),
        4 => {
            let items: Vec<String> = (0..rng.usize(0..4)).map(|_| json(rng, depth - 1)).collect();
            format!("[{space}{}{space}]", items.join(&format!("{space},")))
        }
        _ => {
            let member = |rng: &mut Rng| format!("{space}\"{}\" :{space}{}", word(rng), json(rng, depth - 1));
            let members: Vec<String> = (0..rng.usize(0..4)).map(|_| member(rng)).collect();
            format!("{{{}}}{space}", members.join(","))
        }
    }
}
