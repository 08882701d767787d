//! Gaps: what a subscription will never get, because it was disabled or write-ahead log was lost.

use pgrx::Spi;
use pgrx::spi::Result;

use crate::event::Lsn;

/// A subscription's gap begins where that commit ended, unless it lies in one already: decoding again tells the same
/// gaps again.
pub(super) fn open(subscription: i64, from: Lsn, reason: &str) -> Result<()> {
    Spi::run_with_args(
        "INSERT INTO pgwh.gaps (subscription_id, from_lsn, reason)
         SELECT $1, $2::pg_lsn, $3 WHERE NOT EXISTS (
             SELECT FROM pgwh.gaps WHERE subscription_id = $1 AND from_lsn <= $2::pg_lsn
                 AND (to_lsn IS NULL OR to_lsn > $2::pg_lsn))",
        &[subscription.into(), from.to_string().into(), reason.into()],
    )
}

/// A subscription gets again what is committed from there on.
pub(super) fn close(subscription: i64, to: Lsn) -> Result<()> {
    Spi::run_with_args(
        "UPDATE pgwh.gaps SET to_lsn = $2::pg_lsn, until = now()
         WHERE subscription_id = $1 AND to_lsn IS NULL AND from_lsn < $2::pg_lsn",
        &[subscription.into(), to.to_string().into()],
    )
}
