//! What the database says of the partitions.

use pgrx::Spi;
use pgrx::spi::Result;

use super::ring::{Slice, Slices};
use crate::journal::columns::{id, lsn};

/// The tables that are sliced.
pub(crate) const TABLES: [&str; 4] = ["event_chunks", "outcome_chunks", "attempt_rows", "positions"];

/// Reads what `pgwh_internal.slices` says.
pub(crate) fn read() -> Result<Slices> {
    let mut slices = Slices::default();
    Spi::connect(|client| {
        let rows = client.select(
            "SELECT slice, generation, first_id, before_lsn::text, before_ordinal,
                     (extract(epoch FROM opened_at - '2000-01-01 00:00:00+00') * 1000000)::bigint,
                     (extract(epoch FROM done_at - '2000-01-01 00:00:00+00') * 1000000)::bigint,
                     pg_table_size(format('pgwh_internal.event_chunks_%s', slice)::regclass)
                         + pg_table_size(format('pgwh_internal.outcome_chunks_%s', slice)::regclass),
                     pg_relation_size(format('pgwh_internal.event_chunks_%s', slice)::regclass)
                         + pg_relation_size(format('pgwh_internal.outcome_chunks_%s', slice)::regclass) > 0
                 FROM pgwh_internal.slices WHERE generation IS NOT NULL ORDER BY generation",
            None,
            &[],
        )?;
        for row in rows {
            let ordinal: Option<i64> = row.get(5)?;
            let before = row.get::<String>(4)?.zip(ordinal);
            slices.generation = row.get(2)?.unwrap_or_default();
            slices.used.push(Slice {
                number: row.get(1)?.unwrap_or_default(),
                first: id(row.get(3)?),
                before: before.map(|(text, ordinal)| (lsn(Some(text)), ordinal as u64)),
                opened_at: row.get(6)?.unwrap_or_default(),
                done_at: row.get(7)?,
                bytes: row.get::<i64>(8)?.unwrap_or_default() as u64,
                used: row.get(9)?.unwrap_or_default(),
            });
        }
        Ok(slices)
    })
}
