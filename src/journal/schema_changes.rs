//! What is noted of schema changes is kept for long, not for ever.

use pgrx::Spi;
use pgrx::spi::Result;

use super::transaction::check;
use crate::decode::schema_versions::SchemaVersions;
use crate::event::Lsn;
use crate::pg::values::encoding::{Texts, argument};

/// The latest change of each schema that was noted at or before $1.
const LATEST: &str = "
    SELECT DISTINCT ON (p.schema) p.schema, c.id
    FROM pgwh_internal.schema_changes c CROSS JOIN LATERAL json_to_recordset(c.places) AS p (schema text)
    WHERE c.installed = pgwh_internal.installed() AND c.lsn <= $1::pg_lsn ORDER BY p.schema, c.lsn DESC, c.changed_at DESC";

/// Forgets changes that are older than a year, and of the others all but the newest 100,000; but no schema's latest.
pub(super) fn forget_old() -> Result<()> {
    Spi::run_with_args(
        &format!(
            "DELETE FROM pgwh_internal.schema_changes WHERE changed_at < greatest(now() - interval '1 year',
                 (SELECT changed_at FROM pgwh_internal.schema_changes ORDER BY changed_at DESC OFFSET 99999 LIMIT 1))
             AND id NOT IN (SELECT latest.id FROM ({LATEST}) latest)"
        ),
        &[argument(Lsn(u64::MAX).to_string())],
    )
}

/// The versions of all schemas as of a position of the log. (A change noted before that is committed behind it counts
/// already, which is told again when its commit is decoded.) Inside a transaction.
pub fn schema_versions(at: Lsn) -> SchemaVersions {
    check("schema changes cannot be read", read_versions(at))
}

fn read_versions(at: Lsn) -> Result<SchemaVersions> {
    Spi::connect(|client| {
        let query = format!("SELECT schema, id::text FROM ({LATEST}) latest");
        let mut latest = Vec::new();
        for row in client.select(query.as_str(), None, &[argument(at.to_string())])? {
            latest.extend(row.text(1)?.zip(row.text(2)?));
        }
        Ok(SchemaVersions::from_iter(latest))
    })
}

/// The newest change that is noted: as long as it is the same, so are the versions. Inside a transaction.
pub fn newest_schema_change() -> Option<String> {
    let newest = Spi::connect(|client| {
        let query = "SELECT id::text FROM pgwh_internal.schema_changes ORDER BY changed_at DESC LIMIT 1";
        let rows = client.select(query, Some(1), &[])?;
        if rows.is_empty() { Ok(None) } else { rows.first().text(1) }
    });
    check("schema changes cannot be read", newest)
}
