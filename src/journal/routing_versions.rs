//! The image of routing: each version of each subscription that the log has told of, by its commit's position.

use pgrx::Spi;
use pgrx::spi::Result;

use crate::event::Lsn;
use crate::pg::values::encoding::Text;

/// What a subscription asks for from some commit on.
pub struct Version {
    /// The subscription.
    pub id: i64,
    /// Where that commit ended.
    pub lsn: Lsn,
    /// Its routing part as JSON; none when it is gone.
    pub spec: Option<String>,
}

/// Decoding again tells the same versions again, so that storing them twice changes nothing.
pub(super) fn store(versions: &[Version]) -> Result<()> {
    let ids: Vec<i64> = versions.iter().map(|version| version.id).collect();
    let lsns: Vec<String> = versions.iter().map(|version| version.lsn.to_string()).collect();
    let specs: Vec<Text> =
        versions.iter().map(|version| version.spec.clone().unwrap_or_default().into()).collect();
    Spi::run_with_args(
        "INSERT INTO pgwh_internal.routing_image (subscription_id, lsn, spec)
         SELECT DISTINCT ON (id, lsn) id, lsn::pg_lsn, spec
         FROM unnest($1, $2, $3) WITH ORDINALITY AS version (id, lsn, spec, n) ORDER BY id, lsn, n DESC
         ON CONFLICT (subscription_id, lsn) DO UPDATE SET spec = EXCLUDED.spec",
        &[ids.into(), lsns.into(), specs.into()],
    )
}

pub(super) fn forget() -> Result<()> {
    Spi::run("DELETE FROM pgwh_internal.routing_image")
}

pub(super) fn prune(confirmed: Lsn) -> Result<()> {
    Spi::run_with_args(
        "DELETE FROM pgwh_internal.routing_image old USING (
             SELECT subscription_id, max(lsn) AS lsn FROM pgwh_internal.routing_image
             WHERE lsn <= $1::pg_lsn GROUP BY subscription_id) now
         WHERE old.subscription_id = now.subscription_id
           AND (old.lsn < now.lsn OR old.lsn = now.lsn AND old.spec = '')",
        &[confirmed.to_string().into()],
    )
}
