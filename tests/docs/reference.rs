//! `docs/reference.md` is what the COMMENTs in the database and the descriptions of the settings say, and nothing else.
//!
//! After an intended change: `PGWH_ACCEPT=1 make end-to-end TESTS='--test docs reference::'`, and look at the difference.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use harness::{Cluster, Receiver};

const HEAD: &str = "\
# Reference

Made from the COMMENTs in the database (`\\df+ pgwh.*`, `\\d+ pgwh.*`) and the descriptions of the settings
(`pg_settings`), which say the same; a test keeps this page up to date. [SQL](sql.md) shows how these things are used.

";

#[test]
fn the_reference_says_what_the_comments_say() {
    let cluster = Cluster::with_extension();
    let made = format!("{HEAD}{}{}{}", settings(&cluster), functions(&cluster), relations(&cluster));
    let path = path();
    if std::env::var_os("PGWH_ACCEPT").is_some() {
        fs::write(&path, &made).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    let differs = made.lines().zip(written.lines()).find(|(made, written)| made != written);
    assert!(
        made == written,
        "docs/reference.md is not up to date: PGWH_ACCEPT=1 make end-to-end TESTS='--test docs reference::' writes it. \
         The first difference, as it should be and as it is:\n{differs:#?}"
    );
}

#[test]
fn everything_in_the_schema_has_a_comment() {
    let cluster = Cluster::with_extension();
    let silent = cluster.column(
        "SELECT pg_describe_object(classid, objid, objsubid) FROM (
            SELECT 'pg_proc'::regclass AS classid, oid AS objid, 0 AS objsubid FROM pg_proc
              WHERE pronamespace = 'pgwh'::regnamespace
            UNION ALL SELECT 'pg_class'::regclass, oid, 0 FROM pg_class
              WHERE relnamespace = 'pgwh'::regnamespace AND relkind IN ('r', 'p', 'v') AND NOT relispartition
            UNION ALL SELECT 'pg_class'::regclass, attrelid, attnum FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid
              WHERE relnamespace = 'pgwh'::regnamespace AND relkind IN ('r', 'p', 'v') AND NOT relispartition
                AND attnum > 0 AND NOT attisdropped
         ) of_ours
         WHERE coalesce(CASE objsubid WHEN 0 THEN obj_description(objid, classid::regclass::name)
                                      ELSE col_description(objid, objsubid) END, '') = ''",
    );
    assert_eq!(silent, Vec::<String>::new(), "without a COMMENT");
}

#[test]
fn the_examples_of_the_comments_work() {
    let cluster = Cluster::with_extension();
    let receiver = Receiver::start().unwrap();
    cluster.sql(
        "CREATE TABLE orders (id int PRIMARY KEY, status text); CREATE TABLE customers (id int PRIMARY KEY); CREATE ROLE app",
    );
    cluster.subscribe(&receiver, "orders-to-billing", "tables => '{public.orders}'");
    cluster.sql("INSERT INTO orders VALUES (7, 'paid')");
    cluster.delivered(&receiver, "orders-to-billing");
    let examples = cluster.column(
        "SELECT line FROM pg_proc, string_to_table(obj_description(oid, 'pg_proc'), E'\\n') line
         WHERE pronamespace = 'pgwh'::regnamespace AND line LIKE 'Example: %' ORDER BY line",
    );
    assert!(examples.len() >= 10, "{examples:?}");
    for example in examples {
        let example =
            example.trim_start_matches("Example: ").replace("https://example.com", &receiver.url(""));
        cluster.sql(&example);
    }
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference.md")
}

