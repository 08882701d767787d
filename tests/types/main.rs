//! Values of every type arrive as `to_json` writes them.

mod kind;
mod random;
mod values;

use harness::{Cluster, Stage, compare_records};

/// What `tests/types.sql` makes, but for what it alters when rows are in: events have what there was at their time, the
/// table has not.
fn everything() -> String {
    let types = include_str!("../types.sql");
    let (before, altered) = types.split_once("ALTER TYPE altered").expect("types that are altered");
    let (_, after) = altered.split_once("CREATE EXTENSION").expect("extensions");
    format!("{before} CREATE EXTENSION {after}")
}

#[test]
fn records_are_what_to_json_makes_of_the_row() {
    let stage = Stage::set();
    stage.psql(&(everything() + include_str!("../types_utf8.sql")));
    let compared = compare_records(&stage, &stage.delivered(&stage.receiver, "all"));
    assert!(compared > 600, "{compared} values compared");
}

/// Types that no column can have a value of, since no function returns one: entries of indexes and their summaries.
const WITHOUT_VALUES: &[&str] = &[
    "gbtreekey16",
    "gbtreekey2",
    "gbtreekey32",
    "gbtreekey4",
    "gbtreekey8",
    "gbtreekey_var",
    "ghstore",
    "gtrgm",
    "gtsvector",
    "intbig_gkey",
    "ltree_gist",
    "pg_brin_bloom_summary",
    "pg_brin_minmax_multi_summary",
];

#[test]
fn every_type_that_a_column_can_have_is_among_those_compared() {
    let cluster = Cluster::start();
    cluster.psql(&everything());
    for column in cluster.column(&format!(
        "SELECT format('SELECT count(%2$I) > 0 FROM %1$s', attrelid::regclass, attname) {COLUMNS}"
    )) {
        assert_eq!(cluster.value(&column), "t", "{column}");
    }
    let extensions = "SELECT name FROM pg_available_extensions
        WHERE name NOT IN ('pgstream_hooks', 'plpgsql') AND installed_version IS NULL";
    for extension in cluster.column(extensions) {
        cluster.sql(&format!("CREATE EXTENSION \"{extension}\" CASCADE"));
    }
    // An array is as its elements are, and a table's row as that of any other.
    let missing = cluster.column(&format!(
        "SELECT format_type(t.oid, NULL) FROM pg_type t LEFT JOIN pg_class c ON c.oid = typrelid
         WHERE typisdefined AND typtype <> 'p' AND typcategory <> 'A' AND (relkind IS NULL OR relkind = 'c')
           AND typnamespace <> 'information_schema'::regnamespace
           AND NOT EXISTS (SELECT {COLUMNS} AND t.oid IN (atttypid, (SELECT typelem FROM pg_type WHERE oid = atttypid)))
         ORDER BY 1"
    ));
    assert_eq!(missing, WITHOUT_VALUES);
}

/// The columns of the tables that `everything` makes.
const COLUMNS: &str = "FROM pg_attribute JOIN pg_class r ON r.oid = attrelid
    WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND relname <> 'row_type' AND attnum > 0 AND NOT attisdropped";
