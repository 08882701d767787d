//! The oracle of filters: for random tables, rows and conditions, what arrives is what SQL itself selects.

use std::collections::BTreeSet;

use fastrand::Rng;
use harness::{Cluster, Receiver};

/// How many subscriptions, each with a condition of its own.
const SUBSCRIPTIONS: usize = 60;
/// How many changes.
const CHANGES: usize = 250;

/// The columns of the random tables: name, type, and values to choose from, as SQL.
const COLUMNS: [(&str, &str, &[&str]); 12] = [
    ("i", "int", &["0", "1", "2", "-1", "NULL", "2147483647"]),
    ("s", "smallint", &["0", "1", "2", "NULL"]),
    ("b", "bigint", &["0", "1", "2", "9007199254740993", "NULL"]),
    ("n", "numeric", &["0", "1", "1.0", "1.00", "2.5", "'NaN'", "NULL"]),
    ("f", "float8", &["0", "'-0'", "1", "0.1", "'NaN'", "NULL"]),
    ("t", "text", &["''", "'a'", "'b'", "'a '", "'Ä'", "NULL"]),
    ("c", "char(3)", &["'a'", "'a '", "'b'", "NULL"]),
    ("v", "varchar(5)", &["'a'", "'b'", "'A'", "NULL"]),
    ("d", "date", &["'2026-01-01'", "'2026-01-31'", "'infinity'", "NULL"]),
    ("m", "mood", &["'sad'", "'ok'", "'happy'", "NULL"]),
    ("a", "int[]", &["'{}'", "'{1,2}'", "'{1,NULL}'", "NULL"]),
    ("j", "jsonb", &["'{}'", "'{\"a\": 1}'", "'{\"a\": \"x\"}'", "'[1]'", "NULL"]),
];

/// Conditions over one column, `$` standing for it and `?` for one of its values.
const CONDITIONS: [&str; 14] = [
    "$ = ?",
    "$ = ?",
    "$ = ?",
    "$ <> ?",
    "$ < ?",
    "$ >= ?",
    "$ IN (?, ?)",
    "$ IN (?, ?, ?)",
    "$ = ANY (ARRAY[?, ?]::#[])",
    "$ IS NULL",
    "$ IS DISTINCT FROM ?",
    "$ BETWEEN ? AND ?",
    "coalesce($, ?) = ?",
    "CASE WHEN $ = ? THEN true ELSE $ > ? END",
];

/// Conditions that need columns of certain types.
const OTHERS: [&str; 10] = [
    "i / 2 = s",
    "i = b",
    "n = i AND f = n",
    "b / 2 = 1",
    "t LIKE 'a%'",
    "lower(v) = 'a'",
    "a @> '{1}'",
    "j ->> 'a' = '1'",
    "j @> '{\"a\": 1}' OR t ~ 'b'",
    "i = 1 AND t = 'a'",
];

fn column(rng: &mut Rng) -> (&'static str, &'static str, &'static [&'static str]) {
    COLUMNS[rng.usize(..COLUMNS.len())]
}

fn value(rng: &mut Rng, values: &[&str]) -> String {
    values[rng.usize(..values.len())].to_owned()
}

/// A random condition. Everything in it is said of `new`, `old` or bare columns.
fn condition(rng: &mut Rng, depth: usize) -> String {
    if depth > 0 && rng.u8(..3) > 0 {
        let (left, right) = (condition(rng, depth - 1), condition(rng, depth - 1));
        return match rng.u8(..4) {
            0 => format!("({left} OR {right})"),
            1 => format!("NOT ({left})"),
            _ => format!("{left} AND {right}"),
        };
    }
    if rng.u8(..4) == 0 {
        return OTHERS[rng.usize(..OTHERS.len())].to_owned();
    }
    let (name, kind, values) = column(rng);
    // Arrays of arrays have another syntax, and no other type than its own compares with json.
    let usable: Vec<&&str> =
        CONDITIONS.iter().filter(|text| !(text.contains('#') && kind == "int[]")).collect();
    let mut text = usable[rng.usize(..usable.len())].replace('#', kind);
    let place = ["", "", "new.", "old."][rng.usize(..4)];
    text = text.replace('$', &format!("{place}{name}"));
    while text.contains('?') {
        text = text.replacen('?', &value(rng, values), 1);
    }
    text
}

fn row(rng: &mut Rng) -> String {
    COLUMNS.map(|(_, _, values)| value(rng, values)).join(", ")
}