/// The settings, with their defaults as `SHOW` has them.
fn settings(cluster: &Cluster) -> String {
    let rows = rows(
        cluster,
        "SELECT name, boot_val, coalesce(unit, ''), vartype, coalesce(min_val, ''), coalesce(max_val, ''),
                coalesce(array_to_string(enumvals, ', '), ''), short_desc, coalesce(extra_desc, '')
         FROM pg_settings WHERE name LIKE 'pgwh.%' ORDER BY name",
    );
    let mut text = "## Settings\n\nAll take effect by a reload (`SELECT pg_reload_conf()`), but where it says otherwise.\n\n\
                    | setting | default | values | meaning |\n|---|---|---|---|\n"
        .to_owned();
    for row in rows {
        let [name, default, unit, kind, least, most, words, short, long] = &row[..] else {
            panic!("{row:?}")
        };
        let default = match readable(default, unit) {
            default if default.is_empty() => "empty".to_owned(),
            default => format!("`{default}`"),
        };
        let values = match kind.as_str() {
            "bool" => "`on`, `off`".to_owned(),
            "enum" => words.clone(),
            "integer" => format!("{} to {}", readable(least, unit), readable(most, unit)),
            _ => "text".to_owned(),
        };
        writeln!(text, "| `{name}` | {default} | {values} | {} |", cell(&format!("{short} {long}"))).unwrap();
    }
    text + "\n"
}

/// A number of a unit in the largest one that it is a whole number of, as `SHOW` prints it.
fn readable(value: &str, unit: &str) -> String {
    let steps: &[(&str, u64)] = match unit {
        "B" | "kB" | "MB" => &[("B", 1024), ("kB", 1024), ("MB", 1024), ("GB", 1024), ("TB", u64::MAX)],
        "ms" | "s" => &[("ms", 1000), ("s", 60), ("min", 60), ("h", 24), ("d", u64::MAX)],
        _ => return value.to_owned(),
    };
    let mut number: u64 = value.parse().unwrap();
    let mut at = steps.iter().position(|(name, _)| *name == unit).unwrap();
    while number > 0 && number.is_multiple_of(steps[at].1) {
        number /= steps[at].1;
        at += 1;
    }
    if number == 0 { "0".to_owned() } else { format!("{number}{}", steps[at].0) }
}

/// The functions that can be called, by name.
fn functions(cluster: &Cluster) -> String {
    let rows = rows(
        cluster,
        "SELECT proname, pg_get_function_arguments(p.oid), pg_get_function_result(p.oid), obj_description(p.oid, 'pg_proc')
         FROM pg_proc p
         WHERE pronamespace = 'pgwh'::regnamespace AND prorettype NOT IN ('trigger'::regtype, 'event_trigger'::regtype)
         ORDER BY proname, pg_get_function_arguments(p.oid) DESC",
    );
    let mut text = "## Functions\n\n".to_owned();
    for row in rows {
        let [name, arguments, result, comment] = &row[..] else { panic!("{row:?}") };
        let (columns, arguments): (Vec<_>, Vec<_>) =
            split(arguments).into_iter().partition(|argument| argument.starts_with("OUT "));
        let result = if columns.is_empty() {
            result.clone()
        } else {
            let columns: Vec<_> =
                columns.iter().map(|column| column.trim_start_matches("OUT ").to_owned()).collect();
            format!("TABLE{}", listed(&columns))
        };
        let signature = format!("pgwh.{name}{} RETURNS {result}", listed(&arguments));
        write!(text, "### `pgwh.{name}`\n\n```text\n{signature}\n```\n\n{}", explained(comment)).unwrap();
    }
    text
}

/// A list in parentheses: on one line when that is short.
fn listed(members: &[String]) -> String {
    let line = members.join(", ");
    if line.len() < 80 { format!("({line})") } else { format!("(\n    {}\n)", members.join(",\n    ")) }
}

