//! One version: Cargo.toml has it, and everything else reads it from there or, where it cannot, says the same.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::Cluster;
use serde_json::Value;

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_installed_extension_has_the_version_of_cargo() {
    let cluster = Cluster::with_extension();
    let told = cluster.rows(
        "SELECT pgwh.version(), schema_version, extversion FROM pgwh_internal.installation, pg_extension
         WHERE extname = 'pgstream_hooks'",
    );
    assert_eq!(told, [vec![Some(VERSION.to_owned()); 3]], "library, its SQL, pg_extension");
}

#[test]
fn packages_are_named_by_the_version_of_cargo() {
    let told = Command::new(root().join("scripts/version")).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&told.stdout), format!("{VERSION}\n"), "scripts/version");
    assert!(read("pgstream_hooks.control").contains("default_version = '@CARGO_VERSION@'"));
    assert!(!read("Dockerfile").contains(VERSION), "the Dockerfile needs no version");
    for member in ["Cargo.toml", "receiver/Cargo.toml", "tests/Cargo.toml", "benches/Cargo.toml"] {
        assert!(read(member).contains("version.workspace = true"), "{member} has a version of its own");
    }
    let meta: Value = serde_json::from_str(&read("META.json")).unwrap();
    let provided = meta["provides"]["pgstream_hooks"]["file"].as_str().unwrap();
    assert!(root().join(provided).exists(), "META.json names {provided}, which is not there");
    let docfile = meta["provides"]["pgstream_hooks"]["docfile"].as_str().unwrap();
    assert!(root().join(docfile).exists(), "META.json names {docfile}, which is not there");
}

/// Whatever the server is: one without headers, one of another major, none.
#[test]
fn make_install_says_at_once_what_is_missing() {
    let directory = std::env::temp_dir().join(format!("pgwh-install-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let pg_config = |version: &str| {
        let path = directory.join("pg_config");
        let script = format!(
            "#!/bin/sh\ncase $1 in --version) echo '{version}' ;; *) echo {}/none ;; esac\n",
            directory.display()
        );
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        path
    };
    let install = |pg_config: &Path| {
        let mut make = Command::new("make");
        make.args(["--silent", "install", &format!("PG_CONFIG={}", pg_config.display())]).current_dir(root());
        for name in ["MAKEFLAGS", "MAKELEVEL", "CARGO_TARGET_DIR"] {
            make.env_remove(name);
        }
        let output = make.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{text}");
        // Neither cargo nor install has begun.
        assert!(text.lines().count() < 6 && !text.contains("ompiling pgstream_hooks"), "{text}");
        text
    };
    let text = install(&pg_config("PostgreSQL 15.20"));
    assert!(text.contains("the server headers of PostgreSQL 15 are missing"), "{text}");
    assert!(text.contains("apt-get install postgresql-server-dev-15 libclang-dev"), "{text}");
    for other in ["PostgreSQL 14.9 (Debian 14.9-1)", "PostgreSQL 99devel", "MariaDB 10"] {
        let text = install(&pg_config(other));
        assert!(text.contains(other) && text.contains("is for PostgreSQL 15 16 17 18 19"), "{text}");
    }
    let text = install(&directory.join("nothing"));
    assert!(text.contains("there is no pg_config at") && text.contains("make install PG_CONFIG="), "{text}");
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn texts_name_the_version_of_cargo() {
    let meta: Value = serde_json::from_str(&read("META.json")).unwrap();
    assert_eq!(meta["version"], VERSION, "META.json");
    assert_eq!(meta["provides"]["pgstream_hooks"]["version"], VERSION, "META.json");
    for (path, before) in [
        ("README.md", "This is version "),
        ("README.md", "Of version "),
        ("README.md", "pgstream_hooks/"),
        ("README.md", "postgresql-15-pgstream-hooks_"),
        ("docs/guides/coming-from-pgstream.md", "pgstream_hooks/"),
        ("docs/guides/transforms.md", "pgstream_hooks/"),
    ] {
        let text = read(path);
        let named: Vec<_> = text
            .split(before)
            .skip(1)
            .map(|rest| rest.split(|c: char| !c.is_ascii_digit() && c != '.').next().unwrap_or_default())
            .map(|version| version.trim_end_matches('.'))
            .filter(|version| !version.is_empty())
            .collect();
        assert!(!named.is_empty(), "{path} does not say {before:?} any more");
        assert!(named.iter().all(|version| *version == VERSION), "{path}: {before}{named:?}, not {VERSION}");
    }
}
