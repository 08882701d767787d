//! Values of every type arrive as `to_json` writes them.

mod kind;
mod random;
mod values;

use harness::{Cluster, Stage, compare_records, types};
use serde_json::{Map, Value, json};

#[test]
fn records_are_what_to_json_makes_of_the_row() {
    let stage = Stage::set();
    stage.psql(&(types() + include_str!("../../types_utf8.sql")));
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
    cluster.psql(&types());
    // A server may be built without libxml.
    let has_xml = cluster.try_sql("SELECT '<a/>'::xml").is_ok();
    let columns =
        format!("SELECT format('SELECT count(%2$I) > 0 FROM %1$s', attrelid::regclass, attname) {COLUMNS}");
    for column in cluster.column(&columns).iter().filter(|column| has_xml || !column.contains("c_xml")) {
        assert_eq!(cluster.value(column), "t", "{column}");
    }
    let extensions = "SELECT name FROM pg_available_extensions
        WHERE name NOT IN ('pgstream_hooks', 'plpgsql') AND installed_version IS NULL";
    for extension in cluster.column(extensions).iter().filter(|name| !LEFT_OUT.contains(&name.as_str())) {
        let created = cluster.try_sql(&format!("CREATE EXTENSION \"{extension}\" CASCADE"));
        created.unwrap_or_else(|error| panic!("{extension}: {error:?}"));
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

/// Extensions from other packages than the server's, which this machine may have: they need to be preloaded, lack a script for
/// this server, or bring types of their own that are tried elsewhere.
const LEFT_OUT: &[&str] = &[
    "address_standardizer",
    "address_standardizer_data_us",
    "citus",
    "pg_cron",
    "pg_partman",
    "pg_repack",
    "pg_squeeze",
    "pgaudit",
    "pglogical",
    "postgis",
    "postgis_raster",
    "postgis_sfcgal",
    "postgis_tiger_geocoder",
    "postgis_topology",
    "timescaledb",
    "vector",
];

/// The columns of the tables that `types` makes.
const COLUMNS: &str = "FROM pg_attribute JOIN pg_class r ON r.oid = attrelid
    WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND relname <> 'row_type' AND attnum > 0 AND NOT attisdropped";

#[test]
fn tables_of_no_columns_and_of_1600_are_sent_like_others() {
    let stage = Stage::set();
    stage.each(&[
        "CREATE TABLE none ()",
        "CREATE TABLE gone (a int); ALTER TABLE gone DROP COLUMN a, REPLICA IDENTITY FULL",
    ]);
    for table in ["none", "gone"] {
        let event = stage.event_of(&format!("INSERT INTO {table} DEFAULT VALUES"));
        assert_eq!((&event["record"], &event["key"]), (&json!({}), &Value::Null));
        assert_eq!(stage.event_of(&format!("DELETE FROM {table}"))["record"], json!({}));
        assert_eq!(stage.event_of(&format!("TRUNCATE {table}"))["record"], Value::Null);
    }

    // As many as a table can have, each named by as many bytes as a name can have.
    let name = |n: u32| format!("{:0>60}🐢", n).chars().skip(1).collect::<String>();
    let columns: Vec<String> = (1..1600).map(|n| format!("\"{}\" smallint DEFAULT {n}", name(n))).collect();
    stage.sql(&format!(
        "CREATE TABLE wide (id int PRIMARY KEY, {}); ALTER TABLE wide REPLICA IDENTITY FULL",
        columns.join(", ")
    ));
    let event = stage.event_of("INSERT INTO wide VALUES (1)");
    assert_eq!(event["record"], stage.row("wide", "true"));
    assert_eq!(event["record"].as_object().map(Map::len), Some(1600));
    let event = stage.event_of(&format!("UPDATE wide SET \"{}\" = 0", name(1599)));
    assert_eq!(event["record"], stage.row("wide", "true"));
    assert_eq!(event["changes"], json!({name(1599): 1599}));
    assert_eq!(stage.event_of("DELETE FROM wide")["record"], event["record"]);
}
