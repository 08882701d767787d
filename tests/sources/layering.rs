//! Floors and circles of `src/`, read from its `use` declarations.
//!
//! A file may import what stands on its own floor or below, and no two files import each other, directly or over others. The
//! import of a name that a folder's `mod.rs` re-exports is one of the file that defines it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The rooms of `src/`, floor by floor, the highest first.
const FLOORS: [&[&str]; 15] = [
    &["lib", "preload"],
    &["hooks"],
    &["api"],
    &["dispatcher"],
    &["bgworkers"],
    &["journal"],
    &["error"],
    &["decode"],
    &["shmem"],
    &["pg"],
    &["gucs"],
    &["pg::compat"],
    &["delivery", "http", "metrics"],
    &["ipc", "secret"],
    &["event", "prefetch", "proptest_config", "version"],
];

/// The files that import each other, and why they may.
const CIRCLES: [(&[&str], &str); 2] = [
    (&["journal::read::reader", "journal::write::writer"], "the reader looks into what is not written yet"),
    (
        &["decode::encode::value", "decode::encode::value::array", "decode::encode::value::composite"],
        "values are made of values",
    ),
];

/// Which files, named as modules, each file imports.
type Arrows = BTreeMap<String, BTreeSet<String>>;

/// The source of each module of `src/`, without comments and tests.
fn sources(folder: &Path, module: &str, found: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let inner = if module.is_empty() { name.to_owned() } else { format!("{module}::{name}") };
        let is_of_tests = name.ends_with("tests");
        if path.is_dir() && !is_of_tests {
            sources(&path, &inner, found);
        } else if path.extension().is_some_and(|it| it == "rs") && !is_of_tests {
            let text = std::fs::read_to_string(&path).unwrap();
            let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
            let lines = text.lines().map(|line| line.split("//").next().unwrap());
            let module = if name == "mod" { module.to_owned() } else { inner };
            found.insert(module, lines.collect::<Vec<_>>().join("\n"));
        }
    }
}

/// The paths of a `use` tree, such as `a::{b, c::d}`.
fn leaves(tree: &str, prefix: &str, found: &mut Vec<String>) {
    let tree = tree.trim();
    let Some((head, group)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap().trim();
        found.push(format!("{prefix}{path}").trim_end_matches("::self").to_owned());
        return;
    };
    let (mut depth, mut begin) = (0, 0);
    let group = group.strip_suffix('}').unwrap();
    for (at, letter) in group.char_indices().chain([(group.len(), ',')]) {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                if !group[begin..at].trim().is_empty() {
                    leaves(&group[begin..at], &format!("{prefix}{}", head.trim()), found);
                }
                begin = at + 1;
            }
            _ => {}
        }
    }
}

/// What a file imports, each path from the root of the crate, and whether it re-exports it. Paths that are written out in
/// code, as `crate::…`, count as well.
fn imports(module: &str, text: &str) -> Vec<(String, bool)> {
    let mut found = Vec::new();
    for statement in text.split(';') {
        let declaration =
            statement.lines().skip_while(|line| !line.contains("use ")).collect::<Vec<_>>().join(" ");
        let words = declaration
            .trim()
            .split_once("use ")
            .filter(|(before, _)| before.is_empty() || before.trim() == "pub" || before.starts_with("pub("));
        if let Some((before, tree)) = words {
            let mut paths = Vec::new();
            leaves(tree, "", &mut paths);
            found.extend(paths.into_iter().map(|path| (path, !before.is_empty())));
        } else {
            for (at, _) in statement.match_indices("crate::") {
                let path =
                    statement[at..].split(|it: char| !(it.is_alphanumeric() || it == '_' || it == ':'));
                found.push((path.clone().next().unwrap().to_owned(), false));
            }
        }
    }
    let parents: Vec<&str> = module.split("::").collect();
    let absolute = |path: String| {
        let up = path.split("::").take_while(|it| *it == "super").count();
        let rest: Vec<&str> = path.split("::").skip(up).collect();
        match rest[0] {
            "crate" => Some(rest[1..].join("::")),
            "self" => Some([&parents[..], &rest[1..]].concat().join("::")),
            // Modules inside of a file import all of it, files do not.
            "*" => None,
            _ if up > 0 => Some([&parents[..parents.len() - up], &rest[..]].concat().join("::")),
            _ => None,
        }
    };
    found.into_iter().filter_map(|(path, again)| Some((absolute(path)?, again))).collect()
}