/// A comment of a function: what it does, its arguments as a table, an example.
fn explained(comment: &str) -> String {
    let (mut told, mut arguments, mut examples) = (Vec::new(), Vec::<(&str, String)>::new(), Vec::new());
    for line in comment.lines() {
        let words = line.trim_start();
        match line.len() - words.len() {
            0 => match line.strip_prefix("Example: ") {
                Some(example) => examples.push(example),
                None => told.push(line),
            },
            2 => {
                let ends = words.match_indices(' ').map(|(at, _)| at);
                let end = ends.into_iter().find(|at| !words[..*at].ends_with(',')).unwrap_or(words.len());
                arguments.push((&words[..end], words[end..].trim().to_owned()));
            }
            _ => {
                let last = arguments.last_mut().expect("an argument that this goes on about");
                last.1 += " ";
                last.1 += words;
            }
        }
    }
    let mut text = format!("{}\n\n", plain(&told.join("\n")));
    if !arguments.is_empty() {
        text += "| argument | meaning |\n|---|---|\n";
        for (name, meaning) in arguments {
            let names: Vec<_> = name.split(", ").map(|name| format!("`{name}`")).collect();
            writeln!(text, "| {} | {} |", names.join(", "), cell(&meaning)).unwrap();
        }
        text.push('\n');
    }
    for example in examples {
        write!(text, "```text\n{example}\n```\n\n").unwrap();
    }
    text
}

/// Arguments of a function one by one: commas in brackets and quotes are parts of them.
fn split(arguments: &str) -> Vec<String> {
    let (mut depth, mut quoted, mut found) = (0, false, vec![String::new()]);
    for c in arguments.chars() {
        match c {
            '\'' => quoted = !quoted,
            '(' | '[' | '{' if !quoted => depth += 1,
            ')' | ']' | '}' if !quoted => depth -= 1,
            ',' if !quoted && depth == 0 => {
                found.push(String::new());
                continue;
            }
            _ => {}
        }
        found.last_mut().unwrap().push(c);
    }
    found.retain(|argument| !argument.trim().is_empty());
    found.iter().map(|argument| without_cast(argument.trim()).to_owned()).collect()
}

/// An argument without the cast of its default, which says its type once more.
fn without_cast(argument: &str) -> &str {
    match argument.split_once(" DEFAULT ") {
        Some(_) => argument.rsplit_once("::").map_or(argument, |(before, _)| before),
        None => argument,
    }
}

/// Tables and views with their columns.
fn relations(cluster: &Cluster) -> String {
    let relations = rows(
        cluster,
        "SELECT relname, CASE relkind WHEN 'v' THEN 'view' ELSE 'table' END, obj_description(oid, 'pg_class') FROM pg_class
         WHERE relnamespace = 'pgwh'::regnamespace AND relkind IN ('r', 'p', 'v') AND NOT relispartition ORDER BY relname",
    );
    let mut text = "## Tables and views\n".to_owned();
    for row in relations {
        let [name, kind, comment] = &row[..] else { panic!("{row:?}") };
        write!(
            text,
            "\n### {} `pgwh.{name}`\n\n{}\n\n| column | type | meaning |\n|---|---|---|\n",
            capital(kind),
            plain(comment)
        )
        .unwrap();
        let columns = rows_of(cluster, name);
        for column in columns {
            let [column, kind, comment] = &column[..] else { panic!("{column:?}") };
            writeln!(text, "| `{column}` | {kind} | {} |", cell(comment)).unwrap();
        }
    }
    text
}

fn rows_of(cluster: &Cluster, relation: &str) -> Vec<Vec<String>> {
    rows(
        cluster,
        &format!(
            "SELECT attname, format_type(atttypid, atttypmod), col_description(attrelid, attnum) FROM pg_attribute
             WHERE attrelid = 'pgwh.{relation}'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
        ),
    )
}

fn rows(cluster: &Cluster, sql: &str) -> Vec<Vec<String>> {
    let rows = cluster.rows(sql).into_iter();
    rows.map(|row| row.into_iter().map(Option::unwrap_or_default).collect()).collect()
}

fn capital(word: &str) -> String {
    word[..1].to_uppercase() + &word[1..]
}

/// A text in a cell of a table.
fn cell(text: &str) -> String {
    plain(text.trim()).replace('|', "\\|").replace('\n', " ")
}

/// A text without what Markdown would take for its own.
fn plain(text: &str) -> String {
    text.replace('<', "&lt;").replace('*', "\\*")
}
