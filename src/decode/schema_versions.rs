//! Versions of schemas, as pgstream tells them: which change of a schema was the latest. Pure.

use std::collections::HashMap;

use xxhash_rust::xxh3::xxh3_64;

use crate::event::TableName;

/// The latest change of each schema, as a number that no other change has.
#[derive(Debug, Default)]
pub struct SchemaVersions(HashMap<String, u64>);

impl SchemaVersions {
    /// Takes note of a change, by its id in `pgwh_internal.schema_changes`.
    pub fn note(&mut self, schema: &str, change: &str) {
        self.0.insert(schema.to_owned(), xxh3_64(change.as_bytes()));
    }

    /// The version of the schema in which a table is, which goes by these names: that of the topmost one counts.
    pub fn of(&self, names: &[TableName]) -> u64 {
        let schema = names.last().map_or("", |name| &name.schema);
        // One that has not changed since we look is still another than all others.
        self.0.get(schema).copied().unwrap_or_else(|| xxh3_64(schema.as_bytes()))
    }
}

impl FromIterator<(String, String)> for SchemaVersions {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(changes: I) -> SchemaVersions {
        let mut versions = SchemaVersions::default();
        changes.into_iter().for_each(|(schema, change)| versions.note(&schema, &change));
        versions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_gives_all_tables_of_its_schema_another_version() {
        let names = |schemas: &[&str]| -> Vec<TableName> {
            schemas.iter().map(|schema| TableName { schema: (*schema).into(), table: "t".into() }).collect()
        };
        let mut versions = SchemaVersions::from_iter([("public".to_owned(), "1".to_owned())]);
        let (public, sales) = (names(&["public"]), names(&["sales"]));
        let partition = names(&["parts", "public"]);
        assert_ne!(versions.of(&public), versions.of(&sales));
        assert_ne!(versions.of(&sales), versions.of(&names(&["other"])));
        assert_eq!(versions.of(&public), versions.of(&partition));
        let before = (versions.of(&public), versions.of(&sales));
        versions.note("public", "2");
        assert_ne!(versions.of(&public), before.0);
        assert_eq!(versions.of(&sales), before.1);
    }
}