fn names() -> String {
    COLUMNS.map(|(name, ..)| name).join(", ")
}

/// The condition with bare columns spelled out as those of `row`.
fn qualified(filter: &str, row: &str) -> String {
    let mut text = String::new();
    let mut word = String::new();
    let mut quoted = false;
    for c in filter.chars().chain(" ".chars()) {
        if !quoted && (c.is_ascii_alphanumeric() || c == '_') {
            word.push(c);
            continue;
        }
        let is_column = COLUMNS.iter().any(|(name, ..)| *name == word);
        if is_column && !text.ends_with('.') {
            text.push_str(&format!("{row}."));
        }
        text.push_str(&std::mem::take(&mut word));
        quoted ^= c == '\'';
        text.push(c);
    }
    text
}

#[test]
fn what_arrives_is_what_sql_selects() {
    let seed = std::env::var("PGWH_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_121);
    let mut rng = Rng::with_seed(seed);
    let cluster = Cluster::with_extension();
    let definition = COLUMNS.map(|(name, kind, _)| format!("{name} {kind}")).join(", ");
    cluster.sql(&format!(
        "CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
         CREATE TABLE t (id int PRIMARY KEY, {definition});
         ALTER TABLE t REPLICA IDENTITY FULL;
         CREATE TABLE truth (change serial PRIMARY KEY, action text, key int, new_row t, old_row t);"
    ));
    let receiver = Receiver::start().unwrap();
    let mut filters = Vec::new();
    while filters.len() < SUBSCRIPTIONS {
        let depth = rng.usize(..3);
        let filter = condition(&mut rng, depth);
        let name = format!("s{}", filters.len());
        let (url, quoted) = (receiver.url(&format!("/{name}")), filter.replace('\'', "''"));
        // Some make no sense, such as an order of jsonb against a list: those are refused.
        let subscribed = cluster.try_sql(&format!(
            "SELECT pgwh.subscribe('{url}', name => '{name}', tables => '{{t}}', filter => '{quoted}')"
        ));
        if subscribed.is_ok() {
            filters.push((name, filter));
        }
    }

    // One script does the changes and notes what they were.
    let mut script = String::new();
    for _ in 0..CHANGES {
        let key = rng.usize(..20);
        let names = names();
        let change = match rng.u8(..4) {
            0 => format!("DELETE FROM t WHERE id = {key}"),
            1 => {
                let (name, _, values) = column(&mut rng);
                format!("UPDATE t SET {name} = {} WHERE id = {key}", value(&mut rng, values))
            }
            2 => format!("UPDATE t SET ({names}) = ROW ({}) WHERE id = {key}", row(&mut rng)),
            _ => format!(
                "INSERT INTO t (id, {names}) VALUES ({key}, {}) ON CONFLICT DO NOTHING",
                row(&mut rng)
            ),
        };
        script.push_str(&format!("{change};\n"));
    }
    cluster.sql(
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
             INSERT INTO truth (action, key, new_row, old_row)
             VALUES (lower(TG_OP), coalesce(NEW.id, OLD.id), NEW, OLD); RETURN NULL; END$$;
         CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION note()",
    );
    cluster.sql(&script);

    let mut matched = 0;
    for (name, filter) in &filters {
        let came = cluster.delivered(&receiver, name);
        let mut came: Vec<_> = came
            .iter()
            .map(|event| (event.place(), event.text("action"), event["key"]["id"].to_string()))
            .collect();
        came.sort();
        let came: Vec<String> = came.into_iter().map(|(_, action, key)| format!("{action} {key}")).collect();
        let spelled = |bare| qualified(filter, bare).replace("new.", "n.").replace("old.", "o.");
        let selected = cluster.column(&format!(
            "SELECT w.action || ' ' || w.key FROM truth w,
                 LATERAL (SELECT (w.new_row).*) n, LATERAL (SELECT (w.old_row).*) o
             WHERE CASE w.action WHEN 'delete' THEN {} ELSE {} END ORDER BY change",
            spelled("old"),
            spelled("new")
        ));
        assert_eq!(came, selected, "seed {seed}: {filter}");
        matched += came.len();
    }
    let distinct: BTreeSet<&String> = filters.iter().map(|(_, filter)| filter).collect();
    assert!(
        matched > CHANGES && distinct.len() > SUBSCRIPTIONS / 2,
        "{matched} of {} filters",
        distinct.len()
    );
    assert_eq!(cluster.value("SELECT count(*) FROM pgwh.dead_letters"), "0");
}
