//! Versions. `Cargo.toml` is the one place.
//!
//! The library that a server has loaded and the SQL in a database are replaced one after the other: the library by
//! installing it and restarting the server, the SQL by `ALTER EXTENSION pgstream_hooks UPDATE`. In between they may not
//! fit.

/// Version of this library.
pub const LIBRARY: &str = env!("CARGO_PKG_VERSION");

/// Earlier versions of the SQL that this library works with as with its own. The others keep workers and calls waiting
/// until the extension is updated.
const EARLIER: &[&str] = &[];

/// Whether this library works with that version of the SQL.
pub fn fits(sql: &str) -> bool {
    sql == LIBRARY || EARLIER.contains(&sql)
}

/// Whether this library is older than the SQL, and so is what has to be replaced.
pub fn is_older_than(sql: &str) -> bool {
    numbers(LIBRARY) < numbers(sql)
}

/// The numbers of a version in the order that counts; what is no number is left out.
fn numbers(version: &str) -> Vec<u64> {
    version.split(['.', '-']).filter_map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn scripts() -> BTreeSet<String> {
        let folder = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/sql")).unwrap();
        let names = folder.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names
            .filter_map(|name| Some(name.strip_prefix("pgstream_hooks--")?.strip_suffix(".sql")?.to_owned()))
            .collect()
    }

    #[test]
    fn versions_are_told_apart_by_their_numbers() {
        assert!(fits(LIBRARY) && !is_older_than(LIBRARY));
        assert!(is_older_than("999.0.0") && !fits("999.0.0"));
        assert!(!is_older_than("0.0.9") && !fits("0.0.9"));
        assert!(numbers("0.10.0") > numbers("0.9.1"));
    }

    #[test]
    fn every_version_that_has_been_can_be_updated_to_the_present_one() {
        let scripts = scripts();
        let mut steps: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (from, to) in scripts.iter().filter_map(|name| name.split_once("--")) {
            steps.entry(from).or_default().push(to);
            let path = format!("{}/sql/pgstream_hooks--{from}--{to}.sql", env!("CARGO_MANIFEST_DIR"));
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(
                text.contains("SELECT pgwh_internal.extension_updated();"),
                "{path} says when it is done"
            );
        }
        for version in scripts.iter().filter(|name| !name.contains("--")) {
            let mut reached = BTreeSet::from([version.as_str()]);
            let mut next = vec![version.as_str()];
            while let Some(version) = next.pop() {
                next.extend(steps.get(version).into_iter().flatten().filter(|to| reached.insert(to)));
            }
            assert!(reached.contains(LIBRARY), "there is no way from {version} to {LIBRARY}");
        }
    }
}
