//! What the extension is built from: licences that may be linked into a server, one source, and each library once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

const LICENCES: [&str; 11] = [
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "ISC",
    "MIT",
    "PostgreSQL",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];
/// Libraries that are linked in more than one version, and who asks for the old one.
const TWICE: [(&str, &str); 3] = [("foldhash", "pgrx"), ("getrandom", "ring"), ("hashbrown", "pgrx")];

/// A package that Cargo.lock names, as far as it is about the extension.
struct Package {
    name: String,
    version: String,
    licence: String,
    source: Option<String>,
}

/// The extension with all that is linked into it, and, unless only that is asked for, what builds it; not what its tests use.
fn packages(only_linked: bool) -> Vec<Package> {
    let host = Command::new("rustc").arg("-vV").output().unwrap();
    let host = String::from_utf8(host.stdout).unwrap();
    let host = host.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let told = Command::new("cargo")
        .args(["metadata", "--format-version", "1", "--locked", "--all-features", "--filter-platform", host])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .output()
        .unwrap();
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    let metadata: Value = serde_json::from_slice(&told.stdout).unwrap();
    let by_id = |list: &Value| -> HashMap<String, Value> {
        let entry = |value: &Value| (value["id"].as_str().unwrap().to_owned(), value.clone());
        list.as_array().unwrap().iter().map(entry).collect()
    };
    let (packages, nodes) = (by_id(&metadata["packages"]), by_id(&metadata["resolve"]["nodes"]));
    let extension = packages.iter().find(|(_, package)| package["name"] == "pgstream_hooks").unwrap().0;
    let (mut found, mut open) = (BTreeSet::new(), vec![extension.clone()]);
    while let Some(id) = open.pop() {
        if !found.insert(id.clone()) {
            continue;
        }
        let used = |dependency: &&Value| {
            let mut kinds =
                dependency["dep_kinds"].as_array().unwrap().iter().map(|kind| kind["kind"].as_str());
            let target = &packages[dependency["pkg"].as_str().unwrap()]["targets"][0]["kind"][0];
            if only_linked {
                target != "proc-macro" && kinds.any(|kind| kind.is_none())
            } else {
                kinds.any(|kind| kind != Some("dev"))
            }
        };
        let dependencies = nodes[&id]["deps"].as_array().unwrap().iter().filter(used);
        open.extend(dependencies.map(|dependency| dependency["pkg"].as_str().unwrap().to_owned()));
    }
    let text = |value: &Value| value.as_str().map(str::to_owned);
    found
        .iter()
        .map(|id| &packages[id])
        .map(|package| Package {
            name: text(&package["name"]).unwrap(),
            version: text(&package["version"]).unwrap(),
            licence: text(&package["license"]).unwrap_or_default(),
            source: text(&package["source"]),
        })
        .collect()
}

/// Whether an SPDX expression lets us choose licences of the list only. All that is written is AND of alternatives.
fn is_allowed(expression: &str) -> bool {
    expression.replace('/', " OR ").split(" AND ").all(|part| {
        let part = part.trim_matches(['(', ')', ' ']);
        part.split(" OR ").any(|licence| LICENCES.contains(&licence.trim_matches(['(', ')', ' '])))
    })
}

#[test]
fn every_licence_may_be_linked_into_a_server() {
    let packages = packages(false);
    assert!(packages.len() > 80, "{}", packages.len());
    for Package { name, licence, .. } in packages {
        assert!(is_allowed(&licence), "{name}: {licence:?}");
    }
    for refused in ["GPL-3.0-only", "MIT AND GPL-2.0-only", "(MIT OR Apache-2.0) AND LGPL-2.1-only", ""] {
        assert!(!is_allowed(refused), "{refused}");
    }
}

#[test]
fn every_package_comes_from_the_registry() {
    let mut registries = BTreeSet::new();
    for Package { name, source, .. } in packages(false) {
        match source {
            None => assert_eq!(name, "pgstream_hooks", "a directory"),
            Some(source) => {
                assert!(source.starts_with("registry+"), "{name}: {source}");
                registries.insert(source);
            }
        }
    }
    assert_eq!(registries.len(), 1, "{registries:?}");
}

#[test]
fn no_library_is_there_twice_without_a_reason() {
    let mut versions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for Package { name, version, .. } in packages(true) {
        versions.entry(name).or_default().push(version);
    }
    versions.retain(|_, versions| versions.len() > 1);
    let twice: Vec<&str> = versions.keys().map(String::as_str).collect();
    let known: Vec<&str> = TWICE.iter().map(|(name, _)| *name).collect();
    assert_eq!(twice, known, "{versions:?}");
}

#[test]
fn every_dependency_is_pinned_to_contents_of_the_registry() {
    let lock = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.lock")).unwrap();
    let packages: Vec<&str> = lock.split("[[package]]").skip(1).collect();
    let own: Vec<&&str> = packages.iter().filter(|package| !package.contains("source = ")).collect();
    assert_eq!(own.len(), 4, "besides the packages of this repository: {own:?}");
    for package in packages.iter().filter(|package| package.contains("source = ")) {
        assert!(package.contains("source = \"registry+") && package.contains("checksum = "), "{package}");
    }
}
