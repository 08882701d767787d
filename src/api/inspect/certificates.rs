//! Until when certificates are valid: those by which subscriptions say who is calling, and those of `pgwh.ca_file`.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::api::authorization::{Visible, as_owner};
use crate::gucs;
use crate::http::{certificates, file_certificates, not_after};
use crate::pg::values::encoding::{Text, Texts};
use crate::secret::stored_secret;

/// The sealed or plain texts of all that there are.
const CLIENT_CERTIFICATES: &str =
    "SELECT subscription_id, client_certificate FROM pgwh.secrets WHERE client_certificate IS NOT NULL";

/// When the client certificate of each subscription ends, its chain's first one to end, and each one in `pgwh.ca_file`,
/// without a subscription. What cannot be read is not among them: others report that.
#[pg_extern(sql = false)]
fn certificate_ends()
-> Result<TableIterator<'static, (name!(subscription_id, Option<i64>), name!(until, Text))>, ErrorReport> {
    let visible = Visible::now()?;
    let keys = gucs::encryption_keys().unwrap_or_default();
    let end_of = |chain: &[Vec<u8>]| chain.iter().filter_map(|one| not_after(one)).min();
    let mut ends: Vec<(Option<i64>, Text)> = as_owner(|| {
        let mut ends = Vec::new();
        Spi::connect(|client| {
            for row in client.select(CLIENT_CERTIFICATES, None, &[])? {
                let id = row.get::<i64>(1)?.unwrap_or_default();
                let text = row.text(2)?.filter(|_| visible.has(id)).unwrap_or_default();
                let opened = stored_secret::open(keys.as_ref(), id, "client_certificate", &text);
                let end = opened.ok().and_then(|pem| end_of(&certificates(pem.as_bytes())));
                ends.extend(end.map(|end| (Some(id), end.into())));
            }
            Ok::<_, pgrx::spi::Error>(())
        })?;
        Ok(ends)
    })?;
    let trusted = gucs::ca_file().map(|path| file_certificates(&path)).unwrap_or_default();
    ends.extend(trusted.iter().filter_map(|one| Some((None, not_after(one)?.into()))));
    Ok(TableIterator::new(ends))
}
