//! The SQL surface by `pg_regress`, as packagers run it: `make installcheck` against a throw-away cluster.

use std::path::Path;
use std::process::Command;

use harness::{Cluster, Server};

#[test]
fn the_sql_surface_answers_as_recorded() {
    let cluster = Cluster::start();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let output = cluster.make_directory("regress");
    let major = Server::get().major().to_string();
    let found = Command::new(root.join("scripts/postgres")).arg(&major).output().unwrap();
    let pg_config = String::from_utf8_lossy(&found.stdout).trim().to_owned();
    let mut tests: Vec<String> = std::fs::read_dir(root.join("tests/regress/sql"))
        .unwrap()
        .filter_map(|entry| Some(entry.ok()?.path().file_stem()?.to_string_lossy().into_owned()))
        .collect();
    tests.sort();
    let run = Command::new(root.join("scripts/regress"))
        .arg(pg_config)
        .args(&tests)
        .env("PGHOST", cluster.host())
        .env("PGPORT", cluster.port().to_string())
        .env("PGUSER", "postgres")
        .env("REGRESS_OUTPUT", &output)
        .output()
        .unwrap();
    // After an intended change: `PGWH_ACCEPT=1 make end-to-end TESTS='--test docs regress::'`, and look at the difference.
    if std::env::var_os("PGWH_ACCEPT").is_some() {
        for name in &tests {
            let recorded = root.join(format!("tests/regress/expected/{name}.out"));
            std::fs::copy(output.join(format!("results/{name}.out")), recorded).unwrap();
        }
    }
    let differences = std::fs::read_to_string(output.join("regression.diffs")).unwrap_or_default();
    let told = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{told}{}{differences}", String::from_utf8_lossy(&run.stderr));
}
