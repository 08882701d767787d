//! What is noted of schema changes is kept for long, not for ever.

use pgrx::Spi;
use pgrx::spi::Result;

/// Forgets changes that are older than a year, and of the others all but the newest 100,000.
pub(super) fn forget_old() -> Result<()> {
    Spi::run(
        "DELETE FROM pgwh.schema_changes WHERE changed_at < greatest(now() - interval '1 year',
             (SELECT changed_at FROM pgwh.schema_changes ORDER BY changed_at DESC OFFSET 99999 LIMIT 1))",
    )
}