/// The file that defines what a path names.
fn file_of(
    path: &str,
    sources: &BTreeMap<String, String>,
    again: &BTreeMap<String, String>,
) -> Option<String> {
    let mut file = path;
    while !sources.contains_key(file) {
        if let Some(target) = again.get(file) {
            return file_of(&format!("{target}{}", &path[file.len()..]), sources, again);
        }
        file = &file[..file.rfind("::")?];
    }
    // A folder is imported for what is reached through it, and that is found where it is written out.
    Some(file.to_owned())
}

fn arrows() -> Arrows {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../src");
    let mut found = BTreeMap::new();
    sources(&root, "", &mut found);
    assert!(found.len() > 150, "{} files", found.len());
    let all: Vec<(&String, String, bool)> = found
        .iter()
        .flat_map(|(file, text)| {
            imports(file, text).into_iter().map(move |(path, again)| (file, path, again))
        })
        .collect();
    let name = |path: &str| path.rsplit("::").next().unwrap().to_owned();
    let again = all.iter().filter(|(.., again)| *again);
    let again = again.map(|(file, path, _)| (format!("{file}::{}", name(path)), path.clone())).collect();
    let mut arrows = Arrows::new();
    for (file, path, _) in all.iter().filter(|(.., again)| !again) {
        let target = file_of(path, &found, &again).unwrap_or_else(|| panic!("{file}: what is {path}?"));
        if target != **file {
            arrows.entry((*file).clone()).or_default().insert(target);
        }
    }
    arrows
}

fn floor(module: &str) -> usize {
    let of = |room: &str| FLOORS.iter().position(|floor| floor.contains(&room));
    let room = module.split("::").next().unwrap();
    of(module).or_else(|| of(room)).unwrap_or_else(|| panic!("{room} stands on no floor"))
}

/// The arrows that go up.
fn going_up(arrows: &Arrows) -> Vec<String> {
    let all = arrows.iter().flat_map(|(from, to)| to.iter().map(move |to| (from, to)));
    all.filter(|(from, to)| floor(to) < floor(from)).map(|(from, to)| format!("{from} -> {to}")).collect()
}

/// The groups of files of which each reaches each other.
fn circles(arrows: &Arrows) -> BTreeSet<Vec<String>> {
    let reach = |from: &String| {
        let (mut known, mut next) = (BTreeSet::new(), vec![from]);
        while let Some(file) = next.pop() {
            next.extend(arrows.get(file).into_iter().flatten().filter(|to| known.insert((*to).clone())));
        }
        known
    };
    let reached: BTreeMap<&String, BTreeSet<String>> =
        arrows.keys().map(|from| (from, reach(from))).collect();
    let circle = |file: &String| {
        let others =
            reached.iter().filter(|(other, to)| to.contains(file) && reached[file].contains(**other));
        others.map(|(other, _)| (*other).clone()).collect::<Vec<_>>()
    };
    arrows.keys().filter(|file| reached[*file].contains(*file)).map(circle).collect()
}

#[test]
fn no_room_imports_from_above() {
    assert_eq!(going_up(&arrows()), Vec::<String>::new());
}

#[test]
fn no_files_import_each_other_but_those_named() {
    let named = CIRCLES.iter().map(|(files, _)| files.iter().map(ToString::to_string).collect());
    assert_eq!(circles(&arrows()), named.collect());
}

#[test]
fn an_arrow_that_goes_up_or_round_is_found() {
    let mut arrows = arrows();
    let mut add = |from: &str, to: &str| arrows.entry(from.to_owned()).or_default().insert(to.to_owned());
    add("event::row", "http::sender");
    add("pg::acl", "pg::lineage");
    add("pg::lineage", "pg::acl");
    assert_eq!(going_up(&arrows), ["event::row -> http::sender"]);
    assert!(circles(&arrows).contains(&vec!["pg::acl".to_owned(), "pg::lineage".to_owned()]));
}
